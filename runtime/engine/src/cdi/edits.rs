//! What devices come to on this node, and what that changes in a container's specification.
//!
//! Source: CDI, pkg/cdi/container-edits.go: the edits of a file come once, before those of its devices; of each kind all
//! are made in the order of the request, of two values of one name the later counts.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook as OciHook, Hooks, LinuxDevice, LinuxDeviceType, LinuxIntelRdt, Mount as OciMount, Spec};

use super::CdiError;
use super::catalogue::Part;
use super::document::{DeviceNode, Hook, IntelRdt, Mount};
use crate::spec::{clean, device_rule};

/// All that devices change, looked up: what is left needs nothing but the specification.
#[derive(Debug, Clone, Default)]
pub(crate) struct Edits {
    environment: Vec<String>,
    nodes: Vec<Node>,
    mounts: Vec<OciMount>,
    hooks: Vec<(Point, OciHook)>,
    groups: Vec<u32>,
    rdt: Option<LinuxIntelRdt>,
    /// For a pod with users of its own: the first that cannot be given to it, and why.
    own_users: Option<Refusal>,
}

/// A device node, and how it may be used; without a word on it, it may not.
#[derive(Debug, Clone)]
struct Node {
    device: LinuxDevice,
    access: Option<String>,
    /// Where the node of the machine is, when that is another path.
    host: Option<PathBuf>,
}

#[derive(Debug, Clone)]
struct Refusal {
    file: PathBuf,
    field: String,
    reason: String,
}

impl Refusal {
    fn error(&self) -> CdiError {
        let Self { file, field, reason } = self.clone();
        CdiError::Edit { file, field, reason }
    }
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Point {
    /// Whether it looks for the root file system where the node has the bundle.
    fn looks_for_root(self) -> bool {
        matches!(self, Self::Prestart | Self::CreateRuntime | Self::CreateContainer)
    }
}

impl Edits {
    /// Looks up what is said of the node.
    ///
    /// # Errors
    /// [`CdiError::Edit`] for what cannot be done here.
    pub(super) fn of(parts: &[Part<'_>]) -> Result<Self, CdiError> {
        let mut all = Self::default();
        for part in parts {
            all.add(part)?;
        }
        Ok(all)
    }

    fn add(&mut self, part: &Part<'_>) -> Result<(), CdiError> {
        let refusal = |name: String, reason: String| Refusal {
            file: part.file.to_owned(),
            field: format!("{}.{name}", part.place),
            reason,
        };
        let refused = |name: String, reason: String| refusal(name, reason).error();
        let edits = part.edits;
        self.environment.extend(edits.env.iter().cloned());
        if let Some(wrong) = edits.env.iter().find(|one| one.contains('\0')) {
            return Err(refused("env".to_owned(), format!("{wrong:?} has a NUL byte")));
        }
        for (number, node) in edits.device_nodes.iter().enumerate() {
            let name = || format!("deviceNodes[{number}]");
            let node = look_up(node).map_err(|reason| refused(name(), reason))?;
            if self.own_users.is_none() {
                self.own_users = node.unbindable().err().map(|reason| refusal(name(), reason));
            }
            self.nodes.push(node);
        }
        for (number, mount) in edits.mounts.iter().enumerate() {
            self.mounts.push(bind(mount).map_err(|reason| refused(format!("mounts[{number}]"), reason))?);
        }
        for (number, hook) in edits.hooks.iter().enumerate() {
            let name = || format!("hooks[{number}]");
            let (point, hook) = program(hook).map_err(|reason| refused(name(), reason))?;
            if point.looks_for_root() && self.own_users.is_none() {
                let reason =
                    "hooks of the creation find the container's files below the agent's own directory, which users \
                              of a pod's own cannot reach: run the pod with hostUsers: true"
                        .to_owned();
                self.own_users = Some(refusal(name(), reason));
            }
            self.hooks.push((point, hook));
        }
        if !edits.net_devices.is_empty() {
            let reason = "links of the node are not moved into pods here; have a CNI plugin do so, such as host-device";
            return Err(refused("netDevices".to_owned(), reason.to_owned()));
        }
        for group in &edits.additional_gids {
            if *group != 0 && !self.groups.contains(group) {
                self.groups.push(*group);
            }
        }
        if let Some(rdt) = &edits.intel_rdt {
            self.rdt = Some(share(rdt));
        }
        Ok(())
    }

    /// Whether a pod with users of its own can have them.
    ///
    /// # Errors
    /// [`CdiError::Edit`] for the first that it cannot.
    pub(crate) fn check_own_users(&self) -> Result<(), CdiError> {
        self.own_users.as_ref().map_or(Ok(()), |refusal| Err(refusal.error()))
    }

    /// Further groups of the container's processes; they are part of who these are.
    pub(crate) fn groups(&self) -> &[u32] {
        &self.groups
    }

    #[cfg(test)]
    pub(super) fn environment(&self) -> &[String] {
        &self.environment
    }

    /// Whether programs of the node are run for the container.
    pub(crate) fn has_hooks(&self) -> bool {
        !self.hooks.is_empty()
    }

    /// Changes a specification, but for groups. `own_users`: its pod has users of its own.
    pub(crate) fn apply(&self, spec: &mut Spec, own_users: bool) {
        self.add_environment(spec);
        let bound = self.add_nodes(spec, own_users);
        self.add_mounts(spec, bound, own_users);
        self.add_hooks(spec);
        if let (Some(rdt), Some(linux)) = (&self.rdt, spec.linux_mut()) {
            linux.set_intel_rdt(Some(rdt.clone()));
        }
    }

    fn add_environment(&self, spec: &mut Spec) {
        let Some(process) = spec.process_mut().as_mut().filter(|_| !self.environment.is_empty()) else { return };
        let mut all = process.env().clone().unwrap_or_default();
        let name = |one: &str| one.split('=').next().unwrap_or_default().to_owned();
        for one in &self.environment {
            match all.iter_mut().find(|other| name(other) == name(one)) {
                Some(there) => there.clone_from(one),
                None => all.push(one.clone()),
            }
        }
        process.set_env(Some(all));
    }

    /// Adds nodes with their rules; what users of a pod's own have to get by a mount is the answer.
    fn add_nodes(&self, spec: &mut Spec, own_users: bool) -> Vec<OciMount> {
        let (user, group) =
            spec.process().as_ref().map_or((0, 0), |process| (process.user().uid(), process.user().gid()));
        let mut bound = Vec::new();
        let Some(linux) = spec.linux_mut().as_mut().filter(|_| !self.nodes.is_empty()) else { return bound };
        let mut devices = linux.devices().clone().unwrap_or_default();
        let mut resources = linux.resources().clone().unwrap_or_default();
        let mut rules = resources.devices().clone().unwrap_or_default();
        for Node { device, access, host } in &self.nodes {
            devices.retain(|other| clean(other.path()) != clean(device.path()));
            bound.retain(|other: &OciMount| clean(other.destination()) != clean(device.path()));
            match host.as_ref().filter(|_| own_users) {
                // They may make no nodes, and are given the machine's: by its own path that is done for every device.
                Some(host) => bound.push(mount(device.path(), "bind", host, &["bind", "nosuid", "noexec"])),
                None => {
                    let mut device = device.clone();
                    // A node is its user's, unless it says whose.
                    device.set_uid(device.uid().or((user > 0).then_some(user)));
                    device.set_gid(device.gid().or((group > 0).then_some(group)));
                    devices.push(device);
                }
            }
            if let Some(access) = access {
                rules.push(device_rule(device, access));
            }
        }
        resources.set_devices(Some(rules));
        linux.set_devices(Some(devices));
        linux.set_resources(Some(resources));
        bound
    }

    /// Adds mounts in the place of those at the same paths, and puts parents before children.
    fn add_mounts(&self, spec: &mut Spec, bound: Vec<OciMount>, own_users: bool) {
        if self.mounts.is_empty() && bound.is_empty() {
            return;
        }
        let mut all = spec.mounts().clone().unwrap_or_default();
        let given = self.mounts.iter().cloned().map(|mount| if own_users { mapped(mount) } else { mount });
        for one in bound.into_iter().chain(given) {
            all.retain(|other| clean(other.destination()) != clean(one.destination()));
            all.push(one);
        }
        all.sort_by_key(|one| clean(one.destination()).map_or(0, |path| path.components().count()));
        spec.set_mounts(Some(all));
    }

    fn add_hooks(&self, spec: &mut Spec) {
        if self.hooks.is_empty() {
            return;
        }
        let mut hooks = spec.hooks().clone().unwrap_or_default();
        let at = |wanted: Point| -> Option<Vec<OciHook>> {
            let all: Vec<OciHook> =
                self.hooks.iter().filter(|(point, _)| *point == wanted).map(|(_, hook)| hook.clone()).collect();
            (!all.is_empty()).then_some(all)
        };
        set_hooks(&mut hooks, at);
        spec.set_hooks(Some(hooks));
    }
}

fn set_hooks(hooks: &mut Hooks, at: impl Fn(Point) -> Option<Vec<OciHook>>) {
    hooks.set_prestart(at(Point::Prestart));
    hooks.set_create_runtime(at(Point::CreateRuntime));
    hooks.set_create_container(at(Point::CreateContainer));
    hooks.set_start_container(at(Point::StartContainer));
    hooks.set_poststart(at(Point::Poststart));
    hooks.set_poststop(at(Point::Poststop));
}

impl Node {
    /// Whether the machine has the very node, for those who may make none.
    fn unbindable(&self) -> Result<(), String> {
        if self.device.typ() == LinuxDeviceType::P {
            return Ok(());
        }
        let host = self.host.as_deref().unwrap_or(self.device.path());
        let (kind, major, minor) = look(host)?;
        if kind == self.device.typ() && (major, minor) == (self.device.major(), self.device.minor()) {
            return Ok(());
        }
        let (major, minor) = (self.device.major(), self.device.minor());
        Err(format!(
            "a pod with users of its own is given the node's own, and {} is not {major}:{minor}",
            host.display()
        ))
    }
}

/// Type and number are the machine's where the file does not say them. Source: CDI, `fillMissingInfo`.
fn look_up(wanted: &DeviceNode) -> Result<Node, String> {
    if clean(&wanted.path).is_none() {
        return Err(format!("path {} is no absolute path of a file", wanted.path.display()));
    }
    let host = if wanted.host_path.as_os_str().is_empty() { &wanted.path } else { &wanted.host_path };
    let said = match wanted.kind.as_str() {
        "" => None,
        "b" => Some(LinuxDeviceType::B),
        "p" => Some(LinuxDeviceType::P),
        _ => Some(LinuxDeviceType::C),
    };
    let (kind, major, minor) = match said {
        Some(LinuxDeviceType::P) => (LinuxDeviceType::P, 0, 0),
        Some(kind) if wanted.major != 0 => (kind, wanted.major, wanted.minor),
        said => {
            let (kind, major, minor) = look(host)?;
            if said.is_some_and(|said| said != kind) {
                return Err(format!("type {} is not that of {}", wanted.kind, host.display()));
            }
            match wanted.major {
                0 => (kind, major, minor),
                said => (kind, said, wanted.minor),
            }
        }
    };
    let mut device = LinuxDevice::default();
    device.set_path(wanted.path.clone());
    device.set_typ(kind);
    device.set_major(major);
    device.set_minor(minor);
    device.set_file_mode(wanted.file_mode);
    device.set_uid(wanted.uid);
    device.set_gid(wanted.gid);
    let access = match wanted.permissions.as_str() {
        _ if kind == LinuxDeviceType::P => None,
        "none" => None,
        "" => Some("rwm".to_owned()),
        given => Some(given.to_owned()),
    };
    Ok(Node { device, access, host: (host != &wanted.path).then(|| host.clone()) })
}

/// Kind and number of a node of the machine.
fn look(path: &Path) -> Result<(LinuxDeviceType, i64, i64), String> {
    let metadata = fs::symlink_metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let kind = metadata.file_type();
    let typ = match (kind.is_char_device(), kind.is_block_device()) {
        (true, _) => LinuxDeviceType::C,
        (_, true) => LinuxDeviceType::B,
        _ if kind.is_fifo() => return Ok((LinuxDeviceType::P, 0, 0)),
        _ if kind.is_symlink() => {
            return Err(format!("{} is a link: name the node that it leads to", path.display()));
        }
        _ => return Err(format!("{} is no device", path.display())),
    };
    let number = metadata.rdev();
    Ok((typ, i64::from(rustix::fs::major(number)), i64::from(rustix::fs::minor(number))))
}

fn mount(destination: &Path, kind: &str, source: &Path, options: &[&str]) -> OciMount {
    let mut mount = OciMount::default();
    mount.set_destination(destination.to_owned());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.to_owned()));
    mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

/// Without a type it is a bind: it has a path of the node.
fn bind(wanted: &Mount) -> Result<OciMount, String> {
    if clean(&wanted.container_path).is_none() {
        return Err(format!("containerPath {} is no absolute path other than /", wanted.container_path.display()));
    }
    let binds = is_bind(&wanted.kind, &wanted.options);
    let kind = match wanted.kind.as_str() {
        "" | "none" if !binds => "bind",
        given => given,
    };
    let source = if binds || kind == "bind" {
        if !wanted.host_path.is_absolute() {
            return Err(format!("hostPath {} is not absolute", wanted.host_path.display()));
        }
        fs::canonicalize(&wanted.host_path)
            .map_err(|error| format!("hostPath {}: {error}", wanted.host_path.display()))?
    } else {
        wanted.host_path.clone()
    };
    let options: Vec<&str> = wanted.options.iter().map(String::as_str).collect();
    Ok(mount(&wanted.container_path, kind, &source, &options))
}

fn is_bind(kind: &str, options: &[String]) -> bool {
    kind == "bind" || options.iter().any(|option| option == "bind" || option == "rbind")
}

/// With users of its own a pod knows what it is given by its own ids.
fn mapped(mut given: OciMount) -> OciMount {
    let mut options = given.options().clone().unwrap_or_default();
    let said = options.iter().any(|option| option == "idmap" || option == "ridmap");
    if !said && is_bind(given.typ().as_deref().unwrap_or_default(), &options) {
        options.push("idmap".to_owned());
        given.set_options(Some(options));
    }
    given
}

fn program(wanted: &Hook) -> Result<(Point, OciHook), String> {
    let point = match wanted.hook_name.as_str() {
        "prestart" => Point::Prestart,
        "createRuntime" => Point::CreateRuntime,
        "createContainer" => Point::CreateContainer,
        "startContainer" => Point::StartContainer,
        "poststart" => Point::Poststart,
        "poststop" => Point::Poststop,
        other => return Err(format!("hookName {other:?} is unknown")),
    };
    // Source: OCI runtime-spec, config.md, POSIX-platform Hooks.
    if !wanted.path.is_absolute() {
        return Err(format!("path {} is not absolute", wanted.path.display()));
    }
    if wanted.timeout.is_some_and(|seconds| seconds <= 0) {
        return Err("timeout is not above zero".to_owned());
    }
    if wanted.args.iter().chain(&wanted.env).any(|text| text.contains('\0')) {
        return Err("args and env have a NUL byte".to_owned());
    }
    let mut hook = OciHook::default();
    hook.set_path(wanted.path.clone());
    hook.set_args((!wanted.args.is_empty()).then(|| wanted.args.clone()));
    hook.set_env((!wanted.env.is_empty()).then(|| wanted.env.clone()));
    hook.set_timeout(wanted.timeout);
    Ok((point, hook))
}

fn share(wanted: &IntelRdt) -> LinuxIntelRdt {
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let mut rdt = LinuxIntelRdt::default();
    rdt.set_clos_id(text(&wanted.clos_id));
    rdt.set_l3_cache_schema(text(&wanted.l3_cache_schema));
    rdt.set_mem_bw_schema(text(&wanted.mem_bw_schema));
    rdt.set_schemata(wanted.schemata.clone());
    // Source: OCI runtime-spec 1.3, config-linux.md, IntelRdt: the one has taken the place of the others.
    let monitored = wanted.enable_monitoring || wanted.enable_cmt || wanted.enable_mbm;
    rdt.set_enable_monitoring(monitored.then_some(true));
    rdt
}
