//! `/etc/hosts` of a pod.

use std::fmt::Write;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::PodSpec;

const HEADER: &str = "# Kubernetes-managed hosts file.\n";

/// The hosts file of a pod with a network of its own.
pub(crate) fn hosts_file(spec: &PodSpec, hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = format!(
        "{HEADER}127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
    );
    for ip in ips {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{ip}\t{hostname}");
    }
    aliases(spec, &mut text);
    text
}

/// The hosts file of a pod in the node's network: the node's, and the pod's aliases.
pub(crate) fn node_hosts_file(spec: &PodSpec, of_node: &str) -> String {
    let mut text = format!("{HEADER}{of_node}");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    aliases(spec, &mut text);
    text
}

fn aliases(spec: &PodSpec, text: &mut String) {
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    if aliases.is_empty() {
        return;
    }
    text.push_str("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        let _ = writeln!(text, "{}\t{names}", alias.ip);
    }
}
