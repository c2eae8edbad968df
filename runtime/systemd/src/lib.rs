//! Scopes of systemd, which containers live in where it makes the cgroups.
//!
//! ```text
//!   Place    what a unit is called, and where its cgroup lies
//!   Keeper   a process that makes a scope around itself, and keeps it while nothing else is in it
//!   Manager  a conversation with systemd over the message bus
//! ```
//!
//! A scope here is delegated: what lies below its cgroup is its owner's alone, and systemd leaves it as it is.
//!
//! **Invariant:** there is no async runtime and no thread: whoever makes containers may have neither.
//! Source: systemd, docs/CGROUP_DELEGATION.md.

mod bus;
mod error;
mod keeper;
mod name;
mod properties;

use std::path::Path;

use portreeve_oci::cgroup::{self, Version};

pub use bus::Manager;
pub use error::SystemdError;
pub use keeper::{Keeper, Wanted};
pub use name::{Place, is_slice};
pub use properties::{Property, of_limits, of_pod};

/// Whether systemd is the init of this machine: sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

/// Refuses a machine, or a caller, for whom systemd makes no cgroups; touches nothing.
///
/// # Errors
/// [`SystemdError::NotBooted`], [`SystemdError::Version`], [`SystemdError::User`], [`SystemdError::Cgroup`].
pub fn require(is_root: bool) -> Result<(), SystemdError> {
    booted(Path::new(BOOTED))?;
    if cgroup::version()? != Version::V2 {
        return Err(SystemdError::Version);
    }
    // A user's own manager has a bus of its own, which this does not look for.
    if is_root { Ok(()) } else { Err(SystemdError::User) }
}

fn booted(directory: &Path) -> Result<(), SystemdError> {
    // A link would be somebody else's word.
    let is_directory = std::fs::symlink_metadata(directory).is_ok_and(|found| found.is_dir());
    if is_directory { Ok(()) } else { Err(SystemdError::NotBooted) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_systemds_when_its_directory_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("system");
        let error = booted(&path).expect_err("nothing there").to_string();
        assert!(error.contains("not the init") && error.contains("cgroupfs"), "{error}");
        std::os::unix::fs::symlink(folder.path(), &path).expect("a link");
        assert!(booted(&path).is_err());
        std::fs::remove_file(&path).expect("no link");
        std::fs::create_dir(&path).expect("a directory");
        booted(&path).expect("booted");
    }
}
