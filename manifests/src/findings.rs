//! Findings: problems of one document, before they know their file.

use crate::path::Path;
use crate::problem::{Position, Reason, Severity};
use crate::yaml::Node;

/// A problem within a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    pub(crate) position: Position,
    pub(crate) field: String,
    pub(crate) reason: Reason,
    pub(crate) message: String,
    pub(crate) fix: Option<String>,
}

/// No document gets more findings than this: who has so many mistakes made one, many times.
pub(crate) const MOST: usize = 1000;

/// Adds a finding, unless there are too many; errors push out no errors, warnings nothing.
pub(crate) fn push(list: &mut Vec<Finding>, finding: Finding) {
    if has_room(list, finding.severity) {
        list.push(finding);
    }
}

/// Whether another finding would be kept; what costs much is not done for one that would not.
pub(crate) fn has_room(list: &[Finding], severity: Severity) -> bool {
    let room = match severity {
        Severity::Warning => MOST,
        Severity::Error => MOST * 2,
    };
    list.len() < room
}

/// The problems of a document, with the tree that says where each field stands.
#[derive(Debug)]
pub(crate) struct Findings<'n> {
    root: &'n Node,
    pub(crate) list: Vec<Finding>,
    /// The last finding was kept, so what is said about it is said about the list's last.
    kept: bool,
}

impl<'n> Findings<'n> {
    pub(crate) fn new(root: &'n Node) -> Self {
        Self { root, list: Vec::new(), kept: false }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether another error would be kept.
    pub(crate) fn has_room(&self) -> bool {
        has_room(&self.list, Severity::Error)
    }

    /// Whether the document says something at this path.
    pub(crate) fn has(&self, path: &Path<'_>) -> bool {
        path.is_in(self.root)
    }

    /// Adds an error; the API server's path is the field's own.
    pub(crate) fn add(&mut self, path: &Path<'_>, reason: Reason, message: impl Into<String>) {
        self.add_as(path.to_string(), path, reason, message);
    }

    /// Adds an error that the API server reports under another path than the field's own.
    pub(crate) fn add_as(&mut self, field: String, path: &Path<'_>, reason: Reason, message: impl Into<String>) {
        self.kept = has_room(&self.list, Severity::Error);
        if !self.kept {
            return;
        }
        let position = match reason {
            Reason::FieldValueRequired | Reason::FieldValueForbidden => path.position(self.root),
            _ => path.value_position(self.root),
        };
        push(
            &mut self.list,
            Finding { severity: Severity::Error, position, field, reason, message: message.into(), fix: None },
        );
    }

    /// Adds a finding of portreeve's own rules.
    pub(crate) fn own(
        &mut self,
        path: &Path<'_>,
        severity: Severity,
        reason: Reason,
        message: impl Into<String>,
        fix: Option<String>,
    ) {
        self.kept = has_room(&self.list, severity);
        if !self.kept {
            return;
        }
        push(
            &mut self.list,
            Finding {
                severity,
                position: path.position(self.root),
                field: path.to_string(),
                reason,
                message: message.into(),
                fix,
            },
        );
    }

    /// Says how to fix the last finding.
    pub(crate) fn fix(&mut self, fix: impl Into<String>) {
        if let Some(last) = self.list.last_mut().filter(|_| self.kept) {
            last.fix = Some(fix.into());
        }
    }

    /// `must be given`, with what the API server adds, when it adds something.
    pub(crate) fn required(&mut self, path: &Path<'_>, detail: &str) {
        let message = if detail.is_empty() { "a value is required" } else { detail };
        self.add(path, Reason::FieldValueRequired, message);
    }

    pub(crate) fn invalid(&mut self, path: &Path<'_>, value: &dyn std::fmt::Debug, detail: impl AsRef<str>) {
        let message = format!("{value:?} {}", detail.as_ref());
        self.add(path, Reason::FieldValueInvalid, message);
    }

    pub(crate) fn forbidden(&mut self, path: &Path<'_>, detail: &str) {
        self.add(path, Reason::FieldValueForbidden, detail);
    }

    pub(crate) fn duplicate(&mut self, path: &Path<'_>, value: &dyn std::fmt::Debug) {
        let message = format!("{value:?} is there already, and must be unique");
        self.add(path, Reason::FieldValueDuplicate, message);
    }

    pub(crate) fn not_found(&mut self, path: &Path<'_>, value: &dyn std::fmt::Debug, what: &str) {
        self.add(path, Reason::FieldValueNotFound, format!("{value:?} {what}"));
    }

    pub(crate) fn not_supported(&mut self, path: &Path<'_>, value: &str, allowed: &[&str]) {
        let named: Vec<&str> = allowed.iter().copied().filter(|name| !name.is_empty()).collect();
        let message = format!("{value:?} is none of {}", named.join(", "));
        self.add(path, Reason::FieldValueNotSupported, message);
        if self.kept
            && let Some(near) = crate::near::nearest(value, allowed.iter().copied())
        {
            self.fix(format!("did you mean `{near}`?"));
        }
    }

    pub(crate) fn too_long(&mut self, path: &Path<'_>, limit: usize) {
        self.add(path, Reason::FieldValueTooLong, format!("may not be longer than {limit} bytes"));
    }
}
