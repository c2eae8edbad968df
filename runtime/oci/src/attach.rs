//! What this crate mounts inside a container alone, mounted on the host instead: for another runtime, which looks for
//! it by its path.
//!
//! ```text
//!   <bundle>/rootfs      the container's root file system
//!   <bundle>/mounts/N    layers that the Nth mount of the configuration shows: it becomes a bind of this directory
//! ```

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use portreeve_sys::mount::{self, NO_DEV, NO_EXEC, NO_SUID, READ_ONLY};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::create::RootFs;
use crate::error::{CreateError, SetupError, Step};
use crate::plan::PlanError;
use crate::plan::mounts::{self, What, overlay};
use crate::prepare::{self, Overlay};
use crate::userns;

/// Below the bundle.
const ROOT: &str = "rootfs";
/// Likewise.
const MOUNTS: &str = "mounts";

/// Mounts a container's root file system and its mounts of layers below `bundle`, and has the configuration name them
/// there. With a user namespace, which is named by a path, files have its ids.
///
/// # Errors
/// [`CreateError`] names the step that failed; [`take_away`] removes what was mounted before.
pub fn lay_out(spec: &mut Spec, rootfs: &RootFs, bundle: &Path) -> Result<(), CreateError> {
    let namespace = users(spec)?;
    let namespace = namespace.as_ref().map(AsFd::as_fd);
    let owner = match namespace {
        None => (0, 0),
        Some(namespace) => userns::host_root_of(namespace)?
            .ok_or_else(|| PlanError::new("linux.uidMappings", "does not map the container's root (0)"))?,
    };
    let root = bundle.join(ROOT);
    let label = mounts::label(spec).map(str::to_owned);
    let label = label.as_deref();
    attach(prepare::root(rootfs, false, namespace, owner, label)?.as_fd(), &root)?;
    spec.root_mut().get_or_insert_default().set_path(root);
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
        let Some(What::Layers { name, lower, writable, id_map, attributes }) = overlay(index, mount)? else { continue };
        let writable = writable.as_ref().map(|(upper, work)| (upper.as_path(), work.as_path()));
        let wanted = Overlay { name: &name, lower: &lower, writable, label, attributes };
        let tree = prepare::overlay(wanted, namespace.filter(|_| id_map))?;
        let place = bundle.join(MOUNTS).join(index.to_string());
        attach(tree.as_fd(), &place)?;
        let mut options = vec!["bind", "rprivate", if attributes & READ_ONLY != 0 { "ro" } else { "rw" }];
        let named = [(NO_SUID, "nosuid"), (NO_DEV, "nodev"), (NO_EXEC, "noexec")];
        options.extend(named.iter().filter(|(flag, _)| attributes & flag != 0).map(|(_, name)| *name));
        mount.set_typ(Some("bind".to_owned()));
        mount.set_source(Some(place));
        mount.set_options(Some(options.into_iter().map(str::to_owned).collect()));
    }
    Ok(())
}

/// Unmounts all that [`lay_out`] has mounted below `bundle`; nothing there is fine.
///
/// # Errors
/// Of reading the directory and of umount(2).
pub fn take_away(bundle: &Path) -> io::Result<()> {
    match fs::read_dir(bundle.join(MOUNTS)) {
        Ok(entries) => {
            for entry in entries {
                detach(&entry?.path())?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    detach(&bundle.join(ROOT))
}

/// All mounts at a place, one over the other.
fn detach(place: &Path) -> io::Result<()> {
    loop {
        match mount::detach(place) {
            Ok(()) => {}
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    Some(Errno::INVAL | Errno::NOENT) => Ok(()),
                    _ => Err(error),
                };
            }
        }
    }
}

fn attach(tree: BorrowedFd<'_>, place: &Path) -> Result<(), SetupError> {
    fs::create_dir_all(place).step("making", place)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::open(place, flags, Mode::empty()).step("opening", place)?;
    mount::attach(tree, target.as_fd()).step("mounting at", place)
}

/// The user namespace that the container joins.
fn users(spec: &Spec) -> Result<Option<OwnedFd>, SetupError> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let joined =
        namespaces.iter().find(|one| one.typ() == LinuxNamespaceType::User).and_then(|one| one.path().as_ref());
    let open = |path: &PathBuf| {
        let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        opened.step("opening the user namespace", path)
    };
    joined.map(open).transpose()
}
