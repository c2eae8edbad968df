//! Becoming who the program runs as: labels, working directory, user, groups, capabilities.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use portreeve_sys::capability::{self, Sets};
use portreeve_sys::path::{Limits, beneath};
use portreeve_sys::process;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{resolve, sysctl};
use crate::error::{SetupError, Step};
use crate::plan::identity::Identity;

/// Has the kernel apply the security label at execve.
///
/// Written to a private procfs: a fake /proc in the image would swallow it (CVE-2019-16884).
pub(super) fn label(identity: &Identity, makers: Option<BorrowedFd<'_>>) -> Result<(), SetupError> {
    let apparmor = identity.apparmor_profile.as_ref();
    if apparmor.is_none() && identity.selinux_label.is_none() {
        return Ok(());
    }
    let only_unconfined = identity.selinux_label.is_none() && apparmor.is_some_and(|profile| profile == UNCONFINED);
    let procfs = match sysctl::procfs(makers) {
        // Who may not mount one may not leave a profile either.
        Err(error) if only_unconfined && error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        other => other.step("mounting a private procfs", "")?,
    };
    let write = |file: &str, value: &str| -> io::Result<()> {
        // `thread-self` is a link of the procfs itself, within it.
        let path = Path::new("self/attr").join(file);
        let fd = beneath(procfs.as_fd(), &path, OFlags::WRONLY, Limits { no_crossing: true, ..Limits::default() })?;
        rustix::io::write(&fd, value.as_bytes())?;
        Ok(())
    };
    if let Some(profile) = apparmor {
        let value = format!("exec {profile}");
        let set = match write("apparmor/exec", &value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => write("exec", &value), // Linux before 5.8
            other => other,
        };
        match set {
            // A machine without AppArmor confines nobody.
            Err(error) if profile == UNCONFINED && !confines(&error) => {}
            other => other.step("setting the AppArmor profile", profile.as_str())?,
        }
    }
    if let Some(label) = &identity.selinux_label {
        write("exec", label).step("setting the SELinux label", label.as_str())?;
    }
    Ok(())
}

/// Out of reach of every profile, also of those that would attach to the program by its path.
const UNCONFINED: &str = "unconfined";

/// Whether a refusal to set a profile comes from AppArmor: without it there is no such file, or another module's, which
/// knows no profiles.
fn confines(error: &io::Error) -> bool {
    !matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::NOENT | Errno::INVAL))
}

/// Enters the working directory as root; `false` when only the user may.
pub(super) fn enter_directory(root: BorrowedFd<'_>, identity: &Identity) -> Result<bool, SetupError> {
    match change_directory(root, &identity.directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error).step("entering the working directory", &identity.directory),
    }
}

/// Enters the working directory with the program's own rights.
pub(super) fn enter_directory_as_user(root: BorrowedFd<'_>, identity: &Identity) -> Result<(), SetupError> {
    change_directory(root, &identity.directory).step("entering the working directory", &identity.directory)
}

fn change_directory(root: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    // A magic link (/proc/self/fd/7) could lead to a directory of the host (CVE-2024-21626): `find` refuses them.
    let directory = resolve::find(root, path)?;
    Ok(rustix::process::fchdir(directory)?)
}

/// The kernel says "(unreachable)" about a directory that is not below this root; such a one is refused too.
pub(super) fn check_directory(path: &Path) -> Result<(), SetupError> {
    let here = rustix::process::getcwd(Vec::new());
    let outside = match &here {
        Ok(here) => !here.as_bytes().starts_with(b"/"),
        Err(error) => *error == rustix::io::Errno::NOENT,
    };
    if outside {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not below the container's root"))
            .step("entering the working directory", path);
    }
    Ok(())
}

/// Gives up everything that the program shall not have, but for now CAP_SYS_ADMIN when `keep_last` says so; answers the
/// program's capabilities.
pub(super) fn drop_to(identity: &Identity, keep_last: bool) -> Result<Sets, SetupError> {
    let wanted = &identity.capabilities;
    // What this process lacks (on this machine, or in its bounding set) it cannot give.
    let have = capability::get().step("reading capabilities", "")?.permitted;
    if have & (1 << CAP_SETPCAP) != 0 {
        capability::limit_bounding(wanted.bounding).step("limiting the bounding set", "")?;
    }
    process::set_keep_capabilities(true).step("keeping capabilities over the change of user", "")?;
    match process::set_groups(&identity.groups) {
        // A user namespace may deny setgroups; with nothing to set, nothing is lost.
        Err(error) if identity.groups.is_empty() && error.kind() == io::ErrorKind::PermissionDenied => {}
        other => {
            let hint = other.as_ref().err().map_or("", unmapped);
            other.step(&format!("setting the groups {:?}{hint}", identity.groups), "")?;
        }
    }
    for (what, id, set) in [
        ("group", identity.gid, process::set_group_id as fn(u32) -> io::Result<()>),
        ("user", identity.uid, process::set_user_id),
    ] {
        let became = set(id);
        let hint = became.as_ref().err().map_or("", unmapped);
        became.step(&format!("becoming {what} {id}{hint}"), "")?;
    }
    process::set_keep_capabilities(false).step("ending the keeping of capabilities", "")?;
    let permitted = wanted.permitted & have;
    let inheritable = wanted.inheritable & have;
    let sets = Sets { effective: wanted.effective & permitted, permitted, inheritable };
    let last = if keep_last { have & (1 << CAP_SYS_ADMIN) } else { 0 };
    let now = Sets { effective: sets.effective | last, permitted: sets.permitted | last, inheritable };
    capability::set(&now).step("setting capabilities", "")?;
    capability::set_ambient(wanted.ambient & permitted & inheritable).step("setting ambient capabilities", "")?;
    if identity.no_new_privileges {
        process::set_no_new_privileges().step("setting no_new_privs", "")?;
    }
    // The change of user has made the process dumpable or not by its own rules.
    process::set_dumpable(false).step("staying undumpable", "")?;
    Ok(sets)
}

/// What the kernel means about ids in a user namespace.
fn unmapped(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::INVAL) => " (it is not mapped into the container's user namespace)",
        Some(Errno::PERM) => {
            " (a user namespace whose groups were mapped without newgidmap has those of the user who made it, and no others)"
        }
        _ => "",
    }
}

/// Gives up what [`drop_to`] has kept: one call, under the filter already.
pub(super) fn drop_last(sets: &Sets) -> Result<(), SetupError> {
    capability::set(sets).step("setting capabilities under the seccomp filter, which has to allow capset", "")
}

const CAP_SETPCAP: u32 = 8;
const CAP_SYS_ADMIN: u32 = 21;
