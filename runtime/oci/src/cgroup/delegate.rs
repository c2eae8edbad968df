//! Giving a cgroup to a container's root, who then divides it further. Linux cgroup-v2.rst, "Delegation".

use std::io;
use std::os::unix::fs::lchown;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::layout::Layout;
use super::{CgroupError, Version};
use crate::userns;

/// The files that kernels before 4.15 let be given away; newer ones list theirs.
const FILES: &str = "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n";

/// The user of the host who gets a container's cgroup: its root, when that is another user than the machine's, and sees
/// nothing above (a cgroup namespace), and may write what it sees.
pub(crate) fn owner(spec: &Spec) -> Option<u32> {
    let linux = spec.linux().as_ref()?;
    let namespace = |kind| linux.namespaces().iter().flatten().find(|namespace| namespace.typ() == kind);
    let own_view = namespace(LinuxNamespaceType::Cgroup).is_some_and(|namespace| namespace.path().is_none());
    let writable = spec.mounts().iter().flatten().any(|mount| {
        let read_only = |option: &String| option == "ro" || option == "rro";
        matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")) && !mount.options().iter().flatten().any(read_only)
    });
    namespace(LinuxNamespaceType::User).filter(|_| own_view && writable)?;
    userns::host_root(linux.uid_mappings().as_deref().unwrap_or_default())
}

/// Changes the owner of the directory and of the files that the kernel names for that; limits stay the maker's.
pub(crate) fn give(layout: &Layout, relative: &str, uid: u32) -> Result<(), CgroupError> {
    let (Version::V2, Some(mount)) = (layout.version(), layout.unified.as_deref()) else { return Ok(()) };
    let directory = mount.join(relative);
    let list = std::fs::read_to_string("/sys/kernel/cgroup/delegate").unwrap_or_else(|_| FILES.to_owned());
    let files = list.lines().filter(|name| !name.is_empty() && !name.contains('/')).map(|name| directory.join(name));
    for path in std::iter::once(directory.clone()).chain(files) {
        match lchown(&path, Some(uid), None) {
            Ok(()) => {}
            // The list is of every controller; a cgroup has the files of those enabled for it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path != directory => {}
            Err(source) => return Err(CgroupError::Delegate { path, uid, source }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_given_to_a_root_of_its_own_that_may_write_what_it_sees() {
        let check = |namespaces: &str, options: &str| {
            let json = format!(
                r#"{{"ociVersion": "1.2.0", "mounts": [{{"destination": "/c", "type": "cgroup", "options": [{options}]}}],
                    "linux": {{"namespaces": [{namespaces}], "uidMappings": [{{"containerID": 0, "hostID": 7, "size": 1}}]}}}}"#
            );
            owner(&serde_json::from_str(&json).expect("spec"))
        };
        let both = r#"{"type": "user"}, {"type": "cgroup"}"#;
        assert_eq!(check(both, r#""rw", "nosuid""#), Some(7));
        assert_eq!(check(both, r#""ro""#), None);
        assert_eq!(check(r#"{"type": "user"}"#, ""), None);
        assert_eq!(check(r#"{"type": "user"}, {"type": "cgroup", "path": "/proc/1/ns/cgroup"}"#, ""), None);
        assert_eq!(check(r#"{"type": "cgroup"}"#, ""), None);
    }
}
