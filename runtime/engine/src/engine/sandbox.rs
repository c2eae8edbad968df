//! Making sandboxes.

use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::Timestamp;
use oci_spec::runtime::LinuxResources;
use portreeve_network::Network;
use portreeve_oci::cgroup::Cgroup;
use portreeve_systemd::Place;

use super::table::{Sandbox, SandboxFacts};
use super::{Core, blocking, cgroup_error, files, ports, spawn, sysctls};
use crate::client::{Client, End, Listener};
use crate::handler;
use crate::protocol::{Answer, Event};
use crate::record::{self, SandboxPhase, SandboxRecord};
use crate::sandbox::{IpcNamespace, NetworkNamespace, PidNamespace, SandboxConfig, UserNamespace};
use crate::shim::{Pod, Scope};
use crate::{EngineError, EngineEvent, SandboxId, log_place};

/// How long a shim may take to say hello, and to end when asked.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Bound of a pod's `/dev/shm`, as everywhere.
const SHM_BYTES: u64 = 64 << 20;

/// Hears of one shim.
#[derive(Debug)]
pub(super) struct Ear {
    core: Weak<Core>,
    sandbox: SandboxId,
}

impl Ear {
    pub(super) fn new(core: &Arc<Core>, sandbox: &SandboxId) -> Arc<Self> {
        Arc::new(Self { core: Arc::downgrade(core), sandbox: sandbox.clone() })
    }
}

impl Listener for Ear {
    fn event(&self, event: Event) {
        if let (Some(core), Event::Exited { container, record }) = (self.core.upgrade(), event) {
            core.container_ended(&container, record);
        }
    }

    fn lost(&self, end: End) {
        if let Some(core) = self.core.upgrade() {
            let id = self.sandbox.clone();
            core.tasks.clone().spawn(async move { core.sandbox_lost(&id, end.reason()).await });
        }
    }
}

impl Core {
    pub(super) async fn run_sandbox(self: Arc<Self>, config: SandboxConfig) -> Result<SandboxId, EngineError> {
        check(&config)?;
        let id = SandboxId::random().map_err(EngineError::file("reading", Path::new("/dev/urandom")))?;
        let parent = config.cgroup_parent.clone();
        let scope = self.scope_of(&id, &config)?.is_some();
        // What was there before is somebody's, whether or not anything is in it yet.
        let makes_cgroup = !scope && Cgroup::at(&parent).is_ok_and(|cgroup| !cgroup.exists());
        *self.making.lock().await.entry(parent.clone()).or_default() += 1;
        match Arc::clone(&self).make_sandbox(&id, config).await {
            Ok(sandbox) => {
                {
                    let order = self.order();
                    self.table_mut().sandboxes.insert(id.clone(), Arc::clone(&sandbox));
                    self.tell(&order, EngineEvent::SandboxReady(id.clone()));
                }
                self.is_made(&parent).await;
                // Its end may have come before it was in the table.
                let client = sandbox.facts().client.clone();
                if let Some(end) = client.and_then(|client| client.ended()) {
                    Arc::clone(&self).sandbox_lost(&id, end.reason()).await;
                }
                Ok(id)
            }
            Err(error) => {
                self.is_made(&parent).await;
                let directory = self.sandboxes_directory().join(id.as_str());
                if let Err(leftover) = self.clear_sandbox(&id, &directory, None).await {
                    tracing::debug!(sandbox_id = %id, error = %crate::error::chain(&leftover), "half-made sandbox not cleared");
                }
                if makes_cgroup && let Err(leftover) = self.remove_pod_cgroup(&id, parent).await {
                    tracing::debug!(sandbox_id = %id, error = %crate::error::chain(&leftover), "cgroup of a half-made sandbox not removed");
                }
                Err(error)
            }
        }
    }

    /// A pod below this cgroup is in the table, or will not come.
    async fn is_made(&self, parent: &str) {
        if let Entry::Occupied(mut count) = self.making.lock().await.entry(parent.to_owned()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    async fn make_sandbox(self: Arc<Self>, id: &SandboxId, config: SandboxConfig) -> Result<Arc<Sandbox>, EngineError> {
        let directory = self.sandboxes_directory().join(id.as_str());
        let mut config = config;
        let place = self.scope_of(id, &config)?;
        if let Some(place) = &place {
            // However it was written.
            place.above().clone_into(&mut config.cgroup_parent);
        }
        let mut record = SandboxRecord {
            version: record::VERSION,
            id: id.clone(),
            phase: SandboxPhase::Making,
            scope: place.map(|place| place.cgroup),
            config,
            created_at: Timestamp::now(),
            ips: Vec::new(),
            shim_pid: None,
            selinux: None,
            plugins: false,
            reason: String::new(),
        };

        let (core, place) = (Arc::clone(&self), directory.clone());
        let (mut record, level, child, stream) = blocking(move || {
            let (labels, level) = core.selinux.of_pod(&record.config)?.unzip();
            record.selinux = labels;
            let (child, stream) = core.spawn_shim(&place, &record)?;
            Ok((record, level.flatten(), child, stream))
        })
        .await?;
        let guard = Reaper(Some(child));
        let client =
            Arc::new(Client::new(stream, Ear::new(&self, id)).map_err(EngineError::file("connecting to", &directory))?);

        // While the shim begins: what does not need it.
        let (files, config, ours) = (self.files_directory(id), record.config.clone(), record.scope.is_none());
        let around = blocking(move || surroundings(&files, &config, ours));
        let (hello, around) = tokio::join!(greet(&client, id, &directory), around);
        let (answer, mut fds) = hello?;
        around?;
        let (user_namespace, pid_namespace) = match answer {
            Answer::Hello { pid, user_namespace, pid_namespace, .. } => {
                record.shim_pid = Some(pid);
                (user_namespace, pid_namespace)
            }
            _ => return Err(EngineError::Shim("the shim did not say hello".to_owned())),
        };

        let mut warnings = Vec::new();
        if record.config.namespaces.network == NetworkNamespace::Pod {
            let netns =
                fds.pop().ok_or_else(|| EngineError::Shim("the shim passed no network namespace".to_owned()))?;
            match self.attach_by_plugins(id, &record.config, netns).await? {
                Ok(ips) => (record.plugins, record.ips) = (true, ips),
                Err(netns) => {
                    let ports = ports::built_in(&record.config.port_mappings)?;
                    let (network, name) = (Arc::clone(&self.network), id.to_string());
                    let (attachment, obstacles) = blocking(move || {
                        let attached = network.attach(&name, netns.as_fd(), &ports);
                        let attachment = attached.map_err(|source| EngineError::Network { id: name, source })?;
                        Ok((attachment, obstacles(&network)))
                    })
                    .await?;
                    warnings = obstacles;
                    record.ips = vec![IpAddr::V4(attachment.address)];
                }
            }
        }
        sysctls::set_late(&client, &record.config).await?;
        record.phase = SandboxPhase::Ready;
        record::write(&directory.join("sandbox.json"), &record)?;
        let facts = SandboxFacts {
            record,
            client: Some(client),
            user_namespace,
            pid_namespace,
            child: guard.release(),
            released: false,
            _level: level,
            warnings,
        };
        Ok(Arc::new(Sandbox::new(directory, facts)))
    }

    /// Where systemd makes the scope of a pod; `None` when it does not.
    fn scope_of(&self, id: &SandboxId, config: &SandboxConfig) -> Result<Option<Place>, EngineError> {
        let parent = &config.cgroup_parent;
        if !self.config.systemd_cgroups || !portreeve_systemd::is_slice(parent) {
            return Ok(None);
        }
        let place = Place::of_pod(parent, id.as_str());
        place.map(Some).map_err(|error| EngineError::invalid("cgroupParent", error.to_string()))
    }

    fn spawn_shim(&self, directory: &Path, record: &SandboxRecord) -> Result<(Child, UnixStream), EngineError> {
        let config = &record.config;
        spawn::private_directory(directory, bundle_mode(config))?;
        record::write(&directory.join("sandbox.json"), record)?;
        record::write(&directory.join("intent.json"), record)?;
        spawn::private_directory(&directory.join("containers"), bundle_mode(config))?;
        let shm = directory.join("shm");
        spawn::private_directory(&shm, 0o755)?;
        let network = config.namespaces.network == NetworkNamespace::Pod;
        let own_ipc = config.namespaces.ipc == IpcNamespace::Pod;
        let pod = Pod {
            version: record::VERSION,
            cgroup: self.shims_cgroup(),
            scope: record.scope.as_ref().map(|_| Scope {
                parent: config.cgroup_parent.clone(),
                id: record.id.to_string(),
                pod: format!("{}/{}", config.metadata.namespace, config.metadata.name),
            }),
            network,
            ipc: own_ipc,
            pid: config.namespaces.pid == PidNamespace::Pod,
            user: match &config.namespaces.user {
                UserNamespace::Node => None,
                UserNamespace::Pod { uid_maps, gid_maps } => {
                    let rows = |maps: &[crate::IdMapping]| {
                        maps.iter().map(|map| (map.container, map.host, map.length)).collect::<Vec<_>>()
                    };
                    Some((rows(uid_maps), rows(gid_maps)))
                }
            },
            hostname: config.hostname.clone(),
            sysctls: sysctls::early(config),
            shm: own_ipc.then_some((shm, SHM_BYTES)),
            runtime: config.handler.as_ref().map(|handler| handler.program.clone()),
        };
        if pod.runtime.is_some() {
            spawn::private_directory(&handler::state_directory(directory), 0o700)?;
        }
        record::write(&directory.join("shim.json"), &pod)?;
        self.executable.spawn(directory)
    }

    /// The cgroup that all shims are in.
    pub(super) fn shims_cgroup(&self) -> String {
        format!("{}/shims", self.config.cgroup_root.trim_end_matches('/'))
    }
}

/// The mode of a sandbox's directory, and of those of its containers. The run directory above is closed to others.
pub(super) fn bundle_mode(config: &SandboxConfig) -> u32 {
    // Another runtime becomes a root that is nobody here before it looks for what the shim shows it.
    if config.handler.is_some() && config.namespaces.user != UserNamespace::Node { 0o711 } else { 0o700 }
}

/// Reaps a shim that this process started, in its own time.
pub(super) struct Reaper(pub(super) Option<Child>);

impl Reaper {
    fn release(mut self) -> Option<Child> {
        self.0.take()
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It has ended, is ending, or is being killed: the wait is short, but it is a wait.
            drop(tokio::task::spawn_blocking(move || child.wait()));
        }
    }
}

async fn greet(
    client: &Client,
    id: &SandboxId,
    directory: &Path,
) -> Result<(Answer, Vec<std::os::fd::OwnedFd>), EngineError> {
    match tokio::time::timeout(PATIENCE, client.hello(id)).await {
        Ok(Err(EngineError::ShimLost)) => Err(match spawn::last_words(directory) {
            Some(words) => EngineError::Shim(format!("the shim ended at once: {words}")),
            None => EngineError::ShimLost,
        }),
        Ok(answer) => answer,
        Err(_) => Err(EngineError::Shim(format!("the shim did not answer within {PATIENCE:?}"))),
    }
}

/// What others do to the traffic of pods, in words with what to do about it.
fn obstacles(network: &Network) -> Vec<String> {
    let bridge = &network.config().bridge;
    match network.recently_blocking_chains() {
        Ok(chains) => chains
            .iter()
            .map(|chain| {
                format!(
                    "pods may have no way out and their host ports no answer: {chain}; accept in it what enters or \
                     leaves through {bridge}"
                )
            })
            .collect(),
        Err(error) => {
            tracing::debug!(error = %crate::error::chain(&error), "not known what others do to forwarded packets");
            Vec::new()
        }
    }
}

/// Cgroup, unless it is not `ours` to make, files and log directory of a sandbox.
fn surroundings(files: &Path, config: &SandboxConfig, ours: bool) -> Result<(), EngineError> {
    if ours {
        let parent = &config.cgroup_parent;
        let cgroup = Cgroup::open_or_create(parent).map_err(cgroup_error("making", parent))?;
        if config.resources != LinuxResources::default() {
            super::container::limit_cgroup(&cgroup, config.resources.clone())?;
        }
    }
    spawn::private_directory(files, bundle_mode(config))?;
    files::write(files, config)?;
    if config.log_directory.as_os_str().is_empty() {
        return Ok(());
    }
    spawn::private_directory(&config.log_directory, 0o750)?;
    let refused = |error| {
        let message = format!("{}: {error} (a symbolic link is not followed)", config.log_directory.display());
        EngineError::invalid("logDirectory", message)
    };
    log_place::home(&config.log_directory).map(drop).map_err(refused)
}

fn check(config: &SandboxConfig) -> Result<(), EngineError> {
    let own_network = config.namespaces.network == NetworkNamespace::Pod;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if own_network && (config.hostname.len() > 64 || !config.hostname.chars().all(plain)) {
        return Err(EngineError::invalid(
            "hostname",
            format!("{:?} is no hostname of at most 64 bytes", config.hostname),
        ));
    }
    if !config.log_directory.is_absolute() && !config.log_directory.as_os_str().is_empty() {
        return Err(EngineError::invalid("logDirectory", "must be absolute, or empty when no logs are kept"));
    }
    Cgroup::at(&config.cgroup_parent).map_err(cgroup_error("naming", &config.cgroup_parent))?;
    for (name, value) in &config.sysctls {
        let dotted = name.replace('/', ".");
        let network = dotted.starts_with("net.");
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| dotted.starts_with(prefix))
            || dotted == "kernel.sem";
        let own_ipc = config.namespaces.ipc == IpcNamespace::Pod;
        if !(network && own_network || ipc && own_ipc) {
            return Err(EngineError::invalid(
                format!("sysctls[{name}]"),
                "is not a parameter of the pod's own namespaces",
            ));
        }
        if value.contains(['\n', '\0']) || name.split(['.', '/']).any(str::is_empty) {
            return Err(EngineError::invalid(format!("sysctls[{name}]"), "is not one name and one value"));
        }
    }
    files::check(&config.dns)
}
