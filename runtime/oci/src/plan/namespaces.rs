//! From `linux.namespaces` to what is made, what is joined, and in which order. Pure.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use portreeve_sys::clone;
use portreeve_sys::time::{Clock, Offset};

use super::PlanError;

/// Namespaces of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Namespaces {
    /// `clone::NEW_*` flags of those to make.
    pub(crate) new: u64,
    /// Those to join, the user namespace last: what the caller may enter it enters with its own privileges.
    pub(crate) join: Vec<(u64, PathBuf)>,
    /// By how much the clocks of a new time namespace differ from the caller's, in the order of the clocks.
    pub(crate) offsets: Vec<Offset>,
}

/// The type of a flag, as the specification names it.
pub(crate) fn name(flag: u64) -> &'static str {
    match flag {
        clone::NEW_MOUNT => "mount",
        clone::NEW_CGROUP => "cgroup",
        clone::NEW_UTS => "uts",
        clone::NEW_IPC => "ipc",
        clone::NEW_USER => "user",
        clone::NEW_PID => "pid",
        clone::NEW_NET => "network",
        clone::NEW_TIME => "time",
        _ => "unknown",
    }
}

/// The flag of a type.
pub(crate) fn flag(kind: LinuxNamespaceType) -> u64 {
    match kind {
        LinuxNamespaceType::Mount => clone::NEW_MOUNT,
        LinuxNamespaceType::Cgroup => clone::NEW_CGROUP,
        LinuxNamespaceType::Uts => clone::NEW_UTS,
        LinuxNamespaceType::Ipc => clone::NEW_IPC,
        LinuxNamespaceType::User => clone::NEW_USER,
        LinuxNamespaceType::Pid => clone::NEW_PID,
        LinuxNamespaceType::Network => clone::NEW_NET,
        LinuxNamespaceType::Time => clone::NEW_TIME,
    }
}

impl Namespaces {
    /// Whether a namespace of this kind is not the caller's.
    pub(crate) fn has(&self, flag: u64) -> bool {
        self.new & flag != 0 || self.joins(flag)
    }

    /// Whether a namespace of this kind is joined by path.
    pub(crate) fn joins(&self, flag: u64) -> bool {
        self.join.iter().any(|(kind, _)| *kind == flag)
    }

    /// Every flag that differs from the caller's, for joining a running container.
    pub(crate) fn all(&self) -> u64 {
        self.join.iter().fold(self.new, |all, (kind, _)| all | kind)
    }

    /// Whether nobody but the maker's own neighbours sees the first process when it is born: it is alone in its PID
    /// namespace then, and enters those of others by itself.
    pub(crate) fn is_born_alone(&self) -> bool {
        self.new & clone::NEW_PID != 0 && self.new & clone::NEW_USER == 0 && !self.needs_intermediate()
    }

    /// Whether a process in between must join first: a user, PID or time namespace counts for children only, or must
    /// own the namespaces that are made; and clocks stand still from the moment that somebody is in their namespace.
    pub(crate) fn needs_intermediate(&self) -> bool {
        self.joins(clone::NEW_USER)
            || self.joins(clone::NEW_PID)
            || self.joins(clone::NEW_TIME)
            || !self.offsets.is_empty()
    }
}

/// Reads `linux.namespaces` and checks what depends on it.
pub(crate) fn plan(spec: &Spec) -> Result<Namespaces, PlanError> {
    let linux = spec.linux().as_ref();
    let mut plan = Namespaces::default();
    for (index, namespace) in
        linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default().iter().enumerate()
    {
        let flag = flag(namespace.typ());
        if plan.has(flag) {
            let reason = format!("a second namespace of type {}", namespace.typ());
            return Err(PlanError::new(format!("linux.namespaces[{index}].type"), reason));
        }
        match namespace.path() {
            Some(path) if path.is_relative() && !path.as_os_str().is_empty() => {
                let reason = format!("{} is not absolute", path.display());
                return Err(PlanError::new(format!("linux.namespaces[{index}].path"), reason));
            }
            Some(path) if !path.as_os_str().is_empty() => plan.join.push((flag, path.clone())),
            _ => plan.new |= flag,
        }
    }
    plan.join.sort_by_key(|(kind, _)| *kind == clone::NEW_USER);
    if plan.new & clone::NEW_MOUNT == 0 {
        refuse_mounts(spec, &plan)?;
    }
    let uts_needed = [("hostname", spec.hostname().is_some()), ("domainname", spec.domainname().is_some())];
    for (field, given) in uts_needed {
        if given && !plan.has(clone::NEW_UTS) {
            return Err(PlanError::new(field, "needs a UTS namespace that is not the caller's"));
        }
    }
    refuse_maps(spec, &plan)?;
    plan.offsets = offsets(spec, &plan)?;
    Ok(plan)
}

/// A new user namespace needs both maps; without any, maps would silently mean nothing.
fn refuse_maps(spec: &Spec, plan: &Namespaces) -> Result<(), PlanError> {
    let linux = spec.linux().as_ref();
    let some = |list: Option<&Vec<LinuxIdMapping>>| list.is_some_and(|list| !list.is_empty());
    let maps = [
        ("linux.uidMappings", some(linux.and_then(|linux| linux.uid_mappings().as_ref()))),
        ("linux.gidMappings", some(linux.and_then(|linux| linux.gid_mappings().as_ref()))),
    ];
    let (wrong, reason) = if plan.new & clone::NEW_USER != 0 {
        (false, "a new user namespace needs uidMappings and gidMappings")
    } else if plan.has(clone::NEW_USER) {
        return Ok(());
    } else {
        (true, "needs a user namespace that is not the caller's")
    };
    match maps.into_iter().find(|(_, given)| *given == wrong) {
        Some((field, _)) => Err(PlanError::new(field, reason)),
        None => Ok(()),
    }
}

/// Without a mount namespace of its own a container changes no mount: what it would change would be another's, the
/// caller's or that of the container whose namespace it joins. Of a joined one it has the root as well.
fn refuse_mounts(spec: &Spec, plan: &Namespaces) -> Result<(), PlanError> {
    let linux = spec.linux().as_ref();
    let some = |list: Option<&Vec<String>>| list.is_some_and(|list| !list.is_empty());
    let joined = plan.joins(clone::NEW_MOUNT);
    let devices = linux.is_some_and(|linux| linux.devices().as_ref().is_some_and(|devices| !devices.is_empty()));
    let given = [
        ("mounts", spec.mounts().as_ref().is_some_and(|mounts| !mounts.is_empty())),
        ("root.readonly", spec.root().as_ref().is_some_and(|root| root.readonly().unwrap_or(false))),
        ("linux.rootfsPropagation", linux.is_some_and(|linux| linux.rootfs_propagation().is_some())),
        ("linux.maskedPaths", some(linux.and_then(|linux| linux.masked_paths().as_ref()))),
        ("linux.readonlyPaths", some(linux.and_then(|linux| linux.readonly_paths().as_ref()))),
        ("linux.devices", joined && devices),
    ];
    let reason = if joined {
        "needs a new mount namespace: a joined one is left as it is"
    } else {
        "needs a new mount namespace: without one the container has the caller's"
    };
    match given.iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(PlanError::new(*field, reason)),
        None => Ok(()),
    }
}

/// Reads `linux.timeOffsets`.
fn offsets(spec: &Spec, plan: &Namespaces) -> Result<Vec<Offset>, PlanError> {
    let given = spec.linux().as_ref().and_then(|linux| linux.time_offsets().as_ref());
    let mut offsets = Vec::new();
    for (name, offset) in given.into_iter().flatten() {
        let refused = |reason: &str| PlanError::new(format!("linux.timeOffsets[{name}]"), reason);
        let clock =
            Clock::named(name).ok_or_else(|| refused("is not a clock that has offsets: monotonic, boottime"))?;
        let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        if nanoseconds >= 1_000_000_000 {
            return Err(refused("nanosecs has a whole second or more"));
        }
        if plan.new & clone::NEW_TIME == 0 {
            return Err(refused("needs a new time namespace: clocks of one that exists cannot be set"));
        }
        offsets.push(Offset { clock, seconds, nanoseconds });
    }
    offsets.sort_by_key(|offset| offset.clock);
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<Namespaces, String> {
        let spec: Spec = serde_json::from_str(json).expect("spec");
        plan(&spec).map_err(|error| error.to_string())
    }

    #[test]
    fn a_joined_user_namespace_comes_last_and_needs_a_process_between() {
        let plan = check(
            r#"{"ociVersion": "1.2.0", "linux": {"namespaces": [{"type": "user", "path": "/proc/7/ns/user"}, {"type": "mount"},
            {"type": "network", "path": "/proc/7/ns/net"}, {"type": "pid"}]}}"#,
        )
        .expect("plan");
        assert_eq!(plan.new, clone::NEW_MOUNT | clone::NEW_PID);
        let order: Vec<u64> = plan.join.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(order, [clone::NEW_NET, clone::NEW_USER]);
        assert!(plan.needs_intermediate());
    }

    #[test]
    fn only_a_pid_namespace_of_its_own_that_the_maker_makes_is_empty_when_a_process_is_born_in_it() {
        let alone = |namespaces: &str, more: &str| {
            let text = format!(r#"{{"ociVersion": "1.2.0", "linux": {{"namespaces": [{namespaces}]{more}}}}}"#);
            check(&text).expect("plan").is_born_alone()
        };
        let map = r#"[{"containerID": 0, "hostID": 7, "size": 1}]"#;
        let maps = format!(r#", "uidMappings": {map}, "gidMappings": {map}"#);
        let own = r#"{"type": "mount"}, {"type": "pid"}"#;
        assert!(alone(own, ""));
        assert!(alone(&format!(r#"{own}, {{"type": "network", "path": "/proc/7/ns/net"}}"#), ""));
        assert!(!alone(r#"{"type": "mount"}"#, ""), "the caller's");
        assert!(!alone(r#"{"type": "mount"}, {"type": "pid", "path": "/proc/7/ns/pid"}"#, ""), "a neighbour's");
        assert!(!alone(&format!(r#"{own}, {{"type": "user"}}"#), &maps), "one for the maps is there before it");
        assert!(!alone(&format!(r#"{own}, {{"type": "user", "path": "/proc/7/ns/user"}}"#), ""));
    }

    #[test]
    fn maps_and_a_user_namespace_need_each_other() {
        let with = |user: &str, maps: &str| {
            let namespaces = format!(r#"[{{"type": "mount"}}{user}]"#);
            check(&format!(r#"{{"ociVersion": "1.2.0", "linux": {{"namespaces": {namespaces}{maps}}}}}"#)).map(drop)
        };
        let map = |field: &str| format!(r#", "{field}": [{{"containerID": 0, "hostID": 7, "size": 1}}]"#);
        let (uids, gids) = (map("uidMappings"), map("gidMappings"));
        let both = uids.clone() + &gids;
        let (new, joined) = (r#", {"type": "user"}"#, r#", {"type": "user", "path": "/proc/7/ns/user"}"#);
        let lacks = |field: &str| Err(format!("linux.{field}: a new user namespace needs uidMappings and gidMappings"));
        let alone = |field: &str| Err(format!("linux.{field}: needs a user namespace that is not the caller's"));
        assert_eq!(with(new, &both), Ok(()));
        assert_eq!((with(new, &gids), with(new, &uids)), (lacks("uidMappings"), lacks("gidMappings")));
        assert_eq!((with("", &both), with("", &gids)), (alone("uidMappings"), alone("gidMappings")));
        assert_eq!([with(joined, ""), with(joined, &both), with("", "")], [Ok(()), Ok(()), Ok(())]);
    }

    #[test]
    fn a_host_name_needs_a_namespace_of_its_own() {
        let error = check(r#"{"ociVersion": "1.2.0", "hostname": "x", "linux": {"namespaces": [{"type": "mount"}]}}"#);
        assert_eq!(error.expect_err("refused"), "hostname: needs a UTS namespace that is not the caller's");
    }

    #[test]
    fn without_a_mount_namespace_of_its_own_it_changes_no_mount() {
        let with = |namespaces: &str, more: &str| {
            check(&format!(r#"{{"ociVersion": "1.2.0", "linux": {{"namespaces": [{namespaces}]}}{more}}}"#))
        };
        let mount = r#", "mounts": [{"destination": "/proc", "type": "proc"}]"#;
        let joined = r#"{"type": "mount", "path": "/proc/7/ns/mnt"}"#;
        assert!(with(r#"{"type": "pid"}"#, "").is_ok());
        assert!(with(joined, "").is_ok());
        assert_eq!(
            with(r#"{"type": "pid"}"#, mount).expect_err("refused"),
            "mounts: needs a new mount namespace: without one the container has the caller's"
        );
        assert_eq!(
            with(joined, mount).expect_err("refused"),
            "mounts: needs a new mount namespace: a joined one is left as it is"
        );
        assert!(with(joined, r#", "root": {"path": "rootfs", "readonly": true}"#).is_err());
    }

    #[test]
    fn a_path_that_depends_on_where_the_runtime_stands_is_refused() {
        let error = check(r#"{"ociVersion": "1.2.0", "linux": {"namespaces": [{"type": "ipc", "path": "ns/ipc"}]}}"#);
        assert_eq!(error.expect_err("refused"), "linux.namespaces[0].path: ns/ipc is not absolute");
    }

    #[test]
    fn clocks_are_set_in_a_new_time_namespace_alone() {
        let with = |namespace: &str, offsets: &str| {
            check(&format!(
                r#"{{"ociVersion": "1.2.0", "linux": {{"namespaces": [{{"type": "mount"}}{namespace}],
                "timeOffsets": {offsets}}}}}"#
            ))
        };
        let new = r#", {"type": "time"}"#;
        let plan = with(new, r#"{"boottime": {"secs": 7}, "monotonic": {"secs": -3, "nanosecs": 5}}"#).expect("plan");
        let order: Vec<_> =
            plan.offsets.iter().map(|offset| (offset.clock, offset.seconds, offset.nanoseconds)).collect();
        assert_eq!(order, [(Clock::Monotonic, -3, 5), (Clock::Boottime, 7, 0)]);
        assert!(plan.needs_intermediate());
        assert!(!with(new, "{}").expect("plan").needs_intermediate());
        for (namespace, offsets) in [
            ("", r#"{"boottime": {"secs": 7}}"#),
            (r#", {"type": "time", "path": "/proc/7/ns/time"}"#, r#"{"boottime": {"secs": 7}}"#),
            (new, r#"{"realtime": {"secs": 7}}"#),
            (new, r#"{"boottime": {"nanosecs": 1000000000}}"#),
        ] {
            assert!(with(namespace, offsets).is_err(), "{namespace} {offsets}");
        }
    }
}
