//! Device nodes and the links of /dev.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::LinuxDeviceType;
use portreeve_sys::mount;
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};

use super::resolve;
use crate::error::{SetupError, Step};
use crate::prepare::Device;

/// Makes each node, or in a user namespace, which may not, binds the host's.
pub(super) fn create(root: BorrowedFd<'_>, devices: &[Device], nodes: &[Option<OwnedFd>]) -> Result<(), SetupError> {
    for (device, node) in devices.iter().zip(nodes) {
        let path = &device.path;
        match node {
            Some(node) => {
                let target = resolve::make_file(root, path).step("creating the place of device", path)?;
                mount::attach(node.as_fd(), target.as_fd()).step("mounting device", path)?;
            }
            None => make(root, device).step("making device", path)?,
        }
    }
    Ok(())
}

fn make(root: BorrowedFd<'_>, device: &Device) -> io::Result<()> {
    let (parent, name) = resolve::parent_of(root, &device.path)?;
    let kind = match device.kind {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return Err(io::Error::new(io::ErrorKind::InvalidInput, "type a is for rules only")),
    };
    let number = if kind == FileType::Fifo { 0 } else { rustix::fs::makedev(device.major, device.minor) };
    // The umask is 0 here, so the mode is exact.
    match rustix::fs::mknodat(&parent, &name, kind, Mode::from_raw_mode(device.mode), number) {
        Err(rustix::io::Errno::EXIST) => {
            let same = resolve::stat_in(parent.as_fd(), &name)
                .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == number);
            if !same {
                return Err(rustix::io::Errno::EXIST.into());
            }
        }
        other => other?,
    }
    if device.uid != 0 || device.gid != 0 {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        rustix::fs::chownat(&parent, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Makes the links that every program expects.
pub(super) fn link(root: BorrowedFd<'_>) -> Result<(), SetupError> {
    let links = [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ];
    for (path, target) in links {
        let path = Path::new(path);
        let (parent, name) = resolve::parent_of(root, path).step("opening the directory of", path)?;
        match rustix::fs::symlinkat(target, &parent, &name) {
            Err(rustix::io::Errno::EXIST) => {}
            other => other.step("linking", path)?,
        }
    }
    let path = Path::new("/dev/ptmx");
    let (parent, name) = resolve::parent_of(root, path).step("opening the directory of", path)?;
    // The multiplexer of the container's own devpts, never the host's node that an image may carry.
    match rustix::fs::unlinkat(&parent, &name, AtFlags::empty()) {
        Err(rustix::io::Errno::NOENT) => {}
        other => other.step("removing the old", path)?,
    }
    rustix::fs::symlinkat("pts/ptmx", &parent, &name).step("linking", path)
}
