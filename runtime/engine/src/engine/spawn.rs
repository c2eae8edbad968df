//! Starting shims, and finding those that run.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{CWD, Mode};

use crate::EngineError;

/// How the shim's allocator behaves: without caches that pin pages, and giving back early. The C library of a static
/// program reads it as well; any other ignores it.
const ALLOCATOR: &str = "glibc.malloc.tcache_count=0:glibc.malloc.trim_threshold=32768:glibc.malloc.top_pad=4096:glibc.malloc.mmap_threshold=32768";

/// The program that shims are executed from: on a read-only mount of its own, that no container can write to.
#[derive(Debug)]
pub(super) struct Executable {
    mount: OwnedFd,
    path: PathBuf,
}

impl Executable {
    /// Prepares `path`, or this very program.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, EngineError> {
        let own = || std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        let path = path.map_or_else(own, Path::to_owned);
        let spawn = |source| EngineError::SpawnShim { executable: path.clone(), source };
        let mount = portreeve_sys::mount::clone_tree(CWD, &path, false, false).map_err(spawn)?;
        let change = portreeve_sys::mount::Change {
            set: portreeve_sys::mount::READ_ONLY | portreeve_sys::mount::NO_SUID,
            ..Default::default()
        };
        portreeve_sys::mount::set_attributes(mount.as_fd(), &change).map_err(spawn)?;
        Ok(Self { mount, path })
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
        let child = Command::new(format!("/proc/self/fd/{}", self.mount.as_raw_fd()))
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
