//! Mount options, file systems that are like what they cover, and kernel parameters.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use portreeve_oci::plan::MOUNT_OPTIONS;
use portreeve_sys::process::Exit;
use serde_json::{Value, json};

use crate::Test;
use crate::mapped_layers::skipped_without_mapped_layers;
use crate::world::World;

pub(crate) const TESTS: &[Test] = &[
    ("every_mount_option_is_the_kernels", every_mount_option_is_the_kernels),
    ("an_unknown_option_of_a_bind_is_refused", an_unknown_option_of_a_bind_is_refused),
    ("a_tmpfs_has_the_mode_of_the_directory_it_covers", a_tmpfs_has_the_mode_of_the_directory_it_covers),
    ("a_tmpfs_begins_with_what_it_covers_when_asked", a_tmpfs_begins_with_what_it_covers_when_asked),
    (
        "users_of_their_own_see_the_hosts_sys_and_queues_read_only",
        users_of_their_own_see_the_hosts_sys_and_queues_read_only,
    ),
    ("a_mount_label_without_selinux_is_an_error_that_says_so", a_mount_label_without_selinux_is_an_error_that_says_so),
    ("a_root_that_is_a_slave_receives_mounts_of_the_host", a_root_that_is_a_slave_receives_mounts_of_the_host),
    ("kernel_parameters_are_those_of_the_container", kernel_parameters_are_those_of_the_container),
    ("cve_2022_0811_parameters_of_the_host_stay", cve_2022_0811_parameters_of_the_host_stay),
];

/// What a mount of tmpfs with this option has in mountinfo: of the mount, in the optional fields, of the file system.
fn expected(name: &str) -> (&'static str, &'static str, &'static str) {
    let plain = if MOUNT_OPTIONS.contains(&name.trim_start_matches('r')) { name.trim_start_matches('r') } else { name };
    match if matches!(name, "ro" | "rro") { "ro" } else { plain } {
        "ro" => ("ro,relatime", "", "rw"),
        "nosuid" => ("rw,nosuid,relatime", "", "rw"),
        "nodev" => ("rw,nodev,relatime", "", "rw"),
        "noexec" => ("rw,noexec,relatime", "", "rw"),
        "noatime" => ("rw,noatime", "", "rw"),
        "nodiratime" => ("rw,nodiratime,relatime", "", "rw"),
        "nosymfollow" => ("rw,relatime,nosymfollow", "", "rw"),
        "strictatime" | "norelatime" => ("rw", "", "rw"),
        "shared" => ("rw,relatime", "shared:", "rw"),
        "unbindable" => ("rw,relatime", "unbindable", "rw"),
        "sync" => ("rw,relatime", "", "rw,sync"),
        "dirsync" => ("rw,relatime", "", "rw,dirsync"),
        "lazytime" => ("rw,relatime", "", "rw,lazytime"),
        "mand" => ("rw,relatime", "", "rw,mand"),
        _ => ("rw,relatime", "", "rw"),
    }
}

fn every_mount_option_is_the_kernels() {
    // Of binds alone, or of what is mounted already, and tested there.
    let others = ["bind", "rbind", "idmap", "ridmap", "remount"];
    let names: Vec<&str> = MOUNT_OPTIONS.into_iter().filter(|name| !others.contains(name)).collect();
    let mut world = World::shell("cat /proc/self/mountinfo");
    let source = world.path("source");
    std::fs::create_dir(&source).expect("mkdir");
    for name in &names {
        world = world
            .mount(json!({"destination": format!("/m/{name}"), "type": "tmpfs", "source": "m", "options": [name]}));
        if *name != "tmpcopyup" {
            world =
                world.mount(json!({"destination": format!("/b/{name}"), "source": source, "options": ["bind", name]}));
        }
    }
    let outcome = world.run();
    assert_eq!(outcome.exit, Exit::Code(0), "{outcome:?}");
    let line = |point: &str| {
        let mut lines = outcome.out.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        lines.find(|words| words.get(4) == Some(&point)).unwrap_or_else(|| panic!("no mount at {point}"))
    };
    for name in names {
        let (mount, optional, filesystem) = expected(name);
        let words = line(&format!("/m/{name}"));
        assert_eq!(words.get(5), Some(&mount), "{name}: {words:?}");
        assert!(
            words.get(6).is_some_and(|word| word.starts_with(optional) && (*word == "-" || !optional.is_empty())),
            "{name}: {words:?}"
        );
        let of_all = words.last().expect("options of the file system");
        let flags =
            of_all.split(',').filter(|word| matches!(*word, "rw" | "ro" | "sync" | "dirsync" | "lazytime" | "mand"));
        assert_eq!(flags.collect::<Vec<_>>().join(","), filesystem, "{name}: {words:?}");
        if name != "tmpcopyup" {
            let words = line(&format!("/b/{name}"));
            let has = |flag: &str| words.get(5).is_some_and(|flags| flags.split(',').any(|word| word == flag));
            let special = ["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"];
            for flag in mount.split(',').filter(|flag| special.contains(flag)) {
                assert!(has(flag), "{name}: {words:?}");
            }
        }
    }
}

fn an_unknown_option_of_a_bind_is_refused() {
    let world = World::shell("true");
    let source = world.layer();
    let words = world
        .mount(json!({"destination": "/b", "type": "bind", "source": source, "options": ["rbind", "readonly"]}))
        .refusal();
    assert!(words.contains("\"readonly\" is no option"), "{words}");
}

fn a_tmpfs_has_the_mode_of_the_directory_it_covers() {
    let tmpfs =
        |path: &str, options: Value| json!({"destination": path, "type": "tmpfs", "source": "t", "options": options});
    let world = World::shell("stat -c '%a %n' /tmp /srv /new /given; mount | grep -c '^t on'")
        .mount(tmpfs("/tmp", json!([])))
        .mount(tmpfs("/srv", json!(["ro", "nosuid"])))
        .mount(tmpfs("/new", json!([])))
        .mount(tmpfs("/given", json!(["mode=0750"])));
    for (name, mode) in [("tmp", 0o1777), ("srv", 0o711), ("given", 0o700)] {
        let path = world.layer().join(name);
        std::fs::create_dir_all(&path).expect("mkdir");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("chmod");
    }
    assert_eq!(world.run().out, "1777 /tmp\n711 /srv\n1777 /new\n750 /given\n4\n");
}

fn a_tmpfs_begins_with_what_it_covers_when_asked() {
    let script = "cat /var/data/deep/file; stat -c '%a %u' /var/data /var/data/deep/file; readlink /var/data/link; \
        echo changed > /var/data/deep/file && cat /var/data/deep/file; cat /var/fixed/file; echo x > /var/fixed/file || echo fixed";
    let world = World::shell(script)
        .mount(json!({"destination": "/var/data", "type": "tmpfs", "source": "t", "options": ["tmpcopyup"]}))
        .mount(json!({"destination": "/var/fixed", "type": "tmpfs", "source": "t", "options": ["tmpcopyup", "ro"]}));
    let data = world.layer().join("var/data");
    std::fs::create_dir_all(data.join("deep")).expect("mkdir");
    std::fs::create_dir_all(world.layer().join("var/fixed")).expect("mkdir");
    std::fs::write(data.join("deep/file"), "text\n").expect("write");
    std::fs::write(world.layer().join("var/fixed/file"), "text\n").expect("write");
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o750)).expect("chmod");
    std::fs::set_permissions(data.join("deep/file"), PermissionsExt::from_mode(0o604)).expect("chmod");
    std::os::unix::fs::chown(data.join("deep/file"), Some(1000), Some(1000)).expect("chown");
    // It would lead to the host if it were followed here.
    std::os::unix::fs::symlink("/etc/shadow", data.join("link")).expect("symlink");
    let outcome = world.run();
    assert_eq!(outcome.out, "text\n750 0\n604 1000\n/etc/shadow\nchanged\ntext\nfixed\n", "{outcome:?}");
    assert_eq!(std::fs::read_to_string(data.join("deep/file")).expect("read"), "text\n", "the image is as it was");
    assert!(!world.path("upper/var/data/deep").exists(), "nothing was written below the tmpfs");
}

fn users_of_their_own_see_the_hosts_sys_and_queues_read_only() {
    if skipped_without_mapped_layers("users_of_their_own_see_the_hosts_sys_and_queues_read_only") {
        return;
    }
    // Neither a network nor an IPC namespace: nothing that these file systems show belongs to the users.
    let maps = json!([{"containerID": 0, "hostID": 300_000, "size": 65536}]);
    let mut world = World::shell("ls /sys/class >/dev/null && grep -E ' /(sys|dev/mqueue) ' /proc/self/mountinfo | cut -d' ' -f5,6")
        .with(json!({"linux": {"uidMappings": maps, "gidMappings": maps,
            "namespaces": [{"type": "user"}, {"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "cgroup"}]}}));
    let queues = Path::new("/dev/mqueue").is_dir();
    let mounts = world.spec.get_mut("mounts").and_then(Value::as_array_mut).expect("mounts");
    mounts.retain(|mount| queues || mount.get("destination") != Some(&json!("/dev/mqueue")));
    let outcome = world.run();
    let read_only = |point: &str| {
        let wanted = format!("{point} ro,nosuid,nodev,noexec");
        outcome.out.lines().any(|line| line.starts_with(&wanted))
    };
    assert!(read_only("/sys") && (read_only("/dev/mqueue") || !queues), "{outcome:?}");
}

fn a_mount_label_without_selinux_is_an_error_that_says_so() {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("SKIPPED a_mount_label_without_selinux_is_an_error_that_says_so: SELinux is enabled");
        return;
    }
    let label = json!({"linux": {"mountLabel": "system_u:object_r:container_file_t:s0:c1,c2"}});
    let words = World::shell("true").with(label).refusal();
    // Its root, which is made of layers, comes first.
    assert!(words.contains("setting option context of the overlay (SELinux has to be enabled for it) over"), "{words}");
}

/// Argument with which this program runs [`in_a_shared_world`].
pub(crate) const SHARED_WORLD: &str = "in-a-shared-world";

fn a_root_that_is_a_slave_receives_mounts_of_the_host() {
    // A mount namespace of its own, in which mounts travel as on a machine with systemd.
    let world = World::shell("true");
    let program = world.this_program();
    let mut command = Command::new("unshare");
    let outcome = command.args(["--mount", "--propagation", "shared"]).arg(program).arg(SHARED_WORLD).output();
    let outcome = outcome.expect("unshare");
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
}

/// The other half, in the namespace.
pub(crate) fn in_a_shared_world() {
    for (propagation, receives) in [("rslave", true), ("shared", true), ("rprivate", false)] {
        let mut world = World::shell("echo up; sleep 100").with(json!({"linux": {"rootfsPropagation": propagation}}));
        world.plain = true;
        let place = world.layer().join("mnt");
        std::fs::create_dir(&place).expect("mkdir");
        let live = world.start();
        live.wait_for("up");
        rustix::mount::mount("late", &place, "tmpfs", rustix::mount::MountFlags::empty(), None).expect("mount");
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", live.pid)).expect("mountinfo");
        rustix::mount::unmount(&place, rustix::mount::UnmountFlags::empty()).expect("unmount");
        assert_eq!(mounts.lines().any(|line| line.contains(" /mnt ")), receives, "{propagation}: {mounts}");
    }
}

fn host(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/{name}")).expect("parameter").trim().to_owned()
}

fn kernel_parameters_are_those_of_the_container() {
    let before = ["kernel/msgmax", "net/core/somaxconn", "fs/mqueue/msg_max"].map(host);
    let world = World::shell("cat /proc/sys/kernel/msgmax /proc/sys/net/core/somaxconn /proc/sys/fs/mqueue/msg_max; echo $(cat /proc/sys/kernel/domainname)")
        .with(json!({"linux": {"sysctl": {"kernel.msgmax": "65537", "net.core.somaxconn": "77", "fs/mqueue/msg_max": "13",
            "kernel.domainname": "example.org"}}}));
    let outcome = world.run();
    assert_eq!(outcome.out, "65537\n77\n13\nexample.org\n", "{outcome:?}");
    assert_eq!(before, ["kernel/msgmax", "net/core/somaxconn", "fs/mqueue/msg_max"].map(host));
}

fn cve_2022_0811_parameters_of_the_host_stay() {
    let before = host("kernel/core_pattern");
    let refusal =
        |name: &str, value: &str| World::shell("true").with(json!({"linux": {"sysctl": {name: value}}})).refusal();
    for name in
        ["kernel.core_pattern", "kernel/core_pattern", "net/../kernel/core_pattern", "fs.mqueue/../core_pattern"]
    {
        let words = refusal(name, "|/tmp/x");
        assert!(
            words.starts_with(&format!("linux.sysctl[{name}]:")) || words.contains(&format!("linux.sysctl[{name}]:")),
            "{words}"
        );
    }
    // The value of one is not the name of another.
    let words = refusal("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/tmp/x");
    assert!(words.contains("writing the kernel parameter kernel.shm_rmid_forced"), "{words}");
    // The caller's own namespace, by its path, is the host's.
    let ours = json!([{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "cgroup"},
        {"type": "network", "path": "/proc/self/ns/net"}]);
    let world =
        World::shell("true").with(json!({"linux": {"namespaces": ours, "sysctl": {"net.core.somaxconn": "77"}}}));
    let words = world.refusal();
    assert!(words.contains("the namespace to join is the caller's own"), "{words}");
    let world = World::shell("true").with(
        json!({"linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "cgroup"}],
        "sysctl": {"kernel.sem": "1 1 1 1"}}}),
    );
    let words = world.refusal();
    assert!(words.contains("which would be the caller's"), "{words}");
    assert_eq!(host("kernel/core_pattern"), before);
}
