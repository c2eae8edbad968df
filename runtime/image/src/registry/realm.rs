//! Where a token may be asked for.
//!
//! A token server is often another host than its registry (`auth.docker.io`, `gitlab.com` for
//! `registry.gitlab.com`, `api.scaleway.com` for `rg.fr-par.scw.cloud`), and nothing but the
//! registry's word says which. Docker and containerd send the login wherever that word points.
//! Taking the word costs little: a registry that wants the login for itself asks for Basic. So other
//! hosts are allowed here too, and these rules keep what the word must not decide:
//!
//! - In the clear only as far as the administrator allows plain HTTP: to the registry's own host when it
//!   is plain itself, and to hosts that plain HTTP is spoken to anyway; never when the registry has TLS.
//! - To a host with TLS only when its certificate is right, also on the word of a plain registry.
//! - Not to this machine, nor to link-local addresses (clouds keep their keys there), unless the
//!   registry itself is there: neither by address nor by a name that leads there.
//!
//! Rejected: only the registry's own host or domain, which none of those three registries passes; all
//! private addresses, where a company's registry and token server often are.
//! Source: distribution `docs/spec/auth/token.md`; go-containerregistry and the .NET SDK have like rules.

use std::net::IpAddr;

use reqwest::Url;

use crate::{hosts::Access, registry::Registries};

/// Reads `realm`, which the registry `host` named, and tells what a connection to it needs; `access` is the registry's.
pub(crate) fn check(
    realm: &str,
    host: &str,
    access: &Access,
    registries: &Registries,
) -> Result<(Url, Access), &'static str> {
    let url = Url::parse(realm).map_err(|_| "its token realm is no URL")?;
    let Some(name) = url.host_str() else { return Err("its token realm names no host") };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("its token realm holds a login");
    }
    let authority = match url.port() {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    };
    // The port may differ: a token server beside its registry is common.
    let own = name.eq_ignore_ascii_case(host_name(host));
    let plain = registries.is_plain(&authority) || own && access.plain;
    match url.scheme() {
        "https" => {}
        "http" if plain && access.plain => {}
        "http" => return Err("its token realm would get a login in the clear"),
        _ => return Err("its token realm is not on HTTP"),
    }
    if is_local(name) && !own && !is_local(host_name(host)) {
        return Err("its token realm is on this machine or link, the registry is not");
    }
    let same_place = own && url.scheme() == if access.plain { "http" } else { "https" };
    Ok((url, if same_place { access.clone() } else { Access::usual(plain) }))
}

/// A host without its port.
pub(crate) fn host_name(authority: &str) -> &str {
    match authority.find(']') {
        Some(end) => authority.get(..=end).unwrap_or(authority),
        None => authority.split(':').next().unwrap_or(authority),
    }
}

pub(crate) fn is_local(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") {
        return true;
    }
    name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(is_local_address)
}

pub(crate) fn is_local_address(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_goes_only_where_the_rules_let_it() {
        let registries = Registries::with_insecure(&["reg.lan:5000", "10.0.0.6"]);
        for (host, realm, expect) in [
            // What real registries do.
            ("registry-1.docker.io", "https://auth.docker.io/token", Some(false)),
            ("registry.gitlab.com", "https://gitlab.com/jwt/auth", Some(false)),
            ("rg.fr-par.scw.cloud", "https://api.scaleway.com/registry-internal/v1/tokens", Some(false)),
            ("ghcr.io", "https://ghcr.io/token", Some(false)),
            ("reg.corp:5050", "https://10.1.2.3/jwt/auth", Some(false)),
            ("127.0.0.1:5000", "http://127.0.0.1:5001/auth", Some(true)),
            ("localhost:5000", "http://localhost:5001/auth", Some(true)),
            ("reg.lan:5000", "http://reg.lan:5001/auth", Some(true)),
            ("reg.lan:5000", "http://10.0.0.6:5001/auth", Some(true)),
            ("reg.lan:5000", "https://auth.lan/auth", Some(false)),
            // In the clear.
            ("ghcr.io", "http://ghcr.io/token", None),
            ("ghcr.io", "http://10.0.0.6/token", None),
            ("127.0.0.1:5000", "http://evil.example/token", None),
            ("reg.lan:5000", "http://other.lan/token", None),
            // This machine and its link.
            ("ghcr.io", "https://127.0.0.1:6443/api", None),
            ("ghcr.io", "https://LOCALHOST./api", None),
            ("ghcr.io", "https://2130706433/api", None),
            ("ghcr.io", "https://[::ffff:127.0.0.1]/api", None),
            ("ghcr.io", "https://[::1]/api", None),
            ("ghcr.io", "https://169.254.169.254/latest", None),
            ("ghcr.io", "https://[fe80::1]/latest", None),
            ("reg.lan:5000", "http://127.0.0.1:9580/metrics", None),
            // No realms at all.
            ("ghcr.io", "file:///etc/passwd", None),
            ("ghcr.io", "https://me:pw@ghcr.io/token", None),
            ("ghcr.io", "token", None),
        ] {
            let access = Access::usual(registries.is_plain(host));
            let unverified = check(realm, host, &access, &registries).ok().map(|(_, access)| access.unverified);
            assert_eq!(unverified, expect, "{host} -> {realm}");
        }
    }
}
