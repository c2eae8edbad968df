//! From `mounts` to an ordered list of operations. Pure; the golden tests below are its specification.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use portreeve_sys::mount::{Propagation, READ_ONLY};

use super::PlanError;
use super::options::{Attributes, Options, parse};

/// The upper directory of an overlay and its work directory.
pub(crate) type Writable = (PathBuf, PathBuf);

/// One mount to make, in the order of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountOp {
    /// Absolute path in the container, cleaned of `.`, `..` and doubled slashes.
    pub(crate) destination: PathBuf,
    pub(crate) what: What,
    pub(crate) propagation: Option<(Propagation, bool)>,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// A copy of a tree of the host.
    Bind { source: PathBuf, recursive: bool, own: Attributes, tree: Attributes, id_map: Option<IdMap> },
    /// Layers over one another, topmost first, where what is written goes, and the source that is shown.
    Layers { name: String, lower: Vec<PathBuf>, writable: Option<Writable>, id_map: bool, attributes: u64 },
    /// A new file system.
    Filesystem { kind: String, options: Vec<(String, Option<String>)>, attributes: u64, takes: Takes },
    /// The container's own cgroups.
    Cgroup { own: Attributes },
}

impl What {
    /// Whether it is made writable, and read-only when everything that has to be made in it is there.
    pub(crate) fn is_read_only_late(&self) -> bool {
        matches!(self, Self::Filesystem { kind, attributes, .. } if kind == "tmpfs" && attributes & READ_ONLY != 0)
    }
}

/// What a new file system takes over from the directory that it covers, where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Takes {
    /// Its mode.
    pub(crate) mode: bool,
    /// A copy of what is in it.
    pub(crate) content: bool,
}

impl Takes {
    pub(crate) fn anything(self) -> bool {
        self.mode || self.content
    }
}

/// Ids of a bind are translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdMap {
    pub(crate) recursive: bool,
    /// Maps of the mount itself; empty means those of the container's user namespace.
    pub(crate) uids: Vec<LinuxIdMapping>,
    pub(crate) gids: Vec<LinuxIdMapping>,
}

/// Operations for all mounts of the configuration.
pub(crate) fn plan(spec: &Spec) -> Result<Vec<MountOp>, PlanError> {
    let mut ops: Vec<MountOp> = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let options = parse(mount.options().as_deref().unwrap_or_default());
        let destination = clean(mount.destination());
        if options.again {
            let earlier = ops.iter_mut().rfind(|op| op.destination == destination);
            change(earlier, options).map_err(|reason| PlanError::new(format!("mounts[{index}].options"), reason))?;
        } else {
            ops.push(one(index, mount, destination, options)?);
        }
    }
    if let Some(label) = label(spec) {
        ops.iter_mut().for_each(|op| add_label(op, label));
    }
    Ok(ops)
}

/// What a mount of the configuration shows when that is layers and nothing else.
pub(crate) fn overlay(index: usize, mount: &Mount) -> Result<Option<What>, PlanError> {
    if mount.typ().as_deref() != Some("overlay") {
        return Ok(None);
    }
    let options = parse(mount.options().as_deref().unwrap_or_default());
    let what = one(index, mount, clean(mount.destination()), options)?.what;
    Ok(matches!(what, What::Layers { .. }).then_some(what))
}

/// File systems of the kernel have labels of their own, by the policy.
const SELF_LABELLED: [&str; 3] = ["proc", "sysfs", "mqueue"];

/// The SELinux label of the container's files. Source: OCI runtime-spec, config-linux.md, `mountLabel`.
pub(crate) fn label(spec: &Spec) -> Option<&str> {
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref());
    label.filter(|label| !label.is_empty())
}

/// Every file of a new file system gets the SELinux label; layers have it from who mounts them.
fn add_label(op: &mut MountOp, label: &str) {
    if let What::Filesystem { kind, options, .. } = &mut op.what
        && !SELF_LABELLED.contains(&kind.as_str())
        && options.iter().all(|(key, _)| key != LABEL)
    {
        options.push((LABEL.to_owned(), Some(label.to_owned())));
    }
}

/// The option by which a file system gets one label for all of its files, mount(8).
pub(crate) const LABEL: &str = "context";
/// Why that may be refused.
pub(crate) const LABEL_NEEDS: &str = " (SELinux has to be enabled for it)";

/// Whether mounts of the host below the root file system are to appear in the container: it could not become a slave, or
/// shared, of what it had been cut off from.
pub(crate) fn root_receives(spec: &Spec) -> bool {
    let propagation = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    matches!(propagation, Some("shared" | "rshared" | "slave" | "rslave"))
}

/// Makes the sources of bind mounts that are relative ones absolute: they lie in the bundle.
/// Source: OCI runtime-spec, config.md, "Mounts", `source`.
pub(crate) fn in_bundle(spec: &mut Spec, bundle: &Path) {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let options = parse(mount.options().as_deref().unwrap_or_default());
        let bound = !options.again && (mount.typ().as_deref() == Some("bind") || options.bind.is_some());
        // Nothing is no path, and not the bundle.
        let relative = |source: &&PathBuf| bound && source.is_relative() && !source.as_os_str().is_empty();
        if let Some(source) = mount.source().as_ref().filter(relative) {
            let source = bundle.join(source);
            mount.set_source(Some(source));
        }
    }
}

/// Changes a mount of the configuration that comes before, `remount`: what is said counts, and what is not said stays. With
/// `bind` that is the mount, and without it the file system, which has to be one of the container's own.
/// Source: mount(8), "remount".
fn change(earlier: Option<&mut MountOp>, options: Options) -> Result<(), String> {
    let Some(op) = earlier else {
        return Err("remount changes a mount of the configuration that comes before, and none is there".to_owned());
    };
    if options.id_map.is_some() || options.copy_up {
        return Err("ids and copies belong to a new mount, and not to remount".to_owned());
    }
    let said = options.own.then(options.tree);
    let whole = options.bind.is_none();
    match &mut op.what {
        What::Filesystem { options: before, attributes, .. } => {
            let known = Attributes { set: *attributes, clear: 0 };
            *attributes = known.then(said).set;
            if let Some(option) = options.foreign_to_a_bind().filter(|_| !whole) {
                return Err(format!("{option:?} is no option of a mount of what is there already"));
            }
            if whole {
                let said = |key: &str| options.filesystem.iter().any(|(other, _)| other == key);
                before.retain(|(key, _)| !said(key) && !options.without.contains(&key.as_str()));
                before.extend(options.filesystem);
            }
        }
        _ if whole => {
            return Err("remount without bind changes a file system, and that is not the container's own".to_owned());
        }
        What::Layers { attributes, .. } => *attributes = Attributes { set: *attributes, clear: 0 }.then(said).set,
        What::Cgroup { own } => *own = own.then(said),
        What::Bind { own, tree, .. } => (*own, *tree) = (own.then(options.own), tree.then(options.tree)),
    }
    op.propagation = options.propagation.or(op.propagation);
    Ok(())
}

fn one(index: usize, mount: &Mount, destination: PathBuf, options: Options) -> Result<MountOp, PlanError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    if destination == Path::new("/") {
        return Err(PlanError::new(
            field("destination"),
            format!("{} is the root itself", mount.destination().display()),
        ));
    }
    let kind = mount.typ().as_deref().unwrap_or("");
    let refused = |reason: String| PlanError::new(field("options"), reason);
    let bound = options.bind.is_some() || kind == "bind";
    let ids = options.id_map.is_some() || mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
    if options.copy_up && (bound || kind != "tmpfs") {
        return Err(refused("tmpcopyup is an option of tmpfs alone".to_owned()));
    }
    if bound || kind == "cgroup" || kind == "cgroup2" {
        if let Some(option) = options.foreign_to_a_bind() {
            return Err(refused(format!("{option:?} is no option of a mount of what is there already")));
        }
    } else if let Some((key, _)) =
        options.filesystem.iter().find(|(_, value)| value.as_ref().is_some_and(|value| value.len() > LONGEST))
        && layers(kind, &options.filesystem).is_none()
    {
        return Err(refused(format!("the value of {key} is longer than the kernel takes ({LONGEST} bytes)")));
    }
    let source = || {
        let source = mount.source().as_deref().unwrap_or(Path::new(""));
        if source.is_absolute() {
            Ok(source.to_owned())
        } else {
            Err(PlanError::new(field("source"), format!("{:?} is not an absolute path", source.display().to_string())))
        }
    };
    let what = if bound {
        let uids = mount.uid_mappings().clone().unwrap_or_default();
        let gids = mount.gid_mappings().clone().unwrap_or_default();
        if uids.is_empty() != gids.is_empty() {
            return Err(PlanError::new(field("uidMappings"), "uidMappings and gidMappings come together"));
        }
        let mapped = options.id_map.is_some() || !uids.is_empty();
        let id_map = mapped.then(|| IdMap { recursive: options.id_map.unwrap_or(false), uids, gids });
        What::Bind {
            source: source()?,
            recursive: options.bind.unwrap_or(false),
            own: options.own,
            tree: options.tree,
            id_map,
        }
    } else if kind == "cgroup" || kind == "cgroup2" {
        What::Cgroup { own: options.own.then(options.tree) }
    } else if let Some((lower, writable)) = layers(kind, &options.filesystem) {
        // Made by whoever makes the container: its own users may neither open the layers nor have their ids.
        let attributes = options.own.then(options.tree).set;
        let name = shown(mount).unwrap_or("overlay").to_owned();
        What::Layers { name, lower, writable, id_map: options.id_map.is_some(), attributes }
    } else if kind.is_empty() || kind == "none" {
        return Err(PlanError::new(field("type"), "is missing, and it is no bind mount"));
    } else if ids {
        return Err(refused("ids are mapped on bind mounts alone".to_owned()));
    } else {
        let mut filesystem = options.filesystem;
        // The kernel wants to know what a block file system is made from, and shows the source of the others.
        if let Some(source) = shown(mount) {
            filesystem.insert(0, ("source".to_owned(), Some(source.to_owned())));
        }
        if kind == "devpts" {
            filesystem.retain(|(key, _)| key != "newinstance"); // every mount is one since Linux 4.7
        }
        let attributes = options.own.then(options.tree).set;
        let mode = kind == "tmpfs" && filesystem.iter().all(|(key, _)| key != "mode");
        let takes = Takes { mode, content: options.copy_up };
        What::Filesystem { kind: kind.to_owned(), options: filesystem, attributes, takes }
    };
    // Without a word on it, nothing travels between the host and the container.
    let default = matches!(what, What::Bind { .. } | What::Cgroup { .. }).then_some((Propagation::Private, true));
    Ok(MountOp { destination, what, propagation: options.propagation.or(default) })
}

/// The source of a file system, which may be any text.
fn shown(mount: &Mount) -> Option<&str> {
    mount.source().as_ref().and_then(|source| source.to_str()).filter(|source| !source.is_empty())
}

/// Bytes of an option's value, fsconfig(2).
const LONGEST: usize = 255;

/// The directories of an overlay that is nothing but them: the lower ones, and the upper one with its work directory.
fn layers(kind: &str, options: &[(String, Option<String>)]) -> Option<(Vec<PathBuf>, Option<Writable>)> {
    if kind != "overlay" {
        return None;
    }
    let (mut lower, mut upper, mut work) = (None, None, None);
    for (key, value) in options {
        let place = match key.as_str() {
            "lowerdir" => &mut lower,
            "upperdir" => &mut upper,
            "workdir" => &mut work,
            _ => return None,
        };
        *place = Some(value.as_deref()?);
    }
    let writable = match (upper, work) {
        (Some(upper), Some(work)) => Some((upper.into(), work.into())),
        (None, None) => None,
        _ => return None,
    };
    Some((split_layers(lower?), writable))
}

/// Splits at colons; a backslash takes the meaning from a colon or a backslash in a directory's name.
/// Source: the kernel's documentation of overlayfs, "Multiple lower layers".
fn split_layers(value: &str) -> Vec<PathBuf> {
    let mut layers = vec![String::new()];
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        let next = match character {
            ':' => {
                layers.push(String::new());
                continue;
            }
            '\\' => characters.next().unwrap_or('\\'),
            other => other,
        };
        if let Some(layer) = layers.last_mut() {
            layer.push(next);
        }
    }
    layers.into_iter().map(PathBuf::from).collect()
}

/// A path of the container as an absolute one without `.` and `..`, which cannot leave the root.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn line(op: &MountOp) -> String {
        let attributes = |a: &Attributes| {
            if a.is_empty() { String::new() } else { format!(" set={:#x} clear={:#x}", a.set, a.clear) }
        };
        let propagation = op
            .propagation
            .map_or_else(String::new, |(kind, tree)| format!(" {}{kind:?}", if tree { "recursively " } else { "" }));
        let to = op.destination.display();
        match &op.what {
            What::Bind { source, recursive, own, tree, id_map } => {
                let map = if id_map.is_some() { " id-mapped" } else { "" };
                let tree = if tree.is_empty() { String::new() } else { format!(" tree({})", attributes(tree).trim()) };
                let kind = if *recursive { "rbind" } else { "bind" };
                format!("{kind} {} -> {to}{}{tree}{map}{propagation}", source.display(), attributes(own))
            }
            What::Filesystem { kind, options, attributes, takes } => {
                let options: Vec<String> = options
                    .iter()
                    .map(|(key, value)| value.as_ref().map_or_else(|| key.clone(), |value| format!("{key}={value}")))
                    .collect();
                let takes = match takes {
                    Takes { mode: false, content: false } => "",
                    Takes { mode: true, content: false } => " with its mode",
                    Takes { mode: false, content: true } => " with its content",
                    Takes { mode: true, content: true } => " with its mode and content",
                };
                format!("{kind} [{}] -> {to}{takes} attributes={attributes:#x}{propagation}", options.join(" "))
            }
            What::Layers { name, lower, writable, id_map, attributes } => {
                let writable = writable.as_ref().map_or(String::new(), |places| format!(" writable={places:?}"));
                format!(
                    "layers {name} {lower:?} -> {to} attributes={attributes:#x} mapped={id_map}{writable}{propagation}"
                )
            }
            What::Cgroup { own } => format!("cgroup -> {to}{}{propagation}", attributes(own)),
        }
    }

    fn check(mounts: &str, expected: &Expect) {
        let spec: Spec =
            serde_json::from_str(&format!(r#"{{"ociVersion": "1.2.0", "mounts": {mounts}}}"#)).expect("spec");
        let text = match plan(&spec) {
            Ok(ops) => ops.iter().map(|op| line(op) + "\n").collect(),
            Err(error) => format!("error: {error}\n"),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn a_remount_changes_the_mount_before_it_and_keeps_what_it_does_not_say() {
        check(
            r#"[
            {"destination": "/a", "type": "tmpfs", "options": ["nosuid", "noatime", "size=8m", "sync", "mode=755"]},
            {"destination": "/b", "type": "bind", "source": "/srv/b", "options": ["rbind", "nodev"]},
            {"destination": "/a/", "type": "tmpfs", "options": ["remount", "size=1m", "async", "ro"]},
            {"destination": "/b", "type": "none", "source": "", "options": ["remount", "bind", "ro", "rslave"]},
            {"destination": "/a", "options": ["remount", "bind", "rw", "relatime"]}
        ]"#,
            &expect![[r#"
                tmpfs [mode=755 size=1m] -> /a attributes=0x2
                rbind /srv/b -> /b set=0x5 clear=0x0 recursively Slave
            "#]],
        );
        for (mounts, words) in [
            (r#"[{"destination": "/a", "options": ["remount", "bind", "ro"]}]"#, "none is there"),
            (
                r#"[{"destination": "/b", "type": "bind", "source": "/b"}, {"destination": "/b", "options": ["remount", "ro"]}]"#,
                "not the container's own",
            ),
            (
                r#"[{"destination": "/a", "type": "tmpfs"}, {"destination": "/a", "options": ["remount", "bind", "size=1m"]}]"#,
                "\"size=1m\" is no option of a mount of what is there already",
            ),
            (
                r#"[{"destination": "/a", "type": "tmpfs"}, {"destination": "/a", "options": ["remount", "idmap"]}]"#,
                "not to remount",
            ),
            (r#"[{"destination": "/a", "type": "bind", "source": ""}]"#, "is not an absolute path"),
        ] {
            let mut spec: Spec =
                serde_json::from_str(&format!(r#"{{"ociVersion": "1.2.0", "mounts": {mounts}}}"#)).expect("spec");
            in_bundle(&mut spec, Path::new("/bundle"));
            let refused = plan(&spec).expect_err(mounts).to_string();
            assert!(refused.contains(words), "{refused}");
        }
    }

    #[test]
    fn the_usual_mounts_of_a_container() {
        check(
            r#"[
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "rro", "rslave"]},
            {"destination": "/etc/hosts", "source": "/run/hosts", "options": ["bind", "ro"]}
        ]"#,
            &expect![[r#"
                proc [source=proc] -> /proc attributes=0xe
                tmpfs [source=tmpfs mode=755 size=65536k] -> /dev attributes=0x22
                devpts [source=devpts ptmxmode=0666 mode=0620 gid=5] -> /dev/pts attributes=0xa
                cgroup -> /sys/fs/cgroup set=0xf clear=0x70 recursively Private
                rbind /srv/data -> /data tree(set=0x1 clear=0x0) recursively Slave
                bind /run/hosts -> /etc/hosts set=0x1 clear=0x0 recursively Private
            "#]],
        );
    }

    #[test]
    fn the_recursive_form_of_an_option_counts_for_every_kind_of_mount() {
        check(
            r#"[
            {"destination": "/c", "type": "cgroup", "source": "cgroup", "options": ["rro", "rw"]},
            {"destination": "/l", "type": "overlay", "source": "overlay", "options": ["rw", "rro", "lowerdir=/l/1:/l/0"]},
            {"destination": "/t", "type": "tmpfs", "options": ["mode=755", "ro", "rrw", "rnosuid"]}
        ]"#,
            &expect![[r#"
                cgroup -> /c set=0x1 clear=0x1 recursively Private
                layers overlay ["/l/1", "/l/0"] -> /l attributes=0x1 mapped=false
                tmpfs [mode=755] -> /t attributes=0x2
            "#]],
        );
    }

    #[test]
    fn layers_are_no_file_system_of_the_container() {
        check(
            r#"[
            {"destination": "/m", "type": "overlay", "source": "overlay", "options": ["ro", "idmap", "lowerdir=/l/1:/l/0"]},
            {"destination": "/c", "type": "overlay", "source": "overlay", "options": ["lowerdir=/l/a\\:/etc:/l/b\\\\"]},
            {"destination": "/w", "type": "overlay", "source": "data of a b", "options": ["lowerdir=/l/0", "upperdir=/u", "workdir=/v"]}
        ]"#,
            &expect![[r#"
                layers overlay ["/l/1", "/l/0"] -> /m attributes=0x1 mapped=true
                layers overlay ["/l/a:/etc", "/l/b\\"] -> /c attributes=0x0 mapped=false
                layers data of a b ["/l/0"] -> /w attributes=0x0 mapped=false writable=("/u", "/v")
            "#]],
        );
    }

    #[test]
    fn dots_of_a_destination_cannot_leave_the_root() {
        check(
            r#"[{"destination": "/a/../../../etc/./x//y", "type": "tmpfs"}]"#,
            &expect![[r#"
                tmpfs [] -> /etc/x/y with its mode attributes=0x0
            "#]],
        );
        check(
            r#"[{"destination": "/..", "type": "tmpfs"}]"#,
            &expect![[r#"
                error: mounts[0].destination: /.. is the root itself
            "#]],
        );
    }

    #[test]
    fn a_relative_bind_source_is_refused() {
        check(
            r#"[{"destination": "/a", "type": "bind", "source": "etc"}]"#,
            &expect![[r#"
                error: mounts[0].source: "etc" is not an absolute path
            "#]],
        );
    }

    #[test]
    fn a_mount_without_a_type_is_refused() {
        check(
            r#"[{"destination": "/a", "source": "/b", "options": ["ro"]}]"#,
            &expect![[r#"
                error: mounts[0].type: is missing, and it is no bind mount
            "#]],
        );
    }

    #[test]
    fn a_tmpfs_is_like_what_it_covers_unless_told() {
        check(
            r#"[{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/a", "type": "tmpfs", "options": ["mode=700"]},
                {"destination": "/b", "type": "tmpfs", "options": ["tmpcopyup", "ro", "size=1m"]},
                {"destination": "/c", "type": "tmpfs", "options": ["tmpcopyup", "mode=1777"]}]"#,
            &expect![[r#"
                tmpfs [source=tmpfs] -> /tmp with its mode attributes=0x0
                tmpfs [mode=700] -> /a attributes=0x0
                tmpfs [size=1m] -> /b with its mode and content attributes=0x1
                tmpfs [mode=1777] -> /c with its content attributes=0x0
            "#]],
        );
        check(
            r#"[{"destination": "/a", "type": "ramfs", "options": ["tmpcopyup"]}]"#,
            &expect![[r#"
            error: mounts[0].options: tmpcopyup is an option of tmpfs alone
        "#]],
        );
        check(
            r#"[{"destination": "/a", "type": "bind", "source": "/b", "options": ["tmpcopyup"]}]"#,
            &expect![[r#"
            error: mounts[0].options: tmpcopyup is an option of tmpfs alone
        "#]],
        );
    }

    #[test]
    fn options_that_cannot_mean_anything_are_refused() {
        check(
            r#"[{"destination": "/a", "type": "none", "source": "/b", "options": ["rbind", "sync", "dirsync", "lazytime",
                "mand", "iversion", "silent", "acl"]}]"#,
            &expect![[r#"
                rbind /b -> /a recursively Private
            "#]],
        );
        check(
            r#"[{"destination": "/a", "type": "bind", "source": "/b", "options": ["size=5"]}]"#,
            &expect![[r#"
            error: mounts[0].options: "size=5" is no option of a mount of what is there already
        "#]],
        );
        check(
            r#"[{"destination": "/a", "source": "/b", "options": ["bind", "readonly"]}]"#,
            &expect![[r#"
            error: mounts[0].options: "readonly" is no option of a mount of what is there already
        "#]],
        );
        check(
            r#"[{"destination": "/a", "type": "cgroup", "options": ["name=systemd"]}]"#,
            &expect![[r#"
            error: mounts[0].options: "name=systemd" is no option of a mount of what is there already
        "#]],
        );
        check(
            r#"[{"destination": "/a", "type": "tmpfs", "options": ["idmap"]}]"#,
            &expect![[r#"
            error: mounts[0].options: ids are mapped on bind mounts alone
        "#]],
        );
        let long = format!(r#"[{{"destination": "/a", "type": "tmpfs", "options": ["x={}"]}}]"#, "y".repeat(256));
        check(
            &long,
            &expect![[r#"
            error: mounts[0].options: the value of x is longer than the kernel takes (255 bytes)
        "#]],
        );
    }

    #[test]
    fn a_relative_source_of_a_bind_lies_in_the_bundle() {
        let mut spec: Spec = serde_json::from_str(
            r#"{"ociVersion": "1.2.0", "mounts": [{"destination": "/a", "type": "bind", "source": "etc/hosts"},
                {"destination": "/b", "source": "b", "options": ["rbind"]}, {"destination": "/c", "type": "tmpfs", "source": "c"},
                {"destination": "/d", "type": "bind", "source": "/d"}]}"#,
        )
        .expect("spec");
        in_bundle(&mut spec, Path::new("/bundle"));
        let sources = spec.mounts().iter().flatten().filter_map(|mount| mount.source().as_deref());
        assert_eq!(sources.collect::<Vec<_>>(), ["/bundle/etc/hosts", "/bundle/b", "c", "/d"].map(Path::new));
    }

    #[test]
    fn new_file_systems_have_the_label_of_the_container() {
        let json = r#"{"ociVersion": "1.2.0", "linux": {"mountLabel": "u:r:t:s0:c1,c2"}, "mounts": [
            {"destination": "/proc", "type": "proc"}, {"destination": "/sys", "type": "sysfs"},
            {"destination": "/dev/mqueue", "type": "mqueue"}, {"destination": "/dev/pts", "type": "devpts"},
            {"destination": "/tmp", "type": "tmpfs", "options": ["mode=1777"]},
            {"destination": "/own", "type": "tmpfs", "options": ["mode=1777", "context=mine"]},
            {"destination": "/b", "type": "bind", "source": "/b"}]}"#;
        let ops = plan(&serde_json::from_str(json).expect("spec")).expect("plan");
        let text: String = ops.iter().map(|op| line(op) + "\n").collect();
        expect![[r#"
            proc [] -> /proc attributes=0x0
            sysfs [] -> /sys attributes=0x0
            mqueue [] -> /dev/mqueue attributes=0x0
            devpts [context=u:r:t:s0:c1,c2] -> /dev/pts attributes=0x0
            tmpfs [mode=1777 context=u:r:t:s0:c1,c2] -> /tmp attributes=0x0
            tmpfs [mode=1777 context=mine] -> /own attributes=0x0
            bind /b -> /b recursively Private
        "#]]
        .assert_eq(&text);
    }
}
