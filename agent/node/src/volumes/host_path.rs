//! hostPath: checks that the host has what the volume says, and makes what it may make.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::VolumeError;
use crate::disk;

/// Checks or makes the path of a hostPath volume.
pub(super) fn ensure(name: &str, host: &HostPathVolumeSource) -> Result<(), VolumeError> {
    let path = Path::new(&host.path);
    let refuse = |message: String| VolumeError::HostPath { name: name.to_owned(), path: path.to_owned(), message };
    if !path.is_absolute() {
        // Relative to what? Nothing is made in the directory the agent happens to be in.
        return Err(refuse("is not an absolute path".to_owned()));
    }
    let found = match fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(refuse(error.to_string())),
    };
    let kind = host.type_.as_deref().unwrap_or_default();
    let made = match (kind, found) {
        // Without a type nothing is checked, and an absent path becomes a directory, as with any runtime.
        ("", Some(_)) => Ok(()),
        ("" | "DirectoryOrCreate", None) => disk::ensure_directory(path, 0o755),
        ("FileOrCreate", None) => OpenOptions::new()
            .create(true)
            .append(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .mode(0o644)
            .open(path)
            .map(drop),
        (_, None) => return Err(refuse(format!("does not exist, but has type {kind}"))),
        (_, Some(found)) => {
            let right = match kind {
                "Directory" | "DirectoryOrCreate" => found.is_dir(),
                "File" | "FileOrCreate" => found.is_file(),
                "Socket" => found.is_socket(),
                "CharDevice" => found.is_char_device(),
                "BlockDevice" => found.is_block_device(),
                _ => return Err(refuse(format!("unknown type {kind:?}"))),
            };
            if !right {
                return Err(refuse(format!("is not of type {kind}")));
            }
            Ok(())
        }
    };
    made.map_err(|error| refuse(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_accepts_what_it_names_and_makes_what_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "x").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (kind, name, good) in [
            ("", "dir", true),
            ("", "file", true),
            ("", "new-1", true),
            ("Directory", "dir", true),
            ("Directory", "file", false),
            ("Directory", "absent", false),
            ("DirectoryOrCreate", "new-2/deep", true),
            ("DirectoryOrCreate", "file", false),
            ("File", "file", true),
            ("File", "dir", false),
            ("FileOrCreate", "new-3", true),
            ("FileOrCreate", "absent/new", false),
            ("Socket", "socket", true),
            ("Socket", "file", false),
            ("CharDevice", "file", false),
            ("BlockDevice", "absent", false),
        ] {
            let host = HostPathVolumeSource { path: at(name).display().to_string(), type_: Some(kind.to_owned()) };
            assert_eq!(ensure("v", &host).is_ok(), good, "{kind} {name}");
        }
        let null = HostPathVolumeSource { path: "/dev/null".into(), type_: Some("CharDevice".into()) };
        ensure("v", &null).unwrap();
        assert!(at("new-1").is_dir() && at("new-3").is_file());
        let relative = HostPathVolumeSource { path: "some/where".into(), type_: Some("DirectoryOrCreate".into()) };
        assert!(ensure("v", &relative).unwrap_err().to_string().contains("not an absolute path"));
    }
}
