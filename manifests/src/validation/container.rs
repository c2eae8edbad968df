//! Containers and init containers.

use std::collections::BTreeSet;

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
    pub(super) claims: &'a BTreeSet<&'a str>,
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
        found.required(path, "a pod needs at least one container");
        return;
    }
    let mut names = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        common(container, scope, &path, found);
        if !names.insert(container.name.as_str()) {
            found.duplicate(&path.field("name"), &container.name);
        }
        probes::lifecycle(container, scope, &path, found);
        probes::probes(container, scope, &path, found);
        restart_policy(container, &path, found);
        restart_rules(container, &path, found);
    }
    ports::host_port_conflicts(containers, path, found);
}

pub(super) fn init_containers(spec: &PodSpec, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut names: BTreeSet<&str> = spec.containers.iter().map(|container| container.name.as_str()).collect();
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        let own = path.index(index);
        common(container, scope, &own, found);
        if names.contains(container.name.as_str()) {
            found.duplicate(&own.field("name"), &container.name);
        } else if !container.name.is_empty() {
            names.insert(&container.name);
        }
        restart_policy(container, &own, found);
        // Without a policy the server does not look at the rules.
        if container.restart_policy.is_some() {
            restart_rules(container, &own, found);
        }
        ports::host_port_conflicts(std::slice::from_ref(container), path, found);
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
                    found.forbidden(&own.field(field), WHY);
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
                    );
                }
            }
        }
    }
}

/// Ephemeral containers; a manifest cannot have them at all, and their own faults are named too.
pub(super) fn ephemeral_containers(spec: &PodSpec, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    const WHY: &str = "an ephemeral container may not have this";
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let others: BTreeSet<&str> = containers.map(|container| container.name.as_str()).collect();
    let mut names = others.clone();
    for (index, ephemeral) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let path = path.index(index);
        let container = defaults::as_container(ephemeral);
        common(&container, scope, &path, found);
        images::padded(&container, &path, found);
        if !names.insert(&ephemeral.name) {
            found.duplicate(&path.field("name"), &ephemeral.name);
        }
        if let Some(target) = given(ephemeral.target_container_name.as_ref())
            && !others.contains(target)
        {
            found.not_found(&path.field("targetContainerName"), &target, "is no container of this pod");
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
                found.forbidden(&path.field(field), WHY);
            }
        }
        for (at, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let path = path.field("volumeMounts");
            let path = path.index(at);
            for (field, text) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
                if given(text.as_ref()).is_some() {
                    found.forbidden(&path.field(field), WHY);
                }
            }
        }
    }
}

fn common(container: &Container, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    if container.name.is_empty() {
        found.required(&path.field("name"), "a container needs a name");
    } else {
        label(&container.name, &path.field("name"), found);
    }
    if given(container.image.as_ref()).is_none() {
        found.required(&path.field("image"), "a container needs an image");
    }
    choice(
        container.termination_message_policy.as_deref(),
        &["File", "FallbackToLogsOnError"],
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
        &path.field("imagePullPolicy"),
        found,
    );
    resources::of_container(container, scope, &path.field("resources"), found);
    resize_policy(container, scope, &path.field("resizePolicy"), found);
    security::container(container, scope, &path.field("securityContext"), found);
}

fn resize_policy(container: &Container, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut seen = BTreeSet::new();
    for (index, policy) in container.resize_policy.iter().flatten().enumerate() {
        if !seen.insert(policy.resource_name.as_str()) {
            found.duplicate(&path.index(index), &policy.resource_name);
        }
        match policy.resource_name.as_str() {
            "" => found.required(path, "a resourceName is required"),
            name => choice(Some(name), &["cpu", "memory"], path, found),
        }
        match policy.restart_policy.as_str() {
            "" => found.required(path, "a restartPolicy is required"),
            name => choice(Some(name), &["NotRequired", "RestartContainer"], path, found),
        }
        if scope.restart_policy == "Never" && policy.restart_policy != "NotRequired" {
            found.invalid(path, &policy.restart_policy, "must be NotRequired when the pod's restartPolicy is Never");
        }
    }
}

/// A container's own restart policy.
fn restart_policy(container: &Container, path: &Path<'_>, found: &mut Findings<'_>) {
    let own = path.field("restartPolicy");
    let ruled = container.restart_policy_rules.as_ref().is_some_and(|rules| !rules.is_empty());
    match &container.restart_policy {
        Some(policy) => choice(Some(policy), &["Always", "OnFailure", "Never"], &own, found),
        None if ruled => found.required(&own, "must be set when `restartPolicyRules` is"),
        None => {}
    }
}

/// A container's rules for restarts by exit code.
fn restart_rules(container: &Container, path: &Path<'_>, found: &mut Findings<'_>) {
    const RULES: usize = 20;
    let rules = container.restart_policy_rules.as_deref().unwrap_or_default();
    let path = path.field("restartPolicyRules");
    if rules.len() > RULES {
        found.add(&path, Reason::FieldValueTooMany, format!("there may be at most {RULES} rules"));
    }
    for (index, rule) in rules.iter().enumerate() {
        restart_rule(rule, &path.index(index), found);
    }
}

fn restart_rule(rule: &ContainerRestartRule, path: &Path<'_>, found: &mut Findings<'_>) {
    const VALUES: usize = 255;
    choice(Some(&rule.action), &["Restart", "RestartAllContainers"], &path.field("action"), found);
    let path = path.field("exitCodes");
    let Some(codes) = &rule.exit_codes else {
        found.required(&path, "must be specified");
        return;
    };
    choice(Some(&codes.operator), &["In", "NotIn"], &path.field("operator"), found);
    let values = codes.values.as_deref().unwrap_or_default();
    if values.len() > VALUES {
        found.add(
            &path.field("values"),
            Reason::FieldValueTooMany,
            format!("there may be at most {VALUES} exit codes"),
        );
    }
}
