//! Ages as kubectl prints them: `42s`, `5m12s`, `3h`, `12d`.

use std::time::Duration;

use jiff::Timestamp;

/// How long ago `then` was at `now`, in kubectl's short form; a moment to come is `0s`.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    short(Duration::try_from(now.duration_since(then)).unwrap_or_default())
}

/// A duration in kubectl's short form: two units while it is small, one when it is large.
///
/// Source: k8s.io/apimachinery/pkg/util/duration, `HumanDuration`.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => pair(days, 'd', hours % 24, 'h'),
        () if days < 365 * 2 => format!("{days}d"),
        () if days < 365 * 8 => pair(days / 365, 'y', days % 365, 'd'),
        () => format!("{}y", days / 365),
    }
}

fn pair(large: u64, large_unit: char, small: u64, small_unit: char) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small}{small_unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_prints_them() {
        let minute = 60;
        let hour = 60 * minute;
        let day = 24 * hour;
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (2 * minute, "2m"),
            (5 * minute + 12, "5m12s"),
            (10 * minute + 5, "10m"),
            (179 * minute, "179m"),
            (3 * hour, "3h"),
            (3 * hour + 5 * minute, "3h5m"),
            (8 * hour + 59 * minute, "8h"),
            (47 * hour, "47h"),
            (2 * day, "2d"),
            (2 * day + 3 * hour, "2d3h"),
            (8 * day + 3 * hour, "8d"),
            (729 * day, "729d"),
            (730 * day, "2y"),
            (731 * day, "2y1d"),
            (9 * 365 * day + 5 * day, "9y"),
        ] {
            assert_eq!(short(Duration::from_secs(seconds)), text, "{seconds} s");
        }
    }

    #[test]
    fn a_moment_to_come_has_no_age() {
        let now = Timestamp::from_second(1000).unwrap();
        assert_eq!(age(Timestamp::from_second(2000).unwrap(), now), "0s");
    }
}
