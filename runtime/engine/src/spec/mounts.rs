//! What is mounted where in a container.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount as OciMount;

use super::{ImageMount, ImageVolume, Inputs, id_mappings};
use crate::EngineError;
use crate::container::{ContainerConfig, Mount, MountSource, Propagation};
use crate::sandbox::{IpcNamespace, NetworkNamespace, UserNamespace};

fn mount(destination: impl Into<PathBuf>, kind: &str, source: impl Into<PathBuf>, options: &[&str]) -> OciMount {
    let mut mount = OciMount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.into()));
    mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

/// The engine's own mounts, those of the caller in their place where the paths are the same, then the others of the
/// caller, parents before children.
pub(super) fn mounts(inputs: &Inputs<'_>) -> Result<Vec<OciMount>, EngineError> {
    let mut images = inputs.images.iter();
    let mut given: Vec<(PathBuf, OciMount)> = Vec::new();
    for (index, one) in inputs.config.mounts.iter().enumerate() {
        let path = clean(&one.container_path).ok_or_else(|| {
            EngineError::invalid(format!("mounts[{index}].containerPath"), "must be an absolute path other than /")
        })?;
        let mount = translate(index, one, &path, &mut images)?;
        given.push((path, mapped_as_asked(inputs, index, one, mount)?));
    }
    let taken = |path: &Path| given.iter().any(|(other, _)| other == path);
    let mut all: Vec<OciMount> = own(inputs).into_iter().filter(|one| !taken(one.destination())).collect();
    for volume in inputs.volumes {
        if let Some(path) = clean(&volume.path).filter(|path| !taken(path)) {
            all.push(mapped(inputs, image_volume(path, volume)));
        }
    }
    let mut given: Vec<OciMount> = given.into_iter().map(|(_, one)| one).collect();
    given.sort_by_key(|one| one.destination().components().count());
    all.extend(given);
    Ok(all)
}

fn image_volume(path: PathBuf, volume: &ImageVolume) -> OciMount {
    if volume.lower.is_empty() {
        return mount(path, "bind", &volume.upper, &["bind", "rprivate", "rw", "nosuid", "nodev"]);
    }
    let (upper, work) = (volume.upper.display(), volume.work.display());
    let options =
        [format!("lowerdir={}", layers(&volume.lower)), format!("upperdir={upper}"), format!("workdir={work}")];
    let [lower, upper, work] = &options;
    mount(path, "overlay", "overlay", &["rw", "nosuid", "nodev", lower, upper, work])
}

/// Directories as overlayfs lists them. A name is the image's choice: a colon in it must not begin another directory.
fn layers(directories: &[PathBuf]) -> String {
    let names = directories.iter().map(|one| one.display().to_string().replace('\\', "\\\\").replace(':', "\\:"));
    names.collect::<Vec<_>>().join(":")
}

/// With users of its own a pod knows what it is given, volumes as well as files, by its own ids.
fn mapped(inputs: &Inputs<'_>, mut given: OciMount) -> OciMount {
    let can = matches!(given.typ().as_deref(), Some("bind" | "overlay"));
    if can && inputs.sandbox.namespaces.user != UserNamespace::Node {
        let mut options = given.options().clone().unwrap_or_default();
        options.push("idmap".to_owned());
        given.set_options(Some(options));
    }
    given
}

/// With the ids that were asked for; without any, as [`mapped`].
fn mapped_as_asked(
    inputs: &Inputs<'_>,
    index: usize,
    asked: &Mount,
    mut given: OciMount,
) -> Result<OciMount, EngineError> {
    let Some(ids) = &asked.ids else { return Ok(mapped(inputs, given)) };
    let pods = matches!(
        &inputs.sandbox.namespaces.user,
        UserNamespace::Pod { uid_maps, gid_maps } if *uid_maps == ids.users && *gid_maps == ids.groups
    );
    if pods {
        return Ok(mapped(inputs, given));
    }
    if !matches!(asked.source, MountSource::HostPath(_)) {
        let message = "ids that are not those of the pod's users are for paths of the node";
        return Err(EngineError::invalid(format!("mounts[{index}].uidMappings"), message));
    }
    given.set_uid_mappings(Some(id_mappings(&ids.users)));
    given.set_gid_mappings(Some(id_mappings(&ids.groups)));
    let mut options = given.options().clone().unwrap_or_default();
    options.push("idmap".to_owned());
    given.set_options(Some(options));
    Ok(given)
}

fn own(inputs: &Inputs<'_>) -> Vec<OciMount> {
    let privileged = inputs.config.security.privileged;
    let namespaces = &inputs.sandbox.namespaces;
    let ro = if privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
    ];
    // A user namespace that does not own the network cannot mount its sysfs.
    let foreign = namespaces.network == NetworkNamespace::Node && namespaces.user != UserNamespace::Node;
    all.push(if foreign {
        mount("/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", "rro"])
    } else {
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", ro])
    });
    all.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", ro]));
    // It shows the queues of whatever ipc the container is in; the node's may be shown to the node's users only.
    if namespaces.ipc == IpcNamespace::Pod || namespaces.user == UserNamespace::Node {
        all.push(mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    }
    let shm = |source: &Path| mount("/dev/shm", "bind", source, &["bind", "nosuid", "noexec", "nodev", "rprivate"]);
    all.push(match inputs.files.shm {
        Some(own) => mapped(inputs, shm(own)),
        None => shm(Path::new("/dev/shm")),
    });
    let ro = if inputs.config.security.readonly_rootfs { "ro" } else { "rw" };
    let files = &inputs.files;
    for (destination, source) in [
        ("/etc/hostname", Some(files.hostname)),
        ("/etc/resolv.conf", Some(files.resolv_conf)),
        ("/etc/hosts", files.hosts),
    ] {
        let Some(source) = source else { continue };
        all.push(mapped(
            inputs,
            mount(destination, "bind", source, &["bind", "nosuid", "nodev", "noexec", "rprivate", ro]),
        ));
    }
    all
}

fn translate<'a>(
    index: usize,
    one: &Mount,
    path: &Path,
    images: &mut impl Iterator<Item = &'a ImageMount>,
) -> Result<OciMount, EngineError> {
    if one.recursive_readonly && (!one.readonly || one.propagation != Propagation::Private) {
        return Err(EngineError::invalid(
            format!("mounts[{index}].recursiveReadOnly"),
            "needs readOnly and no propagation",
        ));
    }
    Ok(match &one.source {
        MountSource::HostPath(source) => {
            let access = match (one.recursive_readonly, one.readonly) {
                (true, _) => "rro",
                (_, true) => "ro",
                _ => "rw",
            };
            let propagation = match one.propagation {
                Propagation::Private => "rprivate",
                Propagation::HostToContainer => "rslave",
                Propagation::Bidirectional => "rshared",
            };
            let further = one.options.iter().map(String::as_str);
            mount(path, "bind", source, &["rbind", propagation, access].into_iter().chain(further).collect::<Vec<_>>())
        }
        MountSource::Image { id, .. } => match images.next() {
            Some(ImageMount::Empty) => mount(path, "tmpfs", "tmpfs", &of_image(&one.options, &["mode=755", "size=4k"])),
            // Never a bind of the store's own directory: who may mount in his namespaces makes that writable, and
            // with users of his own writes as the node's root. An overlay without an upper directory stays read-only.
            Some(ImageMount::Layers(found)) => {
                let lower = format!("lowerdir={}", layers(found));
                mount(path, "overlay", "overlay", &of_image(&one.options, &[lower.as_str()]))
            }
            None => {
                let message = format!("image {id:?} was not looked up");
                return Err(EngineError::invalid(format!("mounts[{index}]"), message));
            }
        },
        MountSource::Tmpfs { size_bytes } => {
            let size = format!("size={size_bytes}");
            let access = if one.readonly { "ro" } else { "rw" };
            mount(path, "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=1777", access, size.as_str()])
        }
    })
}

/// Options of what an image shows: read-only, whatever else it is kept from, and those of its file system.
fn of_image<'o>(asked: &'o [String], further: &[&'o str]) -> Vec<&'o str> {
    let always = ["ro", "nosuid", "nodev"];
    let asked = asked.iter().map(String::as_str).filter(|option| !always.contains(option));
    always.into_iter().chain(asked).chain(further.iter().copied()).collect()
}

/// What the root's propagation must be for the mounts' own to work.
pub(super) fn root_propagation(config: &ContainerConfig) -> Result<Option<String>, EngineError> {
    let any = |wanted| config.mounts.iter().any(|one| one.propagation == wanted);
    if any(Propagation::Bidirectional) {
        if !config.security.privileged {
            return Err(EngineError::invalid("mountPropagation", "Bidirectional is for privileged containers only"));
        }
        return Ok(Some("rshared".to_owned()));
    }
    Ok(any(Propagation::HostToContainer).then(|| "rslave".to_owned()))
}

/// The path without `.`, `..` and doubled slashes; `None` when it is not absolute or the root itself.
pub(crate) fn clean(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::from("/");
    for component in path.is_absolute().then_some(path)?.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    (clean != Path::new("/")).then_some(clean)
}
