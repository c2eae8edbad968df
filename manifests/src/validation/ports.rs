//! Ports of containers.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{given, names, pod};
use crate::findings::Findings;
use crate::path::Path;

pub(super) fn ports(container: &Container, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut seen = BTreeSet::new();
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let path = path.index(index);
        if let Some(name) = given(port.name.as_ref()) {
            if names::port_name(name).is_err() {
                port_name(name, &path.field("name"), found);
            } else if !seen.insert(name) {
                found.duplicate(&path.field("name"), &name);
            }
        }
        if port.container_port == 0 {
            found.required(&path.field("containerPort"), "a containerPort is required");
        } else {
            number(port.container_port, &path.field("containerPort"), found);
        }
        if let Some(host) = port.host_port.filter(|port| *port != 0) {
            number(host, &path.field("hostPort"), found);
        }
        pod::choice(port.protocol.as_deref(), &["TCP", "UDP", "SCTP"], &path.field("protocol"), found);
    }
}

fn number(port: i32, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Err(message) = names::port_number(port.into()) {
        found.invalid(path, &port, message);
    }
}

fn port_name(name: &str, path: &Path<'_>, found: &mut Findings<'_>) {
    found.invalid(path, &name, names::port_name(name).err().unwrap_or_default());
}

/// A port as a probe or a hook names it.
pub(super) fn number_or_name(port: &IntOrString, path: &Path<'_>, found: &mut Findings<'_>) {
    match port {
        IntOrString::Int(port) => number(*port, path, found),
        IntOrString::String(name) => {
            if names::port_name(name).is_err() {
                port_name(name, path, found);
                if name.parse::<u16>().is_ok() {
                    found.fix("remove the quotes: a number is a port, a string is a port's name");
                }
            }
        }
    }
}

/// The same port of the host cannot be published twice.
pub(super) fn host_port_conflicts(containers: &[Container], path: &Path<'_>, found: &mut Findings<'_>) {
    let mut seen = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        for (at, port) in container.ports.iter().flatten().enumerate() {
            let Some(host) = port.host_port.filter(|port| *port != 0) else {
                continue;
            };
            let protocol = port.protocol.as_deref().unwrap_or_default();
            let address = port.host_ip.as_deref().unwrap_or_default();
            if !seen.insert((protocol, address, host)) {
                found.duplicate(
                    &path.index(index).field("ports").index(at).field("hostPort"),
                    &format!("{protocol}/{address}/{host}"),
                );
            }
        }
    }
}
