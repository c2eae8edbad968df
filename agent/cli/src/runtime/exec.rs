//! `exec`.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use oci_spec::runtime::{Capabilities, Capability, Process, Spec};
use portreeve_oci::cgroup::Below;
use portreeve_oci::config;
use portreeve_oci::lifecycle::ExecRequest;

use super::Runtime;
use super::arguments::{Flag, Given, Usage, UsageError, Verb};
use super::console::{self, Holder};
use super::pidfile;
use super::relay::{Relay, Signals};
use super::streams::Passed;

pub(super) const USAGE: Usage = Usage {
    name: "exec",
    operands: "ID COMMAND [ARGUMENT]... | --process FILE ID",
    about: "run a further process in a container",
    flags: &[&[
        Flag::value("process", "FILE", "take the process from a JSON file").short('p'),
        Flag::switch("tty", "give it a terminal").short('t'),
        Flag::switch("detach", "end when the process has been started").short('d'),
        Flag::value("user", "UID[:GID]", "run it as this user").short('u'),
        Flag::value("additional-gids", "GID", "a further group of the process; may be repeated").short('g'),
        Flag::value("env", "NAME=VALUE", "set a variable; may be repeated").short('e'),
        Flag::value("cwd", "DIR", "its working directory, in the container"),
        Flag::value("cap", "CAPABILITY", "give it a capability; may be repeated").short('c'),
        Flag::switch("no-new-privs", "forbid it to gain privileges"),
        Flag::value("apparmor", "PROFILE", "its AppArmor profile"),
        Flag::value("process-label", "LABEL", "its SELinux label"),
        Flag::value("pid-file", "FILE", "write its process id to FILE"),
        Flag::value("console-socket", "SOCKET", "send the master side of its terminal to this socket"),
        Flag::value("pidfd-socket", "SOCKET", "send a pidfd of it to this socket"),
        Flag::value("preserve-fds", "N", "pass on N descriptors, from 3"),
        Flag::value("cgroup", "[CONTROLLER,...:]PATH", "a cgroup below the container's; may be repeated"),
        Flag::switch("ignore-paused", "wait in a paused container instead of failing"),
        Flag::switch("no-subreaper", "leave orphans to another process"),
    ]],
    count: 1..=usize::MAX,
    ends_flags: true,
    read: |given| Ok(Verb::Exec(Box::new(Exec::read(given)?))),
};

/// Arguments of `exec`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exec {
    id: String,
    what: What,
    detach: bool,
    pid_file: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    pidfd_socket: Option<PathBuf>,
    pub(super) preserve_fds: u32,
    below: Vec<Below>,
    ignore_paused: bool,
    no_subreaper: bool,
}

/// What is to run.
#[derive(Debug, PartialEq, Eq)]
enum What {
    /// The process of a file, as it is.
    File(PathBuf),
    /// The container's own process with these differences.
    Like(Box<Differences>),
}

#[derive(Debug, PartialEq, Eq, Default)]
struct Differences {
    arguments: Vec<String>,
    tty: Option<bool>,
    user: Option<(u32, Option<u32>)>,
    additional_gids: Vec<u32>,
    environment: Vec<String>,
    directory: Option<PathBuf>,
    capabilities: Vec<Capability>,
    no_new_privileges: Option<bool>,
    apparmor: Option<String>,
    label: Option<String>,
}

impl Exec {
    fn read(mut given: Given) -> Result<Self, UsageError> {
        let id = given.id()?;
        let arguments = given.rest("ARGUMENT")?;
        let what = match given.path("process") {
            Some(_) if !arguments.is_empty() => {
                return Err(given.wrong("a command is given, and --process as well: one of them"));
            }
            Some(path) => What::File(path),
            None if arguments.is_empty() => return Err(given.wrong("there is no command, and no --process")),
            None => What::Like(Box::new(Differences::read(&given, arguments)?)),
        };
        let below = |text: &String| text.parse().map_err(|error| given.wrong(format!("--cgroup: {error}")));
        Ok(Self {
            id,
            what,
            detach: given.has("detach")?,
            pid_file: given.path("pid-file"),
            console_socket: given.path("console-socket"),
            pidfd_socket: given.path("pidfd-socket"),
            preserve_fds: given.number("preserve-fds")?.unwrap_or(0),
            below: given.texts("cgroup")?.iter().map(below).collect::<Result<_, _>>()?,
            ignore_paused: given.has("ignore-paused")?,
            no_subreaper: given.has("no-subreaper")?,
        })
    }

    pub(super) fn run(self, runtime: &Runtime, passed: Passed) -> anyhow::Result<i32> {
        let container = runtime.container(&self.id)?;
        let (process, left_out) = match self.what {
            What::File(path) => read_process(&path)?,
            What::Like(differences) => (differences.applied_to(container.spec()?)?, Vec::new()),
        };
        let pidfd_socket = self.pidfd_socket.as_deref().map(|path| console::connect(path, "pidfd")).transpose()?;
        let terminal = process.terminal().unwrap_or(false);
        let holder = Holder::choose(terminal, self.detach, self.console_socket.as_deref())?;
        if !self.detach && !self.no_subreaper {
            portreeve_sys::process::set_child_subreaper(true).context("becoming the parent of orphans")?;
        }
        let stdio = holder.stdio(&process);
        let mut request = ExecRequest::new(process, stdio);
        request.extra_fds = passed.fds;
        request.below = self.below;
        request.while_paused = self.ignore_paused;
        // From before there is a process: a signal that comes meanwhile waits for it, which begins with none blocked.
        let signals = if self.detach { None } else { Some(Signals::hold()?) };
        let running = container.exec(request)?;

        let told = holder
            .hand_over(running.terminal.as_ref().map(|master| master.as_fd()))
            .and_then(|()| match &pidfd_socket {
                None => Ok(()),
                Some(stream) => console::send(stream, b"pidfd", running.pidfd.as_fd())
                    .context("sending the pidfd over --pidfd-socket"),
            })
            .and_then(|()| self.pid_file.as_deref().map_or(Ok(()), |path| pidfile::write(path, running.pid)));
        let ended = told.and_then(|()| {
            // Not before: podman finds the reason of a failure in the log only when that is the log's one line.
            left_out.iter().for_each(|what| runtime.log.warning(what));
            runtime.warn(&running.warnings);
            let Some(signals) = signals else { return Ok(0) };
            Relay::new(signals, running.pid, running.pidfd.as_fd(), running.terminal)?.until_the_end()
        });
        if ended.is_err() {
            // Nobody will hear of it: it has no business to go on.
            let _ended_by_itself = portreeve_sys::process::pidfd_send_signal(running.pidfd.as_fd(), 9);
        }
        ended
    }
}

impl Differences {
    fn read(given: &Given, arguments: Vec<String>) -> Result<Self, UsageError> {
        let user = given.text("user")?.map(|text| {
            parse_user(text).ok_or_else(|| given.wrong(format!("--user takes UID[:GID] in digits, not {text:?}")))
        });
        let group = |text: &String| {
            parse_id(text).ok_or_else(|| given.wrong(format!("--additional-gids takes a number, not {text:?}")))
        };
        let capability = |name: &String| {
            parse_capability(name).ok_or_else(|| given.wrong(format!("--cap: there is no capability {name:?}")))
        };
        let environment = given.texts("env")?;
        if let Some(wrong) = environment.iter().find(|variable| !matches!(variable.find('='), Some(1..))) {
            return Err(given.wrong(format!("--env takes NAME=VALUE, not {wrong:?}")));
        }
        Ok(Self {
            arguments,
            tty: given.switch("tty")?,
            user: user.transpose()?,
            additional_gids: given.texts("additional-gids")?.iter().map(group).collect::<Result<_, _>>()?,
            environment,
            directory: given.path("cwd"),
            capabilities: given.texts("cap")?.iter().map(capability).collect::<Result<_, _>>()?,
            no_new_privileges: given.switch("no-new-privs")?,
            apparmor: given.text("apparmor")?.map(str::to_owned),
            label: given.text("process-label")?.map(str::to_owned),
        })
    }

    /// The container's own process, changed.
    fn applied_to(self, spec: &Spec) -> anyhow::Result<Process> {
        let own = spec.process().as_ref();
        let mut process = own.cloned().ok_or_else(|| anyhow!("the container has no process: give --process FILE"))?;
        process.set_args(Some(self.arguments));
        process.set_terminal(Some(self.tty.unwrap_or(false)));
        if let Some((uid, gid)) = self.user {
            process.user_mut().set_uid(uid);
            if let Some(gid) = gid {
                process.user_mut().set_gid(gid);
            }
        }
        if !self.additional_gids.is_empty() {
            let user = process.user_mut();
            user.additional_gids_mut().get_or_insert_default().extend(self.additional_gids);
        }
        let environment = process.env_mut().get_or_insert_default();
        for variable in self.environment {
            let name = variable.split_inclusive('=').next().unwrap_or_default();
            // A second value of a name would not be seen by most programs.
            environment.retain(|known| !known.starts_with(name));
            environment.push(variable);
        }
        if let Some(directory) = self.directory {
            process.set_cwd(directory);
        }
        if !self.capabilities.is_empty() {
            let mut sets = process.capabilities().clone().unwrap_or_default();
            let with = |set: &Option<Capabilities>| {
                Some(set.iter().flatten().chain(&self.capabilities).copied().collect::<Capabilities>())
            };
            // Not inheritable (CVE-2022-29162), and therefore not ambient.
            let (bounding, effective, permitted) =
                (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
            sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
            process.set_capabilities(Some(sets));
        }
        if let Some(no) = self.no_new_privileges {
            process.set_no_new_privileges(Some(no));
        }
        if let Some(profile) = self.apparmor {
            process.set_apparmor_profile(Some(profile));
        }
        if let Some(label) = self.label {
            process.set_selinux_label(Some(label));
        }
        Ok(process)
    }
}

/// The process that a file describes, and what of it was left out.
fn read_process(path: &Path) -> anyhow::Result<(Process, Vec<String>)> {
    let reading = || format!("reading the process of {}", path.display());
    let mut text = Vec::new();
    // One byte more than may be there, so that more is noticed.
    let limit = u64::try_from(config::LIMIT)?.saturating_add(1);
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text)).with_context(reading)?;
    config::parse_process(&text).with_context(reading)
}

/// Digits only: what is not a number for certain must never become one, least of all 0 (CVE-2026-30892).
fn parse_user(text: &str) -> Option<(u32, Option<u32>)> {
    match text.split_once(':') {
        None => Some((parse_id(text)?, None)),
        Some((uid, gid)) => Some((parse_id(uid)?, Some(parse_id(gid)?))),
    }
}

fn parse_id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // The greatest one means "leave as it is" to the kernel.
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

fn parse_capability(name: &str) -> Option<Capability> {
    serde_json::from_value(serde_json::Value::from(name)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(json: serde_json::Value) -> Spec {
        serde_json::from_value(serde_json::json!({"ociVersion": "1.0.2", "process": json})).unwrap()
    }

    #[test]
    fn a_user_that_is_not_a_number_never_becomes_root() {
        for wrong in ["", "1x", ":5", "1:", "-1", "+1", "0x0", "4294967295", "4294967296", " 1", "1 ", "1:2:3", "root"]
        {
            assert_eq!(parse_user(wrong), None, "{wrong:?}");
        }
        assert_eq!(parse_user("0"), Some((0, None)));
        assert_eq!(parse_user("1000:4294967294"), Some((1000, Some(4_294_967_294))));
    }

    #[test]
    fn a_process_is_the_containers_with_what_was_said() {
        let spec = process(serde_json::json!({
            "terminal": true, "cwd": "/", "args": ["init"], "env": ["PATH=/bin", "PATHS=1"],
            "user": {"uid": 1, "gid": 2, "additionalGids": [7]},
            "capabilities": {"bounding": ["CAP_CHOWN"], "inheritable": ["CAP_CHOWN"]},
        }));
        let said = Differences {
            arguments: vec!["sh".into()],
            user: Some((5, None)),
            additional_gids: vec![8],
            environment: vec!["PATH=/sbin".into(), "X=".into()],
            directory: Some("/tmp".into()),
            capabilities: vec![Capability::NetRaw],
            no_new_privileges: Some(true),
            ..Differences::default()
        };
        let process = serde_json::to_value(said.applied_to(&spec).unwrap()).unwrap();
        let expected = serde_json::json!({
            "terminal": false, "cwd": "/tmp", "args": ["sh"], "env": ["PATHS=1", "PATH=/sbin", "X="],
            "user": {"uid": 5, "gid": 2, "additionalGids": [7, 8]}, "noNewPrivileges": true,
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_NET_RAW"], "inheritable": ["CAP_CHOWN"],
                "effective": ["CAP_NET_RAW"], "permitted": ["CAP_NET_RAW"],
            },
        });
        let sets = |value: &serde_json::Value, name: &str| {
            let mut set: Vec<String> =
                value["capabilities"][name].as_array().into_iter().flatten().map(|one| one.to_string()).collect();
            set.sort();
            set
        };
        for name in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            assert_eq!(sets(&process, name), sets(&expected, name), "{name}");
        }
        for field in ["terminal", "cwd", "args", "env", "user", "noNewPrivileges"] {
            assert_eq!(process[field], expected[field], "{field}");
        }
    }
}
