//! Where the cgroup hierarchies are mounted, read once from mountinfo.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{CgroupError, Version};

/// One version 1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Controllers it carries; a named one has only its `name=`.
    pub(crate) controllers: Vec<String>,
    /// Where it is mounted.
    pub(crate) mount: PathBuf,
    /// Which of its cgroups is mounted there: not the root in a container without a cgroup namespace.
    pub(crate) root: PathBuf,
}

impl Hierarchy {
    pub(crate) fn carries(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// Every hierarchy of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Version 1 hierarchies; empty on a pure version 2 machine.
    pub(crate) v1: Vec<Hierarchy>,
    /// Mount of the unified hierarchy: with controllers on version 2, without on a hybrid machine.
    pub(crate) unified: Option<PathBuf>,
    /// Which cgroup of the unified hierarchy is mounted there.
    pub(crate) unified_root: PathBuf,
}

const V1_CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "net_cls",
    "net_prio",
    "perf_event",
    "hugetlb",
    "rdma",
    "misc",
];

impl Layout {
    /// Reads the text of /proc/PID/mountinfo; of several mounts of one hierarchy the first below /sys/fs/cgroup counts,
    /// and none that another mount covers: no path leads there.
    ///
    /// Where the unified hierarchy is at /sys/fs/cgroup itself, the machine is of version 2: version 1 mounts beside it
    /// (`net_cls` for a firewall) serve a purpose of their own, and are left alone.
    pub(crate) fn parse(mountinfo: &str) -> Self {
        let mut layout = Self { v1: Vec::new(), unified: None, unified_root: PathBuf::from("/") };
        let mut mounts: Vec<CgroupMount<'_>> = mountinfo.lines().filter_map(cgroup_mount).collect();
        // Only what is mounted at one of their places, or above it, can cover them.
        let near = |place: &Place<'_>| mounts.iter().any(|mount| is_at_or_below(mount.place.point, place.point));
        let places: Vec<Place<'_>> = mountinfo.lines().filter_map(Place::of).filter(near).collect();
        mounts.retain(|mount| mount.place.is_visible(&places));
        mounts.sort_by_key(|mount| !is_at_or_below(mount.place.point, "/sys/fs/cgroup"));
        for CgroupMount { root, place: Place { point, .. }, kind, options } in mounts {
            let (root, mount) = (PathBuf::from(unescape(root)), PathBuf::from(unescape(point)));
            if kind == "cgroup2" {
                if layout.unified.is_none() {
                    (layout.unified, layout.unified_root) = (Some(mount), root);
                }
                continue;
            }
            let controllers: Vec<String> = options
                .split(',')
                .filter(|option| V1_CONTROLLERS.contains(option) || option.starts_with("name="))
                .map(str::to_owned)
                .collect();
            let known =
                layout.v1.iter().any(|hierarchy| hierarchy.controllers.iter().any(|name| controllers.contains(name)));
            if !controllers.is_empty() && !known {
                layout.v1.push(Hierarchy { controllers, mount, root });
            }
        }
        if layout.unified.as_deref() == Some(Path::new("/sys/fs/cgroup")) {
            layout.v1.clear();
        }
        layout
    }

    /// Version 1 as soon as one real controller lives there.
    pub(crate) fn version(&self) -> Version {
        let named_only = self.v1.iter().all(|h| h.controllers.iter().all(|name| name.starts_with("name=")));
        if named_only && self.unified.is_some() { Version::V2 } else { Version::V1 }
    }

    /// Mount of the version 1 hierarchy with this controller.
    pub(crate) fn v1_mount(&self, controller: &str) -> Option<&Path> {
        self.v1.iter().find(|hierarchy| hierarchy.carries(controller)).map(|hierarchy| hierarchy.mount.as_path())
    }

    /// Every mount, the unified one first.
    pub(crate) fn mounts(&self) -> impl Iterator<Item = &Path> {
        self.unified.iter().map(PathBuf::as_path).chain(self.v1.iter().map(|h| h.mount.as_path()))
    }
}

/// The layout of this machine.
pub(crate) fn layout() -> Result<&'static Layout, CgroupError> {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    let layout = match LAYOUT.get() {
        Some(layout) => layout,
        None => {
            let path = "/proc/self/mountinfo";
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|source| CgroupError::Read { path: path.into(), source })?;
            LAYOUT.get_or_init(|| Layout::parse(&text))
        }
    };
    if layout.v1.is_empty() && layout.unified.is_none() { Err(CgroupError::NotMounted) } else { Ok(layout) }
}

/// A mountinfo line, when it is of a cgroup. proc_pid_mountinfo(5).
struct CgroupMount<'a> {
    place: Place<'a>,
    root: &'a str,
    kind: &'a str,
    /// Those of the file system.
    options: &'a str,
}

fn cgroup_mount(line: &str) -> Option<CgroupMount<'_>> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let kind = after.next().filter(|kind| matches!(*kind, "cgroup" | "cgroup2"))?;
    let options = after.nth(1)?;
    Some(CgroupMount { place: Place::of(line)?, root: before.split(' ').nth(3)?, kind, options })
}

/// Where a mount is among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place<'a> {
    id: &'a str,
    /// Id of the mount that it is mounted on.
    parent: &'a str,
    /// As it stands in mountinfo, escapes included.
    point: &'a str,
}

impl<'a> Place<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self { id: words.next()?, parent: words.next()?, point: words.nth(2)? })
    }

    /// Whether its path leads to it: neither on it nor on the way there is another mount.
    fn is_visible(self, all: &[Self]) -> bool {
        let (mut here, mut from) = (self, self);
        // Each mount is below its parent, so that this ends; and no way is longer than all of them.
        for _ in all {
            let on_it = |other: &Self| other.parent == here.id && other.point == here.point;
            let before_it = |other: &Self| {
                let above = is_at_or_below(here.point, other.point) && here.point != other.point;
                other.parent == here.parent && other.id != here.parent && above
            };
            if all.iter().any(|other| *other != here && *other != from && (on_it(other) || before_it(other))) {
                return false;
            }
            match all.iter().find(|other| other.id == here.parent && **other != here) {
                Some(parent) => (from, here) = (here, *parent),
                None => return true,
            }
        }
        true
    }
}

/// Whether one mount point is another, or lies below it. mountinfo writes each in one way only, so that no path has to be
/// taken apart: it is asked for every pair, whenever a program begins that makes a container.
fn is_at_or_below(point: &str, above: &str) -> bool {
    point.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || above == "/")
}

/// Octal escapes of mountinfo (`\040` is a space).
pub(crate) fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match (first, code) {
            (b'\\', Some(code)) => {
                bytes.push(code);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 23 0:32 / /mnt/other\\040place rw,relatime - cgroup cgroup rw,memory
";

    #[test]
    fn a_mount_point_is_below_another_by_whole_names() {
        for (point, above, expected) in [
            ("/sys/fs/cgroup", "/", true),
            ("/", "/", true),
            ("/sys/fs/cgroup", "/sys/fs/cgroup", true),
            ("/sys/fs/cgroup/memory", "/sys/fs/cgroup", true),
            ("/sys/fs/cgroup2", "/sys/fs/cgroup", false),
            ("/sys/fs", "/sys/fs/cgroup", false),
        ] {
            assert_eq!(is_at_or_below(point, above), expected, "{point} {above}");
        }
    }

    #[test]
    fn a_hybrid_machine_is_version_one_with_a_unified_mount_beside() {
        let layout = Layout::parse(HYBRID);
        assert_eq!(layout.version(), Version::V1);
        assert_eq!(layout.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(layout.v1_mount("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(layout.v1_mount("memory"), Some(Path::new("/sys/fs/cgroup/memory")));
        assert_eq!(layout.v1_mount("name=systemd"), Some(Path::new("/sys/fs/cgroup/systemd")));
        assert_eq!(layout.v1.len(), 3, "the second memory mount is the same hierarchy");
    }

    #[test]
    fn a_unified_machine_is_version_two() {
        let layout = Layout::parse("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(layout.version(), Version::V2);
        assert_eq!(layout.mounts().collect::<Vec<_>>(), [Path::new("/sys/fs/cgroup")]);
    }

    #[test]
    fn a_hierarchy_that_another_mount_covers_is_not_there() {
        let mounts = |more: &str| {
            let layout = Layout::parse(&format!("{HYBRID}{more}"));
            let found: Vec<String> = layout.v1.iter().map(|one| one.mount.display().to_string()).collect();
            (found, layout.unified.is_some())
        };
        let [cpu, memory, other, systemd] =
            ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory", "/mnt/other place", "/sys/fs/cgroup/systemd"];
        assert_eq!(mounts(""), ([cpu, memory, systemd].map(str::to_owned).to_vec(), true));
        // On it: another mount of the hierarchy is used then.
        let covered = "60 35 0:50 / /sys/fs/cgroup/memory rw - tmpfs tmpfs rw\n";
        assert_eq!(mounts(covered), ([cpu, systemd, other].map(str::to_owned).to_vec(), true));
        // On the file system that they are mounted on; what is mounted there then is seen.
        let covered = "60 31 0:50 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n";
        assert_eq!(mounts(covered), ([other].map(str::to_owned).to_vec(), false));
        let again = format!("{covered}61 60 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n");
        assert_eq!(mounts(&again), ([cpu, other].map(str::to_owned).to_vec(), false));
        // On the way there.
        let covered = "60 23 0:50 / /sys/fs rw - tmpfs tmpfs rw\n";
        assert_eq!(mounts(covered), ([other].map(str::to_owned).to_vec(), false));
        // Beside it, or below it.
        let beside = "60 31 0:50 / /sys/fs/cgroup/mem rw - tmpfs tmpfs rw\n61 35 0:51 / /sys/fs/cgroup/memory/a rw - tmpfs tmpfs rw\n";
        assert_eq!(mounts(beside).0.len(), 3);
    }

    #[test]
    fn a_firewalls_net_cls_does_not_make_a_unified_machine_one_of_version_one() {
        let layout = Layout::parse(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n\
             60 23 0:40 / /opt/vpn/net_cls rw - cgroup net_cls rw,net_cls\n\
             61 23 0:41 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n",
        );
        assert_eq!(layout.version(), Version::V2);
        assert_eq!(layout.mounts().collect::<Vec<_>>(), [Path::new("/sys/fs/cgroup")]);
        assert_eq!(layout.v1_mount("net_cls"), None);
    }

    #[test]
    fn an_escaped_space_in_a_mount_point_is_a_space() {
        let layout = Layout::parse("50 31 0:32 / /mnt/a\\040b rw - cgroup cgroup rw,memory\n");
        assert_eq!(layout.v1_mount("memory"), Some(Path::new("/mnt/a b")));
    }
}
