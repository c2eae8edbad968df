//! Everything of a container that is decided before the shim sets it up. Blocking.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxSeccomp};
use portreeve_image::{Image, Snapshot};

use super::container::container_cgroup;
use super::sandbox::bundle_mode;
use super::table::Sandbox;
use super::{Core, files, spawn};
use crate::cdi;
use crate::container::{AppArmorProfile, ContainerConfig, Mount, MountSource, SeccompProfile};
use crate::protocol::{CreateCall, LogCall, RootFsCall};
use crate::record::{self, ContainerPhase, ContainerRecord};
use crate::rootfs::{self, Place};
use crate::sandbox::{IdMapping, UserNamespace};
use crate::spec::{self, ImageMount, ImageVolume, Inputs, SandboxFiles};
use crate::{ContainerId, ContainerState, Device, EngineError, LogRotation, Owner, apparmor, log_place, selinux};

/// A node's seccomp profile is never longer.
const PROFILE: u64 = 1 << 20;
/// Volumes of an image that are made; an image with more is none that somebody uses.
const VOLUMES: usize = 256;
/// Source: `/proc/sys/kernel/overflowuid`, proc(5).
const OVERFLOW: u32 = 65534;

/// Writes the container's directory and makes its snapshot.
pub(super) fn prepare(
    core: &Core,
    sandbox: &Arc<Sandbox>,
    id: &ContainerId,
    directory: &Path,
    config: ContainerConfig,
) -> Result<ContainerRecord, EngineError> {
    let (sandbox_config, pod_labels, cgroup, user_namespace, pid_namespace, runs_hooks) = {
        let facts = sandbox.facts();
        let cgroup = container_cgroup(facts.record.containers_cgroup(), id);
        let runs_hooks = facts.client.as_ref().is_some_and(|client| client.runs_hooks());
        let (record, user, pid) = (&facts.record, facts.user_namespace.clone(), facts.pid_namespace.clone());
        (record.config.clone(), record.selinux.clone(), cgroup, user, pid, runs_hooks)
    };
    let image = find_image(core, config.image_id.as_deref(), &config.image)?;
    let log = log_call(core, sandbox_config.owner, &sandbox_config.log_directory, config.log_path.as_deref())?;
    let image_config = image.config.config().as_ref();

    let accounts = core.accounts.of(&image)?;
    let image_user = image_config.and_then(|image| image.user().as_deref()).unwrap_or_default();
    let mut identity = spec::resolve(&config.security, image_user, &accounts)?;
    let edits = cdi::resolve(&core.config.cdi_directories, &config.cdi_devices)?;
    let own_users = sandbox_config.namespaces.user != UserNamespace::Node;
    if own_users {
        edits.check_own_users()?;
    }
    if edits.has_hooks() && !runs_hooks {
        let message = "one has hooks, which the shim of this pod, an older program, leaves out: make the pod anew";
        return Err(EngineError::invalid("CDI_devices", message));
    }
    for group in edits.groups() {
        if !identity.groups.contains(group) {
            identity.groups.push(*group);
        }
    }
    let stop_signal = config.stop_signal.as_deref().or(image_config.and_then(|image| image.stop_signal().as_deref()));
    let stop_signal = self::stop_signal(stop_signal.unwrap_or_default())?;
    let devices = devices(&config)?;
    let (shown, directories): (Vec<_>, Vec<_>) = shown_images(core, &config)?.into_iter().unzip();
    let wanted = image_volumes(&image, config.security.readonly_rootfs)?;
    let seccomp = match &config.security.seccomp {
        SeccompProfile::Localhost(path) if !config.security.privileged => Some(profile(path)?),
        _ => None,
    };
    let default_apparmor = match &config.security.apparmor {
        AppArmorProfile::Localhost(name) => loaded(name).map(|()| None)?,
        AppArmorProfile::RuntimeDefault if !config.security.privileged => core.apparmor.default_profile(),
        AppArmorProfile::RuntimeDefault | AppArmorProfile::Unconfined => None,
    };
    let labels = core.selinux.of_container(pod_labels.as_ref(), config.security.selinux.as_ref())?;
    let processes_of = match &config.processes_of {
        Some(target) => Some((target.to_string(), first_process(core, sandbox, target)?)),
        None => None,
    };
    let files = core.files_directory(&sandbox.id);
    // A sandbox of an older program has them among its records, and may have no hosts.
    let files = if files.exists() { &files } else { &sandbox.directory };
    let (hostname, resolv_conf, shm) =
        (files.join("hostname"), files.join("resolv.conf"), sandbox.directory.join("shm"));
    let hosts = Some(files.join(files::HOSTS)).filter(|path| path.exists());
    let own_shm = sandbox_config.namespaces.ipc == crate::IpcNamespace::Pod;
    // From here on something exists: the record says so first.
    spawn::private_directory(directory, bundle_mode(&sandbox_config))?;
    let (tty, stdin, stdin_once) = (config.tty, config.stdin, config.stdin_once);
    let mut record = ContainerRecord {
        version: record::VERSION,
        id: id.clone(),
        sandbox: sandbox.id.clone(),
        phase: ContainerPhase::Making,
        config,
        created_at: Timestamp::now(),
        image_id: image.id.to_string(),
        user: (identity.uid, identity.gid),
        groups: identity.groups.clone(),
        stop_signal,
        cgroup: cgroup.clone(),
        call: None,
        started_at: None,
    };
    record::write(&directory.join("container.json"), &record)?;
    let snapshot = core.images.snapshot(id.as_str(), &image, &shown).map_err(|error| EngineError::Images {
        action: format!("making the root file system of {}", record.config.metadata.name),
        source: error.into(),
    })?;
    let images: Vec<ImageMount> =
        directories.into_iter().map(|directories| image_mount(directories, &snapshot.empty)).collect();
    let users = &sandbox_config.namespaces.user;
    let volumes =
        make_volumes(wanted, &snapshot, users).map_err(EngineError::file("making volumes in", &snapshot.upper))?;
    let mut specification = spec::specification(Inputs {
        config: &record.config,
        sandbox: &sandbox_config,
        image: &image.config,
        identity: &identity,
        hostname: &files::hostname(&sandbox_config),
        cgroup: &cgroup,
        files: SandboxFiles {
            hostname: &hostname,
            resolv_conf: &resolv_conf,
            hosts: hosts.as_deref(),
            shm: own_shm.then_some(shm.as_path()),
        },
        user_namespace: user_namespace.as_deref(),
        pid_namespace: pid_namespace.as_deref(),
        processes_of: processes_of.as_ref().map(|(_, pid)| *pid),
        process_label: labels.as_ref().map(|labels| labels.process.as_str()),
        mount_label: labels.as_ref().map(|labels| labels.files.as_str()),
        devices: &devices,
        seccomp,
        images: &images,
        volumes: &volumes,
        default_apparmor,
        capabilities: core.capabilities,
    })?;
    edits.apply(&mut specification, own_users);
    if let Some(labels) = &labels {
        let own = [Some(&hostname), Some(&resolv_conf), hosts.as_ref(), own_shm.then_some(&shm)];
        let own = own.into_iter().flatten().chain(volumes.iter().map(|volume| &volume.upper));
        own.map(PathBuf::as_path).try_for_each(|path| selinux::label(path, &labels.files))?;
        relabel(&record.config.mounts, &labels.files)?;
    }
    if edits.has_hooks() {
        // Where they look for the container's files. It tells whoever finds the container, too, that its shim may be busy.
        spawn::private_directory(&directory.join(record::ROOTFS), 0o700)?;
    }
    let path = directory.join("config.json");
    let bytes =
        serde_json::to_vec(&specification).map_err(|error| EngineError::file("encoding", &path)(error.into()))?;
    record::replace(&path, &bytes, 0o600).map_err(EngineError::file("writing", &path))?;
    if let Some(log) = &log {
        log_place::make(log).map_err(EngineError::file("making the directories of log", &log.path))?;
    }
    record.call = Some(CreateCall {
        container: id.to_string(),
        cgroup,
        rootfs: RootFsCall { lower: snapshot.lower, upper: snapshot.upper, work: snapshot.work },
        log,
        stdin,
        stdin_once,
        tty,
        processes_of,
    });
    Ok(record)
}

/// Gives what is asked to have it the label of the container's files.
fn relabel(mounts: &[Mount], label: &str) -> Result<(), EngineError> {
    for mount in mounts.iter().filter(|mount| mount.relabel) {
        if let MountSource::HostPath(path) = &mount.source {
            selinux::relabel(path, label)?;
        }
    }
    Ok(())
}

/// The first process of a running container of this sandbox.
fn first_process(core: &Core, sandbox: &Sandbox, target: &ContainerId) -> Result<u32, EngineError> {
    let refused = |why: &str| EngineError::invalid("processesOf", format!("container {target} {why}"));
    let found = core.find_container(target).map_err(|_| refused("is not there"))?;
    if found.sandbox != sandbox.id {
        return Err(refused("is of another sandbox"));
    }
    match found.state() {
        ContainerState::Running => found.facts().pid.ok_or_else(|| refused("has no process")),
        _ => Err(refused("does not run")),
    }
}

/// Whether the node has a profile of this name.
fn loaded(name: &str) -> Result<(), EngineError> {
    let message = match apparmor::is_loaded(name) {
        Ok(true) => return Ok(()),
        Ok(false) => format!("profile {name:?} is not loaded on this node; apparmor_parser loads one"),
        Err(error) => format!("profile {name:?}: {error}"),
    };
    Err(EngineError::invalid("apparmor", message))
}

fn find_image(core: &Core, id: Option<&str>, reference: &str) -> Result<Image, EngineError> {
    let found = id.and_then(|id| core.images.resolve(id)).or_else(|| {
        // An id that was given and is gone must not turn into whatever the tag names now.
        if id.is_some() { None } else { core.images.resolve(reference) }
    });
    found.ok_or_else(|| EngineError::ImageMissing { reference: id.unwrap_or(reference).to_owned() })
}

fn log_call(core: &Core, owner: Owner, directory: &Path, path: Option<&Path>) -> Result<Option<LogCall>, EngineError> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else { return Ok(None) };
    if !path.components().all(|component| matches!(component, Component::Normal(_))) {
        return Err(EngineError::invalid("logPath", "must stay below the sandbox's log directory"));
    }
    if directory.as_os_str().is_empty() {
        return Ok(None);
    }
    let rotation = match owner {
        Owner::Node => core.config.log_rotation,
        // A kubelet renames logs by itself and asks for new ones.
        Owner::Cri => LogRotation { max_bytes: u64::MAX, max_files: 1 },
    };
    Ok(Some(LogCall {
        path: directory.join(path),
        directory: directory.to_owned(),
        max_bytes: rotation.max_bytes,
        max_files: rotation.max_files,
    }))
}

/// The number of a signal by its name, with or without `SIG`, or as text; that of `SIGTERM` for no text.
///
/// Source: signal(7).
///
/// # Errors
/// [`EngineError::Invalid`] for what is no signal.
pub fn stop_signal(text: &str) -> Result<i32, EngineError> {
    const FIRST_REALTIME: i32 = 34;
    /// Second names.
    const SYNONYMS: [(&str, &str); 3] = [("CLD", "CHLD"), ("IOT", "ABRT"), ("POLL", "IO")];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let unknown = || EngineError::invalid("stopSignal", format!("{text:?} is not a signal"));
    if name.is_empty() {
        return Ok(nix::libc::SIGTERM);
    }
    let number = if let Ok(number) = name.parse::<i32>() {
        number
    } else if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.parse::<u8>().map_err(|_| unknown())? };
        FIRST_REALTIME + i32::from(offset)
    } else if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset = if offset.is_empty() { 0 } else { offset.parse::<i8>().map_err(|_| unknown())? };
        64 + i32::from(offset)
    } else {
        let first = SYNONYMS.iter().find(|(second, _)| *second == name).map_or(name, |(_, first)| first);
        format!("SIG{first}").parse::<nix::sys::signal::Signal>().map_err(|_| unknown())? as i32
    };
    if (1..=64).contains(&number) { Ok(number) } else { Err(unknown()) }
}

fn devices(config: &ContainerConfig) -> Result<Vec<(LinuxDevice, String)>, EngineError> {
    let mut all = Vec::new();
    for (index, device) in config.devices.iter().enumerate() {
        let field = || format!("devices[{index}]");
        if !device.permissions.chars().all(|c| matches!(c, 'r' | 'w' | 'm')) {
            return Err(EngineError::invalid(
                field(),
                format!("permissions {:?} are not of r, w, m", device.permissions),
            ));
        }
        let refused = |what: String| EngineError::invalid(field(), format!("{}: {what}", device.host_path.display()));
        if device.host_path.is_dir() {
            let before = all.len();
            devices_below(device, &mut all).map_err(|error| refused(error.to_string()))?;
            if all.len() == before {
                return Err(refused("no device is in it".to_owned()));
            }
            continue;
        }
        let found = look(&device.host_path, &device.container_path).map_err(|error| refused(error.to_string()))?;
        let found = found.ok_or_else(|| refused("is no device".to_owned()))?;
        all.push((found, device.permissions.clone()));
    }
    if config.security.privileged {
        node_devices(Path::new("/dev"), &mut all);
    }
    Ok(all)
}

/// The devices of a directory and of those in it, such as /dev/snd, at the same places below another path. Links are not
/// followed.
fn devices_below(asked: &Device, all: &mut Vec<(LinuxDevice, String)>) -> io::Result<()> {
    for entry in fs::read_dir(&asked.host_path)? {
        let entry = entry?;
        let one = Device {
            host_path: entry.path(),
            container_path: asked.container_path.join(entry.file_name()),
            permissions: asked.permissions.clone(),
        };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            devices_below(&one, all)?;
        } else if !kind.is_symlink()
            && let Some(found) = look(&one.host_path, &one.container_path)?
        {
            all.push((found, one.permissions));
        }
    }
    Ok(())
}

fn look(host: &Path, inside: &Path) -> std::io::Result<Option<LinuxDevice>> {
    let metadata = fs::metadata(host)?;
    let kind = metadata.file_type();
    let kind = match (kind.is_char_device(), kind.is_block_device()) {
        (true, _) => LinuxDeviceType::C,
        (_, true) => LinuxDeviceType::B,
        _ => return Ok(None),
    };
    let number = metadata.rdev();
    let mut device = LinuxDevice::default();
    device.set_path(inside.to_owned());
    device.set_typ(kind);
    device.set_major(i64::from(rustix::fs::major(number)));
    device.set_minor(i64::from(rustix::fs::minor(number)));
    device.set_file_mode(Some(metadata.mode() & 0o777));
    device.set_uid(Some(metadata.uid()));
    device.set_gid(Some(metadata.gid()));
    Ok(Some(device))
}

/// All of the node's devices, for a privileged container; those that every container has anyway are left out.
fn node_devices(directory: &Path, all: &mut Vec<(LinuxDevice, String)>) {
    const EVERYBODYS: [&str; 12] =
        ["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm", "mqueue", "fd"];
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if EVERYBODYS.iter().any(|name| entry.file_name() == *name) || kind.is_symlink() {
            continue;
        }
        if kind.is_dir() {
            node_devices(&path, all);
        } else if let Ok(Some(device)) = look(&path, &path) {
            all.push((device, "rwm".to_owned()));
        }
    }
}

/// The images that are mounted into the container, in the order of such mounts, each with the directories that it shows,
/// topmost first.
fn shown_images(core: &Core, config: &ContainerConfig) -> Result<Vec<(Image, Vec<PathBuf>)>, EngineError> {
    let mut all = Vec::new();
    for mount in &config.mounts {
        let MountSource::Image { id, sub_path } = &mount.source else { continue };
        let image = find_image(core, None, id)?;
        let directories = match sub_path.as_deref().filter(|path| !path.as_os_str().is_empty()) {
            None => image.layers.clone(),
            Some(path) => sub_directory(&image.layers, path)?,
        };
        all.push((image, directories));
    }
    Ok(all)
}

/// How they are mounted, with a directory in which nothing is.
fn image_mount(mut directories: Vec<PathBuf>, empty: &Path) -> ImageMount {
    match directories.len() {
        0 => ImageMount::Empty,
        // One layer alone may hide things, too, of which only an overlay knows, and an overlay has two.
        1 => {
            directories.push(empty.to_owned());
            ImageMount::Layers(directories)
        }
        _ => ImageMount::Layers(directories),
    }
}

/// The same directory of every layer that has it, down to the first that hides the others.
fn sub_directory(layers: &[PathBuf], path: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let refused = |why: &str| EngineError::invalid("image volume", format!("subPath {}: {why}", path.display()));
    if !path.components().all(|component| matches!(component, Component::Normal(_) | Component::CurDir)) {
        return Err(refused("must be relative and without .."));
    }
    let found = rootfs::directories(layers, path).map_err(|error| refused(&error.to_string()))?;
    if found.is_empty() { Err(refused("is not a directory of the image")) } else { Ok(found) }
}

/// A volume that an image names, and what the image has there, topmost first.
type Wanted = (PathBuf, Vec<PathBuf>);

/// Volumes of the image that its own writable layer does not serve: on a read-only root, or not in the image.
fn image_volumes(image: &Image, readonly: bool) -> Result<Vec<Wanted>, EngineError> {
    let named = image.config.config().as_ref().and_then(|config| config.volumes().clone()).unwrap_or_default();
    let mut all = Vec::new();
    for path in named.into_iter().take(VOLUMES).map(PathBuf::from) {
        match rootfs::place(&image.layers, &path).map_err(EngineError::file("looking for the image's volume", &path))? {
            Place::Directory(lower) if readonly => all.push((path, lower)),
            // What is written there goes where all that is written goes.
            Place::Directory(_) | Place::File => {}
            Place::Absent => all.push((path, Vec::new())),
        }
    }
    // Parents before what is in them.
    all.sort_by_key(|(path, _)| path.components().count());
    Ok(all)
}

/// Makes a place beside the container's writable layer, with which it goes, for each volume.
fn make_volumes(wanted: Vec<Wanted>, snapshot: &Snapshot, users: &UserNamespace) -> io::Result<Vec<ImageVolume>> {
    let Some(home) = snapshot.upper.parent().map(|home| home.join("volumes")).filter(|_| !wanted.is_empty()) else {
        return Ok(Vec::new());
    };
    let private = |path: &Path| DirBuilder::new().mode(0o700).create(path);
    private(&home)?;
    let mut made = Vec::new();
    for (number, (path, lower)) in wanted.into_iter().enumerate() {
        let place = home.join(number.to_string());
        let (upper, work) = (place.join("upper"), place.join("work"));
        for directory in [&place, &upper, &work] {
            private(directory)?;
        }
        // A new directory is root's; one of the image is as the image has it.
        let mut mode = 0o755;
        if let Some(top) = lower.first() {
            let top = fs::symlink_metadata(top)?;
            mode = top.mode() & 0o7777;
            let owner = match users {
                UserNamespace::Node => (top.uid(), top.gid()),
                // What is written to an overlay is stored with the node's ids.
                UserNamespace::Pod { uid_maps, gid_maps } => {
                    (on_node(uid_maps, top.uid()), on_node(gid_maps, top.gid()))
                }
            };
            std::os::unix::fs::chown(&upper, Some(owner.0), Some(owner.1))?;
        }
        fs::set_permissions(&upper, fs::Permissions::from_mode(mode))?;
        made.push(ImageVolume { path, lower, upper, work });
    }
    Ok(made)
}

/// The node's id of one of a pod with its own; the overflow id where it has none.
fn on_node(maps: &[IdMapping], id: u32) -> u32 {
    let row = maps.iter().find(|row| id.checked_sub(row.container).is_some_and(|offset| offset < row.length));
    row.and_then(|row| row.host.checked_add(id - row.container)).unwrap_or(OVERFLOW)
}

fn profile(path: &Path) -> Result<LinuxSeccomp, EngineError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    // A named pipe would be waited for.
    let opened = fs::File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = opened.map_err(EngineError::file("opening seccomp profile", path))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(EngineError::invalid("seccomp", format!("{} is no file", path.display())));
    }
    file.take(PROFILE).read_to_end(&mut bytes).map_err(EngineError::file("reading seccomp profile", path))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| EngineError::invalid("seccomp", format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_signal_is_a_name_a_number_or_nothing() {
        let expect =
            [("", 15), ("SIGQUIT", 3), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("SIGRTMIN", 34)];
        for (text, number) in expect {
            assert_eq!(stop_signal(text).unwrap(), number, "{text}");
        }
        for (text, number) in [("SIGCLD", 17), ("IOT", 6), ("SIGPOLL", 29)] {
            assert_eq!(stop_signal(text).unwrap(), number, "{text}");
        }
        for text in ["SIGNOPE", "0", "65", "-1", "RTMIN+99"] {
            assert!(stop_signal(text).is_err(), "{text}");
        }
    }
}
