//! After a power loss: an image that was not on the disk yet, but whose blobs are, is unpacked again from these.
//!
//! Of what the machine had not written when it went down nothing is believed but its digest: a blob that is whole counts,
//! an unpacked layer does not.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::BufReader,
};

use crate::{
    digest::Digest,
    layer::Expected,
    manifest::{self, Document},
    store::{
        Config, StoreError,
        catalog::{Record, State},
        layers::{PlaceError, place_blocking, read_layer},
        layout::Layout,
        meta::finish_blocking,
        verify::{self, Finding},
    },
};

/// Unpacks what `record` names from its blobs, where nothing that `state` has vouches for it; the record as it is then,
/// still to be synced. Blocks.
///
/// # Errors
/// What is missing or damaged: then the image is to be pulled again.
pub(crate) fn restore(
    layout: &Layout,
    config: &Config,
    state: &State,
    mut record: Record,
    boot: &str,
) -> Result<Record, PlaceError> {
    let bytes = fs::read(layout.blob(&record.manifest)).unwrap_or_default();
    let whole = Digest::of(&bytes) == record.manifest;
    let Ok(Document::Manifest(parsed)) = manifest::parse(if whole { &bytes } else { b"" }, None) else {
        return Err(PlaceError::Image("have no manifest any more".to_owned()));
    };
    if parsed.layers.len() != record.layers.len() {
        return Err(PlaceError::Image("are not those of their manifest".to_owned()));
    }
    let on_the_disk: BTreeSet<&Digest> = state
        .images
        .values()
        .filter(|entry| entry.record.unsynced_boot.is_none())
        .flat_map(|entry| entry.record.layers.iter())
        .collect();
    let spare = config.limits.ratio_floor_bytes.into();
    let mut verified = BTreeSet::new();
    for (diff_id, blob) in record.layers.iter().zip(&parsed.layers) {
        let unpacked_since = || read_layer(layout, diff_id).is_some_and(|layer| layer.boot == boot);
        if on_the_disk.contains(diff_id) || unpacked_since() {
            continue;
        }
        let kept = record.blobs.contains(&blob.digest);
        let path = if kept { layout.blob(&blob.digest) } else { layout.unsynced_blob(&blob.digest) };
        let failed = |source| StoreError::Io { operation: "reading", path: path.clone(), source };
        let input = BufReader::with_capacity(1 << 18, File::open(&path).map_err(failed)?);
        drop(layout.discard(&layout.layer(diff_id))?);
        let expected = Expected { blob: Some(blob.digest.clone()), length: blob.size, diff_id: diff_id.clone() };
        place_blocking(layout, input, &expected, &config.limits, &spare, boot)?;
        verified.insert(&blob.digest);
    }
    let target = layout.finish(record.id.digest());
    drop(layout.discard(&target)?);
    let finish = finish_blocking(layout, &record.layers)?;
    if let Some(staging) = finish.staging {
        staging.commit(&target)?;
    }
    record.finish = finish.top;
    record.redirected = finish.redirected;
    record.finish_record = finish.record;
    record.base = finish.base;
    record.root = finish.root;
    // Indexes and signatures may be lost without harm, and so may blobs of layers that others vouch for.
    record.blobs.retain(|digest| verified.contains(digest) || is_whole(layout, digest));
    record.until_synced.retain(|digest| verified.contains(digest));
    // Who lists the images asks anew.
    record.kept_whole = None;
    if record.signatures.as_ref().is_some_and(|digest| !is_whole(layout, digest)) {
        record.signatures = None;
    }
    record.unsynced_boot = Some(boot.to_owned());
    Ok(record)
}

fn is_whole(layout: &Layout, digest: &Digest) -> bool {
    matches!(verify::blob(&layout.blob(digest), digest), Finding::Whole(_))
}
