//! Device rules: exceptions of `devices.allow` and `devices.deny` on version 1, one eBPF program on version 2.

mod v1;
mod v2;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use super::CgroupError;

pub(crate) use v1::{State, transition};
pub(crate) use v2::install;

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Character,
    Block,
}

/// One checked rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) allow: bool,
    pub(crate) what: What,
}

/// The devices that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Every device, in every way.
    Everything,
    /// Devices of one kind.
    Some {
        kind: Kind,
        /// `None` is any.
        major: Option<u32>,
        minor: Option<u32>,
        /// [`MKNOD`], [`READ`], [`WRITE`].
        access: u8,
    },
}

// BPF_DEVCG_ACC_* of linux/bpf.h.
pub(crate) const MKNOD: u8 = 1;
pub(crate) const READ: u8 = 2;
pub(crate) const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// What every container may use: making nodes (not opening them), the default devices, terminals, and the device by which
/// who administers its network makes tunnels.
const DEFAULT_ALLOWED: [(Kind, Option<u32>, Option<u32>, u8); 12] = [
    (Kind::Character, None, None, MKNOD),
    (Kind::Block, None, None, MKNOD),
    (Kind::Character, Some(1), Some(3), ALL), // null
    (Kind::Character, Some(1), Some(5), ALL), // zero
    (Kind::Character, Some(1), Some(7), ALL), // full
    (Kind::Character, Some(1), Some(8), ALL), // random
    (Kind::Character, Some(1), Some(9), ALL), // urandom
    (Kind::Character, Some(5), Some(0), ALL), // tty
    (Kind::Character, Some(5), Some(1), ALL), // console
    (Kind::Character, Some(5), Some(2), ALL), // ptmx
    (Kind::Character, Some(136), None, ALL),  // pts
    // Programs make the node themselves, as runc and crun let them: https://github.com/opencontainers/runc/issues/4555
    (Kind::Character, Some(10), Some(200), ALL), // net/tun
];

/// Checks the rules of the configuration.
pub(crate) fn parse(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, CgroupError> {
    let mut checked = Vec::with_capacity(rules.len());
    for rule in rules {
        let wrong = |reason: String| CgroupError::Value { field: "devices".into(), reason };
        let number = |value: Option<i64>| match value {
            None | Some(..0) => Ok(None),
            Some(value) => u32::try_from(value).map(Some).map_err(|_| wrong(format!("{value} is no device number"))),
        };
        let (major, minor) = (number(rule.major())?, number(rule.minor())?);
        let access = access(rule).map_err(wrong)?;
        let kinds: &[Kind] = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A if is_everything(rule) => {
                checked.push(Rule { allow: rule.allow(), what: What::Everything });
                &[]
            }
            LinuxDeviceType::A => &[Kind::Character, Kind::Block],
            LinuxDeviceType::C | LinuxDeviceType::U => &[Kind::Character],
            LinuxDeviceType::B => &[Kind::Block],
            LinuxDeviceType::P => return Err(wrong("a named pipe is no device of a cgroup rule".into())),
        };
        checked.extend(
            kinds
                .iter()
                .map(|kind| Rule { allow: rule.allow(), what: What::Some { kind: *kind, major, minor, access } }),
        );
    }
    Ok(checked)
}

/// Nothing said is every access.
fn access(rule: &LinuxDeviceCgroup) -> Result<u8, String> {
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or("").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => return Err(format!("{other:?} is no access; r, w and m are")),
        };
    }
    Ok(if access == 0 { ALL } else { access })
}

fn is_everything(rule: &LinuxDeviceCgroup) -> bool {
    let any = |number: Option<i64>| number.is_none_or(|number| number < 0);
    rule.typ().unwrap_or_default() == LinuxDeviceType::A
        && any(rule.major())
        && any(rule.minor())
        && access(rule) == Ok(ALL)
}

/// The device rules of a container: those of the configuration; when it has none or begins by denying everything,
/// what every container may use is added.
pub(crate) fn container_rules(resources: Option<&LinuxResources>) -> Vec<LinuxDeviceCgroup> {
    let given = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    let everything = given.iter().rev().find(|rule| is_everything(rule));
    if everything.is_some_and(LinuxDeviceCgroup::allow) {
        return given.to_vec();
    }
    let mut rules = Vec::with_capacity(given.len() + DEFAULT_ALLOWED.len() + 1);
    if everything.is_none() {
        let mut deny = LinuxDeviceCgroup::default();
        deny.set_access(Some("rwm".to_owned()));
        rules.push(deny);
    }
    rules.extend_from_slice(given);
    for (kind, major, minor, access) in DEFAULT_ALLOWED {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true);
        rule.set_typ(Some(if kind == Kind::Block { LinuxDeviceType::B } else { LinuxDeviceType::C }));
        rule.set_major(major.map(i64::from));
        rule.set_minor(minor.map(i64::from));
        rule.set_access(Some(letters(access)));
        rules.push(rule);
    }
    rules
}

fn letters(access: u8) -> String {
    [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')].iter().filter(|(bit, _)| access & bit != 0).map(|(_, c)| *c).collect()
}

/// Whether a container may run although its device rules cannot be put in force: it asked for none of its own, or it
/// may do everything anyway, or its caller is not the machine's root, so that nobody in it can make device nodes and the
/// modes of those it was given decide.
pub(crate) fn dispensable(rules: &[Rule]) -> bool {
    let default = parse(&container_rules(None)).is_ok_and(|default| default == rules);
    default || rules.iter().all(|rule| rule.allow && rule.what == What::Everything) || !is_root_of_the_machine()
}

/// Whether the caller may have them enforced.
pub(crate) fn is_root_of_the_machine() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    portreeve_sys::process::user_id() == 0 && map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn rules(json: &str) -> Vec<Rule> {
        parse(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).expect("rules")).expect("rules")
    }

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).expect("resources")
    }

    #[test]
    fn an_unknown_access_letter_is_refused() {
        let rule: LinuxDeviceCgroup = serde_json::from_str(r#"{"allow": true, "access": "rx"}"#).expect("rule");
        assert!(parse(&[rule]).is_err());
    }

    #[test]
    fn all_with_a_number_or_an_access_is_both_kinds_and_not_everything() {
        let checked = rules(r#"[{"allow": true, "access": "m"}, {"allow": true, "type": "a", "major": 7}]"#);
        assert_eq!(checked.len(), 4);
        assert!(checked.iter().all(|rule| rule.what != What::Everything), "{checked:?}");
        let given = resources(r#"{"devices": [{"allow": true, "access": "m"}]}"#);
        let all = parse(&container_rules(Some(&given))).expect("rules");
        assert_eq!(all.first(), Some(&Rule { allow: false, what: What::Everything }), "the rest is denied first");
    }

    #[test]
    fn only_default_rules_and_those_that_allow_everything_can_be_done_without_as_root() {
        let check = |json: &str| dispensable(&parse(&container_rules(Some(&resources(json)))).expect("rules"));
        assert!(check("{}"));
        assert!(check(r#"{"devices": [{"allow": false, "access": "rwm"}]}"#));
        assert!(check(r#"{"devices": [{"allow": true, "access": "rwm"}]}"#));
        let more = r#"{"devices": [{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"}]}"#;
        assert_eq!(check(more), !is_root_of_the_machine());
    }
}
