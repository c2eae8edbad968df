//! Manifests and indexes: outside bytes, taken apart with care.
//!
//! A document is either a manifest or an index, never both at once (CVE-2021-41190), and what it
//! says it is must agree with what the registry says and with what it has.
//! Source: OCI image-spec `manifest.md`, `image-index.md`; Docker image manifest v2.2.

use std::collections::BTreeMap;

use oci_client::manifest as media;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{digest::Digest, platform::Platform};

/// Largest manifest or index that is read, as containerd and most registries have it.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Largest configuration that is read.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// Overlayfs takes at most 500 lower directories; one is kept for our own.
pub(crate) const MAX_LAYERS: usize = 499;

pub(crate) const OCI_MANIFEST: &str = media::OCI_IMAGE_MEDIA_TYPE;
pub(crate) const OCI_INDEX: &str = media::OCI_IMAGE_INDEX_MEDIA_TYPE;
pub(crate) const OCI_CONFIG: &str = media::IMAGE_CONFIG_MEDIA_TYPE;
pub(crate) const OCI_LAYER: &str = media::IMAGE_LAYER_MEDIA_TYPE;
const DOCKER_MANIFEST: &str = media::IMAGE_MANIFEST_MEDIA_TYPE;
const DOCKER_INDEX: &str = media::IMAGE_MANIFEST_LIST_MEDIA_TYPE;
const DOCKER_CONFIG: &str = media::IMAGE_DOCKER_CONFIG_MEDIA_TYPE;

/// What to ask a registry for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Points at a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Remarks on it, as far as they are text. Nothing that must hold is told there, so nothing else is an error.
    #[serde(default, deserialize_with = "texts", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Without remarks.
    pub(crate) fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, annotations: BTreeMap::new() }
    }
}

fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    let serde_json::Value::Object(values) = value else { return Ok(BTreeMap::new()) };
    let text = |(name, value)| match value {
        serde_json::Value::String(text) => Some((name, text)),
        _ => None,
    };
    Ok(values.into_iter().filter_map(text).collect())
}

/// One line of an index.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IndexEntry {
    #[serde(flatten)]
    pub(crate) descriptor: Descriptor,
    platform: Option<EntryPlatform>,
    #[serde(default)]
    pub(crate) annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct EntryPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

/// What an image consists of.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// Lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

/// A document that a tag or digest may mean.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<IndexEntry>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u64,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<IndexEntry>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or an index; `content_type` is what the registry called it.
pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document, String> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| format!("is not valid: {e}"))?;
    if raw.schema_version != 2 || raw.fs_layers.is_some() {
        return Err("is of Docker's schema 1, which no longer is supported".to_owned());
    }
    let own = raw.media_type.as_deref();
    // Only a content type that names an image document says anything about this one.
    let told = content_type
        .map(|t| t.split(';').next().unwrap_or(t).trim())
        .filter(|t| t.starts_with("application/vnd.oci.") || t.starts_with("application/vnd.docker."));
    if let (Some(own), Some(told)) = (own, told)
        && own != told
    {
        return Err(format!("says it is {own:?}, the registry says {told:?}"));
    }
    let kind = own.or(told);
    match (raw.manifests, raw.config, raw.layers) {
        (Some(entries), None, None) => match kind {
            None | Some(OCI_INDEX | DOCKER_INDEX) => Ok(Document::Index(entries)),
            Some(other) => Err(format!("lists manifests but is called {other:?}")),
        },
        (None, Some(config), Some(layers)) => match kind {
            None | Some(OCI_MANIFEST | DOCKER_MANIFEST) => Ok(Document::Manifest(checked(config, layers)?)),
            Some(other) => Err(format!("lists layers but is called {other:?}")),
        },
        (Some(_), _, _) => Err("has both manifests and layers; it must be one or the other".to_owned()),
        _ => Err("has neither manifests nor a configuration with layers".to_owned()),
    }
}

/// What a manifest says it is; those of OCI need not.
pub(crate) fn media_type_of(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Told {
        media_type: Option<String>,
    }
    let told = serde_json::from_slice::<Told>(bytes).ok().and_then(|told| told.media_type);
    told.unwrap_or_else(|| OCI_MANIFEST.to_owned())
}

fn checked(config: Descriptor, layers: Vec<Descriptor>) -> Result<Manifest, String> {
    if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
        return Err(format!("is an artifact ({}), not a container image", config.media_type));
    }
    if config.size > MAX_CONFIG {
        return Err(format!("has a configuration of {} bytes, more than {MAX_CONFIG}", config.size));
    }
    if layers.len() > MAX_LAYERS {
        return Err(format!("has {} layers, more than {MAX_LAYERS}", layers.len()));
    }
    if let Some(layer) = layers.iter().find(|l| !is_layer(&l.media_type)) {
        return Err(format!("has a layer that is no file system ({})", layer.media_type));
    }
    if let Some(layer) = layers.iter().find(|l| l.size > i64::MAX as u64) {
        return Err(format!("has a layer of {} bytes", layer.size));
    }
    Ok(Manifest { config, layers })
}

/// A layer that whoever makes an image may not pass on.
/// Source: OCI image-spec `layer.md` §Non-Distributable Layers.
pub(crate) fn is_foreign(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.v1.tar")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar")
}

/// Layers that need not be distributed are asked of the registry all the same, never of the URLs in
/// their descriptor, which could point anywhere.
fn is_layer(media_type: &str) -> bool {
    let tar = media_type
        .strip_prefix("application/vnd.oci.image.layer.v1.tar")
        .or_else(|| media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.tar"))
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff.tar"))
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff.tar"));
    matches!(tar, Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
}

/// The entry that runs best here; or what there is instead.
pub(crate) fn choose<'a>(entries: &'a [IndexEntry], wanted: &Platform) -> Result<&'a IndexEntry, String> {
    let distance = |entry: &IndexEntry| match &entry.platform {
        Some(p) => wanted.distance(&p.os, &p.architecture, p.variant.as_deref()),
        // Layouts of one image often leave the platform to its configuration.
        None => Some(u32::MAX),
    };
    let best = entries.iter().filter_map(|e| Some((distance(e)?, e))).min_by_key(|(d, _)| *d);
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let offered: std::collections::BTreeSet<String> = entries
            .iter()
            .filter_map(|e| e.platform.as_ref())
            .filter(|p| p.os != "unknown")
            .map(|p| match &p.variant {
                Some(variant) => format!("{}/{}/{variant}", p.os, p.architecture),
                None => format!("{}/{}", p.os, p.architecture),
            })
            .take(20)
            .collect();
        if offered.is_empty() {
            "nothing at all".to_owned()
        } else {
            offered.into_iter().collect::<Vec<_>>().join(", ")
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn descriptor(media_type: &str) -> String {
        let digest = Digest::of(media_type.as_bytes());
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":3}}"#)
    }

    fn manifest(extra: &str) -> String {
        let (config, layer) = (descriptor(OCI_CONFIG), descriptor(OCI_LAYER));
        format!(r#"{{"schemaVersion":2{extra},"config":{config},"layers":[{layer}]}}"#)
    }

    #[test]
    fn a_document_that_is_manifest_and_index_at_once_is_refused() {
        let both = manifest(&format!(r#","manifests":[{}]"#, descriptor(OCI_MANIFEST)));
        assert!(parse(both.as_bytes(), None).unwrap_err().contains("both"));
        let schema1 = manifest(r#","fsLayers":[]"#);
        assert!(parse(schema1.as_bytes(), None).is_err());
        let twice = manifest(r#","schemaVersion":2"#);
        assert!(parse(twice.as_bytes(), None).is_err());
    }

    #[test]
    fn what_it_is_called_must_agree_with_what_it_is() {
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptor(OCI_MANIFEST));
        let own = manifest(&format!(r#","mediaType":"{OCI_MANIFEST}""#));
        assert!(matches!(parse(own.as_bytes(), Some(OCI_MANIFEST)), Ok(Document::Manifest(_))));
        assert!(matches!(parse(own.as_bytes(), Some("text/plain")), Ok(Document::Manifest(_))));
        assert!(matches!(parse(index.as_bytes(), Some(DOCKER_INDEX)), Ok(Document::Index(_))));
        assert!(parse(own.as_bytes(), Some(DOCKER_MANIFEST)).is_err());
        assert!(parse(index.as_bytes(), Some(OCI_MANIFEST)).is_err());
        assert!(parse(manifest("").as_bytes(), Some(OCI_INDEX)).is_err());
    }

    #[test]
    fn artifacts_and_bad_digests_are_no_images() {
        let chart = manifest("").replace(OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json");
        assert!(parse(chart.as_bytes(), None).unwrap_err().contains("artifact"));
        let path = manifest("").replace("sha256:", "sha256:../");
        assert!(parse(path.as_bytes(), None).is_err());
        let negative = manifest("").replace(r#""size":3"#, r#""size":-3"#);
        assert!(parse(negative.as_bytes(), None).is_err());
    }

    #[test]
    fn the_entry_for_this_platform_is_chosen_and_attestations_are_not() {
        let entry = |os: &str, arch: &str, name: &str| {
            let d = Digest::of(name.as_bytes());
            format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{d}","size":1,
                    "platform":{{"os":"{os}","architecture":"{arch}"}}}}"#
            )
        };
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{},{},{}]}}"#,
            entry("unknown", "unknown", "attestation"),
            entry("linux", "s390x", "other"),
            entry("linux", "amd64", "ours")
        );
        let Ok(Document::Index(entries)) = parse(index.as_bytes(), None) else { panic!("no index") };
        let amd = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        assert_eq!(choose(&entries, &amd).unwrap().descriptor.digest, Digest::of(b"ours"));
        let riscv = Platform { architecture: "riscv64".into(), ..amd };
        assert_eq!(choose(&entries, &riscv).unwrap_err(), "linux/amd64, linux/s390x");
    }

    #[test]
    fn of_an_index_the_best_variant_that_runs_is_chosen() {
        let entry = |variant: &str| {
            let d = Digest::of(variant.as_bytes());
            let said = if variant.is_empty() { String::new() } else { format!(r#","variant":"{variant}""#) };
            format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{d}","size":1,
                    "platform":{{"os":"linux","architecture":"amd64"{said}}}}}"#
            )
        };
        let index = |variants: &[&str]| {
            let entries: Vec<String> = variants.iter().map(|variant| entry(variant)).collect();
            let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
            let Ok(Document::Index(entries)) = parse(text.as_bytes(), None) else { panic!("no index") };
            entries
        };
        for (own, offered, expect) in [
            (None, &["v4", "v3", "v2", ""][..], Some("")),
            (None, &["v3", "v1"], Some("v1")),
            (None, &["v2", "v3"], None),
            (Some("v2"), &["", "v2", "v3"], Some("v2")),
            (Some("v3"), &["", "v2", "v4"], Some("v2")),
            (Some("v3"), &["", "v4"], Some("")),
            (Some("v4"), &["", "v2", "v3", "v4"], Some("v4")),
        ] {
            let variant = own.map(str::to_owned);
            let here = Platform { os: "linux".into(), architecture: "amd64".into(), variant };
            let entries = index(offered);
            let chosen = choose(&entries, &here).ok().map(|entry| entry.descriptor.digest.clone());
            assert_eq!(chosen, expect.map(|variant| Digest::of(variant.as_bytes())), "{here}: {offered:?}");
        }
    }

    #[test]
    fn remarks_on_a_layer_are_kept_when_they_are_text_and_never_refused() {
        let told = |annotations: &str| {
            let text = descriptor(OCI_LAYER).replace("\"size\"", &format!("\"annotations\":{annotations},\"size\""));
            let layer: Descriptor = serde_json::from_str(&text).unwrap();
            layer.annotations.into_iter().collect::<Vec<_>>()
        };
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(told(r#"{"a":"b","c":7,"d":null,"e":{"f":"g"}}"#), [text("a", "b")]);
        for other in ["null", "7", "[]", r#""a""#] {
            assert_eq!(told(other), [], "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _refused = parse(&bytes, None);
        }
    }
}
