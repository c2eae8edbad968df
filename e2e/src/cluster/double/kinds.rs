//! What the double serves, and how each kind differs in its writes.

/// A resource of the API.
#[derive(Debug)]
pub(in crate::cluster) struct Kind {
    pub(in crate::cluster) group: &'static str,
    pub(in crate::cluster) version: &'static str,
    pub(in crate::cluster) plural: &'static str,
    pub(in crate::cluster) kind: &'static str,
    pub(in crate::cluster) namespaced: bool,
    /// Whether an update makes what is not there.
    pub(super) creates_on_update: bool,
    /// Whether an update may leave out the resourceVersion, and then overwrites.
    pub(super) updates_unconditionally: bool,
    /// Whether `status` is written through a path of its own alone.
    pub(super) has_status: bool,
}

impl Kind {
    /// The one that a path names.
    pub(in crate::cluster) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| (kind.group, kind.version, kind.plural) == (group, version, plural))
    }

    /// `plural.group`.
    pub(in crate::cluster) fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// As objects name it.
    pub(in crate::cluster) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

const fn core(plural: &'static str, kind: &'static str, namespaced: bool) -> Kind {
    Kind {
        group: "",
        version: "v1",
        plural,
        kind,
        namespaced,
        creates_on_update: false,
        updates_unconditionally: true,
        has_status: false,
    }
}

const fn admission(plural: &'static str, kind: &'static str) -> Kind {
    Kind { group: "admissionregistration.k8s.io", updates_unconditionally: false, ..core(plural, kind, false) }
}

/// All of them. Events are two resources here; of a complete API server they are one by two names.
pub(super) static KINDS: [Kind; 15] = [
    Kind { has_status: true, ..core("namespaces", "Namespace", false) },
    Kind { has_status: true, ..core("nodes", "Node", false) },
    core("secrets", "Secret", true),
    core("configmaps", "ConfigMap", true),
    core("serviceaccounts", "ServiceAccount", true),
    core("services", "Service", true),
    Kind { creates_on_update: true, ..core("events", "Event", true) },
    Kind { group: "events.k8s.io", creates_on_update: true, ..core("events", "Event", true) },
    Kind {
        group: "coordination.k8s.io",
        creates_on_update: true,
        updates_unconditionally: false,
        ..core("leases", "Lease", true)
    },
    // The API server for custom resources reads these of its core, and holds writes to them.
    admission("validatingadmissionpolicies", "ValidatingAdmissionPolicy"),
    admission("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"),
    admission("validatingwebhookconfigurations", "ValidatingWebhookConfiguration"),
    admission("mutatingwebhookconfigurations", "MutatingWebhookConfiguration"),
    admission("mutatingadmissionpolicies", "MutatingAdmissionPolicy"),
    admission("mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding"),
];
