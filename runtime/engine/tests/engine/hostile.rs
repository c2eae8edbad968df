//! What must not be possible.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use portreeve_engine::{
    ContainerConfig, EngineError, IdMapping, IpcNamespace, Namespaces, NetworkNamespace, PidNamespace, SecurityContext,
    UserNamespace,
};

use crate::mapped_layers::skipped_without_mapped_layers;
use crate::world::{World, sh, wait_until, zombie};

pub(crate) async fn users_that_are_no_users_are_refused() {
    let world = World::new().await;
    let pod = world.pod().await;
    for name in ["4294967296", "2147483648", "nosuchuser", "-1", ":0", "0:0"] {
        let security = SecurityContext { run_as_username: Some(name.into()), ..SecurityContext::default() };
        let answer = world.engine().create_container(&pod, ContainerConfig { security, ..sh("true") }).await;
        assert!(matches!(answer, Err(EngineError::Invalid { .. })), "{name}: {answer:?}");
    }
    let security = SecurityContext { run_as_non_root: true, ..SecurityContext::default() };
    let answer = world.engine().create_container(&pod, ContainerConfig { security, ..sh("true") }).await;
    assert!(matches!(answer, Err(EngineError::RunsAsRoot { .. })), "{answer:?}");
    // Nothing of the refused ones is left.
    assert!(world.engine().containers().is_empty());
    assert!(world.engine().images().snapshots().unwrap().is_empty());
    let containers = world.path("run/sandboxes").join(pod.as_str()).join("containers");
    assert_eq!(fs::read_dir(containers).unwrap().count(), 0);
}

pub(crate) async fn a_log_path_stays_below_its_directory() {
    let world = World::new().await;
    let pod = world.pod().await;
    for path in ["../x", "/etc/x", "a/../../x"] {
        let config = ContainerConfig { log_path: Some(path.into()), ..sh("true") };
        assert!(
            matches!(world.engine().create_container(&pod, config).await, Err(EngineError::Invalid { .. })),
            "{path}"
        );
    }
    let directory = world.engine().sandbox(&pod).unwrap().log_directory;
    std::os::unix::fs::symlink("/etc/passwd", directory.join("link.log")).unwrap();
    let config = ContainerConfig { log_path: Some("link.log".into()), ..sh("true") };
    assert!(world.engine().create_container(&pod, config).await.is_err());
    assert!(world.engine().containers().is_empty());
}

pub(crate) async fn nobody_else_can_look_into_the_state() {
    let world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("sleep 100")).await;
    let directory = world.path("run/sandboxes").join(pod.as_str());
    for path in [
        world.path("run/sandboxes"),
        directory.clone(),
        directory.join("containers"),
        directory.join("containers").join(id.as_str()),
    ] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700, "{}", path.display());
    }
    assert_eq!(fs::metadata(directory.join("shim.sock")).unwrap().permissions().mode() & 0o777, 0o600);
    let abstracts = fs::read_to_string("/proc/self/net/unix").unwrap();
    assert!(!abstracts.lines().any(|line| line.contains('@')), "{abstracts}");
}

pub(crate) async fn what_a_container_writes_to_its_files_is_on_disk() {
    let world = World::new().await;
    let pod = world.pod().await;
    let (_, text) = world.script(&pod, "echo more >> /etc/hostname; grep ' /etc/hostname ' /proc/mounts").await;
    let files = world.path("root/sandboxes").join(pod.as_str());
    assert!(fs::read_to_string(files.join("hostname")).unwrap().ends_with("\nmore\n"));
    assert!(!world.path("run/sandboxes").join(pod.as_str()).join("hostname").exists());
    let options = text.split_whitespace().nth(3).unwrap();
    for option in ["rw", "nosuid", "nodev", "noexec"] {
        assert!(options.split(',').any(|one| one == option), "{text}");
    }
    world.engine().remove_sandbox(&pod).await.unwrap();
    assert!(!files.exists());
}

pub(crate) async fn the_program_of_the_shim_cannot_be_written() {
    let world = World::new().await;
    let pod = world.pod().await;
    let shim = world.engine().sandbox(&pod).unwrap().shim_pid.unwrap();
    let answer = fs::File::options().write(true).open(format!("/proc/{shim}/exe"));
    let error = answer.unwrap_err().raw_os_error();
    assert!(error == Some(30) || error == Some(26), "{error:?}");
    let (_, text) = world.script(&pod, "ls -l /proc/self/fd | wc -l; grep Cap /proc/self/status | grep Inh").await;
    assert!(text.contains("CapInh:\t0000000000000000"), "{text}");
}

/// The first process of a shim's shared pid namespace, by the node's number.
fn pause_of(shim: u32) -> u32 {
    let children = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        (field("Name:") == Some("pause") && field("PPid:") == Some(&shim.to_string())).then_some(pid)
    });
    children.last().expect("a first process")
}

pub(crate) async fn process_one_of_a_shared_pid_namespace_gives_nothing_away() {
    let world = World::new().await;
    let map = IdMapping { container: 0, host: 200_000, length: 65_536 };
    let own_users = UserNamespace::Pod { uid_maps: vec![map], gid_maps: vec![map] };
    for (network, ipc, user) in [
        (NetworkNamespace::Pod, IpcNamespace::Pod, UserNamespace::Node),
        (NetworkNamespace::Node, IpcNamespace::Node, UserNamespace::Node),
        (NetworkNamespace::Pod, IpcNamespace::Pod, own_users),
    ] {
        if user != UserNamespace::Node && skipped_without_mapped_layers("process one with users of its own") {
            continue;
        }
        let mut config = world.sandbox();
        config.namespaces = Namespaces { network, ipc, pid: PidNamespace::Pod, user: user.clone() };
        let pod = world.run(config).await;
        let shim = world.engine().sandbox(&pod).unwrap().shim_pid.unwrap();
        let number = pause_of(shim);
        let pause = PathBuf::from(format!("/proc/{number}"));

        // As the node's root sees it, who sees everything.
        let list = |name: &str| fs::read_dir(pause.join(name)).unwrap().map(|one| one.unwrap().file_name()).collect();
        let (root, fds): (Vec<_>, Vec<_>) = (list("root"), list("fd"));
        assert!(root.is_empty() && fds.is_empty(), "{root:?} {fds:?}");
        assert_eq!(fs::read_dir(pause.join("cwd")).unwrap().count(), 0);
        let written = fs::write(pause.join("root/pwned"), "").unwrap_err();
        assert_eq!(written.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{written}");
        assert_eq!(fs::read_to_string(pause.join("mounts")).unwrap().lines().count(), 1);
        let status = fs::read_to_string(pause.join("status")).unwrap();
        let id = if user == UserNamespace::Node { 65_535 } else { 265_535 };
        let (ids, none) = (format!("{id}\t{id}\t{id}\t{id}"), "0000000000000000");
        for expect in [
            format!("Uid:\t{ids}\n"),
            format!("Gid:\t{ids}\n"),
            "Groups:\t \n".to_owned(),
            format!("CapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\nCapBnd:\t{none}\nCapAmb:\t{none}\n"),
            "NoNewPrivs:\t1\nSeccomp:\t2\n".to_owned(),
        ] {
            assert!(status.contains(&expect), "{expect:?} of {status}");
        }
        let same = |kind: &str, other: u32| {
            fs::read_link(pause.join("ns").join(kind)).unwrap()
                == fs::read_link(format!("/proc/{other}/ns/{kind}")).unwrap()
        };
        let node = std::process::id();
        assert!(!same("mnt", node) && !same("cgroup", node) && !same("pid", node));
        assert!(["net", "uts", "ipc"].iter().all(|kind| same(kind, shim)));
        assert_eq!(same("net", node), network == NetworkNamespace::Node);
        assert_eq!(same("user", node), user == UserNamespace::Node);

        // As a container sees it that may trace everybody.
        let security = SecurityContext { add_capabilities: vec!["SYS_PTRACE".into()], ..SecurityContext::default() };
        let script = "for what in root fd; do ls -A /proc/1/$what/ 2>/dev/null; done; \
            echo x 2>/dev/null > /proc/1/root/pwned && echo written; \
            cat /proc/1/root/proc/1/status 2>/dev/null; grep CapEff /proc/1/status; \
            (sleep 0.01 & echo $! > /tmp/orphan); while test -e /proc/$(cat /tmp/orphan); do sleep 0.01; done; echo reaped";
        let id = world.start(&pod, ContainerConfig { security, ..sh(script) }).await;
        let status = world.engine().wait_container(&id).await.unwrap();
        let text = crate::world::texts(&fs::read_to_string(status.log_path.unwrap()).unwrap());
        assert_eq!(text, format!("CapEff:\t{none}\nreaped\n"), "{network:?} {user:?}");

        // It goes with its shim, whatever happens to that.
        let shim = rustix::process::Pid::from_raw(i32::try_from(shim).unwrap()).unwrap();
        rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
        wait_until("its first process is gone", || zombie(number)).await;
    }
}
