//! What a kubelet asks of a runtime, call by call.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use portreeve_e2e::cri::{code, image_spec, pod, shell, v1};
use portreeve_e2e::{Agent, BUSYBOX, Cri, World, cgroup_version, skipped_without_root, wait_until};
use tonic::Code;

/// An id that nothing has.
const NOBODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn connect(agent: &Agent<'_>) -> Cri {
    Cri::connect(&agent.run_dir().join("cri.sock"))
}

fn logs(world: &World) -> PathBuf {
    world.path("cri-logs")
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Everything of CRI is gone, so that the harness finds nothing of it.
fn clear(cri: &Cri) {
    for sandbox in cri.sandboxes(v1::PodSandboxFilter::default()) {
        cri.remove_sandbox(&sandbox.id).unwrap();
    }
}

/// Shims and processes of containers.
fn left(agent: &Agent<'_>) -> Vec<String> {
    let census = agent.census();
    census.processes.into_iter().filter(|process| process.contains(" shim ")).chain(census.contained).collect()
}

#[test]
fn a_client_learns_who_answers_and_that_all_is_ready() {
    if skipped_without_root("cri") {
        return;
    }
    let world = World::new("cri-hello");
    let agent = Agent::start(&world);
    let cri = connect(&agent);
    let mode = std::fs::metadata(agent.run_dir().join("cri.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let version = v1::VersionRequest { version: "v1".to_owned() };
    let version = cri.runtime(async |mut runtime| runtime.version(version).await).unwrap();
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("portreeve", "v1"));
    assert!(!version.version.is_empty() && !version.runtime_version.is_empty());

    let asked = v1::StatusRequest { verbose: true };
    let status = cri.runtime(async |mut runtime| runtime.status(asked).await).unwrap();
    let conditions = status.status.unwrap().conditions;
    let conditions: Vec<_> = conditions.iter().map(|one| (one.r#type.as_str(), one.status)).collect();
    assert_eq!(conditions, [("RuntimeReady", true), ("NetworkReady", true)]);
    assert!(status.info["config"].contains("cgroupRoot"));
    let handlers: Vec<_> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert_eq!(handlers, [""]);

    let driver = cri.runtime(async |mut runtime| runtime.runtime_config(v1::RuntimeConfigRequest {}).await).unwrap();
    assert_eq!(driver.linux.unwrap().cgroup_driver(), v1::CgroupDriver::Cgroupfs);
    let network_config = Some(v1::NetworkConfig { pod_cidr: "10.244.0.0/24".to_owned() });
    let cidr = v1::UpdateRuntimeConfigRequest { runtime_config: Some(v1::RuntimeConfig { network_config }) };
    cri.runtime(async |mut runtime| runtime.update_runtime_config(cidr).await).unwrap();

    let pod = cri.runtime(async |mut runtime| runtime.checkpoint_pod(v1::CheckpointPodRequest {}).await).unwrap_err();
    let restored = cri.runtime(async |mut runtime| runtime.restore_pod(v1::RestorePodRequest {}).await).unwrap_err();
    for refused in [pod, restored] {
        assert_eq!(refused.code(), Code::Unimplemented);
        assert!(refused.message().contains("pods"), "{refused}");
    }
}

#[test]
fn a_sandbox_lives_and_goes_and_every_verb_may_come_again() {
    if skipped_without_root("cri") {
        return;
    }
    let world = World::new("cri-sandbox");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let mut config = pod("a", &logs(&world));
    config.labels = labels(&[("app", "a"), ("tier", "front")]);
    config.annotations = labels(&[("note", "kept")]);
    let id = cri.run_sandbox(&config).unwrap();
    let status = cri.sandbox(&id).unwrap();
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    assert_eq!((&status.metadata, &status.labels), (&config.metadata, &config.labels));
    assert_eq!(status.annotations, config.annotations);
    assert!(status.created_at > 1_600_000_000_000_000_000);
    let ip = status.network.unwrap().ip;
    assert!(ip.starts_with("10."), "{ip}");
    assert_eq!(cri.sandbox(&id[..12]).unwrap().id, id, "the beginning of an id will do");
    let asked = v1::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
    let verbose = cri.runtime(async |mut runtime| runtime.pod_sandbox_status(asked).await).unwrap();
    assert!(verbose.info["info"].contains("pid") && verbose.timestamp > 0);

    assert_eq!(code(cri.run_sandbox(&config)), Code::AlreadyExists);
    let mut second = config.clone();
    second.metadata.as_mut().unwrap().attempt = 1;
    second.labels.insert("tier".to_owned(), "back".to_owned());
    let next = cri.run_sandbox(&second).unwrap();
    let update = v1::UpdatePodSandboxResourcesRequest { pod_sandbox_id: next.clone(), ..Default::default() };
    cri.runtime(async |mut runtime| runtime.update_pod_sandbox_resources(update).await).unwrap();
    // Its cgroup is this agent's, because the client gave none.
    let limits = Some(v1::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() });
    let update =
        v1::UpdatePodSandboxResourcesRequest { pod_sandbox_id: next.clone(), resources: limits, ..Default::default() };
    cri.runtime(async |mut runtime| runtime.update_pod_sandbox_resources(update).await).unwrap();
    let asked = v1::PodSandboxStatusRequest { pod_sandbox_id: next.clone(), verbose: true };
    let told = cri.runtime(async |mut runtime| runtime.pod_sandbox_status(asked).await).unwrap();
    let info: serde_json::Value = serde_json::from_str(&told.info["info"]).unwrap();
    let parent = info["cgroupParent"].as_str().unwrap();
    let file = match cgroup_version() {
        1 => format!("/sys/fs/cgroup/memory{parent}/memory.limit_in_bytes"),
        _ => format!("/sys/fs/cgroup{parent}/memory.max"),
    };
    assert_eq!(std::fs::read_to_string(file).unwrap().trim(), (96 << 20).to_string());

    let found =
        |filter: v1::PodSandboxFilter| cri.sandboxes(filter).into_iter().map(|sandbox| sandbox.id).collect::<Vec<_>>();
    let any = v1::PodSandboxFilter::default;
    assert_eq!(found(any()), [id.clone(), next.clone()]);
    assert_eq!(found(v1::PodSandboxFilter { id: id[..10].to_owned(), ..any() }), [id.as_str()]);
    let back = labels(&[("app", "a"), ("tier", "back")]);
    assert_eq!(found(v1::PodSandboxFilter { label_selector: back.clone(), ..any() }), [next.as_str()]);
    let both = v1::PodSandboxFilter { id: id.clone(), label_selector: back, ..any() };
    assert_eq!(found(both), Vec::<String>::new(), "all parts must hold");
    cri.stop_sandbox(&next).unwrap();
    cri.stop_sandbox(&next).unwrap();
    let state = |state: v1::PodSandboxState| v1::PodSandboxFilter {
        state: Some(v1::PodSandboxStateValue { state: state.into() }),
        ..v1::PodSandboxFilter::default()
    };
    assert_eq!(found(state(v1::PodSandboxState::SandboxReady)), [id.as_str()]);
    assert_eq!(found(state(v1::PodSandboxState::SandboxNotready)), [next.as_str()]);
    assert_eq!(cri.sandbox(&next).unwrap().network.unwrap().ip, "", "its address is given back");
    let streamed = cri.wait(async {
        let mut client = cri.runtime_client();
        let asked = v1::StreamPodSandboxesRequest::default();
        let mut stream = client.stream_pod_sandboxes(asked).await.unwrap().into_inner();
        let mut all = Vec::new();
        while let Some(batch) = stream.message().await.unwrap() {
            all.extend(batch.pod_sandboxes.into_iter().map(|sandbox| sandbox.id));
        }
        all
    });
    assert_eq!(streamed, [id.clone(), next.clone()]);

    cri.remove_sandbox(&id).unwrap();
    cri.remove_sandbox(&id).unwrap();
    cri.remove_sandbox(&next).unwrap();
    assert_eq!(found(any()), Vec::<String>::new());
    assert_eq!(code(cri.sandbox(&id)), Code::NotFound);
    cri.stop_sandbox(NOBODY).unwrap();
    cri.remove_sandbox("unknown").unwrap();
    let again = cri.run_sandbox(&config).unwrap();
    cri.remove_sandbox(&again).unwrap();
}

#[test]
fn a_container_runs_says_what_it_is_and_goes() {
    if skipped_without_root("cri") {
        return;
    }
    let world = World::new("cri-container");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let config = pod("a", &logs(&world));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let mut wanted = shell("main", BUSYBOX, "echo out; echo err >&2; trap 'exit 7' TERM; while :; do sleep 0.1; done");
    wanted.labels = labels(&[("io.kubernetes.container.name", "main")]);
    wanted.annotations = labels(&[("io.kubernetes.container.hash", "abc")]);
    wanted.envs = vec![v1::KeyValue { key: "WORD".to_owned(), value: b"said".to_vec() }];
    wanted.working_dir = "/tmp".to_owned();
    let share = world.path("share");
    wanted.mounts = vec![v1::Mount {
        container_path: "/share".to_owned(),
        host_path: share.display().to_string(),
        ..v1::Mount::default()
    }];
    let id = cri.create(&sandbox, wanted.clone(), &config).unwrap();
    assert!(share.is_dir(), "what is not there becomes a directory");
    assert_eq!(code(cri.create(&sandbox, wanted.clone(), &config)), Code::AlreadyExists);
    let created = cri.container(&id).unwrap();
    assert_eq!(created.state(), v1::ContainerState::ContainerCreated);
    assert_eq!((created.started_at, created.finished_at), (0, 0));
    cri.start(&id).unwrap();
    cri.start(&id).unwrap();
    let running = cri.container(&id).unwrap();
    assert_eq!(running.state(), v1::ContainerState::ContainerRunning);
    assert!(running.started_at >= running.created_at);
    assert_eq!((&running.metadata, &running.labels), (&wanted.metadata, &wanted.labels));
    assert_eq!(running.annotations, wanted.annotations);
    assert_eq!(running.image.unwrap().image, BUSYBOX);
    assert_eq!(Some(&running.image_id), cri.image(BUSYBOX).map(|image| image.id).as_ref());
    assert_eq!(running.mounts.len(), 1);
    assert_eq!(running.mounts[0].container_path, "/share");
    let log = logs(&world).join("a/main.log");
    assert_eq!(running.log_path, log.display().to_string());

    assert_eq!(cri.inside(&id, "echo $WORD; pwd; hostname; touch /share/x"), "said\n/tmp\na");
    assert!(share.join("x").exists());
    let told = cri.exec(&id, &["sh", "-c", "echo o; echo e >&2; exit 3"], 0).unwrap();
    assert_eq!((told.stdout.as_slice(), told.stderr.as_slice(), told.exit_code), (&b"o\n"[..], &b"e\n"[..], 3));
    let begun = Instant::now();
    assert_eq!(code(cri.exec(&id, &["sleep", "60"], 1)), Code::DeadlineExceeded);
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(cri.exec(&id, &["no-such-program"], 5).is_err());
    assert_eq!(code(cri.exec(&id, &[], 5)), Code::InvalidArgument);
    let much = cri.exec(&id, &["sh", "-c", "head -c 30000000 /dev/zero"], 60).unwrap();
    assert_eq!((much.stdout.len(), much.exit_code), ((8 << 20) - 1024, 0), "what fits an answer");
    let both = cri.exec(&id, &["sh", "-c", "head -c 9000000 /dev/zero; head -c 9000000 /dev/zero >&2"], 60).unwrap();
    assert_eq!((both.stdout.len(), both.stderr.len()), ((8 << 20) - 1024, (8 << 20) - 1024));

    let lines = wait_until("both lines are logged", 10, || {
        let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
        if text.lines().count() == 2 { Ok(text) } else { Err(text) }
    });
    for (stream, word) in [("stdout", "out"), ("stderr", "err")] {
        let fields = lines.lines().map(|line| line.splitn(4, ' ').collect::<Vec<_>>());
        let fields = fields.into_iter().find(|fields| fields[1] == stream).unwrap_or_else(|| panic!("{lines}"));
        assert_eq!((fields[2], fields[3]), ("F", word));
        assert!(fields[0].contains('T') && fields[0].len() >= 30, "{lines}");
    }

    cri.stop(&id, 10).unwrap();
    let ended = cri.container(&id).unwrap();
    assert_eq!((ended.state(), ended.exit_code), (v1::ContainerState::ContainerExited, 7));
    assert_eq!(ended.reason, "Error");
    assert!(ended.finished_at >= ended.started_at);
    cri.stop(&id, 10).unwrap();
    assert_eq!(code(cri.start(&id)), Code::FailedPrecondition);
    assert_eq!(code(cri.exec(&id, &["true"], 5)), Code::FailedPrecondition);

    let stubborn =
        cri.create(&sandbox, shell("deaf", BUSYBOX, "trap '' TERM; touch /deaf; sleep 1000"), &config).unwrap();
    cri.start(&stubborn).unwrap();
    wait_until("it does not listen", 10, || {
        match cri.exec(&stubborn, &["test", "-e", "/deaf"], 5).unwrap().exit_code {
            0 => Ok(()),
            code => Err(code.to_string()),
        }
    });
    let begun = Instant::now();
    cri.stop(&stubborn, 1).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(cri.container(&stubborn).unwrap().exit_code, 137);
    let fine = cri.create(&sandbox, shell("fine", BUSYBOX, "true"), &config).unwrap();
    cri.start(&fine).unwrap();
    let done = cri.wait_exited(&fine);
    assert_eq!((done.exit_code, done.reason.as_str()), (0, "Completed"));
    let mut missing = shell("missing", BUSYBOX, "");
    missing.command = vec!["/no/such".to_owned()];
    // A program that is not there is found at creation or at start, as runtimes differ.
    let refused = cri.create(&sandbox, missing, &config).and_then(|id| cri.start(&id));
    assert!(refused.is_err());

    let found = |filter: v1::ContainerFilter| {
        cri.containers(filter).into_iter().map(|container| container.id).collect::<Vec<_>>()
    };
    let any = v1::ContainerFilter::default;
    assert_eq!(found(v1::ContainerFilter { id: id[..16].to_owned(), ..any() }), [id.as_str()]);
    assert_eq!(found(v1::ContainerFilter { label_selector: wanted.labels.clone(), ..any() }), [id.as_str()]);
    let running = Some(v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() });
    assert_eq!(found(v1::ContainerFilter { state: running, ..any() }), Vec::<String>::new());
    assert!(found(v1::ContainerFilter { pod_sandbox_id: sandbox.clone(), ..any() }).len() >= 3);
    assert_eq!(found(v1::ContainerFilter { pod_sandbox_id: NOBODY.to_owned(), ..any() }), Vec::<String>::new());

    cri.remove(&id).unwrap();
    cri.remove(&id).unwrap();
    cri.stop(&id, 0).unwrap();
    assert_eq!(code(cri.container(&id)), Code::NotFound);
    assert!(log.exists(), "a log is its reader's");
    let busy = cri.create(&sandbox, shell("busy", BUSYBOX, "sleep 1000"), &config).unwrap();
    cri.start(&busy).unwrap();
    cri.remove(&busy).unwrap();
    cri.stop_sandbox(&sandbox).unwrap();
    assert_eq!(code(cri.create(&sandbox, shell("late", BUSYBOX, "true"), &config)), Code::FailedPrecondition);
    clear(&cri);
}

#[test]
fn a_malformed_request_is_refused_in_words_and_the_server_stays() {
    if skipped_without_root("cri") {
        return;
    }
    let world = World::new("cri-hostile");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let config = pod("a", &logs(&world));
    let empty = v1::RunPodSandboxRequest::default();
    assert_eq!(code(cri.runtime(async |mut runtime| runtime.run_pod_sandbox(empty).await)), Code::InvalidArgument);
    let handler = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "kata".to_owned() };
    assert_eq!(code(cri.runtime(async |mut runtime| runtime.run_pod_sandbox(handler).await)), Code::Unknown);
    type Change = fn(&mut v1::PodSandboxConfig);
    let changes: [Change; 8] = [
        |config| config.metadata = None,
        |config| config.metadata.as_mut().unwrap().uid = String::new(),
        |config| config.metadata.as_mut().unwrap().uid = "../../x".to_owned(),
        |config| config.log_directory = "relative".to_owned(),
        |config| config.hostname = "no/name".to_owned(),
        |config| {
            config.port_mappings = vec![v1::PortMapping { host_port: 70_000, container_port: 1, ..Default::default() }]
        },
        |config| {
            config.linux =
                Some(v1::LinuxPodSandboxConfig { sysctls: labels(&[("kernel.panic", "1")]), ..Default::default() })
        },
        |config| {
            config.dns_config =
                Some(v1::DnsConfig { servers: vec!["1.1.1.1\noptions x".to_owned()], ..Default::default() })
        },
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut bad = config.clone();
        change(&mut bad);
        let refused = cri.run_sandbox(&bad).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{index}: {refused}");
        assert!(!refused.message().is_empty());
    }
    let sandbox = cri.run_sandbox(&config).unwrap();
    let good = shell("main", BUSYBOX, "true");
    type Edit = fn(&mut v1::ContainerConfig);
    let edits: [(Edit, Code); 6] = [
        (|config| config.metadata = None, Code::InvalidArgument),
        (|config| config.log_path = "../../etc/x".to_owned(), Code::InvalidArgument),
        (|config| config.log_path = "/etc/x".to_owned(), Code::InvalidArgument),
        (|config| config.image = Some(image_spec("nobody.example/x:1")), Code::NotFound),
        (|config| config.image = None, Code::NotFound),
        (
            |config| config.mounts = vec![v1::Mount { container_path: "/x".to_owned(), ..Default::default() }],
            Code::InvalidArgument,
        ),
    ];
    for (index, (edit, expected)) in edits.iter().enumerate() {
        let mut bad = good.clone();
        edit(&mut bad);
        let refused = cri.create(&sandbox, bad, &config).unwrap_err();
        assert_eq!(refused.code(), *expected, "{index}: {refused}");
    }
    assert_eq!(code(cri.create(NOBODY, good.clone(), &config)), Code::NotFound);
    assert_eq!(code(cri.start(NOBODY)), Code::NotFound);
    assert_eq!(code(cri.container("")), Code::InvalidArgument);
    assert_eq!(code(cri.exec(NOBODY, &["true"], 1)), Code::NotFound);
    // More annotations than any list of pods could hold are refused, as is more than a message holds.
    let mut large = pod("large", &logs(&world));
    large.annotations = labels(&[("large", &"x".repeat(500_000))]);
    let kept = cri.run_sandbox(&large).unwrap();
    assert_eq!(cri.sandbox(&kept).unwrap().annotations["large"].len(), 500_000);
    let mut noted = good.clone();
    noted.annotations = labels(&[("large", &"x".repeat(10_000_000))]);
    large.annotations.clone_from(&noted.annotations);
    assert_eq!(code(cri.run_sandbox(&large)), Code::InvalidArgument);
    assert_eq!(code(cri.create(&kept, noted, &config)), Code::InvalidArgument);
    large.annotations = labels(&[("large", &"x".repeat(20_000_000))]);
    assert!(cri.run_sandbox(&large).is_err());
    assert_eq!(cri.sandboxes(v1::PodSandboxFilter { id: sandbox, ..Default::default() }).len(), 1);
    clear(&cri);
}

#[test]
fn what_a_client_gives_up_is_undone() {
    if skipped_without_root("cri") {
        return;
    }
    let world = World::new("cri-cancel");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    for attempt in 0..20 {
        let mut config = pod("a", &logs(&world));
        config.metadata.as_mut().unwrap().attempt = attempt;
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        cri.wait(async {
            let mut client = cri.runtime_client();
            let making = client.run_pod_sandbox(request);
            let _given_up = tokio::time::timeout(Duration::from_millis(u64::from(attempt)), making).await;
        });
    }
    // Those that were answered in time are there; whoever gave up has nothing.
    let one = pod("b", &logs(&world));
    let last = cri.run_sandbox(&one).unwrap();
    cri.remove_sandbox(&last).unwrap();
    clear(&cri);
    wait_until("nothing is left", 20, || {
        clear(&cri);
        let left = left(&agent);
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
}

#[test]
fn a_container_is_confined_as_it_was_asked_to_be() {
    if skipped_without_root("cri") {
        return;
    }
    let world = World::new("cri-security");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let mut config = pod("a", &logs(&world));
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.9.8.7".to_owned()],
        searches: vec!["example.test".to_owned()],
        options: vec!["ndots:3".to_owned()],
    });
    config.linux = Some(v1::LinuxPodSandboxConfig {
        sysctls: labels(&[("net.core.somaxconn", "777")]),
        ..v1::LinuxPodSandboxConfig::default()
    });
    let sandbox = cri.run_sandbox(&config).unwrap();
    let run = |name: &str, context: v1::LinuxContainerSecurityContext| {
        let mut wanted = shell(name, BUSYBOX, "sleep 1000");
        wanted.linux = Some(v1::LinuxContainerConfig { resources: None, security_context: Some(context) });
        let id = cri.create(&sandbox, wanted, &config).unwrap_or_else(|refused| panic!("{name}: {refused}"));
        cri.start(&id).unwrap();
        id
    };
    let plain = v1::LinuxContainerSecurityContext::default;
    let id = run("plain", plain());
    assert_eq!(cri.inside(&id, "cat /etc/resolv.conf"), "search example.test\nnameserver 10.9.8.7\noptions ndots:3");
    assert_eq!(cri.inside(&id, "cat /proc/sys/net/core/somaxconn"), "777");
    let id = run(
        "user",
        v1::LinuxContainerSecurityContext {
            run_as_user: Some(v1::Int64Value { value: 1000 }),
            run_as_group: Some(v1::Int64Value { value: 3000 }),
            supplemental_groups: vec![4000],
            no_new_privs: true,
            ..plain()
        },
    );
    assert_eq!(cri.inside(&id, "id -u; id -g; id -G"), "1000\n3000\n3000 2000 4000");
    assert_eq!(cri.inside(&id, "grep -c 'NoNewPrivs:.*1' /proc/self/status"), "1");
    let user = cri.container(&id).unwrap().user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (1000, 3000));
    let id = run(
        "name",
        v1::LinuxContainerSecurityContext {
            run_as_username: "user".to_owned(),
            supplemental_groups_policy: v1::SupplementalGroupsPolicy::Strict.into(),
            ..plain()
        },
    );
    assert_eq!(cri.inside(&id, "id -u; id -G"), "1000\n1000");
    let id = run("readonly", v1::LinuxContainerSecurityContext { readonly_rootfs: true, ..plain() });
    assert_ne!(cri.exec(&id, &["touch", "/x"], 5).unwrap().exit_code, 0);
    let id = run(
        "masked",
        v1::LinuxContainerSecurityContext {
            masked_paths: vec!["/proc/version".to_owned()],
            readonly_paths: vec!["/proc/sys".to_owned()],
            ..plain()
        },
    );
    assert_eq!(cri.inside(&id, "cat /proc/version"), "");
    let caps = |id: &str| {
        let text = cri.inside(id, "grep CapEff /proc/self/status");
        u64::from_str_radix(text.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    let none = v1::Capability { drop_capabilities: vec!["ALL".to_owned()], ..v1::Capability::default() };
    let id = run("nothing", v1::LinuxContainerSecurityContext { capabilities: Some(none.clone()), ..plain() });
    assert_eq!(caps(&id), 0);
    let one = v1::Capability { add_capabilities: vec!["NET_ADMIN".to_owned()], ..none };
    let id = run("one", v1::LinuxContainerSecurityContext { capabilities: Some(one), ..plain() });
    assert_eq!(caps(&id), 1 << 12);
    let seccomp = |kind: v1::security_profile::ProfileType| {
        Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() })
    };
    for (name, profile, mode) in [
        ("filtered", seccomp(v1::security_profile::ProfileType::RuntimeDefault), "2"),
        ("free", seccomp(v1::security_profile::ProfileType::Unconfined), "0"),
    ] {
        let id = run(name, v1::LinuxContainerSecurityContext { seccomp: profile, ..plain() });
        let line = cri.inside(&id, "grep Seccomp: /proc/self/status");
        assert_eq!(line.split_whitespace().nth(1), Some(mode), "{name}");
    }
    clear(&cri);
}
