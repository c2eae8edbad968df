//! What was signed: the simple signing document of containers and cosign.
//!
//! Source: cosign `specs/SIGNATURE_SPEC.md`, "simple signing"; containers-signature(5).

use serde::{Deserialize, de::IgnoredAny};

use crate::digest::Digest;

/// What cosign and skopeo say they sign. Signatures of GPG have another word, and are none of ours.
const KIND: &str = "cosign container image signature";

/// What was signed, as far as it counts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Payload {
    /// Digest of the manifest or index.
    pub(super) digest: Digest,
    /// What the signer calls it.
    pub(super) reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    critical: Critical,
    /// Anything: whoever made it, when, and what annotations he liked.
    #[serde(rename = "optional")]
    _optional: Option<IgnoredAny>,
}

/// A part that a reader does not know forbids him to accept the rest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: Image,
    identity: Named,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    #[serde(rename = "docker-reference")]
    reference: String,
}

/// Reads what was signed.
pub(super) fn parse(bytes: &[u8]) -> Result<Payload, String> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| format!("is no simple signing document: {error}"))?;
    let Critical { kind, image, identity } = raw.critical;
    if kind != KIND {
        return Err(format!("is of type {kind:?}, not {KIND:?}"));
    }
    Ok(Payload { digest: image.digest, reference: identity.reference })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn document(critical: &str, rest: &str) -> String {
        format!(r#"{{"critical":{{{critical}}}{rest}}}"#)
    }

    #[test]
    fn what_cosign_and_skopeo_write_is_read() {
        let image = format!(r#""image":{{"docker-manifest-digest":"{DIGEST}"}}"#);
        let critical = format!(r#""identity":{{"docker-reference":"r.example/a"}},{image},"type":"{KIND}""#);
        for rest in [r#","optional":null"#, r#","optional":{"creator":"x","timestamp":1.5,"any":["thing"]}"#, ""] {
            let payload = parse(document(&critical, rest).as_bytes()).unwrap();
            assert_eq!((payload.digest.as_str(), payload.reference.as_str()), (DIGEST, "r.example/a"));
        }
    }

    #[test]
    fn what_is_not_wholly_understood_is_refused() {
        let image = format!(r#""image":{{"docker-manifest-digest":"{DIGEST}"}}"#);
        let identity = r#""identity":{"docker-reference":"r.example/a"}"#;
        let kind = format!(r#""type":"{KIND}""#);
        let all = format!("{image},{identity},{kind}");
        for (document, hint) in [
            ("not json".to_owned(), "no simple signing"),
            (String::new(), "no simple signing"),
            ("{}".to_owned(), "critical"),
            (document(&all, r#","optional":null} {"#), "trailing"),
            (document(&all, r#","more":1"#), "more"),
            (document(&format!("{all},\"expires\":1"), ""), "expires"),
            (document(&format!("{image},{image},{identity},{kind}"), ""), "duplicate"),
            (document(&all, &format!(r#","critical":{{{all}}}"#)), "duplicate"),
            (document(&format!("{image},{kind}"), ""), "identity"),
            (document(&format!("{image},{identity},\"type\":\"atomic container signature\""), ""), "atomic"),
            (document(&format!(r#""image":{{"docker-manifest-digest":"sha256:1"}},{identity},{kind}"#), ""), "64"),
            (document(&format!(r#""image":{{"docker-manifest-digest":"sha512:00"}},{identity},{kind}"#), ""), "sha256"),
            (document(&format!(r#"{image},"identity":{{"docker-reference":7}},{kind}"#), ""), "string"),
        ] {
            let problem = parse(document.as_bytes()).unwrap_err();
            assert!(problem.contains(hint), "{document}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _refused = parse(&bytes);
        }
    }
}
