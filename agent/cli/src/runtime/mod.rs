//! `portreeve runtime`, or a link to the binary whose name begins with `portreeve-runtime`: an OCI runtime with runc's
//! command line.
//!
//! **Invariant:** one thread from beginning to end, no async runtime: the process that makes a container, or enters
//! one, is cloned from this one.
//! **Invariant:** what the caller has open beyond the standard streams reaches nobody, but for the descriptors that
//! `--preserve-fds` and `LISTEN_FDS` name.

mod arguments;
mod checkpoint;
mod console;
mod create;
mod creation;
mod delete;
mod events;
mod exec;
mod features;
mod kill;
mod list;
mod log;
mod pause;
mod pidfile;
mod protect;
mod ps;
mod relay;
mod restore;
mod run;
mod spec;
mod start;
mod state;
mod streams;
mod systemd;
mod update;
mod version;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use portreeve_oci::lifecycle::{Container, Id, LifecycleError, Root, Rootless};
use portreeve_sys::self_exe::ReadOnlyPlace;

use arguments::{Global, Verb};
use log::Log;
use streams::Passed;

/// Whether a program of this name, with this first argument, is the runtime.
pub(crate) fn is_runtime(program: &OsStr, first: Option<&OsStr>) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default();
    name.as_bytes().starts_with(b"portreeve-runtime") || first.is_some_and(|word| word == "runtime")
}

/// Becomes the runtime: never returns. `arguments` are all of the process's, its name included.
///
/// The caller has one thread and has opened nothing: this is called first in `main`.
pub(crate) fn main(arguments: impl Iterator<Item = OsString>) -> ! {
    let mut arguments: Vec<OsString> = arguments.skip(1).collect();
    if arguments.first().is_some_and(|word| word == "runtime") {
        arguments.remove(0);
    }
    std::process::exit(perform(&arguments))
}

/// Does what the arguments say; answers the exit code, after having said what went wrong.
fn perform(arguments: &[OsString]) -> i32 {
    portreeve_sys::process::heed_children();
    let unlogged = |error: anyhow::Error| {
        Log::standard_error().error(&format!("{error:#}"));
        1
    };
    let (global, asked, rest) = match arguments::globals(arguments) {
        Ok(read) => read,
        Err(error) => return unlogged(error.into()),
    };
    let verb = asked.map_or_else(|| arguments::verb(rest), Ok).map_err(anyhow::Error::from);
    let (failure, ready) = match verb {
        Ok(verb) => (failure_code(&verb), prepare(&verb).map(|prepared| (verb, prepared))),
        Err(error) => (1, Err(error)),
    };
    let log = match Log::open(&global) {
        Ok(log) => log,
        Err(error) => return unlogged(error),
    };
    let runtime = Runtime { global, log };
    match ready.and_then(|(verb, prepared)| runtime.run(verb, prepared)) {
        Ok(code) => code,
        Err(error) => {
            runtime.log.error(&format!("{error:#}"));
            exit_code(&error, failure)
        }
    }
}

/// What a verb that clones into a container has before anything else is opened.
#[derive(Debug, Default)]
struct Prepared {
    passed: Passed,
    /// Where a container's first process moves to: see [`protect::protect_newborn`].
    executable: Option<ReadOnlyPlace>,
}

/// What must happen before anything is opened, for the verbs that clone into a container.
fn prepare(verb: &Verb) -> anyhow::Result<Prepared> {
    let (preserve, listen) = match verb {
        Verb::Create(create) => (create.creation.preserve_fds, true),
        Verb::Run(run) => (run.creation.preserve_fds, true),
        Verb::Exec(exec) => (exec.preserve_fds, false),
        Verb::Checkpoint(_) | Verb::Restore(_) => {
            // CRIU gets what it needs, and a hook nothing.
            portreeve_sys::fd::close_on_exec_from(3).context("marking the inherited descriptors close-on-exec")?;
            return Ok(Prepared::default());
        }
        _ => return Ok(Prepared::default()),
    };
    // Who is in the container that a process is executed in may look at that before it has done anything. And descriptors
    // that stay open may have the numbers of those that the caller meant to pass on.
    let passes = preserve > 0 || std::env::var_os("LISTEN_FDS").is_some();
    let hidden = protect::hide()?;
    let executable = if matches!(verb, Verb::Exec(_)) || passes || !hidden {
        protect::protect()?;
        None
    } else {
        protect::protect_newborn()?
    };
    let passed = streams::take(preserve, listen, |name| std::env::var(name).ok())?;
    // What else the caller has left open is not a hook's, and not a container's.
    portreeve_sys::fd::close_on_exec_from(3).context("marking the inherited descriptors close-on-exec")?;
    Ok(Prepared { passed, executable })
}

/// What a failure of ours is called where the program's own codes are passed on.
fn failure_code(verb: &Verb) -> i32 {
    if matches!(verb, Verb::Run(_) | Verb::Exec(_) | Verb::Restore(_)) { 255 } else { 1 }
}

/// 127 and 126 for a program that is missing or cannot be executed, where the program's own code would be answered.
fn exit_code(error: &anyhow::Error, failure: i32) -> i32 {
    if failure == 1 {
        return failure;
    }
    let told = error.downcast_ref::<LifecycleError>().map(LifecycleError::exit_code);
    let told =
        told.or_else(|| error.downcast_ref::<portreeve_oci::ExecError>().map(portreeve_oci::ExecError::exit_code));
    told.filter(|code| matches!(code, 126 | 127)).unwrap_or(failure)
}

/// What every verb has at hand.
#[derive(Debug)]
struct Runtime {
    global: Global,
    log: Log,
}

impl Runtime {
    fn run(&self, verb: Verb, prepared: Prepared) -> anyhow::Result<i32> {
        match verb {
            Verb::Create(create) => create.run(self, prepared)?,
            Verb::Start(start) => start.run(self)?,
            Verb::Run(run) => return run.run(self, prepared),
            Verb::State(state) => state.run(self)?,
            Verb::Kill(kill) => kill.run(self)?,
            Verb::Delete(delete) => delete.run(self)?,
            Verb::Exec(exec) => return exec.run(self, prepared.passed),
            Verb::Ps(ps) => ps.run(self)?,
            Verb::List(list) => list.run(self)?,
            Verb::Pause(pause) => pause.pause(self)?,
            Verb::Resume(pause) => pause.resume(self)?,
            Verb::Update(update) => update.run(self)?,
            Verb::Events(events) => events.run(self)?,
            Verb::Features => features::run()?,
            Verb::Spec(spec) => spec.run()?,
            Verb::Checkpoint(checkpoint) => checkpoint.run(self)?,
            Verb::Restore(restore) => return restore.run(self),
            Verb::Help(name) => print(&arguments::help(name.as_deref())?)?,
            Verb::Version => print(&version::text())?,
        }
        Ok(0)
    }

    /// The directory with the state of all containers.
    fn root(&self) -> anyhow::Result<Root> {
        let path = match &self.global.root {
            Some(path) => std::path::absolute(path).context("finding the working directory")?,
            // Whatever --rootless says: every call on a machine is to find the same containers.
            None => {
                default_root(rustix::process::geteuid().as_raw(), is_whole_machine(), |name| std::env::var_os(name))
            }
        };
        self.log.debug(|| format!("the state of containers is kept in {}", path.display()));
        let chosen = self.global.root.is_some();
        let elsewhere =
            "the state of containers has no place: name one by --root, or by XDG_RUNTIME_DIR a directory of yours";
        let root = Root::open(&path);
        if chosen { Ok(root?) } else { root.context(elsewhere) }
    }

    fn container(&self, id: &str) -> anyhow::Result<Container> {
        match self.root()?.load(&Id::parse(id)?) {
            // runc's words, by which callers tell a container that has been removed already.
            Err(LifecycleError::NotFound { id }) => bail!("container does not exist: {id}"),
            other => Ok(other?),
        }
    }

    fn rootless(&self) -> Rootless {
        let lacks = || !rustix::process::geteuid().is_root() || !is_whole_machine();
        let yes = self.global.rootless.unwrap_or_else(lacks);
        if yes { Rootless::Yes } else { Rootless::No }
    }

    fn warn(&self, warnings: &[portreeve_oci::Warning]) {
        for warning in warnings {
            self.log.warning(&warning.to_string());
        }
    }
}

/// Whether the caller's user namespace is the first one.
fn is_whole_machine() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| maps_everything(&map))
}

/// Whether a user namespace's map is the first one's: user_namespaces(7).
fn maps_everything(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Root has one place. So has the root of a user namespace that is a machine to its users, a system container; in one
/// that a user has entered to be root there, the state is that user's. The two are told apart as runc does it.
fn default_root(user: u32, is_whole_machine: bool, variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let place = PathBuf::from("/run/portreeve/runtime");
    let is_root = user == 0 && (is_whole_machine || variable("USER").is_some_and(|name| name == "root"));
    if is_root {
        return place;
    }
    match variable("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(path) => path.join("portreeve/runtime"),
        None if user == 0 => place,
        // Its owner and mode are checked when it is opened.
        None => PathBuf::from(format!("/tmp/portreeve-runtime-{user}")),
    }
}

/// Writes to standard output; a reader that went away is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_program_chooses_the_runtime() {
        let cases = [
            ("/usr/bin/portreeve-runtime", None, true),
            ("portreeve-runtime", Some("create"), true),
            ("/proc/self/fd/7/portreeve-runtime-static", Some("--root"), true),
            ("portreeve", Some("runtime"), true),
            ("portreeve", Some("runtimes"), false),
            ("portreeve", Some("get"), false),
            ("/opt/portreeve-runtime/portreeve", None, false),
            ("", None, false),
        ];
        for (program, first, expected) in cases {
            assert_eq!(is_runtime(program.as_ref(), first.map(OsStr::new)), expected, "{program} {first:?}");
        }
    }

    #[test]
    fn the_state_of_a_user_lies_in_the_users_own_directory() {
        let machine = "/run/portreeve/runtime";
        let cases = [
            // Root, whose session may have a directory, has one place with it and without.
            ((0, true, None, Some("/run/user/0")), machine),
            ((0, true, None, None), machine),
            // A system container's root, in a session and in a service.
            ((0, false, Some("root"), Some("/run/user/0")), machine),
            ((0, false, None, None), machine),
            // A user who is root in a namespace of their own.
            ((0, false, Some("worker"), Some("/run/user/1000")), "/run/user/1000/portreeve/runtime"),
            ((0, false, None, Some("/run/user/1000")), "/run/user/1000/portreeve/runtime"),
            ((1000, true, Some("worker"), Some("/run/user/1000")), "/run/user/1000/portreeve/runtime"),
            ((1000, true, None, None), "/tmp/portreeve-runtime-1000"),
            ((1000, true, None, Some("")), "/tmp/portreeve-runtime-1000"),
            ((1000, true, None, Some("relative")), "/tmp/portreeve-runtime-1000"),
        ];
        for ((user, is_whole, name, directory), expected) in cases {
            let variable = |asked: &str| match asked {
                "USER" => name.map(OsString::from),
                "XDG_RUNTIME_DIR" => directory.map(OsString::from),
                _ => None,
            };
            let found = default_root(user, is_whole, variable);
            assert_eq!(found, Path::new(expected), "{user} {is_whole} {name:?} {directory:?}");
        }
    }

    #[test]
    fn only_the_first_user_namespace_maps_everything() {
        assert!(maps_everything("         0          0 4294967295\n"));
        for partial in ["0 1000 1\n", "0 0 65536\n", "", "0 0 4294967295\n1 1 1\n"] {
            assert!(!maps_everything(partial), "{partial}");
        }
    }

    #[test]
    fn a_program_that_is_missing_has_a_code_of_its_own_where_the_programs_code_is_answered() {
        let missing = || {
            let start = portreeve_oci::StartError::NotFound { program: "x".into(), search: "/bin".into() };
            anyhow::Error::from(LifecycleError::from(start)).context("starting")
        };
        assert_eq!(exit_code(&missing(), 255), 127);
        assert_eq!(exit_code(&missing(), 1), 1);
        assert_eq!(exit_code(&anyhow::anyhow!("other"), 255), 255);
    }
}
