//! Everything that is known before a layer's parts are fetched.

use std::{io::BufRead, ops::Range, path::PathBuf};

use bytes::Bytes;

use crate::{
    digest::Digest,
    partial::{Chunked, Fetched, Found, PartialError, Plan, Rebuilt, Stargz, local::find, toc::Content},
};

/// A layer whose table of contents is verified, with what it needs to be rebuilt.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    /// Bytes of files that are taken from other layers.
    pub(crate) reused_bytes: u64,
    contents: Vec<Content>,
    archive: Range<u64>,
    found: Found,
    headers: Headers,
}

/// Where all that is between contents comes from.
#[derive(Debug)]
enum Headers {
    /// A verified tar-split, and how much it decompresses to at most, in bytes.
    TarSplit(Bytes, u64),
    /// The blob; what comes behind the archive's part of it was fetched before.
    Blob(Option<Bytes>),
}

impl Prepared {
    /// `tar_split` is verified, and decompresses to at most so many bytes. `layers` are those that are here, with their
    /// directories.
    pub(crate) fn chunked(
        layer: Chunked,
        tar_split: Option<(Bytes, u64)>,
        layers: impl IntoIterator<Item = (Digest, PathBuf)>,
    ) -> Result<Self, PartialError> {
        let headers = tar_split.map_or(Headers::Blob(None), |(packed, unpacked)| Headers::TarSplit(packed, unpacked));
        Self::new(layer.contents, layer.archive, headers, layers)
    }

    /// The same of eStargz.
    pub(crate) fn stargz(
        layer: Stargz,
        layers: impl IntoIterator<Item = (Digest, PathBuf)>,
    ) -> Result<Self, PartialError> {
        Self::new(layer.contents, layer.archive, Headers::Blob(Some(layer.tail)), layers)
    }

    fn new(
        contents: Vec<Content>,
        archive: Range<u64>,
        headers: Headers,
        layers: impl IntoIterator<Item = (Digest, PathBuf)>,
    ) -> Result<Self, PartialError> {
        let found = find(layers, &contents);
        let plan = match headers {
            Headers::TarSplit(..) => Plan::of_contents(&contents, &found, &archive),
            Headers::Blob(_) => Plan::of_the_rest(&contents, &found, &archive),
        };
        let is_reused = |content: &&Content| match headers {
            Headers::TarSplit(..) => found.has(content),
            Headers::Blob(_) => plan.leaves_out(&content.packed),
        };
        let reused_bytes = contents.iter().filter(is_reused).map(|content| content.covered).sum();
        if reused_bytes == 0 {
            return Err(PartialError::NothingHere);
        }
        Ok(Self { plan, reused_bytes, contents, archive, found, headers })
    }

    /// Bytes of all files, whose sizes are only said.
    pub(crate) fn content_bytes(&self) -> u64 {
        self.contents.iter().fold(0, |sum, content| sum.saturating_add(content.size))
    }

    /// The layers that files are taken from.
    pub(crate) fn layers(&self) -> Vec<Digest> {
        self.found.layers()
    }

    /// The archive, when `input` gives what the plan asks for.
    pub(crate) fn rebuild<R: BufRead>(self, input: R) -> Result<Rebuilt<R>, PartialError> {
        let Self { plan, contents, archive, found, headers, .. } = self;
        let fetched = Fetched::new(input, plan.requests.clone());
        match headers {
            Headers::TarSplit(packed, unpacked) => Rebuilt::with_headers((packed, unpacked), contents, found, fetched),
            Headers::Blob(tail) => Ok(Rebuilt::with_the_rest(contents, &plan, archive, tail, found, fetched)),
        }
    }
}
