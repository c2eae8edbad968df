//! Networks of others: plugins of the Container Network Interface, as clusters have them.
//!
//! ```text
//!   /etc/cni/net.d/10-x.conflist      attach:  bridge ADD -> portmap ADD -> ...    each reads what the last one answered
//!   [ bridge, portmap, ... ]          detach:  ... -> portmap DEL -> bridge DEL    by what the pod was attached by
//! ```
//! A plugin is a program that reads one document and writes one. This runs them, and remembers for each pod what it was
//! attached by; everything in the kernel is theirs.
//!
//! **Invariant:** who was attached, or may have been, is detached by the very same list, with the same arguments, also
//! when this program was killed in between; see `record`.
//! Source: CNI specification 1.1, and 0.3.1 to 1.0.0 for networks that say so.

mod capability;
mod error;
mod list;
mod outcome;
mod program;
mod record;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

pub use capability::{Capabilities, Names, Published};
pub use error::CniError;
pub use list::{NetworkList, SpecVersion};
pub use outcome::Attached;

use capability::taken;
use list::{Plugin, is_name};
use program::{Call, Environment};
use record::{Record, Records};

/// Of the specification: the pod is none that the plugin knows, and nothing of it is left.
const UNKNOWN_CONTAINER: u32 = 3;

/// How long the plugins of a network may take, all together, to say whether pods can be attached.
pub const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// Where things are.
#[derive(Debug, Clone)]
pub struct CniConfig {
    /// Directory of the networks' configurations, `/etc/cni/net.d`.
    pub networks: PathBuf,
    /// Directories of the plugins' programs, `/opt/cni/bin`, in order.
    pub plugins: Vec<PathBuf>,
    /// Directory for what is remembered of each pod.
    pub records: PathBuf,
    /// How long one plugin may take.
    pub limit: Duration,
}

impl CniConfig {
    /// Where everybody has them, with records in `records`.
    #[must_use]
    pub fn new(records: impl Into<PathBuf>) -> Self {
        Self {
            networks: PathBuf::from("/etc/cni/net.d"),
            plugins: ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"].map(PathBuf::from).into(),
            records: records.into(),
            limit: Duration::from_secs(90),
        }
    }
}

/// One pod, to be attached.
#[derive(Debug, Clone)]
pub struct Attach<'a> {
    /// The pod's sandbox: letters, digits, `_`, `.` and `-`.
    pub container: &'a str,
    /// Its network namespace.
    pub netns: &'a Path,
    /// What its interface is to be called.
    pub interface: &'a str,
    /// `CNI_ARGS`, as pairs.
    pub arguments: &'a [(&'a str, &'a str)],
    /// What it asks for besides an address.
    pub capabilities: &'a Capabilities,
}

/// Networks of plugins.
#[derive(Debug, Clone)]
pub struct Cni {
    config: CniConfig,
    records: Records,
}

impl Cni {
    /// Makes the directory of records. There need not be a network, nor a plugin.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(config: CniConfig) -> Result<Self, CniError> {
        let records = Records::open(&config.records)?;
        Ok(Self { config, records })
    }

    /// The network that pods are attached to now: the first by the names of its files. Blocks on the disk.
    ///
    /// # Errors
    /// When there are some, and none can be used.
    pub fn network(&self) -> Result<Option<NetworkList>, CniError> {
        NetworkList::first_of(&self.config.networks)
    }

    /// Attaches a pod. One that is attached already stays as it is. After a failure nothing is left of it, as far as the
    /// plugins' DEL does what it should; [`Cni::detach`] does that again.
    ///
    /// # Errors
    /// When a name cannot be used, or a plugin refuses.
    ///
    /// # Cancel safety
    /// Dropping it kills the plugin at work. What was done by then is undone by [`Cni::detach`].
    pub async fn attach(&self, network: &NetworkList, pod: &Attach<'_>) -> Result<Attached, CniError> {
        check_names(network, pod)?;
        if let Some(record) = self.record(pod.container).await? {
            if let Some(result) = &record.result {
                return of_result(&record_network(&record)?.name, &record.interface, result);
            }
            // An earlier try was broken off.
            self.detach(pod.container, Some(pod.netns)).await?;
        }
        let arguments: Vec<String> = pod.arguments.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut record = Record::new(pod.container, pod.interface, pod.netns, network.whole(), &network.path);
        record.arguments = arguments.join(";");
        record.capabilities = pod.capabilities.by_name();
        self.write(&record).await?;
        let added = self.add(network, &record).await.and_then(|result| {
            let attached = of_result(&network.name, pod.interface, &result)?;
            Ok((result, attached))
        });
        match added {
            Ok((result, attached)) => {
                record.result = Some(result);
                self.write(&record).await?;
                Ok(attached)
            }
            Err(error) => {
                if let Err(left) = self.detach(pod.container, Some(pod.netns)).await {
                    tracing::warn!(container = pod.container, error = %left, "a network may have kept what is of a pod");
                }
                Err(error)
            }
        }
    }

    async fn add(&self, network: &NetworkList, record: &Record) -> Result<Value, CniError> {
        let mut result = None;
        for plugin in &network.plugins {
            let answer = self.call("ADD", network, plugin, record, Some(&record.netns), result.as_ref()).await?;
            if !answer.is_object() {
                return Err(CniError::Garbled {
                    network: network.name.clone(),
                    plugin: plugin.kind.clone(),
                    command: "ADD",
                    problem: "it answers with no result".to_owned(),
                });
            }
            result = Some(answer);
        }
        Ok(result.unwrap_or_default())
    }

    /// Detaches a pod from what it was attached to; one that was not, is. `netns` is its namespace, if that is there.
    ///
    /// # Errors
    /// When a plugin refuses: then it is to be called again.
    ///
    /// # Cancel safety
    /// As [`Cni::attach`].
    pub async fn detach(&self, container: &str, netns: Option<&Path>) -> Result<(), CniError> {
        let Some(record) = self.record(container).await? else { return Ok(()) };
        let network = record_network(&record)?;
        for plugin in network.plugins.iter().rev() {
            // The result is told from the version on that knows it, and when there is one.
            let result = record.result.as_ref().filter(|_| network.version >= SpecVersion::V0_4_0);
            match self.call("DEL", &network, plugin, &record, netns, result).await {
                Ok(_) | Err(CniError::Refused { code: UNKNOWN_CONTAINER, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let (records, container) = (self.records.clone(), container.to_owned());
        blocking(move || records.remove(&container)).await
    }

    /// How a pod is attached; `None` when it is not.
    ///
    /// # Errors
    /// When what is remembered cannot be read.
    pub async fn attached(&self, container: &str) -> Result<Option<Attached>, CniError> {
        let Some(record) = self.record(container).await? else { return Ok(None) };
        let network = record_network(&record)?;
        record.result.as_ref().map(|result| of_result(&network.name, &record.interface, result)).transpose()
    }

    /// Has the plugins look whether a pod's network is as they made it. Networks that cannot be asked count as whole.
    ///
    /// # Errors
    /// When the pod is not attached, or a plugin finds that something is not as it was.
    pub async fn check(&self, container: &str) -> Result<(), CniError> {
        let record = self.record(container).await?;
        let not_attached = || CniError::NotAttached { container: container.to_owned() };
        let record = record.ok_or_else(not_attached)?;
        let result = record.result.as_ref().ok_or_else(not_attached)?;
        let network = record_network(&record)?;
        if network.check && network.version >= SpecVersion::V0_4_0 {
            for plugin in &network.plugins {
                self.call("CHECK", &network, plugin, &record, Some(&record.netns), Some(result)).await?;
            }
        }
        Ok(())
    }

    /// Whether pods can be attached now: the plugins say so themselves where [`NetworkList::tells_status`], for which they
    /// have [`STATUS_LIMIT`]; of others the programs must be there.
    ///
    /// # Errors
    /// Why not.
    pub async fn status(&self, network: &NetworkList) -> Result<(), CniError> {
        let until = Instant::now() + STATUS_LIMIT;
        for plugin in &network.plugins {
            if network.tells_status() {
                let left = until.saturating_duration_since(Instant::now());
                let asking = self.call_network("STATUS", network, plugin, None);
                tokio::time::timeout(left, asking).await.unwrap_or_else(|_| {
                    let (network, plugin) = (network.name.clone(), plugin.kind.clone());
                    Err(CniError::TimedOut { network, plugin, command: "STATUS", limit: STATUS_LIMIT })
                })?;
            } else {
                program::find(&self.config.plugins, &network.name, &plugin.kind)?;
            }
        }
        Ok(())
    }

    /// Detaches every pod but those of `keep`, and has the plugins give back what else they have of this network.
    ///
    /// # Errors
    /// The first of those that plugins refuse; the rest is done all the same.
    pub async fn collect(&self, network: &NetworkList, keep: &BTreeSet<String>) -> Result<(), CniError> {
        let mut refused = self.detach_all_but(keep).await.err();
        let mut attached = Vec::new();
        for container in keep {
            if let Some(record) = self.record(container).await? {
                attached.push(json!({ "containerID": record.container, "ifname": record.interface }));
            }
        }
        if network.collect && network.version >= SpecVersion::V1_1_0 {
            for plugin in &network.plugins {
                let valid = Some(("cni.dev/valid-attachments", Value::from(attached.clone())));
                refused = refused.or(self.call_network("GC", network, plugin, valid).await.err());
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Detaches every pod but those of `keep`.
    ///
    /// # Errors
    /// The first of those that plugins refuse; the rest is done all the same.
    pub async fn detach_all_but(&self, keep: &BTreeSet<String>) -> Result<(), CniError> {
        let records = self.records.clone();
        let known = blocking(move || records.containers()).await?;
        let mut refused = None;
        for container in known.iter().filter(|container| !keep.contains(*container)) {
            refused = refused.or(self.detach(container, None).await.err());
        }
        refused.map_or(Ok(()), Err)
    }

    /// One call that concerns a pod.
    async fn call(
        &self,
        command: &'static str,
        network: &NetworkList,
        plugin: &Plugin,
        record: &Record,
        netns: Option<&Path>,
        result: Option<&Value>,
    ) -> Result<Value, CniError> {
        let Record { container, interface, arguments, capabilities, .. } = record;
        let environment = Environment { container, netns, interface, arguments };
        let mut configuration = plugin.configuration(network);
        configuration.remove("capabilities");
        if let Some(taken) = taken(capabilities, &plugin.capabilities) {
            configuration.insert("runtimeConfig".to_owned(), taken);
        }
        if let Some(result) = result {
            configuration.insert("prevResult".to_owned(), result.clone());
        }
        self.run(command, network, plugin, &environment, configuration).await
    }

    /// One call that concerns the network.
    async fn call_network(
        &self,
        command: &'static str,
        network: &NetworkList,
        plugin: &Plugin,
        more: Option<(&str, Value)>,
    ) -> Result<Value, CniError> {
        let mut configuration = plugin.configuration(network);
        configuration.extend(more.map(|(name, value)| (name.to_owned(), value)));
        self.run(command, network, plugin, &Environment::default(), configuration).await
    }

    async fn run(
        &self,
        command: &'static str,
        network: &NetworkList,
        plugin: &Plugin,
        environment: &Environment<'_>,
        configuration: Map<String, Value>,
    ) -> Result<Value, CniError> {
        let call = Call { command, network: &network.name, plugin: &plugin.kind, environment, configuration };
        program::run(&self.config.plugins, self.config.limit, call).await
    }

    async fn record(&self, container: &str) -> Result<Option<Record>, CniError> {
        if !is_name(container) {
            return Ok(None);
        }
        let (records, container) = (self.records.clone(), container.to_owned());
        blocking(move || records.read(&container)).await
    }

    async fn write(&self, record: &Record) -> Result<(), CniError> {
        let (records, record) = (self.records.clone(), record.clone());
        blocking(move || records.write(&record)).await
    }
}

fn record_network(record: &Record) -> Result<NetworkList, CniError> {
    NetworkList::parse(&record.source, &record.network.to_string())
}

fn of_result(network: &str, interface: &str, result: &Value) -> Result<Attached, CniError> {
    Attached::of(network, interface, result).map_err(|problem| CniError::Garbled {
        network: network.to_owned(),
        plugin: "chain".to_owned(),
        command: "ADD",
        problem,
    })
}

/// Names that plugins make files, links and pairs of.
fn check_names(network: &NetworkList, pod: &Attach<'_>) -> Result<(), CniError> {
    let wrong = |problem: String| Err(CniError::Configuration { path: network.path.clone(), problem });
    if !is_name(pod.container) {
        return wrong(format!("sandbox id {:?} must have only letters, digits, '_', '.' and '-'", pod.container));
    }
    let interface = pod.interface;
    let refused = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    // Source: the kernel's dev_valid_name(), IFNAMSIZ.
    if interface.is_empty() || interface.len() > 15 || matches!(interface, "." | "..") || interface.contains(refused) {
        return wrong(format!("{interface:?} is no name of an interface"));
    }
    let ambiguous = |text: &str| text.contains([';', '=', '\0']);
    if let Some((key, value)) = pod.arguments.iter().find(|(key, value)| ambiguous(key) || ambiguous(value)) {
        return wrong(format!("argument {key}={value} of the pod must have neither ';' nor a further '='"));
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CniError> + Send + 'static,
) -> Result<T, CniError> {
    let ended = |source: tokio::task::JoinError| CniError::Io {
        operation: "waiting for",
        path: PathBuf::from("records of networks"),
        source: source.into(),
    };
    tokio::task::spawn_blocking(work).await.map_err(ended)?
}
