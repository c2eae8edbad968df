//! Mounts of a container: of paths of the node, and of images.

use portreeve_engine::{Mount, MountIds, MountSource, Propagation};
use tonic::Status;

use super::sandbox::id_row;
use super::{below, invalid, v1};

/// The kernel takes no map of more rows. Source: user_namespaces(7).
const MOST_ID_ROWS: usize = 340;
/// What a mount may be kept from. Source: KEP-5855, `mount_options`.
const MOUNT_OPTIONS: [&str; 3] = ["nodev", "noexec", "nosuid"];

pub(super) fn mount(mount: v1::Mount) -> Result<Mount, Status> {
    let propagation = match mount.propagation() {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    let source = match (mount.image.filter(|image| !image.image.is_empty()), mount.host_path) {
        (Some(_), path) if !path.is_empty() => {
            return Err(invalid("config.mounts", "one has an image and a host_path"));
        }
        (Some(image), _) => MountSource::Image {
            id: image.image,
            sub_path: below("config.mounts.image_sub_path", mount.image_sub_path)?,
        },
        (None, path) if path.is_empty() => {
            return Err(invalid("config.mounts", "one has neither a host_path nor an image"));
        }
        (None, path) if !path.starts_with('/') => {
            return Err(invalid("config.mounts.host_path", format!("{path:?} is not absolute")));
        }
        (None, path) => MountSource::HostPath(super::path("config.mounts.host_path", path)?),
    };
    if let Some(unknown) = mount.mount_options.iter().find(|option| !MOUNT_OPTIONS.contains(&option.as_str())) {
        let message = format!("{unknown:?} is not one of {}", MOUNT_OPTIONS.join(", "));
        return Err(invalid("config.mounts.mount_options", message));
    }
    Ok(Mount {
        ids: mount_ids(mount.uid_mappings, mount.gid_mappings)?,
        options: mount.mount_options,
        container_path: mount.container_path.into(),
        // Source: api.proto, `Mount.image`: what is mounted of images is read-only by definition.
        readonly: mount.readonly || matches!(source, MountSource::Image { .. }),
        source,
        recursive_readonly: mount.recursive_read_only,
        relabel: mount.selinux_relabel,
        propagation,
    })
}

/// Ids of what a mount shows; `None` when none are given.
fn mount_ids(users: Vec<v1::IdMapping>, groups: Vec<v1::IdMapping>) -> Result<Option<MountIds>, Status> {
    if users.is_empty() && groups.is_empty() {
        return Ok(None);
    }
    let rows = |field: &str, rows: Vec<v1::IdMapping>| {
        let field = format!("config.mounts.{field}");
        if rows.is_empty() {
            return Err(invalid(&field, "is missing: ids of users and of groups come together"));
        }
        if rows.len() > MOST_ID_ROWS || rows.iter().any(|row| row.length == 0) {
            return Err(invalid(&field, format!("has a row of no ids, or more than {MOST_ID_ROWS} rows")));
        }
        Ok(rows.into_iter().map(id_row).collect())
    };
    Ok(Some(MountIds { users: rows("uidMappings", users)?, groups: rows("gidMappings", groups)? }))
}

#[cfg(test)]
mod tests {
    use portreeve_engine::IdMapping;
    use tonic::Code;

    use super::*;

    #[test]
    fn a_mount_is_of_one_thing() {
        let image = || Some(v1::ImageSpec { image: "i".into(), ..Default::default() });
        assert!(mount(v1::Mount { host_path: "/".into(), image: image(), ..Default::default() }).is_err());
        assert!(mount(v1::Mount::default()).is_err());
        let shown = mount(v1::Mount { image: image(), image_sub_path: "sub".into(), ..Default::default() }).unwrap();
        assert!(shown.readonly);
        assert_eq!(shown.source, MountSource::Image { id: "i".into(), sub_path: Some("sub".into()) });
    }

    #[test]
    fn ids_of_a_mount_are_of_users_and_of_groups() {
        let row = |length: u32| v1::IdMapping { host_id: 100_000, container_id: 0, length };
        let with = |uid_mappings: Vec<v1::IdMapping>, gid_mappings: Vec<v1::IdMapping>| {
            let host_path = "/a".to_owned();
            mount(v1::Mount { host_path, uid_mappings, gid_mappings, ..Default::default() }).map(|mount| mount.ids)
        };
        let rows = vec![IdMapping { container: 0, host: 100_000, length: 65_536 }];
        assert_eq!(with(vec![], vec![]).unwrap(), None);
        let both = with(vec![row(65_536)], vec![row(65_536)]).unwrap();
        assert_eq!(both, Some(MountIds { users: rows.clone(), groups: rows }));
        let many = || vec![row(1); MOST_ID_ROWS + 1];
        for (users, groups) in
            [(vec![row(1)], vec![]), (vec![], vec![row(1)]), (vec![row(0)], vec![row(1)]), (vec![row(1)], many())]
        {
            assert_eq!(with(users, groups).unwrap_err().code(), Code::InvalidArgument);
        }
    }
}
