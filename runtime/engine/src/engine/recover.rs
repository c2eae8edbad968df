//! Opening: everything that was is found again, what was half made is undone, what nobody owns is removed.
//!
//! ```text
//!   records on disk, shims --newer than us?--> refuse, nothing touched
//!   names in the kernel    --another's?------> refuse, nothing touched
//!     | any       damaged          -> its sandbox is killed, NotReady{why}; the file is kept in <run>/damaged
//!     | sandbox   making           -> cleared
//!     |           stopped          -> what may be left of it is released again
//!     |           ready            -> shim answers: kept;  does not: its containers are killed, NotReady{shim died}
//!     | container making           -> cleared
//!     |           made             -> as the shim says, or exit.json, or killed
//!   kernel and stores: cgroups below our root, shims, snapshots, network attachments without an owner -> removed
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use portreeve_network::{Network, cni::Cni};
use portreeve_oci::cgroup::{self, Cgroup};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::container::{container_cgroup, kill_abandoned, kill_cgroup, recorded_exit};
use super::ending::{kill_if_shim, kill_shim, remove_tree, shim_directory};
use super::sandbox::{Ear, PATIENCE};
use super::spawn::{self, Executable};
use super::table::{Container, ContainerFacts, Sandbox, SandboxFacts, Table};
use super::{Core, EVENTS, blocking, cgroup_error, ports, sysctls};
use crate::client::{Client, End};
use crate::error::{all, chain};
use crate::handler;
use crate::protocol::{Answer, Call, ContainerReport};
use crate::record::{self, ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};
use crate::sandbox::NetworkNamespace;
use crate::selinux::Selinux;
use crate::shim::HOOKS;
use crate::{ContainerId, EngineConfig, EngineError, SandboxId};

/// What a shim may take to answer when its hooks have ended.
const AFTER_HOOKS: Duration = Duration::from_secs(5);

/// A sandbox's directory, and what was found in it.
struct Found {
    id: SandboxId,
    directory: PathBuf,
    record: Option<SandboxRecord>,
    containers: Vec<(ContainerId, PathBuf, Option<ContainerRecord>)>,
    damages: Vec<Damage>,
}

/// A record that cannot be understood.
struct Damage {
    path: PathBuf,
    error: EngineError,
}

impl Found {
    /// Reads a record; what is wrong with a damaged one is kept.
    fn read<T: DeserializeOwned>(&mut self, path: PathBuf) -> Result<Option<T>, EngineError> {
        match record::read(&path) {
            Err(error @ EngineError::DamagedState { .. }) => {
                self.damages.push(Damage { path, error });
                Ok(None)
            }
            other => other,
        }
    }
}

pub(super) async fn open(config: EngineConfig) -> Result<Arc<Core>, EngineError> {
    // A hundred pods at once are a hundred threads for a moment: they need no hundred heaps.
    portreeve_sys::memory::limit_arenas(2);
    // A layer that comes has buffers of that size and, while it is unpacked, a window of some MiB.
    portreeve_sys::memory::map_large(256 << 10);
    let (core, found, strangers) = blocking(move || {
        let sandboxes = config.run.join("sandboxes");
        spawn::private_directory(&config.root, 0o711)?;
        spawn::private_directory(&sandboxes, 0o700)?;
        // The modes of those in it decide.
        spawn::private_directory(&config.root.join("sandboxes"), 0o711)?;
        // All records are read before anything is touched: what a newer program left is not to be harmed.
        let (found, strangers) = scan(&sandboxes)?;
        let executable = Executable::open(config.executable.as_deref())?;
        let images = portreeve_image::Store::open(config.images.clone()).map_err(|error| EngineError::Images {
            action: "opening the image store".to_owned(),
            source: error.into(),
        })?;
        let network = Arc::new(Network::open(config.network.clone()).map_err(EngineError::NetworkOpen)?);
        // What another agent has is not to be harmed either.
        network.check().map_err(EngineError::NetworkOpen)?;
        let plugins = Cni::open(config.plugins.clone()).map_err(EngineError::PluginNetwork)?;
        let selinux = Selinux::at(&config.selinux_root);
        let core = Arc::new(Core {
            config,
            plugins,
            standing: Default::default(),
            executable,
            images,
            network,
            table: RwLock::new(Table::default()),
            events: broadcast::Sender::new(EVENTS),
            pod_events: broadcast::Sender::new(EVENTS),
            order: Mutex::default(),
            making: Default::default(),
            tasks: TaskTracker::new(),
            accounts: Default::default(),
            capabilities: portreeve_sys::capability::bounding().unwrap_or(0),
            apparmor: crate::apparmor::Loader::default(),
            selinux,
        });
        Ok((core, found, strangers))
    })
    .await?;
    let mut shims = core.find_shims(&found).await?;
    // What can refuse has done so: from here on things are killed and removed.
    blocking(move || strangers.iter().try_for_each(|stranger| remove_tree_of_mounts(stranger))).await?;

    let mut recovering = JoinSet::new();
    for one in found {
        let core = Arc::clone(&core);
        let shim = shims.remove(&one.id);
        recovering.spawn(async move {
            let id = one.id.clone();
            (id, core.recover_sandbox(one, shim).await)
        });
    }
    let mut netns = BTreeMap::new();
    while let Some(done) = recovering.join_next().await {
        match done {
            Ok((id, Ok(fd))) => {
                if let Some(fd) = fd {
                    netns.insert(id.to_string(), fd);
                }
            }
            Ok((id, Err(error))) => {
                tracing::warn!(sandbox_id = %id, error = %chain(&error), "sandbox not recovered whole, it is tried again at the next start");
            }
            Err(error) => return Err(EngineError::Shim(format!("recovery ended early: {error}"))),
        }
    }
    let cleaner = Arc::clone(&core);
    for sandbox in blocking(move || cleaner.clean(&netns)).await? {
        let (client, config) = {
            let facts = sandbox.facts();
            (facts.client.clone(), facts.record.config.clone())
        };
        // Those of its interface went with that.
        let Some(client) = client else { continue };
        if let Err(error) = sysctls::set_late(&client, &config).await {
            tracing::warn!(sandbox_id = %sandbox.id, error = %chain(&error), "parameters of a pod's new link not set, make the pod anew");
        }
    }
    Ok(core)
}

/// Reads every record. Also comes back: directories of no sandbox, which removals left.
fn scan(sandboxes: &Path) -> Result<(Vec<Found>, Vec<PathBuf>), EngineError> {
    let (mut found, mut strangers) = (Vec::new(), Vec::new());
    for (name, directory) in entries(sandboxes)? {
        let Ok(id) = name.parse::<SandboxId>() else {
            strangers.push(directory);
            continue;
        };
        let mut one = Found { id, directory, record: None, containers: Vec::new(), damages: Vec::new() };
        one.record = one.read(one.directory.join("sandbox.json"))?;
        refuse_newer(&one.directory, &["intent.json", "shim.json"])?;
        for (name, directory) in entries(&one.directory.join("containers"))? {
            match name.parse::<ContainerId>() {
                Ok(id) => {
                    let record = one.read(directory.join("container.json"))?;
                    refuse_newer(&directory, &["exit.json"])?;
                    one.containers.push((id, directory, record));
                }
                Err(_) => strangers.push(directory),
            }
        }
        found.push(one);
    }
    Ok((found, strangers))
}

/// Of records that are read later on, if at all: that no newer program wrote them.
fn refuse_newer(directory: &Path, names: &[&str]) -> Result<(), EngineError> {
    for name in names {
        // Whoever reads it finds what else is wrong with it.
        if let Err(error @ EngineError::NewerState { .. }) = record::read::<record::Versioned>(&directory.join(name)) {
            return Err(error);
        }
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, EngineError> {
    let all = match fs::read_dir(directory) {
        Ok(all) => all,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(EngineError::file("listing", directory)(error)),
    };
    let mut found = Vec::new();
    for entry in all {
        let entry = entry.map_err(EngineError::file("listing", directory))?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

fn remove_tree_of_mounts(path: &Path) -> Result<(), EngineError> {
    let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
    let _no_mount = rustix::mount::unmount(path.join("shm"), flags);
    remove_tree(path)
}

impl Core {
    /// Connects to the shims of all sandboxes that are ready; what does not answer is left out.
    async fn find_shims(self: &Arc<Self>, found: &[Found]) -> Result<BTreeMap<SandboxId, Shim>, EngineError> {
        let is_ready = |one: &&Found| {
            let ready = |record: &SandboxRecord| record.phase == SandboxPhase::Ready;
            one.damages.is_empty() && one.record.as_ref().is_some_and(ready)
        };
        let mut finding = JoinSet::new();
        for one in found.iter().filter(is_ready) {
            let (core, id, directory) = (Arc::clone(self), one.id.clone(), one.directory.clone());
            finding.spawn(async move {
                let shim = core.find_shim(&id, &directory).await?;
                Ok::<_, EngineError>(shim.map(|shim| (id, shim)))
            });
        }
        let mut shims = BTreeMap::new();
        while let Some(done) = finding.join_next().await {
            let found = done.map_err(|error| EngineError::Shim(format!("recovery ended early: {error}")))?;
            shims.extend(found?);
        }
        Ok(shims)
    }

    /// Takes a sandbox back into the table, or clears it. The network namespace of a living one comes back.
    async fn recover_sandbox(
        self: &Arc<Self>,
        found: Found,
        shim: Option<Shim>,
    ) -> Result<Option<OwnedFd>, EngineError> {
        let Found { id, directory, mut record, containers, damages } = found;
        if !damages.is_empty() {
            record = self.give_up(&id, &directory, record, damages).await?;
        }
        let Some(record) = record.filter(|record| record.phase != SandboxPhase::Making) else {
            let mut errors = Vec::new();
            for (container, directory, record) in containers {
                let cgroup = record.map(|record| record.cgroup).unwrap_or_default();
                errors.extend(self.clear_container(None, &container, &directory, &cgroup).await.err());
            }
            all(errors)?;
            self.clear_sandbox(&id, &directory, None).await?;
            return Ok(None);
        };
        let ready = record.phase == SandboxPhase::Ready;
        let own_network = record.config.namespaces.network == NetworkNamespace::Pod;
        let level = record.selinux.as_ref().and_then(|labels| self.selinux.hold(labels));
        let mut facts = SandboxFacts {
            record,
            client: None,
            user_namespace: None,
            pid_namespace: None,
            child: None,
            released: false,
            _level: level,
            warnings: Vec::new(),
        };
        let mut netns = None;
        let mut reports = None;
        if let Some(found) = shim.filter(|_| ready) {
            // What plugins have attached is theirs to repair.
            netns = found.netns.filter(|_| own_network && !facts.record.plugins);
            facts.client = Some(found.client);
            facts.user_namespace = found.user_namespace;
            facts.pid_namespace = found.pid_namespace;
            reports = Some(found.containers);
        }
        let client = facts.client.clone();
        if client.is_none() {
            // One that was given up may still write down how its containers end, which is read below.
            let (pid, place) = (facts.record.shim_pid, directory.clone());
            blocking(move || {
                kill_shim(pid, &place, true);
                Ok(())
            })
            .await?;
        }
        let sandbox = Arc::new(Sandbox::new(directory, facts));
        self.table_mut().sandboxes.insert(id.clone(), Arc::clone(&sandbox));
        for (container, directory, record) in containers {
            let name = container.to_string();
            let recovered =
                self.recover_container(&sandbox, client.as_deref(), reports.as_deref(), container, directory, record);
            // Its sandbox and the others of that are not worse off for it.
            if let Err(error) = recovered.await {
                tracing::warn!(sandbox_id = %id, container_id = name, error = %chain(&error), "container not recovered, it is tried again at the next start");
            }
        }
        match (client, reports) {
            (Some(client), Some(reports)) => {
                // Events that came before its containers were in the table are lost: exits are asked for once more.
                let missed = reports.iter().filter(|report| report.exit.is_none()).count() > 0;
                if missed && let Ok((Answer::State { containers }, _)) = client.ask(Call::State).await {
                    for report in containers {
                        if let Some(exit) = report.exit {
                            self.container_ended(&report.container, exit);
                        }
                    }
                }
                if let Some(end) = client.ended() {
                    Arc::clone(self).sandbox_lost(&id, end.reason()).await;
                }
            }
            _ if ready => Arc::clone(self).sandbox_lost(&id, End::Died.reason()).await,
            _ => {
                let _turn = sandbox.turn.write().await;
                // For its own reason: nobody has asked yet to stop one that was lost.
                let reason = sandbox.facts().record.reason.clone();
                self.halt(&sandbox, &reason).await?;
            }
        }
        Ok(netns)
    }

    /// A sandbox of which not all is known cannot be judged: it ends, and its owner learns why. Without a record of it
    /// nobody can say whose it was.
    async fn give_up(
        &self,
        id: &SandboxId,
        directory: &Path,
        record: Option<SandboxRecord>,
        damages: Vec<Damage>,
    ) -> Result<Option<SandboxRecord>, EngineError> {
        let kept = self.config.run.join("damaged");
        let (id, place) = (id.clone(), directory.to_owned());
        blocking(move || {
            spawn::private_directory(&kept, 0o700)?;
            let mut reason = String::new();
            let mut lost = false;
            for Damage { path, error } in damages {
                let inside = path.strip_prefix(&place).unwrap_or(&path).display().to_string().replace('/', ".");
                let aside = kept.join(format!("{id}.{inside}.damaged"));
                let (kept_as, error) = (aside.display(), chain(&error));
                tracing::warn!(sandbox_id = %id, %error, %kept_as, "record damaged, its sandbox is given up");
                reason = format!("a record of it was damaged ({error}) and is kept as {kept_as}");
                lost |= path.parent() == Some(&place);
                fs::rename(&path, &aside).map_err(EngineError::file("putting aside", &path))?;
            }
            let record = match record {
                // What became of it later is not known.
                None if lost => match record::read::<SandboxRecord>(&place.join("intent.json")) {
                    Err(EngineError::DamagedState { .. }) => None,
                    first => first?.map(|first| SandboxRecord { phase: SandboxPhase::Ready, ..first }),
                },
                record => record,
            };
            let Some(mut record) = record else { return Ok(None) };
            kill_shim(record.shim_pid, &place, true);
            if record.phase == SandboxPhase::Ready {
                record.phase = SandboxPhase::Stopped;
                record.reason = reason;
                record::write(&place.join("sandbox.json"), &record)?;
            }
            Ok(Some(record))
        })
        .await
    }

    /// The shim of a sandbox, if it can be used.
    ///
    /// # Errors
    /// [`EngineError::NewerShim`]
    async fn find_shim(self: &Arc<Self>, id: &SandboxId, directory: &Path) -> Result<Option<Shim>, EngineError> {
        let connected = spawn::connect(directory).and_then(|stream| Client::new(stream, Ear::new(self, id)));
        let Ok(client) = connected.map(Arc::new) else { return Ok(None) };
        let greeting = async {
            let hello = client.hello(id).await?;
            Ok::<_, EngineError>((hello, client.ask(Call::State).await?))
        };
        // One that waits for a program of another runtime, or runs hooks just now, answers when that has ended.
        let patience = if handler::state_directory(directory).exists() {
            handler::BUSY
        } else if has_hooks(directory) {
            HOOKS + AFTER_HOOKS
        } else {
            PATIENCE
        };
        let ((hello, mut fds), (state, _)) = match tokio::time::timeout(patience, greeting).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(error @ EngineError::NewerShim { .. })) => return Err(error),
            Ok(Err(error)) => {
                tracing::warn!(sandbox_id = %id, error = %chain(&error), "shim cannot be used, its sandbox is given up");
                return Ok(None);
            }
            Err(_) => {
                tracing::warn!(sandbox_id = %id, "shim does not answer, its sandbox is given up");
                return Ok(None);
            }
        };
        let (Answer::Hello { user_namespace, pid_namespace, .. }, Answer::State { containers }) = (hello, state) else {
            return Ok(None);
        };
        Ok(Some(Shim { client, netns: fds.pop(), user_namespace, pid_namespace, containers }))
    }

    async fn recover_container(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        client: Option<&Client>,
        reports: Option<&[ContainerReport]>,
        id: ContainerId,
        directory: PathBuf,
        record: Option<ContainerRecord>,
    ) -> Result<(), EngineError> {
        let Some(record) = record.filter(|record| record.phase == ContainerPhase::Made) else {
            // It never was a container to anybody, or is none any more.
            let cgroup = container_cgroup(sandbox.facts().record.containers_cgroup(), &id);
            return self.clear_container(client, &id, &directory, &cgroup).await;
        };
        let report = reports.and_then(|all| all.iter().find(|report| report.container == id.as_str()));
        let mut facts = ContainerFacts { record, pid: None, started_at: None, exit: None, removed: false };
        match report {
            Some(report) => {
                facts.pid = Some(report.pid);
                facts.started_at = report.started_at;
                facts.exit = report.exit.clone();
            }
            None => {
                let (cgroup, place, name) = (facts.record.cgroup.clone(), directory.clone(), id.to_string());
                let exit = blocking(move || {
                    kill_abandoned(&place, &name, &cgroup)?;
                    recorded_exit(&place, None)
                })
                .await?;
                facts.started_at = exit.started_at;
                facts.exit = Some(exit);
            }
        }
        let container = Arc::new(Container::new(directory, facts));
        self.table_mut().containers.insert(id, container);
        Ok(())
    }

    /// Removes what no sandbox or container owns. Blocking. A failure here stops nothing: it is tried at every start.
    /// Answers which pods have got a new link.
    fn clean(&self, netns: &BTreeMap<String, OwnedFd>) -> Result<Vec<Arc<Sandbox>>, EngineError> {
        let (parents, cgroups, names, living) = {
            let table = self.table();
            let parents: BTreeSet<String> =
                table.sandboxes.values().map(|one| one.facts().record.config.cgroup_parent.clone()).collect();
            let cgroups: BTreeSet<String> =
                table.containers.values().map(|one| one.facts().record.cgroup.clone()).collect();
            let names: BTreeSet<String> = table.containers.keys().map(ToString::to_string).collect();
            let living: BTreeSet<PathBuf> = table
                .sandboxes
                .values()
                .filter(|one| one.facts().client.is_some())
                .map(|one| one.directory.clone())
                .collect();
            (parents, cgroups, names, living)
        };
        // First what may be refused.
        let reconciled = self.network.reconcile(&netns.keys().cloned().collect()).map_err(EngineError::NetworkOpen)?;
        let attached: BTreeSet<String> = self.network.attachments().into_iter().map(|one| one.sandbox_id).collect();
        // Of an attachment whose record was damaged nothing is left.
        let forgotten = netns.keys().filter(|id| !attached.contains(*id)).cloned();
        let without_link = reconciled.detached.into_iter().chain(forgotten);
        let attached: Vec<_> = without_link.filter_map(|id| self.attach_again(&id, netns)).collect();
        self.clean_shims(&living)?;
        let shims = self.shims_cgroup();
        let root = self.config.cgroup_root.clone();
        for path in cgroup::list_below(&root).map_err(cgroup_error("listing below", &root))? {
            let owned = path == shims
                || cgroups.iter().any(|owned| within(&path, owned) || within(owned, &path))
                || parents.iter().any(|owned| within(owned, &path));
            if !owned {
                let removed = kill_cgroup(&path).and_then(|()| {
                    let cgroup = Cgroup::at(&path).map_err(cgroup_error("finding", &path))?;
                    cgroup.remove().map_err(cgroup_error("removing", &path))
                });
                note(removed);
            }
        }
        let snapshots = self
            .images
            .snapshots()
            .map_err(|error| EngineError::Images { action: "listing snapshots".to_owned(), source: error.into() });
        for snapshot in snapshots?.into_iter().filter(|snapshot| !names.contains(snapshot)) {
            note(self.images.remove_snapshot(&snapshot).map_err(|error| EngineError::Images {
                action: format!("removing snapshot {snapshot}"),
                source: error.into(),
            }));
        }
        for (name, path) in entries(&self.all_files_directory())? {
            if !name.parse::<SandboxId>().is_ok_and(|id| self.find_sandbox(&id).is_ok()) {
                note(remove_tree(&path));
            }
        }
        Ok(attached)
    }

    /// A living pod whose link is gone gets a new one, and is the answer then.
    fn attach_again(&self, id: &str, netns: &BTreeMap<String, OwnedFd>) -> Option<Arc<Sandbox>> {
        let sandbox = id.parse::<SandboxId>().ok().and_then(|id| self.find_sandbox(&id).ok())?;
        let fd = netns.get(id)?;
        let attached = ports::built_in(&sandbox.facts().record.config.port_mappings).and_then(|ports| {
            let attached = self.network.attach(id, fd.as_fd(), &ports);
            attached.map_err(|source| EngineError::Network { id: id.to_owned(), source })
        });
        match attached {
            Ok(attachment) => {
                let record = {
                    let mut facts = sandbox.facts();
                    facts.record.ips = vec![attachment.address.into()];
                    facts.record.clone()
                };
                note(record::write(&sandbox.directory.join("sandbox.json"), &record));
                Some(sandbox)
            }
            Err(error) => {
                note(Err(error));
                None
            }
        }
    }

    /// Kills shims of ours that belong to no living sandbox: those whose agent was killed right after it had started
    /// them, and first processes of shared pid namespaces that outlived their shim by an instant.
    fn clean_shims(&self, living: &BTreeSet<PathBuf>) -> Result<(), EngineError> {
        let path = self.shims_cgroup();
        let cgroup = Cgroup::at(&path).map_err(cgroup_error("finding", &path))?;
        let sandboxes = self.sandboxes_directory();
        for pid in cgroup.processes().map_err(cgroup_error("reading", &path))? {
            if let Some(directory) = shim_directory(pid)
                && directory.starts_with(&sandboxes)
                && !living.contains(&directory)
            {
                kill_if_shim(pid, &directory);
            } else if let Some(bundle) = handler::called_for(pid)
                && bundle.starts_with(&sandboxes)
                && !living.iter().any(|directory| bundle.starts_with(directory))
            {
                handler::kill_if_called_for(pid, &bundle);
            }
        }
        Ok(())
    }
}

/// A shim that was found again.
struct Shim {
    client: Arc<Client>,
    netns: Option<OwnedFd>,
    user_namespace: Option<String>,
    pid_namespace: Option<String>,
    containers: Vec<ContainerReport>,
}

/// Whether a container of the sandbox has hooks.
fn has_hooks(sandbox: &Path) -> bool {
    let containers = fs::read_dir(sandbox.join("containers"));
    containers.is_ok_and(|all| all.flatten().any(|one| one.path().join(record::ROOTFS).is_dir()))
}

/// Whether `path` is `above` or below it.
fn within(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn note(result: Result<(), EngineError>) {
    if let Err(error) = result {
        tracing::warn!(error = %chain(&error), "leftover not removed, it is tried again at the next start");
    }
}
