//! Objects: what a manifest declares, once it is defaulted and validated.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The kinds that this version runs or uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// `v1` `Pod`.
    Pod,
    /// `v1` `ConfigMap`.
    ConfigMap,
    /// `v1` `Secret`.
    Secret,
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: [Self; 3] = [Self::Pod, Self::ConfigMap, Self::Secret];

    /// The kind as a manifest spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text is no kind that this version runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no kind that runs here")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// The identity of an object: kind, namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// The namespace, never empty.
    pub namespace: String,
    /// The name, never empty.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// An object that is defaulted and validated. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A pod.
    Pod(Arc<Pod>),
    /// A config map.
    ConfigMap(Arc<ConfigMap>),
    /// A secret; what its `stringData` said is in `data`.
    Secret(Arc<Secret>),
}

impl Object {
    /// The kind of the object.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Pod(_) => Kind::Pod,
            Self::ConfigMap(_) => Kind::ConfigMap,
            Self::Secret(_) => Kind::Secret,
        }
    }

    /// The object's metadata.
    #[must_use]
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Pod(pod) => &pod.metadata,
            Self::ConfigMap(map) => &map.metadata,
            Self::Secret(secret) => &secret.metadata,
        }
    }

    /// The object's identity.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        let metadata = self.metadata();
        ObjectKey {
            kind: self.kind(),
            namespace: metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }

    /// The object as JSON, with `apiVersion` and `kind`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let value = match self {
            Self::Pod(pod) => serde_json::to_value(&**pod),
            Self::ConfigMap(map) => serde_json::to_value(&**map),
            Self::Secret(secret) => serde_json::to_value(&**secret),
        };
        let mut value = value.unwrap_or(Value::Null);
        drop_empty_names(&mut value);
        value
    }

    /// The object as YAML, as a manifest file may hold it.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        crate::print::to_yaml(&self.to_json())
    }

    /// A hash of the object's meaning, as 64 hex digits: two texts that declare the same object
    /// hash the same, whatever their order of keys, their comments or their spelling.
    ///
    /// SHA-256 of the canonical JSON (sorted keys, no spaces) of the defaulted object.
    #[must_use]
    pub fn content_hash(&self) -> String {
        let mut canonical = String::with_capacity(2048);
        write_canonical(&self.to_json(), &mut canonical);
        hex::encode(Sha256::digest(canonical.as_bytes()))
    }
}

/// A reference without a name is printed without it, as the API server does; whatever else has
/// a name has one that is not empty.
fn drop_empty_names(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("name").is_some_and(|name| name == "") {
                map.remove("name");
            }
            for (field, value) in map.iter_mut() {
                let chosen_keys = matches!(field.as_str(), "labels" | "annotations" | "matchLabels")
                    || matches!(field.as_str(), "nodeSelector" | "data" | "binaryData");
                if !chosen_keys {
                    drop_empty_names(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty_names),
        _ => {}
    }
}

/// Writes JSON with sorted keys, whatever map type `serde_json` was built with.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            out.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}
