//! Capabilities, system call filter, hidden and read-only paths.

use oci_spec::runtime::{Arch, Capabilities, Capability, LinuxCapabilities, LinuxSeccomp};
use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;

use crate::EngineError;
use crate::container::{AppArmorProfile, SecurityContext};

/// In the order of their numbers, linux/capability.h.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What Docker and containerd give to everybody.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
];
const MASKED_SYS: [&str; 3] =
    ["/sys/firmware", "/sys/devices/virtual/powercap", "/sys/devices/system/cpu/cpu0/thermal_throttle"];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Bounding, effective and permitted; inheritable and ambient only those that are asked for as ambient. Source:
/// capabilities(7): what is ambient has to be permitted and inheritable.
pub(super) fn capabilities(security: &SecurityContext, available: u64) -> Result<LinuxCapabilities, EngineError> {
    let is_all = |name: &&String| name.eq_ignore_ascii_case("ALL");
    let everything = || -> Result<Capabilities, EngineError> {
        let held = |number: usize| available & (1 << number) != 0;
        NAMES
            .iter()
            .enumerate()
            .filter(|(number, _)| held(*number))
            .map(|(_, name)| capability("capabilities", name))
            .collect()
    };
    let mut set: Capabilities = if security.privileged || security.add_capabilities.iter().any(|name| is_all(&name)) {
        everything()?
    } else if security.drop_capabilities.iter().any(|name| is_all(&name)) {
        Capabilities::new()
    } else {
        DEFAULT.iter().map(|name| capability("capabilities", name)).collect::<Result<_, _>>()?
    };
    if !security.privileged {
        for name in security.add_capabilities.iter().filter(|name| !is_all(name)) {
            set.insert(capability("capabilities.add", name)?);
        }
        for name in security.drop_capabilities.iter().filter(|name| !is_all(name)) {
            set.remove(&capability("capabilities.drop", name)?);
        }
    }
    let mut ambient = Capabilities::new();
    for name in &security.ambient_capabilities {
        if is_all(&name) {
            ambient.extend(everything()?);
        } else {
            ambient.insert(capability("capabilities.ambient", name)?);
        }
    }
    set.extend(ambient.iter().copied());
    let ambient = Some(ambient).filter(|ambient| !ambient.is_empty());
    let mut capabilities = LinuxCapabilities::default();
    capabilities.set_bounding(Some(set.clone()));
    capabilities.set_effective(Some(set.clone()));
    capabilities.set_permitted(Some(set));
    capabilities.set_inheritable(ambient.clone());
    capabilities.set_ambient(ambient);
    Ok(capabilities)
}

fn capability(field: &str, name: &str) -> Result<Capability, EngineError> {
    let deserializer: serde::de::value::StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
    Capability::deserialize(deserializer)
        .map_err(|_| EngineError::invalid(field, format!("{name:?} is not a capability")))
}

/// The profile that its processes are put under; `None`: they stay as this agent is.
pub(super) fn apparmor_profile(security: &SecurityContext, default: Option<&str>) -> Option<String> {
    match &security.apparmor {
        AppArmorProfile::Localhost(name) => Some(name.clone()),
        AppArmorProfile::RuntimeDefault if !security.privileged => default.map(str::to_owned),
        AppArmorProfile::RuntimeDefault | AppArmorProfile::Unconfined => None,
    }
}

pub(super) fn default_seccomp(capabilities: &LinuxCapabilities) -> LinuxSeccomp {
    let held: Vec<String> = capabilities.bounding().iter().flatten().map(|capability| capability.to_string()).collect();
    let names: Vec<String> = held
        .iter()
        .map(|name| if name.starts_with("CAP_") { name.clone() } else { format!("CAP_{}", name.to_uppercase()) })
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    portreeve_oci::seccomp::default_profile(architecture(), &names)
}

fn architecture() -> Arch {
    match std::env::consts::ARCH {
        "aarch64" => Arch::ScmpArchAarch64,
        "riscv64" => Arch::ScmpArchRiscv64,
        "powerpc64" => Arch::ScmpArchPpc64le,
        "s390x" => Arch::ScmpArchS390x,
        "arm" => Arch::ScmpArchArm,
        "x86" => Arch::ScmpArchX86,
        _ => Arch::ScmpArchX86_64,
    }
}

pub(super) fn masked_paths(security: &SecurityContext) -> Vec<String> {
    match &security.masked_paths {
        // A kubelet gives the same lists to every container. Source: api.proto, `privileged`.
        _ if security.privileged => Vec::new(),
        Some(paths) => paths.clone(),
        None => MASKED.iter().chain(&MASKED_SYS).map(|path| (*path).to_owned()).collect(),
    }
}

pub(super) fn readonly_paths(security: &SecurityContext) -> Vec<String> {
    match &security.readonly_paths {
        // A kubelet gives the same lists to every container. Source: api.proto, `privileged`.
        _ if security.privileged => Vec::new(),
        Some(paths) => paths.clone(),
        None => READONLY.iter().map(|path| (*path).to_owned()).collect(),
    }
}
