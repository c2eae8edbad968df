//! Whether a container can be what its client asks for in the sandbox that it is asked for in.
//!
//! Nothing said at all, which older clients do, and a field that was left out, which cannot be told from `POD`, take what
//! the sandbox has.

use portreeve_engine::{IpcNamespace, NetworkNamespace, PidNamespace, SandboxStatus, UserNamespace};
use tonic::Status;

use super::{v1, wanted};

/// Refuses what contradicts the sandbox, instead of making something else. `now` is how the client sees the sandbox when it
/// asks for the container: a kubelet says there that a privileged one has come since, as those for debugging do.
pub(super) fn check(
    context: &v1::LinuxContainerSecurityContext,
    sandbox: &SandboxStatus,
    now: Option<&v1::PodSandboxConfig>,
) -> Result<(), Status> {
    let now = now.and_then(|config| config.linux.as_ref()?.security_context.as_ref());
    // Source: api.proto, `LinuxSandboxSecurityContext.privileged`: must be set for such a container.
    if context.privileged && !sandbox.privileged && !now.is_some_and(|now| now.privileged) {
        return Err(wanted::invalid(
            "security_context.privileged",
            "the sandbox was not made for privileged containers",
        ));
    }
    let Some(options) = &context.namespace_options else { return Ok(()) };
    use v1::NamespaceMode::{Container, Node, Pod, Target};
    let has = &sandbox.namespaces;
    let network = if has.network == NetworkNamespace::Node { Node } else { Pod };
    let ipc = if has.ipc == IpcNamespace::Node { Node } else { Pod };
    let pid = match has.pid {
        PidNamespace::Container => Container,
        PidNamespace::Pod => Pod,
        PidNamespace::Node => Node,
    };
    agree("network", options.network(), network)?;
    agree("ipc", options.ipc(), ipc)?;
    // Its own processes alone, or those of a container that it names, a container may see in any sandbox.
    if !matches!(options.pid(), Target | Container) {
        agree("pid", options.pid(), pid)?;
    }
    let users = match &options.userns_options {
        Some(asked) => wanted::user_namespace(asked.clone())?,
        None => return Ok(()),
    };
    if users == has.user {
        return Ok(());
    }
    let has = if has.user == UserNamespace::Node { "the node's" } else { "other ones of its own" };
    Err(wanted::invalid("namespace_options.userns_options", format!("the sandbox has {has}")))
}

fn agree(field: &str, asked: v1::NamespaceMode, has: v1::NamespaceMode) -> Result<(), Status> {
    if asked == has || asked == v1::NamespaceMode::Pod {
        return Ok(());
    }
    let message = format!("is {}, and the sandbox has {}", asked.as_str_name(), has.as_str_name());
    Err(wanted::invalid(&format!("namespace_options.{field}"), message))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use portreeve_engine::{IdMapping, Namespaces, Owner, SandboxMetadata, SandboxState};
    use tonic::Code;

    use super::*;

    fn sandbox(namespaces: Namespaces, privileged: bool) -> SandboxStatus {
        SandboxStatus {
            id: "0123456789abcdef".repeat(4).parse().unwrap(),
            metadata: SandboxMetadata { name: "a".into(), namespace: "default".into(), uid: "u".into(), attempt: 0 },
            owner: Owner::Cri,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            state: SandboxState::Ready,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            handler: None,
            ips: Vec::new(),
            warnings: Vec::new(),
            shim_pid: None,
            namespaces,
            privileged,
            cgroup_parent: String::new(),
            log_directory: "/logs".into(),
        }
    }

    fn asks(options: v1::NamespaceOption) -> v1::LinuxContainerSecurityContext {
        v1::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() }
    }

    #[test]
    fn a_privileged_container_needs_a_sandbox_that_was_made_for_it() {
        let context = v1::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
        let (plain, made_for_it) = (sandbox(Namespaces::default(), false), sandbox(Namespaces::default(), true));
        let now = |privileged| {
            let context = v1::LinuxSandboxSecurityContext { privileged, ..Default::default() };
            let linux = v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
            v1::PodSandboxConfig { linux: Some(linux), ..Default::default() }
        };
        assert!(check(&context, &made_for_it, None).is_ok());
        for refused in [check(&context, &plain, None), check(&context, &plain, Some(&now(false)))] {
            assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
        }
        // An ephemeral container of a pod that had none with every right.
        assert!(check(&context, &plain, Some(&now(true))).is_ok());
    }

    #[test]
    fn namespaces_that_the_sandbox_does_not_have_are_refused_and_what_is_left_out_is_the_sandboxs() {
        use v1::NamespaceMode::{Container, Node, Pod, Target};
        let own = sandbox(Namespaces::default(), false);
        let node = Namespaces {
            network: NetworkNamespace::Node,
            pid: PidNamespace::Node,
            ipc: IpcNamespace::Node,
            user: UserNamespace::Node,
        };
        let node = sandbox(node, false);
        let modes = |network: v1::NamespaceMode, pid: v1::NamespaceMode, ipc: v1::NamespaceMode| {
            let (network, pid, ipc) = (network.into(), pid.into(), ipc.into());
            asks(v1::NamespaceOption { network, pid, ipc, ..Default::default() })
        };
        for (context, by_own, by_node) in [
            (v1::LinuxContainerSecurityContext::default(), true, true),
            (modes(Pod, Pod, Pod), true, true),
            (modes(Node, Node, Node), false, true),
            (modes(Pod, Container, Pod), true, true),
            (modes(Pod, Target, Pod), true, true),
            (modes(Node, Pod, Pod), false, true),
            (modes(Pod, Pod, Node), false, true),
            (modes(Target, Pod, Pod), false, false),
        ] {
            assert_eq!(
                (check(&context, &own, None).is_ok(), check(&context, &node, None).is_ok()),
                (by_own, by_node),
                "{context:?}"
            );
        }
    }

    #[test]
    fn a_container_may_see_its_own_processes_alone_where_others_share_theirs() {
        let shared = sandbox(Namespaces { pid: PidNamespace::Pod, ..Namespaces::default() }, false);
        let asked = |pid: v1::NamespaceMode| asks(v1::NamespaceOption { pid: pid.into(), ..Default::default() });
        for (pid, fits) in [
            (v1::NamespaceMode::Container, true),
            (v1::NamespaceMode::Pod, true),
            (v1::NamespaceMode::Target, true),
            (v1::NamespaceMode::Node, false),
        ] {
            assert_eq!(check(&asked(pid), &shared, None).is_ok(), fits, "{pid:?}");
        }
    }

    #[test]
    fn users_are_those_of_the_sandbox() {
        let rows = vec![IdMapping { container: 0, host: 100_000, length: 65_536 }];
        let user = UserNamespace::Pod { uid_maps: rows.clone(), gid_maps: rows };
        let pods = sandbox(Namespaces { user, ..Namespaces::default() }, false);
        let nodes = sandbox(Namespaces::default(), false);
        let of_pod = |host_id: u32| {
            let rows = vec![v1::IdMapping { host_id, container_id: 0, length: 65_536 }];
            v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: rows.clone(), gids: rows }
        };
        let of_node = v1::UserNamespace { mode: v1::NamespaceMode::Node.into(), ..Default::default() };
        for (user, by_pods, by_nodes) in [
            (None, true, true),
            (Some(of_pod(100_000)), true, false),
            (Some(of_pod(200_000)), false, false),
            (Some(of_node), false, true),
        ] {
            let context = asks(v1::NamespaceOption { userns_options: user.clone(), ..Default::default() });
            assert_eq!(
                (check(&context, &pods, None).is_ok(), check(&context, &nodes, None).is_ok()),
                (by_pods, by_nodes),
                "{user:?}"
            );
        }
    }
}
