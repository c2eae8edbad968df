//! What one node is told at start: where its state lives and how it introduces itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The settings of a [`crate::Node`]; `cli` fills it from flags, environment and file.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Name of the node object, of `spec.nodeName`, and of the downward API.
    pub node_name: String,
    /// Labels of the node; a pod's `nodeSelector` is matched against them.
    pub labels: BTreeMap<String, String>,
    /// Directory of manifests, read recursively.
    pub manifests_dir: PathBuf,
    /// Whether that directory is watched; otherwise what was desired stays desired, and nothing comes or goes.
    pub manifests_watched: bool,
    /// State that survives a reboot: ledger, events, logs and volumes on disk.
    pub root: PathBuf,
    /// State that ends with a reboot: volumes in memory, probe verdicts.
    pub run: PathBuf,
    /// cgroup below which every pod lives, e.g. `/portreeve`.
    pub cgroup_root: String,
    /// Default `resolv.conf` of pods whose DNS policy follows the node.
    pub resolv_conf: PathBuf,
    /// Pulls that may run at the same time; each registry at work beyond the first may have one more, up to twice as many.
    pub max_concurrent_pulls: usize,
    /// How often the manifest directory is listed although nothing was reported.
    pub source_resync: Duration,
    /// How often the engine is listed although it reported nothing.
    pub relist: Duration,
    /// When images go that nobody needs.
    pub image_collection: ImageCollection,
    /// How many events are kept.
    pub max_events: usize,
    /// Version of the agent, shown in the node object.
    pub version: String,
}

/// When images go that nobody needs; as a kubelet's `imageGC...` settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageCollection {
    /// How full their disk may get before any goes, in percent.
    pub high_percent: u64,
    /// How full it may still be afterwards, in percent.
    pub low_percent: u64,
    /// How long ago an image came, and was last used, that goes.
    pub min_age: Duration,
}

impl Default for ImageCollection {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120) }
    }
}

impl NodeConfig {
    /// Settings for the given places, everything else as the documentation says.
    pub fn new(
        node_name: impl Into<String>,
        manifests_dir: impl Into<PathBuf>,
        root: impl Into<PathBuf>,
        run: impl Into<PathBuf>,
    ) -> Self {
        Self {
            node_name: node_name.into(),
            labels: BTreeMap::new(),
            manifests_dir: manifests_dir.into(),
            manifests_watched: true,
            root: root.into(),
            run: run.into(),
            cgroup_root: "/portreeve".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            max_concurrent_pulls: 4,
            source_resync: Duration::from_secs(30),
            relist: Duration::from_secs(60),
            image_collection: ImageCollection::default(),
            max_events: 1000,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Labels of this node with the well-known ones filled in.
    pub fn node_labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([
            ("kubernetes.io/hostname".to_owned(), self.node_name.clone()),
            ("kubernetes.io/os".to_owned(), "linux".to_owned()),
            ("kubernetes.io/arch".to_owned(), architecture().to_owned()),
        ]);
        labels.extend(self.labels.iter().map(|(k, v)| (k.clone(), v.clone())));
        labels
    }
}

/// The architecture in the words of Go and of image indexes.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
