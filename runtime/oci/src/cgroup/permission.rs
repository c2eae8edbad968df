//! What of the cgroups a caller who is not root may use.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{Access, AtFlags, CWD};
use serde_json::Value;

use super::layout::{Layout, layout};
use super::{Cgroup, CgroupError, Version, placement};

/// Why a container cannot have a cgroup of its own.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The directory or file that the caller may not write to.
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

impl Cgroup {
    /// Why the caller may not make it, or move a process of his into it; nothing is changed.
    ///
    /// Source: Linux cgroup-v2.rst, "Delegation Containment": a process is moved by who may write to `cgroup.procs` of
    /// where it goes and of the nearest cgroup above both places.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub(crate) fn refusal(&self) -> Result<Option<Refusal>, CgroupError> {
        let layout = layout()?;
        let mut needed: Vec<(PathBuf, Access)> = Vec::new();
        for mount in layout.mounts() {
            needed.push(self.makes_it(layout, mount));
        }
        if let (Version::V2, Some(mount)) = (layout.version(), &layout.unified) {
            let path = PathBuf::from("/proc/self/cgroup");
            let text = std::fs::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })?;
            let above = common(&placement::own(layout, &text), self.path());
            needed.push((mount.join(above.trim_start_matches('/')).join("cgroup.procs"), Access::WRITE_OK));
        }
        Ok(needed.into_iter().find_map(|(path, access)| {
            // With the ids that count when it is done: access(2) asks for others.
            let may = rustix::fs::accessat(CWD, &path, access, AtFlags::EACCESS);
            may.err().map(|error| Refusal { path, source: error.into() })
        }))
    }

    /// What has to be writable for it to be made in one hierarchy, or used where it is there.
    fn makes_it(&self, layout: &Layout, mount: &Path) -> (PathBuf, Access) {
        let directory = mount.join(self.relative());
        if directory.is_dir() {
            let v1 = layout.unified.as_deref() != Some(mount);
            return (directory.join(if v1 { "tasks" } else { "cgroup.procs" }), Access::WRITE_OK);
        }
        let mut above = directory.ancestors().skip(1).filter(|path| path.starts_with(mount) && path.is_dir());
        (above.next().unwrap_or(mount).to_owned(), Access::WRITE_OK | Access::EXEC_OK)
    }
}

/// The lowest cgroup that both are in or below.
fn common(one: &str, other: &str) -> String {
    let parts = |path: &'_ str| path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let both = parts(one).into_iter().zip(parts(other)).take_while(|(one, other)| one == other);
    both.fold(String::from("/"), |path, (part, _)| format!("{}/{part}", path.trim_end_matches('/')))
}

/// The limits that are asked for, by the names of their fields; device rules are none: who cannot have them enforced makes
/// no nodes.
pub(crate) fn limits(resources: &LinuxResources) -> Result<Vec<String>, serde_json::Error> {
    let Value::Object(fields) = serde_json::to_value(resources)? else { return Ok(Vec::new()) };
    let asked = fields.into_iter().filter(|(name, value)| name != "devices" && says_something(value));
    Ok(asked.map(|(name, _)| format!("linux.resources.{name}")).collect())
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(list) => list.iter().any(says_something),
        Value::Object(fields) => fields.values().any(says_something),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_cgroup_above_two_is_where_their_paths_part() {
        for (one, other, above) in [
            ("/user/session", "/user/c1", "/user"),
            ("/user/session", "/user/session/c1", "/user/session"),
            ("/", "/c1", "/"),
            ("/a/b", "/ab/b", "/"),
        ] {
            assert_eq!(common(one, other), above, "{one} {other}");
        }
    }

    #[test]
    fn what_says_nothing_is_no_limit() {
        let asked = |json: &str| limits(&serde_json::from_str(json).expect("resources")).expect("names");
        assert_eq!(asked("{}"), Vec::<String>::new());
        assert_eq!(asked(r#"{"devices": [{"allow": false, "access": "rwm"}], "memory": {}}"#), Vec::<String>::new());
        assert_eq!(asked(r#"{"hugepageLimits": [], "unified": {}}"#), Vec::<String>::new());
        assert_eq!(
            asked(r#"{"memory": {"limit": 1}, "pids": {"limit": 5}, "unified": {"a.b": "1"}}"#),
            ["linux.resources.memory", "linux.resources.pids", "linux.resources.unified"]
        );
    }
}
