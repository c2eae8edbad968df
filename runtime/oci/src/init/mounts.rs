//! Making and attaching the mounts of the plan.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use portreeve_sys::mount;
use portreeve_sys::path::{Limits, in_root};
use rustix::fs::OFlags;

use super::resolve;
use crate::error::{SetupError, Step};
use crate::plan::mounts::{MountOp, What};
use crate::prepare::{Source, set_propagation};

const PROC_MAGIC: u64 = 0x9fa0;

/// Files of /proc that may be covered, as lxcfs does; anything else below it could hide what the kernel tells.
const COVERABLE: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Whether the configuration brings its own /dev, which is then left as it is.
pub(super) fn replaces_dev(ops: &[MountOp]) -> bool {
    ops.iter().any(|op| op.destination == Path::new("/dev") && matches!(op.what, What::Bind { .. }))
}

/// Makes the new file systems, detached; `None` for the other kinds of mount.
pub(super) fn make(ops: &[MountOp]) -> Result<Vec<Option<OwnedFd>>, SetupError> {
    ops.iter()
        .map(|op| if let What::Filesystem { .. } = op.what { filesystem(op).map(Some) } else { Ok(None) })
        .collect()
}

fn filesystem(op: &MountOp) -> Result<OwnedFd, SetupError> {
    let What::Filesystem { kind, options, attributes } = &op.what else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput)).step("making a file system for", &op.destination);
    };
    let context = mount::new_filesystem(kind).step(&format!("opening file system {kind} for"), &op.destination)?;
    for (key, value) in options {
        let set = match value {
            Some(value) => mount::set_string(context.as_fd(), key, value),
            None => mount::set_flag(context.as_fd(), key),
        };
        set.step(&format!("setting option {key} of {kind} for"), &op.destination)?;
    }
    mount::create(context.as_fd(), *attributes).map_err(|source| {
        let words = mount::complaint(context.as_fd()).map_or_else(String::new, |words| format!(" ({words})"));
        SetupError { operation: format!("mounting {kind}{words} on"), path: op.destination.clone(), source }
    })
}

/// Attaches every mount in its order.
pub(super) fn attach(
    root: BorrowedFd<'_>,
    ops: &[MountOp],
    sources: &[Source],
    made: &[Option<OwnedFd>],
) -> Result<(), SetupError> {
    for ((op, source), made) in ops.iter().zip(sources).zip(made) {
        match (source, made) {
            (Source::Tree { tree, directory }, _) => one(root, op, tree.as_fd(), *directory)?,
            (Source::None, Some(tree)) => {
                one(root, op, tree.as_fd(), true)?;
                set_propagation(tree.as_fd(), op.propagation).step("setting the propagation of", &op.destination)?;
            }
            (Source::Cgroups(trees), _) => hierarchies(root, op, trees)?,
            (Source::None, None) => {}
        }
    }
    Ok(())
}

fn one(root: BorrowedFd<'_>, op: &MountOp, tree: BorrowedFd<'_>, directory: bool) -> Result<(), SetupError> {
    let path = &op.destination;
    let kernel = matches!(&op.what, What::Filesystem { kind, .. } if kind == "proc" || kind == "sysfs");
    let target = if kernel {
        // Where /proc really is decides what every later write to it means: a link there is an attack (CVE-2019-19921).
        drop(resolve::make_directory(root, path).step("creating the mount point", path)?);
        let limits = Limits { no_symlinks: true, ..Limits::default() };
        in_root(root, path, OFlags::PATH | OFlags::DIRECTORY, limits)
            .step("opening the mount point, which must be no link,", path)?
    } else if directory {
        resolve::make_directory(root, path).step("creating the mount point", path)?
    } else {
        resolve::make_file(root, path).step("creating the mount point", path)?
    };
    refuse_proc(&target, path, tree)?;
    mount::attach(tree, target.as_fd()).step("mounting on", path)
}

/// Nothing but the known files of /proc may be covered by a mount, and /proc itself only by a procfs.
fn refuse_proc(target: &OwnedFd, path: &Path, tree: BorrowedFd<'_>) -> Result<(), SetupError> {
    let refused =
        |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned())).step("mounting on", path);
    if path == Path::new("/proc") {
        return if is_procfs(tree) { Ok(()) } else { refused("only a procfs may be mounted there") };
    }
    if is_procfs(target.as_fd()) && !is_procfs(tree) && !COVERABLE.iter().any(|file| path == Path::new(file)) {
        return refused("it is part of a procfs");
    }
    Ok(())
}

pub(super) fn is_procfs(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(PROC_MAGIC))
}

/// Version 1: a small tmpfs with a directory per hierarchy.
fn hierarchies(root: BorrowedFd<'_>, op: &MountOp, trees: &[(String, OwnedFd)]) -> Result<(), SetupError> {
    let path = &op.destination;
    let What::Cgroup { own } = &op.what else { return Ok(()) };
    let context = mount::new_filesystem("tmpfs").step("opening file system tmpfs for", path)?;
    for (key, value) in [("source", "tmpfs"), ("mode", "0755"), ("size", "64k")] {
        mount::set_string(context.as_fd(), key, value).step("setting an option of tmpfs for", path)?;
    }
    let floor = mount::NO_SUID | mount::NO_DEV | mount::NO_EXEC;
    let tmpfs = mount::create(context.as_fd(), floor).step("mounting tmpfs on", path)?;
    let target = resolve::make_directory(root, path).step("creating the mount point", path)?;
    mount::attach(tmpfs.as_fd(), target.as_fd()).step("mounting on", path)?;
    for (name, tree) in trees {
        let place = resolve::make_directory(tmpfs.as_fd(), Path::new(name))
            .step("creating the mount point of hierarchy", name)?;
        mount::attach(tree.as_fd(), place.as_fd()).step("mounting the hierarchy", name)?;
        // The names that programs look for when several controllers share a mount.
        for controller in name.split(',').filter(|controller| controller != name) {
            rustix::fs::symlinkat(name.as_str(), &tmpfs, controller).step("linking the controller", controller)?;
        }
    }
    if own.set & mount::READ_ONLY != 0 {
        let change = mount::Change { set: mount::READ_ONLY, ..mount::Change::default() };
        mount::set_attributes(tmpfs.as_fd(), &change).step("making read-only", path)?;
    }
    Ok(())
}
