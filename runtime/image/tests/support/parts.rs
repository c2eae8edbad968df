//! Layers that can be pulled in parts: small writers of zstd:chunked and eStargz, after their documentation.

use std::{fs, io::Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use portreeve_image::Digest;
use serde_json::{Value, json};

use super::{Layout, Pack, arch, config_json, pack};

/// A compressed layer with what a manifest says of it.
#[derive(Clone)]
pub struct Blob {
    pub bytes: Vec<u8>,
    pub diff_id: Digest,
    pub kind: &'static str,
    pub annotations: Vec<(String, String)>,
}

impl Blob {
    /// Changes an annotation.
    pub fn annotate(mut self, name: &str, value: &str) -> Self {
        self.annotations.retain(|(known, _)| known != name);
        self.annotations.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// What a table says of an entry, the bytes before its content that are none, and its content.
type Piece<'a> = (Value, &'a [u8], &'a [u8]);

/// The entries of a tar, and the bytes behind the last one.
fn split(tar: &[u8]) -> (Vec<Piece<'_>>, &[u8]) {
    let mut pieces = Vec::new();
    let mut end = 0;
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let start = usize::try_from(entry.raw_file_position()).unwrap();
        let kind = match entry.header().entry_type() {
            tar::EntryType::Regular => "reg",
            tar::EntryType::Directory => "dir",
            tar::EntryType::Symlink => "symlink",
            tar::EntryType::Link => "hardlink",
            _ => "char",
        };
        let size = if kind == "reg" { usize::try_from(entry.size()).unwrap() } else { 0 };
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let about = json!({ "type": kind, "name": name, "mode": entry.header().mode().unwrap() });
        pieces.push((about, &tar[end..start], &tar[start..start + size]));
        end = start + size;
    }
    (pieces, &tar[end..])
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    pack(bytes, Pack::Zstd)
}

fn skippable(blob: &mut Vec<u8>, bytes: &[u8]) -> usize {
    blob.extend([0x50, 0x2a, 0x4d, 0x18]);
    blob.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    blob.extend(bytes);
    blob.len() - bytes.len()
}

/// zstd:chunked; `change` has the last word on the table of contents, and on the tar-split, if one is wanted.
pub fn chunked(tar: &[u8], tar_split: bool, change: impl Fn(&mut Value, &mut Vec<u8>)) -> Blob {
    let (pieces, rest) = split(tar);
    let (mut blob, mut entries, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    let mut pending = Vec::new();
    let segment = |bytes: &[u8]| format!("{}\n", json!({ "type": 2, "payload": STANDARD.encode(bytes) }));
    for (mut about, before, content) in pieces {
        pending.extend_from_slice(before);
        lines.extend(segment(before).into_bytes());
        lines.extend(format!("{}\n", json!({ "type": 1, "name": about["name"], "size": content.len() })).into_bytes());
        if !content.is_empty() {
            blob.extend(zstd(&std::mem::take(&mut pending)));
            about["offset"] = blob.len().into();
            // Several frames, as a rolling checksum cuts them.
            for part in content.chunks(100_000) {
                blob.extend(zstd(part));
            }
            about["endOffset"] = blob.len().into();
            about["size"] = content.len().into();
            about["digest"] = Digest::of(content).to_string().into();
        }
        entries.push(about);
    }
    pending.extend_from_slice(rest);
    blob.extend(zstd(&pending));
    lines.extend(segment(rest).into_bytes());
    let mut table = json!({ "version": 1, "entries": entries });
    change(&mut table, &mut lines);
    let packed_lines = zstd(&lines);
    if tar_split {
        table["tarSplitDigest"] = Digest::of(&packed_lines).to_string().into();
    }
    let table = table.to_string();
    let packed = zstd(table.as_bytes());
    let at = skippable(&mut blob, &packed);
    let name = |what: &str| format!("io.github.containers.zstd-chunked.{what}");
    let mut annotations = vec![
        (name("manifest-checksum"), Digest::of(&packed).to_string()),
        (name("manifest-position"), format!("{at}:{}:{}:1", packed.len(), table.len())),
    ];
    if tar_split {
        let at = skippable(&mut blob, &packed_lines);
        annotations.push((name("tarsplit-position"), format!("{at}:{}:{}", packed_lines.len(), lines.len())));
    }
    skippable(&mut blob, &[0; 64]);
    Blob { bytes: blob, diff_id: Digest::of(tar), kind: "+zstd", annotations }
}

/// eStargz with chunks of so many bytes.
pub fn estargz(tar: &[u8], chunk_size: usize) -> Blob {
    let member = |bytes: &[u8]| pack(bytes, Pack::Gzip);
    let (pieces, rest) = split(tar);
    let (mut blob, mut entries, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    let mut pending = Vec::new();
    for (about, before, content) in pieces {
        pending.extend_from_slice(before);
        whole.extend_from_slice([before, content].concat().as_slice());
        if content.is_empty() {
            entries.push(about.clone());
        }
        for (number, chunk) in content.chunks(chunk_size).enumerate() {
            blob.extend(member(&std::mem::take(&mut pending)));
            let is_last = (number + 1) * chunk_size >= content.len();
            let mut entry = if number == 0 {
                let digest = Digest::of(content).to_string();
                let mut about = about.clone();
                (about["size"], about["digest"]) = (content.len().into(), digest.into());
                about
            } else {
                json!({ "type": "chunk", "name": about["name"], "chunkOffset": number * chunk_size })
            };
            entry["offset"] = blob.len().into();
            entry["chunkDigest"] = Digest::of(chunk).to_string().into();
            if !is_last {
                entry["chunkSize"] = chunk.len().into();
            }
            entries.push(entry);
            pending.extend_from_slice(chunk);
        }
    }
    // The table comes before the end mark.
    let padding = rest.len() - 1024;
    pending.extend_from_slice(&rest[..padding]);
    whole.extend_from_slice(&rest[..padding]);
    blob.extend(member(&pending));
    let at = blob.len();
    let table = json!({ "version": 1, "entries": entries }).to_string();
    let tail = super::Tar::new().file("stargz.index.json", table.as_bytes()).bytes();
    whole.extend_from_slice(&tail);
    blob.extend(member(&tail));
    blob.extend(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0");
    blob.extend(format!("{at:016x}STARGZ").into_bytes());
    blob.extend(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
    let digest = Digest::of(table.as_bytes()).to_string();
    let annotations = vec![("containerd.io/snapshot/stargz/toc.digest".to_owned(), digest)];
    Blob { bytes: blob, diff_id: Digest::of(&whole), kind: "+gzip", annotations }
}

/// A layout of one image with these layers.
pub fn layout(blobs: &[Blob], salt: &str) -> Layout {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
    fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        let mut file = fs::File::create(dir.path().join("blobs/sha256").join(digest.hex())).unwrap();
        file.write_all(bytes).unwrap();
        digest
    };
    let diff_ids: Vec<Digest> = blobs.iter().map(|blob| blob.diff_id.clone()).collect();
    let layers: Vec<Digest> = blobs.iter().map(|blob| put(&blob.bytes)).collect();
    let config_text = config_json(&diff_ids, arch(), salt);
    let config = put(config_text.as_bytes());
    let described = blobs.iter().zip(&layers).map(|(blob, digest)| {
        json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar{}", blob.kind),
            "digest": digest, "size": blob.bytes.len(),
            "annotations": blob.annotations.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        })
    });
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest_text = json!({
        "schemaVersion": 2, "mediaType": kind,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_text.len()},
        "layers": described.collect::<Vec<_>>(),
    })
    .to_string();
    let manifest = put(manifest_text.as_bytes());
    let named = json!({"org.opencontainers.image.ref.name": "x"});
    let entry = json!({"mediaType": kind, "digest": manifest, "size": manifest_text.len(), "annotations": named});
    fs::write(dir.path().join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
    Layout { dir, config, manifest, layers, diff_ids }
}
