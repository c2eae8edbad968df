//! `events`.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use portreeve_oci::cgroup::{Cgroup, OomEvent};
use portreeve_oci::lifecycle::Container;
use serde_json::{Value, json};

use super::Runtime;
use super::arguments::{Flag, Usage, Verb};

pub(super) const USAGE: Usage = Usage {
    name: "events",
    operands: "ID",
    about: "print what a container uses, again and again, and that it ran out of memory",
    flags: &[&[
        Flag::value("interval", "DURATION", "how often (default 5s; 100ms, 1m30s, ...)"),
        Flag::switch("stats", "print what it uses once, and end"),
    ]],
    count: 1..=1,
    ends_flags: false,
    read: |mut given| {
        let interval = match given.text("interval")? {
            None => Duration::from_secs(5),
            Some(text) => duration(text)
                .filter(|duration| !duration.is_zero())
                .ok_or_else(|| given.wrong(format!("--interval takes a time such as 5s or 100ms, not {text:?}")))?,
        };
        Ok(Verb::Events(Events { once: given.has("stats")?, id: given.id()?, interval }))
    },
};

/// Arguments of `events`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Events {
    id: String,
    interval: Duration,
    once: bool,
}

impl Events {
    pub(super) fn run(self, runtime: &Runtime) -> anyhow::Result<()> {
        let container = runtime.container(&self.id)?;
        // One that has ended is refused here.
        let pidfd = container.pidfd()?;
        let cgroup = container.cgroup()?;
        let cgroup = cgroup.ok_or_else(|| anyhow!("container {} has no cgroup, which counts what it uses", self.id))?;
        if self.once {
            return self.print_stats(&container, &cgroup).map(drop);
        }
        let mut memory = cgroup.oom_events()?;
        let mut next = Instant::now() + self.interval;
        loop {
            let mut set =
                [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(memory.as_fd(), PollFlags::POLLIN)];
            // Rounded up: the answer is never too early.
            let left = next.saturating_duration_since(Instant::now()).as_nanos().div_ceil(1_000_000);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut set, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for the container"),
            }
            let [ended, told] = set.map(|one| one.any().unwrap_or(true));
            // What ended it may have been the want of memory: on version 2 the kernel is up to 10 ms late in telling.
            let event = if told || ended { memory.read()? } else { OomEvent::Nothing };
            let mut read_on = true;
            if matches!(event, OomEvent::OutOfMemory(_)) {
                read_on = self.print(&json!({"type": "oom", "id": self.id}))?;
            }
            if Instant::now() >= next && !ended {
                match self.print_stats(&container, &cgroup) {
                    // It has been deleted since.
                    Err(_) if !cgroup.exists() => return Ok(()),
                    printed => read_on &= printed?,
                }
                next = Instant::now() + self.interval;
            }
            if ended || event == OomEvent::Ended || !read_on {
                return Ok(());
            }
        }
    }

    /// Answers whether somebody reads on.
    fn print_stats(&self, container: &Container, cgroup: &Cgroup) -> anyhow::Result<bool> {
        let mut data = serde_json::to_value(cgroup.figures()?).context("writing the figures as JSON")?;
        if let Value::Object(data) = &mut data {
            let rdt = json!(container.rdt_figures()?.unwrap_or_default());
            // Of interfaces that a runtime made itself: there are none.
            data.extend([("intel_rdt".to_owned(), rdt), ("network_interfaces".to_owned(), Value::Null)]);
        }
        self.print(&json!({"type": "stats", "id": self.id, "data": data}))
    }

    fn print(&self, event: &Value) -> anyhow::Result<bool> {
        match io::stdout().write_all(format!("{event}\n").as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            written => written.map(|()| true).context("writing to standard output"),
        }
    }
}

/// A time as Go writes it: numbers with units, one after the other.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, after) = rest.split_at_checked(digits)?;
        let (unit_seconds, length) = match after {
            _ if after.starts_with("ms") => (1e-3, 2),
            _ if after.starts_with("us") => (1e-6, 2),
            _ if after.starts_with("ns") => (1e-9, 2),
            _ if after.starts_with('s') => (1.0, 1),
            _ if after.starts_with('m') => (60.0, 1),
            _ if after.starts_with('h') => (3600.0, 1),
            _ => return None,
        };
        let one = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit_seconds).ok()?;
        sum = sum.checked_add(one)?;
        rest = after.get(length..)?;
    }
    Some(sum).filter(|_| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_go_writes_it() {
        let cases = [
            ("5s", Some(5_000)),
            ("100ms", Some(100)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            ("250us", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("-5s", None),
            ("5x", None),
            ("1e400s", None),
            ("5s ", None),
            ("99999999999999999999h", None),
        ];
        for (text, milliseconds) in cases {
            assert_eq!(duration(text).map(|duration| duration.as_millis()), milliseconds, "{text:?}");
        }
    }
}
