//! Tasks that carry the latest state to where it must be: the ledger to the disk, the weights of the
//! QoS levels to the kernel.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::Weights;
use crate::desired::Ledger;
use crate::worker::Shared;
use portreeve_engine::chain;

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

pub(super) async fn write_ledger(
    path: PathBuf,
    mut to_write: watch::Receiver<(u64, Arc<Ledger>)>,
    written: watch::Sender<(u64, Option<String>)>,
    metrics: crate::metrics::Metrics,
    stop: CancellationToken,
) {
    let mut failed = false;
    loop {
        let stopped = tokio::select! {
            // cancel-safe: the value stays in the channel.
            changed = to_write.changed() => changed.is_err(),
            // cancel-safe: a timer.
            () = tokio::time::sleep(Duration::from_secs(5)), if failed => false,
            // cancel-safe: a state.
            () = stop.cancelled() => true,
        };
        let (number, ledger) = to_write.borrow_and_update().clone();
        if written.borrow().0 >= number && !failed {
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
        failed = problem.is_some();
        metrics.ledger_writes.with_label_values(&[if failed { "failure" } else { "success" }]).inc();
        if let Some(problem) = &problem {
            error!(error = %problem, "ledger was not written, trying again in 5 s");
        }
        written.send_replace((number, problem));
        if stopped {
            return;
        }
    }
}
