//! Strict decoding: a spanned tree to the Kubernetes types, with every fault at once.
//!
//! The generated types tell a deserializer their fields, so unknown fields are found where
//! they stand. A fault never ends the decoding: it is noted, a default takes the value's
//! place, and the next field is read. Values that Go would leave out when it prints the object
//! (`omitempty`) are left out here too ([`zero`]), so that what was written and what the API
//! server answers compare equal.

mod read;
mod zero;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use serde::de::DeserializeOwned;

use crate::findings::{Finding, has_room, near_or, push};
use crate::path::Path;
use crate::problem::{Reason, Severity};
use crate::yaml::{Entry, Node, RETYPE, UNFILLED, Value, about_blank, false_blank, has_template};

/// What the parts of one decoding share.
#[derive(Debug, Default)]
struct Shared {
    faults: RefCell<Vec<Finding>>,
    /// Leave out what says nothing.
    lean: bool,
    /// Fields that are read as if they were not given.
    left_out: BTreeSet<String>,
    /// Something was read that says nothing.
    saw_zero: Cell<bool>,
}

impl Shared {
    fn leaves_out(&self, path: &Path<'_>) -> bool {
        !self.left_out.is_empty() && self.left_out.contains(&path.to_string())
    }

    /// Whether another fault is kept.
    fn keeps(&self) -> bool {
        has_room(&self.faults.borrow(), Severity::Error)
    }

    fn fault(&self, node: &Node, path: &Path<'_>, reason: Reason, message: String, fix: impl Into<String>) {
        if !self.keeps() {
            return;
        }
        push(
            &mut self.faults.borrow_mut(),
            Finding {
                severity: Severity::Error,
                position: node.position,
                field: path.to_string(),
                reason,
                message,
                fix: fix.into(),
            },
        );
    }

    fn mismatch(&self, node: &Node, path: &Path<'_>, expected: &str) {
        let shown = match &node.value {
            Value::Bool(value) => format!(" ({value})"),
            Value::Integer(value) => format!(" ({value})"),
            Value::Unsigned(value) => format!(" ({value})"),
            Value::Huge(value) => format!(" ({value})"),
            Value::Float(value) => format!(" ({value})"),
            Value::Text(text) if text.len() <= 40 => format!(" ({text:?})"),
            _ => String::new(),
        };
        let message = format!("expected {expected}, found {}{shown}", node.type_name());
        self.fault(node, path, Reason::TypeMismatch, message, of_type(expected, &node.value));
    }

    fn unknown_field(&self, entry: &Entry, owner: &str, fields: &[&'static str], path: &Path<'_>) {
        if !self.keeps() {
            return;
        }
        let fields = || fields.iter().copied().filter(|field| !read::is_newer(owner, field));
        let (message, fix) = match (false_blank(&entry.key), misplaced(owner, &entry.key)) {
            (Some(blank), _) => (about_blank(blank), RETYPE.to_owned()),
            (None, Some(hint)) => (unknown(&entry.key), hint.to_owned()),
            (None, None) => {
                let fix = near_or(&entry.key, fields(), || remove(owner, &fields().collect::<Vec<_>>()));
                (unknown(&entry.key), fix)
            }
        };
        push(
            &mut self.faults.borrow_mut(),
            Finding {
                severity: Severity::Error,
                position: entry.key_position,
                field: path.field(&entry.key).to_string(),
                reason: Reason::StrictUnknownField,
                message,
                fix,
            },
        );
    }
}

fn unknown(key: &str) -> String {
    format!("unknown field `{key}`")
}

/// How to make a value one of the expected type.
fn of_type(expected: &str, value: &Value) -> &'static str {
    match (expected, value) {
        (_, Value::Text(text)) if has_template(text) => UNFILLED,
        ("a string", Value::Bool(_)) => "put it in quotes; y, yes, on, n, no, off are booleans too",
        ("a string", Value::List(_)) => "write one text, without `- ` or brackets",
        ("a string", Value::Map(_)) => "write one text; one that begins with `{` or has `: ` in it needs quotes",
        ("a string", _) => "put it in quotes",
        ("a boolean", Value::Text(text)) if matches!(&**text, "true" | "false") => "remove the quotes",
        ("a boolean", _) => "write `true` or `false`",
        ("a list", Value::Map(_)) => "begin each item with `- `",
        ("a list", _) => "write it as a list: each item on a line of its own, after `- `",
        ("a mapping", Value::List(_)) => "remove the `- `: write `key: value` on lines of their own",
        ("a mapping", _) => "write `key: value` below it, with a space after each colon",
        ("an integer or a string", _) => "write a number, or a name",
        (_, Value::Text(text)) if text.parse::<i64>().is_ok() => "remove the quotes",
        ("a 32-bit integer", Value::Integer(_) | Value::Unsigned(_) | Value::Huge(_)) => {
            "write a number from -2147483648 to 2147483647"
        }
        (_, Value::Integer(_) | Value::Unsigned(_) | Value::Huge(_)) => "write a number of at most 18 digits",
        (_, Value::Float(_)) => "write a whole number",
        _ => "write a whole number, without quotes",
    }
}

/// What to do with a field that nobody knows, and what may stand in its place.
fn remove(owner: &str, fields: &[&str]) -> String {
    // More than these are read faster in the API's reference.
    const FEW: usize = 12;
    if fields.len() <= FEW {
        format!("remove it; the fields of {owner} are {}", fields.join(", "))
    } else {
        format!("remove it; the fields of {owner} are in the Kubernetes API reference")
    }
}

/// Fields that people look for in the wrong place.
fn misplaced(owner: &str, key: &str) -> Option<&'static str> {
    Some(match (owner, key) {
        ("Container", "limits" | "requests") => "it belongs below `resources`",
        ("Container", "healthcheck" | "healthCheck") => "use `livenessProbe` or `readinessProbe`",
        ("Container", "environment") => "use `env`, a list of `name` and `value`",
        ("Container", "volumes") => "a container has `volumeMounts`; `volumes` belong to the pod's `spec`",
        ("ResourceRequirements", "cpu" | "memory" | "limit" | "request") => "it belongs below `limits` or `requests`",
        (
            "PodSecurityContext",
            "privileged" | "capabilities" | "readOnlyRootFilesystem" | "allowPrivilegeEscalation",
        ) => "it belongs to a container's `securityContext`",
        ("SecurityContext", "fsGroup" | "sysctls" | "supplementalGroups") => {
            "it belongs to the pod's `spec.securityContext`"
        }
        ("Pod", "containers" | "volumes" | "restartPolicy") => "it belongs below `spec`",
        ("SecretVolumeSource", "name") => "a secret volume has `secretName`",
        ("SecretProjection", "secretName") => "a projected secret has `name`",
        ("ConfigMap", "stringData") => "a ConfigMap has `data`",
        ("Probe", "http") => "use `httpGet`",
        ("ObjectMeta", "label") => "use `labels`",
        _ => return None,
    })
}

/// Decodes an object; what is wrong comes with it, and defaults stand where the faults were.
pub(crate) fn decode<T: DeserializeOwned + Default>(root: &Node) -> (T, Vec<Finding>) {
    // Everything is read once for its faults; a value that says nothing may still be wrong.
    let full = Shared::default();
    let object = decode_once(root, &full);
    if !full.saw_zero.get() || !full.faults.borrow().is_empty() {
        return (object, full.faults.into_inner());
    }
    let lean = Shared { lean: true, ..Shared::default() };
    let object = decode_once(root, &lean);
    (object, lean.faults.into_inner())
}

/// Decodes an object as if the fields `wrong` were not given, as far as that can be: an item of a list is a default one,
/// so that those after it keep their numbers.
pub(crate) fn decode_without<T: DeserializeOwned + Default>(root: &Node, wrong: &BTreeSet<String>) -> T {
    // What is wrong was told of before.
    decode_once(root, &Shared { lean: true, left_out: wrong.clone(), ..Shared::default() })
}

fn decode_once<T: DeserializeOwned + Default>(root: &Node, shared: &Shared) -> T {
    let reader = read::Reader { node: root, path: &Path::ROOT, shared };
    T::deserialize(reader).unwrap_or_else(|error| {
        // The reader itself never fails; a visitor of the types might.
        let fix = "compare the document with the Kubernetes API reference of its kind";
        shared.fault(root, &Path::ROOT, Reason::JSONDecode, error.to_string(), fix);
        T::default()
    })
}
