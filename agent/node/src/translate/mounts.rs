//! volumeMounts to mounts, first as a plan that names what has to be prepared.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, PodSpec, Volume};
use portreeve_engine::{Mount, MountSource, Propagation};

use super::env::expand;

/// One mount that still needs its source.
#[derive(Debug, Clone)]
pub(crate) struct MountPlan<'a> {
    pub(crate) volume: &'a Volume,
    /// subPath, or subPathExpr with its variables replaced; none mounts the whole volume.
    pub(crate) sub_path: Option<String>,
    /// Tells the subPath binds of a volume apart.
    pub(crate) slot: String,
    container_path: PathBuf,
    readonly: bool,
    recursive_readonly: bool,
    propagation: Propagation,
}

impl MountPlan<'_> {
    pub(crate) fn mount(&self, source: PathBuf) -> Mount {
        Mount {
            container_path: self.container_path.clone(),
            source: MountSource::HostPath(source),
            readonly: self.readonly,
            recursive_readonly: self.recursive_readonly,
            propagation: self.propagation,
        }
    }
}

/// The volume mounts of a container; the name of a volume that the pod lacks if there is one.
pub(crate) fn mount_plans<'a>(
    spec: &'a PodSpec,
    container: &'a Container,
    envs: &[(String, String)],
) -> Result<Vec<MountPlan<'a>>, String> {
    let mut plans = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume =
            spec.volumes.iter().flatten().find(|volume| volume.name == mount.name).ok_or_else(|| mount.name.clone())?;
        let lookup = |name: &str| envs.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let sub_path = mount
            .sub_path
            .clone()
            .or_else(|| mount.sub_path_expr.as_ref().map(|expression| expand(expression, &lookup)))
            .filter(|path| !path.is_empty());
        // What shows configuration is written by the agent alone.
        let shows_configuration = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some();
        let readonly = mount.read_only == Some(true) || shows_configuration;
        let recursive = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
        plans.push(MountPlan {
            volume,
            sub_path,
            slot: format!("{}-{index}", container.name),
            container_path: PathBuf::from(&mount.mount_path),
            readonly,
            recursive_readonly: readonly && recursive,
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::Private,
            },
        });
    }
    Ok(plans)
}
