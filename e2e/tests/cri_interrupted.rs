//! An agent that is killed within calls of CRI: a client that asks again sees a consistent world, and nothing stays over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portreeve_e2e::cri::{image_spec, pod, shell, v1};
use portreeve_e2e::{Agent, BUSYBOX, Cri, Image, Registry, World, patience, skipped_without_root, wait_until};
use tonic::{Code, Status};

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Asks until there is an agent that answers; what it refuses is told.
fn insist<T>(what: &str, mut ask: impl FnMut() -> Result<T, Status>) -> Result<T, Status> {
    let begun = Instant::now();
    loop {
        match ask() {
            Err(status) if matches!(status.code(), Code::Unavailable | Code::Cancelled) || is_broken(&status) => {
                assert!(begun.elapsed() < patience(60), "{what}: {status}");
                std::thread::sleep(Duration::from_millis(20));
            }
            answer => return answer,
        }
    }
}

/// The connection went while the answer was waited for.
fn is_broken(status: &Status) -> bool {
    // What a server says has no cause on this side.
    status.code() == Code::Unknown && std::error::Error::source(status).is_some()
}

/// What a kubelet asks beside a container that runs.
fn attend(cri: &Cri, container: &str, sandbox: &str) {
    let update = v1::UpdateContainerResourcesRequest {
        container_id: container.to_owned(),
        linux: Some(v1::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() }),
        ..Default::default()
    };
    insist("updating", || cri.runtime(async |mut runtime| runtime.update_container_resources(update.clone()).await))
        .unwrap();
    let log = v1::ReopenContainerLogRequest { container_id: container.to_owned() };
    insist("reopening", || cri.runtime(async |mut runtime| runtime.reopen_container_log(log.clone()).await)).unwrap();
    let stats = v1::PodSandboxStatsRequest { pod_sandbox_id: sandbox.to_owned() };
    let stats =
        insist("counting", || cri.runtime(async |mut runtime| runtime.pod_sandbox_stats(stats.clone()).await)).unwrap();
    assert_eq!(stats.stats.unwrap().linux.unwrap().containers.len(), 1);
}

/// A pod's life as a kubelet leads it: what is there is looked at before anything is made. Its image comes and goes with it.
fn live(cri: &Cri, world: &World, image: &str, name: &str) {
    let id = insist("pulling", || cri.pull(image)).unwrap();
    let mut config = pod(name, &world.path("cri-logs"));
    config.labels.insert("pod".to_owned(), name.to_owned());
    let list = || {
        let filter = v1::PodSandboxFilter { label_selector: config.labels.clone(), ..Default::default() };
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        insist("listing", || cri.runtime(async |mut runtime| runtime.list_pod_sandbox(request.clone()).await))
            .unwrap()
            .items
    };
    let sandbox = loop {
        let found = list();
        assert!(found.len() <= 1, "{found:?}");
        if let Some(one) = found.first() {
            assert_eq!(one.state(), v1::PodSandboxState::SandboxReady);
            break one.id.clone();
        }
        match insist("running", || cri.run_sandbox(&config)) {
            Ok(id) => break id,
            // The call that was cut off has succeeded.
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
        }
    };
    let container = loop {
        let filter = v1::ContainerFilter { pod_sandbox_id: sandbox.clone(), ..Default::default() };
        let request = v1::ListContainersRequest { filter: Some(filter) };
        let found =
            insist("listing", || cri.runtime(async |mut runtime| runtime.list_containers(request.clone()).await));
        let found = found.unwrap().containers;
        assert!(found.len() <= 1, "{found:?}");
        if let Some(one) = found.first() {
            break one.id.clone();
        }
        let wanted = shell("main", &id, "echo one >> /count; sleep 1000");
        match insist("creating", || cri.create(&sandbox, wanted.clone(), &config)) {
            Ok(id) => break id,
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
        }
    };
    insist("starting", || cri.start(&container)).unwrap();
    wait_until("it has begun", 30, || {
        let counted =
            insist("executing", || cri.exec(&container, &["cat", "/count"], 20)).map_err(|s| s.to_string())?;
        match counted.stdout.as_slice() {
            b"one\n" => Ok(()),
            b"" => Err("nothing".to_owned()),
            twice => panic!("started more than once: {}", String::from_utf8_lossy(twice)),
        }
    });
    attend(cri, &container, &sandbox);
    insist("stopping", || cri.stop(&container, 0)).unwrap();
    let ended = insist("looking", || cri.container(&container)).unwrap();
    assert_eq!(ended.state(), v1::ContainerState::ContainerExited, "{ended:?}");
    insist("removing", || cri.remove(&container)).unwrap();
    insist("stopping", || cri.stop_sandbox(&sandbox)).unwrap();
    insist("removing", || cri.remove_sandbox(&sandbox)).unwrap();
    assert_eq!(list(), []);
    let gone = v1::RemoveImageRequest { image: Some(image_spec(image)) };
    insist("removing", || cri.images(async |mut images| images.remove_image(gone.clone()).await)).unwrap();
    let shown = v1::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
    let shown = insist("looking", || cri.images(async |mut images| images.image_status(shown.clone()).await)).unwrap();
    assert_eq!(shown.image, None);
}

#[test]
fn an_agent_that_is_killed_within_any_call_leaves_a_consistent_world() {
    if skipped_without_root("cri_interrupted") {
        return;
    }
    let kills = number("PORTREEVE_KILLS", 8);
    let clock = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| u64::from(since.subsec_nanos()));
    let mut seed = number("PORTREEVE_SEED", clock);
    eprintln!("PORTREEVE_SEED={seed}");
    let world = World::new("cri-kills");
    let registry = Registry::start(&world, 5000);
    let image = Image::busybox_with(world.home(), "test.local/one:1", &[("etc/one", "one")]);
    let image = registry.push(&image, "one:1");
    let mut agent = Agent::with_busybox(&world);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let lives = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                live(&cri, &world, &image, &format!("p{count}"));
                count += 1;
            }
            count
        });
        for _ in 0..kills {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            std::thread::sleep(Duration::from_millis((seed >> 33) % 400));
            if lives.is_finished() {
                break;
            }
            agent.kill();
            agent.launch();
        }
        done.store(true, Ordering::Relaxed);
        match lives.join() {
            Ok(count) => eprintln!("{count} pods lived through {kills} kills"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    let left = wait_until("nothing is left", 20, || {
        let census = agent.census();
        let shims: Vec<_> = census.processes.iter().filter(|process| process.contains(" shim ")).collect();
        if shims.is_empty() && census.contained.is_empty() { Ok(census.files) } else { Err(format!("{census:?}")) }
    });
    assert!(left.is_empty(), "{left:?}");
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
