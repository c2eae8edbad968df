//! From `linux.namespaces` to what is made, what is joined, and in which order. Pure.

use std::path::PathBuf;

use oci_spec::runtime::{Hooks, LinuxNamespaceType, Spec};
use portreeve_sys::clone;

use super::PlanError;

/// Namespaces of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Namespaces {
    /// `clone::NEW_*` flags of those to make.
    pub(crate) new: u64,
    /// Those to join, the user namespace last: what the caller may enter it enters with its own privileges.
    pub(crate) join: Vec<(u64, PathBuf)>,
}

/// The flag of a type.
pub(crate) fn flag(kind: LinuxNamespaceType) -> u64 {
    match kind {
        LinuxNamespaceType::Mount => clone::NEW_MOUNT,
        LinuxNamespaceType::Cgroup => clone::NEW_CGROUP,
        LinuxNamespaceType::Uts => clone::NEW_UTS,
        LinuxNamespaceType::Ipc => clone::NEW_IPC,
        LinuxNamespaceType::User => clone::NEW_USER,
        LinuxNamespaceType::Pid => clone::NEW_PID,
        LinuxNamespaceType::Network => clone::NEW_NET,
        LinuxNamespaceType::Time => clone::NEW_TIME,
    }
}

impl Namespaces {
    /// Whether a namespace of this kind is not the caller's.
    pub(crate) fn has(&self, flag: u64) -> bool {
        self.new & flag != 0 || self.joins(flag)
    }

    /// Whether a namespace of this kind is joined by path.
    pub(crate) fn joins(&self, flag: u64) -> bool {
        self.join.iter().any(|(kind, _)| *kind == flag)
    }

    /// Every flag that differs from the caller's, for joining a running container.
    pub(crate) fn all(&self) -> u64 {
        self.join.iter().fold(self.new, |all, (kind, _)| all | kind)
    }

    /// Whether a process in between must join first: a user, PID or time namespace counts for children only, or must
    /// own the namespaces that are made.
    pub(crate) fn needs_intermediate(&self) -> bool {
        self.joins(clone::NEW_USER) || self.joins(clone::NEW_PID) || self.joins(clone::NEW_TIME)
    }
}

/// Reads `linux.namespaces` and checks what depends on it.
pub(crate) fn plan(spec: &Spec) -> Result<Namespaces, PlanError> {
    let linux = spec.linux().as_ref();
    let mut plan = Namespaces::default();
    for (index, namespace) in
        linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default().iter().enumerate()
    {
        let flag = flag(namespace.typ());
        if plan.has(flag) {
            let reason = format!("a second namespace of type {}", namespace.typ());
            return Err(PlanError::new(format!("linux.namespaces[{index}].type"), reason));
        }
        match namespace.path() {
            Some(path) if !path.as_os_str().is_empty() => plan.join.push((flag, path.clone())),
            _ => plan.new |= flag,
        }
    }
    plan.join.sort_by_key(|(kind, _)| *kind == clone::NEW_USER);
    if plan.new & clone::NEW_MOUNT == 0 {
        return Err(PlanError::new("linux.namespaces", "a container needs a new mount namespace"));
    }
    let uts_needed = [("hostname", spec.hostname().is_some()), ("domainname", spec.domainname().is_some())];
    for (field, given) in uts_needed {
        if given && !plan.has(clone::NEW_UTS) {
            return Err(PlanError::new(field, "needs a UTS namespace that is not the caller's"));
        }
    }
    let mapped = linux.is_some_and(|linux| linux.uid_mappings().as_ref().is_some_and(|maps| !maps.is_empty()));
    if plan.new & clone::NEW_USER != 0 && !mapped {
        return Err(PlanError::new("linux.uidMappings", "a new user namespace needs uidMappings and gidMappings"));
    }
    refuse_unsupported(spec)?;
    if linux.is_some_and(|linux| linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty())) {
        return Err(PlanError::new("linux.timeOffsets", "is not supported by this version"));
    }
    if linux.is_some_and(|linux| linux.intel_rdt().is_some()) {
        return Err(PlanError::new("linux.intelRdt", "is not supported by this version"));
    }
    Ok(plan)
}

/// What is not done yet is refused, never dropped in silence.
fn refuse_unsupported(spec: &Spec) -> Result<(), PlanError> {
    let linux = spec.linux().as_ref();
    let given = [
        ("hooks", spec.hooks().as_ref().is_some_and(|hooks| *hooks != Hooks::default())),
        (
            "linux.netDevices",
            linux.is_some_and(|linux| linux.net_devices().as_ref().is_some_and(|map| !map.is_empty())),
        ),
        ("linux.memoryPolicy", linux.is_some_and(|linux| linux.memory_policy().is_some())),
        (
            "linux.mountLabel",
            linux.is_some_and(|linux| linux.mount_label().as_ref().is_some_and(|label| !label.is_empty())),
        ),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(PlanError::new(*field, "is not supported by this version")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<Namespaces, String> {
        let spec: Spec = serde_json::from_str(json).expect("spec");
        plan(&spec).map_err(|error| error.to_string())
    }

    #[test]
    fn a_joined_user_namespace_comes_last_and_needs_a_process_between() {
        let plan = check(
            r#"{"ociVersion": "1.2.0", "linux": {"namespaces": [{"type": "user", "path": "/proc/7/ns/user"}, {"type": "mount"},
            {"type": "network", "path": "/proc/7/ns/net"}, {"type": "pid"}]}}"#,
        )
        .expect("plan");
        assert_eq!(plan.new, clone::NEW_MOUNT | clone::NEW_PID);
        let order: Vec<u64> = plan.join.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(order, [clone::NEW_NET, clone::NEW_USER]);
        assert!(plan.needs_intermediate());
    }

    #[test]
    fn a_host_name_needs_a_namespace_of_its_own() {
        let error = check(r#"{"ociVersion": "1.2.0", "hostname": "x", "linux": {"namespaces": [{"type": "mount"}]}}"#);
        assert_eq!(error.expect_err("refused"), "hostname: needs a UTS namespace that is not the caller's");
    }

    #[test]
    fn a_container_without_a_mount_namespace_is_refused() {
        assert!(check(r#"{"ociVersion": "1.2.0", "linux": {"namespaces": [{"type": "pid"}]}}"#).is_err());
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let error = check(
            r#"{"ociVersion": "1.2.0", "hooks": {"poststop": [{"path": "/bin/true"}]}, "linux": {"namespaces": [{"type": "mount"}]}}"#,
        );
        assert_eq!(error.expect_err("refused"), "hooks: is not supported by this version");
    }
}
