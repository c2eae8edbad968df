//! What the benchmarks share: the machine, what the kernel charges, and the table of figures.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::wait::wait_until;
use crate::world::binary;

/// What figures depend on: commit (`PORTREEVE_BENCH_COMMIT`), kernel, processors, load, size of the binary.
#[must_use]
pub fn machine() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let size = std::fs::metadata(binary()).map_or(0, |file| file.len());
    let commit = std::env::var("PORTREEVE_BENCH_COMMIT").unwrap_or_else(|_| "unknown".to_owned());
    format!(
        "commit {commit}, Linux {}, {cpus} cores, load {}, binary {:.1} MB",
        kernel.trim(),
        load.trim(),
        size as f64 / 1e6
    )
}

/// Where a program of this name, or at this path, is.
#[must_use]
pub fn installed(program: &str) -> Option<PathBuf> {
    let mut command = Command::new("sh");
    command.args(["-c", "command -v \"$0\"", program]).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Top of the cgroup hierarchy that counts CPU time.
///
/// # Panics
/// Without one.
#[must_use]
pub fn accounting_hierarchy() -> PathBuf {
    let tops = ["/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup"].map(PathBuf::from);
    tops.into_iter().find(|top| top.join("cgroup.procs").exists()).expect("a cgroup hierarchy")
}

/// The file of a cgroup with the CPU time that it was charged with, see [`charged_nanoseconds`].
#[must_use]
pub fn usage_file(cgroup: &Path) -> PathBuf {
    let first = cgroup.join("cpuacct.usage");
    if first.exists() { first } else { cgroup.join("cpu.stat") }
}

/// The CPU time that the text of a [`usage_file`], or its first line, tells.
///
/// Source: the kernel's documentation of cpuacct (v1) and of `cpu.stat` (v2).
#[must_use]
pub fn charged_nanoseconds(text: &str) -> Option<u64> {
    let line = text.lines().next()?.trim();
    match line.strip_prefix("usage_usec ") {
        Some(microseconds) => Some(microseconds.parse::<u64>().ok()? * 1000),
        None => line.parse().ok(),
    }
}

/// What a container does: it adds a line to `/out/<name>` each time it starts, and sleeps.
#[must_use]
pub fn toucher_script(name: &str) -> String {
    format!("echo started >> /out/{name}; exec sleep 100000")
}

/// Waits until `count` further files have appeared in the watched directory: which, and when.
///
/// # Panics
/// When the directory cannot be watched.
pub fn appeared(inotify: &Inotify, count: usize) -> Vec<(String, Instant)> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let events = inotify.read_events().expect("inotify");
        let now = Instant::now();
        seen.extend(events.into_iter().map(|event| (event.name.unwrap_or_default().to_string_lossy().into(), now)));
    }
    seen
}

/// A watch for new files of a directory, which is made.
///
/// # Panics
/// When it cannot be.
#[must_use]
pub fn watch(directory: &Path) -> Inotify {
    std::fs::create_dir_all(directory).expect("the output directory");
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
    inotify.add_watch(directory, AddWatchFlags::IN_CREATE).expect("watching the output directory");
    inotify
}

/// Memory of a process, what it shares divided among all that share it, in KiB; 0 when it is gone.
#[must_use]
pub fn pss_kib(pid: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// CPU time of a program: of the cgroup in which it runs, and of the trees in which it keeps its containers.
#[derive(Debug)]
pub struct Account {
    own: PathBuf,
    trees: Vec<PathBuf>,
}

impl Account {
    /// `trees` are below the top of the hierarchy that counts CPU time.
    ///
    /// # Panics
    /// When its cgroup cannot be made.
    #[must_use]
    pub fn new(trees: &[&Path]) -> Self {
        let top = accounting_hierarchy();
        let own = top.join(format!("prt-bench-{}", std::process::id()));
        std::fs::create_dir(&own).expect("a cgroup for what is measured");
        Self { own, trees: trees.iter().map(|tree| top.join(tree)).collect() }
    }

    /// Counts a further tree, as those of [`Account::new`].
    pub fn watch(&mut self, tree: &Path) {
        self.trees.push(accounting_hierarchy().join(tree));
    }

    /// Of a running agent, from now on.
    ///
    /// # Panics
    /// When its description tells no cgroup.
    #[must_use]
    pub fn of(agent: &Agent<'_>) -> Self {
        let description = std::fs::read(agent.run_dir().join("agent.json")).expect("the agent's description");
        let description: Value = serde_json::from_slice(&description).expect("JSON");
        let tree = description["cgroupRoot"].as_str().expect("a cgroup root");
        let account = Self::new(&[Path::new(tree.trim_start_matches('/'))]);
        std::fs::write(account.own.join("cgroup.procs"), agent.pid().to_string()).expect("moving the agent");
        account
    }

    /// A command that is accounted for; `command` makes one for a program, where that shall run.
    #[must_use]
    pub fn command(&self, command: impl FnOnce(&str) -> Command, program: impl AsRef<OsStr>) -> Command {
        let mut command = command("sh");
        command.args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.own).arg(program);
        command
    }

    /// The cgroup in which the program runs.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.own
    }

    /// What was charged so far.
    #[must_use]
    pub fn nanoseconds(&self) -> u64 {
        let charged = |cgroup| charged_nanoseconds(&std::fs::read_to_string(usage_file(cgroup)).ok()?);
        self.trees.iter().chain([&self.own]).filter_map(|cgroup| charged(cgroup)).sum()
    }

    /// The processes of this name in its cgroups.
    #[must_use]
    pub fn processes(&self, name: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = self.trees.clone();
        folders.push(self.own.clone());
        while let Some(folder) = folders.pop() {
            let inside = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            let named =
                |pid: &&str| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
            found.extend(inside.lines().filter(named).map(str::to_owned));
            let below = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
            folders.extend(below.filter(|path| path.is_dir()));
        }
        found
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // The last helpers may still be ending.
        wait_until("the cgroup of what was measured is empty", 20, || {
            std::fs::remove_dir(&self.own).map_err(|error| error.to_string())
        });
    }
}

/// What was measured, by program and figure.
#[derive(Debug, Default)]
pub struct Figures {
    rows: Vec<(String, String, BTreeMap<&'static str, f64>)>,
}

impl Figures {
    /// Adds times, in milliseconds.
    pub fn times(&mut self, program: &str, figure: &str, times: &[Duration]) {
        let times: Vec<f64> = times.iter().copied().map(millis).collect();
        self.spread(program, &format!("{figure}, ms"), &times);
    }

    /// Adds the minimum, the median and the 99th percentile of values, whose unit `figure` names.
    pub fn spread(&mut self, program: &str, figure: &str, values: &[f64]) {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| {
            sorted.get(((sorted.len().saturating_sub(1)) as f64 * part).round() as usize).copied().unwrap_or(0.0)
        };
        let row = BTreeMap::from([("min", at(0.0)), ("p50", at(0.5)), ("p99", at(0.99))]);
        self.rows.push((program.to_owned(), figure.to_owned(), row));
    }

    /// Adds one value, whose unit `figure` names.
    pub fn one(&mut self, program: &str, figure: &str, value: f64) {
        self.rows.push((program.to_owned(), figure.to_owned(), BTreeMap::from([("value", value)])));
    }

    /// The `min`, `p50`, `p99` or `value` of a figure.
    #[must_use]
    pub fn get(&self, program: &str, figure: &str, part: &str) -> Option<f64> {
        let mut rows = self.rows.iter();
        rows.find(|(whose, name, _)| whose == program && name == figure).and_then(|(.., row)| row.get(part)).copied()
    }

    /// Adds a figure of a program from other ones, under another name; without it, nothing.
    pub fn take(&mut self, others: &Self, program: &str, figure: &str, name: &str) {
        let mut rows = others.rows.iter();
        if let Some((_, _, row)) = rows.find(|(whose, named, _)| whose == program && named == figure) {
            self.rows.push((program.to_owned(), name.to_owned(), row.clone()));
        }
    }

    /// Prints a table in Markdown with a line for each figure and these programs beside each other.
    pub fn print_beside(&self, programs: &[&str]) {
        println!("\n| min / p50 / p99 | {} |\n|---|{}", programs.join(" | "), "---:|".repeat(programs.len()));
        let mut seen = BTreeSet::new();
        for figure in self.rows.iter().map(|(_, figure, _)| figure).filter(|figure| seen.insert(*figure)) {
            let cell = |program: &&str| {
                let parts = ["value", "min", "p50", "p99"].iter().filter_map(|part| self.get(program, figure, part));
                parts.map(|value| format!("{value:.2}")).collect::<Vec<_>>().join(" / ")
            };
            println!("| {figure} | {} |", programs.iter().map(cell).collect::<Vec<_>>().join(" | "));
        }
    }

    /// All of them, and the machine.
    #[must_use]
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(program, figure, row)| json!({ "program": program, "figure": figure, "values": row }))
            .collect();
        json!({ "machine": machine(), "rows": rows })
    }

    /// Writes the JSON to the file named by `PORTREEVE_BENCH_JSON`, if that is set.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn save(&self) {
        if let Some(path) = std::env::var_os("PORTREEVE_BENCH_JSON") {
            std::fs::write(path, serde_json::to_vec_pretty(&self.json()).expect("JSON")).expect("writing the JSON");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_cgroups_tell_their_cpu_time() {
        assert_eq!(charged_nanoseconds("1234\n"), Some(1234));
        assert_eq!(charged_nanoseconds("usage_usec 5\nuser_usec 3\nsystem_usec 2\n"), Some(5000));
        assert_eq!(charged_nanoseconds(""), None);
    }

    #[test]
    fn a_spread_has_its_minimum_median_and_99th_percentile() {
        let mut figures = Figures::default();
        let values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        figures.spread("program", "run, ms", &values);
        let part = |name| figures.get("program", "run, ms", name);
        assert_eq!((part("min"), part("p50"), part("p99")), (Some(0.0), Some(50.0), Some(99.0)));
        assert_eq!((part("value"), figures.get("other", "run, ms", "min")), (None, None));
    }
}
