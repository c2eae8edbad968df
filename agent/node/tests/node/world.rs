//! A node of a test's own, over a real engine, that is gone without a trace when it is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use portreeve_engine::chain;
use portreeve_engine::{Engine, EngineConfig, KubeletNetwork, LogRotation, image, network};
use portreeve_node::{ManifestFile, NamespacedName, Node, NodeConfig};

use crate::busybox::{IMAGE, archive};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Directories, names, an engine and a node.
pub(crate) struct World {
    directory: tempfile::TempDir,
    name: String,
    engine: Option<Arc<Engine>>,
    node: Option<Node>,
}

/// A pod whose one container runs a shell script; `more` goes on after the container's fields.
pub(crate) fn pod(name: &str, script: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Always\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: {IMAGE}\n    imagePullPolicy: Never\n    command: [/bin/sh, -c, \"{script}\"]{more}\n"
    )
}

impl World {
    pub(crate) async fn new() -> Self {
        // One name for bridge, table and cgroups: short enough for a link, and nobody else's.
        let name = format!("pn{}x{}", std::process::id() % 100_000, NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::Builder::new().prefix("portreeve-node-").tempdir().expect("directory");
        fs::create_dir(directory.path().join("manifests")).expect("directory");
        let mut world = Self { directory, name, engine: None, node: None };
        world.open().await;
        world
    }

    pub(crate) async fn open(&mut self) {
        let directory = self.directory.path();
        let mut network = network::Config::new(directory.join("root/network"));
        network.bridge = self.name.clone();
        network.nft_table = self.name.clone();
        network.subnet_lock = directory.join("subnets.lock");
        let config = EngineConfig {
            root: directory.join("root"),
            run: directory.join("run"),
            cgroup_root: format!("/{}", self.name),
            network,
            kubelet_network: KubeletNetwork::Builtin,
            plugins: network::cni::CniConfig::new(directory.join("root/cni")),
            systemd_cgroups: false,
            cdi_directories: Vec::new(),
            selinux_root: "/".into(),
            images: image::Config::new(directory.join("root/images")),
            log_rotation: LogRotation::default(),
            executable: None,
        };
        // What the former engine still had in flight holds its store for a moment.
        let mut tries = 0;
        let engine = loop {
            match Engine::open(config.clone()).await {
                Ok(engine) => break engine,
                Err(error) if tries == 200 => panic!("{}", chain(&error)),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        if engine.images().list().is_empty() {
            let loaded = engine.images().load(std::io::Cursor::new(archive())).await;
            loaded.unwrap_or_else(|error| panic!("{}", chain(&error)));
        }
        let mut config =
            NodeConfig::new("node", directory.join("manifests"), directory.join("root"), directory.join("run"));
        config.cgroup_root = format!("/{}", self.name);
        let node = Node::start(config, Arc::clone(&engine), Vec::new())
            .await
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        self.engine = Some(engine);
        self.node = Some(node);
    }

    /// The agent goes, its containers stay.
    pub(crate) async fn close(&mut self) {
        if let Some(node) = self.node.take() {
            node.shutdown().await;
        }
        if let Some(engine) = self.engine.take() {
            engine.shutdown().await;
        }
    }

    /// The name of its bridge, rules and cgroups.
    pub(crate) fn bridge(&self) -> &str {
        &self.name
    }

    pub(crate) fn node(&self) -> &Node {
        self.node.as_ref().expect("a running node")
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.directory.path().join("manifests").join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.manifest(name), text).expect("manifest");
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.manifest(name)).expect("manifest");
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> ManifestFile {
        ManifestFile { path: self.manifest(name), content: text.to_owned() }
    }

    pub(crate) fn pod(&self, name: &str) -> Option<Arc<Pod>> {
        self.node().pod(&NamespacedName::new("default", name))
    }

    pub(crate) fn is_ready(&self, name: &str) -> bool {
        let conditions = self.pod(name).and_then(|pod| pod.status.clone()?.conditions).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }

    pub(crate) fn container_id(&self, pod: &str) -> String {
        let handle = self.node().container(&NamespacedName::new("default", pod), None, false);
        handle.map(|handle| handle.id.to_string()).unwrap_or_default()
    }

    /// What a shell script says inside.
    pub(crate) async fn sh(&self, pod: &str, script: &str) -> String {
        let handle = self.node().container(&NamespacedName::new("default", pod), None, false).expect("a container");
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let engine = self.engine.as_ref().expect("an open engine");
        let output = engine.exec_sync(&handle.id, command, Duration::from_secs(10), 1 << 16).await;
        let output = output.unwrap_or_else(|error| panic!("{}", chain(&error)));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Waits until something is so, for at most 15 seconds.
    pub(crate) async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(15);
        while !so(self) {
            if Instant::now() > end {
                let events: Vec<_> = self
                    .node()
                    .events()
                    .items
                    .iter()
                    .map(|event| format!("{:?} {:?}", event.reason, event.message))
                    .collect();
                let pods: Vec<_> = self.node().pods().items.iter().map(|pod| format!("{:?}", pod.status)).collect();
                panic!("waited in vain until {what}\n{}\n{}\n{:?}", events.join("\n"), pods.join("\n"), self.traces());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// `cpu.shares`, or `cpu.weight`, of the cgroup of a QoS level.
    pub(crate) fn cpu_weight(&self, level: &str) -> String {
        let root = Path::new("/sys/fs/cgroup");
        let files = [format!("cpu/{}/{level}/cpu.shares", self.name), format!("{}/{level}/cpu.weight", self.name)];
        let found = files.iter().find_map(|file| fs::read_to_string(root.join(file)).ok());
        found.unwrap_or_default().trim().to_owned()
    }

    /// Cgroups, mounts, links and directories of pods that carry this world's name.
    pub(crate) fn traces(&self) -> Vec<String> {
        let mut found = Vec::new();
        let cgroups = portreeve_cgroups(&self.name);
        found.extend(cgroups.into_iter().filter(|path| path.contains("/pod")));
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let pods = format!("{}/run/pods/", self.directory.path().display());
        found.extend(mounts.lines().filter(|line| line.contains(&pods)).map(str::to_owned));
        for place in ["run/sandboxes", "root/images/snapshots", "root/pods", "run/pods", "root/logs"] {
            if let Ok(entries) = fs::read_dir(self.directory.path().join(place)) {
                found.extend(entries.flatten().map(|entry| entry.path().display().to_string()));
            }
        }
        found
    }
}

/// Our cgroups, in every hierarchy.
fn portreeve_cgroups(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
        walk(&hierarchy.path().join(name), &mut found);
    }
    walk(&Path::new("/sys/fs/cgroup").join(name), &mut found);
    // The deepest first, to be removed in this order.
    found.reverse();
    found
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

impl Drop for World {
    fn drop(&mut self) {
        drop(self.node.take());
        drop(self.engine.take());
        // Whatever a failed test left: by cgroup, which is this world's alone.
        for _ in 0..3 {
            for cgroup in portreeve_cgroups(&self.name) {
                let processes = fs::read_to_string(Path::new(&cgroup).join("cgroup.procs")).unwrap_or_default();
                for pid in processes.lines().filter_map(|line| line.parse().ok()) {
                    let pid = nix::unistd::Pid::from_raw(pid);
                    let _best_effort = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                }
                std::thread::sleep(Duration::from_millis(2));
                let _best_effort = fs::remove_dir(&cgroup);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let here = self.directory.path().display().to_string();
        for target in mounts.lines().filter(|line| line.contains(&here)).filter_map(|line| line.split(' ').nth(4)) {
            let _best_effort = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
