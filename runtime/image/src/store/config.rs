//! How a store is set up.

use std::{path::PathBuf, time::Duration};

use crate::{layer::Limits, platform::Platform, window::DownloadWindow};

/// Which layer blobs stay on disk beside the unpacked layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeepBlobs {
    /// None: one copy of everything, also while it is not on the disk for good.
    Never,
    /// Those of loaded images, which no registry has; those of pulled ones until what was unpacked of them is on the disk
    /// for good.
    #[default]
    Loaded,
    /// All that are fetched.
    Always,
}

/// How a store is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// The store's directory.
    pub root: PathBuf,
    /// Registries (`host` or `host:port`) that are spoken to over plain HTTP. Those of this machine
    /// (`localhost`, `127.0.0.0/8`, `::1`) always are.
    pub insecure_registries: Vec<String>,
    /// PEM files with certificate authorities to trust besides those of the system.
    pub ca_files: Vec<PathBuf>,
    /// containerd's directory of registries (`/etc/containerd/certs.d`), which need not be there.
    pub certs_d: Option<PathBuf>,
    /// podman's file of registries (`/etc/containers/registries.conf`), which need not be there.
    pub registries_conf: Option<PathBuf>,
    /// Which images may be used: a file in the syntax of containers-policy.json(5), which must be there. Without one
    /// any may.
    pub trust_policy: Option<PathBuf>,
    /// How long a mirror may take to say what it has before the next host is asked.
    pub mirror_timeout: Duration,
    /// Layers that are downloaded and unpacked at once, over all pulls. When several registries are at
    /// work each has at least one slot, so that there may be more: one for each of them but the first, up to twice as many
    /// in all.
    pub max_concurrent_downloads: usize,
    /// How many of them may be of one registry; `None` for no bound of its own.
    pub max_concurrent_downloads_per_registry: Option<usize>,
    /// Connections by which one large layer may come at once, when it comes slowly by one; at least 1.
    pub connections_per_layer: usize,
    /// Bytes per second that all layers together may have of the network; `None` for no limit.
    pub download_rate_limit: Option<u64>,
    /// When layers may be fetched for pods; `None` for always. What has begun goes on.
    pub download_window: Option<DownloadWindow>,
    /// Directory of image tars that are always loaded, and pinned.
    pub preload_dir: Option<PathBuf>,
    /// What images must have been built for.
    pub platform: Platform,
    /// Which layer blobs stay on disk.
    pub keep_blobs: KeepBlobs,
    /// Whether of zstd:chunked and eStargz layers only the files are fetched that no other layer has. Layers whose blobs
    /// are kept are fetched whole.
    pub partial_pulls: bool,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long a transfer may stand still, or go on with less than 1 KiB per second.
    pub stall_timeout: Duration,
    /// Bounds on one layer.
    pub limits: Limits,
}

impl Config {
    /// The defaults, in `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            insecure_registries: Vec::new(),
            ca_files: Vec::new(),
            certs_d: None,
            registries_conf: None,
            trust_policy: None,
            mirror_timeout: Duration::from_secs(10),
            max_concurrent_downloads: 3,
            max_concurrent_downloads_per_registry: None,
            connections_per_layer: 3,
            download_rate_limit: None,
            download_window: None,
            preload_dir: None,
            platform: Platform::current(),
            keep_blobs: KeepBlobs::default(),
            partial_pulls: false,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            limits: Limits::default(),
        }
    }
}
