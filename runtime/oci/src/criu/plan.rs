//! From a configuration to what of a container is not its own: what CRIU must leave out of the images, and find again when
//! it restores. Pure.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use portreeve_sys::clone::{NEW_CGROUP, NEW_MOUNT, NEW_USER};

use crate::plan::PlanError;
use crate::plan::mounts::{self, What, clean};
use crate::plan::namespaces::{self, Namespaces};
use crate::seccomp::Filter;

/// What of a container is not its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Mounts of the host: where in the container, and what of the host. In the images a mount has the name of its place.
    pub(crate) binds: Vec<(PathBuf, PathBuf)>,
    /// Places where the container's cgroups are mounted as the host sees them.
    pub(crate) cgroups: Vec<PathBuf>,
    /// Files that the host's null device covers, where they are there.
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) namespaces: Namespaces,
}

/// Decides, or says what of a configuration CRIU could not bring back as it was.
pub(crate) fn plan(spec: &Spec) -> Result<Plan, PlanError> {
    let linux = spec.linux().as_ref();
    let namespaces = namespaces::plan(spec)?;
    if namespaces.new & NEW_MOUNT == 0 {
        return Err(PlanError::new(
            "linux.namespaces",
            "has no new mount namespace, without which CRIU cannot restore it",
        ));
    }
    if namespaces.has(NEW_USER) {
        let reason = "has a user namespace, whose users could not read the images when they are restored";
        return Err(PlanError::new("linux.namespaces", reason));
    }
    if namespaces.joins(NEW_CGROUP) {
        let reason = "joins a cgroup namespace by its path, into which CRIU cannot restore it";
        return Err(PlanError::new("linux.namespaces", reason));
    }
    if linux.is_some_and(|linux| linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty())) {
        return Err(PlanError::new("linux.netDevices", "has links, which CRIU does not bring back"));
    }
    if let Some(profile) = linux.and_then(|linux| linux.seccomp().as_ref())
        && Filter::compile(profile).is_ok_and(|filter| filter.listener().is_some())
    {
        let reason = "has a filter with a listener, which CRIU does not bring back";
        return Err(PlanError::new("linux.seccomp.listenerPath", reason));
    }
    let mut plan = Plan { binds: Vec::new(), cgroups: Vec::new(), masked: Vec::new(), namespaces };
    for op in mounts::plan(spec)? {
        match op.what {
            What::Bind { id_map: Some(_), .. } | What::Layers { id_map: true, .. } => {
                let reason = format!("{} has mapped ids, which CRIU does not bring back", op.destination.display());
                return Err(PlanError::new("mounts", reason));
            }
            What::Bind { source, .. } => plan.binds.push((op.destination, source)),
            // In a namespace of its own the container's cgroup is the root of a mount, and CRIU mounts it again.
            What::Cgroup { .. } if plan.namespaces.new & NEW_CGROUP == 0 => plan.cgroups.push(op.destination),
            _ => {}
        }
    }
    let masked = linux.and_then(|linux| linux.masked_paths().as_deref()).unwrap_or_default();
    plan.masked = masked.iter().map(|path| clean(Path::new(path))).collect();
    Ok(plan)
}

impl Plan {
    /// All mounts of the host: where in the container, and what of the host. `hierarchies` are those of the container's
    /// cgroup, by the names of their directories.
    pub(crate) fn external_mounts(&self, hierarchies: &[(String, PathBuf)]) -> Vec<(PathBuf, PathBuf)> {
        let each = |place: &PathBuf| {
            let place = place.clone();
            hierarchies.iter().map(move |(name, directory)| {
                // The one of version 2 has no name, and is at the place itself.
                let place = if name.is_empty() { place.clone() } else { place.join(name) };
                (place, directory.clone())
            })
        };
        self.binds.iter().cloned().chain(self.cgroups.iter().flat_map(each)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(change: Value) -> Result<Plan, String> {
        let mut spec = json!({"ociVersion": "1.2.0", "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}});
        for (key, value) in change.as_object().expect("an object") {
            spec[key] = value.clone();
        }
        plan(&serde_json::from_value(spec).expect("spec")).map_err(|error| error.to_string())
    }

    #[test]
    fn mounts_of_the_host_are_named_by_their_places() {
        let plan = planned(json!({
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data/../data", "source": "/srv", "options": ["rbind", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
            ],
            "linux": {"namespaces": [{"type": "mount"}], "maskedPaths": ["/proc/kcore", "/proc/../sys/firmware"]},
        }))
        .expect("plan");
        let hierarchies = [("memory".to_owned(), "/h/memory/c".into()), (String::new(), "/h/c".into())];
        let expected: Vec<(PathBuf, PathBuf)> = vec![
            ("/data".into(), "/srv".into()),
            ("/sys/fs/cgroup/memory".into(), "/h/memory/c".into()),
            ("/sys/fs/cgroup".into(), "/h/c".into()),
        ];
        assert_eq!(plan.external_mounts(&hierarchies), expected);
        assert_eq!(plan.masked, [Path::new("/proc/kcore"), Path::new("/sys/firmware")]);
    }

    #[test]
    fn what_could_not_come_back_is_refused() {
        let mapped = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        let cases = [
            (json!({"linux": {"namespaces": []}}), "no new mount namespace"),
            (
                json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "user", "path": "/n"}]}}),
                "has a user namespace",
            ),
            (
                json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "cgroup", "path": "/n"}]}}),
                "joins a cgroup namespace",
            ),
            (
                json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "network"}], "netDevices": {"eth0": {}}}}),
                "linux.netDevices",
            ),
            (
                json!({"mounts": [{"destination": "/d", "type": "bind", "source": "/s", "options": ["bind"],
                    "uidMappings": mapped, "gidMappings": mapped}]}),
                "/d has mapped ids",
            ),
            (
                json!({"linux": {"namespaces": [{"type": "mount"}], "seccomp": {"defaultAction": "SCMP_ACT_ALLOW",
                    "listenerPath": "/s", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}}}),
                "listener",
            ),
        ];
        for (change, words) in cases {
            let told = planned(change).expect_err(words);
            assert!(told.contains(words), "{told}");
        }
    }
}
