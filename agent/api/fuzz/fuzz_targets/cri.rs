//! Any request: refused, or turned into a sandbox, a container and limits that keep to their places, and into a
//! specification that a runtime takes or refuses.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use oci_spec::image::ImageConfiguration;
use portreeve_api::{cri::v1, fuzz};
use portreeve_engine::spec::{Identity, ImageMount, Inputs, SandboxFiles, specification};
use portreeve_engine::{Bandwidth, ContainerConfig, MountSource, SandboxConfig, SeccompProfile, stop_signal};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};

const ROOT: &str = "/portreeve";
/// What the kind of a request is told by, before its bytes; a small letter before its text.
const SANDBOX: u8 = b'S';
const CONTAINER: u8 = b'C';
const LIMITS: u8 = b'L';
/// Messages in messages; no request has so many.
const DEPTH: usize = 20;
/// Text that nobody gave: a hostname, the root of cgroups, an image's id.
const OWN_TEXT: usize = 256;

fn is_name(name: &str) -> bool {
    let harmless = |c: char| !c.is_control() && !c.is_whitespace() && c != '/';
    (1..=253).contains(&name.len()) && !matches!(name, "." | "..") && name.chars().all(harmless)
}

fn leads_down(path: &Path) -> bool {
    path.components().all(|part| part != Component::ParentDir)
}

fn lengths<'a>(texts: impl IntoIterator<Item = &'a String>) -> usize {
    texts.into_iter().map(String::len).sum()
}

fn check_sandbox(config: &SandboxConfig, given: &str, length: usize) {
    let meta = &config.metadata;
    assert!([&meta.name, &meta.namespace, &meta.uid].iter().all(|name| is_name(name)), "{meta:?}");
    let logs = &config.log_directory;
    assert!(logs.as_os_str().is_empty() || logs.is_absolute() && leads_down(logs), "{logs:?}");
    if given.is_empty() {
        assert_eq!(config.cgroup_parent, format!("{ROOT}/cri/pod{}", meta.uid));
    } else {
        assert_eq!(config.cgroup_parent, given);
        assert_eq!(config.resources, Default::default());
    }
    let Bandwidth { ingress_bits, egress_bits } = config.bandwidth;
    assert!([ingress_bits, egress_bits].iter().flatten().all(|bits| (1_000..=1_000_000_000_000_000).contains(bits)));
    assert!(config.port_mappings.iter().all(|port| port.host_port > 0 && port.container_port > 0));
    let dns = &config.dns;
    let text = lengths([&meta.name, &meta.namespace, &meta.uid, &config.hostname])
        + logs.as_os_str().len()
        + lengths(dns.servers.iter().chain(&dns.searches).chain(&dns.options))
        + lengths(config.labels.iter().chain(&config.annotations).chain(&config.sysctls).flat_map(|(k, v)| [k, v]));
    assert!(text <= length + OWN_TEXT);
}

fn check_container(config: &ContainerConfig, length: usize) {
    assert!(is_name(&config.metadata.name), "{:?}", config.metadata);
    if let Some(log) = &config.log_path {
        assert!(log.is_relative() && leads_down(log), "{log:?}");
    }
    for mount in &config.mounts {
        match &mount.source {
            MountSource::HostPath(path) => assert!(path.is_absolute() && leads_down(path), "{path:?}"),
            MountSource::Image { sub_path, .. } => {
                assert!(mount.readonly);
                assert!(sub_path.iter().all(|path| path.is_relative() && leads_down(path)), "{sub_path:?}");
            }
            MountSource::Tmpfs { .. } => panic!("nobody can ask for it"),
        }
        assert!(mount.options.iter().all(|option| matches!(option.as_str(), "nodev" | "noexec" | "nosuid")));
    }
    if let SeccompProfile::Localhost(path) = &config.security.seccomp {
        assert!(path.is_absolute() && leads_down(path), "{path:?}");
    }
    assert!(config.security.run_as_group.is_none() || names_user(config), "{:?}", config.security);
    // Whatever signal a client can name, the engine knows it.
    stop_signal(config.stop_signal.as_deref().unwrap_or_default()).expect("a signal");
    let text = lengths(config.command.iter().chain(&config.args))
        + lengths(config.envs.iter().flat_map(|(name, value)| [name, value]))
        + lengths(config.labels.iter().chain(&config.annotations).flat_map(|(k, v)| [k, v]))
        + lengths(config.security.masked_paths.iter().chain(&config.security.readonly_paths).flatten());
    assert!(text <= length);
}

fn names_user(config: &ContainerConfig) -> bool {
    config.security.run_as_user.is_some() || config.security.run_as_username.is_some()
}

/// What the runtime is asked for, and what it would do.
fn check_specification(config: &ContainerConfig, sandbox: &SandboxConfig) {
    let identity = Identity { uid: 1000, gid: 1000, groups: vec![1000], home: None };
    let images = config.mounts.iter().filter(|mount| matches!(mount.source, MountSource::Image { .. }));
    let images: Vec<ImageMount> = images.map(|_| ImageMount::Empty).collect();
    let files = SandboxFiles {
        hostname: Path::new("/run/hostname"),
        resolv_conf: Path::new("/run/resolv.conf"),
        hosts: None,
        shm: Some(Path::new("/run/shm")),
    };
    let asked = specification(Inputs {
        config,
        sandbox,
        image: &ImageConfiguration::default(),
        identity: &identity,
        hostname: "host",
        cgroup: "/portreeve/cri/pod/c",
        files,
        user_namespace: None,
        pid_namespace: Some("/proc/self/fd/9"),
        processes_of: None,
        process_label: None,
        mount_label: None,
        devices: &[],
        seccomp: None,
        images: &images,
        volumes: &[],
        default_apparmor: None,
        capabilities: u64::MAX,
    });
    let Ok(spec) = asked else { return };
    for mount in spec.mounts().iter().flatten() {
        let place = mount.destination();
        assert!(place.is_absolute() && place != Path::new("/") && leads_down(place), "{place:?}");
    }
    let process = spec.process().as_ref().expect("a process");
    let given = process.capabilities().as_ref().expect("capabilities");
    let security = &config.security;
    let wanted = security.privileged || !security.add_capabilities.is_empty();
    let ambient = !security.ambient_capabilities.is_empty();
    let powerful = oci_spec::runtime::Capability::SysAdmin;
    for set in [given.bounding(), given.effective(), given.permitted()].into_iter().flatten() {
        assert!(wanted || ambient || !set.contains(&powerful));
    }
    assert!(ambient || given.inheritable().as_ref().is_none_or(|set| set.is_empty()));
    let _taken_or_refused = portreeve_oci::check(&spec);
}

fn sandbox(asked: v1::PodSandboxConfig, length: usize) -> Option<SandboxConfig> {
    let given = asked.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
    let sandbox = fuzz::sandbox(asked, ROOT).ok()?;
    check_sandbox(&sandbox, &given, length);
    Some(sandbox)
}

/// A message from its text, in which one change is one change: fields are `NUMBER{FIELDS}`, `NUMBER"TEXT"` or
/// `NUMBER=NUMBER`, and what is between them says nothing.
fn message(text: &mut &[u8], depth: usize) -> Vec<u8> {
    let mut message = Vec::new();
    let mut field = 0u32;
    while let Some((byte, rest)) = text.split_first() {
        *text = rest;
        match byte {
            b'0'..=b'9' => field = (field * 10 + u32::from(byte - b'0')) % 1000,
            b'{' | b'"' => {
                let content = match byte {
                    b'{' if depth < DEPTH => self::message(text, depth + 1),
                    _ => {
                        let end = text.iter().position(|byte| *byte == b'"').unwrap_or(text.len());
                        let (content, rest) = text.split_at(end);
                        *text = rest.get(1..).unwrap_or_default();
                        content.to_vec()
                    }
                };
                encode_key(field.max(1), WireType::LengthDelimited, &mut message);
                encode_varint(content.len() as u64, &mut message);
                message.extend(content);
                field = 0;
            }
            b'=' => {
                let end = text.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b'-')).unwrap_or(text.len());
                let (digits, rest) = text.split_at(end);
                *text = rest;
                let value = str::from_utf8(digits).ok().and_then(|digits| digits.parse::<i64>().ok()).unwrap_or(0);
                encode_key(field.max(1), WireType::Varint, &mut message);
                encode_varint(value.cast_unsigned(), &mut message);
                field = 0;
            }
            b'}' => break,
            _ => field = 0,
        }
    }
    message
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, mut request)) = bytes.split_first() else { return };
    let encoded;
    if kind.is_ascii_lowercase() {
        encoded = message(&mut request, 0);
        request = &encoded;
    }
    match kind.to_ascii_uppercase() {
        SANDBOX => {
            let Ok(asked) = v1::RunPodSandboxRequest::decode(request) else { return };
            let Some(config) = asked.config else { return };
            sandbox(config, request.len());
        }
        CONTAINER => {
            let Ok(asked) = v1::CreateContainerRequest::decode(request) else { return };
            let Some(config) = asked.config else { return };
            let Ok(container) = fuzz::container(config) else { return };
            check_container(&container, request.len());
            let Some(sandbox) = asked.sandbox_config.and_then(|config| sandbox(config, request.len())) else { return };
            check_specification(&container, &sandbox);
        }
        LIMITS => {
            let Ok(asked) = v1::UpdateContainerResourcesRequest::decode(request) else { return };
            let Some(limits) = asked.linux else { return };
            let (shares, period) = (limits.cpu_shares, limits.cpu_period);
            let Ok(limits) = fuzz::resources(limits) else { return };
            assert!(shares >= 0 && period >= 0);
            let cpu = limits.cpu().as_ref().expect("limits of time");
            assert!(cpu.shares() != Some(0) && cpu.period() != Some(0) && cpu.quota() != Some(0));
        }
        _ => {}
    }
});
