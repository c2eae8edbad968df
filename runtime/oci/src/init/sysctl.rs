//! Kernel parameters, written through a procfs of our own.
//!
//! The container's /proc can be covered or exchanged (CVE-2025-52881); a private detached one cannot be reached by
//! anyone else, and the path below it is resolved without links and without leaving it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use portreeve_sys::mount;
use portreeve_sys::path::{Limits, beneath};
use rustix::fs::OFlags;

use crate::error::{SetupError, Step};

/// A procfs that nobody else can see.
pub(super) fn private_procfs() -> io::Result<OwnedFd> {
    let context = mount::new_filesystem("proc")?;
    mount::create(context.as_fd(), mount::NO_SUID | mount::NO_DEV | mount::NO_EXEC)
}

/// Writes each parameter, in the order of names.
pub(super) fn write(parameters: Option<&HashMap<String, String>>) -> Result<(), SetupError> {
    let Some(parameters) = parameters.filter(|parameters| !parameters.is_empty()) else { return Ok(()) };
    let procfs = private_procfs().step("mounting a private procfs", "")?;
    for (name, value) in parameters.iter().collect::<BTreeMap<_, _>>() {
        let path = PathBuf::from("sys").join(file_of(name));
        let limits = Limits { no_symlinks: true, no_crossing: true };
        let file = beneath(procfs.as_fd(), &path, OFlags::WRONLY, limits)
            .step("opening the kernel parameter", name.as_str())?;
        rustix::io::write(&file, value.as_bytes()).step("writing the kernel parameter", name.as_str())?;
    }
    Ok(())
}

/// `net.ipv4.ip_forward` and `net/ipv4/ip_forward` are the same; with slashes, dots belong to names (`eth0.100`).
fn file_of(name: &str) -> String {
    let separator = name.find(['.', '/']).and_then(|at| name.get(at..=at));
    match separator {
        Some("/") => name.to_owned(),
        _ => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_can_be_named_with_dots_or_slashes() {
        assert_eq!(file_of("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(file_of("net/ipv4/conf/eth0.100/rp_filter"), "net/ipv4/conf/eth0.100/rp_filter");
        assert_eq!(file_of("net.ipv4.conf.eth0/100.rp_filter"), "net/ipv4/conf/eth0.100/rp_filter");
    }
}
