//! Stopping, losing and removing sandboxes: all that ends them, and what is left of them.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;

use portreeve_oci::cgroup::Cgroup;
use rustix::mount::UnmountFlags;

use super::sandbox::{PATIENCE, Reaper};
use super::table::Sandbox;
use super::{Core, blocking, cgroup_error, spawn};
use crate::client::{Client, End};
use crate::error::all;
use crate::protocol::Call;
use crate::record::{self, SandboxPhase};
use crate::{EngineError, EngineEvent, SandboxId};

/// Why a sandbox is not ready that was asked to stop.
const STOPPED: &str = "stopped";

impl Core {
    pub(super) async fn stop_sandbox(self: Arc<Self>, id: &SandboxId) -> Result<(), EngineError> {
        let Ok(sandbox) = self.find_sandbox(id) else { return Ok(()) };
        let _turn = sandbox.turn.write().await;
        self.halt(&sandbox, STOPPED).await
    }

    /// Ends everything of a sandbox but its records. The intent is recorded first; whoever comes after goes on.
    ///
    /// One that was lost becomes [`STOPPED`] when that is asked for and nothing of it is left.
    pub(super) async fn halt(self: &Arc<Self>, sandbox: &Sandbox, reason: &str) -> Result<(), EngineError> {
        let (client, child, was_ready, released, mut record) = {
            let mut facts = sandbox.facts();
            let was_ready = facts.record.phase == SandboxPhase::Ready;
            if was_ready {
                facts.record.phase = SandboxPhase::Stopped;
                facts.record.reason = reason.to_owned();
            }
            (facts.client.take(), facts.child.take(), was_ready, facts.released, facts.record.clone())
        };
        if was_ready {
            record::write(&sandbox.directory.join("sandbox.json"), &record)?;
        }
        if !released {
            // The network takes its time to go, and needs nobody inside.
            let (ended, released) =
                tokio::join!(self.end_shim(sandbox, client, child), self.release(&sandbox.id, &sandbox.directory));
            let errors: Vec<EngineError> = [ended, released].into_iter().filter_map(Result::err).collect();
            if was_ready && reason == STOPPED {
                self.tell(&self.order(), EngineEvent::SandboxStopped(sandbox.id.clone()));
            }
            all(errors)?;
            let mut facts = sandbox.facts();
            facts.record.ips.clear();
            facts.released = true;
        }
        if reason == STOPPED && record.reason != STOPPED {
            record.reason = STOPPED.to_owned();
            record.ips.clear();
            record::write(&sandbox.directory.join("sandbox.json"), &record)?;
            // Its end was told when it was lost.
            sandbox.facts().record.reason = record.reason;
        }
        Ok(())
    }

    /// Asks the shim to end with all its containers; a shim that does not listen is killed with them.
    async fn end_shim(
        &self,
        sandbox: &Sandbox,
        client: Option<Arc<Client>>,
        child: Option<Child>,
    ) -> Result<(), EngineError> {
        let (asked, silent) = match &client {
            Some(client) => match tokio::time::timeout(PATIENCE, client.ask(Call::Shutdown)).await {
                Ok(answer) => (answer.is_ok(), client.ended() == Some(End::Silent)),
                Err(_elapsed) => (false, true),
            },
            None => (false, false),
        };
        let reaper = Reaper(child);
        if !asked {
            let pid = sandbox.facts().record.shim_pid;
            let directory = sandbox.directory.clone();
            blocking(move || {
                // One that does not listen is not asked again.
                kill_shim(pid, &directory, !silent);
                Ok(())
            })
            .await?;
        }
        drop(reaper);
        self.bury(sandbox).await
    }

    /// Releases network and mounts; both may be gone already.
    async fn release(&self, id: &SandboxId, directory: &Path) -> Result<(), EngineError> {
        let by_plugins = self.detach_by_plugins(id).await;
        let (network, name, shm) = (Arc::clone(&self.network), id.to_string(), directory.join("shm"));
        blocking(move || {
            let mut errors: Vec<EngineError> = by_plugins.err().into_iter().collect();
            if let Err(source) = network.detach(&name) {
                errors.push(EngineError::Network { id: name, source });
            }
            if let Err(error) = unmount(&shm) {
                errors.push(error);
            }
            all(errors)
        })
        .await
    }

    /// There is no shim to speak to any more. When nobody asked for that, its containers are killed, and everybody hears
    /// of it.
    pub(super) async fn sandbox_lost(self: Arc<Self>, id: &SandboxId, reason: &str) {
        let Ok(sandbox) = self.find_sandbox(id) else { return };
        let _turn = sandbox.turn.write().await;
        if sandbox.facts().record.phase != SandboxPhase::Ready {
            return;
        }
        if let Err(error) = self.halt(&sandbox, reason).await {
            tracing::debug!(sandbox_id = %id, error = %crate::error::chain(&error), "lost sandbox not cleared");
        }
        self.tell(&self.order(), EngineEvent::SandboxLost { id: id.clone(), reason: reason.to_owned() });
    }

    pub(super) async fn remove_sandbox(self: Arc<Self>, id: &SandboxId) -> Result<(), EngineError> {
        let Ok(sandbox) = self.find_sandbox(id) else { return Ok(()) };
        let _turn = sandbox.turn.write().await;
        self.halt(&sandbox, STOPPED).await?;
        let mut errors = Vec::new();
        for container in self.containers_of(id) {
            if let Err(error) = self.remove_one(&container).await {
                errors.push(error);
            }
        }
        all(errors)?;
        let parent = sandbox.facts().record.config.cgroup_parent.clone();
        if self.is_ours(&parent) {
            self.remove_pod_cgroup(id, parent).await?;
        }
        let (directory, files) = (sandbox.directory.clone(), self.files_directory(id));
        blocking(move || remove_tree(&files).and_then(|()| remove_tree(&directory))).await?;
        let _order = self.order();
        let last = self.pod(id);
        self.table_mut().sandboxes.remove(id);
        self.tell_of(last, EngineEvent::SandboxRemoved(id.clone()));
        Ok(())
    }

    /// Removes the cgroup of a sandbox, unless it is another one's, too.
    pub(super) async fn remove_pod_cgroup(&self, id: &SandboxId, path: String) -> Result<(), EngineError> {
        let making = self.making.lock().await;
        let shares = |other: &Arc<Sandbox>| other.id != *id && other.facts().record.config.cgroup_parent == path;
        if making.contains_key(&path) || self.table().sandboxes.values().any(shares) {
            return Ok(());
        }
        blocking(move || match Cgroup::at(&path) {
            Ok(cgroup) => cgroup.remove().map_err(cgroup_error("removing", &path)),
            // Then there never was one.
            Err(_) => Ok(()),
        })
        .await
    }

    /// Removes all that a half-made sandbox can have left; for rollback and recovery.
    pub(super) async fn clear_sandbox(
        &self,
        id: &SandboxId,
        directory: &Path,
        shim_pid: Option<u32>,
    ) -> Result<(), EngineError> {
        let place = directory.to_owned();
        blocking(move || {
            kill_shim(shim_pid, &place, true);
            Ok(())
        })
        .await?;
        self.release(id, directory).await?;
        let (place, files) = (directory.to_owned(), self.files_directory(id));
        blocking(move || remove_tree(&files).and_then(|()| remove_tree(&place))).await
    }
}

/// Ends a shim that cannot be asked by its own client: over its socket if it `listens`, else by its process.
pub(super) fn kill_shim(recorded: Option<u32>, directory: &Path, listens: bool) {
    use std::io::Read as _;
    if listens
        && let Ok(mut stream) = spawn::connect(directory)
        && let Ok(mut call) =
            crate::protocol::Outgoing::new(&crate::protocol::Request { id: 1, call: Call::Shutdown }, Vec::new())
    {
        let waits = stream.set_read_timeout(Some(PATIENCE)).is_ok() && call.send(stream.as_fd()).is_ok();
        let mut rest = Vec::new();
        if waits && stream.read_to_end(&mut rest).is_ok() {
            return;
        }
    }
    if let Some(pid) = recorded.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw) {
        kill_if_shim(pid, directory);
    }
}

/// Kills a process if it is the shim of this directory; the descriptor is taken before the question is asked.
pub(super) fn kill_if_shim(pid: rustix::process::Pid, directory: &Path) -> bool {
    let Ok(pidfd) = portreeve_sys::process::pidfd_open(pid) else { return false };
    if shim_directory(pid).as_deref() != Some(directory) {
        return false;
    }
    let _gone = portreeve_sys::process::pidfd_send_signal(pidfd.as_fd(), nix::libc::SIGKILL);
    portreeve_sys::process::has_ended(pidfd.as_fd(), 5000).unwrap_or(true)
}

/// The directory that a process was started as a shim for.
pub(super) fn shim_directory(pid: rustix::process::Pid) -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
    let mut words = line.split(|byte| *byte == 0).skip(1);
    if words.next() != Some(b"shim") {
        return None;
    }
    words.next().map(|word| std::ffi::OsString::from_vec(word.to_vec()).into())
}

/// Takes a mount away, if there is one.
pub(super) fn unmount(path: &Path) -> Result<(), EngineError> {
    use rustix::io::Errno;
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // There may be several, one over the other.
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(EngineError::file("unmounting", path)(error.into())),
        }
    }
}

/// Removes a directory of ours; absent is fine. It is renamed first, so that nobody takes a half-removed one for whole.
pub(super) fn remove_tree(path: &Path) -> Result<(), EngineError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".removing");
    let aside = Path::new(&name);
    match fs::rename(path, aside) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(EngineError::file("removing", path)(error)),
    }
    portreeve_sys::tree::remove(aside).map_err(EngineError::file("removing", aside))
}
