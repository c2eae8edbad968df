//! Starting shims, and finding those that run.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use portreeve_sys::self_exe;
use rustix::fs::{CWD, Mode};
use rustix::io::Errno;

use crate::EngineError;

/// How the shim's allocator behaves: without caches that pin pages, and giving back early. The C library of a static
/// program reads it as well; any other ignores it.
const ALLOCATOR: &str = "glibc.malloc.tcache_count=0:glibc.malloc.trim_threshold=32768:glibc.malloc.top_pad=4096:glibc.malloc.mmap_threshold=32768";

/// The program that shims are executed from, which no container can write to.
#[derive(Debug)]
pub(super) struct Executable {
    program: OwnedFd,
    path: PathBuf,
}

impl Executable {
    /// Prepares `path`, or this very program.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, EngineError> {
        let own = || std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        let path = path.map_or_else(own, Path::to_owned);
        let spawn = |source| EngineError::SpawnShim { executable: path.clone(), source };
        let program = match self_exe::read_only(&path) {
            // It is mounted as a file by itself, as into a container that has an agent in it.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::STALE) => self_exe::sealed_copy(&path),
            mounted => mounted,
        };
        Ok(Self { program: program.map_err(spawn)?, path })
    }

    /// Starts the shim of a sandbox whose directory holds `shim.json`; connects to it. Blocking.
    pub(super) fn spawn(&self, directory: &Path) -> Result<(Child, UnixStream), EngineError> {
        let spawn = |source| EngineError::SpawnShim { executable: self.path.clone(), source };
        let log_path = directory.join("shim.log");
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&log_path)
            .map_err(EngineError::file("opening", &log_path))?;
        let socket = address(directory).map_err(spawn)?;
        let listener = UnixListener::bind(socket.path()).map_err(spawn)?;
        rustix::fs::chmodat(CWD, socket.path(), Mode::from_raw_mode(0o600), rustix::fs::AtFlags::empty())
            .map_err(|error| spawn(error.into()))?;
        let child = Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()))
            .arg0("portreeve")
            .arg("shim")
            .arg(directory)
            .env_clear()
            .env("GLIBC_TUNABLES", ALLOCATOR)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .map_err(spawn)?;
        // The listener exists already: the connection waits in its queue until the shim is ready.
        let stream = UnixStream::connect(socket.path()).map_err(spawn)?;
        Ok((child, stream))
    }
}

/// The last words of a shim that ended early.
pub(super) fn last_words(directory: &Path) -> Option<String> {
    let text = std::fs::read(directory.join("shim.log")).ok()?;
    let tail = text.get(text.len().saturating_sub(4096)..)?;
    String::from_utf8_lossy(tail).lines().last().map(str::to_owned).filter(|line| !line.is_empty())
}

/// Connects to the shim of a sandbox; an error when there is none.
pub(super) fn connect(directory: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(address(directory)?.path())
}

/// A socket's address may have 107 bytes only: a longer path is shortened through a descriptor of its directory.
struct Address {
    path: PathBuf,
    _directory: Option<OwnedFd>,
}

impl Address {
    fn path(&self) -> &Path {
        &self.path
    }
}

fn address(directory: &Path) -> io::Result<Address> {
    let path = directory.join("shim.sock");
    if path.as_os_str().len() <= 100 {
        return Ok(Address { path, _directory: None });
    }
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, directory, flags, Mode::empty())?;
    Ok(Address { path: format!("/proc/self/fd/{}/shim.sock", fd.as_raw_fd()).into(), _directory: Some(fd) })
}

/// Makes a directory for us alone, with its parents; one that exists is fine.
pub(super) fn private_directory(path: &Path, mode: u32) -> Result<(), EngineError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(EngineError::file("creating", path))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    use portreeve_sys::mount::{Change, READ_ONLY, attach, clone_tree, set_attributes};
    use portreeve_sys::namespace;
    use rustix::fs::{OFlags, fcntl_get_seals, open};

    use super::*;

    /// Runs `test` in a mount namespace of its own thread.
    fn elsewhere<T: Send>(test: impl FnOnce() -> T + Send) -> Option<T> {
        if !rustix::process::geteuid().is_root() {
            let _ = writeln!(io::stderr(), "SKIPPED: mounting needs root");
            return None;
        }
        let enter = || {
            namespace::unshare(portreeve_sys::clone::NEW_MOUNT).unwrap();
            let root = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let propagation = Some(portreeve_sys::mount::Propagation::Private);
            set_attributes(root.as_fd(), &Change { propagation, recursive: true, ..Change::default() }).unwrap();
            test()
        };
        Some(std::thread::scope(|scope| scope.spawn(enter).join().unwrap()))
    }

    #[test]
    fn cve_2019_5736_nobody_makes_the_shims_program_writable() {
        if !rustix::process::geteuid().is_root() {
            let _ = writeln!(io::stderr(), "SKIPPED: mounting needs root");
            return;
        }
        let program = tempfile::NamedTempFile::new().unwrap();
        let executable = Executable::open(Some(program.path())).unwrap();
        let caught = format!("/proc/self/fd/{}", executable.program.as_raw_fd());
        let refused = elsewhere(|| {
            let caught = std::fs::File::open(&caught).unwrap();
            set_attributes(caught.as_fd(), &Change { clear: READ_ONLY, ..Change::default() }).unwrap_err()
        });
        assert!(refused.is_none_or(|refused| Errno::from_io_error(&refused) == Some(Errno::INVAL)));
        let written = OpenOptions::new().write(true).open(&caught).unwrap_err();
        assert_eq!(written.kind(), io::ErrorKind::ReadOnlyFilesystem);
    }

    #[test]
    fn a_program_that_is_mounted_by_itself_is_taken_into_memory() {
        let folder = tempfile::tempdir().unwrap();
        let (program, mounted) = (folder.path().join("program"), folder.path().join("mounted"));
        std::fs::write(&program, "covered").unwrap();
        std::fs::write(&mounted, "the program").unwrap();
        let text = elsewhere(|| {
            let tree = clone_tree(CWD, &mounted, false, true).unwrap();
            let target = open(&program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            attach(tree.as_fd(), target.as_fd()).unwrap();
            let executable = Executable::open(Some(&program)).unwrap();
            assert!(fcntl_get_seals(&executable.program).unwrap().contains(rustix::fs::SealFlags::WRITE));
            std::fs::read_to_string(format!("/proc/thread-self/fd/{}", executable.program.as_raw_fd())).unwrap()
        });
        assert!(text.is_none_or(|text| text == "the program"));
    }
}
