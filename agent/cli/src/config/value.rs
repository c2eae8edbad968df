//! What each setting may be, whether a flag, the environment or the file says it.
//!
//! Each function gives the value, or what is wrong with the text: a sentence that goes on after it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use portreeve_engine::image::DownloadWindow;
use portreeve_manifests::{check_label, check_label_key, check_label_value, check_subdomain};
use tracing_subscriber::EnvFilter;

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("is no path".to_owned()) } else { Ok(text.into()) }
}

pub(super) fn node_name(text: &str) -> Result<String, String> {
    check_subdomain(text).map_err(|why| format!("cannot be the name of a node: it {why}"))?;
    Ok(text.to_owned())
}

/// A label as a flag gives it.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("is not key=value")?;
    Ok((label_key(key).map_err(|why| format!("has a key that {why}"))?, label_value(value)?))
}

pub(super) fn label_key(text: &str) -> Result<String, String> {
    check_label_key(text).map_err(|why| format!("cannot be the key of a label: {why}"))?;
    Ok(text.to_owned())
}

pub(super) fn label_value(text: &str) -> Result<String, String> {
    check_label_value(text).map_err(|why| format!("cannot be the value of a label: it {why}"))?;
    Ok(text.to_owned())
}

/// A runtime handler as a flag gives it.
pub(super) fn handler(text: &str) -> Result<(String, PathBuf), String> {
    let (name, program) = text.split_once('=').ok_or("is not name=/path/of/program")?;
    let name = handler_name(name).map_err(|why| format!("has a name that {why}"))?;
    Ok((name, self::program(program).map_err(|why| format!("names a program that {why}"))?))
}

/// Source: Kubernetes, `RuntimeClass.handler`: a DNS label.
pub(super) fn handler_name(text: &str) -> Result<String, String> {
    check_label(text).map_err(|why| format!("cannot be the name of a handler: it {why}"))?;
    Ok(text.to_owned())
}

/// Never looked for by its name: what runs a node's pods is one file.
pub(super) fn program(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("is no absolute path of a program".to_owned()) }
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "is no address with a port, such as 127.0.0.1:9580".to_owned())
}

pub(super) fn subnet(text: &str) -> Result<Ipv4Net, String> {
    let subnet: Ipv4Net = text.parse().map_err(|_| "is no IPv4 subnet, such as 10.85.3.0/24")?;
    if subnet.trunc() != subnet {
        return Err(format!("has host bits set; the subnet is {}", subnet.trunc()));
    }
    if !(16..=29).contains(&subnet.prefix_len()) {
        return Err("cannot be the pods' subnet: its prefix must be /16 to /29".to_owned());
    }
    Ok(subnet)
}

/// Where our cgroups lie, without needless slashes: two spellings of one place are one place.
pub(super) fn cgroup(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if !text.starts_with('/') || parts.is_empty() || parts.contains(&"..") {
        return Err("must be an absolute path below the root, such as /portreeve".to_owned());
    }
    if parts.iter().any(|part| part.starts_with("kubepods")) {
        return Err("belongs to a kubelet, which kills what it does not know there".to_owned());
    }
    Ok(format!("/{}", parts.join("/")))
}

/// Source: Linux, `dev_valid_name`, narrowed to what needs no quoting anywhere.
pub(super) fn link(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.is_empty() || text.len() > 15 || !text.bytes().all(plain) {
        return Err("cannot be the name of a link: 1 to 15 letters, digits, `-`, `_` and `.`".to_owned());
    }
    if [".", "..", "all", "default", "lo"].contains(&text) {
        return Err("cannot be the name of a bridge: it means something else to the kernel".to_owned());
    }
    Ok(text.to_owned())
}

/// What `nft` reads as a name without quotes.
pub(super) fn table(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let starts_right = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    if !starts_right || text.len() > 63 || !text.bytes().all(plain) {
        return Err("cannot be the name of a table: 1 to 63 letters, digits, `_` and `-`, a letter first".to_owned());
    }
    Ok(text.to_owned())
}

/// A registry as references of images begin with it.
pub(super) fn registry(text: &str) -> Result<String, String> {
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split('/').next().unwrap_or_default();
        return Err(format!("has a scheme; give `{host}`, as references of images begin with it"));
    }
    if let Some((host, _)) = text.split_once('/') {
        return Err(format!("has a path; the whole registry is meant: `{host}`"));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let number = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_host = match number {
        Some(number) => number.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    if !is_host || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err("is no registry, such as registry.example:5000".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn age(text: &str) -> Result<Duration, String> {
    crate::verbs::duration(text).map_err(|_| "is no duration, such as 2m or 1h30m".to_owned())
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "is no number from 1 on".to_owned())
}

pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let bytes = portreeve_manifests::quantity::bytes(&Quantity(text.to_owned())).ok();
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| "is no number of bytes, such as 500k or 10Mi".to_owned())
}

pub(super) fn window(text: &str) -> Result<DownloadWindow, String> {
    text.parse().map_err(|_| "is no time of day, such as 22:00-06:00".to_owned())
}

/// What is shorter would end transfers that only pause.
pub(super) fn patience(text: &str) -> Result<Duration, String> {
    let long_enough = crate::verbs::duration(text).ok().filter(|patience| patience.as_secs() > 0);
    long_enough.ok_or_else(|| "is no duration of a second or more, such as 60s".to_owned())
}

pub(super) fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map_err(|error| format!("is no filter, such as info,portreeve=debug: {error}"))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_kernel() {
        for right in ["br0", "prt-0123abcd", "a.b_c-d"] {
            assert_eq!(link(right).unwrap(), right);
        }
        for wrong in ["", "a-name-too-long-", "a/b", "a b", "lo", "all", "ä"] {
            assert!(link(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "1a", "a b", "a.b", &"a".repeat(64)] {
            assert!(table(wrong).is_err(), "{wrong}");
        }
        assert_eq!(cgroup("//a/./b/").unwrap(), "/a/b");
        for wrong in ["", "/", "/.", "a", "/a/../b", "/kubepods.slice/a"] {
            assert!(cgroup(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn registries_are_hosts() {
        for right in ["a", "127.0.0.1:5000", "registry.example", "[::1]:5000", "[::1]"] {
            assert_eq!(registry(right).unwrap(), right);
        }
        for wrong in ["", "a/b", "a:", "a:x", "a:70000", "::1", "a b", "a@b", "http://a", "[x]"] {
            assert!(registry(wrong).is_err(), "{wrong}");
        }
        assert!(registry("http://r.example:5000/v2").unwrap_err().contains("`r.example:5000`"));
    }

    #[test]
    fn labels_are_those_of_manifests() {
        assert_eq!(label("a.example/b=c").unwrap(), ("a.example/b".to_owned(), "c".to_owned()));
        assert_eq!(label("a=").unwrap().1, "");
        for wrong in ["a", "=b", "a b=c", "a=b c", "a=b=c", "/a=b"] {
            assert!(label(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_handler_is_a_label_and_an_absolute_path() {
        assert_eq!(handler("runc-1=/opt/a=b/runc").unwrap(), ("runc-1".to_owned(), "/opt/a=b/runc".into()));
        for wrong in
            ["runc", "=/runc", "a_b=/runc", "A=/runc", "-a=/runc", "a.b=/runc", "runc=", "runc=runc", "runc=./runc"]
        {
            assert!(handler(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_subnet_is_whole_and_of_a_size_that_pods_fit_in() {
        assert!(subnet("10.1.0.0/24").is_ok());
        assert!(subnet("10.1.2.3/24").unwrap_err().contains("10.1.2.0/24"));
        for wrong in ["10.1.2.3", "10.1.0.0/40", "10.0.0.0/8", "10.1.2.0/30", "fd00::/64"] {
            assert!(subnet(wrong).is_err(), "{wrong}");
        }
    }
}
