//! Image references, as far as defaults depend on them: is the tag `latest`?
//!
//! Source: the reference grammar of the distribution project. The API server does not refuse
//! an image that breaks it; it only finds no tag in it.

/// Whether the image is `latest`, by name or because it has neither tag nor digest.
pub(super) fn is_latest(image: &str) -> bool {
    parse(image).is_some_and(|tag| tag == "latest")
}

/// Whether the text is an image's name at all.
pub(crate) fn is_image_name(image: &str) -> bool {
    parse(image).is_some()
}

/// The tag of a reference: empty for one with only a digest, `None` for what is no reference.
fn parse(image: &str) -> Option<&str> {
    if image.len() == 64 && image.bytes().all(is_lower_hex) {
        return None;
    }
    let (named, digest) = match image.split_once('@') {
        Some((named, digest)) => (named, Some(digest)),
        None => (image, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return None;
    }
    let (domain, remainder) = match named.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" || has_upper(first) => {
            (Some(first), rest)
        }
        _ => (None, named),
    };
    if domain.is_some_and(|domain| !is_domain(domain)) {
        return None;
    }
    let (path, tag) = match remainder.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (remainder, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) || !path.split('/').all(is_component) {
        return None;
    }
    if path.len() + domain.unwrap_or("docker.io/library").len() + 1 > 255 {
        return None;
    }
    Some(tag.unwrap_or(if digest.is_some() { "" } else { "latest" }))
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else {
        return false;
    };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(is_lower_hex)
}

/// Lower-case letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_component(component: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut separator = String::new();
    let ends_plain = |byte: Option<u8>| byte.is_some_and(plain);
    if !ends_plain(component.bytes().next()) || !ends_plain(component.bytes().last()) {
        return false;
    }
    for c in component.chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            let joined =
                matches!(separator.as_str(), "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-');
            if !joined {
                return false;
            }
            separator.clear();
        } else if matches!(c, '.' | '_' | '-') {
            separator.push(c);
        } else {
            return false;
        }
    }
    true
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (domain, None),
    };
    if port.is_some_and(|port| port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit())) {
        return false;
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
    }
    host.split('.').all(|label| {
        let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        edge(label.bytes().next())
            && edge(label.bytes().last())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::{is_latest, parse};

    #[test]
    fn only_a_reference_without_tag_and_digest_is_latest() {
        assert!(is_latest("busybox"));
        assert!(is_latest("localhost:5000/a/b"));
        assert!(is_latest("registry.example.com/a:latest"));
        assert!(!is_latest("busybox:1.36"));
        assert!(!is_latest(&format!("busybox@sha256:{}", "0".repeat(64))));
        assert!(!is_latest("Busybox"));
        assert_eq!(parse("a b"), None);
        assert_eq!(parse("a--b__c.d"), Some("latest"));
    }
}
