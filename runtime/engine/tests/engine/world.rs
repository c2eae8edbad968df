//! An engine of a test's own, with an image, that is gone without a trace when it is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) use portreeve_engine::chain;
use portreeve_engine::{
    ContainerConfig, ContainerId, ContainerMetadata, ContainerState, ContainerStatus, Engine, EngineConfig,
    KubeletNetwork, LogRotation, Namespaces, NetworkNamespace, Owner, SandboxConfig, SandboxId, SandboxMetadata, image,
    network,
};

use crate::busybox::{IMAGE, archive};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Directories, names and an engine.
pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) name: String,
    /// What it is opened with, when that is not the usual.
    own_config: Option<EngineConfig>,
    engine: Option<Arc<Engine>>,
}

pub(crate) fn private_mounts() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).expect("private mounts");
}

pub(crate) fn config(directory: &Path, name: &str) -> EngineConfig {
    let mut network = network::Config::new(directory.join("root/network"));
    network.bridge = name.to_owned();
    network.nft_table = name.to_owned();
    network.subnet_lock = directory.join("subnets.lock");
    EngineConfig {
        root: directory.join("root"),
        run: directory.join("run"),
        cgroup_root: format!("/{name}"),
        network,
        kubelet_network: KubeletNetwork::Builtin,
        plugins: network::cni::CniConfig::new(directory.join("root/cni")),
        systemd_cgroups: false,
        cdi_directories: vec![directory.join("cdi")],
        selinux_root: "/".into(),
        images: image::Config::new(directory.join("root/images")),
        log_rotation: LogRotation { max_bytes: 64 << 10, max_files: 3 },
        executable: None,
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        // One name for bridge, table and cgroups: short enough for a link, and nobody else's.
        let name = format!("pe{}x{}", std::process::id() % 100_000, NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::Builder::new().prefix("portreeve-engine-").tempdir().expect("directory");
        let mut world = Self { directory, name, own_config: None, engine: None };
        world.open().await;
        world.load_image().await;
        world
    }

    pub(crate) fn config(&self) -> EngineConfig {
        self.own_config.clone().unwrap_or_else(|| config(self.directory.path(), &self.name))
    }

    /// What the next engine is opened with.
    pub(crate) fn set(&mut self, change: impl FnOnce(&mut EngineConfig)) {
        let mut config = self.config();
        change(&mut config);
        self.own_config = Some(config);
    }

    pub(crate) async fn open(&mut self) {
        self.engine = Some(Engine::open(self.config()).await.unwrap_or_else(|error| panic!("{}", chain(&error))));
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().expect("an open engine")
    }

    /// The agent goes, its containers stay.
    pub(crate) async fn close(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.shutdown().await;
        }
    }

    async fn load_image(&self) {
        let tar = archive();
        self.engine()
            .images()
            .load(std::io::Cursor::new(tar))
            .await
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A pod on the node's network.
    pub(crate) fn sandbox(&self) -> SandboxConfig {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        SandboxConfig {
            metadata: SandboxMetadata {
                name: "pod".into(),
                namespace: "test".into(),
                uid: format!("uid{number}"),
                attempt: 0,
            },
            owner: Owner::Node,
            hostname: "pod".into(),
            log_directory: self.path(&format!("logs/{number}")),
            dns: Default::default(),
            port_mappings: vec![],
            bandwidth: Default::default(),
            labels: [("app".to_owned(), "test".to_owned())].into(),
            annotations: Default::default(),
            cgroup_parent: format!("/{}/burstable/pod{number}", self.name),
            namespaces: Namespaces { network: NetworkNamespace::Node, ..Namespaces::default() },
            privileged: false,
            selinux: None,
            sysctls: Default::default(),
            resources: Default::default(),
            handler: None,
        }
    }

    pub(crate) async fn pod(&self) -> SandboxId {
        self.run(self.sandbox()).await
    }

    pub(crate) async fn run(&self, config: SandboxConfig) -> SandboxId {
        self.engine().run_sandbox(config).await.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    pub(crate) async fn create(&self, sandbox: &SandboxId, config: ContainerConfig) -> ContainerId {
        self.engine().create_container(sandbox, config).await.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    pub(crate) async fn start(&self, sandbox: &SandboxId, config: ContainerConfig) -> ContainerId {
        let id = self.create(sandbox, config).await;
        self.engine().start_container(&id).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        id
    }

    /// Runs a shell script to its end.
    pub(crate) async fn script(&self, sandbox: &SandboxId, script: &str) -> (ContainerStatus, String) {
        let id = self.start(sandbox, sh(script)).await;
        let status = self.engine().wait_container(&id).await.expect("a container");
        assert_eq!(status.state, ContainerState::Exited);
        let log = fs::read_to_string(status.log_path.as_ref().expect("a log")).expect("a log");
        (status, texts(&log))
    }

    pub(crate) fn status(&self, id: &ContainerId) -> ContainerStatus {
        self.engine().container(id).expect("a container")
    }

    /// Files of cgroups, mounts and links that carry this world's name.
    pub(crate) fn traces(&self) -> Vec<String> {
        let mut found = Vec::new();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
            walk(&hierarchy.path().join(&self.name), &mut found);
        }
        walk(&Path::new("/sys/fs/cgroup").join(&self.name), &mut found);
        let own = |path: &String| !(path.ends_with(&self.name) || path.ends_with("/shims"));
        let mut found: Vec<String> = found.into_iter().filter(own).collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let here = self.directory.path().to_string_lossy().into_owned();
        found.extend(mounts.lines().filter(|line| line.contains(&here)).map(str::to_owned));
        for place in ["run/sandboxes", "root/sandboxes", "root/images/snapshots"] {
            if let Ok(entries) = fs::read_dir(self.path(place)) {
                found.extend(entries.flatten().map(|entry| entry.path().display().to_string()));
            }
        }
        found.extend(self.processes());
        found
    }

    /// Shims of this world, and what runs in its cgroups.
    pub(crate) fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        let here = self.directory.path().to_string_lossy().into_owned();
        for entry in fs::read_dir("/proc").expect("proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let ours = line.contains(&format!("shim {here}")) || cgroup.contains(&format!(":/{}/", self.name));
            if ours && !zombie(pid) {
                found.push(format!("{pid} {line}"));
            }
        }
        found
    }
}

pub(crate) fn zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with(['Z', 'X']) || rest.is_empty())
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.engine.take());
        // Whatever a failed test left: by cgroup, which is this world's alone.
        for _ in 0..3 {
            for path in portreeve_oci::cgroup::list_below(&format!("/{}", self.name)).unwrap_or_default() {
                if let Ok(cgroup) = portreeve_oci::cgroup::Cgroup::at(&path) {
                    let _best_effort = cgroup.kill_all();
                    let _best_effort = cgroup.wait_empty(Duration::from_secs(5));
                    let _best_effort = cgroup.remove();
                }
            }
        }
        if let Ok(root) = portreeve_oci::cgroup::Cgroup::at(&format!("/{}", self.name)) {
            let _best_effort = root.remove();
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let here = self.directory.path().to_string_lossy().into_owned();
        for line in mounts.lines().filter(|line| line.contains(&here)) {
            if let Some(target) = line.split(' ').nth(4) {
                let _best_effort = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
            }
        }
    }
}

fn walk(path: &Path, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(path) else { return };
    found.push(path.display().to_string());
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), found);
        }
    }
}

/// A container that runs a shell script.
pub(crate) fn sh(script: &str) -> ContainerConfig {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    ContainerConfig {
        metadata: ContainerMetadata { name: "c".into(), attempt: 0 },
        image: IMAGE.into(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        log_path: Some(format!("c{number}/0.log").into()),
        ..ContainerConfig::default()
    }
}

/// The texts of a CRI log, its partial lines joined.
pub(crate) fn texts(log: &str) -> String {
    let mut text = String::new();
    for line in log.lines() {
        let mut parts = line.splitn(4, ' ').skip(2);
        let (tag, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        text.push_str(rest);
        if tag == "F" {
            text.push('\n');
        }
    }
    text
}

/// Waits until something is so, for at most ten seconds.
pub(crate) async fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What the parts of a pod's life take, with a network of its own: the minimum and median of some cycles.
///
/// Not a test: `cargo test -p portreeve-engine --test engine -- bench`. An unoptimised build is three times slower.
pub(crate) async fn bench() {
    const CYCLES: usize = 40;
    let world = World::new().await;
    let engine = world.engine();
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); 6];
    let cpu = || {
        let of = |who| nix::sys::resource::getrusage(who).map(|usage| (usage.user_time(), usage.system_time()));
        let all = [nix::sys::resource::UsageWho::RUSAGE_SELF, nix::sys::resource::UsageWho::RUSAGE_CHILDREN].map(of);
        all.into_iter()
            .flatten()
            .flat_map(|(user, system)| [user, system])
            .map(|time| time.tv_sec() as f64 * 1000.0 + time.tv_usec() as f64 / 1000.0)
            .sum::<f64>()
    };
    let before = cpu();
    for _ in 0..CYCLES {
        let mut config = world.sandbox();
        config.namespaces = Namespaces::default();
        let mut mark = Instant::now();
        let mut lap = |slot: usize| {
            times[slot].push(mark.elapsed());
            mark = Instant::now();
        };
        let pod = world.run(config).await;
        lap(0);
        let id = world.create(&pod, sh("exec sleep 1000")).await;
        lap(1);
        engine.start_container(&id).await.expect("start");
        lap(2);
        engine.stop_container(&id, Duration::ZERO).await.expect("stop");
        lap(3);
        engine.stop_sandbox(&pod).await.expect("stop");
        lap(4);
        engine.remove_sandbox(&pod).await.expect("remove");
        lap(5);
    }
    let spent = (cpu() - before) / CYCLES as f64;
    for (name, times) in
        ["run sandbox", "create", "start", "stop", "stop sandbox", "remove sandbox"].iter().zip(&mut times)
    {
        times.sort();
        println!("{name:15} {:6.2} / {:6.2} ms", times[0].as_secs_f64() * 1e3, times[CYCLES / 2].as_secs_f64() * 1e3);
    }
    println!("CPU of a cycle, kernel workers not counted: {spent:.1} ms");
}
