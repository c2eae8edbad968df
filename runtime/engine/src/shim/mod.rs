//! The shim: one small single-threaded process per sandbox, parent of the pod's containers.
//!
//! ```text
//!   agent: mkdir <dir>, write shim.json, bind shim.sock --spawn--> portreeve shim <dir>      (stdin: the listener)
//!                                                                     | cgroup, session, subreaper
//!                                                                     | namespaces of the pod, hostname, sysctls, shm
//!                                                                     v
//!                    poll: listener, agents, SIGCHLD, containers' outputs, attached clients
//! ```
//!
//! It outlives the agent, and every agent that comes after finds it by its socket. It decides nothing: it holds what
//! has to be held by a parent (streams, exit codes) and does what needs a single-threaded parent (clone). When it
//! dies, its socket closes, and the agent kills its containers by their cgroups.
//!
//! Hooks of a container that run beside it are its children for a moment: of a creation and a start before the answer, of
//! an end after it was announced. They see what the agent sees, not the pod's namespaces. It does nothing else meanwhile,
//! so they have a bound.
//!
//! **Invariant:** there is one thread, and no tokio. **Invariant:** an exit is in `exit.json` before it is announced.
//!
//! With another runtime (`foreign`) it calls that one's program in place of `portreeve-oci`, and all else is the same.
//!
//! Memory: at most 0.5 MiB PSS. A container's specification is read from disk when it is needed and dropped again;
//! nothing is kept per line, per request or per ended process.

mod call;
mod connection;
mod container;
mod exec;
mod foreign;
mod log;
mod output;
mod pause;
mod pod;
mod run;
mod visible;

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

pub(crate) use container::HOOKS;
pub(crate) use exec::kill_tree;
use pod::PodError;
pub(crate) use pod::{Pod, Scope};

/// Why a shim cannot begin; the agent reads it from the shim's log.
#[derive(Debug, thiserror::Error)]
enum ShimError {
    #[error("usage: portreeve shim DIRECTORY (with the listener as standard input)")]
    Usage,
    #[error("{action}")]
    Setup {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("setting up the pod")]
    Pod(#[from] PodError),
}

fn setup<T>(action: &'static str, result: Result<T, impl Into<io::Error>>) -> Result<T, ShimError> {
    result.map_err(|source| ShimError::Setup { action, source: source.into() })
}

/// Becomes the shim of one sandbox: never returns. `args` are those after `shim`.
///
/// The caller has one thread and has opened nothing: this is called first in `main`.
pub fn main(args: impl Iterator<Item = OsString>) -> ! {
    let mut args = args;
    let directory = args.next().map(PathBuf::from).filter(|_| args.next().is_none());
    let result = directory.ok_or(ShimError::Usage).and_then(|directory| begin(&directory));
    let code = match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}", crate::error::chain(&error));
            1
        }
    };
    std::process::exit(code)
}

fn begin(directory: &Path) -> Result<(), ShimError> {
    let listener = UnixListener::from(setup("taking the listener", portreeve_sys::fd::adopt(0))?);
    setup("taking the listener", listener.set_nonblocking(true))?;
    let null = setup("opening /dev/null", std::fs::File::options().read(true).write(true).open("/dev/null"))?;
    setup("replacing standard input", portreeve_sys::process::place_fd(&null, 0))?;
    // A session of its own: no terminal's signals, and nobody else's job.
    let _already_leader = nix::unistd::setsid();
    setup("becoming subreaper", portreeve_sys::process::set_child_subreaper(true))?;
    setup("hiding from containers", portreeve_sys::process::set_dumpable(false))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    setup("leaving the working directory", std::env::set_current_dir("/"))?;
    let signals = setup("listening for ended children", run::child_signals())?;
    let namespaces = pod::enter(directory)?;
    run::run(run::Shim::new(directory.to_owned(), listener, signals, namespaces));
    Ok(())
}

fn process_id() -> u32 {
    std::process::id()
}
