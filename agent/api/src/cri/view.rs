//! What the engine and the store know, as CRI shows it.

use std::net::IpAddr;

use jiff::Timestamp;
use oci_spec::runtime::LinuxResources;
use portreeve_engine::image::{Image, ImageRef};
use portreeve_engine::{
    ContainerState, ContainerStats, ContainerStatus, IdMapping, IpcNamespace, Mount, MountSource, NetworkNamespace,
    PidNamespace, Pressure, Propagation, SandboxState, SandboxStatus, Stalls, Usage, UserNamespace,
};

use super::v1;

/// Nanoseconds since 1970, as CRI counts.
pub(super) fn nanoseconds(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}

pub(super) fn sandbox_state(sandbox: &SandboxStatus) -> v1::PodSandboxState {
    match sandbox.state {
        SandboxState::Ready => v1::PodSandboxState::SandboxReady,
        SandboxState::NotReady { .. } => v1::PodSandboxState::SandboxNotready,
    }
}

pub(super) fn sandbox_metadata(sandbox: &SandboxStatus) -> v1::PodSandboxMetadata {
    let metadata = &sandbox.metadata;
    v1::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

/// A sandbox in a list.
pub(super) fn sandbox(sandbox: SandboxStatus) -> v1::PodSandbox {
    v1::PodSandbox {
        id: sandbox.id.to_string(),
        metadata: Some(sandbox_metadata(&sandbox)),
        state: sandbox_state(&sandbox).into(),
        created_at: nanoseconds(sandbox.created_at),
        labels: sandbox.labels,
        annotations: sandbox.annotations,
        runtime_handler: sandbox.handler.map(|handler| handler.name).unwrap_or_default(),
    }
}

pub(super) fn sandbox_status(sandbox: &SandboxStatus) -> v1::PodSandboxStatus {
    let ip = |ip: &IpAddr| v1::PodIp { ip: ip.to_string() };
    let namespaces = &sandbox.namespaces;
    let options = v1::NamespaceOption {
        network: match namespaces.network {
            NetworkNamespace::Pod => v1::NamespaceMode::Pod,
            NetworkNamespace::Node => v1::NamespaceMode::Node,
        }
        .into(),
        pid: match namespaces.pid {
            PidNamespace::Container => v1::NamespaceMode::Container,
            PidNamespace::Pod => v1::NamespaceMode::Pod,
            PidNamespace::Node => v1::NamespaceMode::Node,
        }
        .into(),
        ipc: match namespaces.ipc {
            IpcNamespace::Pod => v1::NamespaceMode::Pod,
            IpcNamespace::Node => v1::NamespaceMode::Node,
        }
        .into(),
        target_id: String::new(),
        userns_options: Some(user_namespace(&namespaces.user)),
    };
    v1::PodSandboxStatus {
        id: sandbox.id.to_string(),
        metadata: Some(sandbox_metadata(sandbox)),
        state: sandbox_state(sandbox).into(),
        created_at: nanoseconds(sandbox.created_at),
        network: Some(v1::PodSandboxNetworkStatus {
            ip: sandbox.ips.first().map(ToString::to_string).unwrap_or_default(),
            additional_ips: sandbox.ips.iter().skip(1).map(ip).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(options) }) }),
        labels: sandbox.labels.clone(),
        annotations: sandbox.annotations.clone(),
        runtime_handler: sandbox.handler.as_ref().map(|handler| handler.name.clone()).unwrap_or_default(),
    }
}

fn id_row(row: &IdMapping) -> v1::IdMapping {
    v1::IdMapping { host_id: row.host, container_id: row.container, length: row.length }
}

fn user_namespace(user: &UserNamespace) -> v1::UserNamespace {
    match user {
        UserNamespace::Node => v1::UserNamespace { mode: v1::NamespaceMode::Node.into(), uids: vec![], gids: vec![] },
        UserNamespace::Pod { uid_maps, gid_maps } => v1::UserNamespace {
            mode: v1::NamespaceMode::Pod.into(),
            uids: uid_maps.iter().map(id_row).collect(),
            gids: gid_maps.iter().map(id_row).collect(),
        },
    }
}

pub(super) fn container_state(container: &ContainerStatus) -> v1::ContainerState {
    match container.state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running => v1::ContainerState::ContainerRunning,
        ContainerState::Exited => v1::ContainerState::ContainerExited,
        ContainerState::Unknown => v1::ContainerState::ContainerUnknown,
    }
}

pub(super) fn container_metadata(container: &ContainerStatus) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: container.metadata.name.clone(), attempt: container.metadata.attempt }
}

fn image_spec(container: &ContainerStatus) -> v1::ImageSpec {
    v1::ImageSpec { image: container.image.clone(), ..v1::ImageSpec::default() }
}

/// A container in a list.
pub(super) fn container(container: ContainerStatus) -> v1::Container {
    v1::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.sandbox.to_string(),
        metadata: Some(container_metadata(&container)),
        image: Some(image_spec(&container)),
        image_ref: container.image_id.clone(),
        state: container_state(&container).into(),
        created_at: nanoseconds(container.created_at),
        labels: container.labels,
        annotations: container.annotations,
        image_id: container.image_id,
    }
}

/// A container, whose image came under these digests: a kubelet shows people the first of those that have the name by
/// which they asked for it, and else its id.
pub(super) fn container_status(container: &ContainerStatus, digests: &[String]) -> v1::ContainerStatus {
    let name = container.image.parse().map(|name: ImageRef| name.name() + "@").unwrap_or_default();
    let digest = digests.iter().find(|digest| !name.is_empty() && digest.starts_with(&name)).or(digests.first());
    let at = |at: Option<Timestamp>| at.map_or(0, nanoseconds);
    let (uid, gid) = container.user;
    let user = v1::LinuxContainerUser {
        uid: uid.into(),
        gid: gid.into(),
        supplemental_groups: container.groups.iter().copied().map(i64::from).collect(),
    };
    v1::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(container_metadata(container)),
        state: container_state(container).into(),
        created_at: nanoseconds(container.created_at),
        started_at: at(container.started_at),
        finished_at: at(container.finished_at),
        exit_code: container.exit.map_or(0, |exit| exit.code),
        image: Some(image_spec(container)),
        image_ref: digest.unwrap_or(&container.image_id).clone(),
        reason: container.reason.clone(),
        message: container.message.clone(),
        labels: container.labels.clone(),
        annotations: container.annotations.clone(),
        mounts: container.mounts.iter().map(mount).collect(),
        log_path: container.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        resources: Some(v1::ContainerResources {
            linux: Some(v1::LinuxContainerResources {
                oom_score_adj: container.oom_score_adj.into(),
                ..resources(&container.resources)
            }),
        }),
        image_id: container.image_id.clone(),
        user: Some(v1::ContainerUser { linux: Some(user) }),
        stop_signal: signal(container.stop_signal).into(),
    }
}

/// The first 31 signals of Linux, in order. Source: signal(7).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// A signal by its number; one without a name is told as the default.
fn signal(number: i32) -> v1::Signal {
    let name = match number {
        34 => "RTMIN".to_owned(),
        35..=49 => format!("RTMINPLUS{}", number - 34),
        50..=63 => format!("RTMAXMINUS{}", 64 - number),
        64 => "RTMAX".to_owned(),
        _ => {
            let place = usize::try_from(number - 1).unwrap_or(usize::MAX);
            SIGNALS.get(place).copied().unwrap_or_default().to_owned()
        }
    };
    v1::Signal::from_str_name(&format!("SIG{name}")).unwrap_or(v1::Signal::RuntimeDefault)
}

fn mount(mount: &Mount) -> v1::Mount {
    let mut shown = v1::Mount {
        container_path: mount.container_path.display().to_string(),
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_readonly,
        selinux_relabel: mount.relabel,
        mount_options: mount.options.clone(),
        propagation: match mount.propagation {
            Propagation::Private => v1::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
        }
        .into(),
        ..v1::Mount::default()
    };
    if let Some(ids) = &mount.ids {
        shown.uid_mappings = ids.users.iter().map(id_row).collect();
        shown.gid_mappings = ids.groups.iter().map(id_row).collect();
    }
    match &mount.source {
        MountSource::HostPath(path) => shown.host_path = path.display().to_string(),
        MountSource::Image { id, sub_path } => {
            shown.image = Some(v1::ImageSpec { image: id.clone(), ..v1::ImageSpec::default() });
            shown.image_sub_path = sub_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        }
        MountSource::Tmpfs { .. } => {}
    }
    shown
}

/// What a container's cgroup enforces; of its processes nothing.
pub(super) fn resources(enforced: &LinuxResources) -> v1::LinuxContainerResources {
    let signed = |value: Option<u64>| value.map_or(0, |value| i64::try_from(value).unwrap_or(i64::MAX));
    let (cpu, memory) = (enforced.cpu().clone().unwrap_or_default(), enforced.memory().unwrap_or_default());
    v1::LinuxContainerResources {
        cpu_period: signed(cpu.period()),
        cpu_quota: cpu.quota().unwrap_or(0),
        cpu_shares: signed(cpu.shares()),
        cpuset_cpus: cpu.cpus().clone().unwrap_or_default(),
        cpuset_mems: cpu.mems().clone().unwrap_or_default(),
        memory_limit_in_bytes: memory.limit().unwrap_or(0),
        memory_swap_limit_in_bytes: memory.swap().unwrap_or(0),
        hugepage_limits: enforced
            .hugepage_limits()
            .iter()
            .flatten()
            .map(|limit| v1::HugepageLimit {
                page_size: limit.page_size().clone(),
                limit: u64::try_from(limit.limit()).unwrap_or(0),
            })
            .collect(),
        unified: enforced.unified().clone().unwrap_or_default().into_iter().collect(),
        oom_score_adj: 0,
    }
}

pub(super) fn container_stats(
    container: &ContainerStatus,
    used: &ContainerStats,
    nano_cores: Option<u64>,
    writable_layer: Option<v1::FilesystemUsage>,
) -> v1::ContainerStats {
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: container.id.to_string(),
            metadata: Some(container_metadata(container)),
            labels: container.labels.clone(),
            annotations: container.annotations.clone(),
        }),
        cpu: Some(cpu(&used.usage, nano_cores)),
        memory: Some(memory(&used.usage)),
        writable_layer,
        swap: Some(swap(&used.usage)),
        io: io(&used.usage),
    }
}

fn count(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

/// `nano_cores`: nanoseconds of it that are used per second now, where that is known.
pub(super) fn cpu(used: &Usage, nano_cores: Option<u64>) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: nanoseconds(used.at),
        usage_core_nano_seconds: count(used.counted.cpu_usage_ns),
        usage_nano_cores: nano_cores.and_then(count),
        psi: used.waited.cpu.map(pressure),
    }
}

pub(super) fn memory(used: &Usage) -> v1::MemoryUsage {
    let (at, psi, used) = (used.at, used.waited.memory.map(pressure), &used.counted);
    v1::MemoryUsage {
        timestamp: nanoseconds(at),
        working_set_bytes: count(used.memory_working_set_bytes),
        // Of what there is no bound for, nobody can say what is left.
        available_bytes: used
            .memory_limit_bytes
            .and_then(|limit| count(limit.saturating_sub(used.memory_working_set_bytes))),
        usage_bytes: count(used.memory_bytes),
        rss_bytes: count(used.memory_rss_bytes),
        page_faults: count(used.page_faults),
        major_page_faults: count(used.major_page_faults),
        psi,
    }
}

fn swap(used: &Usage) -> v1::SwapUsage {
    let left = used.counted.swap_limit_bytes.map(|limit| limit.saturating_sub(used.counted.swap_bytes));
    v1::SwapUsage {
        timestamp: nanoseconds(used.at),
        swap_available_bytes: left.and_then(count),
        swap_usage_bytes: count(used.counted.swap_bytes),
    }
}

/// Nothing where the kernel does not count it.
pub(super) fn io(used: &Usage) -> Option<v1::IoUsage> {
    used.waited.io.map(|psi| v1::IoUsage { timestamp: nanoseconds(used.at), psi: Some(pressure(psi)) })
}

/// The kernel counts microseconds, CRI nanoseconds.
fn pressure(waited: Pressure) -> v1::PsiStats {
    let data = |waited: Stalls| v1::PsiData {
        total: waited.total.saturating_mul(1000),
        avg10: waited.avg10,
        avg60: waited.avg60,
        avg300: waited.avg300,
    };
    v1::PsiStats { full: Some(data(waited.full)), some: Some(data(waited.some)) }
}

/// An image; `pinned` when its collection is not the client's to decide.
pub(super) fn image(image: &Image, pinned: bool) -> v1::Image {
    let user = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let user = user.split_once(':').map_or(user.as_str(), |(user, _)| user);
    let uid = user.parse().ok().map(|value| v1::Int64Value { value });
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.references.iter().map(ToString::to_string).collect(),
        repo_digests: image.repo_digests.clone(),
        // Must not be 0, which an image without layers has.
        size: image.size_bytes.max(1),
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        uid,
        spec: Some(v1::ImageSpec { image: image.id.to_string(), ..v1::ImageSpec::default() }),
        pinned: pinned || image.pinned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_that_can_be_asked_for_has_its_name() {
        for (number, expected) in [
            (1, v1::Signal::Sighup),
            (15, v1::Signal::Sigterm),
            (31, v1::Signal::Sigsys),
            (34, v1::Signal::Sigrtmin),
            (49, v1::Signal::Sigrtminplus15),
            (50, v1::Signal::Sigrtmaxminus14),
            (64, v1::Signal::Sigrtmax),
        ] {
            assert_eq!(signal(number), expected, "{number}");
        }
        for number in (1..=31).chain(34..=64) {
            assert_ne!(signal(number), v1::Signal::RuntimeDefault, "{number}");
        }
        for none in [-1, 0, 32, 33, 65] {
            assert_eq!(signal(none), v1::Signal::RuntimeDefault);
        }
    }

    #[test]
    fn limits_come_back_as_they_were_asked_for() {
        let asked = v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            memory_limit_in_bytes: 1 << 20,
            memory_swap_limit_in_bytes: 2 << 20,
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
            unified: [("memory.high".to_owned(), "9".to_owned())].into(),
            oom_score_adj: 0,
        };
        assert_eq!(resources(&super::super::wanted::resources(asked.clone()).unwrap()), asked);
    }
}
