//! Where a container's cgroup lies when its configuration does not say it from the root down.

use std::path::Path;

use super::Version;
use super::layout::Layout;

/// The caller's own cgroup as a path below the mounts of `layout`: on version 1 that of the hierarchy in which processes
/// are counted. `cgroup` is the text of /proc/self/cgroup.
pub(crate) fn own(layout: &Layout, cgroup: &str) -> String {
    let (wanted, root) = match layout.version() {
        Version::V2 => ("", layout.unified_root.as_path()),
        Version::V1 => {
            let pids = layout.v1.iter().find(|hierarchy| hierarchy.carries("pids")).or(layout.v1.first());
            let name = pids.and_then(|hierarchy| hierarchy.controllers.first()).map_or("", String::as_str);
            (name, pids.map_or(Path::new("/"), |hierarchy| hierarchy.root.as_path()))
        }
    };
    let line = cgroup.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == wanted).then_some(path)
    });
    // What is mounted may itself be a cgroup somewhere below the root, as it is in a container.
    let path = Path::new(line.unwrap_or("/"));
    let below = path.strip_prefix(root).unwrap_or(Path::new(""));
    // A process outside its cgroup namespace has a path with `..`: the namespace's root is the best there is.
    let outside = below.components().any(|part| part == std::path::Component::ParentDir);
    if outside { "/".to_owned() } else { format!("/{}", below.display()) }
}

/// A version 2 cgroup with processes in it (the caller is in its own) gives no controllers to cgroups below it, so that a
/// container's lies beside it; on version 1 it lies below, so that limits on the caller hold for its containers.
pub(crate) fn place(asked: Option<&str>, id: &str, own: &str, version: Version) -> String {
    match asked.filter(|path| !path.is_empty()) {
        Some(path) if path.starts_with('/') => path.to_owned(),
        relative => {
            let above = match version {
                Version::V1 => own,
                Version::V2 => own.trim_end_matches('/').rsplit_once('/').map_or("", |(above, _)| above),
            };
            format!("{}/{}", above.trim_end_matches('/'), relative.unwrap_or(id))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
";
    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn relative_and_absent_paths_lie_beside_the_callers_cgroup() {
        let table = [
            (Version::V2, Some("/a/b"), "/user/session", "/a/b"),
            (Version::V2, Some("a/b"), "/user/session", "/user/a/b"),
            (Version::V2, None, "/user/session", "/user/c1"),
            (Version::V2, Some(""), "/session", "/c1"),
            (Version::V2, None, "/", "/c1"),
            (Version::V1, Some("/a/b"), "/user/session", "/a/b"),
            (Version::V1, Some("a/b"), "/user/session", "/user/session/a/b"),
            (Version::V1, None, "/", "/c1"),
        ];
        for (version, asked, own, expected) in table {
            assert_eq!(place(asked, "c1", own, version), expected, "{version:?} {asked:?} {own}");
        }
    }

    #[test]
    fn the_callers_cgroup_is_that_of_the_hierarchy_in_which_processes_are_counted() {
        let layout = Layout::parse(V1);
        assert_eq!(own(&layout, "2:cpu,cpuacct:/x\n8:pids:/user/session\n0::/y\n"), "/user/session");
        assert_eq!(own(&Layout::parse(V2), "0::/user/session\n"), "/user/session");
        assert_eq!(own(&Layout::parse(V2), "0::/\n"), "/");
        assert_eq!(own(&Layout::parse(V2), "0::/../../elsewhere\n"), "/");
    }

    #[test]
    fn in_a_container_the_mounted_cgroup_is_the_root() {
        let inside = "30 23 0:26 /machine/c7 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(own(&Layout::parse(inside), "0::/machine/c7/init\n"), "/init");
    }
}
