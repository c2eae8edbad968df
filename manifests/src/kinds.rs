//! Kinds: which of them run here, which will, and which only a cluster knows.

use crate::findings::Finding;
use crate::object::Kind;
use crate::path::Path;
use crate::problem::{Position, Reason, Severity};
use crate::yaml::{Node, RETYPE, Value, about_blank, false_blank};

/// What is known about a document's kind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It runs, or is used by what runs.
    Ours(Kind),
    /// It makes containers run, or decides what they may do, and this version does not.
    NotYet(String),
    /// Only a cluster has a use for it.
    ClusterOnly(String),
}

/// Kinds that are not supported by this version.
pub(crate) const NOT_YET: &[(&str, &str)] = &[
    ("Deployment", "declare its pods one by one"),
    ("DaemonSet", "declare its pod"),
    ("StatefulSet", "declare its pods one by one"),
    ("ReplicaSet", "declare its pods one by one"),
    ("ReplicationController", "declare its pods one by one"),
    ("Job", "declare a pod with restartPolicy OnFailure or Never"),
    ("CronJob", "let a timer of the machine write the pod's manifest"),
    ("PersistentVolumeClaim", "use a hostPath volume"),
    ("NetworkPolicy", "filter the pod's traffic on the machine itself"),
];

/// Kinds that only a cluster has a use for.
pub(crate) const CLUSTER_ONLY: &[&str] = &[
    "APIService",
    "CSIDriver",
    "CSINode",
    "CSIStorageCapacity",
    "CertificateSigningRequest",
    "ClusterRole",
    "ClusterRoleBinding",
    "ComponentStatus",
    "ControllerRevision",
    "CustomResourceDefinition",
    "DeviceClass",
    "EndpointSlice",
    "Endpoints",
    "Event",
    "FlowSchema",
    "Gateway",
    "GatewayClass",
    "GRPCRoute",
    "HTTPRoute",
    "HorizontalPodAutoscaler",
    "IPAddress",
    "Ingress",
    "IngressClass",
    "Lease",
    "LimitRange",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "Namespace",
    "Node",
    "PersistentVolume",
    "PodDisruptionBudget",
    "PodSecurityPolicy",
    "PodTemplate",
    "PriorityClass",
    "PriorityLevelConfiguration",
    "ReferenceGrant",
    "ResourceClaim",
    "ResourceClaimTemplate",
    "ResourceQuota",
    "ResourceSlice",
    "Role",
    "RoleBinding",
    "RuntimeClass",
    "Service",
    "ServiceAccount",
    "ServiceCIDR",
    "StorageClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
    "VolumeAttachment",
    "VolumeAttributesClass",
];

/// Whether a kind is a list, and of what when it says so.
#[expect(clippy::option_option, reason = "a list of anything is not no list")]
pub(crate) fn list_of(kind: &str) -> Option<Option<Kind>> {
    match kind {
        "List" => Some(None),
        "PodList" => Some(Some(Kind::Pod)),
        "ConfigMapList" => Some(Some(Kind::ConfigMap)),
        "SecretList" => Some(Some(Kind::Secret)),
        _ => None,
    }
}

/// Whether a list is of the only version that there is of lists.
pub(crate) fn check_list(root: &Node, kind: &str) -> Result<(), Finding> {
    let wrong = |field, position, message| finding(position, field, Reason::KindMismatch, message, VERSION);
    match top(root, "apiVersion")? {
        Some("v1") => Ok(()),
        Some(other) => {
            let position = value_position(root, "apiVersion");
            Err(wrong("kind", position, format!("there is no {kind} in apiVersion {other}")))
        }
        None => Err(wrong("apiVersion", root.position, "a manifest needs `apiVersion`".to_owned())),
    }
}

fn is_kubernetes_group(api_version: &str) -> bool {
    match api_version.split_once('/') {
        None => true,
        Some((group, _)) => {
            matches!(group, "apps" | "batch" | "autoscaling" | "policy" | "extensions") || group.ends_with(".k8s.io")
        }
    }
}

/// How a manifest begins.
pub(crate) const BEGINNING: &str = "for a pod: `apiVersion: v1` and `kind: Pod`";
const VERSION: &str = "use `apiVersion: v1`";

fn finding(position: Position, field: &str, reason: Reason, message: String, fix: impl Into<String>) -> Finding {
    Finding { severity: Severity::Error, position, field: field.to_owned(), reason, message, fix: fix.into() }
}

/// A text field at the top, missing or empty texts as `None`.
fn top<'n>(root: &'n Node, field: &str) -> Result<Option<&'n str>, Finding> {
    match root.get(field) {
        None => Ok(None),
        Some(node) => match &node.value {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(&**text).filter(|text| !text.is_empty())),
            _ => {
                let message = format!("expected a string, found {}", node.type_name());
                Err(finding(node.position, field, Reason::TypeMismatch, message, BEGINNING))
            }
        },
    }
}

fn value_position(root: &Node, field: &str) -> Position {
    Path::ROOT.field(field).value_position(root)
}

/// Tells the kind of a document; in a typed list an item need not say it.
pub(crate) fn identify(root: &Node, listed: Option<Kind>) -> Result<Known, Finding> {
    if !matches!(root.value, Value::Map(_)) {
        let message = format!("expected an object, found {}", root.type_name());
        return Err(finding(root.position, "", Reason::TypeMismatch, message, BEGINNING));
    }
    let api_version = top(root, "apiVersion")?;
    let kind = top(root, "kind")?;
    let (Some(kind), Some(api_version)) = (kind.or(listed.map(Kind::as_str)), api_version.or(listed.map(|_| "v1")))
    else {
        if let Value::Map(entries) = &root.value
            && let Some((entry, blank)) = entries.iter().find_map(|it| Some((it, false_blank(&it.key)?)))
        {
            let (position, reason) = (entry.key_position, Reason::StrictUnknownField);
            return Err(finding(position, &entry.key, reason, about_blank(blank), RETYPE));
        }
        let field = if kind.is_none() { "kind" } else { "apiVersion" };
        let message = format!("a manifest needs `{field}`");
        return Err(finding(root.position, field, Reason::KindMismatch, message, BEGINNING));
    };
    if let Some(listed) = listed
        && kind != listed.as_str()
    {
        let message = format!("expected {listed}, as the list says, found {kind}");
        let position = value_position(root, "kind");
        let fix = "remove it, or make the list a `kind: List`, which takes any";
        return Err(finding(position, "kind", Reason::KindMismatch, message, fix));
    }
    if let Ok(ours) = kind.parse::<Kind>() {
        return match api_version {
            "v1" => Ok(Known::Ours(ours)),
            other => {
                let position = value_position(root, "apiVersion");
                let message = format!("there is no {kind} in apiVersion {other}");
                Err(finding(position, "kind", Reason::KindMismatch, message, VERSION))
            }
        };
    }
    if is_kubernetes_group(api_version) {
        if NOT_YET.iter().any(|(name, _)| *name == kind) {
            return Ok(Known::NotYet(kind.to_owned()));
        }
        if CLUSTER_ONLY.contains(&kind) {
            return Ok(Known::ClusterOnly(kind.to_owned()));
        }
    }
    let position = value_position(root, "kind");
    let message = format!("unknown kind {kind} in apiVersion {api_version}");
    let names = Kind::ALL
        .into_iter()
        .map(Kind::as_str)
        .chain(NOT_YET.iter().map(|(name, _)| *name))
        .chain(CLUSTER_ONLY.iter().copied());
    let fix = match crate::near::nearest(kind, names) {
        Some(near) if near != kind => format!("did you mean `{near}`?"),
        _ => "remove the document, or keep it where a cluster reads it".to_owned(),
    };
    Err(finding(position, "kind", Reason::KindMismatch, message, fix))
}

/// Whether a request's body is of the kind that its address names.
pub(crate) fn must_be(kind: Kind, root: &Node) -> Result<(), Finding> {
    let said_version = top(root, "apiVersion")?;
    let said_kind = top(root, "kind")?;
    if said_kind == Some("List") {
        let position = value_position(root, "kind");
        let message = "a list cannot be created as one object".to_owned();
        return Err(finding(position, "", Reason::BadRequest, message, "send its items one by one"));
    }
    let kind_agrees = said_kind.is_none_or(|said| said == kind.as_str());
    if kind_agrees && said_version.is_none_or(|said| said == "v1") {
        return Ok(());
    }
    let field = if kind_agrees { "apiVersion" } else { "kind" };
    let position = value_position(root, field);
    let message = format!("expected v1 {kind}");
    let fix = format!("use `apiVersion: v1` and `kind: {kind}`");
    Err(finding(position, "kind", Reason::KindMismatch, message, fix))
}

/// The answer to a kind that is not supported by this version.
pub(crate) fn not_yet(root: &Node, kind: &str) -> Finding {
    let position = value_position(root, "kind");
    let message = format!("{kind} is not supported by this version");
    let instead = NOT_YET.iter().find(|(name, _)| *name == kind).map_or("declare a pod", |(_, instead)| *instead);
    finding(position, "kind", Reason::UnsupportedHere, message, instead)
}

/// The answer to a kind that only a cluster has a use for.
pub(crate) fn cluster_only(root: &Node, kind: &str) -> Finding {
    Finding {
        severity: Severity::Warning,
        ..finding(
            value_position(root, "kind"),
            "kind",
            Reason::ClusterOnly,
            format!("{kind} has no effect here: only a cluster knows it"),
            instead(kind),
        )
    }
}

/// What does here what a kind does in a cluster.
fn instead(kind: &str) -> &'static str {
    match kind {
        "Service" | "Endpoints" | "EndpointSlice" => "publish a port of the pod by `hostPort`",
        "Ingress" | "IngressClass" | "Gateway" | "GatewayClass" | "HTTPRoute" | "GRPCRoute" => {
            "run a proxy as a pod that publishes its port by `hostPort`"
        }
        "PersistentVolume" | "StorageClass" => "use a hostPath volume",
        "Namespace" => "nothing to do: a namespace need not be declared",
        "LimitRange" | "ResourceQuota" => "set the resources of the containers",
        "PodTemplate" => "declare a pod",
        _ => "remove it, or keep it for a cluster",
    }
}
