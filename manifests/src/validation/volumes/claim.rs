//! Claims: by reference, and the template of an ephemeral volume.

use k8s_openapi::api::core::v1::{PersistentVolumeClaimSpec, PersistentVolumeClaimTemplate, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::findings::Findings;
use crate::path::Path;
use crate::problem::Reason;
use crate::quantity::Amount;
use crate::validation::metadata::{annotations, check, label, labels, selector};
use crate::validation::names;
use crate::validation::pod::choice;

pub(super) fn reference(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let source = volume.persistent_volume_claim.as_ref();
    if source.is_some_and(|claim| claim.claim_name.is_empty()) {
        let path = path.field("persistentVolumeClaim");
        found.required(&path.field("claimName"), "a claimName is required", "claimName: data");
    }
}

pub(super) fn ephemeral(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(source) = &volume.ephemeral else {
        return;
    };
    let path = path.field("ephemeral");
    let path = path.field("volumeClaimTemplate");
    match &source.volume_claim_template {
        None => {
            let fix = "add it with its `spec`, or use an emptyDir volume";
            found.add(&path, Reason::FieldValueRequired, "a volumeClaimTemplate is required", fix);
        }
        Some(template) => claim_template(template, &path, found),
    }
}

fn claim_template(template: &PersistentVolumeClaimTemplate, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(meta) = &template.metadata {
        let path = path.field("metadata");
        annotations(meta.annotations.as_ref(), &path.field("annotations"), found);
        labels(meta.labels.as_ref(), &path.field("labels"), found);
        for (field, given) in other_metadata(meta) {
            if given {
                // The API server spells a name from its Go field.
                let reported = path.field(if field == "uid" { "uID" } else { field }).to_string();
                let fix = "remove it: the claim has it from pod and volume";
                found.add_as(reported, &path.field(field), Reason::FieldValueForbidden, "may not be set here", fix);
            }
        }
    }
    spec(&template.spec, &path.field("spec"), found);
}

fn other_metadata(meta: &ObjectMeta) -> [(&'static str, bool); 13] {
    let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    [
        ("name", text(&meta.name)),
        ("generateName", text(&meta.generate_name)),
        ("namespace", text(&meta.namespace)),
        ("uid", text(&meta.uid)),
        ("resourceVersion", text(&meta.resource_version)),
        ("selfLink", text(&meta.self_link)),
        ("generation", meta.generation.is_some_and(|it| it != 0)),
        ("creationTimestamp", meta.creation_timestamp.is_some()),
        ("deletionTimestamp", meta.deletion_timestamp.is_some()),
        ("deletionGracePeriodSeconds", meta.deletion_grace_period_seconds.is_some()),
        ("ownerReferences", meta.owner_references.as_ref().is_some_and(|it| !it.is_empty())),
        ("finalizers", meta.finalizers.as_ref().is_some_and(|it| !it.is_empty())),
        ("managedFields", meta.managed_fields.as_ref().is_some_and(|it| !it.is_empty())),
    ]
}

fn spec(spec: &PersistentVolumeClaimSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let own = path.field("accessModes");
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if modes.is_empty() {
        let example = "accessModes: [ReadWriteOnce]";
        found.required(&own, "at least one access mode is required", example);
    }
    for mode in modes {
        choice(Some(mode), &MODES, "for example `ReadWriteOnce`", &own, found);
    }
    let known = |mode: &&String| MODES.contains(&mode.as_str());
    let alone = modes.iter().any(|mode| mode == "ReadWriteOncePod");
    if alone && modes.iter().filter(known).any(|mode| mode != "ReadWriteOncePod") {
        found.forbidden(&own, "ReadWriteOncePod goes with no other mode", "remove it, or the other modes");
    }
    selector(spec.selector.as_ref(), &path.field("selector"), found);
    storage(spec, &path.field("resources"), found);
    if let Some(class) = spec.storage_class_name.as_deref().filter(|it| !it.is_empty()) {
        check(class, names::subdomain, &path.field("storageClassName"), found);
    }
    let otherwise = "remove it for the default, `Filesystem`";
    choice(spec.volume_mode.as_deref(), &["Block", "Filesystem"], otherwise, &path.field("volumeMode"), found);
    sources(spec, path, found);
    if let Some(class) = spec.volume_attributes_class_name.as_deref().filter(|it| !it.is_empty()) {
        check(class, names::subdomain, &path.field("volumeAttributesClassName"), found);
    }
}

fn storage(spec: &PersistentVolumeClaimSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    let wanted = spec.resources.as_ref().and_then(|it| it.requests.as_ref()).and_then(|it| it.get("storage"));
    // The API server leaves `requests` out of this path.
    let reported = path.key("storage").to_string();
    let real = path.field("requests");
    let real = real.key("storage");
    match wanted {
        None => {
            let fix = "set it, for example `requests: {storage: 1Gi}`";
            found.add_as(reported, path, Reason::FieldValueRequired, "a request for storage is required", fix);
        }
        Some(size) => {
            let amount = Amount::parse(&size.0).unwrap_or(Amount::ZERO);
            if amount.is_zero() || amount.is_negative() {
                let message = format!("{} must be above zero", size.0);
                found.add_as(reported, &real, Reason::FieldValueInvalid, message, "for example 1Gi");
            }
        }
    }
}

fn sources(spec: &PersistentVolumeClaimSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    let old = spec.data_source.as_ref().map(|it| ("dataSource", it.api_group.as_deref(), &it.kind, &it.name));
    let new = spec.data_source_ref.as_ref().map(|it| ("dataSourceRef", it.api_group.as_deref(), &it.kind, &it.name));
    for (field, group, kind, name) in [old, new].into_iter().flatten() {
        let path = path.field(field);
        if name.is_empty() {
            found.required(&path.field("name"), "a name is required", "name: data");
        }
        if kind.is_empty() {
            found.required(&path.field("kind"), "a kind is required", "kind: PersistentVolumeClaim");
        }
        let group = group.unwrap_or_default();
        if group.is_empty() {
            if kind != "PersistentVolumeClaim" {
                let fix = "add its apiGroup, for example `snapshot.storage.k8s.io`";
                found.invalid(&path, kind, "must be PersistentVolumeClaim without an apiGroup", fix);
            }
        } else {
            check(group, names::subdomain, &path.field("apiGroup"), found);
        }
    }
    let namespace = spec.data_source_ref.as_ref().and_then(|it| it.namespace.as_deref()).filter(|it| !it.is_empty());
    if let Some(namespace) = namespace {
        label(namespace, &path.field("dataSourceRef").field("namespace"), found);
        if spec.data_source.is_some() {
            let message = "dataSource may not be given beside dataSourceRef.namespace";
            found.add(path, Reason::FieldValueInvalid, message, "remove `dataSource`");
        }
    } else if let (Some(old), Some(new)) = (&spec.data_source, &spec.data_source_ref)
        && (old.api_group != new.api_group || old.kind != new.kind || old.name != new.name)
    {
        let message = "dataSource must be the same as dataSourceRef";
        found.add(path, Reason::FieldValueInvalid, message, "remove one of the two");
    }
}
