//! What an [`Engine`](crate::Engine) is opened with.

use std::path::PathBuf;

use portreeve_network::cni::CniConfig;

/// Where an engine keeps its state and what it calls its kernel objects.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// What survives a reboot, for example `/var/lib/portreeve`.
    pub root: PathBuf,
    /// What a reboot ends: sandboxes and sockets, for example `/run/portreeve`.
    pub run: PathBuf,
    /// The cgroup that everything of ours lies below, for example `/portreeve`.
    pub cgroup_root: String,
    /// Bridge, addresses and rules.
    pub network: portreeve_network::Config,
    /// Which network a kubelet's pods are in.
    pub kubelet_network: KubeletNetwork,
    /// Where networks of plugins are, for these.
    pub plugins: CniConfig,
    /// Whether systemd makes the cgroups of pods whose parent is a slice: such a pod has a scope in it, in which its
    /// containers' cgroups are. [`portreeve_systemd::require`] has said that it can.
    pub systemd_cgroups: bool,
    /// Where specifications of devices are that containers are given by name; see [`cdi`](crate::cdi). Of two that have a
    /// device the later directory's counts.
    pub cdi_directories: Vec<PathBuf>,
    /// Below which directory the files are that say what SELinux this node has, `/`.
    pub selinux_root: PathBuf,
    /// Content store and registries.
    pub images: portreeve_image::Config,
    /// When a container's log file makes room for the next.
    pub log_rotation: LogRotation,
    /// The program whose `main` enters [`shim::main`](crate::shim::main) for the argument `shim`; `None`: this very
    /// executable.
    pub executable: Option<PathBuf>,
}

/// Which network the pods are in that a kubelet asks for. Those of the node itself are in the built-in one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KubeletNetwork {
    /// That of plugins where one is configured, else the built-in one.
    #[default]
    Auto,
    /// The built-in one.
    Builtin,
    /// That of plugins; without one there are no pods.
    Plugins,
}

/// When a container's log file is renamed away, and how many are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRotation {
    /// A file that has grown past this many bytes is rotated.
    pub max_bytes: u64,
    /// How many files are kept, the one being written included; at least 1.
    pub max_files: u32,
}

impl Default for LogRotation {
    /// Five files of 10 MiB.
    fn default() -> Self {
        Self { max_bytes: 10 << 20, max_files: 5 }
    }
}
