//! Speaking to a registry: who we are, manifests, blobs.
//!
//! Blobs come through `oci-client`. Tokens and manifests are read here, because that crate reads
//! them into memory whatever their length, sends credentials to whatever realm a registry names, and
//! reports a failed login only as a bare 401 of the next request.
//! Source: OCI distribution-spec v1.1, distribution `docs/spec/auth/token.md`.

mod challenge;
mod error;
mod session;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};

use crate::credential::Credential;

pub use error::RegistryError;
pub(crate) use session::{Fetched, Session, describe};

const USER_AGENT: &str = concat!("portreeve/", env!("CARGO_PKG_VERSION"));

/// How registries are reached; makes and keeps the HTTP clients.
#[derive(Debug)]
pub(crate) struct Registries {
    insecure: BTreeSet<String>,
    authorities: Vec<Vec<u8>>,
    connect_timeout: Duration,
    stall_timeout: Duration,
    clients: Mutex<BTreeMap<ClientKey, Clients>>,
}

/// Tokens are kept inside a client, so that each login needs its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ClientKey {
    host: String,
    credential: Option<Credential>,
}

#[derive(Clone)]
struct Clients {
    http: reqwest::Client,
    /// Absent on a system without any certificate authority, where that client cannot be made at all.
    blobs: Option<oci_client::Client>,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

impl Registries {
    /// `authorities` are PEM texts.
    pub(crate) fn new(
        insecure: &[String],
        authorities: Vec<Vec<u8>>,
        connect_timeout: Duration,
        stall_timeout: Duration,
    ) -> Self {
        crate::ensure_tls_provider();
        Self {
            insecure: insecure.iter().cloned().collect(),
            authorities,
            connect_timeout,
            stall_timeout,
            clients: Mutex::default(),
        }
    }

    /// Plain HTTP is spoken to this machine and to registries that the configuration names.
    pub(crate) fn is_plain(&self, host: &str) -> bool {
        if self.insecure.contains(host) {
            return true;
        }
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => host.split(':').next().unwrap_or(host),
        };
        name == "localhost"
            || self.insecure.contains(name)
            || name.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
    }

    fn clients(&self, host: &str, credential: Option<&Credential>) -> Result<Clients, RegistryError> {
        let key = ClientKey { host: host.to_owned(), credential: credential.cloned() };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = clients.get(&key) {
            return Ok(found.clone());
        }
        let made = self.make_clients(host)?;
        // A node sees few registries and logins; whoever rotates them does not fill our memory.
        if clients.len() >= 64 {
            clients.clear();
        }
        clients.insert(key, made.clone());
        Ok(made)
    }

    fn make_clients(&self, host: &str) -> Result<Clients, RegistryError> {
        let setup = |source: Arc<dyn std::error::Error + Send + Sync>| RegistryError::Setup {
            registry: host.to_owned(),
            source,
        };
        let plain = self.is_plain(host);
        let mut http = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(self.connect_timeout)
            .read_timeout(self.stall_timeout)
            .redirect(redirects());
        if plain {
            // Certificates say nothing once plain HTTP was spoken, and the system may have none at all.
            http = http.tls_danger_accept_invalid_certs(true);
        } else {
            for pem in &self.authorities {
                let bundle = reqwest::Certificate::from_pem_bundle(pem).map_err(|e| setup(Arc::new(e)))?;
                http = http.tls_certs_merge(bundle);
            }
        }
        let http = http.build().map_err(|e| setup(Arc::new(e)))?;
        let certificate = |pem: &Vec<u8>| Certificate { encoding: CertificateEncoding::Pem, data: pem.clone() };
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            accept_invalid_certificates: plain,
            extra_root_certificates: self.authorities.iter().filter(|_| !plain).map(certificate).collect(),
            platform_resolver: None,
            // A token that the registry no longer takes is asked for anew; time alone says nothing.
            default_token_expiration_secs: 24 * 3600,
            read_timeout: Some(self.stall_timeout),
            connect_timeout: Some(self.connect_timeout),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        };
        // Whatever its configuration says, that client makes a default one first, which panics then.
        static MAKEABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        let makeable = *MAKEABLE.get_or_init(|| reqwest::Client::builder().build().is_ok());
        let blobs = match makeable {
            true => Some(oci_client::Client::try_from(config).map_err(|e| setup(Arc::new(e)))?),
            false => None,
        };
        Ok(Clients { http, blobs })
    }
}

/// A few redirects, and never from an encrypted connection to a plain one.
fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let was_https = attempt.previous().last().is_some_and(|u| u.scheme() == "https");
        if attempt.previous().len() > 5 {
            attempt.error("too many redirects")
        } else if was_https && attempt.url().scheme() != "https" {
            attempt.error("a redirect from https to http is not followed")
        } else {
            attempt.follow()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_and_the_registries_named() {
        let registries = Registries::new(
            &["reg.lan:5000".to_owned(), "old.lan".to_owned()],
            Vec::new(),
            Duration::from_secs(1),
            Duration::from_secs(1),
        );
        for (host, plain) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.3.2.1", true),
            ("[::1]:5000", true),
            ("reg.lan:5000", true),
            ("reg.lan:5001", false),
            ("old.lan:1", true),
            ("localhost.example.org", false),
            ("registry-1.docker.io", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(registries.is_plain(host), plain, "{host}");
        }
    }
}
