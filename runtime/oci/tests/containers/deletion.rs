//! What is left of a container when it goes, or when it was not made after all: nothing of it, and nothing else is gone.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use portreeve_oci::cgroup::{Cgroup, CgroupError};
use portreeve_oci::lifecycle::{LifecycleError, Status};
use portreeve_oci::{Create, CreateError};
use portreeve_sys::clone::{Clone3, clone3};
use portreeve_sys::process::{Exit, has_ended, pidfd_send_signal, wait};
use rustix::fs::FlockOperation;
use serde_json::json;

use crate::Test;
use crate::lifecycle::{Bundle, id};
use crate::limits::v1;
use crate::world::{World, chain};

pub(crate) const TESTS: &[Test] = &[
    ("a_failed_creation_leaves_no_cgroup_and_no_directory", a_failed_creation_leaves_no_cgroup_and_no_directory),
    ("a_cgroup_that_was_there_stays", a_cgroup_that_was_there_stays),
    ("everything_of_a_container_is_signalled_and_deleted", everything_of_a_container_is_signalled_and_deleted),
    (
        "sigkill_is_for_all_where_the_first_process_does_not_take_the_others_with_it",
        sigkill_is_for_all_where_the_first_process_does_not_take_the_others_with_it,
    ),
    ("one_that_is_killed_while_it_is_paused_ends", one_that_is_killed_while_it_is_paused_ends),
    ("one_whose_record_cannot_be_read_is_killed_all_the_same", one_whose_record_cannot_be_read_is_killed_all_the_same),
    ("of_two_makers_of_one_cgroup_one_succeeds", of_two_makers_of_one_cgroup_one_succeeds),
    (
        "a_cgroup_that_another_made_meanwhile_is_not_the_containers",
        a_cgroup_that_another_made_meanwhile_is_not_the_containers,
    ),
    ("a_threaded_cgroup_below_is_no_way_to_stay", a_threaded_cgroup_below_is_no_way_to_stay),
    ("hooks_are_not_told_of_the_end_of_what_was_never_begun", hooks_are_not_told_of_the_end_of_what_was_never_begun),
];

fn a_failed_creation_leaves_no_cgroup_and_no_directory() {
    let missing = json!({"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]});
    let failures = [
        // Before the cgroup, in the maker, in the container's own process.
        json!({"process": {"cwd": "relative"}}),
        json!({"mounts": [missing]}),
        json!({"linux": {"rootfsPropagation": "sideways"}}),
        json!({"linux": {"resources": {"cpu": {"cpus": "1000000"}}}}),
    ];
    for failure in failures {
        let bundle = Bundle::new(World::shell("true").with(failure.clone()));
        let error = bundle.try_create().err().unwrap_or_else(|| panic!("{failure} was created"));
        assert!(matches!(error, LifecycleError::Create(_)), "{failure}: {}", chain(&error));
        bundle.assert_gone();
        let mut world = World::shell("true").with(failure.clone());
        world.plain = true;
        world.refusal();
        assert!(!world.cgroup.exists(), "{failure}");
    }
}

fn a_cgroup_that_was_there_stays() {
    let bundle = Bundle::new(World::shell("true").with(json!({"linux": {"rootfsPropagation": "sideways"}})));
    let cgroup = Cgroup::open_or_create(bundle.world.cgroup.path()).expect("cgroup");
    bundle.try_create().expect_err("a wrong propagation");
    assert!(cgroup.exists());
    bundle.write(
        json!({"root": {"path": "layer"}, "linux": {"cgroupsPath": cgroup.path(), "rootfsPropagation": "private"}}),
    );
    drop(bundle.create());
    bundle.delete();
    assert!(cgroup.exists() && cgroup.processes().expect("processes").is_empty());
    cgroup.remove().expect("remove");
    bundle.assert_gone();
}

fn everything_of_a_container_is_signalled_and_deleted() {
    // Without a PID namespace the children outlive the first process.
    let script = "trap 'echo first; exit 0' USR1; (trap 'echo child; exit 0' USR1; echo up; while :; do sleep 0.01; done) & wait; wait";
    let world = World::shell(script).with(json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "cgroup"}]}}));
    let bundle = Bundle::new(world.with(json!({"hostname": null, "mounts": []})));
    drop(bundle.create());
    bundle.start();
    bundle.wait_for("up");
    bundle.load().kill(10, true).expect("signal all");
    bundle.wait_for("first");
    bundle.wait_for("child");
    bundle.delete();
    bundle.assert_gone();

    // One that was killed from elsewhere leaves its children, which go with it.
    std::fs::remove_file(bundle.out()).expect("remove");
    drop(bundle.create());
    bundle.start();
    bundle.wait_for("up");
    let first = bundle.load().pidfd().expect("pidfd");
    pidfd_send_signal(first.as_fd(), 9).expect("kill");
    assert!(has_ended(first.as_fd(), 10_000).expect("poll"));
    assert_eq!(bundle.status(), Status::Stopped);
    assert!(!bundle.load().processes().expect("processes").is_empty(), "the child lives");
    bundle.load().delete(false).expect("delete");
    bundle.assert_gone();
}

fn sigkill_is_for_all_where_the_first_process_does_not_take_the_others_with_it() {
    let script = "(trap '' TERM; echo up; while :; do sleep 0.01; done) & wait";
    let world = World::shell(script).with(json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "cgroup"}]}}));
    let bundle = Bundle::new(world.with(json!({"hostname": null, "mounts": []})));
    drop(bundle.create());
    bundle.start();
    bundle.wait_for("up");
    // Another signal is for the first one alone.
    bundle.load().kill(0, false).expect("a signal that does nothing");
    assert!(bundle.load().processes().expect("processes").len() > 1);
    bundle.load().kill(9, false).expect("kill");
    bundle.world.cgroup.wait_empty(Duration::from_secs(10)).expect("none is left");
    assert_eq!(bundle.status(), Status::Stopped);
    bundle.load().delete(false).expect("delete");
    bundle.assert_gone();
}

fn one_that_is_killed_while_it_is_paused_ends() {
    // Both orders, and what lies between them.
    for round in 0..60 {
        let bundle = Bundle::shell("echo up; while :; do :; done");
        let created = bundle.create();
        bundle.start();
        bundle.wait_for("up");
        let pause = clone3(&Clone3::default(), || {
            std::thread::sleep(Duration::from_micros(20 * (round % 15)));
            match bundle.load().pause() {
                Ok(()) | Err(LifecycleError::Status { .. }) => 0,
                Err(error) => panic!("pause: {}", chain(&error)),
            }
        });
        bundle.load().kill(9, false).expect("kill");
        assert_eq!(wait(pause.expect("clone").pidfd.as_fd()).expect("wait"), Exit::Code(0), "round {round}");
        assert!(has_ended(created.pidfd.as_fd(), 10_000).expect("poll"), "round {round}");
        wait(created.pidfd.as_fd()).expect("wait");
        bundle.delete();
        bundle.assert_gone();
    }
}

fn one_whose_record_cannot_be_read_is_killed_all_the_same() {
    for content in ["", "{", "{\"version\": 99}"] {
        let bundle = Bundle::shell("echo up; sleep 100");
        let created = bundle.create();
        bundle.start();
        bundle.wait_for("up");
        std::fs::write(bundle.world.path("state/box/state.json"), content).expect("write");
        assert!(bundle.root.load(&bundle.id).is_err(), "{content:?}");
        let warnings = bundle.root.load_to_delete(&bundle.id).expect("load").delete(true).expect("delete");
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(wait(created.pidfd.as_fd()).expect("wait"), Exit::Signal(9));
        bundle.assert_gone();
    }
    // Where nothing says in which cgroup it is, that it may live on is not kept quiet.
    let bundle = Bundle::shell("echo up; sleep 100");
    let created = bundle.create();
    bundle.start();
    for file in ["state.json", "config.json"] {
        std::fs::write(bundle.world.path("state/box").join(file), "{").expect("write");
    }
    let warnings = bundle.root.load_to_delete(&bundle.id).expect("load").delete(true).expect("delete");
    assert!(matches!(warnings.as_slice(), [one] if one.what.contains("may live on")), "{warnings:?}");
    bundle.world.cgroup.kill_all().expect("kill");
    wait(created.pidfd.as_fd()).expect("wait");
}

fn of_two_makers_of_one_cgroup_one_succeeds() {
    for _ in 0..20 {
        let bundle = Bundle::shell("sleep 100");
        // Both have looked, and seen no cgroup, when both are let go.
        let (ours, theirs) = rustix::pipe::pipe().expect("pipe");
        let make = |name: &str| {
            let mut byte = [0];
            rustix::io::read(&ours, &mut byte).expect("read");
            match bundle.root.create(&id(name), bundle.path(), bundle.options()) {
                Ok(_) => 0,
                Err(LifecycleError::Create(CreateError::Cgroup(_)) | LifecycleError::Cgroup(_)) => 1,
                Err(error) => panic!("create: {}", chain(&error)),
            }
        };
        let children = ["box", "other"].map(|name| clone3(&Clone3::default(), || make(name)).expect("clone"));
        rustix::io::write(&theirs, b"go").expect("write");
        let exits = children.map(|child| wait(child.pidfd.as_fd()).expect("wait"));
        // The one that came too late has taken nothing from the other.
        let name = match exits {
            [Exit::Code(0), Exit::Code(1)] => "box",
            [Exit::Code(1), Exit::Code(0)] => "other",
            exits => panic!("{exits:?}"),
        };
        assert_eq!(bundle.root.ids().expect("ids"), [id(name)]);
        let made = bundle.root.load(&id(name)).expect("load");
        assert_eq!(made.status().expect("status"), Status::Created);
        assert_eq!(made.processes().expect("processes").len(), 1);
        made.delete(true).expect("delete");
        bundle.assert_gone();
    }
}

fn a_cgroup_that_another_made_meanwhile_is_not_the_containers() {
    let bundle = Bundle::shell("sleep 100");
    let (spec, (stdio, ..)) = (bundle.world.typed(), bundle.world.streams());
    let cgroup = Cgroup::open_or_create(bundle.world.cgroup.path()).expect("cgroup");
    let mut request = Create::new("late", &spec, bundle.world.rootfs(), &cgroup, stdio);
    request.cgroup_is_new = true;
    let error = portreeve_oci::create(request).expect_err("it is there");
    assert!(matches!(error, CreateError::Cgroup(CgroupError::Taken { .. })), "{}", chain(&error));
    assert!(cgroup.exists());
    // One that was there before, and in which another maker is at work.
    let directory =
        cgroup.directories().into_iter().find(|directory| directory.ends_with(format!("pids{}", cgroup.path())));
    let directory = directory.or(cgroup.directories().pop()).expect("a directory");
    // Where there is one, a file that its owner alone can open.
    let owners = File::options().write(true).open(directory.join("cgroup.kill"));
    let held = owners.or_else(|_| File::open(directory)).expect("open");
    rustix::fs::flock(&held, FlockOperation::LockExclusive).expect("lock");
    let error = bundle.try_create().map(drop).expect_err("somebody is there");
    assert!(chain(&error).contains("is being made in cgroup"), "{}", chain(&error));
    assert!(cgroup.exists());
    drop(held);
    drop(bundle.create());
    bundle.delete();
    cgroup.remove().expect("remove");
}

fn a_threaded_cgroup_below_is_no_way_to_stay() {
    if v1() {
        eprintln!("SKIPPED a_threaded_cgroup_below_is_no_way_to_stay: it needs cgroup v2");
        return;
    }
    let bundle = Bundle::shell("echo up; sleep 100");
    let created = bundle.create();
    bundle.start();
    bundle.wait_for("up");
    // As a container may whose cgroup is its own to divide.
    let directory = bundle.world.cgroup.directories().pop().expect("a directory").join("a");
    std::fs::create_dir(&directory).expect("mkdir");
    std::fs::write(directory.join("cgroup.type"), "threaded").expect("write");
    let refused = std::fs::read_to_string(directory.join("cgroup.procs")).expect_err("the one above lists them");
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()));
    assert_eq!(bundle.load().processes().expect("processes").len(), 1);
    bundle.delete();
    assert_eq!(wait(created.pidfd.as_fd()).expect("wait"), Exit::Signal(9));
    bundle.assert_gone();
}

fn hooks_are_not_told_of_the_end_of_what_was_never_begun() {
    for (change, told) in [
        (json!({"process": {"cwd": "relative"}}), false),
        (
            json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"]}}}),
            false,
        ),
        (json!({"linux": {"rootfsPropagation": "sideways"}}), true),
    ] {
        let world = World::shell("true").with(change.clone());
        let note = world.path("note");
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", format!("echo > {}", note.display())]});
        let bundle = Bundle::new(world.with(json!({"hooks": {"poststop": [hook]}})));
        bundle.try_create().map(drop).expect_err("refused");
        assert_eq!(note.exists(), told, "{change}");
        bundle.assert_gone();
    }
}
