//! How much may come from registries in a second, over all transfers of the node.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// What may come at once after a pause, as time.
const BURST: Duration = Duration::from_millis(100);

/// Bytes per second that all transfers share, and how many came; without a limit it never waits.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    bytes_per_second: Option<u64>,
    /// When all that came so far is paid for.
    paid_at: Mutex<Option<Instant>>,
    came: AtomicU64,
}

impl Throttle {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|rate| *rate > 0), ..Self::default() }
    }

    /// Bytes that came so far.
    pub(crate) fn came(&self) -> u64 {
        self.came.load(Ordering::Relaxed)
    }

    /// Waits until bytes that came are paid for; meanwhile their sender's window fills, and it waits too.
    pub(crate) async fn pay(&self, bytes: u64) {
        self.came.fetch_add(bytes, Ordering::Relaxed);
        let Some(rate) = self.bytes_per_second else { return };
        let price = Duration::from_nanos(
            u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX),
        );
        let until = {
            let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let from = paid_at.map_or(now, |at| at.max(now - BURST));
            *paid_at.insert(from + price)
        };
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_transfers_together_keep_the_limit() {
        let throttle = Throttle::new(Some(1_000_000));
        let begun = Instant::now();
        let transfer = async {
            for _ in 0..50 {
                throttle.pay(20_000).await;
            }
        };
        tokio::join!(transfer, async {
            for _ in 0..100 {
                throttle.pay(10_000).await;
            }
        });
        // Two million bytes.
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(1900) && took <= Duration::from_millis(2010), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_saves_up_a_moment_alone() {
        let throttle = Throttle::new(Some(1_000_000));
        throttle.pay(1).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let begun = Instant::now();
        throttle.pay(1_000_000).await;
        assert_eq!(begun.elapsed().as_millis(), 900);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        for none in [None, Some(0)] {
            let begun = Instant::now();
            Throttle::new(none).pay(u64::MAX).await;
            assert_eq!(begun.elapsed(), Duration::ZERO);
        }
    }
}
