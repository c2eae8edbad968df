//! Terminals.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use portreeve_oci::{ContainerRef, Stdio, WindowSize};
use portreeve_sys::process::{Exit, wait};
use portreeve_sys::terminal;
use serde_json::json;

use crate::Test;
use crate::world::{World, chain};

pub(crate) const TESTS: &[Test] = &[
    ("a_terminal_is_the_containers_own_and_has_its_size", a_terminal_is_the_containers_own_and_has_its_size),
    ("exec_with_a_terminal_talks_both_ways", exec_with_a_terminal_talks_both_ways),
    ("a_dev_console_that_is_a_link_does_not_reach_the_host", a_dev_console_that_is_a_link_does_not_reach_the_host),
    (
        "cve_2025_52565_a_console_comes_from_a_devpts_and_does_not_go_into_a_procfs",
        cve_2025_52565_a_console_comes_from_a_devpts_and_does_not_go_into_a_procfs,
    ),
];

fn read_all(master: std::os::fd::OwnedFd) -> String {
    let mut bytes = Vec::new();
    // The other side's end is EIO on a terminal.
    let _ = std::fs::File::from(master).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).replace('\r', "")
}

fn a_terminal_is_the_containers_own_and_has_its_size() {
    let world =
        World::shell("tty; stty size; test -c /dev/console && echo console; stat -c %u $(tty); echo hello > /dev/tty")
            .with(json!({"process": {"terminal": true, "user": {"uid": 1000, "gid": 1000}}}));
    let spec = world.typed();
    let stdio = Stdio::Terminal { size: Some(WindowSize { rows: 41, columns: 123 }) };
    let (running, starter) = world.create(&spec, stdio).expect("create").split();
    let master = running.terminal.expect("master");
    assert_eq!(terminal::size_of(master.as_fd()).expect("size"), (41, 123));
    starter.start().expect("start");
    let text = read_all(master);
    assert_eq!(wait(running.pidfd.as_fd()).expect("wait"), Exit::Code(0), "{text}");
    assert_eq!(text, "/dev/pts/0\n41 123\nconsole\n1000\nhello\n");
}

fn exec_with_a_terminal_talks_both_ways() {
    let world = World::shell("echo up; sleep 100");
    let live = world.start();
    live.wait_for("up");
    let mut process = serde_json::to_value(live.spec.process()).expect("process");
    let script = json!(["sh", "-c", "read line; echo got $line; exit 4"]);
    process.as_object_mut().expect("object").insert("args".into(), script);
    let process = serde_json::from_value(process).expect("process");
    let container = ContainerRef { pidfd: live.pidfd.as_fd(), spec: &live.spec, cgroup: Some(&world.cgroup) };
    let execed = portreeve_oci::exec(portreeve_oci::Exec::new(container, &process, Stdio::Terminal { size: None }))
        .expect("exec");
    let master = execed.terminal.expect("master");
    std::fs::File::from(master.try_clone().expect("clone")).write_all(b"words\n").expect("write");
    let text = read_all(master);
    assert!(text.contains("got words"), "{text}");
    assert_eq!(wait(execed.pidfd.as_fd()).expect("wait"), Exit::Code(4));
}

fn a_dev_console_that_is_a_link_does_not_reach_the_host() {
    let world = World::shell("ls -l /dev/console").with(json!({"process": {"terminal": true}}));
    let host = world.path("host-console");
    std::fs::write(&host, "untouched").expect("write");
    // Only without a tmpfs over /dev does the image's own /dev count.
    let mut world = world;
    let mounts = world.spec.get_mut("mounts").and_then(serde_json::Value::as_array_mut).expect("mounts");
    mounts.retain(|mount| mount.get("destination").is_none_or(|to| to != "/dev"));
    std::fs::create_dir_all(world.layer().join("dev")).expect("mkdir");
    std::os::unix::fs::symlink(format!("../../../../../..{}", host.display()), world.layer().join("dev/console"))
        .expect("symlink");
    let spec = world.typed();
    let created = world.create(&spec, Stdio::Terminal { size: None });
    if let Ok(created) = created {
        let _ = created.start();
    }
    assert_eq!(std::fs::read_to_string(&host).expect("read"), "untouched");
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").contains("host-console"));
}

/// What the kernel says when a terminal cannot be made in a world without mounts of the configuration below /dev, but
/// those of `kept`.
fn without_terminal(prepare: impl FnOnce(&std::path::Path), kept: &[&str]) -> String {
    let mut world = World::shell("true").with(json!({"process": {"terminal": true}}));
    let mounts = world.spec.get_mut("mounts").and_then(serde_json::Value::as_array_mut).expect("mounts");
    mounts.retain(|mount| {
        let to = mount.get("destination").and_then(serde_json::Value::as_str).expect("a destination");
        !to.starts_with("/dev") || kept.contains(&to)
    });
    let dev = world.layer().join("dev");
    std::fs::create_dir_all(dev.join("pts")).expect("mkdir");
    prepare(&dev);
    let error = world.create(&world.typed(), Stdio::Terminal { size: None }).expect_err("refused");
    chain(&error)
}

fn cve_2025_52565_a_console_comes_from_a_devpts_and_does_not_go_into_a_procfs() {
    let words = without_terminal(|dev| std::fs::write(dev.join("pts/ptmx"), "").expect("write"), &[]);
    assert!(words.contains("it is not on a devpts"), "{words}");
    let link = |name: &str, target: &str| {
        let (name, target) = (name.to_owned(), target.to_owned());
        move |dev: &std::path::Path| std::os::unix::fs::symlink(target, dev.join(name)).expect("symlink")
    };
    let words = without_terminal(link("pts/ptmx", "/dev/zero"), &[]);
    assert!(words.contains("opening the terminal multiplexer"), "{words}");
    let words = without_terminal(link("console", "/proc/sys/kernel/core_pattern"), &["/dev/pts"]);
    assert!(words.contains("/dev/console") && words.contains("it is part of a procfs"), "{words}");
}
