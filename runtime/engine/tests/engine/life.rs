//! What a container's life looks like from outside.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxMemory, LinuxPids, LinuxResources};
use portreeve_engine::{
    ContainerConfig, ContainerState, EngineError, EngineEvent, IdMapping, IpcNamespace, Mount, MountSource, Namespaces,
    NetworkNamespace, PidNamespace, Propagation, SandboxConfig, SandboxState, SecurityContext, UserNamespace,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::mapped_layers::skipped_without_mapped_layers;
use crate::world::{World, chain, sh, wait_until};

fn memory(bytes: i64) -> LinuxResources {
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(bytes));
    let mut resources = LinuxResources::default();
    resources.set_memory(Some(memory));
    resources
}

pub(crate) async fn a_container_runs_logs_and_ends_with_its_code() {
    let world = World::new().await;
    let (mut events, mut with_pods) = (world.engine().subscribe(), world.engine().subscribe_with_pods());
    let pod = world.pod().await;
    let id = world.create(&pod, sh("echo out; echo err >&2; printf 'no newline'; exit 3")).await;
    assert_eq!(world.status(&id).state, ContainerState::Created);
    world.engine().start_container(&id).await.unwrap();
    let status = world.engine().wait_container(&id).await.unwrap();
    assert_eq!(status.exit.unwrap().code, 3);
    assert_eq!((status.reason.as_str(), status.message.as_str()), ("Error", ""));
    assert!(status.started_at.unwrap() <= status.finished_at.unwrap());
    let log = fs::read_to_string(status.log_path.unwrap()).unwrap();
    let shape: Vec<_> = log.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    let mut sorted = shape.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["stderr F err", "stdout F no newline", "stdout F out"]);
    let (status, _) = world.script(&pod, "true").await;
    assert_eq!((status.reason.as_str(), status.exit.unwrap().code), ("Completed", 0));
    let (status, _) = world.script(&pod, "sh -c 'kill -9 $$'; exit $?").await;
    assert_eq!((status.exit.unwrap().code, status.exit.unwrap().signal), (137, None));

    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(event);
    }
    let created = EngineEvent::ContainerCreated { sandbox: pod.clone(), id: id.clone() };
    let position = |wanted: &EngineEvent| seen.iter().position(|event| event == wanted).expect("an event");
    assert!(position(&EngineEvent::SandboxReady(pod.clone())) < position(&created));
    assert!(seen.iter().any(
        |event| matches!(event, EngineEvent::ContainerExited { id: which, exit, .. } if *which == id && exit.code == 3)
    ));

    // With pods, the same is told in the same order, with what each of them made of the pod.
    let (mut same, mut states) = (Vec::new(), Vec::new());
    while let Ok(told) = with_pods.try_recv() {
        assert_eq!((&told.sandbox.id, told.event.sandbox()), (&pod, &pod));
        states.extend(told.containers.iter().find(|one| one.id == id).map(|one| one.state));
        same.push(told.event.clone());
    }
    assert_eq!(same, seen);
    assert_eq!(states[..3], [ContainerState::Created, ContainerState::Running, ContainerState::Exited]);
}

pub(crate) async fn containers_of_a_pod_share_network_hostname_and_shm() {
    let world = World::new().await;
    let config = world.sandbox();
    let config = SandboxConfig { hostname: "shared".into(), namespaces: Namespaces::default(), ..config };
    let pod = world.run(config).await;
    world.script(&pod, "echo hello > /dev/shm/note").await;
    let (_, text) = world
        .script(&pod, "cat /dev/shm/note; hostname; cat /etc/hostname; readlink /proc/self/ns/net; echo $HOSTNAME")
        .await;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..3], ["hello", "shared", "shared"]);
    assert_eq!(lines[4], "shared");
    let (_, other) = world.script(&pod, "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc").await;
    assert_eq!(other.lines().next(), Some(lines[3]));
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(own.to_str(), Some(lines[3]));
    // Another pod sees none of it.
    let second = world.pod().await;
    let (status, _) = world.script(&second, "test ! -e /dev/shm/note").await;
    assert_eq!(status.exit.unwrap().code, 0);
}

pub(crate) async fn a_program_that_is_not_there_is_a_start_error() {
    let world = World::new().await;
    let pod = world.pod().await;
    // With a kubelet scripts look for this code, beside the reason.
    let code = 128;
    for program in ["/bin/nothing", "nothing", "/bin/notexec"] {
        let config = ContainerConfig { command: vec![program.into()], ..sh("") };
        let id = world.create(&pod, config).await;
        let error = world.engine().start_container(&id).await.unwrap_err();
        let EngineError::Start { message, code: recorded } = &error else { panic!("{error:?}") };
        assert!(message.contains(program), "{message}");
        assert_eq!(*recorded, code);
        let status = world.status(&id);
        assert_eq!((status.state, status.reason.as_str()), (ContainerState::Exited, "StartError"));
        assert_eq!(status.exit.unwrap().code, code);
        assert_eq!(&status.message, message);
    }
}

pub(crate) async fn a_container_that_ignores_its_signal_is_killed_after_its_grace() {
    let world = World::new().await;
    let pod = world.pod().await;
    let id = world
        .start(
            &pod,
            ContainerConfig { stop_signal: Some("SIGTERM".into()), ..sh("trap '' TERM; while :; do sleep 1; done") },
        )
        .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let begin = Instant::now();
    world.engine().stop_container(&id, Duration::from_millis(300)).await.unwrap();
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(3), "{took:?}");
    let exit = world.status(&id).exit.unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
    // One that ends at once is not waited for.
    let id = world
        .start(
            &pod,
            ContainerConfig {
                stop_signal: Some("TERM".into()),
                ..sh("trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done")
            },
        )
        .await;
    let log = world.status(&id).log_path.unwrap();
    wait_until("it is up", || fs::read_to_string(&log).is_ok_and(|text| text.contains("up"))).await;
    let begin = Instant::now();
    world.engine().stop_container(&id, Duration::from_secs(30)).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert_eq!(world.status(&id).exit.unwrap().code, 0);
}

pub(crate) async fn the_stop_signal_of_the_image_is_used() {
    let world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("trap 'exit 42' USR1; echo up; while :; do sleep 0.01; done")).await;
    let log = world.status(&id).log_path.unwrap();
    wait_until("it is up", || fs::read_to_string(&log).is_ok_and(|text| text.contains("up"))).await;
    world.engine().stop_container(&id, Duration::from_secs(20)).await.unwrap();
    assert_eq!(world.status(&id).exit.unwrap().code, 42);
}

pub(crate) async fn stop_and_remove_of_the_absent_are_ok() {
    let world = World::new().await;
    let (engine, pod) = (world.engine(), world.pod().await);
    let id = world.create(&pod, sh("sleep 100")).await;
    engine.stop_container(&id, Duration::ZERO).await.unwrap();
    engine.start_container(&id).await.unwrap();
    engine.start_container(&id).await.unwrap();
    engine.stop_container(&id, Duration::ZERO).await.unwrap();
    engine.stop_container(&id, Duration::ZERO).await.unwrap();
    assert!(matches!(engine.start_container(&id).await, Err(EngineError::WrongState { .. })));
    engine.remove_container(&id).await.unwrap();
    engine.remove_container(&id).await.unwrap();
    engine.stop_container(&id, Duration::ZERO).await.unwrap();
    engine.stop_sandbox(&pod).await.unwrap();
    engine.stop_sandbox(&pod).await.unwrap();
    assert!(matches!(engine.create_container(&pod, sh("true")).await, Err(EngineError::SandboxNotReady { .. })));
    engine.remove_sandbox(&pod).await.unwrap();
    engine.remove_sandbox(&pod).await.unwrap();
    engine.stop_sandbox(&pod).await.unwrap();
    assert!(engine.sandboxes().is_empty() && engine.containers().is_empty());
}

pub(crate) async fn too_much_memory_is_an_oom_kill() {
    let world = World::new().await;
    let pod = world.pod().await;
    let config =
        ContainerConfig { resources: memory(16 << 20), ..sh("head -c 200m /dev/zero | tail -c 150m | wc -c; exit 1") };
    let config = ContainerConfig {
        command: vec!["/bin/sh".into(), "-c".into(), "exec tail -c 150m /dev/zero".into()],
        ..config
    };
    let id = world.start(&pod, config).await;
    let status = world.engine().wait_container(&id).await.unwrap();
    let exit = status.exit.unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
    assert_eq!(status.reason, "OOMKilled");
    // A plain SIGKILL is none.
    let id = world.start(&pod, ContainerConfig { resources: memory(64 << 20), ..sh("sleep 100") }).await;
    world.engine().signal_container(&id, 9).await.unwrap();
    assert_eq!(world.engine().wait_container(&id).await.unwrap().reason, "Error");
}

pub(crate) async fn limits_are_written_and_changed() {
    let world = World::new().await;
    let mut config = world.sandbox();
    config.resources = memory(512 << 20);
    let pod = world.run(config).await;
    let mut resources = memory(64 << 20);
    let mut pids = LinuxPids::default();
    pids.set_limit(50.into());
    resources.set_pids(Some(pids));
    let id = world.start(&pod, ContainerConfig { resources, ..sh("sleep 100") }).await;
    let stats = |path: &str| portreeve_oci::cgroup::Cgroup::at(path).unwrap().stats().unwrap();
    let status = world.status(&id);
    assert!(status.cgroup.ends_with(id.as_str()));
    assert_eq!(stats(&status.cgroup).memory_limit_bytes, Some(64 << 20));
    assert_eq!(stats(&status.cgroup).pids_limit, Some(50));
    assert_eq!(stats(&world.engine().sandbox(&pod).unwrap().cgroup_parent).memory_limit_bytes, Some(512 << 20));
    world.engine().update_resources(&id, &memory(128 << 20)).await.unwrap();
    assert_eq!(stats(&status.cgroup).memory_limit_bytes, Some(128 << 20));
    let resources = world.status(&id).resources;
    assert_eq!(resources.memory().unwrap().limit(), Some(128 << 20));
    assert!(resources.pids().is_some(), "what was not named stays");
    let usage = world.engine().stats(&id).await.unwrap();
    assert!(usage.usage.counted.memory_bytes > 0 && usage.usage.counted.pids >= 1, "{usage:?}");
    let usage = world.engine().sandbox_stats(&pod).await.unwrap();
    assert!(usage.containers.len() == 1 && usage.usage.counted.pids >= 1, "{usage:?}");
}

pub(crate) async fn a_memory_limit_below_use_is_refused_and_nothing_is_killed() {
    let world = World::new().await;
    let pod = world.pod().await;
    let script = "dd if=/dev/zero of=/dev/shm/fill bs=1M count=32 2>/dev/null; echo full; sleep 100";
    let id = world.start(&pod, ContainerConfig { resources: memory(128 << 20), ..sh(script) }).await;
    let log = world.status(&id).log_path.unwrap();
    wait_until("full", || fs::read_to_string(&log).is_ok_and(|text| text.contains("full"))).await;
    let error = world.engine().update_resources(&id, &memory(16 << 20)).await.unwrap_err();
    let words = chain(&error);
    assert!(words.contains("memory limit of 16777216 bytes is below the"), "{words}");
    let status = world.status(&id);
    assert_eq!(status.state, ContainerState::Running);
    let stats = portreeve_oci::cgroup::Cgroup::at(&status.cgroup).unwrap().stats().unwrap();
    assert_eq!((stats.memory_limit_bytes, stats.oom_kills), (Some(128 << 20), 0));
    assert_eq!(status.resources.memory().unwrap().limit(), Some(128 << 20), "what is recorded is what is in force");
}

pub(crate) async fn logs_rotate_and_reopen() {
    let world = World::new().await;
    let pod = world.pod().await;
    let (status, _) = world.script(&pod, "seq 1 20000").await;
    let log = status.log_path.unwrap();
    let mut names: Vec<_> =
        fs::read_dir(log.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
    assert!(fs::read_to_string(&log).unwrap().lines().last().unwrap().ends_with("stdout F 20000"));

    let id = world.start(&pod, sh("echo one; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo two; sleep 100")).await;
    let log = world.status(&id).log_path.unwrap();
    wait_until("one", || fs::read_to_string(&log).is_ok_and(|text| text.contains("one"))).await;
    fs::rename(&log, log.with_extension("old")).unwrap();
    world.engine().reopen_log(&id).await.unwrap();
    let touch = vec!["touch".into(), "/tmp/go".into()];
    world.engine().exec_sync(&id, touch, Duration::from_secs(10), 1000).await.unwrap();
    wait_until("two", || fs::read_to_string(&log).is_ok_and(|text| text.contains("two") && !text.contains("one")))
        .await;
}

pub(crate) async fn removal_leaves_nothing() {
    let world = World::new().await;
    let before = fs::read_dir("/proc/self/fd").unwrap().count();
    for network in [NetworkNamespace::Node, NetworkNamespace::Pod] {
        let mut config = world.sandbox();
        config.namespaces.network = network;
        let pod = world.run(config).await;
        world.script(&pod, "echo x").await;
        world.start(&pod, sh("sleep 100 & sleep 100")).await;
        world.create(&pod, sh("never started")).await;
        world.engine().remove_sandbox(&pod).await.unwrap();
    }
    assert!(world.engine().network().attachments().is_empty());
    wait_until("nothing is left", || {
        let left = world.traces();
        left.iter().all(|one| one.ends_with("/burstable"))
    })
    .await;
    wait_until("descriptors are closed", || fs::read_dir("/proc/self/fd").unwrap().count() <= before + 1).await;
}

pub(crate) async fn a_pod_with_a_network_has_an_address_and_ports_are_forwarded() {
    let world = World::new().await;
    let mut config = world.sandbox();
    config.namespaces = Namespaces::default();
    config.sysctls =
        [("net.ipv4.ip_forward".to_owned(), "0".to_owned()), ("kernel.shm_rmid_forced".to_owned(), "1".to_owned())]
            .into();
    let pod = world.run(config).await;
    let status = world.engine().sandbox(&pod).unwrap();
    assert_eq!((status.state, status.ips.len()), (SandboxState::Ready, 1));
    let config = ContainerConfig {
        security: SecurityContext { run_as_user: Some(100), ..SecurityContext::default() },
        ..sh("cat /proc/sys/kernel/shm_rmid_forced; echo answer | nc -l -p 80")
    };
    let id = world.start(&pod, config).await;
    let log = world.status(&id).log_path.unwrap();
    wait_until("it is up", || fs::read_to_string(&log).is_ok_and(|text| text.contains("F 1"))).await;
    let mut text = String::new();
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match world.engine().forward(&pod, 80).await {
            Ok(mut stream) => {
                // The end of our side first would let the server go before it has read its answer.
                stream.read_to_string(&mut text).await.unwrap();
                let _its_end_may_be_gone = stream.shutdown().await;
                break;
            }
            Err(error) => assert!(Instant::now() < end, "{}", chain(&error)),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(text, "answer\n");
    assert!(matches!(world.engine().forward(&pod, 81).await, Err(EngineError::Forward { port: 81, .. })));
    for name in ["kernel.core_pattern", "net.ipv4.conf.all.forwarding\n", "net..x", "vm.swappiness"] {
        let mut config = world.sandbox();
        config.namespaces = Namespaces::default();
        config.sysctls = [(name.to_owned(), "1".to_owned())].into();
        assert!(world.engine().run_sandbox(config).await.is_err(), "{name}");
    }
}

pub(crate) async fn processes_are_shared_when_asked() {
    let world = World::new().await;
    let mut config = world.sandbox();
    config.namespaces.pid = PidNamespace::Pod;
    let pod = world.run(config).await;
    let sleeper = world.start(&pod, sh("exec sleep 12345")).await;
    let (_, text) = world.script(&pod, "ps -o pid,args; echo me $$").await;
    assert!(text.contains("sleep 12345"), "{text}");
    assert!(!text.contains("me 1\n"), "{text}");
    world.engine().stop_container(&sleeper, Duration::ZERO).await.unwrap();
    let own = world.pod().await;
    let (_, text) = world.script(&own, "echo me $$").await;
    assert_eq!(text, "me 1\n");
    world.engine().remove_sandbox(&pod).await.unwrap();
    wait_until("its first process is gone", || !world.processes().iter().any(|line| line.contains(pod.as_str()))).await;
}

pub(crate) async fn a_pod_with_its_own_users_is_root_inside_only() {
    if skipped_without_mapped_layers("a_pod_with_its_own_users_is_root_inside_only") {
        return;
    }
    let world = World::new().await;
    // The owner of the layers must be able to pass through the directories above them.
    let map = IdMapping { container: 0, host: 200_000, length: 65_536 };
    for network in [NetworkNamespace::Pod, NetworkNamespace::Node] {
        let mut config = world.sandbox();
        config.namespaces = Namespaces {
            user: UserNamespace::Pod { uid_maps: vec![map], gid_maps: vec![map] },
            network,
            ..Namespaces::default()
        };
        let pod = world.run(config).await;
        let (status, text) =
            world.script(&pod, "id -u; cat /proc/self/uid_map; touch /root/mine && ls -ln /root; hostname").await;
        assert_eq!(status.exit.unwrap().code, 0, "{network:?} {text}");
        assert_eq!(text.lines().next(), Some("0"));
        assert!(text.contains("200000"), "{text}");
        let id = world.start(&pod, sh("sleep 100")).await;
        let pid = world.status(&id).pid.unwrap();
        let proc = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(proc.lines().any(|line| line.starts_with("Uid:") && line.contains("200000")), "{proc}");
        let output =
            world.engine().exec_sync(&id, vec!["id".into(), "-u".into()], Duration::from_secs(5), 1000).await.unwrap();
        assert_eq!(output.stdout, b"0\n");
        assert!(world.status(&id).cgroup.starts_with(&world.engine().sandbox(&pod).unwrap().cgroup_parent));
    }
}

pub(crate) async fn what_a_pod_with_its_own_users_is_given_has_its_ids() {
    if skipped_without_mapped_layers("what_a_pod_with_its_own_users_is_given_has_its_ids") {
        return;
    }
    let world = World::new().await;
    let map = IdMapping { container: 0, host: 200_000, length: 65_536 };
    let mut config = world.sandbox();
    config.namespaces =
        Namespaces { user: UserNamespace::Pod { uid_maps: vec![map], gid_maps: vec![map] }, ..Namespaces::default() };
    let pod = world.run(config).await;
    let volume = world.path("volume");
    fs::create_dir(&volume).unwrap();
    for (name, group) in [("secret", 0), ("shared", 2000)] {
        fs::write(volume.join(name), format!("{name}\n")).unwrap();
        fs::set_permissions(volume.join(name), fs::Permissions::from_mode(0o440)).unwrap();
        std::os::unix::fs::chown(volume.join(name), Some(0), Some(group)).unwrap();
    }
    let hosts = world.path("hosts");
    fs::write(&hosts, "localhost\n").unwrap();
    let mount = |source, path: &str| Mount {
        container_path: path.into(),
        source,
        readonly: false,
        recursive_readonly: false,
        propagation: Propagation::Private,
        options: Vec::new(),
        ids: None,
        relabel: false,
    };
    let host = |source: &std::path::Path, path: &str| mount(MountSource::HostPath(source.to_owned()), path);
    let image = MountSource::Image { id: crate::busybox::IMAGE.into(), sub_path: None };
    let run = async |security: SecurityContext, script: &str| {
        let mounts = vec![host(&volume, "/v"), host(&hosts, "/etc/hosts"), mount(image.clone(), "/image")];
        let id = world.start(&pod, ContainerConfig { mounts, security, ..sh(script) }).await;
        let status = world.engine().wait_container(&id).await.unwrap();
        crate::world::texts(&fs::read_to_string(status.log_path.unwrap()).unwrap())
    };
    let script = "cat /v/secret; echo ours >> /etc/hosts && touch /v/new; \
        for file in /v /etc/hosts /etc/hostname /etc/resolv.conf /image/etc/passwd /dev/shm /dev/mqueue; do \
            ls -lnd $file; done | grep -v ' 0 *0 '";
    assert_eq!(run(SecurityContext::default(), script).await, "secret\n");
    assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), 0);
    assert_eq!(fs::read_to_string(&hosts).unwrap(), "localhost\nours\n");
    let security = SecurityContext {
        run_as_user: Some(1000),
        run_as_group: Some(1000),
        supplemental_groups: vec![2000],
        ..SecurityContext::default()
    };
    assert_eq!(run(security, "cat /v/shared /v/secret 2>/dev/null").await, "shared\n");

    let config = ContainerConfig { mounts: vec![host("/proc/sys".as_ref(), "/data")], ..sh("true") };
    let error = chain(&world.engine().create_container(&pod, config).await.unwrap_err());
    assert!(error.contains("/proc/sys") && error.contains("id-mapped") && error.contains("/data"), "{error}");
    let security = SecurityContext { run_as_user: Some(70_000), ..SecurityContext::default() };
    let answer = world.engine().create_container(&pod, ContainerConfig { security, ..sh("true") }).await;
    assert!(matches!(answer, Err(EngineError::Invalid { .. })), "{answer:?}");
}

pub(crate) async fn a_pod_on_the_nodes_network_and_ipc_has_its_hostname_and_queues() {
    let world = World::new().await;
    let mut config = world.sandbox();
    config.namespaces.ipc = IpcNamespace::Node;
    let pod = world.run(config).await;
    let (_, text) = world.script(&pod, "echo $HOSTNAME; grep -c ' /dev/mqueue .* mqueue ' /proc/self/mountinfo").await;
    let node = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(text, format!("{}\n1\n", node.trim()));
}

pub(crate) async fn configuration_reaches_the_process() {
    let world = World::new().await;
    let pod = world.pod().await;
    let host = world.path("volume");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "content\n").unwrap();
    let mount = |path: &str, readonly| Mount {
        container_path: path.into(),
        source: MountSource::HostPath(host.clone()),
        readonly,
        recursive_readonly: false,
        propagation: Propagation::Private,
        options: Vec::new(),
        ids: None,
        relabel: false,
    };
    let config = ContainerConfig {
        args: vec![],
        working_dir: Some("/home/web".into()),
        envs: vec![("MINE".into(), "a b".into())],
        mounts: vec![mount("/data", false), mount("/ro", true)],
        security: SecurityContext {
            run_as_username: Some("web".into()),
            supplemental_groups: vec![777],
            readonly_rootfs: true,
            no_new_privs: true,
            ..SecurityContext::default()
        },
        ..sh(
            "id -u; id -G; echo $MINE $FROM_IMAGE $HOME; cat /data/file; touch /ro/x 2>/dev/null || echo ro; touch /tmp/x 2>/dev/null || echo rootro; grep NoNewPrivs /proc/self/status; pwd; grep CapEff /proc/self/status",
        )
    };
    let id = world.start(&pod, config).await;
    let status = world.engine().wait_container(&id).await.unwrap();
    let text = crate::world::texts(&fs::read_to_string(status.log_path.unwrap()).unwrap());
    let expect =
        "100\n101 29 777\na b 1 /home/web\ncontent\nro\nrootro\nNoNewPrivs:\t1\n/home/web\nCapEff:\t0000000000000000\n";
    assert_eq!(text, expect);
    assert_eq!(status.user, (100, 101));
}

pub(crate) async fn a_pod_that_cannot_be_made_leaves_no_cgroup_of_its_own() {
    let world = World::new().await;
    let cgroup =
        |config: &portreeve_engine::SandboxConfig| portreeve_oci::cgroup::Cgroup::at(&config.cgroup_parent).unwrap();
    let impossible = || {
        let mut config = world.sandbox();
        config.namespaces = portreeve_engine::Namespaces::default();
        config.sysctls = [("net.ipv4.no_such_parameter".to_owned(), "1".to_owned())].into();
        config
    };
    let config = impossible();
    world.engine().run_sandbox(config.clone()).await.unwrap_err();
    assert!(!cgroup(&config).exists(), "{:?}", world.traces());
    // A cgroup that was there is somebody's.
    let config = impossible();
    portreeve_oci::cgroup::Cgroup::open_or_create(&config.cgroup_parent).unwrap();
    world.engine().run_sandbox(config.clone()).await.unwrap_err();
    assert!(cgroup(&config).exists());
    cgroup(&config).remove().unwrap();
    // So is one in which another pod is being made.
    for _ in 0..5 {
        let config = impossible();
        let other = portreeve_engine::SandboxConfig { sysctls: Default::default(), ..config.clone() };
        let (refused, made) =
            tokio::join!(world.engine().run_sandbox(config.clone()), world.engine().run_sandbox(other.clone()));
        refused.unwrap_err();
        let made = made.unwrap_or_else(|error| panic!("{}", crate::world::chain(&error)));
        assert!(cgroup(&other).exists());
        world.engine().remove_sandbox(&made).await.unwrap();
        assert!(!cgroup(&other).exists());
    }
}
