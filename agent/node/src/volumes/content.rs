//! What configMap, secret, projected and downwardAPI volumes show.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume};
use portreeve_plan::Config;
use portreeve_plan::config::ConfigKind;

use super::{Facts, Files};
use crate::downward::{self, DownwardError};

/// Mode of a file for which nothing says another.
const DEFAULT_MODE: i32 = 0o644;

/// Why there is nothing to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ContentError {
    /// It does not exist.
    #[error("{kind} {name:?} does not exist")]
    Missing {
        /// ConfigMap or Secret.
        kind: ConfigKind,
        /// Its name.
        name: String,
    },
    /// It has no such key.
    #[error("{kind} {name:?} has no key {key:?}")]
    Key {
        /// ConfigMap or Secret.
        kind: ConfigKind,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A field of the pod has no value.
    #[error("downwardAPI")]
    Downward(#[from] DownwardError),
    /// This version cannot show it.
    #[error("projected source {0} is not supported by this version")]
    Unsupported(&'static str),
}

/// The files of a volume that shows configuration; `None` if it is of another kind.
pub(super) fn files(facts: Facts<'_>, volume: &Volume) -> Result<Option<Files>, ContentError> {
    let mut files = Files::new();
    if let Some(map) = &volume.config_map {
        let from = Source {
            kind: ConfigKind::ConfigMap,
            name: &map.name,
            items: map.items.as_deref(),
            optional: map.optional == Some(true),
        };
        from.add(facts, map.default_mode, &mut files)?;
    } else if let Some(secret) = &volume.secret {
        let from = Source {
            kind: ConfigKind::Secret,
            name: secret.secret_name.as_deref().unwrap_or_default(),
            items: secret.items.as_deref(),
            optional: secret.optional == Some(true),
        };
        from.add(facts, secret.default_mode, &mut files)?;
    } else if let Some(downward) = &volume.downward_api {
        let items = downward.items.as_deref().unwrap_or_default();
        add_downward(facts, items, downward.default_mode, &mut files)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode;
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                let from = Source {
                    kind: ConfigKind::ConfigMap,
                    name: &map.name,
                    items: map.items.as_deref(),
                    optional: map.optional == Some(true),
                };
                from.add(facts, mode, &mut files)?;
            } else if let Some(secret) = &source.secret {
                let from = Source {
                    kind: ConfigKind::Secret,
                    name: &secret.name,
                    items: secret.items.as_deref(),
                    optional: secret.optional == Some(true),
                };
                from.add(facts, mode, &mut files)?;
            } else if let Some(downward) = &source.downward_api {
                let items = downward.items.as_deref().unwrap_or_default();
                add_downward(facts, items, mode, &mut files)?;
            } else if source.service_account_token.is_some() {
                return Err(ContentError::Unsupported("serviceAccountToken"));
            } else if source.cluster_trust_bundle.is_some() {
                return Err(ContentError::Unsupported("clusterTrustBundle"));
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

struct Source<'a> {
    kind: ConfigKind,
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    optional: bool,
}

impl Source<'_> {
    fn add(&self, facts: Facts<'_>, default_mode: Option<i32>, files: &mut Files) -> Result<(), ContentError> {
        let Some(config) = facts.configs.get(self.kind, self.name) else {
            if self.optional {
                return Ok(());
            }
            return Err(ContentError::Missing { kind: self.kind, name: self.name.to_owned() });
        };
        let items = self.items.unwrap_or_default();
        if items.is_empty() {
            self.add_all(config, default_mode, files);
            return Ok(());
        }
        for item in items {
            let Some(value) = config.data().get(&item.key) else {
                if self.optional {
                    continue;
                }
                return Err(ContentError::Key { kind: self.kind, name: self.name.to_owned(), key: item.key.clone() });
            };
            let mode = mode(item.mode.or(default_mode));
            files.insert(PathBuf::from(&item.path), (value.clone(), mode));
        }
        Ok(())
    }

    fn add_all(&self, config: &Config, default_mode: Option<i32>, files: &mut Files) {
        for (key, value) in config.data() {
            files.insert(PathBuf::from(key), (value.clone(), mode(default_mode)));
        }
    }
}

fn add_downward(
    facts: Facts<'_>,
    items: &[DownwardAPIVolumeFile],
    default_mode: Option<i32>,
    files: &mut Files,
) -> Result<(), ContentError> {
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            downward::field(facts, &[], &field.field_path)?
        } else if let Some(resource) = &item.resource_field_ref {
            downward::resource(facts, None, resource)?
        } else {
            String::new()
        };
        let mode = mode(item.mode.or(default_mode));
        files.insert(PathBuf::from(&item.path), (text.into_bytes(), mode));
    }
    Ok(())
}

fn mode(mode: Option<i32>) -> u32 {
    u32::try_from(mode.unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) & 0o777
}
