//! Whether a signature is for the image that was asked for, by the name that it was signed under.
//!
//! Source: containers-policy.json(5), `signedIdentity`.

use crate::{
    reference::ImageRef,
    trust::{document::Part, scope},
};

/// Which names in a signature count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity {
    /// The reference itself; where it has a digest, its repository.
    MatchRepoDigestOrExact,
    /// The reference itself.
    MatchExact,
    /// Its repository, under any tag.
    MatchRepository,
    /// This one reference.
    ExactReference(ImageRef),
    /// This one repository.
    ExactRepository(ImageRef),
    /// As the first, with `prefix` of the reference taken for `signed_prefix`.
    Remap { prefix: String, signed_prefix: String },
}

impl Identity {
    pub(super) fn parse(part: Part) -> Result<Self, String> {
        let mut fields = part.object()?;
        let kind = fields.need("type")?;
        let name = |part: Part, whole: bool| {
            let place = part.place.clone();
            let text = part.text()?;
            let wrong = |problem: &dyn std::fmt::Display| format!("{place} is {text:?}: {problem}");
            let reference = text.parse::<ImageRef>().map_err(|error| wrong(&error))?;
            match (whole, is_name_only(&text)) {
                (true, true) => Err(wrong(&"it needs a tag or digest")),
                (false, false) => Err(wrong(&"it must have neither tag nor digest")),
                _ => Ok(reference),
            }
        };
        let prefix = |part: Part| {
            let place = part.place.clone();
            let text = part.text()?;
            scope::check_prefix(&text).map_err(|problem| format!("{place}: {problem}"))?;
            Ok::<_, String>(text)
        };
        let place = kind.place.clone();
        let (identity, known) = match kind.text()?.as_str() {
            "matchRepoDigestOrExact" => (Self::MatchRepoDigestOrExact, "type"),
            "matchExact" => (Self::MatchExact, "type"),
            "matchRepository" => (Self::MatchRepository, "type"),
            "exactReference" => {
                (Self::ExactReference(name(fields.need("dockerReference")?, true)?), "type, dockerReference")
            }
            "exactRepository" => {
                (Self::ExactRepository(name(fields.need("dockerRepository")?, false)?), "type, dockerRepository")
            }
            "remapIdentity" => {
                let (from, to) = (prefix(fields.need("prefix")?)?, prefix(fields.need("signedPrefix")?)?);
                (Self::Remap { prefix: from, signed_prefix: to }, "type, prefix, signedPrefix")
            }
            other => {
                return Err(format!(
                    "{place} {other:?} is not known; known are matchRepoDigestOrExact, matchExact, matchRepository, \
                     exactReference, exactRepository, remapIdentity"
                ));
            }
        };
        fields.end(known)?;
        Ok(identity)
    }

    /// Whether what was signed as `signed` counts for `asked`.
    pub(super) fn accepts(&self, asked: &ImageRef, signed: &str) -> bool {
        let Ok(reference) = signed.parse::<ImageRef>() else { return false };
        let signed = Signed { reference, name_only: is_name_only(signed) };
        match self {
            Self::MatchRepoDigestOrExact => signed.is_digest_or_exact(asked),
            Self::MatchExact => signed.is_exactly(asked),
            Self::MatchRepository => signed.reference.name() == asked.name(),
            Self::ExactReference(wanted) => signed.is_exactly(wanted),
            Self::ExactRepository(wanted) => signed.reference.name() == wanted.name(),
            Self::Remap { prefix, signed_prefix } => {
                let name = asked.name();
                let below = name.strip_prefix(prefix.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/'));
                let Some(below) = below else { return signed.is_digest_or_exact(asked) };
                let ending = exact(asked).strip_prefix(&name).unwrap_or_default().to_owned();
                let remapped = format!("{signed_prefix}{below}{ending}").parse::<ImageRef>();
                remapped.is_ok_and(|remapped| signed.is_digest_or_exact(&remapped))
            }
        }
    }
}

/// The name in a signature.
struct Signed {
    reference: ImageRef,
    /// It has neither tag nor digest, which does not mean `latest` here.
    name_only: bool,
}

impl Signed {
    fn is_exactly(&self, asked: &ImageRef) -> bool {
        !self.name_only && self.reference.to_string() == exact(asked)
    }

    fn is_digest_or_exact(&self, asked: &ImageRef) -> bool {
        match asked.digest() {
            // That the signature is for this digest is looked at elsewhere.
            Some(_) => !self.name_only && self.reference.name() == asked.name(),
            None => self.is_exactly(asked),
        }
    }
}

/// A reference without the tag that beside a digest says nothing.
fn exact(reference: &ImageRef) -> String {
    match reference.digest() {
        Some(digest) => reference.with_digest(digest.clone()).to_string(),
        None => reference.to_string(),
    }
}

/// A reference without tag and digest, as written.
fn is_name_only(text: &str) -> bool {
    let last = text.rsplit_once('/').map_or(text, |(_, last)| last);
    !last.contains([':', '@'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::document::parse;

    const ONE: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const TWO: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    fn identity(json: &str) -> Result<Identity, String> {
        Identity::parse(parse(json.as_bytes()).unwrap())
    }

    #[test]
    fn each_kind_accepts_what_it_says_and_nothing_else() {
        let pinned = &format!("r.example/a@{ONE}");
        let both = &format!("r.example/a:1@{ONE}");
        let other = &format!("r.example/a@{TWO}");
        let exact = r#"{"type":"matchExact"}"#;
        let usual = r#"{"type":"matchRepoDigestOrExact"}"#;
        let repository = r#"{"type":"matchRepository"}"#;
        let reference = r#"{"type":"exactReference","dockerReference":"up.example/a:1"}"#;
        let upstream = r#"{"type":"exactRepository","dockerRepository":"up.example/a"}"#;
        let remap = r#"{"type":"remapIdentity","prefix":"r.example/m","signedPrefix":"up.example"}"#;
        for (rule, asked, signed, expect) in [
            (usual, "r.example/a:1", "r.example/a:1", true),
            (usual, "r.example/a:1", "r.example/a:2", false),
            (usual, "r.example/a:1", "r.example/b:1", false),
            (usual, "r.example/a:1", "other.example/a:1", false),
            // As cosign signs: a repository, which is no tag.
            (usual, "r.example/a:1", "r.example/a", false),
            (usual, "r.example/a:latest", "r.example/a", false),
            (usual, "r.example/a:1", pinned, false),
            (usual, pinned, "r.example/a:1", true),
            (usual, pinned, pinned, true),
            (usual, pinned, other, true),
            (usual, pinned, "r.example/a", false),
            (usual, pinned, "r.example/b:1", false),
            (usual, both, "r.example/a:2", true),
            (exact, "r.example/a:1", "r.example/a:1", true),
            (exact, "busybox", "docker.io/library/busybox:latest", true),
            (exact, pinned, "r.example/a:1", false),
            (exact, pinned, pinned, true),
            (exact, both, pinned, true),
            (exact, pinned, other, false),
            (repository, "r.example/a:1", "r.example/a", true),
            (repository, "r.example/a:1", "r.example/a:2", true),
            (repository, pinned, "r.example/a", true),
            (repository, "r.example/a:1", "r.example/a/b:1", false),
            (repository, "r.example/a:1", "", false),
            (repository, "r.example/a:1", "R.example/A", false),
            (reference, "r.example/a:1", "up.example/a:1", true),
            (reference, "r.example/a:1", "up.example/a:2", false),
            (reference, "r.example/a:1", "r.example/a:1", false),
            (upstream, "r.example/a:1", "up.example/a:9", true),
            (upstream, "r.example/a:1", "up.example/a", true),
            (upstream, "r.example/a:1", "r.example/a", false),
            (remap, "r.example/m/a:1", "up.example/a:1", true),
            (remap, "r.example/m/a:1", "r.example/m/a:1", false),
            (remap, "r.example/mm/a:1", "up.examplem/a:1", false),
            (remap, "r.example/mm/a:1", "r.example/mm/a:1", true),
            (remap, &format!("r.example/m/a@{ONE}"), "up.example/a:1", true),
        ] {
            let identity = identity(rule).unwrap();
            assert_eq!(identity.accepts(&asked.parse().unwrap(), signed), expect, "{rule} {asked} {signed}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (rule, hint) in [
            (r#"{}"#, "has no \"type\""),
            (r#"{"type":"matchAll"}"#, "type \"matchAll\" is not known"),
            (r#"{"type":"matchExact","dockerReference":"a:1"}"#, "unknown key \"dockerReference\""),
            (r#"{"type":"exactReference"}"#, "has no \"dockerReference\""),
            (r#"{"type":"exactReference","dockerReference":"r.example/a"}"#, "needs a tag or digest"),
            (r#"{"type":"exactRepository","dockerRepository":"r.example/a:1"}"#, "neither tag nor digest"),
            (r#"{"type":"exactRepository","dockerRepository":"A"}"#, "repository name component"),
            (r#"{"type":"remapIdentity","prefix":"r.example"}"#, "has no \"signedPrefix\""),
            (r#"{"type":"remapIdentity","prefix":"library","signedPrefix":"r.example"}"#, "is no registry"),
            (r#"["matchExact"]"#, "must be an object"),
        ] {
            let problem = identity(rule).unwrap_err();
            assert!(problem.contains(hint), "{rule}: {problem}");
        }
    }
}
