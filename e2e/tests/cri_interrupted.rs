//! An agent that is killed within calls of CRI: a client that asks again sees a consistent world, and nothing stays over.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use portreeve_e2e::cri::v1::image_service_client::ImageServiceClient;
use portreeve_e2e::cri::v1::runtime_service_client::RuntimeServiceClient;
use portreeve_e2e::cri::{image_spec, pod, shell, v1};
use portreeve_e2e::streaming::{Frame, Spdy, try_over_spdy};
use portreeve_e2e::{
    Agent, BUSYBOX, Cri, Image, Peers, Registry, World, patience, preload_busybox, skipped_without_root, wait_until,
};
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// What a kubelet asks in a pod's life; each is cut off in its turn.
const CALLS: [&str; 32] = [
    "PullImage",
    "ImageStatus",
    "ListImages",
    "ImageFsInfo",
    "Status",
    "RuntimeConfig",
    "UpdateRuntimeConfig",
    "ListPodSandbox",
    "RunPodSandbox",
    "PodSandboxStatus",
    "ListContainers",
    "CreateContainer",
    "StartContainer",
    "ExecSync",
    "ContainerStatus",
    "UpdateContainerResources",
    "UpdatePodSandboxResources",
    "ReopenContainerLog",
    "ContainerStats",
    "ListContainerStats",
    "PodSandboxStats",
    "ListPodSandboxStats",
    "ListPodSandboxMetrics",
    "GetContainerEvents",
    "Exec",
    "Attach",
    "PortForward",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
    "RemoveImage",
];

/// Calls as they begin, for who cuts them off, and how long they take.
struct Calls {
    begun: SyncSender<&'static str>,
    took: Mutex<BTreeMap<&'static str, Duration>>,
    /// Kills so far, and calls that one of them came within.
    kills: AtomicU64,
    cut: AtomicU64,
}

impl Calls {
    fn new() -> (Self, Receiver<&'static str>) {
        let (begun, heard) = std::sync::mpsc::sync_channel(1024);
        (Self { begun, took: Mutex::default(), kills: AtomicU64::new(0), cut: AtomicU64::new(0) }, heard)
    }

    /// Asks until there is an agent that answers; what it refuses is told.
    fn insist<T>(&self, call: &'static str, mut ask: impl FnMut() -> Result<T, Status>) -> Result<T, Status> {
        assert!(CALLS.contains(&call), "{call} is cut off by nobody");
        let begun = Instant::now();
        loop {
            // Nobody hears of it when all kills are done.
            let _ = self.begun.try_send(call);
            let (asked, kills) = (Instant::now(), self.kills.load(Ordering::Relaxed));
            match ask() {
                Err(status) if is_broken(&status) => {
                    assert!(begun.elapsed() < patience(60), "{call}: {status}");
                    let within = kills != self.kills.load(Ordering::Relaxed);
                    self.cut.fetch_add(u64::from(within), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
                answer => {
                    self.took.lock().unwrap().insert(call, asked.elapsed());
                    return answer;
                }
            }
        }
    }

    /// How long this call took when it was answered last.
    fn duration(&self, call: &str) -> Duration {
        self.took.lock().unwrap().get(call).copied().unwrap_or(Duration::from_millis(5))
    }
}

/// There was no agent, or it went while its answer was waited for.
fn is_broken(status: &Status) -> bool {
    // What a server says has no cause on this side.
    matches!(status.code(), Code::Unavailable | Code::Cancelled)
        || (status.code() == Code::Unknown && std::error::Error::source(status).is_some())
}

/// A stream of bytes that broke off, as a call that did.
fn broken(error: &std::io::Error) -> Status {
    Status::unavailable(error.to_string())
}

/// A kubelet and its pods.
struct Client<'w> {
    world: &'w World,
    cri: Cri,
    calls: &'w Calls,
    image: String,
    handler: &'static str,
}

impl Client<'_> {
    fn runtime<T>(
        &self,
        call: &'static str,
        ask: impl AsyncFn(RuntimeServiceClient<Channel>) -> Result<Response<T>, Status>,
    ) -> T {
        self.calls.insist(call, || self.cri.runtime(async |runtime| ask(runtime).await)).unwrap()
    }

    fn images<T>(
        &self,
        call: &'static str,
        ask: impl AsyncFn(ImageServiceClient<Channel>) -> Result<Response<T>, Status>,
    ) -> T {
        self.calls.insist(call, || self.cri.images(async |images| ask(images).await)).unwrap()
    }

    /// What a kubelet asks of a node.
    fn look_around(&self) {
        let shown = self.images("ImageStatus", async |mut images| {
            images.image_status(v1::ImageStatusRequest { image: Some(image_spec(&self.image)), verbose: false }).await
        });
        assert!(shown.image.is_some(), "it was pulled");
        let listed =
            self.images("ListImages", async |mut images| images.list_images(v1::ListImagesRequest::default()).await);
        assert!(!listed.images.is_empty());
        self.images("ImageFsInfo", async |mut images| images.image_fs_info(v1::ImageFsInfoRequest {}).await);
        self.runtime("Status", async |mut runtime| runtime.status(v1::StatusRequest::default()).await);
        self.runtime("RuntimeConfig", async |mut runtime| runtime.runtime_config(v1::RuntimeConfigRequest {}).await);
        self.runtime("UpdateRuntimeConfig", async |mut runtime| {
            runtime.update_runtime_config(v1::UpdateRuntimeConfigRequest::default()).await
        });
    }

    fn sandboxes(&self, config: &v1::PodSandboxConfig) -> Vec<v1::PodSandbox> {
        let filter = v1::PodSandboxFilter { label_selector: config.labels.clone(), ..Default::default() };
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        self.runtime("ListPodSandbox", async |mut runtime| runtime.list_pod_sandbox(request.clone()).await).items
    }

    /// The pod that is there, or a new one.
    fn sandbox(&self, config: &v1::PodSandboxConfig) -> String {
        loop {
            let found = self.sandboxes(config);
            assert!(found.len() <= 1, "{found:?}");
            if let Some(one) = found.first() {
                assert_eq!(one.state(), v1::PodSandboxState::SandboxReady);
                return one.id.clone();
            }
            match self.calls.insist("RunPodSandbox", || self.cri.run_sandbox_by(config, self.handler)) {
                Ok(id) => return id,
                // The call that was cut off has succeeded.
                Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
            }
        }
    }

    /// The container that is there, or a new one.
    fn container(&self, sandbox: &str, config: &v1::PodSandboxConfig, wanted: &v1::ContainerConfig) -> String {
        loop {
            let filter = v1::ContainerFilter { pod_sandbox_id: sandbox.to_owned(), ..Default::default() };
            let request = v1::ListContainersRequest { filter: Some(filter) };
            let found =
                self.runtime("ListContainers", async |mut runtime| runtime.list_containers(request.clone()).await);
            assert!(found.containers.len() <= 1, "{found:?}");
            if let Some(one) = found.containers.first() {
                return one.id.clone();
            }
            match self.calls.insist("CreateContainer", || self.cri.create(sandbox, wanted.clone(), config)) {
                Ok(id) => return id,
                Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
            }
        }
    }

    /// What a kubelet asks beside a container that runs.
    fn attend(&self, container: &str, sandbox: &str) {
        let id = || container.to_owned();
        let pod = || sandbox.to_owned();
        let limit = || Some(v1::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() });
        self.runtime("UpdateContainerResources", async |mut runtime| {
            let asked =
                v1::UpdateContainerResourcesRequest { container_id: id(), linux: limit(), ..Default::default() };
            runtime.update_container_resources(asked).await
        });
        self.runtime("UpdatePodSandboxResources", async |mut runtime| {
            let asked = v1::UpdatePodSandboxResourcesRequest {
                pod_sandbox_id: pod(),
                resources: limit(),
                ..Default::default()
            };
            runtime.update_pod_sandbox_resources(asked).await
        });
        self.runtime("ReopenContainerLog", async |mut runtime| {
            runtime.reopen_container_log(v1::ReopenContainerLogRequest { container_id: id() }).await
        });
        let of_container = self.runtime("ContainerStats", async |mut runtime| {
            runtime.container_stats(v1::ContainerStatsRequest { container_id: id() }).await
        });
        assert_eq!(of_container.stats.unwrap().attributes.unwrap().id, container);
        let listed = self.runtime("ListContainerStats", async |mut runtime| {
            runtime.list_container_stats(v1::ListContainerStatsRequest::default()).await
        });
        assert_eq!(listed.stats.len(), 1);
        let of_pod = self.runtime("PodSandboxStats", async |mut runtime| {
            runtime.pod_sandbox_stats(v1::PodSandboxStatsRequest { pod_sandbox_id: pod() }).await
        });
        assert_eq!(of_pod.stats.unwrap().linux.unwrap().containers.len(), 1);
        let listed = self.runtime("ListPodSandboxStats", async |mut runtime| {
            runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await
        });
        assert_eq!(listed.stats.len(), 1);
        let metrics = self.runtime("ListPodSandboxMetrics", async |mut runtime| {
            runtime.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}).await
        });
        assert_eq!(metrics.pod_metrics.len(), 1);
        // As far as its head.
        self.runtime("GetContainerEvents", async |mut runtime| {
            runtime.get_container_events(v1::GetEventsRequest {}).await
        });
    }

    /// The streams of a client that comes with SPDY; one that broke off is asked for again, with an address of its own.
    fn stream(&self, container: &str, sandbox: &str) {
        let id = || container.to_owned();
        let said = self.calls.insist("Exec", || {
            let cmd = ["sh", "-c", "cat; sleep 0.01; exit 5"].map(str::to_owned).to_vec();
            let asked = v1::ExecRequest { container_id: id(), cmd, stdin: true, stdout: true, ..Default::default() };
            let url = self.cri.runtime(async |mut runtime| runtime.exec(asked).await)?.url;
            try_over_spdy(self.world, &url, &["stdin", "stdout"], b"word", None).map_err(|error| broken(&error))
        });
        let said = said.unwrap();
        // The agent's end is told as such where there is the time.
        assert_eq!((said.stdout.as_slice(), said.exit_code()), (b"word".as_slice(), Some(5)), "{said:?}");
        self.calls
            .insist("Attach", || {
                let asked = v1::AttachRequest { container_id: id(), stdout: true, ..Default::default() };
                let url = self.cri.runtime(async |mut runtime| runtime.attach(asked).await)?.url;
                self.first_word(&url, "v4.channel.k8s.io", &[("streamtype", "stdout")], b"", "tick")
            })
            .unwrap();
        self.calls
            .insist("PortForward", || {
                let asked = v1::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: vec![8080] };
                let url = self.cri.runtime(async |mut runtime| runtime.port_forward(asked).await)?.url;
                let data = [("streamtype", "data"), ("port", "8080"), ("requestID", "0")];
                self.first_word(&url, "portforward.k8s.io", &data, b"GET /one HTTP/1.0\r\n\r\n", "one")
            })
            .unwrap();
    }

    /// Reads a stream until a word has come.
    fn first_word(
        &self,
        url: &str,
        protocol: &str,
        stream: &[(&str, &str)],
        sent: &[u8],
        word: &str,
    ) -> Result<(), Status> {
        let mut spdy = Spdy::try_connect(self.world, url, protocol).map_err(|error| broken(&error))?;
        let mut headers = stream.to_vec();
        headers[0].1 = "error";
        spdy.try_open(&headers).map_err(|error| broken(&error))?;
        let id = spdy.try_open(stream).map_err(|error| broken(&error))?;
        if !sent.is_empty() {
            spdy.send(id, sent, false);
        }
        let (mut found, mut told) = (Vec::new(), Vec::new());
        while let Some(frame) = spdy.frame() {
            match frame {
                Frame::Data(of, bytes, _) if of == id => found.extend(bytes),
                Frame::Data(_, bytes, _) => told.extend(bytes),
                _ => {}
            }
            if String::from_utf8_lossy(&found).contains(word) {
                return Ok(());
            }
        }
        let [found, told] = [found, told].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Err(Status::unavailable(format!("{word} has not come, but {found:?}; {told:?}")))
    }

    /// A pod's life as a kubelet leads it: what is there is looked at before anything is made. Its image comes and goes
    /// with it.
    fn live(&self, name: &str) {
        let id = self.calls.insist("PullImage", || self.cri.pull(&self.image)).unwrap();
        self.look_around();
        let mut config = pod(name, &self.world.path("cri-logs"));
        config.labels.insert("pod".to_owned(), name.to_owned());
        let sandbox = self.sandbox(&config);
        let status = self.calls.insist("PodSandboxStatus", || self.cri.sandbox(&sandbox)).unwrap();
        assert!(!status.network.unwrap().ip.is_empty());
        let line = "echo one >> /count; httpd -p 8080 -h /etc; while :; do echo tick; sleep 0.05; done";
        let container = self.container(&sandbox, &config, &shell("main", &id, line));
        self.calls.insist("StartContainer", || self.cri.start(&container)).unwrap();
        wait_until("it has begun", 30, || {
            let counted = self.calls.insist("ExecSync", || self.cri.exec(&container, &["cat", "/count"], 20));
            match counted.map_err(|status| status.to_string())?.stdout.as_slice() {
                b"one\n" => Ok(()),
                b"" => Err("nothing".to_owned()),
                twice => panic!("started more than once: {}", String::from_utf8_lossy(twice)),
            }
        });
        self.attend(&container, &sandbox);
        self.stream(&container, &sandbox);
        self.calls.insist("StopContainer", || self.cri.stop(&container, 0)).unwrap();
        let ended = self.calls.insist("ContainerStatus", || self.cri.container(&container)).unwrap();
        assert_eq!(ended.state(), v1::ContainerState::ContainerExited, "{ended:?}");
        self.calls.insist("RemoveContainer", || self.cri.remove(&container)).unwrap();
        self.calls.insist("StopPodSandbox", || self.cri.stop_sandbox(&sandbox)).unwrap();
        self.calls.insist("RemovePodSandbox", || self.cri.remove_sandbox(&sandbox)).unwrap();
        assert_eq!(self.sandboxes(&config), []);
        self.images("RemoveImage", async |mut images| {
            images.remove_image(v1::RemoveImageRequest { image: Some(image_spec(&self.image)) }).await
        });
        let shown = self.images("ImageStatus", async |mut images| {
            images.image_status(v1::ImageStatusRequest { image: Some(image_spec(&self.image)), verbose: false }).await
        });
        assert_eq!(shown.image, None);
    }
}

/// Kills the agent within each call in turn, at a moment that the seed chooses, while pods of these handlers come and go.
fn interrupt(world: &World, agent: &mut Agent<'_>, handlers: &[&'static str]) {
    let kills = number("PORTREEVE_KILLS", u64::try_from(CALLS.len()).unwrap());
    let clock = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| u64::from(since.subsec_nanos()));
    let mut seed = number("PORTREEVE_SEED", clock);
    eprintln!("PORTREEVE_SEED={seed}");
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    let registry = Registry::start(world, 5000);
    let image = Image::busybox_with(world.home(), "test.local/one:1", &[("etc/one", "one")]);
    let image = registry.push(&image, "one:1");
    let (calls, heard) = Calls::new();
    let done = AtomicBool::new(false);
    let socket = agent.run_dir().join("cri.sock");
    std::thread::scope(|scope| {
        let lives = scope.spawn(|| {
            let mut pods = 0;
            for handler in handlers.iter().cycle() {
                let client = Client { world, cri: Cri::connect(&socket), calls: &calls, image: image.clone(), handler };
                client.live(&format!("p{pods}"));
                pods += 1;
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
            pods
        });
        // Fewer kills than calls begin anywhere among them.
        let first = usize::try_from(random()).unwrap_or(0);
        for target in CALLS.iter().cycle().skip(first % CALLS.len()).take(usize::try_from(kills).unwrap()) {
            while heard.try_recv().is_ok() {}
            while !lives.is_finished() {
                match heard.recv_timeout(patience(60)) {
                    Ok(call) if call == *target => break,
                    Ok(_) => {}
                    Err(_) => panic!("{target} is not asked for any more"),
                }
            }
            if lives.is_finished() {
                break;
            }
            let within = u64::try_from(calls.duration(target).as_nanos()).unwrap().max(1);
            std::thread::sleep(Duration::from_nanos(random() % within));
            calls.kills.fetch_add(1, Ordering::Relaxed);
            agent.kill();
            agent.launch();
        }
        done.store(true, Ordering::Relaxed);
        match lives.join() {
            Ok(pods) => {
                let cut = calls.cut.load(Ordering::Relaxed);
                eprintln!("{pods} pods lived through {kills} kills, which cut off {cut} calls");
                assert!(cut >= kills / 2, "the kills are to come within calls");
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    let left = wait_until("nothing is left", 20, || {
        let census = agent.census();
        let shims: Vec<_> = census.processes.iter().filter(|process| process.contains(" shim ")).collect();
        if shims.is_empty() && census.contained.is_empty() { Ok(census.files) } else { Err(format!("{census:?}")) }
    });
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(std::fs::read_dir(agent.run_dir().join("netns")).map_or(0, Iterator::count), 0, "network namespaces");
}

#[test]
fn an_agent_that_is_killed_within_any_call_leaves_a_consistent_world() {
    if skipped_without_root("cri_interrupted") {
        return;
    }
    let world = World::new("cri-kills");
    let mut agent = Agent::with_busybox(&world);
    interrupt(&world, &mut agent, &[""]);
}

#[test]
fn so_it_does_with_plugins_for_the_network_and_with_other_runtimes() {
    if skipped_without_root("cri_interrupted") {
        return;
    }
    let Some(peers) = Peers::for_test("cri_interrupted: handlers and CNI plugins") else { return };
    let world = World::new("cri-kills-others");
    world.sh("! [ -d /sys/fs/cgroup/unified ] || mount -t tmpfs none /sys/fs/cgroup/unified");
    preload_busybox(&world);
    let [runc, crun] = ["runc", "crun"].map(|name| format!("{name}={}", peers.program(name).display()));
    let plugins = peers.cni().display().to_string();
    let mut agent = Agent::start_with(
        &world,
        &[
            "--cri-network",
            "cni",
            "--cri-cni-bin-dir",
            &plugins,
            "--cri-runtime-handler",
            &runc,
            "--cri-runtime-handler",
            &crun,
        ],
    );
    let addresses = world.path("ipam");
    let list = json!({ "cniVersion": "1.0.0", "name": "cluster", "plugins": [{
        "type": "bridge", "bridge": "prtcni0", "isGateway": true,
        "ipam": { "type": "host-local", "dataDir": addresses, "ranges": [[{ "subnet": "10.93.0.0/24" }]] },
    }] });
    std::fs::create_dir_all(agent.networks()).unwrap();
    std::fs::write(agent.networks().join("10-cluster.conflist"), list.to_string()).unwrap();
    interrupt(&world, &mut agent, &["", "runc", "crun"]);
    let taken = std::fs::read_dir(addresses.join("cluster")).unwrap().map(|entry| entry.unwrap().file_name());
    let taken: Vec<_> = taken.filter(|name| name.to_string_lossy().starts_with("10.")).collect();
    assert!(taken.is_empty(), "{taken:?}");
    let links = world.sh("ip -o link show");
    assert!(!links.contains("veth"), "{links}");
    world.sh("ip link del prtcni0");
}

#[test]
fn ten_workers_bring_up_fifty_pods_and_take_them_down() {
    if skipped_without_root("cri_interrupted") {
        return;
    }
    let world = World::new("cri-workers");
    let agent = Agent::with_busybox(&world);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for worker in 0..10 {
            let (cri, world) = (&cri, &world);
            scope.spawn(move || {
                for number in 0..5 {
                    let config = pod(&format!("p{worker}-{number}"), &world.path("cri-logs"));
                    let sandbox = cri.run_sandbox(&config).unwrap();
                    let container = cri.create(&sandbox, shell("main", BUSYBOX, "sleep 1000"), &config).unwrap();
                    cri.start(&container).unwrap();
                }
            });
        }
    });
    let up = begun.elapsed();
    let running = Some(v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() });
    let running = v1::ContainerFilter { state: running, ..Default::default() };
    assert_eq!(cri.containers(running).len(), 50);
    let sandboxes = cri.sandboxes(v1::PodSandboxFilter::default());
    let mut addresses: Vec<String> =
        sandboxes.iter().map(|one| cri.sandbox(&one.id).unwrap().network.unwrap().ip).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 50, "each pod has an address of its own");
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for some in sandboxes.chunks(5) {
            let cri = &cri;
            scope.spawn(move || {
                for one in some {
                    cri.stop_sandbox(&one.id).unwrap();
                    cri.remove_sandbox(&one.id).unwrap();
                }
            });
        }
    });
    eprintln!("50 pods up in {up:?}, down in {:?}", begun.elapsed());
    assert_eq!(cri.sandboxes(v1::PodSandboxFilter::default()), []);
}
