//! Files: many documents, each with its own verdict.

use std::path::Path;

use crate::object::{Kind, Object, ObjectKey};
use crate::problem::{Position, Problem};

/// What became of one document.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The object is good.
    Accepted(Object),
    /// The document has an error; the key is there when it could be told.
    Refused {
        /// The object's identity.
        key: Option<ObjectKey>,
    },
    /// A kind that only a cluster knows: one warning, and nothing else.
    Ignored,
}

/// One object of a file: a document, or an item of a `List`.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its number in the file, from 0, as [`Problem::document`] counts.
    pub index: usize,
    /// Where it begins.
    pub position: Position,
    /// What became of it.
    pub verdict: Verdict,
}

/// A file, read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ParsedFile {
    /// The documents, in order; none when the file is unreadable.
    pub documents: Vec<Document>,
    /// Every problem, in order of position.
    pub problems: Vec<Problem>,
    /// A syntax error (or a broken size limit) holds back the whole file.
    pub unreadable: bool,
}

/// Reads a manifest file: YAML or JSON, many documents, lists.
#[must_use]
pub fn parse_file(file: &Path, bytes: &[u8]) -> ParsedFile {
    let _ = (file, bytes);
    ParsedFile::default()
}

/// What the API server would answer to one document.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiAnswer {
    /// The defaulted object, when it is accepted.
    pub object: Option<Object>,
    /// Why it is not.
    pub problems: Vec<Problem>,
}

/// Reads the first document of `bytes` as the API server would that got it as a `POST` to
/// `kind` in `namespace`; portreeve's own rules are left out.
#[must_use]
pub fn parse_document_as(kind: Kind, namespace: &str, file: &Path, bytes: &[u8]) -> ApiAnswer {
    let _ = (kind, namespace, file, bytes);
    ApiAnswer { object: None, problems: Vec::new() }
}
