//! What a container wrote, as a layer: an upper directory of overlayfs into an archive that [`apply_layer`] reads back.
//!
//! Whoever wrote it may still be writing: nothing is reached by a path, no link is followed, and a file that shrinks
//! meanwhile is filled up with zeros.
//!
//! [`apply_layer`]: super::apply_layer

use std::{
    collections::HashMap,
    ffi::{CStr, OsStr},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fgetxattr, fstat, openat, readlinkat, statat},
    io::Errno,
};

use super::xattr::is_opaque;

/// Deeper trees are refused: each level takes a descriptor.
const DEEPEST: usize = 256;
/// A file's capabilities are never longer. Source: Linux, `struct vfs_ns_cap_data`.
const CAPABILITY: usize = 64;

/// Writes the archive, and its end. Blocks on the disk, and on whom it writes to. Sockets, which no archive holds, are
/// left out.
///
/// # Errors
/// Those of the reader and the writer, and of a tree that is too deep.
pub fn write_diff(upper: &Path, out: impl Write) -> io::Result<()> {
    let directory = openat(CWD, upper, DIRECTORY, Mode::empty())?;
    let mut diff = Diff { tar: tar::Builder::new(out), names: HashMap::new() };
    diff.directory(&directory, Path::new(""), 0)?;
    diff.tar.into_inner()?.flush()
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Not blocked by a fifo that took the place of a file.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

struct Diff<W: Write> {
    tar: tar::Builder<W>,
    /// The first name of each file that has several, by device and inode.
    names: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Diff<W> {
    fn directory(&mut self, directory: &OwnedFd, at: &Path, depth: usize) -> io::Result<()> {
        if depth > DEEPEST {
            return Err(io::Error::other(format!("{} lies deeper than {DEEPEST} directories", at.display())));
        }
        if is_opaque(directory.as_fd()) {
            self.empty(&at.join(".wh..wh..opq"))?;
        }
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                match self.entry(directory.as_fd(), name, at, depth) {
                    // Gone since it was listed, or another thing by now.
                    Err(error)
                        if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::LOOP | Errno::NOTDIR)) => {
                    }
                    other => other?,
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, parent: BorrowedFd<'_>, name: &CStr, at: &Path, depth: usize) -> io::Result<()> {
        let path = at.join(OsStr::from_bytes(name.to_bytes()));
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                let hidden = [b".wh.", name.to_bytes()].concat();
                self.empty(&at.join(OsStr::from_bytes(&hidden)))
            }
            FileType::Directory => {
                let directory = openat(parent, name, DIRECTORY, Mode::empty())?;
                let mut header = header(tar::EntryType::Directory, &fstat(&directory)?);
                self.tar.append_data(&mut header, &path, io::empty())?;
                self.directory(&directory, &path, depth + 1)
            }
            FileType::RegularFile => {
                let file = openat(parent, name, FILE, Mode::empty())?;
                let stat = fstat(&file)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Ok(());
                }
                self.file(file, &stat, path)
            }
            FileType::Symlink => {
                let target = readlinkat(parent, name, Vec::new())?;
                let mut header = header(tar::EntryType::Symlink, &stat);
                self.tar.append_link(&mut header, &path, OsStr::from_bytes(target.as_bytes()))
            }
            FileType::Fifo => self.special(tar::EntryType::Fifo, &stat, &path),
            FileType::CharacterDevice => self.special(tar::EntryType::Char, &stat, &path),
            FileType::BlockDevice => self.special(tar::EntryType::Block, &stat, &path),
            FileType::Socket | FileType::Unknown => Ok(()),
        }
    }

    fn file(&mut self, file: OwnedFd, stat: &Stat, path: PathBuf) -> io::Result<()> {
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.names.get(&key) {
                return self.tar.append_link(&mut header(tar::EntryType::Link, stat), &path, first);
            }
            self.names.insert(key, path.clone());
        }
        let mut value = [0_u8; CAPABILITY];
        if let Ok(length) = fgetxattr(&file, "security.capability", &mut value[..])
            && let Some(value) = value.get(..length)
        {
            self.tar.append_pax_extensions([("SCHILY.xattr.security.capability", value)])?;
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = header(tar::EntryType::Regular, stat);
        header.set_size(size);
        // As long as the header says, whatever the file does meanwhile.
        let content = File::from(file).chain(io::repeat(0)).take(size);
        self.tar.append_data(&mut header, &path, content)
    }

    fn special(&mut self, kind: tar::EntryType, stat: &Stat, path: &Path) -> io::Result<()> {
        let mut header = header(kind, stat);
        header.set_device_major(rustix::fs::major(stat.st_rdev))?;
        header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
        self.tar.append_data(&mut header, path, io::empty())
    }

    /// A file that says that something is not there any more.
    fn empty(&mut self, path: &Path) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(0);
        self.tar.append_data(&mut header, path, io::empty())
    }
}

fn header(kind: tar::EntryType, stat: &Stat) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn names(archive: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_tree_comes_back_as_it_was_and_no_link_leads_out_of_it() {
        let home = tempfile::tempdir().unwrap();
        let (upper, outside) = (home.path().join("upper"), home.path().join("outside"));
        fs::create_dir_all(upper.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        fs::write(upper.join("a/b/file"), "content").unwrap();
        fs::set_permissions(upper.join("a/b/file"), fs::Permissions::from_mode(0o4750)).unwrap();
        fs::hard_link(upper.join("a/b/file"), upper.join("a/twin")).unwrap();
        symlink(&outside, upper.join("out")).unwrap();
        let long = "n".repeat(200);
        fs::write(upper.join(&long), "long").unwrap();
        let mut archive = Vec::new();
        write_diff(&upper, &mut archive).unwrap();
        assert_eq!(names(&archive), ["a", "a/b", "a/b/file", "a/twin", &long, "out"]);

        let back = home.path().join("back");
        fs::create_dir(&back).unwrap();
        let mut archive = tar::Archive::new(&archive[..]);
        archive.set_preserve_permissions(true);
        archive.unpack(&back).unwrap();
        let file = fs::metadata(back.join("a/b/file")).unwrap();
        assert_eq!((fs::read_to_string(back.join("a/twin")).unwrap().as_str(), file.nlink()), ("content", 2));
        assert_eq!(file.mode() & 0o7777, 0o4750);
        assert_eq!(fs::read_link(back.join("out")).unwrap(), outside);
    }

    #[test]
    fn what_is_hidden_is_told_as_layers_tell_it() {
        let home = tempfile::tempdir().unwrap();
        let upper = home.path().join("upper");
        fs::create_dir_all(upper.join("etc")).unwrap();
        let whiteout = rustix::fs::mknodat(
            CWD,
            upper.join("etc/gone"),
            FileType::CharacterDevice,
            Mode::empty(),
            rustix::fs::makedev(0, 0),
        );
        whiteout.unwrap();
        let directory = File::open(upper.join("etc")).unwrap();
        if super::super::xattr::set_opaque(directory.as_fd()).is_err() {
            eprintln!("SKIPPED what_is_hidden_is_told_as_layers_tell_it: trusted attributes need root");
            return;
        }
        let mut archive = Vec::new();
        write_diff(&upper, &mut archive).unwrap();
        assert_eq!(names(&archive), ["etc", "etc/.wh..wh..opq", "etc/.wh.gone"]);
    }
}
