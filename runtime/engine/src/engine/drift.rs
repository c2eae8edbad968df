//! What a stranger takes from the pods' network is made again when the kernel tells of it.
//!
//! ```text
//!   netlink: link, address or rule changed --ours, and not by us?--> ensure: bridge, rules, links' places
//!                                                                --> a living pod's link is gone: attach again
//! ```
//!
//! Nothing is polled: between changes the task sleeps in its two descriptors.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use portreeve_network::{Drift, Watch};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::{Core, blocking, ports, sysctls};
use crate::error::chain;
use crate::{EngineError, SandboxId};

/// Between two repairs: somebody who removes as fast as we repair costs no whole processor.
const REST: Duration = Duration::from_millis(100);
/// After a failed repair; doubled up to [`LONGEST`].
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// The task that repairs; it ends with this.
#[derive(Debug)]
pub(super) struct Upkeep {
    _task: AbortOnDropHandle<()>,
    /// Held while something is repaired; false once nothing is to be made again.
    goes_on: Arc<Mutex<bool>>,
}

impl Upkeep {
    /// Starts to listen, in the network namespace of this process.
    ///
    /// # Errors
    /// [`EngineError::NetworkOpen`] when the kernel does not let us.
    pub(super) fn start(core: &Arc<Core>) -> Result<Self, EngineError> {
        let watch = core.network.watch().map_err(EngineError::NetworkOpen)?;
        let descriptors = descriptors(&watch).map_err(EngineError::file("listening to", "the network".as_ref()))?;
        let goes_on = Arc::new(Mutex::new(true));
        let task = repair_forever(Arc::downgrade(core), watch, descriptors, Arc::clone(&goes_on));
        Ok(Self { _task: AbortOnDropHandle::new(tokio::spawn(task)), goes_on })
    }

    /// Waits for a repair under way; afterwards none begins.
    pub(super) async fn end(&self) {
        *self.goes_on.lock().await = false;
    }
}

/// Own descriptors of the watch's sockets, for the executor.
fn descriptors(watch: &Watch) -> std::io::Result<[AsyncFd<OwnedFd>; 2]> {
    let [route, netfilter] = watch.descriptors();
    // Its replacement is unsafe for kinds of descriptors that lie about themselves; an `OwnedFd` does not.
    #[expect(deprecated, reason = "the successor needs unsafe code")]
    let register = |fd: OwnedFd| AsyncFd::with_interest(fd, Interest::READABLE);
    Ok([register(route.try_clone_to_owned()?)?, register(netfilter.try_clone_to_owned()?)?])
}

async fn repair_forever(
    core: Weak<Core>,
    mut watch: Watch,
    [route, netfilter]: [AsyncFd<OwnedFd>; 2],
    goes_on: Arc<Mutex<bool>>,
) {
    let mut retry: Option<Duration> = None;
    loop {
        tokio::select! {
            // cancel-safe: readiness stays until it is cleared, and it is cleared before the messages are read.
            ready = route.readable() => match ready {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return,
            },
            ready = netfilter.readable() => match ready {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return,
            },
            // cancel-safe: it begins anew, which only makes a retry later.
            () = tokio::time::sleep(retry.unwrap_or(LONGEST)), if retry.is_some() => {}
        }
        // Held only while there is something to do: an engine that was let go of takes its stores' locks along.
        let Some(core) = core.upgrade() else { return };
        if !core.network.drifted(&mut watch) && retry.is_none() {
            continue;
        }
        let open = goes_on.lock().await;
        if !*open {
            return;
        }
        retry = match core.repair_network().await {
            Ok(()) => None,
            Err(error) => {
                let delay = retry.map_or(FIRST_RETRY, |last| (last * 2).min(LONGEST));
                tracing::warn!(error = %chain(&error), retry_in = ?delay, "network not repaired");
                Some(delay)
            }
        };
        drop(open);
        drop(core);
        tokio::time::sleep(REST).await;
    }
}

impl Core {
    /// Puts right what pods share, then gives living pods that have lost their link a new one.
    async fn repair_network(self: &Arc<Self>) -> Result<(), EngineError> {
        let network = Arc::clone(&self.network);
        let found = blocking(move || {
            let repaired = network.ensure().map_err(EngineError::NetworkOpen)?;
            for drift in repaired {
                tracing::warn!(%drift, "network repaired");
            }
            network.observe().map_err(EngineError::NetworkOpen)
        })
        .await?;
        for drift in found {
            if let Drift::LinkMissing { sandbox_id, .. } = &drift
                && let Ok(id) = sandbox_id.parse::<SandboxId>()
                && self.relink(&id).await?
            {
                tracing::warn!(%drift, "network repaired");
            }
        }
        Ok(())
    }

    /// Attaches a living sandbox again; its address stays. Whether there was one.
    async fn relink(&self, id: &SandboxId) -> Result<bool, EngineError> {
        let Ok(sandbox) = self.find_sandbox(id) else { return Ok(false) };
        // Stopping it waits; what stops it now has it alone.
        let Ok(_turn) = sandbox.turn.try_read() else { return Ok(false) };
        let Ok(client) = sandbox.ready() else { return Ok(false) };
        // A shim that dies takes the link along: whoever hears of its end cares for the sandbox.
        let Ok((_, mut fds)) = client.hello(id).await else { return Ok(false) };
        let Some(netns) = fds.pop() else { return Ok(false) };
        let (network, name) = (Arc::clone(&self.network), id.to_string());
        let ports = ports::built_in(&sandbox.facts().record.config.port_mappings)?;
        blocking(move || {
            network.attach(&name, netns.as_fd(), &ports).map_err(|source| EngineError::Network { id: name, source })
        })
        .await?;
        // Those of its interface went with that.
        let config = sandbox.facts().record.config.clone();
        sysctls::set_late(&client, &config).await?;
        Ok(true)
    }
}
