//! One call of a program: a bound in time, and its words when it fails.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use portreeve_sys::process::{self, Exit, Pid};
use serde::Deserialize;

/// So much is kept of what a program prints to one place; what comes then is read, and dropped.
const KEPT: usize = 256 << 10;
/// Of a log that somebody else writes, no more is read.
const LOG: u64 = 64 << 10;
/// An error is no longer: it becomes part of a status.
const LONGEST: usize = 1024;
/// So many times is read again when a program has ended: more than any pipe holds. Who else still writes to it has no end.
const LAST_READS: usize = 256;
/// So many of the last lines count where no line is marked as the error.
const LINES: usize = 3;

/// Why a handler's program did not do what it was called for.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// It cannot be executed.
    #[error("executing {program}")]
    Execute {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It could not be waited for.
    #[error("waiting for {program} {verb}")]
    Wait {
        /// The program.
        program: PathBuf,
        /// What it was called for.
        verb: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It did not end in time; it and what it had started were killed.
    #[error("{program} {verb} did not end within {patience:?} and was killed{}", after(.words))]
    Slow {
        /// The program.
        program: PathBuf,
        /// What it was called for.
        verb: &'static str,
        /// How long it had.
        patience: Duration,
        /// What it had said.
        words: String,
    },
    /// It failed, and says why.
    #[error("{program} {verb}: {words}")]
    Refused {
        /// The program.
        program: PathBuf,
        /// What it was called for.
        verb: &'static str,
        /// Its own words, or how it ended when it has none.
        words: String,
    },
    /// What it said of its features cannot be understood.
    #[error("{program} features: what it says is no JSON of features")]
    Features {
        /// The program.
        program: PathBuf,
    },
}

fn after(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(": {words}") }
}

/// Runs a program to its end and collects what comes through `ears`, one text for each; `log` is where it writes errors.
///
/// # Errors
/// [`HandlerError`]; nothing of it runs then, as far as its descendants are to be found.
pub(crate) fn run(
    mut command: Command,
    verb: &'static str,
    patience: Duration,
    ears: &[BorrowedFd<'_>],
    log: Option<&Path>,
) -> Result<Vec<Vec<u8>>, HandlerError> {
    let program = PathBuf::from(command.get_program());
    let wait = |source| HandlerError::Wait { program: program.clone(), verb, source };
    for ear in ears {
        rustix::io::ioctl_fionbio(ear, true).map_err(|error| wait(error.into()))?;
    }
    let child = command.spawn().map_err(|source| HandlerError::Execute { program: program.clone(), source })?;
    // With it go our copies of what it writes to.
    drop(command);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| wait(io::ErrorKind::InvalidData.into()))?;
    // It has not been reaped: the number is its own.
    let pidfd = process::pidfd_open(pid).map_err(wait)?;
    let mut heard: Vec<Vec<u8>> = vec![Vec::new(); ears.len()];
    let in_time = listen(pidfd.as_fd(), ears, &mut heard, patience);
    if !matches!(in_time, Ok(true)) {
        crate::shim::kill_tree(pid.as_raw_nonzero().get(), pidfd.as_fd(), None);
    }
    let how = process::wait(pidfd.as_fd()).map_err(wait)?;
    let in_time = in_time.map_err(wait)?;
    for (ear, heard) in ears.iter().zip(&mut heard) {
        for _ in 0..LAST_READS {
            if hear(*ear, heard) != Some(true) {
                break;
            }
        }
    }
    if in_time && how == Exit::Code(0) {
        return Ok(heard);
    }
    let words = words(log, &heard);
    Err(match (in_time, how) {
        (false, _) => HandlerError::Slow { program, verb, patience, words },
        (true, _) if !words.is_empty() => HandlerError::Refused { program, verb, words },
        (true, Exit::Code(code)) => {
            HandlerError::Refused { program, verb, words: format!("it ended with code {code} and said nothing") }
        }
        (true, Exit::Signal(signal)) => {
            HandlerError::Refused { program, verb, words: format!("signal {signal} ended it") }
        }
    })
}

/// Whether it ended in time.
fn listen(
    pidfd: BorrowedFd<'_>,
    ears: &[BorrowedFd<'_>],
    heard: &mut [Vec<u8>],
    patience: Duration,
) -> io::Result<bool> {
    let until = Instant::now() + patience;
    let mut open: Vec<usize> = (0..ears.len()).collect();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let watched = open.iter().filter_map(|index| ears.get(*index));
        let mut fds = vec![PollFd::new(pidfd, PollFlags::POLLIN)];
        fds.extend(watched.map(|ear| PollFd::new(*ear, PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        if ready.first() == Some(&true) {
            return Ok(true);
        }
        let mut ready = ready.into_iter().skip(1);
        open.retain(|index| {
            let (Some(ear), Some(heard)) = (ears.get(*index), heard.get_mut(*index)) else { return false };
            !ready.next().unwrap_or(false) || hear(*ear, heard).is_some()
        });
    }
}

/// Reads once: whether something came; `None` at the end.
fn hear(ear: BorrowedFd<'_>, heard: &mut Vec<u8>) -> Option<bool> {
    let mut chunk = [0; 4096];
    match rustix::io::read(ear, &mut chunk) {
        Ok(0) => None,
        Ok(count) => {
            let room = KEPT.saturating_sub(heard.len());
            heard.extend(chunk.iter().take(count.min(room)));
            Some(true)
        }
        Err(rustix::io::Errno::AGAIN) => Some(false),
        Err(rustix::io::Errno::INTR) => Some(true),
        Err(_) => None,
    }
}

/// A record of a log in JSON: runc writes each on a line, crun on several.
#[derive(Debug, Deserialize)]
struct Logged {
    #[serde(default)]
    level: String,
    msg: String,
}

/// What a program said: the last error of its log, or else the last lines that it printed or logged.
fn words(log: Option<&Path>, heard: &[Vec<u8>]) -> String {
    let logged = log.map(read).unwrap_or_default();
    let records = serde_json::Deserializer::from_str(&logged).into_iter::<Logged>().map_while(Result::ok);
    let is_error = |record: &Logged| matches!(record.level.as_str(), "error" | "fatal" | "panic");
    let error = records.filter(is_error).last().map(|record| record.msg);
    let printed = || heard.iter().rev().map(|text| String::from_utf8_lossy(text));
    let said = error.or_else(|| printed().map(|text| last_lines(&text)).find(|text| !text.is_empty()));
    shortened(&said.unwrap_or_else(|| last_lines(&logged)))
}

fn read(path: &Path) -> String {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let _none = fs::File::open(path).and_then(|file| file.take(LOG).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("; ")
}

/// What a person is told: one line, and no control characters.
fn shortened(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str, patience: Duration, log: Option<&Path>) -> Result<Vec<Vec<u8>>, HandlerError> {
        let ((out, out_writer), (err, err_writer)) = (io::pipe().unwrap(), io::pipe().unwrap());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]).stdout(out_writer).stderr(err_writer);
        run(command, "test", patience, &[out.as_fd(), err.as_fd()], log)
    }

    #[test]
    fn what_a_program_prints_comes_back_and_much_of_it_does_not_stop_it() {
        let said = shell("echo out; echo err >&2", Duration::from_secs(30), None).unwrap();
        assert_eq!(said, [b"out\n", b"err\n"]);
        let said = shell("head -c 1000000 /dev/zero", Duration::from_secs(30), None).unwrap();
        assert_eq!(said[0].len(), KEPT);
    }

    #[test]
    fn what_a_program_has_left_writing_is_not_waited_for() {
        // It ends when nobody can read any more, which is when the call is over.
        let said = shell("(while echo more; do :; done) 2>/dev/null & exit 0", Duration::from_secs(30), None).unwrap();
        assert!(said[0].len() <= KEPT);
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let home = tempfile::tempdir().unwrap();
        let log = home.path().join("log");
        let told = |line: &str, logged: &str| {
            fs::write(&log, logged).unwrap();
            shell(line, Duration::from_secs(30), Some(&log)).unwrap_err().to_string()
        };
        let line = "echo out; echo one >&2; echo two >&2; exit 3";
        assert_eq!(told(line, ""), "/bin/sh test: one; two");
        let logged =
            "{\"level\":\"warning\",\"msg\":\"w\"}\n{\"level\":\"error\",\"msg\":\"it is\\nbroken\",\"time\":\"t\"}\n";
        assert_eq!(told(line, logged), "/bin/sh test: it is broken");
        let logged = "{\n  \"msg\": \"broken\",\n  \"level\": \"error\",\n  \"time\": \"t\"\n}\n";
        assert_eq!(told(line, logged), "/bin/sh test: broken");
        assert_eq!(told("exit 3", "some line\n"), "/bin/sh test: some line");
        assert_eq!(told("exit 3", ""), "/bin/sh test: it ended with code 3 and said nothing");
        assert_eq!(told("kill -9 $$", ""), "/bin/sh test: signal 9 ended it");
        assert!(told("printf '%05000d' 1 >&2; exit 1", "").len() < LONGEST + 100);
        let absent = run(Command::new("/no/such/program"), "test", Duration::from_secs(1), &[], None).unwrap_err();
        assert_eq!(absent.to_string(), "executing /no/such/program");
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_what_it_has_started() {
        let begun = Instant::now();
        let line = "echo waits >&2; sleep 4711 & sleep 4711";
        let slow = shell(line, Duration::from_millis(500), None).unwrap_err();
        assert_eq!(slow.to_string(), "/bin/sh test did not end within 500ms and was killed: waits");
        assert!(begun.elapsed() < Duration::from_secs(20));
        let runs = || {
            let all = fs::read_dir("/proc").unwrap().flatten();
            let mut lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
            lines.any(|line| line == b"sleep\x004711\x00")
        };
        // What has been killed takes a moment to go.
        while runs() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
