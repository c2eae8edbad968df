//! Image references, normalised as Docker and containerd do.
//!
//! ```text
//!   [registry[:port]/]path[/path...][:tag][@sha256:digits]
//!
//!   busybox            -> docker.io/library/busybox:latest
//!   me/app:1           -> docker.io/me/app:1
//!   host:5000/x        -> host:5000/x:latest
//!   x@sha256:..        -> docker.io/library/x@sha256:..      (no tag is invented)
//! ```
//! Source: distribution/reference `regexp.go` and `normalize.go`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// The registry that a name without one means.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Longest `registry/path`, as in distribution/reference.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A normalised, well-formed image reference: it has a registry, a repository, and a tag or a digest.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("image reference is empty")]
    Empty,
    /// It is longer than any registry accepts.
    #[error("image name has {length} characters, more than {MAX_NAME}")]
    TooLong {
        /// Characters before tag and digest.
        length: usize,
    },
    /// An address of a web page, not of an image.
    #[error("image reference {text:?} is a URL: leave out {scheme:?}")]
    Url {
        /// The reference.
        text: String,
        /// Its beginning.
        scheme: String,
    },
    /// The part before the first slash is not a host name with an optional port.
    #[error("image reference {text:?}: {registry:?} is not a registry host")]
    Registry {
        /// The reference.
        text: String,
        /// The part that is wrong.
        registry: String,
    },
    /// A path component is not lower-case letters and digits joined by `.`, `_`, `__` or dashes.
    #[error(
        "image reference {text:?}: {component:?} is not a repository name component \
         (lower-case letters and digits, joined by '.', '_', '__' or '-')"
    )]
    Repository {
        /// The reference.
        text: String,
        /// The part that is wrong.
        component: String,
    },
    /// The part after the colon is not a tag.
    #[error(
        "image reference {text:?}: {tag:?} is not a tag \
         (letters, digits, '_', '.', '-', at most {MAX_TAG}, not starting with '.' or '-')"
    )]
    Tag {
        /// The reference.
        text: String,
        /// The part that is wrong.
        tag: String,
    },
    /// The part after the at sign is not a digest.
    #[error("image reference {text:?} has a malformed digest")]
    Digest {
        /// The reference.
        text: String,
        /// What is wrong with it.
        source: DigestError,
    },
    /// 64 hexadecimal digits are an image id, never a name.
    #[error("image reference {text:?} is 64 hexadecimal digits: that is an image id, not a name")]
    LooksLikeId {
        /// The reference.
        text: String,
    },
}

impl ImageRef {
    /// The registry as written or implied, `docker.io` by default; with its port if it has one.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository below the registry, `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` when neither tag nor digest was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that pins the content, which wins over the tag.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `registry/repository`, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository, pinned to `digest`, without a tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { registry: self.registry.clone(), repository: self.repository.clone(), tag: None, digest: Some(digest) }
    }

    /// The short form that a person writes: without `docker.io/library/` where that is implied.
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        let shorter = short.strip_prefix("library/").unwrap_or(short);
        // A shorter form counts only when it means the same: `docker.io/a.b/c` must keep its registry.
        let same = |text: &&str| text.parse::<Self>().is_ok_and(|r| r == *self);
        [shorter, short].into_iter().find(same).unwrap_or(&full).to_owned()
    }

    /// The host that serves this registry's API.
    pub(crate) fn api_host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { &self.registry }
    }
}

impl FromStr for ImageRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let shown = || -> String { text.chars().take(300).collect() };
        if let Some(scheme) = ["http://", "https://", "docker://"].into_iter().find(|scheme| text.starts_with(scheme)) {
            return Err(ReferenceError::Url { text: shown(), scheme: scheme.to_owned() });
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest =
                    digest.parse::<Digest>().map_err(|source| ReferenceError::Digest { text: shown(), source })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            // A colon before the last slash belongs to the registry's port.
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_none() && digest.is_none() && is_hex_id(name) {
            return Err(ReferenceError::LooksLikeId { text: shown() });
        }
        let (registry, path) = split_registry(name);
        let registry = if is_docker_hub(registry) { DEFAULT_REGISTRY } else { registry };
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        // As it is written down, so that it can be read again.
        let length = registry.len() + 1 + repository.len();
        if length > MAX_NAME {
            return Err(ReferenceError::TooLong { length });
        }
        if !is_registry(registry) {
            return Err(ReferenceError::Registry { text: shown(), registry: registry.to_owned() });
        }
        if let Some(component) = repository.split('/').find(|c| !is_component(c)) {
            return Err(ReferenceError::Repository { text: shown(), component: component.to_owned() });
        }
        if let Some(tag) = tag.filter(|t| !is_tag(t)) {
            return Err(ReferenceError::Tag { text: shown(), tag: tag.chars().take(200).collect() });
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// The first component is a registry only when it cannot be a Docker Hub user.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((host, path))
            if host.contains(['.', ':']) || host == "localhost" || host.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (host, path)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

/// Whether this is Docker Hub by any of its names, so that what is said of one is not got around by another: in large
/// letters or with the port that is meant without one it is the same place.
pub(crate) fn is_docker_hub(registry: &str) -> bool {
    let host = registry.strip_suffix(":443").unwrap_or(registry);
    [DEFAULT_REGISTRY, "index.docker.io", "registry-1.docker.io"].iter().any(|name| host.eq_ignore_ascii_case(name))
}

fn is_hex_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether a text names a host, with a port or without. Addresses and ports have one way to be written, so that what is
/// said of a registry is not got around by another.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                let parsed = address.parse::<std::net::Ipv6Addr>();
                if !parsed.is_ok_and(|parsed| parsed.to_string() == address.to_ascii_lowercase()) {
                    return false;
                }
                match port.strip_prefix(':') {
                    Some(port) => (None, Some(port)),
                    None if port.is_empty() => (None, None),
                    None => return false,
                }
            }
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    // What ends in a number is an address to who connects, also `127.1`, `2130706433` and `0x7f.1`.
    let number = |l: &str| {
        let hex = l.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("0x"));
        hex || l.bytes().all(|b| b.is_ascii_digit())
    };
    let address = |h: &str| !h.rsplit('.').next().is_some_and(number) || h.parse::<std::net::Ipv4Addr>().is_ok();
    host.is_none_or(|h| h.split('.').all(label) && address(h))
        && port.is_none_or(|p| p.bytes().all(|b| b.is_ascii_digit()) && !p.starts_with('0') && p.parse::<u16>().is_ok())
}

fn is_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends_in_words = |t: &str| t.bytes().next().is_some_and(word) && t.bytes().next_back().is_some_and(word);
    // Between two words there is one dot, one or two underscores, or any number of dashes.
    ends_in_words(text)
        && text
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

impl TryFrom<String> for ImageRef {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(reference: ImageRef) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_completed_as_docker_completes_them() {
        for (input, expect) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("me/app", "docker.io/me/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("Index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io:443/me/app:1", "docker.io/me/app:1"),
            ("registry-1.docker.io:443/busybox", "docker.io/library/busybox:latest"),
            ("REGISTRY-1.DOCKER.IO:443/busybox", "docker.io/library/busybox:latest"),
            ("Docker.io/busybox", "docker.io/library/busybox:latest"),
            ("docker.io:443/busybox:1", "docker.io/library/busybox:1"),
            ("index.docker.io:444/x", "index.docker.io:444/x:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
            ("Registry/x", "Registry/x:latest"),
            ("a--b__c.d/e_f", "docker.io/a--b__c.d/e_f:latest"),
        ] {
            // The last name has a dot in its first component, which makes it a registry.
            if input.starts_with("a--b") {
                assert!(input.parse::<ImageRef>().is_err());
                continue;
            }
            assert_eq!(input.parse::<ImageRef>().unwrap().to_string(), expect, "{input}");
        }
    }

    #[test]
    fn a_digest_pins_and_no_tag_is_invented_beside_it() {
        let plain = format!("busybox@{DIGEST}").parse::<ImageRef>().unwrap();
        assert_eq!(plain.tag(), None);
        assert_eq!(plain.to_string(), format!("docker.io/library/busybox@{DIGEST}"));
        let both = format!("host:1/x:v1@{DIGEST}").parse::<ImageRef>().unwrap();
        assert_eq!((both.tag(), both.digest().unwrap().as_str()), (Some("v1"), DIGEST));
    }

    #[test]
    fn the_longest_name_is_one_that_can_be_read_again() {
        // docker.io/library/ has 18 characters.
        let longest = "x".repeat(255 - 18);
        let read: ImageRef = longest.parse().unwrap();
        assert_eq!(read.to_string().parse(), Ok(read));
        let error = format!("{longest}x").parse::<ImageRef>().unwrap_err();
        assert_eq!(error, ReferenceError::TooLong { length: 256 });
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = format!("a/{}", "x".repeat(300));
        for bad in [
            "",
            ":",
            "/",
            "a/",
            "/a",
            "a//b",
            "Upper",
            "a:",
            "a:-x",
            "a@",
            "a@sha256:12",
            "a b",
            "a\n",
            "../a",
            "host:99999/a",
            "host:0/x",
            // One and the same place is written in one way.
            "host:0443/x",
            "127.0.0.1:05000/x",
            "[0:0:0:0:0:0:0:1]:5000/x",
            "[0::1]/x",
            "127.1:5000/x",
            "2130706433:5000/x",
            "0x7f.0.0.1:5000/x",
            "127.0.0.01:5000/x",
            "reg.0X10/x",
            "host:5000",
            "a..b",
            "a___b",
            "a._b",
            "-a/b.c",
            "a:t:u",
            "é",
            "a/B",
            "[::1/x",
            "[zz]/x",
            "a/..",
            "x.-y/z",
            &long,
            &"ab01".repeat(16),
            &format!("a:{}", "t".repeat(129)),
        ] {
            // `host:5000` alone is the image `host` with tag 5000.
            if bad == "host:5000" {
                assert_eq!(bad.parse::<ImageRef>().unwrap().tag(), Some("5000"));
                continue;
            }
            assert!(bad.parse::<ImageRef>().is_err(), "{bad:?} was taken");
        }
        let url = "https://quay.io/a/b".parse::<ImageRef>().unwrap_err();
        assert!(url.to_string().contains("is a URL: leave out \"https://\""), "{url}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_text_is_refused_or_becomes_stable(text in "\\PC{0,80}") {
            if let Ok(reference) = text.parse::<ImageRef>() {
                let printed = reference.to_string();
                prop_assert_eq!(printed.parse::<ImageRef>().unwrap(), reference);
            }
        }

        #[test]
        fn what_looks_like_a_reference_round_trips(
            text in "([a-zA-Z0-9.\\[\\]:-]{1,12}/)?[a-zA-Z0-9._/-]{1,20}(:[a-zA-Z0-9_.-]{1,8})?"
        ) {
            if let Ok(reference) = text.parse::<ImageRef>() {
                let printed = reference.to_string();
                prop_assert_eq!(printed.parse::<ImageRef>().unwrap(), reference.clone());
                prop_assert_eq!(reference.familiar().parse::<ImageRef>().unwrap(), reference.clone());
                // Nothing in it can leave a URL path or a directory.
                prop_assert!(!reference.repository().split('/').any(|c| c.is_empty() || c.starts_with('.')));
            }
        }
    }
}
