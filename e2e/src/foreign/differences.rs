//! Why containers of our runtime are not seen as those of others are: the table in `runtime/oci/README.md`.

use std::path::Path;

use crate::runtime::cgroup_version;

/// What tells the table's lines from those of others.
const HEAD: &str = "| fact | not as | why | seen by |";

/// A reason for which our runtime and others are not seen alike.
#[derive(Debug, Clone)]
pub(super) struct Difference {
    /// The names of facts: with the step of a test before a colon, or of all steps; each `*` stands for anything.
    facts: Vec<String>,
    /// The other runtimes.
    from: Vec<String>,
    /// The machines on which it must be seen.
    place: Place,
    /// The tests that must see it.
    tests: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Everywhere,
    /// Those with this version of cgroups.
    Cgroups(u8),
    /// Those that have this file.
    File(String),
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "" => Self::Everywhere,
            "on cgroup v1" => Self::Cgroups(1),
            "on cgroup v2" => Self::Cgroups(2),
            other => Self::File(other.strip_prefix("with `")?.strip_suffix('`')?.to_owned()),
        })
    }

    fn is_here(&self) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Cgroups(version) => cgroup_version() == *version,
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

impl Difference {
    /// All of the table.
    ///
    /// # Panics
    /// When a line of it cannot be understood.
    pub(super) fn all() -> Vec<Self> {
        let readme = include_str!("../../../runtime/oci/README.md");
        let lines: Vec<_> =
            readme.lines().skip_while(|line| *line != HEAD).take_while(|l| l.starts_with('|')).collect();
        assert!(lines.len() > 2, "runtime/oci/README.md has no table that begins with {HEAD}");
        lines
            .into_iter()
            .skip(2)
            .map(|line| Self::parse(line).unwrap_or_else(|| panic!("not a difference: {line}")))
            .collect()
    }

    pub(super) fn parse(line: &str) -> Option<Self> {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [facts, from, why, tests] = cells[..] else { return None };
        let coded = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let (from, place) =
            from.split_at([" on ", " with "].iter().find_map(|word| from.find(word)).unwrap_or(from.len()));
        let found = Self {
            facts: coded(facts),
            from: from.split(", ").map(str::to_owned).collect(),
            place: Place::parse(place.trim())?,
            tests: coded(tests),
        };
        let whole = !found.facts.is_empty() && !why.is_empty() && !found.tests.is_empty();
        let known = found.from.iter().all(|name| super::OTHERS.contains(&&**name));
        (whole && known).then_some(found)
    }

    /// Whether it says why a fact is another with this runtime.
    pub(super) fn covers(&self, fact: &str, runtime: &str) -> bool {
        self.from.iter().any(|name| name == runtime) && self.facts.iter().any(|pattern| names(pattern, fact))
    }

    /// What of it a test must see and does not, if `unlike` is what it saw of this runtime that is not alike.
    pub(super) fn gone(&self, test: &str, runtime: &str, unlike: &[&String]) -> Vec<&str> {
        let due = self.tests.iter().any(|name| name == test) && self.from.iter().any(|name| name == runtime);
        if !due || !self.place.is_here() {
            return Vec::new();
        }
        let seen = |pattern: &&String| unlike.iter().any(|fact| names(pattern, fact));
        self.facts.iter().filter(|pattern| !seen(pattern)).map(String::as_str).collect()
    }
}

/// Whether a pattern is about a fact, or, when it says no step of a test, about that fact of each step.
fn names(pattern: &str, fact: &str) -> bool {
    let bare = fact.split_once(": ").map_or(fact, |(_, bare)| bare);
    fits(pattern, if pattern.contains(": ") { fact } else { bare })
}

/// Whether a text is what a pattern says, each `*` of which stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(head) else { return false };
    (0..=text.len()).filter_map(|at| text.get(at..)).any(|text| fits(rest, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(line: &str) -> Difference {
        Difference::parse(line).expect("a difference")
    }

    #[test]
    fn a_line_of_the_table_is_a_difference() {
        let one = difference("| `a/*`, `step: b` | crun, runc on cgroup v1 | because | `a_test`, `another_test` |");
        assert_eq!(one.facts, ["a/*", "step: b"]);
        assert_eq!(one.from, ["crun", "runc"]);
        assert_eq!(one.place, Place::Cgroups(1));
        assert_eq!(one.tests, ["a_test", "another_test"]);
        let other = difference("| `a` | runc with `/proc/kcore` | because | `a_test` |");
        assert_eq!((other.from, other.place), (vec!["runc".to_owned()], Place::File("/proc/kcore".to_owned())));
        for line in [
            "| `a` | crun | because |",
            "| `a` | podman | because | `t` |",
            "| `a` | crun | | `t` |",
            "| a | crun | because | `t` |",
            "| `a` | crun | because | |",
            "| `a` | crun on v1 | because | `t` |",
            "| `a` | crun with /proc/kcore | because | `t` |",
        ] {
            assert!(Difference::parse(line).is_none(), "{line}");
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        let covers =
            |pattern: &str, fact| difference(&format!("| `{pattern}` | runc | why | `t` |")).covers(fact, "runc");
        assert!(covers("devices/core/*", "of the host: devices/core/uid"));
        assert!(covers("mounts /sys", "run: mounts /sys"));
        assert!(covers("run: mounts */x/*", "run: mounts /a/x/b/x/c"));
        assert!(covers("state", "state"));
        assert!(!covers("mounts /sys", "run: mounts /sys/firmware"));
        assert!(!covers("devices/core/*", "run: devices/console/uid"));
        assert!(!covers("run: umask", "run: umasks"));
        assert!(!covers("run: umask", "exec: umask"));
        assert!(!difference("| `umask` | crun | why | `t` |").covers("run: umask", "runc"));
    }

    #[test]
    fn every_test_that_the_table_names_is_there() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let mut tests = String::new();
        for entry in std::fs::read_dir(folder).expect("the tests").flatten() {
            if entry.file_name().to_string_lossy().starts_with("runtime_") {
                tests += &std::fs::read_to_string(entry.path()).expect("a test");
            }
        }
        for difference in Difference::all() {
            for test in &difference.tests {
                assert!(tests.contains(&format!("fn {test}()")), "{test} is no test, and sees {:?}", difference.facts);
            }
        }
    }
}
