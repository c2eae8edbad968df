//! The wall clock as the loops read it, so that a simulation can pause it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

/// Reads the time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Arc::new(Timestamp::now))
    }

    /// A clock that starts at `start` and goes as tokio's does, which a test may pause.
    pub fn tokio_from(start: Timestamp) -> Self {
        let origin = tokio::time::Instant::now();
        Self(Arc::new(move || {
            let elapsed = i64::try_from(origin.elapsed().as_nanos()).unwrap_or(i64::MAX);
            start.checked_add(jiff::SignedDuration::from_nanos(elapsed)).unwrap_or(Timestamp::MAX)
        }))
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }

    /// How long ago; zero if in the future.
    pub fn since(&self, then: Timestamp) -> Duration {
        Duration::try_from(self.now().duration_since(then)).unwrap_or(Duration::ZERO)
    }

    /// How long until; zero if in the past.
    pub fn until(&self, then: Timestamp) -> Duration {
        Duration::try_from(then.duration_since(self.now())).unwrap_or(Duration::ZERO)
    }
}
