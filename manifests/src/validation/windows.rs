//! The pod's operating system, and what only Windows has.

use k8s_openapi::api::core::v1::{PodSpec, WindowsSecurityContextOptions};

use super::container::each;
use super::metadata::check;
use super::names;
use crate::findings::Findings;
use crate::path::Path;
use crate::problem::Reason;

const NOT_ON_WINDOWS: &str = "may not be set for a windows pod";
const NOT_ON_LINUX: &str = "may not be set for a linux pod";

/// What the named operating system cannot have.
pub(super) fn os(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(os) = &spec.os else { return };
    let own = path.field("os");
    match os.name.as_str() {
        "" => found.required(&own.field("name"), "a name is required", "name: linux"),
        "linux" => linux(spec, path, found),
        "windows" => windows(spec, path, found),
        other => found.not_supported(&own, other, &["linux", "windows"], "remove `os`: only Linux runs here"),
    }
}

fn linux(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    let context = spec.security_context.as_ref();
    if context.is_some_and(|it| it.windows_options.is_some()) {
        found.forbidden(
            &path.field("securityContext").field("windowsOptions"),
            NOT_ON_LINUX,
            "remove it: only Windows has it",
        );
    }
    each(spec, path, |container, path| {
        let context = container.security_context.as_ref();
        if context.is_some_and(|it| it.windows_options.is_some()) {
            found.forbidden(
                &path.field("securityContext").field("windowsOptions"),
                NOT_ON_LINUX,
                "remove it: only Windows has it",
            );
        }
    });
}

fn windows(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    for (field, given) in [
        ("hostUsers", spec.host_users.is_some()),
        ("hostPID", spec.host_pid == Some(true)),
        ("hostIPC", spec.host_ipc == Some(true)),
        ("shareProcessNamespace", spec.share_process_namespace.is_some()),
    ] {
        if given {
            found.forbidden(&path.field(field), NOT_ON_WINDOWS, "remove `spec.os`: only Linux runs here");
        }
    }
    if let Some(context) = &spec.security_context {
        let path = path.field("securityContext");
        for (field, given) in [
            ("appArmorProfile", context.app_armor_profile.is_some()),
            ("seLinuxOptions", context.se_linux_options.is_some()),
            ("seccompProfile", context.seccomp_profile.is_some()),
            ("fsGroup", context.fs_group.is_some()),
            ("fsGroupChangePolicy", context.fs_group_change_policy.is_some()),
            ("sysctls", context.sysctls.as_ref().is_some_and(|it| !it.is_empty())),
            ("runAsUser", context.run_as_user.is_some()),
            ("runAsGroup", context.run_as_group.is_some()),
            ("supplementalGroups", context.supplemental_groups.is_some()),
            ("supplementalGroupsPolicy", context.supplemental_groups_policy.is_some()),
            ("seLinuxChangePolicy", context.se_linux_change_policy.is_some()),
        ] {
            if given {
                found.forbidden(&path.field(field), NOT_ON_WINDOWS, "remove `spec.os`: only Linux runs here");
            }
        }
    }
    each(spec, path, |container, path| {
        let Some(context) = &container.security_context else {
            return;
        };
        let path = path.field("securityContext");
        for (field, given) in [
            ("appArmorProfile", context.app_armor_profile.is_some()),
            ("seLinuxOptions", context.se_linux_options.is_some()),
            ("seccompProfile", context.seccomp_profile.is_some()),
            ("capabilities", context.capabilities.is_some()),
            ("readOnlyRootFilesystem", context.read_only_root_filesystem.is_some()),
            ("privileged", context.privileged.is_some()),
            ("allowPrivilegeEscalation", context.allow_privilege_escalation.is_some()),
            ("procMount", context.proc_mount.is_some()),
            ("runAsUser", context.run_as_user.is_some()),
            ("runAsGroup", context.run_as_group.is_some()),
        ] {
            if given {
                found.forbidden(&path.field(field), NOT_ON_WINDOWS, "remove `spec.os`: only Linux runs here");
            }
        }
    });
}

/// Containers that run on the Windows host itself: all of a pod or none.
pub(super) fn host_process(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    let of_pod =
        spec.security_context.as_ref().and_then(|it| it.windows_options.as_ref()).and_then(|it| it.host_process);
    let (mut all, mut on_host) = (0, 0);
    each(spec, path, |container, path| {
        all += 1;
        let own = container
            .security_context
            .as_ref()
            .and_then(|it| it.windows_options.as_ref())
            .and_then(|it| it.host_process);
        if let (Some(of_pod), Some(own)) = (of_pod, own)
            && of_pod != own
        {
            let path = path.field("securityContext");
            let path = path.field("windowsOptions");
            found.invalid(
                &path.field("hostProcess"),
                &own,
                "differs from the pod's",
                "remove it, and the pod's counts",
            );
        }
        on_host += usize::from(own.or(of_pod) == Some(true));
    });
    if on_host == 0 {
        return;
    }
    if on_host != all {
        let message = "either all containers are hostProcess containers or none is";
        found.add(path, Reason::FieldValueInvalid, message, "remove `hostProcess`: only Linux runs here");
    }
    if spec.host_network != Some(true) {
        let fix = "remove `hostProcess`: only Linux runs here";
        found.invalid(&path.field("hostNetwork"), &false, "must be true for hostProcess containers", fix);
    }
}

pub(super) fn options(options: Option<&WindowsSecurityContextOptions>, path: &Path<'_>, found: &mut Findings<'_>) {
    const LONGEST_SPEC: usize = 64 << 10;
    let Some(options) = options else { return };
    if let Some(name) = &options.gmsa_credential_spec_name {
        check(name, names::subdomain, &path.field("gmsaCredentialSpecName"), found);
    }
    if let Some(spec) = &options.gmsa_credential_spec {
        let own = path.field("gmsaCredentialSpec");
        if spec.is_empty() {
            found.invalid(&own, spec, "may not be empty", "remove it");
        } else if spec.len() > LONGEST_SPEC {
            let fix = "remove it: only Windows uses it";
            found.invalid(&own, &spec.len(), "bytes are too many; at most 65536", fix);
        }
    }
    if let Some(name) = &options.run_as_user_name {
        user_name(name, &path.field("runAsUserName"), found);
    }
}

fn user_name(name: &str, path: &Path<'_>, found: &mut Findings<'_>) {
    const FIX: &str = "for example `ContainerUser`; only Windows uses it";
    if name.is_empty() {
        found.invalid(path, &name, "may not be empty", FIX);
        return;
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        found.invalid(path, &name, "may not have control characters", FIX);
        return;
    }
    let (domain, user) = match name.split_once('\\') {
        Some((_, rest)) if rest.contains('\\') => {
            found.invalid(path, &name, "may have only one backslash", FIX);
            return;
        }
        Some((domain, user)) => (Some(domain), user),
        None => (None, name),
    };
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            found.invalid(path, &name, "has a domain of more than 255 characters", FIX);
        }
        let net_bios = !domain.is_empty()
            && domain.chars().count() <= 15
            && !domain.starts_with('.')
            && !domain.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|']);
        let dns = !domain.is_empty()
            && domain.split('.').all(|label| {
                let word = |byte: u8| byte.is_ascii_alphanumeric();
                label.len() <= 63
                    && label.bytes().next().is_some_and(word)
                    && label.bytes().last().is_some_and(word)
                    && label.bytes().all(|byte| word(byte) || byte == b'-')
            });
        if !net_bios && !dns {
            found.invalid(path, &name, "has a domain that is neither a NetBIOS nor a DNS name", FIX);
        }
    }
    if user.is_empty() {
        found.invalid(path, &name, "has no user", FIX);
    } else if user.len() > 104 {
        found.invalid(path, &name, "has a user of more than 104 characters", FIX);
    }
    if user.chars().all(|c| c == '.' || c == ' ') && !user.is_empty() {
        found.invalid(path, &name, "has a user of only dots and spaces", FIX);
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        found.invalid(path, &name, "has characters that a user may not have", FIX);
    }
}
