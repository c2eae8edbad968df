//! Making and attaching the mounts of the plan.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use portreeve_sys::mount;
use portreeve_sys::path::{Limits, in_root};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::{copy_up, resolve};
use crate::error::{SetupError, Step};
use crate::plan::mounts::{LABEL, LABEL_NEEDS, MountOp, What};
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

/// Makes the new file systems, detached; `None` for the other kinds of mount, and for those that are made like what they
/// cover.
pub(super) fn make(ops: &[MountOp]) -> Result<Vec<Option<OwnedFd>>, SetupError> {
    ops.iter().map(make_one).collect()
}

fn make_one(op: &MountOp) -> Result<Option<OwnedFd>, SetupError> {
    let What::Filesystem { kind, attributes, takes, .. } = &op.what else { return Ok(None) };
    if takes.anything() {
        return Ok(None);
    }
    match filesystem(op, None) {
        Err(error) if error.source.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
            the_hosts(op, kind, *attributes).unwrap_or(Err(error)).map(Some)
        }
        made => made.map(Some),
    }
}

/// A file system that shows a namespace can be made only by the namespace's owner: a user namespace that shares the
/// network, IPC or PID namespace with the host gets the host's, read-only. `None` for other file systems, and for a
/// procfs of other processes: the kernel refuses a new one also where the host's own is covered in parts.
fn the_hosts(op: &MountOp, kind: &str, attributes: u64) -> Option<Result<OwnedFd, SetupError>> {
    let (place, needed) = match kind {
        "sysfs" => ("/sys", "network"),
        "mqueue" => ("/dev/mqueue", "IPC"),
        "proc" if shows_this_process() => ("/proc", "PID"),
        _ => return None,
    };
    let floor = mount::READ_ONLY | mount::NO_SUID | mount::NO_DEV | mount::NO_EXEC;
    let change = mount::Change { set: attributes | floor, recursive: true, ..mount::Change::default() };
    let bound = mount::clone_tree(rustix::fs::CWD, Path::new(place), true, true)
        .and_then(|tree| mount::set_attributes(tree.as_fd(), &change).map(|()| tree))
        .step(
            &format!(
                "binding {place} of the host, in place of a new {kind}, which needs a new {needed} namespace, for"
            ),
            &op.destination,
        );
    Some(bound)
}

/// Whether the procfs at /proc is that of this process's PID namespace: in another one it has another number, or none.
fn shows_this_process() -> bool {
    let own = rustix::process::getpid().as_raw_nonzero().to_string();
    rustix::fs::readlink("/proc/self", Vec::new()).is_ok_and(|shown| shown.as_bytes() == own.as_bytes())
}

/// Why an owner may be refused.
const UNMAPPED: &str = " (its uid and gid have to be mapped into the container's user namespace)";

/// Makes a file system; `mode` is its root's where the configuration says none.
fn filesystem(op: &MountOp, mode: Option<u32>) -> Result<OwnedFd, SetupError> {
    let What::Filesystem { kind, options, attributes, .. } = &op.what else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput)).step("making a file system for", &op.destination);
    };
    let context = mount::new_filesystem(kind).step(&format!("opening file system {kind} for"), &op.destination)?;
    for (key, value) in options {
        let set = match value {
            Some(value) => mount::set_string(context.as_fd(), key, value),
            None => mount::set_flag(context.as_fd(), key),
        };
        let hint = match key.as_str() {
            LABEL => LABEL_NEEDS,
            "uid" | "gid" => UNMAPPED,
            _ => "",
        };
        set.step(&format!("setting option {key} of {kind}{hint} for"), &op.destination)?;
    }
    if let Some(mode) = mode {
        mount::set_string(context.as_fd(), "mode", format!("{mode:o}"))
            .step(&format!("setting the mode of {kind} for"), &op.destination)?;
    }
    let attributes = if op.what.is_read_only_late() { attributes & !mount::READ_ONLY } else { *attributes };
    mount::create(context.as_fd(), attributes).map_err(|source| {
        let words = mount::complaint(context.as_fd()).map_or_else(String::new, |words| format!(" ({words})"));
        let ids = options.iter().any(|(key, _)| key == "uid" || key == "gid");
        let hint = if ids && source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) { UNMAPPED } else { "" };
        SetupError { operation: format!("mounting {kind}{words}{hint} on"), path: op.destination.clone(), source }
    })
}

/// Attaches every mount in its order.
pub(super) fn attach(
    root: BorrowedFd<'_>,
    ops: &[MountOp],
    sources: &[Source],
    made: &mut [Option<OwnedFd>],
) -> Result<(), SetupError> {
    for ((op, source), made) in ops.iter().zip(sources).zip(made) {
        match source {
            Source::Tree { tree, directory } => one(root, op, tree.as_fd(), *directory)?,
            Source::Cgroups(trees) => hierarchies(root, op, trees)?,
            Source::None => {
                let tree = made.take().map_or_else(|| like_what_it_covers(root, op), Ok)?;
                one(root, op, tree.as_fd(), true)?;
                set_propagation(tree.as_fd(), op.propagation).step("setting the propagation of", &op.destination)?;
                *made = op.what.is_read_only_late().then_some(tree);
            }
        }
    }
    Ok(())
}

/// Makes those read-only in which something had to be made first.
pub(super) fn finish(ops: &[MountOp], made: &[Option<OwnedFd>]) -> Result<(), SetupError> {
    let change = mount::Change { set: mount::READ_ONLY, ..mount::Change::default() };
    for (op, tree) in ops.iter().zip(made) {
        if let Some(tree) = tree {
            mount::set_attributes(tree.as_fd(), &change).step("making read-only", &op.destination)?;
        }
    }
    Ok(())
}

/// A file system with the mode, and where that is asked for the content, of the directory at its place: images have
/// their /tmp with mode 1777. Where nothing is there yet, nothing is taken over.
fn like_what_it_covers(root: BorrowedFd<'_>, op: &MountOp) -> Result<OwnedFd, SetupError> {
    let path = &op.destination;
    let What::Filesystem { takes, .. } = &op.what else { return filesystem(op, None) };
    let covered = match in_root(root, path, OFlags::PATH | OFlags::DIRECTORY, Limits::default()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return filesystem(op, None),
        found => found.step("opening the mount point", path)?,
    };
    let mode = rustix::fs::fstat(&covered).step("looking at the mount point", path)?.st_mode & 0o7777;
    let mode = takes.mode.then_some(mode);
    if !takes.content {
        return filesystem(op, mode);
    }
    let tree = filesystem(op, mode)?;
    copy_up::copy(covered.as_fd(), tree.as_fd()).step("copying what is covered by the tmpfs on", path)?;
    Ok(tree)
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
    mount::attach(tree, target.as_fd())
        .map_err(|error| {
            let stat = rustix::fs::fstat(&target).map(|stat| FileType::from_raw_mode(stat.st_mode));
            // The kernel says no more than that it is wrong.
            let differ = stat.is_ok_and(|kind| (kind == FileType::Directory) != directory);
            if differ { Errno::NOTDIR.into() } else { error }
        })
        .step("mounting on", path)
}

/// Nothing but the known files of /proc may be covered by a mount, and /proc itself only by a procfs.
fn refuse_proc(target: &OwnedFd, path: &Path, tree: BorrowedFd<'_>) -> Result<(), SetupError> {
    let refused =
        |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned())).step("mounting on", path);
    if path == Path::new("/proc") {
        return if is_procfs(tree) { Ok(()) } else { refused("only a procfs may be mounted there") };
    }
    if !is_procfs(tree) && !COVERABLE.iter().any(|file| path == Path::new(file)) {
        return outside_procfs(target.as_fd()).step("mounting on", path);
    }
    Ok(())
}

/// Refuses a place in a procfs, where links of an image may lead: what is mounted there hides what the kernel tells.
pub(super) fn outside_procfs(target: BorrowedFd<'_>) -> io::Result<()> {
    let why = || io::Error::new(io::ErrorKind::PermissionDenied, "it is part of a procfs");
    if is_procfs(target) { Err(why()) } else { Ok(()) }
}

fn is_procfs(fd: BorrowedFd<'_>) -> bool {
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
    refuse_proc(&target, path, tmpfs.as_fd())?;
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
