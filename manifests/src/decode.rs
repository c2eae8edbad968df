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

use serde::de::DeserializeOwned;

use crate::findings::{Finding, has_room, push};
use crate::path::Path;
use crate::problem::{Reason, Severity};
use crate::yaml::{Entry, Node, Value};

/// What the parts of one decoding share.
#[derive(Debug, Default)]
struct Shared {
    faults: RefCell<Vec<Finding>>,
    /// The last fault was kept, so what is said about it is said about the list's last.
    kept: Cell<bool>,
    /// Leave out what says nothing.
    lean: bool,
    /// Something was read that says nothing.
    saw_zero: Cell<bool>,
}

impl Shared {
    /// Whether another fault is kept.
    fn keeps(&self) -> bool {
        self.kept.set(has_room(&self.faults.borrow(), Severity::Error));
        self.kept.get()
    }

    fn fault(&self, node: &Node, path: &Path<'_>, reason: Reason, message: String) {
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
                fix: None,
            },
        );
    }

    fn fix(&self, fix: String) {
        if let Some(last) = self.faults.borrow_mut().last_mut().filter(|_| self.kept.get()) {
            last.fix = Some(fix);
        }
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
        self.fault(node, path, Reason::TypeMismatch, message);
        match &node.value {
            Value::Bool(_) if expected == "a string" => {
                self.fix("put it in quotes; y, yes, on, n, no, off are booleans too".to_owned());
            }
            Value::Integer(_) | Value::Float(_) if expected == "a string" => {
                self.fix("put it in quotes".to_owned());
            }
            Value::Text(text) if expected.contains("integer") && text.parse::<i64>().is_ok() => {
                self.fix("remove the quotes".to_owned());
            }
            Value::Text(text) if expected == "a boolean" && (&**text == "true" || &**text == "false") => {
                self.fix("remove the quotes".to_owned());
            }
            Value::Map(_) if expected == "a list" => {
                self.fix("begin each item with `- `".to_owned());
            }
            _ => {}
        }
    }

    fn unknown_field(&self, entry: &Entry, owner: &str, fields: &[&'static str], path: &Path<'_>) {
        if !self.keeps() {
            return;
        }
        let field = path.field(&entry.key).to_string();
        push(
            &mut self.faults.borrow_mut(),
            Finding {
                severity: Severity::Error,
                position: entry.key_position,
                field,
                reason: Reason::StrictUnknownField,
                message: format!("unknown field `{}`", entry.key),
                fix: None,
            },
        );
        if let Some(hint) = misplaced(owner, &entry.key) {
            self.fix(hint.to_owned());
        } else if let Some(near) = crate::near::nearest(&entry.key, fields.iter().copied()) {
            self.fix(format!("did you mean `{near}`?"));
        }
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

fn decode_once<T: DeserializeOwned + Default>(root: &Node, shared: &Shared) -> T {
    let reader = read::Reader { node: root, path: &Path::ROOT, shared };
    T::deserialize(reader).unwrap_or_else(|error| {
        // The reader itself never fails; a visitor of the types might.
        shared.fault(root, &Path::ROOT, Reason::JSONDecode, error.to_string());
        T::default()
    })
}
