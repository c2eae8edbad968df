//! What a process is and sees. Whatever cannot be seen is null.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde_json::{Map, Value, json};

/// Names of `linux/capability.h`, in the order of their numbers.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Names of `bits/resource.h`, in the order of their numbers.
const LIMITS: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

/// Everything.
pub(crate) fn report(sysctls: &[String]) -> Value {
    let status = status();
    let mut all = whereabouts();
    let Some(fields) = all.as_object_mut() else { return all };
    let more = json!({
        "ids": { "uid": numbers(&status, "Uid"), "gid": numbers(&status, "Gid"), "groups": numbers(&status, "Groups") },
        "umask": status.get("Umask"),
        "capabilities": {
            "inheritable": capabilities(&status, "CapInh"),
            "permitted": capabilities(&status, "CapPrm"),
            "effective": capabilities(&status, "CapEff"),
            "bounding": capabilities(&status, "CapBnd"),
            "ambient": capabilities(&status, "CapAmb"),
        },
        "no_new_privileges": status.get("NoNewPrivs").map(|text| text == "1"),
        "seccomp": { "mode": number(&status, "Seccomp"), "filters": number(&status, "Seccomp_filters") },
        "signals": {
            "blocked": signals(&status, "SigBlk"),
            "ignored": signals(&status, "SigIgn"),
            "caught": signals(&status, "SigCgt"),
        },
        "rlimits": limits(),
        "oom_score_adj": text("/proc/self/oom_score_adj").and_then(|text| text.parse::<i32>().ok()),
        "scheduler": scheduler(),
        "ioprio": io_priority(),
        "affinity": affinity(),
        "personality": personality(),
        "memory_policy": memory_policy(),
        "hostname": text("/proc/sys/kernel/hostname"),
        "domainname": text("/proc/sys/kernel/domainname"),
        "mounts": mounts(),
        "devices": devices(),
        "clocks": { "monotonic": clock(libc::CLOCK_MONOTONIC), "boottime": clock(libc::CLOCK_BOOTTIME) },
        "time_offsets": text("/proc/self/timens_offsets"),
        "cgroup": text("/proc/self/cgroup").map(|text| lines(&text)),
        "keyring": keyring(),
        "terminal": terminal(),
        "label": text("/proc/self/attr/current"),
        "id_maps": {
            "uid": text("/proc/self/uid_map").map(|text| rows(&text)),
            "gid": text("/proc/self/gid_map").map(|text| rows(&text)),
            "setgroups": text("/proc/self/setgroups"),
        },
        "processes": processes(),
        "links": entries("/sys/class/net"),
        "sysctls": sysctls.iter().map(|name| {
            (name.clone(), json!(text(&format!("/proc/sys/{}", name.replace('.', "/")))))
        }).collect::<Map<_, _>>(),
    });
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    all
}

/// What a hook sees, too: arguments, environment, directory, namespaces, descriptors, ids of the process.
pub(crate) fn whereabouts() -> Value {
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let environment: Map<_, _> = std::env::vars_os().map(|(key, value)| (lossy(key), json!(lossy(value)))).collect();
    // SAFETY: these calls take nothing or a number and cannot fail for the caller itself.
    let (parent, session, group) = unsafe { (libc::getppid(), libc::getsid(0), libc::getpgid(0)) };
    json!({
        "args": std::env::args_os().map(lossy).collect::<Vec<_>>(),
        "env": environment,
        "cwd": std::env::current_dir().ok().map(|path| path.to_string_lossy().into_owned()),
        "pid": std::process::id(),
        "parent": parent,
        "session": session,
        "process_group": group,
        "namespaces": namespaces(),
        "fds": descriptors(),
    })
}

/// Names in a directory, sorted.
pub(crate) fn entries(path: &str) -> Value {
    let Ok(entries) = std::fs::read_dir(path) else { return Value::Null };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    json!(names)
}

fn text(path: &str) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\0']).to_owned())
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn rows(text: &str) -> Vec<Vec<u64>> {
    text.lines().map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect()).collect()
}

fn status() -> BTreeMap<String, String> {
    let text = text("/proc/self/status").unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

fn number(status: &BTreeMap<String, String>, key: &str) -> Option<u64> {
    status.get(key)?.parse().ok()
}

fn numbers(status: &BTreeMap<String, String>, key: &str) -> Option<Vec<u64>> {
    Some(status.get(key)?.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}

fn bits(status: &BTreeMap<String, String>, key: &str) -> Option<Vec<u32>> {
    let mask = u64::from_str_radix(status.get(key)?, 16).ok()?;
    Some((0..64).filter(|bit| mask >> bit & 1 == 1).collect())
}

fn capabilities(status: &BTreeMap<String, String>, key: &str) -> Option<Vec<String>> {
    let name =
        |bit: u32| usize::try_from(bit).ok().and_then(|bit| CAPABILITIES.get(bit)).map(|name| (*name).to_owned());
    Some(bits(status, key)?.into_iter().map(|bit| name(bit).unwrap_or_else(|| format!("CAP_{bit}"))).collect())
}

fn signals(status: &BTreeMap<String, String>, key: &str) -> Option<Vec<u32>> {
    Some(bits(status, key)?.into_iter().map(|bit| bit + 1).collect())
}

fn limits() -> Value {
    let mut limits = Map::new();
    for (resource, name) in (0..).zip(LIMITS) {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` lives through the call.
        if unsafe { libc::getrlimit(resource, &raw mut limit) } == 0 {
            limits.insert(name.to_owned(), json!([limit.rlim_cur, limit.rlim_max]));
        }
    }
    Value::Object(limits)
}

/// `struct sched_attr` of sched_setattr(2), as of Linux 5.3.
#[repr(C)]
#[derive(Default)]
struct SchedulerAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    clamp_low: u32,
    clamp_high: u32,
}

fn scheduler() -> Value {
    let mut seen = SchedulerAttributes::default();
    // SAFETY: the kernel writes at most the size that it is told, which is the structure's.
    let code = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut seen, size_of::<SchedulerAttributes>(), 0) };
    if code != 0 {
        return Value::Null;
    }
    let policies =
        ["SCHED_OTHER", "SCHED_FIFO", "SCHED_RR", "SCHED_BATCH", "SCHED_ISO", "SCHED_IDLE", "SCHED_DEADLINE"];
    json!({
        "policy": usize::try_from(seen.policy).ok().and_then(|number| policies.get(number)),
        "flags": seen.flags,
        "nice": seen.nice,
        "priority": seen.priority,
        "runtime": seen.runtime,
        "deadline": seen.deadline,
        "period": seen.period,
        "clamp": [seen.clamp_low, seen.clamp_high],
    })
}

/// Class and priority, see ioprio_get(2).
fn io_priority() -> Value {
    // SAFETY: the call takes numbers; 1 is IOPRIO_WHO_PROCESS.
    let value = unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) };
    let classes = ["IOPRIO_CLASS_NONE", "IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"];
    let class = usize::try_from(value >> 13).ok().and_then(|class| classes.get(class));
    json!({ "class": class, "priority": value & 7 })
}

fn affinity() -> Value {
    // SAFETY: a set of processors is plain memory, and zero is a value of it.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size that it is told.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } != 0 {
        return Value::Null;
    }
    // SAFETY: the numbers are below the set's size.
    json!((0..1024_usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect::<Vec<_>>())
}

fn personality() -> i32 {
    // SAFETY: this number asks and changes nothing, see personality(2).
    unsafe { libc::personality(0xffff_ffff) }
}

fn memory_policy() -> Value {
    let mut mode = 0_i32;
    let mut nodes = [0_u64; 16];
    // SAFETY: both live through the call, and the mask has as many bits as it is told.
    let code =
        unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, nodes.as_mut_ptr(), 1024_u64, 0_u64, 0_u64) };
    if code != 0 {
        return Value::Null;
    }
    let nodes = (0..)
        .zip(nodes)
        .flat_map(|(word, bits)| (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit: u32| word * 64 + bit));
    json!({ "mode": mode & 0xff, "flags": mode >> 8 << 8, "nodes": nodes.collect::<Vec<u32>>() })
}

fn namespaces() -> Value {
    let Ok(entries) = std::fs::read_dir("/proc/self/ns") else { return Value::Null };
    let pairs = entries.flatten().filter_map(|entry| {
        let target = std::fs::read_link(entry.path()).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), json!(target.to_string_lossy())))
    });
    Value::Object(pairs.collect())
}

/// Open descriptors but the one that this takes to find them.
fn descriptors() -> Value {
    let mut found = Map::new();
    let Ok(directory) = std::fs::File::open("/proc/self/fd") else {
        // Without procfs: which numbers are open, and nothing about them.
        // SAFETY: asking for a descriptor's flags touches no memory.
        let open = (0..1024).filter(|number: &RawFd| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0);
        return Value::Object(open.map(|number| (number.to_string(), json!({}))).collect());
    };
    let own = directory.as_raw_fd();
    for number in (0..1024).filter(|number: &RawFd| *number != own) {
        // SAFETY: asking for a descriptor's flags touches no memory.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        if flags >= 0 {
            let target = std::fs::read_link(format!("/proc/self/fd/{number}")).ok();
            let target = target.map(|path| path.to_string_lossy().into_owned());
            found.insert(number.to_string(), json!({ "target": target, "cloexec": flags & libc::FD_CLOEXEC != 0 }));
        }
    }
    Value::Object(found)
}

/// `/proc/self/mountinfo`, see proc_pid_mountinfo(5).
fn mounts() -> Value {
    let Some(text) = text("/proc/self/mountinfo") else { return Value::Null };
    let words = |text: Option<&str>| -> Vec<String> {
        text.map(|text| text.split(',').map(str::to_owned).collect()).unwrap_or_default()
    };
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let (mut left, mut right) = (left.split(' '), right.split(' '));
            let mut number = || left.next().and_then(|word| word.parse::<u64>().ok());
            let (id, parent) = (number(), number());
            let device = left.next();
            let (root, point) = (left.next(), left.next());
            let options = words(left.next());
            let propagation: Vec<_> = left.collect();
            let (kind, source) = (right.next(), right.next());
            Some(json!({
                "id": id, "parent": parent, "device": device, "root": root, "point": point, "options": options,
                "propagation": propagation, "type": kind, "source": source, "super": words(right.next()),
            }))
        })
        .collect()
}

/// What is below `/dev`, one level deep, and the terminals that it has.
fn devices() -> Value {
    let mut found = Map::new();
    for directory in ["/dev", "/dev/pts", "/dev/net"] {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(file) = path.symlink_metadata() else { continue };
            let kind = match file.file_type() {
                kind if kind.is_char_device() => "c",
                kind if kind.is_block_device() => "b",
                kind if kind.is_fifo() => "p",
                kind if kind.is_symlink() => "l",
                kind if kind.is_dir() => "d",
                kind if kind.is_socket() => "s",
                _ => "f",
            };
            let target = std::fs::read_link(&path).ok().map(|target| target.to_string_lossy().into_owned());
            let name = path.strip_prefix("/dev").unwrap_or(&path).to_string_lossy().into_owned();
            let (major, minor) = (libc::major(file.rdev()), libc::minor(file.rdev()));
            found.insert(
                name,
                json!({
                    "type": kind, "major": major, "minor": minor, "mode": file.mode() & 0o7777,
                    "uid": file.uid(), "gid": file.gid(), "target": target,
                }),
            );
        }
    }
    Value::Object(found)
}

/// Whole seconds of a clock.
fn clock(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` lives through the call.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec
}

/// The description of the session's keyring, see keyctl_describe(3): type;uid;gid;permissions;name.
fn keyring() -> Value {
    let mut description = [0_u8; 256];
    // SAFETY: the kernel writes at most the size that it is told. 6 is KEYCTL_DESCRIBE, -3 the session's keyring.
    let length = unsafe { libc::syscall(libc::SYS_keyctl, 6, -3, description.as_mut_ptr(), description.len()) };
    let length = usize::try_from(length).ok().and_then(|length| length.checked_sub(1));
    match length.and_then(|length| description.get(..length)) {
        Some(bytes) => json!(String::from_utf8_lossy(bytes)),
        None => Value::Null,
    }
}

/// The controlling terminal, if there is one, and the size of the one on the standard input.
fn terminal() -> Value {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` lives through the call, and the request fits it.
    let is_terminal = unsafe { libc::ioctl(0, libc::TIOCGWINSZ, &raw mut size) } == 0;
    json!({
        "controlling": std::fs::File::open("/dev/tty").is_ok(),
        "size": is_terminal.then_some((size.ws_row, size.ws_col)),
    })
}

fn processes() -> Value {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Value::Null };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let name = |pid: u32| text(&format!("/proc/{pid}/cmdline")).map(|line| line.replace('\0', " "));
    Value::Object(pids.map(|pid| (pid.to_string(), json!(name(pid)))).collect())
}
