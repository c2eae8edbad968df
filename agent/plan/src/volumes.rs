//! What each volume is made from, and what of it is missing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, PodSpec, Volume, VolumeProjection};

use crate::config::ConfigKind;
use crate::desired::DesiredPod;
use crate::env::absent;
use crate::fingerprint::Fingerprint;
use crate::observed::VolumeRecord;
use crate::resources::Resources;

/// A volume as it should be, or what keeps it from being made.
#[derive(Debug)]
pub(crate) struct WantedVolume {
    pub(crate) record: VolumeRecord,
    pub(crate) missing: Vec<String>,
}

/// Every volume of the pod, by name.
pub(crate) fn wanted(desired: &DesiredPod) -> BTreeMap<String, WantedVolume> {
    let volumes = desired.spec().volumes.iter().flatten();
    volumes.map(|volume| (volume.name.clone(), one(desired, volume))).collect()
}

fn one(desired: &DesiredPod, volume: &Volume) -> WantedVolume {
    let mut content = Content { desired, parts: BTreeMap::new(), missing: Vec::new(), ours: false };
    if let Some(source) = &volume.config_map {
        let optional = source.optional == Some(true);
        content.config(ConfigKind::ConfigMap, &source.name, source.items.as_deref(), optional);
    }
    if let Some(source) = &volume.secret {
        let optional = source.optional == Some(true);
        let name = source.secret_name.as_deref().unwrap_or_default();
        content.config(ConfigKind::Secret, name, source.items.as_deref(), optional);
    }
    if let Some(source) = &volume.downward_api {
        content.downward(source.items.as_deref());
    }
    for source in volume.projected.iter().flat_map(|source| source.sources.iter().flatten()) {
        content.projection(source);
    }
    WantedVolume {
        record: VolumeRecord {
            definition: Fingerprint::of_json(volume),
            content: content.ours.then(|| Fingerprint::of_json(&content.parts)),
        },
        missing: content.missing,
    }
}

struct Content<'a> {
    desired: &'a DesiredPod,
    parts: BTreeMap<String, Fingerprint>,
    missing: Vec<String>,
    ours: bool,
}

impl Content<'_> {
    fn projection(&mut self, source: &VolumeProjection) {
        if let Some(source) = &source.config_map {
            let optional = source.optional == Some(true);
            self.config(ConfigKind::ConfigMap, &source.name, source.items.as_deref(), optional);
        }
        if let Some(source) = &source.secret {
            let optional = source.optional == Some(true);
            self.config(ConfigKind::Secret, &source.name, source.items.as_deref(), optional);
        }
        if let Some(source) = &source.downward_api {
            self.downward(source.items.as_deref());
        }
    }

    fn config(&mut self, kind: ConfigKind, name: &str, items: Option<&[KeyToPath]>, optional: bool) {
        self.ours = true;
        let Some(config) = self.desired.configs.get(kind, name) else {
            if !optional {
                self.missing.push(absent(kind, name));
            }
            return;
        };
        let prints = config.fingerprints();
        let items = items.unwrap_or_default();
        for item in items.iter().filter(|item| !prints.contains_key(&item.key) && !optional) {
            let kind = kind.to_string().to_lowercase();
            let key = &item.key;
            self.missing.push(format!("{kind} \"{name}\" references non-existent key: {key}"));
        }
        let used = |key: &String| items.is_empty() || items.iter().any(|item| item.key == *key);
        let used = prints.iter().filter(|(key, _)| used(key));
        self.parts.extend(used.map(|(key, print)| (format!("{kind} {name}/{key}"), print.clone())));
    }

    fn downward(&mut self, items: Option<&[DownwardAPIVolumeFile]>) {
        self.ours = true;
        let metadata = &self.desired.pod.metadata;
        for item in items.unwrap_or_default() {
            let field = item.field_ref.as_ref().map(|field| field.field_path.as_str());
            let print = match field {
                Some(field) if field.starts_with("metadata.labels") => Fingerprint::of_json(&metadata.labels),
                Some(field) if field.starts_with("metadata.annotations") => Fingerprint::of_json(&metadata.annotations),
                Some(_) => continue,
                None => resources(self.desired.spec()),
            };
            self.parts.insert(format!("file {}", item.path), print);
        }
    }
}

fn resources(spec: &PodSpec) -> Fingerprint {
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let all: BTreeMap<&str, Resources> =
        all.map(|container| (container.name.as_str(), Resources::of(container))).collect();
    Fingerprint::of_json(&all)
}
