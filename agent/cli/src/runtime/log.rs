//! The log that callers read: conmon, containerd and podman show its last line with the level `error`.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::Context as _;

use super::arguments::{Global, LogFormat};

/// Where errors and warnings go: the file of `--log`, or standard error.
///
/// An error goes to standard error as well, in plain words. A warning does not when there is a file: standard error is
/// often the container's own output, which is its owner's.
#[derive(Debug)]
pub(super) struct Log {
    file: Option<File>,
    format: LogFormat,
    debug: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Debug,
    Warning,
    Error,
}

impl Level {
    /// logrus' names, which the callers look for.
    fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl Log {
    /// A log on standard error, for what goes wrong before the real one is open.
    pub(super) fn standard_error() -> Self {
        Self { file: None, format: LogFormat::Text, debug: false }
    }

    /// The log that the arguments ask for; its file is appended to.
    pub(super) fn open(global: &Global) -> anyhow::Result<Self> {
        let open = |path: &std::path::PathBuf| {
            let mut options = File::options();
            options.append(true).create(true).mode(0o644);
            options.open(path).with_context(|| format!("opening the log {}", path.display()))
        };
        let file = global.log.as_ref().map(open).transpose()?;
        Ok(Self { file, format: global.log_format, debug: global.debug })
    }

    pub(super) fn error(&self, message: &str) {
        let is_line = self.file.is_some() || self.format == LogFormat::Json;
        if is_line {
            self.line(Level::Error, message);
        }
        if self.file.is_some() || !is_line {
            // Nothing is left to tell a standard error that is closed.
            let _closed = writeln!(io::stderr(), "{}: {message}", super::arguments::PROGRAM);
        }
    }

    pub(super) fn warning(&self, message: &str) {
        self.line(Level::Warning, message);
    }

    pub(super) fn debug(&self, message: impl FnOnce() -> String) {
        if self.debug {
            self.line(Level::Debug, &message());
        }
    }

    fn line(&self, level: Level, message: &str) {
        let line = line(self.format, level, message, jiff::Timestamp::now());
        // One write: lines of several processes stay whole. A log that cannot be written is no reason to fail.
        let _lost = match &self.file {
            Some(file) => (&mut &*file).write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }
}

fn line(format: LogFormat, level: Level, message: &str, now: jiff::Timestamp) -> String {
    let (level, time) = (level.name(), now.strftime("%Y-%m-%dT%H:%M:%SZ"));
    match format {
        LogFormat::Text => format!("time=\"{time}\" level={level} msg={message:?}\n"),
        LogFormat::Json => {
            let message = serde_json::Value::from(message);
            format!("{{\"level\":\"{level}\",\"msg\":{message},\"time\":\"{time}\"}}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> jiff::Timestamp {
        "2026-01-02T03:04:05.678Z".parse().unwrap()
    }

    #[test]
    fn a_line_of_json_has_what_callers_look_for() {
        let line = line(LogFormat::Json, Level::Error, "no \"such\"\nfile", at());
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected =
            serde_json::json!({"level": "error", "msg": "no \"such\"\nfile", "time": "2026-01-02T03:04:05Z"});
        assert_eq!(value, expected);
    }

    #[test]
    fn a_line_of_text_is_one_line() {
        let line = line(LogFormat::Text, Level::Warning, "one\ntwo", at());
        assert_eq!(line, "time=\"2026-01-02T03:04:05Z\" level=warning msg=\"one\\ntwo\"\n");
    }

    #[test]
    fn a_log_in_json_ends_with_the_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "{\"level\":\"info\"}\n").unwrap();
        let global = Global { log: Some(path.clone()), log_format: LogFormat::Json, ..Global::default() };
        let log = Log::open(&global).unwrap();
        log.debug(|| unreachable!("not asked for"));
        log.warning("first");
        log.error("second");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let said: Vec<_> = lines.iter().map(|line| (line["level"].as_str().unwrap(), line["msg"].as_str())).collect();
        assert_eq!(said, [("info", None), ("warning", Some("first")), ("error", Some("second"))]);
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_an_error_that_names_it() {
        let global = Global { log: Some("/nowhere/at/all".into()), ..Global::default() };
        assert!(format!("{:#}", Log::open(&global).unwrap_err()).contains("/nowhere/at/all"));
    }
}
