//! Volumes of networks and clouds. None of them is mounted by this version; their rules are
//! here because a manifest that breaks them is wrong wherever it runs.

use k8s_openapi::api::core::v1::Volume;

use crate::findings::Findings;
use crate::path::Path;
use crate::problem::Reason;
use crate::validation::metadata::{check, label};
use crate::validation::names;
use crate::validation::pod::choice;

/// Fields that must not be empty, each with an example.
fn need(fields: &[(&str, &str, &str)], path: &Path<'_>, found: &mut Findings<'_>) {
    for (field, example, value) in fields {
        if value.is_empty() {
            found.required(&path.field(field), "a value is required", &format!("{field}: {example}"));
        }
    }
}

fn byte(value: i32, path: &Path<'_>, found: &mut Findings<'_>) {
    if !(0..=255).contains(&value) {
        found.invalid(path, &value, "must be between 0 and 255", "remove it for the default, 0");
    }
}

pub(super) fn gce_disk(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(source) = &volume.gce_persistent_disk {
        // The API server's path differs from the field's name.
        let path = path.field("persistentDisk");
        need(&[("pdName", "disk-1", &source.pd_name)], &path, found);
        byte(source.partition.unwrap_or(0), &path.field("partition"), found);
    }
}

pub(super) fn aws_disk(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(source) = &volume.aws_elastic_block_store {
        let path = path.field("awsElasticBlockStore");
        need(&[("volumeID", "vol-1", &source.volume_id)], &path, found);
        byte(source.partition.unwrap_or(0), &path.field("partition"), found);
    }
}

pub(super) fn nfs(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(source) = &volume.nfs {
        let path = path.field("nfs");
        need(&[("server", "nfs.example.com", &source.server), ("path", "/export", &source.path)], &path, found);
        if !source.path.starts_with('/') {
            found.invalid(&path.field("path"), &source.path, "must be an absolute path", "begin it with `/`");
        }
    }
}

pub(super) fn iscsi(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(source) = &volume.iscsi else { return };
    let path = path.field("iscsi");
    need(&[("targetPortal", "192.0.2.10:3260", &source.target_portal)], &path, found);
    if source.iqn.is_empty() {
        found.required(&path.field("iqn"), "an iqn is required", &format!("iqn: {INITIATOR}"));
    } else if !is_initiator(&source.iqn) {
        let fix = format!("for example `{INITIATOR}`");
        found.invalid(&path.field("iqn"), &source.iqn, "is no iqn, eui or naa name", fix);
    }
    byte(source.lun, &path.field("lun"), found);
    let chap = source.chap_auth_discovery == Some(true) || source.chap_auth_session == Some(true);
    if chap && source.secret_ref.is_none() {
        found.required(&path.field("secretRef"), "CHAP needs a secret", "secretRef: {name: chap}");
    }
    if let Some(name) = &source.initiator_name {
        // The API server's path differs from the field's name.
        let own = path.field("initiatorname");
        if !is_initiator(name) {
            found.invalid(&own, name, "is no iqn, eui or naa name", format!("for example `{INITIATOR}`"));
        }
    }
}

const INITIATOR: &str = "iqn.2001-04.com.example:storage";

/// `iqn.2001-04.com.example:storage`, `eui.` and 16, or `naa.` and 32 letters or digits.
fn is_initiator(name: &str) -> bool {
    let words = |rest: &str, count: usize| {
        // Any character may stand after the prefix.
        let mut rest = rest.chars();
        let words = rest.next().is_some_and(|c| c != '\n').then_some(rest.as_str());
        words.is_some_and(|words| words.len() == count && words.bytes().all(|byte| byte.is_ascii_alphanumeric()))
    };
    if name.starts_with("iqn") {
        // The server's expression is not tied to the beginning.
        return name.match_indices("iqn.").any(|(at, start)| name.get(at + start.len()..).is_some_and(is_qualified));
    }
    name.strip_prefix("eui").is_some_and(|rest| words(rest, 16))
        || name.strip_prefix("naa").is_some_and(|rest| words(rest, 32))
}

/// `2001-04.com.example:storage`
fn is_qualified(text: &str) -> bool {
    let Some((date, rest)) = text.split_once('.') else { return false };
    let dated = date.len() == 7
        && date.bytes().enumerate().all(|(at, byte)| if at == 4 { byte == b'-' } else { byte.is_ascii_digit() });
    let Some((authority, target)) = rest.split_once(':') else { return false };
    let banned = |c: char| matches!(c, ',' | ';' | '*' | '&' | '$' | '|' | ' ' | '\t' | '\n' | '\r' | '\x0c');
    dated
        && !authority.is_empty()
        && authority.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
        && !target.is_empty()
        && !target.contains(banned)
}

pub(super) fn glusterfs(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(source) = &volume.glusterfs {
        need(
            &[("endpoints", "storage", &source.endpoints), ("path", "/export", &source.path)],
            &path.field("glusterfs"),
            found,
        );
    }
}

pub(super) fn flocker(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(source) = &volume.flocker {
        let path = path.field("flocker");
        let name = source.dataset_name.as_deref().unwrap_or_default();
        let uuid = source.dataset_uuid.as_deref().unwrap_or_default();
        if name.is_empty() && uuid.is_empty() {
            found.required(&path, "needs datasetName or datasetUUID", "datasetName: data");
        }
        if !name.is_empty() && !uuid.is_empty() {
            found.add(
                &path,
                Reason::FieldValueInvalid,
                "has either datasetName or datasetUUID",
                "remove one of the two",
            );
        }
        if name.contains('/') {
            found.invalid(&path.field("datasetName"), &name, "may not contain `/`", "give the name alone");
        }
    }
}

const MONITORS: &str = "monitors: [\"192.0.2.10:6789\"]";

pub(super) fn rbd(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(source) = &volume.rbd {
        let path = path.field("rbd");
        if source.monitors.is_empty() {
            found.required(&path.field("monitors"), "a monitor is required", MONITORS);
        }
        need(&[("image", "disk-1", &source.image)], &path, found);
    }
}

pub(super) fn cinder(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(source) = &volume.cinder {
        let path = path.field("cinder");
        need(&[("volumeID", "vol-1", &source.volume_id)], &path, found);
        if source.secret_ref.as_ref().is_some_and(|it| it.name.is_empty()) {
            found.required(&path.field("secretRef").field("name"), "a name is required", "name: keys");
        }
    }
}

pub(super) fn cephfs(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    if volume.cephfs.as_ref().is_some_and(|it| it.monitors.is_empty()) {
        found.required(&path.field("cephfs").field("monitors"), "a monitor is required", MONITORS);
    }
}

pub(super) fn quobyte(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(source) = &volume.quobyte else {
        return;
    };
    let path = path.field("quobyte");
    if source.registry.is_empty() {
        let example = "registry: quobyte.example.com:7861";
        found.required(&path.field("registry"), "a registry (host:port) is required", example);
    } else if source.tenant.as_deref().unwrap_or_default().len() >= 65 {
        let fix = "shorten it to the tenant's UUID";
        found.add(&path.field("tenant"), Reason::FieldValueRequired, "must be a UUID of at most 64 characters", fix);
    } else {
        for pair in source.registry.split(',') {
            if !is_host_port(pair) {
                found.invalid(
                    &path.field("registry"),
                    &source.registry,
                    "must be host:port, or several separated by commas",
                    "for example `quobyte.example.com:7861`",
                );
            }
        }
    }
    need(&[("volume", "data", &source.volume)], &path, found);
}

/// `host:port` or `[host]:port`, as Go splits it.
fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']'),
        None => (!host.contains(':')).then_some(host),
    };
    host.is_some_and(|host| !host.contains(['[', ']'])) && !port.contains(['[', ']'])
}

pub(super) fn fc(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(source) = &volume.fc else { return };
    let path = path.field("fc");
    let own = path.field("targetWWNs");
    let names = source.target_wwns.as_deref().unwrap_or_default();
    let ids = source.wwids.as_deref().unwrap_or_default();
    if names.is_empty() && ids.is_empty() {
        found.required(&own, "needs targetWWNs or wwids", "targetWWNs: [500a0982991b8dc5]");
    }
    if !names.is_empty() && !ids.is_empty() {
        found.invalid(&own, &names, "and wwids exclude each other", "remove one of the two");
    }
    if !names.is_empty() {
        match source.lun {
            None => found.required(&path.field("lun"), "targetWWNs need a lun", "lun: 0"),
            Some(lun) => byte(lun, &path.field("lun"), found),
        }
    }
}

pub(super) fn flex(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(source) = &volume.flex_volume else {
        return;
    };
    let path = path.field("flexVolume");
    need(&[("driver", "example.com/driver", &source.driver)], &path, found);
    for key in source.options.iter().flat_map(|options| options.keys()) {
        let namespace = key.split_once('/').map_or(key.as_str(), |(space, _)| space);
        let dotted = format!(".{}", namespace.to_lowercase());
        if dotted.ends_with(".kubernetes.io") || dotted.ends_with(".k8s.io") {
            let fix = "rename it, with a domain of the driver or none";
            found.invalid(&path.field("options").key(key), key, "kubernetes.io and k8s.io are reserved", fix);
        }
    }
}

pub(super) fn azure_file(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(source) = &volume.azure_file {
        need(
            &[("secretName", "keys", &source.secret_name), ("shareName", "data", &source.share_name)],
            &path.field("azureFile"),
            found,
        );
    }
}

pub(super) fn vsphere(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(source) = &volume.vsphere_volume {
        need(&[("volumePath", "\"[store] data/disk-1\"", &source.volume_path)], &path.field("vsphereVolume"), found);
    }
}

pub(super) fn photon(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(source) = &volume.photon_persistent_disk {
        need(&[("pdID", "disk-1", &source.pd_id)], &path.field("photonPersistentDisk"), found);
    }
}

pub(super) fn portworx(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(source) = &volume.portworx_volume {
        need(&[("volumeID", "vol-1", &source.volume_id)], &path.field("portworxVolume"), found);
    }
}

pub(super) fn azure_disk(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(source) = &volume.azure_disk else {
        return;
    };
    let path = path.field("azureDisk");
    need(
        &[
            ("diskName", "disk-1", &source.disk_name),
            ("diskURI", "https://store.example.com/disk-1.vhd", &source.disk_uri),
        ],
        &path,
        found,
    );
    let (modes, kinds) = (["None", "ReadOnly", "ReadWrite"], ["Dedicated", "Managed", "Shared"]);
    let mode = "remove it for the default, `ReadWrite`";
    choice(source.caching_mode.as_deref(), &modes, mode, &path.field("cachingMode"), found);
    choice(source.kind.as_deref(), &kinds, "remove it for the default, `Shared`", &path.field("kind"), found);
    if let Some(kind) = source.kind.as_deref() {
        let form = if kind == "Managed" { "/subscriptions/" } else { "https://" };
        if !source.disk_uri.starts_with(form) {
            found.add(
                &path.field("diskURI"),
                Reason::FieldValueNotSupported,
                format!("{:?} must begin with {form}", source.disk_uri),
                if kind == "Managed" {
                    "give the resource's id, or another `kind`"
                } else {
                    "give the blob's address, or `kind: Managed`"
                },
            );
        }
    }
}

pub(super) fn storageos(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(source) = &volume.storageos else {
        return;
    };
    let path = path.field("storageos");
    match source.volume_name.as_deref().unwrap_or_default() {
        "" => found.required(&path.field("volumeName"), "a volumeName is required", "volumeName: data"),
        name => label(name, &path.field("volumeName"), found),
    }
    if let Some(space) = source.volume_namespace.as_deref().filter(|it| !it.is_empty()) {
        label(space, &path.field("volumeNamespace"), found);
    }
    if source.secret_ref.as_ref().is_some_and(|it| it.name.is_empty()) {
        found.required(&path.field("secretRef").field("name"), "a name is required", "name: keys");
    }
}

pub(super) fn scale_io(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(source) = &volume.scale_io {
        need(
            &[
                ("gateway", "https://192.0.2.10/api", &source.gateway),
                ("system", "storage", &source.system),
                ("volumeName", "data", source.volume_name.as_deref().unwrap_or_default()),
            ],
            &path.field("scaleIO"),
            found,
        );
    }
}

pub(super) fn csi(volume: &Volume, path: &Path<'_>, found: &mut Findings<'_>) {
    const LONGEST: usize = 63;
    let Some(source) = &volume.csi else { return };
    let path = path.field("csi");
    let own = path.field("driver");
    if source.driver.is_empty() {
        found.required(&own, "a driver is required", "driver: csi.example.com");
    }
    if source.driver.len() > LONGEST {
        found.too_long(&own, source.driver.len(), LONGEST, "give the name that the driver reports");
    }
    check(&source.driver.to_lowercase(), names::subdomain, &own, found);
    if let Some(secret) = &source.node_publish_secret_ref {
        if secret.name.is_empty() {
            let path = path.field("nodePublishSecretRef");
            found.required(&path.field("name"), "a name is required", "name: keys");
        } else {
            // The API server leaves `nodePublishSecretRef` out of this path.
            check(&secret.name, names::subdomain, &path.field("name"), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{is_host_port, is_initiator};

    #[test]
    fn hosts_with_a_port_are_told_as_go_tells_them() {
        for good in ["a:1", ":", "[::1]:80", "[a]:", "a:"] {
            assert!(is_host_port(good), "{good}");
        }
        for bad in ["a", "::1:80", "[::1]", "[::1", "a]:1", "[[a]:1", "a:1]", "[a]b:1", ""] {
            assert!(!is_host_port(bad), "{bad}");
        }
    }

    #[test]
    fn initiators_are_told_as_the_server_tells_them() {
        for good in
            ["iqn.2001-04.com.example:a^b", "iqn.x.iqn.2001-04.a:b:c", "eui.0123456789abcdef", "euié0123456789abcdef"]
        {
            assert!(is_initiator(good), "{good}");
        }
        for bad in ["iqn.2001-04.com.example", "iqn.2001-04.a:b,c", "iqn.01-04.a:b", "eui.0123", "naa.x", "x"] {
            assert!(!is_initiator(bad), "{bad}");
        }
    }
}
