//! Known attacks on runtimes, performed against ours: each must fail.

use std::ffi::CString;
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use portreeve_sys::{exec, self_exe};
use serde_json::json;

use crate::Test;
use crate::world::{World, chain};

pub(crate) const TESTS: &[Test] = &[
    (
        "cve_2024_21626_a_working_directory_in_proc_self_fd_is_refused",
        cve_2024_21626_a_working_directory_in_proc_self_fd_is_refused,
    ),
    ("a_program_has_no_descriptor_but_its_own", a_program_has_no_descriptor_but_its_own),
    ("cve_2019_16884_a_proc_that_is_a_link_is_refused", cve_2019_16884_a_proc_that_is_a_link_is_refused),
    ("cve_2019_19921_a_volume_over_proc_is_refused", cve_2019_19921_a_volume_over_proc_is_refused),
    (
        "cve_2026_41579_a_dev_that_is_a_link_makes_nothing_on_the_host",
        cve_2026_41579_a_dev_that_is_a_link_makes_nothing_on_the_host,
    ),
    (
        "cve_2024_5154_a_mount_target_that_is_a_link_stays_in_the_root",
        cve_2024_5154_a_mount_target_that_is_a_link_stays_in_the_root,
    ),
    (
        "cve_2021_30465_a_target_in_a_volume_that_leads_to_the_host_stays_in_the_root",
        cve_2021_30465_a_target_in_a_volume_that_leads_to_the_host_stays_in_the_root,
    ),
    (
        "cve_2025_31133_masked_paths_are_covered_by_the_real_null_device",
        cve_2025_31133_masked_paths_are_covered_by_the_real_null_device,
    ),
    (
        "cve_2019_5736_a_maker_on_a_read_only_mount_cannot_be_written_by_a_neighbour",
        cve_2019_5736_a_maker_on_a_read_only_mount_cannot_be_written_by_a_neighbour,
    ),
    ("a_root_that_is_a_link_is_refused", a_root_that_is_a_link_is_refused),
    ("cve_2022_0492_the_cgroup_mount_cannot_be_written", cve_2022_0492_the_cgroup_mount_cannot_be_written),
    ("a_device_that_was_not_given_cannot_be_opened", a_device_that_was_not_given_cannot_be_opened),
    (
        "a_read_only_root_and_a_recursively_read_only_volume_cannot_be_written",
        a_read_only_root_and_a_recursively_read_only_volume_cannot_be_written,
    ),
    ("nothing_mounted_in_a_container_reaches_the_host", nothing_mounted_in_a_container_reaches_the_host),
    ("the_session_keyring_is_not_the_callers", the_session_keyring_is_not_the_callers),
];

fn cve_2024_21626_a_working_directory_in_proc_self_fd_is_refused() {
    // A descriptor of the host that was not meant for anyone: no close-on-exec.
    let leak = std::fs::File::open("/").expect("open");
    for number in 3..40 {
        let words = World::shell("pwd").with(json!({"process": {"cwd": format!("/proc/self/fd/{number}")}})).refusal();
        assert!(words.contains("working directory"), "{words}");
    }
    let world = World::shell("echo up; sleep 100");
    symlink("/proc/self/fd/7/../..", world.layer().join("work/out")).expect("symlink");
    let live = world.start();
    live.wait_for("up");
    for place in ["/proc/self/fd/7", "/proc/self/fd/10", "/proc/1/cwd", "/work/out"] {
        let error = live.try_exec(json!({"args": ["pwd"], "cwd": place})).expect_err("refused");
        assert!(chain(&error).contains("working directory"), "{place}: {}", chain(&error));
    }
    drop(leak);
}

fn a_program_has_no_descriptor_but_its_own() {
    let leak = std::fs::File::open("/etc").expect("open");
    portreeve_sys::process::place_fd(&leak, 91).expect("a descriptor without close-on-exec");
    let world = World::shell("ls /proc/1/fd | tr '\\n' ' '; echo up; sleep 100");
    let live = world.start();
    live.wait_for("up");
    assert!(live.output().starts_with("0 1 2 "), "{}", live.output());
    assert!(!live.output().contains("91"));
    let inner = live.exec("exec ls -l /proc/self/fd").out;
    assert!(!inner.contains("/etc") && !inner.contains("socket"), "{inner}");
    drop(portreeve_sys::fd::take(91).expect("close it again"));
}

fn cve_2019_16884_a_proc_that_is_a_link_is_refused() {
    let world = World::shell("true");
    std::fs::create_dir_all(world.layer().join("fake")).expect("mkdir");
    symlink("fake", world.layer().join("proc")).expect("symlink");
    let words = world.refusal();
    assert!(words.contains("must be no link") && words.contains("/proc"), "{words}");
}

fn cve_2019_19921_a_volume_over_proc_is_refused() {
    for destination in ["/proc", "/proc/self/attr", "/proc/../proc/sys", "/work/../proc/1"] {
        let world = World::shell("true");
        let volume = world.path("volume");
        std::fs::create_dir(&volume).expect("mkdir");
        let world =
            world.mount(json!({"destination": destination, "type": "bind", "source": volume, "options": ["rbind"]}));
        let words = world.refusal();
        assert!(
            words.contains("procfs") || words.contains("opening") || words.contains("creating"),
            "{destination}: {words}"
        );
    }
    // Through a link of the image as well.
    let world = World::shell("true");
    symlink("/proc/sys", world.layer().join("innocent")).expect("symlink");
    let volume = world.path("volume");
    std::fs::create_dir(&volume).expect("mkdir");
    let words = world
        .mount(json!({"destination": "/innocent", "type": "bind", "source": volume, "options": ["rbind"]}))
        .refusal();
    assert!(words.contains("procfs"), "{words}");
}

fn cve_2026_41579_a_dev_that_is_a_link_makes_nothing_on_the_host() {
    let world = World::shell("ls /dev/null && ls -d /host-tmp");
    let host = world.path("host");
    std::fs::create_dir(&host).expect("mkdir");
    symlink(&host, world.layer().join("dev")).expect("symlink");
    let _ = world.run();
    assert_eq!(std::fs::read_dir(&host).expect("read").count(), 0, "nothing was made on the host");
}

fn cve_2024_5154_a_mount_target_that_is_a_link_stays_in_the_root() {
    let world = World::shell("cat /etc/mtab; readlink /etc/mtab");
    let host = world.path("host-file");
    let source = world.path("source");
    std::fs::write(&source, "ours\n").expect("write");
    let up = format!("../../../../../../../../..{}", host.display());
    symlink(&up, world.layer().join("etc/mtab")).expect("symlink");
    let world = world.mount(json!({"destination": "/etc/mtab", "type": "bind", "source": source, "options": ["bind"]}));
    let outcome = world.run();
    assert_eq!(outcome.out, format!("ours\n{up}\n"), "{outcome:?}");
    assert!(!host.exists(), "nothing was made on the host");
}

fn cve_2021_30465_a_target_in_a_volume_that_leads_to_the_host_stays_in_the_root() {
    let world =
        World::shell("ls /volume/link/ | tr '\\n' ' '; grep -c secret-mount /proc/self/mountinfo; ls -d /etc/passwd");
    let (volume, second) = (world.path("volume"), world.path("second"));
    std::fs::create_dir(&volume).expect("mkdir");
    std::fs::create_dir(&second).expect("mkdir");
    std::fs::write(second.join("inside"), "").expect("write");
    symlink("/../../../../../../..", volume.join("top")).expect("symlink");
    symlink("top/tmp/prt-attack-target", volume.join("link")).expect("symlink");
    let world = world
        .mount(json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"]}))
        .mount(json!({"destination": "/volume/link", "type": "bind", "source": second, "options": ["rbind"]}));
    let outcome = world.run();
    assert!(outcome.out.starts_with("inside "), "{outcome:?}");
    assert!(!Path::new("/tmp/prt-attack-target").exists(), "made in the container's /tmp, not in the host's");
    assert!(world.path("upper/tmp/prt-attack-target").exists());
}

fn cve_2025_31133_masked_paths_are_covered_by_the_real_null_device() {
    let world = World::shell(
        "stat -c %t:%T /proc/keys /proc/timer_list; cat /proc/keys; echo x > /proc/keys; ls /sys/firmware | wc -l; touch /sys/firmware/x
        chmod 0 /proc/timer_list && echo changed; chown 7 /proc/timer_list && echo given away",
    );
    // The image brings a /dev/null of its own that leads elsewhere.
    std::fs::create_dir_all(world.layer().join("dev")).expect("mkdir");
    symlink("/proc/sys/kernel/core_pattern", world.layer().join("dev/null")).expect("symlink");
    let look =
        || std::fs::metadata("/dev/null").map(|null| (null.permissions().mode(), null.uid())).expect("/dev/null");
    let before = look();
    let outcome = world.run();
    let after = look();
    if after != before {
        // Everybody needs it.
        std::fs::set_permissions("/dev/null", Permissions::from_mode(before.0)).expect("chmod");
        std::os::unix::fs::chown("/dev/null", Some(before.1), None).expect("chown");
    }
    assert_eq!(after, before, "the host's own device");
    assert_eq!(outcome.out, "1:3\n1:3\n0\n", "{outcome:?}");
    assert!(outcome.err.contains("Read-only file system"), "{outcome:?}");
}

/// Word of the command line by which this program becomes a maker that is attacked.
pub(crate) const MAKER: &str = "be-a-maker";

fn cve_2019_5736_a_maker_on_a_read_only_mount_cannot_be_written_by_a_neighbour() {
    // From an ordinary file the attack succeeds; that it does shows that it is one.
    let (said, written) = attack("ordinary");
    assert!(written && said.contains("opened"), "{said}");
    let (said, written) = attack("protected");
    assert!(!written && said.contains("Read-only file system"), "{said}");
}

/// A container that may look at any process of its PID namespace opens the program of a neighbour that waits for its
/// start, which is the maker's, and writes to it when nobody executes it any more. What it said, and whether the program
/// is another one now.
fn attack(how: &str) -> (String, bool) {
    let mut capabilities = crate::world::DEFAULT_CAPABILITIES.to_vec();
    capabilities.push("CAP_SYS_PTRACE");
    let given = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    // A pipe for each word: one could still be open to write when the second is waited for, and end without it.
    let script = "mknod /tmp/tell p; mknod /tmp/end p; echo up; read prey < /tmp/tell; exec 9< /proc/$prey/exe
        echo holding; read over < /tmp/end; (echo overwritten >> /proc/self/fd/9) 2>&1 && echo opened; echo tried";
    let attacker = World::shell(script).with(json!({"process": {"capabilities": given}}));
    let program = attacker.this_program();
    let before = std::fs::read(&program).expect("the program");
    let live = attacker.start();
    live.wait_for("up");
    let mut maker = Command::new(&program)
        .args([MAKER, how, &live.pid.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a maker");
    let mut prey = String::new();
    BufReader::new(maker.stdout.as_mut().expect("a pipe")).read_line(&mut prey).expect("the neighbour's id");
    live.exec(&format!("echo {} > /tmp/tell", prey.trim()));
    live.wait_for("holding");
    drop(maker.stdin.take());
    assert!(maker.wait().expect("its end").success());
    live.exec("echo over > /tmp/end");
    live.wait_for("tried");
    (live.output(), std::fs::read(&program).expect("the program") != before)
}

/// Makes a container in the PID namespace of `neighbour`, says its id there, and ends with it when standard input does.
pub(crate) fn maker(how: &str, neighbour: &str) {
    if how == "protected" && !self_exe::is_out_of_reach().expect("procfs") {
        let mount = self_exe::read_only_executable().expect("a read-only mount");
        let word = |word: String| CString::new(word).expect("no NUL byte");
        let error = exec::fexecve(mount.as_fd(), &std::env::args().map(word).collect::<Vec<_>>(), &[]);
        panic!("executing this program again: {error}");
    }
    let namespaces = json!([{"type": "pid", "path": format!("/proc/{neighbour}/ns/pid")}, {"type": "mount"}]);
    let world = World::shell("true").with(json!({"hostname": null, "linux": {"namespaces": namespaces}}));
    let spec = world.typed();
    let (stdio, ..) = world.streams();
    let waiting = world.create(&spec, stdio).unwrap_or_else(|error| panic!("create: {}", chain(&error)));
    let status = std::fs::read_to_string(format!("/proc/{}/status", waiting.pid.as_raw_nonzero())).expect("status");
    let ids = status.lines().find(|line| line.starts_with("NSpid:")).expect("its ids");
    println!("{}", ids.split_whitespace().last().expect("its id in the container"));
    std::io::stdin().read_to_end(&mut Vec::new()).expect("the end of standard input");
}

fn a_root_that_is_a_link_is_refused() {
    let mut world = World::shell("true");
    world.plain = true;
    let real = world.path("real");
    std::fs::rename(world.layer(), &real).expect("rename");
    symlink(&real, world.layer()).expect("symlink");
    let words = world.refusal();
    assert!(words.contains("root file system"), "{words}");
}

fn cve_2022_0492_the_cgroup_mount_cannot_be_written() {
    let world = World::shell(
        "for f in $(ls -d /sys/fs/cgroup/*); do mkdir $f/x 2>/dev/null && echo made $f; done; mkdir /sys/fs/cgroup/x 2>/dev/null && echo made; ls /sys/fs/cgroup | wc -l",
    );
    let outcome = world.run();
    assert!(!outcome.out.contains("made"), "{outcome:?}");
    assert_ne!(outcome.out.trim(), "0", "and it is there");
}

fn a_device_that_was_not_given_cannot_be_opened() {
    // /dev/mem's number: mknod is allowed, opening it is not.
    let outcome = World::shell("mknod /tmp/mem c 1 1 && echo made; cat /tmp/mem > /dev/null; mknod /tmp/null c 1 3; echo fine > /tmp/null; echo $?").run();
    assert_eq!(outcome.out, "made\n0\n", "{outcome:?}");
    assert!(outcome.err.contains("not permitted"), "{outcome:?}");
}

fn a_read_only_root_and_a_recursively_read_only_volume_cannot_be_written() {
    let world = World::shell("echo x > /etc/new; echo x > /volume/new; echo x > /dev/shm/fine && echo fine")
        .with(json!({"root": {"path": "rootfs", "readonly": true}}));
    let volume = world.path("volume");
    std::fs::create_dir(&volume).expect("mkdir");
    std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    let outcome = world
        .mount(json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind", "rro"]}))
        .run();
    assert_eq!(outcome.out, "fine\n");
    assert_eq!(outcome.err.matches("Read-only file system").count(), 2, "{outcome:?}");
}

fn nothing_mounted_in_a_container_reaches_the_host() {
    let count = || std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").lines().count();
    let before = count();
    let mut capabilities = crate::world::DEFAULT_CAPABILITIES.to_vec();
    capabilities.push("CAP_SYS_ADMIN");
    let world = World::shell("mount -t tmpfs x /tmp && mount -t tmpfs x /volume && echo up; sleep 100").with(
        json!({"process": {"capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}}}),
    );
    let volume = world.path("volume");
    std::fs::create_dir(&volume).expect("mkdir");
    let world = world.mount(json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"]}));
    let live = world.start();
    live.wait_for("up");
    assert_eq!(count(), before);
}

fn the_session_keyring_is_not_the_callers() {
    // /proc/keys is masked by default; here it is read to see whose keyring the program has.
    let world = World::shell("cat /proc/keys").with(json!({"linux": {"maskedPaths": []}}));
    let outcome = world.run();
    if outcome.out.is_empty() && outcome.err.contains("No such file") {
        eprintln!("SKIPPED: this kernel has no keys");
        return;
    }
    assert!(outcome.out.contains("_ses.test"), "{outcome:?}");
}
