//! Containers and init containers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, PodSpec, ResourceRequirements};

use super::metadata::label;
use super::pod::choice;
use super::volumes::Volumes;
use super::{environment, given, images, ports, probes, resources, security, storage};
use crate::defaults;
use crate::findings::Findings;
use crate::path::Path;
use crate::problem::Reason;

/// What a container's rules depend on.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    pub(super) volumes: &'a Volumes<'a>,
    pub(super) claims: &'a resources::Claims<'a>,
    pub(super) grace: i64,
    pub(super) restart_policy: &'a str,
    pub(super) host_users: bool,
}

/// Calls `visit` for every container of a pod, of every kind, with its path.
pub(super) fn each(spec: &PodSpec, path: &Path<'_>, mut visit: impl FnMut(&Container, &Path<'_>)) {
    for (list, containers) in [
        ("initContainers", spec.init_containers.as_deref().unwrap_or_default()),
        ("containers", spec.containers.as_slice()),
    ] {
        for (index, container) in containers.iter().enumerate() {
            visit(container, &path.field(list).index(index));
        }
    }
    for (index, ephemeral) in spec.ephemeral_containers.iter().flatten().enumerate() {
        visit(&defaults::as_container(ephemeral), &path.field("ephemeralContainers").index(index));
    }
}

pub(super) fn containers(containers: &[Container], scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    if containers.is_empty() {
        found.required(path, "a pod needs at least one container", "containers: [{name: web, image: nginx}]");
        return;
    }
    let mut names = BTreeMap::new();
    let list = path;
    for (index, container) in containers.iter().enumerate() {
        let path = list.index(index);
        common(container, scope, &path, found);
        let first = *names.entry(container.name.as_str()).or_insert(index);
        if first != index {
            found.duplicate(&path.field("name"), &container.name, &list.index(first).field("name"));
        }
        probes::lifecycle(container, scope, &path, found);
        probes::probes(container, scope, &path, found);
        restart_policy(container, &path, found);
        restart_rules(container, &path, found);
    }
    ports::host_port_conflicts(containers, 0, list, found);
}

pub(super) fn init_containers(spec: &PodSpec, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut names = Names::new();
    add_names("containers", &spec.containers, &mut names);
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        let own = path.index(index);
        common(container, scope, &own, found);
        if let Some(first) = names.get(container.name.as_str()) {
            duplicate(&own, &container.name, *first, found);
        } else if !container.name.is_empty() {
            names.insert(&container.name, ("initContainers", index));
        }
        restart_policy(container, &own, found);
        // Without a policy the server does not look at the rules.
        if container.restart_policy.is_some() {
            restart_rules(container, &own, found);
        }
        ports::host_port_conflicts(std::slice::from_ref(container), index, path, found);
        if container.restart_policy.as_deref() == Some("Always") {
            probes::lifecycle(container, scope, &own, found);
            probes::probes(container, scope, &own, found);
        } else {
            const WHY: &str = "an init container without `restartPolicy: Always` may not have this";
            for (field, given) in [
                ("lifecycle", container.lifecycle.is_some()),
                ("livenessProbe", container.liveness_probe.is_some()),
                ("readinessProbe", container.readiness_probe.is_some()),
                ("startupProbe", container.startup_probe.is_some()),
            ] {
                if given {
                    found.forbidden(&own.field(field), WHY, "remove it, or make a sidecar of it by that policy");
                }
            }
            for (at, policy) in container.resize_policy.iter().flatten().enumerate() {
                if policy.restart_policy == "RestartContainer" {
                    let path = own.field("resizePolicy");
                    let path = path.index(at);
                    found.invalid(
                        &path.field("restartPolicy"),
                        &policy.restart_policy,
                        "may not be set for an init container without `restartPolicy: Always`",
                        "use `NotRequired`, or remove the policy",
                    );
                }
            }
        }
    }
}

/// Ephemeral containers; a manifest cannot have them at all, and their own faults are named too.
pub(super) fn ephemeral_containers(spec: &PodSpec, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    const WHY: &str = "an ephemeral container may not have this";
    let mut others = Names::new();
    add_names("containers", &spec.containers, &mut others);
    add_names("initContainers", spec.init_containers.as_deref().unwrap_or_default(), &mut others);
    let mut names = others.clone();
    for (index, ephemeral) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let path = path.index(index);
        let container = defaults::as_container(ephemeral);
        common(&container, scope, &path, found);
        images::padded(&container, &path, found);
        let own = ("ephemeralContainers", index);
        let first = *names.entry(&ephemeral.name).or_insert(own);
        if first != own {
            duplicate(&path, &ephemeral.name, first, found);
        }
        if let Some(target) = given(ephemeral.target_container_name.as_ref())
            && !others.contains_key(target)
        {
            found.not_found(
                &path.field("targetContainerName"),
                target,
                "is no container of this pod",
                others.keys().copied(),
                "name a container of the pod",
            );
        }
        let unused = ResourceRequirements::default();
        for (field, given) in [
            ("ports", container.ports.is_some()),
            ("resources", container.resources.as_ref().is_some_and(|it| *it != unused)),
            ("resizePolicy", container.resize_policy.is_some()),
            ("restartPolicy", container.restart_policy.is_some()),
            ("restartPolicyRules", container.restart_policy_rules.is_some()),
            ("livenessProbe", container.liveness_probe.is_some()),
            ("readinessProbe", container.readiness_probe.is_some()),
            ("startupProbe", container.startup_probe.is_some()),
            ("lifecycle", container.lifecycle.is_some()),
        ] {
            if given {
                found.forbidden(&path.field(field), WHY, "remove it, or add a container to `spec.containers`");
            }
        }
        for (at, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let path = path.field("volumeMounts");
            let path = path.index(at);
            for (field, text) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
                if given(text.as_ref()).is_some() {
                    found.forbidden(&path.field(field), WHY, "remove it, and mount the whole volume");
                }
            }
        }
    }
}

/// In which list, and where in it, each name stands first.
type Names<'a> = BTreeMap<&'a str, (&'static str, usize)>;

fn add_names<'a>(list: &'static str, containers: &'a [Container], names: &mut Names<'a>) {
    for (index, container) in containers.iter().enumerate() {
        names.entry(&container.name).or_insert((list, index));
    }
}

fn duplicate(path: &Path<'_>, name: &str, (list, index): (&str, usize), found: &mut Findings<'_>) {
    let first = Path::ROOT;
    let first = first.field("spec");
    let first = first.field(list);
    found.duplicate(&path.field("name"), &name, &first.index(index).field("name"));
}

fn common(container: &Container, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    if container.name.is_empty() {
        found.required(&path.field("name"), "a container needs a name", "name: web");
    } else {
        label(&container.name, &path.field("name"), found);
    }
    if given(container.image.as_ref()).is_none() {
        found.required(&path.field("image"), "a container needs an image", "image: docker.io/library/nginx:1.29");
    }
    choice(
        container.termination_message_policy.as_deref(),
        &["File", "FallbackToLogsOnError"],
        "remove it for the default, `File`",
        &path.field("terminationMessagePolicy"),
        found,
    );
    ports::ports(container, &path.field("ports"), found);
    environment::env(container, &path.field("env"), found);
    environment::env_from(container, &path.field("envFrom"), found);
    storage::mounts(container, scope, &path.field("volumeMounts"), found);
    storage::devices(container, scope, &path.field("volumeDevices"), found);
    choice(
        container.image_pull_policy.as_deref(),
        &["Always", "IfNotPresent", "Never"],
        "remove it: the default follows from the image's tag",
        &path.field("imagePullPolicy"),
        found,
    );
    resources::of_container(container, scope, &path.field("resources"), found);
    resize_policy(container, scope, &path.field("resizePolicy"), found);
    security::container(container, scope, &path.field("securityContext"), found);
}

fn resize_policy(container: &Container, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut seen = BTreeMap::new();
    for (index, policy) in container.resize_policy.iter().flatten().enumerate() {
        let first = *seen.entry(policy.resource_name.as_str()).or_insert(index);
        if first != index {
            found.duplicate(&path.index(index), &policy.resource_name, &path.index(first));
        }
        match policy.resource_name.as_str() {
            "" => found.required(path, "a resourceName is required", "resourceName: cpu"),
            name => choice(Some(name), &["cpu", "memory"], "remove the policy", path, found),
        }
        match policy.restart_policy.as_str() {
            "" => found.required(path, "a restartPolicy is required", "restartPolicy: NotRequired"),
            name => choice(Some(name), &["NotRequired", "RestartContainer"], "for example `NotRequired`", path, found),
        }
        if scope.restart_policy == "Never" && policy.restart_policy != "NotRequired" {
            let message = "must be NotRequired when the pod's restartPolicy is Never";
            found.invalid(path, &policy.restart_policy, message, "change it, or remove the policy");
        }
    }
}

/// A container's own restart policy.
fn restart_policy(container: &Container, path: &Path<'_>, found: &mut Findings<'_>) {
    let own = path.field("restartPolicy");
    let ruled = container.restart_policy_rules.as_ref().is_some_and(|rules| !rules.is_empty());
    match &container.restart_policy {
        Some(policy) => {
            let otherwise = "remove it, and the pod's restartPolicy counts";
            choice(Some(policy), &["Always", "OnFailure", "Never"], otherwise, &own, found);
        }
        None if ruled => found.required(&own, "must be set when `restartPolicyRules` is", "restartPolicy: Never"),
        None => {}
    }
}

/// A container's rules for restarts by exit code.
fn restart_rules(container: &Container, path: &Path<'_>, found: &mut Findings<'_>) {
    const RULES: usize = 20;
    let rules = container.restart_policy_rules.as_deref().unwrap_or_default();
    let path = path.field("restartPolicyRules");
    if rules.len() > RULES {
        let fix = format!("remove or join {} of them", rules.len() - RULES);
        found.add(&path, Reason::FieldValueTooMany, format!("there may be at most {RULES} rules"), fix);
    }
    for (index, rule) in rules.iter().enumerate() {
        restart_rule(rule, &path.index(index), found);
    }
}

fn restart_rule(rule: &ContainerRestartRule, path: &Path<'_>, found: &mut Findings<'_>) {
    const VALUES: usize = 255;
    let actions = ["Restart", "RestartAllContainers"];
    choice(Some(&rule.action), &actions, "for example `Restart`", &path.field("action"), found);
    let path = path.field("exitCodes");
    let Some(codes) = &rule.exit_codes else {
        found.required(&path, "must be specified", "exitCodes: {operator: In, values: [42]}");
        return;
    };
    choice(Some(&codes.operator), &["In", "NotIn"], "for example `In`", &path.field("operator"), found);
    let values = codes.values.as_deref().unwrap_or_default();
    if values.len() > VALUES {
        found.add(
            &path.field("values"),
            Reason::FieldValueTooMany,
            format!("there may be at most {VALUES} exit codes"),
            format!("remove {} of them, or use the other operator", values.len() - VALUES),
        );
    }
}
