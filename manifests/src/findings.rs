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
    /// How to fix it: short, and never what the message says already.
    pub(crate) fix: String,
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
}

impl<'n> Findings<'n> {
    pub(crate) fn new(root: &'n Node) -> Self {
        Self { root, list: Vec::new() }
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
    pub(crate) fn add(&mut self, path: &Path<'_>, reason: Reason, message: impl Into<String>, fix: impl Into<String>) {
        if self.has_room() {
            self.add_as(path.to_string(), path, reason, message, fix);
        }
    }

    /// Adds an error that the API server reports under another path than the field's own.
    pub(crate) fn add_as(
        &mut self,
        field: String,
        path: &Path<'_>,
        reason: Reason,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        if !self.has_room() {
            return;
        }
        let position = match reason {
            Reason::FieldValueRequired | Reason::FieldValueForbidden => path.position(self.root),
            _ => path.value_position(self.root),
        };
        let (message, fix) = (message.into(), fix.into());
        self.list.push(Finding { severity: Severity::Error, position, field, reason, message, fix });
    }

    /// Adds a finding of portreeve's own rules.
    pub(crate) fn own(
        &mut self,
        path: &Path<'_>,
        severity: Severity,
        reason: Reason,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        if has_room(&self.list, severity) {
            let (position, field) = (path.position(self.root), path.to_string());
            let (message, fix) = (message.into(), fix.into());
            self.list.push(Finding { severity, position, field, reason, message, fix });
        }
    }

    /// Adds a warning about what can hardly be meant.
    pub(crate) fn doubt(&mut self, path: &Path<'_>, message: String, fix: impl Into<String>) {
        if has_room(&self.list, Severity::Warning) {
            let (position, field) = (path.value_position(self.root), path.to_string());
            let (severity, reason, fix) = (Severity::Warning, Reason::Doubtful, fix.into());
            self.list.push(Finding { severity, position, field, reason, message, fix });
        }
    }

    /// The text that stands at this path, as it was written.
    pub(crate) fn written(&self, path: &Path<'_>) -> Option<&'n str> {
        path.text(self.root)
    }

    /// `must be given`, with what the API server adds, when it adds something, and an example.
    pub(crate) fn required(&mut self, path: &Path<'_>, detail: &str, example: &str) {
        let message = if detail.is_empty() { "a value is required" } else { detail };
        self.add(path, Reason::FieldValueRequired, message, format!("set it, for example `{example}`"));
    }

    pub(crate) fn invalid(
        &mut self,
        path: &Path<'_>,
        value: &dyn std::fmt::Debug,
        detail: impl AsRef<str>,
        fix: impl Into<String>,
    ) {
        let message = format!("{value:?} {}", detail.as_ref());
        self.add(path, Reason::FieldValueInvalid, message, fix);
    }

    pub(crate) fn forbidden(&mut self, path: &Path<'_>, detail: &str, fix: impl Into<String>) {
        self.add(path, Reason::FieldValueForbidden, detail, fix);
    }

    /// A value that is there already; `other` is where.
    pub(crate) fn duplicate(&mut self, path: &Path<'_>, value: &dyn std::fmt::Debug, other: &Path<'_>) {
        if self.has_room() {
            self.duplicate_as(path.to_string(), path, value, other);
        }
    }

    /// As [`Self::duplicate`], reported under another path.
    pub(crate) fn duplicate_as(
        &mut self,
        field: String,
        path: &Path<'_>,
        value: &dyn std::fmt::Debug,
        other: &Path<'_>,
    ) {
        let message = format!("{value:?} is there already, and must be unique");
        let fix = format!("change or remove one of the two; the other is at {}", other.position(self.root));
        self.add_as(field, path, Reason::FieldValueDuplicate, message, fix);
    }

    /// A value that names none of the known; `otherwise` says what to do when it resembles none.
    pub(crate) fn not_found<'a>(
        &mut self,
        path: &Path<'_>,
        value: &str,
        what: &str,
        known: impl Iterator<Item = &'a str>,
        otherwise: &str,
    ) {
        // Comparing names costs more than the rest.
        if self.has_room() {
            let message = format!("{value:?} {what}");
            self.add(path, Reason::FieldValueNotFound, message, near_or(value, known, || otherwise.to_owned()));
        }
    }

    /// A value that is none of the allowed; `otherwise` says what to do when it resembles none.
    pub(crate) fn not_supported(&mut self, path: &Path<'_>, value: &str, allowed: &[&str], otherwise: &str) {
        if self.has_room() {
            let named: Vec<&str> = allowed.iter().copied().filter(|name| !name.is_empty()).collect();
            let message = format!("{value:?} is none of {}", named.join(", "));
            let fix = near_or(value, named.into_iter(), || otherwise.to_owned());
            self.add(path, Reason::FieldValueNotSupported, message, fix);
        }
    }

    /// A text of `length` bytes where `limit` are allowed; `how` says what to do besides shortening it.
    pub(crate) fn too_long(&mut self, path: &Path<'_>, length: usize, limit: usize, how: &str) {
        let message = format!("may not be longer than {limit} bytes");
        let fix = format!("{} too many: {how}", length.saturating_sub(limit));
        self.add(path, Reason::FieldValueTooLong, message, fix);
    }
}

/// The candidate that may have been meant, or what else to do.
pub(crate) fn near_or<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
    otherwise: impl FnOnce() -> String,
) -> String {
    match crate::near::nearest(word, candidates) {
        Some(near) => format!("did you mean `{near}`?"),
        None => otherwise(),
    }
}
