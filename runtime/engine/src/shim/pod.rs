//! The pod's own namespaces, which the shim lives in.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use portreeve_oci::cgroup::Cgroup;
use portreeve_sys::clone;
use portreeve_sys::{namespace, process};
use portreeve_systemd::{Keeper, Place, SystemdError, Wanted};
use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};

use super::pause::Pause;

/// The newest version of `shim.json` that this program reads.
const VERSION: u64 = 1;
/// User and group of a first process among the node's users, as the usual pause image has it.
const NOBODY: u32 = 65_535;

/// What the agent wants of a shim: the content of `<dir>/shim.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Pod {
    /// Of this file.
    pub(crate) version: u64,
    /// The shim's own cgroup.
    pub(crate) cgroup: String,
    /// What systemd makes for its containers.
    #[serde(default)]
    pub(crate) scope: Option<Scope>,
    /// A network and hostname of its own.
    #[serde(default)]
    pub(crate) network: bool,
    /// An ipc of its own.
    #[serde(default)]
    pub(crate) ipc: bool,
    /// A pid namespace for all its containers.
    #[serde(default)]
    pub(crate) pid: bool,
    /// A user namespace: rows of the id maps.
    #[serde(default)]
    pub(crate) user: Option<(Vec<IdMap>, Vec<IdMap>)>,
    /// With a network of its own.
    #[serde(default)]
    pub(crate) hostname: String,
    /// Kernel parameters of these namespaces that need no network.
    #[serde(default)]
    pub(crate) sysctls: BTreeMap<String, String>,
    /// Where the pod's `/dev/shm` is mounted on the node, when it has one.
    #[serde(default)]
    pub(crate) shm: Option<(PathBuf, u64)>,
    /// The program of the runtime that makes its containers, when that is not our own.
    #[serde(default)]
    pub(crate) runtime: Option<PathBuf>,
}

/// A scope of systemd's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Scope {
    /// Path of its slice.
    pub(crate) parent: String,
    /// The sandbox's id, which is part of its name.
    pub(crate) id: String,
    /// Whose it is, for people.
    pub(crate) pod: String,
}

/// A row of an id map: inside, outside, length.
pub(crate) type IdMap = (u32, u32, u32);

/// What is held of the pod's namespaces.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    /// Of the network, when it is the pod's own.
    pub(super) network: Option<OwnedFd>,
    /// Of the users.
    pub(super) user: Option<OwnedFd>,
    /// Of the processes.
    pub(super) pid: Option<OwnedFd>,
    /// The first process of the pid namespace: it reaps orphans, and ends with the shim. With another runtime that of the
    /// user namespace, too.
    pub(super) pause: Option<clone::Child>,
    /// Keeps the scope, which systemd would remove between two containers.
    pub(super) scope: Option<Keeper>,
    /// The node's own, which this process has left for the pod's: hooks beside a container run there.
    left: Arc<[(u64, OwnedFd)]>,
}

/// Why the pod cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodError {
    #[error("reading {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} has version {found}, this shim knows {VERSION}")]
    Newer { path: PathBuf, found: u64 },
    #[error("joining the shims' cgroup")]
    Cgroup(#[from] portreeve_oci::cgroup::CgroupError),
    #[error("making the pod's scope")]
    Scope(#[from] SystemdError),
    #[error("setting up the pod's first process: {0}")]
    Pause(String),
    #[error("{action}")]
    Namespace {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("setting {name}")]
    Sysctl {
        name: String,
        #[source]
        source: io::Error,
    },
}

pub(super) fn step<T, E: Into<io::Error>>(action: &'static str, result: Result<T, E>) -> Result<T, PodError> {
    result.map_err(|source| PodError::Namespace { action, source: source.into() })
}

/// Reads `shim.json` and moves into cgroup and namespaces.
pub(super) fn enter(directory: &Path) -> Result<Namespaces, PodError> {
    let path = directory.join("shim.json");
    let bytes = fs::read(&path).map_err(|source| PodError::Read { path: path.clone(), source })?;
    let pod: Pod =
        serde_json::from_slice(&bytes).map_err(|error| PodError::Read { path: path.clone(), source: error.into() })?;
    if pod.version > VERSION {
        return Err(PodError::Newer { path, found: pod.version });
    }
    Cgroup::open_or_create(&pod.cgroup)?.join()?;
    // Among the last to be killed when memory runs out: all of the pod goes with it. Not everybody may lower it.
    let _refused = fs::write("/proc/self/oom_score_adj", "-998");

    let mut own = 0;
    if pod.network {
        own |= clone::NEW_NET | clone::NEW_UTS;
    }
    if pod.ipc {
        own |= clone::NEW_IPC;
    }
    let mut namespaces = Namespaces::default();
    if let Some(scope) = &pod.scope {
        namespaces.scope = Some(scope.make()?);
    }
    let mut left = Vec::new();
    for (kind, name) in [(clone::NEW_NET, "net"), (clone::NEW_UTS, "uts"), (clone::NEW_IPC, "ipc")] {
        if own & kind != 0 {
            let file = fs::File::open(format!("/proc/self/ns/{name}"));
            left.push((kind, step("opening the node's namespaces", file)?.into()));
        }
    }
    namespaces.left = left.into();
    if pod.user.is_none() {
        step("making the pod's namespaces", namespace::unshare(own))?;
    }
    if pod.user.is_some() || pod.pid {
        first_process(&pod, own, &mut namespaces)?;
    }
    if pod.network {
        let file = step("opening the pod's network namespace", fs::File::open("/proc/self/ns/net"))?;
        namespaces.network = Some(file.into());
        step("setting the hostname", namespace::set_host_name(&pod.hostname))?;
    }
    set(&pod.sysctls)?;
    if let Some((path, size)) = &pod.shm {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let options = std::ffi::CString::new(format!("mode=1777,size={size}")).unwrap_or_default();
        step("mounting the pod's /dev/shm", rustix::mount::mount("shm", path, "tmpfs", flags, options.as_c_str()))?;
    }
    if pod.runtime.is_some() && pod.user.is_some() {
        step("showing the pod its containers", super::visible::show(directory))?;
    }
    Ok(namespaces)
}

impl Scope {
    /// Has systemd make it, with a process in it that ends with this one.
    fn make(&self) -> Result<Keeper, SystemdError> {
        let wanted = Wanted {
            place: Place::of_pod(&self.parent, &self.id)?,
            description: format!("pod {}", self.pod),
            asked: portreeve_systemd::of_pod(),
            limits: Vec::new(),
        };
        Keeper::start(&wanted).map(|(keeper, _nothing_left_out)| keeper)
    }
}

/// Starts the process that the pod's user namespace is made with, and that is the first of its pid namespace.
///
/// Its net, ipc and uts belong to its user namespace; the shim enters them and stays a user of the node itself.
fn first_process(pod: &Pod, own: u64, namespaces: &mut Namespaces) -> Result<(), PodError> {
    let mut pause = Pause { born: 0, own: 0, user: NOBODY, group: NOBODY };
    if pod.pid {
        pause.born |= clone::NEW_PID;
    }
    if let Some((uids, gids)) = &pod.user {
        pause.born |= clone::NEW_USER;
        pause.own = own;
        (pause.user, pause.group) = (last_id(uids), last_id(gids));
    }
    let proc = |child: &clone::Child| format!("/proc/{}", child.pid.as_raw_nonzero());
    let child = pause.start(|child| match &pod.user {
        Some((uids, gids)) => {
            step("mapping users", write_map(&format!("{}/uid_map", proc(child)), uids))?;
            step("mapping groups", write_map(&format!("{}/gid_map", proc(child)), gids))
        }
        None => Ok(()),
    })?;
    let open = |kind: &str| step("opening the pod's namespaces", fs::File::open(format!("{}/ns/{kind}", proc(&child))));
    if pod.user.is_some() {
        namespaces.user = Some(open("user")?.into());
        for (flag, kind) in [(clone::NEW_NET, "net"), (clone::NEW_UTS, "uts"), (clone::NEW_IPC, "ipc")] {
            if own & flag != 0 {
                step("entering the pod's namespaces", namespace::enter(open(kind)?.as_fd(), flag))?;
            }
        }
    }
    if pod.pid {
        namespaces.pid = Some(open("pid")?.into());
        namespaces.pause = Some(child);
    } else if pod.runtime.is_some() {
        // Others read the id maps of a namespace from a process in it.
        namespaces.pause = Some(child);
    } else {
        step("ending a child", process::pidfd_send_signal(child.pidfd.as_fd(), nix::libc::SIGKILL))?;
        step("waiting for a child", process::wait(child.pidfd.as_fd()))?;
    }
    Ok(())
}

/// The last id that a pod has: as far from anybody's as can be.
fn last_id(rows: &[IdMap]) -> u32 {
    rows.last().map_or(NOBODY, |(inside, _, length)| inside.saturating_add(length.saturating_sub(1)))
}

fn write_map(path: &str, rows: &[IdMap]) -> io::Result<()> {
    let text: String = rows.iter().map(|(inside, outside, length)| format!("{inside} {outside} {length}\n")).collect();
    fs::File::options().write(true).open(path)?.write_all(text.as_bytes())
}

/// Writes kernel parameters of the namespaces that this process is in.
pub(super) fn set(sysctls: &BTreeMap<String, String>) -> Result<(), PodError> {
    let set = |(name, value): (&String, &String)| {
        sysctl(name, value).map_err(|source| PodError::Sysctl { name: name.clone(), source })
    };
    sysctls.iter().try_for_each(set)
}

/// Writes one kernel parameter; dots or slashes part its name.
fn sysctl(name: &str, value: &str) -> io::Result<()> {
    let relative = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let plain = relative.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !plain || value.contains('\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name or value of a kernel parameter"));
    }
    fs::File::options().write(true).open(Path::new("/proc/sys").join(relative))?.write_all(value.as_bytes())
}

impl Namespaces {
    /// Has the calling process, which is about to execute a hook, live where this agent does: with the node's network, ipc
    /// and hostname, and killed no later than others when memory runs out.
    pub(super) fn leave(&self) -> io::Result<()> {
        for (kind, namespace) in self.left.iter() {
            namespace::enter(namespace.as_fd(), *kind)?;
        }
        fs::write("/proc/self/oom_score_adj", "0")
    }

    /// The node's namespaces that this process has left, each with its `clone::NEW_*` flag.
    pub(super) fn left(&self) -> Arc<[(u64, OwnedFd)]> {
        Arc::clone(&self.left)
    }

    /// A process of the pod's own users, when it has such. It stays what it is as long as this process reaps nothing, which
    /// it does between calls alone.
    ///
    /// # Errors
    /// When it has ended: its number may be anybody's.
    pub(super) fn process_of_users(&self) -> io::Result<Option<i32>> {
        let Some(process) = self.user.as_ref().and(self.pause.as_ref()) else { return Ok(None) };
        if process::has_ended(process.pidfd.as_fd(), 0)? {
            return Err(io::Error::other("the process that holds them has ended"));
        }
        Ok(Some(process.pid.as_raw_nonzero().get()))
    }

    /// The path of a held namespace, as this process and its clones see it.
    pub(super) fn path(fd: Option<&OwnedFd>) -> Option<String> {
        fd.map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_of_a_pods_users_is_not_named_any_more_when_it_has_ended() {
        let mut sleep = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = process::Pid::from_raw(sleep.id().try_into().unwrap()).unwrap();
        let child = clone::Child { pid, pidfd: process::pidfd_open(pid).unwrap() };
        let user = fs::File::open("/proc/self/ns/user").unwrap().into();
        let namespaces = Namespaces { user: Some(user), pause: Some(child), ..Namespaces::default() };
        assert_eq!(namespaces.process_of_users().unwrap(), Some(pid.as_raw_nonzero().get()));
        sleep.kill().unwrap();
        sleep.wait().unwrap();
        assert!(namespaces.process_of_users().is_err());
        let of_the_node = Namespaces { user: None, ..namespaces };
        assert_eq!(of_the_node.process_of_users().unwrap(), None);
    }
}
