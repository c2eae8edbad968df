//! From what a caller asks and an image says to an OCI runtime specification. Pure: everything that has to be looked
//! up comes in through [`Inputs`].

mod mounts;
mod process;
mod security;
mod user;

use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceCgroup, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType,
    LinuxSeccomp, Root, Spec, VERSION,
};

pub(crate) use mounts::clean;
pub use user::{Accounts, Identity, resolve};

use crate::container::ContainerConfig;
use crate::sandbox::{IdMapping, PidNamespace, SandboxConfig, UserNamespace};
use crate::{EngineError, SeccompProfile};

/// All that a specification depends on.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// What the caller asks.
    pub config: &'a ContainerConfig,
    /// What its sandbox was asked to be.
    pub sandbox: &'a SandboxConfig,
    /// What the image says.
    pub image: &'a ImageConfiguration,
    /// Who its processes are.
    pub identity: &'a Identity,
    /// The hostname inside.
    pub hostname: &'a str,
    /// Its cgroup, a path from the cgroup root.
    pub cgroup: &'a str,
    /// The sandbox's own files.
    pub files: SandboxFiles<'a>,
    /// The pod's user namespace, as the shim sees it.
    pub user_namespace: Option<&'a str>,
    /// The pod's pid namespace, as the shim sees it.
    pub pid_namespace: Option<&'a str>,
    /// The first process of the container whose processes it sees, as the shim sees it.
    pub processes_of: Option<u32>,
    /// The SELinux label of its processes; a privileged container has none, and is what the policy makes of it.
    pub process_label: Option<&'a str>,
    /// The SELinux label of its files.
    pub mount_label: Option<&'a str>,
    /// Devices, already looked at.
    pub devices: &'a [(LinuxDevice, String)],
    /// The profile for `SeccompProfile::Localhost`, already read.
    pub seccomp: Option<LinuxSeccomp>,
    /// The layers of each image that is mounted, topmost first, in the order of such mounts.
    pub images: &'a [ImageMount],
    /// The image's volumes that need a place of their own.
    pub volumes: &'a [ImageVolume],
    /// The AppArmor profile of a container that names none.
    pub default_apparmor: Option<&'a str>,
    /// Capabilities that this agent can give, one bit each.
    pub capabilities: u64,
}

/// Files that the engine wrote for a sandbox.
#[derive(Debug, Clone, Copy)]
pub struct SandboxFiles<'a> {
    /// `/etc/hostname`.
    pub hostname: &'a Path,
    /// `/etc/resolv.conf`.
    pub resolv_conf: &'a Path,
    /// `/etc/hosts`; `None`: what the image has.
    pub hosts: Option<&'a Path>,
    /// `/dev/shm`, a mount of the pod's own; `None`: the node's.
    pub shm: Option<&'a Path>,
}

/// A directory that the image wants to be writable whatever its root is, and that is there before anything writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageVolume {
    /// Where the image wants it.
    pub path: PathBuf,
    /// What the image has there, topmost first.
    pub lower: Vec<PathBuf>,
    /// What is written.
    pub upper: PathBuf,
    /// Overlayfs' own directory beside it.
    pub work: PathBuf,
}

/// What is mounted of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageMount {
    /// Nothing: an image without layers.
    Empty,
    /// At least two layers, topmost first, as an overlay shows them.
    Layers(Vec<PathBuf>),
}

/// The specification of a container.
///
/// # Errors
/// [`EngineError::Invalid`] names the field that cannot be used.
pub fn specification(inputs: Inputs<'_>) -> Result<Spec, EngineError> {
    let Inputs { config, sandbox, .. } = &inputs;
    let security = &config.security;
    user::check(inputs.identity, &sandbox.namespaces.user)?;
    let capabilities = security::capabilities(security, inputs.capabilities)?;
    let seccomp = match (&security.seccomp, security.privileged) {
        (_, true) | (SeccompProfile::Unconfined, _) => None,
        (SeccompProfile::RuntimeDefault, _) => Some(security::default_seccomp(&capabilities)),
        (SeccompProfile::Localhost(path), _) => Some(
            inputs
                .seccomp
                .clone()
                .ok_or_else(|| EngineError::invalid("seccomp", format!("profile {} was not read", path.display())))?,
        ),
    };

    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces(&inputs)));
    if let UserNamespace::Pod { uid_maps, gid_maps } = &sandbox.namespaces.user {
        linux.set_uid_mappings(Some(id_mappings(uid_maps)));
        linux.set_gid_mappings(Some(id_mappings(gid_maps)));
    } else {
        linux.set_uid_mappings(None);
        linux.set_gid_mappings(None);
    }
    linux.set_cgroups_path(Some(PathBuf::from(inputs.cgroup)));
    linux.set_resources(Some(resources(&inputs)));
    linux.set_devices(Some(inputs.devices.iter().map(|(device, _)| device.clone()).collect()));
    linux.set_seccomp(seccomp);
    linux.set_masked_paths(Some(security::masked_paths(security)));
    linux.set_readonly_paths(Some(security::readonly_paths(security)));
    linux.set_mount_label(inputs.mount_label.map(str::to_owned));
    if let Some(propagation) = mounts::root_propagation(config)? {
        linux.set_rootfs_propagation(Some(propagation));
    }

    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs"));
    root.set_readonly(Some(security.readonly_rootfs));

    let mut spec = Spec::default();
    spec.set_version(VERSION.to_owned());
    spec.set_root(Some(root));
    let mut process = process::process(&inputs, capabilities)?;
    process.set_apparmor_profile(security::apparmor_profile(security, inputs.default_apparmor));
    process.set_selinux_label(inputs.process_label.filter(|_| !security.privileged).map(str::to_owned));
    spec.set_process(Some(process));
    spec.set_mounts(Some(mounts::mounts(&inputs)?));
    spec.set_hostname(None);
    spec.set_linux(Some(linux));
    spec.set_annotations(None);
    Ok(spec)
}

/// Net, ipc and uts are those of the shim, which lives in the pod's own: they are inherited.
fn namespaces(inputs: &Inputs<'_>) -> Vec<LinuxNamespace> {
    let namespace = |kind, path: Option<&str>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace.set_path(path.map(PathBuf::from));
        namespace
    };
    let mut all = vec![namespace(LinuxNamespaceType::Mount, None), namespace(LinuxNamespaceType::Cgroup, None)];
    let target = inputs.processes_of.map(|pid| format!("/proc/{pid}/ns/pid"));
    match inputs.sandbox.namespaces.pid {
        _ if target.is_some() => all.push(namespace(LinuxNamespaceType::Pid, target.as_deref())),
        _ if inputs.config.own_processes => all.push(namespace(LinuxNamespaceType::Pid, None)),
        PidNamespace::Container => all.push(namespace(LinuxNamespaceType::Pid, None)),
        PidNamespace::Pod => all.push(namespace(LinuxNamespaceType::Pid, inputs.pid_namespace)),
        PidNamespace::Node => {}
    }
    if let Some(path) = inputs.user_namespace {
        all.push(namespace(LinuxNamespaceType::User, Some(path)));
    }
    all
}

fn id_mappings(maps: &[IdMapping]) -> Vec<LinuxIdMapping> {
    maps.iter()
        .filter_map(|map| {
            let row = LinuxIdMappingBuilder::default();
            row.container_id(map.container).host_id(map.host).size(map.length).build().ok()
        })
        .collect()
}

/// Lets a device be used so: `access` is of r, w, m.
pub(crate) fn device_rule(device: &LinuxDevice, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true);
    rule.set_typ(Some(device.typ()));
    rule.set_major(Some(device.major()));
    rule.set_minor(Some(device.minor()));
    rule.set_access(Some(access.to_owned()));
    rule
}

fn resources(inputs: &Inputs<'_>) -> oci_spec::runtime::LinuxResources {
    let mut resources = inputs.config.resources.clone();
    let mut rules = resources.devices().clone().unwrap_or_default();
    if inputs.config.security.privileged {
        let mut all = LinuxDeviceCgroup::default();
        all.set_allow(true);
        all.set_typ(Some(oci_spec::runtime::LinuxDeviceType::A));
        all.set_access(Some("rwm".to_owned()));
        rules = vec![all];
    } else {
        let mut none = LinuxDeviceCgroup::default();
        none.set_allow(false);
        none.set_typ(Some(oci_spec::runtime::LinuxDeviceType::A));
        none.set_access(Some("rwm".to_owned()));
        rules.insert(0, none);
        for (device, access) in inputs.devices {
            rules.push(device_rule(device, access));
        }
    }
    resources.set_devices(Some(rules));
    resources
}

#[cfg(test)]
mod tests;
