//! How long to wait before the next try.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::observed::{Attempted, Failure};

/// First back-off of a crashing container and of a failing pull.
const FIRST: Duration = Duration::from_secs(10);
/// The longest back-off.
const LONGEST: Duration = Duration::from_secs(300);
/// A container that ran longer than this starts over without back-off.
pub(crate) const RESET_AFTER: Duration = Duration::from_secs(600);
/// First back-off after a step of the node itself failed (volumes, sandbox, resources).
const FIRST_STEP: Duration = Duration::from_secs(1);
/// The longest back-off after such a step.
const LONGEST_STEP: Duration = Duration::from_secs(60);

/// The back-off before the next attempt of a container, given the back-off before the last one
/// and how long that one ran.
///
/// `None` before the first start. The first restart is immediate, then 10 s doubling to 300 s; an
/// attempt that ran for more than 10 minutes starts the row again.
/// Source: kubernetes `kuberuntime_manager.go` doBackOff, client-go `flowcontrol.Backoff`.
pub fn crash_backoff(before: Option<Duration>, ran: Duration) -> Duration {
    match before {
        _ if ran > RESET_AFTER => Duration::ZERO,
        None => Duration::ZERO,
        Some(Duration::ZERO) => FIRST,
        Some(used) => (used * 2).min(LONGEST),
    }
}

/// When a failed pull or container start may be tried again: 10 s after the first failure,
/// doubling to 5 min, and not earlier than who refused wants.
pub fn retry_at(failure: &Failure) -> Timestamp {
    let own = after(failure.at, doubled(FIRST, LONGEST, failure.attempts));
    failure.not_before.map_or(own, |wanted| own.max(wanted))
}

/// When a failed step of the node's own may be tried again: 1 s, doubling to 1 min.
pub(crate) fn step_retry_at(failure: &Failure) -> Timestamp {
    after(failure.at, doubled(FIRST_STEP, LONGEST_STEP, failure.attempts))
}

/// When what failed may be tried again: a container as a failed pull, everything else as a step of
/// the node's own.
pub fn next_try(what: &Attempted, failure: &Failure) -> Timestamp {
    match what {
        Attempted::Container(_) => retry_at(failure),
        Attempted::Sandbox | Attempted::Volumes | Attempted::Resources(_) | Attempted::Removal => {
            step_retry_at(failure)
        }
    }
}

fn doubled(first: Duration, longest: Duration, attempts: u32) -> Duration {
    // 2^16 seconds is beyond every limit here.
    let exponent = attempts.saturating_sub(1).min(16);
    (first * 2_u32.pow(exponent)).min(longest)
}

/// `at` plus `wait`; the end of time if there is no such moment.
pub(crate) fn after(at: Timestamp, wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait).ok().and_then(|wait| at.checked_add(wait).ok()).unwrap_or(Timestamp::MAX)
}

/// The time from `from` to `to`; zero when it runs backwards.
pub(crate) fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}
