//! Redirects: where a registry may send us, and what the place that it names may learn.
//!
//! Registries send whoever wants a blob to a store of objects, which is any host. So other hosts are gone to, and these
//! rules keep what a registry's word must not decide:
//!
//! - From an encrypted connection never to a plain one, and to nothing but HTTP.
//! - Not to this machine, nor to link-local addresses (clouds keep their keys there), unless who sends us there is in
//!   that very place itself: neither by address nor by a name that leads there.
//! - Not by address into a private network from outside of one. A name may lead there: stores of objects have private
//!   addresses in many networks, and their certificate must be right for it.
//! - Another host sees neither a login nor the headers and the certificate that the administrator gives for the registry,
//!   and must have a right one of its own, also when the registry's is not looked at.
//! - A body goes again only where the answer says that it should (307, 308).
//!
//! The HTTP client follows nothing by itself: it knows logins, but neither our headers nor this machine.
//! Source: RFC 9110 §15.4.

use std::net::{IpAddr, Ipv4Addr};

use reqwest::{
    Method, RequestBuilder, Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE},
};

use crate::hosts::Access;
use crate::registry::{
    Needs, Registries, RegistryError, patience,
    realm::{host_name, is_local, is_local_address},
};

/// More than that are a circle.
const MAX: usize = 5;

/// Sends a request, and again where it is redirected to. `needs` are those of the request's own client.
pub(super) async fn send(
    registries: &Registries,
    needs: &Needs,
    url: &str,
    request: RequestBuilder,
) -> Result<Response, RegistryError> {
    let (client, request) = request.build_split();
    let request = request.map_err(|error| RegistryError::from_request(url, error))?;
    let first = request.url().clone();
    // A body that cannot be had again is sent once.
    let again = request.try_clone();
    let mut answer = patience::send(url, RequestBuilder::from_parts(client, request)).await?;
    for _ in 0..MAX {
        let Some(mut request) = again.as_ref().and_then(reqwest::Request::try_clone) else { return Ok(answer) };
        let Some(next) = next(url, &answer, request.method())? else { return Ok(answer) };
        if next.origin() != first.origin() {
            let for_all = [ACCEPT, RANGE, CONTENT_TYPE, CONTENT_LENGTH, CONTENT_RANGE];
            let headers = request.headers_mut();
            let kept: Vec<_> =
                for_all.into_iter().filter_map(|name| Some((name.clone(), headers.get(&name)?.clone()))).collect();
            headers.clear();
            headers.extend(kept);
        }
        let access = access(&needs.access, &first, &next);
        let needs = Needs { access, sent: Sent::by(sender(&answer)), ..needs.clone() };
        let client = registries.client(next.host_str().unwrap_or_default(), &needs)?;
        *request.url_mut() = next;
        answer = patience::send(url, RequestBuilder::from_parts(client, request)).await?;
    }
    match next(url, &answer, &Method::GET)? {
        None => Ok(answer),
        Some(_) => Err(refused(url, "it redirects in a circle")),
    }
}

/// What a connection to `next` needs, where a host with this `access` sends us: its own settings are its own.
fn access(access: &Access, first: &Url, next: &Url) -> Access {
    if next.host_str() == first.host_str() && next.scheme() == first.scheme() {
        return access.clone();
    }
    Access { authorities: access.authorities.clone(), ..Access::usual(next.scheme() == "http") }
}

/// Where an answer redirects to, if it does.
fn next(url: &str, answer: &Response, method: &Method) -> Result<Option<Url>, RegistryError> {
    let reads = *method == Method::GET || *method == Method::HEAD;
    match answer.status() {
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {}
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER if reads => {}
        _ => return Ok(None),
    }
    let Some(location) = answer.headers().get(LOCATION) else { return Ok(None) };
    let location = location.to_str().ok().and_then(|location| answer.url().join(location).ok());
    let location = location.ok_or_else(|| refused(url, "it redirects to what is no URL"))?;
    match (answer.url().scheme(), location.scheme()) {
        (_, "https") | ("http", "http") => {}
        (_, "http") => return Err(refused(url, "a redirect from https to http is not followed")),
        _ => return Err(refused(url, "it redirects to what is not on HTTP")),
    }
    check(sender(answer), &location).map_err(|problem| refused(url, problem))?;
    Ok(Some(location))
}

/// The address of who answers. Behind a proxy, which every answer comes from, only one that its name says.
pub(super) fn sender(answer: &Response) -> Option<IpAddr> {
    if proxies().next().is_some() {
        let name = answer.url().host_str()?;
        let here = is_local(name).then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        return address_of(name).or(here);
    }
    answer.remote_addr().map(|address| address.ip())
}

/// The proxies that the environment names.
fn proxies() -> impl Iterator<Item = String> {
    let names = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let values = names.into_iter().filter_map(std::env::var_os).filter(|value| !value.is_empty());
    values.map(|value| value.to_string_lossy().into_owned())
}

/// Whether a proxy is reached by this name.
pub(super) fn is_proxy(name: &str) -> bool {
    proxies().any(|proxy| host_of_proxy(&proxy).eq_ignore_ascii_case(name))
}

/// The host of `[scheme://][login@]host[:port][/]`.
fn host_of_proxy(proxy: &str) -> &str {
    let authority = proxy.split_once("://").map_or(proxy, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or(authority);
    host_name(authority.rsplit('@').next().unwrap_or(authority))
}

/// Who sends us somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sent {
    /// Nobody: the administrator or the user names the place.
    #[default]
    Nobody,
    /// Somebody on this machine.
    Here,
    /// Somebody on a link of this machine.
    Link,
    /// Somebody else, or it is not known who.
    Elsewhere,
}

impl Sent {
    pub(super) fn by(sender: Option<IpAddr>) -> Self {
        match sender {
            Some(address) if is_link_local(address) => Self::Link,
            Some(address) if is_local_address(address) => Self::Here,
            _ => Self::Elsewhere,
        }
    }

    /// Whether we go to an address on their word: it may be no closer than they are themselves.
    pub(super) fn may_lead_to(self, address: IpAddr) -> bool {
        match self {
            Self::Nobody => true,
            _ if is_link_local(address) => self == Self::Link,
            _ if is_local_address(address) => self == Self::Here,
            _ => true,
        }
    }
}

/// Whether who is at address `from` may send us to `location`.
pub(super) fn check(from: Option<IpAddr>, location: &Url) -> Result<(), &'static str> {
    let host = location.host_str().unwrap_or_default();
    let here = is_local(host).then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let Some(address) = address_of(host).or(here) else { return Ok(()) };
    let sent = Sent::by(from);
    if !sent.may_lead_to(address) {
        return Err("it redirects to this machine or link, where it is not itself");
    }
    if is_private(address) && sent == Sent::Elsewhere && !from.is_some_and(is_private) {
        return Err("it redirects into a private network, where it is not itself");
    }
    Ok(())
}

fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn address_of(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

/// Source: RFC 1918, RFC 6598 and RFC 4193.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || matches!(v4.octets(), [100, 64..=127, ..]),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

fn refused(url: &str, problem: &str) -> RegistryError {
    RegistryError::Protocol { url: url.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_host_gets_no_certificate_and_must_have_its_own() {
        let given = Access {
            plain: false,
            unverified: true,
            authorities: vec![b"ca".to_vec()],
            identity: Some(b"key".to_vec()),
        };
        let first: Url = "https://reg.lan:5000/v2/".parse().unwrap();
        assert_eq!(access(&given, &first, &"https://reg.lan:9000/blob".parse().unwrap()), given);
        for other in ["https://store.lan/blob", "https://10.0.0.7/blob"] {
            let other = access(&given, &first, &other.parse().unwrap());
            assert_eq!((other.unverified, &other.identity, other.plain), (false, &None, false));
            assert_eq!(other.authorities, given.authorities);
        }
        let plain = Access { plain: true, ..given.clone() };
        let first: Url = "http://reg.lan:5000/v2/".parse().unwrap();
        assert!(access(&plain, &first, &"http://store.lan/".parse().unwrap()).identity.is_none());
    }

    #[test]
    fn a_proxy_is_known_by_its_host() {
        for proxy in ["http://localhost:3128", "localhost:3128", "http://me:p@w@localhost:3128/", "socks5h://localhost"]
        {
            assert_eq!(host_of_proxy(proxy), "localhost", "{proxy}");
        }
    }

    #[test]
    fn nobody_is_sent_closer_than_who_sends_is_himself() {
        let (here, link, private, public) = ("127.0.0.1", "169.254.1.1", "10.1.2.3", "203.0.113.7");
        for (location, from) in [
            ("https://cdn.example/blob", [here, link, private, public].as_slice()),
            ("http://198.51.100.1/blob", &[here, link, private, public]),
            ("http://10.9.9.9/blob", &[here, link, private]),
            ("http://100.64.0.1/blob", &[here, link, private]),
            ("http://[fd00::1]:9000/blob", &[here, link, private]),
            ("http://127.0.0.1:9580/metrics", &[here]),
            ("http://localhost/", &[here]),
            ("http://[::ffff:127.0.0.1]/", &[here]),
            ("http://2130706433/", &[here]),
            ("http://0.0.0.0/", &[here]),
            ("http://169.254.169.254/latest", &[link]),
            ("http://[fe80::1]/", &[link]),
        ] {
            let url: Url = location.parse().unwrap();
            for address in [here, link, private, public] {
                let allowed = check(Some(address.parse().unwrap()), &url).is_ok();
                assert_eq!(allowed, from.contains(&address), "{address} to {location}");
            }
            // Who it is may be unknown.
            assert_eq!(check(None, &url).is_ok(), from.contains(&public), "{location}");
        }
    }
}
