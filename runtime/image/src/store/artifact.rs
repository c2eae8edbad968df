//! Artifacts: files in a registry that are no image. They are fetched for who asks, and not stored.
//!
//! Source: OCI image-spec `manifest.md` §Guidelines for Artifact Usage, `annotations.md`.

use std::{
    collections::BTreeSet,
    path::{Component, Path},
    sync::Arc,
};

use serde::Deserialize;

use crate::{
    credential::Credential,
    digest::Digest,
    manifest::{Descriptor, MAX_LAYERS, OCI_MANIFEST},
    progress::{LayerProgress, Phase},
    reference::ImageRef,
    registry::{Fetched, Session},
    store::{Inner, PullError, again::copy_verified, chunks::Chunks, pull::Pull, save::Saving},
};

/// The file that a layer of an artifact is.
const TITLE: &str = "org.opencontainers.image.title";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u64,
    media_type: Option<String>,
    layers: Option<Vec<Descriptor>>,
}

impl Inner {
    /// The files of an artifact, as a tar with their names.
    pub(crate) async fn artifact(
        self: &Arc<Self>,
        reference: &ImageRef,
        auth: &[Credential],
    ) -> Result<Saving, PullError> {
        let turn = self.artifacts.clone().acquire_owned().await.expect("nobody closes this semaphore");
        let lease = self.catalog.lease(&[]);
        let (pull, session) = self.asking(reference, auth).await?;
        let session = Arc::new(session);
        let files = pull.files(&session).await?;
        let staging = self.catalog.layout.stage("artifact").map_err(|e| pull.place_error(None, e.into()))?;
        pull.progress.send_modify(|progress| {
            progress.phase = Phase::Fetching;
            progress.layers = files.iter().map(|(_, blob)| LayerProgress::waiting(blob)).collect();
        });
        let mut parts = Vec::new();
        for (number, (name, blob)) in files.into_iter().enumerate() {
            // Two files may have the same content.
            let path = staging.path().join(number.to_string());
            pull.fetch_file(&session, number, &blob, &path).await?;
            parts.push((name, path, blob));
        }
        Ok(Saving::of_files(parts, staging, lease, turn))
    }
}

impl Pull {
    async fn files(&self, session: &Session) -> Result<Vec<(String, Descriptor)>, PullError> {
        let name = self.asked_for();
        let fetched = session.manifest(&name).await;
        let Fetched { bytes, claimed, .. } = fetched.map_err(|e| self.session_error(session, "the manifest", e))?;
        let actual = Digest::of(&bytes);
        for expected in name.parse::<Digest>().ok().iter().chain(&claimed) {
            if *expected != actual {
                return Err(self.mismatch("manifest", expected, &actual));
            }
        }
        files_of(&bytes).map_err(|problem| self.invalid("manifest", problem))
    }

    async fn fetch_file(
        &self,
        session: &Arc<Session>,
        number: usize,
        blob: &Descriptor,
        path: &Path,
    ) -> Result<(), PullError> {
        let _slot = self.inner.downloads.take(self.reference.registry()).await;
        let (sink, chunks) = Chunks::channel();
        let (to, digest, size) = (path.to_owned(), blob.digest.clone(), blob.size);
        let taken = self.blocking(move || copy_verified(chunks, &to, &digest, size));
        let (fetched, taken) = tokio::join!(self.fetch_at(session, number, blob, sink), taken);
        match (fetched, taken?) {
            (Err(error), Err(_)) => Err(error),
            (_, Err(error)) => Err(self.place_error(Some(&blob.digest), error)),
            (_, Ok(())) => Ok(()),
        }
    }
}

/// Each file with its name, which is below the directory that it goes into.
fn files_of(bytes: &[u8]) -> Result<Vec<(String, Descriptor)>, String> {
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| format!("is not valid: {e}"))?;
    let kind = manifest.media_type.as_deref().unwrap_or(OCI_MANIFEST);
    let (2, OCI_MANIFEST, Some(layers)) = (manifest.schema_version, kind, manifest.layers) else {
        return Err(format!("is no manifest of one artifact ({kind}); name one by its digest"));
    };
    if layers.len() > MAX_LAYERS {
        return Err(format!("has {} files, more than {MAX_LAYERS}", layers.len()));
    }
    let mut names = BTreeSet::new();
    let mut files = Vec::new();
    for layer in layers {
        let name = layer.annotations.get(TITLE).cloned().unwrap_or_else(|| layer.digest.hex().to_owned());
        let plain = |part| matches!(part, Component::Normal(_));
        if name.is_empty() || name.contains('\0') || name.len() > 4095 || !Path::new(&name).components().all(plain) {
            return Err(format!("has a file {name:?}, which is not the name of one below a directory"));
        }
        if !names.insert(name.clone()) {
            return Err(format!("has two files {name:?}"));
        }
        files.push((name, layer));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(titles: &[&str]) -> String {
        let layers: Vec<_> = titles
            .iter()
            .map(|title| {
                serde_json::json!({ "mediaType": "text/plain", "digest": Digest::of(title.as_bytes()), "size": 1,
                                    "annotations": { TITLE: title } })
            })
            .collect();
        serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers }).to_string()
    }

    #[test]
    fn files_stay_below_the_directory_that_they_are_for() {
        let names = |titles: &[&str]| {
            files_of(manifest(titles).as_bytes())
                .map(|files| files.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["a.txt", "b/c.json"]).unwrap(), ["a.txt", "b/c.json"]);
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "./x", "a\0b", &"x".repeat(5000)] {
            assert!(names(&["fine", bad]).is_err(), "{bad:?}");
        }
        assert!(names(&["a", "a"]).unwrap_err().contains("two files"));
        let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
        assert!(files_of(index.as_bytes()).unwrap_err().contains("by its digest"));
        let untitled = manifest(&["x"]).replace(TITLE, "other");
        let files = files_of(untitled.as_bytes()).unwrap();
        assert_eq!(files[0].0, Digest::of(b"x").hex());
    }
}
