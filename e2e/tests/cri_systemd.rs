//! A kubelet's pods where systemd makes the cgroups: in the guest that is booted with it; elsewhere, the refusal.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portreeve_e2e::cri::{code, pod, shell, v1};
use portreeve_e2e::systemd::{self, property, systemctl};
use portreeve_e2e::{Agent, BUSYBOX, Cri, World, binary, preload_busybox, wait_until};
use tonic::Code;

/// The cgroup of the slice `prt-kube-<name>.slice`.
fn slice(name: &str) -> String {
    format!("/prt.slice/prt-kube.slice/prt-kube-{name}.slice")
}

fn directory(cgroup: &str) -> PathBuf {
    PathBuf::from(format!("/sys/fs/cgroup{cgroup}"))
}

fn file(cgroup: &str, name: &str) -> String {
    let path = directory(cgroup).join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim_end().to_owned()
}

fn start(world: &World) -> (Agent<'_>, Cri) {
    preload_busybox(world);
    let agent = Agent::start_with(world, &["--systemd-cgroup"]);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    (agent, cri)
}

/// A pod as a kubelet asks for it whose driver is systemd.
fn sliced(world: &World, name: &str) -> v1::PodSandboxConfig {
    let linux = v1::LinuxPodSandboxConfig { cgroup_parent: slice(name), ..Default::default() };
    v1::PodSandboxConfig { linux: Some(linux), ..pod(name, &world.path("logs")) }
}

fn limited(name: &str, line: &str, memory_limit_in_bytes: i64) -> v1::ContainerConfig {
    let resources = v1::LinuxContainerResources { memory_limit_in_bytes, ..Default::default() };
    let linux = v1::LinuxContainerConfig { resources: Some(resources), ..Default::default() };
    v1::ContainerConfig { linux: Some(linux), ..shell(name, BUSYBOX, line) }
}

/// Unit and cgroup of a pod's scope.
fn scope(name: &str, sandbox: &str) -> (String, String) {
    let unit = format!("portreeve-{sandbox}.scope");
    let cgroup = format!("{}/{unit}", slice(name));
    (unit, cgroup)
}

fn gone(unit: &str, cgroup: &str) -> Result<(), String> {
    let (state, there) = (property(unit, "LoadState"), directory(cgroup).exists());
    if state == "not-found" && !there { Ok(()) } else { Err(format!("{unit} is {state}, its cgroup: {there}")) }
}

fn pid_of(cri: &Cri, container: &str) -> Pid {
    let asked = v1::ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
    let told = cri.runtime(async |mut runtime| runtime.container_status(asked).await).unwrap();
    let info: serde_json::Value = serde_json::from_str(&told.info["info"]).unwrap();
    Pid::from_raw(i32::try_from(info["pid"].as_i64().unwrap()).unwrap())
}

#[test]
fn a_pod_lives_in_a_scope_of_its_slice() {
    let test = "a_pod_lives_in_a_scope_of_its_slice";
    if systemd::skipped_without(test) {
        return;
    }
    let world = World::new("cri-systemd");
    let (mut agent, cri) = start(&world);
    let told = cri.runtime(async |mut runtime| runtime.runtime_config(v1::RuntimeConfigRequest {}).await).unwrap();
    assert_eq!(told.linux.unwrap().cgroup_driver(), v1::CgroupDriver::Systemd);

    let config = sliced(&world, "one");
    let sandbox = cri.run_sandbox(&config).unwrap();
    let (unit, cgroup) = scope("one", &sandbox);
    for (name, value) in [
        ("ActiveState", "active"),
        ("Slice", "prt-kube-one.slice"),
        ("Delegate", "yes"),
        ("Description", "pod default/one"),
        // What a pod may have is its slice's to say.
        ("TasksMax", "infinity"),
    ] {
        assert_eq!(property(&unit, name), value, "{name}");
    }
    let main = cri.create(&sandbox, limited("main", "sleep 1000", 64 << 20), &config).unwrap();
    cri.start(&main).unwrap();
    let container = format!("{cgroup}/{main}");
    assert_eq!(file(&container, "memory.max"), (64 << 20).to_string());
    let process = std::fs::read_to_string(format!("/proc/{}/cgroup", pid_of(&cri, &main))).unwrap();
    assert_eq!(process.trim_end(), format!("0::{container}"));

    // What systemd does to its units is not done to what is delegated.
    for verb in ["daemon-reload", "daemon-reexec"] {
        assert_eq!(systemctl(&[verb]), "", "{verb}");
        assert_eq!(file(&container, "memory.max"), (64 << 20).to_string(), "{verb}");
    }
    let update = v1::UpdateContainerResourcesRequest {
        container_id: main.clone(),
        linux: Some(v1::LinuxContainerResources { memory_limit_in_bytes: 48 << 20, ..Default::default() }),
        ..Default::default()
    };
    cri.runtime(async |mut runtime| runtime.update_container_resources(update).await).unwrap();
    assert_eq!(file(&container, "memory.max"), (48 << 20).to_string());
    let asked = v1::PodSandboxStatsRequest { pod_sandbox_id: sandbox.clone() };
    let stats = cri.runtime(async |mut runtime| runtime.pod_sandbox_stats(asked).await).unwrap();
    let stats = stats.stats.unwrap().linux.unwrap();
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    assert_eq!(stats.containers.len(), 1);

    // A slice is systemd's, and a kubelet tells that.
    let update = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: sandbox.clone(),
        resources: Some(v1::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() }),
        ..Default::default()
    };
    cri.runtime(async |mut runtime| runtime.update_pod_sandbox_resources(update).await).unwrap();
    assert_eq!(file(&slice("one"), "memory.max"), "max");

    // Between two containers the scope stays, also without an agent.
    cri.stop(&main, 0).unwrap();
    cri.remove(&main).unwrap();
    assert!(!directory(&container).exists());
    agent.kill();
    assert_eq!(property(&unit, "ActiveState"), "active");
    agent.launch();
    let next = cri.create(&sandbox, shell("next", BUSYBOX, "sleep 1000"), &config).unwrap();
    cri.start(&next).unwrap();
    assert_eq!(cri.inside(&next, "echo here"), "here");
    assert!(directory(&format!("{cgroup}/{next}")).exists());

    cri.stop_sandbox(&sandbox).unwrap();
    wait_until("the scope goes with its pod", 20, || gone(&unit, &cgroup));
    cri.remove_sandbox(&sandbox).unwrap();
    systemctl(&["stop", "prt.slice"]);
}

#[test]
fn a_container_without_memory_is_told_of_though_systemd_clears_up() {
    if systemd::skipped_without("a_container_without_memory_is_told_of_though_systemd_clears_up") {
        return;
    }
    let world = World::new("cri-systemd-oom");
    let (_agent, cri) = start(&world);
    let config = sliced(&world, "oom");
    let sandbox = cri.run_sandbox(&config).unwrap();
    let greedy = limited("greedy", "head -c 200m /dev/zero | tail -c 100m", 16 << 20);
    for attempt in 0..3 {
        let mut greedy = greedy.clone();
        greedy.metadata.as_mut().unwrap().attempt = attempt;
        let id = cri.create(&sandbox, greedy, &config).unwrap();
        cri.start(&id).unwrap();
        let ended = cri.wait_exited(&id);
        assert_eq!((ended.reason.as_str(), ended.exit_code), ("OOMKilled", 137), "{ended:?}");
    }
    cri.remove_sandbox(&sandbox).unwrap();
    let (unit, cgroup) = scope("oom", &sandbox);
    wait_until("the scope goes with its pod", 20, || gone(&unit, &cgroup));
    systemctl(&["stop", "prt.slice"]);
}

#[test]
fn a_killed_shim_leaves_no_scope() {
    if systemd::skipped_without("a_killed_shim_leaves_no_scope") {
        return;
    }
    let world = World::new("cri-systemd-shim");
    let (_agent, cri) = start(&world);
    let config = sliced(&world, "shim");
    let sandbox = cri.run_sandbox(&config).unwrap();
    let id = cri.create(&sandbox, shell("main", BUSYBOX, "sleep 1000"), &config).unwrap();
    cri.start(&id).unwrap();
    let asked = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: true };
    let told = cri.runtime(async |mut runtime| runtime.pod_sandbox_status(asked).await).unwrap();
    let info: serde_json::Value = serde_json::from_str(&told.info["info"]).unwrap();
    kill(Pid::from_raw(i32::try_from(info["pid"].as_i64().unwrap()).unwrap()), Signal::SIGKILL).unwrap();
    let (unit, cgroup) = scope("shim", &sandbox);
    wait_until("the scope goes with its shim", 20, || gone(&unit, &cgroup));
    wait_until("the sandbox is told of", 20, || match cri.sandbox(&sandbox).unwrap().state() {
        v1::PodSandboxState::SandboxNotready => Ok(()),
        other => Err(format!("{other:?}")),
    });
    cri.remove_sandbox(&sandbox).unwrap();
    systemctl(&["stop", "prt.slice"]);
}

#[test]
fn a_parent_that_is_no_slice_is_a_cgroup_as_ever_and_one_that_cannot_be_is_refused() {
    if systemd::skipped_without("a_parent_that_is_no_slice_is_a_cgroup_as_ever_and_one_that_cannot_be_is_refused") {
        return;
    }
    let world = World::new("cri-systemd-path");
    let (_agent, cri) = start(&world);
    let plain = pod("plain", &world.path("logs"));
    let sandbox = cri.run_sandbox(&plain).unwrap();
    assert_eq!(property(&scope("plain", &sandbox).0, "LoadState"), "not-found");
    cri.remove_sandbox(&sandbox).unwrap();
    // By its name alone, too.
    let mut named = sliced(&world, "named");
    named.linux.as_mut().unwrap().cgroup_parent = "prt-kube-named.slice".to_owned();
    let sandbox = cri.run_sandbox(&named).unwrap();
    let (unit, cgroup) = scope("named", &sandbox);
    assert!(directory(&cgroup).exists());
    assert_eq!(property(&unit, "ActiveState"), "active");
    cri.remove_sandbox(&sandbox).unwrap();
    let mut wrong = sliced(&world, "wrong");
    wrong.linux.as_mut().unwrap().cgroup_parent = "/prt.slice/prt--kube.slice".to_owned();
    assert_eq!(code(cri.run_sandbox(&wrong)), Code::InvalidArgument);
    systemctl(&["stop", "prt.slice"]);
}

#[test]
fn an_agent_that_systemd_cannot_serve_does_not_start() {
    if portreeve_e2e::skipped_without_root("cri_systemd") {
        return;
    }
    let world = World::new("cri-systemd-refused");
    if systemd::booted() {
        world.sh("mount -t tmpfs none /run/systemd");
    }
    let run = world.path("run");
    let mut command = world.command(binary());
    command.arg("agent").arg("--run").arg(&run).arg("--root").arg(world.path("root")).arg("--systemd-cgroup");
    let answer = command.arg("--cri-only").output().expect("the agent");
    let text = String::from_utf8_lossy(&answer.stderr);
    assert_eq!(answer.status.code(), Some(1), "{text}");
    assert!(text.contains("systemd is not the init of this machine") && text.contains("cgroupfs"), "{text}");
    assert!(!Path::new(&run).exists(), "nothing was made");
    if systemd::booted() {
        world.sh("umount /run/systemd");
    }
}
