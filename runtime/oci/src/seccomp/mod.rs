//! Seccomp: the default profile, our own compiler from OCI profiles to BPF, and the way to who answers notifications.

mod compile;
mod notify;
mod profile;
mod support;
mod syscalls;

use std::io;
use std::os::fd::OwnedFd;

use oci_spec::runtime::{Arch, LinuxSeccomp};
use portreeve_sys::seccomp::Instruction;

pub use notify::{Listener, ListenerError};
pub use profile::default_profile;
pub use support::{ACTIONS, ARCHITECTURES, FLAGS, OPERATORS, supported_actions, supported_flags};

/// A profile that cannot be compiled, or that this kernel cannot carry out.
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
    /// The kernel lacks something that the profile uses.
    #[error("linux.seccomp: this kernel does not have {what}, which the profile uses")]
    Unsupported {
        /// An action or a flag.
        what: String,
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
    program: Vec<Instruction>,
    flags: u32,
    listener: Option<Listener>,
}

impl Filter {
    /// Compiles a profile for this machine. Pure: see [`Filter::check_kernel`].
    ///
    /// Rules with conditions come before those without, in the order of the profile; the first that matches decides.
    /// Names that no architecture of the profile knows are ignored, and so are architectures that this machine cannot
    /// run; calls of an architecture that the profile does not name kill the process. Calls beyond the highest that
    /// the profile names fail with ENOSYS where the default is not to allow, log or trace, so that a C library falls
    /// back instead of giving up. Arguments of x86 have 32 bits, and are compared with the lower 32 bits of a condition's
    /// values. The x32 calls of x86_64 always fail with ENOSYS, and the calls of 32-bit ARM kill.
    ///
    /// # Errors
    /// [`SeccompError::Field`] for a rule without names, an argument index above 5, an errno with an action that
    /// answers with none, `SCMP_ACT_NOTIFY` by default or for `sendmsg` or without a way to the listener, or a profile
    /// too large for the kernel.
    pub fn compile(profile: &LinuxSeccomp) -> Result<Self, SeccompError> {
        compile::compile(profile, native())
    }

    /// Asks the kernel whether it knows every action and flag of this filter: it would take an action that it does not
    /// know as the order to kill.
    ///
    /// # Errors
    /// [`SeccompError::Unsupported`] names the first that it does not know.
    pub fn check_kernel(&self) -> Result<(), SeccompError> {
        support::check(self)
    }

    /// Binds the calling thread to it, for ever; the answer is the listener of a filter that has
    /// [`Filter::listener`].
    ///
    /// # Errors
    /// `EACCES` without no_new_privs and CAP_SYS_ADMIN, `EINVAL` for a flag that this kernel does not know, `EBUSY` for
    /// a second filter with a listener.
    pub fn load(&self) -> io::Result<Option<OwnedFd>> {
        portreeve_sys::seccomp::load(&self.program, self.flags)
    }

    /// Where the listener of a filter with `SCMP_ACT_NOTIFY` is to be sent.
    #[must_use]
    pub fn listener(&self) -> Option<&Listener> {
        self.listener.as_ref()
    }

    /// The BPF instructions.
    #[must_use]
    pub fn program(&self) -> &[Instruction] {
        &self.program
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

/// The kernel's number of a system call; `None` when the architecture lacks it, or is none of [`ARCHITECTURES`].
#[must_use]
pub fn call_number(name: &str, architecture: Arch) -> Option<u32> {
    let column = match architecture {
        Arch::ScmpArchX86_64 => 0,
        Arch::ScmpArchX86 => 1,
        Arch::ScmpArchAarch64 => 2,
        _ => return None,
    };
    syscalls::number(name, column)
}
