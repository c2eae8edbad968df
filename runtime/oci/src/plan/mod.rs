//! Planning: what a configuration asks for, as data, decided before anything is touched.

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
