//! What a manifest can say here: one table that both enforces it and prints it.
//!
//! The rule: a field whose absence would change what a container does or may do is an error
//! until it is supported; one that only steers a cluster is a warning; nothing is dropped
//! silently. Each row of [`table::ROWS`] says where a field stands, which of its values it is
//! about, and what becomes of it; [`check`] walks the manifest by these rows, and
//! [`support_table`] prints them, so the two cannot disagree.

mod table;
mod walk;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::findings::Findings;
use crate::kinds;
use crate::object::Kind;
use crate::problem::{Reason, Severity};
use crate::yaml::Node;

use table::{ROWS, Row};

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
    let kind =
        |subject: &str, support, note: &str| SupportRow { subject: subject.to_owned(), support, note: note.to_owned() };
    let mut rows = Vec::new();
    for ours in Kind::ALL {
        rows.push(kind(ours.as_str(), Support::Supported, ""));
    }
    rows.push(kind("List", Support::Supported, "also PodList, ConfigMapList, SecretList"));
    for (name, instead) in kinds::NOT_YET {
        rows.push(kind(name, Support::Error, &format!("not supported by this version; {instead}")));
    }
    for name in kinds::CLUSTER_ONLY {
        rows.push(kind(name, Support::Warning, "only a cluster knows it"));
    }
    rows.extend(ROWS.iter().map(|row| SupportRow { subject: row.subject(), support: row.support, note: row.note() }));
    rows
}

/// Finds what a manifest says that this version does not do.
pub(crate) fn check(kind: Kind, root: &Node, found: &mut Findings<'_>) {
    // What is no value of a field at all is not also one that is missing here.
    let unknown: BTreeSet<String> = found
        .list
        .iter()
        .filter(|finding| finding.reason == Reason::FieldValueNotSupported)
        .map(|finding| finding.field.clone())
        .collect();
    for row in ROWS {
        if row.support != Support::Supported && row.applies_to(kind) {
            walk::each(root, row.path, &mut |node, path| {
                if row.when.holds(node, path) && (unknown.is_empty() || !unknown.contains(&path.to_string())) {
                    report(row, path, found);
                }
            });
        }
    }
}

fn report(row: &Row, path: &crate::path::Path<'_>, found: &mut Findings<'_>) {
    let (severity, reason, message) = match row.support {
        Support::Error => {
            (Severity::Error, Reason::UnsupportedHere, format!("{} is not supported by this version", row.what(path)))
        }
        Support::Warning | Support::Supported => {
            (Severity::Warning, Reason::ClusterOnly, format!("{} has no effect here", row.what(path)))
        }
    };
    found.own(path, severity, reason, message, row.hint);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, PodSecurityContext, PodSpec, SecurityContext, Volume};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde::Deserialize;
    use serde::de::Visitor;

    use super::*;

    #[test]
    fn the_printed_table_names_every_row_once() {
        let table = support_table();
        let mut subjects: Vec<_> = table.iter().map(|row| (row.subject.clone(), row.note.clone())).collect();
        subjects.sort();
        let all = subjects.len();
        subjects.dedup();
        assert_eq!(subjects.len(), all, "a row is there twice");
        assert!(table.iter().any(|row| row.subject == "Pod.spec.containers[].image"));
    }

    /// Asks a generated type for its fields, and reads nothing.
    struct Fields<'a>(&'a mut Vec<&'static str>);

    impl<'de> serde::Deserializer<'de> for Fields<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(serde::de::Error::custom("only the fields are of interest"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            self.0.extend(fields);
            self.deserialize_any(visitor)
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
            option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
            ignored_any
        }
    }

    fn fields<T: for<'de> Deserialize<'de>>() -> Vec<&'static str> {
        let mut fields = Vec::new();
        let _ = T::deserialize(Fields(&mut fields));
        assert!(!fields.is_empty());
        fields
    }

    #[test]
    fn every_field_of_the_generated_types_has_a_row() {
        let decided: Vec<String> = support_table().into_iter().map(|row| row.subject).collect();
        // Newer than the rules here: unknown fields, see the decoder.
        let newer = ["evictionResponders"];
        for (prefix, fields) in [
            ("metadata", fields::<ObjectMeta>()),
            ("Pod.spec", fields::<PodSpec>()),
            ("Pod.spec.securityContext", fields::<PodSecurityContext>()),
            ("Pod.spec.containers[]", fields::<Container>()),
            ("Pod.spec.containers[].securityContext", fields::<SecurityContext>()),
            ("Pod.spec.volumes[]", fields::<Volume>()),
        ] {
            for field in fields.into_iter().filter(|field| !newer.contains(field)) {
                let subject = format!("{prefix}.{field}");
                let known = decided.iter().any(|row| {
                    row.strip_prefix(&subject).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
                });
                assert!(known, "{subject} is in no row of the support table");
            }
        }
    }
}
