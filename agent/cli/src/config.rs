//! The agent's configuration: one key per flag; a flag beats the environment beats the file.
//!
//! Agents can run side by side. With a `run` directory other than the default one, every name
//! in the kernel that is not set derives from a hash of that directory's path, so that two
//! agents never meet.

mod file;
mod value;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use portreeve_engine::cdi;
use portreeve_engine::image::DownloadWindow;
use portreeve_node::ImageCollection;
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[cfg(test)]
pub(crate) use file::KEYS;

/// Where sandboxes and sockets live unless told otherwise.
pub(crate) const DEFAULT_RUN: &str = "/run/portreeve";
const DEFAULT_ROOT: &str = "/var/lib/portreeve";
const DEFAULT_MANIFESTS: &str = "/etc/portreeve/manifests";
const DEFAULT_REGISTRY_HOSTS: &str = "/etc/containerd/certs.d";
const DEFAULT_REGISTRIES_CONF: &str = "/etc/containers/registries.conf";
const DEFAULT_LEASE_NAMESPACE: &str = "portreeve-system";
const DEFAULT_LISTEN: &str = "127.0.0.1:9580";

/// What a flag, an environment variable or a key of the file may say; nothing is required.
#[derive(Debug, Default, Clone, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase", expecting = "keys with values, as in `root: /var/lib`")]
pub(crate) struct Settings {
    /// Directory of manifests, watched recursively [default: /etc/portreeve/manifests]
    #[arg(long, value_name = "DIR", env = "PORTREEVE_MANIFESTS")]
    #[serde(deserialize_with = "file::path")]
    pub(crate) manifests: Option<PathBuf>,
    /// Take workloads from a cluster's custom resources too, and report to it: a kubeconfig, with its current context
    #[arg(long, value_name = "FILE", env = "PORTREEVE_KUBECONFIG")]
    #[serde(deserialize_with = "file::path")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The same with the ServiceAccount of the pod that the agent runs in [default: false]
    #[arg(long, value_name = "BOOL", env = "PORTREEVE_IN_CLUSTER", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) in_cluster: Option<bool>,
    /// Namespace of the agents' Leases in that cluster [default: portreeve-system]
    #[arg(long, value_name = "NAMESPACE", env = "PORTREEVE_LEASE_NAMESPACE")]
    pub(crate) lease_namespace: Option<String>,
    /// Read no manifests: pods come from a kubelet alone, over the socket cri.sock of the run directory [default: false]
    #[arg(long, value_name = "BOOL", env = "PORTREEVE_CRI_ONLY", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) cri_only: Option<bool>,
    /// The network of pods that a kubelet asks for: CNI plugins where a network of these is configured (auto), always
    /// (cni), or never (builtin) [default: auto]
    #[arg(long, value_name = "NETWORK", env = "PORTREEVE_CRI_NETWORK")]
    #[serde(rename = "cri.network")]
    pub(crate) cri_network: Option<CriNetwork>,
    /// Directory of the configurations of CNI networks, of which the first counts [default: /etc/cni/net.d]
    #[arg(long = "cri-cni-conf-dir", value_name = "DIR", env = "PORTREEVE_CRI_CNI_CONF_DIR")]
    #[serde(rename = "cri.cniConfDir", deserialize_with = "file::path")]
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// Directory of CNI plugins; may be given again, or several with commas
    /// [default: /opt/cni/bin,/usr/lib/cni,/usr/libexec/cni]
    #[arg(long = "cri-cni-bin-dir", value_name = "DIR", env = "PORTREEVE_CRI_CNI_BIN_DIR", value_delimiter = ',')]
    #[serde(rename = "cri.cniBinDirs", deserialize_with = "file::paths")]
    pub(crate) cni_bin_dirs: Vec<PathBuf>,
    /// Systemd makes the cgroups of pods that a kubelet has in slices, as its cgroupDriver systemd does; needs cgroup v2
    /// [default: false]
    #[arg(
        long = "systemd-cgroup", value_name = "BOOL", env = "PORTREEVE_SYSTEMD_CGROUP", num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub(crate) systemd_cgroup: Option<bool>,
    /// Another OCI runtime for pods whose RuntimeClass has this handler, as name=/path/of/program; may be given again, or
    /// several with commas
    #[arg(
        long = "cri-runtime-handler", value_name = "NAME=PATH", env = "PORTREEVE_CRI_RUNTIME_HANDLER",
        value_delimiter = ',', value_parser = value::handler
    )]
    #[serde(rename = "cri.runtimeHandlers", deserialize_with = "file::handlers")]
    pub(crate) runtime_handlers: Vec<(String, PathBuf)>,
    /// Directory of CDI specifications, by which a kubelet's containers are given devices; may be given again, or several
    /// with commas, of which later ones win [default: /etc/cdi,/var/run/cdi]
    #[arg(long = "cri-cdi-spec-dir", value_name = "DIR", env = "PORTREEVE_CRI_CDI_SPEC_DIR", value_delimiter = ',')]
    #[serde(rename = "cri.cdiSpecDirs", deserialize_with = "file::paths")]
    pub(crate) cdi_spec_dirs: Vec<PathBuf>,
    /// Images, volumes, logs, ledger: what survives a reboot [default: /var/lib/portreeve]
    #[arg(long, value_name = "DIR", env = "PORTREEVE_ROOT")]
    #[serde(deserialize_with = "file::path")]
    pub(crate) root: Option<PathBuf>,
    /// Sandboxes and sockets: what a reboot ends; the flag is shared with the client verbs.
    #[arg(skip)]
    #[serde(deserialize_with = "file::path")]
    pub(crate) run: Option<PathBuf>,
    /// Name of this node [default: the host name]
    #[arg(long, value_name = "NAME", env = "PORTREEVE_NODE_NAME", value_parser = value::node_name)]
    #[serde(deserialize_with = "file::node_name")]
    pub(crate) node_name: Option<String>,
    /// Label of this node, as key=value; may be given again, or several with commas
    #[arg(
        long = "node-label", value_name = "KEY=VALUE", env = "PORTREEVE_NODE_LABEL", value_delimiter = ',',
        value_parser = value::label
    )]
    #[serde(deserialize_with = "file::labels")]
    pub(crate) node_labels: Vec<(String, String)>,
    /// Address of /metrics, /livez and /readyz; port 0 takes a free one [default: 127.0.0.1:9580]
    #[arg(long, value_name = "ADDR", env = "PORTREEVE_LISTEN", value_parser = value::address)]
    #[serde(deserialize_with = "file::address")]
    pub(crate) listen: Option<SocketAddr>,
    /// Group that may use the socket, by name or number [default: root alone]
    #[arg(long, value_name = "GROUP", env = "PORTREEVE_SOCKET_GROUP")]
    pub(crate) socket_group: Option<String>,
    /// cgroup below which everything of ours lives [default: /portreeve]
    #[arg(long, value_name = "PATH", env = "PORTREEVE_CGROUP_ROOT", value_parser = value::cgroup)]
    #[serde(deserialize_with = "file::cgroup")]
    pub(crate) cgroup_root: Option<String>,
    /// Name of the pods' bridge [default: portreeve0]
    #[arg(long, value_name = "NAME", env = "PORTREEVE_BRIDGE", value_parser = value::link)]
    #[serde(deserialize_with = "file::link")]
    pub(crate) bridge: Option<String>,
    /// Addresses of the pods [default: the first free /24 of 10.85.0.0/16]
    #[arg(long = "pod-cidr", value_name = "CIDR", env = "PORTREEVE_POD_CIDR", value_parser = value::subnet)]
    #[serde(rename = "podCIDR", deserialize_with = "file::subnet")]
    pub(crate) pod_cidr: Option<ipnet::Ipv4Net>,
    /// Name of our nftables table [default: portreeve]
    #[arg(long, value_name = "NAME", env = "PORTREEVE_NFT_TABLE", value_parser = value::table)]
    #[serde(deserialize_with = "file::table")]
    pub(crate) nft_table: Option<String>,
    /// Directory of image tars that are loaded at start and never collected
    #[arg(long, value_name = "DIR", env = "PORTREEVE_PRELOAD")]
    #[serde(deserialize_with = "file::path")]
    pub(crate) preload: Option<PathBuf>,
    /// Registry that is spoken to over plain HTTP, as `host` or `host:port`; may be given again, or several with commas
    #[arg(
        long = "insecure-registry", value_name = "HOST", env = "PORTREEVE_INSECURE_REGISTRY", value_delimiter = ',',
        value_parser = value::registry
    )]
    #[serde(deserialize_with = "file::registries")]
    pub(crate) insecure_registries: Vec<String>,
    /// File of PEM certificates that registries are also trusted by; may be given again, or several with commas
    #[arg(long = "registry-ca", value_name = "FILE", env = "PORTREEVE_REGISTRY_CA", value_delimiter = ',')]
    #[serde(deserialize_with = "file::paths")]
    pub(crate) registry_cas: Vec<PathBuf>,
    /// Directory that says as containerd's does where registries and their mirrors are, read anew for each pull
    /// [default: /etc/containerd/certs.d]
    #[arg(long, value_name = "DIR", env = "PORTREEVE_REGISTRY_HOSTS")]
    #[serde(deserialize_with = "file::path")]
    pub(crate) registry_hosts: Option<PathBuf>,
    /// File that says the same as podman's does [default: /etc/containers/registries.conf]
    #[arg(long, value_name = "FILE", env = "PORTREEVE_REGISTRIES_CONF")]
    #[serde(deserialize_with = "file::path")]
    pub(crate) registries_conf: Option<PathBuf>,
    /// File that says which images may be used, as podman's policy.json does, read anew for each decision
    /// [default: any may]
    #[arg(long, value_name = "FILE", env = "PORTREEVE_IMAGE_POLICY")]
    #[serde(deserialize_with = "file::path")]
    pub(crate) image_policy: Option<PathBuf>,
    /// Keep layers of pulled images as they came, beside the unpacked ones, so that `image save` asks no registry
    /// [default: false]
    #[arg(long, value_name = "BOOL", env = "PORTREEVE_KEEP_BLOBS", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) keep_blobs: Option<bool>,
    /// Layers of images that are fetched at once [default: 3]
    #[arg(long, value_name = "COUNT", env = "PORTREEVE_MAX_CONCURRENT_DOWNLOADS", value_parser = value::count)]
    #[serde(deserialize_with = "file::count")]
    pub(crate) max_concurrent_downloads: Option<usize>,
    /// How many of them may come from one registry [default: all]
    #[arg(long, value_name = "COUNT", env = "PORTREEVE_MAX_CONCURRENT_DOWNLOADS_PER_REGISTRY",
        value_parser = value::count)]
    #[serde(deserialize_with = "file::count")]
    pub(crate) max_concurrent_downloads_per_registry: Option<usize>,
    /// Connections by which one large layer comes when one connection is slow [default: 3]
    #[arg(long, value_name = "COUNT", env = "PORTREEVE_DOWNLOAD_CONNECTIONS", value_parser = value::count)]
    #[serde(deserialize_with = "file::count")]
    pub(crate) download_connections: Option<usize>,
    /// Bytes that layers may have of the network in a second, in all, e.g. 10Mi [default: no limit]
    #[arg(long, value_name = "BYTES", env = "PORTREEVE_DOWNLOAD_RATE_LIMIT", value_parser = value::bytes)]
    #[serde(deserialize_with = "file::bytes")]
    pub(crate) download_rate_limit: Option<u64>,
    /// Time of day at which layers are fetched for pods, e.g. 22:00-06:00, by the machine's clock [default: always]
    #[arg(long, value_name = "FROM-TO", env = "PORTREEVE_DOWNLOAD_WINDOW", value_parser = value::window)]
    #[serde(deserialize_with = "file::window")]
    pub(crate) download_window: Option<DownloadWindow>,
    /// How long a mirror may take to say what it has before the next host is asked [default: 10s]
    #[arg(long, value_name = "DURATION", env = "PORTREEVE_REGISTRY_MIRROR_TIMEOUT", value_parser = value::patience)]
    #[serde(deserialize_with = "file::patience")]
    pub(crate) registry_mirror_timeout: Option<Duration>,
    /// After how long a transfer is taken up anew that brings less than 1 KiB per second [default: 60s]
    #[arg(long, value_name = "DURATION", env = "PORTREEVE_DOWNLOAD_STALL_TIMEOUT", value_parser = value::patience)]
    #[serde(deserialize_with = "file::patience")]
    pub(crate) download_stall_timeout: Option<Duration>,
    /// Fetch of zstd:chunked and eStargz layers only the files that no layer here has [default: false]
    #[arg(long, value_name = "BOOL", env = "PORTREEVE_PARTIAL_PULLS", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) partial_pulls: Option<bool>,
    /// How full the disk of the images may get before images go that nobody needs, in percent [default: 85]
    #[arg(long = "image-gc-high-threshold-percent", value_name = "PERCENT", env = "PORTREEVE_IMAGE_GC_HIGH_THRESHOLD_PERCENT",
        value_parser = clap::value_parser!(u8).range(0..=100))]
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub(crate) image_gc_high_threshold_percent: Option<u8>,
    /// How full it may still be afterwards [default: 80]
    #[arg(long = "image-gc-low-threshold-percent", value_name = "PERCENT", env = "PORTREEVE_IMAGE_GC_LOW_THRESHOLD_PERCENT",
        value_parser = clap::value_parser!(u8).range(0..=100))]
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub(crate) image_gc_low_threshold_percent: Option<u8>,
    /// How long ago an image came, and was last used, that goes [default: 2m]
    #[arg(long = "image-minimum-gc-age", value_name = "DURATION", env = "PORTREEVE_IMAGE_MINIMUM_GC_AGE",
        value_parser = value::age)]
    #[serde(rename = "imageMinimumGCAge", deserialize_with = "file::age")]
    pub(crate) image_minimum_gc_age: Option<Duration>,
    /// How lines of the log look [default: text]
    #[arg(long, value_name = "FORMAT", env = "PORTREEVE_LOG_FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// What is logged, as in RUST_LOG [default: info]
    #[arg(long, value_name = "FILTER", env = "PORTREEVE_LOG", value_parser = value::filter)]
    #[serde(deserialize_with = "file::filter")]
    pub(crate) log: Option<String>,
}

/// How lines of the log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The network of a kubelet's pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CriNetwork {
    /// CNI plugins where a network of these is configured.
    #[default]
    Auto,
    /// The node's own.
    Builtin,
    /// CNI plugins.
    Cni,
}

/// Every setting, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) manifests: PathBuf,
    /// Nobody named the directory: it is made when it is not there.
    pub(crate) manifests_by_default: bool,
    /// The cluster that workloads are taken from, if any.
    pub(crate) cluster: Option<Cluster>,
    pub(crate) cri_only: bool,
    pub(crate) cri_network: CriNetwork,
    pub(crate) cni_conf_dir: Option<PathBuf>,
    pub(crate) cni_bin_dirs: Vec<PathBuf>,
    pub(crate) systemd_cgroup: bool,
    pub(crate) runtime_handlers: BTreeMap<String, PathBuf>,
    /// The later win.
    pub(crate) cdi_spec_dirs: Vec<PathBuf>,
    pub(crate) root: PathBuf,
    pub(crate) run: PathBuf,
    /// `None`: the host name; see [`Config::node_name`].
    node_name: Option<String>,
    pub(crate) node_labels: BTreeMap<String, String>,
    pub(crate) listen: SocketAddr,
    pub(crate) socket_group: Option<String>,
    pub(crate) cgroup_root: String,
    pub(crate) bridge: String,
    pub(crate) pod_cidr: Option<ipnet::Ipv4Net>,
    pub(crate) nft_table: String,
    pub(crate) preload: Option<PathBuf>,
    pub(crate) insecure_registries: Vec<String>,
    pub(crate) registry_cas: Vec<PathBuf>,
    pub(crate) registry_hosts: PathBuf,
    pub(crate) registries_conf: PathBuf,
    pub(crate) image_policy: Option<PathBuf>,
    pub(crate) keep_blobs: bool,
    pub(crate) downloads: Downloads,
    pub(crate) partial_pulls: bool,
    pub(crate) image_collection: ImageCollection,
    pub(crate) log_format: LogFormat,
    pub(crate) log: String,
}

/// A cluster that workloads are taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// `None`: the ServiceAccount of the agent's pod.
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) lease_namespace: String,
}

/// How layers of images are fetched; what nobody said is for the image store to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Downloads {
    pub(crate) at_once: Option<usize>,
    pub(crate) at_once_per_registry: Option<usize>,
    pub(crate) connections: Option<usize>,
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) window: Option<DownloadWindow>,
    pub(crate) stall_timeout: Option<Duration>,
    pub(crate) mirror_timeout: Option<Duration>,
}

/// Reads the file, if one is named, lays `flags` over it and fills in what nobody said.
///
/// # Errors
/// An unreadable file, a key that does not exist, a value that cannot be: with their place in the file.
pub(crate) fn resolve(file: Option<&Path>, flags: Settings) -> anyhow::Result<Config> {
    let file = match file {
        None => Settings::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("reading the configuration {}", path.display()))?;
            parse(&text).map_err(|fault| anyhow!("{}:{fault}", path.display()))?
        }
    };
    complete(flags.or(file))
}

/// Reads the file's text; what is wrong comes as `line:column: key: what`.
fn parse(text: &str) -> Result<Settings, String> {
    // The keys first: the place of one that is unknown or repeated is known only while it is read.
    let keys = serde_yaml::from_str::<Option<file::Keys>>(text);
    let settings = keys.and_then(|_| serde_yaml::from_str::<Option<Settings>>(text));
    settings.map(Option::unwrap_or_default).map_err(|error| {
        let Some(at) = error.location() else { return format!("1:1: {error}") };
        let (line, column) = (at.line(), at.column());
        let message = error.to_string();
        let message = message.trim_end_matches(&format!(" at line {line} column {column}"));
        format!("{line}:{column}: {message}")
    })
}

impl Settings {
    fn or(self, other: Self) -> Self {
        fn list<T>(first: Vec<T>, second: Vec<T>) -> Vec<T> {
            if first.is_empty() { second } else { first }
        }
        Self {
            manifests: self.manifests.or(other.manifests),
            kubeconfig: self.kubeconfig.or(other.kubeconfig),
            in_cluster: self.in_cluster.or(other.in_cluster),
            lease_namespace: self.lease_namespace.or(other.lease_namespace),
            cri_only: self.cri_only.or(other.cri_only),
            cri_network: self.cri_network.or(other.cri_network),
            cni_conf_dir: self.cni_conf_dir.or(other.cni_conf_dir),
            cni_bin_dirs: if self.cni_bin_dirs.is_empty() { other.cni_bin_dirs } else { self.cni_bin_dirs },
            systemd_cgroup: self.systemd_cgroup.or(other.systemd_cgroup),
            runtime_handlers: list(self.runtime_handlers, other.runtime_handlers),
            cdi_spec_dirs: list(self.cdi_spec_dirs, other.cdi_spec_dirs),
            root: self.root.or(other.root),
            run: self.run.or(other.run),
            node_name: self.node_name.or(other.node_name),
            node_labels: list(self.node_labels, other.node_labels),
            listen: self.listen.or(other.listen),
            socket_group: self.socket_group.or(other.socket_group),
            cgroup_root: self.cgroup_root.or(other.cgroup_root),
            bridge: self.bridge.or(other.bridge),
            pod_cidr: self.pod_cidr.or(other.pod_cidr),
            nft_table: self.nft_table.or(other.nft_table),
            preload: self.preload.or(other.preload),
            insecure_registries: list(self.insecure_registries, other.insecure_registries),
            registry_cas: list(self.registry_cas, other.registry_cas),
            registry_hosts: self.registry_hosts.or(other.registry_hosts),
            registries_conf: self.registries_conf.or(other.registries_conf),
            image_policy: self.image_policy.or(other.image_policy),
            keep_blobs: self.keep_blobs.or(other.keep_blobs),
            max_concurrent_downloads: self.max_concurrent_downloads.or(other.max_concurrent_downloads),
            max_concurrent_downloads_per_registry: self
                .max_concurrent_downloads_per_registry
                .or(other.max_concurrent_downloads_per_registry),
            download_connections: self.download_connections.or(other.download_connections),
            download_rate_limit: self.download_rate_limit.or(other.download_rate_limit),
            download_window: self.download_window.or(other.download_window),
            registry_mirror_timeout: self.registry_mirror_timeout.or(other.registry_mirror_timeout),
            download_stall_timeout: self.download_stall_timeout.or(other.download_stall_timeout),
            partial_pulls: self.partial_pulls.or(other.partial_pulls),
            image_gc_high_threshold_percent: self
                .image_gc_high_threshold_percent
                .or(other.image_gc_high_threshold_percent),
            image_gc_low_threshold_percent: self
                .image_gc_low_threshold_percent
                .or(other.image_gc_low_threshold_percent),
            image_minimum_gc_age: self.image_minimum_gc_age.or(other.image_minimum_gc_age),
            log_format: self.log_format.or(other.log_format),
            log: self.log.or(other.log),
        }
    }
}

fn cluster(
    kubeconfig: Option<PathBuf>,
    in_cluster: Option<bool>,
    namespace: Option<String>,
) -> anyhow::Result<Option<Cluster>> {
    let in_cluster = in_cluster.unwrap_or(false);
    if in_cluster && kubeconfig.is_some() {
        bail!("kubeconfig and inCluster name two clusters: give one of them");
    }
    if !in_cluster && kubeconfig.is_none() {
        if let Some(namespace) = namespace {
            bail!("leaseNamespace: {namespace} is in no cluster: give kubeconfig or inCluster too");
        }
        return Ok(None);
    }
    let lease_namespace = namespace.unwrap_or_else(|| DEFAULT_LEASE_NAMESPACE.to_owned());
    Ok(Some(Cluster { kubeconfig: kubeconfig.map(absolute).transpose()?, lease_namespace }))
}

fn complete(settings: Settings) -> anyhow::Result<Config> {
    let image_collection = collection(&settings)?;
    let run = absolute(settings.run.unwrap_or_else(|| DEFAULT_RUN.into()))?;
    let root = absolute(settings.root.unwrap_or_else(|| DEFAULT_ROOT.into()))?;
    let manifests_by_default = settings.manifests.is_none();
    let manifests = absolute(settings.manifests.unwrap_or_else(|| DEFAULT_MANIFESTS.into()))?;
    if real(&run) == real(&root) {
        bail!("run and root are both {}: each needs a directory of its own", run.display());
    }
    for (key, directory) in [("run", &run), ("root", &root)] {
        if real(directory).starts_with(real(&manifests)) {
            let (directory, manifests) = (directory.display(), manifests.display());
            bail!("{key}: {directory} lies in the directory of manifests {manifests}; give them places of their own");
        }
    }
    let names = Names::of(&run);
    Ok(Config {
        manifests,
        manifests_by_default,
        cluster: cluster(settings.kubeconfig, settings.in_cluster, settings.lease_namespace)?,
        cri_only: settings.cri_only.unwrap_or(false),
        cri_network: settings.cri_network.unwrap_or_default(),
        cni_conf_dir: settings.cni_conf_dir.map(absolute).transpose()?,
        cni_bin_dirs: settings.cni_bin_dirs.into_iter().map(absolute).collect::<Result<_, _>>()?,
        systemd_cgroup: settings.systemd_cgroup.unwrap_or(false),
        runtime_handlers: settings.runtime_handlers.into_iter().collect(),
        cdi_spec_dirs: match settings.cdi_spec_dirs.as_slice() {
            [] => cdi::DIRECTORIES.map(PathBuf::from).to_vec(),
            given => given.iter().cloned().map(absolute).collect::<Result<_, _>>()?,
        },
        root,
        run,
        node_name: settings.node_name,
        node_labels: settings.node_labels.into_iter().collect(),
        listen: match settings.listen {
            Some(address) => address,
            None => DEFAULT_LISTEN.parse().context("the default of listen")?,
        },
        socket_group: settings.socket_group,
        cgroup_root: settings.cgroup_root.unwrap_or(names.cgroup_root),
        bridge: settings.bridge.unwrap_or(names.bridge),
        pod_cidr: settings.pod_cidr,
        nft_table: settings.nft_table.unwrap_or(names.nft_table),
        preload: settings.preload.map(absolute).transpose()?,
        insecure_registries: settings.insecure_registries,
        registry_cas: settings.registry_cas,
        registry_hosts: absolute(settings.registry_hosts.unwrap_or_else(|| DEFAULT_REGISTRY_HOSTS.into()))?,
        registries_conf: absolute(settings.registries_conf.unwrap_or_else(|| DEFAULT_REGISTRIES_CONF.into()))?,
        image_policy: settings.image_policy.map(absolute).transpose()?,
        keep_blobs: settings.keep_blobs.unwrap_or(false),
        downloads: Downloads {
            at_once: settings.max_concurrent_downloads,
            at_once_per_registry: settings.max_concurrent_downloads_per_registry,
            connections: settings.download_connections,
            bytes_per_second: settings.download_rate_limit,
            window: settings.download_window,
            stall_timeout: settings.download_stall_timeout,
            mirror_timeout: settings.registry_mirror_timeout,
        },
        partial_pulls: settings.partial_pulls.unwrap_or(false),
        image_collection,
        log_format: settings.log_format.unwrap_or(LogFormat::Text),
        log: settings.log.unwrap_or_else(|| "info".to_owned()),
    })
}

/// When images go that nobody needs.
fn collection(settings: &Settings) -> anyhow::Result<ImageCollection> {
    let usual = ImageCollection::default();
    // A kubelet collects images by itself; two that do so would each take what the other counts on.
    let usual_high = if settings.cri_only == Some(true) { 100 } else { usual.high_percent };
    let high_percent = settings.image_gc_high_threshold_percent.map_or(usual_high, u64::from);
    // Whoever names but the upper bound means that the lower one is below it.
    let below = usual.low_percent.min(high_percent.saturating_sub(1));
    let low_percent = settings.image_gc_low_threshold_percent.map_or(below, u64::from);
    if high_percent > 100 || low_percent >= high_percent {
        bail!(
            "imageGCLowThresholdPercent: {low_percent} is not below imageGCHighThresholdPercent, {high_percent}, \
             which is at most 100"
        );
    }
    Ok(ImageCollection { high_percent, low_percent, min_age: settings.image_minimum_gc_age.unwrap_or(usual.min_age) })
}

impl Config {
    /// The node's name. Only an agent needs one: who asks this machine a question is answered
    /// on a host without a usable name too.
    ///
    /// # Errors
    /// When none is set and no node can have the host's.
    pub(crate) fn node_name(&self) -> anyhow::Result<String> {
        if let Some(name) = &self.node_name {
            return Ok(name.clone());
        }
        let host = nix::unistd::gethostname().context("asking for the host name")?.to_string_lossy().to_lowercase();
        value::node_name(&host)
            .map_err(|why| anyhow!("nodeName: the host name `{host}` {why}; give the node a name by --node-name"))
    }

    /// Looks at the files and directories that the configuration names.
    ///
    /// # Errors
    /// What is there and can never be what it should, with its key. What is not there (yet) is no error: a
    /// directory of manifests or images may be mounted later. A runtime of pods has to be there: without it they would
    /// fail one by one, and nobody would look here.
    pub(crate) fn check_places(&self) -> anyhow::Result<()> {
        let directories = [
            ("manifests", Some(&self.manifests)),
            ("preload", self.preload.as_ref()),
            ("registryHosts", Some(&self.registry_hosts)),
        ];
        for (key, directory) in directories {
            if let Some(directory) = directory.filter(|directory| directory.exists() && !directory.is_dir()) {
                bail!("{key}: {} is a file; name the directory that it lies in", directory.display());
            }
        }
        for (name, program) in &self.runtime_handlers {
            executable(program).map_err(|why| anyhow!("cri.runtimeHandlers: {name}: {} {why}", program.display()))?;
        }
        for path in &self.registry_cas {
            std::fs::read(path).with_context(|| format!("registryCas: reading {}", path.display()))?;
        }
        Ok(())
    }
}

/// Whether somebody can execute a file; why not, as a sentence that goes on after its path.
pub(crate) fn executable(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let found = std::fs::metadata(path).map_err(|error| format!("cannot be executed: {error}"))?;
    if found.is_file() && found.permissions().mode() & 0o111 != 0 {
        return Ok(());
    }
    Err("is no executable file".to_owned())
}

fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("making {} absolute", path.display()))
}

/// Where a path leads, with links followed as far as it exists.
fn real(path: &Path) -> PathBuf {
    let rest = |above: &Path| path.strip_prefix(above).map(Path::to_owned).unwrap_or_default();
    let known = path.ancestors().find_map(|above| Some(above.canonicalize().ok()?.join(rest(above))));
    // Collected: what was joined to nothing ends with a slash.
    known.unwrap_or_else(|| path.to_owned()).components().collect()
}

/// The names in the kernel of the agent with this `run` directory.
#[derive(Debug, PartialEq, Eq)]
struct Names {
    bridge: String,
    nft_table: String,
    cgroup_root: String,
}

impl Names {
    fn of(run: &Path) -> Self {
        if run == Path::new(DEFAULT_RUN) {
            return Self {
                bridge: "portreeve0".to_owned(),
                nft_table: "portreeve".to_owned(),
                cgroup_root: "/portreeve".to_owned(),
            };
        }
        let hash = hex::encode(Sha256::digest(run.as_os_str().as_encoded_bytes()));
        let short: String = hash.chars().take(8).collect();
        Self {
            bridge: format!("prt-{short}"),
            nft_table: format!("portreeve_{short}"),
            cgroup_root: format!("/portreeve-{short}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(file: &str, flags: Settings) -> Config {
        complete(flags.or(parse(file).unwrap())).unwrap()
    }

    #[test]
    fn the_default_run_directory_has_the_plain_names() {
        let config = config("", Settings::default());
        assert_eq!(config.bridge, "portreeve0");
        assert_eq!(config.cgroup_root, "/portreeve");
        assert_eq!(config.listen.to_string(), "127.0.0.1:9580");
        assert_eq!(config.manifests, Path::new("/etc/portreeve/manifests"));
    }

    #[test]
    fn agents_side_by_side_have_names_of_their_own() {
        let one = config("run: /tmp/one", Settings::default());
        let two = config("run: /tmp/two", Settings::default());
        assert_ne!(one.bridge, two.bridge);
        assert_ne!(one.nft_table, two.nft_table);
        assert_ne!(one.cgroup_root, two.cgroup_root);
        assert!(one.bridge.len() <= 15);
        assert_eq!(one, config("run: /tmp/one", Settings::default()));
    }

    #[test]
    fn the_bounds_of_the_images_disk_must_leave_room_between_them() {
        let bounds = |file: &str| complete(parse(file).unwrap()).map(|config| config.image_collection);
        assert_eq!(bounds("").unwrap(), ImageCollection::default());
        assert_eq!(bounds("imageGCHighThresholdPercent: 50").unwrap().low_percent, 49);
        for (high, low) in [(80, 80), (70, 75), (101, 50), (0, 0)] {
            let file = format!("imageGCHighThresholdPercent: {high}\nimageGCLowThresholdPercent: {low}");
            assert!(bounds(&file).unwrap_err().to_string().starts_with("imageGCLowThresholdPercent: "), "{file}");
        }
    }

    #[test]
    fn a_flag_beats_the_file() {
        let flags = Settings { root: Some("/flag".into()), ..Settings::default() };
        let config = config("root: /file\nnodeName: from-file\n", flags);
        assert_eq!(config.root, Path::new("/flag"));
        assert_eq!(config.node_name().unwrap(), "from-file");
    }

    #[test]
    fn relative_directories_are_below_the_working_directory() {
        let here = std::env::current_dir().unwrap();
        let config = config("run: r\nroot: s\nmanifests: m\nnodeName: a-1.example\n", Settings::default());
        assert_eq!([config.run, config.root, config.manifests], ["r", "s", "m"].map(|name| here.join(name)));
    }

    #[test]
    fn every_key_of_the_file_is_read() {
        let text = "manifests: /m\ncriOnly: true\ncri.network: cni\ncri.cniConfDir: /n\ncri.cniBinDirs: [/b]\n\
                    systemdCgroup: true\ncri.runtimeHandlers: {a: /a, b: /b}\ncri.cdiSpecDirs: [/d, /e]\nroot: /r\nrun: /x\nnodeName: n\nnodeLabels: {a: b}\nlisten: 127.0.0.1:0\n\
                    socketGroup: adm\ncgroupRoot: /c\nbridge: br\npodCIDR: 10.1.0.0/24\nnftTable: t\npreload: /p\n\
                    insecureRegistries: ['r:5000']\nregistryCas: [/ca.pem]\nregistryHosts: /h\n\
                    registriesConf: /c.conf\nimagePolicy: /p.json\nkeepBlobs: true\npartialPulls: true\n\
                    maxConcurrentDownloads: 2\n\
                    maxConcurrentDownloadsPerRegistry: 1\ndownloadConnections: 4\ndownloadRateLimit: 10Mi\n\
                    downloadWindow: 22:00-06:30\ndownloadStallTimeout: 5s\nregistryMirrorTimeout: 3s\nimageGCHighThresholdPercent: 70\n\
                    imageGCLowThresholdPercent: 60\nimageMinimumGCAge: 1h\nlogFormat: json\nlog: debug\n";
        let config = config(text, Settings::default());
        assert_eq!(config.pod_cidr.unwrap().to_string(), "10.1.0.0/24");
        assert_eq!(config.node_labels, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        assert_eq!(config.log_format, LogFormat::Json);
        assert_eq!(config.insecure_registries, ["r:5000"]);
        assert!(config.keep_blobs && config.partial_pulls && config.cri_only && config.systemd_cgroup);
        assert_eq!((config.cri_network, config.cni_conf_dir), (CriNetwork::Cni, Some("/n".into())));
        assert_eq!(config.cni_bin_dirs, [PathBuf::from("/b")]);
        let handlers = [("a", "/a"), ("b", "/b")].map(|(name, path)| (name.to_owned(), path.into()));
        assert_eq!(config.runtime_handlers, BTreeMap::from(handlers));
        assert_eq!(config.cdi_spec_dirs, ["/d", "/e"].map(PathBuf::from));
        let downloads = Downloads {
            at_once: Some(2),
            at_once_per_registry: Some(1),
            connections: Some(4),
            bytes_per_second: Some(10 << 20),
            window: Some("22:00-06:30".parse().unwrap()),
            stall_timeout: Some(Duration::from_secs(5)),
            mirror_timeout: Some(Duration::from_secs(3)),
        };
        assert_eq!(config.downloads, downloads);
        let bounds = config.image_collection;
        assert_eq!((bounds.high_percent, bounds.low_percent, bounds.min_age.as_secs()), (70, 60, 3600));
        assert_eq!([config.registry_hosts, config.registries_conf], ["/h", "/c.conf"].map(PathBuf::from));
        assert_eq!(config.image_policy, Some("/p.json".into()));
    }

    #[test]
    fn what_is_wrong_in_the_file_is_named_with_its_place_and_key() {
        for (text, fault) in FAULTS {
            assert_eq!(&parse(text).unwrap_err(), fault, "{text}");
        }
    }

    const FAULTS: &[(&str, &str)] = &[
        ("listen: 5", "1:9: listen: `5` is no address with a port, such as 127.0.0.1:9580"),
        ("root: /r\npodCIDR: 10.1.2.3", "2:10: podCIDR: `10.1.2.3` is no IPv4 subnet, such as 10.85.3.0/24"),
        ("log: info\nlogFormat: xml", "2:12: logFormat: unknown variant `xml`, expected `text` or `json`"),
        ("imageMinimumGCAge: 5", "1:20: imageMinimumGCAge: `5` is no duration, such as 2m or 1h30m"),
        ("downloadWindow: 22-6", "1:17: downloadWindow: `22-6` is no time of day, such as 22:00-06:00"),
        ("downloadRateLimit: 0", "1:20: downloadRateLimit: `0` is no number of bytes, such as 500k or 10Mi"),
        ("maxConcurrentDownloads: 0", "1:25: maxConcurrentDownloads: `0` is no number from 1 on"),
        (
            "downloadStallTimeout: 0s",
            "1:23: downloadStallTimeout: `0s` is no duration of a second or more, such as 60s",
        ),
        (
            "registryMirrorTimeout: soon",
            "1:24: registryMirrorTimeout: `soon` is no duration of a second or more, such as 60s",
        ),
        ("registryCas: /x", "1:14: registryCas: invalid type: string \"/x\", expected a list"),
        ("- a", "1:1: invalid type: sequence, expected keys with values, as in `root: /var/lib`"),
        ("bridge: x\nbridge: y", "2:1: `bridge` is there already"),
        ("nodeLabels: {a: b, a: c}", "1:20: nodeLabels: `a` is there already"),
        (
            "cri.runtimeHandlers: {A: /a}",
            "1:23: cri.runtimeHandlers: `A` cannot be the name of a handler: it must be lower-case letters, digits and \
             `-`, beginning and ending with a letter or digit, at most 63",
        ),
        ("cri.runtimeHandlers: {a: b}", "1:26: cri.runtimeHandlers.a: `b` is no absolute path of a program"),
        ("root: ''", "1:7: root: `` is no path"),
        ("bridge: [a]", "1:9: bridge: invalid type: sequence, expected one value"),
        ("cgroupRoot: /", "1:13: cgroupRoot: `/` must be an absolute path below the root, such as /portreeve"),
        ("socketGroup: [a]", "1:14: socketGroup: invalid type: sequence, expected a string"),
        (
            "insecureRegistries: [a, 'http://x/']",
            "1:25: insecureRegistries[1]: `http://x/` has a scheme; give `x`, as references of images begin with it",
        ),
    ];

    #[test]
    fn every_fault_of_a_value_or_key_is_found_at_its_place() {
        for (text, place) in [
            (
                "root: /r\nbridges: x",
                "2:1: `bridges` is no key; keys are manifests, kubeconfig, inCluster, leaseNamespace, criOnly, cri.network",
            ),
            ("nodeLabels: {'a b!': c}", "1:14: nodeLabels: `a b!` cannot be the key of a label: "),
            ("nodeLabels:\n  a: 'c d'", "2:6: nodeLabels.a: `c d` cannot be the value of a label: "),
            ("bridge: a-name-that-is-too-long", "1:9: bridge: "),
            ("cgroupRoot: /kubepods/x", "1:13: cgroupRoot: `/kubepods/x` belongs to a kubelet"),
            ("nftTable: 'a b'", "1:11: nftTable: "),
            ("nodeName: A_B", "1:11: nodeName: `A_B` cannot be the name of a node: "),
            ("log: '=='", "1:6: log: `==` is no filter"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(place), "{text}: {error}");
        }
    }

    #[test]
    fn a_host_name_that_no_node_can_have_stops_the_agent_and_nothing_else() {
        let error = value::node_name("(none)").unwrap_err();
        assert!(error.contains("cannot be the name of a node"), "{error}");
        assert_eq!(config("nodeName: a-1.example", Settings::default()).node_name().unwrap(), "a-1.example");
    }

    #[test]
    fn an_empty_file_says_nothing() {
        for text in ["", "# nothing\n", "---\n", "bridge:\nnodeLabels:\n"] {
            assert_eq!(config(text, Settings::default()), config("", Settings::default()), "{text}");
        }
    }

    #[test]
    fn directories_that_would_disturb_each_other_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name).display().to_string();
        std::fs::create_dir(at("a")).unwrap();
        std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
        for (run, root, manifests, word) in [
            ("a", "a", "m", "both"),
            ("a", "link", "m", "both"),
            ("r", "a/x", "a", "root"),
            ("link/x/y", "r", "a/x", "run"),
        ] {
            let text = format!("run: {}\nroot: {}\nmanifests: {}\n", at(run), at(root), at(manifests));
            let error = complete(parse(&text).unwrap()).unwrap_err().to_string();
            assert!(error.contains(word), "{text}{error}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_what_it_should_is_named_with_its_key() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        std::fs::write(&file, "").unwrap();
        let absent = home.path().join("absent");
        for (key, value, right) in [
            ("manifests", file.display().to_string(), false),
            ("preload", file.display().to_string(), false),
            ("registryCas", format!("[{}]", absent.display()), false),
            ("cri.runtimeHandlers", format!("{{a: {}}}", absent.display()), false),
            ("cri.runtimeHandlers", format!("{{a: {}}}", file.display()), false),
            ("cri.runtimeHandlers", "{a: /bin/sh}".to_owned(), true),
            ("manifests", absent.display().to_string(), true),
            ("preload", absent.display().to_string(), true),
        ] {
            let checked = config(&format!("{key}: {value}"), Settings::default()).check_places();
            assert_eq!(checked.is_ok(), right, "{key}: {value}");
            if let Err(error) = checked {
                assert!(error.to_string().starts_with(&format!("{key}: ")), "{error}");
            }
        }
    }
}
