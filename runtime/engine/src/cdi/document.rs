//! A specification as it is written. Source: CDI, specs-go/config.go.
//!
//! Unknown fields are refused, as by the reference implementation: one that is left out could be what makes a device safe
//! to use.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer};

/// A whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) cdi_version: String,
    pub(super) kind: String,
    /// Words of the vendor's: nothing is done with them.
    #[serde(default, deserialize_with = "or_nothing")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_nothing")]
    pub(super) devices: Vec<Device>,
    #[serde(default, deserialize_with = "or_nothing")]
    pub(super) container_edits: ContainerEdits,
}

/// A device of the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    /// A number is a name, too.
    #[serde(deserialize_with = "text")]
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_nothing")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_nothing")]
    pub(super) container_edits: ContainerEdits,
}

/// What is changed for a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ContainerEdits {
    #[serde(deserialize_with = "or_nothing")]
    pub(super) env: Vec<String>,
    #[serde(deserialize_with = "or_nothing")]
    pub(super) device_nodes: Vec<DeviceNode>,
    #[serde(deserialize_with = "or_nothing")]
    pub(super) net_devices: Vec<NetDevice>,
    #[serde(deserialize_with = "or_nothing")]
    pub(super) hooks: Vec<Hook>,
    #[serde(deserialize_with = "or_nothing")]
    pub(super) mounts: Vec<Mount>,
    pub(super) intel_rdt: Option<IntelRdt>,
    #[serde(deserialize_with = "or_nothing")]
    pub(super) additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DeviceNode {
    pub(super) path: PathBuf,
    pub(super) host_path: PathBuf,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) major: i64,
    pub(super) minor: i64,
    #[serde(deserialize_with = "mode")]
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// A link of the node's network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NetDevice {
    pub(super) host_interface_name: String,
    pub(super) name: String,
}

/// A mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    #[serde(deserialize_with = "or_nothing")]
    pub(super) options: Vec<String>,
    #[serde(rename = "type")]
    pub(super) kind: String,
}

/// A program that runs at a point of the container's life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: PathBuf,
    #[serde(deserialize_with = "or_nothing")]
    pub(super) args: Vec<String>,
    #[serde(deserialize_with = "or_nothing")]
    pub(super) env: Vec<String>,
    /// Seconds.
    pub(super) timeout: Option<i64>,
}

/// A share of the processor's cache and of the memory's bandwidth.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct IntelRdt {
    #[serde(rename = "closID")]
    pub(super) clos_id: String,
    pub(super) l3_cache_schema: String,
    pub(super) mem_bw_schema: String,
    pub(super) schemata: Option<Vec<String>>,
    pub(super) enable_monitoring: bool,
    /// Before version 1.1.
    #[serde(rename = "enableCMT")]
    pub(super) enable_cmt: bool,
    /// Before version 1.1.
    #[serde(rename = "enableMBM")]
    pub(super) enable_mbm: bool,
}

/// `null` is as good as nothing.
fn or_nothing<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Number(u64),
}

fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(match Scalar::deserialize(from)? {
        Scalar::Text(text) => text,
        Scalar::Number(number) => number.to_string(),
    })
}

/// A mode of files, which YAML may also have as `0660` and `0o660`.
fn mode<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    let wrong = |unexpected: Unexpected<'_>| D::Error::invalid_value(unexpected, &"the mode of a file, such as 432");
    match Option::<Scalar>::deserialize(from)? {
        None => Ok(None),
        Some(Scalar::Number(number)) => {
            u32::try_from(number).map(Some).map_err(|_| wrong(Unexpected::Unsigned(number)))
        }
        Some(Scalar::Text(text)) => {
            let digits = text.strip_prefix('0').map(|digits| digits.strip_prefix('o').unwrap_or(digits));
            let mode = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok());
            mode.map(Some).ok_or_else(|| wrong(Unexpected::Str(&text)))
        }
    }
}
