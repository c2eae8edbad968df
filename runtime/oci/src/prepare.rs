//! What the maker opens before the container's process exists: sources of mounts, the root, devices.
//!
//! Everything is a detached mount or an open file that the child inherits by its number: in a user namespace it could
//! not open these paths, and after pivot_root nobody in the container can.
//!
//! A maker who may not mount leaves it to the child, which may in the mount namespace of its user namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use portreeve_sys::capability::{self, CAP_SETPCAP};
use portreeve_sys::clone::{NEW_IPC, NEW_MOUNT, NEW_NET, NEW_PID, NEW_USER};
use portreeve_sys::mount::{self, Change, Propagation, READ_ONLY};
use portreeve_sys::namespace;
use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::cgroup::Cgroup;
use crate::create::RootFs;
use crate::error::{CreateError, SetupError, Step, Warning};
use crate::init::private_procfs;
use crate::lifecycle::Rootless;
use crate::locks::lock;
use crate::plan::identity::{self, CapabilityMasks, Identity};
use crate::plan::mounts::{IdMap, LABEL, LABEL_NEEDS, MountOp, What};
use crate::plan::namespaces::Namespaces;
use crate::plan::sysctl::Sysctl;
use crate::userns;

/// A device that the container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    pub(crate) kind: LinuxDeviceType,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Devices that every container has.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The default devices and those of the configuration, which win.
pub(crate) fn devices(given: &[LinuxDevice]) -> Result<Vec<Device>, SetupError> {
    let number = |value: i64, path: &Path| {
        u32::try_from(value)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
            .step("reading the number of device", path)
    };
    // dev_t of mknod(2), as Linux has it.
    let fits = |device: &LinuxDevice| (0..1 << 12).contains(&device.major()) && (0..1 << 20).contains(&device.minor());
    let wrong = |why: &str, device: &LinuxDevice| {
        Err(io::Error::new(io::ErrorKind::InvalidInput, why.to_owned())).step("making device", device.path())
    };
    let mut devices = Vec::new();
    for device in given {
        let path = crate::plan::mounts::clean(device.path());
        if path == Path::new("/") {
            return wrong("it needs the path of a file in the container", device);
        }
        match device.typ() {
            LinuxDeviceType::A => return wrong("its type, a, is for rules alone", device),
            // A FIFO has no number, and no driver has this one.
            LinuxDeviceType::P => {}
            _ if !fits(device) => {
                return wrong("Linux has major numbers below 4096 and minor ones below 1048576", device);
            }
            _ if (device.major(), device.minor()) != (0, 0) => {}
            _ => return wrong("its major and minor number are missing", device),
        }
        devices.push(Device {
            path,
            kind: device.typ(),
            major: number(device.major(), device.path())?,
            minor: number(device.minor(), device.path())?,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        });
    }
    for (path, major, minor) in DEFAULT_DEVICES {
        let path = PathBuf::from(path);
        if devices.iter().all(|device: &Device| device.path != path) {
            devices.push(Device { path, kind: LinuxDeviceType::C, major, minor, mode: 0o666, uid: 0, gid: 0 });
        }
    }
    Ok(devices)
}

/// A source for one mount of the plan.
#[derive(Debug)]
pub(crate) enum Source {
    /// Made by the child.
    None,
    /// A detached tree.
    Tree { tree: OwnedFd, directory: bool },
    /// Version 1 hierarchies: name below the mount point, detached tree.
    Cgroups(Vec<(String, OwnedFd)>),
}

/// Everything that has been opened.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Detached root mount.
    pub(crate) root: OwnedFd,
    /// One per mount of the plan.
    pub(crate) sources: Vec<Source>,
    /// The host's /dev/null, checked, as a detached mount: covers masked files.
    pub(crate) null: OwnedFd,
    /// For a process that may make no nodes: detached mounts of the host's, by index of the device; none for a FIFO.
    pub(crate) nodes: Vec<Option<OwnedFd>>,
}

/// What is to be opened.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) rootfs: &'a RootFs,
    /// Whether mounts of the host below the root file system are to appear in the container.
    pub(crate) receives: bool,
    pub(crate) mounts: &'a [MountOp],
    pub(crate) cgroup: Option<&'a Cgroup>,
    pub(crate) devices: &'a [Device],
    /// Of a container that has one of its own.
    pub(crate) user_namespace: Option<BorrowedFd<'a>>,
    /// User and group of the host that its root is mapped to.
    pub(crate) owner: (u32, u32),
    /// The SELinux label of every file that layers show.
    pub(crate) label: Option<&'a str>,
    pub(crate) rootless: Rootless,
}

impl Wanted<'_> {
    /// Opens all of it.
    pub(crate) fn open(&self) -> Result<Prepared, SetupError> {
        let binds = self.user_namespace.is_some() || self.rootless == Rootless::Yes;
        let node = |device: &Device| {
            // Everybody may make a FIFO, and the host has none for it.
            let bound = binds && device.kind != LinuxDeviceType::P;
            bound.then(|| node(&device.path)).transpose()
        };
        Ok(Prepared {
            root: root(self.rootfs, self.receives, self.user_namespace, self.owner, self.label)?,
            sources: self.sources()?,
            null: null_device()?,
            nodes: self.devices.iter().map(node).collect::<Result<_, _>>()?,
        })
    }

    /// Opens the sources of every mount.
    fn sources(&self) -> Result<Vec<Source>, SetupError> {
        let mut maps = MapNamespaces::default();
        let sources = self.mounts.iter().map(|op| self.source(op, &mut maps));
        let mut sources = sources.collect::<Result<Vec<_>, SetupError>>()?;
        // Who makes containers in a user namespace that is not the machine's has mounts that are locked already.
        if self.user_namespace.is_some() && self.rootless == Rootless::No {
            let restricted = self.mounts.iter().zip(&mut sources).filter(|(op, _)| has_flags_to_lock(op));
            let mut trees: Vec<&mut OwnedFd> = restricted
                .flat_map(|(_, source)| match source {
                    Source::None => Vec::new(),
                    Source::Tree { tree, .. } => vec![tree],
                    Source::Cgroups(trees) => trees.iter_mut().map(|(_, tree)| tree).collect(),
                })
                .collect();
            lock(&mut trees).step("locking the flags of the container's mounts", "")?;
        }
        Ok(sources)
    }

    fn source(&self, op: &MountOp, maps: &mut MapNamespaces) -> Result<Source, SetupError> {
        match &op.what {
            What::Filesystem { .. } => Ok(Source::None),
            What::Bind { source, recursive, own, tree: all, id_map } => {
                let opening = |error: &io::Error| format!("opening the bind source{}", in_the_way(error, *recursive));
                let tree = mount::clone_tree(CWD, source, *recursive, false);
                let tree = tree
                    .map_err(|error| (opening(&error), error))
                    .or_else(|(what, error)| Err(error).step(&what, source))?;
                let directory = is_directory(tree.as_fd()).step("looking at the bind source", source)?;
                cut_off(tree.as_fd(), op.propagation).step("setting the propagation of", source)?;
                if !own.is_empty() {
                    let change = Change { set: own.set, clear: own.clear, ..Change::default() };
                    mount::set_attributes(tree.as_fd(), &change).step("setting mount options of", source)?;
                }
                // Last, as in other runtimes: `rro` makes everything read-only, whatever is said of the topmost mount.
                if !all.is_empty() {
                    let change = Change { set: all.set, clear: all.clear, recursive: true, ..Change::default() };
                    mount::set_attributes(tree.as_fd(), &change).step("setting recursive mount options of", source)?;
                }
                if let Some(map) = id_map {
                    apply_id_map(tree.as_fd(), map, self.user_namespace, maps)
                        .map_err(|error| unmappable(source, op, error))?;
                }
                Ok(Source::Tree { tree, directory })
            }
            What::Layers { name, lower, writable, id_map, attributes } => {
                let namespace = self.user_namespace.filter(|_| *id_map);
                let writable = writable.as_ref().map(|(upper, work)| (upper.as_path(), work.as_path()));
                let wanted = Overlay { name, lower, writable, label: self.label, attributes: *attributes };
                let tree = overlay(wanted, namespace)?;
                set_propagation(tree.as_fd(), op.propagation).step("setting the propagation of", &op.destination)?;
                Ok(Source::Tree { tree, directory: true })
            }
            What::Cgroup { own } => {
                let Some(cgroup) = self.cgroup else { return self.the_hosts_cgroups(op) };
                let change = Change { set: own.set, clear: own.clear, ..Change::default() };
                let mut trees = Vec::new();
                for (name, directory) in cgroup.mount_sources() {
                    let tree =
                        mount::clone_tree(CWD, &directory, false, true).step("opening the cgroup", &directory)?;
                    set_propagation(tree.as_fd(), op.propagation).step("setting the propagation of", &directory)?;
                    if !own.is_empty() {
                        mount::set_attributes(tree.as_fd(), &change).step("setting mount options of", &directory)?;
                    }
                    trees.push((name, tree));
                }
                match trees.as_slice() {
                    [(name, _)] if name.is_empty() => {
                        Ok(trees.pop().map_or(Source::None, |(_, tree)| Source::Tree { tree, directory: true }))
                    }
                    _ => Ok(Source::Cgroups(trees)),
                }
            }
        }
    }

    /// A container that stays in its maker's cgroup sees what the maker sees, and changes nothing, whatever the options
    /// say (CVE-2023-25809).
    fn the_hosts_cgroups(&self, op: &MountOp) -> Result<Source, SetupError> {
        const PLACE: &str = "/sys/fs/cgroup";
        if self.rootless == Rootless::No {
            let lacks = io::Error::new(io::ErrorKind::InvalidInput, "the container has no cgroup of its own");
            return Err(lacks).step("mounting the cgroup on", &op.destination);
        }
        let floor = READ_ONLY | mount::NO_SUID | mount::NO_DEV | mount::NO_EXEC;
        let change = Change { set: floor, recursive: true, ..Change::default() };
        let tree = mount::clone_tree(CWD, Path::new(PLACE), true, true).step("opening the cgroups", PLACE)?;
        cut_off(tree.as_fd(), op.propagation).step("setting the propagation of", PLACE)?;
        mount::set_attributes(tree.as_fd(), &change).step("making read-only", PLACE)?;
        Ok(Source::Tree { tree, directory: true })
    }
}

/// Whether a mount has flags that the container must not take back. One that is to be shared with the host would be its
/// slave, and of an unbindable one there is no copy: these stay as they are.
fn has_flags_to_lock(op: &MountOp) -> bool {
    let set = match &op.what {
        What::Filesystem { .. } => 0,
        What::Bind { own, tree, .. } => own.set | tree.set,
        What::Layers { attributes, .. } => *attributes,
        What::Cgroup { own } => own.set,
    };
    let lockable = READ_ONLY | mount::NO_SUID | mount::NO_DEV | mount::NO_EXEC;
    let movable = !matches!(op.propagation, Some((Propagation::Shared | Propagation::Unbindable, _)));
    set & lockable != 0 && movable
}

/// What the kernel means by EINVAL about a copy of one mount without those below it.
fn in_the_way(error: &io::Error, recursive: bool) -> &'static str {
    let invalid = error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error());
    if invalid && !recursive {
        " (in a user namespace, what the host's mounts below it cover stays covered: use rbind)"
    } else {
        ""
    }
}

/// Whether the caller may mount where it is: the root of a user namespace alone, without a mount namespace that is the
/// user namespace's, may not.
pub(crate) fn may_mount() -> Result<bool, SetupError> {
    match mount::clone_tree(CWD, Path::new("/dev/null"), false, true) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error()) => Ok(false),
        other => other.map(|_| true).step("opening", "/dev/null"),
    }
}

/// Refuses to join the caller's own namespace, where parameters of the container would be the caller's.
pub(crate) fn own_parameters(sysctls: &[Sysctl], joins: &[(u64, OwnedFd)]) -> Result<(), CreateError> {
    for sysctl in sysctls {
        let Some((_, joined)) = joins.iter().find(|(kind, _)| *kind == sysctl.namespace) else { continue };
        let name = match sysctl.namespace {
            NEW_NET => "net",
            NEW_IPC => "ipc",
            _ => "uts",
        };
        let path = format!("/proc/thread-self/ns/{name}");
        let ours = rustix::fs::stat(&path).step("looking at", path.as_str())?;
        let joined = rustix::fs::fstat(joined).step("looking at the namespace to join", "")?;
        if (ours.st_dev, ours.st_ino) == (joined.st_dev, joined.st_ino) {
            return Err(sysctl.refusal("the namespace to join is the caller's own").into());
        }
    }
    Ok(())
}

/// A procfs for a process that needs one for kernel parameters (`writes`) or for its label and may not make it: one that
/// shows a PID namespace is made by the owner of that alone, who is another one in a new user namespace without a new PID
/// namespace. Made by a process that sees as much of the machine as that one does.
pub(crate) fn procfs(namespaces: &Namespaces, identity: &Identity, writes: bool) -> Option<OwnedFd> {
    let others = namespaces.has(NEW_USER) && namespaces.new & NEW_PID == 0;
    let needed = writes || identity.apparmor_profile.is_some() || identity.selinux_label.is_some();
    // Who may not make it either leaves it to the process, whose refusal is told.
    (others && needed).then(private_procfs)?.ok()
}

/// Says which of the program's capabilities it will not have: because the sets contradict each other, or the runtime has
/// not what it is to give; in a user namespace that is not the runtime's own it has all. Source: runtime-spec, config.md, `capabilities`: such a one is a warning.
pub(crate) fn beyond(wanted: &CapabilityMasks, user_namespace: bool) -> Result<Vec<Warning>, SetupError> {
    let mut told = Vec::new();
    let nobodys = wanted.contradictory();
    if nobodys != 0 {
        let names = identity::names(nobodys);
        told.push(format!(
            "the program goes without {names}: what is effective has to be permitted, what is ambient inheritable as well"
        ));
    }
    if !user_namespace {
        let held = capability::get().step("reading the runtime's capabilities", "")?.permitted;
        let lacking = wanted.beyond(held);
        if lacking != 0 {
            told.push(format!("the runtime does not have {}, and the program goes without", identity::names(lacking)));
        }
        if held & (1 << CAP_SETPCAP) == 0 {
            told.push(
                "the runtime does not have CAP_SETPCAP, and the program's bounding set is the runtime's".to_owned(),
            );
        }
    }
    Ok(told.into_iter().map(|what| Warning { what, errno: None }).collect())
}

/// User namespaces for the maps of mounts: each costs a process, and many mounts have the same maps.
#[derive(Debug, Default)]
struct MapNamespaces {
    made: Vec<(IdMap, OwnedFd)>,
}

impl MapNamespaces {
    fn get(&mut self, map: &IdMap) -> io::Result<BorrowedFd<'_>> {
        let at = self.made.iter().position(|(made, _)| made.uids == map.uids && made.gids == map.gids);
        if at.is_none() {
            self.made.push((map.clone(), userns::with_maps(&map.uids, &map.gids)?));
        }
        let found = self.made.get(at.unwrap_or(self.made.len() - 1));
        found.map(|(_, namespace)| namespace.as_fd()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Says what is in the way of a bind whose ids cannot be mapped.
fn unmappable(source: &Path, op: &MountOp, error: io::Error) -> SetupError {
    let hint = if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) {
        "its file system has no id-mapped mounts: give the container the node's users, or another volume"
    } else {
        "of a container with users of its own"
    };
    let operation = format!("mapping the ids of {} ({hint}) for the mount on", source.display());
    SetupError { operation, path: op.destination.clone(), source: error }
}

fn apply_id_map(
    tree: BorrowedFd<'_>,
    map: &IdMap,
    user_namespace: Option<BorrowedFd<'_>>,
    maps: &mut MapNamespaces,
) -> io::Result<()> {
    let namespace = if map.uids.is_empty() {
        user_namespace
            .ok_or_else(|| io::Error::other("the container has no user namespace whose maps could be used"))?
    } else {
        maps.get(map)?
    };
    mount::set_attributes(tree, &Change { id_map: Some(namespace), recursive: map.recursive, ..Change::default() })
}

/// Sets the propagation of a copy of the host's mounts. What is said of the topmost mount alone leaves those below it
/// shared with the host, where the host's are: unless that is asked for, what is mounted there would be on the host.
fn cut_off(tree: BorrowedFd<'_>, propagation: Option<(Propagation, bool)>) -> io::Result<()> {
    let below = match propagation {
        Some((Propagation::Slave, false)) => Some((Propagation::Slave, true)),
        Some((Propagation::Private | Propagation::Unbindable, false)) => Some((Propagation::Private, true)),
        _ => None,
    };
    set_propagation(tree, below)?;
    set_propagation(tree, propagation)
}

pub(crate) fn set_propagation(tree: BorrowedFd<'_>, propagation: Option<(Propagation, bool)>) -> io::Result<()> {
    let Some((propagation, recursive)) = propagation else { return Ok(()) };
    mount::set_attributes(tree, &Change { propagation: Some(propagation), recursive, ..Change::default() })
}

fn is_directory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}

/// The host's /dev/null as a detached mount; anything else at that path is refused (CVE-2025-31133).
pub(crate) fn null_device() -> Result<OwnedFd, SetupError> {
    let tree = node(Path::new("/dev/null"))?;
    let stat = rustix::fs::fstat(&tree).step("looking at", "/dev/null")?;
    let is_null =
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == rustix::fs::makedev(1, 3);
    if is_null { Ok(tree) } else { Err(io::Error::other("it is not the null device")).step("looking at", "/dev/null") }
}

/// A node of the host as a detached mount. It is read-only, which is no matter for what is written to the device: the
/// inode is the host's own, and a root without a user namespace would change its mode and owner for everybody.
pub(crate) fn node(path: &Path) -> Result<OwnedFd, SetupError> {
    let tree = mount::clone_tree(CWD, path, false, true).step("opening the device", path)?;
    let change = Change { set: READ_ONLY | mount::NO_SUID | mount::NO_EXEC, ..Change::default() };
    mount::set_attributes(tree.as_fd(), &change).step("making read-only", path)?;
    set_propagation(tree.as_fd(), Some((Propagation::Private, false))).step("setting the propagation of", path)?;
    Ok(tree)
}

/// The root file system as a detached mount. When it `receives`, mounts that are made later below the directory on the
/// host appear in the container.
///
/// In a user namespace the layers are mounted id-mapped, so that files of the image's root belong to the container's.
pub(crate) fn root(
    from: &RootFs,
    receives: bool,
    user_namespace: Option<BorrowedFd<'_>>,
    owner: (u32, u32),
    label: Option<&str>,
) -> Result<OwnedFd, SetupError> {
    match from {
        RootFs::Directory(path) => {
            // no_follow: a bundle whose rootfs is a link could name any directory of the host.
            let tree = mount::clone_tree(CWD, path, true, true).step("opening the root file system", path)?;
            if !is_directory(tree.as_fd()).step("looking at the root file system", path)? {
                return Err(rustix::io::Errno::NOTDIR).step("opening the root file system", path);
            }
            let propagation = if receives { Propagation::Slave } else { Propagation::Private };
            set_propagation(tree.as_fd(), Some((propagation, true))).step("setting the propagation of", path)?;
            Ok(tree)
        }
        RootFs::Overlay { lower, upper, work } => {
            if user_namespace.is_some() {
                // What the container creates is stored with the ids of the host that it is mapped to.
                let (user, group) = (rustix::fs::Uid::from_raw(owner.0), rustix::fs::Gid::from_raw(owner.1));
                rustix::fs::chown(upper, Some(user), Some(group))
                    .step("giving the writable layer to the container's root user:", upper)?;
            }
            let wanted = Overlay { name: "overlay", lower, writable: Some((upper, work)), label, attributes: 0 };
            overlay(wanted, user_namespace)
        }
    }
}

/// Layers over one another, as a detached mount is to show them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Overlay<'a> {
    /// The source that is shown.
    pub(crate) name: &'a str,
    /// Topmost first; at least two where nothing can be written.
    pub(crate) lower: &'a [PathBuf],
    /// A place to write: layer, work directory.
    pub(crate) writable: Option<(&'a Path, &'a Path)>,
    /// The SELinux label of every file, whatever the layers have.
    pub(crate) label: Option<&'a str>,
    pub(crate) attributes: u64,
}

/// An overlay as a detached mount.
pub(crate) fn overlay(wanted: Overlay<'_>, user_namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, SetupError> {
    use rustix::io::Errno;
    match overlay_by_layers(wanted, user_namespace) {
        Err(error) => match error.source.raw_os_error().map(Errno::from_raw_os_error) {
            // Overlay takes layers by descriptor since Linux 6.13; before, by path alone.
            Some(Errno::BADF | Errno::INVAL | Errno::OPNOTSUPP) if let Some(namespace) = user_namespace => {
                overlay_by_attached_layers(wanted, namespace)
            }
            // `lowerdir+` came with Linux 6.8; before, all layers are one string.
            Some(Errno::INVAL) => overlay_by_string(wanted).map_err(|_| error),
            _ => Err(error),
        },
        made => made,
    }
}

fn overlay_by_layers(wanted: Overlay<'_>, user_namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, SetupError> {
    let filesystem = mount::new_filesystem("overlay").step("opening the overlay file system", "")?;
    let filesystem = filesystem.as_fd();
    mount::set_string(filesystem, "source", wanted.name).step("naming the overlay", "")?;
    // A detached mount ends with its last descriptor, and overlay takes its copies only in the end.
    let mut trees = Vec::new();
    for layer in wanted.lower {
        if let Some(namespace) = user_namespace {
            let tree = mapped(layer, namespace)?;
            mount::set_fd(filesystem, "lowerdir+", tree.as_fd()).step("adding the id-mapped layer", layer)?;
            trees.push(tree);
        } else {
            set_path(filesystem, "lowerdir+", layer).step("adding the layer", layer)?;
        }
    }
    finish_overlay(filesystem, wanted)
}

/// A layer as a detached mount that shows its files with the ids of the user namespace.
fn mapped(layer: &Path, namespace: BorrowedFd<'_>) -> Result<OwnedFd, SetupError> {
    let tree = mount::clone_tree(CWD, layer, false, true).step("opening the layer", layer)?;
    let change = Change { set: READ_ONLY, id_map: Some(namespace), ..Change::default() };
    mount::set_attributes(tree.as_fd(), &change)
        .step("mapping the ids of the layer (overlay takes such layers since Linux 5.19)", layer)?;
    Ok(tree)
}

/// Each layer is covered by its own id-mapped mount, in a mount namespace that nobody else sees and that ends here:
/// overlay keeps mounts of its own.
fn overlay_by_attached_layers(wanted: Overlay<'_>, user_namespace: BorrowedFd<'_>) -> Result<OwnedFd, SetupError> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let before = rustix::fs::open(".", directory, Mode::empty()).step("opening the working directory", "")?;
    let top = rustix::fs::open("/", directory, Mode::empty()).step("opening", "/")?;
    let host = "/proc/thread-self/ns/mnt";
    let host = rustix::fs::open(host, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).step("opening", host)?;
    namespace::unshare(NEW_MOUNT).step("making a mount namespace for id-mapped layers", "")?;
    let made = (|| {
        let root = rustix::fs::open("/", directory, Mode::empty()).step("opening", "/")?;
        set_propagation(root.as_fd(), Some((Propagation::Private, true))).step("setting the propagation of", "/")?;
        for layer in wanted.lower {
            let tree = mapped(layer, user_namespace)?;
            let target = rustix::fs::open(layer, directory, Mode::empty()).step("opening the layer", layer)?;
            mount::attach(tree.as_fd(), target.as_fd()).step("covering the layer", layer)?;
        }
        overlay(wanted, None)
    })();
    // Entering a mount namespace makes its root this process's, also where it lived in a chroot.
    let back = namespace::enter(host.as_fd(), NEW_MOUNT)
        .and_then(|()| Ok(rustix::process::fchdir(&top)?))
        .and_then(|()| Ok(rustix::process::chroot(".")?))
        .and_then(|()| Ok(rustix::process::fchdir(&before)?));
    if let Err(error) = back {
        // Here every path means something else: nothing that this process did from now on would be right.
        eprintln!("returning from the mount namespace of id-mapped layers (needs CAP_SYS_CHROOT): {error}");
        std::process::abort();
    }
    made
}

/// All layers as one option of at most 255 bytes: their descriptors' names, relative to /proc/self/fd.
fn overlay_by_string(wanted: Overlay<'_>) -> Result<OwnedFd, SetupError> {
    use std::os::fd::AsRawFd;
    let filesystem = mount::new_filesystem("overlay").step("opening the overlay file system", "")?;
    mount::set_string(filesystem.as_fd(), "source", wanted.name).step("naming the overlay", "")?;
    let mut layers = Vec::new();
    for layer in wanted.lower {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        layers.push(rustix::fs::open(layer, flags, Mode::empty()).step("opening the layer", layer)?);
    }
    let names: Vec<String> = layers.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    let value = names.join(":");
    let before = rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step("opening the working directory", "")?;
    rustix::process::chdir("/proc/self/fd").step("entering", "/proc/self/fd")?;
    let made = mount::set_string(filesystem.as_fd(), "lowerdir", &value)
        .step("adding the layers (more than about 60 need Linux 6.8)", "")
        .and_then(|()| finish_overlay(filesystem.as_fd(), wanted));
    rustix::process::fchdir(&before).step("returning to the working directory", "")?;
    made
}

fn finish_overlay(filesystem: BorrowedFd<'_>, wanted: Overlay<'_>) -> Result<OwnedFd, SetupError> {
    let Overlay { lower, writable, label, attributes, .. } = wanted;
    let top = || writable.map(|(upper, _)| upper).or(lower.first().map(PathBuf::as_path)).unwrap_or(Path::new(""));
    if let Some(label) = label {
        let set = mount::set_string(filesystem, LABEL, label);
        set.step(&format!("setting option {LABEL} of the overlay{LABEL_NEEDS} over"), top())?;
    }
    if let Some((upper, work)) = writable {
        set_path(filesystem, "upperdir", upper).step("setting the writable layer", upper)?;
        set_path(filesystem, "workdir", work).step("setting overlay's work directory", work)?;
    }
    mount::create(filesystem, attributes).map_err(|source| {
        let words = mount::complaint(filesystem).map_or_else(String::new, |words| format!(" ({words})"));
        SetupError { operation: format!("mounting the overlay{words} over"), path: top().to_owned(), source }
    })
}

/// Sets an option to a path; longer ones than the 255 bytes an option can have go by descriptor.
fn set_path(filesystem: BorrowedFd<'_>, key: &str, path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    if path.as_os_str().len() < 255 {
        return mount::set_string(filesystem, key, path);
    }
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    mount::set_string(filesystem, key, format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn layers_as_one_string_make_the_same_overlay_for_older_kernels() {
        if portreeve_sys::process::user_id() != 0 {
            let _ = writeln!(std::io::stderr(), "SKIPPED: mounting needs root");
            return;
        }
        let directory = tempfile::tempdir().expect("tempdir");
        let place = |name: &str| {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).expect("mkdir");
            path
        };
        let (top, bottom, upper, work) = (place("top"), place("bot:tom"), place("upper"), place("work"));
        std::fs::write(top.join("both"), "top").expect("write");
        std::fs::write(bottom.join("both"), "bottom").expect("write");
        std::fs::write(bottom.join("only"), "below").expect("write");
        let before = std::env::current_dir().expect("directory");
        let layers = [top, bottom];
        let writable = Some((upper.as_path(), work.as_path()));
        let plain = Overlay { name: "overlay", lower: &layers, writable, label: None, attributes: 0 };
        let shown = Overlay { writable: None, attributes: READ_ONLY, ..plain };
        for root in [
            overlay_by_string(plain),
            overlay_by_layers(plain, None),
            overlay_by_string(shown),
            overlay_by_layers(shown, None),
        ] {
            let root = root.expect("overlay");
            let read = |name: &str| {
                let fd =
                    rustix::fs::openat(&root, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("open");
                std::io::read_to_string(std::fs::File::from(fd)).expect("read")
            };
            assert_eq!((read("both").as_str(), read("only").as_str()), ("top", "below"));
        }
        assert_eq!(std::env::current_dir().expect("directory"), before);
    }

    #[test]
    fn a_label_of_layers_is_one_of_all_their_files_and_needs_selinux() {
        if portreeve_sys::process::user_id() != 0 {
            let _ = writeln!(std::io::stderr(), "SKIPPED: mounting needs root");
            return;
        }
        let directory = tempfile::tempdir().expect("tempdir");
        let layers = ["top", "bottom"].map(|name| directory.path().join(name));
        layers.iter().for_each(|layer| std::fs::create_dir(layer).expect("mkdir"));
        let label = Some("system_u:object_r:container_file_t:s0:c1,c2");
        let wanted = Overlay { name: "overlay", lower: &layers, writable: None, label, attributes: READ_ONLY };
        match overlay(wanted, None) {
            Ok(_) => assert!(Path::new("/sys/fs/selinux/enforce").exists(), "nothing else takes this option"),
            Err(error) => {
                let words = portreeve_sys::chain(&error);
                let named = "setting option context of the overlay (SELinux has to be enabled for it) over";
                assert!(words.contains(named) && words.contains("top"), "{words}");
            }
        }
    }

    #[test]
    fn mapped_layers_without_descriptors_make_the_same_overlay_for_older_kernels() {
        use std::os::unix::fs::MetadataExt;
        if portreeve_sys::process::user_id() != 0 {
            let _ = writeln!(std::io::stderr(), "SKIPPED: mounting needs root");
            return;
        }
        let directory = tempfile::tempdir().expect("tempdir");
        let layers = ["top", "bottom"].map(|name| directory.path().join(name));
        for layer in &layers {
            std::fs::create_dir(layer).expect("mkdir");
            std::fs::write(layer.join("file"), layer.file_name().expect("a name").as_encoded_bytes()).expect("write");
        }
        let maps = [oci_spec::runtime::LinuxIdMappingBuilder::default()
            .container_id(0_u32)
            .host_id(300_000_u32)
            .size(65_536_u32)
            .build()
            .expect("a map")];
        let namespace = userns::with_maps(&maps, &maps).expect("a user namespace");
        let place = || {
            let root = rustix::fs::statx(CWD, "/", rustix::fs::AtFlags::empty(), rustix::fs::StatxFlags::MNT_ID)
                .expect("statx")
                .stx_mnt_id;
            let namespace = std::fs::read_link("/proc/thread-self/ns/mnt").expect("namespace");
            (namespace, root, std::env::current_dir().expect("directory"))
        };
        let check = || {
            let before = place();
            let shown = Overlay { name: "overlay", lower: &layers, writable: None, label: None, attributes: READ_ONLY };
            let root = overlay_by_attached_layers(shown, namespace.as_fd()).expect("overlay");
            assert_eq!(place(), before);
            let file =
                rustix::fs::openat(&root, "file", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("open");
            let file = std::fs::File::from(file);
            assert_eq!(file.metadata().expect("stat").uid(), 300_000);
            assert_eq!(std::io::read_to_string(file).expect("read"), "top");
            let below = std::fs::metadata(layers[0].join("file")).expect("stat").uid();
            assert_eq!(below, 0, "the layer itself is as it was");
            before.1
        };
        let plain = check();

        // The same for a process that lives in a chroot: its root comes back too.
        let house = directory.path().join("house");
        std::fs::create_dir(&house).expect("mkdir");
        let chrooted = std::thread::scope(|scope| {
            let chrooted = scope.spawn(|| {
                namespace::unshare(NEW_MOUNT).expect("a mount namespace of this thread");
                let open = |path: &Path| {
                    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                        .expect("open")
                };
                set_propagation(open(Path::new("/")).as_fd(), Some((Propagation::Private, true))).expect("private");
                let tree = mount::clone_tree(CWD, Path::new("/"), true, true).expect("a copy of the tree");
                mount::attach(tree.as_fd(), open(&house).as_fd()).expect("attach");
                rustix::process::chroot(&house).expect("chroot");
                rustix::process::chdir("/tmp").expect("chdir");
                check()
            });
            chrooted.join().expect("the thread in the chroot")
        });
        assert_ne!(chrooted, plain, "the second check was made in a chroot");
    }
}
