//! Ports of containers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata::check;
use super::{given, names, pod};
use crate::findings::Findings;
use crate::path::Path;

pub(super) fn ports(container: &Container, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut seen = BTreeMap::new();
    let list = path;
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let path = list.index(index);
        if let Some(name) = given(port.name.as_ref()) {
            if names::port_name(name).is_err() {
                check(name, names::port_name, &path.field("name"), found);
            } else {
                let first = *seen.entry(name).or_insert(index);
                if first != index {
                    found.duplicate(&path.field("name"), &name, &list.index(first).field("name"));
                }
            }
        }
        if port.container_port == 0 {
            found.required(&path.field("containerPort"), "a containerPort is required", "containerPort: 80");
        } else {
            number(port.container_port, &path.field("containerPort"), found);
        }
        if let Some(host) = port.host_port.filter(|port| *port != 0) {
            number(host, &path.field("hostPort"), found);
        }
        pod::choice(
            port.protocol.as_deref(),
            &["TCP", "UDP", "SCTP"],
            "remove it for the default, `TCP`",
            &path.field("protocol"),
            found,
        );
    }
}

fn number(port: i32, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Err(message) = names::port_number(port.into()) {
        found.invalid(path, &port, message, "for example 8080");
    }
}

/// A port as a probe or a hook names it.
pub(super) fn number_or_name(port: &IntOrString, path: &Path<'_>, found: &mut Findings<'_>) {
    match port {
        IntOrString::Int(port) => number(*port, path, found),
        IntOrString::String(name) => {
            if let Ok(number) = name.parse::<i64>()
                && let Err(message) = names::port_name(name)
            {
                let fix = match names::port_number(number) {
                    Ok(()) => "remove the quotes: a number is a port, a string is a port's name",
                    Err(_) => "use a number from 1 to 65535, without quotes",
                };
                found.invalid(path, name, message, fix);
            } else {
                check(name, names::port_name, path, found);
            }
        }
    }
}

/// The same port of the host cannot be published twice; `skipped` containers of the list come before these.
pub(super) fn host_port_conflicts(containers: &[Container], skipped: usize, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut seen = BTreeMap::new();
    for (index, container) in containers.iter().enumerate() {
        for (at, port) in container.ports.iter().flatten().enumerate() {
            let Some(host) = port.host_port.filter(|port| *port != 0) else {
                continue;
            };
            let protocol = port.protocol.as_deref().unwrap_or_default();
            let address = port.host_ip.as_deref().unwrap_or_default();
            let first = *seen.entry((protocol, address, host)).or_insert((index, at));
            if first != (index, at) {
                // The API server does not count those before.
                let reported = path.index(index).field("ports").index(at).field("hostPort").to_string();
                found.duplicate_as(
                    reported,
                    &path.index(skipped + index).field("ports").index(at).field("hostPort"),
                    &format!("{protocol}/{address}/{host}"),
                    &path.index(skipped + first.0).field("ports").index(first.1).field("hostPort"),
                );
            }
        }
    }
}
