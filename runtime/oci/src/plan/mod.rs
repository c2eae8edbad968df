//! Planning: what a configuration asks for, as data, decided before anything is touched. Pure.

pub(crate) mod identity;
pub(crate) mod locality;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod netdev;
pub(crate) mod options;
pub(crate) mod order;
pub(crate) mod sysctl;

pub use options::MOUNT_OPTIONS;

/// A configuration that cannot be turned into a container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A field has a value that cannot be used.
    #[error("{field}: {reason}")]
    Field {
        /// Path of the field, as in `mounts[2].destination`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl PlanError {
    pub(crate) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Field { field: field.into(), reason: reason.into() }
    }
}
