//! The policy file, taken apart: every part must be known, or none of it counts.
//!
//! Source: containers-policy.json(5).

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{
    reference::ImageRef,
    trust::{
        Refusal, Rule, absolute,
        document::{self, Object, Part},
        identity::Identity,
        key::{Key, KeySource},
        read_bounded,
        rule::Check,
        scope,
    },
};

/// Largest policy file, in bytes.
const MAX_POLICY: u64 = 1 << 20;
/// Transports of containers-transports(5) besides `docker`; images come here under the name of a registry alone.
const OTHER_TRANSPORTS: [&str; 10] = [
    "atomic",
    "containers-storage",
    "dir",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "ostree",
    "sif",
    "tarball",
];

/// Why a policy cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("reading image policy {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// Something in it is wrong.
    #[error("image policy {path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What, with its place.
        problem: String,
    },
}

/// What a policy says in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySurvey {
    /// How many scopes of registries it has.
    pub scopes: usize,
    /// The types of what holds for all others.
    pub default: Vec<&'static str>,
}

/// What a policy file says.
#[derive(Debug)]
pub(crate) struct Policy {
    path: PathBuf,
    default: Vec<Requirement>,
    /// By scope.
    docker: BTreeMap<String, Vec<Requirement>>,
}

/// One of the things that must hold.
#[derive(Debug)]
enum Requirement {
    AcceptAnything,
    Reject,
    DigestOnly,
    Signed { keys: Vec<KeySource>, identity: Identity },
}

impl PolicyError {
    /// Nothing may be used by a policy that cannot be used itself.
    pub(crate) fn refusal(&self, reference: &ImageRef) -> Refusal {
        let (path, problem) = match self {
            Self::Read { path, source } => (path, format!("it cannot be read: {source}")),
            Self::Content { path, problem } => (path, format!("it is broken: {problem}")),
        };
        Refusal { image: reference.to_string(), rule: format!("image policy {}", path.display()), problem }
    }
}

impl Policy {
    /// Reads a policy file. Blocks on the disk.
    pub(crate) fn read(path: &Path) -> Result<Self, PolicyError> {
        let text = read_bounded(path, MAX_POLICY)
            .map_err(|source| PolicyError::Read { path: path.to_owned(), source: Arc::new(source) })?;
        Self::parse(path, &text).map_err(|problem| PolicyError::Content { path: path.to_owned(), problem })
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self, String> {
        let mut fields = document::parse(text)?.object()?;
        let default = requirements(fields.need("default")?)?;
        let mut docker = BTreeMap::new();
        for (transport, part) in fields.take("transports").map_or(Ok(Vec::new()), Part::entries)? {
            if transport != "docker" {
                if !OTHER_TRANSPORTS.contains(&transport.as_str()) {
                    return Err(format!("transports has the unknown transport {transport:?}"));
                }
                continue;
            }
            for (scope, part) in part.entries()? {
                scope::check(&scope).map_err(|problem| format!("transports[\"docker\"]: {problem}"))?;
                docker.insert(scope, requirements(part)?);
            }
        }
        fields.end("default, transports")?;
        Ok(Self { path: path.to_owned(), default, docker })
    }

    /// What holds for a reference, with the keys for it. Blocks on the disk.
    pub(crate) fn rule(&self, reference: &ImageRef) -> Result<Rule, Refusal> {
        let scopes = scope::scopes(reference);
        let found = scopes.iter().find_map(|scope| Some((scope, self.docker.get(scope)?)));
        let (place, requirements) = match found {
            Some((scope, requirements)) => (format!("transports[\"docker\"][{scope:?}]"), requirements),
            None => ("default".to_owned(), &self.default),
        };
        let mut rule = Rule { image: reference.clone(), checks: Vec::new() };
        for (number, requirement) in requirements.iter().enumerate() {
            let place = format!("{}: {place}[{number}] ({})", self.path.display(), requirement.kind());
            let check = requirement.check();
            let check =
                check.map_err(|problem| Refusal { image: reference.to_string(), rule: place.clone(), problem })?;
            rule.checks.push((place, check));
        }
        Ok(rule)
    }

    /// What it says in short, when all its keys can be used. Blocks on the disk.
    pub(crate) fn survey(&self) -> Result<PolicySurvey, PolicyError> {
        for requirement in self.docker.values().chain([&self.default]).flatten() {
            let content = |problem| PolicyError::Content { path: self.path.clone(), problem };
            requirement.check().map_err(content)?;
        }
        Ok(PolicySurvey { scopes: self.docker.len(), default: self.default.iter().map(Requirement::kind).collect() })
    }
}

impl Requirement {
    fn kind(&self) -> &'static str {
        match self {
            Self::AcceptAnything => "insecureAcceptAnything",
            Self::Reject => "reject",
            Self::DigestOnly => "digestOnly",
            Self::Signed { .. } => "sigstoreSigned",
        }
    }

    /// The requirement with its keys read.
    fn check(&self) -> Result<Check, String> {
        Ok(match self {
            Self::AcceptAnything => Check::AcceptAnything,
            Self::Reject => Check::Reject,
            Self::DigestOnly => Check::DigestOnly,
            Self::Signed { keys, identity } => {
                let keys = keys.iter().map(KeySource::load).collect::<Result<_, _>>()?;
                Check::Signed { keys, identity: identity.clone() }
            }
        })
    }

    fn parse(part: Part) -> Result<Self, String> {
        let mut fields = part.object()?;
        let kind = fields.need("type")?.text()?;
        let (requirement, known) = match kind.as_str() {
            "insecureAcceptAnything" => (Self::AcceptAnything, "type"),
            "reject" => (Self::Reject, "type"),
            "digestOnly" => (Self::DigestOnly, "type"),
            "sigstoreSigned" => {
                let identity = fields.take("signedIdentity").map(Identity::parse).transpose()?;
                let keys = keys(&mut fields)?;
                let identity = identity.unwrap_or(Identity::MatchRepoDigestOrExact);
                (Self::Signed { keys, identity }, "type, keyPath, keyPaths, keyData, keyDatas, signedIdentity")
            }
            "signedBy" | "signedBaseLayer" => {
                return Err(fields.wrong(format!(
                    "is of type {kind:?}, and signatures of GPG are not verified here; use sigstoreSigned with a \
                     public key"
                )));
            }
            other => {
                return Err(fields.wrong(format!(
                    "is of the unknown type {other:?}; known are insecureAcceptAnything, reject, digestOnly, \
                     sigstoreSigned"
                )));
            }
        };
        fields.end(known)?;
        Ok(requirement)
    }
}

fn requirements(part: Part) -> Result<Vec<Requirement>, String> {
    part.list()?.into_iter().map(Requirement::parse).collect()
}

/// The keys of a `sigstoreSigned` requirement, which has exactly one way to name them.
fn keys(fields: &mut Object) -> Result<Vec<KeySource>, String> {
    for unsupported in
        ["fulcio", "pki", "rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas"]
    {
        if fields.take(unsupported).is_some() {
            return Err(fields.wrong(format!(
                "has {unsupported:?}: certificates and transparency logs are not verified here; name public keys by \
                 keyPath, keyPaths, keyData or keyDatas"
            )));
        }
    }
    let one = |part: Part| Ok(vec![part]);
    let ways = [
        fields.take("keyPath").map(|part| (one(part), file as fn(Part) -> _)),
        fields.take("keyPaths").map(|part| (part.list(), file as fn(Part) -> _)),
        fields.take("keyData").map(|part| (one(part), data as fn(Part) -> _)),
        fields.take("keyDatas").map(|part| (part.list(), data as fn(Part) -> _)),
    ];
    let mut ways = ways.into_iter().flatten();
    match (ways.next(), ways.next()) {
        (Some((parts, read)), None) => parts?.into_iter().map(read).collect(),
        _ => Err(fields.wrong("needs exactly one of keyPath, keyPaths, keyData, keyDatas")),
    }
}

fn file(part: Part) -> Result<KeySource, String> {
    let place = part.place.clone();
    absolute(&part.text()?).map(KeySource::File).map_err(|problem| format!("{place} {problem}"))
}

fn data(part: Part) -> Result<KeySource, String> {
    let place = part.place.clone();
    let text = part.text()?;
    let pem = STANDARD.decode(text.trim()).map_err(|error| format!("{place} must be base64 of a PEM text: {error}"))?;
    Key::from_pem(&pem).map(KeySource::Here).map_err(|problem| format!("{place}: {problem}"))
}
