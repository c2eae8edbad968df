//! Waiting for conditions, never for time.

use std::time::{Duration, Instant};

/// `seconds` on this machine, scaled by how slow it says it is.
#[must_use]
pub fn patience(seconds: u64) -> Duration {
    let slowness = std::env::var("PORTREEVE_SLOWNESS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    Duration::from_secs(seconds * slowness)
}

/// Asks `condition` until it answers `Ok`, for at most `seconds` (scaled).
///
/// # Panics
/// When time is up, with `what` was awaited and the last answer.
pub fn wait_until<T>(what: &str, seconds: u64, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match condition() {
            Ok(found) => return found,
            Err(last) => assert!(
                begun.elapsed() < patience(seconds),
                "waited {:?} until {what}; at last: {last}",
                begun.elapsed()
            ),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
