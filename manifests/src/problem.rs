//! Problems: what is wrong with a manifest, where, and how to fix it.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::object::ObjectKey;

/// A place in a file; both numbers count from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Default for Position {
    fn default() -> Self {
        Self { line: 1, column: 1 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Whether a problem keeps its document from running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The document is refused.
    Error,
    /// The document runs; what the problem names has no effect here, or can hardly be meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// Why something is a problem.
///
/// The `FieldValue*` reasons are the API server's own cause reasons; so are the decoding
/// reasons, as far as the server tells them apart. The last group is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Reason {
    /// A value that must be there is missing or empty.
    FieldValueRequired,
    /// A value breaks a rule.
    FieldValueInvalid,
    /// A value is none of the allowed ones.
    FieldValueNotSupported,
    /// A value occurs twice where it must be unique.
    FieldValueDuplicate,
    /// A value may not be given here.
    FieldValueForbidden,
    /// A text is too long.
    FieldValueTooLong,
    /// A list has too many items.
    FieldValueTooMany,
    /// A value names something that does not exist.
    FieldValueNotFound,
    /// A value has the wrong type.
    FieldValueTypeInvalid,

    /// The text is not YAML (or JSON).
    YAMLSyntax,
    /// A mapping has the same key twice.
    StrictDuplicateKeyYAML,
    /// The object has no such field.
    StrictUnknownField,
    /// A value has another type than the field.
    TypeMismatch,
    /// A text is not a quantity.
    QuantityParse,
    /// A text is not base64.
    Base64,
    /// A text is not a time.
    TimeParse,
    /// A document is not an object at all.
    JSONDecode,
    /// `apiVersion` or `kind` is missing or wrong.
    KindMismatch,
    /// The API server would answer "bad request".
    BadRequest,

    /// More than the limits of this reader allow (size, depth, aliases).
    LimitExceeded,
    /// This version does not do what the manifest asks for.
    UnsupportedHere,
    /// Only a cluster knows this; a single node has no use for it.
    ClusterOnly,
    /// It is allowed, and can hardly be meant.
    Doubtful,
    /// Nothing is declared where something was expected.
    Empty,
    /// The file cannot be read at all.
    Unreadable,
}

impl Reason {
    /// Whether the problem is one of portreeve's own rules, which the API server does not have.
    #[must_use]
    pub fn is_own_rule(self) -> bool {
        matches!(
            self,
            Self::LimitExceeded
                | Self::UnsupportedHere
                | Self::ClusterOnly
                | Self::Doubtful
                | Self::Empty
                | Self::Unreadable
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Whether it keeps the document from running.
    pub severity: Severity,
    /// The file.
    pub file: PathBuf,
    /// Where in the file.
    pub position: Position,
    /// Which document of the file, from 0.
    pub document: usize,
    /// The object, as far as it could be told.
    pub object: Option<ObjectKey>,
    /// The path of the field, as the API server writes it; empty for the whole document.
    pub field: String,
    /// Why it is a problem.
    pub reason: Reason,
    /// What is wrong.
    pub message: String,
    /// How to fix it; never empty.
    pub fix: String,
}

impl fmt::Display for Problem {
    /// `file:line:column: error: field: message (fix)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: ", self.file.display(), self.position, self.severity)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{} ({})", self.message, self.fix)
    }
}
