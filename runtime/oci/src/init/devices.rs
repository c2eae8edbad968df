//! Device nodes and the links of /dev.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::LinuxDeviceType;
use portreeve_sys::mount;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};

use super::resolve::Parents;
use super::{mounts, resolve};
use crate::error::{SetupError, Step};
use crate::prepare::Device;

/// Makes each node, or in a user namespace, which may make FIFOs alone, binds the host's.
pub(super) fn create(root: BorrowedFd<'_>, devices: &[Device], nodes: &[Option<OwnedFd>]) -> Result<(), SetupError> {
    let mut parents = Parents::default();
    for (device, node) in devices.iter().zip(nodes) {
        let path = &device.path;
        match node {
            Some(node) => {
                // Its path is one of the container: what the host has there can be any file of the host.
                let same = is(node.as_fd(), device).step("looking at the host's node for device", path)?;
                if !same {
                    let why = format!("the host has another file there than {}:{}", device.major, device.minor);
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, why)).step("mounting device", path);
                }
                let target = resolve::make_file(root, path).step("creating the place of device", path)?;
                mounts::outside_procfs(target.as_fd()).step("mounting device", path)?;
                mount::attach(node.as_fd(), target.as_fd()).step("mounting device", path)?;
            }
            None => make(root, device, &mut parents).step("making device", path)?,
        }
    }
    Ok(())
}

fn make(root: BorrowedFd<'_>, device: &Device, parents: &mut Parents) -> io::Result<()> {
    let (parent, name) = parents.of(root, &device.path)?;
    let (kind, number) = node_of(device)?;
    // The umask is 0 here, so the mode is exact.
    let ours = match rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(device.mode), number) {
        Err(rustix::io::Errno::EXIST) => false,
        made => made.map(|()| true)?,
    };
    // From here on by descriptor: who shares the directory can exchange what has the name.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    if !is(node.as_fd(), device)? {
        return Err(rustix::io::Errno::EXIST.into());
    }
    // One that was there is its owner's: in a volume, the host's.
    if ours && (device.uid != 0 || device.gid != 0) {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        rustix::fs::chownat(&node, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

/// What stat(2) says of the device's node: its kind, and its number.
fn node_of(device: &Device) -> io::Result<(FileType, u64)> {
    let number = rustix::fs::makedev(device.major, device.minor);
    match device.kind {
        LinuxDeviceType::B => Ok((FileType::BlockDevice, number)),
        LinuxDeviceType::C | LinuxDeviceType::U => Ok((FileType::CharacterDevice, number)),
        LinuxDeviceType::P => Ok((FileType::Fifo, 0)),
        LinuxDeviceType::A => Err(io::Error::new(io::ErrorKind::InvalidInput, "type a is for rules only")),
    }
}

/// Whether the file is the device.
fn is(file: BorrowedFd<'_>, device: &Device) -> io::Result<bool> {
    let stat = rustix::fs::fstat(file)?;
    Ok((FileType::from_raw_mode(stat.st_mode), stat.st_rdev) == node_of(device)?)
}

/// Makes the links that every program expects.
pub(super) fn link(root: BorrowedFd<'_>) -> Result<(), SetupError> {
    let links = [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ];
    let mut parents = Parents::default();
    for (path, target) in links {
        let path = Path::new(path);
        let (parent, name) = parents.of(root, path).step("opening the directory of", path)?;
        match rustix::fs::symlinkat(target, parent, name) {
            Err(rustix::io::Errno::EXIST) => {}
            other => other.step("linking", path)?,
        }
    }
    let path = Path::new("/dev/ptmx");
    let (parent, name) = parents.of(root, path).step("opening the directory of", path)?;
    // The multiplexer of the container's own devpts, never the host's node that an image may carry.
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(rustix::io::Errno::NOENT) => {}
        other => other.step("removing the old", path)?,
    }
    rustix::fs::symlinkat("pts/ptmx", parent, name).step("linking", path)
}
