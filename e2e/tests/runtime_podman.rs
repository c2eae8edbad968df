//! `podman --runtime`: each flag's effect as the container sees it is the one that it has with crun and runc. Where the
//! three differ, `runtime/oci/README.md` says why.

use portreeve_e2e::measure::installed;
use portreeve_e2e::{Podman, podman_sees, skipped};
use serde_json::{Value, json};

#[test]
fn a_container_without_flags_is_the_same() {
    let seen = podman_sees("a_container_without_flags_is_the_same", |podman, facts| {
        facts.report("run", &podman.report(&[]));
        let flags =
            ["--hostname", "named", "--env", "A=b c", "--entrypoint", "[\"/prober\"]", "--personality", "LINUX32"];
        facts.report("with names", &podman.run(&flags, &["report"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("run: pid"), "1");
    assert_eq!(seen.value("run: namespaces/pid"), "own");
    assert_eq!(seen.value("run: seccomp/mode"), "2");
    assert_eq!(seen.value("with names: env/A"), "b c");
    assert_eq!(seen.value("left behind"), "");
}

#[test]
fn codes_of_ends_and_of_refusals_are_the_same() {
    let seen = podman_sees("codes_of_ends_and_of_refusals_are_the_same", |podman, facts| {
        facts.answer("ends by itself", &podman.run(&[], &["/prober", "exit", "7"]));
        facts.answer("a signal to a child", &podman.run(&[], &["sh", "-c", "/prober signal 15; exit $?"]));
        facts.answer("a signal to itself", &podman.run(&["--init"], &["/prober", "signal", "15"]));
        facts.answer("no such program", &podman.run(&[], &["nowhere"]));
        facts.answer("no such path", &podman.run(&[], &["/bin/nowhere"]));
        facts.answer("not a program", &podman.run(&[], &["/etc/passwd"]));
        facts.answer("a directory", &podman.run(&[], &["/etc"]));
        facts.answer("no such directory", &podman.run(&["--workdir", "/nowhere"], &["true"]));
        facts.answer("no such user", &podman.run(&["--user", "nobody-here"], &["true"]));
        facts.answer("no such device", &podman.run(&["--device", "/dev/nowhere"], &["true"]));
        facts.answer("no such sysctl", &podman.run(&["--sysctl", "net.nowhere=1"], &["true"]));
        facts.answer("a volume over a file", &podman.run(&["--volume", "/bin:/etc/passwd"], &["true"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("ends by itself: code"), "7");
    assert_eq!(seen.value("a signal to a child: code"), "143");
    assert_eq!(seen.value("no such program: code"), "127");
    assert_eq!(seen.value("not a program: code"), "126");
}

#[test]
fn a_read_only_root_is_the_same() {
    let seen = podman_sees("a_read_only_root_is_the_same", |podman, facts| {
        facts.report("run", &podman.report(&["--read-only"]));
        let operations = ["create /x a", "create /tmp/x a", "create /run/x a", "create /dev/shm/x a", "mkdir /dev/x"];
        facts.answer("tried", &podman.tried(&["--read-only"], &operations));
        let flags = ["--read-only", "--read-only-tmpfs=false"];
        facts.answer("tried without", &podman.tried(&flags, &operations));
    });
    let Some(seen) = seen else { return };
    assert!(seen.value("tried: output").contains("EROFS"), "{}", seen.value("tried: output"));
}

#[test]
fn capabilities_are_the_same() {
    let seen = podman_sees("capabilities_are_the_same", |podman, facts| {
        facts.report("more and less", &podman.report(&["--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN"]));
        facts.report("none", &podman.report(&["--cap-drop", "ALL"]));
        facts.report("one alone", &podman.report(&["--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE"]));
        let flags = ["--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE", "--user", "1000"];
        facts.report("of a user", &podman.report(&flags));
        facts.report("without new privileges", &podman.report(&["--security-opt", "no-new-privileges"]));
        let operations = ["chown /tmp 1 1", "bind 80", "sethostname x", "unshare mount"];
        facts.answer("tried", &podman.tried(&["--cap-drop", "ALL"], &operations));
    });
    let Some(seen) = seen else { return };
    assert!(seen.value("more and less: capabilities/effective").contains("CAP_NET_ADMIN"));
    assert_eq!(seen.value("none: capabilities/bounding"), "[]");
    assert_eq!(seen.value("of a user: capabilities/ambient"), "[\"CAP_NET_BIND_SERVICE\"]");
    assert_eq!(seen.value("without new privileges: no_new_privileges"), "true");
}

#[test]
fn users_and_groups_are_the_same() {
    let seen = podman_sees("users_and_groups_are_the_same", |podman, facts| {
        facts.report("a name", &podman.report(&["--user", "worker"]));
        facts.report("numbers", &podman.report(&["--user", "1234:2345"]));
        facts.report("groups", &podman.report(&["--user", "worker", "--group-add", "4000", "--group-add", "extra"]));
        facts.report("a mask", &podman.report(&["--umask", "0077", "--workdir", "/tmp"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("a name: ids/uid"), "[1000,1000,1000,1000]");
    assert_eq!(seen.value("numbers: ids/gid"), "[2345,2345,2345,2345]");
    assert!(seen.value("groups: ids/groups").contains("4000"));
    assert_eq!(seen.value("a mask: umask"), "0077");
}

#[test]
fn a_user_namespace_is_the_same() {
    let seen = podman_sees("a_user_namespace_is_the_same", |podman, facts| {
        let maps = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
        facts.report("run", &podman.report(&maps));
        facts.report("a user", &podman.report(&[&maps[..], &["--user", "worker"]].concat()));
        facts.answer("tried", &podman.tried(&maps, &["create /x a", "read /etc/group", "chown /tmp 5 5"]));
        let line = "/bin/busybox stat -c '%u %g %a' / /etc/passwd /tmp";
        facts.answer("owners", &podman.run(&maps, &["sh", "-c", line]));
        podman.start_waiting("waits", &maps);
        facts.report("exec", &podman.exec("waits", &[], &["/prober", "report"]));
        facts.report("another's", &podman.report(&["--userns=container:waits"]));
        facts.answer("removal", &podman.remove("waits"));
        for flag in ["--pid=host", "--network=host", "--cgroupns=host"] {
            facts.report(&format!("with {flag}"), &podman.report(&[&maps[..], &[flag]].concat()));
        }
        facts.report("found by podman", &podman.report(&["--userns=auto:size=3000"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("run: id_maps/uid"), "[[0,100000,65536]]");
    assert_eq!(seen.value("run: namespaces/user"), "own");
    assert_eq!(seen.value("another's: id_maps/uid"), "[[0,100000,65536]]");
    assert_eq!(seen.value("found by podman: id_maps/uid"), "[[0,500000,3000]]");
}

#[test]
fn devices_and_their_rules_are_the_same() {
    let seen = podman_sees("devices_and_their_rules_are_the_same", |podman, facts| {
        // No driver has this number: what may be opened is not there, and the rest is forbidden.
        let enclosure = podman.enclosure();
        let node = enclosure.path("node").to_string_lossy().into_owned();
        enclosure.call(&["sh", "-c", &format!("[ -e {node} ] || mknod -m 666 {node} c 10 1000")]).ok();
        let operations = ["open /dev/mine r", "open /dev/mine w", "open /dev/mine rw", "stat /dev/mine"];
        for access in ["r", "rw", "rwm"] {
            let device = format!("{node}:/dev/mine:{access}");
            let attempts = podman.tried(&["--device", &device], &operations[..3]);
            facts.answer(&format!("access {access}"), &attempts);
        }
        facts.report("run", &podman.report(&["--device", &format!("{node}:/dev/mine")]));
        let operations = ["mknod /dev/other c 10 1000", "open /dev/other r", "mknod /dev/else c 10 1001"];
        facts.answer("no rule", &podman.tried(&["--cap-add", "MKNOD"], &operations));
        let flags = ["--cap-add", "MKNOD", "--device-cgroup-rule", "c 10:1000 rwm"];
        facts.answer("a rule", &podman.tried(&flags, &operations));
    });
    let Some(seen) = seen else { return };
    assert!(seen.value("access r: output").contains("EPERM"), "{}", seen.value("access r: output"));
    assert!(!seen.value("access rw: output").contains("EPERM"), "{}", seen.value("access rw: output"));
    assert_eq!(seen.value("run: devices/mine/minor"), "1000");
}

#[test]
fn temporary_file_systems_and_volumes_are_the_same() {
    let seen = podman_sees("temporary_file_systems_and_volumes_are_the_same", |podman, facts| {
        facts.report("tmpfs", &podman.report(&["--tmpfs", "/mnt:rw,size=1m,mode=1777,noexec,nosuid"]));
        facts.answer("copied up", &podman.tried(&["--tmpfs", "/etc"], &["list /etc", "create /etc/x a"]));
        let folder = podman.enclosure().path("volume");
        std::fs::create_dir_all(folder.join("below")).expect("a volume");
        std::fs::write(folder.join("file"), "of the host\n").expect("a file of the volume");
        let folder = folder.to_string_lossy();
        for options in ["rw", "ro", "rslave", "rshared", "noexec,nosuid,nodev", "O", "idmap"] {
            let volume = format!("{folder}:/vol:{options}");
            facts.report(&format!("volume {options}"), &podman.report(&["--volume", &volume]));
            if ["rw", "ro", "O"].contains(&options) {
                let operations = ["read /vol/file", "writable /vol", "unlink /vol/no"];
                let attempts = podman.tried(&["--volume", &volume], &operations);
                facts.answer(&format!("tried in volume {options}"), &attempts);
            }
        }
        facts.report("a named volume", &podman.report(&["--volume", "named:/etc"]));
        facts.answer("removal of the volume", &podman.call(&["volume", "rm", "--force", "named"]));
        facts.report("a file", &podman.report(&["--volume", &format!("{folder}/file:/mnt/deep/file:ro")]));
    });
    let Some(seen) = seen else { return };
    let mount = seen.value("tmpfs: mounts /mnt");
    assert!(mount.contains("noexec") && mount.contains("size=1024k"), "{mount}");
    let mount = seen.value("volume ro: mounts /vol");
    assert!(mount.contains("relatime,ro "), "{mount}");
    assert!(seen.value("tried in volume rw: output").contains("of the host"));
}

#[test]
fn roots_and_mounts_of_other_kinds_are_the_same() {
    let seen = podman_sees("roots_and_mounts_of_other_kinds_are_the_same", |podman, facts| {
        let root = podman.enclosure().path("bundle/rootfs");
        let root = root.to_string_lossy();
        facts.report("a folder", &podman.run_rootfs(&root, &[], &["/prober", "report"]));
        facts.report("a folder below", &podman.run_rootfs(&format!("{root}:O"), &[], &["/prober", "report"]));
        let mounts = [
            "type=tmpfs,destination=/mnt/t,tmpfs-size=64k,tmpfs-mode=750,notmpcopyup",
            "type=ramfs,destination=/mnt/r",
            "type=devpts,destination=/mnt/p",
            &format!("type=image,source={},destination=/mnt/i", Podman::IMAGE),
        ];
        let flags: Vec<_> = mounts.iter().flat_map(|mount| ["--mount", mount]).collect();
        facts.report("mounts", &podman.report(&flags));
        facts.report("shared memory", &podman.report(&["--shm-size", "1m"]));
        facts.report("for systemd", &podman.report(&["--systemd=always"]));
        facts.report("no cgroup of its own", &podman.report(&["--cgroups=no-conmon"]));
        let flags = ["run", "--rm", "--network=none", "--cgroups=disabled", Podman::IMAGE, "true"];
        facts.answer("no cgroup", &podman.call(&flags));
    });
    let Some(seen) = seen else { return };
    assert!(seen.value("mounts: mounts /mnt/t").contains("size=64k"), "{}", seen.value("mounts: mounts /mnt/t"));
    assert!(seen.value("shared memory: mounts /dev/shm").contains("size=1024k"));
}

/// What the engine's own hooks are told, and when.
#[test]
fn hooks_of_podman_are_the_same() {
    let seen = podman_sees("hooks_of_podman_are_the_same", |podman, facts| {
        let folder = podman.enclosure().path("hooks");
        std::fs::create_dir_all(&folder).expect("a folder for hooks");
        let stages = ["createRuntime", "prestart", "poststart"];
        let told = |stage: &str| podman.enclosure().path(&format!("told-{stage}"));
        for stage in stages {
            let line = format!("cat > {}", told(stage).display());
            let hook = json!({
                "version": "1.0.0",
                "hook": { "path": "/bin/sh", "args": ["sh", "-c", line] },
                "when": { "always": true },
                "stages": [stage],
            });
            std::fs::write(folder.join(format!("{stage}.json")), hook.to_string()).expect("a hook");
        }
        facts.answer("run", &podman.run_hooked(&folder.to_string_lossy(), &["/prober", "exit", "4"]));
        for stage in stages {
            let text = std::fs::read_to_string(told(stage)).expect("what a hook was told");
            std::fs::remove_file(told(stage)).expect("what a hook was told");
            let state: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            facts.tell(&format!("{stage}: status"), &state["status"]);
            facts.tell(&format!("{stage}: has a process"), state["pid"].as_u64().is_some_and(|pid| pid > 0));
            facts.tell(&format!("{stage}: bundle"), state["bundle"].as_str().unwrap_or_default());
            facts.tell(&format!("{stage}: annotations"), &state["annotations"]);
        }
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("run: code"), "4");
    assert_eq!(seen.value("createRuntime: status"), "\"creating\"");
    assert_eq!(seen.value("poststart: has a process"), "true");
}

#[test]
fn steps_of_a_build_are_the_same() {
    let seen = podman_sees("steps_of_a_build_are_the_same", |podman, facts| {
        let folder = podman.enclosure().path("build");
        std::fs::create_dir_all(&folder).expect("a folder to build in");
        // Buildah's containers have this very cgroup, not one below it.
        let cgroup = format!("{}/build", podman.enclosure().cgroup());
        let build = |line: &str| {
            let text = format!("FROM {}\nUSER worker\nRUN {line}\n", Podman::IMAGE);
            std::fs::write(folder.join("Containerfile"), text).expect("a Containerfile");
            let flags = ["build", "--no-cache", "--network=none", "--isolation=oci", "--cgroup-parent", &cgroup];
            podman.call(&[&flags[..], &[&folder.to_string_lossy()]].concat())
        };
        let mut step = build("/prober report");
        // What buildah makes up for each: the host's name and a folder.
        for (before, after) in [("\"HOSTNAME\":\"", '"'), ("/tmp/buildah", '/')] {
            let made_up = step.stdout.split(before).nth(1).and_then(|rest| rest.split(after).next());
            let made_up = made_up.unwrap_or_else(|| panic!("no {before} in {step:?}")).to_owned();
            step.stdout = step.stdout.replace(&made_up, "made up");
        }
        facts.report("step", &step);
        facts.tell("code", build("exit 9").code);
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("step: ids/uid"), "[1000,1000,1000,1000]");
    assert_eq!(seen.value("code"), "9");
}

#[test]
fn a_small_init_is_the_same() {
    let seen = podman_sees("a_small_init_is_the_same", |podman, facts| {
        facts.report("run", &podman.report(&["--init"]));
        let count = "/bin/busybox grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null | /bin/busybox wc -l";
        let line = format!("(sleep 0.1 &); sleep 1; {count}");
        let line = line.as_str();
        facts.answer("orphans", &podman.run(&["--init"], &["sh", "-c", line]));
        facts.answer("code", &podman.run(&["--init"], &["/prober", "exit", "9"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("orphans: output"), "0");
    assert_eq!(seen.value("code: code"), "9");
}

#[test]
fn shared_namespaces_are_the_same() {
    let seen = podman_sees("shared_namespaces_are_the_same", |podman, facts| {
        for flag in
            ["--pid=host", "--ipc=host", "--network=host", "--uts=host", "--cgroupns=host", "--cgroupns=private"]
        {
            facts.report(flag, &podman.report(&[flag]));
        }
        podman.start_waiting("first", &["--ipc=shareable", "--hostname=first"]);
        let links = ["sh", "-c", "cd /proc/self/ns && for n in *; do echo $n $(readlink $n); done"];
        let of_first = podman.exec("first", &[], &links).ok();
        for kind in ["pid", "ipc", "network", "uts"] {
            let flag = format!("--{kind}=container:first");
            let shared = podman.run(&[&flag], &links);
            let shared = shared.ok();
            let same: Vec<_> = shared.lines().filter(|line| of_first.lines().any(|other| other == *line)).collect();
            let kinds: Vec<_> = same.iter().filter_map(|line| line.split(' ').next()).collect();
            facts.tell(&format!("shared by {kind}"), kinds.join(" "));
        }
        let flags = ["--pid=container:first", "--name", "second"];
        // The first's process, of which there may be a clone just then, and the shell that looks.
        let line = "ps -o args > /tmp/all; /bin/busybox grep trap /tmp/all | /bin/busybox sort -u";
        facts.answer("the other's processes", &podman.run(&flags, &["sh", "-c", line]));
        facts.answer("removal", &podman.remove("first"));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("--pid=host: namespaces/pid"), "outside");
    assert_eq!(seen.value("--network=host: namespaces/net"), "outside");
    assert!(seen.value("the other's processes: output").contains(Podman::TRAPS));
    for (kind, name) in [("pid", "pid"), ("ipc", "ipc"), ("network", "net"), ("uts", "uts")] {
        let shared = seen.value(&format!("shared by {kind}"));
        assert!(shared.split(' ').any(|word| word == name), "{kind}: {shared}");
    }
}

#[test]
fn security_options_are_the_same() {
    let seen = podman_sees("security_options_are_the_same", |podman, facts| {
        let operations = ["unshare user", "mount none /tmp tmpfs 0", "call 246 0 0 0 0", "call 250 0 0"];
        facts.answer("with a filter", &podman.tried(&[], &operations));
        let flags = ["--security-opt", "seccomp=unconfined"];
        facts.answer("without a filter", &podman.tried(&flags, &operations));
        facts.report("unconfined", &podman.report(&flags));
        let flags = ["--security-opt", "mask=/proc/cpuinfo:/etc", "--security-opt", "unmask=/proc/kcore"];
        facts.report("masks", &podman.report(&flags));
        facts.answer("masked", &podman.tried(&flags, &["read /proc/cpuinfo", "list /etc"]));
        facts.report("no masks", &podman.report(&["--security-opt", "unmask=ALL"]));
        let profile = podman.enclosure().path("profile.json");
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"syscalls":[
            {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#;
        std::fs::write(&profile, text).expect("a profile");
        let flags = ["--security-opt", &format!("seccomp={}", profile.display())];
        facts.answer("another filter", &podman.tried(&flags, &["mkdir /tmp/x", "create /tmp/y a"]));
        facts.report("privileged", &podman.report(&["--privileged"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("unconfined: seccomp/mode"), "0");
    assert!(seen.value("another filter: output").contains("ENOSPC"), "{}", seen.value("another filter: output"));
    assert_eq!(seen.value("masks: mounts /proc/cpuinfo"), "the null device");
}

#[test]
fn a_checkpoint_is_refused_and_the_container_goes_on() {
    let test = "a_checkpoint_is_refused_and_the_container_goes_on";
    if installed("criu").is_some() {
        return skipped(test, "criu is installed, and this is about machines without it");
    }
    let seen = podman_sees(test, |podman, facts| {
        podman.start_waiting("waits", &[]);
        facts.answer("checkpoint", &podman.call(&["container", "checkpoint", "waits"]));
        facts.tell("after it", podman.inspect("waits", "{{.State.Status}} {{.State.Checkpointed}}"));
        facts.answer("stop", &podman.call(&["stop", "--time", "20", "waits"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("checkpoint: code"), "125");
    assert_eq!(seen.value("after it"), "running false");
    assert_eq!(seen.value("stop: code"), "0");
}
