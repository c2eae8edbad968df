//! User namespaces, new and joined.

use portreeve_sys::process::Exit;
use serde_json::{Value, json};

use crate::Test;
use crate::mapped_layers::skipped_without_mapped_layers;
use crate::world::World;

pub(crate) const TESTS: &[Test] = &[
    ("root_of_a_user_namespace_is_nobody_on_the_host", root_of_a_user_namespace_is_nobody_on_the_host),
    ("a_joined_user_namespace_owns_the_new_namespaces", a_joined_user_namespace_owns_the_new_namespaces),
    ("exec_enters_the_user_namespace", exec_enters_the_user_namespace),
    ("a_bind_mount_can_have_its_ids_mapped", a_bind_mount_can_have_its_ids_mapped),
    ("many_layers_are_mounted_with_the_ids_of_the_container", many_layers_are_mounted_with_the_ids_of_the_container),
    ("a_shared_pid_namespace_is_joined_by_path", a_shared_pid_namespace_is_joined_by_path),
    ("joined_network_ipc_and_uts_namespaces_are_shared", joined_network_ipc_and_uts_namespaces_are_shared),
];

fn namespaces(user: Value) -> Value {
    let maps = json!([{"containerID": 0, "hostID": 300_000, "size": 65536}]);
    json!({"linux": {"uidMappings": maps, "gidMappings": maps, "namespaces":
        [user, {"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "ipc"}, {"type": "cgroup"}]}})
}

fn root_of_a_user_namespace_is_nobody_on_the_host() {
    if skipped_without_mapped_layers("root_of_a_user_namespace_is_nobody_on_the_host") {
        return;
    }
    let world = World::shell("id -u; stat -c %u /bin/busybox /etc; cat /proc/self/uid_map; echo x > /etc/new && stat -c %u /etc/new; echo y > /dev/null && echo null; cat /sys/kernel/uevent_seqnum >/dev/null; echo up; sleep 100")
        .with(namespaces(json!({"type": "user"})));
    let live = world.start();
    live.wait_for("up");
    let words: Vec<String> = live.output().split_whitespace().map(str::to_owned).collect();
    assert_eq!(words, ["0", "0", "0", "0", "300000", "65536", "0", "null", "up"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", live.pid)).expect("status");
    assert!(status.contains("Uid:\t300000\t300000\t300000\t300000"), "{status}");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(world.path("upper/etc/new")).expect("stat").uid(), 300_000);
}

fn a_joined_user_namespace_owns_the_new_namespaces() {
    if skipped_without_mapped_layers("a_joined_user_namespace_owns_the_new_namespaces") {
        return;
    }
    // A first container makes the namespace, a second joins it: as the shim of a pod holds it for its containers.
    let first = World::shell("echo up; sleep 100").with(namespaces(json!({"type": "user"})));
    let holder = first.start();
    holder.wait_for("up");
    let path = format!("/proc/{}/ns/user", holder.pid);
    let second = World::shell("id -u; readlink /proc/self/ns/user; hostname changed && hostname")
        .with(namespaces(json!({"type": "user", "path": path})));
    let outcome = second
        .with(json!({"process": {"capabilities": {
        "bounding": ["CAP_SYS_ADMIN"], "effective": ["CAP_SYS_ADMIN"], "permitted": ["CAP_SYS_ADMIN"]}}}))
        .run();
    let link = std::fs::read_link(&path).expect("link");
    assert_eq!(outcome.out, format!("0\n{}\nchanged\n", link.display()), "{outcome:?}");
}

fn exec_enters_the_user_namespace() {
    if skipped_without_mapped_layers("exec_enters_the_user_namespace") {
        return;
    }
    let world = World::shell("echo up; sleep 100").with(namespaces(json!({"type": "user"})));
    let live = world.start();
    live.wait_for("up");
    let outcome = live.exec("id -u; readlink /proc/self/ns/user; cat /proc/self/cgroup | cut -d: -f3 | sort -u");
    let link = std::fs::read_link(format!("/proc/{}/ns/user", live.pid)).expect("link");
    assert_eq!((outcome.exit, outcome.out), (Exit::Code(0), format!("0\n{}\n/\n", link.display())));
}

fn a_bind_mount_can_have_its_ids_mapped() {
    if skipped_without_mapped_layers("a_bind_mount_can_have_its_ids_mapped") {
        return;
    }
    let world = World::shell("stat -c %u /volume /volume/file; echo new > /volume/new")
        .with(namespaces(json!({"type": "user"})));
    let volume = world.path("volume");
    std::fs::create_dir(&volume).expect("mkdir");
    std::fs::write(volume.join("file"), "").expect("write");
    let world =
        world.mount(json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind", "idmap"]}));
    let outcome = world.run();
    assert_eq!(outcome.out, "0\n0\n", "{outcome:?}");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        std::fs::metadata(volume.join("new")).expect("stat").uid(),
        0,
        "root of the container is root of the volume"
    );
}

fn many_layers_are_mounted_with_the_ids_of_the_container() {
    if skipped_without_mapped_layers("many_layers_are_mounted_with_the_ids_of_the_container") {
        return;
    }
    for own_users in [true, false] {
        let mut world =
            World::shell("stat -c %u /model /model/*; cat /model/file; touch /model/x 2>/dev/null || echo ro");
        if own_users {
            world = world.with(namespaces(json!({"type": "user"})));
        }
        // Together longer than one option of a file system may be.
        let layers: Vec<_> = (0..6).map(|layer| world.path(&format!("{layer}-{}", "long".repeat(20)))).collect();
        for (number, layer) in layers.iter().enumerate() {
            std::fs::create_dir(layer).expect("mkdir");
            std::fs::write(layer.join("file"), format!("{number}\n")).expect("write");
        }
        let lower = layers.iter().map(|layer| layer.display().to_string()).collect::<Vec<_>>().join(":");
        let world = world.mount(json!({"destination": "/model", "type": "overlay", "source": "overlay",
            "options": ["ro", "nosuid", "nodev", "idmap", format!("lowerdir={lower}")]}));
        let outcome = world.run();
        assert_eq!(outcome.out, "0\n0\n0\nro\n", "{outcome:?}");
    }
}

fn a_shared_pid_namespace_is_joined_by_path() {
    let first = World::shell("echo up; sleep 100");
    let holder = first.start();
    holder.wait_for("up");
    let second = World::shell("readlink /proc/self/ns/pid; head -c 2 /proc/1/cmdline; echo; test $$ != 1 && echo other").with(json!({"linux": {"namespaces": [
        {"type": "pid", "path": format!("/proc/{}/ns/pid", holder.pid)}, {"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "ipc"}, {"type": "cgroup"}]}}));
    let outcome = second.run();
    let link = std::fs::read_link(format!("/proc/{}/ns/pid", holder.pid)).expect("link");
    assert_eq!((outcome.exit, outcome.out), (Exit::Code(0), format!("{}\nsl\nother\n", link.display())));
}

fn joined_network_ipc_and_uts_namespaces_are_shared() {
    let first = World::shell("echo up; sleep 100");
    let holder = first.start();
    holder.wait_for("up");
    let path = |name: &str| format!("/proc/{}/ns/{name}", holder.pid);
    let second = World::shell("for n in net ipc uts; do readlink /proc/self/ns/$n; done").with(json!({"hostname": Value::Null, "linux": {"namespaces": [
        {"type": "network", "path": path("net")}, {"type": "ipc", "path": path("ipc")}, {"type": "uts", "path": path("uts")}, {"type": "pid"}, {"type": "mount"}]}}));
    let outcome = second.run();
    let expected: String = ["net", "ipc", "uts"]
        .iter()
        .map(|name| format!("{}\n", std::fs::read_link(path(name)).expect("link").display()))
        .collect();
    assert_eq!(outcome.out, expected);
}
