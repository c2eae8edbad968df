//! The default profile: what Docker and containerd users know, written from the other side.
//!
//! Every call of our table is allowed except those named here, which are refused always or without a capability; a call
//! that the table does not know is not allowed. So the profile reads as what it forbids, with the reason.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};

use super::native;
use super::syscalls::TABLE;

/// Refused whatever the capabilities.
const NEVER: &[&str] = &[
    // The kernel's keys are shared by all containers.
    "add_key",
    "keyctl",
    "request_key",
    // Another kernel, swap, and the root of the mount tree are the host's.
    "kexec_file_load",
    "kexec_load",
    "pivot_root",
    "swapoff",
    "swapon",
    // A large attack surface with a history.
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "userfaultfd",
    "vm86",
    "vm86old",
    // Pages of other nodes; namespaces of others.
    "migrate_pages",
    "move_pages",
    "listns",
    // Long gone or never there.
    "_sysctl",
    "afs_syscall",
    "bdflush",
    "break",
    "create_module",
    "ftime",
    "get_kernel_syms",
    "getpmsg",
    "gtty",
    "idle",
    "lock",
    "mpx",
    "nfsservctl",
    "nice",
    "oldfstat",
    "oldlstat",
    "oldolduname",
    "oldstat",
    "olduname",
    "prof",
    "profil",
    "putpmsg",
    "query_module",
    "readdir",
    "security",
    "sgetmask",
    "sigaction",
    "signal",
    "sigpending",
    "sigsuspend",
    "ssetmask",
    "stty",
    "sysfs",
    "tuxcall",
    "ulimit",
    "uselib",
    "ustat",
    "vserver",
];

/// Refused without one of these capabilities.
const GATED: &[(&[&str], &[&str])] = &[
    (
        &["CAP_SYS_ADMIN"],
        &[
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (&["CAP_SYS_ADMIN", "CAP_BPF"], &["bpf"]),
    (&["CAP_SYS_ADMIN", "CAP_PERFMON"], &["perf_event_open"]),
    (&["CAP_SYS_ADMIN", "CAP_SYSLOG"], &["syslog"]),
    (&["CAP_DAC_READ_SEARCH"], &["open_by_handle_at"]),
    (&["CAP_SYS_BOOT"], &["reboot"]),
    (&["CAP_SYS_CHROOT"], &["chroot"]),
    (&["CAP_SYS_MODULE"], &["delete_module", "finit_module", "init_module"]),
    (&["CAP_SYS_PACCT"], &["acct"]),
    (&["CAP_SYS_PTRACE"], &["kcmp", "pidfd_getfd", "process_madvise"]),
    (&["CAP_SYS_RAWIO"], &["ioperm", "iopl"]),
    (&["CAP_SYS_TIME"], &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (&["CAP_SYS_TTY_CONFIG"], &["vhangup"]),
    (&["CAP_SYS_NICE"], &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
];

/// Every CLONE_NEW* flag: namespaces are made with CAP_SYS_ADMIN or not at all.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// The kernel's cryptography, for which programs have libraries: a large attack surface with a history.
const AF_ALG: u64 = 38;
/// The host's virtual sockets, which have no namespace unless the host asks for it.
const AF_VSOCK: u64 = 40;
/// AF_DECnet, AF_ECONET, AF_ATMSVC, AF_IRDA, AF_WANPIPE, AF_ISDN, AF_CAIF: gone from the kernel.
const GONE_FAMILIES: [u64; 7] = [12, 19, 20, 23, 25, 34, 37];
/// AF_MCTP, the last family of Linux 7.2.
const LAST_FAMILY: u64 = 45;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The profile that Docker and containerd users know, for a process with these capabilities on this architecture.
///
/// `capabilities` are names like `CAP_SYS_ADMIN`; each opens the system calls that are useless without it.
#[must_use]
pub fn default_profile(architecture: Arch, capabilities: &[&str]) -> LinuxSeccomp {
    let has = |wanted: &[&str]| wanted.iter().any(|name| capabilities.contains(name));
    let closed =
        |name: &str| NEVER.contains(&name) || GATED.iter().any(|(gates, names)| names.contains(&name) && !has(gates));
    let administrator = has(&["CAP_SYS_ADMIN"]);
    let special = |name: &str| matches!(name, "personality" | "socket") || (name == "clone" && !administrator);
    let plain = TABLE.iter().map(|(name, ..)| *name).filter(|name| !closed(name) && !special(name));
    let mut rules = vec![rule(plain.map(str::to_owned).collect(), LinuxSeccompAction::ScmpActAllow, None, None)];
    // A number above 32 bits, of which the kernel would take the lower half, is beyond the last as well. There is a way
    // round all this for programs for x86, in Docker's profile too: socketcall, whose arguments are in memory.
    let beyond = argument(0, LAST_FAMILY, None, LinuxSeccompOperator::ScmpCmpGt);
    let closed = GONE_FAMILIES.into_iter().chain([AF_ALG, AF_VSOCK]);
    let closed = closed.map(|family| argument(0, family, None, LinuxSeccompOperator::ScmpCmpEq));
    for family in closed.chain([beyond]) {
        rules.push(rule(vec!["socket".into()], LinuxSeccompAction::ScmpActErrno, Some(EPERM), Some(family)));
    }
    rules.push(rule(vec!["socket".into()], LinuxSeccompAction::ScmpActAllow, None, None));
    // Linux, Linux32, both with the address layout fixed, and the question which one it is.
    for persona in [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        let persona = argument(0, persona, None, LinuxSeccompOperator::ScmpCmpEq);
        rules.push(rule(vec!["personality".into()], LinuxSeccompAction::ScmpActAllow, None, Some(persona)));
    }
    if !administrator {
        let flags = argument(0, NEW_NAMESPACES, Some(0), LinuxSeccompOperator::ScmpCmpMaskedEq);
        rules.push(rule(vec!["clone".into()], LinuxSeccompAction::ScmpActAllow, None, Some(flags)));
        // Its flags are in memory, where no filter can look: C libraries fall back to clone.
        rules.push(rule(vec!["clone3".into()], LinuxSeccompAction::ScmpActErrno, Some(ENOSYS), None));
    }
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
    profile.set_default_errno_ret(Some(EPERM));
    let architecture = if architecture == Arch::ScmpArchNative { native() } else { architecture };
    profile.set_architectures(Some(match architecture {
        Arch::ScmpArchX86_64 => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        other => vec![other],
    }));
    profile.set_syscalls(Some(rules));
    profile
}

fn rule(
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno: Option<u32>,
    argument: Option<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names);
    rule.set_action(action);
    rule.set_errno_ret(errno);
    rule.set_args(argument.map(|argument| vec![argument]));
    rule
}

pub(super) fn argument(
    index: usize,
    value: u64,
    second: Option<u64>,
    operator: LinuxSeccompOperator,
) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(index).value(value).op(operator);
    let builder = match second {
        Some(second) => builder.value_two(second),
        None => builder,
    };
    builder.build().expect("every field of the builder has a default")
}

#[cfg(test)]
mod tests;
