//! volumeMounts to mounts, first as a plan that names what has to be prepared.

use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, PodSpec, Volume};
use portreeve_engine::{Mount, MountSource, Propagation};

use super::env::{expand, missing};

/// Why a container's mounts cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MountError {
    /// The pod does not name the volume.
    #[error("the pod has no volume {0:?}")]
    Volume(String),
    /// Without these variables nobody can say which directory is meant.
    #[error("subPathExpr {expression:?} of the mount at {path}: no value for {names}; define them in the container's env", names = .names.join(", "))]
    Variables {
        /// `subPathExpr`.
        expression: String,
        /// `mountPath`.
        path: String,
        /// Those that are absent or empty.
        names: Vec<String>,
    },
    /// What the variables made of it is no path inside the volume.
    #[error(
        "subPathExpr {expression:?} of the mount at {path} is {expanded:?}: it must be a relative path without \"..\""
    )]
    Leaves {
        /// `subPathExpr`.
        expression: String,
        /// `mountPath`.
        path: String,
        /// With the variables replaced.
        expanded: String,
    },
}

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
    pub(crate) fn mount(&self, source: MountSource) -> Mount {
        // Source: the comment of `Volume.image` in Kubernetes' API: nothing in it is executable.
        let image = matches!(source, MountSource::Image { .. });
        Mount {
            options: image.then(|| "noexec".to_owned()).into_iter().collect(),
            container_path: self.container_path.clone(),
            source,
            readonly: self.readonly,
            recursive_readonly: self.recursive_readonly,
            propagation: self.propagation,
            ids: None,
            relabel: false,
        }
    }
}

/// The volume mounts of a container.
pub(crate) fn mount_plans<'a>(
    spec: &'a PodSpec,
    container: &'a Container,
    envs: &[(String, String)],
) -> Result<Vec<MountPlan<'a>>, MountError> {
    let mut plans = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = spec
            .volumes
            .iter()
            .flatten()
            .find(|volume| volume.name == mount.name)
            .ok_or_else(|| MountError::Volume(mount.name.clone()))?;
        let sub_path = match &mount.sub_path_expr {
            Some(expression) => Some(expanded(expression, &mount.mount_path, envs)?),
            None => mount.sub_path.clone(),
        }
        .filter(|path| !path.is_empty());
        // What shows configuration is written by the agent alone, and images by nobody.
        let shows = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some()
            || volume.image.is_some();
        let readonly = mount.read_only == Some(true) || shows;
        let recursive = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
        plans.push(MountPlan {
            volume,
            sub_path,
            slot: format!("{}-{index}", container.name),
            // As the kubelet has it, a relative path is one from the root.
            container_path: Path::new("/").join(&mount.mount_path),
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

/// Source: kubernetes `pkg/kubelet/container/helpers.go` ExpandContainerVolumeMounts: an empty value
/// is as good as none.
fn expanded(expression: &str, mount_path: &str, envs: &[(String, String)]) -> Result<String, MountError> {
    let value = |name: &str| {
        let found = envs.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    };
    let names = missing(expression, &value);
    let (expression, path) = (expression.to_owned(), mount_path.to_owned());
    if !names.is_empty() {
        return Err(MountError::Variables { expression, path, names });
    }
    let expanded = expand(&expression, &value);
    let stays = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(&expanded).components().all(stays) {
        return Err(MountError::Leaves { expression, path, expanded });
    }
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans(mount: serde_json::Value, envs: &[(&str, &str)]) -> Result<Vec<(PathBuf, Option<String>)>, MountError> {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "containers": [{"name": "c", "volumeMounts": [mount]}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        }))
        .unwrap();
        let envs: Vec<(String, String)> =
            envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let plans = mount_plans(&spec, &spec.containers[0], &envs)?;
        Ok(plans.into_iter().map(|plan| (plan.container_path, plan.sub_path)).collect())
    }

    #[test]
    fn a_relative_mount_path_begins_at_the_root() {
        for (path, expected) in [("rel/dir", "/rel/dir"), ("/abs", "/abs"), ("./x", "/./x")] {
            let found = plans(serde_json::json!({"name": "v", "mountPath": path}), &[]).unwrap();
            assert_eq!(found[0].0, Path::new(expected));
        }
    }

    #[test]
    fn a_sub_path_expression_without_all_its_variables_is_refused() {
        let mount = |expression: &str| serde_json::json!({"name": "v", "mountPath": "/d", "subPathExpr": expression});
        let envs = [("A", "one"), ("EMPTY", ""), ("UP", "../x"), ("ROOT", "/etc")];
        for (expression, expected) in
            [("x/$(A)", Some("x/one")), ("$$(NONE)/$(A)", Some("$(NONE)/one")), ("plain", Some("plain"))]
        {
            let found = plans(mount(expression), &envs).unwrap();
            assert_eq!(found[0].1.as_deref(), expected, "{expression}");
        }
        for (expression, names) in
            [("a/$(NOVAR)", vec!["NOVAR"]), ("$(EMPTY)/b", vec!["EMPTY"]), ("$(X)/$(A)/$(Y)/$(X)", vec!["X", "Y"])]
        {
            let error = plans(mount(expression), &envs).unwrap_err();
            let MountError::Variables { names: found, .. } = &error else { panic!("{error}") };
            assert_eq!(*found, names, "{expression}");
        }
        for expression in ["a/$(UP)", "$(ROOT)"] {
            let error = plans(mount(expression), &envs).unwrap_err();
            assert!(matches!(error, MountError::Leaves { .. }), "{error}");
        }
    }
}
