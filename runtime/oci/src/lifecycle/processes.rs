//! The processes of a container: those of its cgroup, or of its PID namespace where it has no cgroup of its own.

use std::io;
use std::os::unix::fs::MetadataExt;

use oci_spec::runtime::LinuxNamespaceType;
use portreeve_sys::process::{pidfd_open, pidfd_send_signal};

use super::{Container, Failed, LifecycleError, ended};
use crate::Pid;

impl Container {
    /// Its processes.
    ///
    /// # Errors
    /// [`LifecycleError::Cgroup`]; [`LifecycleError::NoCgroup`] for one that has neither a cgroup nor a PID namespace of
    /// its own; [`LifecycleError::File`].
    pub fn processes(&self) -> Result<Vec<Pid>, LifecycleError> {
        if let Some(cgroup) = self.cgroup()? {
            return Ok(cgroup.processes()?);
        }
        if !self.has_own_pids()? {
            return Err(LifecycleError::NoCgroup { id: self.id.0.clone(), verb: "list the processes of" });
        }
        let first = self.process()?.and(self.record.process).and_then(|process| Pid::from_raw(process.pid));
        let found = first.map_or(Ok(Vec::new()), in_namespace_of);
        found.map_err(|error| self.file("looking for the processes of", "", error))
    }

    /// Whether its first process is the first of a PID namespace, with which all of its processes end.
    pub(super) fn has_own_pids(&self) -> Result<bool, LifecycleError> {
        let spec = self.spec()?;
        let mut namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
        let own = |path: &std::path::PathBuf| path.as_os_str().is_empty();
        Ok(namespaces.any(|one| one.typ() == LinuxNamespaceType::Pid && one.path().as_ref().is_none_or(own)))
    }

    /// Signals its processes one by one: without a cgroup, one that is made meanwhile is missed.
    pub(super) fn signal_each(&self, signal: i32) -> Result<(), Failed> {
        let listed = || self.processes().map_err(|error| Failed::Signal(io::Error::other(error)));
        let first = self.record.process.map(|process| process.pid);
        let mut processes = listed()?;
        // With the first, all of them end by another signal.
        processes.sort_by_key(|pid| Some(pid.as_raw_nonzero().get()) == first);
        for pid in processes {
            let Ok(pidfd) = pidfd_open(pid) else { continue };
            // Between the list and the descriptor the id could have gone to a stranger: it must still be listed.
            if listed()?.contains(&pid) {
                match pidfd_send_signal(std::os::fd::AsFd::as_fd(&pidfd), signal) {
                    Err(error) if !ended(&error) => return Err(Failed::Signal(error)),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Every process that is in the PID namespace of `first`, of which it is the first.
fn in_namespace_of(first: Pid) -> io::Result<Vec<Pid>> {
    let namespace = |pid: i32| std::fs::metadata(format!("/proc/{pid}/ns/pid")).map(|found| (found.dev(), found.ino()));
    let first_pid = first.as_raw_nonzero().get();
    let own = match namespace(first_pid) {
        Ok(own) => own,
        // It has not executed its program, and is closed to everybody but root: nobody else has been there yet.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(vec![first]),
        Err(error) if ended(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        match namespace(pid) {
            Ok(other) if other == own => found.extend(Pid::from_raw(pid)),
            // A stranger's, or one that goes.
            _ => {}
        }
    }
    Ok(found)
}
