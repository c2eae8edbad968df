//! The default profile beside Docker's, call by call: moby/profiles of 2026, `seccomp/default_linux.go`.

use super::super::compile::compile;
use super::super::compile::oracle::{AARCH64, Call, X86, X86_64, run};
use super::super::{Filter, call_number};
use super::*;

const ALLOW: u32 = 0x7fff_0000;
const REFUSED: u32 = 0x0005_0001;
const NO_SUCH_CALL: u32 = 0x0005_0026;

/// What Docker allows with one of these capabilities only; what neither stands here nor below it allows to all.
const DOCKER_GATED: &[(&[&str], &str)] = &[
    (
        &["CAP_SYS_ADMIN"],
        "fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules \
         lsm_set_self_attr mount mount_setattr move_mount open_tree quotactl quotactl_fd setdomainname sethostname \
         setns umount umount2 unshare",
    ),
    (&["CAP_SYS_ADMIN", "CAP_BPF"], "bpf"),
    (&["CAP_SYS_ADMIN", "CAP_PERFMON"], "perf_event_open"),
    (&["CAP_SYS_ADMIN", "CAP_SYSLOG"], "syslog"),
    (&["CAP_DAC_READ_SEARCH"], "open_by_handle_at"),
    (&["CAP_SYS_BOOT"], "reboot"),
    (&["CAP_SYS_CHROOT"], "chroot"),
    (&["CAP_SYS_MODULE"], "delete_module finit_module init_module"),
    (&["CAP_SYS_NICE"], "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (&["CAP_SYS_PACCT"], "acct"),
    (&["CAP_SYS_PTRACE"], "kcmp pidfd_getfd process_madvise"),
    (&["CAP_SYS_RAWIO"], "ioperm iopl"),
    (&["CAP_SYS_TIME"], "clock_settime clock_settime64 settimeofday stime"),
    (&["CAP_SYS_TTY_CONFIG"], "vhangup"),
];

/// What Docker never allows.
const DOCKER_NEVER: &str = "_sysctl add_key afs_syscall bdflush break create_module file_getattr file_setattr ftime \
    get_kernel_syms getpmsg gtty idle io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load keyctl \
    listns lock migrate_pages move_pages mpx nfsservctl nice oldfstat oldlstat oldolduname oldstat olduname \
    open_tree_attr pivot_root prof profil putpmsg query_module readdir request_key rseq_slice_yield security sgetmask \
    sigaction signal sigpending sigsuspend ssetmask stty swapoff swapon sysfs tuxcall ulimit uprobe uselib userfaultfd \
    ustat vm86 vm86old vserver";

/// What we allow and Docker does not, with the capability that it takes (none: to all), and why.
const DIFFERENCES: &[(&str, &[&str], &str)] = &[
    ("file_getattr", &[], "the FS_IOC_FSGETXATTR ioctl by another name, which Docker allows"),
    ("file_setattr", &[], "the FS_IOC_FSSETXATTR ioctl by another name, which Docker allows"),
    (
        "open_tree_attr",
        &["CAP_SYS_ADMIN"],
        "open_tree and mount_setattr in one, which Docker allows with the capability",
    ),
    ("rseq_slice_yield", &[], "gives the processor back early; rseq and sched_yield are allowed"),
    ("uprobe", &[], "as uretprobe: a trampoline of the kernel's makes it, and Linux lets it pass every filter"),
];

const CAPABILITIES: [&str; 15] = [
    "CAP_BPF",
    "CAP_CHOWN",
    "CAP_DAC_READ_SEARCH",
    "CAP_PERFMON",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
];

fn docker_allows(name: &str, has: impl Fn(&[&str]) -> bool) -> bool {
    if DOCKER_NEVER.split(' ').any(|never| never == name) {
        return false;
    }
    let gate = DOCKER_GATED.iter().find(|(_, names)| names.split(' ').any(|gated| gated == name));
    gate.is_none_or(|(capabilities, _)| has(capabilities))
}

/// The decision about a call whose arguments are the first two given ones and zero.
fn decision(filter: &Filter, (audit, architecture): (u32, Arch), name: &str, first: u64) -> Option<u32> {
    let number = call_number(name, architecture)?;
    Some(run(filter.program(), &Call { architecture: audit, number, arguments: [first, 0, 0, 0, 0, 0] }))
}

/// Each machine with the architectures of the calls that it takes.
const MACHINES: [(Arch, &[(u32, Arch)]); 2] = [
    (Arch::ScmpArchX86_64, &[(X86_64, Arch::ScmpArchX86_64), (X86, Arch::ScmpArchX86)]),
    (Arch::ScmpArchAarch64, &[(AARCH64, Arch::ScmpArchAarch64)]),
];

/// The default profile as a program for such a machine, whatever this one is.
fn filter(machine: Arch, held: &[&str]) -> Filter {
    compile(&default_profile(machine, held), machine).expect("compile")
}

/// Without any capability, with each, and with all.
fn holders() -> Vec<Vec<&'static str>> {
    let each = CAPABILITIES.iter().map(|one| vec![*one]);
    [Vec::new(), CAPABILITIES.to_vec()].into_iter().chain(each).collect()
}

/// The program of each machine for these capabilities, with each architecture of its calls.
fn programs(held: &[&str]) -> Vec<(Filter, (u32, Arch))> {
    let each = |(machine, kinds): &(Arch, &[(u32, Arch)])| {
        let filter = filter(*machine, held);
        kinds.iter().map(|kind| (filter.clone(), *kind)).collect::<Vec<_>>()
    };
    MACHINES.iter().flat_map(each).collect()
}

#[test]
fn the_default_profile_decides_as_dockers() {
    let conditional = ["clone", "clone3", "personality", "socket"];
    for held in holders() {
        let has = |wanted: &[&str]| wanted.iter().any(|name| held.contains(name));
        for (filter, architecture) in programs(&held) {
            for (name, ..) in TABLE.iter().filter(|(name, ..)| !conditional.contains(name)) {
                let Some(ours) = decision(&filter, architecture, name, 0) else { continue };
                let docker = docker_allows(name, has);
                let more = DIFFERENCES.iter().any(|(known, gate, _)| known == name && (gate.is_empty() || has(gate)));
                assert!(!(docker && more), "{name} with {held:?} is no difference any more");
                let expected = if docker || more { ALLOW } else { REFUSED };
                assert_eq!(ours, expected, "{name} with {held:?} on {architecture:?}");
            }
        }
    }
}

#[test]
fn sockets_personalities_and_clones_are_allowed_by_their_arguments_as_dockers() {
    let docker_families = (0..=11).chain(13..=18).chain([21, 22, 24]).chain(26..=33).chain([35, 36, 39]).chain(41..=45);
    let docker_families: Vec<u64> = docker_families.collect();
    let namespaces = [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
    for held in holders() {
        let administrator = held.contains(&"CAP_SYS_ADMIN");
        for (filter, architecture) in programs(&held) {
            let decide = |name: &str, first: u64| decision(&filter, architecture, name, first).expect("a call");
            for family in (0..300).chain([0x1_0000_0002, 0x1_0000_0026, 0xffff_ffff, u64::MAX]) {
                // An argument of x86 has no more than 32 bits.
                let seen = if architecture.0 == X86 { family & 0xffff_ffff } else { family };
                let expected = if docker_families.contains(&seen) { ALLOW } else { REFUSED };
                assert_eq!(decide("socket", family), expected, "family {family:#x}");
            }
            for (persona, expected) in [
                (0, ALLOW),
                (8, ALLOW),
                (0x2_0000, ALLOW),
                (0x2_0008, ALLOW),
                (0xffff_ffff, ALLOW),
                (0x0040_0000, REFUSED),
                (0x0004_0000, REFUSED),
                (4, REFUSED),
            ] {
                assert_eq!(decide("personality", persona), expected, "personality {persona:#x}");
            }
            assert_eq!(decide("clone", 0x003d_0f00), ALLOW, "a thread");
            let namespaced = if administrator { ALLOW } else { REFUSED };
            for flag in namespaces {
                assert_eq!(decide("clone", flag | 17), namespaced, "clone {flag:#x} with {held:?}");
            }
            assert_eq!(decide("clone3", 0), if administrator { ALLOW } else { NO_SUCH_CALL }, "{held:?}");
        }
    }
}

/// As runc has it, which Docker runs: from EPERM a C library could not tell that it has to fall back.
#[test]
fn calls_newer_than_the_table_do_not_exist() {
    for (filter, (architecture, _)) in programs(&[]) {
        let kinds = MACHINES.iter().flat_map(|(_, kinds)| *kinds).filter(|(audit, _)| *audit == architecture);
        let numbers = kinds.flat_map(|(_, kind)| TABLE.iter().filter_map(|(name, ..)| call_number(name, *kind)));
        let call = Call { architecture, number: numbers.max().expect("calls") + 1, arguments: [0; 6] };
        assert_eq!(run(filter.program(), &call), NO_SUCH_CALL, "{architecture:#x}");
    }
}

#[test]
fn every_name_of_the_profile_and_of_these_tables_is_in_the_table() {
    let ours = NEVER.iter().chain(GATED.iter().flat_map(|(_, names)| *names)).copied();
    let dockers = DOCKER_GATED.iter().flat_map(|(_, names)| names.split(' ')).chain(DOCKER_NEVER.split(' '));
    for name in ours.chain(dockers).chain(DIFFERENCES.iter().map(|(name, ..)| *name)) {
        assert!(TABLE.iter().any(|(known, ..)| *known == name), "{name}");
    }
}
