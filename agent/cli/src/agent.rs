//! `portreeve agent`: puts engine, node and doors together, and takes them apart again.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::fcntl::Flock;
use nix::libc;
use nix::sys::signal::SigSet;
use portreeve_api::cri::{Cri, CriSocket};
use portreeve_api::{Doors, NodeBackend};
use portreeve_engine::{Engine, EngineConfig, KubeletNetwork, LogRotation, image, network};
use portreeve_fleet::{Credentials, Fleet, FleetConfig};
use portreeve_node::{Node, NodeConfig};
use portreeve_oci::kernel::{self, Verdict};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::claim::{self, Claim, LOCK_PATIENCE};
use crate::config::{Cluster, Config, CriNetwork, LogFormat, Settings, resolve};
use crate::{doctor, verbs};

/// How long an agent that is not heard of is still taken for alive; it renews its Lease three times as often. As a
/// kubelet's `nodeLeaseDurationSeconds`.
const LEASE: Duration = Duration::from_secs(40);

#[derive(Debug, clap::Args)]
pub(crate) struct AgentArgs {
    /// File with the same settings as keys, in YAML; a flag beats it
    #[arg(long, value_name = "FILE", env = "PORTREEVE_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// At the end stop every pod and remove whatever this agent made on the machine
    #[arg(long, hide = true)]
    ephemeral: bool,
    /// End as after SIGTERM when this process, the one that starts the agent, ends
    #[arg(long, hide = true, value_name = "PID")]
    with_parent: Option<u32>,
    /// A flag of those who ask an agent, which all verbs have: refused, and not in the help
    #[arg(long, hide = true)]
    pub(crate) socket: Option<PathBuf>,
    /// The same
    #[arg(long, hide = true, value_parser = verbs::timeout)]
    pub(crate) request_timeout: Option<Duration>,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// A configuration that cannot be, a machine that lacks something, another agent in the same place.
pub(crate) fn run(args: AgentArgs, run: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    // Whoever started us may have blocked the very signals that end us.
    SigSet::all().thread_unblock().context("unblocking signals")?;
    if let Some(parent) = args.with_parent {
        end_with(parent)?;
    }
    let config = resolve(args.config.as_deref(), Settings { run, ..args.settings })?;
    log_to_stderr(&config)?;
    let node = node_config(&config)?;
    let group = socket_group(&config)?;
    check_machine(&config)?;
    if config.systemd_cgroup {
        portreeve_systemd::require(nix::unistd::geteuid().is_root())?;
    }
    config.check_places()?;
    // Held until the process ends; the kernel lets go of them whatever ends it.
    let mut places = [Place::take(&config.run)?, Place::take(&config.root)?];
    open_to(&config.run, group)?;
    // The engine kills what it does not know below its names: they must be nobody else's.
    let claim = Claim::take(&config)?;
    if config.manifests_by_default && !config.cri_only {
        std::fs::create_dir_all(&config.manifests).with_context(|| format!("making {}", config.manifests.display()))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    let served = runtime.block_on(serve(&config, node, args.ephemeral, &mut places));
    let released = if args.ephemeral { claim.release() } else { Ok(()) };
    served?;
    released.context("giving back the names in the kernel")?;
    Ok(ExitCode::SUCCESS)
}

/// Has the kernel send SIGTERM when the parent ends, however it does.
fn end_with(parent: u32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .context("asking for a signal when the parent ends")?;
    // One that ended before has sent nothing.
    if nix::unistd::getppid().as_raw().cast_unsigned() != parent {
        bail!("process {parent}, which started this agent, has ended");
    }
    Ok(())
}

async fn serve(config: &Config, node: NodeConfig, ephemeral: bool, places: &mut [Place]) -> anyhow::Result<()> {
    // Before anything is made, so that a signal during the start ends it as orderly as later.
    let mut signals = Signals::new()?;
    // An address that is taken is found before anything was made. Clients wait in the backlog.
    let doors = Doors::bind(&doors_config(config)?).await?;
    let cri = CriSocket::bind(&config.run.join("cri.sock")).await?;
    places.iter_mut().for_each(Place::keep);
    let engine = Engine::open(engine_config(config)).await.context("opening the engine")?;
    let served = run_node(config, node, &engine, (doors, cri), ephemeral, &mut signals).await;
    if ephemeral {
        engine.erase().await.context("removing what the agent made")?;
    }
    engine.shutdown().await;
    // After a failure the directories stay: they tell why, and may hold what another program needs.
    let node = served?;
    if ephemeral {
        node.erase().await.context("removing the pods' volumes")?;
        for directory in [&config.run, &config.root] {
            std::fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
        }
    }
    info!("stopped");
    Ok(())
}

/// Runs the node and the doors until a signal says stop; the node that was shut down.
async fn run_node(
    config: &Config,
    node: NodeConfig,
    engine: &Arc<Engine>,
    (doors, cri): (Doors, CriSocket),
    ephemeral: bool,
    signals: &mut Signals,
) -> anyhow::Result<Node> {
    let name = node.node_name.clone();
    let fleet = match &config.cluster {
        Some(cluster) => {
            Some(Fleet::open(fleet_config(config, cluster, &name)).await.context("taking workloads from a cluster")?)
        }
        None => None,
    };
    let others = fleet.iter().map(Fleet::sets).collect();
    let node = Node::start(node, Arc::clone(engine), others).await.context("starting the node")?;
    let listen = doors.listen_address();
    let description = write_description(config, listen)?;
    info!(
        node = name,
        manifests = (!config.cri_only).then(|| config.manifests.display().to_string()),
        metrics = listen.map(|address| address.to_string()),
        "the agent is ready"
    );

    let stop = CancellationToken::new();
    let served = tokio::spawn(doors.serve(Arc::new(NodeBackend::new(node.clone())), stop.clone()));
    let own_users =
        kernel::survey().iter().any(|fact| fact.name == "user namespaces" && fact.verdict == Verdict::Present);
    let cri_served = tokio::spawn(Cri::serve(
        Arc::clone(engine),
        node.clone(),
        own_users,
        config.runtime_handlers.clone(),
        cri,
        stop.clone(),
    ));
    let fleet = fleet.map(|fleet| fleet.run(node.clone(), stop.clone()));
    info!("stopping after {}", signals.stop().await);
    if ephemeral {
        tokio::select! {
            // cancel-safe: what is stopping goes on stopping, or is killed when everything is erased.
            drained = node.drain(None) => if let Err(error) = drained {
                warn!(error = format!("{:#}", anyhow!(error)), "draining failed");
            },
            // cancel-safe: signal streams.
            signal = signals.stop() => warn!("{signal} again: pods that are still stopping are killed"),
        }
    }
    stop.cancel();
    served.await.context("closing the doors")?;
    cri_served.await.context("closing the CRI socket")?;
    if let Some(fleet) = fleet {
        fleet.await.context("leaving the cluster")?;
    }
    node.shutdown().await;
    remove_if_there(&description)?;
    Ok(node)
}

/// What ends the agent, and what does not.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let wait = |kind, name| signal(kind).with_context(|| format!("waiting for {name}"));
        Ok(Self {
            terminate: wait(SignalKind::terminate(), "SIGTERM")?,
            interrupt: wait(SignalKind::interrupt(), "SIGINT")?,
            hangup: wait(SignalKind::hangup(), "SIGHUP")?,
        })
    }

    /// Waits for a signal that ends the agent, and names it.
    async fn stop(&mut self) -> &'static str {
        loop {
            tokio::select! {
                // cancel-safe: all are signal streams.
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                // A closed terminal ends no machine's agent, and there is nothing to load again.
                _ = self.hangup.recv() => info!("SIGHUP: manifests are watched, settings are read at the start; nothing to do"),
            }
        }
    }
}

fn engine_config(config: &Config) -> EngineConfig {
    let mut network = network::Config::new(config.run.join("network"));
    network.bridge.clone_from(&config.bridge);
    network.nft_table.clone_from(&config.nft_table);
    network.pod_cidr = config.pod_cidr;
    let mut images = image::Config::new(config.root.join("images"));
    images.insecure_registries.clone_from(&config.insecure_registries);
    images.ca_files.clone_from(&config.registry_cas);
    if config.keep_blobs {
        images.keep_blobs = image::KeepBlobs::Always;
    }
    images.partial_pulls = config.partial_pulls;
    images.certs_d = Some(config.registry_hosts.clone());
    images.registries_conf = Some(config.registries_conf.clone());
    let downloads = &config.downloads;
    images.max_concurrent_downloads = downloads.at_once.unwrap_or(images.max_concurrent_downloads);
    images.max_concurrent_downloads_per_registry = downloads.at_once_per_registry;
    images.connections_per_layer = downloads.connections.unwrap_or(images.connections_per_layer);
    images.download_rate_limit = downloads.bytes_per_second;
    images.download_window = downloads.window;
    images.stall_timeout = downloads.stall_timeout.unwrap_or(images.stall_timeout);
    images.mirror_timeout = downloads.mirror_timeout.unwrap_or(images.mirror_timeout);
    images.trust_policy.clone_from(&config.image_policy);
    images.preload_dir.clone_from(&config.preload);
    EngineConfig {
        root: config.root.clone(),
        run: config.run.clone(),
        cgroup_root: config.cgroup_root.clone(),
        network,
        kubelet_network: match config.cri_network {
            CriNetwork::Auto => KubeletNetwork::Auto,
            CriNetwork::Builtin => KubeletNetwork::Builtin,
            CriNetwork::Cni => KubeletNetwork::Plugins,
        },
        plugins: cni_config(config),
        systemd_cgroups: config.systemd_cgroup,
        cdi_directories: config.cdi_spec_dirs.clone(),
        selinux_root: "/".into(),
        images,
        log_rotation: LogRotation::default(),
        executable: None,
    }
}

/// Where networks of plugins are, and their records.
pub(crate) fn cni_config(config: &Config) -> network::cni::CniConfig {
    let mut plugins = network::cni::CniConfig::new(config.root.join("cni"));
    plugins.networks = config.cni_conf_dir.clone().unwrap_or(plugins.networks);
    if !config.cni_bin_dirs.is_empty() {
        plugins.plugins.clone_from(&config.cni_bin_dirs);
    }
    plugins
}

fn fleet_config(config: &Config, cluster: &Cluster, node_name: &str) -> FleetConfig {
    FleetConfig {
        credentials: cluster.kubeconfig.clone().map_or(Credentials::InCluster, Credentials::Kubeconfig),
        node_name: node_name.to_owned(),
        namespace: cluster.lease_namespace.clone(),
        root: config.root.clone(),
        lease: LEASE,
    }
}

fn node_config(config: &Config) -> anyhow::Result<NodeConfig> {
    let mut node = NodeConfig::new(config.node_name()?, &config.manifests, &config.root, &config.run);
    node.labels.clone_from(&config.node_labels);
    node.manifests_watched = !config.cri_only;
    node.cgroup_root.clone_from(&config.cgroup_root);
    node.image_collection = config.image_collection;
    Ok(node)
}

fn doors_config(config: &Config) -> anyhow::Result<portreeve_api::Config> {
    let mut doors = portreeve_api::Config::new(config.run.join("portreeve.sock"));
    doors.listen = Some(config.listen);
    doors.group = socket_group(config)?;
    Ok(doors)
}

fn socket_group(config: &Config) -> anyhow::Result<Option<u32>> {
    config.socket_group.as_deref().map(group_id).transpose()
}

fn group_id(name: &str) -> anyhow::Result<u32> {
    match name.parse() {
        // chown(2): leave the group as it is.
        Ok(u32::MAX) => bail!("socketGroup: {name} is no group"),
        Ok(number) => return Ok(number),
        Err(_) => {}
    }
    let groups = std::fs::read_to_string("/etc/group").context("reading /etc/group")?;
    groups
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find_map(|fields| match fields.as_slice() {
            [group, _, id, ..] if *group == name => id.parse().ok(),
            _ => None,
        })
        .ok_or_else(|| anyhow!("socketGroup: there is no group `{name}` in /etc/group"))
}

/// Every lack that would make containers fail later is said now, one line each.
fn check_machine(config: &Config) -> anyhow::Result<()> {
    let facts = kernel::survey().into_iter().chain([doctor::state_directory(&config.root)]);
    let lacks: Vec<_> = facts.filter(|fact| fact.verdict == Verdict::Missing).collect();
    if lacks.is_empty() {
        return Ok(());
    }
    for fact in &lacks {
        let advice = fact.advice.as_deref().unwrap_or("");
        writeln!(std::io::stderr(), "error: {}: {}. {advice}", fact.name, fact.found)?;
    }
    bail!("this machine cannot run containers as it is; `portreeve doctor` shows everything that was looked at")
}

/// A state directory that is this agent's alone for as long as this lives. What was made of it goes with an agent
/// that is refused.
#[derive(Debug)]
struct Place {
    /// The deepest first.
    made: Vec<PathBuf>,
    _lock: Flock<File>,
}

impl Place {
    /// Makes the directory with mode 0700, its parents as usual, and locks it.
    fn take(path: &Path) -> anyhow::Result<Self> {
        let made = path.ancestors().take_while(|above| !above.exists()).map(Path::to_owned).collect();
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("making {}", path.display()));
            }
            _ => {}
        }
        Ok(Self { made, _lock: lock(path, open(path)?)? })
    }

    /// Lets the directory stay when the agent ends.
    fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for directory in &self.made {
            // One that has something in it by now is somebody's.
            let _stays = std::fs::remove_dir(directory);
        }
    }
}

/// Opens the way to the socket for its group, or for nobody; what else lies there is root's alone.
fn open_to(run: &Path, group: Option<u32>) -> anyhow::Result<()> {
    let mode = if group.is_some() { 0o710 } else { 0o700 };
    std::os::unix::fs::chown(run, None, Some(group.unwrap_or(0)))
        .and_then(|()| std::fs::set_permissions(run, std::fs::Permissions::from_mode(mode)))
        .with_context(|| format!("setting group and mode of {}", run.display()))
}

fn open(directory: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(directory);
    opened.with_context(|| format!("opening {}", directory.display()))
}

/// Locks the directory itself: a file in it could be removed under the lock, and would stay after a refusal.
fn lock(directory: &Path, opened: File) -> anyhow::Result<Flock<File>> {
    let lock = claim::lock(opened, LOCK_PATIENCE).with_context(|| format!("locking {}", directory.display()))?;
    let lock = lock.with_context(|| {
        format!("another agent uses {}; stop it, or give this one its own --root and --run", directory.display())
    })?;
    let identity = |facts: std::fs::Metadata| (facts.dev(), facts.ino());
    // One that is refused removes what it had made, maybe while this one waited for the lock.
    if lock.metadata().map(identity).ok() != directory.metadata().map(identity).ok() {
        bail!("{} was removed by an agent that was refused; start this one again", directory.display());
    }
    Ok(lock)
}

/// `<run>/agent.json`: who runs here, for people and for scripts.
fn write_description(config: &Config, listen: Option<std::net::SocketAddr>) -> anyhow::Result<PathBuf> {
    let path = config.run.join("agent.json");
    let beside = config.run.join("agent.json.new");
    let text = serde_json::to_vec_pretty(&serde_json::json!({
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
        "listen": listen.map(|address| address.to_string()),
        "socket": config.run.join("portreeve.sock"),
        "criSocket": config.run.join("cri.sock"),
        "manifests": config.manifests,
        "root": config.root,
        "cgroupRoot": config.cgroup_root,
        "bridge": config.bridge,
        "nftTable": config.nft_table,
    }))?;
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, &path))
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

fn remove_if_there(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn log_to_stderr(config: &Config) -> anyhow::Result<()> {
    let mut filter =
        EnvFilter::try_new(&config.log).with_context(|| format!("log: `{}` is not a filter", config.log))?;
    // It logs each failed request as an error, which whoever made the request tells of in its own words.
    if !config.log.contains("kube_client") {
        filter = filter.add_directive("kube_client=off".parse().context("a filter")?);
    }
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Json => lines.json().init(),
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_for_an_agent_that_is_refused_goes_unless_it_is_used() {
        let home = tempfile::tempdir().unwrap();
        let (deep, old) = (home.path().join("a/b"), home.path().join("old"));
        std::fs::create_dir(&old).unwrap();
        drop([Place::take(&deep).unwrap(), Place::take(&old).unwrap()]);
        assert!(!home.path().join("a").exists() && old.exists());
        let held = Place::take(&deep).unwrap();
        let refused = format!("{:#}", Place::take(&deep).unwrap_err());
        assert!(refused.contains("another agent uses") && deep.exists(), "{refused}");
        std::fs::write(deep.join("state"), "").unwrap();
        drop(held);
        assert!(deep.join("state").exists());
    }

    #[test]
    fn a_directory_that_went_while_its_lock_was_waited_for_is_not_used() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("a");
        let first = Place::take(&place).unwrap();
        let opened = open(&place).unwrap();
        drop(first);
        let refused = lock(&place, opened).unwrap_err().to_string();
        assert!(refused.contains("start this one again"), "{refused}");
    }
}
