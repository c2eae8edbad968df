//! Devices by name: what a container needs to use one is in files that root has put on the node.
//!
//! ```text
//!   names of the request        /etc/cdi/*.{json,yaml,yml}   /var/run/cdi/*           the node's devices
//!          |                            |  directory: who may write it, how long it is       |
//!          v                            v  document, check: is it a specification            v
//!     vendor.com/class=name --> catalogue: which of them has the device --> edits: what it comes to here
//!                                                                                            |
//!                                                             OCI specification <-- apply ---/
//! ```
//!
//! Source: Container Device Interface 1.1, SPEC.md, and its reference implementation, tags.cncf.io/container-device-interface.
//! What that leaves to the OCI runtime is refused here already, by the file and the field.
//!
//! The files are read when a container is made, and nothing is kept: what a device comes to is in the container's own
//! specification from then on. One that cannot be used makes its own devices unknown and no others.
//!
//! **Who is trusted.** A request names devices, and files say what is done for them: mounts of any path of the node, and
//! programs that run as root. So a file counts only when nobody but root, or who this agent runs as, can write it or its
//! directory. Nothing of an image names a device.

mod catalogue;
mod check;
mod directory;
mod document;
mod edits;
mod error;
mod name;

use std::path::PathBuf;

pub use catalogue::{Survey, survey};
pub use error::{CdiError, FileError};
pub use name::{DeviceName, requested};

pub(crate) use edits::Edits;

/// Where specifications are unless told otherwise; of two that have a device the later directory's counts.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// What devices come to on this node; nothing is read where none is asked for. Blocking.
///
/// # Errors
/// [`CdiError`] for a device that no file has, or that cannot be given.
pub(crate) fn resolve(directories: &[PathBuf], devices: &[DeviceName]) -> Result<Edits, CdiError> {
    if devices.is_empty() {
        return Ok(Edits::default());
    }
    Edits::of(&catalogue::Catalogue::read(directories).find(devices)?)
}

#[cfg(test)]
mod tests;
