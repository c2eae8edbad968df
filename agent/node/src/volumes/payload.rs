//! Configuration as files, replaced all at once, in the kubelet's layout:
//!
//! ```text
//!   <volume>/..2026_07_01_12_00_00.123456789/app.conf     one directory per content
//!   <volume>/..data -> ..2026_07_01_12_00_00.123456789    renamed over: the moment of the change
//!   <volume>/app.conf -> ..data/app.conf                  one link per first path component
//! ```
//!
//! Source: kubernetes `pkg/volume/util/atomic_writer.go`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path};

use super::{Files, ownership, remove};
use crate::disk;

const DATA: &str = "..data";

/// Makes the volume at `place` show exactly `files`; nothing is written if it does already.
pub(super) fn write(place: &Path, files: &Files, fs_group: Option<u32>) -> io::Result<()> {
    check(files)?;
    disk::ensure_directory(place, 0o755)?;
    let former = fs::read_link(place.join(DATA)).ok();
    if let Some(former) = &former
        && shows(&place.join(former), files, fs_group)
    {
        return link_names(place, files);
    }
    let name = fresh_name();
    let folder = place.join(&name);
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    for (path, (bytes, mode)) in files {
        let target = folder.join(path);
        if let Some(parent) = target.parent() {
            make_open_folders(&folder, parent)?;
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&target)?;
        file.write_all(bytes)?;
        // Not at creation: the umask must not take bits away.
        file.set_permissions(fs::Permissions::from_mode(*mode))?;
    }
    if let Some(group) = fs_group {
        ownership::give_to_group(File::open(&folder)?.as_fd(), group, ownership::Access::ReadOnly)?;
    }
    let link = place.join("..data_tmp");
    match fs::remove_file(&link) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    symlink(&name, &link)?;
    fs::rename(&link, place.join(DATA))?;
    link_names(place, files)?;
    remove_former(place, &name)
}

fn make_open_folders(base: &Path, folder: &Path) -> io::Result<()> {
    let mut at = base.to_owned();
    for part in folder.strip_prefix(base).unwrap_or(Path::new("")).components() {
        at.push(part);
        match fs::create_dir(&at) {
            Ok(()) => fs::set_permissions(&at, fs::Permissions::from_mode(0o755))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn check(files: &Files) -> io::Result<()> {
    for path in files.keys() {
        let good = path.components().all(|part| matches!(part, Component::Normal(_)))
            && !path.as_os_str().as_encoded_bytes().starts_with(b"..")
            && !path.as_os_str().is_empty();
        if !good {
            let message = format!("{} is no path inside a volume", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
    }
    Ok(())
}

/// Whether the directory has these files with these contents and modes, and no other.
fn shows(folder: &Path, files: &Files, fs_group: Option<u32>) -> bool {
    let same = files.iter().all(|(path, (bytes, mode))| {
        let path = folder.join(path);
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            return false;
        };
        // fsGroup adds bits; a changed mode below them is still seen.
        let found = metadata.permissions().mode() & 0o7777;
        let same_mode = found == *mode || (fs_group.is_some() && found & *mode == *mode);
        same_mode && metadata.len() == bytes.len() as u64 && fs::read(&path).is_ok_and(|found| found == *bytes)
    });
    same && count(folder) == files.len()
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => count(&entry.path()),
            _ => 1,
        })
        .sum()
}

fn link_names(place: &Path, files: &Files) -> io::Result<()> {
    let wanted: BTreeSet<OsString> =
        files.keys().filter_map(|path| Some(path.components().next()?.as_os_str().to_owned())).collect();
    for name in &wanted {
        let link = place.join(name);
        let target = Path::new(DATA).join(name);
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            continue;
        }
        let _ = fs::remove_file(&link);
        symlink(&target, &link)?;
    }
    for entry in fs::read_dir(place)? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().starts_with(b"..") && !wanted.contains(&name) {
            fs::remove_file(place.join(name))?;
        }
    }
    Ok(())
}

fn remove_former(place: &Path, keep: &str) -> io::Result<()> {
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b"..2")
            && name != *keep
            && let Some(name) = name.to_str()
        {
            remove::tree(place, name).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

fn fresh_name() -> String {
    let now = jiff::Timestamp::now();
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let unique = unique.get(..10).unwrap_or_default();
    format!("..{}.{unique}", now.strftime("%Y_%m_%d_%H_%M_%S"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn files(list: &[(&str, &str, u32)]) -> Files {
        list.iter().map(|(path, text, mode)| (PathBuf::from(path), (text.as_bytes().to_vec(), *mode))).collect()
    }

    fn text(place: &Path, name: &str) -> String {
        fs::read_to_string(place.join(name)).unwrap()
    }

    #[test]
    fn a_refresh_swaps_all_files_at_once_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("v");
        write(&place, &files(&[("a", "1", 0o644), ("sub/b", "1", 0o400), ("gone", "x", 0o644)]), None).unwrap();
        let before = fs::read_link(place.join(DATA)).unwrap();
        let held = File::open(place.join("a")).unwrap();

        write(&place, &files(&[("a", "2", 0o600), ("sub/b", "2", 0o400), ("new", "2", 0o644)]), None).unwrap();

        assert_ne!(fs::read_link(place.join(DATA)).unwrap(), before);
        assert_eq!(
            (text(&place, "a"), text(&place, "sub/b"), text(&place, "new")),
            ("2".into(), "2".into(), "2".into())
        );
        assert!(fs::symlink_metadata(place.join("gone")).is_err());
        assert_eq!(io::read_to_string(held).unwrap(), "1", "an open file is not written into");
        assert_eq!(fs::metadata(place.join("a")).unwrap().permissions().mode() & 0o777, 0o600);
        let folders = fs::read_dir(&place).unwrap().flatten().filter(|e| e.file_type().unwrap().is_dir()).count();
        assert_eq!(folders, 1);
    }

    #[test]
    fn the_same_content_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("v");
        let content = files(&[("a", "1", 0o644)]);
        write(&place, &content, None).unwrap();
        let before = fs::read_link(place.join(DATA)).unwrap();
        write(&place, &content, None).unwrap();
        assert_eq!(fs::read_link(place.join(DATA)).unwrap(), before);
    }

    #[test]
    fn a_path_that_leaves_the_volume_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../../x", "..data", "..2x", ""] {
            assert!(write(&dir.path().join("v"), &files(&[(path, "1", 0o644)]), None).is_err(), "{path}");
        }
    }
}
