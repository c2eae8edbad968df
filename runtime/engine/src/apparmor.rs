//! AppArmor: the profile of containers that name none, and whether one is loaded that they name.
//!
//! The kernel takes a policy in a binary form that depends on the kernel, and `apparmor_parser` makes that of text. It is
//! started once after a boot, when the first container needs the profile, and again when somebody has removed that
//! (`aa-remove-unknown` does). What is loaded stays loaded: containers live under it that outlive the agent.
//!
//! Source: apparmor.d(5), apparmor_parser(8); Linux, security/apparmor/apparmorfs.c.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// The profile's name. Its number is that of the policy: another text has another name, because what runs stays under the
/// one that it began with.
pub(crate) const DEFAULT: &str = "portreeve-default-1";

/// Whether the kernel confines by it.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// Names and modes of all profiles that are loaded.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Where `apparmor_parser` is when it is not in the PATH of a service.
const PLACES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// What the profile says. A container may do what its capabilities and namespaces let it, but mount nothing, write no
/// settings of the kernel, and neither trace nor signal what is outside; as users of containerd and Docker know it.
const POLICY: &str = "
profile portreeve-default-1 flags=(attach_disconnected, mediate_deleted) {
  capability,
  file,
  network,
  unix,
  umount,
  deny mount,

  # Stops and kills come from outside.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send, receive) peer=portreeve-default-1,
  ptrace (read, readby, trace, tracedby) peer=portreeve-default-1,

  # Of proc what processes have, and of settings those of System V ipc, which are the pod's own.
  deny /proc/* w,
  deny /proc/[^1-9s]*/** w,
  deny /proc/s[^y]*/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{[^sm]**,s[^he]**,sh[^m]**,se[^m]**,m[^s]**,ms[^g]**} w,
  deny /proc/{kcore,sysrq-trigger} rwklx,

  # Of sys the cgroups.
  deny /sys/{[^f]**,f[^s]**,fs/[^c]**,fs/c[^g]**,fs/cg[^r]**} wklx,
  deny /sys/{firmware,devices/virtual/powercap,kernel/security}/** rwklx,
}
";

/// What a node has of AppArmor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppArmor {
    /// The kernel does not confine by it.
    Off,
    /// Containers that name no profile have one.
    Ready,
    /// They have none: `apparmor_parser` is not there.
    NoParser,
}

/// What this node has of it.
#[must_use]
pub fn survey_apparmor() -> AppArmor {
    if !enabled() {
        AppArmor::Off
    } else if is_loaded(DEFAULT).unwrap_or(false) || parser().is_some() {
        AppArmor::Ready
    } else {
        AppArmor::NoParser
    }
}

fn enabled() -> bool {
    fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'))
}

/// Whether a profile is loaded.
///
/// # Errors
/// When the kernel has no AppArmor, or does not tell.
pub(crate) fn is_loaded(name: &str) -> io::Result<bool> {
    let profiles = fs::read_to_string(PROFILES).map_err(|error| {
        io::Error::new(error.kind(), format!("AppArmor is not enabled on this node ({PROFILES}: {error})"))
    })?;
    // Lines are `name (mode)`, and a name may have spaces.
    Ok(profiles.lines().any(|line| line.rsplit_once(" (").is_some_and(|(found, _)| found == name)))
}

/// Loads the default profile when it is needed.
#[derive(Debug, Default)]
pub(crate) struct Loader {
    /// What was said of the last failure, so that it is not said for every container.
    told: Mutex<String>,
}

impl Loader {
    /// The profile of a container that names none; `None` where there is no AppArmor, or where nothing can load it, which
    /// is logged once. Blocking.
    pub(crate) fn default_profile(&self) -> Option<&'static str> {
        if !enabled() {
            return None;
        }
        // One at a time: who comes second finds it loaded.
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let problem = match is_loaded(DEFAULT) {
            Ok(true) => return Some(DEFAULT),
            Ok(false) => match load() {
                Ok(()) => return Some(DEFAULT),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        if *told != problem {
            tracing::warn!(profile = DEFAULT, problem, "containers run without an AppArmor profile of their own");
            *told = problem;
        }
        None
    }
}

fn parser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(PLACES.map(PathBuf::from));
    places.map(|place| place.join("apparmor_parser")).find(|program| program.is_file())
}

fn load() -> io::Result<()> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "apparmor_parser is not installed (Debian: apparmor)");
    let program = parser().ok_or_else(missing)?;
    let context = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", program.display()));
    let mut command = Command::new(&program);
    command.args(["--replace", "--skip-cache"]).current_dir(Path::new("/"));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(context)?;
    // It fits into a pipe; a parser that does not read says why it has ended.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(POLICY.as_bytes()));
    let output = child.wait_with_output().map_err(context)?;
    if output.status.success() {
        return written.map_err(context);
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(io::Error::other(format!("{}: {}: {words}", program.display(), output.status)))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn another_policy_has_another_name() {
        // What runs is under the profile that this name had. Change the number with the text, then these.
        assert_eq!(DEFAULT, "portreeve-default-1");
        let digest = hex::encode(Sha256::digest(POLICY));
        assert_eq!(digest.get(..16), Some("9eb1c90ac7abd077"), "{digest}");
        let named = POLICY.lines().filter(|line| line.contains("portreeve-default")).collect::<Vec<_>>();
        assert!(named.len() == 3 && named.iter().all(|line| line.contains(DEFAULT)), "{named:?}");
    }
}
