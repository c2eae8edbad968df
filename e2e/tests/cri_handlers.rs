//! Pods of a kubelet whose containers another OCI runtime makes: runc and crun, as `RuntimeClass` names them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use portreeve_e2e::cri::{code, pod, shell, v1};
use portreeve_e2e::streaming::{over_socket, over_spdy};
use portreeve_e2e::{
    Agent, BUSYBOX, Cri, OTHERS, Peers, World, patience, preload_busybox, skipped_without_own_users,
    skipped_without_root, wait_until,
};
use serde_json::Value;
use tonic::Code;

/// A pod of one handler, and who asks for it.
struct Place<'w> {
    world: &'w World,
    cri: Cri,
    /// The name of the handler.
    handler: &'static str,
    program: PathBuf,
}

impl Place<'_> {
    fn logs(&self) -> PathBuf {
        self.world.path("cri-logs")
    }

    /// Runs a pod of the handler with these namespaces.
    fn pod(&self, name: &str, options: v1::NamespaceOption) -> (String, v1::PodSandboxConfig) {
        let mut config = pod(name, &self.logs());
        let context = v1::LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            // For the container that has every right.
            privileged: true,
            ..Default::default()
        };
        config.linux = Some(v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() });
        let id = self.cri.run_sandbox_by(&config, self.handler);
        (id.unwrap_or_else(|refused| panic!("{}: {refused}", self.handler)), config)
    }

    /// One whose containers see only their own processes.
    fn usual(&self, name: &str) -> (String, v1::PodSandboxConfig) {
        self.pod(name, v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() })
    }

    fn start(&self, (sandbox, config): &(String, v1::PodSandboxConfig), wanted: v1::ContainerConfig) -> String {
        let id =
            self.cri.create(sandbox, wanted, config).unwrap_or_else(|refused| panic!("{}: {refused}", self.handler));
        self.cri.start(&id).unwrap_or_else(|refused| panic!("{}: {refused}", self.handler));
        id
    }

    /// Waits until a file is there inside.
    fn wait_file(&self, id: &str, path: &str) {
        wait_until(path, 10, || match self.cri.exec(id, &["test", "-e", path], 10).unwrap().exit_code {
            0 => Ok(()),
            code => Err(code.to_string()),
        });
    }

    /// What the runtime itself says of a container.
    fn state(&self, agent: &Agent<'_>, sandbox: &str, container: &str) -> Option<Value> {
        let root = agent.run_dir().join("sandboxes").join(sandbox).join("runtime");
        let said = Command::new(&self.program).arg("--root").arg(root).args(["state", container]).output().unwrap();
        serde_json::from_slice(&said.stdout).ok()
    }
}

fn arguments(handlers: &[(&str, &Path)]) -> Vec<String> {
    handlers
        .iter()
        .flat_map(|(name, path)| ["--cri-runtime-handler".into(), format!("{name}={}", path.display())])
        .collect()
}

/// An agent with these handlers.
fn launch<'w>(world: &'w World, handlers: &[(&str, &Path)]) -> Agent<'w> {
    // crun refuses to run beside a second hierarchy of version 2.
    world.sh("! [ -d /sys/fs/cgroup/unified ] || mount -t tmpfs none /sys/fs/cgroup/unified");
    preload_busybox(world);
    let arguments = arguments(handlers);
    Agent::start_with(world, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn connect(agent: &Agent<'_>) -> Cri {
    Cri::connect(&agent.run_dir().join("cri.sock"))
}

/// Looks at the same with each of the runtimes, and that nothing stays over.
fn each(test: &str, check: impl Fn(&Place<'_>, &mut Agent<'_>)) {
    let Some(peers) = Peers::for_test(test) else { return };
    for handler in OTHERS {
        let world = World::new(&format!("handler-{handler}"));
        let program = peers.program(handler);
        let mut agent = launch(&world, &[(handler, &program)]);
        let place = Place { world: &world, cri: connect(&agent), handler, program };
        check(&place, &mut agent);
        for sandbox in connect(&agent).sandboxes(v1::PodSandboxFilter::default()) {
            place.cri.remove_sandbox(&sandbox.id).unwrap();
        }
        nothing_left(&agent);
    }
}

/// Of containers: the agent itself is still there.
fn nothing_left(agent: &Agent<'_>) {
    wait_until("nothing is left", 20, || {
        let census = agent.census();
        let mut left: Vec<String> =
            census.mounts.iter().filter(|point| point.contains("/sandboxes/")).cloned().collect();
        left.extend(census.contained.iter().cloned());
        left.extend(census.processes.iter().filter(|line| line.contains("/sandboxes/")).cloned());
        left.extend(census.files.iter().map(|path| path.display().to_string()));
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
}

#[test]
fn a_container_runs_says_what_it_is_and_goes() {
    each("a_container_runs_says_what_it_is_and_goes", |place, agent| {
        let cri = &place.cri;
        let pod = place.usual("a");
        assert_eq!(cri.sandbox(&pod.0).unwrap().runtime_handler, place.handler);
        assert_eq!(cri.sandboxes(v1::PodSandboxFilter::default())[0].runtime_handler, place.handler);
        let line = "echo out; echo err >&2; trap 'exit 7' TERM; touch /ready; while :; do sleep 0.1; done";
        let mut wanted = shell("main", BUSYBOX, line);
        wanted.envs = vec![v1::KeyValue { key: "WORD".to_owned(), value: b"said".to_vec() }];
        wanted.working_dir = "/tmp".to_owned();
        let share = place.world.path("share");
        wanted.mounts = vec![v1::Mount {
            container_path: "/share".to_owned(),
            host_path: share.display().to_string(),
            ..v1::Mount::default()
        }];
        let id = cri.create(&pod.0, wanted, &pod.1).unwrap_or_else(|refused| panic!("{}: {refused}", place.handler));
        assert_eq!(cri.container(&id).unwrap().state(), v1::ContainerState::ContainerCreated);
        // The runtime itself knows it.
        assert_eq!(place.state(agent, &pod.0, &id).unwrap()["status"], "created");
        cri.start(&id).unwrap();
        place.wait_file(&id, "/ready");
        let state = place.state(agent, &pod.0, &id).unwrap();
        assert_eq!(state["status"], "running");
        let verbose = v1::ContainerStatusRequest { container_id: id.clone(), verbose: true };
        let told = cri.runtime(async |mut runtime| runtime.container_status(verbose).await).unwrap();
        let info: Value = serde_json::from_str(&told.info["info"]).unwrap();
        assert_eq!(info["pid"], state["pid"], "one process to both");

        assert_eq!(cri.inside(&id, "echo $WORD; pwd; hostname; touch /share/x"), "said\n/tmp\na");
        assert!(share.join("x").exists());
        assert!(cri.inside(&id, "cat /etc/resolv.conf /proc/mounts").contains("overlay / overlay"));
        let told = cri.exec(&id, &["sh", "-c", "echo o; echo e >&2; exit 3"], 0).unwrap();
        assert_eq!((told.stdout.as_slice(), told.stderr.as_slice(), told.exit_code), (&b"o\n"[..], &b"e\n"[..], 3));
        assert_eq!(code(cri.exec(&id, &["sleep", "60"], 1)), Code::DeadlineExceeded);
        wait_until("what took too long is gone", 10, || {
            match cri.inside(&id, "ps | grep -c '[s]leep 60' || true").as_str() {
                "0" => Ok(()),
                found => Err(found.to_owned()),
            }
        });
        let missing = cri.exec(&id, &["no-such-program"], 5).unwrap_err();
        assert!(missing.message().contains("no-such-program"), "{missing}");
        let log = place.logs().join("a/main.log");
        let lines = std::fs::read_to_string(&log).unwrap();
        let words: Vec<_> =
            lines.lines().map(|line| line.splitn(4, ' ').skip(1).collect::<Vec<_>>().join(" ")).collect();
        let mut sorted = words.clone();
        sorted.sort();
        assert_eq!(sorted, ["stderr F err", "stdout F out"], "nothing of the runtime's own is in it: {lines}");

        cri.stop(&id, 10).unwrap();
        let ended = cri.container(&id).unwrap();
        assert_eq!((ended.state(), ended.exit_code), (v1::ContainerState::ContainerExited, 7));
        assert_eq!(ended.reason, "Error");
        wait_until("the runtime has forgotten it", 10, || match place.state(agent, &pod.0, &id) {
            None => Ok(()),
            Some(state) => Err(state.to_string()),
        });
        assert_eq!(code(cri.exec(&id, &["true"], 5)), Code::FailedPrecondition);

        let deaf = place.start(&pod, shell("deaf", BUSYBOX, "trap '' TERM; touch /deaf; sleep 1000"));
        place.wait_file(&deaf, "/deaf");
        let begun = Instant::now();
        cri.stop(&deaf, 1).unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(1));
        assert_eq!(cri.container(&deaf).unwrap().exit_code, 137);
        let fine = place.start(&pod, shell("fine", BUSYBOX, "true"));
        let done = cri.wait_exited(&fine);
        assert_eq!((done.exit_code, done.reason.as_str()), (0, "Completed"));
        let mut absent = shell("absent", BUSYBOX, "");
        absent.command = vec!["/no/such".to_owned()];
        let refused = cri.create(&pod.0, absent, &pod.1).and_then(|id| cri.start(&id)).unwrap_err();
        assert!(refused.message().contains("/no/such") && refused.message().contains(place.handler), "{refused}");
        // One that was never started goes, too.
        let waits = cri.create(&pod.0, shell("waits", BUSYBOX, "true"), &pod.1).unwrap();
        cri.remove(&waits).unwrap();
        assert_eq!(place.state(agent, &pod.0, &waits), None);
        let busy = place.start(&pod, shell("busy", BUSYBOX, "sleep 1000"));
        let refused = cri.runtime(async |mut runtime| {
            let location = "/tmp/x.tar".to_owned();
            let asked = v1::CheckpointContainerRequest { container_id: busy.clone(), location, timeout: 5 };
            runtime.checkpoint_container(asked).await
        });
        let refused = refused.unwrap_err();
        assert!(refused.code() == Code::Unimplemented && refused.message().contains(place.handler), "{refused}");
        cri.remove(&busy).unwrap();
        cri.stop_sandbox(&pod.0).unwrap();
    });
}

#[test]
fn terminals_and_streams_are_as_with_our_own() {
    each("terminals_and_streams_are_as_with_our_own", |place, _| {
        let cri = &place.cri;
        let pod = place.usual("a");
        let mut wanted = shell("terminal", BUSYBOX, "test -t 0 && test -t 1 && echo terminal; echo error >&2");
        (wanted.tty, wanted.stdin) = (true, true);
        let id = place.start(&pod, wanted);
        let _ended = cri.wait_exited(&id);
        let log = std::fs::read_to_string(place.logs().join("a/terminal.log")).unwrap();
        let words: Vec<_> =
            log.lines().filter_map(|line| line.split_once(" stdout F ").map(|(_, word)| word.trim_end())).collect();
        assert_eq!(words, ["terminal", "error"], "{log}");

        // The size of its own terminal, while somebody is attached.
        let line = "i=0; while [ $i -lt 200 ] && [ \"$(busybox stty size 2>/dev/null)\" != '33 132' ]; do i=$((i+1)); sleep 0.05; done; \
                    busybox stty size; read word; echo got $word";
        let mut wanted = shell("sized", BUSYBOX, line);
        (wanted.tty, wanted.stdin) = (true, true);
        let id = place.start(&pod, wanted);
        let request =
            v1::AttachRequest { container_id: id.clone(), stdin: true, stdout: true, tty: true, ..Default::default() };
        let address = cri.runtime(async |mut runtime| runtime.attach(request).await).unwrap().url;
        let size = Some(r#"{"Width":132,"Height":33}"#);
        let found = over_spdy(place.world, &address, &["stdin", "stdout", "resize"], b"it\n", size);
        let said = String::from_utf8_lossy(&found.stdout).into_owned();
        assert!(said.contains("33 132") && said.contains("got it"), "{said}");
        assert_eq!(cri.wait_exited(&id).exit_code, 0);

        let line = "read word; echo got $word; exit 3";
        let mut wanted = shell("reads", BUSYBOX, line);
        (wanted.stdin, wanted.stdin_once) = (true, true);
        let id = place.start(&pod, wanted);
        let (stdin, stdout, stderr) = (true, true, true);
        let request = v1::AttachRequest { container_id: id.clone(), stdin, stdout, stderr, ..Default::default() };
        let address = cri.runtime(async |mut runtime| runtime.attach(request).await).unwrap().url;
        let found = over_spdy(place.world, &address, &["stdin", "stdout", "stderr"], b"one\n", None);
        assert_eq!(String::from_utf8_lossy(&found.stdout), "got one\n", "{found:?}");
        assert_eq!(cri.wait_exited(&id).exit_code, 3);

        let id = place.start(&pod, shell("main", BUSYBOX, "sleep 1000"));
        let exec = |line: &str, tty: bool| {
            let cmd = ["sh", "-c", line].map(str::to_owned).to_vec();
            let (container_id, stderr) = (id.clone(), !tty);
            let request = v1::ExecRequest { container_id, cmd, tty, stdin: true, stdout: true, stderr };
            cri.runtime(async |mut runtime| runtime.exec(request).await).unwrap().url
        };
        let all = ["stdin", "stdout", "stderr"];
        let echoed = over_spdy(place.world, &exec("cat; echo end >&2; exit 5", false), &all, b"input", None);
        assert_eq!((echoed.stdout.as_slice(), echoed.stderr.as_slice()), (&b"input"[..], &b"end\n"[..]));
        assert_eq!(echoed.exit_code(), Some(5), "{}", echoed.status);
        let line = "i=0; while [ $i -lt 100 ] && [ \"$(busybox stty size 2>/dev/null)\" != '33 132' ]; do i=$((i+1)); sleep 0.05; done; \
                    busybox stty size; test -t 0 && echo terminal";
        let found = over_spdy(place.world, &exec(line, true), &["stdin", "stdout", "resize"], b"", size);
        assert_eq!(String::from_utf8_lossy(&found.stdout), "33 132\r\nterminal\r\n");
        let found = over_socket(place.world, &exec(line, true), Some(b""), size);
        assert_eq!(String::from_utf8_lossy(&found.stdout), "33 132\r\nterminal\r\n");
        let mut spdy =
            portreeve_e2e::streaming::Spdy::connect(place.world, &exec("sleep 777", false), "v4.channel.k8s.io");
        for kind in ["error", "stdin", "stdout", "stderr"] {
            spdy.open(&[("streamtype", kind)]);
        }
        let sleeps = |wanted: &str| match cri.inside(&id, "ps | grep -c '[s]leep 777' || true") {
            found if found == wanted => Ok(()),
            found => Err(found),
        };
        wait_until("the command runs", 10, || sleeps("1"));
        drop(spdy);
        wait_until("the command has ended with its client", 20, || sleeps("0"));
    });
}

#[test]
fn containers_of_a_pod_share_its_namespaces() {
    each("containers_of_a_pod_share_its_namespaces", |place, _| {
        let cri = &place.cri;
        let inside = |id: &str, name: &str| cri.inside(id, &format!("readlink /proc/self/ns/{name}"));
        let nodes = |name: &str| place.world.sh(&format!("readlink /proc/self/ns/{name}")).trim().to_owned();
        let sleep = |name: &str| shell(name, BUSYBOX, "sleep 1000");

        let own = place.usual("own");
        let a = place.start(&own, shell("a", BUSYBOX, "httpd -f -p 127.0.0.1:8080 -h /www"));
        let b = place.start(&own, sleep("b"));
        for name in ["net", "ipc", "uts"] {
            assert_eq!(inside(&a, name), inside(&b, name), "{name}");
            assert_ne!(inside(&a, name), nodes(name), "{name}");
        }
        for name in ["pid", "mnt", "cgroup"] {
            assert_ne!(inside(&a, name), inside(&b, name), "{name}");
        }
        wait_until("one sees the server of the other", 10, || {
            let asked = cri.exec(&b, &["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"], 10).unwrap();
            if asked.exit_code == 0 { Ok(()) } else { Err(String::from_utf8_lossy(&asked.stderr).into_owned()) }
        });
        assert!(cri.inside(&b, "ip -o -4 addr show eth0").contains(&cri.sandbox(&own.0).unwrap().network.unwrap().ip));
        assert_eq!(cri.inside(&a, "echo shared > /dev/shm/word"), "");
        assert_eq!(cri.inside(&b, "cat /dev/shm/word"), "shared");

        // Its target's processes, and its end.
        let mut debugs = sleep("debugs");
        let pid = v1::NamespaceMode::Target.into();
        let options = v1::NamespaceOption { pid, target_id: b.clone(), ..Default::default() };
        let context = v1::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
        debugs.linux = Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
        let debugs = place.start(&own, debugs);
        assert_eq!(inside(&debugs, "pid"), inside(&b, "pid"));
        cri.stop(&b, 0).unwrap();
        assert_eq!(cri.wait_exited(&debugs).exit_code, 137);

        let shared = place.pod("shared", v1::NamespaceOption::default());
        let (a, b) = (place.start(&shared, sleep("a")), place.start(&shared, sleep("b")));
        assert_eq!(inside(&a, "pid"), inside(&b, "pid"));
        assert!(cri.inside(&a, "ps").matches("sleep 1000").count() >= 2);
        // What it leaves ends with it, although the namespace goes on.
        let heirs = place.start(&shared, shell("heirs", BUSYBOX, "sleep 4242 & exit 6"));
        assert_eq!(cri.wait_exited(&heirs).exit_code, 6);
        assert_eq!(cri.inside(&a, "ps | grep -c '[s]leep 4242' || true"), "0");

        let node = v1::NamespaceMode::Node.into();
        let node = place.pod("node", v1::NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() });
        let a = place.start(&node, sleep("a"));
        for name in ["net", "ipc", "pid", "uts"] {
            assert_eq!(inside(&a, name), nodes(name), "{name}");
        }
        cri.stop(&a, 0).unwrap();
        assert_eq!(cri.container(&a).unwrap().exit_code, 137);
    });
}

#[test]
fn a_container_is_confined_as_it_was_asked_to_be() {
    each("a_container_is_confined_as_it_was_asked_to_be", |place, _| {
        let cri = &place.cri;
        let pod = place.usual("a");
        let run = |name: &str, context: v1::LinuxContainerSecurityContext| {
            let mut wanted = shell(name, BUSYBOX, "sleep 1000");
            wanted.linux = Some(v1::LinuxContainerConfig { resources: None, security_context: Some(context) });
            place.start(&pod, wanted)
        };
        let plain = v1::LinuxContainerSecurityContext::default;
        let kind = v1::security_profile::ProfileType::RuntimeDefault.into();
        let id = run(
            "user",
            v1::LinuxContainerSecurityContext {
                run_as_user: Some(v1::Int64Value { value: 1000 }),
                run_as_group: Some(v1::Int64Value { value: 3000 }),
                supplemental_groups: vec![4000],
                no_new_privs: true,
                readonly_rootfs: true,
                masked_paths: vec!["/proc/version".to_owned()],
                readonly_paths: vec!["/proc/sys".to_owned()],
                seccomp: Some(v1::SecurityProfile { profile_type: kind, localhost_ref: String::new() }),
                ..plain()
            },
        );
        assert_eq!(cri.inside(&id, "id -u; id -g; id -G"), "1000\n3000\n3000 2000 4000");
        let status = cri.inside(&id, "cat /proc/self/status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim().to_owned()
        };
        assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"), "{status}");
        assert_eq!(cri.inside(&id, "cat /proc/version"), "");
        assert_ne!(cri.exec(&id, &["touch", "/x"], 10).unwrap().exit_code, 0);
        let none = v1::Capability { drop_capabilities: vec!["ALL".to_owned()], ..v1::Capability::default() };
        let one = v1::Capability { add_capabilities: vec!["NET_ADMIN".to_owned()], ..none };
        let id = run("one", v1::LinuxContainerSecurityContext { capabilities: Some(one), ..plain() });
        assert!(cri.inside(&id, "grep CapEff /proc/self/status").ends_with("0000000000001000"));
        let id = run("all", v1::LinuxContainerSecurityContext { privileged: true, ..plain() });
        assert_eq!(cri.inside(&id, "mkdir /m && mount -t tmpfs m /m && echo mounted"), "mounted");

        // What an image shows is mounted for the runtime, which need not know how.
        let mut wanted = shell("shows", BUSYBOX, "sleep 1000");
        let image = Some(v1::ImageSpec { image: BUSYBOX.to_owned(), ..v1::ImageSpec::default() });
        let shows = |path: &str, sub_path: &str| v1::Mount {
            container_path: path.to_owned(),
            image: image.clone(),
            image_sub_path: sub_path.to_owned(),
            mount_options: vec!["noexec".to_owned()],
            ..v1::Mount::default()
        };
        wanted.mounts = vec![shows("/image", ""), shows("/part", "www")];
        let id = place.start(&pod, wanted);
        assert_eq!(cri.inside(&id, "cat /image/www/index.html"), cri.inside(&id, "cat /part/index.html"));
        for refused in ["touch /image/x", "/image/bin/busybox true"] {
            assert_ne!(cri.exec(&id, &["sh", "-c", refused], 10).unwrap().exit_code, 0, "{refused}");
        }
    });
}

#[test]
fn a_pod_may_have_users_of_its_own() {
    if skipped_without_own_users("a_pod_may_have_users_of_its_own") {
        return;
    }
    each("a_pod_may_have_users_of_its_own", |place, _| {
        // As /run may be entered.
        std::fs::set_permissions(place.world.home(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let cri = &place.cri;
        let row = v1::IdMapping { host_id: 300_000, container_id: 0, length: 65_536 };
        let users = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: vec![row], gids: vec![row] };
        let pod = place.pod("a", v1::NamespaceOption { userns_options: Some(users), ..Default::default() });
        let share = place.world.path("share");
        std::fs::create_dir(&share).unwrap();
        let mut wanted = shell("main", BUSYBOX, "echo out; sleep 1000");
        let image = Some(v1::ImageSpec { image: BUSYBOX.to_owned(), ..v1::ImageSpec::default() });
        wanted.mounts = vec![
            v1::Mount {
                container_path: "/share".to_owned(),
                host_path: share.display().to_string(),
                ..v1::Mount::default()
            },
            v1::Mount { container_path: "/image".to_owned(), image, ..v1::Mount::default() },
        ];
        let id = place.start(&pod, wanted);
        assert_eq!(
            cri.inside(&id, "cat /proc/self/uid_map").split_whitespace().collect::<Vec<_>>(),
            ["0", "300000", "65536"]
        );
        assert_eq!(
            cri.inside(&id, "id -u; stat -c %u /bin/busybox /image/bin/busybox; touch /x /share/x; stat -c %u /x"),
            "0\n0\n0\n0"
        );
        assert_eq!(
            place.world.sh(&format!("stat -c %u '{}/x'", share.display())).trim(),
            "0",
            "volumes have the pod's ids"
        );
        assert!(!cri.inside(&id, "ip -o -4 addr show eth0").is_empty());
        let other = place.start(&pod, shell("other", BUSYBOX, "sleep 1000"));
        for name in ["user", "net", "pid"] {
            let of = |id: &str| cri.inside(id, &format!("readlink /proc/self/ns/{name}"));
            assert_eq!(of(&id), of(&other), "{name}");
        }
        cri.stop(&id, 0).unwrap();
        assert_eq!(cri.container(&id).unwrap().exit_code, 137);
    });
}

#[test]
fn limits_are_enforced_changed_and_told() {
    each("limits_are_enforced_changed_and_told", |place, _| {
        let cri = &place.cri;
        let pod = place.usual("a");
        let limited = |name: &str, line: &str, bytes: i64| {
            let mut wanted = shell(name, BUSYBOX, line);
            let resources = v1::LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 50_000,
                cpu_shares: 512,
                memory_limit_in_bytes: bytes,
                ..v1::LinuxContainerResources::default()
            };
            wanted.linux = Some(v1::LinuxContainerConfig { resources: Some(resources), security_context: None });
            place.start(&pod, wanted)
        };
        let id = limited("main", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000", 64 << 20);
        let asked = v1::ContainerStatsRequest { container_id: id.clone() };
        wait_until("it has used processor time", 20, || {
            let asked = asked.clone();
            let stats = cri.runtime(async |mut runtime| runtime.container_stats(asked).await).unwrap().stats.unwrap();
            assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
            let used = stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value;
            if used > 1_000_000 { Ok(()) } else { Err(used.to_string()) }
        });
        let enforced = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true";
        assert_eq!(cri.inside(&id, enforced), (64 << 20).to_string());
        let linux =
            v1::LinuxContainerResources { cpu_quota: 80_000, memory_limit_in_bytes: 96 << 20, ..Default::default() };
        let request =
            v1::UpdateContainerResourcesRequest { container_id: id.clone(), linux: Some(linux), ..Default::default() };
        cri.runtime(async |mut runtime| runtime.update_container_resources(request).await).unwrap();
        assert_eq!(cri.inside(&id, enforced), (96 << 20).to_string());
        let told = cri.container(&id).unwrap().resources.unwrap().linux.unwrap();
        assert_eq!((told.cpu_quota, told.cpu_shares, told.memory_limit_in_bytes), (80_000, 512, 96 << 20));
        let id = limited("hungry", "tail /dev/zero", 48 << 20);
        let ended = cri.wait_exited(&id);
        assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");
    });
}

#[test]
fn pods_outlive_the_agent_and_its_settings() {
    each("pods_outlive_the_agent_and_its_settings", |place, agent| {
        let pod = place.usual("a");
        let stays =
            place.start(&pod, shell("stays", BUSYBOX, "trap 'exit 8' TERM; while :; do echo tick; sleep 0.1; done"));
        let ends = place.start(&pod, shell("ends", BUSYBOX, "while [ ! -e /go ]; do sleep 0.05; done; exit 9"));
        let waits = place.cri.create(&pod.0, shell("waits", BUSYBOX, "sleep 1000"), &pod.1).unwrap();
        assert_eq!(place.cri.inside(&ends, "touch /go"), "");
        let before = place.cri.container(&stays).unwrap();
        agent.kill();
        // An agent that has other settings, or none, still ends what was begun.
        agent.use_arguments(&[]);
        agent.launch();
        let cri = connect(agent);
        assert_eq!(cri.container(&stays).unwrap(), before);
        assert_eq!(cri.sandbox(&pod.0).unwrap().runtime_handler, place.handler);
        assert_eq!(cri.wait_exited(&ends).exit_code, 9);
        cri.start(&waits).unwrap();
        assert_eq!(cri.inside(&stays, "echo here"), "here");
        let log = place.logs().join("a/stays.log");
        let lines = std::fs::read_to_string(&log).unwrap().lines().count();
        wait_until("the log goes on", 10, || {
            let now = std::fs::read_to_string(&log).unwrap().lines().count();
            if now > lines { Ok(()) } else { Err(now.to_string()) }
        });
        let mut other = pod.1.clone();
        other.metadata.as_mut().unwrap().name = "b".to_owned();
        assert_eq!(code(cri.run_sandbox_by(&other, place.handler)), Code::Unknown);
        agent.terminate();
        agent.launch();
        let cri = connect(agent);
        cri.stop(&stays, 10).unwrap();
        assert_eq!(cri.container(&stays).unwrap().exit_code, 8);
        cri.remove(&waits).unwrap();
        assert_eq!(place.state(agent, &pod.0, &waits), None);
    });
}

#[test]
fn a_shim_that_is_killed_takes_its_containers_along() {
    each("a_shim_that_is_killed_takes_its_containers_along", |place, agent| {
        let kill = |agent: &Agent<'_>, sandbox: &str| {
            let census = agent.census();
            let shim = census.processes.iter().find(|line| line.contains(" shim ") && line.contains(sandbox)).cloned();
            let pid = shim.expect("a shim").split(' ').next().unwrap().to_owned();
            place.world.sh(&format!("kill -9 {pid}"));
        };
        let gone = |agent: &Agent<'_>, sandbox: &str| {
            wait_until("its containers are gone", 20, || {
                let census = agent.census();
                let mounts = census.mounts.iter().filter(|point| point.contains(sandbox) && !point.ends_with("/shm"));
                let left: Vec<_> = mounts.chain(&census.contained).cloned().collect();
                if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
            });
        };
        let one = place.usual("one");
        let id = place.start(&one, shell("main", BUSYBOX, "sleep 1000"));
        let _waits = place.cri.create(&one.0, shell("waits", BUSYBOX, "true"), &one.1).unwrap();
        kill(agent, &one.0);
        assert_eq!(place.cri.wait_exited(&id).exit_code, 137);
        gone(agent, &one.0);
        assert_eq!(place.cri.sandbox(&one.0).unwrap().state(), v1::PodSandboxState::SandboxNotready);
        assert_eq!(place.state(agent, &one.0, &id), None);
        place.cri.remove_sandbox(&one.0).unwrap();

        // Without anybody who sees it.
        let two = place.usual("two");
        let id = place.start(&two, shell("main", BUSYBOX, "sleep 1000"));
        agent.kill();
        kill(agent, &two.0);
        agent.launch();
        let cri = connect(agent);
        assert_eq!(cri.container(&id).unwrap().exit_code, 137);
        gone(agent, &two.0);
        cri.remove_sandbox(&two.0).unwrap();
    });
}

/// A program that does what a line of shell says, and else what a real runtime does.
fn script(world: &World, name: &str, line: &str, real: &Path) -> PathBuf {
    let path = world.path(name);
    // The verb comes after three options with a value each.
    let text = format!("#!/bin/sh\nverb=${{7:-none}}\n{line}\nexec {} \"$@\"\n", real.display());
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_program_that_fails_or_hangs_is_quoted_and_leaves_nothing() {
    let Some(peers) = Peers::for_test("a_program_that_fails_or_hangs_is_quoted_and_leaves_nothing") else { return };
    let world = World::new("handler-faulty");
    let real = peers.program("crun");
    let fails =
        script(&world, "fails", "echo nonsense; [ $verb != create ] || { echo 'it is broken' >&2; exit 3; }", &real);
    let hangs = script(&world, "hangs", "[ $verb != create ] || { echo waiting >&2; sleep 5555; }", &real);
    // It makes the container first, and then does not come back.
    let line = format!("[ $verb != create ] || {{ {} \"$@\"; sleep 5555; }}", real.display());
    let late = script(&world, "late", &line, &real);
    let unstarted = script(&world, "unstarted", "[ $verb != start ] || { echo 'will not' >&2; exit 1; }", &real);
    let noisy = script(&world, "noisy", "[ $verb = features ] || echo noise >&2", &real);
    let handlers: [(&str, &Path); 5] =
        [("fails", &fails), ("hangs", &hangs), ("late", &late), ("unstarted", &unstarted), ("noisy", &noisy)];
    let mut agent = launch(&world, &handlers);
    let cri = connect(&agent);
    let run = |handler: &str| {
        let config = pod(handler, &world.path("cri-logs"));
        (cri.run_sandbox_by(&config, handler).unwrap(), config)
    };
    let sleeps = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        lines.filter(|line| line == b"sleep\x005555\x00").count().to_string()
    };
    for (handler, words) in [("fails", "it is broken"), ("hangs", "did not end within"), ("late", "did not end within")]
    {
        let (sandbox, config) = run(handler);
        let begun = Instant::now();
        let refused = cri.create(&sandbox, shell("main", BUSYBOX, "sleep 1000"), &config).unwrap_err();
        assert!(refused.message().contains(words) && refused.message().contains(handler), "{refused}");
        assert!(begun.elapsed() < patience(30), "a shim is given up after that");
        assert_eq!(sleeps(), "0", "{handler}");
        assert_eq!(cri.sandbox(&sandbox).unwrap().state(), v1::PodSandboxState::SandboxReady, "{handler}");
        let census = agent.census();
        let left: Vec<_> = census.mounts.iter().filter(|point| point.ends_with("/rootfs")).collect();
        let running: Vec<_> = census.commands().into_keys().filter(|line| !line.contains(" shim ")).collect();
        assert!(left.is_empty() && running.is_empty(), "{handler}: {left:?} {running:?}");
        assert!(census.entries("root/images/snapshots").is_empty(), "{handler}: {census:?}");
        cri.remove_sandbox(&sandbox).unwrap();
    }

    let (sandbox, config) = run("unstarted");
    let id = cri.create(&sandbox, shell("main", BUSYBOX, "sleep 1000"), &config).unwrap();
    let refused = cri.start(&id).unwrap_err();
    assert!(refused.message().contains("unstarted start: will not"), "{refused}");
    let ended = cri.wait_exited(&id);
    assert_eq!((ended.exit_code, ended.reason.as_str()), (128, "StartError"));
    assert!(ended.message.contains("will not"), "{ended:?}");
    cri.remove_sandbox(&sandbox).unwrap();

    // What it prints before the container's program runs is not the container's.
    let (sandbox, config) = run("noisy");
    let id = cri.create(&sandbox, shell("main", BUSYBOX, "echo mine"), &config).unwrap();
    cri.start(&id).unwrap();
    let _ended = cri.wait_exited(&id);
    let log = std::fs::read_to_string(world.path("cri-logs/noisy/main.log")).unwrap();
    assert!(log.lines().count() == 1 && log.ends_with(" mine\n"), "{log}");
    cri.remove_sandbox(&sandbox).unwrap();

    // A shim that is killed while its program hangs.
    let (sandbox, config) = run("hangs");
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| cri.create(&sandbox, shell("main", BUSYBOX, "true"), &config));
        wait_until("the program hangs", 10, || if sleeps() == "1" { Ok(()) } else { Err(sleeps()) });
        let census = agent.census();
        let shim = census.processes.iter().find(|line| line.contains(" shim ")).cloned().expect("a shim");
        world.sh(&format!("kill -9 {}", shim.split(' ').next().unwrap()));
        assert!(creating.join().unwrap().is_err());
    });
    wait_until("what it had called is gone", 20, || if sleeps() == "0" { Ok(()) } else { Err(sleeps()) });
    cri.remove_sandbox(&sandbox).unwrap();

    // An agent that ends meanwhile finds the shim again, however long the program takes.
    let (sandbox, config) = run("hangs");
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| cri.create(&sandbox, shell("main", BUSYBOX, "true"), &config));
        wait_until("the program hangs", 10, || if sleeps() == "1" { Ok(()) } else { Err(sleeps()) });
        agent.kill();
        assert!(creating.join().unwrap().is_err());
    });
    agent.launch();
    let cri = connect(&agent);
    assert_eq!(cri.sandbox(&sandbox).unwrap().state(), v1::PodSandboxState::SandboxReady, "{}", agent.log());
    assert_eq!(sleeps(), "0");
    assert_eq!(cri.containers(v1::ContainerFilter::default()).len(), 0);
    cri.remove_sandbox(&sandbox).unwrap();
    nothing_left(&agent);
}

#[test]
fn handlers_are_told_with_what_they_can_do_and_others_refused() {
    if skipped_without_root("cri_handlers") {
        return;
    }
    let world = World::new("handler-status");
    let says = script(
        &world,
        "says",
        "[ $1 != features ] || { echo '{\"mountOptions\": [\"rro\"], \"linux\": {\"namespaces\": [\"user\"]}}'; exit 0; }",
        Path::new("/bin/false"),
    );
    let silent = script(&world, "silent", "exit 1", Path::new("/bin/false"));
    let mut agent = launch(&world, &[("says", &says), ("silent", &silent)]);
    let cri = connect(&agent);
    let status = cri.runtime(async |mut runtime| runtime.status(v1::StatusRequest::default()).await).unwrap();
    let shown: Vec<_> = status
        .runtime_handlers
        .iter()
        .map(|handler| (handler.name.as_str(), handler.features.as_ref().unwrap().recursive_read_only_mounts))
        .collect();
    assert_eq!(shown, [("", true), ("says", true), ("silent", false)]);
    assert!(status.runtime_handlers[1..].iter().all(|handler| !handler.features.as_ref().unwrap().user_namespaces));
    let config = pod("a", &world.path("cri-logs"));
    let refused = cri.run_sandbox_by(&config, "kata").unwrap_err();
    assert_eq!(refused.code(), Code::Unknown);
    for word in ["\"kata\"", "\"says\"", "\"silent\""] {
        assert!(refused.message().contains(word), "{refused}");
    }
    assert_eq!(cri.sandboxes(v1::PodSandboxFilter::default()).len(), 0);
    // Our own is always there, beside others.
    let sandbox = cri.run_sandbox(&config).unwrap();
    let id = cri.create(&sandbox, shell("main", BUSYBOX, "exit 4"), &config).unwrap();
    cri.start(&id).unwrap();
    assert_eq!(cri.wait_exited(&id).exit_code, 4);
    assert_eq!(cri.sandbox(&sandbox).unwrap().runtime_handler, "");
    cri.remove_sandbox(&sandbox).unwrap();
    agent.terminate();

    // A program that is not there is found when the agent starts.
    std::fs::remove_file(&silent).unwrap();
    let started = Command::new(portreeve_e2e::binary())
        .args(["agent", "--listen", "127.0.0.1:0", "--run"])
        .arg(world.path("other/run"))
        .arg("--root")
        .arg(world.path("other/root"))
        .args(arguments(&[("silent", &silent)]))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(!started.status.success() && said.contains("cri.runtimeHandlers: silent: "), "{said}");
    agent.use_arguments(&[]);
    agent.launch();
}
