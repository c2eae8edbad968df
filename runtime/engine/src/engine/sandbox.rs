//! Making, stopping, losing and removing sandboxes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
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
use rustix::mount::UnmountFlags;

use super::table::{Sandbox, SandboxFacts};
use super::{Core, blocking, cgroup_error, files, ports, spawn, sysctls};
use crate::client::{Client, End, Listener};
use crate::error::all;
use crate::handler;
use crate::protocol::{Answer, Call, Event};
use crate::record::{self, SandboxPhase, SandboxRecord};
use crate::sandbox::{IpcNamespace, NetworkNamespace, PidNamespace, SandboxConfig, UserNamespace};
use crate::shim::{Pod, Scope};
use crate::{EngineError, EngineEvent, SandboxId, log_place};

/// How long a shim may take to say hello, and to end when asked.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Why a sandbox is not ready that was asked to stop.
const STOPPED: &str = "stopped";
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

    pub(super) async fn stop_sandbox(self: Arc<Self>, id: &SandboxId) -> Result<(), EngineError> {
        let Ok(sandbox) = self.find_sandbox(id) else { return Ok(()) };
        let _turn = sandbox.turn.write().await;
        self.halt(&sandbox, STOPPED).await
    }

    /// Ends everything of a sandbox but its records. The intent is recorded first; whoever comes after goes on.
    ///
    /// One that was lost becomes [`STOPPED`] when that is asked for and nothing of it is left.
    pub(super) async fn halt(self: &Arc<Self>, sandbox: &Sandbox, reason: &str) -> Result<(), EngineError> {
        let (client, child, was_ready, released, mut record) = {
            let mut facts = sandbox.facts();
            let was_ready = facts.record.phase == SandboxPhase::Ready;
            if was_ready {
                facts.record.phase = SandboxPhase::Stopped;
                facts.record.reason = reason.to_owned();
            }
            (facts.client.take(), facts.child.take(), was_ready, facts.released, facts.record.clone())
        };
        if was_ready {
            record::write(&sandbox.directory.join("sandbox.json"), &record)?;
        }
        if !released {
            // The network takes its time to go, and needs nobody inside.
            let (ended, released) =
                tokio::join!(self.end_shim(sandbox, client, child), self.release(&sandbox.id, &sandbox.directory));
            let errors: Vec<EngineError> = [ended, released].into_iter().filter_map(Result::err).collect();
            if was_ready && reason == STOPPED {
                self.tell(&self.order(), EngineEvent::SandboxStopped(sandbox.id.clone()));
            }
            all(errors)?;
            let mut facts = sandbox.facts();
            facts.record.ips.clear();
            facts.released = true;
        }
        if reason == STOPPED && record.reason != STOPPED {
            record.reason = STOPPED.to_owned();
            record.ips.clear();
            record::write(&sandbox.directory.join("sandbox.json"), &record)?;
            // Its end was told when it was lost.
            sandbox.facts().record.reason = record.reason;
        }
        Ok(())
    }

    /// Asks the shim to end with all its containers; a shim that does not listen is killed with them.
    async fn end_shim(
        &self,
        sandbox: &Sandbox,
        client: Option<Arc<Client>>,
        child: Option<Child>,
    ) -> Result<(), EngineError> {
        let (asked, silent) = match &client {
            Some(client) => match tokio::time::timeout(PATIENCE, client.ask(Call::Shutdown)).await {
                Ok(answer) => (answer.is_ok(), client.ended() == Some(End::Silent)),
                Err(_elapsed) => (false, true),
            },
            None => (false, false),
        };
        let reaper = Reaper(child);
        if !asked {
            let pid = sandbox.facts().record.shim_pid;
            let directory = sandbox.directory.clone();
            blocking(move || {
                // One that does not listen is not asked again.
                kill_shim(pid, &directory, !silent);
                Ok(())
            })
            .await?;
        }
        drop(reaper);
        self.bury(sandbox).await
    }

    /// Releases network and mounts; both may be gone already.
    async fn release(&self, id: &SandboxId, directory: &Path) -> Result<(), EngineError> {
        let by_plugins = self.detach_by_plugins(id).await;
        let (network, name, shm) = (Arc::clone(&self.network), id.to_string(), directory.join("shm"));
        blocking(move || {
            let mut errors: Vec<EngineError> = by_plugins.err().into_iter().collect();
            if let Err(source) = network.detach(&name) {
                errors.push(EngineError::Network { id: name, source });
            }
            if let Err(error) = unmount(&shm) {
                errors.push(error);
            }
            all(errors)
        })
        .await
    }

    /// There is no shim to speak to any more. When nobody asked for that, its containers are killed, and everybody hears
    /// of it.
    pub(super) async fn sandbox_lost(self: Arc<Self>, id: &SandboxId, reason: &str) {
        let Ok(sandbox) = self.find_sandbox(id) else { return };
        let _turn = sandbox.turn.write().await;
        if sandbox.facts().record.phase != SandboxPhase::Ready {
            return;
        }
        if let Err(error) = self.halt(&sandbox, reason).await {
            tracing::debug!(sandbox_id = %id, error = %crate::error::chain(&error), "lost sandbox not cleared");
        }
        self.tell(&self.order(), EngineEvent::SandboxLost { id: id.clone(), reason: reason.to_owned() });
    }

    pub(super) async fn remove_sandbox(self: Arc<Self>, id: &SandboxId) -> Result<(), EngineError> {
        let Ok(sandbox) = self.find_sandbox(id) else { return Ok(()) };
        let _turn = sandbox.turn.write().await;
        self.halt(&sandbox, STOPPED).await?;
        let mut errors = Vec::new();
        for container in self.containers_of(id) {
            if let Err(error) = self.remove_one(&container).await {
                errors.push(error);
            }
        }
        all(errors)?;
        let parent = sandbox.facts().record.config.cgroup_parent.clone();
        if self.is_ours(&parent) {
            self.remove_pod_cgroup(id, parent).await?;
        }
        let (directory, files) = (sandbox.directory.clone(), self.files_directory(id));
        blocking(move || remove_tree(&files).and_then(|()| remove_tree(&directory))).await?;
        let _order = self.order();
        let last = self.pod(id);
        self.table_mut().sandboxes.remove(id);
        self.tell_of(last, EngineEvent::SandboxRemoved(id.clone()));
        Ok(())
    }

    /// Removes the cgroup of a sandbox, unless it is another one's, too.
    async fn remove_pod_cgroup(&self, id: &SandboxId, path: String) -> Result<(), EngineError> {
        let making = self.making.lock().await;
        let shares = |other: &Arc<Sandbox>| other.id != *id && other.facts().record.config.cgroup_parent == path;
        if making.contains_key(&path) || self.table().sandboxes.values().any(shares) {
            return Ok(());
        }
        blocking(move || match Cgroup::at(&path) {
            Ok(cgroup) => cgroup.remove().map_err(cgroup_error("removing", &path)),
            // Then there never was one.
            Err(_) => Ok(()),
        })
        .await
    }

    /// Whether a cgroup is below our root, and not somebody else's that only houses our containers.
    pub(super) fn is_ours(&self, cgroup: &str) -> bool {
        let root = self.config.cgroup_root.trim_end_matches('/');
        cgroup.strip_prefix(root).is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
    }

    /// Removes all that a half-made sandbox can have left; for rollback and recovery.
    pub(super) async fn clear_sandbox(
        &self,
        id: &SandboxId,
        directory: &Path,
        shim_pid: Option<u32>,
    ) -> Result<(), EngineError> {
        let place = directory.to_owned();
        blocking(move || {
            kill_shim(shim_pid, &place, true);
            Ok(())
        })
        .await?;
        self.release(id, directory).await?;
        let (place, files) = (directory.to_owned(), self.files_directory(id));
        blocking(move || remove_tree(&files).and_then(|()| remove_tree(&place))).await
    }

    pub(super) async fn update_sandbox_resources(
        self: Arc<Self>,
        id: &SandboxId,
        resources: LinuxResources,
    ) -> Result<(), EngineError> {
        let sandbox = self.find_sandbox(id)?;
        let _turn = sandbox.turn.write().await;
        // What is of a slice is systemd's to write; who changes it tells systemd, and us.
        let parent = Some(sandbox.facts().record.clone()).filter(|record| record.scope.is_none());
        if let Some(parent) = parent.map(|record| record.config.cgroup_parent) {
            let limits = resources.clone();
            blocking(move || {
                let cgroup = Cgroup::at(&parent).map_err(cgroup_error("finding", &parent))?;
                super::container::limit_cgroup(&cgroup, limits)
            })
            .await?;
        }
        let record = {
            let mut facts = sandbox.facts();
            super::container::merge(&mut facts.record.config.resources, &resources);
            facts.record.clone()
        };
        record::write(&sandbox.directory.join("sandbox.json"), &record)
    }

    pub(super) async fn update_cgroup_resources(
        self: Arc<Self>,
        path: String,
        resources: LinuxResources,
    ) -> Result<(), EngineError> {
        if !self.is_ours(&path) {
            return Err(EngineError::invalid("cgroup", format!("{path} is not below {}", self.config.cgroup_root)));
        }
        blocking(move || {
            let cgroup = Cgroup::open_or_create(&path).map_err(cgroup_error("making", &path))?;
            super::container::limit_cgroup(&cgroup, resources)
        })
        .await
    }

    pub(super) async fn annotate_sandbox(
        self: Arc<Self>,
        id: &SandboxId,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
    ) -> Result<(), EngineError> {
        let sandbox = self.find_sandbox(id)?;
        let _turn = sandbox.turn.write().await;
        let record = {
            let mut facts = sandbox.facts();
            facts.record.config.labels = labels;
            facts.record.config.annotations = annotations;
            facts.record.clone()
        };
        record::write(&sandbox.directory.join("sandbox.json"), &record)
    }
}

/// The mode of a sandbox's directory, and of those of its containers. The run directory above is closed to others.
pub(super) fn bundle_mode(config: &SandboxConfig) -> u32 {
    // Another runtime becomes a root that is nobody here before it looks for what the shim shows it.
    if config.handler.is_some() && config.namespaces.user != UserNamespace::Node { 0o711 } else { 0o700 }
}

/// Reaps a shim that this process started, in its own time.
struct Reaper(Option<Child>);

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

/// Ends a shim that cannot be asked by its own client: over its socket if it `listens`, else by its process.
pub(super) fn kill_shim(recorded: Option<u32>, directory: &Path, listens: bool) {
    use std::io::Read as _;
    if listens
        && let Ok(mut stream) = spawn::connect(directory)
        && let Ok(mut call) =
            crate::protocol::Outgoing::new(&crate::protocol::Request { id: 1, call: Call::Shutdown }, Vec::new())
    {
        let waits = stream.set_read_timeout(Some(PATIENCE)).is_ok() && call.send(stream.as_fd()).is_ok();
        let mut rest = Vec::new();
        if waits && stream.read_to_end(&mut rest).is_ok() {
            return;
        }
    }
    if let Some(pid) = recorded.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw) {
        kill_if_shim(pid, directory);
    }
}

/// Kills a process if it is the shim of this directory; the descriptor is taken before the question is asked.
pub(super) fn kill_if_shim(pid: rustix::process::Pid, directory: &Path) -> bool {
    let Ok(pidfd) = portreeve_sys::process::pidfd_open(pid) else { return false };
    if shim_directory(pid).as_deref() != Some(directory) {
        return false;
    }
    let _gone = portreeve_sys::process::pidfd_send_signal(pidfd.as_fd(), nix::libc::SIGKILL);
    portreeve_sys::process::has_ended(pidfd.as_fd(), 5000).unwrap_or(true)
}

/// The directory that a process was started as a shim for.
pub(super) fn shim_directory(pid: rustix::process::Pid) -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
    let mut words = line.split(|byte| *byte == 0).skip(1);
    if words.next() != Some(b"shim") {
        return None;
    }
    words.next().map(|word| std::ffi::OsString::from_vec(word.to_vec()).into())
}

/// Takes a mount away, if there is one.
pub(super) fn unmount(path: &Path) -> Result<(), EngineError> {
    use rustix::io::Errno;
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // There may be several, one over the other.
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(EngineError::file("unmounting", path)(error.into())),
        }
    }
}

/// Removes a directory of ours; absent is fine. It is renamed first, so that nobody takes a half-removed one for whole.
pub(super) fn remove_tree(path: &Path) -> Result<(), EngineError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".removing");
    let aside = Path::new(&name);
    match fs::rename(path, aside) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(EngineError::file("removing", path)(error)),
    }
    portreeve_sys::tree::remove(aside).map_err(EngineError::file("removing", aside))
}
