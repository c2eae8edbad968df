//! A user who is not root makes containers: with the ids that are lent to him, with his own alone, and as the root of a
//! user namespace that he has entered before, as podman does.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::pty::openpty;
use portreeve_e2e::{
    Answer, Attempts, Bundle, Call, Report, Runtime, cgroup_version, remove_cgroup, skipped, wait_until,
};
use serde_json::{Value, json};

/// The user, whom nothing knows but the test's own /etc/passwd, and the ids that /etc/subuid and /etc/subgid lend him.
const USER: u32 = 61_001;
const LENT: u32 = 700_000;
const COUNT: u32 = 65_536;

/// What a container's warning, or the refusal of its limits, calls a cgroup that the user may not have.
const NO_CGROUP: &str = "the container has no cgroup of its own and stays in the runtime's";

/// A user, who has a home and a directory for what runs, in the world of a runtime.
struct Worker {
    runtime: Runtime,
    program: PathBuf,
    path: &'static str,
    /// What he is within: `unshare` with flags.
    within: &'static [&'static str],
    /// The cgroup that he is in before he calls.
    session: Option<PathBuf>,
}

impl Deref for Worker {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        &self.runtime
    }
}

impl Worker {
    fn for_test(test: &str) -> Option<Self> {
        if let Some(why) = forbidden() {
            skipped(test, &why);
            return None;
        }
        let mut runtime = Runtime::for_test(test)?;
        let program = runtime.use_copy();
        let path = "/usr/bin:/bin";
        *WORKERS.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let worker = Self { runtime, program, path, within: &[], session: None };
        let line = format!("prtworker:x:{USER}:{USER}::{}:/bin/sh\n", worker.home().display());
        let lent = format!("prtworker:{LENT}:{COUNT}\n");
        let etc = worker.world().path("etc");
        std::fs::create_dir(&etc).expect("a directory for his files of /etc");
        for (name, more) in [("passwd", line.as_str()), ("subuid", &lent), ("subgid", &lent)] {
            let mut text = std::fs::read_to_string(format!("/etc/{name}")).expect("the package uidmap is installed");
            text.push_str(more);
            std::fs::write(etc.join(name), text).expect("a file of /etc");
        }
        let (home, user) = (worker.home(), worker.world().path("user"));
        worker.world().sh(&format!(
            "chmod 755 {0} && mkdir -p {1} {2} && chown {USER}:{USER} {1} {2} && chmod 700 {2}",
            worker.world().home().display(),
            home.display(),
            user.display()
        ));
        Some(worker)
    }

    fn home(&self) -> PathBuf {
        self.world().path("home")
    }

    /// A bundle that is his, in a user namespace of its own with all that he has: himself as its root.
    fn bundle(&self, arguments: &[&str]) -> Bundle {
        let bundle = self.runtime.bundle(arguments).with(json!({ "linux": { "cgroupsPath": null } }));
        self.world().sh(&format!("chown -hR {USER}:{USER} {}", bundle.path().display()));
        mapped(bundle, &json!([row(0, USER, 1), row(1, LENT, COUNT - 1)]))
    }

    /// The same with a program of busybox.
    fn bundle_of(&self, arguments: &[&str]) -> Bundle {
        self.bundle(&[]).with(json!({ "process": { "args": arguments } }))
    }

    /// A command that he gives: nothing of the caller's environment, groups or privileges.
    fn command_of(&self, words: &[&str]) -> Command {
        let session = self
            .session
            .as_ref()
            .map_or(String::new(), |session| format!("echo $$ > {} && ", session.join("cgroup.procs").display()));
        let etc = self.world().path("etc");
        let mounts: String = ["passwd", "subuid", "subgid"]
            .map(|name| format!("mount --bind {} /etc/{name} && ", etc.join(name).display()))
            .concat();
        let mut command = self.world().command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg(format!("{session}{mounts}cd {} && exec \"$@\"", self.home().display()));
        command.args(["sh", "setpriv", "--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups"]);
        command.args(["env", "-i", &format!("PATH={}", self.path)]);
        command.arg(format!("XDG_RUNTIME_DIR={}", self.world().path("user").display()));
        command.args(self.within).args(words).stdin(Stdio::null());
        command
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(&[&[self.program.to_str().expect("a path in UTF-8")], arguments].concat())
    }

    fn call(&self, arguments: &[&str]) -> Answer {
        self.begin(self.command(arguments)).finish()
    }

    fn words<'a>(verb: &'a str, bundle: &'a Bundle) -> [&'a str; 4] {
        bundle.save();
        [verb, "--bundle", bundle.path().to_str().expect("a path in UTF-8"), bundle.id()]
    }

    fn run(&self, bundle: &Bundle) -> Answer {
        self.call(&Self::words("run", bundle))
    }

    fn report(&self, bundle: &Bundle) -> Report {
        Report::parse(&self.run(bundle).ok())
    }

    fn attempts(&self, bundle: &Bundle) -> Attempts {
        Attempts::parse(&self.run(bundle).ok())
    }

    /// Makes and starts a container that waits; what it says stays with the call of `create`.
    fn start_waiting(&self, bundle: &Bundle) {
        let out = self.home().join(format!("{}.out", bundle.id()));
        let mut command = self.command(&Self::words("create", bundle));
        command.stdout(std::fs::File::create(&out).expect("a file for its output"));
        let errors = out.with_extension("err");
        command.stderr(std::fs::File::create(&errors).expect("a file for its errors"));
        let status = command.status().expect("nsenter of util-linux");
        assert!(status.success(), "{}", std::fs::read_to_string(errors).unwrap_or_default());
        self.call(&["start", bundle.id()]).ok();
        wait_until("the container's program is ready", 20, || {
            let said = std::fs::read_to_string(&out).unwrap_or_default();
            if said.starts_with("\"ready\"\n") { Ok(()) } else { Err(said) }
        });
    }

    fn state(&self, bundle: &Bundle) -> Value {
        serde_json::from_str(&self.call(&["state", bundle.id()]).ok()).expect("a state in JSON")
    }

    /// Gives him a cgroup, of which he has the controllers of memory and processes, and puts him below it: version 2.
    fn delegate(&mut self) -> String {
        let path = format!("/sys/fs/cgroup{}", self.runtime.cgroup());
        let session = PathBuf::from(&path).join("session");
        self.world().sh(&format!(
            "echo '+memory +pids +cpu' > /sys/fs/cgroup/cgroup.subtree_control; mkdir -p {0} && \
             chown {USER}:{USER} {0} {0}/cgroup.procs {0}/cgroup.subtree_control {0}/cgroup.threads && \
             mkdir {1} && chown {USER}:{USER} {1} {1}/cgroup.procs",
            path,
            session.display()
        ));
        self.session = Some(session);
        path
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let state = self.world().path("user/portreeve/runtime");
        let entries = || std::fs::read_dir(&state).into_iter().flatten().flatten().map(|entry| entry.file_name());
        for id in entries() {
            // A test that has failed may have left it.
            drop(self.call(&["delete", "--force", &id.to_string_lossy()]));
        }
        let files: Vec<_> = entries().collect();
        let mut processes = self.lingering();
        let mut workers = WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
        *workers -= 1;
        if *workers == 0 && processes.is_empty() {
            processes = of_the_user();
        }
        drop(workers);
        // It ends what is left in it, which therefore was looked for before.
        if let Some(session) = &self.session {
            remove_cgroup(session);
        }
        if !std::thread::panicking() {
            assert!(files.is_empty(), "left behind in {}: {files:?}", state.display());
            assert!(processes.is_empty(), "left behind: {processes:#?}");
        }
    }
}

/// How many workers there are: the user is one for all tests, so that only the last of them at a time can tell whether
/// a process of his is nobody's.
static WORKERS: Mutex<usize> = Mutex::new(0);

/// The processes, wherever they are, that run as the user or with an id that is lent to him.
fn of_the_user() -> BTreeSet<String> {
    let processes = std::fs::read_dir("/proc").expect("procfs").flatten().map(|entry| entry.path());
    let his = |id: u32| id == USER || (LENT..LENT + COUNT).contains(&id);
    processes
        .filter_map(|path| {
            let status = std::fs::read_to_string(path.join("status")).ok()?;
            let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
            let of_his = ids.split_whitespace().filter_map(|id| id.parse().ok()).any(his);
            // One that has ended and waits for its parent is none.
            let name = status.lines().next().unwrap_or_default();
            (of_his && !status.contains("\nState:\tZ")).then(|| format!("{}: {name}, {ids}", path.display()))
        })
        .collect()
}

/// Why users cannot make user namespaces here.
fn forbidden() -> Option<String> {
    let number = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse::<u64>().ok();
    let rules = [
        ("kernel/unprivileged_userns_clone", 0),
        ("kernel/apparmor_restrict_unprivileged_userns", 1),
        ("user/max_user_namespaces", 0),
    ];
    let rule = rules.into_iter().find(|(name, forbids)| number(name) == Some(*forbids))?;
    Some(format!("the machine keeps users from user namespaces: /proc/sys/{} is {}", rule.0, rule.1))
}

fn row(inside: u32, outside: u32, count: u32) -> Value {
    json!({ "containerID": inside, "hostID": outside, "size": count })
}

fn mapped(bundle: Bundle, rows: &Value) -> Bundle {
    bundle
        .with_namespace("user", Some(json!({ "type": "user" })))
        .with(json!({ "linux": { "uidMappings": rows, "gidMappings": rows } }))
}

/// Himself alone: then nobody else has to map anything, and group 5 is nobody's.
fn alone(bundle: Bundle) -> Bundle {
    let mut mounts = bundle.config()["mounts"].clone();
    for mount in mounts.as_array_mut().expect("a list of mounts") {
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "gid=5");
        }
    }
    mapped(bundle.with(json!({ "mounts": mounts })), &json!([row(0, USER, 1)]))
}

fn owner(path: &Path) -> (u32, u32) {
    let file = std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (file.uid(), file.gid())
}

#[test]
fn a_container_of_a_user_has_the_ids_that_are_lent_to_him_and_no_others() {
    let Some(worker) = Worker::for_test("a_container_of_a_user_has_the_ids_that_are_lent_to_him_and_no_others") else {
        return;
    };
    let user = json!({ "process": { "user": { "additionalGids": [7, 8] } } });
    let report = worker.report(&worker.bundle(&["report"]).with(user));
    let rows = json!([[0, USER, 1], [1, LENT, COUNT - 1]]);
    assert_eq!(report["id_maps"], json!({ "uid": rows, "gid": rows, "setgroups": "allow" }));
    assert_eq!(report["ids"]["groups"], json!([7, 8]));
    let three = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"].map(str::to_owned).into();
    for (set, expected) in [("effective", &three), ("permitted", &three), ("bounding", &three)] {
        assert_eq!(report.capabilities(set), *expected, "{set}");
    }
    assert_eq!(report["hostname"], "probed");

    let all = json!(["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_SYS_MODULE"]);
    let sets = json!({ "bounding": all, "effective": all, "permitted": all });
    let secret = worker.home().join("secret");
    std::fs::write(&secret, "root's").expect("a file of root");
    worker.world().sh(&format!("chmod 600 {}", secret.display()));
    let operations = [
        "create /tmp/own x",
        "create /tmp/lent x",
        "chown /tmp/lent 5 6",
        "chown /tmp/own 65536 0",
        "read /mnt",
        "mknod /tmp/zero c 1 5",
        "open /dev/null rw",
        "create /sys/x x",
    ];
    let bundle = worker
        .bundle(&[&["try"], operations.as_slice()].concat())
        .with(json!({ "process": { "capabilities": sets, "noNewPrivileges": false } }))
        .with_mount(json!({ "destination": "/mnt", "type": "bind", "source": secret, "options": ["bind"] }));
    std::fs::remove_dir(bundle.root().join("mnt")).expect("the mount point of a file is a file");
    let tried = worker.attempts(&bundle);
    for (operation, errno) in operations.into_iter().zip(["ok", "ok", "ok", "EINVAL", "EACCES", "EPERM", "ok", "EROFS"])
    {
        assert_eq!(tried.errno(operation), errno, "{operation}");
    }
    assert_eq!(owner(&bundle.root().join("tmp/own")), (USER, USER));
    assert_eq!(owner(&bundle.root().join("tmp/lent")), (LENT + 4, LENT + 5));
}

#[test]
fn every_verb_is_a_users_and_the_state_is_his_own() {
    let Some(worker) = Worker::for_test("every_verb_is_a_users_and_the_state_is_his_own") else { return };
    let bundle = worker.bundle(&["wait"]).with(json!({ "process": { "oomScoreAdj": 321 } }));
    let id = bundle.id().to_owned();
    let created = worker.call(&Worker::words("create", &bundle));
    assert_eq!(created.code, 0, "{}", created.stderr);
    let state = worker.state(&bundle);
    assert_eq!((&state["status"], &state["owner"]), (&json!("created"), &json!("prtworker")));
    let place = worker.world().path("user/portreeve/runtime").join(&id);
    assert_eq!(owner(&place), (USER, USER), "by default it lies in XDG_RUNTIME_DIR");
    // His own process, and closed to him: what it has open is the runtime's.
    let early = worker.call(&["exec", &id, "/prober", "report"]);
    assert_eq!(early.code, 255, "{}", early.stdout);
    assert!(early.stderr.contains("one that was not started yet is closed to everybody but root"), "{}", early.stderr);
    assert_eq!(worker.call(&["ps", "--format", "json", &id]).ok().trim(), json!([state["pid"]]).to_string());
    worker.call(&["kill", &id, "KILL"]).ok();
    wait_until("it has ended", 20, || match worker.state(&bundle)["status"].as_str() {
        Some("stopped") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    worker.call(&["delete", &id]).ok();

    worker.start_waiting(&bundle);
    let first = Report::parse(&worker.call(&["exec", &id, "/prober", "report"]).ok());
    let other = Report::parse(&worker.call(&["exec", "--user", "5:6", &id, "/prober", "report"]).ok());
    for report in [&first, &other] {
        assert_eq!(report["id_maps"]["uid"], json!([[0, USER, 1], [1, LENT, COUNT - 1]]));
        assert_eq!(report["oom_score_adj"], 321);
    }
    assert_eq!((&first["ids"]["uid"][0], &other["ids"]["uid"][0]), (&json!(0), &json!(5)));
    assert_eq!(first["namespaces"], other["namespaces"]);
    let sleeper = worker.begin(worker.command(&["exec", &id, "sleep", "1000"]));
    let listed = wait_until("both are listed", 20, || {
        let text = worker.call(&["ps", "--format", "json", &id]).ok();
        let pids: Vec<i32> = serde_json::from_str(&text).expect("JSON");
        if pids.len() == 2 { Ok(pids) } else { Err(text) }
    });
    assert!(worker.call(&["list"]).ok().contains(&id));
    assert_eq!(worker.runtime.call(&["list", "--quiet"]).ok(), "", "root has containers of its own");
    if cgroup_version() == 1 {
        for verb in [&["pause"][..], &["update", "--pids-limit", "5"]] {
            let refused = worker.call(&[verb, &[&id]].concat());
            assert_eq!(refused.code, 1, "{verb:?}");
            assert!(refused.stderr.contains("it has no cgroup of its own"), "{}", refused.stderr);
        }
    }
    worker.call(&["kill", "--all", &id, "TERM"]).ok();
    assert_eq!(sleeper.finish().code, 143);
    wait_until("every process has ended", 20, || {
        let left: Vec<_> = listed.iter().filter(|pid| Path::new(&format!("/proc/{pid}/cwd")).exists()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    worker.start_again(&bundle);
    worker.call(&["delete", "--force", &id]).ok();
    assert_eq!(worker.call(&["list", "--quiet"]).ok(), "");
    assert!(!place.exists());
    let program = worker.program.to_str().expect("a path in UTF-8");
    let lost = worker.begin(worker.command_of(&["env", "XDG_RUNTIME_DIR=/prt-nowhere", program, "list"])).finish();
    assert_eq!(lost.code, 1);
    assert!(lost.stderr.contains("name one by --root, or by XDG_RUNTIME_DIR"), "{}", lost.stderr);
}

impl Worker {
    /// Deletes it and has it wait anew.
    fn start_again(&self, bundle: &Bundle) {
        self.call(&["delete", bundle.id()]).ok();
        self.start_waiting(bundle);
    }
}

#[test]
fn a_user_alone_needs_nobody_to_map_his_id() {
    let Some(mut worker) = Worker::for_test("a_user_alone_needs_nobody_to_map_his_id") else { return };
    worker.path = "/nowhere";
    let report = worker.report(&alone(worker.bundle(&["report"])));
    let rows = json!([[0, USER, 1]]);
    assert_eq!(report["id_maps"], json!({ "uid": rows, "gid": rows, "setgroups": "deny" }));
    for (kind, point) in [("proc", "/proc"), ("sysfs", "/sys"), ("devpts", "/dev/pts"), ("mqueue", "/dev/mqueue")] {
        assert_eq!(report.mount(point).expect(point)["type"], kind);
    }
    let with_group = json!({ "process": { "user": { "additionalGids": [7] } } });
    let refused = worker.run(&alone(worker.bundle(&["report"])).with(with_group));
    assert_eq!(refused.code, 255);
    assert!(refused.stderr.contains("setting the groups [7] (a user namespace whose groups"), "{}", refused.stderr);
    let refused = worker.run(&mapped(worker.bundle(&["report"]), &json!([row(0, USER, 1)])));
    assert_eq!(refused.code, 255);
    assert!(refused.stderr.contains("gid have to be mapped into the container's user namespace"), "{}", refused.stderr);
    let as_other = json!({ "process": { "user": { "uid": 7 } } });
    let refused = worker.run(&alone(worker.bundle(&["report"])).with(as_other));
    assert!(refused.stderr.contains("becoming user 7 (it is not mapped into"), "{}", refused.stderr);
}

#[test]
fn ids_that_were_not_lent_and_a_helper_that_lacks_are_named() {
    let Some(mut worker) = Worker::for_test("ids_that_were_not_lent_and_a_helper_that_lacks_are_named") else { return };
    let rows = json!([row(0, USER, 1), row(1, LENT + COUNT, 10)]);
    let refused = worker.run(&mapped(worker.bundle(&["report"]), &rows));
    assert_eq!(refused.code, 255);
    for words in ["newuidmap", "not allowed", "/etc/subuid has to lend these ids"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    let groups = json!({ "linux": { "uidMappings": [row(0, USER, 1)] } });
    let refused = worker.run(&mapped(worker.bundle(&["report"]), &rows).with(groups));
    assert!(refused.stderr.contains("/etc/subgid has to lend these ids"), "{}", refused.stderr);
    // Root's ids are never lent.
    let refused = worker.run(&mapped(worker.bundle(&["report"]), &json!([row(0, 0, 1)])));
    assert!(refused.stderr.contains("newuidmap has not mapped 0 0 1"), "{}", refused.stderr);
    worker.path = "/nowhere";
    let refused = worker.run(&worker.bundle(&["report"]));
    assert_eq!(refused.code, 255);
    assert!(refused.stderr.contains("newuidmap is not on PATH"), "{}", refused.stderr);
    assert_eq!(worker.call(&["list", "--quiet"]).ok(), "", "nothing is left of them");
}

#[test]
fn the_configuration_that_spec_writes_for_a_user_runs() {
    let Some(worker) = Worker::for_test("the_configuration_that_spec_writes_for_a_user_runs") else { return };
    let bundle = worker.bundle_of(&[]);
    let path = bundle.path().to_str().expect("a path in UTF-8");
    worker.call(&["spec", "--rootless", "--bundle", path]).ok();
    // It has a terminal, and a shell as its program.
    let terminal = openpty(None, None).expect("a terminal");
    let program = worker.program.to_str().expect("a path in UTF-8");
    let mut command = worker.command_of(&["setsid", "--ctty", "--wait", program, "run", "--bundle", path, bundle.id()]);
    let stream = || Stdio::from(terminal.slave.try_clone().expect("another descriptor"));
    command.stdin(stream()).stdout(stream()).stderr(stream());
    let call = Call::from(command.spawn().expect("setsid of util-linux"));
    let lines = "id -u; ls -l /dev/console; echo x > /sys/fs/cgroup/x || echo no > /dev/tty; exit 5\n";
    rustix::io::write(&terminal.master, lines.as_bytes()).expect("a line for the shell");
    assert_eq!(call.finish().code, 5);
    // Without anybody at the other end it ends, by an error, when all of it was read.
    drop((command, terminal.slave));
    let (mut said, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = rustix::io::read(&terminal.master, &mut piece) {
        said.extend_from_slice(&piece[..length]);
    }
    let said = String::from_utf8_lossy(&said).into_owned();
    for words in ["0\r\n", "/dev/console", "Read-only file system", "no\r\n"] {
        assert!(said.contains(words), "{words:?}: {said}");
    }
}

#[test]
fn a_container_without_a_cgroup_that_is_the_users_runs_and_has_no_limits() {
    let test = "a_container_without_a_cgroup_that_is_the_users_runs_and_has_no_limits";
    let Some(worker) = Worker::for_test(test) else { return };
    let rules = json!({ "linux": { "resources": { "devices": [{ "allow": false, "access": "rwm" }], "memory": {} } } });
    let cgroup = format!("{}/{test}", worker.cgroup());
    for bundle in [
        worker.bundle(&["report"]),
        worker.bundle(&["report"]).with(rules),
        worker.bundle(&["report"]).with(json!({ "linux": { "cgroupsPath": cgroup } })),
    ] {
        let log = worker.home().join(format!("{}.log", bundle.id()));
        let log = log.to_str().expect("a path in UTF-8");
        let bundle = bundle.with_mount(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"],
        }));
        let report = worker.call(&[&["--log", log][..], &Worker::words("run", &bundle)].concat());
        let report = Report::parse(&report.ok());
        let text = std::fs::read_to_string(log).expect("the log");
        assert_eq!((text.lines().count(), text.matches(NO_CGROUP).count()), (1, 1), "{text}");
        assert!(text.contains("level=warning") && text.contains("Permission denied"), "{text}");
        // CVE-2023-25809: it is the caller's view, and nobody may write there whatever the mount says.
        for mount in report
            .mounts()
            .iter()
            .filter(|mount| mount["point"].as_str().is_some_and(|point| point.starts_with("/sys/fs/cgroup")))
        {
            assert!(mount.options().contains("ro"), "{mount:?}");
        }
    }
    for (name, limit) in [("memory", json!({ "limit": 1 << 25 })), ("pids", json!({ "limit": 5 }))] {
        let refused =
            worker.run(&worker.bundle(&["report"]).with(json!({ "linux": { "resources": { name: limit } } })));
        assert_eq!(refused.code, 255);
        let words = format!("linux.resources.{name} cannot be set: /sys/fs/cgroup");
        assert!(refused.stderr.contains(&words) && refused.stderr.contains("Delegate=yes"), "{}", refused.stderr);
    }
    assert_eq!(worker.call(&["list", "--quiet"]).ok(), "");
}

#[test]
fn a_cgroup_that_is_the_users_limits_his_containers() {
    let test = "a_cgroup_that_is_the_users_limits_his_containers";
    if cgroup_version() == 1 {
        return skipped(test, "version 1 of the cgroups is root's; the guests have version 2");
    }
    let Some(mut worker) = Worker::for_test(test) else { return };
    let above = worker.delegate();
    let limits = json!({ "linux": { "resources": { "pids": { "limit": 7 }, "memory": { "limit": 1 << 27 } } } });
    let asked = [
        // Beside the caller's own, by its id and by a path; and from the root down.
        (Value::Null, None),
        (json!("deep/er"), Some("deep/er".to_owned())),
        (json!(format!("{}/named", worker.cgroup())), Some("named".to_owned())),
    ];
    for (path, name) in asked {
        let bundle = worker.bundle(&["wait"]).with(limits.clone()).with(json!({ "linux": { "cgroupsPath": path } }));
        let id = bundle.id().to_owned();
        let place = PathBuf::from(&above).join(name.as_deref().unwrap_or(&id));
        let value = |file: &str| {
            let path = place.join(file);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            text.trim().to_owned()
        };
        worker.start_waiting(&bundle);
        assert_eq!((value("pids.max"), value("memory.max")), ("7".into(), (1 << 27).to_string()));
        assert_eq!(value("cgroup.procs"), worker.state(&bundle)["pid"].to_string());
        assert_eq!(owner(&place), (USER, USER));
        worker.call(&["pause", &id]).ok();
        assert_eq!(worker.state(&bundle)["status"], "paused");
        worker.call(&["resume", &id]).ok();
        worker.call(&["update", "--pids-limit", "9", &id]).ok();
        assert_eq!(value("pids.max"), "9");
        let tried = worker.call(&["exec", &id, "/prober", "fork", "20"]).ok();
        let tried: Value = serde_json::from_str(&tried).expect("JSON");
        assert!(tried["came_to_be"].as_u64().expect("a number") < 9 && tried["errno"] == "EAGAIN", "{tried}");
        worker.call(&["kill", "--all", &id, "KILL"]).ok();
        worker.call(&["delete", "--force", &id]).ok();
        assert!(!place.exists(), "it goes with the container");
    }
    remove_cgroup(&PathBuf::from(&above).join("deep"));
    // What is beside his own is not his.
    let foreign =
        worker.bundle(&["report"]).with(limits).with(json!({ "linux": { "cgroupsPath": "/prt-e2e-not-his" } }));
    let refused = worker.run(&foreign);
    assert!(
        refused.stderr.contains("linux.resources.memory, linux.resources.pids cannot be set"),
        "{}",
        refused.stderr
    );
    assert!(!Path::new("/sys/fs/cgroup/prt-e2e-not-his").exists());
}

#[test]
fn the_root_of_a_user_namespace_makes_containers_as_podman_does() {
    let test = "the_root_of_a_user_namespace_makes_containers_as_podman_does";
    let Some(mut worker) = Worker::for_test(test) else { return };
    // With a mount namespace that he may change, and without.
    for within in [
        &["unshare", "--map-root-user"][..],
        &["unshare", "--map-root-user", "--mount"],
        &["unshare", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc"],
    ] {
        worker.within = within;
        let shared = alone(worker.bundle(&["report"]))
            .with_namespace("user", None)
            .with(json!({ "linux": { "uidMappings": null, "gidMappings": null } }));
        let report = worker.report(&shared);
        assert_eq!(report["id_maps"]["uid"], json!([[0, USER, 1]]), "{within:?}");
        assert_eq!(report["devices"]["null"]["type"], "c", "{}", report["devices"]);
        let nested = mapped(alone(worker.bundle(&["report"])), &json!([row(0, 0, 1)]));
        assert_eq!(worker.report(&nested)["id_maps"]["uid"], json!([[0, 0, 1]]), "{within:?}");
    }
}

#[test]
fn what_needs_namespaces_of_its_own_is_the_hosts_where_they_are_shared() {
    let test = "what_needs_namespaces_of_its_own_is_the_hosts_where_they_are_shared";
    let Some(worker) = Worker::for_test(test) else { return };
    let bundle = worker
        .bundle(&["report"])
        .with_namespace("network", None)
        .with_namespace("pid", None)
        .with(json!({ "linux": { "maskedPaths": null, "readonlyPaths": null } }));
    let report = worker.report(&bundle);
    for (kind, point) in [("proc", "/proc"), ("sysfs", "/sys")] {
        let mount = report.mount(point).expect(point);
        assert_eq!(mount["type"], kind);
        assert!(mount.options().contains("ro"), "{point} is the host's: {mount:?}");
    }
    let lowered = json!({ "process": { "oomScoreAdj": -1000 } });
    let answer = worker.run(&worker.bundle(&["report"]).with(lowered));
    assert!(answer.stderr.contains("setting oom_score_adj to -1000: Permission denied"), "{}", answer.stderr);
    assert!(Report::parse(&answer.ok())["oom_score_adj"].as_i64() > Some(-1000));
    let shallow = json!({ "destination": "/mnt", "type": "bind", "source": "/", "options": ["bind"] });
    let refused = worker.run(&worker.bundle(&["report"]).with_mount(shallow));
    assert!(refused.stderr.contains("use rbind"), "{}", refused.stderr);
}

#[test]
fn cve_2019_5736_a_users_own_runtime_is_copied_before_a_container_is_entered() {
    let test = "cve_2019_5736_a_users_own_runtime_is_copied_before_a_container_is_entered";
    let Some(mut worker) = Worker::for_test(test) else { return };
    let his = worker.home().join("portreeve-runtime");
    // Root's file, which nobody in the container may write, is executed as it is.
    for (own, expected) in [(false, "/copy/portreeve-runtime"), (true, "/memfd:portreeve (deleted)")] {
        if own {
            std::fs::copy(&worker.program, &his).expect("a copy of the runtime");
            std::os::unix::fs::chown(&his, Some(USER), Some(USER)).expect("chown");
            worker.program.clone_from(&his);
        }
        let bundle = worker.bundle(&["wait"]);
        worker.call(&Worker::words("create", &bundle)).ok();
        let link = format!("/proc/{}/exe", worker.state(&bundle)["pid"]);
        let executed = std::fs::read_link(link).expect("its executable").display().to_string();
        // By the end of its path: /tmp may be a mount that the container has left.
        assert!(executed.ends_with(expected), "{executed}");
        worker.call(&["delete", "--force", bundle.id()]).ok();
    }
}

#[test]
fn one_that_is_being_made_without_a_cgroup_is_deleted() {
    let Some(worker) = Worker::for_test("one_that_is_being_made_without_a_cgroup_is_deleted") else { return };
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", "exec sleep 100"], "env": ["PATH=/usr/bin:/bin"] });
    let bundle = worker.bundle(&["wait"]).with(json!({ "hooks": { "createRuntime": [hook] } }));
    let creating = worker.begin(worker.command(&Worker::words("create", &bundle)));
    wait_until("it is being made", 20, || {
        let state = worker.call(&["state", bundle.id()]).stdout;
        if state.contains("\"creating\"") { Ok(()) } else { Err(state) }
    });
    // Until the hook runs it would end by itself.
    std::thread::sleep(std::time::Duration::from_millis(500));
    worker.call(&["delete", "--force", bundle.id()]).ok();
    let failed = creating.finish();
    assert_ne!(failed.code, 0, "who makes it is told");
    assert_eq!(worker.call(&["list", "--quiet"]).ok(), "");
}
