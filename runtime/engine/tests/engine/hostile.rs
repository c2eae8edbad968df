//! What must not be possible.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use portreeve_engine::{ContainerConfig, EngineError, SecurityContext};

use crate::world::{World, sh};

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
    assert_eq!(fs::read_dir(world.engine().sandbox(&pod).unwrap().directory.join("containers")).unwrap().count(), 0);
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
    let directory = world.engine().sandbox(&pod).unwrap().directory;
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
