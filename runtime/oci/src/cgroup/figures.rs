//! Everything the kernel counts for a cgroup, in the shape in which `runc events` prints it.
//!
//! Source of the names: runc, `types/events.go`. Figures of controllers that are not there are zero or absent.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::layout::Layout;
use super::stats::{Files, keyed};
use super::{CgroupError, Version};

/// What a cgroup and everything below it has used.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Figures {
    /// CPU time.
    pub cpu: Cpu,
    /// Which CPUs and memory nodes it may use.
    pub cpuset: CpuSet,
    /// Memory.
    pub memory: Memory,
    /// Tasks.
    pub pids: Pids,
    /// Block devices.
    pub blkio: Blkio,
    /// Huge pages, by size (`2MB`).
    pub hugetlb: BTreeMap<String, HugePages>,
}

/// CPU time and its limits.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Cpu {
    /// Time used.
    pub usage: CpuUsage,
    /// How the quota was felt.
    pub throttling: Throttling,
    /// Time lost to the lack of CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// CPU time in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct CpuUsage {
    /// In all.
    #[serde(skip_serializing_if = "is_zero")]
    pub total: u64,
    /// By CPU (version 1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// By CPU, in the kernel (version 1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// By CPU, in user mode (version 1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// In user mode.
    pub user: u64,
}

/// Enforcement of the CPU quota.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods that have passed.
    #[serde(skip_serializing_if = "is_zero")]
    pub periods: u64,
    /// Those in which it was throttled.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_periods: u64,
    /// For how long, nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_time: u64,
}

/// Cpusets: the lists, and (version 1) the flags.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[expect(missing_docs, reason = "each is the file of the same name, cgroup-v1/cpusets.rst")]
pub struct CpuSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

/// Memory in bytes.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Memory {
    /// Page cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: u64,
    /// All memory.
    pub usage: MemoryEntry,
    /// Memory and swap together.
    pub swap: MemoryEntry,
    /// Memory of the kernel (version 1).
    pub kernel: MemoryEntry,
    /// Memory of the kernel's TCP buffers (version 1).
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    /// Every line of `memory.stat`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// Time lost to the lack of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One kind of memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct MemoryEntry {
    /// Its limit; without one the largest number (version 2), or the largest that is whole pages (version 1).
    pub limit: u64,
    /// In use.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// The most that was in use.
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit was met.
    pub failcnt: u64,
}

/// Tasks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Pids {
    /// How many there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// How many there may be; 0 is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

/// Block devices; those figures that the I/O scheduler counts.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blkio {
    /// Bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    /// Requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
    /// Requests that wait.
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "Vec::is_empty")]
    pub io_queued_recursive: Vec<BlkioEntry>,
    /// Nanoseconds in service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_time_recursive: Vec<BlkioEntry>,
    /// Nanoseconds of waiting.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_wait_time_recursive: Vec<BlkioEntry>,
    /// Requests merged into others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_merged_recursive: Vec<BlkioEntry>,
    /// Milliseconds of the device's time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_time_recursive: Vec<BlkioEntry>,
    /// Sectors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sectors_recursive: Vec<BlkioEntry>,
    /// Time lost to waiting for devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// A figure of one device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct BlkioEntry {
    /// Its number.
    #[serde(skip_serializing_if = "is_zero")]
    pub major: u64,
    /// The rest of its number.
    #[serde(skip_serializing_if = "is_zero")]
    pub minor: u64,
    /// What was done: `Read`, `Write`, ...
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// How much.
    #[serde(skip_serializing_if = "is_zero")]
    pub value: u64,
}

/// Huge pages of one size, bytes; reservations where the kernel counts them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct HugePages {
    /// In use.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// The most that was in use (version 1).
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit was met.
    pub failcnt: u64,
}

/// Time lost to the lack of each resource; `None` where the kernel does not count it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pressures {
    /// For CPUs.
    pub cpu: Option<Pressure>,
    /// For memory.
    pub memory: Option<Pressure>,
    /// For block devices.
    pub io: Option<Pressure>,
}

/// Pressure stall information. Linux accounting/psi.rst.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Pressure {
    /// Some task waited.
    pub some: Stalls,
    /// Every task waited.
    pub full: Stalls,
}

/// Shares of time in percent, and their sum in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[expect(missing_docs, reason = "the kernel's words")]
pub struct Stalls {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Reads every figure; a file that is not there counts as zero.
///
/// # Errors
/// [`CgroupError::Read`] for the first file that is there and cannot be read.
pub(crate) fn read(layout: &Layout, relative: &str) -> Result<Figures, CgroupError> {
    let files = Files::default();
    let figures = match layout.version() {
        Version::V1 => {
            let directory = |controller: &str| layout.v1_mount(controller).map(|mount| mount.join(relative));
            v1(&files, |controller| directory(controller).unwrap_or_default())
        }
        Version::V2 => layout.unified.as_deref().map(|mount| v2(&files, &mount.join(relative))).unwrap_or_default(),
    };
    files.all_read(figures)
}

fn v1(files: &Files, directory: impl Fn(&str) -> std::path::PathBuf) -> Figures {
    let (cpuacct, cpu, memory, blkio) =
        (directory("cpuacct"), directory("cpu"), directory("memory"), directory("blkio"));
    let count = |path: &Path, file: &str| files.number(&path.join(file)).unwrap_or(0);
    let all = files.text(&cpuacct.join("cpuacct.usage_all"));
    let column = |at: usize| -> Vec<u64> {
        all.lines().skip(1).filter_map(|line| line.split(' ').nth(at)?.trim().parse().ok()).collect()
    };
    let stat = files.text(&cpu.join("cpu.stat"));
    let entry = |prefix: &str| MemoryEntry {
        limit: count(&memory, &format!("{prefix}.limit_in_bytes")),
        usage: count(&memory, &format!("{prefix}.usage_in_bytes")),
        max: count(&memory, &format!("{prefix}.max_usage_in_bytes")),
        failcnt: count(&memory, &format!("{prefix}.failcnt")),
    };
    let raw = pairs(&files.text(&memory.join("memory.stat")));
    let pids = directory("pids");
    Figures {
        cpu: Cpu {
            usage: CpuUsage {
                total: count(&cpuacct, "cpuacct.usage"),
                percpu: files
                    .text(&cpuacct.join("cpuacct.usage_percpu"))
                    .split_ascii_whitespace()
                    .filter_map(|word| word.parse().ok())
                    .collect(),
                percpu_kernel: column(2),
                percpu_user: column(1),
                kernel: count(&cpuacct, "cpuacct.usage_sys"),
                user: count(&cpuacct, "cpuacct.usage_user"),
            },
            throttling: Throttling {
                periods: keyed(&stat, "nr_periods").unwrap_or(0),
                throttled_periods: keyed(&stat, "nr_throttled").unwrap_or(0),
                throttled_time: keyed(&stat, "throttled_time").unwrap_or(0),
            },
            psi: None,
        },
        cpuset: cpuset_v1(files, &directory("cpuset")),
        memory: Memory {
            cache: raw.get("total_cache").copied().unwrap_or(0),
            usage: entry("memory"),
            swap: entry("memory.memsw"),
            kernel: entry("memory.kmem"),
            kernel_tcp: entry("memory.kmem.tcp"),
            raw,
            psi: None,
        },
        pids: Pids { current: count(&pids, "pids.current"), limit: count(&pids, "pids.max") },
        blkio: blkio_v1(files, &blkio),
        hugetlb: huge_pages(files, &directory("hugetlb"), "usage_in_bytes", |directory, name| HugePages {
            usage: count(directory, &format!("{name}.usage_in_bytes")),
            max: count(directory, &format!("{name}.max_usage_in_bytes")),
            failcnt: count(directory, &format!("{name}.failcnt")),
        }),
    }
}

fn cpuset_v1(files: &Files, directory: &Path) -> CpuSet {
    let text = |file: &str| files.text(&directory.join(file));
    let count = |file: &str| files.number(&directory.join(file)).unwrap_or(0);
    CpuSet {
        cpus: numbers(&text("cpuset.cpus")),
        cpu_exclusive: count("cpuset.cpu_exclusive"),
        mems: numbers(&text("cpuset.mems")),
        mem_hardwall: count("cpuset.mem_hardwall"),
        mem_exclusive: count("cpuset.mem_exclusive"),
        memory_migrate: count("cpuset.memory_migrate"),
        memory_spread_page: count("cpuset.memory_spread_page"),
        memory_spread_slab: count("cpuset.memory_spread_slab"),
        memory_pressure: count("cpuset.memory_pressure"),
        sched_load_balance: count("cpuset.sched_load_balance"),
        sched_relax_domain_level: text("cpuset.sched_relax_domain_level").trim().parse().unwrap_or(0),
    }
}

/// The I/O scheduler's figures where it is BFQ, those of throttling otherwise.
fn blkio_v1(files: &Files, directory: &Path) -> Blkio {
    let entries = |file: &str| block_entries(&files.text(&directory.join(file)));
    let bfq = |name: &str| entries(&format!("blkio.bfq.{name}_recursive"));
    let or_throttle = |name: &str| match bfq(name) {
        found if found.is_empty() => entries(&format!("blkio.throttle.{name}_recursive")),
        found => found,
    };
    Blkio {
        io_service_bytes_recursive: or_throttle("io_service_bytes"),
        io_serviced_recursive: or_throttle("io_serviced"),
        io_queued_recursive: bfq("io_queued"),
        io_service_time_recursive: bfq("io_service_time"),
        io_wait_time_recursive: bfq("io_wait_time"),
        io_merged_recursive: bfq("io_merged"),
        io_time_recursive: bfq("time"),
        sectors_recursive: bfq("sectors"),
        psi: None,
    }
}

/// `MAJOR:MINOR OPERATION N` and `MAJOR:MINOR N`; the sum over all devices is left out.
fn block_entries(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (first, second) = (words.next()?, words.next());
        let (op, value) = second.map_or(("", first), |value| (first, value));
        Some(BlkioEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: op.to_owned(),
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

fn v2(files: &Files, directory: &Path) -> Figures {
    let file = |name: &str| files.text(&directory.join(name));
    let count = |name: &str| files.number(&directory.join(name)).unwrap_or(0);
    let cpu = file("cpu.stat");
    let nanoseconds = |key: &str| keyed(&cpu, key).unwrap_or(0).saturating_mul(1000);
    let raw = pairs(&file("memory.stat"));
    let limit = |name: &str| files.number(&directory.join(name)).unwrap_or(u64::MAX);
    let usage = MemoryEntry {
        limit: limit("memory.max"),
        usage: count("memory.current"),
        max: count("memory.peak"),
        failcnt: keyed(&file("memory.events"), "max").unwrap_or(0),
    };
    Figures {
        cpu: Cpu {
            usage: CpuUsage {
                total: nanoseconds("usage_usec"),
                kernel: nanoseconds("system_usec"),
                user: nanoseconds("user_usec"),
                ..CpuUsage::default()
            },
            throttling: Throttling {
                periods: keyed(&cpu, "nr_periods").unwrap_or(0),
                throttled_periods: keyed(&cpu, "nr_throttled").unwrap_or(0),
                throttled_time: nanoseconds("throttled_usec"),
            },
            psi: pressure(&file("cpu.pressure")),
        },
        cpuset: CpuSet {
            cpus: numbers(&file("cpuset.cpus.effective")),
            mems: numbers(&file("cpuset.mems.effective")),
            ..CpuSet::default()
        },
        memory: Memory {
            cache: raw.get("file").copied().unwrap_or(0),
            // As version 1 counts: memory and swap together.
            swap: MemoryEntry {
                limit: limit("memory.swap.max").saturating_add(usage.limit),
                usage: count("memory.swap.current").saturating_add(usage.usage),
                max: 0,
                failcnt: 0,
            },
            usage,
            kernel: MemoryEntry::default(),
            kernel_tcp: MemoryEntry::default(),
            raw,
            psi: pressure(&file("memory.pressure")),
        },
        pids: Pids { current: count("pids.current"), limit: count("pids.max") },
        blkio: Blkio { psi: pressure(&file("io.pressure")), ..blkio_v2(&file("io.stat")) },
        hugetlb: huge_pages(files, directory, "current", |_, name| HugePages {
            usage: count(&format!("{name}.current")),
            max: 0,
            // There is one file of events, for reservations as well.
            failcnt: keyed(&file(&format!("{}.events", name.trim_end_matches(".rsvd"))), "max").unwrap_or(0),
        }),
    }
}

fn blkio_v2(stat: &str) -> Blkio {
    let mut blkio = Blkio::default();
    for line in stat.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for word in words {
            let Some((key, value)) = word.split_once('=') else { continue };
            let (list, op) = match key {
                "rbytes" => (&mut blkio.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut blkio.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut blkio.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut blkio.io_serviced_recursive, "Read"),
                "wios" => (&mut blkio.io_serviced_recursive, "Write"),
                "dios" => (&mut blkio.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            let Ok(value) = value.parse() else { continue };
            list.push(BlkioEntry { major, minor, op: op.to_owned(), value });
        }
    }
    blkio
}

/// One entry for each page size that has a file `hugetlb.<size>.<suffix>`; `read` gets the prefix of the files that
/// count, those of reservations where there are any.
fn huge_pages(
    files: &Files,
    directory: &Path,
    suffix: &str,
    read: impl Fn(&Path, &str) -> HugePages,
) -> BTreeMap<String, HugePages> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            files.lacks(directory, error);
            return BTreeMap::new();
        }
    };
    let names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let sizes = names.iter().filter_map(|name| name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?.strip_suffix('.'));
    let one = |size: &str| {
        let reserved = format!("hugetlb.{size}.rsvd");
        let counts = names.contains(&format!("{reserved}.{suffix}"));
        (size.to_owned(), read(directory, if counts { &reserved } else { reserved.trim_end_matches(".rsvd") }))
    };
    sizes.filter(|size| !size.contains('.')).map(one).collect()
}

/// `key value` lines.
fn pairs(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// `0-2,7` as 0, 1, 2, 7.
fn numbers(list: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

/// Time lost to the lack of each resource; nothing under version 1, which counts it for the whole machine only.
///
/// # Errors
/// [`CgroupError::Read`] for the first file that is there and cannot be read.
pub(crate) fn pressures(layout: &Layout, relative: &str) -> Result<Pressures, CgroupError> {
    match (layout.version(), &layout.unified) {
        (Version::V2, Some(mount)) => pressures_v2(&mount.join(relative)),
        _ => Ok(Pressures::default()),
    }
}

fn pressures_v2(directory: &Path) -> Result<Pressures, CgroupError> {
    let files = Files::default();
    let of = |name: &str| pressure(&files.text(&directory.join(name)));
    let all = Pressures { cpu: of("cpu.pressure"), memory: of("memory.pressure"), io: of("io.pressure") };
    files.all_read(all)
}

/// Absent where the kernel does not count it.
fn pressure(text: &str) -> Option<Pressure> {
    let stalls = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value =
            |key: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let share = |key: &str| value(key).and_then(|value| value.parse().ok()).unwrap_or(0.0);
        Some(Stalls {
            avg10: share("avg10"),
            avg60: share("avg60"),
            avg300: share("avg300"),
            total: value("total").and_then(|value| value.parse().ok()).unwrap_or(0),
        })
    };
    Some(Pressure { some: stalls("some ")?, full: stalls("full ").unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(files: &[(&str, &str)], read: impl Fn(&Files, &Path) -> Figures, expected: &Expect) {
        let directory = tempfile::tempdir().expect("tempdir");
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).expect("write");
        }
        let all = Files::default();
        let figures = read(&all, directory.path());
        let value = serde_json::to_value(all.all_read(figures).expect("all is read")).expect("json");
        let parts = value.as_object().expect("object").iter();
        expected.assert_eq(&parts.map(|(name, value)| format!("{name}: {value}\n")).collect::<String>());
    }

    #[test]
    fn version_one_is_printed_as_runc_prints_it() {
        check(
            &[
                ("cpuacct.usage", "3000\n"),
                ("cpuacct.usage_percpu", "1000 2000 \n"),
                ("cpuacct.usage_all", "cpu user system\n0 600 400\n1 1500 500\n"),
                ("cpuacct.usage_user", "2100\n"),
                ("cpuacct.usage_sys", "900\n"),
                ("cpu.stat", "nr_periods 9\nnr_throttled 2\nthrottled_time 7\n"),
                ("cpuset.cpus", "0-1,4\n"),
                ("cpuset.mems", "0\n"),
                ("cpuset.sched_load_balance", "1\n"),
                ("cpuset.sched_relax_domain_level", "-1\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.usage_in_bytes", "10\n"),
                ("memory.max_usage_in_bytes", "20\n"),
                ("memory.failcnt", "1\n"),
                ("memory.memsw.limit_in_bytes", "4096\n"),
                ("memory.stat", "cache 3\ntotal_cache 4\ntotal_rss 5\n"),
                ("pids.current", "2\n"),
                ("pids.max", "max\n"),
                ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 10\n8:0 Write 20\nTotal 30\n"),
                ("hugetlb.2MB.usage_in_bytes", "0\n"),
                ("hugetlb.2MB.rsvd.usage_in_bytes", "2097152\n"),
                ("hugetlb.2MB.rsvd.failcnt", "3\n"),
            ],
            |files, directory| v1(files, |_| directory.to_owned()),
            &expect![[r#"
                blkio: {"ioServiceBytesRecursive":[{"major":8,"op":"Read","value":10},{"major":8,"op":"Write","value":20}]}
                cpu: {"throttling":{"periods":9,"throttledPeriods":2,"throttledTime":7},"usage":{"kernel":900,"percpu":[1000,2000],"percpu_kernel":[400,500],"percpu_user":[600,1500],"total":3000,"user":2100}}
                cpuset: {"cpu_exclusive":0,"cpus":[0,1,4],"mem_exclusive":0,"mem_hardwall":0,"memory_migrate":0,"memory_pressure":0,"memory_spread_page":0,"memory_spread_slab":0,"mems":[0],"sched_load_balance":1,"sched_relax_domain_level":-1}
                hugetlb: {"2MB":{"failcnt":3,"usage":2097152}}
                memory: {"cache":4,"kernel":{"failcnt":0,"limit":0},"kernelTCP":{"failcnt":0,"limit":0},"raw":{"cache":3,"total_cache":4,"total_rss":5},"swap":{"failcnt":0,"limit":4096},"usage":{"failcnt":1,"limit":9223372036854771712,"max":20,"usage":10}}
                pids: {"current":2}
            "#]],
        );
    }

    #[test]
    fn version_two_is_printed_as_runc_prints_it() {
        check(
            &[
                (
                    "cpu.stat",
                    "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 9\nnr_throttled 2\nthrottled_usec 7\n",
                ),
                (
                    "cpu.pressure",
                    "some avg10=1.50 avg60=0.00 avg300=0.00 total=99\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
                ),
                ("cpuset.cpus.effective", "0-1\n"),
                ("memory.current", "10000\n"),
                ("memory.max", "20000\n"),
                ("memory.peak", "15000\n"),
                ("memory.swap.current", "5\n"),
                ("memory.swap.max", "max\n"),
                ("memory.stat", "anon 4000\nfile 6000\n"),
                ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n"),
                ("pids.current", "3\n"),
                ("pids.max", "20\n"),
                ("io.stat", "8:0 rbytes=100 wbytes=200 rios=1 wios=2 dbytes=0 dios=0 cost.usage=5\n"),
                ("hugetlb.1GB.current", "0\n"),
                ("hugetlb.1GB.events", "max 4\n"),
                ("hugetlb.2MB.current", "0\n"),
                ("hugetlb.2MB.rsvd.current", "2097152\n"),
                ("hugetlb.2MB.events", "max 5\n"),
            ],
            v2,
            &expect![[r#"
                blkio: {"ioServiceBytesRecursive":[{"major":8,"op":"Read","value":100},{"major":8,"op":"Write","value":200},{"major":8,"op":"Discard"}],"ioServicedRecursive":[{"major":8,"op":"Read","value":1},{"major":8,"op":"Write","value":2},{"major":8,"op":"Discard"}]}
                cpu: {"psi":{"full":{"avg10":0.0,"avg300":0.0,"avg60":0.0,"total":3},"some":{"avg10":1.5,"avg300":0.0,"avg60":0.0,"total":99}},"throttling":{"periods":9,"throttledPeriods":2,"throttledTime":7000},"usage":{"kernel":500000,"total":1500000,"user":1000000}}
                cpuset: {"cpu_exclusive":0,"cpus":[0,1],"mem_exclusive":0,"mem_hardwall":0,"memory_migrate":0,"memory_pressure":0,"memory_spread_page":0,"memory_spread_slab":0,"sched_load_balance":0,"sched_relax_domain_level":0}
                hugetlb: {"1GB":{"failcnt":4},"2MB":{"failcnt":5,"usage":2097152}}
                memory: {"cache":6000,"kernel":{"failcnt":0,"limit":0},"kernelTCP":{"failcnt":0,"limit":0},"raw":{"anon":4000,"file":6000},"swap":{"failcnt":0,"limit":18446744073709551615,"usage":10005},"usage":{"failcnt":3,"limit":20000,"max":15000,"usage":10000}}
                pids: {"current":3,"limit":20}
            "#]],
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_and_one_that_is_absent_counts_as_zero() {
        type Read = fn(&Path) -> Result<(), CgroupError>;
        fn all(read: impl FnOnce(&Files) -> Figures) -> Result<(), CgroupError> {
            let files = Files::default();
            let figures = read(&files);
            files.all_read(figures).map(drop)
        }
        let by_v1: Read = |directory| all(|files| v1(files, |_| directory.to_owned()));
        let by_v2: Read = |directory| all(|files| v2(files, directory));
        let of_pressures: Read = |directory| pressures_v2(directory).map(drop);
        let reads = [
            ("memory.stat", by_v1),
            ("cpuset.cpus", by_v1),
            ("memory.stat", by_v2),
            ("io.pressure", by_v2),
            ("memory.pressure", of_pressures),
        ];
        for (name, read) in reads {
            let directory = tempfile::tempdir().expect("tempdir");
            read(directory.path()).expect("nothing is there");
            let path = directory.path().join(name);
            std::fs::create_dir(&path).expect("mkdir");
            let error = read(directory.path()).expect_err("a directory is no file");
            assert_eq!(error.to_string(), format!("reading {}", path.display()));
        }
        // A directory that is none cannot be listed.
        let file = tempfile::NamedTempFile::new().expect("file");
        let files = Files::default();
        assert!(huge_pages(&files, file.path(), "current", |_, _| HugePages::default()).is_empty());
        assert!(files.all_read(()).is_err());
    }
}
