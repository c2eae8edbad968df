//! Labels of pods, on a node that has SELinux by its files alone: what the kernel makes of them is not shown here.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use portreeve_engine::{ContainerConfig, Mount, MountSource, Owner, Propagation, SandboxConfig, SandboxId, chain};
use serde_json::Value;

use crate::world::{World, sh};

const NAME: &str = "security.selinux";

/// A world whose node is labelled, as far as files say so.
async fn labelled() -> World {
    let mut world = World::new().await;
    let node = world.path("node");
    for (path, text) in [
        ("sys/fs/selinux/enforce", "1"),
        ("proc/self/attr/current", "system_u:system_r:unconfined_service_t:s0"),
        ("etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=targeted\n"),
        (
            "etc/selinux/targeted/contexts/lxc_contexts",
            "process = \"system_u:system_r:container_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n",
        ),
    ] {
        fs::create_dir_all(node.join(path).parent().unwrap()).unwrap();
        fs::write(node.join(path), text).unwrap();
    }
    world.close().await;
    world.set(|config| config.selinux_root = node);
    world.open().await;
    world
}

fn pod(world: &World) -> SandboxConfig {
    SandboxConfig { owner: Owner::Cri, ..world.sandbox() }
}

/// The labels in a sandbox's record.
fn labels(world: &World, sandbox: &SandboxId) -> (String, String) {
    let record = fs::read(world.path(&format!("run/sandboxes/{sandbox}/sandbox.json"))).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let text = |key: &str| record["selinux"][key].as_str().unwrap_or_default().to_owned();
    (text("process"), text("files"))
}

pub(crate) async fn a_pod_keeps_its_level_and_no_other_pod_has_it() {
    let mut world = labelled().await;
    let (first, second) = (world.run(pod(&world)).await, world.run(pod(&world)).await);
    let before = [&first, &second].map(|sandbox| labels(&world, sandbox));
    for (process, files) in &before {
        let level = process.strip_prefix("system_u:system_r:container_t:").unwrap();
        assert!(level.starts_with("s0:c") && level.contains(",c"), "{level}");
        assert_eq!(files, &format!("system_u:object_r:container_file_t:{level}"));
    }
    world.close().await;
    world.open().await;
    world.engine().stop_sandbox(&first).await.unwrap();
    let third = world.run(pod(&world)).await;
    let all = [&first, &second, &third].map(|sandbox| labels(&world, sandbox));
    assert_eq!(all[..2], before);
    assert_eq!(BTreeSet::from(all).len(), 3);
    // One of the node's own has none.
    let own = world.pod().await;
    assert_eq!(labels(&world, &own), Default::default());
    for sandbox in [first, second, third, own] {
        world.engine().remove_sandbox(&sandbox).await.unwrap();
    }
}

pub(crate) async fn a_volume_has_the_label_of_its_pod_when_that_is_asked_for() {
    let world = labelled().await;
    let of = |path: &Path| {
        let mut buffer = [0; 256];
        let length = rustix::fs::lgetxattr(path, NAME, &mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).trim_end_matches('\0').to_owned())
    };
    if Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!(
            "SKIPPED a_volume_has_the_label_of_its_pod_when_that_is_asked_for: this kernel has a policy of its own"
        );
        return;
    }
    let [asked, plain] = ["asked", "plain"].map(|name| world.path(name));
    for volume in [&asked, &plain] {
        fs::create_dir(volume).unwrap();
        fs::write(volume.join("file"), "").unwrap();
    }
    let mount = |source: &Path, relabel| Mount {
        container_path: source.to_owned(),
        source: MountSource::HostPath(source.to_owned()),
        readonly: false,
        recursive_readonly: false,
        propagation: Propagation::Private,
        options: Vec::new(),
        ids: None,
        relabel,
    };
    let sandbox = world.run(pod(&world)).await;
    let create = async |mounts| {
        let config = ContainerConfig { mounts, ..sh("true") };
        chain(&world.engine().create_container(&sandbox, config).await.unwrap_err())
    };
    // The kernel has none of it, which is how it is seen that the runtime was told.
    let words = create(vec![mount(&asked, true), mount(&plain, false)]).await;
    assert!(words.contains("SELinux has to be enabled"), "{words}");
    let files = labels(&world, &sandbox).1;
    assert_eq!((of(&asked), of(&asked.join("file"))), (Some(files.clone()), Some(files.clone())));
    assert_eq!((of(&plain), of(&plain.join("file"))), (None, None));
    // What the engine made for the container.
    for own in ["hostname", "resolv.conf", "hosts"] {
        assert_eq!(of(&world.path(&format!("root/sandboxes/{sandbox}/{own}"))).as_ref(), Some(&files), "{own}");
    }
    assert_eq!(of(&world.path(&format!("run/sandboxes/{sandbox}/shm"))), Some(files));
    let words = create(vec![mount(Path::new("/etc"), true)]).await;
    assert!(words.contains("/etc belongs to the machine and is not relabelled"), "{words}");
    world.engine().remove_sandbox(&sandbox).await.unwrap();
}
