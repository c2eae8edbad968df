//! Containers that outlive their maker: state directory, gate, what a killed maker leaves.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use portreeve_oci::lifecycle::{
    Container, CreateOptions, CreatedContainer, ExecRequest, Id, LifecycleError, Root, Status,
};
use portreeve_oci::{CreateError, Pid, StartError, Stdio};
use portreeve_sys::clone::{Child, Clone3, clone3};
use portreeve_sys::process::{Exit, has_ended, pidfd_open, pidfd_send_signal, try_wait, wait};
use serde_json::{Value, json};

use crate::Test;
use crate::world::{World, chain, text};

pub(crate) const TESTS: &[Test] = &[
    ("a_created_container_waits_for_another_processs_start", a_created_container_waits_for_another_processs_start),
    ("a_second_start_is_refused_and_changes_nothing", a_second_start_is_refused_and_changes_nothing),
    (
        "the_status_of_a_waiting_a_running_a_frozen_and_an_ended_container",
        the_status_of_a_waiting_a_running_a_frozen_and_an_ended_container,
    ),
    ("calls_in_the_wrong_state_change_nothing", calls_in_the_wrong_state_change_nothing),
    ("a_maker_killed_at_any_point_leaves_what_delete_clears", a_maker_killed_at_any_point_leaves_what_delete_clears),
    ("a_killed_starter_or_deleter_can_be_followed_by_another", a_killed_starter_or_deleter_can_be_followed_by_another),
    (
        "a_maker_killed_while_a_hook_runs_leaves_no_process_that_waits",
        a_maker_killed_while_a_hook_runs_leaves_no_process_that_waits,
    ),
    ("a_hook_that_never_ends_holds_no_other_call_up", a_hook_that_never_ends_holds_no_other_call_up),
    ("who_asks_for_the_lock_is_not_in_the_way_of_a_deletion", who_asks_for_the_lock_is_not_in_the_way_of_a_deletion),
    ("the_filter_holds_for_the_hooks_of_the_start_as_well", the_filter_holds_for_the_hooks_of_the_start_as_well),
    (
        "the_start_of_a_program_with_few_descriptors_needs_no_more",
        the_start_of_a_program_with_few_descriptors_needs_no_more,
    ),
    ("a_held_container_ends_with_its_holder", a_held_container_ends_with_its_holder),
    ("who_connects_and_says_nothing_starts_nothing", who_connects_and_says_nothing_starts_nothing),
    ("a_process_that_took_over_the_pid_is_never_signalled", a_process_that_took_over_the_pid_is_never_signalled),
    ("the_stored_configuration_counts_not_the_bundles", the_stored_configuration_counts_not_the_bundles),
    ("a_relative_source_of_a_bind_mount_lies_in_the_bundle", a_relative_source_of_a_bind_mount_lies_in_the_bundle),
    ("a_start_that_fails_says_why_to_its_caller", a_start_that_fails_says_why_to_its_caller),
    (
        "a_program_that_cannot_be_executed_is_an_error_of_the_creation",
        a_program_that_cannot_be_executed_is_an_error_of_the_creation,
    ),
    ("a_name_is_taken_once", a_name_is_taken_once),
    ("of_two_makers_and_of_two_starters_one_succeeds", of_two_makers_and_of_two_starters_one_succeeds),
    ("a_further_process_runs_in_a_loaded_container", a_further_process_runs_in_a_loaded_container),
    ("an_update_is_in_force_and_stored", an_update_is_in_force_and_stored),
    ("a_container_without_a_cgroup_runs_and_goes", a_container_without_a_cgroup_runs_and_goes),
    ("a_root_that_cannot_be_pivoted_from_is_mounted_over", a_root_that_cannot_be_pivoted_from_is_mounted_over),
];

/// A bundle whose container's output goes to files, and a state directory.
pub(crate) struct Bundle {
    pub(crate) world: World,
    pub(crate) root: Root,
    pub(crate) id: Id,
}

impl Bundle {
    pub(crate) fn new(world: World) -> Self {
        let bundle = Self { root: Root::open(&world.path("state")).expect("root"), id: id("box"), world };
        let path = bundle.world.cgroup.path().to_owned();
        bundle.write(json!({"root": {"path": "layer"}, "linux": {"cgroupsPath": path}}));
        bundle
    }

    pub(crate) fn shell(script: &str) -> Self {
        Self::new(World::shell(script))
    }

    pub(crate) fn write(&self, change: Value) {
        let mut spec = self.world.spec.clone();
        crate::world::merge(&mut spec, change);
        std::fs::write(self.path().join("config.json"), spec.to_string()).expect("config.json");
    }

    pub(crate) fn path(&self) -> &Path {
        self.world.directory.path()
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.world.path("lifecycle-out")
    }

    pub(crate) fn options(&self) -> CreateOptions<'static> {
        let file = || OwnedFd::from(File::options().create(true).append(true).open(self.out()).expect("output"));
        CreateOptions::new(Stdio::Pipes { stdin: None, stdout: file(), stderr: file() })
    }

    pub(crate) fn try_create(&self) -> Result<CreatedContainer, LifecycleError> {
        self.root.create(&self.id, self.path(), self.options())
    }

    pub(crate) fn create(&self) -> CreatedContainer {
        self.try_create().unwrap_or_else(|error| panic!("create: {}", chain(&error)))
    }

    pub(crate) fn load(&self) -> Container {
        self.root.load(&self.id).expect("load")
    }

    pub(crate) fn status(&self) -> Status {
        self.load().status().expect("status")
    }

    pub(crate) fn start(&self) {
        self.load().start().unwrap_or_else(|error| panic!("start: {}", chain(&error)));
    }

    pub(crate) fn wait_for(&self, word: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !text(&self.out()).contains(word) {
            assert!(Instant::now() < deadline, "the container never said {word:?}: {:?}", text(&self.out()));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn delete(&self) {
        self.load().delete(true).unwrap_or_else(|error| panic!("delete: {}", chain(&error)));
    }

    /// A bundle with a hook that tells the container's state and its own id, and never ends.
    pub(crate) fn hanging(script: &str, kind: &str) -> Self {
        let world = World::shell(script);
        let (state, pid) = (world.path("hook-state"), world.path("hook-pid"));
        let line = format!("cat > {}; echo $$ > {}; exec sleep 100", state.display(), pid.display());
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/usr/bin:/bin"]});
        Self::new(world.with(json!({"hooks": {kind: [hook]}})))
    }

    /// The hook of [`Bundle::hanging`] once it hangs.
    pub(crate) fn hook(&self) -> OwnedFd {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let told = std::fs::read_to_string(self.world.path("hook-pid")).unwrap_or_default();
            if let Some(pid) = told.strip_suffix('\n') {
                return pidfd_open(Pid::from_raw(pid.parse().expect("a number")).expect("an id")).expect("the hook");
            }
            assert!(Instant::now() < deadline, "the hook never ran");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Options for a container that stays in its maker's cgroup; its bundle is written anew without a view of one.
    pub(crate) fn without_cgroup(&self) -> CreateOptions<'static> {
        let mounts = self.world.spec["mounts"].as_array().expect("mounts").iter();
        let mounts: Vec<Value> = mounts.filter(|mount| mount["type"] != "cgroup").cloned().collect();
        self.write(json!({"root": {"path": "layer"}, "mounts": mounts}));
        let mut options = self.options();
        options.cgroup = portreeve_oci::lifecycle::CgroupChoice::None;
        options
    }

    /// Nothing of the container is left.
    pub(crate) fn assert_gone(&self) {
        assert!(!self.world.cgroup.exists(), "the cgroup is left");
        assert_eq!(self.root.ids().expect("ids"), []);
        assert!(matches!(self.root.load(&self.id), Err(LifecycleError::NotFound { .. })));
    }

    /// Every file of the container's directory with its content.
    pub(crate) fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files: Vec<_> = std::fs::read_dir(self.world.path("state/box"))
            .expect("list")
            .map(|entry| entry.expect("entry").path())
            .map(|path| (path.clone(), std::fs::read(&path).unwrap_or_default()))
            .collect();
        files.sort();
        files
    }
}

pub(crate) fn id(name: &str) -> Id {
    Id::parse(name).expect("id")
}

/// Runs `body` in a process of its own, which then ends; its exit code.
fn elsewhere(body: impl FnOnce() -> i32) -> Exit {
    let child = clone3(&Clone3::default(), body).expect("clone");
    wait(child.pidfd.as_fd()).expect("wait")
}

fn a_created_container_waits_for_another_processs_start() {
    let bundle = Bundle::shell("echo started; exit 0");
    let made = elsewhere(|| {
        let created = bundle.create();
        i32::from(created.container.status().expect("status") != Status::Created)
    });
    assert_eq!(made, Exit::Code(0));
    assert_eq!(bundle.status(), Status::Created, "its maker has ended");
    assert_eq!(text(&bundle.out()), "");
    assert_eq!(bundle.world.cgroup.processes().expect("processes").len(), 1);
    assert_eq!(elsewhere(|| i32::from(bundle.load().start().is_err())), Exit::Code(0));
    bundle.wait_for("started");
    bundle.delete();
    bundle.assert_gone();
}

fn a_second_start_is_refused_and_changes_nothing() {
    let bundle = Bundle::shell("echo started; sleep 100");
    drop(bundle.create());
    bundle.start();
    bundle.wait_for("started");
    let before = bundle.files();
    let error = bundle.load().start().expect_err("a second start");
    assert!(matches!(error, LifecycleError::Status { status: Status::Running, .. }), "{}", chain(&error));
    assert_eq!(bundle.files(), before);
    assert_eq!((bundle.status(), text(&bundle.out()).as_str()), (Status::Running, "started\n"));
    bundle.delete();
    bundle.assert_gone();
}

fn the_status_of_a_waiting_a_running_a_frozen_and_an_ended_container() {
    let bundle = Bundle::shell("sleep 100");
    let CreatedContainer { pidfd, pid, .. } = bundle.create();
    assert_eq!(bundle.status(), Status::Created);
    let state = bundle.load().state().expect("state");
    assert_eq!((state.status().to_string().as_str(), *state.pid()), ("created", Some(pid.as_raw_nonzero().get())));
    // The very moment that start returns, and not a little later.
    bundle.start();
    assert_eq!(bundle.status(), Status::Running);
    bundle.load().pause().expect("pause");
    assert_eq!(bundle.status(), Status::Paused);
    assert_eq!(bundle.load().state().expect("state").status().to_string(), "running");
    bundle.load().resume().expect("resume");
    assert_eq!(bundle.status(), Status::Running);
    bundle.load().kill(9, false).expect("kill");
    assert!(has_ended(pidfd.as_fd(), 10_000).expect("poll"));
    assert_eq!(bundle.status(), Status::Stopped, "ended, and not reaped");
    assert_eq!(wait(pidfd.as_fd()).expect("reap"), Exit::Signal(9));
    assert_eq!(bundle.status(), Status::Stopped);
    let state = bundle.load().state().expect("state");
    assert_eq!((state.status().to_string().as_str(), *state.pid()), ("stopped", None));
    bundle.load().delete(false).expect("delete");
    bundle.assert_gone();
}

fn calls_in_the_wrong_state_change_nothing() {
    type Call = (&'static str, fn(Container) -> Result<(), LifecycleError>, &'static [Status]);
    let calls: [Call; 6] = [
        ("start", |container| container.start(), &[Status::Created]),
        ("kill", |container| container.kill(0, false), &[Status::Created, Status::Running, Status::Paused]),
        ("delete", |container| container.delete(false).map(drop), &[Status::Stopped]),
        ("pause", |container| container.pause(), &[Status::Created, Status::Running]),
        ("resume", |container| container.resume(), &[Status::Paused]),
        (
            "update",
            |mut container| container.update(&Default::default()).map(drop),
            &[Status::Created, Status::Running, Status::Paused],
        ),
    ];
    let bundle = Bundle::shell("sleep 100");
    let created = bundle.create();
    for status in [Status::Created, Status::Running, Status::Paused, Status::Stopped] {
        match status {
            Status::Running => bundle.start(),
            Status::Paused => bundle.load().pause().expect("pause"),
            Status::Stopped => {
                bundle.load().kill(9, false).expect("kill");
                assert!(has_ended(created.pidfd.as_fd(), 10_000).expect("poll"), "a paused one ends too");
            }
            _ => {}
        }
        assert_eq!(bundle.status(), status);
        let before = bundle.files();
        for (name, call, allowed) in calls {
            if !allowed.contains(&status) {
                let error = call(bundle.load()).expect_err(name);
                assert!(matches!(error, LifecycleError::Status { .. }), "{name} {status}: {}", chain(&error));
                assert_eq!((bundle.status(), bundle.files()), (status, before.clone()), "{name} {status}");
            }
        }
    }
    bundle.delete();
    bundle.assert_gone();
}

/// The maker is killed after delays that cover its whole work, and when each of the files appears.
fn a_maker_killed_at_any_point_leaves_what_delete_clears() {
    let seed = std::process::id();
    let mut next = delays(seed, 6000);
    let mut seen = std::collections::BTreeMap::new();
    for round in 0..70 {
        let bundle = Bundle::shell("echo never; sleep 100");
        let maker = clone3(&Clone3::default(), || {
            let created = bundle.create();
            drop(created);
            0
        })
        .expect("clone");
        // The record gets the process between its being ready and the maker's letting go of it.
        let marks = [("state.json", ""), ("start.sock", ""), ("config.json", ""), ("state.json", "started_ticks")];
        match marks.get(round % 7) {
            Some((file, words)) => {
                let path = bundle.world.path("state/box").join(file);
                let there = || path.exists() && std::fs::read_to_string(&path).unwrap_or_default().contains(words);
                while !there() && !has_ended(maker.pidfd.as_fd(), 0).expect("poll") {}
            }
            None => {
                spin(next());
            }
        }
        pidfd_send_signal(maker.pidfd.as_fd(), 9).expect("kill");
        let exit = wait(maker.pidfd.as_fd()).expect("wait");
        let status = match bundle.root.load(&bundle.id) {
            Ok(container) => {
                // A process that the maker has let go of waits for a start; no other waits for anything.
                let status = container.status().expect("status");
                container
                    .delete(status != Status::Stopped)
                    .unwrap_or_else(|error| panic!("round {round}, seed {seed}: {}", chain(&error)));
                status.to_string()
            }
            Err(LifecycleError::NotFound { .. }) => "absent".to_owned(),
            Err(error) => panic!("round {round}, seed {seed}: {}", chain(&error)),
        };
        *seen.entry(status).or_insert(0) += 1;
        bundle.assert_gone();
        let said = std::fs::read_to_string(bundle.out()).unwrap_or_default();
        assert_eq!(said, "", "round {round}, seed {seed}, the maker ended with {exit:?}");
    }
    println!("  killed makers left: {seen:?}, seed {seed}");
}

/// Delays below `limit_us` microseconds. Numerical Recipes' linear congruential generator: any spread will do.
fn delays(seed: u32, limit_us: u64) -> impl FnMut() -> Duration {
    let mut random = seed;
    move || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Duration::from_micros(u64::from(random >> 8) % limit_us)
    }
}

/// Sleeping would be too coarse.
fn spin(delay: Duration) {
    let until = Instant::now() + delay;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

fn a_killed_starter_or_deleter_can_be_followed_by_another() {
    let seed = std::process::id();
    let mut next = delays(seed, 1500);
    let mut killed = |body: &dyn Fn() -> Result<(), LifecycleError>| {
        let child = clone3(&Clone3::default(), || i32::from(body().is_err())).expect("clone");
        spin(next());
        pidfd_send_signal(child.pidfd.as_fd(), 9).expect("kill");
        wait(child.pidfd.as_fd()).expect("wait");
    };
    for round in 0..25 {
        let bundle = Bundle::shell("echo started; sleep 100");
        drop(bundle.create());
        killed(&|| bundle.load().start());
        // The word may have been said and not heard yet: then the next one is refused, or comes too late to count.
        match bundle.load().start() {
            Ok(()) | Err(LifecycleError::Status { status: Status::Running, .. }) => {}
            Err(error) => panic!("round {round}, seed {seed}: {}", chain(&error)),
        }
        bundle.wait_for("started");
        assert_eq!(bundle.status(), Status::Running, "round {round}, seed {seed}");
        killed(&|| bundle.load().delete(true).map(drop));
        match bundle.root.load(&bundle.id).map(|container| container.delete(true)) {
            Ok(Ok(_)) | Err(LifecycleError::NotFound { .. }) => {}
            Ok(Err(error)) | Err(error) => panic!("round {round}, seed {seed}: {}", chain(&error)),
        }
        bundle.assert_gone();
        assert_eq!(text(&bundle.out()), "started\n");
    }
}

fn a_maker_killed_while_a_hook_runs_leaves_no_process_that_waits() {
    let bundle = Bundle::hanging("echo never", "createRuntime");
    // In a cgroup of its own a deletion would find it.
    let options = bundle.without_cgroup();
    let maker = clone3(&Clone3::default(), || {
        drop(bundle.root.create(&bundle.id, bundle.path(), options));
        0
    })
    .expect("clone");
    let hook = bundle.hook();
    let state: Value = serde_json::from_str(&text(&bundle.world.path("hook-state"))).expect("state");
    let pid = state["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("pid");
    let process = pidfd_open(pid).expect("the container's process");
    pidfd_send_signal(maker.pidfd.as_fd(), 9).expect("kill");
    wait(maker.pidfd.as_fd()).expect("wait");
    let ended = has_ended(process.as_fd(), 10_000).expect("poll");
    pidfd_send_signal(hook.as_fd(), 9).expect("kill the hook");
    assert!(ended, "process {pid:?} waits without end");
    assert_eq!(bundle.status(), Status::Stopped);
    bundle.load().delete(false).unwrap_or_else(|error| panic!("delete: {}", chain(&error)));
    bundle.assert_gone();
}

fn a_hook_that_never_ends_holds_no_other_call_up() {
    type Call = (&'static str, fn(Container) -> Result<(), LifecycleError>);
    let calls: [Call; 6] = [
        ("start", |container| container.start()),
        ("pause", |container| container.pause()),
        ("resume", |container| container.resume()),
        ("update", |mut container| container.update(&Default::default()).map(drop)),
        ("update of its share of the cache", |mut container| container.update_rdt(Some("L3:0=f"), None).map(drop)),
        ("delete", |container| container.delete(false).map(drop)),
    ];
    // Its exit code, when it has not to be waited for.
    let at_once = |what: &str, body: &dyn Fn() -> bool| {
        let child = clone3(&Clone3::default(), || i32::from(!body())).expect("clone");
        let ended = has_ended(child.pidfd.as_fd(), 10_000).expect("poll");
        pidfd_send_signal(child.pidfd.as_fd(), 9).expect("it is not reaped");
        assert_eq!((ended, wait(child.pidfd.as_fd()).expect("wait")), (true, Exit::Code(0)), "{what}");
    };
    for kind in ["createRuntime", "poststart"] {
        let bundle = Bundle::hanging("sleep 100", kind);
        let begin = || bundle.try_create().and_then(|created| created.container.start());
        let caller = clone3(&Clone3::default(), || i32::from(begin().is_ok())).expect("clone");
        let hook = bundle.hook();
        let expected = if kind == "createRuntime" { Status::Creating } else { Status::Running };
        assert_eq!(bundle.status(), expected, "{kind}");
        for (name, call) in calls.iter().filter(|_| expected == Status::Creating) {
            // By such a hook, for example, which would wait for itself.
            let refused =
                || matches!(call(bundle.load()), Err(LifecycleError::Status { status: Status::Creating, .. }));
            at_once(name, &refused);
        }
        at_once(kind, &|| bundle.load().delete(true).is_ok());
        if kind == "poststart" {
            pidfd_send_signal(hook.as_fd(), 9).expect("kill the hook");
        }
        assert!(has_ended(hook.as_fd(), 10_000).expect("poll"), "{kind}: the hook is left");
        assert_eq!(wait(caller.pidfd.as_fd()).expect("wait"), Exit::Code(0), "{kind}: it is told of the failure");
        bundle.assert_gone();
    }
}

fn who_asks_for_the_lock_is_not_in_the_way_of_a_deletion() {
    for round in 0..40 {
        let bundle = Bundle::shell("sleep 100");
        let created = bundle.create();
        bundle.start();
        let container = bundle.load();
        let asks = clone3(&Clone3::default(), || {
            loop {
                match container.start() {
                    Err(LifecycleError::Status { .. }) => {}
                    Err(LifecycleError::NotFound { .. }) => return 0,
                    _ => return 1,
                }
            }
        })
        .expect("clone");
        bundle.load().kill(9, false).expect("kill");
        assert!(has_ended(created.pidfd.as_fd(), 10_000).expect("poll"));
        bundle.load().delete(false).unwrap_or_else(|error| panic!("round {round}: {}", chain(&error)));
        assert_eq!(wait(asks.pidfd.as_fd()).expect("wait"), Exit::Code(0), "round {round}");
        bundle.assert_gone();
    }
}

fn the_filter_holds_for_the_hooks_of_the_start_as_well() {
    for no_new_privileges in [true, false] {
        let hook = json!({
            "path": "/bin/sh", "args": ["sh", "-c", "mkdir /work/made; echo ran > /work/ran"], "env": ["PATH=/bin"],
        });
        let denied = json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1});
        let bundle = Bundle::new(World::shell("mkdir /work/made; ls /work").with(json!({
            "process": {"noNewPrivileges": no_new_privileges}, "hooks": {"startContainer": [hook]},
            "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}},
        })));
        let created = bundle.create();
        bundle.start();
        assert_eq!(wait(created.pidfd.as_fd()).expect("wait"), Exit::Code(0));
        let said = text(&bundle.out());
        assert!(said.ends_with("Operation not permitted\nran\n"), "{no_new_privileges}: {said}");
        bundle.delete();
        bundle.assert_gone();
    }
}

fn the_start_of_a_program_with_few_descriptors_needs_no_more() {
    let limit = json!({"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 5}]}});
    let bundle = Bundle::new(World::shell("ulimit -Sn").with(limit));
    let created = bundle.create();
    bundle.start();
    assert_eq!((wait(created.pidfd.as_fd()).expect("wait"), text(&bundle.out()).as_str()), (Exit::Code(0), "5\n"));
    bundle.delete();
    bundle.assert_gone();
}

fn a_held_container_ends_with_its_holder() {
    let bundle = Bundle::shell("echo never");
    let mut options = bundle.options();
    options.hold = true;
    let created = bundle.root.create(&bundle.id, bundle.path(), options).expect("create");
    assert_eq!(bundle.status(), Status::Created);
    drop(created.container);
    assert_eq!(wait(created.pidfd.as_fd()).expect("wait"), Exit::Code(1));
    assert_eq!((bundle.status(), text(&bundle.out()).as_str()), (Status::Stopped, ""));
    bundle.load().delete(false).expect("delete");

    let mut options = bundle.options();
    options.hold = true;
    let created = bundle.root.create(&bundle.id, bundle.path(), options).expect("create");
    created.container.start().expect("start");
    drop(created.container);
    assert_eq!(wait(created.pidfd.as_fd()).expect("wait"), Exit::Code(0), "once started it needs no holder");
    assert_eq!(text(&bundle.out()), "never\n");
    bundle.delete();
    bundle.assert_gone();
}

fn who_connects_and_says_nothing_starts_nothing() {
    let bundle = Bundle::shell("echo started");
    let created = bundle.create();
    let path = bundle.world.path("state/box/start.sock");
    assert_eq!(std::fs::metadata(&path).expect("socket").permissions().mode() & 0o777, 0o600);
    for _ in 0..20 {
        let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET, None)
            .expect("socket");
        rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(&path).expect("address")).expect("connect");
    }
    assert_eq!(bundle.status(), Status::Created);
    bundle.start();
    assert_eq!(wait(created.pidfd.as_fd()).expect("wait"), Exit::Code(0));
    assert_eq!(text(&bundle.out()), "started\n");
    bundle.delete();
    bundle.assert_gone();
}

fn a_process_that_took_over_the_pid_is_never_signalled() {
    let bundle = Bundle::shell("sleep 100");
    let created = bundle.create();
    bundle.start();
    // A stranger with the number of the record: as if the container's process had ended and the number come round.
    let file = bundle.world.path("state/box/state.json");
    let mut record: Value = serde_json::from_str(&text(&file)).expect("record");
    let stranger = loop {
        let stranger = Stranger::new();
        if record["process"]["started_ticks"] != json!(started_ticks(stranger.pid())) {
            break stranger;
        }
        // Born within the same tick of the clock: a number does not come round as fast.
    };
    let ours = record["process"]["pid"].clone();
    record["process"]["pid"] = json!(stranger.pid());
    record["cgroup"] = Value::Null;
    std::fs::write(&file, record.to_string()).expect("write");
    assert_eq!(bundle.status(), Status::Stopped);
    assert!(matches!(bundle.load().kill(9, false), Err(LifecycleError::Status { .. })));
    assert!(bundle.load().pidfd().is_err());
    record["process"]["pid"] = ours;
    record["cgroup"] = json!(bundle.world.cgroup.path());
    let mut other = record.clone();
    other["process"]["pid"] = json!(stranger.pid());
    std::fs::write(&file, other.to_string()).expect("write");
    bundle.delete();
    assert!(try_wait(stranger.0.pidfd.as_fd()).expect("wait").is_none(), "the stranger lives");
    assert!(has_ended(created.pidfd.as_fd(), 10_000).expect("poll"), "and the container was found by its cgroup");
    bundle.assert_gone();
}

/// A process that waits until it is dropped.
struct Stranger(Child);

impl Stranger {
    fn new() -> Self {
        let waits = || {
            nix::unistd::pause();
            0
        };
        Self(clone3(&Clone3::default(), waits).expect("clone"))
    }

    fn pid(&self) -> i32 {
        self.0.pid.as_raw_nonzero().get()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _gone = pidfd_send_signal(self.0.pidfd.as_fd(), 9);
        let _gone = wait(self.0.pidfd.as_fd());
    }
}

/// Field 22 of /proc/PID/stat; the second, the name, has no blank here.
fn started_ticks(pid: i32) -> u64 {
    let stat = text(Path::new(&format!("/proc/{pid}/stat")));
    stat.split_ascii_whitespace().nth(21).and_then(|ticks| ticks.parse().ok()).expect("ticks")
}

fn the_stored_configuration_counts_not_the_bundles() {
    let bundle = Bundle::shell("sleep 100");
    let raw = std::fs::read(bundle.path().join("config.json")).expect("read");
    drop(bundle.create());
    std::fs::write(bundle.path().join("config.json"), "{}").expect("write");
    assert_eq!(std::fs::read(bundle.world.path("state/box/config.json")).expect("read"), raw);
    let spec = bundle.load().spec().expect("spec").clone();
    assert_eq!(spec.hostname().as_deref(), Some("box"));
    bundle.start();
    std::fs::remove_file(bundle.path().join("config.json")).expect("remove");
    bundle.delete();
    bundle.assert_gone();
}

fn a_relative_source_of_a_bind_mount_lies_in_the_bundle() {
    let world = World::shell("cat /data/file")
        .mount(json!({"destination": "/data", "type": "bind", "source": "files/data", "options": ["rbind"]}));
    let bundle = Bundle::new(world);
    std::fs::create_dir_all(bundle.path().join("files/data")).expect("mkdir");
    std::fs::write(bundle.path().join("files/data/file"), "of the bundle").expect("write");
    bundle.create();
    bundle.start();
    bundle.wait_for("of the bundle");
    bundle.delete();
}

fn a_start_that_fails_says_why_to_its_caller() {
    for code in [127, 126] {
        let bundle = Bundle::new(World::new(&["/program"]));
        let program = bundle.world.layer().join("program");
        std::fs::write(&program, "#!/bin/sh\n").expect("a program");
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("mode");
        let created = bundle.create();
        if code == 127 {
            std::fs::remove_file(&program).expect("remove");
        } else {
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o644)).expect("mode");
        }
        let error = bundle.load().start().expect_err("no program");
        assert_eq!(error.exit_code(), code, "{}", chain(&error));
        assert!(chain(&error).contains("/program"), "{}", chain(&error));
        assert!(matches!(
            &error,
            LifecycleError::Start(StartError::NotFound { .. } | StartError::NotExecutable { .. })
        ));
        // From the very moment on that the error is known.
        assert_eq!(bundle.status(), Status::Stopped);
        assert_eq!(wait(created.pidfd.as_fd()).expect("reap"), Exit::Code(code));
        bundle.load().delete(false).expect("delete");
        bundle.assert_gone();
    }
}

fn a_program_that_cannot_be_executed_is_an_error_of_the_creation() {
    let cases = [("nothing-like-it", 127), ("/bin/nothing-like-it", 127), ("/etc/passwd", 126), ("/etc", 126)];
    for (program, code) in cases {
        let bundle = Bundle::new(World::new(&[program]));
        let error = bundle.try_create().expect_err("no program");
        assert_eq!(error.exit_code(), code, "{}", chain(&error));
        assert!(chain(&error).contains(program), "{}", chain(&error));
        assert!(matches!(error, LifecycleError::Create(CreateError::Program(_))), "{}", chain(&error));
        bundle.assert_gone();
    }
}

fn a_name_is_taken_once() {
    let bundle = Bundle::shell("sleep 100");
    drop(bundle.create());
    let before = bundle.files();
    let error = bundle.try_create().expect_err("a second one");
    assert!(matches!(error, LifecycleError::Exists { .. }), "{}", chain(&error));
    assert_eq!((bundle.files(), bundle.status()), (before, Status::Created));
    assert_eq!(bundle.root.ids().expect("ids"), [id("box")]);
    // Another container cannot have the first one's cgroup either.
    let error = bundle.root.create(&id("other"), bundle.path(), bundle.options()).expect_err("occupied");
    assert!(matches!(error, LifecycleError::Cgroup(_)), "{}", chain(&error));
    assert_eq!((bundle.root.ids().expect("ids"), bundle.status()), (vec![id("box")], Status::Created));
    bundle.delete();
    bundle.assert_gone();
    for bad in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(256)] {
        assert!(matches!(Id::parse(bad), Err(LifecycleError::Id { .. })), "{bad}");
    }
}

fn of_two_makers_and_of_two_starters_one_succeeds() {
    let both = |body: &dyn Fn() -> bool| {
        let children = [0; 2].map(|_| clone3(&Clone3::default(), || i32::from(!body())).expect("clone"));
        let mut exits = children.map(|child| match wait(child.pidfd.as_fd()).expect("wait") {
            Exit::Code(code) => code,
            Exit::Signal(signal) => panic!("ended by signal {signal}"),
        });
        exits.sort_unstable();
        exits
    };
    for _ in 0..10 {
        let bundle = Bundle::shell("echo started; sleep 100");
        let made = both(&|| match bundle.try_create() {
            Ok(_) => true,
            Err(LifecycleError::Exists { .. }) => false,
            Err(error) => panic!("create: {}", chain(&error)),
        });
        assert_eq!((made, bundle.status()), ([0, 1], Status::Created));
        let started = both(&|| match bundle.load().start() {
            Ok(()) => true,
            Err(LifecycleError::Status { status: Status::Running, .. }) => false,
            Err(error) => panic!("start: {}", chain(&error)),
        });
        assert_eq!((started, bundle.status()), ([0, 1], Status::Running));
        bundle.wait_for("started");
        bundle.delete();
        bundle.assert_gone();
        assert_eq!(text(&bundle.out()), "started\n");
    }
}

fn a_further_process_runs_in_a_loaded_container() {
    let bundle = Bundle::shell("echo up; sleep 100");
    drop(bundle.create());
    bundle.start();
    bundle.wait_for("up");
    let container = bundle.load();
    let mut process = container.spec().expect("spec").process().clone().expect("process");
    process.set_args(Some(["sh", "-c", "hostname; head -c 4 <&3; exit 5"].map(str::to_owned).to_vec()));
    let extra = bundle.world.path("extra");
    std::fs::write(&extra, "four and more").expect("write");
    let mut request = ExecRequest::new(process, bundle.options().stdio);
    request.extra_fds = vec![File::open(&extra).expect("open").into()];
    let execed = container.exec(request).unwrap_or_else(|error| panic!("exec: {}", chain(&error)));
    assert_eq!(wait(execed.pidfd.as_fd()).expect("wait"), Exit::Code(5));
    assert_eq!(text(&bundle.out()), "up\nbox\nfour");
    bundle.delete();
    bundle.assert_gone();
}

fn an_update_is_in_force_and_stored() {
    let bundle = Bundle::shell("sleep 100");
    drop(bundle.create());
    let resources = serde_json::from_value(json!({"pids": {"limit": 77}})).expect("resources");
    bundle.load().update(&resources).expect("update");
    let limit = crate::world::controller_file(&bundle.world, "pids", "pids.max", "pids.max");
    assert_eq!(limit, "77");
    let spec = bundle.load().spec().expect("spec").clone();
    let stored = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).expect("resources");
    assert_eq!(serde_json::to_value(stored.pids()).expect("json")["limit"], json!(77));
    assert_eq!(spec.hostname().as_deref(), Some("box"), "the rest stays");
    bundle.delete();
    bundle.assert_gone();
}

fn a_container_without_a_cgroup_runs_and_goes() {
    let bundle = Bundle::shell("echo up; sleep 100");
    let created = bundle.root.create(&bundle.id, bundle.path(), bundle.without_cgroup()).expect("create");
    bundle.start();
    bundle.wait_for("up");
    assert!(matches!(bundle.load().pause(), Err(LifecycleError::NoCgroup { .. })));
    bundle.delete();
    assert_eq!(wait(created.pidfd.as_fd()).expect("reap"), Exit::Signal(9));
    bundle.assert_gone();
}

fn a_root_that_cannot_be_pivoted_from_is_mounted_over() {
    let bundle = Bundle::shell("ls / | sort | tr '\\n' ' '; hostname");
    let mut options = bundle.options();
    options.pivot = portreeve_oci::Pivot::MoveMount;
    let created = bundle.root.create(&bundle.id, bundle.path(), options).expect("create");
    bundle.start();
    assert_eq!(wait(created.pidfd.as_fd()).expect("wait"), Exit::Code(0));
    assert_eq!(text(&bundle.out()), "bin dev etc home proc root sys tmp work box\n");
    bundle.delete();
    bundle.assert_gone();
}
