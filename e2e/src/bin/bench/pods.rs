//! What is done to each runtime, and what that takes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use portreeve_e2e::cri::{pod, shell, v1};
use portreeve_e2e::measure::{Account, Figures, appeared, millis, pss_kib, toucher_script, watch};
use portreeve_e2e::{Agent, BUSYBOX, Cri, World, preload_busybox, wait_until};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::{OURS, Settings};

/// So many pods are asked for at the same time: more get into each other's way on two processors.
const WORKERS: usize = 10;
/// Times that a question is asked again.
const QUESTIONS: usize = 20;

pub(crate) const UP: &str = "up: RunPodSandbox, CreateContainer, StartContainer, ms";
pub(crate) const DOWN: &str = "down: StopPodSandbox, RemovePodSandbox, ms";
pub(crate) const CYCLE: &str = "CPU per cycle, ms";
pub(crate) const ALL_UP: &str = "many pods by 10 workers: all up, ms";
pub(crate) const ALL_REMOVED: &str = "many pods by 10 workers: all removed, ms";
pub(crate) const POD_CPU: &str = "CPU per pod of those, ms";
pub(crate) const IDLE: &str = "CPU at rest, % of a core";
pub(crate) const PSS_PER_POD: &str = "PSS per pod, all told, MiB";

/// Measures our own endpoint for a kubelet.
pub(crate) fn ours(settings: &Settings, figures: &mut Figures) {
    let world = World::new("bench-cri");
    preload_busybox(&world);
    let mut agent = Agent::start_with(&world, &["--cri-only"]);
    let account = Account::of(&agent);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let processes = || {
        let shims = agent.census().processes.into_iter().filter(|line| line.contains(" shim"));
        let shims = shims.filter_map(|line| line.split(' ').next().map(str::to_owned));
        shims.chain([agent.pid().to_string()]).collect()
    };
    let bench = Bench {
        out: world.path("out"),
        logs: world.path("logs"),
        cgroup_parent: String::new(),
        account: &account,
        processes: &processes,
        cri,
        image: BUSYBOX.to_owned(),
        program: OURS,
    };
    bench.measure(settings, figures);
    drop(bench);
    let left = agent.erase();
    assert!(left.is_empty(), "left over: {left:#?}");
    drop(account);
}

/// A runtime that answers CRI.
pub(crate) struct Bench<'b> {
    /// Where containers show that they run.
    pub(crate) out: PathBuf,
    pub(crate) logs: PathBuf,
    pub(crate) cgroup_parent: String,
    pub(crate) account: &'b Account,
    /// Processes of the runtime, those of its shims among them.
    pub(crate) processes: &'b dyn Fn() -> Vec<String>,
    pub(crate) cri: Cri,
    pub(crate) image: String,
    pub(crate) program: &'b str,
}

/// A pod that is up.
struct Up {
    sandbox: String,
    container: String,
}

impl Bench<'_> {
    pub(crate) fn measure(&self, settings: &Settings, figures: &mut Figures) {
        self.ready();
        self.single(settings.single, figures);
        self.many(settings.pods, settings.idle, figures);
        if settings.listed > 0 {
            self.listed(settings.listed, figures);
        }
    }

    fn ready(&self) {
        wait_until("the runtime and its network are ready", 30, || {
            let asked = v1::StatusRequest { verbose: false };
            let status = self.cri.runtime(async |mut runtime| runtime.status(asked).await);
            let conditions = status.map_err(|error| error.to_string())?.status.unwrap_or_default().conditions;
            let lacks: Vec<_> = conditions.into_iter().filter(|one| !one.status).map(|one| one.message).collect();
            if lacks.is_empty() { Ok(()) } else { Err(lacks.join("; ")) }
        });
    }

    /// What a kubelet asks for: namespaces of the pod, processes of the container.
    fn pod(&self, name: &str) -> (v1::PodSandboxConfig, v1::ContainerConfig) {
        let mut config = pod(name, &self.logs);
        let options = v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() };
        let context =
            v1::LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() };
        config.linux = Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: self.cgroup_parent.clone(),
            security_context: Some(context),
            ..Default::default()
        });
        let mut container = shell("main", &self.image, &toucher_script(name));
        let context = v1::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
        container.linux = Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
        let host_path = self.out.display().to_string();
        container.mounts = vec![v1::Mount { container_path: "/out".to_owned(), host_path, ..Default::default() }];
        (config, container)
    }

    async fn up(&self, name: &str) -> Up {
        let (config, container) = self.pod(name);
        let start = async {
            let mut runtime = self.cri.runtime_client();
            let asked = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
            let sandbox = runtime.run_pod_sandbox(asked).await?.into_inner().pod_sandbox_id;
            let asked = v1::CreateContainerRequest {
                pod_sandbox_id: sandbox.clone(),
                config: Some(container),
                sandbox_config: Some(config),
            };
            let container = runtime.create_container(asked).await?.into_inner().container_id;
            runtime.start_container(v1::StartContainerRequest { container_id: container.clone() }).await?;
            Ok::<_, Status>(Up { sandbox, container })
        };
        start.await.unwrap_or_else(|status| panic!("{name}: {status}"))
    }

    async fn stop(&self, up: &Up) {
        let pod_sandbox_id = up.sandbox.clone();
        let asked = v1::StopPodSandboxRequest { pod_sandbox_id };
        self.cri.runtime_client().stop_pod_sandbox(asked).await.expect("stopping a pod");
    }

    async fn remove(&self, up: &Up) {
        let pod_sandbox_id = up.sandbox.clone();
        let asked = v1::RemovePodSandboxRequest { pod_sandbox_id };
        self.cri.runtime_client().remove_pod_sandbox(asked).await.expect("removing a pod");
    }

    /// One pod after another.
    fn single(&self, count: usize, figures: &mut Figures) {
        let inotify = watch(&self.out);
        let (mut ups, mut stops, mut removals, mut downs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let before = self.account.nanoseconds();
        for number in 0..count {
            let begun = Instant::now();
            let up = self.cri.wait(self.up(&format!("s{number}")));
            appeared(&inotify, 1);
            ups.push(begun.elapsed());
            let begun = Instant::now();
            self.cri.wait(self.stop(&up));
            stops.push(begun.elapsed());
            let stopped = Instant::now();
            self.cri.wait(self.remove(&up));
            removals.push(stopped.elapsed());
            downs.push(begun.elapsed());
        }
        let charged = self.account.nanoseconds() - before;
        figures.times(self.program, UP.trim_end_matches(", ms"), &ups);
        figures.times(self.program, "StopPodSandbox", &stops);
        figures.times(self.program, "RemovePodSandbox", &removals);
        figures.times(self.program, DOWN.trim_end_matches(", ms"), &downs);
        figures.one(self.program, CYCLE, charged as f64 / 1e6 / count.max(1) as f64);

        let up = self.cri.wait(self.up("exec"));
        let commands = (0..count).map(|_| {
            let begun = Instant::now();
            let done = self.cri.exec(&up.container, &["true"], 10).expect("a command");
            assert_eq!(done.exit_code, 0, "of true");
            begun.elapsed()
        });
        figures.times(self.program, "ExecSync of true", &commands.collect::<Vec<_>>());
        self.clear(&[up]);
    }

    /// All of them, by some workers.
    fn make(&self, prefix: &str, count: usize) -> Vec<Up> {
        let workers = Arc::new(Semaphore::new(WORKERS));
        self.cri.wait(join_all((0..count).map(|number| {
            let workers = workers.clone();
            async move {
                let _turn = workers.acquire_owned().await.expect("nobody closes it");
                self.up(&format!("{prefix}{number}")).await
            }
        })))
    }

    fn clear(&self, pods: &[Up]) {
        let workers = Arc::new(Semaphore::new(WORKERS));
        self.cri.wait(join_all(pods.iter().map(|up| {
            let workers = workers.clone();
            async move {
                let _turn = workers.acquire_owned().await.expect("nobody closes it");
                self.stop(up).await;
                self.remove(up).await;
            }
        })));
    }

    /// Many at once, at rest, and removed at once.
    fn many(&self, count: usize, idle: u64, figures: &mut Figures) {
        let inotify = watch(&self.out);
        let before = self.account.nanoseconds();
        let begun = Instant::now();
        let pods = self.make("m", count);
        appeared(&inotify, count);
        figures.one(self.program, ALL_UP, millis(begun.elapsed()));
        let charged = self.account.nanoseconds() - before;
        figures.one(self.program, POD_CPU, charged as f64 / 1e6 / count.max(1) as f64);
        std::thread::sleep(Duration::from_secs(3));

        let before = self.account.nanoseconds();
        std::thread::sleep(Duration::from_secs(idle));
        let used = Duration::from_nanos(self.account.nanoseconds() - before).as_secs_f64();
        figures.one(self.program, IDLE, 100.0 * used / idle.max(1) as f64);
        let processes = (self.processes)();
        let kibibytes: u64 = processes.iter().map(|pid| pss_kib(pid)).sum();
        figures.one(self.program, PSS_PER_POD, kibibytes as f64 / 1024.0 / count.max(1) as f64);

        let begun = Instant::now();
        self.clear(&pods);
        figures.one(self.program, ALL_REMOVED, millis(begun.elapsed()));
    }

    /// What a kubelet asks again and again.
    fn listed(&self, count: usize, figures: &mut Figures) {
        let pods = self.make("l", count);
        let (mut lists, mut stats) = (Vec::new(), Vec::new());
        for _ in 0..QUESTIONS {
            let begun = Instant::now();
            let containers = self.cri.containers(v1::ContainerFilter::default());
            lists.push(begun.elapsed());
            assert_eq!(containers.len(), count, "containers in a list");
            let begun = Instant::now();
            let asked = v1::ListPodSandboxStatsRequest::default();
            let found = self.cri.runtime(async |mut runtime| runtime.list_pod_sandbox_stats(asked).await);
            stats.push(begun.elapsed());
            assert_eq!(found.expect("stats").stats.len(), count, "pods in stats");
        }
        figures.times(self.program, &format!("ListContainers of {count}"), &lists);
        figures.times(self.program, &format!("ListPodSandboxStats of {count}"), &stats);
        self.clear(&pods);
    }
}
