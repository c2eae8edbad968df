//! What sandboxes and containers use.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use portreeve_oci::cgroup::{Cgroup, CgroupError};

use super::{Core, blocking, cgroup_error};
use crate::container::ContainerState;
use crate::error::chain;
use crate::stats::{ContainerCount, Count, Descriptors, Processes, SandboxCount};
use crate::{ContainerId, ContainerStats, EngineError, SandboxId, SandboxStats, Usage};

/// What was read of each container, or why it could not be.
type Each<T> = Vec<(ContainerId, Result<T, EngineError>)>;

impl Core {
    pub(super) async fn stats(&self, id: &ContainerId) -> Result<ContainerStats, EngineError> {
        let container = self.find_container(id)?;
        let path = container.facts().record.cgroup.clone();
        let usage = blocking(move || read(&path, usage)).await?;
        Ok(ContainerStats { id: id.clone(), usage })
    }

    pub(super) async fn sandbox_stats(&self, id: &SandboxId) -> Result<SandboxStats, EngineError> {
        let (usage, each) = self.read_each(id, usage, |cgroup, _| usage(cgroup)).await?;
        let (containers, unread) = self.split(each);
        let containers = containers.into_iter().map(|(id, usage)| ContainerStats { id, usage }).collect();
        Ok(SandboxStats { id: id.clone(), usage, containers, unread })
    }

    pub(super) async fn count_sandbox(&self, id: &SandboxId) -> Result<SandboxCount, EngineError> {
        let of_container = |cgroup: &Cgroup, first| Ok((count(cgroup)?, processes(cgroup, first)?));
        let (count, each) = self.read_each(id, count, of_container).await?;
        let (containers, unread) = self.split(each);
        let one = |(id, (count, processes))| ContainerCount { id, count, processes };
        Ok(SandboxCount { id: id.clone(), count, containers: containers.into_iter().map(one).collect(), unread })
    }

    /// Reads the cgroup of a sandbox, and those of its running containers, whose first processes are known as well.
    async fn read_each<P: Send + 'static, C: Send + 'static>(
        &self,
        id: &SandboxId,
        of_sandbox: fn(&Cgroup) -> Result<P, CgroupError>,
        of_container: fn(&Cgroup, Option<u32>) -> Result<C, CgroupError>,
    ) -> Result<(P, Each<C>), EngineError> {
        let parent = self.find_sandbox(id)?.facts().record.config.cgroup_parent.clone();
        let containers: Vec<_> = self
            .containers_of(id)
            .iter()
            .filter(|one| one.state() == ContainerState::Running)
            .map(|one| {
                let facts = one.facts();
                (one.id.clone(), facts.record.cgroup.clone(), facts.pid)
            })
            .collect();
        blocking(move || {
            let one = |(id, path, first): (_, String, _)| (id, read(&path, |cgroup| of_container(cgroup, first)));
            Ok((read(&parent, of_sandbox)?, containers.into_iter().map(one).collect()))
        })
        .await
    }

    /// What could be read, and why the rest could not. One that has ended since uses nothing, whatever was read of it.
    fn split<T>(&self, each: Each<T>) -> (Vec<(ContainerId, T)>, BTreeMap<ContainerId, String>) {
        let (mut found, mut unread) = (Vec::new(), BTreeMap::new());
        for (id, one) in each {
            if !self.find_container(&id).is_ok_and(|one| one.state() == ContainerState::Running) {
                continue;
            }
            match one {
                Ok(one) => found.push((id, one)),
                Err(error) => drop(unread.insert(id, chain(&error))),
            }
        }
        (found, unread)
    }
}

fn read<T>(path: &str, of: impl FnOnce(&Cgroup) -> Result<T, CgroupError>) -> Result<T, EngineError> {
    let cgroup = Cgroup::at(path).map_err(cgroup_error("finding", path))?;
    of(&cgroup).map_err(cgroup_error("reading", path))
}

fn usage(cgroup: &Cgroup) -> Result<Usage, CgroupError> {
    Ok(Usage { at: Timestamp::now(), counted: cgroup.stats()?, waited: cgroup.pressures()? })
}

fn count(cgroup: &Cgroup) -> Result<Count, CgroupError> {
    Ok(Count { usage: usage(cgroup)?, figures: cgroup.figures()? })
}

fn processes(cgroup: &Cgroup, first: Option<u32>) -> Result<Processes, CgroupError> {
    let pids = cgroup.processes()?;
    let limits = match first {
        Some(first) => limits(Path::new(&format!("/proc/{first}/limits")))?,
        None => None,
    };
    let mut open = Descriptors::default();
    let counted = pids.iter().try_for_each(|pid| {
        let one = descriptors(Path::new(&format!("/proc/{}/fd", pid.as_raw_nonzero())))?;
        (open.all, open.sockets) = (open.all + one.all, open.sockets + one.sockets);
        io::Result::Ok(())
    });
    if let Err(error) = &counted {
        tracing::debug!(cgroup = cgroup.path(), %error, "open files of a container could not be counted");
    }
    Ok(Processes {
        count: pids.len() as u64,
        // A sum that lacks some is none.
        descriptors: counted.is_ok().then_some(open),
        files_limit: limits.as_deref().and_then(files_limit),
    })
}

/// Whether that is what a process says that has ended; ESRCH: it ends just now.
fn ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// The limits of a process: none when it has ended.
fn limits(path: &Path) -> Result<Option<String>, CgroupError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if ended(&error) => Ok(None),
        Err(source) => Err(CgroupError::Read { path: path.to_owned(), source }),
    }
}

/// What one process has open: nothing when it has ended.
fn descriptors(directory: &Path) -> io::Result<Descriptors> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if ended(&error) => return Ok(Descriptors::default()),
        entries => entries?,
    };
    let mut found = Descriptors::default();
    for entry in entries {
        let target = match entry.and_then(|entry| std::fs::read_link(entry.path())) {
            Err(error) if ended(&error) => continue,
            target => target?,
        };
        found.all += 1;
        found.sockets += u64::from(target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
    }
    Ok(found)
}

/// The soft limit on open files. Source: proc_pid_limits(5).
fn files_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_a_process_has_open_is_counted_and_one_that_is_gone_has_nothing() {
        let own = Path::new("/proc/self/fd");
        let _pair = UnixStream::pair().unwrap();
        let _file = std::fs::File::open("/dev/null").unwrap();
        let now = descriptors(own).unwrap();
        // Other tests of this process may have more open.
        assert!(now.sockets >= 2 && now.all > now.sockets, "{now:?}");
        assert_eq!(descriptors(Path::new("/proc/0/fd")).unwrap(), Descriptors::default());
    }

    #[test]
    fn limits_that_cannot_be_read_are_told_and_a_process_that_is_gone_has_none() {
        assert!(limits(Path::new("/proc/self/limits")).unwrap().unwrap().contains("Max open files"));
        assert_eq!(limits(Path::new("/proc/0/limits")).unwrap(), None);
        let error = limits(Path::new("/proc/self")).unwrap_err();
        assert_eq!(error.to_string(), "reading /proc/self");
    }

    #[test]
    fn the_soft_limit_on_files_is_the_first_number_of_its_line() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             7                    9                    processes \n\
                      Max open files            1024                 1048576              files     \n";
        assert_eq!(files_limit(limits), Some(1024));
        assert_eq!(files_limit("Max open files            unlimited            unlimited            files"), None);
        assert_eq!(files_limit(""), None);
    }
}
