//! Containers that another runtime makes: its program is called, and what it leaves is this shim's child.
//!
//! ```text
//!   shim --create--> PROGRAM --fork--> container's first process     waits for PROGRAM start
//!    ^                  \-- ends; the shim is the subreaper --^
//!    |<------------------- SIGCHLD, as of our own -------------/
//! ```
//!
//! The shim answers nobody while a program runs: each call has a bound, and together they end before an agent gives the
//! shim up. Source of the verbs: runc's command line.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Process, Spec};
use portreeve_oci::cgroup::Cgroup;
use portreeve_oci::{RootFs, Stdio, WindowSize, attach};
use portreeve_sys::capability::{self, CAP_SYS_RESOURCE};
use portreeve_sys::process::{Pid, pidfd_open};
use portreeve_sys::{socket, terminal};
use rustix::fs::{CWD, Mode, OFlags};

use super::container::Refusal;
use super::process_id;
use crate::handler::{HandlerError, PATIENCE, Runtime};
use crate::protocol::Failure;
use crate::record;

/// How long making a container may take. With what undoes it, less than an agent waits for a shim.
const CREATE: Duration = Duration::from_secs(15);
/// How long starting one may take, and running a process in it.
const START: Duration = Duration::from_secs(10);
/// A program that has ended has sent the terminal before.
const TERMINAL: Duration = Duration::from_secs(1);

/// A process that a program has made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) terminal: Option<OwnedFd>,
    /// What the program said although all went well.
    pub(super) words: String,
}

impl Runtime {
    /// Makes a container from the configuration of a bundle. `users` is a process of the pod's own users; `ears` are our ends of its streams: what comes there before
    /// it is started is the program's.
    pub(super) fn create(
        &self,
        (id, bundle, cgroup): (&str, &Path, &Cgroup),
        mut spec: Spec,
        users: Option<i32>,
        rootfs: &RootFs,
        stdio: Stdio,
        ears: &[BorrowedFd<'_>],
    ) -> Result<Made, Refusal> {
        let made = (|| {
            attach::lay_out(&mut spec, rootfs, bundle).map_err(|error| Refusal::of(&error))?;
            for_others(&mut spec, self, process_id(), users);
            write(&bundle.join("config.json"), &spec)?;
            let mut command = self.command("create", bundle);
            command.arg("--bundle").arg(bundle);
            self.process("create", (id, bundle), command, stdio, ears)
        })();
        if made.is_err() {
            if cgroup.exists() {
                let _second_way = cgroup.kill_all();
            }
            self.forget_or_tell(id, bundle);
        }
        made
    }

    /// Lets a container execute its program.
    pub(super) fn start(&self, id: &str, bundle: &Path) -> Result<(), HandlerError> {
        self.tell("start", bundle, &[id], START)
    }

    /// Sends its first process a signal.
    pub(super) fn signal(&self, id: &str, bundle: &Path, signal: i32) -> Result<(), HandlerError> {
        self.tell("kill", bundle, &[id, &signal.to_string()], PATIENCE)
    }

    /// Runs a further process; `stdio` goes to it as it is.
    pub(super) fn exec(&self, id: &str, bundle: &Path, process: &Process, stdio: Stdio) -> Result<Made, Refusal> {
        let file = bundle.join("exec.json");
        let mut process = process.clone();
        if let Stdio::Terminal { size: Some(WindowSize { rows, columns }) } = &stdio {
            // It is there before the program asks.
            let size = oci_spec::runtime::BoxBuilder::default().height(u64::from(*rows)).width(u64::from(*columns));
            process.set_console_size(size.build().ok());
        }
        write(&file, &process)?;
        let mut command = self.command("exec", bundle);
        command.arg("--detach").arg("--process").arg(&file);
        let made = self.process("exec", (id, bundle), command, stdio, &[]);
        let _not_there = fs::remove_file(file);
        made.map_err(|refusal| {
            let code = program_error(&refusal.message);
            Refusal { kind: Failure::Program, code, ..refusal }
        })
    }

    /// Takes away what is left of a container; what stays is told in the shim's log.
    pub(super) fn forget_or_tell(&self, id: &str, bundle: &Path) {
        if let Err(left) = self.forget(id, bundle) {
            eprintln!("forgetting {id}: {left}");
        }
    }

    /// Calls it for something that leaves a process.
    fn process(
        &self,
        verb: &'static str,
        (id, bundle): (&str, &Path),
        mut command: Command,
        stdio: Stdio,
        ears: &[BorrowedFd<'_>],
    ) -> Result<Made, Refusal> {
        let context = |action: &'static str| move |error: io::Error| Refusal::context(action, &error);
        let pid_file = bundle.join(format!("{verb}.pid"));
        let _not_of_another = fs::remove_file(&pid_file);
        command.arg("--pid-file").arg(&pid_file);
        let (console, size, own_ear) = match stdio {
            Stdio::Terminal { size } => {
                let console = Console::listen(bundle).map_err(context("listening for a terminal"))?;
                command.arg("--console-socket").arg(console.path());
                let (ear, mouth) = io::pipe().map_err(context("making a pipe"))?;
                command.stdout(mouth.try_clone().map_err(context("copying a pipe"))?).stderr(mouth);
                (Some(console), size, Some(ear))
            }
            Stdio::Pipes { stdin, stdout, stderr } => {
                if let Some(stdin) = stdin {
                    command.stdin(stdin);
                }
                command.stdout(stdout).stderr(stderr);
                (None, None, None)
            }
            Stdio::Inherit => (None, None, None),
        };
        command.arg(id);
        let own_ears: Vec<BorrowedFd<'_>> = own_ear.iter().map(|ear| ear.as_fd()).collect();
        let ears = if own_ears.is_empty() { ears } else { &own_ears };
        let patience = if verb == "create" { CREATE } else { START };
        let said = self.call(command, verb, bundle, patience, ears).map_err(|error| Refusal::of(&error))?;
        let terminal = console.map(Console::terminal).transpose().map_err(context("receiving the terminal"))?;
        if let (Some(terminal), Some(size)) = (&terminal, size) {
            terminal::set_size(terminal.as_fd(), size.rows, size.columns).map_err(context("sizing the terminal"))?;
        }
        let (pid, pidfd) = child(&pid_file).map_err(context("finding the process that it has made"))?;
        let words = said.iter().map(|one| String::from_utf8_lossy(one)).collect::<String>().trim().to_owned();
        Ok(Made { pid, pidfd, terminal, words })
    }
}

/// The process whose id is in a file, a child of this shim since the program has ended that made it.
fn child(file: &Path) -> io::Result<(i32, OwnedFd)> {
    let text = fs::read_to_string(file)?;
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let pid = text.trim().parse::<u32>().ok().and_then(|number| Pid::from_raw(number.try_into().ok()?));
    let pid = pid.ok_or_else(|| wrong(format!("{} has {:?} in it", file.display(), text.trim())))?;
    let pidfd = pidfd_open(pid)?;
    let number = pid.as_raw_nonzero().get();
    // Source: proc_pid_status(5).
    let status = fs::read_to_string(format!("/proc/{number}/status"))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).map(str::trim);
    if parent != Some(process_id().to_string().as_str()) {
        return Err(wrong(format!(
            "process {number} is not left to whoever called the program: nobody would hear of its end"
        )));
    }
    Ok((number, pidfd))
}

fn write(path: &Path, value: &impl serde::Serialize) -> Result<(), Refusal> {
    let bytes = serde_json::to_vec(value).map_err(|error| Refusal::of(&error))?;
    let context = |error: io::Error| Refusal::context(&format!("writing {}", path.display()), &error);
    record::replace(path, &bytes, 0o600).map_err(context)
}

/// The exit code that a shell has for a program that cannot be run, by what a runtime says of it.
fn program_error(words: &str) -> i32 {
    let missing = ["no such file or directory", "not found"].iter().any(|known| words.to_lowercase().contains(known));
    if missing { 127 } else { 126 }
}

/// Where a program sends the terminal that it makes.
#[derive(Debug)]
struct Console {
    listener: UnixListener,
    directory: OwnedFd,
    file: PathBuf,
}

impl Console {
    const NAME: &str = "console.sock";

    /// In the bundle, which is the shim's alone.
    fn listen(bundle: &Path) -> io::Result<Self> {
        let file = bundle.join(Self::NAME);
        let _not_of_another = fs::remove_file(&file);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, bundle, flags, Mode::empty())?;
        // A socket's address may have 107 bytes only.
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), Self::NAME))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, directory, file })
    }

    /// As another process may call it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}/{}", process_id(), self.directory.as_raw_fd(), Self::NAME)
    }

    /// The terminal that was sent. Source: runc, docs/terminals.md: one message with one descriptor.
    fn terminal(self) -> io::Result<OwnedFd> {
        let none = || io::Error::new(io::ErrorKind::InvalidData, "none was sent to the console socket");
        let (stream, _) = self.listener.accept().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => none(),
            _ => error,
        })?;
        stream.set_read_timeout(Some(TERMINAL))?;
        let (_, fds) = socket::receive(stream.as_fd(), &mut [0; 4096])?;
        let terminal = fds.into_iter().next().ok_or_else(none)?;
        terminal::number_of(terminal.as_fd())?;
        Ok(terminal)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.file);
    }
}

/// What our own runtime has by living in this shim, said in words that another one understands.
fn for_others(spec: &mut Spec, runtime: &Runtime, shim: u32, users: Option<i32>) {
    let own = format!("/proc/{shim}/");
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    for namespace in &mut namespaces {
        if let Some(pid) = users.filter(|_| namespace.typ() == LinuxNamespaceType::User) {
            // runc understands the maps of a namespace by this path alone.
            namespace.set_path(Some(format!("/proc/{pid}/ns/user").into()));
        }
        let rest = namespace.path().as_ref().and_then(|path| path.strip_prefix("/proc/self").ok());
        if let Some(path) = rest.map(|rest| Path::new(&own).join(rest)) {
            namespace.set_path(Some(path));
        }
    }
    // Ours inherits those of the pod, in which the shim lives.
    let inherited = [
        (LinuxNamespaceType::Network, "net", runtime.network),
        (LinuxNamespaceType::Uts, "uts", runtime.network),
        (LinuxNamespaceType::Ipc, "ipc", runtime.ipc),
    ];
    for (kind, file, of_the_pod) in inherited {
        if of_the_pod && namespaces.iter().all(|one| one.typ() != kind) {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(kind);
            namespace.set_path(Some(Path::new(&own).join("ns").join(file)));
            namespaces.push(namespace);
        }
    }
    let mapped = (linux.uid_mappings().clone(), linux.gid_mappings().clone());
    linux.set_namespaces(Some(namespaces));
    spec.set_linux(Some(linux));
    // Ids of the pod's users: what the option alone means depends on the runtime.
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let is_mapped = mount.options().iter().flatten().any(|option| option == "idmap");
        if is_mapped && mount.uid_mappings().is_none() {
            mount.set_uid_mappings(mapped.0.clone());
            mount.set_gid_mappings(mapped.1.clone());
        }
    }
    if let Some(process) = spec.process_mut() {
        let score = process.oom_score_adj().map(|score| allowed(score, own_score(), may_lower_score()));
        process.set_oom_score_adj(score);
    }
}

/// Where a lower score is refused, the container can live with what it would inherit: others give up.
fn allowed(wanted: i32, own: Option<i32>, may_lower: bool) -> i32 {
    if may_lower { wanted } else { wanted.max(own.unwrap_or(wanted)) }
}

fn may_lower_score() -> bool {
    capability::get().is_ok_and(|sets| sets.effective & (1 << CAP_SYS_RESOURCE) != 0)
}

fn own_score() -> Option<i32> {
    let mut text = String::new();
    File::open("/proc/self/oom_score_adj").and_then(|mut file| file.read_to_string(&mut text)).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::shim::Pod;

    fn runtime(home: &Path, pod: &Pod) -> Runtime {
        fs::write(home.join("shim.json"), serde_json::to_vec(pod).unwrap()).unwrap();
        Runtime::of(home).unwrap()
    }

    #[test]
    fn what_is_inherited_or_meant_for_this_process_alone_is_said_by_paths_that_others_can_open() {
        let home = tempfile::tempdir().unwrap();
        let said = |network, ipc| {
            let pod = Pod { version: 1, network, ipc, runtime: Some("/bin/x".into()), ..Pod::default() };
            let mut spec: Spec = serde_json::from_value(json!({
                "ociVersion": "1.0.0", "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "oomScoreAdj": 7},
                "mounts": [
                    {"destination": "/a", "options": ["bind", "idmap"]}, {"destination": "/b", "options": ["bind"]},
                ],
                "linux": {
                    "namespaces": [
                        {"type": "mount"}, {"type": "user", "path": "/proc/self/fd/9"},
                        {"type": "pid", "path": "/proc/77/ns/pid"},
                    ],
                    "uidMappings": [{"containerID": 0, "hostID": 5, "size": 1}],
                    "gidMappings": [{"containerID": 0, "hostID": 6, "size": 1}],
                },
            }))
            .unwrap();
            for_others(&mut spec, &runtime(home.path(), &pod), 123, network.then_some(55));
            serde_json::to_value(&spec).unwrap()
        };
        let spec = said(true, true);
        let namespaces = |spec: &Value| {
            let all = spec["linux"]["namespaces"].as_array().unwrap().iter();
            let line =
                |one: &Value| format!("{} {}", one["type"].as_str().unwrap(), one["path"].as_str().unwrap_or("-"));
            all.map(line).collect::<Vec<_>>()
        };
        let own = |user: &'static str| ["mount -", user, "pid /proc/77/ns/pid"];
        let pods = ["network /proc/123/ns/net", "uts /proc/123/ns/uts", "ipc /proc/123/ns/ipc"];
        assert_eq!(namespaces(&spec), [own("user /proc/55/ns/user"), pods].concat());
        assert_eq!(namespaces(&said(false, false)), own("user /proc/123/fd/9"), "the node's");
        assert_eq!(spec["mounts"][0]["uidMappings"], spec["linux"]["uidMappings"]);
        assert_eq!(spec["mounts"][0]["gidMappings"], spec["linux"]["gidMappings"]);
        assert_eq!(spec["mounts"][1].get("uidMappings"), None);
    }

    #[test]
    fn a_score_that_cannot_be_lowered_stays_where_it_is() {
        assert_eq!((allowed(-997, Some(0), true), allowed(-997, Some(0), false)), (-997, 0));
        assert_eq!((allowed(900, Some(0), false), allowed(-997, None, false)), (900, -997));
    }

    #[test]
    fn the_code_of_a_program_that_cannot_be_run_is_a_shells() {
        for (words, code) in [
            ("exec: \"x\": executable file not found in $PATH", 127),
            ("open executable: No such file or directory", 127),
            ("permission denied", 126),
        ] {
            assert_eq!(program_error(words), code, "{words}");
        }
    }

    #[test]
    fn a_process_that_is_not_left_to_the_shim_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("pid");
        let of = |text: &str| {
            fs::write(&file, text).unwrap();
            child(&file).map(|(pid, _)| pid).map_err(|error| error.to_string())
        };
        let mut sleep = Command::new("sleep").arg("1000").spawn().unwrap();
        assert_eq!(of(&format!("{}\n", sleep.id())), Ok(sleep.id().try_into().unwrap()));
        assert!(of(&process_id().to_string()).unwrap_err().contains("is not left to"));
        for wrong in ["", "x", "-1", "0"] {
            assert!(of(wrong).unwrap_err().contains("in it"), "{wrong}");
        }
        sleep.kill().unwrap();
        sleep.wait().unwrap();
    }
}
