//! The rows: every field of the kinds that run here, and what becomes of it.

use std::net::Ipv4Addr;

use super::Support::{self, Error, Supported, Warning};
use crate::object::Kind;
use crate::path::Path;
use crate::yaml::{Node, Value};

/// Which values of a field a row is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum When {
    /// Any that says something.
    Given,
    /// `true`.
    True,
    /// None of these.
    Not(&'static [&'static str]),
    /// An entry whose key is so; the row's path ends in `{}` then.
    Key(fn(&str) -> bool),
    /// An entry whose key and value are so; the row's path ends in `{}` then.
    Entry(fn(&str, &Node) -> bool),
    /// Decided by the node itself.
    Node(fn(&Node) -> bool),
}

/// One row.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) kind: Option<Kind>,
    pub(super) path: &'static str,
    pub(super) when: When,
    pub(super) support: Support,
    /// What the condition is, in words, for the printed table.
    condition: &'static str,
    /// What to do instead.
    pub(super) hint: &'static str,
}

impl When {
    pub(super) fn holds(self, node: &Node, path: &Path<'_>) -> bool {
        match self {
            Self::Given => says_something(node),
            Self::True => node.value == Value::Bool(true),
            Self::Not(allowed) => node.text().is_some_and(|text| !text.is_empty() && !allowed.contains(&text)),
            Self::Key(test) => path.last_key().is_some_and(test),
            Self::Entry(test) => path.last_key().is_some_and(|key| test(key, node)),
            Self::Node(test) => test(node),
        }
    }
}

fn says_something(node: &Node) -> bool {
    match &node.value {
        Value::Null => false,
        Value::Text(text) => !text.is_empty(),
        Value::List(items) => !items.is_empty(),
        Value::Bool(_) | Value::Integer(_) | Value::Unsigned(_) | Value::Huge(_) | Value::Float(_) | Value::Map(_) => {
            true
        }
    }
}

impl Row {
    pub(super) fn applies_to(&self, kind: Kind) -> bool {
        self.kind.is_none_or(|own| own == kind)
    }

    pub(super) fn subject(&self) -> String {
        match self.kind {
            Some(kind) => format!("{kind}.{}", self.path),
            None => self.path.to_owned(),
        }
    }

    pub(super) fn note(&self) -> String {
        match (self.condition, self.hint) {
            ("", hint) => hint.to_owned(),
            (condition, "") => condition.to_owned(),
            (condition, hint) => format!("{condition}; {hint}"),
        }
    }

    /// What a message is about: the field's name, with the condition when there is one.
    pub(super) fn what(&self, path: &Path<'_>) -> String {
        let full = path.to_string();
        let mut name = path.last_key().or(full.rsplit('.').next()).unwrap_or_default();
        if name == "type" {
            // A type of what?
            let start = full.rsplit('.').nth(1).map_or(0, |owner| full.len() - owner.len() - ".type".len());
            name = full.get(start..).unwrap_or(name);
        }
        match self.condition {
            condition if condition.is_empty() || condition == name => format!("`{name}`"),
            condition => format!("`{name}` ({condition})"),
        }
    }
}

const fn pod(path: &'static str, when: When, support: Support) -> Row {
    Row { kind: Some(Kind::Pod), path, when, support, condition: "", hint: "" }
}

const fn yes(path: &'static str) -> Row {
    pod(path, When::Given, Supported)
}

const fn no(path: &'static str, hint: &'static str) -> Row {
    Row { hint, ..pod(path, When::Given, Error) }
}

const fn idle(path: &'static str, hint: &'static str) -> Row {
    Row { hint, ..pod(path, When::Given, Warning) }
}

const fn meta(path: &'static str, support: Support, hint: &'static str) -> Row {
    Row { kind: None, hint, ..pod(path, When::Given, support) }
}

impl Row {
    const fn when(self, when: When, condition: &'static str) -> Self {
        Self { when, condition, ..self }
    }

    const fn noted(self, condition: &'static str) -> Self {
        Self { condition, ..self }
    }

    const fn of(self, kind: Kind) -> Self {
        Self { kind: Some(kind), ..self }
    }
}

const SERVER: &str = "remove it: an API server writes this";
const VOLUME: &str = "mount it on the host and use a hostPath volume";
const ELSEWHERE: &str = "a pod that asks for another node does not run here";
const PROFILES: &str = "Localhost profiles lie below /var/lib/kubelet/seccomp, as with a kubelet";
const CONFINED: &str = "use Unconfined, or remove it: seccomp and capabilities confine here";

fn is_no_uuid(node: &Node) -> bool {
    let Some(text) = node.text() else { return false };
    let bytes = text.as_bytes();
    let good = bytes.len() == 36
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    !text.is_empty() && !good
}

fn is_sctp_on_the_host(node: &Node) -> bool {
    let sctp = node.get("protocol").and_then(Node::text) == Some("SCTP");
    let on_host = node.get("hostPort").is_some_and(|port| says_something(port) && port.value != Value::Integer(0));
    sctp && on_host
}

fn is_not_zero(node: &Node) -> bool {
    says_something(node) && node.value != Value::Integer(0)
}

/// Taken for any address, it would open the port to everybody.
fn is_no_ipv4_address(node: &Node) -> bool {
    node.text().is_some_and(|text| !text.is_empty() && text.parse::<Ipv4Addr>().is_err())
}

fn is_bounded_disk(node: &Node) -> bool {
    let memory = node.get("medium").and_then(Node::text) == Some("Memory");
    !memory && node.get("sizeLimit").is_some_and(says_something)
}

fn is_unknown_signal(node: &Node) -> bool {
    const NAMES: [&str; 31] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
        "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
        "USR2", "VTALRM",
    ];
    const MORE: [&str; 4] = ["WINCH", "XCPU", "XFSZ", "RTMAX"];
    let Some(text) = node.text() else { return false };
    let Some(name) = text.strip_prefix("SIG") else {
        return true;
    };
    let real_time = |rest: &str, sign: &str| {
        rest.is_empty()
            || rest
                .strip_prefix(sign)
                .and_then(|count| count.parse::<u8>().ok())
                .is_some_and(|count| (1..=15).contains(&count))
    };
    let known = NAMES.contains(&name)
        || MORE.contains(&name)
        || name.strip_prefix("RTMIN").is_some_and(|rest| real_time(rest, "+"))
        || name.strip_prefix("RTMAX").is_some_and(|rest| real_time(rest, "-"));
    !known
}

fn is_extended(name: &str) -> bool {
    name.contains('/') && name != "portreeve.dev/pids"
}

fn is_huge_pages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn asks_for_apparmor(name: &str, node: &Node) -> bool {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    name.starts_with(PREFIX) && node.text().is_some_and(|text| !matches!(text, "" | "unconfined"))
}

/// Whether a path in a container ends at the container's root: nothing can be mounted in its place.
fn is_root(node: &Node) -> bool {
    let Some(path) = node.text().filter(|path| !path.is_empty()) else { return false };
    let mut depth = 0_usize;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => depth = depth.saturating_sub(1),
            _ => depth += 1,
        }
    }
    depth == 0
}

fn is_relative(node: &Node) -> bool {
    node.text().is_some_and(|path| !path.is_empty() && !path.starts_with('/'))
}

fn has_old_seccomp(name: &str) -> bool {
    name.starts_with("seccomp.security.alpha.kubernetes.io/")
        || name.starts_with("container.seccomp.security.alpha.kubernetes.io/")
}

fn has_tcp_socket(node: &Node) -> bool {
    node.get("tcpSocket").is_some_and(says_something)
}

/// Every row, in the order of the printed table.
#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // Metadata, of every kind.
    meta("metadata.name", Supported, ""),
    meta("metadata.namespace", Supported, "`default` when it is missing"),
    meta("metadata.labels", Supported, ""),
    meta("metadata.annotations", Supported, ""),
    meta("metadata.annotations{}", Error, CONFINED)
        .when(When::Entry(asks_for_apparmor), "AppArmor profiles").of(Kind::Pod),
    meta("metadata.annotations{}", Warning, "use `securityContext.seccompProfile`")
        .when(When::Key(has_old_seccomp), "seccomp profiles; Kubernetes ignores them since 1.27").of(Kind::Pod),
    meta("metadata.uid", Supported, ""),
    meta("metadata.uid", Error, "remove it, and the object gets one")
        .when(When::Node(is_no_uuid), "other than a UUID"),
    meta("metadata.generateName", Warning, "remove it: the name is taken as it is"),
    meta("metadata.finalizers", Warning, "remove it: removing the file removes the object"),
    meta("metadata.ownerReferences", Warning, "remove it: removing the file removes the object"),
    meta("metadata.creationTimestamp", Warning, SERVER),
    meta("metadata.deletionTimestamp", Warning, SERVER),
    meta("metadata.deletionGracePeriodSeconds", Warning, SERVER),
    meta("metadata.generation", Warning, SERVER),
    meta("metadata.managedFields", Warning, SERVER),
    meta("metadata.resourceVersion", Warning, SERVER),
    meta("metadata.selfLink", Warning, SERVER),

    // ConfigMap and Secret.
    yes("data").of(Kind::ConfigMap),
    yes("binaryData").of(Kind::ConfigMap),
    idle("immutable", "remove it: an edit of the file counts").of(Kind::ConfigMap).when(When::True, ""),
    yes("data").of(Kind::Secret),
    yes("stringData").of(Kind::Secret),
    yes("type").of(Kind::Secret),
    idle("immutable", "remove it: an edit of the file counts").of(Kind::Secret).when(When::True, ""),

    // The pod.
    idle("status", SERVER),
    yes("spec.containers"),
    yes("spec.initContainers"),
    no("spec.ephemeralContainers", "use `portreeve exec`"),
    yes("spec.volumes"),
    yes("spec.restartPolicy"),
    yes("spec.terminationGracePeriodSeconds"),
    yes("spec.activeDeadlineSeconds"),
    yes("spec.dnsPolicy").noted("ClusterFirst is the host's resolvers: there is no cluster DNS"),
    yes("spec.dnsConfig"),
    yes("spec.hostAliases"),
    yes("spec.hostNetwork"),
    yes("spec.hostPID"),
    yes("spec.hostIPC"),
    yes("spec.hostUsers"),
    yes("spec.shareProcessNamespace"),
    yes("spec.hostname"),
    no("spec.hostnameOverride", "use `hostname`"),
    no("spec.setHostnameAsFQDN", "use `hostname`").when(When::True, ""),
    idle("spec.subdomain", "remove it, or leave it: there is no cluster DNS"),
    yes("spec.imagePullSecrets"),
    yes("spec.securityContext.runAsUser"),
    yes("spec.securityContext.runAsGroup"),
    yes("spec.securityContext.runAsNonRoot"),
    yes("spec.securityContext.supplementalGroups"),
    yes("spec.securityContext.supplementalGroupsPolicy"),
    yes("spec.securityContext.fsGroup"),
    yes("spec.securityContext.fsGroupChangePolicy"),
    yes("spec.securityContext.sysctls"),
    yes("spec.securityContext.seccompProfile").noted(PROFILES),
    no("spec.securityContext.seLinuxOptions", "remove it; seccomp and capabilities confine"),
    idle("spec.securityContext.seLinuxChangePolicy", "remove it, or leave it: there are no SELinux labels here"),
    no("spec.securityContext.appArmorProfile.type", CONFINED)
        .when(When::Not(&["Unconfined"]), "other than Unconfined"),
    no("spec.securityContext.windowsOptions", "remove it: only Linux runs here"),
    no("spec.os.name", "remove it: only Linux runs here").when(When::Not(&["linux"]), "other than linux"),
    no("spec.runtimeClassName", "remove it: there is one runtime"),
    no("spec.resources", "set the resources of the containers").noted("of the whole pod"),
    no("spec.resourceClaims", "remove it: devices are not claimed here"),
    idle("spec.serviceAccountName", "remove it, or leave it: no token is mounted, as there is no API server to use it with")
        .when(When::Not(&["default"]), ""),
    idle("spec.serviceAccount", "remove it, or leave it: no token is mounted, as there is no API server to use it with")
        .when(When::Not(&["default"]), ""),
    idle("spec.automountServiceAccountToken", "remove it, or leave it: no token is mounted, as there is no API server to use it with")
        .when(When::True, ""),
    yes("spec.enableServiceLinks").noted("there are no services, and so no links to them"),
    yes("spec.nodeName").noted(ELSEWHERE),
    yes("spec.nodeSelector").noted(ELSEWHERE),
    idle("spec.affinity", "remove it, or leave it: there is one node"),
    idle("spec.tolerations", "remove it, or leave it: there are no taints"),
    idle("spec.topologySpreadConstraints", "remove it, or leave it: there is one node"),
    idle("spec.schedulerName", "remove it, or leave it: there is no scheduler").when(When::Not(&["default-scheduler"]), ""),
    idle("spec.schedulingGates", "remove it: there is no scheduler, and the pod starts at once"),
    idle("spec.schedulingGroup", "remove it, or leave it: there is no scheduler"),
    idle("spec.readinessGates", "remove it: the pod is ready when its containers are"),
    idle("spec.priorityClassName", "remove it, or leave it: no pod is evicted for another"),
    idle("spec.priority", "remove it, or leave it: no pod is evicted for another")
        .when(When::Node(is_not_zero), ""),
    idle("spec.preemptionPolicy", "remove it, or leave it: no pod is evicted for another")
        .when(When::Not(&["PreemptLowerPriority"]), ""),
    idle("spec.overhead", "remove it, or leave it: there is no scheduler"),

    // Containers; init containers follow the same rows.
    yes("spec.containers[].name"),
    yes("spec.containers[].image"),
    yes("spec.containers[].imagePullPolicy"),
    yes("spec.containers[].command"),
    yes("spec.containers[].args"),
    yes("spec.containers[].workingDir"),
    yes("spec.containers[].env[].value"),
    yes("spec.containers[].env[].valueFrom.fieldRef"),
    yes("spec.containers[].env[].valueFrom.resourceFieldRef"),
    yes("spec.containers[].env[].valueFrom.configMapKeyRef"),
    yes("spec.containers[].env[].valueFrom.secretKeyRef"),
    no("spec.containers[].env[].valueFrom.fileKeyRef", "use a ConfigMap"),
    yes("spec.containers[].envFrom"),
    yes("spec.containers[].ports").noted("TCP and UDP; hostPort on IPv4"),
    no("spec.containers[].ports[]", "publish TCP or UDP, or use hostNetwork")
        .when(When::Node(is_sctp_on_the_host), "SCTP on a hostPort"),
    no("spec.containers[].ports[].hostIP", "use an IPv4 address, such as 127.0.0.1")
        .when(When::Node(is_no_ipv4_address), "anything but an IPv4 address"),
    yes("spec.containers[].resources").noted("cpu, memory, and portreeve.dev/pids"),
    no("spec.containers[].resources.limits{}", "remove it; disk use is not limited here")
        .when(When::Key(|name| name == "ephemeral-storage"), "ephemeral-storage"),
    idle("spec.containers[].resources.requests{}", "remove it, or leave it: disk space is not set aside")
        .when(When::Key(|name| name == "ephemeral-storage"), "ephemeral-storage"),
    no("spec.containers[].resources.limits{}", "remove it: huge pages are not handed out here")
        .when(When::Key(is_huge_pages), "huge pages"),
    no("spec.containers[].resources.limits{}", "remove it: devices are not handed out here")
        .when(When::Key(is_extended), "extended resources"),
    no("spec.containers[].resources.claims", "remove it: devices are not claimed here"),
    no("spec.containers[].resizePolicy[].restartPolicy", "use NotRequired: cpu and memory change without a restart")
        .when(When::Not(&["NotRequired"]), "RestartContainer"),
    no("spec.containers[].restartPolicy", "use the pod's restartPolicy").noted("of one container"),
    yes("spec.initContainers[].restartPolicy").noted("Always: a sidecar"),
    no("spec.initContainers[].restartPolicy", "use Always for a sidecar, or remove it")
        .when(When::Not(&["Always"]), "other than Always"),
    no("spec.containers[].restartPolicyRules", "use the pod's restartPolicy"),
    yes("spec.containers[].volumeMounts").noted("with subPath, subPathExpr, mountPropagation, recursiveReadOnly"),
    no("spec.containers[].volumeMounts[].mountPath", "mount it on a directory below: the container's own root is there")
        .when(When::Node(is_root), "the root directory"),
    no("spec.containers[].volumeDevices", "mount a hostPath volume of type BlockDevice"),
    yes("spec.containers[].livenessProbe").noted("exec, httpGet, tcpSocket"),
    yes("spec.containers[].readinessProbe").noted("exec, httpGet, tcpSocket"),
    yes("spec.containers[].startupProbe").noted("exec, httpGet, tcpSocket"),
    no("spec.containers[].livenessProbe.grpc", "use tcpSocket, or exec with a gRPC client"),
    no("spec.containers[].readinessProbe.grpc", "use tcpSocket, or exec with a gRPC client"),
    no("spec.containers[].startupProbe.grpc", "use tcpSocket, or exec with a gRPC client"),
    yes("spec.containers[].lifecycle").noted("exec, httpGet, sleep; stopSignal"),
    no("spec.containers[].lifecycle.stopSignal", "use a name such as SIGTERM, SIGUSR1 or SIGRTMIN+3")
        .when(When::Node(is_unknown_signal), "an unknown signal"),
    idle("spec.containers[].lifecycle.postStart", "use exec or httpGet")
        .when(When::Node(has_tcp_socket), "tcpSocket; Kubernetes does nothing with it either"),
    idle("spec.containers[].lifecycle.preStop", "use exec or httpGet")
        .when(When::Node(has_tcp_socket), "tcpSocket; Kubernetes does nothing with it either"),
    yes("spec.containers[].terminationMessagePath"),
    yes("spec.containers[].terminationMessagePolicy"),
    yes("spec.containers[].stdin"),
    yes("spec.containers[].stdinOnce"),
    yes("spec.containers[].tty"),
    yes("spec.containers[].securityContext.privileged"),
    yes("spec.containers[].securityContext.allowPrivilegeEscalation"),
    yes("spec.containers[].securityContext.capabilities"),
    yes("spec.containers[].securityContext.readOnlyRootFilesystem"),
    yes("spec.containers[].securityContext.runAsUser"),
    yes("spec.containers[].securityContext.runAsGroup"),
    yes("spec.containers[].securityContext.runAsNonRoot"),
    yes("spec.containers[].securityContext.procMount"),
    yes("spec.containers[].securityContext.seccompProfile").noted(PROFILES),
    no("spec.containers[].securityContext.seLinuxOptions", "remove it; seccomp and capabilities confine"),
    no("spec.containers[].securityContext.appArmorProfile.type", CONFINED)
        .when(When::Not(&["Unconfined"]), "other than Unconfined"),
    no("spec.containers[].securityContext.windowsOptions", "remove it: only Linux runs here"),

    // Volumes.
    yes("spec.volumes[].name"),
    yes("spec.volumes[].emptyDir").noted("on disk, or medium Memory with sizeLimit"),
    no("spec.volumes[].emptyDir", "use `medium: Memory`, or remove the sizeLimit")
        .when(When::Node(is_bounded_disk), "sizeLimit on disk"),
    no("spec.volumes[].emptyDir.medium", "use Memory, or none").when(When::Not(&["Memory"]), "other than Memory"),
    yes("spec.volumes[].hostPath"),
    no("spec.volumes[].hostPath.path", "begin it with `/`: nothing says where on the host it begins")
        .when(When::Node(is_relative), "a relative path"),
    yes("spec.volumes[].configMap"),
    yes("spec.volumes[].secret"),
    yes("spec.volumes[].downwardAPI"),
    yes("spec.volumes[].projected").noted("configMap, secret, downwardAPI"),
    no("spec.volumes[].projected.sources[].serviceAccountToken", "use a Secret: there is no API server to use a token with"),
    no("spec.volumes[].projected.sources[].clusterTrustBundle", "use a ConfigMap"),
    no("spec.volumes[].projected.sources[].podCertificate", "use a Secret"),
    no("spec.volumes[].persistentVolumeClaim", "use a hostPath volume"),
    no("spec.volumes[].ephemeral", "use an emptyDir or hostPath volume"),
    yes("spec.volumes[].image").noted("read-only, nothing in it is executable"),
    no("spec.volumes[].csi", VOLUME),
    no("spec.volumes[].nfs", VOLUME),
    no("spec.volumes[].iscsi", VOLUME),
    no("spec.volumes[].fc", VOLUME),
    no("spec.volumes[].cephfs", VOLUME),
    no("spec.volumes[].rbd", VOLUME),
    no("spec.volumes[].glusterfs", VOLUME),
    no("spec.volumes[].flexVolume", VOLUME),
    no("spec.volumes[].flocker", VOLUME),
    no("spec.volumes[].quobyte", VOLUME),
    no("spec.volumes[].storageos", VOLUME),
    no("spec.volumes[].scaleIO", VOLUME),
    no("spec.volumes[].portworxVolume", VOLUME),
    no("spec.volumes[].photonPersistentDisk", VOLUME),
    no("spec.volumes[].vsphereVolume", VOLUME),
    no("spec.volumes[].awsElasticBlockStore", VOLUME),
    no("spec.volumes[].azureDisk", VOLUME),
    no("spec.volumes[].azureFile", VOLUME),
    no("spec.volumes[].cinder", VOLUME),
    no("spec.volumes[].gcePersistentDisk", VOLUME),
    no("spec.volumes[].gitRepo", "clone by an init container into an emptyDir"),
];
