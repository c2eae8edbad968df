//! Volumes and their sources.

mod attached;
mod claim;
mod files;
mod projected;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{PodSpec, Volume};

use super::metadata::label;
use super::names;
use super::pod::choice;
use crate::findings::Findings;
use crate::path::Path;
use crate::problem::Reason;
use crate::quantity::Amount;

pub(super) use files::{descending_path, descending_path_as, no_steps_back};

/// The volumes of a pod, by name.
#[derive(Debug, Default)]
pub(super) struct Volumes<'a> {
    /// Those without errors, and where each stands.
    good: BTreeMap<&'a str, (usize, &'a Volume)>,
    bad: BTreeSet<&'a str>,
}

impl<'a> Volumes<'a> {
    /// The volume that a mount may name.
    pub(super) fn get(&self, name: &str) -> Option<&'a Volume> {
        self.good.get(name).map(|(_, volume)| *volume)
    }

    /// Whether there is such a volume, with errors of its own.
    pub(super) fn is_bad(&self, name: &str) -> bool {
        self.bad.contains(name)
    }

    /// The names of all.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.good.keys().chain(&self.bad).copied()
    }
}

/// Validates volumes; returns those that mounts may name.
pub(super) fn volumes<'a>(volumes: &'a [Volume], pod: &str, path: &Path<'_>, found: &mut Findings<'_>) -> Volumes<'a> {
    let made: BTreeSet<String> = volumes
        .iter()
        .filter(|volume| volume.ephemeral.is_some() && !pod.is_empty())
        .map(|volume| format!("{pod}-{}", volume.name))
        .collect();
    let mut all = Volumes::default();
    for (index, volume) in volumes.iter().enumerate() {
        let own = path.index(index);
        let before = found.len();
        source(volume, pod, &own, found);
        if volume.name.is_empty() {
            found.required(&own.field("name"), "a volume needs a name", "name: data");
        } else {
            label(&volume.name, &own.field("name"), found);
        }
        if let Some((first, _)) = all.good.get(volume.name.as_str()) {
            found.duplicate(&own.field("name"), &volume.name, &path.index(*first).field("name"));
        }
        if found.len() == before {
            all.good.insert(&volume.name, (index, volume));
        } else {
            all.bad.insert(&volume.name);
        }
        if let Some(claim) = &volume.persistent_volume_claim
            && made.contains(&claim.claim_name)
        {
            found.invalid(
                &own.field("persistentVolumeClaim").field("claimName"),
                &claim.claim_name,
                "is made for an ephemeral volume of this pod",
                "name another claim, or rename that volume",
            );
        }
    }
    all
}

type Checker = fn(&Volume, &Path<'_>, &mut Findings<'_>);

/// Every kind of volume: its field, whether it is given, and its rules. The order decides which
/// of two counts as the extra one.
fn kinds(volume: &Volume) -> [(&'static str, bool, Checker); 31] {
    [
        ("emptyDir", volume.empty_dir.is_some(), empty_dir),
        ("hostPath", volume.host_path.is_some(), host_path),
        ("gitRepo", volume.git_repo.is_some(), files::git_repo),
        ("gcePersistentDisk", volume.gce_persistent_disk.is_some(), attached::gce_disk),
        ("awsElasticBlockStore", volume.aws_elastic_block_store.is_some(), attached::aws_disk),
        ("secret", volume.secret.is_some(), files::secret),
        ("nfs", volume.nfs.is_some(), attached::nfs),
        ("iscsi", volume.iscsi.is_some(), attached::iscsi),
        ("glusterfs", volume.glusterfs.is_some(), attached::glusterfs),
        ("flocker", volume.flocker.is_some(), attached::flocker),
        ("persistentVolumeClaim", volume.persistent_volume_claim.is_some(), claim::reference),
        ("rbd", volume.rbd.is_some(), attached::rbd),
        ("cinder", volume.cinder.is_some(), attached::cinder),
        ("cephFS", volume.cephfs.is_some(), attached::cephfs),
        ("quobyte", volume.quobyte.is_some(), attached::quobyte),
        ("downwarAPI", volume.downward_api.is_some(), files::downward_api),
        ("fc", volume.fc.is_some(), attached::fc),
        ("flexVolume", volume.flex_volume.is_some(), attached::flex),
        ("configMap", volume.config_map.is_some(), files::config_map),
        ("azureFile", volume.azure_file.is_some(), attached::azure_file),
        ("vsphereVolume", volume.vsphere_volume.is_some(), attached::vsphere),
        ("photonPersistentDisk", volume.photon_persistent_disk.is_some(), attached::photon),
        ("portworxVolume", volume.portworx_volume.is_some(), attached::portworx),
        ("azureDisk", volume.azure_disk.is_some(), attached::azure_disk),
        ("storageos", volume.storageos.is_some(), attached::storageos),
        ("projected", volume.projected.is_some(), projected::projected),
        ("scaleIO", volume.scale_io.is_some(), attached::scale_io),
        ("csi", volume.csi.is_some(), attached::csi),
        ("ephemeral", volume.ephemeral.is_some(), claim::ephemeral),
        ("image", volume.image.is_some(), image),
        ("", false, |_, _, _| {}),
    ]
}

fn source(volume: &Volume, pod: &str, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut first = true;
    for (field, _, check) in kinds(volume).into_iter().filter(|(_, given, _)| *given) {
        if first {
            check(volume, path, found);
            if field == "ephemeral" {
                made_claim(volume, pod, path, found);
            }
        } else {
            let fix = "remove it, or make it a volume of its own";
            found.forbidden(&path.field(field), "a volume has only one kind of source", fix);
        }
        first = false;
    }
    if first {
        found.required(path, "a volume needs a source", "emptyDir: {}");
    }
    if let Some(iscsi) = &volume.iscsi
        && iscsi.initiator_name.is_some()
        && volume.name.len() + 1 + iscsi.target_portal.len() > 64
    {
        found.invalid(
            &path.field("name"),
            &volume.name,
            "and the targetPortal may have at most 63 characters together",
            "shorten the volume's name",
        );
    }
}

/// The name of the claim that an ephemeral volume makes.
fn made_claim(volume: &Volume, pod: &str, path: &Path<'_>, found: &mut Findings<'_>) {
    if !pod.is_empty() && !volume.name.is_empty() {
        let claim = format!("{pod}-{}", volume.name);
        if let Err(message) = names::subdomain(&claim) {
            let fix = "the claim is named after pod and volume: rename or shorten one of them";
            found.invalid(&path.field("name"), &claim, message, fix);
        }
    }
}

fn empty_dir(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let limit = volume.empty_dir.as_ref().and_then(|it| it.size_limit.as_ref());
    if limit.is_some_and(|it| Amount::parse(&it.0).is_ok_and(Amount::is_negative)) {
        let path = path.field("emptyDir");
        found.forbidden(&path.field("sizeLimit"), "may not be below zero", "remove the sign, or the limit");
    }
}

fn host_path(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    const TYPES: [&str; 8] =
        ["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];
    let Some(source) = &volume.host_path else {
        return;
    };
    let path = path.field("hostPath");
    if source.path.is_empty() {
        found.required(&path.field("path"), "a path is required", "path: /srv/data");
        return;
    }
    files::no_steps_back(&source.path, &path.field("path"), found);
    choice(source.type_.as_deref(), &TYPES, "remove it, and the path is not checked", &path.field("type"), found);
}

fn image(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(source) = &volume.image else { return };
    let path = path.field("image");
    if source.reference.as_deref().unwrap_or_default().is_empty() {
        let example = "reference: registry.example.com/files:1";
        found.required(&path.field("reference"), "a reference is required", example);
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    let otherwise = "remove it: the default follows from the image's tag";
    choice(source.pull_policy.as_deref(), &policies, otherwise, &path.field("pullPolicy"), found);
}

/// A token of a service account needs the account's name.
pub(super) fn tokens_need_an_account(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let sources = volume.projected.as_ref().and_then(|it| it.sources.as_ref());
        for (at, source) in sources.into_iter().flatten().enumerate() {
            if source.service_account_token.is_some() {
                let path = path.field("volumes");
                let path = path.index(index);
                let path = path.field("projected");
                let path = path.field("sources");
                found.add(
                    &path.index(at).field("serviceAccountToken"),
                    Reason::FieldValueForbidden,
                    "needs spec.serviceAccountName",
                    "remove it: no token is handed out here",
                );
            }
        }
    }
}
