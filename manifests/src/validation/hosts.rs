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
            found.required(path, "must be given when `dnsPolicy` is None", "dnsConfig: {nameservers: [192.0.2.53]}");
            return;
        }
        if nameservers.is_empty() {
            let message = "needs a nameserver when `dnsPolicy` is None";
            found.required(&path.field("nameservers"), message, "nameservers: [192.0.2.53]");
            return;
        }
    }
    let Some(config) = config else { return };
    if nameservers.len() > NAMESERVERS {
        found.invalid(
            &path.field("nameservers"),
            &nameservers.len(),
            format!("nameservers are too many; at most {NAMESERVERS}"),
            format!("remove {} of them", nameservers.len() - NAMESERVERS),
        );
    }
    for (index, server) in nameservers.iter().enumerate() {
        address(server, &path.field("nameservers").index(index), found);
    }
    let searches = config.searches.as_deref().unwrap_or_default();
    let own = path.field("searches");
    if searches.len() > SEARCHES {
        found.invalid(
            &own,
            &searches.len(),
            format!("search domains are too many; at most {SEARCHES}"),
            format!("remove {} of them", searches.len() - SEARCHES),
        );
    }
    let length = searches.iter().map(|search| search.len() + 1).sum::<usize>().saturating_sub(1);
    if length > SEARCH_LENGTH {
        found.invalid(
            &own,
            &searches.len(),
            format!("search domains are too long together; at most {SEARCH_LENGTH} characters"),
            format!("remove domains of {} characters", length - SEARCH_LENGTH),
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
            found.required(&path.field("options").index(index), "an option needs a name", "name: ndots");
        }
    }
}

fn address(text: &str, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Err(message) = names::ip(text) {
        found.invalid(path, &text, message, names::mended_ip(text));
    }
}

pub(super) fn aliases(aliases: &[HostAlias], path: &Path<'_>, found: &mut Findings<'_>) {
    for (index, alias) in aliases.iter().enumerate() {
        let path = path.index(index);
        address(&alias.ip, &path.field("ip"), found);
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
        found.forbidden(&own, "may not be set together with setHostnameAsFQDN", "use `hostname` instead of both");
    }
    if spec.host_network == Some(true) {
        found.forbidden(&own, "may not be set with `hostNetwork: true`", "remove it: the pod has the host's name then");
    }
    if name.len() > LONGEST {
        found.too_long(&own, name.len(), LONGEST, "shorten it, or use `hostname`");
    }
    check(name, names::subdomain, &own, found);
}
