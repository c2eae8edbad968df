//! What is kept of a container in `state.json`.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::Hooks;
use portreeve_sys::process::{has_ended, pidfd_open};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::{Errno, retry_on_intr};
use serde::{Deserialize, Serialize};

use super::ended;
use crate::Pid;

/// The format that this version writes and reads.
const VERSION: u32 = 1;

const NAME: &str = "state.json";

/// A record may have this many bytes: its annotations are those of a configuration.
const LIMIT: u64 = 16 << 20;

/// `state.json` of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// Version of this format, 1.
    pub version: u32,
    /// Name of the container.
    pub id: String,
    /// Its bundle, absolute.
    pub bundle: PathBuf,
    /// Its root file system, absolute.
    pub rootfs: PathBuf,
    /// `ociVersion` of its configuration.
    pub oci_version: String,
    /// When it was made, RFC 3339 in UTC.
    pub created: String,
    /// User id of its maker.
    pub owner: u32,
    /// Its first process; absent while it is being made.
    pub process: Option<ProcessRecord>,
    /// The same while it is being made, where no cgroup tells of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newborn: Option<ProcessRecord>,
    /// Path of its cgroup below the hierarchy's root.
    pub cgroup: Option<String>,
    /// Whether the cgroup was made for it and goes with it.
    pub cgroup_made: bool,
    /// systemd scope that it runs in.
    pub scope: Option<String>,
    /// Group of the resource control file system.
    pub resctrl: Option<String>,
    /// Whether its maker lacked the privileges of the host's root.
    pub rootless: bool,
    /// `annotations` of its configuration.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// `hooks` of its configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Whether its configuration has a process, without which it cannot be started.
    #[serde(default = "yes")]
    pub startable: bool,
    /// What its first process got as standard streams, as links of /proc/PID/fd tell it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub descriptors: Vec<String>,
    /// Whether it was restored from a checkpoint, with clocks of its own then.
    #[serde(default)]
    pub restored: bool,
}

fn yes() -> bool {
    true
}

/// A process that cannot be mistaken for a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProcessRecord {
    /// Its id.
    pub pid: i32,
    /// When it began, in clock ticks since boot: field 22 of /proc/PID/stat.
    pub started_ticks: u64,
}

impl Record {
    /// Of a container of which nothing is known but its name: its maker died before it had written anything.
    pub(super) fn unknown(id: &str) -> Self {
        Self {
            version: VERSION,
            id: id.to_owned(),
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            oci_version: String::new(),
            created: String::new(),
            owner: portreeve_sys::process::user_id(),
            process: None,
            newborn: None,
            cgroup: None,
            cgroup_made: false,
            scope: None,
            resctrl: None,
            rootless: false,
            annotations: BTreeMap::new(),
            hooks: None,
            startable: true,
            descriptors: Vec::new(),
            restored: false,
        }
    }

    /// Reads the record of a container's directory; `None` when there is none (yet).
    pub(super) fn load(directory: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let bytes = match read(directory, NAME, LIMIT) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let record: Self = serde_json::from_slice(&bytes)?;
        if record.version != VERSION {
            let text = format!("it is of version {}, and this program knows {VERSION}", record.version);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Some(record))
    }

    /// Writes it; whoever reads meanwhile finds the old one or the new one, whole.
    pub(super) fn save(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        replace(directory, NAME, &serde_json::to_vec(self)?)
    }

    /// Writes it beside the one that counts, which it replaces with [`put_prepared`].
    pub(super) fn prepare(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        prepare(directory, NAME, &serde_json::to_vec(self)?)
    }
}

/// Puts the record that was written by [`Record::prepare`] in the place of the one that counted.
pub(super) fn put_prepared(directory: BorrowedFd<'_>) -> io::Result<()> {
    put(directory, NAME)
}

/// The record, locked while the last hooks run: of a container that they are told of there is one. Who deletes it has the
/// other lock as well, for which nobody waits then: a hook would wait for itself.
pub(super) fn lock(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let file = rustix::fs::openat(directory, NAME, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
    Ok(file)
}

/// Whether somebody has [`lock`].
pub(super) fn is_locked(directory: BorrowedFd<'_>) -> io::Result<bool> {
    match rustix::fs::openat(directory, NAME, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()) {
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
        Ok(file) => match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error.into()),
        },
    }
}

impl ProcessRecord {
    /// Of a process that is alive or not reaped.
    pub(super) fn of(pid: Pid) -> io::Result<Self> {
        let pid = pid.as_raw_nonzero().get();
        Ok(Self { pid, started_ticks: started_ticks(pid)? })
    }

    /// Whether it is, also when it has ended, as its maker has cloned it; `false` for one that is reaped.
    pub(super) fn never_executed(self) -> bool {
        // PF_FORKNOEXEC of the kernel's include/linux/sched.h.
        const FORKED: u64 = 0x40;
        stat(self.pid, [9, 22]).is_ok_and(|[flags, ticks]| ticks == self.started_ticks && flags & FORKED != 0)
    }

    /// The process, while it lives.
    pub(super) fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let pidfd = match pidfd_open(pid) {
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return Ok(None),
            other => other?,
        };
        // Read after the descriptor was opened: had the number gone to another process before, its beginning would be
        // another one; had it gone after, the descriptor would be of the one that has ended.
        match started_ticks(self.pid) {
            Ok(ticks) if ticks == self.started_ticks && !has_ended(std::os::fd::AsFd::as_fd(&pidfd), 0)? => {
                Ok(Some(pidfd))
            }
            Ok(_) => Ok(None),
            Err(error) if ended(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn started_ticks(pid: i32) -> io::Result<u64> {
    stat(pid, [22]).map(|[ticks]| ticks)
}

/// Numbers of /proc/PID/stat, by their fields'. Source: proc_pid_stat(5); the name before the third field may have any byte
/// in it.
fn stat<const N: usize>(pid: i32, wanted: [usize; N]) -> io::Result<[u64; N]> {
    // It has 52 numbers and a name of 64 bytes at most: one call reads all of it.
    let mut stat = [0; 4096];
    let length = std::fs::File::open(format!("/proc/{pid}/stat"))?.read(&mut stat)?;
    let stat = stat.get(..length).unwrap_or_default();
    let end = stat.iter().rposition(|byte| *byte == b')');
    let fields = end.and_then(|end| stat.get(end + 1..)).and_then(|rest| std::str::from_utf8(rest).ok());
    let fields: Vec<&str> = fields.unwrap_or_default().split_ascii_whitespace().collect();
    let mut numbers = [0; N];
    for (number, field) in numbers.iter_mut().zip(wanted) {
        let text = field.checked_sub(3).and_then(|at| fields.get(at)).and_then(|text| text.parse().ok());
        let missing = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no field {field}"));
        *number = text.ok_or_else(missing)?;
    }
    Ok(numbers)
}

/// Reads a file of a container's directory.
pub(super) fn read(directory: BorrowedFd<'_>, name: &str, limit: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = std::fs::File::from(rustix::fs::openat(directory, name, flags, Mode::empty())?);
    let mut bytes = Vec::with_capacity(4096);
    let length = file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(length).is_ok_and(|length| length > limit) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Writes a file of a container's directory, all or nothing.
pub(super) fn replace(directory: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    prepare(directory, name, bytes)?;
    put(directory, name)
}

/// Writes what [`put`] will put in the place of a file: what takes room is done then.
pub(super) fn prepare(directory: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(directory, next(name), flags, Mode::RUSR | Mode::WUSR)?;
    std::fs::File::from(file).write_all(bytes)
}

/// Puts what was prepared in the place of a file.
pub(super) fn put(directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    Ok(rustix::fs::renameat(directory, next(name), directory, name)?)
}

fn next(name: &str) -> String {
    format!("{name}.new")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let directory = tempfile::tempdir().expect("tempdir");
        let fd = std::fs::File::open(directory.path()).expect("open");
        assert_eq!(Record::load(fd.as_fd()).expect("none"), None);
        let mut record = Record::unknown("box");
        record.process = Some(ProcessRecord { pid: 7, started_ticks: 9 });
        record.annotations.insert("a".into(), "b".into());
        record.save(fd.as_fd()).expect("save");
        assert_eq!(Record::load(fd.as_fd()).expect("load"), Some(record));
        assert_eq!(std::fs::read_dir(directory.path()).expect("list").count(), 1, "nothing else is left");
    }

    #[test]
    fn a_record_of_another_version_is_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        let fd = std::fs::File::open(directory.path()).expect("open");
        Record { version: 2, ..Record::unknown("box") }.save(fd.as_fd()).expect("save");
        assert!(Record::load(fd.as_fd()).expect_err("refused").to_string().contains("version 2"));
    }

    #[test]
    fn a_process_that_took_over_the_number_is_not_the_process() {
        let me = Pid::from_raw(i32::try_from(std::process::id()).expect("number")).expect("number");
        let record = ProcessRecord::of(me).expect("record");
        assert!(record.open().expect("open").is_some());
        let other = ProcessRecord { started_ticks: record.started_ticks + 1, ..record };
        assert!(other.open().expect("open").is_none());
    }
}
