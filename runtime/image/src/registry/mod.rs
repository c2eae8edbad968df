//! Speaking to a registry: who we are, manifests, blobs.
//!
//! `oci-client` gives the vocabulary: kinds of login, the error envelope, media types. Its HTTP calls
//! are not used: tokens, manifests and the bodies of all refusals it reads into memory whatever their
//! length, so that one answer without an end takes the memory of the machine; it sends a login to
//! whatever realm a registry names (see `realm`), and reports a failed login only as a bare 401 of the
//! next request.
//! Source: OCI distribution-spec v1.1, distribution `docs/spec/auth/token.md`.

mod body;
pub(crate) mod challenge;
mod error;
mod follow;
mod lists;
mod names;
mod patience;
mod ranges;
pub(crate) mod realm;
mod session;
mod throttle;
mod upload;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::hosts::Access;

use follow::Sent;
use throttle::Throttle;

pub(crate) use body::{Body, Pieces};
pub use error::RegistryError;
pub use lists::Referrer;
pub(crate) use session::{Fetched, Session, describe};

/// Clients that are kept, with their connections: hosts of equal needs share one.
const MAX_CLIENTS: usize = 16;
const USER_AGENT: &str = concat!("portreeve/", env!("CARGO_PKG_VERSION"));

/// How registries may be reached.
#[derive(Debug)]
pub(crate) struct Terms {
    /// Hosts that are spoken to in the clear.
    pub(crate) insecure: BTreeSet<String>,
    /// PEM texts.
    pub(crate) authorities: Vec<Vec<u8>>,
    pub(crate) connect_timeout: Duration,
    pub(crate) stall_timeout: Duration,
    /// By which one layer may come at once.
    pub(crate) connections: usize,
    /// What may come in all.
    pub(crate) bytes_per_second: Option<u64>,
}

/// How registries are reached; makes and keeps the HTTP clients.
#[derive(Debug)]
pub(crate) struct Registries {
    terms: Terms,
    throttle: Arc<Throttle>,
    /// Those that were made, the one that was wanted last at the end.
    clients: Mutex<Vec<(Needs, reqwest::Client)>>,
}

/// What connections need that one client makes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Needs {
    access: Access,
    connect_timeout: Option<Duration>,
    /// There is no read timeout, which would count from the beginning of a request, however long it is.
    uploads: bool,
    /// Who has sent us there.
    sent: Sent,
}

impl Needs {
    fn new(access: &Access, connect_timeout: Option<Duration>, uploads: bool) -> Self {
        Self { access: access.clone(), connect_timeout, uploads, sent: Sent::Nobody }
    }
}

impl Registries {
    pub(crate) fn new(terms: Terms) -> Self {
        crate::ensure_tls_provider();
        let throttle = Arc::new(Throttle::new(terms.bytes_per_second));
        Self { terms, throttle, clients: Mutex::default() }
    }

    /// Those of tests and fuzz targets.
    pub(crate) fn with_insecure(insecure: &[&str]) -> Self {
        Self::new(Terms {
            insecure: insecure.iter().copied().map(str::to_owned).collect(),
            authorities: Vec::new(),
            connect_timeout: Duration::from_secs(1),
            stall_timeout: Duration::from_secs(1),
            connections: 1,
            bytes_per_second: None,
        })
    }

    /// Bytes of blobs that came from registries so far.
    pub(crate) fn fetched_bytes(&self) -> u64 {
        self.throttle.came()
    }

    /// Plain HTTP is spoken to this machine and to registries that the configuration names.
    pub(crate) fn is_plain(&self, host: &str) -> bool {
        let name = realm::host_name(host);
        let address = name.trim_matches(['[', ']']);
        self.terms.insecure.contains(host)
            || self.terms.insecure.contains(name)
            || name == "localhost"
            || address.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
    }

    /// The client for `host`.
    fn client(&self, host: &str, needs: &Needs) -> Result<reqwest::Client, RegistryError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = clients.iter().position(|(others, _)| others == needs) {
            let kept = clients.remove(at);
            let client = kept.1.clone();
            clients.push(kept);
            return Ok(client);
        }
        let client = self.make_client(needs);
        let client = client.map_err(|e| RegistryError::Setup { registry: host.to_owned(), source: Arc::new(e) })?;
        if clients.len() >= MAX_CLIENTS {
            clients.remove(0);
        }
        clients.push((needs.clone(), client.clone()));
        Ok(client)
    }

    fn make_client(&self, needs: &Needs) -> Result<reqwest::Client, reqwest::Error> {
        let Needs { access, connect_timeout, uploads, sent } = needs;
        let connect_timeout = connect_timeout.unwrap_or(self.terms.connect_timeout);
        let mut client = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(connect_timeout)
            .dns_resolver(names::Names::new(connect_timeout, *sent))
            .redirect(reqwest::redirect::Policy::none());
        if !uploads {
            client = client.read_timeout(self.terms.stall_timeout);
        }
        if access.unverified {
            // Certificates say nothing once plain HTTP was spoken, and the system may have none at all.
            client = client.tls_danger_accept_invalid_certs(true);
        } else {
            for pem in self.terms.authorities.iter().chain(&access.authorities) {
                client = client.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
            }
        }
        if let Some(identity) = &access.identity {
            client = client.identity(reqwest::Identity::from_pem(identity)?);
        }
        client.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_and_the_registries_named() {
        let registries = Registries::with_insecure(&["reg.lan:5000", "old.lan"]);
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
