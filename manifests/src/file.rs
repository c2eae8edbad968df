//! Files: many documents, each with its own verdict.

mod document;
mod wrong;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::findings::Finding;
use crate::kinds::{self, Known};
use crate::object::{Kind, Object, ObjectKey};
use crate::problem::{Position, Problem, Reason, Severity};
use crate::yaml::{self, Node, Value};

/// Files above this size are refused unread.
const MAX_FILE: usize = 4 << 20;
/// More objects than this in one file are refused.
const MAX_OBJECTS: usize = 10_000;

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
    /// Its document's number in the file, from 0, as [`Problem::document`] counts; the items of
    /// a list share one.
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

impl ParsedFile {
    /// The good objects, in order.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.documents.iter().filter_map(|document| match &document.verdict {
            Verdict::Accepted(object) => Some(object),
            _ => None,
        })
    }

    /// Whether nothing is wrong but warnings.
    #[must_use]
    pub fn is_good(&self) -> bool {
        !self.unreadable && self.problems.iter().all(|problem| problem.severity == Severity::Warning)
    }
}

/// The text of a manifest file, in UTF-8, or in UTF-16 with a byte order mark; a mark is dropped.
///
/// # Errors
/// The problem that [`parse_file`] has with such bytes.
pub fn text_of(file: &Path, bytes: &[u8]) -> Result<String, Box<Problem>> {
    yaml::decode_text(bytes).map_err(|broken| {
        let finding = document::error(broken.position, "", Reason::YAMLSyntax, broken.message, broken.fix);
        Box::new(to_problem(file, 0, None, finding))
    })
}

/// Reads a manifest file: YAML or JSON, many documents, lists.
///
/// Objects without a namespace are in `default`. An invalid document is refused alone; a syntax
/// error refuses the file. The problems come in order of position.
#[must_use]
pub fn parse_file(file: &Path, bytes: &[u8]) -> ParsedFile {
    parse_file_in(file, bytes, "default")
}

/// As [`parse_file`], with objects without a namespace in `namespace`.
#[must_use]
pub fn parse_file_in(file: &Path, bytes: &[u8], namespace: &str) -> ParsedFile {
    let namespace = namespace.to_owned();
    let (parsed, seen) = (ParsedFile::default(), BTreeMap::new());
    let mut reading = Reading { file: file.to_owned(), namespace, parsed, seen };
    if bytes.len() > MAX_FILE {
        let message = format!("the file is larger than {MAX_FILE} bytes, and no more are read");
        reading.unreadable(Position::default(), Reason::LimitExceeded, message, "split it into several files");
        return reading.parsed;
    }
    let documents = match yaml::read(bytes, false) {
        Ok(documents) => documents,
        Err(broken) => {
            let reason = if broken.over_limit { Reason::LimitExceeded } else { Reason::YAMLSyntax };
            reading.unreadable(broken.position, reason, broken.message, broken.fix);
            return reading.parsed;
        }
    };
    for (index, document) in documents.iter().enumerate() {
        if document.root.value != Value::Null {
            reading.any(index, &document.root, &document.faults, "");
        }
    }
    if reading.parsed.documents.len() > MAX_OBJECTS {
        let message = format!("the file has more than {MAX_OBJECTS} objects");
        reading.unreadable(Position::default(), Reason::LimitExceeded, message, "split it into several files");
    } else if documents.iter().all(|it| it.root.value == Value::Null) {
        reading.problem(
            0,
            None,
            Finding {
                severity: Severity::Warning,
                position: Position::default(),
                field: String::new(),
                reason: Reason::Empty,
                message: "the file declares no object".to_owned(),
                fix: "delete the file, or declare an object in it".to_owned(),
            },
        );
    }
    reading.parsed.problems.sort_by_key(|problem| problem.position);
    reading.parsed
}

/// A file that is being read.
struct Reading {
    file: PathBuf,
    /// Of objects that do not say theirs.
    namespace: String,
    parsed: ParsedFile,
    /// Where each object was declared first.
    seen: BTreeMap<ObjectKey, Position>,
}

impl Reading {
    fn unreadable(&mut self, position: Position, reason: Reason, message: String, fix: &str) {
        self.parsed.documents.clear();
        self.parsed.unreadable = true;
        let finding = document::error(position, "", reason, message, fix);
        self.problem(0, None, finding);
    }

    fn problem(&mut self, document: usize, object: Option<ObjectKey>, finding: Finding) {
        self.parsed.problems.push(to_problem(&self.file, document, object, finding));
    }

    fn refuse(&mut self, index: usize, position: Position, mut finding: Finding, prefix: &str) {
        finding.field = document::prefixed(prefix, &finding.field);
        self.problem(index, None, finding);
        self.add(index, position, Verdict::Refused { key: None });
    }

    fn add(&mut self, index: usize, position: Position, verdict: Verdict) {
        self.parsed.documents.push(Document { index, position, verdict });
    }

    /// A document, or an item of a list of anything, which is read like one: an object or a list.
    fn any(&mut self, index: usize, root: &Node, faults: &[yaml::Fault], prefix: &str) {
        let kind = root.get("kind").and_then(Node::text).unwrap_or_default();
        match kinds::list_of(kind).map(|items_kind| (items_kind, kinds::check_list(root, kind))) {
            Some((items_kind, Ok(()))) => self.list(index, root, faults, items_kind, prefix),
            Some((_, Err(finding))) => self.refuse(index, root.position, finding, prefix),
            None => self.one(index, root, faults, None, prefix),
        }
    }

    /// The items of a `List`, or of a `PodList` and its like.
    fn list(&mut self, index: usize, root: &Node, faults: &[yaml::Fault], kind: Option<Kind>, prefix: &str) {
        let items = match root.get("items").map(|items| &items.value) {
            Some(Value::List(items)) => items.as_slice(),
            None | Some(Value::Null) => &[],
            Some(_) => {
                let position = root.get("items").map_or(root.position, |it| it.position);
                let message = "`items` must be a list".to_owned();
                let fix = "begin each item with `- `, below `items:`";
                let finding = document::error(position, "items", Reason::TypeMismatch, message, fix);
                return self.refuse(index, root.position, finding, prefix);
            }
        };
        if let Value::Map(entries) = &root.value {
            for entry in entries {
                if !matches!(&*entry.key, "apiVersion" | "kind" | "metadata" | "items") {
                    let message = format!("unknown field `{}`", entry.key);
                    let fix = "remove it; a list has apiVersion, kind, metadata and items";
                    let (position, reason) = (entry.key_position, Reason::StrictUnknownField);
                    let finding = document::error(position, &entry.key, reason, message, fix);
                    self.refuse(index, root.position, finding, prefix);
                }
            }
        }
        for (at, item) in items.iter().enumerate() {
            let own_prefix = format!("items[{at}]");
            // A fault of the text belongs to the item that it stands in.
            let own_faults: Vec<_> = faults
                .iter()
                .filter_map(|fault| {
                    let rest = fault.field.strip_prefix(&own_prefix)?;
                    let mut own = fault.clone();
                    own.field = rest.strip_prefix('.').unwrap_or(rest).to_owned();
                    Some(own)
                })
                .collect();
            let prefix = document::prefixed(prefix, &own_prefix);
            match kind {
                Some(_) => self.one(index, item, &own_faults, kind, &prefix),
                None => self.any(index, item, &own_faults, &prefix),
            }
        }
        let stray = |fault: &&yaml::Fault| !fault.field.starts_with("items[");
        for fault in faults.iter().filter(stray) {
            self.refuse(index, root.position, document::fault(fault), prefix);
        }
    }

    /// One object; `kind` is what a typed list says about its items.
    fn one(&mut self, index: usize, root: &Node, faults: &[yaml::Fault], kind: Option<Kind>, prefix: &str) {
        let known = match kinds::identify(root, kind) {
            Ok(known) => known,
            Err(finding) => return self.refuse(index, root.position, finding, prefix),
        };
        match known {
            Known::Ours(kind) => {
                let answer = document::in_file(kind, root, faults, &self.namespace);
                self.answer(index, root, answer, prefix);
            }
            Known::NotYet(name) => {
                self.refuse(index, root.position, kinds::not_yet(root, &name), prefix);
            }
            Known::ClusterOnly(name) => {
                let mut finding = kinds::cluster_only(root, &name);
                finding.field = document::prefixed(prefix, &finding.field);
                self.problem(index, None, finding);
                self.add(index, root.position, Verdict::Ignored);
            }
        }
    }

    fn answer(&mut self, index: usize, root: &Node, answer: document::Answer, prefix: &str) {
        let document::Answer { key, mut object, findings } = answer;
        for mut finding in findings {
            finding.field = document::prefixed(prefix, &finding.field);
            self.problem(index, key.clone(), finding);
        }
        if let Some(known) = &object
            && let Some(first) = self.seen.get(&known.key())
        {
            let message = format!("{} is declared already, at {first}", known.key());
            let field = document::prefixed(prefix, "metadata.name");
            let position = document::name_position(root);
            let fix = "rename or remove one of the two";
            let finding = document::error(position, &field, Reason::FieldValueDuplicate, message, fix);
            self.problem(index, key.clone(), finding);
            object = None;
        }
        if let Some(key) = &key {
            self.seen.entry(key.clone()).or_insert(root.position);
        }
        let verdict = match object {
            Some(object) => Verdict::Accepted(object),
            None => Verdict::Refused { key },
        };
        self.add(index, root.position, verdict);
    }
}

fn to_problem(file: &Path, document: usize, object: Option<ObjectKey>, finding: Finding) -> Problem {
    Problem {
        severity: finding.severity,
        file: file.to_owned(),
        position: finding.position,
        document,
        object,
        field: finding.field,
        reason: finding.reason,
        message: finding.message,
        fix: finding.fix,
    }
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
///
/// A missing `kind` or `apiVersion` is filled in from the request, `generateName` makes the
/// name `<generated>`, and a pod gets the status that the server gives it.
#[must_use]
pub fn parse_document_as(kind: Kind, namespace: &str, file: &Path, bytes: &[u8]) -> ApiAnswer {
    let answer = match yaml::read(bytes, true) {
        Ok(documents) => document::as_request(kind, namespace, documents.into_iter().next()),
        Err(broken) => document::Answer {
            key: None,
            object: None,
            findings: vec![document::error(broken.position, "", Reason::YAMLSyntax, broken.message, broken.fix)],
        },
    };
    let mut problems: Vec<Problem> =
        answer.findings.into_iter().map(|finding| to_problem(file, 0, answer.key.clone(), finding)).collect();
    problems.sort_by_key(|problem| problem.position);
    ApiAnswer { object: answer.object, problems }
}
