//! A tar stream from a container, written to a local place and nowhere else.
//!
//! The container is not trusted: every name is checked, every step below the destination is made
//! beneath its descriptor without following links, and only files and directories are made.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::Receiver;

use anyhow::{Context, bail};
use bytes::{Buf, Bytes};
use rustix::fs::{Mode, OFlags, ResolveFlags};

struct Pieces {
    pieces: Receiver<Bytes>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.recv() {
                Ok(piece) => self.current = piece,
                Err(_) => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(buffer.get_mut(..length).unwrap_or_default());
        Ok(length)
    }
}

/// Writes what comes of `source` to `to`: into it when it is a directory, else under that name.
pub(super) fn unpack(pieces: Receiver<Bytes>, source: &str, to: &Path) -> anyhow::Result<()> {
    let stem = plain(Path::new(source)).context("the path in the container cannot be copied")?;
    let mut archive = tar::Archive::new(Pieces { pieces, current: Bytes::new() });
    if let Some(mut stream) = stream(to)? {
        return one_file(&mut archive, &stem, &mut stream).with_context(|| format!("writing {}", to.display()));
    }
    let (directory, name) = destination(to, &stem)?;
    let base = rustix::fs::open(&directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("opening {}", directory.display()))?;
    for entry in archive.entries().context("reading the container's tar stream")? {
        let mut entry = entry.context("reading the container's tar stream")?;
        let path = plain(&entry.path().context("reading a name")?)?;
        let inner = path.strip_prefix(&stem).with_context(|| format!("{} was not asked for", path.display()))?;
        let target = if inner.as_os_str().is_empty() { name.clone() } else { name.join(inner) };
        let mode = Mode::from_raw_mode(entry.header().mode().unwrap_or(0o644) & 0o777);
        match entry.header().entry_type() {
            tar::EntryType::Directory => drop(open_directory(&base, &target)?),
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let mut file = create(&base, &target, mode)?;
                io::copy(&mut entry, &mut file).with_context(|| format!("writing {}", target.display()))?;
            }
            kind => {
                let what = if kind.is_symlink() || kind.is_hard_link() { "a link" } else { "not a file" };
                writeln!(io::stderr(), "warning: {} is {what} and was left out", path.display())?;
            }
        }
    }
    Ok(())
}

/// The destination as a stream, where it is a terminal, a pipe or a device rather than a place for files.
///
/// The user named it: a link such as /dev/stdout is followed.
fn stream(to: &Path) -> anyhow::Result<Option<Box<dyn Write>>> {
    if ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|stdout| to == Path::new(stdout)) {
        return Ok(Some(Box::new(io::stdout())));
    }
    match std::fs::metadata(to) {
        Ok(there) if !there.is_file() && !there.is_dir() => {
            let opened = File::options().write(true).open(to);
            Ok(Some(Box::new(opened.with_context(|| format!("opening {}", to.display()))?)))
        }
        // Whatever is wrong with another place shows when it is written to.
        _ => Ok(None),
    }
}

/// Writes the one file that was asked for; a directory does not go into a stream.
fn one_file(archive: &mut tar::Archive<Pieces>, stem: &Path, to: &mut dyn Write) -> anyhow::Result<()> {
    for entry in archive.entries().context("reading the container's tar stream")? {
        let mut entry = entry.context("reading the container's tar stream")?;
        let path = plain(&entry.path().context("reading a name")?)?;
        let kind = entry.header().entry_type();
        if path != stem || !matches!(kind, tar::EntryType::Regular | tar::EntryType::Continuous) {
            bail!("{} is not a file: only a file can be copied there", stem.display());
        }
        io::copy(&mut entry, to)?;
    }
    to.flush()?;
    Ok(())
}

/// The directory to write below, and the name of what comes in it.
fn destination(to: &Path, stem: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    if to.is_dir() {
        let name = stem.file_name().map(PathBuf::from).unwrap_or_default();
        return Ok((to.to_owned(), name));
    }
    let name = to.file_name().with_context(|| format!("{} has no name to write to", to.display()))?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent.to_owned(), name.into()))
}

/// A name without root and dots; one that climbs is refused.
fn plain(path: &Path) -> anyhow::Result<PathBuf> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => plain.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                bail!("the name {} leads out of its directory", path.display())
            }
        }
    }
    Ok(plain)
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Opens a directory beneath `base`, making what is not there; no step follows a link.
fn open_directory(base: &OwnedFd, path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut current = base.as_fd().try_clone_to_owned()?;
    for part in path {
        match rustix::fs::mkdirat(&current, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => bail!("making {}: {error}", path.display()),
        }
        current = rustix::fs::openat2(&current, part, flags, Mode::empty(), BENEATH)
            .with_context(|| format!("opening {} (is it a link?)", path.display()))?;
    }
    Ok(current)
}

fn create(base: &OwnedFd, path: &Path, mode: Mode) -> anyhow::Result<File> {
    let directory = open_directory(base, path.parent().unwrap_or(Path::new("")))?;
    let name = path.file_name().context("an entry has no name")?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat2(&directory, name, flags, mode, BENEATH)
        .with_context(|| format!("writing {} (is it a link?)", path.display()))?;
    let file = File::from(file);
    if !file.metadata()?.is_file() {
        bail!("{} exists and is not a file", path.display());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Receiver<Bytes> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            // Written raw: the library itself refuses names that climb.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            if kind.is_symlink() {
                header.set_link_name(content).unwrap();
                header.set_size(0);
            } else {
                header.set_size(content.len() as u64);
            }
            header.set_cksum();
            let content = if kind.is_symlink() { "" } else { content };
            builder.append(&header, content.as_bytes()).unwrap();
        }
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        sender.send(builder.into_inner().unwrap().into()).unwrap();
        receiver
    }

    use tar::EntryType::{Directory, Regular, Symlink};

    #[test]
    fn a_directory_lands_under_its_new_name_or_in_a_directory_that_exists() {
        let root = tempfile::tempdir().unwrap();
        let entries = [("srv/www/", Directory, ""), ("srv/www/a/b.txt", Regular, "b")];
        unpack(archive(&entries), "/srv/www", &root.path().join("new")).unwrap();
        assert_eq!(std::fs::read(root.path().join("new/a/b.txt")).unwrap(), b"b");
        unpack(archive(&entries), "/srv/www", root.path()).unwrap();
        assert_eq!(std::fs::read(root.path().join("www/a/b.txt")).unwrap(), b"b");
    }

    #[test]
    fn a_name_that_climbs_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("in/side");
        std::fs::create_dir_all(&to).unwrap();
        let error = unpack(archive(&[("srv/../../escaped", Regular, "x")]), "/srv", &to).unwrap_err();
        assert!(error.to_string().contains("leads out"), "{error}");
        assert!(!root.path().join("escaped").exists() && !root.path().join("in/escaped").exists());
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let root = tempfile::tempdir().unwrap();
        let (outside, to) = (root.path().join("outside"), root.path().join("to"));
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::create_dir_all(to.join("srv")).unwrap();
        std::os::unix::fs::symlink(&outside, to.join("srv/out")).unwrap();
        let error = unpack(archive(&[("srv/out/file", Regular, "x")]), "/srv", &to).unwrap_err();
        assert!(format!("{error:#}").contains("link"), "{error:#}");
        assert!(!outside.join("file").exists());
    }

    #[test]
    fn a_link_in_the_stream_is_left_out() {
        let root = tempfile::tempdir().unwrap();
        let entries = [("srv/link", Symlink, "/etc/passwd"), ("srv/file", Regular, "x")];
        unpack(archive(&entries), "/srv", root.path()).unwrap();
        assert!(!root.path().join("srv/link").exists());
        assert_eq!(std::fs::read(root.path().join("srv/file")).unwrap(), b"x");
    }

    #[test]
    fn a_file_goes_into_a_pipe_and_a_directory_does_not() {
        let root = tempfile::tempdir().unwrap();
        let pipe = root.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        let reader = std::thread::spawn(move || std::fs::read(pipe).unwrap());
        unpack(archive(&[("etc/file", Regular, "text")]), "/etc/file", &link).unwrap();
        assert_eq!(reader.join().unwrap(), b"text");
        let entries = [("srv/", Directory, ""), ("srv/file", Regular, "x")];
        let error = unpack(archive(&entries), "/srv", Path::new("/dev/null")).unwrap_err();
        assert!(format!("{error:#}").contains("srv is not a file"), "{error:#}");
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        let root = tempfile::tempdir().unwrap();
        assert!(unpack(archive(&[("etc/other", Regular, "x")]), "/srv", root.path()).is_err());
        assert!(!root.path().join("etc").exists());
    }
}
