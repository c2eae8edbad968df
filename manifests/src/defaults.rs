//! Defaults: what the API server fills in before it validates.
//!
//! Source: Kubernetes `pkg/apis/core/v1/defaults.go` and the pod strategy's `PrepareForCreate`.

mod ephemeral;
mod gates;
mod image;
mod pod;
mod resources;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub(crate) use ephemeral::as_container;
pub(crate) use gates::drop_gated;
pub(crate) use image::is_image_name;
pub(crate) use pod::{pod, select_by_labels};
pub(crate) use resources::{container_limits, container_requests};

/// Puts metadata in order: the same owner twice is one owner.
pub(crate) fn metadata(meta: &mut ObjectMeta) {
    let Some(owners) = &mut meta.owner_references else {
        return;
    };
    let mut kept = Vec::with_capacity(owners.len());
    for owner in owners.drain(..) {
        if !kept.contains(&owner) {
            kept.push(owner);
        }
    }
    *owners = kept;
}

/// Fills in a secret: its type, and `stringData` merged over `data`.
pub(crate) fn secret(secret: &mut Secret) {
    if let Some(text) = secret.string_data.take() {
        let data = secret.data.get_or_insert_default();
        for (key, value) in text {
            data.insert(key, ByteString(value.into_bytes()));
        }
    }
    if secret.data.as_ref().is_some_and(std::collections::BTreeMap::is_empty) {
        secret.data = None;
    }
    secret.type_.get_or_insert_with(|| "Opaque".to_owned());
}
