//! Names of hosts: DNS settings, aliases, the pod's own name.

use k8s_openapi::api::core::v1::{HostAlias, PodSpec};

use super::metadata::check;
use super::names;
use crate::findings::Findings;
use crate::path::Path;

pub(super) fn dns(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    const NAMESERVERS: usize = 3;
    const SEARCHES: usize = 32;
    const SEARCH_LENGTH: usize = 2048;
    let config = spec.dns_config.as_ref();
    let nameservers = config.and_then(|config| config.nameservers.as_deref()).unwrap_or_default();
    if spec.dns_policy.as_deref() == Some("None") {
        if config.is_none() {
            found.required(path, "must be given when `dnsPolicy` is None");
            return;
        }
        if nameservers.is_empty() {
            found.required(&path.field("nameservers"), "needs a nameserver when `dnsPolicy` is None");
            return;
        }
    }
    let Some(config) = config else { return };
    if nameservers.len() > NAMESERVERS {
        found.invalid(
            &path.field("nameservers"),
            &nameservers.len(),
            format!("nameservers are too many; at most {NAMESERVERS}"),
        );
    }
    for (index, server) in nameservers.iter().enumerate() {
        check(server, names::ip, &path.field("nameservers").index(index), found);
    }
    let searches = config.searches.as_deref().unwrap_or_default();
    let own = path.field("searches");
    if searches.len() > SEARCHES {
        found.invalid(&own, &searches.len(), format!("search domains are too many; at most {SEARCHES}"));
    }
    if searches.join(" ").len() > SEARCH_LENGTH {
        found.invalid(
            &own,
            &searches.len(),
            format!("search domains are too long together; at most {SEARCH_LENGTH} characters"),
        );
    }
    for (index, search) in searches.iter().enumerate() {
        if search != "." {
            let search = search.strip_suffix('.').unwrap_or(search);
            check(search, names::subdomain_with_underscore, &own.index(index), found);
        }
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or_default().is_empty() {
            found.required(&path.field("options").index(index), "an option needs a name");
        }
    }
}

pub(super) fn aliases(aliases: &[HostAlias], path: &Path<'_>, found: &mut Findings<'_>) {
    for (index, alias) in aliases.iter().enumerate() {
        let path = path.index(index);
        check(&alias.ip, names::ip, &path.field("ip"), found);
        for (at, name) in alias.hostnames.iter().flatten().enumerate() {
            check(name, names::subdomain, &path.field("hostnames").index(at), found);
        }
    }
}

pub(super) fn hostname_override(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    const LONGEST: usize = 64;
    let Some(name) = &spec.hostname_override else {
        return;
    };
    let own = path.field("hostnameOverride");
    if spec.set_hostname_as_fqdn == Some(true) {
        found.forbidden(&own, "may not be set together with setHostnameAsFQDN");
    }
    if spec.host_network == Some(true) {
        found.forbidden(&own, "may not be set with `hostNetwork: true`");
    }
    if name.len() > LONGEST {
        found.too_long(&own, LONGEST);
    }
    check(name, names::subdomain, &own, found);
}
