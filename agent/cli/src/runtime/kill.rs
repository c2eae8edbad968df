//! `kill`.

use anyhow::{Context as _, anyhow};
use nix::sys::signal::Signal;
use portreeve_oci::lifecycle::{LifecycleError, Status};

use super::Runtime;
use super::arguments::{Flag, Usage, Verb};

pub(super) const USAGE: Usage = Usage {
    name: "kill",
    operands: "ID [SIGNAL]",
    about: "send a signal (default TERM) to a container's first process",
    flags: &[&[Flag::switch("all", "send it to all processes of the container").short('a')]],
    count: 1..=2,
    ends_flags: false,
    read: |mut given| {
        let all = given.has("all")?;
        let id = given.id()?;
        let signal = match given.operand_text("SIGNAL")? {
            None => libc_signal(Signal::SIGTERM),
            Some(text) => signal_number(&text).ok_or_else(|| given.wrong(format!("{text:?} is no signal")))?,
        };
        Ok(Verb::Kill(Kill { id, signal, all }))
    },
};

/// Arguments of `kill`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kill {
    id: String,
    signal: i32,
    all: bool,
}

impl Kill {
    pub(super) fn run(self, runtime: &Runtime) -> anyhow::Result<()> {
        let killed = runtime.container(&self.id)?.kill(self.signal, self.all);
        match killed {
            // containerd takes these words for a container that has ended by itself.
            Err(error @ LifecycleError::Status { status: Status::Stopped, .. }) => {
                Err(anyhow!(error).context("container not running"))
            }
            other => other.with_context(|| format!("killing container {}", self.id)),
        }
    }
}

fn libc_signal(signal: Signal) -> i32 {
    signal as i32
}

/// First and last real-time signal, signal(7); the C library keeps 32 and 33 for itself.
const REAL_TIME: (i32, i32) = (34, 64);

/// A signal by number, by name with or without `SIG`, or relative to a real-time bound, in any case.
fn signal_number(text: &str) -> Option<i32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().filter(|number| (0..=REAL_TIME.1).contains(number));
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let relative = |from: &str| {
        let distance = name.strip_prefix(from)?;
        if distance.is_empty() { Some(0) } else { distance.strip_prefix(['+', '-'])?.parse::<i32>().ok() }
    };
    let real_time = |number: i32| Some(number).filter(|number| (REAL_TIME.0..=REAL_TIME.1).contains(number));
    if let Some(distance) = relative("RTMIN").filter(|_| !name.contains('-')) {
        return real_time(REAL_TIME.0.checked_add(distance)?);
    }
    if let Some(distance) = relative("RTMAX").filter(|_| !name.contains('+')) {
        return real_time(REAL_TIME.1.checked_sub(distance)?);
    }
    let name = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        "UNUSED" => "SYS",
        other => other,
    };
    format!("SIG{name}").parse().ok().map(libc_signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_names_and_a_number() {
        let cases = [
            ("9", Some(9)),
            ("0", Some(0)),
            ("64", Some(64)),
            ("65", None),
            ("99999999999", None),
            ("KILL", Some(9)),
            ("SIGKILL", Some(9)),
            ("sigterm", Some(15)),
            ("hup", Some(1)),
            ("IOT", Some(6)),
            ("CLD", Some(17)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMIN+31", None),
            ("RTMIN-1", None),
            ("RTMAX+1", None),
            ("RTMIN3", None),
            ("RTMIN+", None),
            ("-9", None),
            ("+9", None),
            ("", None),
            ("SIG", None),
            ("SIGSIGTERM", None),
            ("NOSUCH", None),
        ];
        for (text, expected) in cases {
            assert_eq!(signal_number(text), expected, "{text:?}");
        }
    }
}
