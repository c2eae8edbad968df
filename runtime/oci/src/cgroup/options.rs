//! Options of version 2's file system, which all of its mounts share: whoever mounts it again, in the first cgroup
//! namespace, says anew which of them are on.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use portreeve_sys::mount;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use super::layout::{layout, unescape};

/// Source: Linux, admin-guide/cgroup-v2.rst, "Mounting". What else mountinfo shows cannot be set.
const KNOWN: [&str; 6] = [
    "nsdelegate",
    "favordynmods",
    "memory_localevents",
    "memory_recursiveprot",
    "memory_hugetlb_accounting",
    "pids_localevents",
];

/// Where those who change the options at one time find what they were before the first of them: a file that is root's,
/// with a lock that each of them shares.
const BEFORE: &str = "/run/portreeve-cgroup2-options";

/// The options that are to be on when whoever changes them has ended.
#[derive(Debug)]
pub(crate) struct Options {
    mount: PathBuf,
    on: Vec<String>,
    _shared: File,
}

impl Options {
    /// Those that are on, or that were before somebody who is at it now began; `None` without version 2, and for a user
    /// who cannot change them.
    pub(crate) fn read() -> io::Result<Option<Self>> {
        let Some(mount) = layout().ok().and_then(|layout| layout.unified.clone()) else { return Ok(None) };
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::open(BEFORE, flags, Mode::RUSR | Mode::WUSR)?);
        let alone = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => true,
            Err(Errno::WOULDBLOCK) => false,
            Err(error) => return Err(error.into()),
        };
        let mut text = String::new();
        if alone {
            text = on_now(&mount)?.join(",");
            file.set_len(0)?;
            file.write_all(text.as_bytes())?;
        }
        // Between the two locks another one may find itself alone, and finds the same.
        flock(&file, FlockOperation::LockShared)?;
        if !alone {
            file.read_to_string(&mut text)?;
        }
        let on = text.split(',').filter(|option| KNOWN.contains(option)).map(str::to_owned).collect();
        Ok(Some(Self { mount, on, _shared: file }))
    }

    /// Sets them again where others are on now.
    pub(crate) fn put_back(&self) -> io::Result<()> {
        if on_now(&self.mount)? == self.on {
            return Ok(());
        }
        let filesystem = mount::pick(&self.mount)?;
        for option in &self.on {
            mount::set_flag(filesystem.as_fd(), option)?;
        }
        mount::reconfigure(filesystem.as_fd())
    }
}

fn on_now(mount: &Path) -> io::Result<Vec<&'static str>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().find_map(|line| options(line, mount)).unwrap_or_default())
}

/// The options of a line of mountinfo, if it is of this mount. Source: proc_pid_mountinfo(5).
fn options(line: &str, mount: &Path) -> Option<Vec<&'static str>> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let ours = unescape(before.split(' ').nth(4)?) == mount.to_str()? && after.next() == Some("cgroup2");
    let given = after.nth(1).filter(|_| ours)?;
    Some(KNOWN.into_iter().filter(|known| given.split(',').any(|option| option == *known)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_is_read_and_nothing_else() {
        let mount = Path::new("/sys/fs/cgroup");
        let line =
            |options: &str| format!("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 {options}");
        let on = |text: &str| options(&line(text), mount).unwrap();
        assert_eq!(on("rw,seclabel,nsdelegate,memory_recursiveprot"), ["nsdelegate", "memory_recursiveprot"]);
        assert_eq!(on("rw"), [""; 0]);
        assert_eq!(options(&line("rw,nsdelegate"), Path::new("/cgroup")), None);
        assert_eq!(options("30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,nsdelegate", mount), None);
    }
}
