//! Seccomp: the default profile and our own compiler from OCI profiles to BPF.

mod compile;
mod profile;
mod syscalls;

use std::io;

use oci_spec::runtime::{Arch, LinuxSeccomp};
use portreeve_sys::seccomp::Instruction;

pub use profile::default_profile;

/// A profile that cannot be compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeccompError {
    /// A field of the profile has a value that cannot be used.
    #[error("linux.seccomp.{field}: {reason}")]
    Field {
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl SeccompError {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Field { field: field.into(), reason: reason.into() }
    }
}

/// A compiled profile, ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub(crate) program: Vec<Instruction>,
    pub(crate) flags: u32,
}

impl Filter {
    /// Compiles a profile for this machine.
    ///
    /// Rules with conditions come before those without, in the order of the profile; the first that matches decides.
    /// Names that no architecture of the profile knows are ignored. Calls beyond the highest that the profile names
    /// fail with ENOSYS where the default is not to allow, so that a C library falls back instead of giving up.
    /// The x32 calls of x86_64 always fail with ENOSYS.
    ///
    /// # Errors
    /// [`SeccompError::Field`] for an argument index above 5, an architecture that this machine cannot run,
    /// `SCMP_ACT_NOTIFY` (not in this version), or a profile too large for the kernel.
    pub fn compile(profile: &LinuxSeccomp) -> Result<Self, SeccompError> {
        compile::compile(profile)
    }

    /// Binds the calling thread to it, for ever.
    ///
    /// # Errors
    /// `EACCES` without no_new_privs and CAP_SYS_ADMIN, `EINVAL` for a flag that this kernel does not know.
    pub fn load(&self) -> io::Result<()> {
        portreeve_sys::seccomp::load(&self.program, self.flags).map(drop)
    }

    /// Number of BPF instructions.
    #[must_use]
    pub fn length(&self) -> usize {
        self.program.len()
    }
}

/// The architecture of this program.
#[must_use]
pub fn native() -> Arch {
    if cfg!(target_arch = "aarch64") { Arch::ScmpArchAarch64 } else { Arch::ScmpArchX86_64 }
}
