//! The floor under the verbs of an OCI runtime, and the stop-watch that holds a runtime beside it.
//!
//! Each verb makes the system calls that its result takes, one after the other, for the bundle of `e2e/bench runtime`
//! alone: it reads no configuration, decides nothing, and cleans nothing up when a call fails. What adds nothing that
//! could be measured, capabilities and limits of the process, is left out.
//!
//! ```text
//! floor run ROOT ASKED... -- PROGRAM...             clone, mounts, pivot_root, execve, wait, rmdir; ends as the program
//! floor create STATE ROOT ASKED... -- PROGRAM...    the same up to execve, for which the process then waits
//! floor start STATE                                 lets it execute
//! floor exec STATE ASKED... -- PROGRAM...           clone, setns, execve, wait; ends as the program
//! floor state STATE                                 says the pid
//! floor delete STATE ASKED...                       kill, poll, rmdir
//! floor time JOIN USAGE HIDDEN PROGRAM...           measures a program, from inside the cgroup whose file JOIN takes a 0
//! ```
//!
//! `ASKED` are the directories of the container's cgroups, and lines `FILE=VALUE` to write into them. `time` prints five
//! lines: nanoseconds of wall time, the largest resident set in KiB of the program and of what it waited for, its exit
//! code, and the first line of the file USAGE before and after. The mount HIDDEN, unless that is empty, is out of the
//! program's sight.
//!
//! Linked statically: `cargo rustc --release -p portreeve-sys --example floor -- -C target-feature=+crt-static
//! -C relocation-model=static`.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Instant;

use portreeve_sys::clone::{Child, Clone3, NEW_CGROUP, NEW_IPC, NEW_MOUNT, NEW_NET, NEW_PID, NEW_UTS, clone3};
use portreeve_sys::exec::execve;
use portreeve_sys::mount::{
    Change, NO_DEV, NO_EXEC, NO_SUID, Propagation, READ_ONLY, STRICT_ATIME, attach, clone_tree, clone_tree_of, create,
    detach, new_filesystem, pivot_root, set_attributes, set_string,
};
use portreeve_sys::namespace::{enter, set_host_name, unshare};
use portreeve_sys::process::{Exit, Pid, has_ended, pidfd_open, pidfd_send_signal, set_no_new_privileges, wait};
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mkdirat, mkfifoat, mknodat, openat, symlinkat, unlink};
use rustix::io::Errno;

type Failure = Box<dyn std::error::Error>;

/// File systems in the order of the bundle: type, place below the root, options, attributes.
type FileSystem = (&'static str, &'static str, &'static [(&'static str, &'static str)], u64);

const FILE_SYSTEMS: [FileSystem; 6] = [
    ("proc", "proc", &[], 0),
    ("tmpfs", "dev", &[("mode", "755"), ("size", "65536k")], NO_SUID | STRICT_ATIME),
    ("devpts", "dev/pts", &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")], NO_SUID | NO_EXEC),
    ("tmpfs", "dev/shm", &[("mode", "1777"), ("size", "65536k")], NO_SUID | NO_EXEC | NO_DEV),
    ("mqueue", "dev/mqueue", &[], NO_SUID | NO_EXEC | NO_DEV),
    ("sysfs", "sys", &[], NO_SUID | NO_EXEC | NO_DEV | READ_ONLY),
];

const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

const READ_ONLY_PATHS: [&str; 5] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];

const MASKED_PATHS: [&str; 10] = [
    "proc/acpi",
    "proc/asound",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/sched_debug",
    "sys/firmware",
    "proc/scsi",
];

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run", root, asked @ ..] => run(root, &Asked::read(asked)?),
        ["create", state, root, asked @ ..] => make_waiting(state, root, &Asked::read(asked)?),
        ["start", state] => Ok(OpenOptions::new().write(true).open(in_state(state, GATE))?.write_all(b"x")?),
        ["exec", state, asked @ ..] => exec(state, &Asked::read(asked)?),
        ["state", state] => Ok(writeln!(io::stdout(), "{}", std::fs::read_to_string(in_state(state, PID))?)?),
        ["delete", state, asked @ ..] => delete(state, &Asked::read(asked)?),
        ["time", join, usage, hidden, program, arguments @ ..] => {
            if !hidden.is_empty() {
                unshare(NEW_MOUNT)?;
                detach(Path::new(hidden))?;
            }
            time(join, usage, program, arguments)
        }
        _ => Err("usage: floor run|create|start|exec|state|delete|time ...".into()),
    }
}

/// What the command line asks for.
#[derive(Default)]
struct Asked<'a> {
    cgroups: Vec<&'a Path>,
    writes: Vec<(&'a str, &'a str)>,
    program: Vec<CString>,
}

impl<'a> Asked<'a> {
    fn read(words: &[&'a str]) -> Result<Self, Failure> {
        let mut asked = Self::default();
        let mut words = words.iter();
        for word in words.by_ref().take_while(|word| **word != "--") {
            match word.split_once('=') {
                Some(write) => asked.writes.push(write),
                None => asked.cgroups.push(Path::new(*word)),
            }
        }
        asked.program = words.map(|word| CString::new(*word)).collect::<Result<_, _>>()?;
        Ok(asked)
    }

    /// Becomes the program; returns only why not.
    fn execute(&self) -> io::Error {
        match (self.program.first(), CString::new("PATH=/usr/sbin:/usr/bin:/sbin:/bin")) {
            (Some(program), Ok(path)) => execve(program, &self.program, &[path]),
            _ => io::ErrorKind::InvalidInput.into(),
        }
    }
}

/// What joins the container's cgroups: `tasks` of each under version 1, the directory under version 2.
struct Join {
    tasks: Vec<File>,
    unified: Option<File>,
}

impl Join {
    fn open(cgroups: &[&Path]) -> io::Result<Self> {
        let mut join = Self { tasks: Vec::with_capacity(cgroups.len()), unified: None };
        for cgroup in cgroups {
            match OpenOptions::new().write(true).open(cgroup.join("tasks")) {
                Ok(tasks) => join.tasks.push(tasks),
                Err(error) if error.kind() == io::ErrorKind::NotFound => join.unified = Some(File::open(cgroup)?),
                Err(error) => return Err(error),
            }
        }
        Ok(join)
    }

    /// Joins those that a clone is not born in.
    fn enter(&self) -> io::Result<()> {
        self.tasks.iter().try_for_each(|mut tasks| tasks.write_all(b"0"))
    }

    fn clone(&self, namespaces: u64, body: impl FnOnce() -> io::Result<Infallible>) -> io::Result<Child> {
        let cgroup = self.unified.as_ref().map(File::as_fd);
        clone3(&Clone3 { namespaces, cgroup, ..Clone3::default() }, || {
            let Err(error) = body();
            eprintln!("floor: in the container: {error}");
            1
        })
    }
}

fn run(root: &str, asked: &Asked<'_>) -> Result<(), Failure> {
    let child = make(root, asked, || Ok(()))?;
    let exit = wait(child.pidfd.as_fd())?;
    remove(&asked.cgroups)?;
    end_as(exit)
}

fn end_as(exit: Exit) -> ! {
    std::process::exit(match exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => 128 + signal,
    })
}

/// Makes the cgroups, and a process that is in them, and in a container, when it calls `gate` and then executes.
fn make(root: &str, asked: &Asked<'_>, gate: impl FnOnce() -> io::Result<()>) -> io::Result<Child> {
    for cgroup in &asked.cgroups {
        mkdirat(CWD, *cgroup, Mode::from_raw_mode(0o755))?;
    }
    for (file, value) in &asked.writes {
        OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())?;
    }
    let join = Join::open(&asked.cgroups)?;
    join.clone(NEW_PID | NEW_MOUNT | NEW_NET | NEW_IPC | NEW_UTS, || {
        join.enter()?;
        unshare(NEW_CGROUP)?;
        set_host_name("probed")?;
        pivot_root(fill(root)?.as_fd())?;
        set_no_new_privileges()?;
        gate()?;
        Err(asked.execute())
    })
}

/// Attaches the root, and in it everything that the bundle mounts; the descriptor is of the root.
fn fill(path: &str) -> io::Result<OwnedFd> {
    let host = place(CWD, "/")?;
    let private = Change { propagation: Some(Propagation::Private), recursive: true, ..Change::default() };
    set_attributes(host.as_fd(), &private)?;
    let root = clone_tree(CWD, Path::new(path), true, false)?;
    attach(root.as_fd(), place(CWD, path)?.as_fd())?;
    rustix::process::umask(Mode::empty());
    for (kind, target, options, attributes) in FILE_SYSTEMS {
        let filesystem = new_filesystem(kind)?;
        for (key, value) in options {
            set_string(filesystem.as_fd(), key, value)?;
        }
        let mount = create(filesystem.as_fd(), attributes)?;
        if target.starts_with("dev/") {
            mkdirat(&root, target, Mode::from_raw_mode(0o755))?;
        }
        attach(mount.as_fd(), place(root.as_fd(), target)?.as_fd())?;
    }
    let devices = place(root.as_fd(), "dev")?;
    for (name, major, minor) in NODES {
        mknodat(&devices, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(major, minor))?;
    }
    for (target, name) in LINKS {
        symlinkat(target, &devices, name)?;
    }
    for path in READ_ONLY_PATHS {
        let Some(target) = existing(root.as_fd(), path)? else { continue };
        let tree = clone_tree_of(target.as_fd(), true)?;
        set_attributes(tree.as_fd(), &Change { set: READ_ONLY, recursive: true, ..Change::default() })?;
        attach(tree.as_fd(), target.as_fd())?;
    }
    let null = place(devices.as_fd(), "null")?;
    for path in MASKED_PATHS {
        let Some(target) = existing(root.as_fd(), path)? else { continue };
        let is_directory = FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode).is_dir();
        let mask = if is_directory {
            create(new_filesystem("tmpfs")?.as_fd(), READ_ONLY)?
        } else {
            clone_tree_of(null.as_fd(), false)?
        };
        attach(mask.as_fd(), target.as_fd())?;
    }
    Ok(root)
}

/// A place to mount at.
fn place(directory: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    Ok(openat(directory, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// The same, unless there is no such path here.
fn existing(directory: BorrowedFd<'_>, path: &str) -> io::Result<Option<OwnedFd>> {
    match place(directory, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// A named pipe in the state directory, at which a created process waits.
const GATE: &str = "gate";
/// The file with its id.
const PID: &str = "pid";

fn in_state(state: &str, name: &str) -> String {
    format!("{state}/{name}")
}

fn make_waiting(state: &str, root: &str, asked: &Asked<'_>) -> Result<(), Failure> {
    mkdirat(CWD, state, Mode::from_raw_mode(0o700))?;
    mkfifoat(CWD, in_state(state, GATE), Mode::from_raw_mode(0o600))?;
    // Open for both, so that it waits for nobody now, and a `start` for nobody later.
    let mut gate = OpenOptions::new().read(true).write(true).open(in_state(state, GATE))?;
    let (mut ready, mut say) = io::pipe()?;
    let child = make(root, asked, || {
        say.write_all(b"x")?;
        gate.read_exact(&mut [0])
    })?;
    drop(say);
    ready.read_exact(&mut [0])?;
    Ok(std::fs::write(in_state(state, PID), child.pid.as_raw_nonzero().to_string())?)
}

fn process(state: &str) -> Result<OwnedFd, Failure> {
    let pid = Pid::from_raw(std::fs::read_to_string(in_state(state, PID))?.parse()?).ok_or("the pid is 0")?;
    Ok(pidfd_open(pid)?)
}

fn exec(state: &str, asked: &Asked<'_>) -> Result<(), Failure> {
    let container = process(state)?;
    let join = Join::open(&asked.cgroups)?;
    enter(container.as_fd(), NEW_PID)?;
    let child = join.clone(0, || {
        join.enter()?;
        enter(container.as_fd(), NEW_MOUNT | NEW_NET | NEW_IPC | NEW_UTS | NEW_CGROUP)?;
        set_no_new_privileges()?;
        Err(asked.execute())
    })?;
    end_as(wait(child.pidfd.as_fd())?)
}

fn delete(state: &str, asked: &Asked<'_>) -> Result<(), Failure> {
    let container = process(state)?;
    pidfd_send_signal(container.as_fd(), 9)?;
    has_ended(container.as_fd(), -1)?;
    remove(&asked.cgroups)?;
    unlink(in_state(state, GATE))?;
    unlink(in_state(state, PID))?;
    Ok(std::fs::remove_dir(state)?)
}

/// Removes cgroups whose last process has ended, or does so just now.
fn remove(cgroups: &[&Path]) -> io::Result<()> {
    for cgroup in cgroups {
        loop {
            match rustix::fs::rmdir(*cgroup) {
                Err(Errno::BUSY) => rustix::thread::sched_yield(),
                other => break other?,
            }
        }
    }
    Ok(())
}

fn time(join: &str, usage: &str, program: &str, arguments: &[&str]) -> Result<(), Failure> {
    OpenOptions::new().write(true).open(join)?.write_all(b"0")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(null.try_clone()?).stdout(null);
    // What this process itself has used so far is charged when it leaves the processor.
    rustix::thread::sched_yield();
    let before = first_line(usage)?;
    let begun = Instant::now();
    let (status, used) = reap(command.spawn()?.id())?;
    let wall = begun.elapsed();
    let after = first_line(usage)?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(write!(io::stdout(), "{}\n{}\n{code}\n{before}\n{after}\n", wall.as_nanos(), used.ru_maxrss)?)
}

fn first_line(path: &str) -> io::Result<String> {
    Ok(std::fs::read_to_string(path)?.lines().next().unwrap_or_default().to_owned())
}

/// Waits for a child's end; also says what it used. wait4(2).
fn reap(pid: u32) -> Result<(ExitStatus, libc::rusage), Failure> {
    let pid = libc::pid_t::try_from(pid)?;
    let mut status = 0;
    // SAFETY: the structure is plain numbers, and zero is a value of each.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: status and structure are live and of the types that the call fills.
    if unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut used) } != pid {
        return Err(io::Error::last_os_error().into());
    }
    Ok((ExitStatus::from_raw(status), used))
}
