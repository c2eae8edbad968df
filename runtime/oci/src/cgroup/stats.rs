//! Reading what a cgroup has used.

use std::cell::RefCell;
use std::io;
use std::path::Path;

use super::layout::Layout;
use super::lifecycle::gone;
use super::{CgroupError, Version};

/// What a cgroup and everything below it has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// CPU time in nanoseconds.
    pub cpu_usage_ns: u64,
    /// Of it in user mode.
    pub cpu_user_ns: u64,
    /// Of it in the kernel.
    pub cpu_system_ns: u64,
    /// Enforcement periods that have passed with a quota.
    pub cpu_periods: u64,
    /// Of these, how many were throttled.
    pub cpu_throttled_periods: u64,
    /// Time throttled, nanoseconds.
    pub cpu_throttled_ns: u64,
    /// Memory charged, page cache included, bytes.
    pub memory_bytes: u64,
    /// The same without inactive file pages: what the kubelet calls the working set.
    pub memory_working_set_bytes: u64,
    /// Anonymous memory (resident set), bytes.
    pub memory_rss_bytes: u64,
    /// Highest charge since the cgroup was made, bytes.
    pub memory_peak_bytes: u64,
    /// The hard limit, bytes; `None` without one.
    pub memory_limit_bytes: Option<u64>,
    /// Swap in use, bytes.
    pub swap_bytes: u64,
    /// The limit on it, bytes; `None` without one.
    pub swap_limit_bytes: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Major page faults.
    pub major_page_faults: u64,
    /// How many processes the kernel's out-of-memory killer has ended here.
    pub oom_kills: u64,
    /// Tasks.
    pub pids: u64,
    /// The limit on tasks; `None` without one.
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: u64,
    /// Bytes written to block devices.
    pub io_write_bytes: u64,
}

/// Reads every figure; a file that is not there counts as zero.
///
/// # Errors
/// [`CgroupError::Read`] for the first file that is there and cannot be read.
pub(crate) fn read(layout: &Layout, relative: &str) -> Result<Stats, CgroupError> {
    match (layout.version(), &layout.unified) {
        (Version::V1, _) => read_v1(layout, relative),
        (Version::V2, Some(mount)) => read_v2(&mount.join(relative)),
        (Version::V2, None) => Ok(Stats::default()),
    }
}

/// Files of a cgroup, read one after the other, and the first that could not be.
#[derive(Default)]
pub(crate) struct Files(RefCell<Option<CgroupError>>);

impl Files {
    /// What a file says; nothing when it is not there.
    pub(crate) fn text(&self, path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_else(|source| {
            self.lacks(path, source);
            String::new()
        })
    }

    /// That a file or directory could not be read. A kernel without what it counts has no such file, or one that it refuses
    /// to read.
    pub(crate) fn lacks(&self, path: &Path, source: io::Error) {
        if !gone(&source) && source.kind() != io::ErrorKind::Unsupported {
            self.0.borrow_mut().get_or_insert(CgroupError::Read { path: path.to_owned(), source });
        }
    }

    /// The number in a file; nothing when it is not there, or says another word.
    pub(crate) fn number(&self, path: &Path) -> Option<u64> {
        self.text(path).trim().parse().ok()
    }

    /// What was found in them, if all could be read that are there.
    ///
    /// # Errors
    /// [`CgroupError::Read`] for the first that could not be.
    pub(crate) fn all_read<T>(self, found: T) -> Result<T, CgroupError> {
        self.0.into_inner().map_or(Ok(found), Err)
    }
}

/// Value of `key` in a file of `key value` lines.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Above this a version 1 limit means none (the kernel shows the largest page-aligned number).
pub(crate) const V1_UNLIMITED: u64 = 1 << 60;

fn read_v1(layout: &Layout, relative: &str) -> Result<Stats, CgroupError> {
    let files = Files::default();
    let directory = |controller: &str| layout.v1_mount(controller).map(|mount| mount.join(relative));
    let mut stats = Stats::default();
    if let Some(cpu) = directory("cpuacct") {
        stats.cpu_usage_ns = files.number(&cpu.join("cpuacct.usage")).unwrap_or(0);
        stats.cpu_user_ns = files.number(&cpu.join("cpuacct.usage_user")).unwrap_or(0);
        stats.cpu_system_ns = files.number(&cpu.join("cpuacct.usage_sys")).unwrap_or(0);
    }
    if let Some(cpu) = directory("cpu") {
        let text = files.text(&cpu.join("cpu.stat"));
        stats.cpu_periods = keyed(&text, "nr_periods").unwrap_or(0);
        stats.cpu_throttled_periods = keyed(&text, "nr_throttled").unwrap_or(0);
        stats.cpu_throttled_ns = keyed(&text, "throttled_time").unwrap_or(0);
    }
    if let Some(memory) = directory("memory") {
        let text = files.text(&memory.join("memory.stat"));
        stats.memory_bytes = files.number(&memory.join("memory.usage_in_bytes")).unwrap_or(0);
        let inactive = keyed(&text, "total_inactive_file").unwrap_or(0);
        stats.memory_working_set_bytes = stats.memory_bytes.saturating_sub(inactive);
        stats.memory_rss_bytes = keyed(&text, "total_rss").unwrap_or(0);
        stats.page_faults = keyed(&text, "total_pgfault").unwrap_or(0);
        stats.major_page_faults = keyed(&text, "total_pgmajfault").unwrap_or(0);
        stats.swap_bytes = keyed(&text, "total_swap").unwrap_or(0);
        // The limit there is one on memory and swap together.
        let both = files.number(&memory.join("memory.memsw.limit_in_bytes")).filter(|limit| *limit < V1_UNLIMITED);
        stats.memory_peak_bytes = files.number(&memory.join("memory.max_usage_in_bytes")).unwrap_or(0);
        stats.memory_limit_bytes =
            files.number(&memory.join("memory.limit_in_bytes")).filter(|limit| *limit < V1_UNLIMITED);
        stats.swap_limit_bytes = both.map(|both| both.saturating_sub(stats.memory_limit_bytes.unwrap_or(0)));
        stats.oom_kills = keyed(&files.text(&memory.join("memory.oom_control")), "oom_kill").unwrap_or(0);
    }
    if let Some(pids) = directory("pids") {
        stats.pids = files.number(&pids.join("pids.current")).unwrap_or(0);
        stats.pids_limit = files.number(&pids.join("pids.max"));
    }
    if let Some(blkio) = directory("blkio") {
        let text = files.text(&blkio.join("blkio.throttle.io_service_bytes_recursive"));
        (stats.io_read_bytes, stats.io_write_bytes) = block_bytes_v1(&text);
    }
    files.all_read(stats)
}

/// Sums of the `MAJOR:MINOR Read N` and `Write N` lines.
fn block_bytes_v1(text: &str) -> (u64, u64) {
    let sum = |kind: &str| -> u64 {
        let lines = text.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            (words.next()? == kind).then(|| words.next()?.parse::<u64>().ok()).flatten()
        });
        lines.sum()
    };
    (sum("Read"), sum("Write"))
}

fn read_v2(directory: &Path) -> Result<Stats, CgroupError> {
    let files = Files::default();
    let cpu = files.text(&directory.join("cpu.stat"));
    let memory = files.text(&directory.join("memory.stat"));
    let io = files.text(&directory.join("io.stat"));
    let us = |key: &str| keyed(&cpu, key).unwrap_or(0).saturating_mul(1000);
    let memory_bytes = files.number(&directory.join("memory.current")).unwrap_or(0);
    let io_sum = |key: &str| -> u64 {
        io.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
    };
    let stats = Stats {
        cpu_usage_ns: us("usage_usec"),
        cpu_user_ns: us("user_usec"),
        cpu_system_ns: us("system_usec"),
        cpu_periods: keyed(&cpu, "nr_periods").unwrap_or(0),
        cpu_throttled_periods: keyed(&cpu, "nr_throttled").unwrap_or(0),
        cpu_throttled_ns: us("throttled_usec"),
        memory_bytes,
        memory_working_set_bytes: memory_bytes.saturating_sub(keyed(&memory, "inactive_file").unwrap_or(0)),
        memory_rss_bytes: keyed(&memory, "anon").unwrap_or(0),
        memory_peak_bytes: files.number(&directory.join("memory.peak")).unwrap_or(0),
        memory_limit_bytes: files.number(&directory.join("memory.max")),
        swap_bytes: files.number(&directory.join("memory.swap.current")).unwrap_or(0),
        swap_limit_bytes: files.number(&directory.join("memory.swap.max")),
        page_faults: keyed(&memory, "pgfault").unwrap_or(0),
        major_page_faults: keyed(&memory, "pgmajfault").unwrap_or(0),
        oom_kills: keyed(&files.text(&directory.join("memory.events")), "oom_kill").unwrap_or(0),
        pids: files.number(&directory.join("pids.current")).unwrap_or(0),
        pids_limit: files.number(&directory.join("pids.max")),
        io_read_bytes: io_sum("rbytes="),
        io_write_bytes: io_sum("wbytes="),
    };
    files.all_read(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_two_directory_is_read_whole() {
        let directory = tempfile::tempdir().expect("tempdir");
        let files = [
            (
                "cpu.stat",
                "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 9\nnr_throttled 2\nthrottled_usec 7\n",
            ),
            ("memory.current", "10000\n"),
            ("memory.max", "max\n"),
            ("memory.swap.max", "77\n"),
            ("memory.stat", "anon 4000\nfile 6000\ninactive_file 2500\npgfault 12\npgmajfault 1\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"),
            ("pids.current", "3\n"),
            ("pids.max", "20\n"),
            ("io.stat", "8:0 rbytes=100 wbytes=200 rios=1\n8:16 rbytes=1 wbytes=2 rios=1\n"),
        ];
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).expect("write");
        }
        let stats = read_v2(directory.path()).expect("figures");
        assert_eq!((stats.cpu_usage_ns, stats.cpu_throttled_periods, stats.cpu_throttled_ns), (1_500_000, 2, 7000));
        assert_eq!(
            (stats.memory_bytes, stats.memory_working_set_bytes, stats.memory_limit_bytes),
            (10_000, 7500, None)
        );
        assert_eq!(stats.swap_limit_bytes, Some(77));
        assert_eq!((stats.oom_kills, stats.pids, stats.pids_limit), (1, 3, Some(20)));
        assert_eq!((stats.io_read_bytes, stats.io_write_bytes), (101, 202));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_and_one_that_is_absent_counts_as_zero() {
        let directory = tempfile::tempdir().expect("tempdir");
        assert_eq!(read_v2(directory.path()).expect("zeros"), Stats::default());
        std::fs::create_dir(directory.path().join("memory.stat")).expect("mkdir");
        let error = read_v2(directory.path()).expect_err("a directory is no file");
        assert_eq!(error.to_string(), format!("reading {}", directory.path().join("memory.stat").display()));
    }

    #[test]
    fn block_bytes_of_version_one_are_summed_by_direction() {
        assert_eq!(block_bytes_v1("8:0 Read 10\n8:0 Write 20\n8:16 Read 1\nTotal 31\n"), (11, 20));
    }
}
