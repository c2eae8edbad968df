//! The vocabulary of intent: parse Kubernetes manifests, default them, validate them, hash them.
//!
//! ```text
//!  bytes --yaml--> spanned tree --decode--> k8s types --defaults--> --validation--> --support--> Object
//!            |                      |                                   |               |
//!            +----------------------+------------- problems, each with file:line:column and field path
//! ```
//!
//! YAML is read as kubectl and the API server read it (YAML 1.1 scalars, strict about
//! duplicate keys and unknown fields), and the rules, the reasons and the field paths are the
//! API server's. What this version does not do is a layer of its own ([`support_table`]), so
//! that "the API server would refuse this" and "portreeve does not do this yet" stay apart.
//!
//! **Invariant:** this crate does no I/O and knows no clock; the same bytes give the same answer.
//!
//! **Invariant:** nothing that a manifest says is dropped silently: it is decoded into the
//! object, or there is a [`Problem`] that names it.

mod decode;
mod defaults;
mod doubts;
mod file;
mod findings;
mod kinds;
mod near;
mod object;
mod path;
mod print;
mod problem;
mod qos;
pub mod quantity;
mod references;
mod support;
mod validation;
mod yaml;

/// A JSON value as YAML that every reader of manifests reads alike.
///
/// Unlike what a YAML 1.2 printer writes, texts such as `y`, `on` or `0o7` are quoted here, so
/// that kubectl, an API server and this crate read texts again.
#[must_use]
pub fn to_yaml(value: &serde_json::Value) -> String {
    print::to_yaml(value)
}

pub use file::{ApiAnswer, Document, ParsedFile, Verdict, parse_document_as, parse_file, parse_file_in, text_of};
pub use object::{Kind, Object, ObjectKey, UnknownKind};
pub use problem::{Position, Problem, Reason, Severity};
pub use qos::{QosClass, qos_class};
pub use references::references;
pub use support::{Support, SupportRow, support_table};
pub use validation::{check_label, check_label_key, check_label_value, check_subdomain};
