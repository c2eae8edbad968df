//! Tasks that carry the latest state to where it must be: the ledger to the disk, the weights of the
//! QoS levels to the kernel.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Weights;
use crate::desired::Ledger;
use crate::events::{EventKind, Subject};
use crate::worker::Shared;
use portreeve_engine::chain;

/// The ledger is tried again so long after a first failure, then after twice that, and so on.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Sets what the QoS levels should enforce, the latest only.
pub(super) async fn set_weights(shared: Arc<Shared>, mut wanted: watch::Receiver<Weights>, stop: CancellationToken) {
    let mut set = Weights::new();
    let mut failed = false;
    loop {
        tokio::select! {
            // cancel-safe: the value stays in the channel.
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
            // cancel-safe: a timer.
            () = tokio::time::sleep(Duration::from_secs(5)), if failed => {}
            // cancel-safe: a state.
            () = stop.cancelled() => return,
        }
        let wanted = wanted.borrow_and_update().clone();
        failed = false;
        for (path, resources) in wanted {
            if set.get(&path) == Some(&resources) {
                continue;
            }
            match shared.runtime.update_cgroup_resources(&path, &resources).await {
                Ok(()) => drop(set.insert(path, resources)),
                Err(error) => {
                    failed = true;
                    warn!(cgroup = %path, error = %chain(&error), "weight of a QoS level was not set, trying again in 5 s");
                }
            }
        }
    }
}

/// What became of the writes of the ledger.
#[derive(Debug, Clone, Default)]
pub(crate) struct Written {
    /// The newest that was tried.
    pub(super) number: u64,
    /// Why the disk does not have it.
    pub(crate) problem: Option<String>,
}

/// Writes the ledger, the latest only; after a failure again with every change, and by itself with back-off.
pub(super) async fn write_ledger(
    path: PathBuf,
    shared: Arc<Shared>,
    mut to_write: watch::Receiver<(u64, Arc<Ledger>)>,
    written: watch::Sender<Written>,
    stop: CancellationToken,
) {
    let node = Subject::node(&shared.node.name);
    let mut pause: Option<Duration> = None;
    loop {
        let stopped = tokio::select! {
            // cancel-safe: the value stays in the channel.
            changed = to_write.changed() => changed.is_err(),
            // cancel-safe: a timer.
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => false,
            // cancel-safe: a state.
            () = stop.cancelled() => true,
        };
        let (number, ledger) = to_write.borrow_and_update().clone();
        if written.borrow().number >= number && pause.is_none() {
            if stopped {
                return;
            }
            continue;
        }
        let target = path.clone();
        let result = tokio::task::spawn_blocking(move || ledger.write_blocking(&target)).await;
        let problem = match result {
            Ok(Ok(())) => None,
            Ok(Err(problem)) => Some(chain(&problem)),
            Err(problem) => Some(problem.to_string()),
        };
        let outcome = if problem.is_some() { "failure" } else { "success" };
        shared.metrics.ledger_writes.with_label_values(&[outcome]).inc();
        if let Some(problem) = &problem {
            let next = pause.map_or(FIRST_RETRY, |pause| (pause * 2).min(LAST_RETRY));
            pause = Some(next);
            if stopped {
                error!(error = %problem, "ledger was not written, and the agent ends");
            } else if written.borrow().problem.as_ref() != Some(problem) {
                error!(error = %problem, "ledger was not written, trying again with back-off");
            }
            let message = unwritten(problem);
            let until = shared.clock.now() + next;
            shared.events.record_until(&node, EventKind::Warning, "LedgerNotWritten", &message, until);
        } else if pause.take().is_some() {
            info!(path = %path.display(), "ledger was written again");
            shared.events.record(&node, EventKind::Normal, "LedgerWritten", "the ledger is written again");
        }
        written.send_replace(Written { number, problem });
        if stopped {
            return;
        }
    }
}

/// What it means that the ledger cannot be written, and what to do.
pub(crate) fn unwritten(problem: &str) -> String {
    format!(
        "the ledger cannot be written, and an agent that starts anew may not know what changed since; \
         make room or make it writable: {problem}"
    )
}
