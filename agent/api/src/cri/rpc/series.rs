//! cAdvisor's series: their names, and what each of them is here. A value is a whole number in CRI, so seconds come without
//! their fractions. What the kernel of a machine does not count has no series there: pressure and the kernel's memory are
//! of cgroup v2 or of newer kernels, huge pages of machines with that controller.
//!
//! Source: cAdvisor's `docs/storage/prometheus.md`; the CRI validation suite, which wants every name of [`SERIES`] but
//! `container_memory_total_active_file_bytes` and its neighbour.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use oci_spec::runtime::LinuxResources;
use portreeve_engine::figures::BlkioEntry;
use portreeve_engine::image::Filesystem;
use portreeve_engine::{ContainerStatus, Count, Processes, SandboxStatus};

use crate::cri::traffic::Interface;
use crate::cri::v1::{FilesystemUsage, Metric, MetricDescriptor, MetricType, UInt64Value};
use crate::cri::view;

/// What every series is told apart by.
const LABELS: [&str; 6] = ["id", "name", "image", "container", "pod", "namespace"];

/// What some are told apart by beside that.
const NONE: &[&str] = &[];
const CPU: &[&str] = &["cpu"];
const DEVICE: &[&str] = &["device"];
const FAILURE: &[&str] = &["failure_type", "scope"];
const INTERFACE: &[&str] = &["interface"];
const OPERATION: &[&str] = &["device", "major", "minor", "operation"];
const PAGE_SIZE: &[&str] = &["pagesize"];
const ULIMIT: &[&str] = &["ulimit"];

/// Name, help, and labels beside [`LABELS`].
const SERIES: [(&str, &str, &[&str]); 58] = [
    ("container_cpu_usage_seconds_total", "Processor time used, in seconds.", CPU),
    ("container_cpu_user_seconds_total", "Of it in user mode, in seconds.", NONE),
    ("container_cpu_system_seconds_total", "Of it in the kernel, in seconds.", NONE),
    ("container_cpu_cfs_periods_total", "Periods in which a quota of processor time was enforced.", NONE),
    ("container_cpu_cfs_throttled_periods_total", "Of these, how many were throttled.", NONE),
    ("container_cpu_cfs_throttled_seconds_total", "Time for which it was throttled, in seconds.", NONE),
    ("container_memory_usage_bytes", "Memory used, with caches.", NONE),
    ("container_memory_working_set_bytes", "Memory used, without inactive caches of files.", NONE),
    ("container_memory_rss", "Anonymous memory, in bytes.", NONE),
    ("container_memory_cache", "Memory that caches files, in bytes.", NONE),
    ("container_memory_mapped_file", "Memory of files that are mapped, in bytes.", NONE),
    ("container_memory_total_active_file_bytes", "Memory of files that were used lately.", NONE),
    ("container_memory_total_inactive_file_bytes", "Memory of files that were not.", NONE),
    ("container_memory_kernel_usage", "Memory that the kernel uses for it, in bytes.", NONE),
    ("container_memory_swap", "Swap used, in bytes.", NONE),
    ("container_memory_max_usage_bytes", "The most memory that was used, in bytes.", NONE),
    ("container_memory_failcnt", "How often the limit on memory was met.", NONE),
    ("container_memory_failures_total", "Page faults, and major ones; of itself, and with all below.", FAILURE),
    ("container_hugetlb_usage_bytes", "Memory in huge pages, in bytes.", PAGE_SIZE),
    ("container_hugetlb_max_usage_bytes", "The most that was in huge pages, in bytes.", PAGE_SIZE),
    ("container_oom_events_total", "Processes that were killed for lack of memory.", NONE),
    (
        "container_pressure_cpu_waiting_seconds_total",
        "Time for which some task waited for a processor, in seconds.",
        NONE,
    ),
    ("container_pressure_cpu_stalled_seconds_total", "Time for which all tasks did, in seconds.", NONE),
    (
        "container_pressure_memory_waiting_seconds_total",
        "Time for which some task waited for memory, in seconds.",
        NONE,
    ),
    ("container_pressure_memory_stalled_seconds_total", "Time for which all tasks did, in seconds.", NONE),
    ("container_pressure_io_waiting_seconds_total", "Time for which some task waited for a disk, in seconds.", NONE),
    ("container_pressure_io_stalled_seconds_total", "Time for which all tasks did, in seconds.", NONE),
    ("container_blkio_device_usage_total", "Bytes of a block device, by what was done.", OPERATION),
    ("container_fs_reads_bytes_total", "Bytes read from a block device.", DEVICE),
    ("container_fs_reads_total", "Reads from a block device.", DEVICE),
    ("container_fs_writes_bytes_total", "Bytes written to a block device.", DEVICE),
    ("container_fs_writes_total", "Writes to a block device.", DEVICE),
    ("container_fs_usage_bytes", "Bytes of what the container wrote to its own layer.", DEVICE),
    ("container_fs_limit_bytes", "Size of the file system that layer is on, in bytes.", DEVICE),
    ("container_fs_inodes_total", "Inodes of that file system; 0 where it makes them as they are needed.", DEVICE),
    ("container_fs_inodes_free", "Of these, how many are free.", DEVICE),
    ("container_processes", "Processes.", NONE),
    ("container_threads", "Processes and threads.", NONE),
    ("container_threads_max", "The limit on these; 0 without one.", NONE),
    ("container_file_descriptors", "Open file descriptors.", NONE),
    ("container_sockets", "Of these, sockets.", NONE),
    ("container_ulimits_soft", "Soft limits of the first process.", ULIMIT),
    ("container_spec_cpu_period", "The period of the quota of processor time, in microseconds.", NONE),
    ("container_spec_cpu_quota", "That quota, in microseconds.", NONE),
    ("container_spec_cpu_shares", "The share of processors that are short.", NONE),
    ("container_spec_memory_limit_bytes", "The limit on memory, in bytes; 0 without one.", NONE),
    ("container_spec_memory_reservation_limit_bytes", "The soft limit on memory, in bytes; 0 without one.", NONE),
    ("container_spec_memory_swap_limit_bytes", "The limit on memory with swap, in bytes; 0 without one.", NONE),
    ("container_start_time_seconds", "When it was started, in seconds since 1970.", NONE),
    ("container_last_seen", "When this was read, in seconds since 1970.", NONE),
    ("container_network_receive_bytes_total", "Bytes received.", INTERFACE),
    ("container_network_receive_packets_total", "Packets received.", INTERFACE),
    ("container_network_receive_errors_total", "Errors while receiving.", INTERFACE),
    ("container_network_receive_packets_dropped_total", "Packets dropped while receiving.", INTERFACE),
    ("container_network_transmit_bytes_total", "Bytes sent.", INTERFACE),
    ("container_network_transmit_packets_total", "Packets sent.", INTERFACE),
    ("container_network_transmit_errors_total", "Errors while sending.", INTERFACE),
    ("container_network_transmit_packets_dropped_total", "Packets dropped while sending.", INTERFACE),
];

/// Every series, as clients are told of it before they see one.
pub(super) fn described() -> Vec<MetricDescriptor> {
    let descriptor = |(name, help, labels): &(&str, &str, &[&str])| MetricDescriptor {
        name: (*name).to_owned(),
        help: (*help).to_owned(),
        label_keys: LABELS.iter().chain(*labels).map(|label| (*label).to_owned()).collect(),
    };
    SERIES.iter().map(descriptor).collect()
}

/// Names of block devices, by number.
#[derive(Debug, Default)]
pub(super) struct Devices(Mutex<BTreeMap<(u64, u64), String>>);

impl Devices {
    /// `/dev/<name>`; where the kernel has no name for it, as of file systems without a device of their own, the number.
    pub(super) fn name(&self, major: u64, minor: u64) -> String {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = || {
            let number = format!("{major}:{minor}");
            let about = std::fs::read_to_string(format!("/sys/dev/block/{number}/uevent")).unwrap_or_default();
            let name = about.lines().find_map(|line| line.strip_prefix("DEVNAME="));
            name.map_or(number, |name| format!("/dev/{name}"))
        };
        names.entry((major, minor)).or_insert_with(found).clone()
    }
}

/// The series of one container or pod.
pub(super) struct Series {
    labels: Vec<String>,
    at: Timestamp,
    pub(super) metrics: Vec<Metric>,
}

impl Series {
    pub(super) fn of_sandbox(sandbox: &SandboxStatus, at: Timestamp) -> Self {
        Self::new(sandbox, [&sandbox.cgroup_parent, sandbox.id.as_str(), "", ""], at)
    }

    pub(super) fn of_container(sandbox: &SandboxStatus, one: &ContainerStatus, at: Timestamp) -> Self {
        Self::new(sandbox, [&one.cgroup, one.id.as_str(), &one.image, &one.metadata.name], at)
    }

    fn new(sandbox: &SandboxStatus, own: [&str; 4], at: Timestamp) -> Self {
        let pod = [sandbox.metadata.name.as_str(), sandbox.metadata.namespace.as_str()];
        Self { labels: own.into_iter().chain(pod).map(str::to_owned).collect(), at, metrics: Vec::new() }
    }

    /// What the kernel counts of a cgroup.
    pub(super) fn cgroup(&mut self, count: &Count, devices: &Devices) {
        self.processor(count);
        self.memory(count);
        self.pressure(count);
        self.block_devices(count, devices);
    }

    fn processor(&mut self, count: &Count) {
        let counted = &count.usage.counted;
        self.counter("container_cpu_usage_seconds_total", seconds(counted.cpu_usage_ns), &["total"]);
        self.counter("container_cpu_user_seconds_total", seconds(counted.cpu_user_ns), &[]);
        self.counter("container_cpu_system_seconds_total", seconds(counted.cpu_system_ns), &[]);
        self.counter("container_cpu_cfs_periods_total", counted.cpu_periods, &[]);
        self.counter("container_cpu_cfs_throttled_periods_total", counted.cpu_throttled_periods, &[]);
        self.counter("container_cpu_cfs_throttled_seconds_total", seconds(counted.cpu_throttled_ns), &[]);
        self.gauge("container_threads", counted.pids, &[]);
    }

    fn memory(&mut self, count: &Count) {
        let (counted, memory) = (&count.usage.counted, &count.figures.memory);
        // Version 1 has a sum over all below under another name, version 2 knows sums alone.
        let raw = |names: &[&str]| names.iter().find_map(|name| memory.raw.get(*name)).copied().unwrap_or(0);
        for (name, value) in [
            ("container_memory_usage_bytes", counted.memory_bytes),
            ("container_memory_working_set_bytes", counted.memory_working_set_bytes),
            ("container_memory_rss", counted.memory_rss_bytes),
            ("container_memory_cache", memory.cache),
            ("container_memory_mapped_file", raw(&["total_mapped_file", "file_mapped"])),
            ("container_memory_total_active_file_bytes", raw(&["total_active_file", "active_file"])),
            ("container_memory_total_inactive_file_bytes", raw(&["total_inactive_file", "inactive_file"])),
            ("container_memory_kernel_usage", memory.kernel.usage.max(raw(&["kernel"]))),
            ("container_memory_swap", counted.swap_bytes),
            ("container_memory_max_usage_bytes", counted.memory_peak_bytes),
        ] {
            self.gauge(name, value, &[]);
        }
        self.counter("container_memory_failcnt", memory.usage.failcnt, &[]);
        for (kind, scope, names) in [
            ("pgfault", "container", &["pgfault"] as &[_]),
            ("pgfault", "hierarchy", &["total_pgfault", "pgfault"]),
            ("pgmajfault", "container", &["pgmajfault"]),
            ("pgmajfault", "hierarchy", &["total_pgmajfault", "pgmajfault"]),
        ] {
            self.counter("container_memory_failures_total", raw(names), &[kind, scope]);
        }
        for (size, pages) in &count.figures.hugetlb {
            self.gauge("container_hugetlb_usage_bytes", pages.usage, &[size]);
            // Version 2 does not count it.
            if pages.max > 0 {
                self.gauge("container_hugetlb_max_usage_bytes", pages.max, &[size]);
            }
        }
        self.counter("container_oom_events_total", counted.oom_kills, &[]);
    }

    fn pressure(&mut self, count: &Count) {
        let waited = &count.usage.waited;
        for (waiting, stalled, waited) in [
            (
                "container_pressure_cpu_waiting_seconds_total",
                "container_pressure_cpu_stalled_seconds_total",
                waited.cpu,
            ),
            (
                "container_pressure_memory_waiting_seconds_total",
                "container_pressure_memory_stalled_seconds_total",
                waited.memory,
            ),
            ("container_pressure_io_waiting_seconds_total", "container_pressure_io_stalled_seconds_total", waited.io),
        ] {
            if let Some(waited) = waited {
                self.counter(waiting, waited.some.total / 1_000_000, &[]);
                self.counter(stalled, waited.full.total / 1_000_000, &[]);
            }
        }
    }

    fn block_devices(&mut self, count: &Count, devices: &Devices) {
        let blkio = &count.figures.blkio;
        let name = |entry: &BlkioEntry| devices.name(entry.major, entry.minor);
        for entry in &blkio.io_service_bytes_recursive {
            let (major, minor) = (entry.major.to_string(), entry.minor.to_string());
            let labels = [name(entry).as_str(), &major, &minor, &entry.op].map(str::to_owned);
            let labels = labels.each_ref().map(String::as_str);
            self.counter("container_blkio_device_usage_total", entry.value, &labels);
        }
        for (entries, read, written) in [
            (&blkio.io_service_bytes_recursive, "container_fs_reads_bytes_total", "container_fs_writes_bytes_total"),
            (&blkio.io_serviced_recursive, "container_fs_reads_total", "container_fs_writes_total"),
        ] {
            for entry in entries {
                match entry.op.as_str() {
                    "Read" => self.counter(read, entry.value, &[&name(entry)]),
                    "Write" => self.counter(written, entry.value, &[&name(entry)]),
                    _ => {}
                }
            }
        }
    }

    /// What processes there are and what they hold; at most `limit` of them, threads included.
    pub(super) fn processes(&mut self, processes: &Processes, limit: Option<u64>) {
        self.gauge("container_processes", processes.count, &[]);
        self.gauge("container_threads_max", limit.unwrap_or(0), &[]);
        if let Some(descriptors) = processes.descriptors {
            self.gauge("container_file_descriptors", descriptors.all, &[]);
            self.gauge("container_sockets", descriptors.sockets, &[]);
        }
        if let Some(limit) = processes.files_limit {
            self.gauge("container_ulimits_soft", limit, &["max_open_files"]);
        }
    }

    /// What was asked for; where nothing was, what the kernel takes then.
    pub(super) fn spec(&mut self, resources: &LinuxResources) {
        let (cpu, memory) = (resources.cpu().clone().unwrap_or_default(), resources.memory().unwrap_or_default());
        let bytes = |limit: Option<i64>| limit.and_then(|limit| u64::try_from(limit).ok()).unwrap_or(0);
        self.gauge("container_spec_cpu_period", cpu.period().filter(|period| *period > 0).unwrap_or(100_000), &[]);
        if let Some(quota) = cpu.quota().and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0) {
            self.gauge("container_spec_cpu_quota", quota, &[]);
        }
        self.gauge("container_spec_cpu_shares", cpu.shares().filter(|shares| *shares > 0).unwrap_or(1024), &[]);
        self.gauge("container_spec_memory_limit_bytes", bytes(memory.limit()), &[]);
        self.gauge("container_spec_memory_reservation_limit_bytes", bytes(memory.reservation()), &[]);
        self.gauge("container_spec_memory_swap_limit_bytes", bytes(memory.swap()), &[]);
    }

    /// Since when it runs, and that it does.
    pub(super) fn seen(&mut self, started_at: Option<Timestamp>) {
        let seconds = |at: Timestamp| u64::try_from(at.as_second()).unwrap_or(0);
        if let Some(started_at) = started_at {
            self.gauge("container_start_time_seconds", seconds(started_at), &[]);
        }
        self.gauge("container_last_seen", seconds(self.at), &[]);
    }

    /// What was written to a container's layer, and the file system that it is on.
    pub(super) fn disk(&mut self, disk: &Filesystem, written: Option<&FilesystemUsage>, device: &str) {
        if let Some(used) = written.and_then(|written| written.used_bytes) {
            self.gauge("container_fs_usage_bytes", used.value, &[device]);
        }
        self.gauge("container_fs_limit_bytes", disk.capacity_bytes, &[device]);
        self.gauge("container_fs_inodes_total", disk.inodes, &[device]);
        self.gauge("container_fs_inodes_free", disk.inodes_free, &[device]);
    }

    pub(super) fn network(&mut self, interface: &Interface) {
        let (received, sent, name) = (&interface.received, &interface.sent, interface.name.as_str());
        for (series, value) in [
            ("container_network_receive_bytes_total", received.bytes),
            ("container_network_receive_packets_total", received.packets),
            ("container_network_receive_errors_total", received.errors),
            ("container_network_receive_packets_dropped_total", received.dropped),
            ("container_network_transmit_bytes_total", sent.bytes),
            ("container_network_transmit_packets_total", sent.packets),
            ("container_network_transmit_errors_total", sent.errors),
            ("container_network_transmit_packets_dropped_total", sent.dropped),
        ] {
            self.counter(series, value, &[name]);
        }
    }

    fn gauge(&mut self, name: &str, value: u64, labels: &[&str]) {
        self.put(name, MetricType::Gauge, value, labels);
    }

    fn counter(&mut self, name: &str, value: u64, labels: &[&str]) {
        self.put(name, MetricType::Counter, value, labels);
    }

    /// `labels` are the values of those that the series has beside [`LABELS`].
    fn put(&mut self, name: &str, kind: MetricType, value: u64, labels: &[&str]) {
        self.metrics.push(Metric {
            name: name.to_owned(),
            timestamp: view::nanoseconds(self.at),
            metric_type: kind.into(),
            label_values: self
                .labels
                .iter()
                .map(String::as_str)
                .chain(labels.iter().copied())
                .map(str::to_owned)
                .collect(),
            value: Some(UInt64Value { value }),
        });
    }
}

fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use oci_spec::runtime::LinuxCpu;
    use portreeve_engine::figures::HugePages;
    use portreeve_engine::{Descriptors, Figures, Pressure, Pressures, Stats, Usage};

    use super::*;

    fn series() -> Series {
        let labels = LABELS.iter().map(|label| (*label).to_owned()).collect();
        Series { labels, at: Timestamp::UNIX_EPOCH, metrics: Vec::new() }
    }

    /// A container of which all is known that can be.
    fn everything() -> Vec<Metric> {
        let mut figures = Figures::default();
        let entry = |op: &str, value| BlkioEntry { major: 7, minor: 999_999, op: op.to_owned(), value };
        figures.blkio.io_service_bytes_recursive = vec![entry("Read", 11), entry("Write", 12), entry("Total", 23)];
        figures.blkio.io_serviced_recursive = vec![entry("Read", 1), entry("Write", 2)];
        figures.hugetlb.insert("2MB".to_owned(), HugePages { usage: 1, max: 2, failcnt: 0 });
        figures.memory.raw = [("pgfault", 3), ("total_pgfault", 4)].map(|(key, value)| (key.to_owned(), value)).into();
        let waited = Some(Pressure::default());
        let usage = Usage {
            at: Timestamp::UNIX_EPOCH,
            counted: Stats { cpu_usage_ns: 3_900_000_000, ..Stats::default() },
            waited: Pressures { cpu: waited, memory: waited, io: waited },
        };
        let mut series = series();
        series.cgroup(&Count { usage, figures }, &Devices::default());
        let descriptors = Some(Descriptors { all: 5, sockets: 1 });
        series.processes(&Processes { count: 2, descriptors, files_limit: Some(1024) }, None);
        let mut cpu = LinuxCpu::default();
        cpu.set_quota(Some(20_000));
        let mut resources = LinuxResources::default();
        resources.set_cpu(Some(cpu));
        series.spec(&resources);
        series.seen(Some(Timestamp::UNIX_EPOCH));
        let disk = Filesystem { capacity_bytes: 100, available_bytes: 50, inodes: 10, inodes_free: 4 };
        let written = FilesystemUsage { used_bytes: Some(UInt64Value { value: 9 }), ..FilesystemUsage::default() };
        series.disk(&disk, Some(&written), "/dev/vda1");
        series.network(&Interface { name: "eth0".into(), ..Interface::default() });
        series.metrics
    }

    #[test]
    fn every_series_that_is_described_is_given_and_every_one_that_is_given_is_described() {
        let described = described();
        let names = |names: &mut dyn Iterator<Item = &String>| names.cloned().collect::<BTreeSet<_>>();
        let metrics = everything();
        let given = names(&mut metrics.iter().map(|metric| &metric.name));
        assert_eq!(names(&mut described.iter().map(|descriptor| &descriptor.name)), given);
        assert_eq!(described.len(), given.len(), "no name twice");
        for metric in &metrics {
            let descriptor = described.iter().find(|descriptor| descriptor.name == metric.name).unwrap();
            assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
        }
        // A kubelet refuses all of them when two are alike.
        let unique: BTreeSet<_> = metrics.iter().map(|metric| (&metric.name, &metric.label_values)).collect();
        assert_eq!(unique.len(), metrics.len());
    }

    #[test]
    fn values_are_those_that_were_counted() {
        let metrics = everything();
        let value = |name: &str, labels: &[&str]| {
            let of =
                |metric: &&Metric| metric.name == name && metric.label_values.get(LABELS.len()..).unwrap() == labels;
            metrics.iter().find(of).unwrap_or_else(|| panic!("{name} {labels:?}")).value.unwrap().value
        };
        assert_eq!(value("container_cpu_usage_seconds_total", &["total"]), 3);
        assert_eq!(value("container_memory_failures_total", &["pgfault", "container"]), 3);
        assert_eq!(value("container_memory_failures_total", &["pgfault", "hierarchy"]), 4);
        assert_eq!(value("container_fs_reads_bytes_total", &["7:999999"]), 11);
        assert_eq!(value("container_fs_writes_total", &["7:999999"]), 2);
        assert_eq!(value("container_blkio_device_usage_total", &["7:999999", "7", "999999", "Total"]), 23);
        assert_eq!(value("container_fs_usage_bytes", &["/dev/vda1"]), 9);
        assert_eq!(value("container_fs_inodes_total", &["/dev/vda1"]), 10);
        assert_eq!(value("container_spec_cpu_quota", &[]), 20_000);
        assert_eq!(value("container_spec_cpu_period", &[]), 100_000);
        assert_eq!(value("container_threads_max", &[]), 0);
    }
}
