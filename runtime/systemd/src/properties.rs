//! Limits of a cgroup as properties of its unit.

use portreeve_oci::cgroup::Setting;
use zbus::Variant;

use crate::name::Place;

/// Name and value, as systemd's manager takes them.
pub type Property = (String, Variant<'static>);

/// systemd's word for no limit.
const NONE: u64 = u64::MAX;

/// The period of a CPU quota that says none, in microseconds: Linux cgroup-v2.rst, `cpu.max`.
const PERIOD_US: u64 = 100_000;

/// systemd counts quotas in percents of a processor.
const PERCENT_US: u64 = 10_000;

/// As many processors, or memory nodes, as any kernel has.
const MASK_LIMIT: usize = 8192;

/// What every scope has, whose one process at first is `pid`.
///
/// It is delegated: what lies below its cgroup is left alone by systemd, and gets every controller. Neither a shutdown nor
/// a stopped target ends a container before its engine does.
pub(crate) fn of_scope(place: &Place, description: &str, pid: u32) -> Vec<Property> {
    let mut properties = vec![
        property("Description", description.to_owned()),
        property("Slice", place.slice.clone()),
        property("Delegate", true),
        property("DefaultDependencies", false),
        property("PIDs", vec![pid]),
    ];
    let accounting = ["CPUAccounting", "IOAccounting", "MemoryAccounting", "TasksAccounting"];
    properties.extend(accounting.map(|name| property(name, true)));
    properties
}

/// What a pod's scope has beside that: when it has failed it is forgotten like one that has ended, and the number of its
/// tasks is the slice's to limit, where systemd would have a limit of its own.
#[must_use]
pub fn of_pod() -> Vec<Property> {
    vec![property("CollectMode", "inactive-or-failed"), property("TasksMax", NONE)]
}

fn property(name: &str, value: impl Into<Variant<'static>>) -> Property {
    (name.to_owned(), value.into())
}

/// The properties for what is written to a container's cgroup (version 2). What systemd has no property for, or has no
/// place for in it, is a limit of that cgroup alone. Of several values for one the last counts.
///
/// Device rules are never among them. A program of our own, on the container's cgroup, keeps them: systemd's `DeviceAllow`
/// knows no denials, and is applied anew by `daemon-reload`, when it would be a second, and different, filter.
///
/// Source: systemd.resource-control(5); Linux cgroup-v2.rst.
pub fn of_limits(settings: &[Setting]) -> Vec<Property> {
    let mut properties: Vec<Property> = Vec::new();
    for Setting { file, value, .. } in settings {
        for (name, value) in of_setting(file, value.trim()) {
            properties.retain(|(other, _)| other != &name);
            properties.push((name, value));
        }
    }
    properties
}

fn of_setting(file: &str, value: &str) -> Vec<Property> {
    let limit = |name| bytes(value).map(|limit| property(name, limit));
    let one = match file {
        "memory.min" => limit("MemoryMin"),
        "memory.low" => limit("MemoryLow"),
        "memory.high" => limit("MemoryHigh"),
        "memory.max" => limit("MemoryMax"),
        "memory.swap.max" => limit("MemorySwapMax"),
        "memory.zswap.max" => limit("MemoryZSwapMax"),
        "pids.max" => limit("TasksMax"),
        // The weight of an idle cgroup is 0 since systemd 252. Weights are compared among scopes, not below them.
        "cpu.idle" => (value == "1").then(|| property("CPUWeight", 0_u64)),
        "cpu.weight" => number(value).map(|weight| property("CPUWeight", weight)),
        "cpu.max" => return quota(value),
        "cpuset.cpus" => mask(value).map(|mask| property("AllowedCPUs", mask)),
        "cpuset.mems" => mask(value).map(|mask| property("AllowedMemoryNodes", mask)),
        "io.weight" => number(value.trim_start_matches("default ")).map(|weight| property("IOWeight", weight)),
        "io.bfq.weight" => {
            let weight = number(value.trim_start_matches("default "));
            weight.filter(|weight| (1..=1000).contains(weight)).map(|weight| property("IOWeight", of_bfq(weight)))
        }
        _ => None,
    };
    one.into_iter().collect()
}

/// 1 to 1000 with 100 for the default, as 1 to 10000 with the same default: what systemd makes 1 to 1000 of again, where
/// the scheduler of a disk wants that.
fn of_bfq(weight: u64) -> u64 {
    if weight <= 100 { weight } else { 100 + (weight - 100) * 9900 / 900 }
}

fn quota(value: &str) -> Vec<Property> {
    let mut words = value.split_ascii_whitespace();
    let Some(quota) = words.next().and_then(bytes) else { return Vec::new() };
    let period = words.next().and_then(number).filter(|period| *period > 0);
    let per_second = match quota {
        NONE => Some(NONE),
        // Never less than what the container's own cgroup has.
        quota => quota
            .checked_mul(1_000_000)
            .map(|quota| quota.div_ceil(period.unwrap_or(PERIOD_US)).next_multiple_of(PERCENT_US)),
    };
    let period = period.map(|period| property("CPUQuotaPeriodUSec", period));
    period.into_iter().chain(per_second.map(|quota| property("CPUQuotaPerSecUSec", quota))).collect()
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// A number, also one with a power of 1024 as the kernel reads it, or `max`.
fn bytes(text: &str) -> Option<u64> {
    if text == "max" {
        return Some(NONE);
    }
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let power = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    number(digits)?.checked_mul(1 << power)
}

/// `0-2,5` as bits, the lowest first; of nothing, no bits, which is systemd's word for all.
fn mask(list: &str) -> Option<Vec<u8>> {
    let mut mask = Vec::new();
    for range in list.split(',').filter(|_| !list.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if first > last || last >= MASK_LIMIT {
            return None;
        }
        if mask.len() <= last / 8 {
            mask.resize(last / 8 + 1, 0);
        }
        for bit in first..=last {
            *mask.get_mut(bit / 8)? |= 1 << (bit % 8);
        }
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(settings: &[(&str, &str)]) -> Vec<(String, String)> {
        let setting = |(file, value): &(&str, &str)| Setting { file: (*file).into(), value: (*value).into() };
        let settings: Vec<Setting> = settings.iter().map(setting).collect();
        of_limits(&settings).into_iter().map(|(name, value)| (name, value.to_string())).collect()
    }

    fn check(settings: &[(&str, &str)], expected: &[(&str, &str)]) {
        let expected: Vec<(String, String)> =
            expected.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        assert_eq!(limits(settings), expected, "{settings:?}");
    }

    const NO_LIMIT: &str = "uint64 18446744073709551615";

    #[test]
    fn a_limit_of_the_cgroup_is_one_of_the_unit() {
        check(&[("memory.max", "67108864")], &[("MemoryMax", "uint64 67108864")]);
        check(&[("memory.swap.max", "0")], &[("MemorySwapMax", "uint64 0")]);
        check(
            &[("memory.low", "max"), ("memory.high", "1G")],
            &[("MemoryLow", NO_LIMIT), ("MemoryHigh", "uint64 1073741824")],
        );
        check(&[("memory.min", "4k")], &[("MemoryMin", "uint64 4096")]);
        check(&[("pids.max", "10")], &[("TasksMax", "uint64 10")]);
        check(&[("pids.max", "max")], &[("TasksMax", NO_LIMIT)]);
        check(&[("cpu.weight", "39")], &[("CPUWeight", "uint64 39")]);
        check(&[("cpu.idle", "1")], &[("CPUWeight", "uint64 0")]);
        check(&[("io.weight", "default 300")], &[("IOWeight", "uint64 300")]);
        check(&[("io.bfq.weight", "1000")], &[("IOWeight", "uint64 10000")]);
        check(&[("io.bfq.weight", "10")], &[("IOWeight", "uint64 10")]);
    }

    #[test]
    fn what_systemd_has_no_word_for_is_left_to_the_cgroup() {
        for (file, value) in [
            ("cpu.idle", "0"),
            ("cpu.max.burst", "1000"),
            ("hugetlb.2MB.max", "5"),
            ("memory.oom.group", "1"),
            ("io.max", "8:0 rbps=5"),
            ("io.weight", "8:0 300"),
            ("io.bfq.weight", "8:0 300"),
            ("io.bfq.weight", "2000"),
            ("memory.max", "much"),
            ("cpuset.cpus", "0-99999"),
            ("cpuset.cpus", "3-1"),
            ("cpuset.cpus", "a"),
        ] {
            check(&[(file, value)], &[]);
        }
    }

    #[test]
    fn a_quota_is_counted_in_whole_percents_and_never_less_than_it_is() {
        let both = |value, quota, period| {
            check(&[("cpu.max", value)], &[("CPUQuotaPeriodUSec", period), ("CPUQuotaPerSecUSec", quota)]);
        };
        both("50000 100000", "uint64 500000", "uint64 100000");
        both("max 100000", NO_LIMIT, "uint64 100000");
        both("1500 100000", "uint64 20000", "uint64 100000");
        both("15001 1000000", "uint64 20000", "uint64 1000000");
        check(&[("cpu.max", "200000")], &[("CPUQuotaPerSecUSec", "uint64 2000000")]);
        check(&[("cpu.max", "0x")], &[]);
    }

    #[test]
    fn processors_are_bits_and_the_lowest_comes_first() {
        let bits = |list: &str| mask(list);
        assert_eq!(bits("0"), Some(vec![1]));
        assert_eq!(bits("0-2,5"), Some(vec![0b10_0111]));
        assert_eq!(bits("8,17"), Some(vec![0, 1, 2]));
        assert_eq!(bits(""), Some(vec![]));
        for wrong in [",", "0,", "-1", "1-", "8192"] {
            assert_eq!(bits(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn of_two_values_for_one_the_last_counts() {
        check(
            &[("pids.max", "5"), ("memory.max", "1"), ("pids.max", "7")],
            &[("MemoryMax", "uint64 1"), ("TasksMax", "uint64 7")],
        );
    }
}
