//! Values that are no values of their fields, and what follows from them alone.
//!
//! The rest of the document is checked as if such a field was not given. What is then found may be wrong only because
//! of that; it is not told, for who mends the value mends it, too. Where this cannot be known, nothing is told.

use std::collections::BTreeSet;

use super::document::parent;
use crate::findings::Finding;
use crate::problem::Reason;

/// Fields that decide what may stand beside them.
const DECIDING: [&str; 10] = [
    "restartPolicy",
    "type",
    "operator",
    "effect",
    "key",
    "whenUnsatisfiable",
    "readOnly",
    "mountPropagation",
    "hostPort",
    "containerPort",
];

/// Lists whose items are named elsewhere.
const NAMED: [&str; 2] = ["spec.volumes", "spec.resourceClaims"];

/// The wrong values of a document, by the paths of their fields.
#[derive(Debug, Default)]
pub(super) struct Wrong(BTreeSet<String>);

impl Wrong {
    pub(super) fn of<'f>(findings: impl Iterator<Item = &'f Finding>) -> Self {
        Self(findings.map(|finding| finding.field.clone()).collect())
    }

    pub(super) fn is_any(&self) -> bool {
        !self.0.is_empty()
    }

    pub(super) fn fields(&self) -> &BTreeSet<String> {
        &self.0
    }

    /// Whether one of the values may be all that is wrong with what `finding` is about.
    pub(super) fn explains(&self, finding: &Finding) -> bool {
        self.0.iter().any(|wrong| explains(wrong, finding))
    }
}

fn explains(wrong: &str, finding: &Finding) -> bool {
    let field = &*finding.field;
    if is_within(field, wrong) {
        return true;
    }
    // Our own rules look at the document as it is written: whether it has a field, whatever is in it.
    if is_within(wrong, field) && !finding.reason.is_own_rule() {
        return true;
    }
    let last = wrong.rsplit_once('.').map_or(wrong, |(_, last)| last);
    // The pod's own restart policy and a secret's type have defaults that forbid nothing.
    let decides = DECIDING.contains(&last) && !matches!(parent(wrong), "" | "spec");
    if decides && parent(field) == parent(wrong) {
        return true;
    }
    // Requests are compared with limits, and those of a pod with those of its containers.
    let of_resources = |field: &str| field.split('.').any(|step| step == "resources");
    if of_resources(wrong) && of_resources(field) {
        return true;
    }
    finding.reason == Reason::FieldValueNotFound && NAMED.iter().any(|list| is_within(wrong, list))
}

/// Whether a field is `whole`, or a part of it.
fn is_within(field: &str, whole: &str) -> bool {
    let rest = field.strip_prefix(whole);
    rest.is_some_and(|rest| whole.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_within_its_own_parents_alone() {
        for (field, whole, within) in [
            ("spec.a", "spec.a", true),
            ("spec.a[0].b", "spec.a", true),
            ("spec.a.b", "spec.a", true),
            ("spec.ab", "spec.a", false),
            ("spec.a", "spec.a[0]", false),
            ("spec.a[10]", "spec.a[1]", false),
            ("anything", "", true),
        ] {
            assert_eq!(is_within(field, whole), within, "{field} in {whole}");
        }
    }
}
