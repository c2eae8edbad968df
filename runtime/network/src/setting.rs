//! Kernel settings below /proc/sys/net, of the network namespace of the calling thread.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::NetworkError;

/// The switch that makes this machine forward IPv4 packets.
pub(crate) const IP_FORWARD: &str = "ipv4/ip_forward";

/// The directory that all settings are below.
const ROOT: &str = "/proc/sys/net";
/// `PROC_SUPER_MAGIC` of linux/magic.h.
const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;

/// The value of a setting, `None` when this kernel does not have it.
pub(crate) fn read(name: &str) -> Result<Option<String>, NetworkError> {
    let path = Path::new(ROOT).join(name);
    match fs::read_to_string(&path) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(NetworkError::Sysctl { path, source }),
    }
}

/// Writes a setting.
pub(crate) fn write(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = Path::new(ROOT).join(name);
    put(&path, value).map_err(|source| NetworkError::Sysctl { path, source })
}

/// Writes a setting unless this kernel does not have it (IPv6 can be absent).
pub(crate) fn write_if_present(name: &str, value: &str) -> io::Result<()> {
    match put(&Path::new(ROOT).join(name), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

/// Where a setting is, for a report.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

fn put(path: &Path, value: &str) -> io::Result<()> {
    // Neither made nor cut: a file in its place that is no setting stays as it is.
    let mut file = File::options().write(true).open(path)?;
    let kind = rustix::fs::fstatfs(&file)?.f_type;
    if kind != PROC_SUPER_MAGIC {
        return Err(io::Error::other("it is not a file of procfs"));
    }
    file.write_all(value.as_bytes())
}
