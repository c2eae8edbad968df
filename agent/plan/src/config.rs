//! ConfigMaps and Secrets as the planner sees them: keys, and a fingerprint of each value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;

use crate::fingerprint::Fingerprint;

/// The ConfigMaps and Secrets that one pod names. One that is not listed is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configs {
    /// By name, in the pod's namespace.
    pub config_maps: BTreeMap<String, Config>,
    /// By name, in the pod's namespace.
    pub secrets: BTreeMap<String, Config>,
    /// When one of them last changed.
    pub changed_at: Option<Timestamp>,
}

impl Configs {
    /// The ConfigMap or Secret of this name, if it exists.
    pub fn get(&self, kind: ConfigKind, name: &str) -> Option<&Config> {
        match kind {
            ConfigKind::ConfigMap => self.config_maps.get(name),
            ConfigKind::Secret => self.secrets.get(name),
        }
    }
}

/// The two kinds of configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfigKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

impl fmt::Display for ConfigKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConfigKind::ConfigMap => "ConfigMap",
            ConfigKind::Secret => "Secret",
        })
    }
}

/// The content of one ConfigMap or Secret. `Debug` prints the keys and never a value.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Config {
    data: BTreeMap<String, Vec<u8>>,
    prints: BTreeMap<String, Fingerprint>,
    /// Keys of `binaryData`: for files alone.
    binary: BTreeSet<String>,
}

impl Config {
    /// Takes a ConfigMap's `data`, or a Secret's.
    pub fn new(data: BTreeMap<String, Vec<u8>>) -> Config {
        let prints = data.iter().map(|(key, value)| (key.clone(), Fingerprint::of(value))).collect();
        Config { data, prints, binary: BTreeSet::new() }
    }

    /// Adds a ConfigMap's `binaryData`: files show it, environments do not.
    ///
    /// Source: kubernetes `kubelet_pods.go` makeEnvironmentVariables, which looks at `Data` alone.
    #[must_use]
    pub fn with_binary(mut self, data: BTreeMap<String, Vec<u8>>) -> Config {
        for (key, value) in data {
            self.prints.insert(key.clone(), Fingerprint::of(&value));
            self.binary.insert(key.clone());
            self.data.insert(key, value);
        }
        self
    }

    /// The values by key, for those who write them into files.
    pub fn data(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.data
    }

    /// The values by key, for those who write them into environments.
    pub fn variables(&self) -> impl Iterator<Item = (&String, &Vec<u8>)> {
        self.data.iter().filter(|(key, _)| !self.binary.contains(*key))
    }

    /// The value of one key, for an environment.
    pub fn variable(&self, key: &str) -> Option<&Vec<u8>> {
        self.data.get(key).filter(|_| !self.binary.contains(key))
    }

    /// The fingerprints of the values, by key.
    pub fn fingerprints(&self) -> &BTreeMap<String, Fingerprint> {
        &self.prints
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.data.keys()).finish()
    }
}
