//! How soon a container's processes are killed when memory runs out, changed while they run.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use oci_spec::runtime::Spec;
use portreeve_oci::cgroup::Cgroup;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use super::{Core, blocking, cgroup_error};
use crate::{ContainerId, ContainerState, EngineError, record};

/// What the kernel takes. Source: Linux, uapi/linux/oom.h.
const RANGE: std::ops::RangeInclusive<i32> = -1000..=1000;
/// How often processes are looked for that were born meanwhile; each time only those whose parent had the old value.
const PASSES: usize = 16;

impl Core {
    pub(super) async fn update_oom_score_adj(self: Arc<Self>, id: &ContainerId, score: i32) -> Result<(), EngineError> {
        if !RANGE.contains(&score) {
            return Err(EngineError::invalid("oom_score_adj", format!("{score} is not from -1000 to 1000")));
        }
        let container = self.find_container(id)?;
        let _turn = container.turn.lock().await;
        match container.state() {
            ContainerState::Created | ContainerState::Running => {}
            state => return Err(EngineError::WrongState { id: id.clone(), state, wanted: "created or running" }),
        }
        let record = {
            let mut record = container.facts().record.clone();
            record.config.oom_score_adj = Some(score);
            record
        };
        let (directory, path, written) = (container.directory.clone(), record.cgroup.clone(), record.clone());
        let name = id.clone();
        blocking(move || {
            // What is executed in it later begins as its specification says.
            specify(&directory.join("config.json"), score)?;
            record::write(&directory.join("container.json"), &written)?;
            let cgroup = Cgroup::at(&path).map_err(cgroup_error("finding", &path))?;
            let refused = score_all(&cgroup, score).map_err(cgroup_error("reading", &path))?;
            if refused > 0 {
                tracing::warn!(container_id = %name, score, refused, "processes kept their oom_score_adj: it may not be lowered here");
            }
            Ok(())
        })
        .await?;
        container.change(|facts| facts.record.config.oom_score_adj = record.config.oom_score_adj);
        Ok(())
    }
}

fn specify(path: &Path, score: i32) -> Result<(), EngineError> {
    let bytes = std::fs::read(path).map_err(EngineError::file("reading", path))?;
    let mut spec: Spec =
        serde_json::from_slice(&bytes).map_err(|error| EngineError::file("reading", path)(error.into()))?;
    if let Some(process) = spec.process_mut() {
        process.set_oom_score_adj(Some(score));
    }
    let bytes = serde_json::to_vec(&spec).map_err(|error| EngineError::file("encoding", path)(error.into()))?;
    record::replace(path, &bytes, 0o600).map_err(EngineError::file("writing", path))
}

/// Gives the value to every process of a cgroup; a child has it from its parent. How many may not have it.
fn score_all(cgroup: &Cgroup, score: i32) -> Result<usize, portreeve_oci::cgroup::CgroupError> {
    let (mut done, mut refused) = (BTreeSet::new(), 0);
    for _ in 0..PASSES {
        let new = cgroup.processes()?.into_iter().filter(|pid| !done.contains(&pid.as_raw_nonzero()));
        let open: Vec<(Pid, OwnedFd)> = new.filter_map(|pid| Some((pid, process(pid).ok()?))).collect();
        if open.is_empty() {
            break;
        }
        // Who has this number now and is still in the cgroup is who was opened, or that one is gone and cannot be written.
        let still = cgroup.processes()?;
        for (pid, directory) in open.into_iter().filter(|(pid, _)| still.contains(pid)) {
            done.insert(pid.as_raw_nonzero());
            refused += usize::from(write(&directory, score).is_err_and(|error| !is_gone(&error)));
        }
    }
    Ok(refused)
}

fn process(pid: Pid) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, format!("/proc/{}", pid.as_raw_nonzero()), flags, Mode::empty())
}

fn write(process: &OwnedFd, score: i32) -> io::Result<()> {
    let file = rustix::fs::openat(process, "oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    std::fs::File::from(file).write_all(score.to_string().as_bytes())
}

fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::SRCH | Errno::NOENT))
}
