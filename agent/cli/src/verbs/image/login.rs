//! The logins that a user has for registries, as docker and podman keep them.
//!
//! They are read here, by whom they belong to, and go to the agent with the request that needs them: it keeps none.
//! Source: docker `cli/config/configfile`, `docker/docker-credential-helpers`; containers-auth.json(5).

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Docker Hub's key, of its first version.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// What helpers say when they have no login, in these or longer words.
const NO_LOGIN: &str = "credentials not found";

/// Where logins are.
#[derive(Debug, Clone, Args)]
pub(super) struct Logins {
    /// File with logins, as docker login and podman login write it [env: REGISTRY_AUTH_FILE]
    /// [default: config.json in $DOCKER_CONFIG, or in ~/.docker]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(default)]
    auths: Map<String, Value>,
    #[serde(default, rename = "credsStore")]
    store: String,
    #[serde(default, rename = "credHelpers")]
    helpers: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Secret {
    username: String,
    secret: String,
}

impl Logins {
    /// What to send with a request about these references: a docker config of logins alone; empty without any.
    pub(super) fn body(&self, references: &[&str]) -> anyhow::Result<Vec<u8>> {
        let environment = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let Some((path, named)) = self.file(environment) else { return Ok(Vec::new()) };
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound && !named => return Ok(Vec::new()),
            other => other.with_context(|| format!("reading the logins of {}", path.display()))?,
        };
        let config: Config =
            serde_json::from_slice(&text).with_context(|| format!("reading the logins of {}", path.display()))?;
        let mut auths = config.auths.clone();
        for reference in references {
            let registry = registry(reference);
            if let Some(helper) = config.helper(registry)
                && let Some(login) = ask(&helper, registry)?
            {
                auths.insert(key(registry).to_owned(), login);
            }
        }
        // Docker leaves an empty entry for each login that a helper keeps.
        auths.retain(|_, login| login.as_object().is_some_and(|login| !login.is_empty()));
        if auths.is_empty() { Ok(Vec::new()) } else { Ok(json!({ "auths": auths }).to_string().into_bytes()) }
    }

    /// The file, and whether somebody named it.
    fn file(&self, environment: impl Fn(&str) -> Option<OsString>) -> Option<(PathBuf, bool)> {
        if let Some(path) = &self.authfile {
            return Some((path.clone(), true));
        }
        if let Some(path) = environment("REGISTRY_AUTH_FILE") {
            return Some((path.into(), true));
        }
        let directory = match environment("DOCKER_CONFIG") {
            Some(directory) => PathBuf::from(directory),
            None => Path::new(&environment("HOME")?).join(".docker"),
        };
        Some((directory.join("config.json"), false))
    }
}

impl Config {
    /// The program that keeps the login of a registry.
    fn helper(&self, registry: &str) -> Option<String> {
        let own = self.helpers.get(registry).or_else(|| self.helpers.get(key(registry)));
        let name = own.and_then(Value::as_str).unwrap_or(&self.store);
        (!name.is_empty()).then(|| format!("docker-credential-{name}"))
    }
}

/// The registry of a reference, as docker completes it; what is no reference has no login.
fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

fn key(registry: &str) -> &str {
    if registry == "docker.io" { DOCKER_HUB } else { registry }
}

/// Asks a helper; `None` when it has no login.
fn ask(helper: &str, registry: &str) -> anyhow::Result<Option<Value>> {
    if helper.contains('/') {
        bail!("credential helper {helper:?} is no name of a program");
    }
    let failed = || format!("asking {helper} for the login of {registry}");
    let mut child = Command::new(helper)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(failed)?;
    let mut input = child.stdin.take().context("its standard input").with_context(failed)?;
    // One that reads nothing says what it wants all the same.
    let _unread = input.write_all(key(registry).as_bytes());
    drop(input);
    let output = child.wait_with_output().with_context(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        if said.contains(NO_LOGIN) {
            return Ok(None);
        }
        return Err(anyhow!("{}: {}", output.status, said.trim())).with_context(failed);
    }
    let Secret { username, secret } = serde_json::from_slice(&output.stdout).with_context(failed)?;
    Ok(Some(match username.as_str() {
        // It is no password, and goes to a token server alone.
        "<token>" => json!({ "identitytoken": secret }),
        _ => json!({ "auth": STANDARD.encode(format!("{username}:{secret}")) }),
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_reference_has_the_registry_that_docker_sees() {
        for (reference, expected) in [
            ("busybox", "docker.io"),
            ("me/app:1", "docker.io"),
            ("docker.io/me/app", "docker.io"),
            ("localhost/x", "localhost"),
            ("reg:5000/x:y", "reg:5000"),
            ("ghcr.io/a/b@sha256:0", "ghcr.io"),
        ] {
            assert_eq!(registry(reference), expected, "{reference}");
        }
    }

    #[test]
    fn the_file_that_is_named_counts_first() {
        let all = |name: &str| Some(OsString::from(format!("/{name}")));
        let named = Logins { authfile: Some("/flag".into()) };
        let free = Logins { authfile: None };
        assert_eq!(named.file(all), Some(("/flag".into(), true)));
        assert_eq!(free.file(all), Some(("/REGISTRY_AUTH_FILE".into(), true)));
        let without = |name: &str| all(name).filter(|_| name != "REGISTRY_AUTH_FILE");
        assert_eq!(free.file(without), Some(("/DOCKER_CONFIG/config.json".into(), false)));
        let home = |name: &str| all(name).filter(|_| name == "HOME");
        assert_eq!(free.file(home), Some(("/HOME/.docker/config.json".into(), false)));
        assert_eq!(free.file(|_| None), None);
    }

    #[test]
    fn logins_are_sent_with_those_of_helpers_and_an_absent_file_matters_only_when_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        let logins = Logins { authfile: Some(file.clone()) };
        assert!(logins.body(&["x"]).is_err());
        let helper = directory.path().join("docker-credential-test");
        let script = "#!/bin/sh\nread -r server\n[ \"$server\" = tokens.lan ] && { echo '{\"Username\":\"<token>\",\"Secret\":\"id\"}'; exit; }\n\
                      [ \"$server\" = reg.lan ] || { echo 'credentials not found in keychain'; exit 1; }\n\
                      echo '{\"ServerURL\":\"reg.lan\",\"Username\":\"me\",\"Secret\":\"pw\"}'\n";
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let text = r#"{"auths": {"a.lan": {"auth": "eDp5"}, "reg.lan": {}}, "credHelpers": {"reg.lan": "HELPER", "tokens.lan": "HELPER", "docker.io": "HELPER"}}"#;
        std::fs::write(&file, text.replace("HELPER", "test")).unwrap();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut with_ours = directory.path().as_os_str().to_owned();
        with_ours.push(":");
        with_ours.push(&path);
        // A helper is found by PATH, which is the process's own: asked for in a child that has another.
        let exe = std::env::current_exe().unwrap();
        if std::env::var_os("PORTREEVE_TEST_HELPER").is_none() {
            let name = "verbs::image::login::tests::logins_are_sent_with_those_of_helpers_and_an_absent_file_matters_only_when_named";
            let mut child = Command::new(exe);
            let child =
                child.args(["--exact", name]).env("PATH", with_ours).env("PORTREEVE_TEST_HELPER", directory.path());
            let status = child.status().unwrap();
            assert!(status.success());
            return;
        }
        let sent: Value = serde_json::from_slice(&logins.body(&["reg.lan/x:1", "busybox"]).unwrap()).unwrap();
        assert_eq!(sent, json!({ "auths": { "a.lan": { "auth": "eDp5" }, "reg.lan": { "auth": "bWU6cHc=" } } }));
        let sent: Value = serde_json::from_slice(&logins.body(&["tokens.lan/x"]).unwrap()).unwrap();
        assert_eq!(sent["auths"]["tokens.lan"], json!({ "identitytoken": "id" }));
        std::fs::write(&file, text.replace("HELPER", "none-such")).unwrap();
        assert!(format!("{:#}", logins.body(&["reg.lan/x"]).unwrap_err()).contains("docker-credential-none-such"));
        std::fs::write(&file, text.replace("HELPER", "../x")).unwrap();
        assert!(logins.body(&["reg.lan/x"]).is_err());
        std::fs::write(&file, "{").unwrap();
        assert!(logins.body(&[]).is_err());
    }
}
