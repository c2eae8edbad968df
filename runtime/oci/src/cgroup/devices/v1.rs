//! Version 1: a cgroup allows or denies everything, with exceptions. Linux cgroup-v1/devices.rst.
//!
//! Rules of the configuration are played on a model of the kernel's list; what differs from the list in force is
//! written, additions first, so that a device which is allowed before and after is allowed all the while.

use std::collections::BTreeMap;

use super::{Kind, MKNOD, READ, Rule, WRITE, What, letters};
use crate::cgroup::CgroupError;

type Device = (Kind, Option<u32>, Option<u32>);

/// What a cgroup allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct State {
    /// Everything but the exceptions, instead of nothing but them.
    allow: bool,
    /// Accesses by device.
    exceptions: BTreeMap<Device, u8>,
}

/// How to get from one state to another.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Change {
    /// A line begins from nothing, so that in between more or less is allowed than before and after.
    pub(crate) resets: bool,
    /// File and line.
    pub(crate) lines: Vec<(&'static str, String)>,
}

impl State {
    /// Reads `devices.list`. Of a cgroup that allows everything it does not show the exceptions.
    pub(crate) fn parse(list: &str) -> Self {
        let mut state = Self::default();
        for line in list.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(kind), Some(numbers), Some(access)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let kind = match kind {
                "c" => Kind::Character,
                "b" => Kind::Block,
                _ => return Self { allow: true, exceptions: BTreeMap::new() },
            };
            let Some((major, minor)) = numbers.split_once(':') else { continue };
            let access = access.bytes().fold(0, |access, letter| {
                access
                    | match letter {
                        b'r' => READ,
                        b'w' => WRITE,
                        _ => MKNOD,
                    }
            });
            // A star is no number.
            state.exceptions.insert((kind, major.parse().ok(), minor.parse().ok()), access);
        }
        state
    }

    fn play(&mut self, rule: &Rule) -> Result<(), CgroupError> {
        let What::Some { kind, major, minor, access } = rule.what else {
            *self = Self { allow: rule.allow, exceptions: BTreeMap::new() };
            return Ok(());
        };
        let device = (kind, major, minor);
        if rule.allow != self.allow {
            *self.exceptions.entry(device).or_default() |= access;
            return Ok(());
        }
        // The kernel takes an exception back only where it was made: of one that is about more devices nothing can be.
        let wider = self.exceptions.iter().find(|(exception, accesses)| {
            **accesses & access != 0 && overlap(exception, &device) && !covers(&device, exception)
        });
        if let Some((exception, accesses)) = wider {
            return Err(CgroupError::Value {
                field: "devices".into(),
                reason: format!(
                    "cgroup v1 cannot take {} out of {}",
                    line(&device, access),
                    line(exception, *accesses)
                ),
            });
        }
        self.exceptions.retain(|exception, accesses| {
            if covers(&device, exception) {
                *accesses &= !access;
            }
            *accesses != 0
        });
        Ok(())
    }
}

fn overlap(one: &Device, other: &Device) -> bool {
    let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
    one.0 == other.0 && meet(one.1, other.1) && meet(one.2, other.2)
}

/// Whether one is about all that the other is about.
fn covers(one: &Device, other: &Device) -> bool {
    let within = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
    one.0 == other.0 && within(one.1, other.1) && within(one.2, other.2)
}

fn line((kind, major, minor): &Device, access: u8) -> String {
    let kind = if *kind == Kind::Block { 'b' } else { 'c' };
    let number = |value: &Option<u32>| value.map_or_else(|| "*".to_owned(), |value| value.to_string());
    format!("{kind} {}:{} {}", number(major), number(minor), letters(access))
}

/// The lines that put `rules`, played from the first to the last, in force where `now` is.
pub(crate) fn transition(now: &State, rules: &[Rule]) -> Result<Change, CgroupError> {
    const ALLOW: &str = "devices.allow";
    const DENY: &str = "devices.deny";
    // As on version 2: what no rule is about is denied.
    let mut wanted = State::default();
    for rule in rules {
        wanted.play(rule)?;
    }
    let mut change = Change::default();
    let mut before = now.exceptions.clone();
    // Exceptions from everything are not shown: what they are is known only after they have been forgotten.
    if wanted.allow || now.allow {
        change.resets = true;
        change.lines.push((if wanted.allow { ALLOW } else { DENY }, "a".to_owned()));
        before.clear();
    }
    let (except, restore) = if wanted.allow { (DENY, ALLOW) } else { (ALLOW, DENY) };
    let without =
        |these: &BTreeMap<Device, u8>, device: &Device, access: u8| access & !these.get(device).copied().unwrap_or(0);
    let differences = |from: &BTreeMap<Device, u8>, to: &BTreeMap<Device, u8>, file: &'static str| {
        let more = to.iter().map(|(device, access)| (*device, without(from, device, *access)));
        more.filter(|(_, access)| *access != 0)
            .map(|(device, access)| (file, line(&device, access)))
            .collect::<Vec<_>>()
    };
    let (added, removed) =
        (differences(&before, &wanted.exceptions, except), differences(&wanted.exceptions, &before, restore));
    // What becomes allowed goes before what becomes denied.
    let (first, last) = if wanted.allow { (removed, added) } else { (added, removed) };
    change.lines.extend(first);
    change.lines.extend(last);
    Ok(change)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::tests::rules;
    use super::*;

    fn check(list: &str, json: &str, expected: &Expect) {
        let text = match transition(&State::parse(list), &rules(json)) {
            Ok(change) => {
                let lines = change.lines.iter().map(|(file, line)| format!("{file} <- {line}\n"));
                lines.chain(change.resets.then(|| "resets\n".to_owned())).collect()
            }
            Err(error) => format!("error: {error}\n"),
        };
        expected.assert_eq(&text);
    }

    const WANTED: &str = r#"[{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"}, {"allow": true, "type": "c", "major": 136, "access": "rw"}]"#;

    #[test]
    fn a_new_cgroup_denies_everything_first() {
        check(
            "a *:* rwm\n",
            WANTED,
            &expect![[r#"
                devices.deny <- a
                devices.allow <- c 1:3 rwm
                devices.allow <- c 136:* rw
                devices.allow <- b 8:0 r
                resets
            "#]],
        );
    }

    #[test]
    fn of_rules_in_force_only_differences_are_written_and_additions_first() {
        check(
            "c 1:3 rwm\nc 136:* rwm\nc 10:200 rwm\n",
            WANTED,
            &expect![[r#"
                devices.allow <- b 8:0 r
                devices.deny <- c 10:200 rwm
                devices.deny <- c 136:* m
            "#]],
        );
        check("c 1:3 rwm\nc 136:* rw\nb 8:0 r\n", WANTED, &expect![""]);
    }

    #[test]
    fn what_no_rule_is_about_is_denied() {
        check(
            "c 1:3 rwm\nc 10:200 rwm\n",
            r#"[{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
                {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
                {"allow": false, "type": "c", "major": 10, "minor": 200, "access": "m"}]"#,
            &expect![[r#"
                devices.allow <- c 10:229 rw
                devices.deny <- c 1:3 rwm
                devices.deny <- c 10:200 m
            "#]],
        );
    }

    #[test]
    fn denials_of_a_cgroup_that_allows_everything_are_exceptions() {
        check(
            "a *:* rwm\n",
            r#"[{"allow": true, "access": "rwm"}, {"allow": false, "type": "b", "major": 8, "access": "w"}]"#,
            &expect![[r#"
                devices.allow <- a
                devices.deny <- b 8:* w
                resets
            "#]],
        );
    }

    #[test]
    fn a_wider_rule_takes_back_every_exception_within_it() {
        check(
            "c 1:3 rwm\nc 10:200 rw\nc 10:229 r\n",
            r#"[{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"},
                {"allow": false, "type": "c", "major": 10, "access": "r"}]"#,
            &expect![[r#"
                devices.deny <- c 10:200 r
                devices.deny <- c 10:229 r
            "#]],
        );
    }

    #[test]
    fn a_hole_in_a_wider_rule_is_refused() {
        check(
            "a *:* rwm\n",
            r#"[{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "access": "rw"},
                {"allow": false, "type": "c", "major": 10, "minor": 5, "access": "r"}]"#,
            &expect![[r#"
                error: devices: cgroup v1 cannot take c 10:5 r out of c 10:* rw
            "#]],
        );
    }
}
