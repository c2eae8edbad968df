//! Defaults of a pod.

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, HTTPGetAction, LifecycleHandler, Pod, PodAffinityTerm, PodSpec, Probe, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{image, resources};

type Labels = BTreeMap<String, String>;

fn or(slot: &mut Option<String>, value: &str) {
    slot.get_or_insert_with(|| value.to_owned());
}

/// Fills in a pod.
pub(crate) fn pod(pod: &mut Pod) {
    pod.status = None;
    let annotations = pod.metadata.annotations.clone().unwrap_or_default();
    let spec = pod.spec.get_or_insert_default();
    or(&mut spec.restart_policy, "Always");
    or(&mut spec.dns_policy, "ClusterFirst");
    or(&mut spec.scheduler_name, "default-scheduler");
    spec.enable_service_links.get_or_insert(true);
    spec.security_context.get_or_insert_default();
    let grace = spec.termination_grace_period_seconds.get_or_insert(30);
    if *grace < 0 {
        *grace = 1;
    }
    service_account(spec);
    for volume in spec.volumes.iter_mut().flatten() {
        fill_volume(volume);
    }
    resources::pod(spec);
    let host_network = spec.host_network == Some(true);
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for container in containers {
        fill_container(container, host_network);
    }
    resources::round_up(spec.overhead.as_mut());
    apparmor(spec, &annotations);
}

/// Adds the expressions that `matchLabelKeys` and `mismatchLabelKeys` stand for, over the pod's own labels. The API
/// server stores them, and takes such an object for no new one.
pub(crate) fn select_by_labels(pod: &mut Arc<Pod>) {
    let selects = |spec: &PodSpec| spec.affinity.is_some() || spec.topology_spread_constraints.is_some();
    if pod.spec.as_ref().is_some_and(selects) {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        label_keys(Arc::make_mut(pod).spec.get_or_insert_default(), &labels);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are shown.
fn service_account(spec: &mut PodSpec) {
    let name = spec.service_account_name.clone().or_else(|| spec.service_account.clone());
    spec.service_account_name.clone_from(&name);
    spec.service_account = name;
}

pub(super) fn fill_container(container: &mut Container, host_network: bool) {
    or(&mut container.termination_message_path, "/dev/termination-log");
    or(&mut container.termination_message_policy, "File");
    if container.image_pull_policy.is_none() {
        let image = container.image.as_deref().unwrap_or_default();
        container.image_pull_policy = Some(pull_policy(image));
    }
    for port in container.ports.iter_mut().flatten() {
        or(&mut port.protocol, "TCP");
        if host_network && port.host_port.is_none() && port.container_port != 0 {
            port.host_port = Some(port.container_port);
        }
    }
    for variable in container.env.iter_mut().flatten() {
        let Some(source) = &mut variable.value_from else {
            continue;
        };
        if let Some(field) = &mut source.field_ref {
            or(&mut field.api_version, "v1");
        }
        if let Some(field) = &mut source.resource_field_ref {
            field.divisor.get_or_insert_with(zero);
        }
        if let Some(file) = &mut source.file_key_ref {
            file.optional.get_or_insert(false);
        }
    }
    resources::rounded(container.resources.get_or_insert_default());
    let probes = [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    for probe in probes.into_iter().flatten() {
        fill_probe(probe);
    }
    if let Some(lifecycle) = &mut container.lifecycle {
        for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten() {
            fill_handler(handler);
        }
    }
}

fn zero() -> k8s_openapi::apimachinery::pkg::api::resource::Quantity {
    k8s_openapi::apimachinery::pkg::api::resource::Quantity("0".to_owned())
}

fn pull_policy(image: &str) -> String {
    let policy = if image::is_latest(image) { "Always" } else { "IfNotPresent" };
    policy.to_owned()
}

fn fill_probe(probe: &mut Probe) {
    probe.timeout_seconds.get_or_insert(1);
    probe.period_seconds.get_or_insert(10);
    probe.success_threshold.get_or_insert(1);
    probe.failure_threshold.get_or_insert(3);
    if let Some(http) = &mut probe.http_get {
        fill_http(http);
    }
    if let Some(grpc) = &mut probe.grpc {
        or(&mut grpc.service, "");
    }
}

fn fill_handler(handler: &mut LifecycleHandler) {
    if let Some(http) = &mut handler.http_get {
        fill_http(http);
    }
}

fn fill_http(http: &mut HTTPGetAction) {
    or(&mut http.path, "/");
    or(&mut http.scheme, "HTTP");
}

/// A volume without a source is an emptyDir; modes are 0644.
fn fill_volume(volume: &mut Volume) {
    const MODE: i32 = 0o644;
    let bare = Volume { name: volume.name.clone(), ..Volume::default() };
    if *volume == bare {
        volume.empty_dir = Some(k8s_openapi::api::core::v1::EmptyDirVolumeSource::default());
    }
    if let Some(secret) = &mut volume.secret {
        secret.default_mode.get_or_insert(MODE);
    }
    if let Some(map) = &mut volume.config_map {
        map.default_mode.get_or_insert(MODE);
    }
    if let Some(fields) = &mut volume.downward_api {
        fields.default_mode.get_or_insert(MODE);
        for item in fields.items.iter_mut().flatten() {
            fill_downward_item(item);
        }
    }
    if let Some(projected) = &mut volume.projected {
        projected.default_mode.get_or_insert(MODE);
        for source in projected.sources.iter_mut().flatten() {
            if let Some(token) = &mut source.service_account_token {
                token.expiration_seconds.get_or_insert(3600);
            }
            let fields = source.downward_api.as_mut();
            for item in fields.into_iter().flat_map(|it| it.items.iter_mut().flatten()) {
                fill_downward_item(item);
            }
        }
    }
    if let Some(path) = &mut volume.host_path {
        or(&mut path.type_, "");
    }
    if let Some(source) = &mut volume.image
        && source.pull_policy.is_none()
    {
        let reference = source.reference.as_deref().unwrap_or_default();
        source.pull_policy = Some(pull_policy(reference));
    }
    fill_network_volume(volume);
}

fn fill_downward_item(item: &mut k8s_openapi::api::core::v1::DownwardAPIVolumeFile) {
    if let Some(field) = &mut item.field_ref {
        or(&mut field.api_version, "v1");
    }
    if let Some(field) = &mut item.resource_field_ref {
        field.divisor.get_or_insert_with(zero);
    }
}

fn fill_network_volume(volume: &mut Volume) {
    if let Some(iscsi) = &mut volume.iscsi {
        or(&mut iscsi.iscsi_interface, "default");
    }
    if let Some(rbd) = &mut volume.rbd {
        or(&mut rbd.pool, "rbd");
        or(&mut rbd.user, "admin");
        or(&mut rbd.keyring, "/etc/ceph/keyring");
    }
    if let Some(disk) = &mut volume.azure_disk {
        or(&mut disk.caching_mode, "ReadWrite");
        or(&mut disk.kind, "Shared");
        or(&mut disk.fs_type, "ext4");
        disk.read_only.get_or_insert(false);
    }
    if let Some(scale) = &mut volume.scale_io {
        or(&mut scale.storage_mode, "ThinProvisioned");
        or(&mut scale.fs_type, "xfs");
    }
    if let Some(template) = volume.ephemeral.as_mut().and_then(|it| it.volume_claim_template.as_mut()) {
        template.metadata.get_or_insert_default();
        or(&mut template.spec.volume_mode, "Filesystem");
        if let Some(needs) = &mut template.spec.resources {
            resources::round_up(needs.limits.as_mut());
            resources::round_up(needs.requests.as_mut());
        }
    }
}

const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The old AppArmor annotations fill in the fields, where these are not given.
fn apparmor(spec: &mut PodSpec, annotations: &Labels) {
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return;
    }
    let pod_profile = spec.security_context.as_ref().and_then(|context| context.app_armor_profile.clone());
    let containers = spec.init_containers.iter_mut().flatten().chain(spec.containers.iter_mut());
    for container in containers {
        let key = format!("{APPARMOR}{}", container.name);
        let Some(profile) = annotations.get(&key).and_then(|text| from_annotation(text)) else {
            continue;
        };
        let own = container.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
        if own.is_none() && pod_profile.as_ref() != Some(&profile) {
            let context = container.security_context.get_or_insert_default();
            context.app_armor_profile = Some(profile);
        }
    }
}

fn from_annotation(text: &str) -> Option<AppArmorProfile> {
    let (type_, localhost_profile) = match text {
        "unconfined" => ("Unconfined", None),
        "runtime/default" => ("RuntimeDefault", None),
        _ => {
            // What would be no good profile is left to the rules for annotations.
            let good = |name: &&str| !name.is_empty() && name.trim() == *name && name.len() <= 4095;
            let name = text.strip_prefix("localhost/").filter(good)?;
            ("Localhost", Some(name.to_owned()))
        }
    };
    Some(AppArmorProfile { localhost_profile, type_: type_.to_owned() })
}

fn label_keys(spec: &mut PodSpec, labels: &Labels) {
    for constraint in spec.topology_spread_constraints.iter_mut().flatten() {
        if let (Some(selector), Some(keys)) = (&mut constraint.label_selector, &constraint.match_label_keys) {
            select(selector, keys, "In", labels);
        }
    }
    let Some(affinity) = &mut spec.affinity else {
        return;
    };
    if let Some(pods) = &mut affinity.pod_affinity {
        for term in pods.required_during_scheduling_ignored_during_execution.iter_mut().flatten() {
            fill_term(term, labels);
        }
        for term in pods.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten() {
            fill_term(&mut term.pod_affinity_term, labels);
        }
    }
    if let Some(pods) = &mut affinity.pod_anti_affinity {
        for term in pods.required_during_scheduling_ignored_during_execution.iter_mut().flatten() {
            fill_term(term, labels);
        }
        for term in pods.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten() {
            fill_term(&mut term.pod_affinity_term, labels);
        }
    }
}

fn fill_term(term: &mut PodAffinityTerm, labels: &Labels) {
    let Some(selector) = &mut term.label_selector else {
        return;
    };
    if let Some(keys) = &term.match_label_keys {
        select(selector, keys, "In", labels);
    }
    if let Some(keys) = &term.mismatch_label_keys {
        select(selector, keys, "NotIn", labels);
    }
}

fn select(selector: &mut LabelSelector, keys: &[String], operator: &str, labels: &Labels) {
    for key in keys {
        if let Some(value) = labels.get(key) {
            let requirement = LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.to_owned(),
                values: Some(vec![value.clone()]),
            };
            selector.match_expressions.get_or_insert_default().push(requirement);
        }
    }
}
