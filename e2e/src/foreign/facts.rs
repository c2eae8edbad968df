//! What was seen of runtimes, and how it is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use serde_json::Value;

use super::differences::Difference;
use crate::agent::Answer;
use crate::runtime::cgroup_version;

/// What was seen of one runtime: names and values, both made so that they do not differ from run to run.
#[derive(Debug, Clone)]
pub struct Facts {
    seen: BTreeMap<String, String>,
    same: Vec<(String, &'static str)>,
    outside: BTreeMap<String, String>,
}

/// The prober's report in a command's output.
pub(super) fn find_report(output: &str) -> Option<Value> {
    // Where `script` has nothing to read, its terminal echoes that in the middle of everything.
    let text = output.replace("^@", "");
    // On a terminal there may be an echo before it, and a complaint of the engine's after it.
    let parsed = |line: &str| serde_json::from_str::<Value>(line.get(line.find('{')?..)?).ok();
    text.lines().rev().find_map(parsed)
}

impl Facts {
    /// None yet. Each of `same` is a text of this runtime and what stands for it; `outside` are the namespaces around the
    /// containers.
    pub(super) fn new(same: Vec<(String, &'static str)>, outside: BTreeMap<String, String>) -> Self {
        Self { seen: BTreeMap::new(), same, outside }
    }

    /// Notes a value.
    ///
    /// # Panics
    /// When the name is taken.
    pub fn tell(&mut self, name: &str, value: impl Display) {
        let mut value = value.to_string();
        for (own, same) in &self.same {
            value = value.replace(own, same);
        }
        assert!(self.seen.insert(name.to_owned(), value).is_none(), "{name} was told twice");
    }

    /// Notes a command's code and output, and of a refusal the engine's words: what it takes the runtime's words for, or
    /// its own when it did not ask the runtime.
    pub fn answer(&mut self, name: &str, answer: &Answer) {
        self.tell(&format!("{name}: code"), answer.code);
        self.tell(&format!("{name}: output"), answer.stdout.replace('\r', "").trim_end());
        if answer.code != 0 {
            let last = answer.stderr.lines().last().unwrap_or_default();
            let opinions: Vec<_> = last.split(": ").filter(|words| words.starts_with("OCI ")).collect();
            let own = last.rsplit(": ").next().unwrap_or_default();
            self.tell(
                &format!("{name}: refusal"),
                if opinions.is_empty() { own.to_owned() } else { opinions.join(": ") },
            );
        }
    }

    /// Notes all that the prober's report says, which is the last line of JSON in a command's output.
    ///
    /// # Panics
    /// When the command failed or there is no report.
    pub fn report(&mut self, name: &str, answer: &Answer) {
        let text = answer.clone().ok();
        let mut report = find_report(&text).unwrap_or_else(|| panic!("no report, but {answer:?}"));
        let fields = report.as_object_mut().expect("a report is an object");
        fields.remove("clocks");
        if fields["pid"] != 1 {
            // Not its namespace's first process: how many there were before it is chance.
            for field in ["pid", "parent", "session", "process_group", "processes"] {
                fields.remove(field);
            }
        }
        let mounts = fields.remove("mounts").unwrap_or_default();
        let namespaces = fields.remove("namespaces").unwrap_or_default();
        for (kind, link) in namespaces.as_object().into_iter().flatten() {
            let outside = self.outside.get(kind).is_some_and(|outside| link == outside);
            self.tell(&format!("{name}: namespaces/{kind}"), if outside { "outside" } else { "own" });
        }
        let mut points: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for mount in mounts.as_array().into_iter().flatten() {
            points.entry(mount["point"].as_str().unwrap_or_default()).or_default().push(described(mount));
        }
        for (point, found) in points {
            self.tell(&format!("{name}: mounts {point}"), found.join(" below "));
        }
        self.flatten(&format!("{name}: "), &report);
    }

    fn flatten(&mut self, name: &str, value: &Value) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (key, value) in fields {
                    let separator = if name.ends_with(' ') { "" } else { "/" };
                    self.flatten(&format!("{name}{separator}{key}"), value);
                }
            }
            Value::String(text) => {
                // Pipes and sockets are told apart by numbers.
                let text = text.split_once(":[").map_or(text.as_str(), |(kind, _)| kind);
                self.tell(name, text);
            }
            other => self.tell(name, other),
        }
    }

    /// A value by its name.
    ///
    /// # Panics
    /// When it was not told.
    #[must_use]
    pub fn value(&self, name: &str) -> &str {
        self.seen.get(name).unwrap_or_else(|| panic!("{name} was not told, but {:#?}", self.seen.keys()))
    }

    /// Makes the same what containers are called: 64 hexadecimal digits, or the first 32 or twelve of these.
    fn without_ids(mut self) -> Self {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let mut ids = BTreeSet::new();
        for value in self.seen.values() {
            for word in value.split(|letter: char| !letter.is_ascii() || !hex(letter as u8)) {
                if word.len() == 64 {
                    ids.insert(word.to_owned());
                }
            }
        }
        let parts = |id: &str| [64, 32, 12].map(|length| id[..length].to_owned());
        let parts: Vec<_> = ids.iter().flat_map(|id| parts(id)).collect();
        let clean = |text: &str| parts.iter().fold(text.to_owned(), |text, part| text.replace(part, "ID"));
        self.seen = self.seen.iter().map(|(name, value)| (clean(name), clean(value))).collect();
        self
    }
}

/// A mount, without the numbers that tell it from others of its kind. What masks a file or a directory of the kernel's is
/// any null device, or any tmpfs that nobody can write.
fn described(mount: &Value) -> String {
    let words = |field: &str| {
        let list = mount[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut words: Vec<_> = list.map(|word| word.split([':', '=', '+']).next().unwrap_or(word)).collect();
        words.sort_unstable();
        words.join(",")
    };
    let sizes = mount["super"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let sizes: Vec<_> = sizes.filter(|word| word.starts_with("size=") || word.starts_with("mode=")).collect();
    let text = |field: &str| mount[field].as_str().unwrap_or_default().to_owned();
    let of_kernel = ["/proc/", "/sys/"].iter().any(|above| text("point").starts_with(above));
    if of_kernel && text("root").ends_with("/null") {
        return "the null device".to_owned();
    }
    if of_kernel && text("type") == "tmpfs" && words("options").split(',').any(|word| word == "ro") {
        return "a read-only tmpfs".to_owned();
    }
    format!(
        "{} {} at {} {} {} {} {}",
        text("type"),
        text("source"),
        text("root"),
        words("options"),
        words("propagation"),
        words("super"),
        sizes.join(",")
    )
}

/// Compares the first with the others and returns it. What is not alike must be one of `differences`, and those that this
/// test must see, it must see.
pub(super) fn compare(test: &str, differences: &[Difference], all: Vec<(&'static str, Facts)>) -> Facts {
    let mut all = all.into_iter().map(|(name, facts)| (name, facts.without_ids()));
    let (_, ours) = all.next().expect("ours is the first");
    let mut complaints = String::new();
    for (name, theirs) in all {
        let facts: BTreeSet<_> = ours.seen.keys().chain(theirs.seen.keys()).collect();
        let unlike: Vec<_> = facts.into_iter().filter(|fact| ours.seen.get(*fact) != theirs.seen.get(*fact)).collect();
        for fact in &unlike {
            if !differences.iter().any(|difference| difference.covers(fact, name)) {
                let show =
                    |facts: &Facts| facts.seen.get(*fact).map_or("nothing".to_owned(), |value| format!("{value:?}"));
                complaints += &format!("{fact}\n  ours  {}\n  {name}  {}\n", show(&ours), show(&theirs));
            }
        }
        for gone in differences.iter().flat_map(|difference| difference.gone(test, name, &unlike)) {
            complaints += &format!("{gone}: {name} is listed as different and is not\n");
        }
    }
    assert!(
        complaints.is_empty(),
        "{test}: runtime/oci/README.md says otherwise (cgroup v{}):\n{complaints}",
        cgroup_version()
    );
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(told: &[(&str, &str)]) -> Facts {
        let mut facts = Facts::new(vec![("/opt/runtime".to_owned(), "RUNTIME")], BTreeMap::new());
        for (name, value) in told {
            facts.tell(name, value);
        }
        facts
    }

    #[test]
    fn paths_and_ids_of_a_run_are_no_difference() {
        let (one, other) = ("a1".repeat(32), "b2".repeat(32));
        let ours = facts(&[
            ("program", "/opt/runtime"),
            ("cgroup", &format!("/x/{one}")),
            ("host", &one[..12]),
            ("uuid", &one[..32]),
        ]);
        let theirs = facts(&[
            ("program", "RUNTIME"),
            ("cgroup", &format!("/x/{other}")),
            ("host", &other[..12]),
            ("uuid", &other[..32]),
        ]);
        let seen = compare("test", &[], vec![("ours", ours), ("runc", theirs)]);
        assert_eq!(seen.value("host"), "ID");
    }

    fn difference(line: &str) -> Difference {
        Difference::parse(line).expect("a difference")
    }

    #[test]
    #[should_panic(expected = "run: umask\n  ours  \"0022\"\n  runc  \"0077\"")]
    fn a_difference_without_a_reason_fails() {
        let all = vec![("ours", facts(&[("run: umask", "0022")])), ("runc", facts(&[("run: umask", "0077")]))];
        drop(compare("test", &[difference("| `umask` | crun | another runtime's | `other` |")], all));
    }

    #[test]
    #[should_panic(expected = "ours  nothing")]
    fn what_was_seen_of_one_alone_is_a_difference() {
        drop(compare("test", &[], vec![("ours", facts(&[])), ("runc", facts(&[("run: mounts /x", "tmpfs")]))]));
    }

    #[test]
    fn a_difference_with_a_reason_passes() {
        let all = vec![("ours", facts(&[("run: umask", "0022")])), ("runc", facts(&[("run: umask", "0077")]))];
        let seen = compare("test", &[difference("| `umask` | runc | it has one | `test` |")], all);
        assert_eq!(seen.value("run: umask"), "0022");
    }

    #[test]
    #[should_panic(expected = "umask: runc is listed as different and is not")]
    fn a_difference_that_is_gone_fails() {
        let all = vec![("ours", facts(&[("run: umask", "0022")])), ("runc", facts(&[("run: umask", "0022")]))];
        drop(compare("test", &[difference("| `umask` | runc | it had one | `test` |")], all));
    }

    #[test]
    fn a_difference_that_another_test_must_see_may_be_missing() {
        let all = vec![("ours", facts(&[("run: umask", "0022")])), ("runc", facts(&[("run: umask", "0022")]))];
        drop(compare("test", &[difference("| `umask` | runc | it has one | `another` |")], all));
    }
}
