//! Reading a bundle's `config.json`: bounded, and lenient only where the specification says so.
//!
//! What the types of the specification refuse although the specification allows it is put right on the way, at no cost
//! for the configurations that do not need it: only one that cannot be read is looked at a second time.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::path::Path;

use oci_spec::runtime::{Capability, Process, Spec};
use portreeve_sys::path::{Limits, beneath};
use rustix::fs::{FileType, OFlags};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A configuration may have this many bytes.
pub const LIMIT: usize = 8 << 20;

/// The file of a bundle, and of a container's own directory.
pub(crate) const NAME: &str = "config.json";

/// A configuration as it was read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// What it says.
    pub spec: Spec,
    /// The bytes it was read from.
    pub raw: Vec<u8>,
    /// What was left out, as the specification asks.
    pub warnings: Vec<String>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("reading {NAME}")]
    Read(#[source] io::Error),
    /// It is larger than [`LIMIT`].
    #[error("the configuration has more than {LIMIT} bytes")]
    TooLarge,
    /// It is no configuration; line and column are in the source.
    #[error("parsing the configuration")]
    Json(#[source] serde_json::Error),
    /// It was written for another specification.
    #[error("ociVersion {0:?} is none of version 1 of the specification")]
    Version(String),
}

/// Reads `config.json` of a bundle: a regular file below it.
///
/// # Errors
/// [`ConfigError`].
pub fn read(bundle: BorrowedFd<'_>) -> Result<Config, ConfigError> {
    // A FIFO or a terminal must not be waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = beneath(bundle, Path::new(NAME), flags, Limits::default()).map_err(ConfigError::Read)?;
    let stat = rustix::fs::fstat(&file).map_err(|error| ConfigError::Read(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(ConfigError::Read(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    // One read for all of it; more than the limit is refused anyway.
    let mut raw = Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or(0).min(LIMIT) + 64);
    let limit = u64::try_from(LIMIT).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::from(file).take(limit).read_to_end(&mut raw).map_err(ConfigError::Read)?;
    own(raw)
}

/// Reads a configuration from its bytes.
///
/// # Errors
/// [`ConfigError`].
pub fn parse(bytes: &[u8]) -> Result<Config, ConfigError> {
    own(bytes.to_vec())
}

/// Reads a process alone, as `exec --process` has it, and what was left out of it.
///
/// # Errors
/// [`ConfigError`].
pub fn parse_process(bytes: &[u8]) -> Result<(Process, Vec<String>), ConfigError> {
    lenient(bytes, process)
}

/// As [`parse`], of bytes that are kept.
pub(crate) fn own(raw: Vec<u8>) -> Result<Config, ConfigError> {
    let (mut spec, warnings): (Spec, _) = lenient(&raw, |root, warnings| {
        if let Some(value) = root.get_mut("process") {
            process(value, warnings);
        }
        if let Some(limits) = root.pointer_mut("/linux/resources/hugepageLimits").and_then(Value::as_array_mut) {
            limits.iter_mut().filter_map(|limit| limit.get_mut("limit")).for_each(clamp);
        }
    })?;
    if !is_version_one(spec.version()) {
        return Err(ConfigError::Version(spec.version().clone()));
    }
    drop_unsaid_process_limit(&mut spec, &raw);
    Ok(Config { spec, raw, warnings })
}

fn lenient<T: DeserializeOwned>(
    bytes: &[u8],
    repair: impl Fn(&mut Value, &mut Vec<String>),
) -> Result<(T, Vec<String>), ConfigError> {
    if bytes.len() > LIMIT {
        return Err(ConfigError::TooLarge);
    }
    let refused = match serde_json::from_slice(bytes) {
        Ok(read) => return Ok((read, Vec::new())),
        Err(error) => error,
    };
    // The first complaint has line and column: it stands when the repair does not help.
    let Ok(mut value) = serde_json::from_slice(bytes) else { return Err(ConfigError::Json(refused)) };
    let mut warnings = Vec::new();
    repair(&mut value, &mut warnings);
    serde_json::from_value(value).map(|read| (read, warnings)).map_err(|_| ConfigError::Json(refused))
}

/// Semantic versions, semver.org: 1.0.2-dev and 1.2.0+build are of version 1, as 1.3.0 is.
fn is_version_one(version: &str) -> bool {
    let number = |part: Option<&str>| {
        part.is_some_and(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut parts = version.splitn(3, '.');
    let patch = |part: Option<&str>| number(part.and_then(|part| part.split(['-', '+']).next()));
    parts.next() == Some("1") && number(parts.next()) && patch(parts.next())
}

/// Leaves a limit on processes out that says nothing: an absent one, which the types have as 0, and a 0 of an engine that
/// could not leave it out.
///
/// Source: runtime-spec, config-linux.md, "PIDs": since 1.3.0 the limit is optional, and 0 is one.
fn drop_unsaid_process_limit(spec: &mut Spec, raw: &[u8]) {
    let zero_is_a_limit = has_optional_process_limit(spec.version());
    let Some(resources) = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut()) else { return };
    if resources.pids().is_none_or(|pids| pids.limit() != 0) {
        return;
    }
    let said = |root: Value| root.pointer("/linux/resources/pids/limit").is_some();
    if !zero_is_a_limit || !serde_json::from_slice(raw).is_ok_and(said) {
        resources.set_pids(None);
    }
}

/// Whether a version 1 is 1.3.0 or newer; what precedes a release (1.3.0-rc.1) is older than it.
fn has_optional_process_limit(version: &str) -> bool {
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u64>().ok());
    minor.is_some_and(|minor| minor >= 3) && !version.starts_with("1.3.0-")
}

/// Source: runtime-spec, config.md, Linux Process: capabilities that a runtime does not know are to be ignored with a
/// warning; and the names of two scheduler flags, which the types have otherwise.
fn process(process: &mut Value, warnings: &mut Vec<String>) {
    const FLAGS: [(&str, &str); 2] =
        [("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"), ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN")];
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for (set, names) in sets.into_iter().flatten() {
        let Some(names) = names.as_array_mut() else { continue };
        names.retain(|name| {
            let unknown = name.is_string() && serde_json::from_value::<Capability>(name.clone()).is_err();
            if unknown {
                warnings.push(format!("process.capabilities.{set}: {name} is unknown, and left out"));
            }
            !unknown
        });
    }
    let flags = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        if let Some((_, name)) = FLAGS.iter().find(|(given, _)| flag == given) {
            *flag = Value::from(*name);
        }
    }
}

/// What exceeds the largest number of the types is as unlimited as it.
fn clamp(limit: &mut Value) {
    if limit.as_u64().is_some_and(|bytes| i64::try_from(bytes).is_err()) {
        *limit = Value::from(i64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn with(process: &str) -> String {
        format!(
            r#"{{"ociVersion": "1.0.2", "process": {{"user": {{"uid": 0, "gid": 0}}, "cwd": "/", "args": ["true"], {process}}}}}"#
        )
    }

    fn read_text(text: &str) -> Result<Config, ConfigError> {
        let bundle = tempfile::tempdir().expect("tempdir");
        std::fs::write(bundle.path().join(NAME), text).expect("write");
        read(std::fs::File::open(bundle.path()).expect("open").as_fd())
    }

    #[test]
    fn an_unknown_capability_is_a_warning() {
        let text = with(r#""capabilities": {"bounding": ["CAP_KILL", "CAP_TIME_TRAVEL"], "ambient": ["CAP_KILL"]}"#);
        let config = read_text(&text).expect("config");
        assert_eq!(config.warnings, ["process.capabilities.bounding: \"CAP_TIME_TRAVEL\" is unknown, and left out"]);
        let process = config.spec.process().as_ref().expect("process");
        let capabilities = process.capabilities().as_ref().expect("capabilities");
        let kill = std::collections::HashSet::from([Capability::Kill]);
        assert_eq!((capabilities.bounding(), capabilities.ambient()), (&Some(kill.clone()), &Some(kill)));
        assert_eq!(config.raw, text.as_bytes(), "the bytes stay as they were");
    }

    #[test]
    fn the_specifications_names_of_scheduler_flags_are_read() {
        let flags = ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN"];
        let scheduler = serde_json::json!({"policy": "SCHED_OTHER", "flags": flags});
        let config = parse(with(&format!(r#""scheduler": {scheduler}"#)).as_bytes()).expect("config");
        let process = config.spec.process().clone().expect("process");
        assert_eq!(process.scheduler().as_ref().and_then(|one| one.flags().clone()).expect("flags").len(), 3);
    }

    #[test]
    fn a_limit_beyond_the_largest_number_is_the_largest() {
        let text = r#"{"ociVersion": "1.3.0", "linux": {"resources": {"hugepageLimits": [{"pageSize": "2MB", "limit": 18446744073709551615}]}}}"#;
        let spec = parse(text.as_bytes()).expect("config").spec;
        let limits = spec.linux().clone().and_then(|linux| linux.resources().clone()).expect("resources");
        assert_eq!(limits.hugepage_limits().clone().and_then(|all| all.first().map(|one| one.limit())), Some(i64::MAX));
    }

    #[test]
    fn a_process_limit_of_zero_is_one_since_the_specification_can_leave_it_out() {
        for (version, pids, expected) in [
            ("1.3.0", r#"{"limit": 0}"#, Some(0)),
            ("1.3.0+build", r#"{"limit": 0}"#, Some(0)),
            ("1.10.2-dev", r#"{"limit": 0}"#, Some(0)),
            ("1.3.0", "{}", None),
            ("1.3.0", "null", None),
            ("1.3.0", r#"{"limit": -1}"#, Some(-1)),
            ("1.3.0-rc.1", r#"{"limit": 0}"#, None),
            ("1.2.1", r#"{"limit": 0}"#, None),
            ("1.0.2", r#"{"limit": -1}"#, Some(-1)),
            ("1.0.2", r#"{"limit": 7}"#, Some(7)),
        ] {
            let text = format!(r#"{{"ociVersion": "{version}", "linux": {{"resources": {{"pids": {pids}}}}}}}"#);
            let spec = parse(text.as_bytes()).expect("config").spec;
            let resources = spec.linux().clone().and_then(|linux| linux.resources().clone()).expect("resources");
            assert_eq!(resources.pids().map(|pids| pids.limit()), expected, "{text}");
        }
    }

    #[test]
    fn a_configuration_of_another_major_version_is_refused() {
        for (version, good) in [
            ("1.0.0", true),
            ("1.3.0", true),
            ("1.0.2-dev", true),
            ("1.2.0+dev.1", true),
            ("1.0.0-rc.5.1", true),
            ("2.0.0", false),
            ("0.9.0", false),
            ("10.0.0", false),
            ("1", false),
            ("1.0", false),
            ("1.x.0", false),
            ("", false),
        ] {
            let read = parse(format!(r#"{{"ociVersion": "{version}"}}"#).as_bytes());
            assert_eq!(read.is_ok(), good, "{version}: {read:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let text = with(r#""capabilities": {"bounding": ["CAP_TIME_TRAVEL"]}, "terminal": "perhaps""#);
        let Err(ConfigError::Json(error)) = read_text(&text) else { panic!("it was read") };
        assert_eq!(error.line(), 1, "{error}");
        assert!(matches!(read_text("{"), Err(ConfigError::Json(_))));
    }

    #[test]
    fn a_configuration_beyond_the_limit_is_refused() {
        let text = format!(r#"{{"ociVersion": "1.0.2", "hostname": "{}"}}"#, "x".repeat(LIMIT));
        assert!(matches!(read_text(&text), Err(ConfigError::TooLarge)));
        let deep = "[".repeat(100_000);
        assert!(matches!(read_text(&deep), Err(ConfigError::Json(_))));
    }

    #[test]
    fn what_is_no_file_below_the_bundle_is_refused() {
        let bundle = tempfile::tempdir().expect("tempdir");
        let outside = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(outside.path(), r#"{"ociVersion": "1.0.2"}"#).expect("write");
        let path = bundle.path().join(NAME);
        std::os::unix::fs::symlink(outside.path(), &path).expect("link");
        let directory = std::fs::File::open(bundle.path()).expect("open");
        assert!(matches!(read(directory.as_fd()), Err(ConfigError::Read(_))), "a link out of the bundle");
        std::fs::remove_file(&path).expect("remove");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("fifo");
        assert!(matches!(read(directory.as_fd()), Err(ConfigError::Read(_))), "a FIFO");
    }

    #[test]
    fn a_process_alone_is_read_as_leniently() {
        let text = r#"{"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"], "capabilities": {"effective": ["CAP_NONE"]}}"#;
        let (process, warnings) = parse_process(text.as_bytes()).expect("process");
        assert_eq!((process.args().as_deref(), warnings.len()), (Some(&["true".to_owned()][..]), 1));
    }
}
