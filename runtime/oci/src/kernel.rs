//! What this machine's kernel offers, for `doctor`: each fact with what to do when it lacks.

/// How much the lack of a facility matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The facility is there.
    Present,
    /// It lacks, and something optional will not work.
    Limited,
    /// It lacks, and containers cannot run.
    Missing,
}

/// One thing about the kernel or the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Short name, for example `cgroup`.
    pub name: &'static str,
    /// Whether it is there.
    pub verdict: Verdict,
    /// What was found, for example `v1 hybrid: cpu cpuset memory pids`.
    pub found: String,
    /// What to do about its lack; `None` when nothing has to be done.
    pub advice: Option<String>,
}

/// Looks at the running kernel; touches nothing.
#[must_use]
pub fn survey() -> Vec<Fact> {
    Vec::new()
}
