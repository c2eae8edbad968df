//! systemd, in the guest that is booted with it.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::skipped;

/// Whether this machine was booted with systemd.
#[must_use]
pub fn booted() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Why a test cannot run here, said loudly; `true` means: return from the test.
///
/// # Panics
/// Without systemd in the guest that is there for it.
#[must_use]
pub fn skipped_without(test: &str) -> bool {
    if !booted() {
        let guest = std::env::var("PORTREEVE_GUEST").unwrap_or_default();
        assert_ne!(guest, "systemd", "this guest is there for it");
        skipped(test, "this machine was not booted with systemd");
    }
    !booted()
}

/// What `systemctl` says to this.
///
/// # Panics
/// When there is none.
pub fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").args(arguments).stdin(Stdio::null()).output().expect("systemctl");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// A property of a unit.
#[must_use]
pub fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--property", name, "--value", unit]).trim_end().to_owned()
}
