//! Another OCI runtime in place of our own: a program that is called for each verb, as runc is.
//!
//! ```text
//!   <sandbox>/shim.json          names the program
//!   <sandbox>/runtime/<cid>/     what the program keeps of a container (its --root)
//!   <sandbox>/containers/<cid>/  the bundle: config.json, and what attach::lay_out has mounted
//!   PROGRAM --root <sandbox>/runtime --log <bundle>/runtime.log --log-format json VERB ... <cid>
//! ```
//!
//! The shim calls it for all that happens; the agent calls it for what a shim that died has left. Source: the command
//! line of runc, which the OCI runtime specification does not fix and crun, runsc and youki have as well.

mod call;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use portreeve_oci::attach;
use portreeve_oci::cgroup::Cgroup;
use portreeve_sys::namespace;
use portreeve_sys::process::{self, Pid};
use serde::{Deserialize, Serialize};

pub use call::HandlerError;
pub(crate) use call::run;

use crate::record;
use crate::shim::Pod;

/// How long a program may take over what is not the making of a container. All of a call's time is the shim's, which
/// answers nobody meanwhile: together they stay below what an agent waits for a shim.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long a shim may be silent that calls programs: as long as it takes to give up the making of a container.
pub(crate) const BUSY: Duration = Duration::from_secs(25);
/// Of the environment of each call: the bundle that it is for. What a call has left behind is found by it.
const MARK: &str = "PORTREEVE_BUNDLE";
/// Where programs look for others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How often strays are looked for again, and how long those that were found may take to end.
const PASSES: usize = 8;
/// Likewise, in milliseconds.
const END_MS: i32 = 1000;

/// The runtime of a sandbox's containers, when it is not our own: what a RuntimeClass of Kubernetes names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handler {
    /// The name that its users know.
    pub name: String,
    /// The program, an absolute path. It stays the sandbox's, whatever the name means later.
    pub program: PathBuf,
}

/// What containers of a handler can have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HandlerFeatures {
    /// The mount option `rro`.
    pub recursive_readonly_mounts: bool,
    /// User namespaces, and mounts with their ids.
    pub user_namespaces: bool,
}

/// Asks a program what it can do. Blocking.
///
/// Source: OCI runtime-spec, features.md; the verb is runc's and crun's.
///
/// # Errors
/// [`HandlerError`] when it has no such verb, or cannot be executed.
pub fn features(program: &Path) -> Result<HandlerFeatures, HandlerError> {
    let pipes = || Ok::<_, io::Error>((io::pipe()?, io::pipe()?));
    let wait = |source| HandlerError::Wait { program: program.to_owned(), verb: "features", source };
    let ((out, out_writer), (err, err_writer)) = pipes().map_err(wait)?;
    let mut command = Command::new(program);
    command.arg("features").env_clear().env("PATH", PATH).current_dir("/");
    command.stdin(Stdio::null()).stdout(out_writer).stderr(err_writer);
    let said = run(command, "features", PATIENCE, &[out.as_fd(), err.as_fd()], None)?;
    parse(said.first().map(Vec::as_slice).unwrap_or_default())
        .ok_or_else(|| HandlerError::Features { program: program.to_owned() })
}

/// Source: OCI runtime-spec, features.md and features-linux.md.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Told {
    mount_options: Vec<String>,
    linux: ToldOfLinux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ToldOfLinux {
    namespaces: Vec<String>,
    mount_extensions: Extensions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Extensions {
    idmap: Extension,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Extension {
    enabled: bool,
}

fn parse(text: &[u8]) -> Option<HandlerFeatures> {
    let Told { mount_options, linux } = serde_json::from_slice(text).ok()?;
    let has = |all: &[String], name: &str| all.iter().any(|one| one == name);
    Some(HandlerFeatures {
        recursive_readonly_mounts: has(&mount_options, "rro"),
        user_namespaces: has(&linux.namespaces, "user") && linux.mount_extensions.idmap.enabled,
    })
}

/// The runtime of one sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    program: PathBuf,
    sandbox: PathBuf,
    /// What a call leaves behind is in the cgroup of the shims, unless it is in the container's.
    shims: String,
    /// Whether the network is the pod's, and with it the hostname.
    pub(crate) network: bool,
    /// Whether the ipc is.
    pub(crate) ipc: bool,
    /// The node's namespaces that the caller has left: hooks, which the program runs, belong there. The container's own are
    /// named in its configuration.
    outside: Arc<[(u64, OwnedFd)]>,
}

impl Runtime {
    /// Of the sandbox with this directory; `None` when that has our own.
    pub(crate) fn of(sandbox: &Path) -> Option<Self> {
        let Pod { cgroup, network, ipc, runtime, .. } = record::read(&sandbox.join("shim.json")).ok()??;
        let (sandbox, outside) = (sandbox.to_owned(), Arc::default());
        runtime.map(|program| Self { program, sandbox, shims: cgroup, network, ipc, outside })
    }

    /// The same for a caller that has left these namespaces of the node.
    pub(crate) fn called_from(self, left: Arc<[(u64, OwnedFd)]>) -> Self {
        Self { outside: left, ..self }
    }

    /// Of a container whose bundle this is.
    pub(crate) fn of_bundle(bundle: &Path) -> Option<Self> {
        // Almost every sandbox has our own runtime, and no such directory.
        let sandbox = bundle.parent()?.parent()?;
        if state_directory(sandbox).exists() { Self::of(sandbox) } else { None }
    }

    /// A call for the container with this bundle, without the id and without streams.
    pub(crate) fn command(&self, verb: &'static str, bundle: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", PATH).env(MARK, bundle).current_dir(bundle).stdin(Stdio::null());
        command.arg("--root").arg(state_directory(&self.sandbox)).arg("--log").arg(log(bundle));
        command.args(["--log-format", "json", verb]);
        if !self.outside.is_empty() {
            namespace::enter_on_execution(&mut command, Arc::clone(&self.outside));
        }
        command
    }

    /// Calls it; `ears` are the reading ends of what it may print to, and what came of each is the answer.
    ///
    /// # Errors
    /// [`HandlerError`] with the program's own words.
    pub(crate) fn call(
        &self,
        command: Command,
        verb: &'static str,
        bundle: &Path,
        patience: Duration,
        ears: &[BorrowedFd<'_>],
    ) -> Result<Vec<Vec<u8>>, HandlerError> {
        let log = log(bundle);
        let _not_of_another_call = std::fs::remove_file(&log);
        run(command, verb, patience, ears, Some(&log))
    }

    /// Calls it for a verb that prints nothing but complaints.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(crate) fn tell(
        &self,
        verb: &'static str,
        bundle: &Path,
        words: &[&str],
        patience: Duration,
    ) -> Result<(), HandlerError> {
        let wait = |source| HandlerError::Wait { program: self.program.clone(), verb, source };
        let (ear, mouth) = io::pipe().map_err(wait)?;
        let mut command = self.command(verb, bundle);
        command.args(words).stdout(mouth.try_clone().map_err(wait)?).stderr(mouth);
        self.call(command, verb, bundle, patience, &[ear.as_fd()]).map(drop)
    }

    /// Takes away all that the program has, and is, of a container that has ended or is to end, and its mounts; absent is
    /// fine.
    ///
    /// # Errors
    /// What is left, in words; the rest is gone.
    pub(crate) fn forget(&self, id: &str, bundle: &Path) -> Result<(), String> {
        let mut left = Vec::new();
        let state = state_directory(&self.sandbox).join(id);
        self.kill_strays(bundle);
        if state.exists() {
            let deleted = self.tell("delete", bundle, &["--force", id], PATIENCE);
            left.extend(deleted.err().map(|error| crate::error::chain(&error)));
            self.kill_strays(bundle);
        }
        if let Err(error) = attach::take_away(bundle) {
            left.push(format!("unmounting below {}: {error}", bundle.display()));
        }
        match portreeve_sys::tree::remove(&state) {
            // Whatever the program said: nothing of it is left.
            Ok(()) if left.len() == 1 && !state.exists() => left.clear(),
            Ok(()) => {}
            Err(error) => left.push(format!("removing {}: {error}", state.display())),
        }
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    }

    /// Kills what calls for bundles at or below `place` have left running.
    pub(crate) fn kill_strays(&self, place: &Path) {
        let Ok(cgroup) = Cgroup::at(&self.shims) else { return };
        for _ in 0..PASSES {
            let all = cgroup.processes().unwrap_or_default();
            let killed = all.into_iter().filter(|pid| kill_if_called_for(*pid, place)).count();
            if killed == 0 {
                return;
            }
        }
    }
}

/// What the programs of a sandbox's containers keep.
pub(crate) fn state_directory(sandbox: &Path) -> PathBuf {
    sandbox.join("runtime")
}

fn log(bundle: &Path) -> PathBuf {
    bundle.join("runtime.log")
}

/// The bundle that a process was called for, itself or what has called it.
pub(crate) fn called_for(pid: Pid) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).ok()?;
    let bundle = environment.split(|byte| *byte == 0).find_map(|one| {
        let (name, value) = one.split_at_checked(MARK.len())?;
        (name == MARK.as_bytes()).then(|| value.strip_prefix(b"="))?
    })?;
    Some(std::ffi::OsString::from_vec(bundle.to_vec()).into())
}

/// Kills a process that was called for a bundle at or below `place`; the descriptor is taken before the question is asked.
pub(crate) fn kill_if_called_for(pid: Pid, place: &Path) -> bool {
    let Ok(pidfd) = process::pidfd_open(pid) else { return false };
    if !called_for(pid).is_some_and(|bundle| bundle.starts_with(place)) {
        return false;
    }
    let _gone = process::pidfd_send_signal(pidfd.as_fd(), nix::libc::SIGKILL);
    let _late = process::has_ended(pidfd.as_fd(), END_MS);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_what_the_program_says_of_itself() {
        let all = r#"{"ociVersionMin": "1.0.0", "mountOptions": ["ro", "rro"], "annotations": {"a": "b"},
            "linux": {"namespaces": ["pid", "user"], "mountExtensions": {"idmap": {"enabled": true}}}}"#;
        let every = HandlerFeatures { recursive_readonly_mounts: true, user_namespaces: true };
        assert_eq!(parse(all.as_bytes()), Some(every));
        for (change, to) in [("\"user\"", "\"uts\""), ("true", "false"), ("mountExtensions", "other")] {
            let features = parse(all.replace(change, to).as_bytes()).unwrap();
            assert_eq!(features, HandlerFeatures { user_namespaces: false, ..every }, "{change}");
        }
        assert_eq!(parse(b"{}"), Some(HandlerFeatures::default()));
        assert_eq!(parse(b"unknown command"), None);
    }

    #[test]
    fn what_a_call_left_is_known_by_its_environment() {
        let sleep = |bundle: &str| {
            let mut sleep = Command::new("sleep");
            sleep.arg("1000").env_clear().env("OTHER", "x").env("PATH", PATH).env(MARK, bundle).spawn().unwrap()
        };
        let pid = |child: &std::process::Child| Pid::from_raw(child.id().try_into().unwrap()).unwrap();
        let (mut ours, mut theirs) = (sleep("/run/a/containers/c"), sleep("/run/ab"));
        assert_eq!(called_for(pid(&ours)), Some("/run/a/containers/c".into()));
        assert_eq!(called_for(pid(&theirs)), Some("/run/ab".into()));
        assert!(!kill_if_called_for(pid(&theirs), Path::new("/run/a")));
        assert!(kill_if_called_for(pid(&ours), Path::new("/run/a")));
        assert!(!ours.wait().unwrap().success());
        assert_eq!(theirs.try_wait().unwrap(), None);
        theirs.kill().unwrap();
        theirs.wait().unwrap();
    }
}
