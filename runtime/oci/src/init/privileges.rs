//! Becoming who the program runs as: labels, working directory, user, groups, capabilities.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use portreeve_sys::capability::{self, CAP_SETPCAP, CAP_SYS_ADMIN, Sets};
use portreeve_sys::path::{Limits, beneath};
use portreeve_sys::process;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{resolve, sysctl};
use crate::error::{SetupError, Step};
use crate::plan::identity::Identity;

/// A label of the program, as the kernel is told of it.
#[derive(Debug, PartialEq, Eq)]
struct Label<'a> {
    /// For errors.
    what: &'static str,
    /// What the configuration calls it.
    name: &'a str,
    /// Files of a process's `attr`: the first that is there takes the value.
    files: &'static [&'static str],
    value: String,
}

impl Label<'_> {
    /// Whether it asks for nothing where no module confines anybody.
    fn is_no_profile(&self) -> bool {
        self.what == APPARMOR && self.name == UNCONFINED
    }
}

const APPARMOR: &str = "AppArmor profile";

/// What is to be written, in order.
///
/// Source: Linux, security/apparmor/lsm.c, security/selinux/hooks.c: the one takes a command, the other a context.
fn labels(identity: &Identity) -> Vec<Label<'_>> {
    let apparmor = identity.apparmor_profile.as_deref().map(|name| Label {
        what: APPARMOR,
        name,
        files: &["apparmor/exec", "exec"], // Linux before 5.8 has the second alone.
        value: format!("exec {name}"),
    });
    let selinux = identity.selinux_label.as_deref().map(|name| Label {
        what: "SELinux label",
        name,
        files: &["exec"],
        value: name.to_owned(),
    });
    apparmor.into_iter().chain(selinux).collect()
}

/// Has the kernel apply the security label at execve.
///
/// Written to a private procfs: a fake /proc in the image would swallow it (CVE-2019-16884).
pub(super) fn label(identity: &Identity, makers: Option<BorrowedFd<'_>>) -> Result<(), SetupError> {
    let labels = labels(identity);
    if labels.is_empty() {
        return Ok(());
    }
    let procfs = match sysctl::procfs(makers) {
        // Who may not mount one may not leave a profile either.
        Err(error) if labels.iter().all(Label::is_no_profile) && error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(());
        }
        other => other.step("mounting a private procfs", "")?,
    };
    let write = |file: &str, value: &str| -> io::Result<()> {
        // `thread-self` is a link of the procfs itself, within it.
        let path = Path::new("self/attr").join(file);
        let fd = beneath(procfs.as_fd(), &path, OFlags::WRONLY, Limits { no_crossing: true, ..Limits::default() })?;
        rustix::io::write(&fd, value.as_bytes())?;
        Ok(())
    };
    for label in &labels {
        let mut set = Err(io::ErrorKind::NotFound.into());
        for file in label.files {
            set = write(file, &label.value);
            if !set.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                break;
            }
        }
        match set {
            // A machine without AppArmor confines nobody.
            Err(error) if label.is_no_profile() && !confines(&error) => {}
            other => other.step(&format!("setting the {}", label.what), label.name)?,
        }
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

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use oci_spec::runtime::{Process, Spec};
    use serde_json::json;

    use super::*;
    use crate::plan::identity;

    fn labelled(apparmor: &str, selinux: &str) -> Identity {
        let process: Process = serde_json::from_value(json!({
            "cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["true"],
            "apparmorProfile": apparmor, "selinuxLabel": selinux,
        }))
        .expect("a process");
        identity::plan(&process, &Spec::default()).expect("an identity")
    }

    fn check(apparmor: &str, selinux: &str, expected: &Expect) {
        let identity = labelled(apparmor, selinux);
        let line = |label: Label<'_>| format!("{} <- {}\n", label.files.join(", or "), label.value);
        expected.assert_eq(&labels(&identity).into_iter().map(line).collect::<String>());
    }

    #[test]
    fn labels_are_written_to_the_files_of_their_modules() {
        let context = "system_u:system_r:container_t:s0:c1,c2";
        let selinux = expect![[r#"
            exec <- system_u:system_r:container_t:s0:c1,c2
        "#]];
        check("", context, &selinux);
        let apparmor = expect![[r#"
            apparmor/exec, or exec <- exec docker-default
        "#]];
        check("docker-default", "", &apparmor);
        let both = expect![[r#"
            apparmor/exec, or exec <- exec unconfined
            exec <- system_u:system_r:container_t:s0:c1,c2
        "#]];
        check("unconfined", context, &both);
        check("", "", &expect![""]);
    }

    #[test]
    fn only_unconfined_asks_for_nothing_where_nobody_is_confined() {
        for (apparmor, selinux, expected) in [
            ("unconfined", "", true),
            ("unconfined", "a:b:c:s0", false),
            ("other", "", false),
            ("", "unconfined", false),
        ] {
            let identity = labelled(apparmor, selinux);
            assert_eq!(labels(&identity).iter().all(Label::is_no_profile), expected, "{apparmor:?} {selinux:?}");
        }
    }
}
