//! Security contexts of pods and containers, and the annotations that preceded them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
};

use super::container::{self, Scope};
use super::pod::choice;
use super::{go_json, names, scheduling, volumes, windows};
use crate::findings::{Findings, near_or};
use crate::path::Path;
use crate::problem::Reason;

const NOT_LOCALHOST: &str = "remove it, or set `type: Localhost`";
const TYPES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

fn id(number: Option<i64>, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(number) = number
        && let Err(message) = names::id(number)
    {
        found.invalid(path, &number, message, "for example 1000");
    }
}

/// The pod's own context.
pub(super) fn pod(spec: &PodSpec, spec_path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(context) = &spec.security_context else {
        return;
    };
    let path = spec_path.field("securityContext");
    id(context.fs_group, &path.field("fsGroup"), found);
    id(context.run_as_user, &path.field("runAsUser"), found);
    id(context.run_as_group, &path.field("runAsGroup"), found);
    for (index, group) in context.supplemental_groups.iter().flatten().enumerate() {
        id(Some(*group), &path.field("supplementalGroups").index(index), found);
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        // The API server reports this below the security context.
        found.add_as(
            path.field("shareProcessNamespace").to_string(),
            &spec_path.field("shareProcessNamespace"),
            Reason::FieldValueInvalid,
            "shareProcessNamespace and hostPID exclude each other",
            "remove one of the two",
        );
    }
    sysctls(context, spec, &path.field("sysctls"), found);
    choice(
        context.fs_group_change_policy.as_deref(),
        &["OnRootMismatch", "Always"],
        "remove it for the default, `Always`",
        &path.field("fsGroupChangePolicy"),
        found,
    );
    seccomp(context.seccomp_profile.as_ref(), &path.field("seccompProfile"), found);
    windows::options(context.windows_options.as_ref(), &path.field("windowsOptions"), found);
    apparmor(context.app_armor_profile.as_ref(), &path.field("appArmorProfile"), found);
    choice(
        context.supplemental_groups_policy.as_deref(),
        &["Merge", "Strict"],
        "remove it for the default, `Merge`",
        &path.field("supplementalGroupsPolicy"),
        found,
    );
    choice(
        context.se_linux_change_policy.as_deref(),
        &["MountOption", "Recursive"],
        "remove it: there are no SELinux labels here",
        &path.field("seLinuxChangePolicy"),
        found,
    );
}

fn is_sysctl(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let segment = |segment: &str| {
        segment.bytes().next().is_some_and(inner)
            && segment.bytes().last().is_some_and(inner)
            && segment.bytes().all(|byte| inner(byte) || byte == b'-' || byte == b'_')
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

fn sysctls(context: &PodSecurityContext, spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut seen = BTreeMap::new();
    let list = path;
    for (index, sysctl) in context.sysctls.iter().flatten().enumerate() {
        let path = list.index(index);
        let path = path.field("name");
        let name = sysctl.name.as_str();
        if name.is_empty() {
            found.required(&path, "a sysctl needs a name", "name: net.core.somaxconn");
        } else if !is_sysctl(name) {
            found.invalid(&path, &name, "is no name of a sysctl", "for example `net.core.somaxconn`");
        } else if let Some(first) = seen.get(name) {
            found.duplicate(&path, &name, &list.index(*first).field("name"));
        }
        seen.entry(name).or_insert(index);
        let dotted = dotted(name);
        let net = dotted.starts_with("net.");
        let ipc = matches!(dotted.as_str(), "kernel.sem")
            || dotted.starts_with("kernel.shm")
            || dotted.starts_with("kernel.msg")
            || dotted.starts_with("fs.mqueue.");
        if net && spec.host_network == Some(true) {
            found.invalid(&path, &name, "may not be set with `hostNetwork: true`", "remove it, and set it on the host");
        } else if ipc && spec.host_ipc == Some(true) {
            found.invalid(&path, &name, "may not be set with `hostIPC: true`", "remove it, and set it on the host");
        }
    }
}

/// A sysctl's name with dots: where the first separator is a slash, both change their roles.
fn dotted(name: &str) -> String {
    let first = name.find(['.', '/']).and_then(|at| name.get(at..=at));
    if first != Some("/") {
        return name.to_owned();
    }
    name.chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            c => c,
        })
        .collect()
}

fn seccomp(profile: Option<&SeccompProfile>, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(profile) = profile else { return };
    match profile.type_.as_str() {
        "" => found.required(&path.field("type"), "a type is required", "type: RuntimeDefault"),
        other => choice(Some(other), &TYPES, "for example `RuntimeDefault`", &path.field("type"), found),
    }
    let own = path.field("localhostProfile");
    match (&profile.localhost_profile, profile.type_.as_str()) {
        (None, "Localhost") => {
            let example = "localhostProfile: profiles/web.json";
            found.required(&own, "must be given when `type` is Localhost", example);
        }
        (Some(file), "Localhost") => volumes::descending_path(file, &own, found),
        (Some(file), _) => found.invalid(&own, file, "may be given only when `type` is Localhost", NOT_LOCALHOST),
        (None, _) => {}
    }
}

fn apparmor(profile: Option<&AppArmorProfile>, path: &Path<'_>, found: &mut Findings<'_>) {
    const LONGEST: usize = 4095;
    const LOCALHOST: &str = "localhostProfile: web";
    let Some(profile) = profile else { return };
    let own = path.field("localhostProfile");
    match (profile.type_.as_str(), &profile.localhost_profile) {
        ("Localhost", None) => found.required(&own, "must be given when `type` is Localhost", LOCALHOST),
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                found.invalid(&own, name, "may not have spaces around it", "remove them");
            } else if name.is_empty() {
                found.required(&own, "must be given when `type` is Localhost", LOCALHOST);
            }
            if name.len() > LONGEST {
                found.too_long(&own, name.len(), LONGEST, "give the name of a loaded profile");
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            found.invalid(&own, name, "may be given only when `type` is Localhost", NOT_LOCALHOST);
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => found.required(&path.field("type"), "a type is required", "type: Unconfined"),
        (other, _) => {
            found.not_supported(&path.field("type"), other, &TYPES, "remove the profile: AppArmor is not used here");
        }
    }
}

/// A container's context.
pub(super) fn container(container: &Container, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(context) = &container.security_context else {
        return;
    };
    id(context.run_as_user, &path.field("runAsUser"), found);
    id(context.run_as_group, &path.field("runAsGroup"), found);
    if let Some(mount) = context.proc_mount.as_deref() {
        let own = path.field("procMount");
        choice(Some(mount), &["Default", "Unmasked"], "remove it for the default, `Default`", &own, found);
        if scope.host_users && mount == "Unmasked" {
            found.invalid(&own, &mount, "needs `hostUsers: false` in the pod", "add that to `spec`, or use `Default`");
        }
    }
    seccomp(context.seccomp_profile.as_ref(), &path.field("seccompProfile"), found);
    escalation(context, path, found);
    windows::options(context.windows_options.as_ref(), &path.field("windowsOptions"), found);
    apparmor(context.app_armor_profile.as_ref(), &path.field("appArmorProfile"), found);
}

fn escalation(context: &SecurityContext, path: &Path<'_>, found: &mut Findings<'_>) {
    if context.allow_privilege_escalation != Some(false) {
        return;
    }
    if context.privileged == Some(true) {
        found.add(
            path,
            Reason::FieldValueInvalid,
            "`allowPrivilegeEscalation: false` and `privileged: true` exclude each other",
            "remove one of the two",
        );
    }
    let added = context.capabilities.as_ref().and_then(|it| it.add.as_deref()).unwrap_or_default();
    if added.iter().any(|name| name == "CAP_SYS_ADMIN") {
        found.add(
            path,
            Reason::FieldValueInvalid,
            "`allowPrivilegeEscalation: false` and the capability CAP_SYS_ADMIN exclude each other",
            "remove one of the two",
        );
    }
}

/// A pod with users of its own cannot share the host's namespaces.
pub(super) fn host_users(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    if spec.host_users != Some(false) {
        return;
    }
    for (reported, real, given) in [
        ("hostNetwork", "hostNetwork", spec.host_network),
        ("HostPID", "hostPID", spec.host_pid),
        ("HostIPC", "hostIPC", spec.host_ipc),
    ] {
        if given == Some(true) {
            found.add_as(
                path.field(reported).to_string(),
                &path.field(real),
                Reason::FieldValueForbidden,
                format!("may not be true when `hostUsers` is false ({real})"),
                format!("remove `{real}`, or `hostUsers`"),
            );
        }
    }
    container::each(spec, path, |container, path| {
        if container.volume_devices.as_ref().is_some_and(|it| !it.is_empty()) {
            let message = "block devices may not be used when `hostUsers` is false";
            found.forbidden(&path.field("volumeDevices"), message, "remove them, or `hostUsers`");
        }
    });
}

/// Annotations that have a meaning of their own.
pub(super) fn annotations(pod: &Pod, spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(annotations) = &pod.metadata.annotations else {
        return;
    };
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let names: BTreeSet<&str> =
        containers.map(|it| it.name.as_str()).chain(ephemeral.map(|it| it.name.as_str())).collect();
    if let Some(mirror) = annotations.get(MIRROR)
        && spec.node_name.as_deref().unwrap_or_default().is_empty()
    {
        found.invalid(&path.key(MIRROR), mirror, "needs spec.nodeName", "remove it: only a kubelet writes this");
    }
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    if let Some(cost) = annotations.get(COST) {
        let plain = !cost.starts_with('+') && (cost == "0" || !cost.starts_with('0'));
        if !plain || cost.parse::<i32>().is_err() {
            found.invalid(&path.key(COST), cost, "must be a 32-bit integer", "for example \"100\", or remove it");
        }
    }
    for (key, value) in annotations {
        if key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER) {
            let known = matches!(value.as_str(), "runtime/default" | "docker/default" | "unconfined");
            let own = path.field(key);
            match value.strip_prefix("localhost/") {
                Some(file) => volumes::descending_path(file, &own, found),
                None if known => {}
                None => {
                    let fix = "remove it, and set `securityContext.seccompProfile`";
                    found.invalid(&own, value, "is no seccomp profile", fix);
                }
            }
        }
        if let Some(name) = key.strip_prefix(APPARMOR) {
            if !names.contains(name) {
                let fix =
                    near_or(name, names.iter().copied(), || "remove it, or name a container of the pod".to_owned());
                found.invalid(&path.key(key), &name, "is no container of this pod", fix);
            }
            let known = matches!(value.as_str(), "" | "runtime/default" | "unconfined");
            if !known && !value.starts_with("localhost/") {
                found.invalid(&path.key(key), value, "is no AppArmor profile", "use `unconfined`, or remove it");
            }
        }
    }
    if let Some(text) = annotations.get(TOLERATIONS).filter(|text| !text.is_empty()) {
        match go_json::tolerations(text) {
            Some(list) => scheduling::tolerations(&list, &path.field(TOLERATIONS), found),
            None => {
                let message = format!("{text:?} is no JSON list of tolerations");
                let fix = "remove it, and use `spec.tolerations`";
                found.add_as(path.to_string(), &path.key(TOLERATIONS), Reason::FieldValueInvalid, message, fix);
            }
        }
    }
}

/// Where both an old annotation and its field are given, they must agree.
pub(super) fn annotations_match(pod: &Pod, spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(annotations) = &pod.metadata.annotations else {
        return;
    };
    let context = spec.security_context.as_ref();
    if let (Some(profile), Some(text)) =
        (context.and_then(|it| it.seccomp_profile.as_ref()), annotations.get(SECCOMP_POD))
    {
        let path = path.field("securityContext");
        profile_matches(
            &profile.type_,
            profile.localhost_profile.as_deref(),
            text,
            &path.field("seccompProfile"),
            found,
        );
    }
    let on_windows = spec.os.as_ref().is_some_and(|os| os.name == "windows");
    container::each(spec, path, |container, path| {
        let path = path.field("securityContext");
        let own = container.security_context.as_ref();
        let text = annotations.get(&format!("{SECCOMP_CONTAINER}{}", container.name));
        if let (Some(profile), Some(text)) = (own.and_then(|it| it.seccomp_profile.as_ref()), text) {
            profile_matches(
                &profile.type_,
                profile.localhost_profile.as_deref(),
                text,
                &path.field("seccompProfile"),
                found,
            );
        }
        let text = annotations.get(&format!("{APPARMOR}{}", container.name));
        let profile = own
            .and_then(|it| it.app_armor_profile.as_ref())
            .or_else(|| context.and_then(|it| it.app_armor_profile.as_ref()));
        if let (Some(profile), Some(text), false) = (profile, text, on_windows) {
            profile_matches(
                &profile.type_,
                profile.localhost_profile.as_deref(),
                text,
                &path.field("appArmorProfile"),
                found,
            );
            // Docker's name for the default is one of seccomp alone.
            if profile.type_ == "RuntimeDefault" && text == "docker/default" {
                found.forbidden(&path.field("appArmorProfile").field("type"), DISAGREES, FIELD);
            }
        }
    });
}

const FIELD: &str = "remove the annotation: this field took its place";
const DISAGREES: &str = "the annotation says something else";

fn profile_matches(type_: &str, name: Option<&str>, annotation: &str, path: &Path<'_>, found: &mut Findings<'_>) {
    let file = annotation.strip_prefix("localhost/");
    let agrees = match type_ {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => matches!(annotation, "runtime/default" | "docker/default"),
        "Localhost" => file.is_some(),
        _ => true,
    };
    if !agrees {
        found.forbidden(&path.field("type"), DISAGREES, FIELD);
    } else if type_ == "Localhost" && file != name {
        found.forbidden(&path.field("localhostProfile"), DISAGREES, FIELD);
    }
}
