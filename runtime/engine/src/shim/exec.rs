//! Further processes in a running container.

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use oci_spec::runtime::Process;
use portreeve_oci::cgroup::Cgroup;
use portreeve_oci::{ContainerRef, Exec, Stdio, WindowSize};

use super::container::{Container, Refusal, specification};
use crate::protocol::{ExecCall, Failure};

/// How often the descendants of a process to be killed are looked for again.
const PASSES: usize = 8;

/// A process that takes longer to begin was stopped by another one of the container, and this shim waits meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// A process that runs.
#[derive(Debug)]
pub(super) struct Running {
    /// The number of its container.
    pub(super) container: u64,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

/// Runs a process with the container's user, environment and limits; the terminal's master comes back.
pub(super) fn exec(
    number: u64,
    container: &Container,
    call: ExecCall,
    fds: Vec<OwnedFd>,
) -> Result<(Running, Option<OwnedFd>), Refusal> {
    let spec = specification(container.directory())?;
    let template =
        spec.process().as_ref().ok_or_else(|| Refusal::new(Failure::Other, "the container has no process"))?;
    let process = process(template, &call);
    let stdio = if call.tty {
        Stdio::Terminal { size: call.size.map(|(columns, rows)| WindowSize { rows, columns }) }
    } else {
        pipes(&call, fds)?
    };
    if let Some(runtime) = container.foreign() {
        let made = runtime.exec(&container.id, container.directory(), &process, stdio)?;
        return Ok((Running { container: number, pid: made.pid, pidfd: made.pidfd }, made.terminal));
    }
    let reference = ContainerRef { pidfd: container.first(), spec: &spec, cgroup: Some(&container.cgroup) };
    let mut request = Exec::new(reference, &process, stdio);
    request.patience = Some(PATIENCE);
    match portreeve_oci::exec(request) {
        Ok(execed) => {
            let pid = execed.pid.as_raw_nonzero().get();
            Ok((Running { container: number, pid, pidfd: execed.pidfd }, execed.terminal))
        }
        Err(error) => {
            let refusal = Refusal::new(Failure::Program, crate::error::chain(&error));
            Err(Refusal { code: error.exit_code(), ..refusal })
        }
    }
}

fn process(template: &Process, call: &ExecCall) -> Process {
    let mut process = template.clone();
    process.set_args(Some(call.args.clone()));
    process.set_terminal(Some(call.tty));
    if let Some(cwd) = &call.cwd {
        process.set_cwd(cwd.into());
    }
    let mut env = process.env().clone().unwrap_or_default();
    let terminal = call.tty.then(|| "TERM=xterm".to_owned());
    let missing = terminal.filter(|_| !env.iter().any(|one| one.starts_with("TERM=")));
    for one in missing.iter().chain(&call.envs) {
        let name = one.split('=').next().unwrap_or_default();
        env.retain(|other| other.split('=').next() != Some(name));
        env.push(one.clone());
    }
    process.set_env(Some(env));
    process
}

fn pipes(call: &ExecCall, fds: Vec<OwnedFd>) -> Result<Stdio, Refusal> {
    let mut fds = fds.into_iter();
    let mut take = |wanted: bool| if wanted { fds.next() } else { None };
    let (stdin, stdout, stderr) = (take(call.stdin), take(call.stdout), take(call.stderr));
    let or_null = |fd: Option<OwnedFd>| match fd {
        Some(fd) => Ok(fd),
        None => fs::File::options().write(true).open("/dev/null").map(Into::into),
    };
    let context = |error: std::io::Error| Refusal::context("opening /dev/null", &error);
    Ok(Stdio::Pipes { stdin, stdout: or_null(stdout).map_err(context)?, stderr: or_null(stderr).map_err(context)? })
}

/// Kills a process, its descendants, and what its ended descendants left in its session, of which it is the leader.
/// They are stopped first, so that none escapes by forking meanwhile.
///
/// What has made a session of its own and outlived its parent is a daemon, and stays.
pub(crate) fn kill_tree(leader: i32, pidfd: BorrowedFd<'_>, cgroup: Option<&Cgroup>) {
    let signal = |pid: i32, signal| {
        // Descendants are named by number, from a list just read: they are stopped, or children of stopped ones.
        let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
    };
    let stop = nix::sys::signal::Signal::SIGSTOP;
    let mut tree = vec![leader];
    signal(leader, stop);
    for _ in 0..PASSES {
        let before = tree.len();
        // The leader has not been reaped, so nobody else's session has its number.
        for pid in cgroup.map(members).unwrap_or_default() {
            if session(pid) == Some(leader) && !tree.contains(&pid) {
                signal(pid, stop);
                tree.push(pid);
            }
        }
        let mut next = 0;
        while let Some(&parent) = tree.get(next) {
            for child in children(parent) {
                if !tree.contains(&child) {
                    signal(child, stop);
                    tree.push(child);
                }
            }
            next += 1;
        }
        if tree.len() == before {
            break;
        }
    }
    for pid in tree.iter().skip(1) {
        signal(*pid, nix::sys::signal::Signal::SIGKILL);
    }
    let _gone = portreeve_sys::process::pidfd_send_signal(pidfd, nix::libc::SIGKILL);
}

fn members(cgroup: &Cgroup) -> Vec<i32> {
    cgroup.processes().unwrap_or_default().into_iter().map(|pid| pid.as_raw_nonzero().get()).collect()
}

/// The session of a process. Source: proc_pid_stat(5), field 6; the name before it may have any byte in it.
fn session(pid: i32) -> Option<i32> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_ascii_whitespace().nth(3)?.parse().ok()
}

fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<_>>())
        .collect()
}
