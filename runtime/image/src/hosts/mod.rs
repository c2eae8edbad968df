//! Where a registry's images are asked for: at its mirrors, in order, and then at the registry itself.
//!
//! What an administrator has written for containerd (`hosts.toml`) or for podman (`registries.conf`) holds
//! here too. The files are read anew for each pull, so that a change needs no restart:
//!
//! 1. `<certs.d>/<registry>/`: its `hosts.toml`, or the certificates that lie there as Docker wants them;
//! 2. else the table of `registries.conf` with the longest fitting prefix;
//! 3. else `<certs.d>/_default/`;
//! 4. else the registry alone.

mod containerd;
mod containers;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Url, header::HeaderMap};

use crate::{credential::Credential, reference::ImageRef, registry::Registries};

/// A configuration file is read up to this many bytes.
const MAX_FILE: u64 = 1 << 20;

/// Where the files are.
#[derive(Debug, Clone)]
pub(crate) struct Hosts {
    pub(crate) certs_d: Option<PathBuf>,
    pub(crate) registries_conf: Option<PathBuf>,
}

/// Whether mirrors are asked, too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mirrors {
    With,
    Without,
}

/// One host that may have a repository's content.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// Root of its API, without a slash at the end: `https://host:port/v2`.
    pub(crate) api: String,
    /// Host and port of its API.
    pub(crate) host: String,
    /// The registry whose logins it gets, and what a person is told: the host, but for registries that have their
    /// API elsewhere.
    pub(crate) registry: String,
    /// What the repository is called there.
    pub(crate) repository: String,
    /// The registry that it is a mirror of, which it may have to be told.
    pub(crate) mirrors: Option<String>,
    pub(crate) access: Access,
    /// Sent with each request to it.
    pub(crate) headers: HeaderMap,
    /// When it says how long a connection to it may take.
    pub(crate) connect_timeout: Option<Duration>,
}

/// What a connection needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Access {
    /// Plain HTTP, on which nothing is secret.
    pub(crate) plain: bool,
    /// TLS, with whatever certificate.
    pub(crate) unverified: bool,
    /// PEM texts of further authorities.
    pub(crate) authorities: Vec<Vec<u8>>,
    /// PEM text of the certificate and key that we show.
    pub(crate) identity: Option<Vec<u8>>,
}

/// Why it is not known where to ask.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostsError {
    /// A configuration file cannot be used.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The administrator does not want it.
    #[error("{path} blocks {prefix}")]
    Blocked {
        /// The file.
        path: PathBuf,
        /// The prefix of its table.
        prefix: String,
    },
}

impl Access {
    /// For a host that nobody has configured.
    pub(crate) fn usual(plain: bool) -> Self {
        Self { plain, unverified: plain, ..Self::default() }
    }
}

impl Hosts {
    /// Where to ask for what a reference means, in order; never empty. Blocks on the disk.
    pub(crate) fn endpoints(&self, reference: &ImageRef, registries: &Registries) -> Result<Vec<Endpoint>, HostsError> {
        if let Some(directory) = self.directory(reference.registry()) {
            return containerd::endpoints(&directory, reference, registries);
        }
        if let Some(file) = &self.registries_conf
            && let Some(endpoints) = containers::endpoints(file, reference, registries, Mirrors::With)?
        {
            return Ok(endpoints);
        }
        match self.directory("_default") {
            Some(directory) => containerd::endpoints(&directory, reference, registries),
            None => Ok(vec![Endpoint::own(reference, registries)]),
        }
    }

    /// Where to send what gets this name: the ways to the first host that may be pushed to, in order; never empty.
    /// Blocks on the disk.
    pub(crate) fn for_push(&self, name: &ImageRef, registries: &Registries) -> Result<Vec<Endpoint>, HostsError> {
        if let Some(directory) = self.directory(name.registry()) {
            return Ok(vec![containerd::for_push(&directory, name, registries)?]);
        }
        if let Some(file) = &self.registries_conf
            && let Some(ways) = containers::endpoints(file, name, registries, Mirrors::Without)?
        {
            return Ok(ways);
        }
        match self.directory("_default") {
            Some(directory) => Ok(vec![containerd::for_push(&directory, name, registries)?]),
            None => Ok(vec![Endpoint::own(name, registries)]),
        }
    }

    fn directory(&self, registry: &str) -> Option<PathBuf> {
        let certs_d = self.certs_d.as_ref()?;
        // On file systems without colons containerd has another name for a host with a port.
        let without_colon = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
        [Some(registry.to_owned()), without_colon]
            .into_iter()
            .flatten()
            .map(|name| certs_d.join(name))
            .find(|directory| directory.is_dir())
    }
}

impl Endpoint {
    /// The logins that may be tried, the best match first; `registry` is the one that was named.
    pub(crate) fn best_login<'a>(&self, registry: &str, auth: &'a [Credential]) -> Vec<&'a Credential> {
        let own = self.registry == registry;
        let mut fitting: Vec<(usize, &Credential)> = auth
            .iter()
            // One for any registry is for the one that was named, not for those that stand in for it.
            .filter(|credential| own || !credential.is_for_any())
            .filter_map(|credential| Some((credential.matches(&self.registry, &self.repository)?, credential)))
            .collect();
        fitting.sort_by_key(|(exactness, _)| std::cmp::Reverse(*exactness));
        fitting.into_iter().map(|(_, credential)| credential).collect()
    }

    /// The registry itself.
    pub(crate) fn own(reference: &ImageRef, registries: &Registries) -> Self {
        let host = reference.api_host();
        let access = Access::usual(registries.is_plain(host));
        let own = Self::at(host, if access.plain { "http" } else { "https" }, reference.repository(), access);
        Self { registry: reference.registry().to_owned(), ..own }
    }

    fn at(host: &str, scheme: &str, repository: &str, access: Access) -> Self {
        Self {
            api: format!("{scheme}://{host}/v2"),
            host: host.to_owned(),
            registry: host.to_owned(),
            repository: repository.to_owned(),
            mirrors: None,
            access,
            headers: HeaderMap::new(),
            connect_timeout: None,
        }
    }
}

/// A host as files have it: with or without a scheme, with or without a path. `None` when it is no such thing.
fn parse_host(text: &str, registries: &Registries) -> Option<(Url, String)> {
    let url = match text.split_once("://") {
        Some(("http" | "https", _)) => Url::parse(text).ok()?,
        Some(_) => return None,
        None => {
            let authority = text.split('/').next()?;
            let scheme = if registries.is_plain(authority) { "http" } else { "https" };
            Url::parse(&format!("{scheme}://{text}")).ok()?
        }
    };
    let name = url.host_str()?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return None;
    }
    let authority = match url.port() {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    };
    Some((url, authority))
}

/// A file's text; `None` when there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, HostsError> {
    let failed = |error: io::Error| HostsError::File { path: path.to_owned(), problem: error.to_string() };
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(failed(io::Error::other(format!("it is no file of at most {MAX_FILE} bytes"))));
    }
    fs::read(path).map(Some).map_err(failed)
}

/// A file that another one names.
fn read_named(directory: &Path, name: &str) -> Result<Vec<u8>, HostsError> {
    let path = directory.join(name);
    read(&path)?.ok_or_else(|| HostsError::File { path, problem: "there is no such file".to_owned() })
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, HostsError> {
    toml::from_slice(text).map_err(|error| {
        // Its message ends with a picture of the line.
        let place = error.span().map(|span| {
            let before = text.get(..span.start).unwrap_or_default();
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            format!("line {line}: ")
        });
        let problem = format!("{}{}", place.unwrap_or_default(), crate::text::shown(error.message()));
        HostsError::File { path: path.to_owned(), problem }
    })
}

#[cfg(test)]
mod tests;
