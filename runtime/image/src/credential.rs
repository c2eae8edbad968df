//! Registry credentials, and Docker's `config.json` as imagePullSecrets carry it.

use std::{collections::BTreeMap, fmt};

use base64::Engine as _;
use serde::Deserialize;

use crate::reference::is_docker_hub;

/// Largest `.dockerconfigjson` that is read: what a Kubernetes Secret can hold.
const MAX_CONFIG: usize = 1 << 20;

/// Text that no log shows.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret in.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A login for the registries that `server` names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Credential {
    /// As in Docker's `config.json`: `host[:port][/path]`, with or without scheme; a host label may be `*`.
    /// Empty matches every registry.
    pub server: String,
    /// User name.
    pub username: String,
    /// Password, or a token that stands for one.
    pub password: Secret,
    /// A token to be sent as it is, instead of name and password.
    pub registry_token: Option<Secret>,
    /// A token for which a token server gives others, instead of name and password. No registry sees it.
    pub identity_token: Option<Secret>,
}

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// Too big to be one.
    #[error("docker config has {length} bytes, more than {MAX_CONFIG}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// Not JSON of the right shape.
    #[error("parsing docker config")]
    Parse(#[source] serde_json::Error),
    /// The `auth` of a server is not base64 of `name:password`.
    #[error("docker config: auth of {server:?} is not base64 of \"name:password\"")]
    Auth {
        /// The server whose entry is wrong.
        server: String,
    },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Entry {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    #[serde(rename = "registrytoken")]
    registry_token: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
}

impl Credential {
    /// Name and password for `server`.
    #[must_use]
    pub fn basic(server: &str, username: &str, password: &str) -> Self {
        Self {
            server: server.to_owned(),
            username: username.to_owned(),
            password: Secret::new(password),
            registry_token: None,
            identity_token: None,
        }
    }

    /// Reads the logins out of a Docker `config.json` (`.dockerconfigjson`), or of the older
    /// `.dockercfg`, which is the inner map alone. Entries without a login are left out.
    ///
    /// # Errors
    /// When it is too long, is not such JSON, or an `auth` cannot be decoded.
    pub fn from_docker_config(bytes: &[u8]) -> Result<Vec<Self>, CredentialError> {
        if bytes.len() > MAX_CONFIG {
            return Err(CredentialError::TooLong { length: bytes.len() });
        }
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(CredentialError::Parse)?;
        let auths = if value.get("auths").is_some() {
            serde_json::from_value::<File>(value).map_err(CredentialError::Parse)?.auths
        } else {
            serde_json::from_value(value).map_err(CredentialError::Parse)?
        };
        auths.into_iter().filter_map(|(server, entry)| entry.into_credential(server).transpose()).collect()
    }

    /// Name and password, unless there is an identity token in place of the password.
    pub(crate) fn basic_login(&self) -> Option<(&str, &str)> {
        let password = self.password.reveal();
        (self.identity_token.is_none() || !password.is_empty()).then_some((self.username.as_str(), password))
    }

    /// It names no registry.
    pub(crate) fn is_for_any(&self) -> bool {
        self.server.is_empty()
    }

    /// Whether it is meant for `registry/repository`; longer paths are more exact.
    pub(crate) fn matches(&self, registry: &str, repository: &str) -> Option<usize> {
        if self.is_for_any() {
            return Some(0);
        }
        let server = self.server.as_str();
        let server = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
        let (host, path) = server.split_once('/').unwrap_or((server, ""));
        let path = path.trim_end_matches('/');
        // Docker Hub's historical key is https://index.docker.io/v1/.
        let host = if is_docker_hub(host) { "docker.io" } else { host };
        let path = if matches!(path, "v1" | "v2") { "" } else { path };
        let inside = path.is_empty()
            || repository == path
            || repository.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        (host_matches(host, registry) && inside).then_some(path.len() + 1)
    }
}

/// Labels match one by one, `*` stands for one label; the port must be the same.
fn host_matches(pattern: &str, registry: &str) -> bool {
    if pattern == registry {
        return true;
    }
    let split = |h: &str| match h.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host.to_owned(), port.to_owned()),
        _ => (h.to_owned(), String::new()),
    };
    let ((pattern, pattern_port), (host, port)) = (split(pattern), split(registry));
    pattern_port == port
        && pattern.contains('*')
        && pattern.split('.').count() == host.split('.').count()
        && pattern.split('.').zip(host.split('.')).all(|(p, h)| p == "*" || p == h)
}

impl Entry {
    fn into_credential(self, server: String) -> Result<Option<Credential>, CredentialError> {
        let secret = |token: Option<String>| token.filter(|t| !t.is_empty()).map(Secret::new);
        let (registry_token, identity_token) = (secret(self.registry_token), secret(self.identity_token));
        let (username, password) = match self.auth.filter(|a| !a.is_empty()) {
            Some(auth) => decode_auth(&auth).ok_or_else(|| CredentialError::Auth { server: server.clone() })?,
            None => (self.username.unwrap_or_default(), self.password.unwrap_or_default()),
        };
        if username.is_empty() && registry_token.is_none() && identity_token.is_none() {
            return Ok(None);
        }
        Ok(Some(Credential { server, username, password: Secret::new(password), registry_token, identity_token }))
    }
}

fn decode_auth(auth: &str) -> Option<(String, String)> {
    let engine = base64::engine::GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        base64::engine::GeneralPurposeConfig::new()
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    let bytes = engine.decode(auth.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    // Some tools end the password with NUL bytes.
    Some((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_read_from_both_forms_of_dockers_file() {
        let auth = base64::engine::general_purpose::STANDARD.encode("me:se:cret");
        let new = format!(r#"{{"auths":{{"host:5000":{{"auth":"{auth}"}},"empty":{{}}}},"credsStore":"x"}}"#);
        let old = r#"{"host:5000":{"username":"me","password":"se:cret","email":"x"}}"#;
        for text in [new.as_str(), old] {
            let found = Credential::from_docker_config(text.as_bytes()).unwrap();
            assert_eq!(found, [Credential::basic("host:5000", "me", "se:cret")]);
        }
        assert!(Credential::from_docker_config(br#"{"auths":{"h":{"auth":"%%"}}}"#).is_err());
        assert!(Credential::from_docker_config(b"[]").is_err());
    }

    #[test]
    fn an_identity_token_is_no_password() {
        // Docker writes the name beside it with an empty password; `b` has a password as well.
        let text = br#"{"auths":{"a":{"auth":"bWU6","identitytoken":"t"},"b":{"auth":"bWU6cHc=","identitytoken":"t"},
            "c":{"identitytoken":"t"},"d":{"identitytoken":""},"e":{"auth":"bWU6cHc="},"f":{}}}"#;
        let found = Credential::from_docker_config(text).unwrap();
        let read: Vec<_> = found
            .iter()
            .map(|login| {
                (login.server.as_str(), login.identity_token.as_ref().map(Secret::reveal), login.basic_login())
            })
            .collect();
        let (token, password) = (Some("t"), Some(("me", "pw")));
        assert_eq!(read, [("a", token, None), ("b", token, password), ("c", token, None), ("e", None, password)]);
    }

    #[test]
    fn a_login_is_offered_only_to_the_server_it_names() {
        let matches = |server: &str, registry: &str, repository: &str| {
            Credential::basic(server, "a", "b").matches(registry, repository).is_some()
        };
        assert!(matches("https://index.docker.io/v1/", "docker.io", "library/busybox"));
        assert!(matches("https://Registry-1.docker.io:443/v2/", "docker.io", "library/busybox"));
        assert!(matches("host:5000", "host:5000", "x"));
        assert!(!matches("host:5000", "host:5001", "x"));
        assert!(!matches("host", "host:5000", "x"));
        assert!(matches("host/team", "host", "team/app"));
        assert!(!matches("host/team", "host", "teamwork/app"));
        assert!(matches("*.example.org", "a.example.org", "x"));
        assert!(!matches("*.example.org", "a.b.example.org", "x"));
        assert!(!matches("*.example.org", "example.org", "x"));
        assert!(matches("", "any", "x"));
    }

    #[test]
    fn debug_output_never_shows_a_password() {
        let text = format!("{:?}", Credential::basic("host", "me", "hunter2"));
        assert!(!text.contains("hunter2"), "{text}");
    }
}
