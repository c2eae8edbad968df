//! How much processor time is used per second: from one reading to the next, by whoever asks. Nothing is read in between.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

/// The readings of a rate are at least so far apart, or the one before is told again. A quota is dealt out in periods of
/// 100 ms: over less than several a rate tells when in a period it was read rather than what is used.
const APART: SignedDuration = SignedDuration::from_secs(1);
/// Calls that come at once may take their readings in another order than they read. What is further before the last one is
/// a clock that was set.
const AT_ONCE: SignedDuration = SignedDuration::from_mins(1);
/// An older reading is none: a kubelet wants what is used now, not the average since somebody happened to look.
const OLDEST: SignedDuration = SignedDuration::from_mins(5);

/// The last readings, by the id of what was read.
#[derive(Debug, Clone, Default)]
pub(super) struct Rates(Arc<Mutex<BTreeMap<String, Reading>>>);

#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Timestamp,
    used_ns: u64,
    /// The rate until then, in nanoseconds per second.
    rate: Option<u64>,
}

impl Rates {
    /// Takes a reading of all processor time that `id` has used, and returns what it has used per second, in nanoseconds,
    /// since the one before. Of a first reading there is none: the average over a whole life, or a zero, would be taken
    /// for a rate by who scales by it, while a kubelet that is given none uses the one that it has worked out itself.
    pub(super) fn take(&self, id: &str, at: Timestamp, used_ns: u64) -> Option<u64> {
        let first = Reading { at, used_ns, rate: None };
        let mut readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = readings.get_mut(id) else {
            // Of what is gone nothing is kept.
            readings.retain(|_, reading| at.duration_since(reading.at) <= OLDEST);
            readings.insert(id.to_owned(), first);
            return None;
        };
        let apart = at.duration_since(last.at);
        if apart.is_negative() && apart.abs() <= AT_ONCE {
            return last.rate;
        }
        let used = used_ns.checked_sub(last.used_ns);
        let (Some(used), false) = (used, apart.is_negative() || apart > OLDEST) else {
            // The clock was set, or the count began anew.
            *last = first;
            return None;
        };
        if apart >= APART {
            let rate = u128::from(used) * 1_000_000_000 / apart.as_nanos().unsigned_abs();
            *last = Reading { rate: u64::try_from(rate).ok(), ..first };
        }
        last.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_from_one_reading_to_the_next() {
        let rates = Rates::default();
        let at = |ms: i64| Timestamp::from_millisecond(1_000_000 + ms).unwrap();
        for (ms, used_ns, rate) in [
            (0, 5_000_000_000, None),
            // Too early for another, and there was none before.
            (900, 5_100_000_000, None),
            (2000, 6_000_000_000, Some(500_000_000)),
            // Too early: the one before is told, and the next is from where that was.
            (2500, 6_400_000_000, Some(500_000_000)),
            (3000, 6_000_000_000 + 1, Some(1)),
            // The count began anew, and then the clock.
            (4000, 0, None),
            (5000, 250_000_000, Some(250_000_000)),
            // Read before that by another call, and told after it.
            (4999, 249_000_000, Some(250_000_000)),
            (5000 - 61_000, 250_000_000, None),
            // Nobody has asked for a long time.
            (5000 - 61_000 + 301_000, 260_000_000, None),
        ] {
            assert_eq!(rates.take("a", at(ms), used_ns), rate, "after {ms} ms");
        }
        assert_eq!(rates.take("b", at(302_000), 7), None);
    }

    #[test]
    fn of_what_is_gone_nothing_is_kept() {
        let rates = Rates::default();
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        rates.take("a", at(0), 0);
        rates.take("b", at(200), 0);
        rates.take("c", at(400), 0);
        assert_eq!(rates.0.lock().unwrap().keys().collect::<Vec<_>>(), ["b", "c"]);
    }
}
