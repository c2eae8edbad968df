//! Cgroups below a container's, for processes that are put there.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::str::FromStr;

use portreeve_sys::process::pidfd_pid;

use super::layout::{Layout, layout};
use super::{Cgroup, CgroupError, Join, Version, placement};

/// A cgroup below another: `PATH`, or on version 1 for some controllers only `CONTROLLER[,CONTROLLER]...:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Below {
    /// Of version 1; none are all.
    controllers: Vec<String>,
    /// Without slashes at its ends; empty for the cgroup itself.
    path: String,
}

impl FromStr for Below {
    type Err = CgroupError;

    /// # Errors
    /// [`CgroupError::Path`] for a path that leads upwards, and for a controller without a name.
    fn from_str(text: &str) -> Result<Self, CgroupError> {
        let (controllers, path) = text.split_once(':').map_or((None, text), |(names, path)| (Some(names), path));
        let controllers: Vec<String> =
            controllers.into_iter().flat_map(|names| names.split(',')).map(str::to_owned).collect();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let bad = |part: &&str| *part == "." || *part == ".." || part.bytes().any(|byte| byte == b'\n' || byte == 0);
        if path.is_empty() || parts.iter().any(bad) || controllers.iter().any(String::is_empty) {
            return Err(CgroupError::Path(text.to_owned()));
        }
        Ok(Self { controllers, path: parts.join("/") })
    }
}

impl Cgroup {
    /// As [`Cgroup::prepare_join`], in cgroups below it, which exist: for each hierarchy the first of `below` that is
    /// for one of its controllers, else the cgroup itself.
    ///
    /// On version 2 a container that divides its cgroup among others below it has no processes in it, and can have none:
    /// without `below` a further process goes where the container's first one, `first`, is.
    ///
    /// # Errors
    /// [`CgroupError::NoController`] for one that no hierarchy has; [`CgroupError::Read`] for a cgroup that is not
    /// there.
    pub(crate) fn prepare_join_below(&self, below: &[Below], first: BorrowedFd<'_>) -> Result<Join, CgroupError> {
        let layout = layout()?;
        if layout.version() == Version::V2
            && below.is_empty()
            && let Some(place) = self.divided_place_of(layout, first)?
        {
            return Join::open(layout, &place);
        }
        for controller in below.iter().flat_map(|one| &one.controllers) {
            if layout.version() == Version::V2 || layout.v1_mount(controller).is_none() {
                let needed_for = "a cgroup of its own hierarchy".to_owned();
                return Err(CgroupError::NoController { controller: controller.clone(), needed_for });
            }
        }
        let hierarchies = layout.v1.iter().map(|hierarchy| self.place_for(below, Some(&hierarchy.controllers)));
        Join::open_each(layout, hierarchies, &self.unified_place(layout, below))
    }

    /// Where a process of a version 2 cgroup is that gives controllers to those below it; `None` where it gives none, and
    /// for a process that is not in it or below.
    fn divided_place_of(&self, layout: &Layout, process: BorrowedFd<'_>) -> Result<Option<String>, CgroupError> {
        let Some(mount) = &layout.unified else { return Ok(None) };
        let read = |path: PathBuf| match std::fs::read_to_string(&path) {
            Err(source) => Err(CgroupError::Read { path, source }),
            Ok(text) => Ok(text),
        };
        if read(mount.join(self.relative()).join("cgroup.subtree_control"))?.trim().is_empty() {
            return Ok(None);
        }
        let pid =
            || pidfd_pid(process).map_err(|source| CgroupError::Read { path: "/proc/self/fdinfo".into(), source });
        let Some(number) = pid()? else { return Ok(None) };
        let text = read(format!("/proc/{}/cgroup", number.as_raw_nonzero()).into())?;
        // Its number had not gone to another process by then.
        let same = pid()? == Some(number);
        Ok(self.at_or_below(&placement::own(layout, &text)).filter(|_| same))
    }

    /// The path without its leading slash, when it is that of this cgroup or of one below it.
    fn at_or_below(&self, path: &str) -> Option<String> {
        let rest = path.strip_prefix(&self.path)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| path.trim_start_matches('/').to_owned())
    }

    fn place_for(&self, below: &[Below], controllers: Option<&[String]>) -> String {
        let is_for = |one: &&Below| {
            let named = |controllers: &[String]| one.controllers.iter().any(|name| controllers.contains(name));
            one.controllers.is_empty() || controllers.is_some_and(named)
        };
        match below.iter().find(is_for) {
            Some(one) if !one.path.is_empty() => format!("{}/{}", self.relative(), one.path),
            _ => self.relative().to_owned(),
        }
    }

    /// Beside version 1 the unified hierarchy limits nothing: nobody has to have made a cgroup there.
    fn unified_place(&self, layout: &Layout, below: &[Below]) -> String {
        let place = self.place_for(below, None);
        let exists = layout.unified.as_ref().is_some_and(|mount| mount.join(&place).is_dir());
        if layout.version() == Version::V1 && !exists { self.relative().to_owned() } else { place }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_below_never_leads_upwards() {
        let below = |controllers: &[&str], path: &str| Below {
            controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
            path: path.to_owned(),
        };
        assert_eq!("a/b".parse::<Below>().expect("a path"), below(&[], "a/b"));
        assert_eq!("/a//b/".parse::<Below>().expect("a path"), below(&[], "a/b"));
        assert_eq!("/".parse::<Below>().expect("the cgroup itself"), below(&[], ""));
        assert_eq!("cpu,pids:a".parse::<Below>().expect("controllers"), below(&["cpu", "pids"], "a"));
        for wrong in ["", "..", "a/../..", "./a", "cpu:", "cpu:..", ":a", "cpu,:a", "a\nb"] {
            assert!(wrong.parse::<Below>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_further_process_never_leaves_the_containers_cgroup() {
        let cgroup = Cgroup { path: "/pods/c".to_owned() };
        assert_eq!(cgroup.at_or_below("/pods/c/init").as_deref(), Some("pods/c/init"));
        assert_eq!(cgroup.at_or_below("/pods/c").as_deref(), Some("pods/c"));
        for outside in ["/", "/pods", "/pods/cc", "/other/pods/c"] {
            assert_eq!(cgroup.at_or_below(outside), None, "{outside}");
        }
    }

    #[test]
    fn each_hierarchy_has_the_place_that_is_meant_for_it() {
        let cgroup = Cgroup { path: "/c".to_owned() };
        let place = |below: &[&str], controllers: &[&str]| {
            let below: Vec<Below> = below.iter().map(|text| text.parse().expect("a place")).collect();
            let controllers: Vec<String> = controllers.iter().map(|&name| name.to_owned()).collect();
            cgroup.place_for(&below, Some(&controllers))
        };
        assert_eq!(place(&[], &["pids"]), "c");
        assert_eq!(place(&["x"], &["pids"]), "c/x");
        assert_eq!(place(&["/"], &["pids"]), "c");
        assert_eq!(place(&["pids:x"], &["cpu", "cpuacct"]), "c");
        assert_eq!(place(&["pids:x", "cpuacct:y"], &["cpu", "cpuacct"]), "c/y");
        assert_eq!(place(&["pids:x", "z"], &["memory"]), "c/z");
    }
}
