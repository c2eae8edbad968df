//! From `mounts` to an ordered list of operations. Pure; the golden tests below are its specification.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use portreeve_sys::mount::Propagation;

use super::PlanError;
use super::options::{Attributes, parse};

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
    /// Layers over one another, topmost first, and where what is written goes.
    Layers { lower: Vec<PathBuf>, writable: Option<Writable>, id_map: bool, attributes: u64 },
    /// A new file system.
    Filesystem { kind: String, options: Vec<(String, Option<String>)>, attributes: u64 },
    /// The container's own cgroups.
    Cgroup { own: Attributes },
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
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    mounts.iter().enumerate().map(|(index, mount)| one(index, mount)).collect()
}

fn one(index: usize, mount: &Mount) -> Result<MountOp, PlanError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let destination = clean(mount.destination());
    if destination == Path::new("/") {
        return Err(PlanError::new(
            field("destination"),
            format!("{} is the root itself", mount.destination().display()),
        ));
    }
    let options = parse(mount.options().as_deref().unwrap_or_default());
    let kind = mount.typ().as_deref().unwrap_or("");
    if options.copy_up {
        return Err(PlanError::new(field("options"), "tmpcopyup is not supported by this version"));
    }
    let source = || {
        let source = mount.source().as_deref().unwrap_or(Path::new(""));
        if source.is_absolute() {
            Ok(source.to_owned())
        } else {
            Err(PlanError::new(field("source"), format!("{:?} is not an absolute path", source.display().to_string())))
        }
    };
    let what = if options.bind.is_some() || kind == "bind" {
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
        What::Cgroup { own: options.own }
    } else if let Some((lower, writable)) = layers(kind, &options.filesystem) {
        // Made by whoever makes the container: its own users may neither open the layers nor have their ids.
        let attributes = options.own.set | options.tree.set;
        What::Layers { lower, writable, id_map: options.id_map.is_some(), attributes }
    } else if kind.is_empty() {
        return Err(PlanError::new(field("type"), "is missing, and it is no bind mount"));
    } else {
        let mut filesystem = options.filesystem;
        // The kernel wants to know what a block file system is made from, and shows the source of the others.
        if let Some(source) =
            mount.source().as_ref().and_then(|source| source.to_str()).filter(|source| !source.is_empty())
        {
            filesystem.insert(0, ("source".to_owned(), Some(source.to_owned())));
        }
        if kind == "devpts" {
            filesystem.retain(|(key, _)| key != "newinstance"); // every mount is one since Linux 4.7
        }
        let attributes = options.own.set | options.tree.set;
        What::Filesystem { kind: kind.to_owned(), options: filesystem, attributes }
    };
    // Without a word on it, nothing travels between the host and the container.
    let default = matches!(what, What::Bind { .. } | What::Cgroup { .. }).then_some((Propagation::Private, true));
    Ok(MountOp { destination, what, propagation: options.propagation.or(default) })
}

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
            What::Filesystem { kind, options, attributes } => {
                let options: Vec<String> = options
                    .iter()
                    .map(|(key, value)| value.as_ref().map_or_else(|| key.clone(), |value| format!("{key}={value}")))
                    .collect();
                format!("{kind} [{}] -> {to} attributes={attributes:#x}{propagation}", options.join(" "))
            }
            What::Layers { lower, writable, id_map, attributes } => {
                let writable = writable.as_ref().map_or(String::new(), |places| format!(" writable={places:?}"));
                format!("layers {lower:?} -> {to} attributes={attributes:#x} mapped={id_map}{writable}{propagation}")
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
    fn layers_are_no_file_system_of_the_container() {
        check(
            r#"[
            {"destination": "/m", "type": "overlay", "source": "overlay", "options": ["ro", "idmap", "lowerdir=/l/1:/l/0"]},
            {"destination": "/c", "type": "overlay", "source": "overlay", "options": ["lowerdir=/l/a\\:/etc:/l/b\\\\"]},
            {"destination": "/w", "type": "overlay", "source": "overlay", "options": ["lowerdir=/l/0", "upperdir=/u", "workdir=/v"]}
        ]"#,
            &expect![[r#"
                layers ["/l/1", "/l/0"] -> /m attributes=0x1 mapped=true
                layers ["/l/a:/etc", "/l/b\\"] -> /c attributes=0x0 mapped=false
                layers ["/l/0"] -> /w attributes=0x0 mapped=false writable=("/u", "/v")
            "#]],
        );
    }

    #[test]
    fn dots_of_a_destination_cannot_leave_the_root() {
        check(
            r#"[{"destination": "/a/../../../etc/./x//y", "type": "tmpfs"}]"#,
            &expect![[r#"
                tmpfs [] -> /etc/x/y attributes=0x0
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
}
