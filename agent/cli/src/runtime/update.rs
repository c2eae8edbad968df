//! `update`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::arguments::{Flag, Given, Usage, UsageError, Verb};
use super::{Runtime, systemd};

pub(super) const USAGE: Usage = Usage {
    name: "update",
    operands: "ID",
    about: "change the limits of a container; what is not named stays",
    flags: &[&[
        Flag::value("resources", "FILE", "take all limits from a JSON file, - for standard input").short('r'),
        Flag::value("memory", "BYTES", "memory; k, m, g, t may follow; -1 for no limit"),
        Flag::value("memory-reservation", "BYTES", "memory that is kept when it runs short"),
        Flag::value("memory-swap", "BYTES", "memory and swap together; -1 for no limit"),
        Flag::value("cpu-share", "N", "CPU time relative to others"),
        Flag::value("cpu-quota", "MICROSECONDS", "CPU time in each period"),
        Flag::value("cpu-period", "MICROSECONDS", "length of a period"),
        Flag::value("cpu-burst", "MICROSECONDS", "CPU time that may be saved up"),
        Flag::value("cpu-rt-runtime", "MICROSECONDS", "CPU time of real-time tasks in each real-time period"),
        Flag::value("cpu-rt-period", "MICROSECONDS", "length of a real-time period"),
        Flag::value("cpu-idle", "0|1", "1: run only when nobody else does"),
        Flag::value("cpuset-cpus", "LIST", "CPUs to use"),
        Flag::value("cpuset-mems", "LIST", "memory nodes to use"),
        Flag::value("pids-limit", "N", "number of processes; -1 for no limit"),
        Flag::value("blkio-weight", "N", "I/O relative to others, 10 to 1000"),
        Flag::value("kernel-memory", "BYTES", "ignored, as by the kernel"),
        Flag::value("kernel-memory-tcp", "BYTES", "ignored, as by the kernel"),
        Flag::value("l3-cache-schema", "SCHEMA", "share of the cache, as L3:0=7f0;1=1f (Intel RDT)"),
        Flag::value("mem-bw-schema", "SCHEMA", "share of the memory's bandwidth, as MB:0=20;1=70 (Intel RDT)"),
    ]],
    count: 1..=1,
    ends_flags: false,
    read: |given| Ok(Verb::Update(Box::new(Update::read(given)?))),
};

/// A file of limits is read to this length.
const FILE_LIMIT: u64 = 1 << 20;

/// Arguments of `update`.
#[derive(Debug, PartialEq)]
pub(super) struct Update {
    id: String,
    limits: Limits,
    ignored: Vec<&'static str>,
    cache: Option<String>,
    bandwidth: Option<String>,
}

#[derive(Debug, PartialEq)]
enum Limits {
    File(PathBuf),
    /// In the form of `linux.resources`.
    Said(Value),
}

/// Where a flag's value goes in `linux.resources`.
const NUMBERS: &[(&str, &str, &str)] = &[
    ("cpu-share", "cpu", "shares"),
    ("cpu-quota", "cpu", "quota"),
    ("cpu-period", "cpu", "period"),
    ("cpu-burst", "cpu", "burst"),
    ("cpu-rt-runtime", "cpu", "realtimeRuntime"),
    ("cpu-rt-period", "cpu", "realtimePeriod"),
    ("cpu-idle", "cpu", "idle"),
    ("pids-limit", "pids", "limit"),
    ("blkio-weight", "blockIO", "weight"),
];
const TEXTS: &[(&str, &str, &str)] = &[("cpuset-cpus", "cpu", "cpus"), ("cpuset-mems", "cpu", "mems")];
const SIZES: &[(&str, &str, &str)] = &[
    ("memory", "memory", "limit"),
    ("memory-reservation", "memory", "reservation"),
    ("memory-swap", "memory", "swap"),
];

impl Update {
    fn read(mut given: Given) -> Result<Self, UsageError> {
        let id = given.id()?;
        let mut ignored = Vec::new();
        for flag in ["kernel-memory", "kernel-memory-tcp"] {
            if given.text(flag)?.is_some() {
                ignored.push(flag);
            }
        }
        let schema = |flag| -> Result<Option<String>, UsageError> {
            Ok(given.text(flag)?.filter(|text| !text.is_empty()).map(str::to_owned))
        };
        let (cache, bandwidth) = (schema("l3-cache-schema")?, schema("mem-bw-schema")?);
        let limits = match given.path("resources") {
            Some(path) => Limits::File(path),
            None => Limits::Said(said(&given)?),
        };
        Ok(Self { id, limits, ignored, cache, bandwidth })
    }

    pub(super) fn run(self, runtime: &Runtime) -> anyhow::Result<()> {
        for flag in self.ignored {
            runtime.log.warning(&format!("--{flag} is ignored"));
        }
        let mut container = runtime.container(&self.id)?;
        let resources: LinuxResources = match self.limits {
            Limits::File(path) => read_file(&path)?,
            Limits::Said(value) => serde_json::from_value(value).context("reading the limits")?,
        };
        let rdt = if self.cache.is_some() || self.bandwidth.is_some() {
            Some(container.update_rdt(self.cache.as_deref(), self.bandwidth.as_deref())?)
        } else {
            None
        };
        match (systemd::update(&mut container, &resources), rdt) {
            (Ok(warnings), _) => {
                runtime.warn(&warnings);
                Ok(())
            }
            (Err(error), None) => Err(error),
            (Err(error), Some(change)) => Err(match container.put_back_rdt(change) {
                Ok(()) => error,
                Err(left) => {
                    let left = anyhow::Error::from(left);
                    error.context(format!("putting back its resctrl group afterwards: {left:#}"))
                }
            }),
        }
    }
}

fn read_file(path: &Path) -> anyhow::Result<LinuxResources> {
    let reading = || format!("reading limits from {}", path.display());
    let mut text = Vec::new();
    let mut take = |source: &mut dyn Read| source.take(FILE_LIMIT + 1).read_to_end(&mut text);
    let length = if path == Path::new("-") {
        take(&mut io::stdin().lock())
    } else {
        File::open(path).and_then(|mut file| take(&mut file))
    };
    if u64::try_from(length.with_context(reading)?).is_ok_and(|length| length > FILE_LIMIT) {
        bail!("{}: there are more than {FILE_LIMIT} bytes", reading());
    }
    // By way of an object: the types alone would take a list for limits without names.
    let limits: Map<String, Value> = serde_json::from_slice(&text).with_context(reading)?;
    serde_json::from_value(Value::Object(limits)).with_context(reading)
}

fn said(given: &Given) -> Result<Value, UsageError> {
    let mut resources = Map::new();
    let mut set = |group: &str, field: &str, value: Value| {
        let group = resources.entry(group).or_insert_with(|| json!({}));
        if let Some(group) = group.as_object_mut() {
            group.insert(field.to_owned(), value);
        }
    };
    for (flag, group, field) in NUMBERS {
        if let Some(number) = given.number::<i64>(flag)? {
            set(group, field, number.into());
        }
    }
    for (flag, group, field) in TEXTS {
        if let Some(text) = given.text(flag)?.filter(|text| !text.is_empty()) {
            set(group, field, text.into());
        }
    }
    for (flag, group, field) in SIZES {
        if let Some(text) = given.text(flag)?.filter(|text| !text.is_empty()) {
            let bytes = size(text).ok_or_else(|| given.wrong(format!("--{flag}: {text:?} is no number of bytes")))?;
            set(group, field, bytes.into());
        }
    }
    // Memory without a limit, and a limit of both together, would be no memory without a limit.
    if given.text("memory")? == Some("-1") && given.text("memory-swap")?.is_none() {
        set("memory", "swap", (-1).into());
    }
    let resources = Value::Object(resources);
    match serde_json::from_value::<LinuxResources>(resources.clone()) {
        Ok(_) => Ok(resources),
        Err(error) => Err(given.wrong(format!("a value is out of range: {error}"))),
    }
}

/// Bytes: a number, also one with a fraction, with k, m, g, t or p for powers of 1024, in either case, and b or ib after
/// that; -1 for no limit.
fn size(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = lower.get(number.len()..)?;
    let number = number.strip_suffix(' ').unwrap_or(number);
    let power = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return None,
    };
    let scale = 1024_i64.checked_pow(power)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    // Of a fraction as many places as make a difference of bytes.
    let fraction = fraction.get(..fraction.len().min(15))?;
    let places = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<i128>().ok()? * i128::from(scale) / places;
    whole.parse::<i64>().ok()?.checked_mul(scale)?.checked_add(i64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn limits(words: &[&str]) -> Result<Value, String> {
        let words: Vec<OsString> = ["update", "x"].iter().chain(words).map(OsString::from).collect();
        match super::super::arguments::verb(&words).map_err(|error| error.to_string())? {
            Verb::Update(update) => match update.limits {
                Limits::Said(value) => Ok(value),
                Limits::File(path) => Ok(json!(path)),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_flag_has_its_field() {
        let words = [
            "--memory=64M",
            "--memory-reservation",
            "32m",
            "--memory-swap",
            "-1",
            "--cpu-share",
            "512",
            "--cpu-quota",
            "50000",
            "--cpu-period",
            "100000",
            "--cpu-burst",
            "1000",
            "--cpu-rt-runtime",
            "1",
            "--cpu-rt-period",
            "2",
            "--cpu-idle",
            "0",
            "--cpuset-cpus",
            "0-1",
            "--cpuset-mems",
            "0",
            "--pids-limit",
            "-1",
            "--blkio-weight",
            "100",
        ];
        let expected = json!({
            "memory": {"limit": 67_108_864, "reservation": 33_554_432, "swap": -1},
            "cpu": {
                "shares": 512, "quota": 50000, "period": 100_000, "burst": 1000, "realtimeRuntime": 1,
                "realtimePeriod": 2, "idle": 0, "cpus": "0-1", "mems": "0",
            },
            "pids": {"limit": -1},
            "blockIO": {"weight": 100},
        });
        assert_eq!(limits(&words).unwrap(), expected);
        assert_eq!(limits(&[]).unwrap(), json!({}));
        assert_eq!(limits(&["-r", "-", "--memory", "1"]).unwrap(), json!("-"));
    }

    #[test]
    fn sizes_are_written_as_they_are_for_runc() {
        for (text, bytes) in [
            ("1024", Some(1024)),
            ("1k", Some(1024)),
            ("1.5g", Some(1_610_612_736)),
            ("0.5 MiB", Some(524_288)),
            ("2 TB", Some(2_199_023_255_552)),
            ("1.0000000000000000000001k", Some(1024)),
            ("-1", Some(-1)),
            ("", None),
            (".5m", None),
            ("1.m", None),
            ("1.5.5m", None),
            ("1  k", None),
            (" 1k", None),
            ("-1k", None),
            ("1x", None),
            ("9999999p", None),
        ] {
            assert_eq!(size(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn no_limit_of_memory_is_none_of_swap_either() {
        assert_eq!(limits(&["--memory", "-1"]).unwrap(), json!({"memory": {"limit": -1, "swap": -1}}));
        let both = ["--memory", "-1", "--memory-swap", "1k"];
        assert_eq!(limits(&both).unwrap(), json!({"memory": {"limit": -1, "swap": 1024}}));
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        for wrong in [["--cpu-share", "-5"], ["--memory", "1x"], ["--memory", "-2"], ["--memory", "9999999999999g"]] {
            assert!(limits(&wrong).unwrap_err().contains("portreeve runtime update --help"), "{wrong:?}");
        }
        for wrong in [["--blkio-weight", "70000"], ["--pids-limit", "many"], ["--memory", ""]] {
            assert_eq!(limits(&wrong).is_err(), !wrong[1].is_empty(), "{wrong:?}");
        }
    }
}
