//! Doors for the fuzz targets in `fuzz/`, and for nobody else: what reads a stranger's bytes is private otherwise.

use std::{io::BufReader, ops::Range, path::PathBuf};

use crate::{
    configuration,
    hosts::{Access, Hosts, HostsError},
    layer::{Archive, LayerError, Limits},
    manifest::{self, Document},
    partial::{self, Piece, TarSplit},
    platform::Platform,
    reference::ImageRef,
    registry::{Registries, challenge, realm},
};

/// Bytes of content of each member of a tar, read to its end.
///
/// # Errors
/// As a layer has them.
pub fn archive(bytes: &[u8], limits: &Limits) -> Result<Vec<u64>, LayerError> {
    let mut archive = Archive::new(BufReader::new(bytes), limits);
    let mut members = Vec::new();
    while archive.next()?.is_some() {
        let mut content = 0;
        loop {
            let length = archive.chunk()?.len();
            if length == 0 {
                break;
            }
            content += length as u64;
            archive.consume(length);
        }
        members.push(content);
    }
    Ok(members)
}

/// The sizes of the layers of a manifest; of an index the size of the manifest that it has for this machine.
///
/// # Errors
/// What is wrong with it.
pub fn manifest(bytes: &[u8], content_type: Option<&str>) -> Result<Vec<u64>, String> {
    match manifest::parse(bytes, content_type)? {
        Document::Manifest(manifest) => Ok(manifest.layers.iter().map(|layer| layer.size).collect()),
        Document::Index(entries) => {
            manifest::choose(&entries, &Platform::current()).map(|entry| vec![entry.descriptor.size])
        }
    }
}

/// Where in a blob, before `end`, the contents are that a table of contents tells of, for each form that it fits.
#[must_use]
pub fn table(bytes: &[u8], end: u64) -> Vec<Vec<Range<u64>>> {
    partial::places(bytes, end)
}

/// How many bytes of an archive a tar-split has, before it ends or is refused.
#[must_use]
pub fn tar_split(bytes: &[u8]) -> u64 {
    let pieces = TarSplit::new(bytes).map_while(Result::ok);
    pieces.map(|piece| if let Piece::Literal(bytes) = piece { bytes.len() as u64 } else { 0 }).sum()
}

/// How many layers a configuration has, and how many bytes of text are kept of it.
///
/// # Errors
/// What is wrong with it.
pub fn configuration(bytes: &[u8]) -> Result<(usize, usize), String> {
    let config = configuration::parse_config(bytes)?;
    let parsed = config.parsed.config().as_ref();
    let lists = parsed.map(|c| [c.env(), c.entrypoint(), c.cmd(), c.volumes()]).into_iter().flatten();
    let texts = parsed.map(|c| [c.user(), c.working_dir(), c.stop_signal()]).into_iter().flatten();
    let text = lists.flatten().flatten().chain(texts.flatten()).map(String::len).sum();
    Ok((config.diff_ids.len(), text))
}

/// Where the registry `host`, which has TLS, may have us ask for a token.
#[must_use]
pub fn token_server(headers: &[&str], host: &str) -> Option<String> {
    let challenge::Challenge::Bearer { realm, .. } = challenge::best(headers.iter().copied())? else { return None };
    let (url, _access) = realm::check(&realm, host, &Access::default(), &registries()).ok()?;
    Some(url.into())
}

/// The APIs that are asked for what `reference` means, with their repositories.
///
/// # Errors
/// What is wrong with the files.
pub fn endpoints(
    certs_d: Option<PathBuf>,
    registries_conf: Option<PathBuf>,
    reference: &ImageRef,
) -> Result<Vec<(String, String)>, HostsError> {
    let endpoints = Hosts { certs_d, registries_conf }.endpoints(reference, &registries())?;
    Ok(endpoints.into_iter().map(|endpoint| (endpoint.api, endpoint.repository)).collect())
}

fn registries() -> Registries {
    Registries::with_insecure(&[])
}
