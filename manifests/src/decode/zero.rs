//! Values that say nothing: what Go leaves out when it prints an object.
//!
//! A Go field that is no pointer cannot tell "not given" from its zero value; the API server
//! then behaves as if it was not given. Fields that are pointers keep even an empty value.
//! Source: the `omitempty` tags and pointer types of Kubernetes `core/v1/types.go`.

use crate::yaml::{Entry, Value};

/// Strings behind pointers: an empty text in them is a value.
const POINTER_TEXTS: &[(&str, &[&str])] = &[
    ("Container", &["restartPolicy"]),
    ("EphemeralContainer", &["restartPolicy"]),
    ("PodSpec", &["hostnameOverride", "runtimeClassName", "preemptionPolicy"]),
    ("SecurityContext", &["procMount"]),
    ("PodSecurityContext", &["fsGroupChangePolicy", "supplementalGroupsPolicy", "seLinuxChangePolicy"]),
    ("SeccompProfile", &["localhostProfile"]),
    ("AppArmorProfile", &["localhostProfile"]),
    ("VolumeMount", &["mountPropagation", "recursiveReadOnly"]),
    ("HostPathVolumeSource", &["type"]),
    ("ISCSIVolumeSource", &["initiatorName"]),
    ("AzureDiskVolumeSource", &["cachingMode", "fsType", "kind"]),
    ("CSIVolumeSource", &["fsType"]),
    ("PersistentVolumeClaimSpec", &["storageClassName", "volumeMode", "volumeAttributesClassName"]),
    ("TypedLocalObjectReference", &["apiGroup"]),
    ("TypedObjectReference", &["apiGroup", "namespace"]),
    ("PodDNSConfigOption", &["value"]),
    ("PodResourceClaim", &["resourceClaimName", "resourceClaimTemplateName"]),
    ("ClusterTrustBundleProjection", &["name", "signerName"]),
    ("GRPCAction", &["service"]),
    ("Lifecycle", &["stopSignal"]),
    ("TopologySpreadConstraint", &["nodeAffinityPolicy", "nodeTaintsPolicy"]),
    ("PodSchedulingGroup", &["podGroupName"]),
    ("WindowsSecurityContextOptions", &["gmsaCredentialSpecName", "gmsaCredentialSpec", "runAsUserName"]),
];

/// Integers that are no pointers: a zero in them is no value.
const PLAIN_NUMBERS: &[(&str, &[&str])] = &[
    ("ContainerPort", &["hostPort"]),
    ("Probe", &["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]),
    ("AWSElasticBlockStoreVolumeSource", &["partition"]),
    ("GCEPersistentDiskVolumeSource", &["partition"]),
    ("ObjectMeta", &["generation"]),
    ("PodStatus", &["observedGeneration"]),
];

/// Booleans that are no pointers: `false` in them is no value.
const PLAIN_BOOLEANS: &[(&str, &[&str])] = &[
    ("PodSpec", &["hostNetwork", "hostPID", "hostIPC"]),
    ("Container", &["stdin", "stdinOnce", "tty"]),
    ("EphemeralContainer", &["stdin", "stdinOnce", "tty"]),
    ("VolumeMount", &["readOnly"]),
    ("ISCSIVolumeSource", &["readOnly", "chapAuthDiscovery", "chapAuthSession"]),
    ("ScaleIOVolumeSource", &["readOnly", "sslEnabled"]),
    ("AWSElasticBlockStoreVolumeSource", &["readOnly"]),
    ("GCEPersistentDiskVolumeSource", &["readOnly"]),
    ("NFSVolumeSource", &["readOnly"]),
    ("GlusterfsVolumeSource", &["readOnly"]),
    ("PersistentVolumeClaimVolumeSource", &["readOnly"]),
    ("RBDVolumeSource", &["readOnly"]),
    ("CinderVolumeSource", &["readOnly"]),
    ("CephFSVolumeSource", &["readOnly"]),
    ("QuobyteVolumeSource", &["readOnly"]),
    ("FCVolumeSource", &["readOnly"]),
    ("FlexVolumeSource", &["readOnly"]),
    ("AzureFileVolumeSource", &["readOnly"]),
    ("PortworxVolumeSource", &["readOnly"]),
    ("StorageOSVolumeSource", &["readOnly"]),
];

/// Fields that hold the user's own keys; the other mappings are objects, and `{}` is one.
const MAPS: &[&str] = &[
    "labels",
    "annotations",
    "nodeSelector",
    "data",
    "stringData",
    "binaryData",
    "limits",
    "requests",
    "overhead",
    "matchLabels",
    "options",
    "volumeAttributes",
    "userAnnotations",
];

fn has(table: &[(&str, &[&str])], owner: &str, field: &str) -> bool {
    table.iter().any(|(name, fields)| *name == owner && fields.contains(&field))
}

/// Whether the value of a field says no more than its absence.
pub(super) fn is_left_out(owner: &str, entry: &Entry) -> bool {
    let field = &*entry.key;
    match &entry.node.value {
        Value::Null => true,
        Value::Text(text) => text.is_empty() && !has(POINTER_TEXTS, owner, field),
        Value::Integer(0) => has(PLAIN_NUMBERS, owner, field),
        Value::Bool(false) => has(PLAIN_BOOLEANS, owner, field),
        Value::List(items) => items.is_empty(),
        Value::Map(entries) => entries.is_empty() && MAPS.contains(&field),
        _ => false,
    }
}
