//! Once nothing has happened for a while, what a burst of work left in the heap goes back to the system.

use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::blocking;
use crate::EngineEvent;

/// Quiet for so long after something has happened. The threads that a burst made end after 10 s
/// without work, and only then is what they kept for themselves free.
const QUIET: Duration = Duration::from_secs(15);

/// Gives memory back after every burst of events, until there is nobody left to tell of any.
pub(super) async fn give_back(mut events: broadcast::Receiver<EngineEvent>) {
    loop {
        // Starting has left something as well: the first wait needs no event.
        loop {
            match tokio::time::timeout(QUIET, events.recv()).await {
                Ok(Ok(_) | Err(RecvError::Lagged(_))) => {}
                Ok(Err(RecvError::Closed)) => return,
                Err(_quiet) => break,
            }
        }
        // It walks the whole heap: not on a thread that others wait for.
        blocking(|| {
            portreeve_sys::memory::release_free();
            portreeve_sys::memory::release_code();
            Ok(())
        })
        .await
        .unwrap_or_else(|error| tracing::warn!(%error, "memory not given back"));
        if let Err(RecvError::Closed) = events.recv().await {
            return;
        }
    }
}
