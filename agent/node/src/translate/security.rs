//! securityContext of pod and container, merged: the container's word wins.

use k8s_openapi::api::core::v1::{Container, PodSpec, SeccompProfile as KubeSeccomp};
use portreeve_engine::{SeccompProfile, SecurityContext, SupplementalGroupsPolicy};

use super::TranslateError;

/// Where Localhost profiles lie, as with the kubelet.
const PROFILES: &str = "/var/lib/kubelet/seccomp";

/// What a container's processes are and may do.
pub(super) fn security(spec: &PodSpec, container: &Container) -> Result<SecurityContext, TranslateError> {
    let pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let id = |field, value: Option<i64>| {
        value.map(|value| u32::try_from(value).map_err(|_| TranslateError::Range { field, value })).transpose()
    };
    let mut groups = Vec::new();
    for group in pod.supplemental_groups.iter().flatten().copied().chain(pod.fs_group) {
        groups.push(
            u32::try_from(group).map_err(|_| TranslateError::Range { field: "supplementalGroups", value: group })?,
        );
    }
    let privileged = own.privileged == Some(true);
    let capabilities = own.capabilities.unwrap_or_default();
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    Ok(SecurityContext {
        run_as_user: id("runAsUser", own.run_as_user.or(pod.run_as_user))?,
        run_as_group: id("runAsGroup", own.run_as_group.or(pod.run_as_group))?,
        run_as_username: None,
        run_as_non_root: own.run_as_non_root.or(pod.run_as_non_root) == Some(true),
        supplemental_groups: groups,
        supplemental_groups_policy: match pod.supplemental_groups_policy.as_deref() {
            Some("Strict") => SupplementalGroupsPolicy::Strict,
            _ => SupplementalGroupsPolicy::Merge,
        },
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        privileged,
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        masked_paths: unmasked.then(Vec::new),
        readonly_paths: unmasked.then(Vec::new),
        seccomp: seccomp(own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()), privileged),
        ..SecurityContext::default()
    })
}

fn seccomp(profile: Option<&KubeSeccomp>, privileged: bool) -> SeccompProfile {
    match profile.map(|profile| (profile.type_.as_str(), profile.localhost_profile.as_deref())) {
        _ if privileged => SeccompProfile::Unconfined,
        Some(("Unconfined", _)) => SeccompProfile::Unconfined,
        Some(("Localhost", Some(path))) => SeccompProfile::Localhost(std::path::Path::new(PROFILES).join(path)),
        _ => SeccompProfile::RuntimeDefault,
    }
}
