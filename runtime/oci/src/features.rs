//! What this runtime does, in the words of the specification: runtime-spec, features.md and features-linux.md.

use std::collections::HashMap;

use oci_spec::runtime::{
    Apparmor, Cgroup, Features, IDMap, IntelRdt, LinuxFeature, LinuxNamespaceType, MemoryPolicy, MemoryPolicyFlagType,
    MemoryPolicyModeType, MountExtensions, NetDevices, Seccomp, Selinux,
};

use crate::plan::MOUNT_OPTIONS;
use crate::plan::identity::CAPABILITIES;
use crate::seccomp::{ACTIONS, ARCHITECTURES, FLAGS, OPERATORS, supported_flags};

/// Oldest version of the runtime specification that configurations may follow.
pub const OLDEST_SPECIFICATION: &str = "1.0.0";
/// Newest version of the runtime specification that configurations may follow.
pub const SPECIFICATION: &str = "1.3.0";

/// The hooks that are run.
const HOOKS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// What the names of annotations begin with that change what is done: the properties of a container's unit, where its
/// cgroup is made by systemd.
const UNSAFE_ANNOTATIONS: [&str; 1] = ["org.systemd.property."];

const NAMESPACES: [LinuxNamespaceType; 8] = [
    LinuxNamespaceType::Cgroup,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Time,
    LinuxNamespaceType::User,
    LinuxNamespaceType::Uts,
];

const MEMORY_POLICIES: [MemoryPolicyModeType; 7] = [
    MemoryPolicyModeType::MpolBind,
    MemoryPolicyModeType::MpolDefault,
    MemoryPolicyModeType::MpolInterleave,
    MemoryPolicyModeType::MpolLocal,
    MemoryPolicyModeType::MpolPreferred,
    MemoryPolicyModeType::MpolPreferredMany,
    MemoryPolicyModeType::MpolWeightedInterleave,
];

const MEMORY_POLICY_FLAGS: [MemoryPolicyFlagType; 3] = [
    MemoryPolicyFlagType::MpolFNumaBalancing,
    MemoryPolicyFlagType::MpolFRelativeNodes,
    MemoryPolicyFlagType::MpolFStaticNodes,
];

/// What this runtime carries out, whether or not the machine has what it takes; the machine is asked for the flags of
/// seccomp filters alone, of which the specification wants to know both.
///
/// `annotations` are about the runtime. systemd's cgroups are the work of its command line, which alone speaks with systemd.
#[must_use]
pub fn features(annotations: HashMap<String, String>) -> Features {
    let mut features = Features::default();
    features
        .set_oci_version_min(OLDEST_SPECIFICATION.to_owned())
        .set_oci_version_max(SPECIFICATION.to_owned())
        .set_hooks(Some(names(&HOOKS)))
        .set_mount_options(Some(names(&MOUNT_OPTIONS)))
        .set_linux(Some(linux()))
        .set_annotations(Some(annotations))
        .set_potentially_unsafe_config_annotations(Some(names(&UNSAFE_ANNOTATIONS)));
    features
}

fn linux() -> LinuxFeature {
    let mut linux = LinuxFeature::default();
    linux
        .set_namespaces(Some(NAMESPACES.to_vec()))
        .set_capabilities(Some(CAPABILITIES.iter().map(|one| format!("CAP_{one}")).collect()))
        .set_cgroup(Some(cgroup()))
        .set_seccomp(Some(seccomp()))
        .set_apparmor(Some(enabled(Apparmor::default(), Apparmor::set_enabled, true)))
        .set_selinux(Some(enabled(Selinux::default(), Selinux::set_enabled, true)))
        .set_intel_rdt(Some(intel_rdt()))
        .set_memory_policy(Some(memory_policy()))
        .set_mount_extensions(Some(mount_extensions()))
        .set_net_devices(Some(enabled(NetDevices::default(), NetDevices::set_enabled, true)));
    linux
}

fn enabled<T>(mut feature: T, set: impl FnOnce(&mut T, Option<bool>) -> &mut T, on: bool) -> T {
    set(&mut feature, Some(on));
    feature
}

fn cgroup() -> Cgroup {
    let mut cgroup = Cgroup::default();
    cgroup
        .set_v1(Some(true))
        .set_v2(Some(true))
        .set_systemd(Some(true))
        .set_systemd_user(Some(false))
        .set_rdma(Some(true));
    cgroup
}

fn seccomp() -> Seccomp {
    let mut seccomp = Seccomp::default();
    seccomp
        .set_enabled(Some(true))
        .set_actions(Some(ACTIONS.to_vec()))
        .set_operators(Some(names(&OPERATORS)))
        .set_archs(Some(ARCHITECTURES.to_vec()))
        .set_known_flags(Some(names(&FLAGS)))
        .set_supported_flags(Some(names(&supported_flags())));
    seccomp
}

fn memory_policy() -> MemoryPolicy {
    let mut policy = MemoryPolicy::default();
    policy.set_modes(Some(names(&MEMORY_POLICIES))).set_flags(Some(names(&MEMORY_POLICY_FLAGS)));
    policy
}

fn intel_rdt() -> IntelRdt {
    let mut rdt = IntelRdt::default();
    rdt.set_enabled(Some(true)).set_schemata(Some(true)).set_monitoring(Some(true));
    rdt
}

fn mount_extensions() -> MountExtensions {
    let mut extensions = MountExtensions::default();
    extensions.set_idmap(Some(enabled(IDMap::default(), IDMap::set_enabled, true)));
    extensions
}

fn names(list: &[impl ToString]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn listed(pointer: &str) -> Value {
        let features = serde_json::to_value(features(HashMap::new())).expect("JSON");
        features.pointer(pointer).cloned().unwrap_or_else(|| panic!("{pointer} is not in {features}"))
    }

    /// Whether a container can be planned with this change of a plain one.
    fn takes(change: &Value) -> bool {
        let mut spec = json!({
            "ociVersion": SPECIFICATION, "root": {"path": "rootfs"},
            "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "network"}]},
        });
        for (key, value) in change.as_object().expect("an object") {
            match (spec.get_mut(key).and_then(Value::as_object_mut), value.as_object()) {
                (Some(old), Some(new)) => old.extend(new.clone()),
                _ => spec[key] = value.clone(),
            }
        }
        crate::check(&serde_json::from_value(spec).expect("a configuration")).is_ok()
    }

    #[test]
    fn what_is_listed_is_taken_and_what_is_not_is_refused() {
        assert!(takes(&json!({})));
        for hook in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
            let is_listed = listed("/hooks").as_array().expect("a list").contains(&json!(hook));
            assert_eq!(takes(&json!({"hooks": {hook: [{"path": "/bin/true"}]}})), is_listed, "{hook}");
        }
        let facilities = [
            ("/linux/netDevices/enabled", json!({"linux": {"netDevices": {"eth0": {"name": "eth1"}}}})),
            ("/linux/intelRdt/enabled", json!({"linux": {"intelRdt": {"closID": "a"}}})),
            ("/linux/intelRdt/schemata", json!({"linux": {"intelRdt": {"schemata": ["L3:0=f"]}}})),
            ("/linux/intelRdt/monitoring", json!({"linux": {"intelRdt": {"enableMonitoring": true}}})),
        ];
        for (pointer, change) in facilities {
            assert_eq!(json!(takes(&change)), listed(pointer), "{pointer}");
        }
    }

    #[test]
    fn every_entry_is_a_word_of_a_configuration() {
        let each = |pointer: &str| listed(pointer).as_array().expect("a list").clone();
        for capability in each("/linux/capabilities") {
            assert!(takes(&json!({"process": {"capabilities": {"bounding": [capability]}}})), "{capability}");
        }
        for kind in each("/linux/namespaces") {
            let maps = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
            let namespaces = json!([{"type": "mount"}, {"type": kind}]);
            let namespaces = if kind == "mount" { json!([{"type": kind}]) } else { namespaces };
            // Maps are of a user namespace, and of nothing else.
            let maps = if kind == "user" { maps } else { Value::Null };
            let linux = json!({"namespaces": namespaces, "uidMappings": maps, "gidMappings": maps});
            assert!(takes(&json!({"linux": linux})), "{kind}");
        }
        for mode in each("/linux/memoryPolicy/modes") {
            let bare = ["MPOL_DEFAULT", "MPOL_LOCAL"].contains(&mode.as_str().expect("text"));
            let policy = if bare { json!({"mode": mode}) } else { json!({"mode": mode, "nodes": "0"}) };
            assert!(takes(&json!({"linux": {"memoryPolicy": policy}})), "{mode}");
        }
        for flag in each("/linux/memoryPolicy/flags") {
            let policy = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": [flag]});
            assert!(takes(&json!({"linux": {"memoryPolicy": policy}})), "{flag}");
        }
        let seccomp = |rule: Value, flags: Value| {
            let profile = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule], "flags": flags, "listenerPath": "/run/agent",
                "architectures": each("/linux/seccomp/archs"),
            });
            takes(&json!({"linux": {"seccomp": profile}}))
        };
        for action in each("/linux/seccomp/actions") {
            assert!(seccomp(json!({"names": ["chmod"], "action": action}), json!([])), "{action}");
        }
        for operator in each("/linux/seccomp/operators") {
            let args = json!([{"index": 0, "value": 1, "op": operator}]);
            assert!(seccomp(json!({"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": args}), json!([])));
        }
        for flag in each("/linux/seccomp/supportedFlags") {
            assert!(each("/linux/seccomp/knownFlags").contains(&flag), "{flag}");
            assert!(seccomp(json!({"names": ["chmod"], "action": "SCMP_ACT_NOTIFY"}), json!([flag])), "{flag}");
        }
    }
}
