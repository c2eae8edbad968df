//! Volumes whose content is written here: config maps, secrets, the downward API; and paths.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume};

use crate::findings::Findings;
use crate::path::Path;
use crate::problem::Reason;
use crate::validation::environment::{object_field, resource_field};

const STRAIGHT: &str = "name the place directly, without steps up";

/// A path without `..`.
pub(in crate::validation) fn no_steps_back(text: &str, path: &Path<'_>, found: &mut Findings<'_>) {
    if text.split('/').any(|part| part == "..") {
        found.invalid(path, &text, "may not contain `..`", STRAIGHT);
    }
}

/// A relative path without `..`.
pub(in crate::validation) fn descending_path(text: &str, path: &Path<'_>, found: &mut Findings<'_>) {
    descending_path_as(text, &path.to_string(), path, found);
}

/// As [`descending_path`], reported under another path.
pub(in crate::validation) fn descending_path_as(text: &str, reported: &str, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut add = |message: &str, fix: &str| {
        found.add_as(reported.to_owned(), path, Reason::FieldValueInvalid, format!("{text:?} {message}"), fix);
    };
    if text.starts_with('/') {
        add("must be a relative path", "remove the `/` at its beginning");
    }
    if text.split('/').any(|part| part == "..") {
        add("may not contain `..`", STRAIGHT);
    }
}

/// A relative path that neither contains nor begins with `..`.
pub(super) fn local_path(text: &str, path: &Path<'_>, found: &mut Findings<'_>) {
    descending_path(text, path, found);
    if text.starts_with("..") && !text.starts_with("../") {
        found.invalid(path, &text, "may not begin with `..`", "such names are kept for updates; choose another");
    }
}

pub(super) fn mode(mode: Option<i32>, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(mode) = mode
        && !(0..=0o777).contains(&mode)
    {
        // Who forgot the zero meant these digits.
        let digits = mode.to_string();
        let octal = digits.len() <= 3 && digits.bytes().all(|digit| (b'0'..b'8').contains(&digit));
        let fix = if octal { format!("write 0{digits} for octal digits") } else { "for example 0644".to_owned() };
        found.invalid(path, &mode, "must be between 0 and 0777 (octal)", fix);
    }
}

pub(super) fn items(items: Option<&[KeyToPath]>, path: &Path<'_>, found: &mut Findings<'_>) {
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let path = path.field("items");
        let path = path.index(index);
        if item.key.is_empty() {
            found.required(&path.field("key"), "a key is required", "key: app.conf");
        }
        if item.path.is_empty() {
            found.required(&path.field("path"), "a path is required", "path: app.conf");
        }
        local_path(&item.path, &path.field("path"), found);
        mode(item.mode, &path.field("mode"), found);
    }
}

pub(super) fn secret(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(source) = &volume.secret else { return };
    let path = path.field("secret");
    if source.secret_name.as_deref().unwrap_or_default().is_empty() {
        found.required(&path.field("secretName"), "a secretName is required", "secretName: keys");
    }
    mode(source.default_mode, &path.field("defaultMode"), found);
    items(source.items.as_deref(), &path, found);
}

pub(super) fn config_map(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(source) = &volume.config_map else {
        return;
    };
    let path = path.field("configMap");
    if source.name.is_empty() {
        found.required(&path.field("name"), "a name is required", "name: settings");
    }
    mode(source.default_mode, &path.field("defaultMode"), found);
    items(source.items.as_deref(), &path, found);
}

pub(super) fn downward_api(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(source) = &volume.downward_api else {
        return;
    };
    let path = path.field("downwardAPI");
    mode(source.default_mode, &path.field("defaultMode"), found);
    downward_items(source.items.as_deref(), &path, found);
}

/// The API server reports these without `items[n]`.
pub(super) fn downward_items(items: Option<&[DownwardAPIVolumeFile]>, path: &Path<'_>, found: &mut Findings<'_>) {
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let before = found.len();
        let own = path.field("items");
        let own = own.index(index);
        downward_item(item, &own, found);
        let (long, short) = (own.to_string(), path.to_string());
        for finding in found.list.iter_mut().skip(before) {
            if let Some(rest) = finding.field.strip_prefix(&long) {
                finding.field = format!("{short}{rest}");
            }
        }
    }
}

fn downward_item(item: &DownwardAPIVolumeFile, path: &Path<'_>, found: &mut Findings<'_>) {
    const FIELDS: [&str; 5] =
        ["metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations", "metadata.uid"];
    if item.path.is_empty() {
        found.required(&path.field("path"), "a path is required", "path: labels");
    }
    local_path(&item.path, &path.field("path"), found);
    match (&item.field_ref, &item.resource_field_ref) {
        (Some(field), other) => {
            object_field(field, &FIELDS, &path.field("fieldRef"), found);
            if other.is_some() {
                let fix = "remove one of the two, or make two items of it";
                found.add(path, Reason::FieldValueInvalid, "has either fieldRef or resourceFieldRef", fix);
            }
        }
        (None, Some(field)) => {
            resource_field(field, true, &path.field("resourceFieldRef"), found);
        }
        (None, None) => {
            let example = "fieldRef: {fieldPath: metadata.labels}";
            found.required(path, "needs fieldRef or resourceFieldRef", example);
        }
    }
    mode(item.mode, &path.field("mode"), found);
}

pub(super) fn git_repo(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(source) = &volume.git_repo else {
        return;
    };
    let path = path.field("gitRepo");
    if source.repository.is_empty() {
        let example = "repository: https://git.example.com/site.git";
        found.required(&path.field("repository"), "a repository is required", example);
    }
    descending_path(source.directory.as_deref().unwrap_or_default(), &path.field("directory"), found);
}
