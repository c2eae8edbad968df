//! Checkpoints of containers, for a kubelet.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use portreeve_e2e::cri::{code, pod, shell, v1};
use portreeve_e2e::{Agent, BUSYBOX, Cri, World, cgroup_version, criu, skipped, skipped_without_root, wait_until};
use tonic::Code;

/// An id that nothing has.
const NOBODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn connect(agent: &Agent<'_>) -> Cri {
    Cri::connect(&agent.run_dir().join("cri.sock"))
}

fn checkpoint(cri: &Cri, container_id: &str, location: &Path) -> Result<(), tonic::Status> {
    let (container_id, location) = (container_id.to_owned(), location.display().to_string());
    let asked = v1::CheckpointContainerRequest { container_id, location, timeout: 60 };
    cri.runtime(async |mut runtime| runtime.checkpoint_container(asked).await).map(drop)
}

#[test]
fn a_container_is_checkpointed_and_goes_on() {
    let Some(program) = criu("a_container_is_checkpointed_and_goes_on") else { return };
    let world = World::new("cri-checkpoint");
    let mut agent = Agent::with_busybox(&world);
    agent.terminate();
    agent.use_programs(program.parent().unwrap());
    agent.launch();
    let cri = connect(&agent);
    let config = pod("a", &world.path("logs"));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let line = "echo said; rm /etc/group; echo kept > /written; while :; do sleep 0.1; done";
    let id = cri.create(&sandbox, shell("main", BUSYBOX, line), &config).unwrap();
    let archive = world.path("checkpoint.tar");
    assert_eq!(code(checkpoint(&cri, &id, &archive)), Code::FailedPrecondition, "it does not run yet");
    cri.start(&id).unwrap();
    wait_until("it has written", 10, || match cri.exec(&id, &["test", "-s", "/written"], 5).unwrap().exit_code {
        0 => Ok(()),
        code => Err(code.to_string()),
    });
    for bad in ["relative.tar", "/", "/nonexistent/place/x.tar"] {
        assert!(checkpoint(&cri, &id, Path::new(bad)).is_err(), "{bad}");
    }
    // Again over the one before, as a kubelet may ask.
    for _ in 0..2 {
        checkpoint(&cri, &id, &archive).unwrap_or_else(|refused| panic!("{refused}\n{}", agent.log()));
    }
    assert_eq!(std::fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(cri.container(&id).unwrap().state(), v1::ContainerState::ContainerRunning);
    assert_eq!(cri.inside(&id, "cat /written"), "kept");
    assert_eq!(std::fs::read_dir(agent.root().join("checkpoints")).unwrap().count(), 0);

    let names = world.sh(&format!("tar -tf '{}'", archive.display()));
    for name in ["checkpoint/inventory.img", "config.dump", "spec.dump", "rootfs-diff.tar", "container.log", "dump.log"]
    {
        assert!(names.lines().any(|line| line == name), "{name} is not among\n{names}");
    }
    let shown = |name: &str| world.sh(&format!("tar -xOf '{}' {name}", archive.display()));
    let about: serde_json::Value = serde_json::from_str(&shown("config.dump")).unwrap();
    assert_eq!((about["id"].as_str(), about["name"].as_str()), (Some(id.as_str()), Some("main")));
    let spec: serde_json::Value = serde_json::from_str(&shown("spec.dump")).unwrap();
    assert_eq!(spec["process"]["args"][2], line);
    assert!(shown("container.log").contains(" stdout F said"));
    let diff = world.sh(&format!("tar -xOf '{}' rootfs-diff.tar | tar -t", archive.display()));
    assert!(diff.lines().any(|line| line == "written") && diff.lines().any(|line| line == "etc/.wh.group"), "{diff}");
    cri.remove_sandbox(&sandbox).unwrap();
}

#[test]
fn a_container_that_a_broken_off_checkpoint_left_standing_still_goes_on() {
    if skipped_without_root("cri_checkpoint") {
        return;
    }
    let world = World::new("cri-standstill");
    let mut agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let config = pod("a", &world.path("logs"));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let id = cri.create(&sandbox, shell("main", BUSYBOX, "sleep 1000"), &config).unwrap();
    cri.start(&id).unwrap();
    let asked = v1::ContainerStatusRequest { container_id: id.clone(), verbose: true };
    let told = cri.runtime(async |mut runtime| runtime.container_status(asked).await).unwrap();
    let info: serde_json::Value = serde_json::from_str(&told.info["info"]).unwrap();
    let cgroup = info["cgroup"].as_str().unwrap();
    agent.kill();
    let (file, frozen) = match cgroup_version() {
        1 => (format!("/sys/fs/cgroup/freezer{cgroup}/freezer.state"), "FROZEN"),
        _ => (format!("/sys/fs/cgroup{cgroup}/cgroup.freeze"), "1"),
    };
    std::fs::write(&file, frozen).unwrap();
    let left = agent.root().join("checkpoints").join(&id);
    std::fs::create_dir_all(&left).unwrap();
    agent.launch();
    assert!(!left.exists());
    assert_ne!(std::fs::read_to_string(&file).unwrap().trim(), frozen);
    assert_eq!(cri.inside(&id, "echo goes on"), "goes on");
    cri.remove_sandbox(&sandbox).unwrap();
}

#[test]
fn without_criu_a_checkpoint_is_no_ones_to_make() {
    if skipped_without_root("cri_checkpoint") {
        return;
    }
    let world = World::new("cri-no-criu");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    assert_eq!(code(checkpoint(&cri, NOBODY, &world.path("x.tar"))), Code::NotFound);
    if Path::new("/usr/sbin/criu").exists() || Path::new("/usr/bin/criu").exists() {
        return skipped("without_criu_a_checkpoint_is_no_ones_to_make", "criu is installed");
    }
    let config = pod("a", &world.path("logs"));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let id = cri.create(&sandbox, shell("main", BUSYBOX, "sleep 1000"), &config).unwrap();
    cri.start(&id).unwrap();
    let refused = checkpoint(&cri, &id, &world.path("x.tar")).unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("CRIU is not installed"), "{refused}");
    assert!(!world.path("x.tar").exists());
    cri.remove_sandbox(&sandbox).unwrap();
}
