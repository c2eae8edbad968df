//! A pod, from its metadata down to its containers.

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::container::{self, Scope};
use super::metadata::{check, label};
use super::{environment, given, hosts, images, metadata, names, resources, scheduling, security, volumes, windows};
use crate::findings::Findings;
use crate::path::Path;

/// Validates a pod.
pub(crate) fn pod(pod: &Pod, found: &mut Findings<'_>) {
    let root = Path::ROOT;
    let meta_path = root.field("metadata");
    metadata::metadata(&pod.metadata, &meta_path, found);
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    security::annotations(pod, spec, &meta_path.field("annotations"), found);
    let spec_path = root.field("spec");
    self::spec(spec, &pod.metadata, &spec_path, found);
    only_for_pods(spec, &spec_path, found);
    security::annotations_match(pod, spec, &spec_path, found);
}

fn spec(spec: &PodSpec, meta: &ObjectMeta, path: &Path<'_>, found: &mut Findings<'_>) {
    let pod_name = meta.name.as_deref().unwrap_or_default();
    let listed = volumes::volumes(spec.volumes.as_deref().unwrap_or_default(), pod_name, &path.field("volumes"), found);
    let is_mirror = meta.annotations.as_ref().is_some_and(|it| it.contains_key(security::MIRROR));
    let claims = resources::claims(
        spec.resource_claims.as_deref().unwrap_or_default(),
        is_mirror,
        &path.field("resourceClaims"),
        found,
    );
    let scope = Scope {
        volumes: &listed,
        claims: &claims,
        grace: spec.termination_grace_period_seconds.unwrap_or(30),
        restart_policy: spec.restart_policy.as_deref().unwrap_or_default(),
        host_users: spec.host_users != Some(false),
    };
    container::containers(&spec.containers, &scope, &path.field("containers"), found);
    container::init_containers(spec, &scope, &path.field("initContainers"), found);
    container::ephemeral_containers(spec, &scope, &path.field("ephemeralContainers"), found);
    resources::of_pod(spec, &claims, &path.field("resources"), found);
    host_network_ports(spec, path, found);
    policies(spec, path, found);
    metadata::labels(spec.node_selector.as_ref(), &path.field("nodeSelector"), found);
    security::pod(spec, path, found);
    scheduling::affinity(spec.affinity.as_ref(), &path.field("affinity"), found);
    hosts::dns(spec, &path.field("dnsConfig"), found);
    for (index, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        check(
            &gate.condition_type,
            names::qualified,
            &path.field("readinessGates").index(index).field("conditionType"),
            found,
        );
    }
    scheduling::gates(spec, path, found);
    scheduling::spread(
        spec.topology_spread_constraints.as_deref().unwrap_or_default(),
        &path.field("topologySpreadConstraints"),
        found,
    );
    windows::host_process(spec, path, found);
    security::host_users(spec, path, found);
    simple_names(spec, path, found);
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let fix = "remove it, and the pod has no deadline";
        found.invalid(&path.field("activeDeadlineSeconds"), &seconds, "must be between 1 and 2147483647", fix);
    }
    scheduling::tolerations(spec.tolerations.as_deref().unwrap_or_default(), &path.field("tolerations"), found);
    hosts::aliases(spec.host_aliases.as_deref().unwrap_or_default(), &path.field("hostAliases"), found);
    resources::overhead(spec.overhead.as_ref(), &path.field("overhead"), found);
    windows::os(spec, path, found);
    environment::file_volumes(spec, path, found);
}

fn simple_names(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    for (field, name) in [
        ("serviceAccountName", &spec.service_account_name),
        ("nodeName", &spec.node_name),
        ("priorityClassName", &spec.priority_class_name),
    ] {
        if let Some(name) = given(name.as_ref()) {
            check(name, names::subdomain, &path.field(field), found);
        }
    }
    if let Some(name) = &spec.runtime_class_name {
        check(name, names::subdomain, &path.field("runtimeClassName"), found);
    }
    for (field, name) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        if let Some(name) = given(name.as_ref()) {
            label(name, &path.field(field), found);
        }
    }
    hosts::hostname_override(spec, path, found);
}

fn policies(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    const DNS: [&str; 4] = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    const RESTART: [&str; 3] = ["Always", "OnFailure", "Never"];
    choice(
        spec.restart_policy.as_deref(),
        &RESTART,
        "remove it for the default, `Always`",
        &path.field("restartPolicy"),
        found,
    );
    choice(
        spec.dns_policy.as_deref(),
        &DNS,
        "remove it for the default, `ClusterFirst`",
        &path.field("dnsPolicy"),
        found,
    );
    if let Some(policy) = &spec.preemption_policy {
        let path = path.field("preemptionPolicy");
        if policy.is_empty() {
            found.required(&path, "", "preemptionPolicy: Never");
        } else {
            choice(
                Some(policy),
                &["PreemptLowerPriority", "Never"],
                "remove it: no pod is evicted for another",
                &path,
                found,
            );
        }
    }
}

/// A value that must be one of a few; `otherwise` says what to do when it resembles none of them.
pub(super) fn choice(
    value: Option<&str>,
    allowed: &[&str],
    otherwise: &str,
    path: &Path<'_>,
    found: &mut Findings<'_>,
) {
    if let Some(value) = value
        && !allowed.contains(&value)
    {
        found.not_supported(path, value, allowed, otherwise);
    }
}

/// With the host's network a container's port is the host's port.
fn host_network_ports(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    if spec.host_network != Some(true) {
        return;
    }
    let path = path.field("containers");
    for (index, container) in spec.containers.iter().enumerate() {
        for (at, port) in container.ports.iter().flatten().enumerate() {
            let host = port.host_port.unwrap_or(0);
            if host != port.container_port {
                found.invalid(
                    &path.index(index).field("ports").index(at).field("hostPort"),
                    &host,
                    "must match `containerPort` when `hostNetwork` is true",
                    format!("remove it, or set both to {}", port.container_port),
                );
            }
        }
    }
}

/// What holds for pods, but not for the templates of workloads.
fn only_for_pods(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    if given(spec.service_account_name.as_ref()).is_none() {
        volumes::tokens_need_an_account(spec, path, found);
    }
    for (list, containers) in [
        ("containers", spec.containers.as_slice()),
        ("initContainers", spec.init_containers.as_deref().unwrap_or_default()),
    ] {
        for (index, container) in containers.iter().enumerate() {
            images::padded(container, &path.field(list).index(index), found);
        }
    }
    let ephemeral = spec.ephemeral_containers.as_deref().unwrap_or_default();
    if !ephemeral.is_empty() {
        let fix = "remove them, and enter the running container by `portreeve exec`";
        found.forbidden(&path.field("ephemeralContainers"), "a manifest cannot have ephemeral containers", fix);
    }
    let gates = spec.scheduling_gates.as_deref().unwrap_or_default();
    if given(spec.node_name.as_ref()).is_some() && !gates.is_empty() {
        let fix = "remove the schedulingGates";
        found.forbidden(&path.field("nodeName"), "may not be set while there are schedulingGates", fix);
    }
}
