//! The command line: words to a [`Verb`], without looking at the machine. Pure.
//!
//! The grammar is runc's, whose callers pass what they pass: `--flag value`, `--flag=value`, one dash instead of two,
//! `-abc` for short flags without values, `--` before words that only look like flags. Flags may follow operands, but
//! in `exec` and `ps`, whose operands are another program's words.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::str::FromStr;

use super::{
    checkpoint, create, delete, events, exec, features, kill, list, pause, ps, restore, run, spec, start, state, update,
};

/// How the program is called in messages.
pub(super) const PROGRAM: &str = "portreeve runtime";

/// All verbs, in the order of the help.
pub(super) const VERBS: &[&Usage] = &[
    &create::USAGE,
    &start::USAGE,
    &run::USAGE,
    &state::USAGE,
    &kill::USAGE,
    &delete::USAGE,
    &exec::USAGE,
    &ps::USAGE,
    &list::USAGE,
    &pause::PAUSE,
    &pause::RESUME,
    &update::USAGE,
    &events::USAGE,
    &features::USAGE,
    &spec::USAGE,
    &checkpoint::USAGE,
    &restore::USAGE,
    &HELP,
];

const GLOBAL_FLAGS: &[Flag] = &[
    Flag::value("root", "DIR", "where the state of containers is kept"),
    Flag::value("log", "FILE", "append errors and warnings to FILE"),
    Flag::value("log-format", "FORMAT", "text (default) or json"),
    Flag::switch("systemd-cgroup", "let systemd make the cgroups"),
    Flag::value("rootless", "WHEN", "true, false or auto (default)"),
    Flag::switch("debug", "log what is done as well"),
    Flag::value("criu", "PATH", "the criu that checkpoints and restores (default: that of PATH)"),
    Flag::switch("version", "print the version").short('v'),
];

const HELP_FLAG: Flag = Flag::switch("help", "print this help").short('h');

const HELP: Usage = Usage {
    name: "help",
    operands: "[VERB]",
    about: "print what can be said",
    flags: &[],
    count: 0..=1,
    ends_flags: false,
    read: |mut given| Ok(Verb::Help(given.operand_text("VERB")?)),
};

/// One flag.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag {
    long: &'static str,
    short: Option<char>,
    /// What its value is called in the help; `None` for a switch.
    value: Option<&'static str>,
    about: &'static str,
}

impl Flag {
    pub(super) const fn switch(long: &'static str, about: &'static str) -> Self {
        Self { long, short: None, value: None, about }
    }

    pub(super) const fn value(long: &'static str, value: &'static str, about: &'static str) -> Self {
        Self { long, short: None, value: Some(value), about }
    }

    pub(super) const fn short(self, short: char) -> Self {
        Self { short: Some(short), ..self }
    }

    fn is_short(&self, name: &str) -> bool {
        let mut letters = name.chars();
        self.short.is_some() && letters.next() == self.short && letters.next().is_none()
    }
}

/// What can be said to one verb.
#[derive(Debug)]
pub(super) struct Usage {
    pub(super) name: &'static str,
    /// Its operands, as the help shows them.
    pub(super) operands: &'static str,
    pub(super) about: &'static str,
    pub(super) flags: &'static [&'static [Flag]],
    /// How many operands it takes.
    pub(super) count: RangeInclusive<usize>,
    /// Whether what follows the first operand is operands only.
    pub(super) ends_flags: bool,
    pub(super) read: fn(Given) -> Result<Verb, UsageError>,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Verb {
    Create(create::Create),
    Start(start::Start),
    Run(run::Run),
    State(state::State),
    Kill(kill::Kill),
    Delete(delete::Delete),
    Exec(Box<exec::Exec>),
    Ps(ps::Ps),
    List(list::List),
    Pause(pause::Pause),
    Resume(pause::Pause),
    Update(Box<update::Update>),
    Events(events::Events),
    Features,
    Spec(spec::SpecArguments),
    Checkpoint(Box<checkpoint::Checkpoint>),
    Restore(Box<restore::Restore>),
    Help(Option<String>),
    Version,
}

/// Form of the log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// What is said before the verb.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Global {
    pub(super) root: Option<PathBuf>,
    pub(super) log: Option<PathBuf>,
    pub(super) log_format: LogFormat,
    pub(super) systemd_cgroup: bool,
    /// `None`: as the caller's user is.
    pub(super) rootless: Option<bool>,
    pub(super) debug: bool,
    /// CRIU; `None`: that of PATH.
    pub(super) criu: Option<PathBuf>,
}

/// Words that make no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (see `{PROGRAM}{}{} --help`)", if .verb.is_empty() { "" } else { " " }, .verb)]
pub(super) struct UsageError {
    verb: &'static str,
    message: String,
}

impl UsageError {
    fn new(verb: &'static str, message: impl Into<String>) -> Self {
        Self { verb, message: message.into() }
    }
}

/// Reads what stands before the verb; answers it and the rest, verb first.
///
/// Apart from [`verb`], because the log that it names is to have what is wrong with the rest.
pub(super) fn globals(arguments: &[OsString]) -> Result<(Global, Option<Verb>, &[OsString]), UsageError> {
    let (given, rest) = scan("", &[GLOBAL_FLAGS], arguments, Operands::Rest)?;
    let asked = match () {
        () if given.has("help")? => Some(Verb::Help(None)),
        () if given.has("version")? => Some(Verb::Version),
        () => None,
    };
    let log_format = match given.text("log-format")? {
        None | Some("text" | "") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(other) => return Err(given.wrong(format!("--log-format is text or json, not {other:?}"))),
    };
    let rootless = match given.text("rootless")? {
        None | Some("auto") => None,
        Some(word) => {
            let known = boolean(word);
            Some(known.ok_or_else(|| given.wrong(format!("--rootless is true, false or auto, not {word:?}")))?)
        }
    };
    let global = Global {
        root: given.directory("root")?,
        log: given.path("log"),
        log_format,
        systemd_cgroup: given.has("systemd-cgroup")?,
        rootless,
        debug: given.has("debug")?,
        criu: given.path("criu"),
    };
    Ok((global, asked, rest))
}

/// Reads the verb and what follows it. Nothing at all asks for help.
pub(super) fn verb(arguments: &[OsString]) -> Result<Verb, UsageError> {
    let Some((name, rest)) = arguments.split_first() else { return Ok(Verb::Help(None)) };
    let Some(usage) = VERBS.iter().find(|usage| name == usage.name) else {
        let name = name.to_string_lossy();
        let names = VERBS.iter().map(|usage| usage.name);
        return Err(UsageError::new("", format!("there is no verb {name:?}{}", nearest(&name, names))));
    };
    let operands = if usage.ends_flags { Operands::EndFlags } else { Operands::Anywhere };
    let (given, _) = scan(usage.name, usage.flags, rest, operands)?;
    if given.has("help")? {
        return Ok(Verb::Help(Some(usage.name.to_owned())));
    }
    if !usage.count.contains(&given.operands.len()) {
        let wanted = if usage.operands.is_empty() { "no operands" } else { usage.operands };
        let got = given.operands.len();
        return Err(given.wrong(format!("{} takes {wanted}, and {got} operands were given", usage.name)));
    }
    (usage.read)(given)
}

/// The help: of one verb, or of all.
pub(super) fn help(name: Option<&str>) -> Result<String, UsageError> {
    let mut text = String::new();
    match name {
        None => {
            let _ = writeln!(text, "Runs containers from OCI bundles.\n\n{PROGRAM} [FLAG]... VERB [ARGUMENT]...\n");
            for usage in VERBS {
                let _ = writeln!(text, "  {:<34} {}", usage.name, usage.about);
            }
            text.push('\n');
            flag_table(&mut text, &[GLOBAL_FLAGS]);
        }
        Some(name) => {
            let Some(usage) = VERBS.iter().find(|usage| usage.name == name) else {
                return Err(UsageError::new("", format!("there is no verb {name:?}")));
            };
            let (name, operands, about) = (usage.name, usage.operands, usage.about);
            let _ = writeln!(text, "{PROGRAM} {name} [FLAG]... {operands}\n\n{about}\n");
            flag_table(&mut text, usage.flags);
        }
    }
    Ok(text)
}

fn flag_table(text: &mut String, tables: &[&[Flag]]) {
    for flag in tables.iter().copied().flatten().chain([&HELP_FLAG]) {
        let short = flag.short.map_or_else(|| "    ".to_owned(), |letter| format!("-{letter}, "));
        let value = flag.value.map_or_else(String::new, |name| format!(" {name}"));
        let _ = writeln!(text, "  {:<34} {}", format!("{short}--{}{value}", flag.long), flag.about);
    }
}

/// What was said: flags in their order, and operands.
#[derive(Debug)]
pub(super) struct Given {
    verb: &'static str,
    flags: Vec<(&'static str, OsString)>,
    operands: std::collections::VecDeque<OsString>,
}

impl Given {
    pub(super) fn wrong(&self, message: impl Into<String>) -> UsageError {
        UsageError::new(self.verb, message)
    }

    /// Whether a switch is on.
    pub(super) fn has(&self, long: &str) -> Result<bool, UsageError> {
        Ok(self.switch(long)?.unwrap_or(false))
    }

    /// A switch, if it was named: the last word counts.
    pub(super) fn switch(&self, long: &str) -> Result<Option<bool>, UsageError> {
        let Some(word) = self.value(long) else { return Ok(None) };
        let known = word.to_str().and_then(boolean);
        known.map(Some).ok_or_else(|| self.wrong(format!("--{long} is true or false, not {word:?}")))
    }

    fn value(&self, long: &str) -> Option<&OsStr> {
        self.values(long).last()
    }

    fn values(&self, long: &str) -> impl Iterator<Item = &OsStr> {
        self.flags.iter().filter(move |(name, _)| *name == long).map(|(_, value)| value.as_os_str())
    }

    /// The last value of a flag as a path; an empty one is an error: it comes from a variable that is not set.
    fn directory(&self, long: &str) -> Result<Option<PathBuf>, UsageError> {
        match self.value(long) {
            Some(value) if value.is_empty() => Err(self.wrong(format!("--{long} takes a path, and got an empty one"))),
            value => Ok(value.map(PathBuf::from)),
        }
    }

    /// The last value of a flag as a path; an empty one is none.
    pub(super) fn path(&self, long: &str) -> Option<PathBuf> {
        self.value(long).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// The last value of a flag.
    pub(super) fn text(&self, long: &str) -> Result<Option<&str>, UsageError> {
        self.value(long).map(|value| self.utf8(long, value)).transpose()
    }

    /// All values of a flag that may be repeated.
    pub(super) fn texts(&self, long: &str) -> Result<Vec<String>, UsageError> {
        self.values(long).map(|value| self.utf8(long, value).map(str::to_owned)).collect()
    }

    /// The last value of a flag as a number.
    pub(super) fn number<N: FromStr>(&self, long: &str) -> Result<Option<N>, UsageError> {
        let Some(text) = self.text(long)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.wrong(format!("--{long} takes a number, and {text:?} is none here")))
    }

    fn utf8<'a>(&self, long: &str, value: &'a OsStr) -> Result<&'a str, UsageError> {
        value.to_str().ok_or_else(|| self.wrong(format!("the value of --{long} is not UTF-8: {value:?}")))
    }

    /// The first operand, which the table says is there.
    pub(super) fn id(&mut self) -> Result<String, UsageError> {
        let missing = self.wrong("the container's id is missing");
        self.operand_text("ID")?.ok_or(missing)
    }

    /// The next operand.
    pub(super) fn operand_text(&mut self, name: &str) -> Result<Option<String>, UsageError> {
        let Some(word) = self.operands.pop_front() else { return Ok(None) };
        word.into_string().map(Some).map_err(|word| self.wrong(format!("{name} is not UTF-8: {word:?}")))
    }

    /// All operands that are left.
    pub(super) fn rest(&mut self, name: &str) -> Result<Vec<String>, UsageError> {
        let mut rest = Vec::new();
        while let Some(word) = self.operand_text(name)? {
            rest.push(word);
        }
        Ok(rest)
    }
}

/// Where operands stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operands {
    /// Between flags.
    Anywhere,
    /// What follows the first is operands.
    EndFlags,
    /// The first begins something else.
    Rest,
}

fn scan<'a>(
    verb: &'static str,
    tables: &[&'static [Flag]],
    words: &'a [OsString],
    operands: Operands,
) -> Result<(Given, &'a [OsString]), UsageError> {
    let mut given = Given { verb, flags: Vec::new(), operands: std::collections::VecDeque::new() };
    let mut rest = words;
    while let Some((word, after)) = rest.split_first() {
        let Some(text) = flag_text(word) else {
            match operands {
                Operands::Rest => return Ok((given, rest)),
                Operands::EndFlags => {
                    given.operands.push_back(word.clone());
                    // `exec ID -- COMMAND`, as older manuals of runc have it; a second one is the command's.
                    let after = after.strip_prefix(&[OsString::from("--")]).unwrap_or(after);
                    given.operands.extend(after.iter().cloned());
                }
                Operands::Anywhere => {
                    given.operands.push_back(word.clone());
                    rest = after;
                    continue;
                }
            }
            return Ok((given, &[]));
        };
        rest = after;
        if text.is_empty() {
            if operands == Operands::Rest {
                return Ok((given, rest));
            }
            given.operands.extend(rest.iter().cloned());
            return Ok((given, &[]));
        }
        let (name, value) = split_value(text);
        for (flag, is_last) in flags_named(&given, tables, word, name)? {
            let value = match (flag.value, value.filter(|_| is_last)) {
                (_, Some(value)) => value.to_owned(),
                (None, None) => "true".into(),
                (Some(_), None) if is_last => {
                    let (next, after) =
                        rest.split_first().ok_or_else(|| given.wrong(format!("--{} needs a value", flag.long)))?;
                    rest = after;
                    next.clone()
                }
                (Some(_), None) => return Err(given.wrong(format!("in {word:?} only the last flag can have a value"))),
            };
            given.flags.push((flag.long, value));
        }
    }
    Ok((given, rest))
}

/// What of a word follows its dashes; `None` for an operand, of which a lone dash is one.
fn flag_text(word: &OsStr) -> Option<&OsStr> {
    let bytes = word.as_bytes();
    let text = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-").filter(|text| !text.is_empty()))?;
    Some(OsStr::from_bytes(text))
}

fn split_value(text: &OsStr) -> (String, Option<&OsStr>) {
    let mut parts = text.as_bytes().splitn(2, |byte| *byte == b'=');
    let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    (name, parts.next().map(OsStr::from_bytes))
}

/// The flag of this name, or those of a bundle of letters; with each whether it is the last.
fn flags_named(
    given: &Given,
    tables: &[&'static [Flag]],
    word: &OsStr,
    name: String,
) -> Result<Vec<(&'static Flag, bool)>, UsageError> {
    let all = || tables.iter().copied().flatten().chain([&HELP_FLAG]);
    if let Some(flag) = all().find(|flag| flag.long == name || flag.is_short(&name)) {
        return Ok(vec![(flag, true)]);
    }
    let of_letter = |letter: char| all().find(|flag| flag.short == Some(letter));
    let bundle: Option<Vec<_>> = name.chars().map(of_letter).collect();
    match bundle {
        Some(flags) if !word.as_bytes().starts_with(b"--") => {
            let last = flags.len().saturating_sub(1);
            Ok(flags.into_iter().enumerate().map(|(at, flag)| (flag, at == last)).collect())
        }
        _ => {
            let near = nearest(&name, all().map(|flag| flag.long));
            Err(given.wrong(format!("there is no flag {:?}{near}", word.to_string_lossy())))
        }
    }
}

fn boolean(word: &str) -> Option<bool> {
    match word {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// `, did you mean X` when a name is near.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    let longest = 32;
    match names.filter(|_| name.len() <= longest).map(|known| (distance(name, known), known)).min() {
        Some((changes, known)) if changes <= 2 && changes < known.len() => format!(", did you mean {known:?}"),
        _ => String::new(),
    }
}

/// How many letters must be added, removed or replaced to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (at, letter) in one.chars().enumerate() {
        let mut diagonal = at;
        let mut left = at + 1;
        for (place, wanted) in row.iter_mut().skip(1).zip(other.chars()) {
            let replaced = diagonal + usize::from(letter != wanted);
            diagonal = *place;
            left = replaced.min(left + 1).min(*place + 1);
            *place = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
