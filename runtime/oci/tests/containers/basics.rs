//! Starting, ending, namespaces, streams, exec.

use portreeve_sys::process::Exit;
use serde_json::json;

use crate::Test;
use crate::world::{World, chain};

pub(crate) const TESTS: &[Test] = &[
    ("a_container_ends_with_its_programs_exit_code", a_container_ends_with_its_programs_exit_code),
    ("a_killed_program_is_reported_with_its_signal", a_killed_program_is_reported_with_its_signal),
    ("a_container_sees_its_own_world", a_container_sees_its_own_world),
    ("every_namespace_is_another_than_the_hosts", every_namespace_is_another_than_the_hosts),
    ("a_program_that_is_not_there_is_reported_with_127", a_program_that_is_not_there_is_reported_with_127),
    (
        "a_program_that_may_not_be_executed_is_reported_with_126",
        a_program_that_may_not_be_executed_is_reported_with_126,
    ),
    (
        "a_program_without_its_interpreter_is_told_from_one_that_is_not_there",
        a_program_without_its_interpreter_is_told_from_one_that_is_not_there,
    ),
    ("every_process_leads_a_session", every_process_leads_a_session),
    ("writes_go_to_the_upper_layer_alone", writes_go_to_the_upper_layer_alone),
    ("dropping_a_created_container_ends_it", dropping_a_created_container_ends_it),
    ("exec_runs_in_the_containers_namespaces_and_cgroup", exec_runs_in_the_containers_namespaces_and_cgroup),
    ("exec_of_a_missing_program_leaves_nothing", exec_of_a_missing_program_leaves_nothing),
];

fn a_container_ends_with_its_programs_exit_code() {
    let outcome = World::shell("echo out; echo err >&2; exit 7").run();
    assert_eq!((outcome.exit, outcome.out.as_str(), outcome.err.as_str()), (Exit::Code(7), "out\n", "err\n"));
}

fn a_killed_program_is_reported_with_its_signal() {
    let world = World::new(&["sleep", "100"]);
    let live = world.start();
    world.cgroup.kill_all().expect("kill");
    assert_eq!(live.finish().exit, Exit::Signal(9));
}

fn a_container_sees_its_own_world() {
    let outcome = World::shell("hostname; echo $$; pwd; echo $HOME; id -u; ls /dev | tr '\\n' ' '; cat /proc/self/cgroup | cut -d: -f3 | sort -u").run();
    assert_eq!(
        outcome.out,
        "box\n1\n/\n/root\n0\nfd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero /\n",
        "{outcome:?}"
    );
}

fn every_namespace_is_another_than_the_hosts() {
    let world = World::shell("for n in pid mnt net uts ipc cgroup user; do readlink /proc/self/ns/$n; done");
    let outcome = world.run();
    for line in outcome.out.lines() {
        let (kind, _) = line.split_once(':').expect("kind");
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("ours");
        let same = ours.to_string_lossy() == line;
        assert_eq!(same, kind == "user", "{line}");
    }
    assert_eq!(outcome.out.lines().count(), 7);
}

fn a_program_that_is_not_there_is_reported_with_127() {
    for program in ["nothing-like-it", "/bin/nothing-like-it"] {
        let world = World::new(&[program]);
        let spec = world.typed();
        let (stdio, ..) = world.streams();
        let created = world.create(&spec, stdio).expect("create");
        let (running, starter) = created.split();
        let error = starter.start().expect_err("not there");
        assert_eq!(error.exit_code(), 127, "{}", chain(&error));
        assert!(chain(&error).contains(program), "{}", chain(&error));
        let exit = portreeve_sys::process::wait(std::os::fd::AsFd::as_fd(&running.pidfd)).expect("reap");
        assert_eq!(exit, Exit::Code(127));
    }
}

fn a_program_that_may_not_be_executed_is_reported_with_126() {
    let world = World::new(&["/etc/passwd"]);
    let spec = world.typed();
    let (stdio, ..) = world.streams();
    let error = world.create(&spec, stdio).expect("create").start().expect_err("no program");
    assert_eq!(error.exit_code(), 126, "{}", chain(&error));
}

fn a_program_without_its_interpreter_is_told_from_one_that_is_not_there() {
    for (program, path) in [("/bin/script", "bin/script"), ("script", "bin/script")] {
        let world = World::new(&[program]);
        let file = world.layer().join(path);
        std::fs::write(&file, "#!/no/such/interpreter\n").expect("write");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
        let spec = world.typed();
        let (stdio, ..) = world.streams();
        let error = world.create(&spec, stdio).expect("create").start().expect_err("no interpreter");
        assert_eq!(error.exit_code(), 127);
        let text = chain(&error);
        assert!(text.contains(program) && text.contains("interpreter") && !text.contains("not found"), "{text}");
    }
}

fn every_process_leads_a_session() {
    // In the session of its maker, `kill 0` would end the maker too.
    let world = World::shell(
        "read -r pid name state parent group session rest < /proc/self/stat; echo $group $session; echo up; sleep 100",
    );
    let live = world.start();
    live.wait_for("up");
    let outcome = live.exec("read -r pid name state parent group session rest < /proc/self/stat; test $pid = $group && test $pid = $session && echo leads");
    assert_eq!(outcome.out, "leads\n", "{outcome:?}");
    live.wait_for("1 1");
}

fn writes_go_to_the_upper_layer_alone() {
    let world = World::shell("echo new > /etc/new; echo changed > /etc/passwd; rm /bin/true");
    assert_eq!(world.run().exit, Exit::Code(0));
    assert!(world.path("upper/etc/new").exists());
    assert!(!world.layer().join("etc/new").exists());
    assert!(std::fs::read_to_string(world.layer().join("etc/passwd")).expect("read").starts_with("root:"));
    assert!(world.layer().join("bin/true").exists());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(&world.directory.path().display().to_string()), "nothing is mounted on the host");
}

fn dropping_a_created_container_ends_it() {
    let world = World::new(&["sleep", "100"]);
    let spec = world.typed();
    let (stdio, ..) = world.streams();
    let (running, starter) = world.create(&spec, stdio).expect("create").split();
    drop(starter);
    let exit = portreeve_sys::process::wait(std::os::fd::AsFd::as_fd(&running.pidfd)).expect("reap");
    assert_eq!(exit, Exit::Code(1));
}

fn exec_runs_in_the_containers_namespaces_and_cgroup() {
    let world = World::shell("echo up; sleep 100");
    let live = world.start();
    live.wait_for("up");
    let outcome = live.exec("hostname; head -c 2 /proc/1/cmdline; echo; cat /proc/self/cgroup | cut -d: -f3 | sort -u; readlink /proc/self/ns/net; exit 3");
    assert_eq!(outcome.exit, Exit::Code(3), "{outcome:?}");
    let net = std::fs::read_link(format!("/proc/{}/ns/net", live.pid)).expect("net");
    let lines: Vec<&str> = outcome.out.lines().collect();
    assert_eq!(lines, ["box", "sl", "/", &net.to_string_lossy()], "{outcome:?}");
}

fn exec_of_a_missing_program_leaves_nothing() {
    let world = World::shell("echo up; sleep 100");
    let live = world.start();
    live.wait_for("up");
    let before = world.cgroup.processes().expect("processes").len();
    let error = live.try_exec(json!({"args": ["nothing-like-it"]})).expect_err("not there");
    assert_eq!(error.exit_code(), 127, "{}", chain(&error));
    assert_eq!(world.cgroup.processes().expect("processes").len(), before);
}
