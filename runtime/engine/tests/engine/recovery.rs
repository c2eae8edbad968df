//! Deaths: of the shim, of the agent, at any moment.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use portreeve_engine::{
    ContainerConfig, ContainerId, ContainerState, Engine, EngineError, EngineEvent, Namespaces, SandboxId, SandboxState,
};

use crate::world::{World, config, sh, wait_until};

fn kill(pid: u32) {
    signal(pid, rustix::process::Signal::KILL);
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

pub(crate) async fn a_killed_shim_leaves_no_orphans() {
    let world = World::new().await;
    let mut sandbox = world.sandbox();
    sandbox.namespaces = Namespaces { pid: portreeve_engine::PidNamespace::Pod, ..Namespaces::default() };
    let pod = world.run(sandbox).await;
    let ended = world.start(&pod, sh("exit 9")).await;
    world.engine().wait_container(&ended).await.unwrap();
    let id = world.start(&pod, sh("sleep 100 & sleep 100")).await;
    let bystander = world.pod().await;
    let other = world.start(&bystander, sh("sleep 100")).await;
    let mut events = world.engine().subscribe();
    kill(world.engine().sandbox(&pod).unwrap().shim_pid.unwrap());
    let status = world.engine().wait_container(&id).await.unwrap();
    assert_eq!(status.exit.unwrap().code, 137);
    assert!(status.message.contains("shim"), "{}", status.message);
    loop {
        if let EngineEvent::SandboxLost { id, reason } = events.recv().await.unwrap() {
            assert_eq!((id, reason.as_str()), (pod.clone(), "shim died"));
            break;
        }
    }
    let state = world.engine().sandbox(&pod).unwrap().state;
    assert_eq!(state, SandboxState::NotReady { reason: "shim died".into() });
    assert_eq!(world.status(&ended).exit.unwrap().code, 9);
    assert_eq!(world.status(&other).state, ContainerState::Running);
    assert!(world.engine().network().attachments().is_empty());
    let cgroup = world.engine().sandbox(&pod).unwrap().cgroup_parent;
    wait_until("nothing of it runs", || !world.processes().iter().any(|line| line.contains(pod.as_str()))).await;
    assert!(portreeve_oci::cgroup::Cgroup::at(&cgroup).unwrap().processes().unwrap().is_empty());
    world.engine().remove_sandbox(&pod).await.unwrap();
    assert_eq!(world.engine().sandboxes().len(), 1);
}

pub(crate) async fn a_lost_sandbox_that_is_stopped_is_stopped() {
    let mut world = World::new().await;
    let pod = world.pod().await;
    let state = |world: &World| world.engine().sandbox(&pod).unwrap().state;
    let reason = |reason: &str| SandboxState::NotReady { reason: reason.into() };
    kill(world.engine().sandbox(&pod).unwrap().shim_pid.unwrap());
    wait_until("it is lost", || state(&world) == reason("shim died")).await;
    // Another agent is not an order.
    world.close().await;
    world.open().await;
    assert_eq!(state(&world), reason("shim died"));
    let mut events = world.engine().subscribe();
    for _ in 0..2 {
        world.engine().stop_sandbox(&pod).await.unwrap();
        assert_eq!(state(&world), reason("stopped"));
    }
    assert!(events.try_recv().is_err(), "its end was told when it was lost");
    world.close().await;
    world.open().await;
    assert_eq!(state(&world), reason("stopped"));
}

pub(crate) async fn a_new_engine_finds_everything_again() {
    let mut world = World::new().await;
    let mut sandbox = world.sandbox();
    sandbox.namespaces = Namespaces::default();
    sandbox.annotations = [("applied".to_owned(), "{\"x\": 1}".to_owned())].into();
    let pod = world.run(sandbox).await;
    let running = world.start(&pod, sh("trap 'exit 6' USR1; echo up; while :; do sleep 0.01; done")).await;
    let created = world.create(&pod, sh("echo late")).await;
    let ended = world.start(&pod, sh("exit 5")).await;
    world.engine().wait_container(&ended).await.unwrap();
    let (stopped, second) = (world.pod().await, world.pod().await);
    world.engine().stop_sandbox(&stopped).await.unwrap();
    let before = (world.engine().sandboxes(), world.engine().containers());

    world.close().await;
    assert_eq!(before.0.len(), 3);
    world.open().await;
    assert_eq!(world.engine().sandboxes(), before.0);
    assert_eq!(world.engine().containers(), before.1);
    // And they still obey.
    world.engine().start_container(&created).await.unwrap();
    assert_eq!(world.engine().wait_container(&created).await.unwrap().exit.unwrap().code, 0);
    let output = world
        .engine()
        .exec_sync(&running, vec!["echo".into(), "hi".into()], Duration::from_secs(5), 100)
        .await
        .unwrap();
    assert_eq!(output.stdout, b"hi\n");
    world.engine().stop_container(&running, Duration::from_secs(10)).await.unwrap();
    assert_eq!(world.status(&running).exit.unwrap().code, 6);
    for pod in [pod, stopped, second] {
        world.engine().remove_sandbox(&pod).await.unwrap();
    }
    wait_until("nothing is left", || world.traces().iter().all(|one| one.ends_with("/burstable"))).await;
}

pub(crate) async fn a_pod_whose_link_went_has_its_parameters_on_the_new_one() {
    let mut world = World::new().await;
    let mut config = world.sandbox();
    config.namespaces = Namespaces::default();
    config.sysctls = [("net.ipv4.conf.eth0.arp_ignore".to_owned(), "2".to_owned())].into();
    let pod = world.run(config).await;
    let read = "cat /proc/sys/net/ipv4/conf/eth0/arp_ignore";
    assert_eq!(world.script(&pod, read).await.1.trim(), "2");
    let attachments = world.engine().network().attachments();
    let [attachment] = &attachments[..] else { panic!("{attachments:?}") };
    world.close().await;
    let deleted = Command::new("ip").args(["link", "delete", attachment.host_link.as_str()]).status().unwrap();
    assert!(deleted.success());
    world.open().await;
    assert_eq!(world.script(&pod, read).await.1.trim(), "2");
}

pub(crate) async fn an_exit_without_an_agent_is_known_later() {
    let mut world = World::new().await;
    let pod = world.pod().await;
    let lost = world.pod().await;
    let id = world.start(&pod, sh("sleep 0.3; echo bye; exit 11")).await;
    let orphan = world.start(&lost, sh("sleep 100")).await;
    let shim = world.engine().sandbox(&lost).unwrap().shim_pid.unwrap();
    world.close().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    kill(shim);
    world.open().await;
    let status = world.status(&id);
    assert_eq!((status.state, status.exit.unwrap().code), (ContainerState::Exited, 11));
    assert!(fs::read_to_string(status.log_path.unwrap()).unwrap().contains("F bye"));
    assert_eq!(world.status(&orphan).exit.unwrap().code, 137);
    assert_eq!(world.engine().sandbox(&lost).unwrap().state, SandboxState::NotReady { reason: "shim died".into() });
    wait_until("the orphan is gone", || world.processes().len() == 1).await;
}

pub(crate) async fn a_shim_that_is_given_up_writes_nothing_while_its_containers_are_recovered() {
    const CONTAINERS: usize = 12;
    let mut world = World::new().await;
    let pod = world.pod().await;
    let mut containers = Vec::new();
    for _ in 0..CONTAINERS {
        containers.push(world.start(&pod, sh("exec sleep 100")).await);
    }
    world.close().await;
    // It lives, and cannot be reached.
    fs::remove_file(world.path("run/sandboxes").join(pod.as_str()).join("shim.sock")).unwrap();
    world.open().await;
    assert_eq!(world.engine().sandbox(&pod).unwrap().state, SandboxState::NotReady { reason: "shim died".into() });
    for id in &containers {
        let place = format!("run/sandboxes/{pod}/containers/{id}/exit.json");
        let written: serde_json::Value = serde_json::from_slice(&fs::read(world.path(&place)).unwrap()).unwrap();
        let message = world.status(id).message;
        assert!(message.contains("shim had died") && written["message"] == message.as_str(), "{message:?} {written}");
    }
    assert_eq!(world.processes(), Vec::<String>::new());
}

pub(crate) async fn a_container_that_cannot_be_recovered_is_not_the_end_of_the_others() {
    let mut world = World::new().await;
    let (pod, living) = (world.pod().await, world.pod().await);
    let (broken, whole) = (world.start(&pod, sh("sleep 100")).await, world.start(&pod, sh("sleep 100")).await);
    let other = world.start(&living, sh("sleep 100")).await;
    world.close().await;
    kill_and_wait(&world, &pod).await;
    // Nothing can be written there.
    fs::create_dir(world.path(&format!("run/sandboxes/{pod}/containers/{broken}/exit.json.new"))).unwrap();
    world.open().await;
    assert_eq!(world.engine().sandbox(&pod).unwrap().state, SandboxState::NotReady { reason: "shim died".into() });
    assert_eq!(world.status(&whole).exit.unwrap().code, 137);
    assert!(world.engine().container(&broken).is_none());
    assert_eq!(world.status(&other).state, ContainerState::Running);
}

/// Kills the shim of a pod while there is no agent.
async fn kill_and_wait(world: &World, pod: &SandboxId) {
    let line = format!("shim {}", world.path("run/sandboxes").join(pod.as_str()).display());
    let shim = || world.processes().into_iter().find(|one| one.contains(&line));
    let pid = shim().unwrap().split(' ').next().unwrap().parse().unwrap();
    kill(pid);
    wait_until("the shim is gone", || shim().is_none()).await;
}

pub(crate) async fn a_pod_with_many_words_of_ended_containers_is_found_again() {
    const CONTAINERS: usize = 140;
    let mut world = World::new().await;
    let pod = world.pod().await;
    // Quoted for people and once more for JSON, each is four bytes.
    let words = "\\".repeat(3500);
    for _ in 0..CONTAINERS {
        let id = world.create(&pod, ContainerConfig { command: vec![words.clone()], ..sh("") }).await;
        world.engine().start_container(&id).await.unwrap_err();
    }
    world.close().await;
    world.open().await;
    assert_eq!(world.engine().sandbox(&pod).unwrap().state, SandboxState::Ready);
    let containers = world.engine().containers();
    assert_eq!(containers.len(), CONTAINERS);
    for one in containers {
        assert!(one.reason == "StartError" && one.message.contains(r"\\\\"), "{one:?}");
        assert!((400..1100).contains(&one.message.len()), "{}", one.message.len());
    }
}

/// Makes and removes pods until it is killed; in a process of its own.
pub(crate) async fn victim(directory: PathBuf) {
    let name = fs::read_to_string(directory.join("name")).expect("name");
    let engine = Engine::open(config(&directory, &name)).await.expect("engine");
    let base: portreeve_engine::SandboxConfig =
        serde_json::from_slice(&fs::read(directory.join("sandbox.json")).expect("file")).expect("json");
    println!("open");
    for number in 0.. {
        let mut sandbox = base.clone();
        sandbox.cgroup_parent = format!("{}-{number}", base.cgroup_parent);
        sandbox.metadata.attempt = number;
        let pod = engine.run_sandbox(sandbox).await.expect("sandbox");
        for _ in 0..2 {
            let id = engine.create_container(&pod, sh("echo x; sleep 1000")).await.expect("container");
            engine.start_container(&id).await.expect("start");
            if number % 3 == 0 {
                engine.remove_container(&id).await.expect("remove");
            }
        }
        if number % 2 == 0 {
            engine.remove_sandbox(&pod).await.expect("remove");
        }
    }
}

pub(crate) async fn an_agent_killed_at_any_moment_leaves_nothing_behind() {
    let mut world = World::new().await;
    world.close().await;
    let mut sandbox = world.sandbox();
    sandbox.namespaces = Namespaces::default();
    fs::write(world.path("name"), &world.name).unwrap();
    fs::write(world.path("sandbox.json"), serde_json::to_vec(&sandbox).unwrap()).unwrap();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let rounds = number("PORTREEVE_ROUNDS").unwrap_or(12);
    let mut random = number("PORTREEVE_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("    PORTREEVE_SEED={random} PORTREEVE_ROUNDS={rounds}: kills of an engine");
    for round in 0..rounds {
        let mut agent = Command::new("/proc/self/exe")
            .arg0("victim-agent")
            .arg("victim")
            .arg(world.directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Moments from the very beginning to some pods later.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pause = (random >> 33) % 250;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        agent.kill().unwrap();
        agent.wait().unwrap();
        world.open().await;
        let engine = world.engine();
        for sandbox in engine.sandboxes() {
            // Whole, or killed on the way to its removal; never lost, never half.
            let stopped = SandboxState::NotReady { reason: "stopped".into() };
            assert!(sandbox.state == SandboxState::Ready || sandbox.state == stopped, "round {round}: {sandbox:?}");
        }
        let running: Vec<_> =
            engine.containers().into_iter().filter(|one| one.state == ContainerState::Running).collect();
        for container in &running {
            assert!(fs::metadata(format!("/proc/{}", container.pid.unwrap())).is_ok());
        }
        let sleeping = world.processes().iter().filter(|line| line.contains("sleep 1000")).count();
        let created = engine.containers().len() - running.len();
        assert!(
            sleeping <= 2 * running.len() + created,
            "round {round}: {sleeping} processes, {} running",
            running.len()
        );
        for sandbox in engine.sandboxes() {
            engine.remove_sandbox(&sandbox.id).await.unwrap();
        }
        assert!(engine.network().attachments().is_empty());
        wait_until("nothing is left", || world.traces().iter().all(|one| one.ends_with("/burstable"))).await;
        world.close().await;
    }
}

pub(crate) async fn half_made_and_foreign_things_are_cleaned() {
    let mut world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("sleep 100")).await;
    world.close().await;
    let foreign =
        portreeve_oci::cgroup::Cgroup::open_or_create(&format!("/{}/besteffort/podgone/left", world.name)).unwrap();
    let sandboxes = world.path("run/sandboxes");
    fs::create_dir_all(sandboxes.join("f".repeat(64)).join("containers")).unwrap();
    fs::create_dir_all(sandboxes.join("half.removing/shm")).unwrap();
    let container = sandboxes.join(pod.as_str()).join("containers");
    fs::create_dir(container.join("e".repeat(64))).unwrap();
    // A container that was being made: everything is there but the word that it is whole.
    let record = container.join(id.as_str()).join("container.json");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("\"made\"", "\"making\"")).unwrap();
    world.open().await;
    assert!(!foreign.exists());
    assert_eq!(fs::read_dir(&sandboxes).unwrap().count(), 1);
    assert_eq!(fs::read_dir(&container).unwrap().count(), 0);
    assert!(world.engine().containers().is_empty());
    assert!(world.engine().images().snapshots().unwrap().is_empty());
    assert_eq!(world.processes().len(), 1, "{:?}", world.processes());
    world.script(&pod, "true").await;
}

pub(crate) async fn a_damaged_record_costs_its_sandbox_alone() {
    let mut world = World::new().await;
    let (mut pods, mut ids) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let mut config = world.sandbox();
        config.namespaces = Namespaces::default();
        let pod = world.run(config).await;
        ids.push(world.start(&pod, sh("sleep 100")).await);
        pods.push(pod);
    }
    let [broken, directory, empty, container, whole] = &pods[..] else { panic!("five pods") };
    let stopped = world.pod().await;
    let ended = world.start(&stopped, sh("exit 3")).await;
    world.engine().wait_container(&ended).await.unwrap();
    world.engine().stop_sandbox(&stopped).await.unwrap();
    world.close().await;

    let sandboxes = world.path("run/sandboxes");
    let record = |pod: &SandboxId| sandboxes.join(pod.as_str()).join("sandbox.json");
    let of = |pod: &SandboxId, id: &ContainerId, name: &str| {
        sandboxes.join(pod.as_str()).join("containers").join(id.as_str()).join(name)
    };
    fs::write(record(broken), "{broken").unwrap();
    fs::remove_file(record(directory)).unwrap();
    fs::create_dir(record(directory)).unwrap();
    fs::write(record(empty), "").unwrap();
    fs::write(of(container, &ids[3], "container.json"), "[]").unwrap();
    fs::write(of(&stopped, &ended, "exit.json"), "{").unwrap();
    fs::write(world.path("root/network/network.json"), "?").unwrap();
    fs::write(world.path(&format!("root/network/attachments/{whole}.json")), "").unwrap();
    fs::write(sandboxes.join("stranger"), "").unwrap();
    world.open().await;

    // Whose record is empty has been cleared; the others say why they ended, and whose they were.
    assert!(world.engine().sandbox(empty).is_none());
    for (pod, file) in [
        (broken, format!("{broken}.sandbox.json.damaged")),
        (directory, format!("{directory}.sandbox.json.damaged")),
        (container, format!("{container}.containers.{}.container.json.damaged", ids[3])),
    ] {
        let status = world.engine().sandbox(pod).unwrap();
        let SandboxState::NotReady { reason } = status.state else { panic!("{:?}", status.state) };
        assert!(reason.contains("damaged") && reason.contains(&file), "{reason}");
        assert_eq!((status.metadata.name.as_str(), status.shim_pid), ("pod", None));
        assert!(world.path("run/damaged").join(file).exists());
    }
    assert_eq!(world.status(&ids[0]).exit.unwrap().code, 137);
    assert!(world.engine().container(&ids[3]).is_none());
    assert!(world.status(&ended).message.contains("exit.json"), "{:?}", world.status(&ended));
    // The others have noticed nothing.
    assert_eq!(world.engine().sandbox(whole).unwrap().state, SandboxState::Ready);
    assert_eq!(world.status(&ids[4]).state, ContainerState::Running);
    assert_eq!(world.engine().network().attachments().len(), 1);
    let output = world
        .engine()
        .exec_sync(&ids[4], vec!["ip".into(), "addr".into()], Duration::from_secs(5), 4096)
        .await
        .unwrap();
    let address = world.engine().sandbox(whole).unwrap().ips[0].to_string();
    assert!(String::from_utf8_lossy(&output.stdout).contains(&address));
    assert_eq!(world.processes().len(), 2, "{:?}", world.processes());

    // It is not tried for ever: another start finds them as they are, and all can go.
    world.close().await;
    world.open().await;
    assert_eq!(world.engine().sandboxes().len(), 5);
    for sandbox in world.engine().sandboxes() {
        world.engine().remove_sandbox(&sandbox.id).await.unwrap();
    }
    wait_until("nothing is left", || world.traces().iter().all(|one| one.ends_with("/burstable"))).await;
}

pub(crate) async fn a_stopped_shim_is_given_up() {
    let world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("sleep 100")).await;
    let shim = world.engine().sandbox(&pod).unwrap().shim_pid.unwrap();
    signal(shim, rustix::process::Signal::STOP);
    let begin = std::time::Instant::now();
    let (exec, stop) = tokio::join!(
        world.engine().exec_sync(&id, vec!["true".into()], Duration::ZERO, 10),
        world.engine().stop_container(&id, Duration::from_secs(5)),
    );
    assert!(matches!(exec, Err(EngineError::ShimSilent { .. })), "{exec:?}");
    stop.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(40), "{:?}", begin.elapsed());
    assert_eq!(world.status(&id).exit.unwrap().code, 137);
    let state = world.engine().sandbox(&pod).unwrap().state;
    assert_eq!(state, SandboxState::NotReady { reason: "shim did not answer".into() });
    world.engine().remove_sandbox(&pod).await.unwrap();
    assert_eq!(world.processes(), Vec::<String>::new());
}

pub(crate) async fn newer_state_is_refused_and_left_alone() {
    let mut world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("sleep 100")).await;
    let pid = world.status(&id).pid.unwrap();
    world.close().await;
    // A fixture as a later program would write it: a version and fields that this one does not know.
    let fixture = include_str!("../fixtures/sandbox-v2.json");
    let newer = world.path("run/sandboxes").join("a".repeat(64));
    fs::create_dir(&newer).unwrap();
    fs::write(newer.join("sandbox.json"), fixture).unwrap();
    let error = Engine::open(world.config()).await.unwrap_err();
    assert!(matches!(error, EngineError::NewerState { found: 2, known: 1, .. }), "{error:?}");
    assert!(error.to_string().contains("version 2"), "{error}");
    assert_eq!(fs::read_to_string(newer.join("sandbox.json")).unwrap(), fixture);
    assert!(fs::metadata(format!("/proc/{pid}")).is_ok());
    // The fixture of today's version is read by every later program.
    let kept: serde_json::Value = serde_json::from_str(include_str!("../fixtures/sandbox-v1.json")).unwrap();
    let id = kept["id"].as_str().unwrap().to_owned();
    fs::remove_dir_all(&newer).unwrap();
    fs::create_dir(world.path("run/sandboxes").join(&id)).unwrap();
    fs::write(world.path("run/sandboxes").join(&id).join("sandbox.json"), kept.to_string()).unwrap();
    world.open().await;
    let found = world.engine().sandbox(&id.parse().unwrap()).expect("the kept sandbox");
    assert_eq!(found.state, SandboxState::NotReady { reason: "stopped".into() });
    assert_eq!(found.metadata.name, "web");
    world.engine().remove_sandbox(&found.id).await.unwrap();
    assert_eq!(world.engine().sandboxes().len(), 1);
}

pub(crate) async fn a_shim_is_small() {
    let world = World::new().await;
    let pod = world.pod().await;
    for _ in 0..3 {
        world.start(&pod, ContainerConfig { stdin: true, ..sh("seq 1 5000; sleep 100") }).await;
    }
    let id = world.start(&pod, sh("sleep 100")).await;
    for _ in 0..5 {
        world.engine().exec_sync(&id, vec!["true".into()], Duration::from_secs(5), 10).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let shim = world.engine().sandbox(&pod).unwrap().shim_pid.unwrap();
    let text = fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
    let of = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    if std::env::var_os("PORTREEVE_SMAPS").is_some() {
        println!("{}", fs::read_to_string(format!("/proc/{shim}/smaps")).unwrap());
    }
    println!("    heap {} KiB, stack {} KiB dirty", dirty(shim, "[heap]"), dirty(shim, "[stack]"));
    println!(
        "    shim: Pss_Anon {} KiB, Private_Dirty {} KiB, Pss {} KiB",
        of("Pss_Anon:"),
        of("Private_Dirty:"),
        of("Pss:")
    );
    // What is the shim's own in any build; relocations and code depend on how the program is linked.
    assert!(dirty(shim, "[heap]") <= 160 && dirty(shim, "[stack]") <= 128);
    assert!(of("Pss_Anon:") < 2048, "{text}");
}

/// Dirty KiB of a process's mappings of this name.
fn dirty(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut here, mut sum) = (false, 0);
    for line in text.lines() {
        if line.split_whitespace().next().is_some_and(|word| word.contains('-')) {
            here = line.ends_with(name);
        } else if here && line.starts_with("Private_Dirty:") {
            sum += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        }
    }
    sum
}

pub(crate) async fn a_start_that_is_refused_harms_nobody() {
    let world = World::new().await;
    let mut sandbox = world.sandbox();
    sandbox.namespaces = Namespaces::default();
    let pod = world.run(sandbox).await;
    let id = world.start(&pod, sh("sleep 100")).await;
    let is_sleep = |line: &String| line.ends_with("sleep 100 ") && !line.contains("-c");
    wait_until("the shell has become its program", || world.processes().iter().any(is_sleep)).await;
    let before = (world.status(&id), world.processes());
    // Another agent with directories of its own, and the names of this one.
    let mut other = config(&world.path("other"), &world.name);
    other.network.subnet_lock = world.config().network.subnet_lock;
    let mut bridge_only = other.clone();
    bridge_only.network.nft_table = format!("{}b", world.name);
    for other in [other, bridge_only] {
        let error = Engine::open(other).await.unwrap_err();
        let words = crate::world::chain(&error);
        assert!(matches!(error, EngineError::NetworkOpen(_)), "{words}");
        let place = world.path("root/network").canonicalize().unwrap();
        assert!(words.contains(&world.name) && words.contains(&place.display().to_string()), "{words}");
    }
    assert_eq!((world.status(&id), world.processes()), before);
    assert_eq!(world.engine().network().observe().unwrap(), []);
    // A configuration that pods forbid is refused before anything of theirs is lost, too.
    let mut world = world;
    world.close().await;
    let mut changed = world.config();
    changed.network.bridge = "prtest9".into();
    let words = crate::world::chain(&Engine::open(changed).await.unwrap_err());
    assert!(words.contains("drain the node first"), "{words}");
    assert_eq!(world.processes(), before.1);
    world.open().await;
    assert_eq!(world.status(&id).state, ContainerState::Running);
}
