//! Making, emptying and removing the directories of a cgroup.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use portreeve_sys::process::{has_ended, pidfd_open, pidfd_send_signal};

use super::layout::Layout;
use super::{CgroupError, Version, stats, write_file};
use crate::Pid;

/// Controllers that limits of ours can need.
const WANTED: [&str; 7] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma"];
const SIGKILL: i32 = 9;

pub(crate) fn create(layout: &Layout, relative: &str) -> Result<(), CgroupError> {
    for mount in layout.mounts() {
        create_in(layout, mount, relative)?;
    }
    Ok(())
}

fn create_in(layout: &Layout, mount: &Path, relative: &str) -> Result<(), CgroupError> {
    let unified = layout.unified.as_deref() == Some(mount);
    let enable = unified && layout.version() == Version::V2;
    let cpuset = !unified && layout.v1_mount("cpuset") == Some(mount);
    if !enable && !cpuset {
        return make_directories(&mount.join(relative));
    }
    let mut directory = mount.to_path_buf();
    for part in relative.split('/') {
        if enable {
            enable_controllers(&directory)?;
        }
        let parent = directory.clone();
        directory.push(part);
        let made = make_directory(&directory)?;
        if cpuset {
            // A version 1 cpuset is born empty, and nothing can join an empty one. Whoever made it
            // at the same moment may not have filled it yet.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let path = directory.join(file);
                if !made && !read(&path)?.trim().is_empty() {
                    continue;
                }
                let value = read(&parent.join(file))?;
                let value = value.trim().to_owned();
                write_file(&path, &value).map_err(|source| CgroupError::Write { path, value, source })?;
            }
        }
    }
    Ok(())
}

fn make_directory(path: &Path) -> Result<bool, CgroupError> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(CgroupError::Create { path: path.to_owned(), source }),
    }
}

fn make_directories(path: &Path) -> Result<(), CgroupError> {
    match make_directory(path) {
        Err(CgroupError::Create { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path).map_err(|source| CgroupError::Create { path: path.to_owned(), source })
        }
        other => other.map(|_| ()),
    }
}

/// Enables what is wanted and available for the children of a version 2 cgroup.
fn enable_controllers(directory: &Path) -> Result<(), CgroupError> {
    let enabled = read(&directory.join("cgroup.subtree_control"))?;
    let available = read(&directory.join("cgroup.controllers"))?;
    let has = |list: &str, name: &str| list.split_ascii_whitespace().any(|word| word == name);
    let missing: Vec<&str> = WANTED.into_iter().filter(|name| has(&available, name) && !has(&enabled, name)).collect();
    let path = directory.join("cgroup.subtree_control");
    for name in missing {
        // One by one: a controller that refuses (cpu with realtime tasks, for one) does not take the others with it;
        // a limit that needs it fails later, by name.
        let value = format!("+{name}");
        match write_file(&path, &value) {
            Ok(()) => {}
            Err(error) if name != "memory" && name != "pids" && name != "cpu" => drop(error),
            Err(source) => return Err(CgroupError::Write { path, value, source }),
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })
}

/// A directory that is gone, or that lacks the file because it is going.
fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(code) if code == rustix::io::Errno::NOENT.raw_os_error() || code == rustix::io::Errno::NODEV.raw_os_error())
}

/// Every directory below, deepest first.
pub(crate) fn directories_below(directory: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let failed = |source| CgroupError::Read { path: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut list = Vec::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if gone(&error) => break,
            Err(error) => return Err(failed(error)),
        };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list.extend(directories_below(&entry.path())?);
            list.push(entry.path());
        }
    }
    Ok(list)
}

/// Hierarchies in which our processes can be found: the unified one, and on version 1 the one that every process of a
/// container joins first.
fn census(layout: &Layout) -> impl Iterator<Item = &Path> {
    let v1 = layout.v1_mount("pids").or_else(|| layout.v1.first().map(|hierarchy| hierarchy.mount.as_path()));
    layout.unified.as_deref().into_iter().chain(v1)
}

pub(crate) fn processes(layout: &Layout, relative: &str) -> Result<Vec<Pid>, CgroupError> {
    let mut found = BTreeSet::new();
    for mount in census(layout) {
        let top = mount.join(relative);
        let mut directories = directories_below(&top)?;
        directories.push(top);
        for directory in directories {
            let path = directory.join("cgroup.procs");
            match std::fs::read_to_string(&path) {
                Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                Err(error) if gone(&error) => {}
                Err(source) => return Err(CgroupError::Read { path, source }),
            }
        }
    }
    // A zero is a process of another PID namespace that cannot be named here.
    Ok(found.into_iter().filter(|pid| *pid > 0).filter_map(Pid::from_raw).collect())
}

pub(crate) fn kill_all(layout: &Layout, relative: &str) -> Result<(), CgroupError> {
    if let Some(mount) = layout.unified.as_deref() {
        let path = mount.join(relative).join("cgroup.kill");
        match write_file(&path, "1") {
            Ok(()) if layout.version() == Version::V2 => return Ok(()),
            Ok(()) => {}
            Err(error) if gone(&error) => {} // Linux before 5.14, or the cgroup is gone
            Err(source) => return Err(CgroupError::Write { path, value: "1".into(), source }),
        }
    }
    // A signal to a frozen version 1 process waits for the thaw, and so does the kill above.
    let left = processes(layout, relative)?;
    if left.is_empty() {
        return Ok(());
    }
    if layout.unified.is_none() || layout.version() == Version::V2 {
        // Frozen, nothing forks while it is being killed.
        let _ = set_frozen(layout, relative, true);
    }
    for pid in processes(layout, relative)? {
        if let Ok(pidfd) = pidfd_open(pid) {
            // Between the list and the descriptor the id could have gone to a stranger: it must still be listed.
            if processes(layout, relative)?.contains(&pid) {
                let _ = pidfd_send_signal(pidfd.as_fd(), SIGKILL);
            }
        }
    }
    set_frozen(layout, relative, false)
}

pub(crate) fn wait_empty(layout: &Layout, relative: &str, deadline: Instant) -> Result<(), CgroupError> {
    loop {
        if let Some(mount) = layout.unified.as_deref() {
            wait_unpopulated(&mount.join(relative).join("cgroup.events"), deadline);
        }
        let left = processes(layout, relative)?;
        let Some(first) = left.first() else { return Ok(()) };
        let now = Instant::now();
        if now >= deadline {
            return Err(CgroupError::StillPopulated { path: format!("/{relative}"), count: left.len() });
        }
        let wait = i32::try_from((deadline - now).as_millis()).unwrap_or(i32::MAX).saturating_add(1);
        match pidfd_open(*first) {
            // A zombie still counts as ended and stays listed for a moment on version 1.
            Ok(pidfd) if has_ended(pidfd.as_fd(), wait).unwrap_or(true) => {
                std::thread::sleep(Duration::from_micros(200))
            }
            _ => {}
        }
    }
}

/// Waits by the kernel's own event until a unified cgroup has no process, or is gone, or the time is over.
fn wait_unpopulated(events: &Path, deadline: Instant) {
    use std::io::{Read, Seek};
    let Ok(mut file) = File::open(events) else { return };
    loop {
        let mut text = String::new();
        if file.rewind().is_err()
            || file.read_to_string(&mut text).is_err()
            || stats::keyed(&text, "populated") != Some(1)
        {
            return;
        }
        let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
        let timeout = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

pub(crate) fn set_frozen(layout: &Layout, relative: &str, frozen: bool) -> Result<(), CgroupError> {
    let (path, value) = match layout.version() {
        Version::V2 => {
            let mount = layout.unified.as_deref().unwrap_or(Path::new("/"));
            (mount.join(relative).join("cgroup.freeze"), if frozen { "1" } else { "0" })
        }
        Version::V1 => {
            let missing = CgroupError::NoController { controller: "freezer", needed_for: "pausing".into() };
            let mount = layout.v1_mount("freezer").ok_or(missing)?;
            (mount.join(relative).join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" })
        }
    };
    match write_file(&path, value) {
        Ok(()) => {}
        Err(error) if gone(&error) => return Ok(()),
        Err(source) => return Err(CgroupError::Write { path, value: value.into(), source }),
    }
    if frozen {
        wait_frozen(layout, &path);
    }
    Ok(())
}

/// Freezing takes a moment; on version 1 a process that forks meanwhile needs a second write.
fn wait_frozen(layout: &Layout, path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        let done = match layout.version() {
            Version::V1 => read(path).is_ok_and(|state| state.trim() == "FROZEN"),
            Version::V2 => {
                read(&path.with_file_name("cgroup.events")).is_ok_and(|text| stats::keyed(&text, "frozen") == Some(1))
            }
        };
        if done {
            return;
        }
        std::thread::sleep(Duration::from_micros(500));
        if layout.version() == Version::V1 {
            let _ = write_file(path, "FROZEN");
        }
    }
}

pub(crate) fn remove(layout: &Layout, relative: &str) -> Result<(), CgroupError> {
    let mut failed = None;
    for mount in layout.mounts() {
        if let Err(error) = remove_tree(&mount.join(relative)) {
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn remove_tree(directory: &Path) -> Result<(), CgroupError> {
    match remove_directory(directory) {
        Err(CgroupError::Remove { source, .. }) if busy(&source) => {
            for below in directories_below(directory)? {
                remove_patiently(&below)?;
            }
            remove_patiently(directory)
        }
        other => other,
    }
}

fn busy(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(rustix::io::Errno::BUSY.raw_os_error()) || code == Some(rustix::io::Errno::NOTEMPTY.raw_os_error())
}

/// A process that has just ended keeps its cgroup busy for a moment.
fn remove_patiently(directory: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + Duration::from_millis(500);
    let mut pause = Duration::from_micros(100);
    loop {
        match remove_directory(directory) {
            Err(CgroupError::Remove { source, .. }) if busy(&source) && Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

fn remove_directory(directory: &Path) -> Result<(), CgroupError> {
    match std::fs::remove_dir(directory) {
        Err(error) if gone(&error) => Ok(()),
        other => other.map_err(|source| CgroupError::Remove { path: directory.to_owned(), source }),
    }
}
