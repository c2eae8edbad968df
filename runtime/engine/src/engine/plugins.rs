//! Pods of a kubelet in networks of plugins: what the built-in network is to the node's own pods, which never are in
//! these.
//!
//! Plugins want a path to the pod's network namespace that stays the same until the pod is detached. It is a mount below
//! the run directory.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use portreeve_network::cni::{Attach, Capabilities, Names, NetworkList, STATUS_LIMIT};
use tokio::sync::watch;

use super::ending::unmount;
use super::table::Sandbox;
use super::{Core, blocking, spawn};
use crate::config::KubeletNetwork;
use crate::error::chain;
use crate::record::SandboxPhase;
use crate::sandbox::SandboxConfig;
use crate::{EngineError, Owner, SandboxId};

/// What pods are called inside.
const INTERFACE: &str = "eth0";
/// How old the plugins' word may be before they are asked again. A kubelet wants it every five to ten seconds.
const ASKED_AGAIN: Duration = STATUS_LIMIT;
/// How long plugins may take to look after one pod, and after all.
const CHECK: Duration = Duration::from_secs(5);
/// See [`CHECK`].
const CHECKS: Duration = Duration::from_secs(60);

/// Whether pods can be attached, and why not.
type Said = Result<(), Arc<EngineError>>;

/// What plugins say of their network.
#[derive(Debug, Default)]
pub(super) struct Standing(Mutex<Option<Asked>>);

/// Plugins that were asked.
#[derive(Debug)]
struct Asked {
    /// As it was configured: others have said nothing.
    network: NetworkList,
    since: Instant,
    /// Nothing until the first answer.
    said: watch::Sender<Option<Said>>,
}

impl Core {
    /// Attaches a pod by plugins, when its owner wants that; its addresses, or its namespace back for the built-in
    /// network.
    pub(super) async fn attach_by_plugins(
        &self,
        id: &SandboxId,
        config: &SandboxConfig,
        netns: OwnedFd,
    ) -> Result<Result<Vec<IpAddr>, OwnedFd>, EngineError> {
        if config.owner != Owner::Cri {
            return Ok(Err(netns));
        }
        let Some(network) = self.network_of_plugins().await? else { return Ok(Err(netns)) };
        let failed = |source| EngineError::Plugins { id: id.to_string(), source };
        let path = self.netns_path(id);
        let (place, sandbox) = (path.clone(), id.to_string());
        blocking(move || {
            let pinned = pin(&netns, &place);
            pinned.map_err(EngineError::file("keeping the network namespace at", &place))?;
            let up = portreeve_network::set_loopback_up(&sandbox, netns.as_fd());
            up.map_err(|source| EngineError::Network { id: sandbox, source })
        })
        .await?;
        let meta = &config.metadata;
        let arguments = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", meta.namespace.as_str()),
            ("K8S_POD_NAME", meta.name.as_str()),
            ("K8S_POD_INFRA_CONTAINER_ID", id.as_str()),
            ("K8S_POD_UID", meta.uid.as_str()),
        ];
        let capabilities = capabilities(config);
        let pod = Attach {
            container: id.as_str(),
            netns: &path,
            interface: INTERFACE,
            arguments: &arguments,
            capabilities: &capabilities,
        };
        let attached = self.plugins.attach(&network, &pod).await.map_err(failed)?;
        Ok(Ok(attached.addresses.iter().map(|address| address.addr()).collect()))
    }

    /// The network of plugins that a kubelet's pods are in now; `None` for the built-in one.
    async fn network_of_plugins(&self) -> Result<Option<NetworkList>, EngineError> {
        let mode = self.config.kubelet_network;
        if mode == KubeletNetwork::Builtin {
            return Ok(None);
        }
        let plugins = self.plugins.clone();
        let network = blocking(move || plugins.network().map_err(EngineError::PluginNetwork)).await?;
        if network.is_none() && mode == KubeletNetwork::Plugins {
            return Err(EngineError::NoPluginNetwork { directory: self.config.plugins.networks.clone() });
        }
        Ok(network)
    }

    /// See [`super::Engine::kubelet_network`].
    pub(super) async fn kubelet_network(&self) -> Said {
        let Some(network) = self.network_of_plugins().await? else { return Ok(()) };
        if !network.tells_status() {
            return Ok(self.plugins.status(&network).await.map_err(EngineError::PluginNetwork)?);
        }
        let mut said = self.ask_when_due(network);
        match said.wait_for(Option::is_some).await {
            Ok(said) => said.clone().unwrap_or(Ok(())),
            Err(_) => Err(Arc::new(EngineError::PluginsNotAsked)),
        }
    }

    /// Has the plugins asked, unless they were just now; what they said last, or will.
    fn ask_when_due(&self, network: NetworkList) -> watch::Receiver<Option<Said>> {
        let mut last = self.standing.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = last.take().filter(|asked| asked.network == network);
        // Who was asked has answered, or was given up, when that is over.
        if let Some(asked) = same.as_ref().filter(|asked| asked.since.elapsed() < ASKED_AGAIN) {
            let said = asked.said.subscribe();
            *last = same;
            return said;
        }
        let said = same.map_or_else(|| watch::Sender::new(None), |asked| asked.said);
        let (plugins, answer, receiver) = (self.plugins.clone(), said.clone(), said.subscribe());
        *last = Some(Asked { network: network.clone(), since: Instant::now(), said });
        self.tasks.spawn(async move {
            let status = plugins.status(&network).await;
            let status = status.map_err(|error| Arc::new(EngineError::PluginNetwork(error)));
            answer.send_replace(Some(status));
        });
        receiver
    }

    /// Detaches a pod from what plugins attached it to; one that they did not, is.
    pub(super) async fn detach_by_plugins(&self, id: &SandboxId) -> Result<(), EngineError> {
        let path = self.netns_path(id);
        let netns = path.exists().then_some(path.as_path());
        let detached = self.plugins.detach(id.as_str(), netns).await;
        detached.map_err(|source| EngineError::Plugins { id: id.to_string(), source })?;
        blocking(move || {
            unmount(&path)?;
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(EngineError::file("removing", &path)(error))
                }
                _ => Ok(()),
            }
        })
        .await
    }

    /// Has plugins give back what they keep of pods that are gone, as those of the time before a boot.
    pub(super) async fn collect_by_plugins(self: Arc<Self>) {
        let keep = self.table().sandboxes.keys().map(ToString::to_string).collect();
        let collected = match self.network_of_plugins().await {
            Ok(Some(network)) => self.plugins.collect(&network, &keep).await,
            // There is none now, but there may have been.
            Ok(None) | Err(_) => self.plugins.detach_all_but(&keep).await,
        };
        if let Err(error) = collected {
            tracing::warn!(error = %chain(&error), "plugins of the network keep what is of pods that are gone");
        }
    }

    /// Has plugins look, one pod after the other, whether those that were found again are attached as they were. What is
    /// wrong is told in the log and in the pod's status. Nothing else follows: plugins can repair nothing, whoever watches
    /// the pod can make it anew.
    pub(super) async fn check_by_plugins(&self) {
        let attached = |sandbox: &Sandbox| {
            let facts = sandbox.facts();
            facts.record.plugins && facts.record.phase == SandboxPhase::Ready
        };
        let found: Vec<Arc<Sandbox>> = self.table().sandboxes.values().filter(|one| attached(one)).cloned().collect();
        let until = Instant::now() + CHECKS;
        for (number, sandbox) in found.iter().enumerate() {
            if Instant::now() > until {
                let unchecked = found.len() - number;
                tracing::warn!(
                    unchecked,
                    "plugins of the network took too long, the networks of some pods were not looked at"
                );
                return;
            }
            // Plugins must not be called for one pod twice at once: who stops it waits so long.
            let _turn = sandbox.turn.read().await;
            if !attached(sandbox) {
                continue;
            }
            let problem = match tokio::time::timeout(CHECK, self.plugins.check(sandbox.id.as_str())).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => chain(&error),
                Err(_) => format!("plugins did not say within {} s whether it is whole", CHECK.as_secs()),
            };
            tracing::warn!(sandbox_id = %sandbox.id, error = problem, "a pod's network is not as plugins made it");
            let warning = format!("when this agent began, the pod's network was not as plugins made it: {problem}");
            sandbox.facts().warnings.push(warning);
        }
    }

    fn netns_path(&self, id: &SandboxId) -> PathBuf {
        self.config.run.join("netns").join(id.as_str())
    }
}

fn pin(netns: &OwnedFd, path: &std::path::Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        spawn::private_directory(directory, 0o711).map_err(io::Error::other)?;
    }
    File::create_new(path)?;
    let from = PathBuf::from(format!("/proc/self/fd/{}", netns.as_raw_fd()));
    Ok(mount(Some(&from), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

fn capabilities(config: &SandboxConfig) -> Capabilities {
    let names = Names {
        servers: config.dns.servers.clone(),
        searches: config.dns.searches.clone(),
        options: config.dns.options.clone(),
    };
    Capabilities {
        ports: config.port_mappings.clone(),
        ingress_bits: config.bandwidth.ingress_bits,
        egress_bits: config.bandwidth.egress_bits,
        dns: (names != Names::default()).then_some(names),
        cgroup: Some(config.cgroup_parent.clone()),
    }
}
