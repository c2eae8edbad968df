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
use super::{CgroupError, Version, stats, tree, write_file};
use crate::Pid;

/// Controllers that limits of ours can need.
const WANTED: [&str; 9] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc", "dmem"];
const SIGKILL: i32 = 9;

/// Makes the directory by which it is decided whose a cgroup is, and those above it; `false` when it is there already.
///
/// Of several makers one makes it: mkdir(2) decides.
pub(crate) fn claim(layout: &Layout, relative: &str) -> Result<bool, CgroupError> {
    deciding(layout).map_or(Ok(false), |mount| create_in(layout, mount, relative))
}

/// The hierarchy that every container has: the one with the controllers, on version 1 that in which processes are found.
fn deciding(layout: &Layout) -> Option<&Path> {
    match layout.version() {
        Version::V2 => layout.unified.as_deref(),
        Version::V1 => census(layout).last(),
    }
}

/// What keeps other makers away from a cgroup that has been claimed; `None` when another one has it.
pub(crate) fn hold(layout: &Layout, relative: &str) -> Result<Option<File>, CgroupError> {
    let path = deciding(layout).unwrap_or(Path::new("/")).join(relative);
    let failed = |source| CgroupError::Read { path: path.clone(), source };
    let lock = open_to_lock(layout, relative).map_err(failed)?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(failed(error.into())),
    }
}

/// A file of a cgroup that its owner alone can open: what others can open, they can lock. Where there is none, on version 1
/// and before Linux 5.14, that is the directory, by which anybody can keep a cgroup that is there already from being used.
fn open_to_lock(layout: &Layout, relative: &str) -> io::Result<File> {
    let directory = deciding(layout).unwrap_or(Path::new("/")).join(relative);
    match File::options().write(true).open(directory.join("cgroup.kill")) {
        // The second: not everything has to be delegated.
        Err(error) if gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => File::open(directory),
        other => other,
    }
}

/// A maker is between making its cgroup and [`hold`] for less than this, unless the machine is very busy.
const MAKING: Duration = Duration::from_millis(20);

/// Lets the maker of a cgroup that was there already hold it, if it may have been made just now: whoever held it first
/// would be taken for its owner, and nobody would remove it in the end.
pub(crate) fn let_its_maker_hold(layout: &Layout, relative: &str) -> Result<(), CgroupError> {
    let path = deciding(layout).unwrap_or(Path::new("/")).join(relative);
    match std::fs::metadata(&path).and_then(|directory| directory.modified()) {
        // A cgroup has the time at which it was first looked at.
        Ok(made) if made.elapsed().map_or(true, |age| age < MAKING * 5) => std::thread::sleep(MAKING),
        Ok(_) => {}
        Err(source) => return Err(CgroupError::Read { path, source }),
    }
    Ok(())
}

/// Makes what [`claim`] has not.
pub(crate) fn complete(layout: &Layout, relative: &str) -> Result<(), CgroupError> {
    for mount in layout.mounts().filter(|mount| Some(*mount) != deciding(layout)) {
        create_in(layout, mount, relative)?;
    }
    Ok(())
}

/// Whether it was not there.
fn create_in(layout: &Layout, mount: &Path, relative: &str) -> Result<bool, CgroupError> {
    if layout.unified.as_deref() == Some(mount) {
        return match layout.version() {
            Version::V2 => create_controlled(mount, relative),
            Version::V1 => make_directories(&mount.join(relative)),
        };
    }
    if layout.v1_mount("cpuset") == Some(mount) {
        return create_cpuset(mount, relative);
    }
    make_directories(&mount.join(relative))
}

/// On version 2 a controller reaches a cgroup through every one above it. Where the one right above hands on whatever the
/// topmost has, all between them do.
fn create_controlled(mount: &Path, relative: &str) -> Result<bool, CgroupError> {
    let path = mount.join(relative);
    let above = path.parent().unwrap_or(mount);
    let enabled = std::fs::read_to_string(above.join("cgroup.subtree_control"));
    if let Ok(enabled) = enabled
        && missing(&read(&mount.join("cgroup.controllers"))?, &enabled).is_empty()
    {
        return make_directory(&path);
    }
    let mut directory = mount.to_path_buf();
    let mut made = false;
    for part in relative.split('/') {
        enable_controllers(&directory)?;
        directory.push(part);
        made = make_directory(&directory)?;
    }
    Ok(made)
}

/// A version 1 cpuset is born empty, and nothing can join an empty one: it gets what the one above it has.
fn create_cpuset(mount: &Path, relative: &str) -> Result<bool, CgroupError> {
    let path = mount.join(relative);
    let mut made = match make_directory(&path) {
        // Mostly the one above is there, and filled.
        Ok(made) if fill_cpuset(&path, made)? => return Ok(made),
        Ok(made) => made,
        Err(CgroupError::Create { source, .. }) if source.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    let mut directory = mount.to_path_buf();
    for part in relative.split('/') {
        directory.push(part);
        let now = make_directory(&directory)?;
        fill_cpuset(&directory, now)?;
        made |= now && directory == path;
    }
    Ok(made)
}

/// Whether a cpuset has processors and memory nodes then.
fn fill_cpuset(directory: &Path, made: bool) -> Result<bool, CgroupError> {
    let mut filled = true;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let path = directory.join(file);
        // Whoever made it at the same moment may not have filled it yet.
        if !made && !read(&path)?.trim().is_empty() {
            continue;
        }
        let value = read(&directory.with_file_name(file))?.trim().to_owned();
        if value.is_empty() {
            filled = false;
            continue;
        }
        write_file(&path, &value).map_err(|source| CgroupError::Write { path, value, source })?;
    }
    Ok(filled)
}

/// Whether it was not there.
fn make_directory(path: &Path) -> Result<bool, CgroupError> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(CgroupError::Create { path: path.to_owned(), source }),
    }
}

/// Whether it was not there.
fn make_directories(path: &Path) -> Result<bool, CgroupError> {
    match (make_directory(path), path.parent()) {
        (Err(CgroupError::Create { source, .. }), Some(above)) if source.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(above).map_err(|source| CgroupError::Create { path: above.to_owned(), source })?;
            make_directory(path)
        }
        (other, _) => other,
    }
}

/// Enables what is wanted and available for the children of a version 2 cgroup.
fn enable_controllers(directory: &Path) -> Result<(), CgroupError> {
    let enabled = read(&directory.join("cgroup.subtree_control"))?;
    let available = read(&directory.join("cgroup.controllers"))?;
    let path = directory.join("cgroup.subtree_control");
    for name in missing(&available, &enabled) {
        // One by one: a controller that refuses (cpu with realtime tasks, for one) does not take the others with it;
        // a limit that needs it fails later, by name.
        let value = format!("+{name}");
        match write_file(&path, &value) {
            Ok(()) => {}
            Err(error) if is_dispensable(name, &error) => drop(error),
            Err(source) => return Err(CgroupError::Write { path, value, source }),
        }
    }
    Ok(())
}

/// Controllers that are wanted and could be enabled, and are not.
fn missing(available: &str, enabled: &str) -> Vec<&'static str> {
    let has = |list: &str, name: &str| list.split_ascii_whitespace().any(|word| word == name);
    WANTED.into_iter().filter(|name| has(available, name) && !has(enabled, name)).collect()
}

/// Whether a container can be made although a controller could not be enabled for it: always where the caller is not the
/// one to decide (not everything is delegated to a user), and of the others where no container needs it.
fn is_dispensable(controller: &str, error: &io::Error) -> bool {
    let not_ours = matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem);
    not_ours || !matches!(controller, "memory" | "pids" | "cpu")
}

fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })
}

/// A directory that is gone, or that lacks the file because it is going.
pub(crate) fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(code) if code == rustix::io::Errno::NOENT.raw_os_error() || code == rustix::io::Errno::NODEV.raw_os_error())
}

/// Hierarchies in which our processes can be found: the unified one, and on version 1 the one that every process of a
/// container joins first.
fn census(layout: &Layout) -> impl Iterator<Item = &Path> {
    let v1 = layout.v1_mount("pids").or_else(|| layout.v1.first().map(|hierarchy| hierarchy.mount.as_path()));
    layout.unified.as_deref().into_iter().chain(v1)
}

pub(crate) fn processes(layout: &Layout, relative: &str) -> Result<Vec<Pid>, CgroupError> {
    const PROCESSES: &str = "cgroup.procs";
    let mut found = BTreeSet::new();
    let mut note = |text: io::Result<String>| -> io::Result<()> {
        match text {
            Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
            Err(error) if gone(&error) => {}
            // A threaded cgroup, which who may write to a cgroup can make below it: the one above lists its processes.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    };
    for mount in census(layout) {
        let top = mount.join(relative);
        tree::walk(&top, |place| note(place.read(PROCESSES)))?;
        let path = top.join(PROCESSES);
        note(std::fs::read_to_string(&path)).map_err(|source| CgroupError::Read { path, source })?;
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
    // Those that have gone meanwhile, and those that are another user's: who waits for the end of all tells of them.
    let _told_later = signal_each(layout, relative, SIGKILL)?;
    match set_frozen(layout, relative, false) {
        // What cannot be frozen was not.
        Err(CgroupError::NoController { .. }) => Ok(()),
        other => other.and_then(|()| release_the_killed(layout, relative)),
    }
}

/// Signals every process that is listed now; answers the first refusal, after all have been tried.
pub(crate) fn signal_each(layout: &Layout, relative: &str, signal: i32) -> Result<io::Result<()>, CgroupError> {
    let mut answer = Ok(());
    for some in processes(layout, relative)?.chunks(AT_ONCE) {
        let opened: Vec<_> = some.iter().filter_map(|pid| Some((pid, pidfd_open(*pid).ok()?))).collect();
        // Between the list and the descriptor an id could have gone to a stranger: it must still be listed.
        let listed = processes(layout, relative)?;
        for (_, pidfd) in opened.iter().filter(|(pid, _)| listed.contains(pid)) {
            match pidfd_send_signal(pidfd.as_fd(), signal) {
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                other => answer = answer.and(other),
            }
        }
    }
    Ok(answer)
}

/// So many processes are signalled by one look at the list of all: not each by one of its own, which for thousands would
/// take seconds, and not so many that descriptors run out.
const AT_ONCE: usize = 64;

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
            Ok(_) => {}
            // It has gone meanwhile, or there is no descriptor left to wait on.
            Err(_) => std::thread::sleep(Duration::from_micros(200)),
        }
    }
}

/// Waits by the kernel's own event until a unified cgroup has no process, or is gone, or the time is over.
fn wait_unpopulated(events: &Path, deadline: Instant) {
    wait_while(events, deadline, |text| stats::keyed(text, "populated") == Some(1));
}

/// Waits as long as the text of a `cgroup.events` says so, the file is there, and the time is not over; false when the
/// time was over.
fn wait_while(events: &Path, deadline: Instant, goes_on: impl Fn(&str) -> bool) -> bool {
    use std::io::{Read, Seek};
    let Ok(mut file) = File::open(events) else { return true };
    loop {
        let mut text = String::new();
        if file.rewind().is_err() || file.read_to_string(&mut text).is_err() || !goes_on(&text) {
            return true;
        }
        let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
        let timeout = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return true,
        }
    }
}

/// How long processes may take to stop.
const FREEZING: Duration = Duration::from_secs(2);

pub(crate) fn set_frozen(layout: &Layout, relative: &str, frozen: bool) -> Result<(), CgroupError> {
    let (path, value) = match layout.version() {
        Version::V2 => {
            let mount = layout.unified.as_deref().unwrap_or(Path::new("/"));
            (mount.join(relative).join("cgroup.freeze"), if frozen { "1" } else { "0" })
        }
        Version::V1 => (freezer_state(layout, relative)?, if frozen { "FROZEN" } else { "THAWED" }),
    };
    match write_file(&path, value) {
        Ok(()) => {}
        Err(error) if gone(&error) => return Ok(()),
        Err(source) => return Err(CgroupError::Write { path, value: value.into(), source }),
    }
    if !frozen || wait_frozen(layout, &path) {
        return Ok(());
    }
    // Half frozen is worse than running.
    set_frozen(layout, relative, false)?;
    Err(CgroupError::StillRunning { path: format!("/{relative}") })
}

fn freezer_state(layout: &Layout, relative: &str) -> Result<PathBuf, CgroupError> {
    let missing = || CgroupError::NoController { controller: "freezer".into(), needed_for: "pausing".into() };
    Ok(layout.v1_mount("freezer").ok_or_else(missing)?.join(relative).join("freezer.state"))
}

/// Freezing takes a moment. Version 2 tells when it is done; version 1 has nothing to wait on, and a process that forks
/// meanwhile needs a second write.
fn wait_frozen(layout: &Layout, path: &Path) -> bool {
    let deadline = Instant::now() + FREEZING;
    if layout.version() == Version::V2 {
        let events = path.with_file_name("cgroup.events");
        return wait_while(&events, deadline, |text| stats::keyed(text, "frozen") == Some(0));
    }
    while Instant::now() < deadline {
        match std::fs::read_to_string(path) {
            Ok(state) if state.trim() == "FROZEN" => return true,
            Err(error) if gone(&error) => return true,
            _ => {}
        }
        std::thread::sleep(Duration::from_micros(500));
        let _ = write_file(path, "FROZEN");
    }
    false
}

/// Lets frozen processes of version 1 end that were killed, also those that the container has frozen in cgroups of its
/// own below.
pub(crate) fn release_the_killed(layout: &Layout, relative: &str) -> Result<(), CgroupError> {
    if layout.version() == Version::V2 {
        return Ok(());
    }
    // Without a freezer nothing was ever frozen.
    let Ok(state) = freezer_state(layout, relative) else { return Ok(()) };
    if freezer(layout, relative, |state| state != "THAWED")? {
        set_frozen(layout, relative, false)?;
    }
    let top = state.parent().unwrap_or(Path::new("/"));
    tree::walk(top, |place| match place.write("freezer.state", "THAWED") {
        Err(error) if gone(&error) => Ok(()),
        other => other,
    })
}

pub(crate) fn is_frozen(layout: &Layout, relative: &str) -> Result<bool, CgroupError> {
    freezer(layout, relative, |state| state == "FROZEN")
}

/// `v1_is` tells it from the state of version 1.
fn freezer(layout: &Layout, relative: &str, v1_is: impl Fn(&str) -> bool) -> Result<bool, CgroupError> {
    let (path, v1) = match (layout.version(), layout.unified.as_deref()) {
        (Version::V2, Some(mount)) => (mount.join(relative).join("cgroup.events"), false),
        // Without a freezer nothing was ever frozen.
        _ => match freezer_state(layout, relative) {
            Ok(path) => (path, true),
            Err(_) => return Ok(false),
        },
    };
    match std::fs::read_to_string(&path) {
        Ok(text) if v1 => Ok(v1_is(text.trim())),
        Ok(text) => Ok(stats::keyed(&text, "frozen") == Some(1)),
        Err(error) if gone(&error) => Ok(false),
        Err(source) => Err(CgroupError::Read { path, source }),
    }
}

/// Removes it where nothing is in the way, without a look into it: one with processes in it, or with others below it, is
/// busy. `false` when it is, or could not be removed for another reason, which [`remove`] will tell.
pub(crate) fn remove_unused(layout: &Layout, relative: &str) -> bool {
    // By these its processes are found: while it has some, none of its directories goes.
    let first: Vec<&Path> = census(layout).collect();
    let others = layout.mounts().filter(|mount| !first.contains(mount));
    first.iter().copied().chain(others).all(|mount| remove_directory(&mount.join(relative)).is_ok())
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
            tree::walk(directory, |place| patiently(|| place.remove()))?;
            let failed = |source| CgroupError::Remove { path: directory.to_owned(), source };
            patiently(|| remove_if_there(directory)).map_err(failed)
        }
        other => other,
    }
}

fn busy(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(rustix::io::Errno::BUSY.raw_os_error()) || code == Some(rustix::io::Errno::NOTEMPTY.raw_os_error())
}

/// A process that has just ended keeps its cgroup busy for a moment.
fn patiently(remove: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_millis(500);
    let mut pause = Duration::from_micros(100);
    loop {
        match remove() {
            Err(error) if busy(&error) && Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

fn remove_directory(directory: &Path) -> Result<(), CgroupError> {
    remove_if_there(directory).map_err(|source| CgroupError::Remove { path: directory.to_owned(), source })
}

fn remove_if_there(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir(directory) {
        Err(error) if gone(&error) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_that_are_there_and_not_enabled_are_missing() {
        assert_eq!(
            missing("cpuset cpu io memory hugetlb pids rdma\n", "cpu memory pids\n"),
            ["cpuset", "io", "hugetlb", "rdma"]
        );
        assert_eq!(missing("memory pids\n", "pids memory\n"), Vec::<&str>::new());
        assert_eq!(missing("perf_event\n", "\n"), Vec::<&str>::new());
    }

    #[test]
    fn what_is_not_delegated_to_a_user_is_left_out_and_a_busy_cgroup_is_an_error() {
        let answer = |errno: rustix::io::Errno| io::Error::from(errno);
        for name in ["cpu", "memory", "pids", "io"] {
            for errno in [rustix::io::Errno::ACCESS, rustix::io::Errno::PERM, rustix::io::Errno::ROFS] {
                assert!(is_dispensable(name, &answer(errno)), "{name} {errno}");
            }
            assert_eq!(is_dispensable(name, &answer(rustix::io::Errno::BUSY)), name == "io", "{name}");
        }
    }

    fn file(path: &Path) -> String {
        std::fs::read_to_string(path).expect("a file")
    }

    /// The kernel makes these files with a directory.
    fn cpuset(directory: &Path, cpus: &str, mems: &str) {
        std::fs::create_dir_all(directory).expect("make");
        std::fs::write(directory.join("cpuset.cpus"), cpus).expect("write");
        std::fs::write(directory.join("cpuset.mems"), mems).expect("write");
    }

    #[test]
    fn an_empty_cpuset_gets_what_the_one_above_has_and_a_filled_one_keeps_its_own() {
        let root = tempfile::tempdir().expect("tempdir");
        let root = root.path();
        cpuset(root, "0-3\n", "0\n");
        cpuset(&root.join("a"), "\n", "0\n");
        cpuset(&root.join("a/b"), "", "");
        create_cpuset(root, "a/b").expect("create");
        assert_eq!(
            (file(&root.join("a/cpuset.cpus")), file(&root.join("a/cpuset.mems"))),
            ("0-3".into(), "0\n".into())
        );
        assert_eq!(
            (file(&root.join("a/b/cpuset.cpus")), file(&root.join("a/b/cpuset.mems"))),
            ("0-3".into(), "0".into())
        );
        std::fs::write(root.join("a/b/cpuset.cpus"), "2\n").expect("write");
        create_cpuset(root, "a/b").expect("create");
        assert_eq!(file(&root.join("a/b/cpuset.cpus")), "2\n");
    }

    #[test]
    fn controllers_are_enabled_from_the_top_down_only_where_one_is_missing() {
        let root = tempfile::tempdir().expect("tempdir");
        let root = root.path();
        let above = root.join("a");
        std::fs::create_dir(&above).expect("make");
        std::fs::write(root.join("cgroup.controllers"), "memory pids\n").expect("write");
        std::fs::write(above.join("cgroup.subtree_control"), "memory pids\n").expect("write");
        // Not looked at: the root has no file of what it hands on.
        create_controlled(root, "a/b").expect("create");
        assert!(above.join("b").is_dir());
        std::fs::write(root.join("cgroup.subtree_control"), "memory pids\n").expect("write");
        std::fs::write(above.join("cgroup.controllers"), "memory pids\n").expect("write");
        std::fs::write(above.join("cgroup.subtree_control"), "memory\n").expect("write");
        create_controlled(root, "a/c").expect("create");
        assert!(file(&above.join("cgroup.subtree_control")).starts_with("+pids"));
        assert_eq!(file(&root.join("cgroup.subtree_control")), "memory pids\n", "nothing is missing there");
    }
}
