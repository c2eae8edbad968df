//! What a manifest can say here: one table that both enforces it and prints it.

use serde::Serialize;

/// What becomes of a field or kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Support {
    /// It does what Kubernetes says.
    Supported,
    /// It is accepted with a warning and has no effect: it only steers a cluster.
    Warning,
    /// The document is refused: without it the container would do something else.
    Error,
}

/// One row of the support table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SupportRow {
    /// The kind, or the path of a field, such as `Pod.spec.containers[].image`.
    pub subject: String,
    /// What becomes of it.
    pub support: Support,
    /// Under which condition, and what to do instead.
    pub note: String,
}

/// What a manifest can say here, in order, from the code that enforces it.
#[must_use]
pub fn support_table() -> Vec<SupportRow> {
    Vec::new()
}

/// Checks what this version supports.
pub(crate) fn check(kind: crate::object::Kind, root: &crate::yaml::Node, found: &mut crate::findings::Findings<'_>) {
    let _ = (kind, root, found);
}
