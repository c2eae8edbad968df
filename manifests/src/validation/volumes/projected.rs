//! Projected volumes: several sources in one directory.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{KeyToPath, ServiceAccountTokenProjection, Volume, VolumeProjection};

use super::files::{downward_items, items, local_path, mode};
use crate::findings::Findings;
use crate::path::Path;
use crate::problem::Reason;

pub(super) fn projected(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(source) = &volume.projected else {
        return;
    };
    let path = path.field("projected");
    mode(source.default_mode, &path.field("defaultMode"), found);
    let mut paths = BTreeSet::new();
    for (index, source) in source.sources.iter().flatten().enumerate() {
        one(source, &path.field("sources").index(index), &path, &mut paths, found);
    }
}

/// Two sources may not write the same file; reported for the whole volume.
fn take<'a>(file: &'a str, paths: &mut BTreeSet<&'a str>, whole: &Path<'_>, own: &Path<'_>, found: &mut Findings<'_>) {
    if !paths.insert(file) {
        let message = format!("the path {file:?} is there twice");
        let fix = "give one of the two another `path`, or remove it";
        found.add_as(whole.to_string(), own, Reason::FieldValueInvalid, message, fix);
    }
}

fn take_items<'a>(
    list: Option<&'a [KeyToPath]>,
    paths: &mut BTreeSet<&'a str>,
    whole: &Path<'_>,
    own: &Path<'_>,
    found: &mut Findings<'_>,
) {
    for item in list.unwrap_or_default() {
        if !item.path.is_empty() {
            take(&item.path, paths, whole, own, found);
        }
    }
}

fn one<'a>(
    source: &'a VolumeProjection,
    path: &Path<'_>,
    whole: &Path<'_>,
    paths: &mut BTreeSet<&'a str>,
    found: &mut Findings<'_>,
) {
    let mut sources = 0;
    if let Some(secret) = &source.secret {
        sources += 1;
        let own = path.field("secret");
        if secret.name.is_empty() {
            found.required(&own.field("name"), "a name is required", "name: keys");
        }
        items(secret.items.as_deref(), &own, found);
        take_items(secret.items.as_deref(), paths, whole, &own, found);
    }
    if let Some(map) = &source.config_map {
        sources += 1;
        let own = path.field("configMap");
        if map.name.is_empty() {
            found.required(&own.field("name"), "a name is required", "name: settings");
        }
        items(map.items.as_deref(), &own, found);
        take_items(map.items.as_deref(), paths, whole, &own, found);
    }
    if let Some(fields) = &source.downward_api {
        sources += 1;
        let own = path.field("downwardAPI");
        downward_items(fields.items.as_deref(), &own, found);
        for item in fields.items.iter().flatten() {
            if !item.path.is_empty() {
                take(&item.path, paths, whole, &own, found);
            }
        }
    }
    if let Some(token) = &source.service_account_token {
        sources += 1;
        service_account_token(token, &path.field("serviceAccountToken"), whole, found);
    }
    // Neither is supported by any gate that is on, nor by this version: see `support`.
    sources += usize::from(source.cluster_trust_bundle.is_some());
    sources += usize::from(source.pod_certificate.is_some());
    if sources > 1 {
        found.forbidden(path, "a source has only one kind", "make each kind an item of `sources`");
    }
}

fn service_account_token(
    token: &ServiceAccountTokenProjection,
    path: &Path<'_>,
    whole: &Path<'_>,
    found: &mut Findings<'_>,
) {
    let seconds = token.expiration_seconds.unwrap_or(3600);
    let own = path.field("expirationSeconds");
    if seconds < 600 {
        found.invalid(&own, &seconds, "is less than 10 minutes", "remove it for the default, 3600");
    }
    if seconds > 1 << 32 {
        found.invalid(&own, &seconds, "is more than 2^32 seconds", "remove it for the default, 3600");
    }
    // The API server reports the path for the whole volume.
    let before = found.len();
    let own = path.field("path");
    if token.path.is_empty() {
        found.required(&own, "a path is required", "path: token");
    } else {
        local_path(&token.path, &own, found);
    }
    for finding in found.list.iter_mut().skip(before) {
        finding.field = whole.field("path").to_string();
    }
}
