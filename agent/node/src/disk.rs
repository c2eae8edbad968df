//! Small files on disk that are there as a whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Replaces `path` by `bytes` (mode `mode`): after a crash it has the former or the new content.
///
/// # Errors
/// What the kernel said; the former content is then still there.
pub fn replace_blocking(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = temporary_name(path);
    let written = (|| {
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        drop(file);
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // Best effort: the next replacement truncates it anyway.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    File::open(folder)?.sync_all()
}

/// Like [`replace_blocking`] for files that need not survive a power cut (below `<run>`).
pub(crate) fn replace_volatile(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary_name(path);
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(&temporary, path)
}

fn temporary_name(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    path.with_file_name(format!(".{name}.new"))
}

/// Makes sure that `path` is a directory with exactly this mode.
pub(crate) fn ensure_directory(path: &Path, mode: u32) -> io::Result<()> {
    ensure(DirBuilder::new().recursive(true), path, mode)
}

/// The same, for a directory whose parent must be there.
pub(crate) fn ensure_folder(path: &Path, mode: u32) -> io::Result<()> {
    ensure(&mut DirBuilder::new(), path, mode)
}

fn ensure(builder: &mut DirBuilder, path: &Path, mode: u32) -> io::Result<()> {
    match builder.mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let permissions = fs::metadata(path)?.permissions();
    if permissions.mode() & 0o7777 != mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    /// On a thread with mounts of its own, which go with it.
    #[test]
    fn a_full_disk_leaves_the_former_content_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let tested = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
                        let _ = writeln!(io::stderr(), "SKIPPED: no mounts of our own ({error}); run as root");
                        return;
                    }
                    let none = None::<&str>;
                    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
                    let small = Some("size=64k");
                    mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), small).unwrap();
                    let path = folder.path().join("a.yaml");
                    replace_blocking(&path, b"former", 0o600).unwrap();
                    let error = replace_blocking(&path, &vec![b'x'; 1 << 20], 0o600).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
                    assert_eq!(fs::read(&path).unwrap(), b"former");
                    let names: Vec<_> =
                        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                    assert_eq!(names, ["a.yaml"]);
                    replace_blocking(&path, b"later", 0o600).unwrap();
                    assert_eq!(fs::read(&path).unwrap(), b"later");
                })
                .join()
        });
        tested.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}
