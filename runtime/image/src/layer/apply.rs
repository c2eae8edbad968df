//! Applies a layer's archive to a directory.
//!
//! Order matters inside one file: content, owner (which clears set-id bits and capabilities), mode,
//! attributes, times. Times of directories come last of all, since every entry in them changes them.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{
            FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, futimens, mkdirat, mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat},
};
use sha2::{Digest as _, Sha256};

use crate::{
    layer::{
        LayerError, Limits,
        archive::{Archive, Kind, Member},
        digests::Digests,
        place::{NAME_COST, Place, Root, is_whiteout, open_in_root, remove, shown},
        xattr,
    },
    record::Contents,
};

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a layer turned out to contain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Entries in the archive.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// Directories that the archive has things in but no entry for, relative to the layer; the empty
    /// name is the layer's own root. Their mode and owner are those of lower layers, and where a lower layer
    /// has a link instead, what is in them belongs to where that leads.
    pub implied: Vec<Vec<u8>>,
    /// What the files contain.
    pub(crate) contents: Contents,
}

/// Unpacks an uncompressed layer archive into the empty directory `root`.
///
/// # Errors
/// See [`LayerError`]; the directory is then to be thrown away.
pub fn apply_layer(archive: impl Read, root: BorrowedFd<'_>, limits: &Limits) -> Result<Applied, LayerError> {
    let mut archive = Archive::new(Digests::new(io::BufReader::with_capacity(1 << 18, archive)), limits);
    apply(&mut archive, root, limits)
}

/// The same, leaving the stream just after the archive's end mark.
pub(crate) fn apply<R: BufRead>(
    archive: &mut Archive<Digests<R>>,
    root: BorrowedFd<'_>,
    limits: &Limits,
) -> Result<Applied, LayerError> {
    let mut layer = Layer {
        root: Root::new(root),
        limits,
        bytes: 0,
        times: BTreeMap::new(),
        time_bytes: 0,
        contents: Contents::default(),
    };
    while let Some(member) = archive.next()? {
        layer.member(archive, &member)?;
        layer.check_names()?;
    }
    layer.finish(archive.entries())
}

struct Layer<'a> {
    root: Root<'a>,
    limits: &'a Limits,
    bytes: u64,
    times: BTreeMap<Vec<u8>, (i64, u32)>,
    /// Of all names that were ever in `times`.
    time_bytes: usize,
    contents: Contents,
}

/// Carries a system call's name beside its error until the entry's name is put to it.
type Attempt<T> = Result<T, (&'static str, io::Error)>;

fn at<T, E: Into<io::Error>>(operation: &'static str, result: Result<T, E>) -> Attempt<T> {
    result.map_err(|e| (operation, e.into()))
}

impl Layer<'_> {
    /// One member adds few names, so this is soon enough.
    fn check_names(&self) -> Result<(), LayerError> {
        let what = "bytes of names of directories";
        for (bytes, limit) in
            [(self.time_bytes, self.limits.directory_bytes), (self.root.implied_bytes(), self.limits.implied_bytes)]
        {
            if bytes > limit {
                return Err(LayerError::Limit { what, limit: limit as u64 });
            }
        }
        Ok(())
    }

    fn member<R: BufRead>(&mut self, archive: &mut Archive<Digests<R>>, member: &Member) -> Result<(), LayerError> {
        let place = Place::new(&member.path, self.limits.path_bytes)?;
        self.contents.attributes |= !member.xattrs.is_empty();
        let refused = |problem| LayerError::Refused { path: shown(&member.path), problem };
        // To chown(2) this means to leave the owner as it is: ours, with whatever set-id bits the entry has.
        let has_owner = !matches!(member.kind, Kind::HardLink | Kind::Other);
        if has_owner && [member.uid, member.gid].contains(&u32::MAX) {
            return Err(refused("nobody can have the id 4294967295"));
        }
        let Some((directory, name)) = place.split() else {
            return match member.kind {
                Kind::Directory => {
                    self.root.explicit_root();
                    let done = self.root.fd().try_clone_to_owned().map_err(|e| ("opening the layer", e));
                    let done = done.and_then(|fd| self.directory_metadata(&fd, &place, member));
                    done.map_err(|e| write_error(member, e))
                }
                Kind::Other => Ok(()),
                _ => Err(refused("only a directory can be the layer's root")),
            };
        };
        // Bookkeeping of aufs, which no other file system knows: everyone skips it.
        if directory.split(|b| *b == b'/').any(|c| c.starts_with(AUFS)) || (name.starts_with(AUFS) && name != OPAQUE) {
            return Ok(());
        }
        if directory.split(|b| *b == b'/').any(|c| c.starts_with(WHITEOUT)) {
            return Err(refused("it lies below a whiteout"));
        }
        // What it hides is hidden by an attribute.
        self.contents.attributes |= name.starts_with(WHITEOUT);
        if name == OPAQUE {
            return self.opaque(directory).map_err(|e| write_error(member, e));
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(refused("it is a whiteout of no name"));
            }
            return self.whiteout(directory, hidden).map_err(|e| write_error(member, e));
        }
        match member.kind {
            Kind::File => self.file(archive, &place, member),
            Kind::Directory => self.directory(&place, member).map_err(|e| write_error(member, e)),
            Kind::Symlink => {
                if member.link.is_empty() || member.link.len() > 4095 || member.link.contains(&0) {
                    return Err(refused("the target of a symbolic link cannot be that"));
                }
                self.special(&place, member).map_err(|e| write_error(member, e))
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                self.special(&place, member).map_err(|e| write_error(member, e))
            }
            Kind::HardLink => {
                let target = Place::new(&member.link, self.limits.path_bytes)?;
                if target.is_root() || target == place {
                    return Err(refused("a hard link cannot point there"));
                }
                self.hard_link(&place, &target).map_err(|e| write_error(member, e))
            }
            Kind::Other => Ok(()),
        }
    }

    fn file<R: BufRead>(
        &mut self,
        archive: &mut Archive<Digests<R>>,
        place: &Place,
        member: &Member,
    ) -> Result<(), LayerError> {
        self.bytes = self.bytes.saturating_add(member.size);
        if self.bytes > self.limits.unpacked_bytes {
            return Err(LayerError::Limit { what: "bytes of content", limit: self.limits.unpacked_bytes });
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let fd = self.make(place, |parent, name| openat(parent, name, flags, mode));
        let file = File::from(fd.map_err(|(_, e)| write_error(member, ("creating the file", e)))?);
        let digest = match &member.sparse {
            None => write_plain(archive, &file, member)?,
            Some(map) => write_sparse(archive, &file, member, map)?,
        };
        let inode = fstat(&file).map_err(|e| write_error(member, ("asking for the file", e.into())))?.st_ino;
        self.contents.add(inode, digest);
        let done = (|| {
            at("setting its owner", fchown(&file, Some(Uid::from_raw(member.uid)), Some(Gid::from_raw(member.gid))))?;
            at("setting its mode", fchmod(&file, Mode::from_bits_truncate(member.mode)))?;
            at("setting its attributes", xattr::set_all(&file, &member.xattrs))?;
            let time = time_spec(member.mtime);
            at("setting its time", futimens(&file, &time, &time))
        })();
        done.map_err(|e| write_error(member, e))
    }

    fn directory(&mut self, place: &Place, member: &Member) -> Attempt<()> {
        let Some((directory, name)) = place.split() else {
            return Ok(());
        };
        let parent = self.root.parent(directory)?;
        let name_os = OsStr::from_bytes(name);
        let made = mkdirat(parent, name_os, Mode::from_bits_truncate(0o700));
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = match made {
            Ok(()) => at("opening the directory", openat(parent, name_os, flags, Mode::empty()))?,
            // It may have been implied, or come twice, or replace something else.
            Err(Errno::EEXIST) => match openat(parent, name_os, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    let over_whiteout = is_whiteout(parent, name);
                    at("replacing an earlier entry", remove(parent, name))?;
                    at("making the directory", mkdirat(parent, name_os, Mode::from_bits_truncate(0o700)))?;
                    let fd = at("opening the directory", openat(parent, name_os, flags, Mode::empty()))?;
                    if over_whiteout {
                        at("marking it opaque", xattr::set_opaque(fd.as_fd()))?;
                    }
                    self.root.forget();
                    fd
                }
                Err(e) => return Err(("opening the directory", e.into())),
            },
            Err(e) => return Err(("making the directory", e.into())),
        };
        at("asking for the directory", self.root.explicit(&fd))?;
        self.directory_metadata(&fd, place, member)
    }

    fn directory_metadata(&mut self, fd: &OwnedFd, place: &Place, member: &Member) -> Attempt<()> {
        at("setting its owner", fchown(fd, Some(Uid::from_raw(member.uid)), Some(Gid::from_raw(member.gid))))?;
        at("setting its mode", fchmod(fd, Mode::from_bits_truncate(member.mode)))?;
        at("setting its attributes", xattr::set_all(fd, &member.xattrs))?;
        if self.times.insert(place.bytes().to_vec(), member.mtime).is_none() {
            self.time_bytes += place.bytes().len() + NAME_COST;
        }
        Ok(())
    }

    /// Symbolic links, devices and fifos: made by name, and described by name.
    fn special(&mut self, place: &Place, member: &Member) -> Attempt<()> {
        let mode = Mode::from_bits_truncate(member.mode);
        let (major, minor) = (u64::from(member.device.0), u64::from(member.device.1));
        let device = nix::sys::stat::makedev(major, minor);
        self.make(place, |parent, name| match member.kind {
            Kind::Symlink => symlinkat(OsStr::from_bytes(&member.link), parent, name),
            Kind::CharDevice => mknodat(parent, name, SFlag::S_IFCHR, mode, device),
            Kind::BlockDevice => mknodat(parent, name, SFlag::S_IFBLK, mode, device),
            _ => mknodat(parent, name, SFlag::S_IFIFO, mode, 0),
        })?;
        let Some((directory, name)) = place.split() else {
            return Ok(());
        };
        let parent = self.root.parent(directory)?;
        let name_os = OsStr::from_bytes(name);
        let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
        at("setting its owner", fchownat(parent, name_os, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW))?;
        if member.kind != Kind::Symlink {
            // It was made just now and is no link, so following is safe.
            at("setting its mode", fchmodat(parent, name_os, mode, FchmodatFlags::FollowSymlink))?;
        }
        at("setting its attributes", xattr::set_all_at(parent, name, &member.xattrs))?;
        let time = time_spec(member.mtime);
        at("setting its time", utimensat(parent, name_os, &time, &time, UtimensatFlags::NoFollowSymlink))
    }

    fn hard_link(&mut self, place: &Place, target: &Place) -> Attempt<()> {
        let Some((target_directory, target_name)) = target.split() else {
            return Ok(());
        };
        let target_parent = at("opening the link's target", self.root.existing(target_directory))?;
        // Without AT_SYMLINK_FOLLOW a link to a symbolic link is a second name of that link.
        self.make(place, |parent, name| {
            linkat(&target_parent, OsStr::from_bytes(target_name), parent, name, AtFlags::empty())
        })
        .map_err(|(_, e)| ("making the hard link", e))
    }

    fn opaque(&mut self, directory: &[u8]) -> Attempt<()> {
        self.root.parent(directory)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let fd = at("opening the directory", open_in_root(self.root.fd(), directory, flags))?;
        at("marking it opaque", xattr::set_opaque(fd.as_fd()))
    }

    /// Whiteouts concern lower layers only: an entry of the same layer stays, whichever comes first.
    fn whiteout(&mut self, directory: &[u8], hidden: &[u8]) -> Attempt<()> {
        let parent = self.root.parent(directory)?;
        let name = OsStr::from_bytes(hidden);
        match mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                match openat(parent, name, flags, Mode::empty()) {
                    Ok(own) => at("marking it opaque", xattr::set_opaque(own.as_fd())),
                    Err(Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => Ok(()),
                    Err(e) => Err(("opening an earlier entry", e.into())),
                }
            }
            Err(e) => Err(("making a whiteout", e.into())),
        }
    }

    /// Times of what is no more: of `path`, and of all below it.
    fn forget_times(&mut self, path: &[u8]) {
        self.times.remove(path);
        let below = [path, b"/"].concat();
        // One after the other: an archive may have many directories, and replace something else as often.
        while let Some((path, _)) = self.times.range(below.clone()..).next() {
            if !path.starts_with(&below) {
                break;
            }
            let path = path.clone();
            self.times.remove(&path);
        }
    }

    /// Makes the last part of `place`; an earlier entry of that name gives way.
    fn make<T>(&mut self, place: &Place, mut make: impl FnMut(BorrowedFd<'_>, &OsStr) -> nix::Result<T>) -> Attempt<T> {
        let Some((directory, name)) = place.split() else {
            return Err(("making the entry", io::ErrorKind::InvalidInput.into()));
        };
        let parent = self.root.parent(directory)?;
        let name_os = OsStr::from_bytes(name);
        match make(parent, name_os) {
            Err(Errno::EEXIST) => {
                at("replacing an earlier entry", remove(parent, name))?;
                let made = at("making the entry", make(parent, name_os));
                // What was removed may have been a directory, or a link that led to one.
                self.root.forget();
                self.forget_times(place.bytes());
                made
            }
            other => at("making the entry", other),
        }
    }

    fn finish(self, entries: u64) -> Result<Applied, LayerError> {
        // Deepest first does not matter: setting a directory's times does not touch its parent's.
        for (path, mtime) in &self.times {
            let failed =
                |operation, source| LayerError::Write { path: shown(path), operation, source: Arc::new(source) };
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            let fd = match open_in_root(self.root.fd(), path, flags) {
                Ok(fd) => fd,
                // A later entry has replaced it, or the link that led to it.
                Err(e) if is_gone(&e) => continue,
                Err(e) => return Err(failed("opening the directory", e)),
            };
            let time = time_spec(*mtime);
            futimens(&fd, &time, &time).map_err(|e| failed("setting its time", e.into()))?;
        }
        Ok(Applied { entries, bytes: self.bytes, implied: self.root.into_implied(), contents: self.contents })
    }
}

fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP];
    gone.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Writes a file's content, and tells its digest.
fn write_plain<R: BufRead>(
    archive: &mut Archive<Digests<R>>,
    mut file: &File,
    member: &Member,
) -> Result<[u8; 32], LayerError> {
    archive.input().begin();
    loop {
        let chunk = archive.chunk()?;
        if chunk.is_empty() {
            return Ok(archive.input().end());
        }
        let length = chunk.len();
        file.write_all(chunk).map_err(|e| write_error(member, ("writing its content", e)))?;
        archive.consume(length);
    }
}

/// The same for one with holes, which read as zeros.
fn write_sparse<R: BufRead>(
    archive: &mut Archive<Digests<R>>,
    file: &File,
    member: &Member,
    map: &[(u64, u64)],
) -> Result<[u8; 32], LayerError> {
    file.set_len(member.size).map_err(|e| write_error(member, ("setting its length", e)))?;
    let mut hasher = Sha256::new();
    let mut hashed = 0;
    for &(mut offset, mut left) in map {
        zeros(&mut hasher, offset.saturating_sub(hashed));
        while left > 0 {
            let chunk = archive.chunk()?;
            let step = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let Some(part) = chunk.get(..step).filter(|p| !p.is_empty()) else {
                return Err(write_error(member, ("writing its content", io::ErrorKind::UnexpectedEof.into())));
            };
            file.write_all_at(part, offset).map_err(|e| write_error(member, ("writing its content", e)))?;
            hasher.update(part);
            archive.consume(step);
            offset += step as u64;
            left -= step as u64;
        }
        hashed = offset;
    }
    zeros(&mut hasher, member.size.saturating_sub(hashed));
    Ok(hasher.finalize().into())
}

fn zeros(hasher: &mut Sha256, mut count: u64) {
    const SOME: [u8; 1 << 12] = [0; 1 << 12];
    while count > 0 {
        let step = SOME.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        hasher.update(SOME.get(..step).unwrap_or(&SOME));
        count -= step as u64;
    }
}

fn time_spec((seconds, nanos): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, i64::from(nanos))
}

fn write_error(member: &Member, (operation, source): (&'static str, io::Error)) -> LayerError {
    LayerError::Write { path: shown(&member.path), operation, source: Arc::new(source) }
}
