//! `hosts.toml`, as containerd has it.
//!
//! Source: containerd `docs/hosts.md`; Docker's directories of certificates, `docs.docker.com/engine/security/certificates`.

use std::{collections::BTreeMap, path::Path, time::Duration};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::{
    hosts::{Access, Endpoint, HostsError, parse, parse_host, read, read_named},
    reference::ImageRef,
    registry::Registries,
    text::shown,
};

#[derive(Deserialize, Default)]
struct Host {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    override_path: Option<bool>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMore>,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    More(Vec<OneOrMore>),
}

impl OneOrMore {
    fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

/// The hosts of one directory that may have what a reference means, and then the server that they stand for.
pub(super) fn endpoints(
    directory: &Path,
    reference: &ImageRef,
    registries: &Registries,
) -> Result<Vec<Endpoint>, HostsError> {
    chosen(directory, reference, registries, "pulled from", |host| host.may_pull(reference))
}

/// The first of them that may be pushed to.
pub(super) fn for_push(directory: &Path, name: &ImageRef, registries: &Registries) -> Result<Endpoint, HostsError> {
    let mut endpoints = chosen(directory, name, registries, "pushed to", |host| host.may("push"))?;
    Ok(endpoints.swap_remove(0))
}

/// Never empty.
fn chosen(
    directory: &Path,
    reference: &ImageRef,
    registries: &Registries,
    what: &str,
    may: impl Fn(&Host) -> bool,
) -> Result<Vec<Endpoint>, HostsError> {
    let path = directory.join("hosts.toml");
    let Some(text) = read(&path)? else {
        let own = Endpoint::own(reference, registries);
        let access = certificates(directory)?;
        if access == Access::default() {
            return Ok(vec![own]);
        }
        // Whoever has certificates for it means TLS, also on this machine.
        let api = format!("https://{}/v2", own.host);
        return Ok(vec![Endpoint { api, access, ..own }]);
    };
    let mut server: toml::Table = parse(&path, &text)?;
    let wrong = |problem: String| HostsError::File { path: path.clone(), problem };
    let name = match server.remove("server") {
        Some(name) => name.try_into().map_err(|_| wrong("server is no text".to_owned()))?,
        None => Endpoint::own(reference, registries).api.trim_end_matches("/v2").to_owned(),
    };
    let hosts: toml::Table = match server.remove("host") {
        Some(hosts) => hosts.try_into().map_err(|_| wrong("host is no table".to_owned()))?,
        None => toml::Table::new(),
    };
    let mut endpoints = Vec::new();
    // What is said at the top is said of the server, which comes last.
    for (name, said) in hosts.into_iter().chain([(name, toml::Value::Table(server))]) {
        let of_host = |problem: &str| wrong(format!("host {name:?}: {problem}"));
        let host: Host = said.try_into().map_err(|e: toml::de::Error| of_host(&shown(e.message())))?;
        if may(&host) {
            let endpoint = host.endpoint(&name, directory, reference, registries);
            endpoints.push(endpoint.map_err(|fault| match fault {
                Fault::Here(problem) => of_host(&problem),
                Fault::File(error) => error,
            })?);
        }
    }
    if endpoints.is_empty() {
        return Err(wrong(format!("no host in it may be {what}")));
    }
    Ok(endpoints)
}

/// What is wrong with one host.
enum Fault {
    Here(String),
    File(HostsError),
}

impl From<HostsError> for Fault {
    fn from(error: HostsError) -> Self {
        Self::File(error)
    }
}

impl Host {
    /// A tag's meaning is asked of those that may resolve it; nobody is only asked for that.
    fn may_pull(&self, reference: &ImageRef) -> bool {
        self.may("pull") && (reference.digest().is_some() || self.may("resolve"))
    }

    /// Who says nothing may do everything.
    fn may(&self, what: &str) -> bool {
        let Some(capabilities) = self.capabilities.as_ref().filter(|named| !named.is_empty()) else { return true };
        capabilities.iter().any(|named| named.eq_ignore_ascii_case(what))
    }

    fn endpoint(
        &self,
        name: &str,
        directory: &Path,
        reference: &ImageRef,
        registries: &Registries,
    ) -> Result<Endpoint, Fault> {
        let Some((url, host)) = parse_host(name, registries) else {
            return Err(Fault::Here("it is no host; wanted is https://HOST[:PORT][/PATH]".to_owned()));
        };
        let plain = url.scheme() == "http";
        let path = url.path().trim_end_matches('/');
        let path = match self.override_path {
            Some(true) => path.to_owned(),
            _ if path.ends_with("/v2") => path.to_owned(),
            _ => format!("{path}/v2"),
        };
        let mut access = Access { plain, unverified: plain || self.skip_verify == Some(true), ..Access::default() };
        for authority in self.ca.iter().flat_map(OneOrMore::all) {
            access.authorities.push(read_named(directory, authority)?);
        }
        access.identity = self.identity(directory)?;
        let connect_timeout = match self.dial_timeout.as_deref() {
            None => None,
            Some(text) => {
                let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
                let parsed = parsed.filter(|timeout| !timeout.is_zero());
                Some(parsed.ok_or_else(|| Fault::Here(format!("dial_timeout {text:?} is no time such as 10s")))?)
            }
        };
        let same = host == reference.api_host() || host == reference.registry();
        Ok(Endpoint {
            api: format!("{}://{host}{path}", url.scheme()),
            registry: if same { reference.registry().to_owned() } else { host.clone() },
            host,
            repository: reference.repository().to_owned(),
            mirrors: (!same).then(|| reference.registry().to_owned()),
            access,
            headers: self.headers()?,
            connect_timeout,
        })
    }

    /// The first of the certificates that we may show; a connection shows one.
    fn identity(&self, directory: &Path) -> Result<Option<Vec<u8>>, Fault> {
        let files: Vec<&String> = match &self.client {
            None => return Ok(None),
            Some(Client::One(one)) => vec![one],
            Some(Client::More(more)) => more.first().map(OneOrMore::all).unwrap_or_default().iter().collect(),
        };
        let mut pem = Vec::new();
        // The key may be in a file of its own; none is needed in its place then.
        for file in files.into_iter().filter(|file| !file.is_empty()) {
            pem.extend(read_named(directory, file)?);
            pem.push(b'\n');
        }
        Ok(Some(pem).filter(|pem| !pem.is_empty()))
    }

    fn headers(&self) -> Result<HeaderMap, Fault> {
        let mut headers = HeaderMap::new();
        for (name, values) in &self.header {
            let bad = || Fault::Here(format!("header {name:?} cannot be sent"));
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
            for value in values.all() {
                let mut value = HeaderValue::from_str(value).map_err(|_| bad())?;
                value.set_sensitive(true);
                headers.append(name.clone(), value);
            }
        }
        Ok(headers)
    }
}

/// Files as Docker wants them: authorities in `*.crt`, our own certificate in `*.cert` with its `*.key`.
fn certificates(directory: &Path) -> Result<Access, HostsError> {
    let failed = |error: std::io::Error| HostsError::File { path: directory.to_owned(), problem: error.to_string() };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort();
    let mut access = Access::default();
    for name in &names {
        if name.ends_with(".crt") {
            access.authorities.push(read_named(directory, name)?);
        } else if let Some(stem) = name.strip_suffix(".cert")
            && access.identity.is_none()
        {
            let mut pem = read_named(directory, name)?;
            pem.push(b'\n');
            pem.extend(read_named(directory, &format!("{stem}.key"))?);
            access.identity = Some(pem);
        }
    }
    Ok(access)
}
