//! What the prober says.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use serde_json::Value;

/// What a process inside a container is and sees; a field is asked for as of any JSON value.
#[derive(Debug, Clone)]
pub struct Report(Value);

impl Report {
    /// Reads the last line of `text`.
    ///
    /// # Panics
    /// When that is not a report.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let value = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
        Self(value.unwrap_or_else(|| panic!("no report, but {text:?}")))
    }

    /// The topmost mount at `point`.
    #[must_use]
    pub fn mount(&self, point: &str) -> Option<Mount<'_>> {
        self.mounts().into_iter().rfind(|mount| mount.0["point"] == point)
    }

    /// All mounts, in the kernel's order.
    ///
    /// # Panics
    /// When the container could not see them.
    #[must_use]
    pub fn mounts(&self) -> Vec<Mount<'_>> {
        self.0["mounts"].as_array().expect("the container sees its procfs").iter().map(Mount).collect()
    }

    /// One of the five sets: `bounding`, `effective`, `permitted`, `inheritable`, `ambient`.
    ///
    /// # Panics
    /// When the report does not tell it.
    #[must_use]
    pub fn capabilities(&self, set: &str) -> BTreeSet<String> {
        strings(&self.0["capabilities"][set])
    }

    /// The numbers of the open descriptors.
    ///
    /// # Panics
    /// When the report does not tell them.
    #[must_use]
    pub fn descriptors(&self) -> BTreeSet<u32> {
        let fields = self.0["fds"].as_object().expect("the container sees its procfs");
        fields.keys().map(|number| number.parse().expect("a number")).collect()
    }
}

impl Deref for Report {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0
    }
}

/// A line of the container's mount table; a field is asked for as of any JSON value.
#[derive(Debug, Clone, Copy)]
pub struct Mount<'r>(&'r Value);

impl Mount<'_> {
    /// Flags of the mount itself: `ro`, `nosuid`, `relatime`, ...
    ///
    /// # Panics
    /// When the report does not tell them.
    #[must_use]
    pub fn options(&self) -> BTreeSet<String> {
        strings(&self.0["options"])
    }

    /// Options of the file system: `rw`, `size=64k`, ...
    ///
    /// # Panics
    /// When the report does not tell them.
    #[must_use]
    pub fn file_system_options(&self) -> BTreeSet<String> {
        strings(&self.0["super"])
    }

    /// `shared`, `master`, `propagate_from`, `unbindable`, without the numbers of peer groups.
    ///
    /// # Panics
    /// When the report does not tell them.
    #[must_use]
    pub fn propagation(&self) -> BTreeSet<String> {
        let words = strings(&self.0["propagation"]);
        words.into_iter().map(|word| word.split(':').next().unwrap_or(&word).to_owned()).collect()
    }
}

impl Deref for Mount<'_> {
    type Target = Value;

    fn deref(&self) -> &Value {
        self.0
    }
}

/// How the operations that the prober tried have ended: with a value, or with the name of an errno.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempts(BTreeMap<String, Result<Value, String>>);

impl Attempts {
    /// Reads the last line of `text`.
    ///
    /// # Panics
    /// When that is not the prober's.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let value: Option<Vec<Value>> = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
        let attempts = value.unwrap_or_else(|| panic!("no attempts, but {text:?}"));
        let attempts = attempts.into_iter().map(|one| {
            let name = one["try"].as_str().expect("an operation").to_owned();
            let errno = one["errno"].as_str().map(str::to_owned);
            (name, errno.map_or_else(|| Ok(one["value"].clone()), Err))
        });
        Self(attempts.collect())
    }

    /// How `operation` ended: `ok`, or the name of the errno.
    ///
    /// # Panics
    /// When it was not tried.
    #[must_use]
    pub fn errno(&self, operation: &str) -> &str {
        match self.0.get(operation) {
            Some(Ok(_)) => "ok",
            Some(Err(errno)) => errno,
            None => panic!("{operation} was not tried, but {:?}", self.0.keys()),
        }
    }

    /// What `operation` gave.
    ///
    /// # Panics
    /// When it failed or was not tried.
    #[must_use]
    pub fn value(&self, operation: &str) -> &Value {
        match self.0.get(operation) {
            Some(Ok(value)) => value,
            other => panic!("{operation}: {other:?}"),
        }
    }
}

fn strings(list: &Value) -> BTreeSet<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list, but {list}"));
    list.iter().map(|one| one.as_str().expect("a list of words").to_owned()).collect()
}
