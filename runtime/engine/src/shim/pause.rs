//! The first process of a pod's own namespaces: it reaps what is left to it, and has nothing to give away.
//!
//! In a shared pid namespace it is process 1 of every container, and one that holds `CAP_SYS_PTRACE` may look into it
//! and make it do things. So it is less than any of them before the first one is made:
//!
//! ```text
//!   shim --clone3(user, pid)--> pause
//!   writes the id maps --go---> namespaces of its own, an empty root, no descriptors, no capabilities, no user,
//!                               no new privileges, the five calls that it needs
//!   goes on         <--ready--- waits for children, until the kernel ends it with the shim
//! ```

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};
use portreeve_oci::seccomp::{Filter, SeccompError};
use portreeve_sys::clone::{self, Child, Clone3, clone3};
use portreeve_sys::mount::{self, Change, Propagation};
use portreeve_sys::{capability, fd, namespace, process, socket};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::WaitOptions;

use super::pod::{PodError, step};

/// What it may still call when it is ready.
const CALLS: [&str; 5] = ["write", "close", "wait4", "rt_sigtimedwait", "exit_group"];
const READY: &[u8] = b"ready";
/// Longest complaint that is listened to.
const WORDS: usize = 4096;

/// How it shall be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pause {
    /// Namespaces that it is born in.
    pub(super) born: u64,
    /// Namespaces that it makes when it is root of its users, beside those of mounts and cgroups.
    pub(super) own: u64,
    /// Who it is in the end.
    pub(super) user: u32,
    /// Likewise.
    pub(super) group: u32,
}

impl Pause {
    /// Clones it; `maps` writes the id maps of a user namespace. It is ready when this returns.
    ///
    /// # Errors
    /// [`PodError`] with what the process itself had to say; it has ended then, or is about to.
    pub(super) fn start(self, maps: impl FnOnce(&Child) -> Result<(), PodError>) -> Result<Child, PodError> {
        let filter = filter().map_err(|error| PodError::Pause(crate::error::chain(&error)))?;
        let (ours, theirs) = step("making a socket pair", socket::message_pair())?;
        let how = Clone3 { namespaces: self.born, ..Clone3::default() };
        let child = step("cloning the pod's first process", clone3(&how, move || self.run(theirs, &filter)))?;
        maps(&child)?;
        step("letting the pod's first process go on", socket::send(ours.as_fd(), b"go", &[]))?;
        let mut words = [0; WORDS];
        let (length, _) = step("listening to the pod's first process", socket::receive(ours.as_fd(), &mut words))?;
        match words.get(..length).unwrap_or_default() {
            READY => Ok(child),
            [] => Err(PodError::Pause("it ended without a word".to_owned())),
            words => Err(PodError::Pause(String::from_utf8_lossy(words).into_owned())),
        }
    }

    fn run(self, socket: OwnedFd, filter: &Filter) -> i32 {
        let settled = self.settle(&socket, filter);
        let said = match &settled {
            // With the filter loaded no memory can be had any more.
            Ok(()) => rustix::io::write(&socket, READY),
            Err(error) => {
                let words = crate::error::chain(error);
                rustix::io::write(&socket, words.as_bytes().get(..WORDS).unwrap_or(words.as_bytes()))
            }
        };
        drop(socket);
        if settled.is_ok() && said.is_ok() { reap() } else { 1 }
    }

    fn settle(self, socket: &OwnedFd, filter: &Filter) -> Result<(), PodError> {
        step("naming it", process::set_name(c"pause"))?;
        let (length, _) = step("waiting for the shim", socket::receive(socket.as_fd(), &mut [0; 2]))?;
        if length == 0 {
            return Err(PodError::Pause("the shim has gone".to_owned()));
        }
        become_user(0, 0)?;
        step("making its namespaces", namespace::unshare(clone::NEW_MOUNT | clone::NEW_CGROUP | self.own))?;
        empty_root()?;
        let kept = socket.as_raw_fd();
        step("closing descriptors", fd::close_range(0, kept - 1))?;
        step("closing descriptors", fd::close_range(kept + 1, i32::MAX))?;
        step("emptying its bounding set", capability::limit_bounding(0))?;
        become_user(self.user, self.group)?;
        step("dropping its capabilities", capability::set(&capability::Sets::default()))?;
        step("setting no_new_privs", process::set_no_new_privileges())?;
        // A change of user undoes both of these.
        step("becoming undumpable", process::set_dumpable(false))?;
        step("tying it to the shim", process::set_parent_death_signal(Some(nix::libc::SIGKILL)))?;
        step("blocking SIGCHLD", children().thread_block())?;
        step("loading its seccomp filter", filter.load().map(drop))
    }
}

fn become_user(user: u32, group: u32) -> Result<(), PodError> {
    step("dropping its groups", process::set_groups(&[]))?;
    step("changing its group", process::set_group_id(group))?;
    step("changing its user", process::set_user_id(user))
}

/// A file system without anything in it, that nothing can be put into, becomes all that it sees.
fn empty_root() -> Result<(), PodError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = step("opening its root", rustix::fs::openat(CWD, "/", flags, Mode::empty()))?;
    let private = Change { propagation: Some(Propagation::Private), recursive: true, ..Change::default() };
    step("making its mounts private", mount::set_attributes(old.as_fd(), &private))?;
    let attributes = mount::READ_ONLY | mount::NO_SUID | mount::NO_DEV | mount::NO_EXEC;
    let root = mount::new_filesystem("tmpfs").and_then(|tmpfs| {
        for (key, value) in [("source", "pause"), ("mode", "0555"), ("nr_inodes", "1")] {
            mount::set_string(tmpfs.as_fd(), key, value)?;
        }
        mount::create(tmpfs.as_fd(), attributes)
    });
    let root = step("making its root", root)?;
    step("attaching its root", mount::attach(root.as_fd(), old.as_fd()))?;
    step("changing its root", mount::pivot_root(root.as_fd()))
}

fn filter() -> Result<Filter, SeccompError> {
    let mut calls = LinuxSyscall::default();
    calls.set_names(CALLS.map(str::to_owned).to_vec());
    calls.set_action(LinuxSeccompAction::ScmpActAllow);
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
    profile.set_syscalls(Some(vec![calls]));
    Filter::compile(&profile)
}

fn children() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set
}

fn reap() -> i32 {
    let children = children();
    loop {
        while matches!(rustix::process::wait(WaitOptions::NOHANG), Ok(Some(_)) | Err(rustix::io::Errno::INTR)) {}
        if children.wait().is_err_and(|error| error != nix::errno::Errno::EINTR) {
            return 1;
        }
    }
}
