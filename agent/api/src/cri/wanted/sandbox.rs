//! A sandbox: its names, namespaces, ports, and the cgroup that it is in.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use oci_spec::runtime::LinuxResources;
use portreeve_engine::network::Protocol;
use portreeve_engine::network::cni::Published;
use portreeve_engine::{
    Bandwidth, DnsConfig, IdMapping, IpcNamespace, Namespaces, NetworkNamespace, Owner, PidNamespace, SandboxConfig,
    SandboxMetadata, UserNamespace,
};
use portreeve_manifests::quantity;
use tonic::Status;

use super::security::selinux;
use super::{bounded, invalid, name, path, v1};

/// A sandbox. Its cgroup is below `root` when none is given.
pub(crate) fn sandbox(config: v1::PodSandboxConfig, root: &str) -> Result<SandboxConfig, Status> {
    let metadata = config.metadata.ok_or_else(|| invalid("config.metadata", "is missing"))?;
    for (field, value) in [("name", &metadata.name), ("uid", &metadata.uid), ("namespace", &metadata.namespace)] {
        name(&format!("config.metadata.{field}"), value)?;
    }
    bounded(&config.labels, &config.annotations)?;
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let namespaces = namespaces(security.namespace_options.unwrap_or_default())?;
    let (resources, cgroup_parent) = match linux.cgroup_parent.as_str() {
        // Nobody else keeps this pod within its bounds.
        "" => {
            let parent = format!("{}/cri/pod{}", root.trim_end_matches('/'), metadata.uid);
            (super::resources(linux.resources.unwrap_or_default())?, parent)
        }
        // What is there belongs to the agent, to pods of others among it.
        given if within(given, root) => {
            let message = format!("{given} is below {root}, where this agent makes cgroups itself");
            return Err(invalid("config.linux.cgroup_parent", message));
        }
        // A kubelet sets the limits of the cgroups that it makes.
        given => (LinuxResources::default(), given.to_owned()),
    };
    let log_directory = path("config.log_directory", config.log_directory)?;
    if log_directory.is_relative() && !log_directory.as_os_str().is_empty() {
        return Err(invalid("config.log_directory", format!("{log_directory:?} is not absolute")));
    }
    let bandwidth = Bandwidth {
        ingress_bits: bandwidth(&config.annotations, "kubernetes.io/ingress-bandwidth")?,
        egress_bits: bandwidth(&config.annotations, "kubernetes.io/egress-bandwidth")?,
    };
    let dns = config.dns_config.unwrap_or_default();
    Ok(SandboxConfig {
        metadata: SandboxMetadata {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            attempt: metadata.attempt,
        },
        owner: Owner::Cri,
        hostname: match config.hostname.as_str() {
            "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            given => given.to_owned(),
        },
        log_directory,
        dns: DnsConfig { servers: dns.servers, searches: dns.searches, options: dns.options },
        port_mappings: config
            .port_mappings
            .into_iter()
            .filter_map(|port| port_mapping(port).transpose())
            .collect::<Result<_, _>>()?,
        bandwidth,
        labels: config.labels,
        annotations: config.annotations,
        cgroup_parent,
        namespaces,
        privileged: security.privileged,
        selinux: security.selinux_options.map(selinux),
        sysctls: linux.sysctls,
        resources,
        handler: None,
    })
}

/// Whether a cgroup is `above` or below it, however the path is written.
fn within(path: &str, above: &str) -> bool {
    let parts = |path: &str| path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    parts(path).starts_with(&parts(above))
}

/// A limit of bits per second, which a pod's annotation has as a quantity.
fn bandwidth(annotations: &BTreeMap<String, String>, name: &str) -> Result<Option<u64>, Status> {
    let Some(text) = annotations.get(name) else { return Ok(None) };
    match quantity::bytes(&Quantity(text.clone())) {
        // The bounds that Kubernetes has for it.
        Ok(bits @ 1_000..=1_000_000_000_000_000) => Ok(Some(bits)),
        _ => Err(invalid(&format!("config.annotations[{name}]"), format!("{text:?} is no rate from 1k to 1P"))),
    }
}

fn namespaces(options: v1::NamespaceOption) -> Result<Namespaces, Status> {
    let refused = |field: &str, mode: v1::NamespaceMode| {
        Err(invalid(&format!("namespace_options.{field}"), format!("{} is not supported", mode.as_str_name())))
    };
    Ok(Namespaces {
        network: match options.network() {
            v1::NamespaceMode::Pod => NetworkNamespace::Pod,
            v1::NamespaceMode::Node => NetworkNamespace::Node,
            other => return refused("network", other),
        },
        pid: match options.pid() {
            v1::NamespaceMode::Pod => PidNamespace::Pod,
            v1::NamespaceMode::Container => PidNamespace::Container,
            v1::NamespaceMode::Node => PidNamespace::Node,
            other @ v1::NamespaceMode::Target => return refused("pid", other),
        },
        ipc: match options.ipc() {
            v1::NamespaceMode::Pod => IpcNamespace::Pod,
            v1::NamespaceMode::Node => IpcNamespace::Node,
            other => return refused("ipc", other),
        },
        user: options.userns_options.map_or(Ok(UserNamespace::Node), user_namespace)?,
    })
}

/// Whose users a pod has.
pub(in crate::cri) fn user_namespace(user: v1::UserNamespace) -> Result<UserNamespace, Status> {
    match user.mode() {
        v1::NamespaceMode::Node => Ok(UserNamespace::Node),
        v1::NamespaceMode::Pod => {
            Ok(UserNamespace::Pod { uid_maps: id_map("uids", user.uids)?, gid_maps: id_map("gids", user.gids)? })
        }
        other => {
            let message = format!("{} is not supported", other.as_str_name());
            Err(invalid("namespace_options.userns_options.mode", message))
        }
    }
}

/// The ids of a pod of its own, of which one is root's: nothing could be set up for it otherwise.
fn id_map(field: &str, rows: Vec<v1::IdMapping>) -> Result<Vec<IdMapping>, Status> {
    if !rows.iter().any(|row| row.container_id == 0 && row.length > 0) {
        let field = format!("namespace_options.userns_options.{field}");
        return Err(invalid(&field, "container id 0 is not mapped"));
    }
    Ok(rows.into_iter().map(id_row).collect())
}

pub(super) fn id_row(row: v1::IdMapping) -> IdMapping {
    IdMapping { container: row.container_id, host: row.host_id, length: row.length }
}

/// `None` for a port that is not published.
fn port_mapping(port: v1::PortMapping) -> Result<Option<Published>, Status> {
    if port.host_port == 0 {
        return Ok(None);
    }
    let number = |field: &str, value: i32| {
        u16::try_from(value).ok().filter(|port| *port > 0).ok_or_else(|| invalid(field, format!("{value} is no port")))
    };
    let host_ip = match port.host_ip.as_str() {
        "" => None,
        given => Some(given.parse().map_err(|_| invalid("port_mappings.host_ip", format!("{given:?} is no address")))?),
    };
    Ok(Some(Published {
        protocol: match port.protocol() {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        },
        host_ip,
        host_port: number("port_mappings.host_port", port.host_port)?,
        container_port: number("port_mappings.container_port", port.container_port)?,
    }))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::tests::pod;
    use super::*;

    #[test]
    fn a_cgroup_that_is_given_is_the_clients_to_limit_and_another_is_ours() {
        let limits = v1::LinuxContainerResources { memory_limit_in_bytes: 1 << 20, ..Default::default() };
        let asked = |parent: &str| {
            let cgroup_parent = parent.to_owned();
            let resources = Some(limits.clone());
            let linux = v1::LinuxPodSandboxConfig { cgroup_parent, resources, ..Default::default() };
            sandbox(v1::PodSandboxConfig { linux: Some(linux), ..pod() }, "/portreeve/")
        };
        for agents in ["/portreeve", "portreeve/cri/", "//portreeve/shims", "/portreeve/besteffort/podx"] {
            assert_eq!(asked(agents).unwrap_err().code(), Code::InvalidArgument, "{agents}");
        }
        let linux = |parent: &str| asked(parent).unwrap();
        assert_eq!(linux("/portreeve2/x").cgroup_parent, "/portreeve2/x");
        let given = linux("/kubepods/burstable/podu");
        assert_eq!(given.cgroup_parent, "/kubepods/burstable/podu");
        assert_eq!(given.resources, LinuxResources::default());
        let ours = linux("");
        assert_eq!(ours.cgroup_parent, "/portreeve/cri/podu");
        assert_eq!(ours.resources.memory().and_then(|memory| memory.limit()), Some(1 << 20));
        assert_eq!((ours.owner, ours.metadata.attempt), (Owner::Cri, 2));
    }

    #[test]
    fn a_uid_that_would_leave_our_cgroup_is_refused() {
        for uid in ["", "..", "a/b", "/", "a\nb"] {
            let mut config = pod();
            config.metadata.as_mut().unwrap().uid = uid.to_owned();
            assert_eq!(sandbox(config, "/portreeve").unwrap_err().code(), Code::InvalidArgument, "{uid}");
        }
    }

    #[test]
    fn namespaces_are_those_that_are_asked_for_and_others_are_refused() {
        let asked = |network: v1::NamespaceMode, pid: v1::NamespaceMode, ipc: v1::NamespaceMode| {
            namespaces(v1::NamespaceOption {
                network: network.into(),
                pid: pid.into(),
                ipc: ipc.into(),
                ..Default::default()
            })
        };
        use v1::NamespaceMode::{Container, Node, Pod, Target};
        let node = asked(Node, Node, Node).unwrap();
        assert_eq!(
            (node.network, node.pid, node.ipc),
            (NetworkNamespace::Node, PidNamespace::Node, IpcNamespace::Node)
        );
        assert_eq!(asked(Pod, Container, Pod).unwrap(), Namespaces::default());
        for bad in [asked(Container, Pod, Pod), asked(Pod, Target, Pod), asked(Pod, Pod, Container)] {
            assert_eq!(bad.unwrap_err().code(), Code::InvalidArgument);
        }
        let row = v1::IdMapping { host_id: 100_000, container_id: 0, length: 65_536 };
        let own = v1::UserNamespace { mode: Pod.into(), uids: vec![row], gids: vec![row] };
        let own = namespaces(v1::NamespaceOption { userns_options: Some(own), ..Default::default() }).unwrap();
        let rows = vec![IdMapping { container: 0, host: 100_000, length: 65_536 }];
        assert_eq!(own.user, UserNamespace::Pod { uid_maps: rows.clone(), gid_maps: rows });
    }

    #[test]
    fn only_ports_with_a_number_on_the_node_are_published() {
        let port = |host_port: i32, container_port: i32, host_ip: &str| {
            port_mapping(v1::PortMapping { protocol: 1, container_port, host_port, host_ip: host_ip.to_owned() })
        };
        assert_eq!(port(0, 80, "").unwrap(), None);
        let published = port(8080, 80, "127.0.0.1").unwrap().unwrap();
        assert_eq!((published.protocol, published.host_port, published.container_port), (Protocol::Udp, 8080, 80));
        assert_eq!(published.host_ip.map(|ip| ip.to_string()).as_deref(), Some("127.0.0.1"));
        assert_eq!(port(8080, 80, "").unwrap().unwrap().host_ip, None);
        for given in ["0.0.0.0", "::", "::1", "2001:db8::1"] {
            assert_eq!(port(8080, 80, given).unwrap().unwrap().host_ip.unwrap().to_string(), given);
        }
        for bad in [port(70_000, 80, ""), port(80, 0, ""), port(80, -1, ""), port(80, 80, "nowhere")] {
            assert_eq!(bad.unwrap_err().code(), Code::InvalidArgument);
        }
    }
}
