//! Joining a cgroup by one's own write.
//!
//! The child writes `0` to each `tasks` file (version 1) itself: a parent that writes the child's id to `cgroup.procs`
//! takes a global lock and waits for an RCU grace period, 5 to 13 ms after an idle moment instead of 0.1 ms.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use super::CgroupError;
use super::layout::Layout;

/// Open files with which a child joins: opened by the caller, because the child may be in a user namespace that could
/// not open them (the kernel looks at who opened the file).
#[derive(Debug)]
pub(crate) struct Join {
    /// `tasks` of each version 1 hierarchy, and of whatever else is joined by writing `0` to a file.
    tasks: Vec<(PathBuf, File)>,
    /// Directory in the unified hierarchy, for CLONE_INTO_CGROUP.
    unified: Option<(PathBuf, File)>,
}

impl Join {
    pub(crate) fn open(layout: &Layout, relative: &str) -> Result<Self, CgroupError> {
        Self::open_each(layout, std::iter::repeat_n(relative.to_owned(), layout.v1.len()), relative)
    }

    /// With a place of its own in each version 1 hierarchy, in their order, and in the unified one.
    pub(crate) fn open_each(
        layout: &Layout,
        places: impl Iterator<Item = String>,
        unified: &str,
    ) -> Result<Self, CgroupError> {
        let read = |path: PathBuf, write: bool| match File::options().read(!write).write(write).open(&path) {
            Ok(file) => Ok((path, file)),
            Err(source) => Err(CgroupError::Read { path, source }),
        };
        let tasks = layout.v1.iter().zip(places).map(|(h, place)| read(h.mount.join(place).join("tasks"), true));
        let tasks = tasks.collect::<Result<_, _>>()?;
        let unified = layout.unified.as_ref().map(|mount| read(mount.join(unified), false)).transpose()?;
        Ok(Self { tasks, unified })
    }

    /// Of no cgroup.
    pub(crate) fn of_nothing() -> Self {
        Self { tasks: Vec::new(), unified: None }
    }

    /// With further files that a child writes `0` to, in this order.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub(crate) fn with(mut self, files: Vec<PathBuf>) -> Result<Self, CgroupError> {
        for path in files {
            match File::options().write(true).open(&path) {
                Ok(file) => self.tasks.push((path, file)),
                Err(source) => return Err(CgroupError::Read { path, source }),
            }
        }
        Ok(self)
    }

    /// The directory that a child can be born in.
    pub(crate) fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(|(_, file)| file.as_fd())
    }

    /// Joins all but the unified hierarchy.
    pub(crate) fn enter(&self) -> Result<(), CgroupError> {
        for (path, file) in &self.tasks {
            let mut file = file;
            file.write_all(b"0").map_err(|source| CgroupError::Write {
                path: path.clone(),
                value: "0".into(),
                source,
            })?;
        }
        Ok(())
    }

    /// Joins the unified hierarchy, for a process that was not born there.
    pub(crate) fn enter_unified(&self) -> Result<(), CgroupError> {
        let Some((path, _)) = &self.unified else { return Ok(()) };
        let path = path.join("cgroup.procs");
        super::write_file(&path, "0").map_err(|source| CgroupError::Write { path, value: "0".into(), source })
    }
}

/// Of this directory in the place of the unified hierarchy, and of no other.
#[cfg(test)]
pub(crate) fn a_join(unified: Option<&std::path::Path>) -> Join {
    let open = |path: &std::path::Path| (path.to_owned(), File::open(path).expect("open"));
    Join { tasks: Vec::new(), unified: unified.map(open) }
}
