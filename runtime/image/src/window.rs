//! The time of day at which layers may be fetched.

use std::{fmt, str::FromStr, time::Duration};

use jiff::{Zoned, civil::Time};

/// From one time of day to another, in the time zone of the machine; over midnight when the second is the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DownloadWindow {
    from: Time,
    to: Time,
}

/// Why a text is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("download window {text:?} is not two different times of day, such as 22:00-06:30")]
pub struct WindowError {
    text: String,
}

impl DownloadWindow {
    /// How long it is until the window opens; `None` while it is open.
    #[must_use]
    pub fn opens_in(&self, now: &Zoned) -> Option<Duration> {
        let time = now.time();
        let open = match self.from < self.to {
            true => self.from <= time && time < self.to,
            false => self.from <= time || time < self.to,
        };
        if open {
            return None;
        }
        let date = if time < self.from { now.date() } else { now.date().tomorrow().ok()? };
        // A time that the clocks leave out opens when they have gone on.
        let opens = date.to_datetime(self.from).to_zoned(now.time_zone().clone()).ok()?;
        Duration::try_from(now.duration_until(&opens)).ok()
    }
}

impl FromStr for DownloadWindow {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let time = |text: &str| {
            let (hours, minutes) = text.split_once(':')?;
            let digits = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
            (digits(hours) && digits(minutes)).then_some(())?;
            Time::new(hours.parse().ok()?, minutes.parse().ok()?, 0, 0).ok()
        };
        let parts = text.split_once('-').and_then(|(from, to)| Some((time(from)?, time(to)?)));
        match parts {
            Some((from, to)) if from != to => Ok(Self { from, to }),
            _ => Err(WindowError { text: text.chars().take(100).collect() }),
        }
    }
}

impl fmt::Display for DownloadWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from.hour(), from.minute(), to.hour(), to.minute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opens(window: &str, now: &str) -> Option<u64> {
        let now: Zoned = now.parse().unwrap();
        window.parse::<DownloadWindow>().unwrap().opens_in(&now).map(|wait| wait.as_secs())
    }

    #[test]
    fn a_window_is_open_from_its_first_minute_to_its_last() {
        for (window, now, wait) in [
            ("01:00-05:30", "2026-03-01T00:59:59+01:00[+01:00]", Some(1)),
            ("01:00-05:30", "2026-03-01T01:00:00+01:00[+01:00]", None),
            ("01:00-05:30", "2026-03-01T05:29:59+01:00[+01:00]", None),
            ("01:00-05:30", "2026-03-01T05:30:00+01:00[+01:00]", Some((24 * 60 - 270) * 60)),
            ("22:00-06:00", "2026-03-01T21:00:00+00:00[UTC]", Some(3600)),
            ("22:00-06:00", "2026-03-01T23:00:00+00:00[UTC]", None),
            ("22:00-06:00", "2026-03-01T05:00:00+00:00[UTC]", None),
            ("22:00-06:00", "2026-03-01T06:00:00+00:00[UTC]", Some(16 * 3600)),
        ] {
            assert_eq!(opens(window, now), wait, "{window} at {now}");
        }
    }

    #[test]
    fn what_is_no_window_is_refused() {
        assert_eq!("22:00-06:30".parse::<DownloadWindow>().unwrap().to_string(), "22:00-06:30");
        for bad in [
            "",
            "22:00",
            "22-6",
            "22:00-22:00",
            "24:00-01:00",
            "1:00-2:00",
            "+1:00-02:00",
            "01:00-02:60",
            "01:00-02:00-03:00",
        ] {
            assert!(bad.parse::<DownloadWindow>().is_err(), "{bad}");
        }
    }
}
