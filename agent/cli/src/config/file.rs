//! Reading the keys of the configuration file, so that a fault is found while its place is known.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use portreeve_engine::image::DownloadWindow;

use super::value;

macro_rules! keys {
    ($($name:ident: $type:ty,)*) => {
        $(pub(super) fn $name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<$type>, D::Error> {
            from.deserialize_option(Text(value::$name))
        })*
    };
}

keys! {
    path: PathBuf,
    node_name: String,
    address: SocketAddr,
    cgroup: String,
    link: String,
    subnet: Ipv4Net,
    table: String,
    filter: String,
    age: Duration,
    count: usize,
    bytes: u64,
    window: DownloadWindow,
    patience: Duration,
}

pub(super) fn registries<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    from.deserialize_any(List(value::registry))
}

pub(super) fn paths<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    from.deserialize_any(List(value::path))
}

pub(super) fn labels<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(String, String)>, D::Error> {
    from.deserialize_any(Map(value::label_key, value::label_value))
}

pub(super) fn handlers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(String, PathBuf)>, D::Error> {
    from.deserialize_any(Map(value::handler_name, value::program))
}

/// Every key.
pub(crate) const KEYS: [&str; 41] = [
    "manifests",
    "kubeconfig",
    "inCluster",
    "leaseNamespace",
    "criOnly",
    "cri.network",
    "cri.cniConfDir",
    "cri.cniBinDirs",
    "systemdCgroup",
    "cri.runtimeHandlers",
    "cri.cdiSpecDirs",
    "root",
    "run",
    "nodeName",
    "nodeLabels",
    "listen",
    "socketGroup",
    "cgroupRoot",
    "bridge",
    "podCIDR",
    "nftTable",
    "preload",
    "insecureRegistries",
    "registryCas",
    "registryHosts",
    "registriesConf",
    "registryMirrorTimeout",
    "imagePolicy",
    "keepBlobs",
    "maxConcurrentDownloads",
    "maxConcurrentDownloadsPerRegistry",
    "downloadConnections",
    "downloadRateLimit",
    "downloadWindow",
    "downloadStallTimeout",
    "partialPulls",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "imageMinimumGCAge",
    "logFormat",
    "log",
];

/// A file in which every key is known and there once.
pub(super) struct Keys;

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Keys {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keys with values, as in `root: /var/lib`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut found = BTreeSet::new();
        let known = |found: &BTreeSet<String>, key: &str| match (KEYS.contains(&key), found.contains(key)) {
            (false, _) => Err(format!("is no key; keys are {}", KEYS.join(", "))),
            (true, true) => Err("is there already".to_owned()),
            (true, false) => Ok(key.to_owned()),
        };
        while let Some(key) = map.next_key_seed(Text(|key: &str| known(&found, key)))? {
            map.next_value::<IgnoredAny>()?;
            found.insert(key);
        }
        Ok(self)
    }
}

/// A text that a function reads; nothing where nothing is said.
#[derive(Clone, Copy)]
struct Text<F>(F);

impl<'de, T, F: Fn(&str) -> Result<T, String>> Visitor<'de> for Text<F> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one value")
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        (self.0)(text).map(Some).map_err(|why| E::custom(format!("`{text}` {why}")))
    }
}

impl<'de, T, F: Fn(&str) -> Result<T, String>> DeserializeSeed<'de> for Text<F> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<T, D::Error> {
        from.deserialize_str(self)?.ok_or_else(|| D::Error::custom("a value is missing"))
    }
}

/// A list of texts that a function reads; empty where nothing is said.
struct List<F>(F);

impl<'de, T, F: Fn(&str) -> Result<T, String> + Copy> Visitor<'de> for List<F> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(one) = list.next_element_seed(Text(self.0))? {
            found.push(one);
        }
        Ok(found)
    }
}

/// Values by keys, each key once, which two functions read; none where nothing is said.
struct Map<K, V>(K, V);

impl<'de, T, K, V> Visitor<'de> for Map<K, V>
where
    K: Fn(&str) -> Result<String, String>,
    V: Fn(&str) -> Result<T, String> + Copy,
{
    type Value = Vec<(String, T)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keys with values")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = BTreeMap::new();
        let once = |found: &BTreeMap<String, T>, text: &str| {
            if found.contains_key(text) { Err("is there already".to_owned()) } else { (self.0)(text) }
        };
        while let Some(key) = map.next_key_seed(Text(|text: &str| once(&found, text)))? {
            let value = map.next_value_seed(Text(self.1))?;
            found.insert(key, value);
        }
        Ok(found.into_iter().collect())
    }
}
