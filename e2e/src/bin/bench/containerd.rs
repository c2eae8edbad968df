//! Containerd beside us: the same pods through its CRI, with runc and the CNI's bridge.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portreeve_e2e::measure::{Account, Figures, millis};
use portreeve_e2e::{Enclosure, Image, Peers, Registry, wait_until};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cri::{Client, Pod};
use crate::{Settings, appeared, big, pss_kib, pulled, toucher_script, watch};

/// So many pods are asked for at the same time: more get into each other's way on two processors.
const WORKERS: usize = 10;

/// Measures a sandbox with one container: asked for until its program runs, and removed.
pub(crate) fn measure(settings: &Settings, peers: Peers, report: &mut Figures) {
    let program = format!("containerd {} CRI, runc {}", peers.version("containerd"), peers.version("runc"));
    let daemon = peers.program("containerd");
    let cni = peers.cni();
    // Its cgroup can go only when the enclosure, and with that its processes, have gone, also after a failure.
    let mut account = Account::new(&[]);
    let enclosure = Enclosure::new(peers);
    account.watch(Path::new(enclosure.cgroup().trim_start_matches('/')));
    // What its plugins for networks keep, whatever their settings say.
    let hidden = enclosure.call(&["mount", "-t", "tmpfs", "none", "/var/lib"]);
    assert_eq!(hidden.code, 0, "{}", hidden.stderr);
    let world = enclosure.world();
    let registry = Registry::start(world, 5001);
    let busybox = registry.push(&Image::busybox(world.home(), "busybox:1"), "busybox:1");
    let pause = registry.push(&Image::pause(world.home(), "pause:1"), "pause:1");

    std::fs::create_dir_all(enclosure.path("net.d")).expect("the directory of networks");
    let network = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": { "type": "host-local", "dataDir": enclosure.path("addresses"),
                      "ranges": [[{ "subnet": "10.199.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }] },
        }],
    });
    std::fs::write(enclosure.path("net.d/10-bench.conflist"), network.to_string()).expect("writing a network");
    let socket = enclosure.path("socket");
    let configuration = format!(
        "version = 3\nroot = '{root}'\nstate = '{state}'\n[grpc]\naddress = '{socket}'\n\
         [plugins.'io.containerd.internal.v1.opt']\npath = '{opt}'\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{pause}'\n\
         [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['{cni}']\nconf_dir = '{networks}'\n",
        root = enclosure.path("containerd").display(),
        state = enclosure.path("containerd-state").display(),
        socket = socket.display(),
        opt = enclosure.path("opt").display(),
        cni = cni.display(),
        networks = enclosure.path("net.d").display(),
    );
    std::fs::write(enclosure.path("containerd.toml"), configuration).expect("writing containerd's configuration");
    let log = enclosure.path("containerd.log");
    let mut command = account.command(|shell| enclosure.command(shell), daemon);
    command.arg("--config").arg(enclosure.path("containerd.toml")).stdin(Stdio::null()).stdout(Stdio::null());
    let mut daemon = command.stderr(File::create(&log).expect("a file for the log")).spawn().expect("nsenter");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = wait_until("containerd is ready", 30, || {
        let client = runtime.block_on(Client::connect(&socket)).map_err(|error| error.to_string())?;
        let lacks = runtime.block_on(client.not_ready()).map_err(|error| error.to_string())?;
        if lacks.is_empty() { Ok(client) } else { Err(lacks.join("; ")) }
    });
    for image in [&busybox, &pause] {
        runtime.block_on(client.pull(image)).expect("pulling an image");
    }
    let bench = Bench { enclosure: &enclosure, account: &account, runtime, client, busybox, program: &program };
    bench.single(settings.single, report);
    bench.many(settings.pods, settings.idle, report);
    if settings.pull > 0 {
        let (_registry, reference) = big(world, settings.pull);
        let begun = Instant::now();
        bench.runtime.block_on(bench.client.pull(&reference)).expect("pulling an image");
        report.one(&program, &pulled(settings.pull), millis(begun.elapsed()));
    }
    drop(bench);
    drop(registry);
    // Its processes end with it.
    drop(enclosure);
    let _ = daemon.wait();
    drop(account);
}

struct Bench<'b> {
    enclosure: &'b Enclosure,
    account: &'b Account,
    runtime: Runtime,
    client: Client,
    busybox: String,
    program: &'b str,
}

impl Bench<'_> {
    fn pod(&self, name: &str) -> Pod {
        Pod {
            name: name.to_owned(),
            image: self.busybox.clone(),
            command: ["sh", "-c", &toucher_script(name)].map(str::to_owned).to_vec(),
            volume: (self.enclosure.path("out").display().to_string(), "/out".to_owned()),
            logs: self.enclosure.path("logs").join(name).display().to_string(),
            cgroup_parent: self.enclosure.cgroup().to_owned(),
        }
    }

    /// One pod after another.
    fn single(&self, count: usize, report: &mut Figures) {
        let inotify = watch(&self.enclosure.path("out"));
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let before = self.account.nanoseconds();
        for number in 0..count {
            let pod = self.pod(&format!("s{number}"));
            let begun = Instant::now();
            let sandbox = self.runtime.block_on(self.client.run(pod)).expect("a pod of containerd");
            appeared(&inotify, 1);
            up.push(begun.elapsed());
            let begun = Instant::now();
            self.runtime.block_on(self.client.remove(sandbox)).expect("removing a pod of containerd");
            down.push(begun.elapsed());
        }
        let cpu = Duration::from_nanos((self.account.nanoseconds() - before) / count.max(1) as u64);
        report.times(self.program, "file dropped to running", &up);
        report.times(self.program, "file removed to gone", &down);
        report.one(self.program, "CPU per whole cycle, ms", millis(cpu));
    }

    /// Many at once, at rest, and removed at once.
    fn many(&self, count: usize, idle: u64, report: &mut Figures) {
        let inotify = watch(&self.enclosure.path("out"));
        let before = self.account.nanoseconds();
        let begun = Instant::now();
        let sandboxes = self.runtime.block_on(async {
            let (workers, mut pods) = (Arc::new(Semaphore::new(WORKERS)), JoinSet::new());
            for number in 0..count {
                let (pod, client, workers) = (self.pod(&format!("m{number}")), self.client.clone(), workers.clone());
                pods.spawn(async move {
                    let _turn = workers.acquire().await.expect("nobody closes it");
                    client.run(pod).await.expect("a pod of containerd")
                });
            }
            pods.join_all().await
        });
        appeared(&inotify, count);
        let took = millis(begun.elapsed());
        report.one(self.program, &format!("{count} pods dropped at once to all running, ms"), took);
        let cpu = Duration::from_nanos((self.account.nanoseconds() - before) / count.max(1) as u64);
        report.one(self.program, "CPU per pod of those, ms", millis(cpu));
        std::thread::sleep(Duration::from_secs(3));

        let before = self.account.nanoseconds();
        std::thread::sleep(Duration::from_secs(idle));
        let used = Duration::from_nanos(self.account.nanoseconds() - before).as_secs_f64();
        report.one(self.program, "idle CPU, % of a core", 100.0 * used / idle.max(1) as f64);
        let mebibytes = |pids: &[String]| pids.iter().map(|pid| pss_kib(pid)).sum::<u64>() as f64 / 1024.0;
        report.one(self.program, "agent PSS, MiB", mebibytes(&self.account.processes("containerd")));
        // The kernel keeps 15 bytes of a name.
        let shims = self.account.processes("containerd-shim");
        report.one(self.program, "shims", shims.len() as f64);
        report.one(self.program, "PSS per shim, MiB", mebibytes(&shims) / shims.len().max(1) as f64);

        let begun = Instant::now();
        self.runtime.block_on(async {
            let (workers, mut removals) = (Arc::new(Semaphore::new(WORKERS)), JoinSet::new());
            for sandbox in sandboxes {
                let (client, workers) = (self.client.clone(), workers.clone());
                removals.spawn(async move {
                    let _turn = workers.acquire().await.expect("nobody closes it");
                    client.remove(sandbox).await.expect("removing a pod of containerd");
                });
            }
            removals.join_all().await
        });
        let took = millis(begun.elapsed());
        report.one(self.program, &format!("{count} pods removed at once to all gone, ms"), took);
    }
}
