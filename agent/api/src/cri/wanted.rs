//! What a client asks a sandbox or container to be, as the engine wants it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxHugepageLimitBuilder, LinuxMemoryBuilder, LinuxResources, LinuxResourcesBuilder,
};
use portreeve_engine::network::Protocol;
use portreeve_engine::network::cni::Published;
use portreeve_engine::{
    AppArmorProfile, Bandwidth, ContainerConfig, ContainerId, ContainerMetadata, Device, DnsConfig, IdMapping,
    IpcNamespace, Mount, MountIds, MountSource, Namespaces, NetworkNamespace, Owner, PidNamespace, Propagation,
    SandboxConfig, SandboxMetadata, SeccompProfile, SecurityContext, SelinuxOptions, SupplementalGroupsPolicy,
    UserNamespace, cdi, shortened,
};
use portreeve_manifests::quantity;
use tonic::Status;

use super::v1;

/// The longest name of a pod or container, in bytes, as Kubernetes has it.
const MAX_NAME: usize = 253;
/// Labels and annotations of a pod or container have no more bytes: lists of many fit their answers then. Kubernetes has
/// 256 KiB for a pod's annotations, and a kubelet adds its own.
const MOST_TEXT: usize = 512 << 10;
/// The kernel takes no map of more rows. Source: user_namespaces(7).
const MOST_ID_ROWS: usize = 340;
/// What a mount may be kept from. Source: KEP-5855, `mount_options`.
const MOUNT_OPTIONS: [&str; 3] = ["nodev", "noexec", "nosuid"];

/// The least that a field has to say is not there, or makes no sense.
pub(super) fn invalid(field: &str, message: impl std::fmt::Display) -> Status {
    Status::invalid_argument(shortened(format!("{field}: {message}")))
}

/// A name is part of paths, of lines, and of what plugins are told.
fn name(field: &str, name: &str) -> Result<(), Status> {
    if name.is_empty() {
        return Err(invalid(field, "is empty"));
    }
    let harmless = |c: char| !c.is_control() && !c.is_whitespace() && c != '/';
    match name.len() <= MAX_NAME && !matches!(name, "." | "..") && name.chars().all(harmless) {
        true => Ok(()),
        false => Err(invalid(field, format!("{name:?} is no name of at most {MAX_NAME} bytes"))),
    }
}

/// A path that leads nowhere but down.
fn path(field: &str, path: String) -> Result<PathBuf, Status> {
    if path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(invalid(field, format!("{path:?} has a part that no path may have here")));
    }
    Ok(path.into())
}

/// A path within something; `None` for none.
fn below(field: &str, path: String) -> Result<Option<PathBuf>, Status> {
    let path = self::path(field, path)?;
    if path.is_absolute() {
        return Err(invalid(field, format!("{path:?} is absolute")));
    }
    Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
}

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
            (self::resources(linux.resources.unwrap_or_default())?, parent)
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

fn bounded(labels: &BTreeMap<String, String>, annotations: &BTreeMap<String, String>) -> Result<(), Status> {
    let bytes: usize = labels.iter().chain(annotations).map(|(name, value)| name.len() + value.len()).sum();
    if bytes <= MOST_TEXT {
        return Ok(());
    }
    Err(invalid("config.annotations", format!("with the labels they have {bytes} bytes, at most {MOST_TEXT} are kept")))
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
pub(super) fn user_namespace(user: v1::UserNamespace) -> Result<UserNamespace, Status> {
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

fn id_row(row: v1::IdMapping) -> IdMapping {
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

/// A container, of the image with this id.
pub(crate) fn container(config: v1::ContainerConfig, image_id: String) -> Result<ContainerConfig, Status> {
    let metadata = config.metadata.clone().ok_or_else(|| invalid("config.metadata", "is missing"))?;
    name("config.metadata.name", &metadata.name)?;
    bounded(&config.labels, &config.annotations)?;
    let named = config.cdi_devices.iter().map(|device| device.name.as_str());
    let cdi_devices = cdi::requested(named, &config.annotations).map_err(|error| invalid("config", error))?;
    let signal = config.stop_signal();
    let asked = config.image.map(|image| match image.user_specified_image.as_str() {
        "" => image.image,
        name => name.to_owned(),
    });
    let linux = config.linux.unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let limits = linux.resources.unwrap_or_default();
    let oom_score_adj = oom_score_adj(limits.oom_score_adj)?;
    Ok(ContainerConfig {
        metadata: ContainerMetadata { name: metadata.name, attempt: metadata.attempt },
        image: asked.unwrap_or_default(),
        image_id: Some(image_id),
        command: config.command,
        args: config.args,
        working_dir: Some(config.working_dir).filter(|path| !path.is_empty()),
        envs: config.envs.into_iter().map(env).collect::<Result<_, _>>()?,
        mounts: config.mounts.into_iter().map(mount).collect::<Result<_, _>>()?,
        devices: config.devices.into_iter().map(device).collect(),
        cdi_devices,
        labels: config.labels,
        annotations: config.annotations,
        log_path: below("config.log_path", config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources(limits)?,
        processes_of: processes_of(context.namespace_options.as_ref())?,
        own_processes: context.namespace_options.as_ref().is_some_and(|options| {
            // A field that was left out is POD: as the sandbox has it.
            options.pid() == v1::NamespaceMode::Container
        }),
        security: security(context)?,
        oom_score_adj: Some(oom_score_adj),
        stop_signal: match signal {
            v1::Signal::RuntimeDefault => None,
            given => Some(given.as_str_name().replace("PLUS", "+").replace("MINUS", "-")),
        },
    })
}

/// How soon a container is killed when memory runs out, within the kernel's bounds.
pub(crate) fn oom_score_adj(asked: i64) -> Result<i32, Status> {
    let score = i32::try_from(asked).ok().filter(|score| (-1000..=1000).contains(score));
    score.ok_or_else(|| invalid("resources.oom_score_adj", format!("{asked} is not from -1000 to 1000")))
}

/// A kubelet passes on whatever a Secret holds; programs here get text.
fn env(env: v1::KeyValue) -> Result<(String, String), Status> {
    match String::from_utf8(env.value) {
        Ok(value) => Ok((env.key, value)),
        Err(_) => Err(invalid("config.envs", format!("the value of {:?} is not UTF-8; mount it as a file", env.key))),
    }
}

/// The container whose processes another is to see.
fn processes_of(options: Option<&v1::NamespaceOption>) -> Result<Option<ContainerId>, Status> {
    match options {
        Some(options) if options.pid() == v1::NamespaceMode::Target => {
            let id = options.target_id.parse();
            id.map(Some).map_err(|error| invalid("security_context.namespace_options.target_id", error))
        }
        _ => Ok(None),
    }
}

fn mount(mount: v1::Mount) -> Result<Mount, Status> {
    let propagation = match mount.propagation() {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    let source = match (mount.image.filter(|image| !image.image.is_empty()), mount.host_path) {
        (Some(_), path) if !path.is_empty() => {
            return Err(invalid("config.mounts", "one has an image and a host_path"));
        }
        (Some(image), _) => MountSource::Image {
            id: image.image,
            sub_path: below("config.mounts.image_sub_path", mount.image_sub_path)?,
        },
        (None, path) if path.is_empty() => {
            return Err(invalid("config.mounts", "one has neither a host_path nor an image"));
        }
        (None, path) if !path.starts_with('/') => {
            return Err(invalid("config.mounts.host_path", format!("{path:?} is not absolute")));
        }
        (None, path) => MountSource::HostPath(self::path("config.mounts.host_path", path)?),
    };
    if let Some(unknown) = mount.mount_options.iter().find(|option| !MOUNT_OPTIONS.contains(&option.as_str())) {
        let message = format!("{unknown:?} is not one of {}", MOUNT_OPTIONS.join(", "));
        return Err(invalid("config.mounts.mount_options", message));
    }
    Ok(Mount {
        ids: mount_ids(mount.uid_mappings, mount.gid_mappings)?,
        options: mount.mount_options,
        container_path: mount.container_path.into(),
        // Source: api.proto, `Mount.image`: what is mounted of images is read-only by definition.
        readonly: mount.readonly || matches!(source, MountSource::Image { .. }),
        source,
        recursive_readonly: mount.recursive_read_only,
        relabel: mount.selinux_relabel,
        propagation,
    })
}

/// Ids of what a mount shows; `None` when none are given.
fn mount_ids(users: Vec<v1::IdMapping>, groups: Vec<v1::IdMapping>) -> Result<Option<MountIds>, Status> {
    if users.is_empty() && groups.is_empty() {
        return Ok(None);
    }
    let rows = |field: &str, rows: Vec<v1::IdMapping>| {
        let field = format!("config.mounts.{field}");
        if rows.is_empty() {
            return Err(invalid(&field, "is missing: ids of users and of groups come together"));
        }
        if rows.len() > MOST_ID_ROWS || rows.iter().any(|row| row.length == 0) {
            return Err(invalid(&field, format!("has a row of no ids, or more than {MOST_ID_ROWS} rows")));
        }
        Ok(rows.into_iter().map(id_row).collect())
    };
    Ok(Some(MountIds { users: rows("uidMappings", users)?, groups: rows("gidMappings", groups)? }))
}

fn device(device: v1::Device) -> Device {
    Device {
        host_path: device.host_path.into(),
        container_path: device.container_path.into(),
        permissions: device.permissions,
    }
}

fn security(context: v1::LinuxContainerSecurityContext) -> Result<SecurityContext, Status> {
    let id = |field: &str, value: i64| {
        u32::try_from(value).map_err(|_| invalid(&format!("security_context.{field}"), format!("{value} is no id")))
    };
    let seccomp = seccomp(context.seccomp.clone(), deprecated_seccomp(&context))?;
    let apparmor = apparmor(context.apparmor.clone(), deprecated_apparmor(&context))?;
    let user = context.run_as_user.map(|user| id("run_as_user", user.value)).transpose()?;
    let group = context.run_as_group.map(|group| id("run_as_group", group.value)).transpose()?;
    if group.is_some() && user.is_none() && context.run_as_username.is_empty() {
        return Err(invalid("security_context.run_as_group", "needs run_as_user or run_as_username"));
    }
    let groups = context.supplemental_groups.iter().map(|group| id("supplemental_groups", *group));
    let supplemental_groups = groups.collect::<Result<_, _>>()?;
    let policy = context.supplemental_groups_policy();
    let capabilities = context.capabilities.unwrap_or_default();
    Ok(SecurityContext {
        run_as_user: user,
        run_as_group: group,
        run_as_username: Some(context.run_as_username).filter(|name| !name.is_empty()),
        run_as_non_root: false,
        supplemental_groups,
        supplemental_groups_policy: match policy {
            v1::SupplementalGroupsPolicy::Merge => SupplementalGroupsPolicy::Merge,
            v1::SupplementalGroupsPolicy::Strict => SupplementalGroupsPolicy::Strict,
        },
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        privileged: context.privileged,
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        ambient_capabilities: capabilities.add_ambient_capabilities,
        // An empty list hides nothing: a kubelet says so of an unmasked /proc.
        masked_paths: Some(context.masked_paths),
        readonly_paths: Some(context.readonly_paths),
        seccomp,
        apparmor,
        selinux: context.selinux_options.map(selinux),
    })
}

fn selinux(asked: v1::SeLinuxOption) -> SelinuxOptions {
    SelinuxOptions { user: asked.user, role: asked.role, kind: asked.r#type, level: asked.level }
}

#[allow(deprecated)] // Older clients say it there.
fn deprecated_apparmor(context: &v1::LinuxContainerSecurityContext) -> &str {
    &context.apparmor_profile
}

fn apparmor(profile: Option<v1::SecurityProfile>, old: &str) -> Result<AppArmorProfile, Status> {
    // Older clients put the prefix of the annotation here, too.
    let localhost = |name: &str| match name.strip_prefix("localhost/").unwrap_or(name) {
        "" => Err(invalid("security_context.apparmor.localhost_ref", "is empty")),
        name => Ok(AppArmorProfile::Localhost(name.to_owned())),
    };
    match profile {
        Some(profile) => match profile.profile_type() {
            v1::security_profile::ProfileType::RuntimeDefault => Ok(AppArmorProfile::RuntimeDefault),
            v1::security_profile::ProfileType::Unconfined => Ok(AppArmorProfile::Unconfined),
            v1::security_profile::ProfileType::Localhost => localhost(&profile.localhost_ref),
        },
        None => match old {
            "" | "runtime/default" => Ok(AppArmorProfile::RuntimeDefault),
            "unconfined" => Ok(AppArmorProfile::Unconfined),
            other if other.starts_with("localhost/") => localhost(other),
            other => Err(invalid("security_context.apparmor_profile", format!("{other:?} is not known"))),
        },
    }
}

#[allow(deprecated)] // Older clients say it there.
fn deprecated_seccomp(context: &v1::LinuxContainerSecurityContext) -> &str {
    &context.seccomp_profile_path
}

fn seccomp(profile: Option<v1::SecurityProfile>, old: &str) -> Result<SeccompProfile, Status> {
    const FIELD: &str = "security_context.seccomp.localhost_ref";
    let localhost = |path: &str| match path.starts_with('/') {
        true => Ok(SeccompProfile::Localhost(self::path(FIELD, path.to_owned())?)),
        false => Err(invalid(FIELD, format!("{path:?} is no absolute path"))),
    };
    match profile {
        Some(profile) => match profile.profile_type() {
            v1::security_profile::ProfileType::RuntimeDefault => Ok(SeccompProfile::RuntimeDefault),
            v1::security_profile::ProfileType::Unconfined => Ok(SeccompProfile::Unconfined),
            v1::security_profile::ProfileType::Localhost => localhost(&profile.localhost_ref),
        },
        None => match old {
            "" | "unconfined" => Ok(SeccompProfile::Unconfined),
            "runtime/default" | "docker/default" => Ok(SeccompProfile::RuntimeDefault),
            other => match other.strip_prefix("localhost/") {
                Some(path) => localhost(path),
                None => Err(invalid("security_context.seccomp_profile_path", format!("{other:?} is not known"))),
            },
        },
    }
}

/// Limits; 0 and nothing mean none.
pub(crate) fn resources(asked: v1::LinuxContainerResources) -> Result<LinuxResources, Status> {
    let given = |value: i64| Some(value).filter(|value| *value != 0);
    let positive = |field: &str, value: i64| {
        let value = given(value).map(u64::try_from).transpose();
        value.map_err(|_| invalid(&format!("resources.{field}"), "is negative"))
    };
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let built = |error: oci_spec::OciSpecError| invalid("resources", error);
    let mut cpu = LinuxCpuBuilder::default();
    if let Some(shares) = positive("cpu_shares", asked.cpu_shares)? {
        cpu = cpu.shares(shares);
    }
    if let Some(quota) = given(asked.cpu_quota) {
        cpu = cpu.quota(quota);
    }
    if let Some(period) = positive("cpu_period", asked.cpu_period)? {
        cpu = cpu.period(period);
    }
    if let Some(cpus) = text(asked.cpuset_cpus) {
        cpu = cpu.cpus(cpus);
    }
    if let Some(mems) = text(asked.cpuset_mems) {
        cpu = cpu.mems(mems);
    }
    let mut memory = LinuxMemoryBuilder::default();
    if let Some(limit) = given(asked.memory_limit_in_bytes) {
        memory = memory.limit(limit);
    }
    if let Some(swap) = given(asked.memory_swap_limit_in_bytes) {
        memory = memory.swap(swap);
    }
    let mut all =
        LinuxResourcesBuilder::default().cpu(cpu.build().map_err(built)?).memory(memory.build().map_err(built)?);
    if !asked.hugepage_limits.is_empty() {
        let limits = asked.hugepage_limits.into_iter().map(|limit| {
            let bytes = i64::try_from(limit.limit).unwrap_or(i64::MAX);
            LinuxHugepageLimitBuilder::default().page_size(limit.page_size).limit(bytes).build().map_err(built)
        });
        all = all.hugepage_limits(limits.collect::<Result<Vec<_>, _>>()?);
    }
    if !asked.unified.is_empty() {
        all = all.unified(asked.unified.into_iter().collect::<std::collections::HashMap<_, _>>());
    }
    all.build().map_err(built)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn pod() -> v1::PodSandboxConfig {
        let metadata =
            v1::PodSandboxMetadata { name: "a".into(), uid: "u".into(), namespace: "default".into(), attempt: 2 };
        v1::PodSandboxConfig { metadata: Some(metadata), log_directory: "/logs".into(), ..Default::default() }
    }

    fn container_config() -> v1::ContainerConfig {
        let metadata = v1::ContainerMetadata { name: "main".into(), attempt: 1 };
        v1::ContainerConfig { metadata: Some(metadata), ..Default::default() }
    }

    fn with(change: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) -> Result<SecurityContext, Status> {
        let mut context = v1::LinuxContainerSecurityContext::default();
        change(&mut context);
        security(context)
    }

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

    #[test]
    fn limits_that_are_not_given_are_none() {
        assert_eq!(
            serde_json::to_value(resources(Default::default()).unwrap()).unwrap(),
            serde_json::json!({
                "cpu": {}, "memory": {}
            })
        );
        let all = resources(v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 2,
            cpuset_cpus: "0".into(),
            memory_limit_in_bytes: 7,
            memory_swap_limit_in_bytes: 9,
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 5 }],
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        });
        let all = all.unwrap();
        let (cpu, memory) = (all.cpu().clone().unwrap(), all.memory().unwrap());
        assert_eq!((cpu.period(), cpu.quota(), cpu.shares()), (Some(100_000), Some(-1), Some(2)));
        assert_eq!((memory.limit(), memory.swap()), (Some(7), Some(9)));
        assert_eq!(all.hugepage_limits().as_ref().unwrap().len(), 1);
        assert!(resources(v1::LinuxContainerResources { cpu_shares: -1, ..Default::default() }).is_err());
    }

    #[test]
    fn a_group_needs_a_user_and_an_id_is_no_negative_number() {
        let number = |value| Some(v1::Int64Value { value });
        assert_eq!(with(|context| context.run_as_group = number(1)).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(with(|context| context.run_as_user = number(-1)).unwrap_err().code(), Code::InvalidArgument);
        assert!(with(|context| context.supplemental_groups = vec![1 << 40]).is_err());
        let both = with(|context| (context.run_as_user, context.run_as_group) = (number(1), number(2))).unwrap();
        assert_eq!((both.run_as_user, both.run_as_group), (Some(1), Some(2)));
        let named = with(|context| {
            context.run_as_username = "user".into();
            context.run_as_group = number(2);
        });
        assert_eq!(named.unwrap().run_as_username.as_deref(), Some("user"));
    }

    #[test]
    fn seccomp_is_what_the_profile_says_and_else_what_older_clients_say() {
        use v1::security_profile::ProfileType;
        let new = |kind: ProfileType, path: &str| {
            seccomp(Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: path.into() }), "unconfined")
        };
        assert_eq!(new(ProfileType::RuntimeDefault, "").unwrap(), SeccompProfile::RuntimeDefault);
        assert_eq!(new(ProfileType::Unconfined, "").unwrap(), SeccompProfile::Unconfined);
        assert_eq!(new(ProfileType::Localhost, "/p.json").unwrap(), SeccompProfile::Localhost("/p.json".into()));
        assert!(new(ProfileType::Localhost, "../p.json").is_err());
        for (old, expected) in [
            ("", Some(SeccompProfile::Unconfined)),
            ("unconfined", Some(SeccompProfile::Unconfined)),
            ("runtime/default", Some(SeccompProfile::RuntimeDefault)),
            ("localhost//p.json", Some(SeccompProfile::Localhost("/p.json".into()))),
            ("other", None),
        ] {
            assert_eq!(seccomp(None, old).ok(), expected, "{old}");
        }
    }

    #[test]
    fn devices_are_those_of_the_field_and_of_annotations_each_once() {
        let of = |named: &[&str], annotations: &[(&str, &str)]| {
            let cdi_devices = named.iter().map(|name| v1::CdiDevice { name: (*name).to_owned() }).collect();
            let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let wanted = v1::ContainerConfig { cdi_devices, annotations, ..container_config() };
            let made = container(wanted, "id".into())?;
            Ok::<_, Status>(made.cdi_devices.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let both = of(
            &["vendor.com/gpu=1", "vendor.com/gpu=0", "vendor.com/gpu=1"],
            &[("cdi.k8s.io/b", "vendor.com/net=x"), ("cdi.k8s.io/a", "vendor.com/gpu=0,other.org/n.i-c=a:b_c")],
        );
        assert_eq!(
            both.unwrap(),
            ["vendor.com/gpu=1", "vendor.com/gpu=0", "other.org/n.i-c=a:b_c", "vendor.com/net=x"]
        );
        let refused = of(&[], &[("cdi.k8s.io/a", "vendor.com/gpu=0, vendor.com/gpu=1")]).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("annotations[cdi.k8s.io/a]"), "{refused}");
        assert_eq!(of(&[], &[("io.kubernetes/x", "gpu")]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_supported_is_refused_and_never_left_out() {
        let refused = |config: v1::ContainerConfig| container(config, "id".into()).unwrap_err().code();
        let devices = vec![v1::CdiDevice { name: "gpu0".into() }];
        assert_eq!(refused(v1::ContainerConfig { cdi_devices: devices, ..container_config() }), Code::InvalidArgument);
        let mount = |mount_options: &[&str]| {
            let mount_options = mount_options.iter().map(|option| (*option).to_owned()).collect();
            let mount =
                v1::Mount { container_path: "/c".into(), host_path: "/".into(), mount_options, ..Default::default() };
            container(v1::ContainerConfig { mounts: vec![mount], ..container_config() }, "id".into())
        };
        assert_eq!(mount(&["noexec", "nodev"]).unwrap().mounts[0].options, ["noexec", "nodev"]);
        assert_eq!(mount(&["upperdir=/etc"]).unwrap_err().code(), Code::InvalidArgument);
        let env = v1::KeyValue { key: "A".into(), value: vec![0xff] };
        let config = v1::ContainerConfig { envs: vec![env], ..container_config() };
        assert_eq!(refused(config), Code::InvalidArgument);
    }

    #[test]
    fn a_container_whose_processes_are_to_be_seen_has_an_id() {
        let asked = |target_id: &str| {
            let pid = v1::NamespaceMode::Target.into();
            processes_of(Some(&v1::NamespaceOption { pid, target_id: target_id.to_owned(), ..Default::default() }))
        };
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(asked(&id).unwrap().map(|id| id.to_string()), Some(id));
        for bad in ["", "../1"] {
            assert_eq!(asked(bad).unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
        }
        assert_eq!(processes_of(Some(&v1::NamespaceOption::default())).unwrap(), None);
    }

    #[test]
    fn an_apparmor_profile_is_what_the_field_says_and_else_what_older_clients_say() {
        use v1::security_profile::ProfileType;
        let new = |kind: ProfileType, name: &str| {
            let profile = v1::SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() };
            apparmor(Some(profile), "unconfined").ok()
        };
        let mine = || Some(AppArmorProfile::Localhost("mine".to_owned()));
        assert_eq!(new(ProfileType::RuntimeDefault, ""), Some(AppArmorProfile::RuntimeDefault));
        assert_eq!(new(ProfileType::Unconfined, ""), Some(AppArmorProfile::Unconfined));
        assert_eq!(
            (new(ProfileType::Localhost, "mine"), new(ProfileType::Localhost, "localhost/mine")),
            (mine(), mine())
        );
        assert_eq!(new(ProfileType::Localhost, ""), None);
        for (old, expected) in [
            ("", Some(AppArmorProfile::RuntimeDefault)),
            ("runtime/default", Some(AppArmorProfile::RuntimeDefault)),
            ("unconfined", Some(AppArmorProfile::Unconfined)),
            ("localhost/mine", mine()),
            ("localhost/", None),
            ("mine", None),
        ] {
            assert_eq!(apparmor(None, old).ok(), expected, "{old}");
        }
    }

    #[test]
    fn a_stop_signal_has_the_name_that_the_engine_knows() {
        let named = |signal: v1::Signal| {
            let config = v1::ContainerConfig { stop_signal: signal.into(), ..container_config() };
            container(config, "id".into()).unwrap().stop_signal
        };
        assert_eq!(named(v1::Signal::RuntimeDefault), None);
        assert_eq!(named(v1::Signal::Sigquit).as_deref(), Some("SIGQUIT"));
        assert_eq!(named(v1::Signal::Sigrtminplus3).as_deref(), Some("SIGRTMIN+3"));
        assert_eq!(named(v1::Signal::Sigrtmaxminus1).as_deref(), Some("SIGRTMAX-1"));
    }

    #[test]
    fn a_mount_is_of_one_thing() {
        let image = || Some(v1::ImageSpec { image: "i".into(), ..Default::default() });
        assert!(mount(v1::Mount { host_path: "/".into(), image: image(), ..Default::default() }).is_err());
        assert!(mount(v1::Mount::default()).is_err());
        let shown = mount(v1::Mount { image: image(), image_sub_path: "sub".into(), ..Default::default() }).unwrap();
        assert!(shown.readonly);
        assert_eq!(shown.source, MountSource::Image { id: "i".into(), sub_path: Some("sub".into()) });
    }

    #[test]
    fn ids_of_a_mount_are_of_users_and_of_groups() {
        let row = |length: u32| v1::IdMapping { host_id: 100_000, container_id: 0, length };
        let with = |uid_mappings: Vec<v1::IdMapping>, gid_mappings: Vec<v1::IdMapping>| {
            let host_path = "/a".to_owned();
            mount(v1::Mount { host_path, uid_mappings, gid_mappings, ..Default::default() }).map(|mount| mount.ids)
        };
        let rows = vec![IdMapping { container: 0, host: 100_000, length: 65_536 }];
        assert_eq!(with(vec![], vec![]).unwrap(), None);
        let both = with(vec![row(65_536)], vec![row(65_536)]).unwrap();
        assert_eq!(both, Some(MountIds { users: rows.clone(), groups: rows }));
        let many = || vec![row(1); MOST_ID_ROWS + 1];
        for (users, groups) in
            [(vec![row(1)], vec![]), (vec![], vec![row(1)]), (vec![row(0)], vec![row(1)]), (vec![row(1)], many())]
        {
            assert_eq!(with(users, groups).unwrap_err().code(), Code::InvalidArgument);
        }
    }

    #[test]
    fn a_score_for_the_lack_of_memory_is_one_that_the_kernel_takes() {
        assert_eq!((oom_score_adj(-1000).unwrap(), oom_score_adj(1000).unwrap()), (-1000, 1000));
        for bad in [-1001, 1001, i64::MIN, i64::MAX] {
            assert_eq!(oom_score_adj(bad).unwrap_err().code(), Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn a_path_leads_nowhere_but_down() {
        let shown = |image_sub_path: &str| {
            let image = Some(v1::ImageSpec { image: "i".into(), ..Default::default() });
            mount(v1::Mount { image, image_sub_path: image_sub_path.into(), ..Default::default() }).is_ok()
        };
        let bound = |host_path: &str| mount(v1::Mount { host_path: host_path.into(), ..Default::default() }).is_ok();
        let logs = |log_directory: &str| {
            sandbox(v1::PodSandboxConfig { log_directory: log_directory.into(), ..pod() }, "/portreeve").is_ok()
        };
        let log = |log_path: &str| {
            container(v1::ContainerConfig { log_path: log_path.into(), ..container_config() }, "id".into()).is_ok()
        };
        assert!(shown("a/..b") && bound("/a") && logs("/a") && logs("") && log("a/0.log") && log(""));
        for bad in ["..", "a/../b", "a\0"] {
            assert!(!shown(bad) && !log(bad), "{bad:?}");
            let absolute = format!("/{bad}");
            assert!(!shown(&absolute) && !bound(&absolute) && !logs(&absolute) && !log(&absolute), "{bad:?}");
        }
        assert!(!bound("relative") && !logs("relative") && !log("/absolute") && !shown("/absolute"));
        assert!(seccomp(None, "localhost//a/../b").is_err());
    }

    #[test]
    fn a_name_is_one_word_that_can_be_part_of_a_path() {
        let named = |name: &str| {
            let metadata = v1::ContainerMetadata { name: name.into(), attempt: 0 };
            container(v1::ContainerConfig { metadata: Some(metadata), ..Default::default() }, "id".into()).is_ok()
        };
        let longest = "x".repeat(MAX_NAME);
        for good in ["a", "Main_1.2", "..a", longest.as_str()] {
            assert!(named(good), "{good:?}");
        }
        let long = "x".repeat(MAX_NAME + 1);
        for bad in ["", ".", "..", "a/b", "a b", "a\nb", "a\0", long.as_str()] {
            assert!(!named(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_engine_knows_every_signal() {
        for signal in (0..).map_while(|number| v1::Signal::try_from(number).ok()) {
            let config = v1::ContainerConfig { stop_signal: signal.into(), ..container_config() };
            let name = container(config, "id".into()).unwrap().stop_signal.unwrap_or_default();
            assert!(portreeve_engine::stop_signal(&name).is_ok(), "{name}");
        }
    }
}
