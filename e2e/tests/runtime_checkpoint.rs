//! Checkpoint and restore by the real CRIU: what a container was doing goes on, and what is not its own is found again.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use portreeve_e2e::{Answer, Bundle, Call, Runtime, cgroup_version, criu, patience, skipped, wait_until};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

/// Counts in a file, so that what is counted in memory is seen; a restart would begin at one.
const COUNTS: &str =
    "i=0; while :; do i=$((i+1)); echo $i > /tmp/new; busybox mv /tmp/new /tmp/count; sleep 0.02; done";

/// A runtime with a CRIU.
struct Case {
    runtime: Runtime,
    criu: PathBuf,
    /// Until the runtime has looked at what is left.
    _alone: Option<MutexGuard<'static, ()>>,
}

/// While CRIU works, the file system of version 2 lacks its options, which every test sees that looks at mounts.
static ALONE: Mutex<()> = Mutex::new(());

/// To be held for as long as there is a [`Runtime`].
fn alone() -> Option<MutexGuard<'static, ()>> {
    (cgroup_version() == 2).then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Case {
    fn for_test(test: &str) -> Option<Self> {
        let criu = criu(test)?;
        let alone = alone();
        Some(Self { runtime: Runtime::for_test(test)?, criu, _alone: alone })
    }

    fn counting(&self) -> Bundle {
        self.runtime.bundle_of(&["sh", "-c", COUNTS])
    }

    /// A place for images, which is made by the runtime.
    fn images(&self, name: &str) -> String {
        self.runtime.world().path(&format!("images/{name}")).to_str().expect("UTF-8").to_owned()
    }

    /// Runs a verb with CRIU, on streams that are no files of the host's: CRIU dumps none of these. A restored program
    /// keeps the streams, so what the runtime says itself goes to its log.
    fn call(&self, arguments: &[&str]) -> Answer {
        let said = self.runtime.world().path("said");
        drop(std::fs::remove_file(&said));
        let answer = self.begin(&said, arguments).finish();
        Answer { stderr: std::fs::read_to_string(&said).unwrap_or_default(), ..answer }
    }

    fn begin(&self, said: &Path, arguments: &[&str]) -> Call {
        let before = ["--log", said.to_str().expect("UTF-8"), "--criu", self.criu.to_str().expect("UTF-8")];
        let mut command = self.runtime.command(&[&before, arguments].concat());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Call::from(command.spawn().expect("nsenter of util-linux"))
    }

    /// Creates and starts, and waits until it counts.
    fn start(&self, bundle: &Bundle) {
        bundle.save();
        said_nothing(self.call(&["create", "--bundle", path(bundle), bundle.id()]));
        said_nothing(self.call(&["start", bundle.id()]));
        wait_until("it counts", 20, || if count(bundle) > 2 { Ok(()) } else { Err(count(bundle).to_string()) });
    }

    fn checkpoint(&self, bundle: &Bundle, images: &str, flags: &[&str]) -> Answer {
        self.call(&[&["checkpoint", "--image-path", images], flags, &[bundle.id()]].concat())
    }

    fn restore(&self, bundle: &Bundle, images: &str, flags: &[&str]) -> Answer {
        bundle.save();
        let all = [&["restore", "--detach", "--bundle", path(bundle), "--image-path", images], flags, &[bundle.id()]];
        self.call(&all.concat())
    }

    /// A checkpoint, a look that it stands still, and a restoration that goes on from there.
    fn round(&self, bundle: &Bundle, flags: &[&str]) {
        let images = self.images("round");
        said_nothing(self.checkpoint(bundle, &images, flags));
        assert_eq!(self.runtime.status(bundle), None, "it is deleted");
        let stood = stands(bundle);
        said_nothing(self.restore(bundle, &images, flags));
        goes_on(bundle, stood);
        assert_eq!(self.runtime.status(bundle).as_deref(), Some("running"));
    }
}

fn path(bundle: &Bundle) -> &str {
    bundle.path().to_str().expect("UTF-8")
}

fn said_nothing(answer: Answer) {
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""), "{}", answer.stdout);
}

fn count(bundle: &Bundle) -> u64 {
    let text = std::fs::read_to_string(bundle.root().join("tmp/count")).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// The count of a container of which nothing runs.
fn stands(bundle: &Bundle) -> u64 {
    let before = count(bundle);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(count(bundle), before, "nothing counts any more");
    before
}

/// Waits until more is counted than before; one that began again would be seen with less.
fn goes_on(bundle: &Bundle, stood: u64) {
    let now = wait_until("it counts again", 20, || {
        let now = count(bundle);
        if now == stood { Err(format!("it stands at {now}")) } else { Ok(now) }
    });
    assert!(now > stood, "{now} after {stood}");
    wait_until("it goes on counting", 20, || if count(bundle) > now + 2 { Ok(()) } else { Err(now.to_string()) });
}

#[test]
fn what_was_counted_goes_on_after_a_restoration() {
    let Some(case) = Case::for_test("what_was_counted_goes_on_after_a_restoration") else { return };
    let runtime = &case.runtime;
    let limits = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 20 } });
    let bundle = case.counting().with(json!({ "linux": { "resources": limits } }));
    case.start(&bundle);
    let pid = runtime.pid(&bundle);
    case.round(&bundle, &[]);

    assert_ne!(runtime.pid(&bundle), pid);
    let cgroup = |first, second| runtime.cgroup_value(&bundle, first, second);
    assert_eq!(cgroup("memory/memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(cgroup("pids/pids.max", "pids.max"), "20");
    for file in ["memory/cgroup.procs", "pids/cgroup.procs", "devices/cgroup.procs", "freezer/cgroup.procs"] {
        let inside = cgroup(file, "cgroup.procs");
        assert!(inside.lines().any(|line| line == runtime.pid(&bundle).to_string()), "{file}: {inside}");
    }

    // It is a container as any other.
    let report = runtime.exec(&bundle, &[], &["cat", "/tmp/count", "/proc/1/comm"]).ok();
    assert!(report.ends_with("\nsh\n"), "{report}");
    let clocks = "busybox readlink /proc/1/ns/time; busybox readlink /proc/self/ns/time";
    let clocks = runtime.exec(&bundle, &[], &["sh", "-c", clocks]).ok();
    let clocks: Vec<&str> = clocks.lines().collect();
    assert_eq!(clocks.first(), clocks.last(), "its further processes have its clocks");
    runtime.call(&["pause", bundle.id()]).ok();
    assert_eq!(runtime.status(&bundle).as_deref(), Some("paused"));
    stands(&bundle);
    runtime.call(&["resume", bundle.id()]).ok();
    let events: Value = serde_json::from_str(&runtime.call(&["events", "--stats", bundle.id()]).ok()).expect("JSON");
    assert_eq!(events["data"]["pids"]["limit"], 20);
    assert_ne!(runtime.call(&["start", bundle.id()]).code, 0, "it was started already");
    runtime.call(&["update", "--pids-limit", "30", bundle.id()]).ok();
    assert_eq!(cgroup("pids/pids.max", "pids.max"), "30");
    // And once more, from what was restored.
    case.round(&bundle, &[]);
    assert_eq!(cgroup("pids/pids.max", "pids.max"), "20", "as the bundle says");
    runtime.call(&["kill", bundle.id(), "KILL"]).ok();
    runtime.wait_status(&bundle, "stopped");
    runtime.call(&["delete", bundle.id()]).ok();
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn images_are_their_owners_alone() {
    let Some(case) = Case::for_test("images_are_their_owners_alone") else { return };
    let bundle = case.counting();
    case.start(&bundle);
    let images = case.images("deep/er");
    let logs = case.images("logs");
    said_nothing(case.checkpoint(&bundle, &images, &["--leave-running", "--work-path", &logs]));
    for directory in [&images, &logs] {
        assert_eq!(std::fs::metadata(directory).unwrap().permissions().mode() & 0o777, 0o700, "{directory}");
        for file in std::fs::read_dir(directory).unwrap().flatten() {
            let metadata = file.metadata().unwrap();
            assert_eq!(metadata.permissions().mode() & 0o077, 0, "{}", file.path().display());
            assert_eq!(metadata.uid(), 0);
        }
    }
    assert!(Path::new(&images).join("pstree.img").exists() && !Path::new(&images).join("dump.log").exists());
    assert!(Path::new(&logs).join("dump.log").exists());
}

#[test]
fn a_container_that_is_left_running_goes_on_and_comes_up_a_second_time() {
    let test = "a_container_that_is_left_running_goes_on_and_comes_up_a_second_time";
    let Some(case) = Case::for_test(test) else { return };
    let (runtime, bundle) = (&case.runtime, case.counting());
    case.start(&bundle);
    let (pid, images) = (runtime.pid(&bundle), case.images("left"));
    said_nothing(case.checkpoint(&bundle, &images, &["--leave-running"]));
    let then = count(&bundle);
    goes_on(&bundle, then);
    assert_eq!(runtime.pid(&bundle), pid);

    // Beside it: another name, another root file system, another cgroup.
    let second = case.counting();
    let pid_file = runtime.world().path("pid");
    said_nothing(case.restore(&second, &images, &["--pid-file", pid_file.to_str().unwrap()]));
    wait_until("the second counts", 20, || if count(&second) > 2 { Ok(()) } else { Err("it does not".to_owned()) });
    assert_eq!(std::fs::read_to_string(pid_file).unwrap(), runtime.pid(&second).to_string());
    let inside = runtime.cgroup_value(&second, "pids/cgroup.procs", "cgroup.procs");
    assert!(inside.lines().any(|line| line == runtime.pid(&second).to_string()), "{inside}");
    let first = runtime.cgroup_value(&bundle, "pids/cgroup.procs", "cgroup.procs");
    assert!(!first.lines().any(|line| line == runtime.pid(&second).to_string()), "{first}");
}

/// Each takes the options of cgroup2 away for a moment, and has to leave those that were there before both.
#[test]
fn two_checkpoints_at_once_leave_the_machine_as_it_was() {
    let Some(case) = Case::for_test("two_checkpoints_at_once_leave_the_machine_as_it_was") else { return };
    for round in 0..3 {
        let bundles = [case.counting(), case.counting()];
        bundles.iter().for_each(|bundle| case.start(bundle));
        let calls: Vec<Call> = bundles
            .iter()
            .map(|bundle| {
                let images = case.images(&format!("{round}-{}", bundle.id()));
                case.begin(
                    &case.runtime.world().path(bundle.id()),
                    &["checkpoint", "--image-path", &images, "--leave-running", bundle.id()],
                )
            })
            .collect();
        for call in calls {
            assert_eq!(call.finish().code, 0);
        }
        for bundle in &bundles {
            case.runtime.call(&["delete", "--force", bundle.id()]).ok();
        }
        assert_eq!(case.runtime.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn a_paused_container_is_paused_after_a_checkpoint() {
    let Some(case) = Case::for_test("a_paused_container_is_paused_after_a_checkpoint") else { return };
    let (runtime, bundle) = (&case.runtime, case.counting());
    case.start(&bundle);
    runtime.call(&["pause", bundle.id()]).ok();
    let stood = stands(&bundle);
    said_nothing(case.checkpoint(&bundle, &case.images("paused"), &["--leave-running"]));
    assert_eq!(runtime.status(&bundle).as_deref(), Some("paused"));
    said_nothing(case.checkpoint(&bundle, &case.images("paused"), &[]));
    assert_eq!(runtime.status(&bundle), None);
    said_nothing(case.restore(&bundle, &case.images("paused"), &[]));
    goes_on(&bundle, stood);
}

#[test]
fn mounts_of_the_host_are_found_again() {
    let Some(case) = Case::for_test("mounts_of_the_host_are_found_again") else { return };
    let runtime = &case.runtime;
    let (folder, other) = (runtime.world().path("volume"), runtime.world().path("other"));
    for place in [&folder, &other] {
        std::fs::create_dir_all(place.join("below")).unwrap();
        std::fs::write(place.join("who"), place.to_str().unwrap()).unwrap();
    }
    let mounted = |bundle: Bundle, folder: &Path| {
        let bind = |source: &Path, to: &str, options: Value| json!({ "destination": to, "source": source, "type": "bind", "options": options });
        bundle
            .with_mount(bind(folder, "/data/deep", json!(["rbind", "rw"])))
            .with_mount(bind(&folder.join("who"), "/data/deep/below/file", json!(["bind", "ro"])))
            // Through a link of the image.
            .with_mount(bind(folder, "/link/place", json!(["bind", "ro"])))
            .with_mount(json!({ "destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"] }))
            .with(json!({ "process": { "args": ["sh", "-c", format!("exec 5>/data/deep/open; echo kept > /scratch/file; {COUNTS}")] } }))
    };
    let link = |bundle: &Bundle| std::os::unix::fs::symlink("var", bundle.root().join("link")).unwrap();
    let bundle = mounted(case.counting(), &folder);
    link(&bundle);
    case.start(&bundle);
    let mounts = "while read -r a b c d e f rest; do case $e in /data*|/var*|/scratch|/proc/keys|/sys/firmware) echo $e ${f%%,*};; esac; done < /proc/self/mountinfo";
    let mounts = || {
        let text = runtime.exec(&bundle, &[], &["sh", "-c", mounts]).ok();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = mounts();
    assert!(before.contains(&"/data/deep/below/file ro".to_owned()), "{before:?}");
    assert!(before.contains(&"/var/place ro".to_owned()), "{before:?}");
    case.round(&bundle, &[]);
    assert_eq!(mounts(), before);
    let kept = runtime.exec(&bundle, &[], &["cat", "/scratch/file", "/proc/keys", "/link/place/who"]).ok();
    assert_eq!(kept, format!("kept\n{}", folder.display()));
    assert_ne!(runtime.exec(&bundle, &[], &["sh", "-c", "echo x > /link/place/who"]).code, 0, "it is read-only");

    // In another root file system, which has none of the mount points, with another volume.
    let images = case.images("moved");
    said_nothing(case.checkpoint(&bundle, &images, &["--leave-running"]));
    std::fs::write(other.join("open"), "").unwrap();
    let second = mounted(case.counting(), &other);
    link(&second);
    said_nothing(case.restore(&second, &images, &[]));
    let seen = runtime.exec(&second, &[], &["cat", "/scratch/file", "/data/deep/who", "/data/deep/below/file"]).ok();
    assert_eq!(seen, format!("kept\n{0}{0}", other.display()));
    let files = std::fs::read_dir(other.join("below")).unwrap().count();
    assert_eq!(files, 1, "the mount point of the file, and nothing else");
}

#[test]
fn cve_2024_8676_images_mount_nothing_of_the_host_that_the_configuration_does_not() {
    let test = "cve_2024_8676_images_mount_nothing_of_the_host_that_the_configuration_does_not";
    let Some(case) = Case::for_test(test) else { return };
    let secret = case.runtime.world().path("secret");
    std::fs::create_dir_all(&secret).unwrap();
    let mount = json!({ "destination": "/data", "source": secret, "type": "bind", "options": ["bind"] });
    let bundle = case.counting().with_mount(mount);
    case.start(&bundle);
    let images = case.images("mounts");
    said_nothing(case.checkpoint(&bundle, &images, &[]));
    let without = case.counting();
    let answer = case.restore(&without, &images, &[]);
    assert!(answer.code != 0 && answer.stderr.contains("No mapping for"), "{}", answer.stderr);
    assert_eq!((case.runtime.status(&without), count(&without)), (None, 0));
    assert_eq!(case.runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn pipes_of_the_caller_are_those_of_who_restores() {
    let Some(case) = Case::for_test("pipes_of_the_caller_are_those_of_who_restores") else { return };
    let runtime = &case.runtime;
    let line = "while read line; do echo you said $line; echo and this >&2; done; exit 7";
    let bundle = runtime.bundle_of(&["sh", "-c", line]);
    bundle.save();
    let criu = case.criu.to_str().unwrap();
    let begin = |arguments: &[&str]| {
        let mut command = runtime.command(&[&["--criu", criu], arguments].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("nsenter of util-linux")
    };
    let mut first = begin(&["run", "--bundle", path(&bundle), bundle.id()]);
    first.stdin.as_mut().unwrap().write_all(b"one\n").unwrap();
    let mut said = String::new();
    BufReader::new(first.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "you said one\n");
    let images = case.images("pipes");
    said_nothing(case.checkpoint(&bundle, &images, &[]));
    assert_eq!(first.wait().unwrap().code(), Some(128 + 9), "what waited for it saw it end");

    let mut second = begin(&["restore", "--bundle", path(&bundle), "--image-path", &images, bundle.id()]);
    second.stdin.as_mut().unwrap().write_all(b"two\nthree\n").unwrap();
    drop(second.stdin.take());
    let output = second.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "you said two\nyou said three\n");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors, "and this\nand this\n", "and nothing of CRIU's");
    assert_eq!(output.status.code(), Some(7), "the program's own code");
    assert_eq!(runtime.status(&bundle), None, "it was deleted at its end");
}

/// A socket at which a terminal is waited for.
fn console(runtime: &Runtime, name: &str) -> (String, mpsc::Receiver<OwnedFd>) {
    let path = runtime.world().path(name);
    let listener = UnixListener::bind(&path).expect("a socket");
    let (sender, answer) = mpsc::channel();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let mut data = [0; 64];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&stream, &mut [std::io::IoSliceMut::new(&mut data)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .expect("a message");
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                // Nobody waits any more where the test has failed.
                descriptors.for_each(|descriptor| drop(sender.send(descriptor)));
            }
        }
    });
    (path.to_str().expect("UTF-8").to_owned(), answer)
}

/// Types a line and reads until a line holds `text`.
fn types(master: &OwnedFd, line: &str, text: &str) {
    let mut file = File::from(master.try_clone().expect("another descriptor"));
    file.write_all(line.as_bytes()).expect("typing");
    let (sender, receiver) = mpsc::channel();
    let wanted = text.to_owned();
    std::thread::spawn(move || {
        let (mut said, mut buffer) = (String::new(), [0; 4096]);
        while !said.contains(&wanted)
            && let Ok(length @ 1..) = file.read(&mut buffer)
        {
            said += &String::from_utf8_lossy(&buffer[..length]);
        }
        drop(sender.send(said));
    });
    let said = receiver.recv_timeout(patience(20)).unwrap_or_else(|_| panic!("no {text:?} in time"));
    assert!(said.contains(text), "{said}");
}

#[test]
fn a_terminal_goes_to_who_restores() {
    let Some(case) = Case::for_test("a_terminal_goes_to_who_restores") else { return };
    let runtime = &case.runtime;
    let line = "said=; while read line; do said=\"$said $line\"; echo heard:$said; done";
    let bundle = runtime.bundle_of(&["sh", "-c", line]).with(json!({ "process": { "terminal": true } }));
    bundle.save();
    let (socket, answer) = console(runtime, "first");
    said_nothing(case.call(&["create", "--bundle", path(&bundle), "--console-socket", &socket, bundle.id()]));
    let master = answer.recv_timeout(patience(20)).expect("a terminal");
    said_nothing(case.call(&["start", bundle.id()]));
    types(&master, "one\n", "heard: one");
    let images = case.images("terminal");
    said_nothing(case.checkpoint(&bundle, &images, &[]));
    drop(master);

    let refused = case.restore(&bundle, &images, &[]);
    assert!(refused.code != 0 && refused.stderr.contains("--console-socket"), "{}", refused.stderr);
    let (socket, answer) = console(runtime, "second");
    said_nothing(case.restore(&bundle, &images, &["--console-socket", &socket]));
    let master = answer.recv_timeout(patience(20)).expect("a terminal");
    types(&master, "two\n", "heard: one two");
    assert_eq!(runtime.exec(&bundle, &[], &["sh", "-c", "busybox readlink /proc/1/fd/0"]).ok(), "/dev/pts/0\n");
}

#[test]
fn memory_that_was_dumped_before_is_not_dumped_again() {
    let test = "memory_that_was_dumped_before_is_not_dumped_again";
    let Some(case) = Case::for_test(test) else { return };
    // What nobody changes: too little for a huge page, into which the kernel would gather it at any time, as changed.
    let line = format!("kept=$(busybox head -c 524288 /dev/zero | busybox tr '\\0' x); {COUNTS}");
    let bundle = case.runtime.bundle_of(&["sh", "-c", &line]);
    case.start(&bundle);
    let (first, second, last) = (case.images("chain/1"), case.images("chain/2"), case.images("chain/3"));
    let pages = |images: &str| -> u64 {
        let files = std::fs::read_dir(images).unwrap().flatten();
        files
            .filter(|file| file.file_name().to_string_lossy().starts_with("pages-"))
            .map(|file| file.metadata().unwrap().len())
            .sum()
    };
    let answer = case.checkpoint(&bundle, &first, &["--pre-dump"]);
    if answer.stderr.contains("this kernel does not track changes of memory") {
        let then = count(&bundle);
        goes_on(&bundle, then);
        assert!(!Path::new(&first).exists(), "nothing is made");
        return skipped(test, "this kernel does not track changes of memory, and that is what was said");
    }
    said_nothing(answer);
    assert_eq!(case.runtime.status(&bundle).as_deref(), Some("running"), "it goes on");
    let then = count(&bundle);
    goes_on(&bundle, then);
    for wrong in [&["--parent-path", "../nowhere"][..], &["--parent-path", &first]] {
        let answer = case.checkpoint(&bundle, &second, wrong);
        assert!(answer.code != 0 && answer.stderr.contains(wrong[1].trim_start_matches("../")), "{}", answer.stderr);
    }
    said_nothing(case.checkpoint(&bundle, &second, &["--pre-dump", "--parent-path", "../1"]));
    said_nothing(case.checkpoint(&bundle, &last, &["--parent-path", "../2"]));
    let stood = stands(&bundle);
    let (all, changed) = (pages(&first), pages(&last));
    assert!(all > 512 << 10 && changed < 384 << 10, "{all} bytes at first, {changed} at last");
    said_nothing(case.restore(&bundle, &last, &[]));
    goes_on(&bundle, stood);
}

#[test]
fn only_what_runs_is_checkpointed_and_only_what_is_not_there_is_restored() {
    let test = "only_what_runs_is_checkpointed_and_only_what_is_not_there_is_restored";
    let Some(case) = Case::for_test(test) else { return };
    let (runtime, bundle, images) = (&case.runtime, case.counting(), case.images("states"));
    let refused = |answer: Answer, words: &str| {
        assert!(
            [1, 255].contains(&answer.code) && answer.stderr.contains(words),
            "{words}: {} {}",
            answer.code,
            answer.stderr
        );
    };
    refused(case.checkpoint(&bundle, &images, &[]), "container does not exist: ");
    bundle.save();
    said_nothing(case.call(&["create", "--bundle", path(&bundle), bundle.id()]));
    refused(case.checkpoint(&bundle, &images, &[]), "it is created, and has to be running");
    said_nothing(case.call(&["start", bundle.id()]));
    runtime.wait_status(&bundle, "running");
    refused(case.checkpoint(&bundle, &images, &["--lazy-pages"]), "--lazy-pages is not supported");
    said_nothing(case.checkpoint(&bundle, &images, &["--leave-running"]));
    refused(case.restore(&bundle, &images, &[]), "already exists");
    assert_eq!(runtime.status(&bundle).as_deref(), Some("running"), "and nothing has changed");
    runtime.call(&["kill", bundle.id(), "KILL"]).ok();
    runtime.wait_status(&bundle, "stopped");
    refused(case.checkpoint(&bundle, &images, &[]), "it is stopped, and has to be running");
    runtime.call(&["delete", bundle.id()]).ok();

    // Whoever could write to the images could change what is restored.
    let second = case.counting();
    let mode = |mode| std::fs::set_permissions(&images, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o722);
    refused(case.restore(&second, &images, &[]), "others may write to it");
    mode(0o700);
    std::os::unix::fs::chown(&images, Some(1000), None).unwrap();
    refused(case.restore(&second, &images, &[]), "belongs to another user");
    refused(case.checkpoint(&second, &images, &[]), "container does not exist: ");
    std::os::unix::fs::chown(&images, Some(0), None).unwrap();
    refused(case.restore(&second, &case.images("nowhere"), &[]), "opening ");
    std::fs::remove_file(Path::new(&images).join("pstree.img")).unwrap();
    refused(case.restore(&second, &images, &[]), "restore.log says: ");
    assert_eq!(runtime.status(&second), None, "and nothing is left of it");
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn what_criu_says_is_told_and_the_container_goes_on() {
    let Some(case) = Case::for_test("what_criu_says_is_told_and_the_container_goes_on") else { return };
    let (runtime, bundle) = (&case.runtime, case.counting());
    // Its output is a file of the host's, which is none of its own.
    runtime.create(&bundle, &[]).ok();
    runtime.call(&["start", bundle.id()]).ok();
    wait_until("it counts", 20, || if count(&bundle) > 2 { Ok(()) } else { Err("it does not".to_owned()) });
    let images = case.images("failed");
    let answer = case.checkpoint(&bundle, &images, &[]);
    assert_eq!(answer.code, 1);
    for words in ["CRIU could not checkpoint the container", "dump.log says: ", "Error", "/std"] {
        assert!(answer.stderr.contains(words), "{words}: {}", answer.stderr);
    }
    assert_eq!(answer.stderr.lines().count(), 1, "{}", answer.stderr);
    let then = count(&bundle);
    goes_on(&bundle, then);
    assert_eq!(runtime.status(&bundle).as_deref(), Some("running"));
}

#[test]
fn hooks_of_the_creation_run_again_and_those_of_the_end_at_a_checkpoint() {
    let test = "hooks_of_the_creation_run_again_and_those_of_the_end_at_a_checkpoint";
    let Some(case) = Case::for_test(test) else { return };
    let notes = case.runtime.world().path("notes");
    let hook = |name: &str| {
        let line = format!("echo {name} $(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/') >> {}", notes.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", line] }])
    };
    let points = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    let mut hooks = serde_json::Map::new();
    for point in points.into_iter().filter(|point| *point != "startContainer") {
        hooks.insert(point.to_owned(), hook(point));
    }
    let bundle = case.counting().with(json!({ "hooks": hooks }));
    case.start(&bundle);
    let said = || {
        let text = std::fs::read_to_string(&notes).unwrap_or_default();
        std::fs::write(&notes, "").unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(said().len(), 4);
    let images = case.images("hooks");
    said_nothing(case.checkpoint(&bundle, &images, &[]));
    let ended = said();
    assert!(ended.len() == 1 && ended[0].starts_with("poststop"), "{ended:?}");
    said_nothing(case.restore(&bundle, &images, &[]));
    let pid = case.runtime.pid(&bundle);
    assert_eq!(said(), [format!("prestart {pid}"), format!("createRuntime {pid}")]);
    said_nothing(case.checkpoint(&bundle, &images, &[]));
    drop(said());

    let failing = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo not today; exit 3"] }]);
    let bundle = bundle.with(json!({ "hooks": { "createRuntime": failing } }));
    let answer = case.restore(&bundle, &images, &[]);
    assert!(answer.code != 0 && answer.stderr.contains("not today"), "{}", answer.stderr);
    assert_eq!(case.runtime.status(&bundle), None);
    assert_eq!(case.runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn namespaces_that_were_joined_are_joined_again() {
    let Some(case) = Case::for_test("namespaces_that_were_joined_are_joined_again") else { return };
    let runtime = &case.runtime;
    let mut holder = runtime.world().command("unshare");
    let mut holder = holder.args(["--net", "--uts", "--ipc", "sleep", "1000"]).stdout(Stdio::null()).spawn().unwrap();
    let of_holder = |kind: &str| format!("/proc/{}/ns/{kind}", holder.id());
    let ours = std::fs::read_link("/proc/self/ns/ipc").unwrap();
    wait_until("the namespaces are there", 20, || {
        if std::fs::read_link(of_holder("ipc")).unwrap() == ours { Err("not yet".to_owned()) } else { Ok(()) }
    });
    let joined = |kind: &str, file: &str| Some(json!({ "type": kind, "path": of_holder(file) }));
    let bundle = case
        .counting()
        .with_namespace("network", joined("network", "net"))
        .with_namespace("ipc", joined("ipc", "ipc"))
        .with_namespace("uts", joined("uts", "uts"))
        .with(json!({ "hostname": null }));
    let same = || {
        for kind in ["net", "ipc", "uts"] {
            let of_container = format!("/proc/{}/ns/{kind}", runtime.pid(&bundle));
            assert_eq!(
                std::fs::read_link(of_container).unwrap(),
                std::fs::read_link(of_holder(kind)).unwrap(),
                "{kind}"
            );
        }
    };
    case.start(&bundle);
    same();
    case.round(&bundle, &[]);
    same();
    runtime.call(&["delete", "--force", bundle.id()]).ok();
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn what_could_not_come_back_is_refused_and_goes_on() {
    let Some(case) = Case::for_test("what_could_not_come_back_is_refused_and_goes_on") else { return };
    let bundle = case.counting().with_users(300_000, 65_536);
    case.start(&bundle);
    let images = case.images("users");
    let answer = case.checkpoint(&bundle, &images, &[]);
    assert!(answer.code != 0 && answer.stderr.contains("user namespace"), "{}", answer.stderr);
    assert!(!Path::new(&images).exists(), "nothing is made");
    let then = count(&bundle);
    goes_on(&bundle, then);
}

#[test]
fn cgroups_are_as_the_mode_says() {
    let Some(case) = Case::for_test("cgroups_are_as_the_mode_says") else { return };
    let runtime = &case.runtime;
    // As few as it takes: CRIU itself is not among them.
    let bundle = case.counting().with(json!({ "linux": { "resources": { "pids": { "limit": 6 } } } }));
    let mount =
        json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"] });
    let bundle = bundle.with_mount(mount);
    let inside = |bundle: &Bundle| {
        let processes = runtime.cgroup_value(bundle, "pids/cgroup.procs", "cgroup.procs");
        assert!(processes.lines().any(|line| line == runtime.pid(bundle).to_string()), "{processes}");
        let file = if cgroup_version() == 2 { "/sys/fs/cgroup/pids.max" } else { "/sys/fs/cgroup/pids/pids.max" };
        assert_eq!(runtime.exec(bundle, &[], &["cat", file]).ok(), "6\n", "it sees its own cgroup");
    };
    case.start(&bundle);
    inside(&bundle);
    case.round(&bundle, &["--manage-cgroups-mode", "soft"]);
    inside(&bundle);
    runtime.call(&["delete", "--force", bundle.id()]).ok();

    // Without a cgroup namespace its cgroups are mounts of the host's.
    let bundle =
        bundle.with_namespace("cgroup", None).with(json!({ "linux": { "resources": { "pids": { "limit": 6 } } } }));
    case.start(&bundle);
    inside(&bundle);
    case.round(&bundle, &[]);
    inside(&bundle);
    runtime.call(&["delete", "--force", bundle.id()]).ok();

    // With room for CRIU, which is in the container's cgroup in this mode.
    let bundle = case.counting().with(json!({ "linux": { "resources": { "pids": { "limit": 50 } } } }));
    case.start(&bundle);
    let images = case.images("ignored");
    said_nothing(case.checkpoint(&bundle, &images, &["--manage-cgroups-mode", "ignore"]));
    let stood = stands(&bundle);
    said_nothing(case.restore(&bundle, &images, &["--manage-cgroups-mode", "ignore"]));
    goes_on(&bundle, stood);
    let processes = runtime.cgroup_value(&bundle, "pids/cgroup.procs", "cgroup.procs");
    assert!(processes.lines().any(|line| line == runtime.pid(&bundle).to_string()), "{processes}");
}

#[test]
fn without_criu_or_with_an_old_one_the_reason_is_told() {
    let test = "without_criu_or_with_an_old_one_the_reason_is_told";
    let _alone = alone();
    let Some(runtime) = Runtime::for_test(test) else { return };
    let bundle = runtime.bundle(&["wait"]);
    runtime.start_waiting(&bundle);
    let images = runtime.world().path("images").to_str().unwrap().to_owned();
    // Says that it is 3.11, in the form of the protocol, to whatever it is asked.
    let old = runtime.world().path("old-criu");
    std::fs::write(&old, "#!/bin/sh\n/bin/dd bs=4096 count=1 <&3 >/dev/null 2>&1\nprintf '\\010\\012\\020\\001\\122\\004\\010\\003\\020\\013' >&3\n").unwrap();
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mute = runtime.world().path("mute-criu");
    std::fs::write(&mute, "#!/bin/sh\nexit 5\n").unwrap();
    std::fs::set_permissions(&mute, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (verb, directory) in [("checkpoint", None), ("restore", Some(path(&bundle)))] {
        let bundle_flag: Vec<&str> = directory.map_or(vec![], |directory| vec!["--bundle", directory]);
        let call = |criu: &str| {
            let id = if verb == "restore" { "other" } else { bundle.id() };
            let arguments = [&["--criu", criu, verb, "--image-path", &images], &bundle_flag[..], &[id]].concat();
            // As on a machine where it is not installed.
            let mut command = runtime.command_after("PATH=/nowhere; export PATH", &arguments);
            command.stdin(Stdio::null());
            runtime.begin(command).finish()
        };
        let cases = [
            ("", "CRIU is not installed (no criu in PATH): install it"),
            ("/nowhere/criu", "CRIU is not installed (there is no program /nowhere/criu): install it"),
            (old.to_str().unwrap(), "old-criu is CRIU 3.11.0, and at least 3.15 is needed"),
            (mute.to_str().unwrap(), "it exited with code 5 before it had answered"),
        ];
        for (criu, words) in cases {
            let answer = call(criu);
            assert_ne!(answer.code, 0, "{verb} {criu}");
            assert!(answer.stderr.contains(words), "{verb} {criu}: {}", answer.stderr);
        }
        assert_eq!(runtime.call(&[verb, "--help"]).code, 0, "by which podman asks whether it can be done");
    }
    assert!(!Path::new(&images).exists(), "nothing is made");
    assert_eq!(runtime.status(&bundle).as_deref(), Some("running"), "and nothing has changed");
    for verb in ["checkpoint", "restore"] {
        let words = ["--rootless", "true", verb, "--image-path", &images];
        let place = if verb == "restore" { &["--bundle", path(&bundle)][..] } else { &[] };
        let answer = runtime.call(&[&words, place, &[bundle.id()]].concat());
        assert_ne!(answer.code, 0);
        assert!(answer.stderr.contains("need the privileges of the machine's root"), "{}", answer.stderr);
    }
    let answer = runtime.call(&["--systemd-cgroup", "restore", "--image-path", &images, "other"]);
    assert!(answer.stderr.contains("--systemd-cgroup is not supported by restore"), "{}", answer.stderr);
}
