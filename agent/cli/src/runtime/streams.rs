//! The descriptors that the program gets beside its standard streams.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, anyhow};
use portreeve_sys::fd;

/// What a caller passes on to the program.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// From 3 on.
    pub(super) fds: Vec<OwnedFd>,
    /// What tells the program of them.
    pub(super) environment: Vec<String>,
}

/// Takes the sockets of `LISTEN_FDS` and, after them, as many descriptors as `--preserve-fds` says.
///
/// To be called before anything is opened: what is open then is the caller's.
///
/// Source: sd_listen_fds(3): the variables count for the process whose id `LISTEN_PID` is.
pub(super) fn take(preserve: u32, listen: bool, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Passed> {
    let mut passed = Passed::default();
    let is_ours = || variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
    let listening = variable("LISTEN_FDS").filter(|_| listen && is_ours());
    let mut next = 3;
    if let Some(text) = listening {
        let count: u32 = text.parse().with_context(|| format!("LISTEN_FDS is {text:?}"))?;
        take_some(&mut passed.fds, &mut next, count).context("passing on the sockets of LISTEN_FDS")?;
        if count > 0 {
            passed.environment = vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()];
            let names = variable("LISTEN_FDNAMES").map(|names| format!("LISTEN_FDNAMES={names}"));
            passed.environment.extend(names);
        }
    }
    take_some(&mut passed.fds, &mut next, preserve).context("passing on the descriptors of --preserve-fds")?;
    Ok(passed)
}

fn take_some(fds: &mut Vec<OwnedFd>, next: &mut i32, count: u32) -> anyhow::Result<()> {
    for _ in 0..count {
        let number = *next;
        fds.push(fd::take(number).with_context(|| format!("descriptor {number}"))?);
        *next = number.checked_add(1).ok_or_else(|| anyhow!("there are no more numbers"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_meant_for_another_process_are_not_taken() {
        let other = |name: &str| match name {
            "LISTEN_FDS" => Some("1".to_owned()),
            "LISTEN_PID" => Some("1".to_owned()),
            _ => None,
        };
        for variable in [other, |_: &str| None] {
            let passed = take(0, true, variable).unwrap();
            assert!(passed.fds.is_empty() && passed.environment.is_empty());
        }
    }

    #[test]
    fn no_sockets_are_not_announced() {
        let none = |name: &str| match name {
            "LISTEN_FDS" => Some("0".to_owned()),
            "LISTEN_PID" => Some(std::process::id().to_string()),
            _ => None,
        };
        assert!(take(0, true, none).unwrap().environment.is_empty());
    }

    #[test]
    fn a_count_that_is_no_number_is_refused() {
        let ours = |name: &str| match name {
            "LISTEN_FDS" => Some("many".to_owned()),
            "LISTEN_PID" => Some(std::process::id().to_string()),
            _ => None,
        };
        assert!(format!("{:#}", take(0, true, ours).unwrap_err()).contains("many"));
        assert!(take(0, false, ours).unwrap().fds.is_empty(), "not asked for");
    }
}
