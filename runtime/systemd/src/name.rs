//! What a container's unit is called, and where its cgroup lies.

use crate::SystemdError;

/// The scope of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of its slice.
    pub slice: String,
    /// Name of the scope.
    pub unit: String,
    /// Path of the scope's cgroup below the hierarchy's root.
    pub cgroup: String,
}

/// Where containers are that do not say it.
const SLICE: &str = "system.slice";

/// What the names of their scopes begin with.
const PREFIX: &str = "portreeve";

/// A name has at most this many bytes: systemd.unit(5).
const LIMIT: usize = 255;

impl Place {
    /// That of `linux.cgroupsPath`, which is `SLICE:PREFIX:NAME` where systemd makes the cgroups: the scope
    /// `PREFIX-NAME.scope` in that slice. Without a slice it is `system.slice`, and without a path `id` is the name.
    ///
    /// Source: runc, docs/systemd.md.
    ///
    /// # Errors
    /// [`SystemdError::Path`].
    pub fn of(cgroups_path: &str, id: &str) -> Result<Self, SystemdError> {
        let wrong = |reason: String| SystemdError::Path { path: cgroups_path.to_owned(), reason };
        let (slice, prefix, name) = if cgroups_path.is_empty() {
            ("", PREFIX, id)
        } else {
            let parts: Vec<&str> = cgroups_path.split(':').collect();
            let [slice, prefix, name] = parts[..] else {
                return Err(wrong("with --systemd-cgroup it has the form SLICE:PREFIX:NAME".to_owned()));
            };
            (slice, prefix, name)
        };
        if name.is_empty() {
            return Err(wrong("its third part, the name, is empty".to_owned()));
        }
        if name.ends_with(".slice") {
            return Err(wrong("a slice has no processes of its own, and a container is one".to_owned()));
        }
        let slice = if slice.is_empty() { SLICE } else { slice };
        let unit = format!("{prefix}-{name}.scope");
        if !is_name(&unit) {
            return Err(wrong(format!(
                "{unit:?} is no name of a unit: at most {LIMIT} letters, digits and any of `:`, `-`, `_`, `.`, `\\`, `@`"
            )));
        }
        let above = expand(slice).ok_or_else(|| wrong(format!("{slice:?} is no name of a slice")))?;
        Ok(Self { slice: slice.to_owned(), cgroup: format!("{above}/{unit}"), unit })
    }

    /// The scope of a pod in the slice `parent`, whose last part counts: `/a.slice/a-b.slice` and `a-b.slice` are the same.
    ///
    /// # Errors
    /// [`SystemdError::Slice`].
    pub fn of_pod(parent: &str, id: &str) -> Result<Self, SystemdError> {
        let slice = parent.rsplit('/').next().unwrap_or_default();
        let above = expand(slice).ok_or_else(|| SystemdError::Slice {
            path: parent.to_owned(),
            reason: format!("{slice:?} is no name of a slice"),
        })?;
        let unit = format!("{PREFIX}-{id}.scope");
        Ok(Self { slice: slice.to_owned(), cgroup: format!("{above}/{unit}"), unit })
    }

    /// Path of the slice's cgroup; `/` for the root.
    #[must_use]
    pub fn above(&self) -> &str {
        match self.cgroup.rsplit_once('/') {
            Some(("", _)) | None => "/",
            Some((above, _)) => above,
        }
    }

    /// Where who keeps the scope is: a cgroup that gives controllers to others has no processes of its own.
    pub(crate) fn keeper(&self) -> String {
        format!("{}/keeper", self.cgroup)
    }

    /// The cgroup of the container itself. Limits of the scope's own cgroup are systemd's to write, and those of one below
    /// it are left to whom it is delegated.
    #[must_use]
    pub fn container(&self) -> String {
        format!("{}/container", self.cgroup)
    }
}

/// Whether a cgroup's path ends as a slice's does.
#[must_use]
pub fn is_slice(path: &str) -> bool {
    path.ends_with(".slice")
}

/// Source: systemd.unit(5).
fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    text.len() <= LIMIT && text.bytes().all(good)
}

/// The cgroup of a slice: `a-b.slice` lies in `a.slice`. Empty for `-.slice`, the root.
///
/// Source: systemd.slice(5).
fn expand(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(".slice").filter(|_| is_name(slice))?;
    if name == "-" {
        return Some(String::new());
    }
    let mut path = String::new();
    let mut above = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        above.push_str(part);
        path.push_str(&format!("/{above}.slice"));
        above.push('-');
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_three_parts_is_a_scope_in_a_slice() {
        let cases = [
            ("", ("system.slice", "portreeve-c1.scope", "/system.slice/portreeve-c1.scope")),
            ("machine.slice:libpod:f00", ("machine.slice", "libpod-f00.scope", "/machine.slice/libpod-f00.scope")),
            ("::x", ("system.slice", "-x.scope", "/system.slice/-x.scope")),
            ("-.slice:a:b", ("-.slice", "a-b.scope", "/a-b.scope")),
            (
                "kubepods-besteffort-pod1_2.slice:cri-containerd:9",
                (
                    "kubepods-besteffort-pod1_2.slice",
                    "cri-containerd-9.scope",
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-9.scope",
                ),
            ),
        ];
        for (path, (slice, unit, cgroup)) in cases {
            let expected = Place { slice: slice.into(), unit: unit.into(), cgroup: cgroup.into() };
            assert_eq!(Place::of(path, "c1").expect(path), expected, "{path}");
        }
        assert_eq!(Place::of("", "c1").expect("a place").container(), "/system.slice/portreeve-c1.scope/container");
    }

    #[test]
    fn a_pod_has_a_scope_in_its_slice() {
        let slice = "kubepods-besteffort-pod1_2.slice";
        let above = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice";
        for parent in [slice, above] {
            let place = Place::of_pod(parent, "9").expect(parent);
            assert_eq!((place.slice.as_str(), place.unit.as_str()), (slice, "portreeve-9.scope"));
            assert_eq!((place.above(), place.keeper()), (above, format!("{above}/portreeve-9.scope/keeper")));
        }
        assert_eq!(Place::of_pod("-.slice", "9").expect("the root").above(), "/");
        for wrong in ["", "/", "a", "a--b.slice", "/a.slice/b c.slice", "../-a.slice"] {
            let error = Place::of_pod(wrong, "9").expect_err(wrong).to_string();
            assert!(error.contains("no name of a slice") && error.contains("cgroup parent"), "{wrong}: {error}");
        }
        assert!(is_slice("/a/b.slice") && !is_slice("/a.slice/b"));
    }

    #[test]
    fn anything_else_is_refused_and_says_what_is_wrong() {
        let long = format!("a.slice:p:{}", "x".repeat(LIMIT));
        let cases = [
            ("/a/b", "SLICE:PREFIX:NAME"),
            ("a.slice:b", "SLICE:PREFIX:NAME"),
            ("a.slice:b:c:d", "SLICE:PREFIX:NAME"),
            ("a.slice:b:", "the name, is empty"),
            ("a.slice:b:c.slice", "a slice has no processes"),
            ("a.slice:b:../../c", "no name of a unit"),
            ("a.slice:b/c:d", "no name of a unit"),
            ("a.slice:b: c", "no name of a unit"),
            (long.as_str(), "no name of a unit"),
            ("a:b:c", "no name of a slice"),
            (".slice:b:c", "no name of a slice"),
            ("a--b.slice:b:c", "no name of a slice"),
            ("-a.slice:b:c", "no name of a slice"),
            ("a-.slice:b:c", "no name of a slice"),
            ("a.slice/b.slice:b:c", "no name of a slice"),
            ("../a.slice:b:c", "no name of a slice"),
        ];
        for (path, reason) in cases {
            let error = Place::of(path, "c1").expect_err(path).to_string();
            assert!(error.contains(reason) && error.contains("linux.cgroupsPath"), "{path}: {error}");
        }
        // An id may have letters that a unit's name may not.
        assert!(Place::of("", "a+b").is_err());
    }
}
