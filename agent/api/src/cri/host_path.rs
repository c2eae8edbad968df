//! Paths of the node that a client wants to see in a container.

use std::io;
use std::path::{Path, PathBuf};

use portreeve_engine::{Mount, MountSource};
use tonic::Status;

/// Makes every path of the node among mounts what it leads to: a link itself is never mounted. What is not there becomes a
/// directory, as other runtimes have it. Blocks on the disk.
pub(super) fn resolve_blocking(mut mounts: Vec<Mount>) -> Result<Vec<Mount>, Status> {
    for mount in &mut mounts {
        if let MountSource::HostPath(path) = &mut mount.source {
            let found = resolved(path);
            let failed =
                |error| Status::invalid_argument(format!("config.mounts.host_path: {}: {error}", path.display()));
            *path = found.map_err(failed)?;
        }
    }
    Ok(mounts)
}

fn resolved(path: &Path) -> io::Result<PathBuf> {
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path)?;
            std::fs::canonicalize(path)
        }
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_of_what_a_link_leads_to_and_what_is_not_there_becomes_a_directory() {
        let home = tempfile::tempdir().unwrap();
        let (file, link, absent) = (home.path().join("file"), home.path().join("link"), home.path().join("a/b"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let of = |path: &Path| {
            let mount = Mount {
                container_path: "/x".into(),
                source: MountSource::HostPath(path.to_owned()),
                readonly: false,
                recursive_readonly: false,
                propagation: Default::default(),
                options: Vec::new(),
                ids: None,
                relabel: false,
            };
            resolve_blocking(vec![mount]).map(|mounts| mounts[0].source.clone())
        };
        let real = |path: &Path| MountSource::HostPath(std::fs::canonicalize(path).unwrap());
        assert_eq!(of(&link).unwrap(), real(&file));
        assert_eq!(of(&absent).unwrap(), real(&absent));
        assert!(absent.is_dir());
        assert_eq!(of(&file.join("below")).unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
