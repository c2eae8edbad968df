//! The agent's configuration: one key per flag; a flag beats the environment beats the file.
//!
//! Agents can run side by side. With a `run` directory other than the default one, every name
//! in the kernel that is not set derives from a hash of that directory's path, so that two
//! agents never meet.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Where sandboxes and sockets live unless told otherwise.
pub(crate) const DEFAULT_RUN: &str = "/run/portreeve";
const DEFAULT_ROOT: &str = "/var/lib/portreeve";
const DEFAULT_MANIFESTS: &str = "/etc/portreeve/manifests";
const DEFAULT_LISTEN: &str = "127.0.0.1:9580";

/// What a flag, an environment variable or a key of the file may say; nothing is required.
#[derive(Debug, Default, Clone, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Settings {
    /// Directory of manifests, watched recursively [default: /etc/portreeve/manifests]
    #[arg(long, value_name = "DIR", env = "PORTREEVE_MANIFESTS")]
    pub(crate) manifests: Option<PathBuf>,
    /// Images, volumes, logs, ledger: what survives a reboot [default: /var/lib/portreeve]
    #[arg(long, value_name = "DIR", env = "PORTREEVE_ROOT")]
    pub(crate) root: Option<PathBuf>,
    /// Sandboxes and sockets: what a reboot ends; the flag is shared with the client verbs.
    #[arg(skip)]
    pub(crate) run: Option<PathBuf>,
    /// Name of this node [default: the host name]
    #[arg(long, value_name = "NAME", env = "PORTREEVE_NODE_NAME")]
    pub(crate) node_name: Option<String>,
    /// Label of this node, as key=value; may be given again
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = label)]
    #[serde(default, deserialize_with = "labels")]
    pub(crate) node_labels: Vec<(String, String)>,
    /// Address of /metrics, /livez and /readyz; port 0 takes a free one [default: 127.0.0.1:9580]
    #[arg(long, value_name = "ADDR", env = "PORTREEVE_LISTEN")]
    pub(crate) listen: Option<SocketAddr>,
    /// Group that may use the socket, by name or number [default: root alone]
    #[arg(long, value_name = "GROUP", env = "PORTREEVE_SOCKET_GROUP")]
    pub(crate) socket_group: Option<String>,
    /// cgroup below which everything of ours lives [default: /portreeve]
    #[arg(long, value_name = "PATH", env = "PORTREEVE_CGROUP_ROOT")]
    pub(crate) cgroup_root: Option<String>,
    /// Name of the pods' bridge [default: portreeve0]
    #[arg(long, value_name = "NAME", env = "PORTREEVE_BRIDGE")]
    pub(crate) bridge: Option<String>,
    /// Addresses of the pods [default: the first free /24 of 10.85.0.0/16]
    #[arg(long = "pod-cidr", value_name = "CIDR", env = "PORTREEVE_POD_CIDR")]
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: Option<ipnet::Ipv4Net>,
    /// Name of our nftables table [default: portreeve]
    #[arg(long, value_name = "NAME", env = "PORTREEVE_NFT_TABLE")]
    pub(crate) nft_table: Option<String>,
    /// Directory of image tars that are loaded at start and never collected
    #[arg(long, value_name = "DIR", env = "PORTREEVE_PRELOAD")]
    pub(crate) preload: Option<PathBuf>,
    /// Registry that is spoken to over plain HTTP, as `host` or `host:port`; may be given again
    #[arg(long = "insecure-registry", value_name = "HOST")]
    #[serde(default)]
    pub(crate) insecure_registries: Vec<String>,
    /// File of PEM certificates that registries are also trusted by; may be given again
    #[arg(long = "registry-ca", value_name = "FILE")]
    #[serde(default)]
    pub(crate) registry_cas: Vec<PathBuf>,
    /// How lines of the log look [default: text]
    #[arg(long, value_name = "FORMAT", env = "PORTREEVE_LOG_FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// What is logged, as in RUST_LOG [default: info]
    #[arg(long, value_name = "FILTER", env = "PORTREEVE_LOG")]
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

/// Every setting, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) manifests: PathBuf,
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
    pub(crate) log_format: LogFormat,
    pub(crate) log: String,
}

/// Reads the file, if one is named, lays `flags` over it and fills in what nobody said.
///
/// # Errors
/// An unreadable file, a key that does not exist, a value that cannot be.
pub(crate) fn resolve(file: Option<&Path>, flags: Settings) -> anyhow::Result<Config> {
    let file = match file {
        None => Settings::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("reading the configuration {}", path.display()))?;
            parse(&text).with_context(|| format!("in the configuration {}", path.display()))?
        }
    };
    complete(flags.or(file))
}

fn parse(text: &str) -> anyhow::Result<Settings> {
    // Through a value first: only there a key that is given twice is an error.
    let value: serde_yaml::Value = serde_yaml::from_str(text)?;
    if value.is_null() {
        return Ok(Settings::default());
    }
    Ok(serde_yaml::from_value(value)?)
}

impl Settings {
    fn or(self, other: Self) -> Self {
        fn list<T>(first: Vec<T>, second: Vec<T>) -> Vec<T> {
            if first.is_empty() { second } else { first }
        }
        Self {
            manifests: self.manifests.or(other.manifests),
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
            log_format: self.log_format.or(other.log_format),
            log: self.log.or(other.log),
        }
    }
}

fn complete(settings: Settings) -> anyhow::Result<Config> {
    let run = absolute(settings.run.unwrap_or_else(|| DEFAULT_RUN.into()))?;
    let names = Names::of(&run);
    let bridge = settings.bridge.unwrap_or(names.bridge);
    if bridge.is_empty() || bridge.len() > 15 || bridge.contains(['/', ' ']) {
        bail!("bridge: `{bridge}` cannot be the name of a link: 1 to 15 characters without / and spaces");
    }
    let cgroup_root = settings.cgroup_root.unwrap_or(names.cgroup_root);
    if !cgroup_root.starts_with('/') || cgroup_root == "/" || cgroup_root.split('/').any(|part| part == "..") {
        bail!("cgroupRoot: `{cgroup_root}` must be an absolute path below the root, such as /portreeve");
    }
    if cgroup_root.split('/').any(|part| part.starts_with("kubepods")) {
        bail!("cgroupRoot: `{cgroup_root}` belongs to a kubelet, which kills what it does not know there");
    }
    Ok(Config {
        manifests: absolute(settings.manifests.unwrap_or_else(|| DEFAULT_MANIFESTS.into()))?,
        root: absolute(settings.root.unwrap_or_else(|| DEFAULT_ROOT.into()))?,
        run,
        node_name: settings.node_name,
        node_labels: settings.node_labels.into_iter().collect(),
        listen: match settings.listen {
            Some(address) => address,
            None => DEFAULT_LISTEN.parse().context("the default of listen")?,
        },
        socket_group: settings.socket_group,
        cgroup_root,
        bridge,
        pod_cidr: settings.pod_cidr,
        nft_table: settings.nft_table.unwrap_or(names.nft_table),
        preload: settings.preload.map(absolute).transpose()?,
        insecure_registries: settings.insecure_registries,
        registry_cas: settings.registry_cas,
        log_format: settings.log_format.unwrap_or(LogFormat::Text),
        log: settings.log.unwrap_or_else(|| "info".to_owned()),
    })
}

impl Config {
    /// The node's name. Only an agent needs one: who asks this machine a question is answered
    /// on a host without a usable name too.
    ///
    /// # Errors
    /// A name, set or the host's, that no node can have.
    pub(crate) fn node_name(&self) -> anyhow::Result<String> {
        let name = match &self.node_name {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname().context("asking for the host name")?.to_string_lossy().to_lowercase(),
        };
        if !is_subdomain(&name) {
            bail!(
                "nodeName: `{name}` cannot be the name of a node: at most 253 lower-case letters, digits, `-` and `.`, \
                 each part beginning and ending with a letter or digit; set it by --node-name"
            );
        }
        Ok(name)
    }
}

/// Source: RFC 1123 and Kubernetes' validation of node names.
fn is_subdomain(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("making {} absolute", path.display()))
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

fn label(text: &str) -> Result<(String, String), NotALabel> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(NotALabel(text.to_owned())),
    }
}

#[derive(Debug)]
struct NotALabel(String);

impl fmt::Display for NotALabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not key=value", self.0)
    }
}

impl std::error::Error for NotALabel {}

fn labels<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<(String, String)>, D::Error> {
    Ok(BTreeMap::<String, String>::deserialize(from)?.into_iter().collect())
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
        let text = "manifests: /m\nroot: /r\nrun: /x\nnodeName: n\nnodeLabels: {a: b}\nlisten: 127.0.0.1:0\n\
                    socketGroup: adm\ncgroupRoot: /c\nbridge: br\npodCIDR: 10.1.0.0/24\nnftTable: t\npreload: /p\n\
                    insecureRegistries: ['r:5000']\nregistryCas: [/ca.pem]\nlogFormat: json\nlog: debug\n";
        let config = config(text, Settings::default());
        assert_eq!(config.pod_cidr.unwrap().to_string(), "10.1.0.0/24");
        assert_eq!(config.node_labels, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        assert_eq!(config.log_format, LogFormat::Json);
        assert_eq!(config.insecure_registries, ["r:5000"]);
    }

    #[test]
    fn unknown_and_repeated_keys_are_errors() {
        assert!(parse("bridges: x").unwrap_err().to_string().contains("bridges"));
        assert!(parse("bridge: x\nbridge: y").unwrap_err().to_string().contains("duplicate"));
    }

    #[test]
    fn names_that_cannot_be_are_refused_with_their_key() {
        for (text, key) in [
            ("bridge: a-name-that-is-too-long", "bridge"),
            ("cgroupRoot: /", "cgroupRoot"),
            ("cgroupRoot: relative", "cgroupRoot"),
            ("cgroupRoot: /kubepods/x", "kubelet"),
        ] {
            let error = complete(parse(text).unwrap()).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_that_no_node_can_have_stops_the_agent_and_nothing_else() {
        for name in ["A_B", "", "a..b", "-a", "(none)"] {
            let config = config("", Settings { node_name: Some(name.to_owned()), ..Settings::default() });
            let error = config.node_name().unwrap_err().to_string();
            assert!(error.contains("nodeName") && error.contains("--node-name"), "{name}: {error}");
        }
    }
}
