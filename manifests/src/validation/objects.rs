//! Config maps and secrets.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use crate::findings::Findings;
use crate::path::Path;
use crate::problem::Reason;

use super::{go_json, metadata, names};

/// All keys and values of a config map or secret together.
const MAX_SIZE: usize = 1 << 20;

/// Validates a config map.
pub(crate) fn config_map(map: &ConfigMap, found: &mut Findings<'_>) {
    let root = Path::ROOT;
    let meta_path = root.field("metadata");
    metadata::metadata(&map.metadata, &meta_path, found);
    metadata::generation(&map.metadata, &meta_path, found);
    let mut size = 0;
    for (key, value) in map.data.iter().flatten() {
        let path = root.field("data");
        let path = path.key(key);
        metadata::check(key, names::config_key, &path, found);
        if map.binary_data.as_ref().is_some_and(|data| data.contains_key(key)) {
            found.invalid(&path, key, "is a key of `binaryData` too", "rename or remove one of the two");
        }
        size += value.len();
    }
    for (key, value) in map.binary_data.iter().flatten() {
        let path = root.field("binaryData");
        metadata::check(key, names::config_key, &path.key(key), found);
        size += value.0.len();
    }
    if size > MAX_SIZE {
        found.add_as(
            "[]".to_owned(),
            &root,
            Reason::FieldValueTooLong,
            format!("a ConfigMap holds at most {MAX_SIZE} bytes, this one has {size}"),
            "split it into several, or put large files below a hostPath volume",
        );
    }
}

/// Validates a secret.
pub(crate) fn secret(secret: &Secret, found: &mut Findings<'_>) {
    let root = Path::ROOT;
    let meta_path = root.field("metadata");
    metadata::metadata(&secret.metadata, &meta_path, found);
    metadata::generation(&secret.metadata, &meta_path, found);
    let path = root.field("data");
    let empty = std::collections::BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&empty);
    let mut size = 0;
    for (key, value) in data {
        if let Err(message) = names::config_key(key) {
            invalid(key, &format!("{key:?} {message}"), names::mended(key, names::config_key), found);
        }
        size += value.0.len();
    }
    if size > MAX_SIZE {
        found.too_long(&path, size, MAX_SIZE, "split it into several Secrets");
    }
    let type_ = secret.type_.as_deref().unwrap_or_default();
    let need = |key: &str, found: &mut Findings<'_>| {
        if !data.contains_key(key) {
            lacks(type_, key, &path, found);
        }
    };
    // The content is secret: a message says only where it breaks off.
    let json = |key: &str, found: &mut Findings<'_>| {
        need(key, found);
        if let Some(Err(message)) = data.get(key).map(|value| go_json::object(&value.0)) {
            let fix = match key {
                ".dockercfg" => r#"write `{"HOST": {"auth": "..."}}`, or use the type Opaque"#,
                _ => r#"write `{"auths": {"HOST": {"auth": "..."}}}`, or use the type Opaque"#,
            };
            invalid(key, &message, fix, found);
        }
    };
    match type_ {
        "kubernetes.io/service-account-token" => {
            const KEY: &str = "kubernetes.io/service-account.name";
            let annotations = secret.metadata.annotations.as_ref();
            if annotations.and_then(|annotations| annotations.get(KEY)).is_none_or(String::is_empty) {
                let path = meta_path.field("annotations");
                found.add(
                    &path.key(KEY),
                    Reason::FieldValueRequired,
                    "a service account token needs this annotation",
                    "set it to the account's name, or use the type Opaque",
                );
            }
        }
        "kubernetes.io/dockercfg" => json(".dockercfg", found),
        "kubernetes.io/dockerconfigjson" => json(".dockerconfigjson", found),
        // One of the two may be missing, and either may be empty.
        "kubernetes.io/basic-auth" if !["username", "password"].iter().any(|key| data.contains_key(*key)) => {
            need("username", found);
            need("password", found);
        }
        "kubernetes.io/ssh-auth" if data.get("ssh-privatekey").is_none_or(|key| key.0.is_empty()) => {
            lacks(type_, "ssh-privatekey", &path, found);
        }
        "kubernetes.io/tls" => {
            need("tls.crt", found);
            need("tls.key", found);
        }
        _ => {}
    }
}

/// Adds an error about a key that secrets of a type have.
fn lacks(type_: &str, key: &str, data: &Path<'_>, found: &mut Findings<'_>) {
    let message = format!("a secret of type {type_} needs the key `{key}`");
    let fix = "add it below `stringData` (or `data`, in base64), or use the type Opaque";
    found.add(&data.key(key), Reason::FieldValueRequired, message, fix);
}

/// Adds an error about a key of `data`; it stands where the user wrote it, which may be `stringData`.
fn invalid(key: &str, message: &str, fix: impl Into<String>, found: &mut Findings<'_>) {
    // Looking where it stands takes time for each of a hundred thousand keys.
    if !found.has_room() {
        return;
    }
    let root = Path::ROOT;
    let (data, texts) = (root.field("data"), root.field("stringData"));
    let (reported, text) = (data.key(key), texts.key(key));
    let real = if found.has(&text) { text } else { reported };
    found.add_as(reported.to_string(), &real, Reason::FieldValueInvalid, message, fix);
}
