//! `registries.conf` and what lies in `registries.conf.d`, as podman, buildah and skopeo have them.
//!
//! Source: containers-registries.conf(5), version 2. Short names always mean Docker Hub here, so what is said of
//! their search and their aliases is not read.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use crate::{
    hosts::{Access, Endpoint, HostsError, Mirrors, parse, parse_host, read},
    reference::ImageRef,
    registry::Registries,
};

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Table>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
struct Table {
    prefix: Option<String>,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: String,
}

/// What the file and its drop-ins say of a reference; `None` when that is nothing.
pub(super) fn endpoints(
    path: &Path,
    reference: &ImageRef,
    registries: &Registries,
    mirrors: Mirrors,
) -> Result<Option<Vec<Endpoint>>, HostsError> {
    let name = reference.name();
    let mut tables = BTreeMap::new();
    let mut drop_ins = path.as_os_str().to_owned();
    drop_ins.push(".d");
    let drop_ins = Path::new(&drop_ins);
    let mut files = vec![path.to_owned()];
    let mut more: Vec<_> = std::fs::read_dir(drop_ins).into_iter().flatten().flatten().map(|e| e.path()).collect();
    more.retain(|file| file.extension().is_some_and(|extension| extension == "conf"));
    more.sort();
    files.extend(more);
    for file in files {
        let Some(text) = read(&file)? else { continue };
        for table in parse::<File>(&file, &text)?.registry {
            let wrong = |problem: &str| HostsError::File { path: file.clone(), problem: problem.to_owned() };
            let prefix = table.prefix.clone().filter(|prefix| !prefix.is_empty()).unwrap_or(table.location.clone());
            if prefix.is_empty() {
                return Err(wrong("a [[registry]] has neither prefix nor location"));
            }
            // The later file's word on a prefix counts alone.
            tables.insert(prefix, (file.clone(), table));
        }
    }
    let fitting = tables.iter().filter_map(|(prefix, found)| Some((matched(&name, prefix)?, prefix, found)));
    let Some((length, prefix, (file, table))) = fitting.max_by_key(|(_, prefix, _)| prefix.len()) else {
        return Ok(None);
    };
    if table.blocked {
        return Err(HostsError::Blocked { path: file.clone(), prefix: prefix.clone() });
    }
    let rest = name.get(length..).unwrap_or_default();
    let by_digest = reference.digest().is_some();
    let mut endpoints = Vec::new();
    let places = table.mirror.iter().filter(|_| mirrors == Mirrors::With).filter(|mirror| {
        match mirror.pull_from_mirror.as_str() {
            "digest-only" => by_digest,
            "tag-only" => !by_digest,
            _ => by_digest || !table.mirror_by_digest_only,
        }
    });
    let places = places.map(|mirror| (format!("{}{rest}", mirror.location), mirror.insecure));
    let itself = if table.location.is_empty() { name.clone() } else { format!("{}{rest}", table.location) };
    for (place, insecure) in places.chain([(itself, table.insecure)]) {
        let found = at(&place, insecure, registries).ok_or_else(|| HostsError::File {
            path: file.clone(),
            problem: format!("{place:?}, for {name}, is no host with a repository"),
        })?;
        endpoints.extend(found);
    }
    Ok(Some(endpoints))
}

/// How much of a name (`host/repository`) a prefix stands for.
fn matched(name: &str, prefix: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = name.split('/').next()?;
        return (domain.starts_with('.') && host.len() > domain.len() && host.ends_with(domain)).then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
}

/// The ways to `host[:port]/repository`: what is insecure is asked by TLS without a right certificate, and then in
/// the clear.
fn at(place: &str, insecure: bool, registries: &Registries) -> Option<Vec<Endpoint>> {
    let (registry, repository) = place.split_once('/')?;
    if repository.is_empty() || place.contains("://") {
        return None;
    }
    // Its API is elsewhere.
    let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    let (_, host) = parse_host(host, registries)?;
    let at = |scheme: &str, access: Access| {
        let endpoint = Endpoint::at(&host, scheme, repository, access);
        Endpoint { registry: registry.to_owned(), ..endpoint }
    };
    let plain = at("http", Access::usual(true));
    if registries.is_plain(&host) {
        return Some(vec![plain]);
    }
    let access = Access { unverified: insecure, ..Access::default() };
    let mut ways = vec![at("https", access)];
    ways.extend(insecure.then_some(plain));
    Some(ways)
}
