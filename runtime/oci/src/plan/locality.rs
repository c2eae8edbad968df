//! Which processors a process runs on and which memory nodes its pages come from: `process.execCPUAffinity` and
//! `linux.memoryPolicy` of the runtime-spec. Pure.

use oci_spec::runtime::{MemoryPolicyFlagType, MemoryPolicyModeType, Process, Spec};
use portreeve_sys::memory_policy::{MOST_NODES, Nodes};
use rustix::thread::CpuSet;

use super::PlanError;

/// The processors of a further process of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Affinity {
    /// On which it is made, before it joins the container's cgroup.
    pub(crate) initial: Option<CpuSet>,
    /// On which it then runs.
    pub(crate) last: Option<CpuSet>,
}

/// A memory policy for set_mempolicy(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryPolicy {
    /// `MPOL_*` with its flags.
    pub(crate) mode: u32,
    pub(crate) nodes: Nodes,
    /// The same in the words of the configuration.
    pub(crate) words: String,
}

pub(crate) fn affinity(process: &Process) -> Result<Affinity, PlanError> {
    let Some(affinity) = process.exec_cpu_affinity() else { return Ok(Affinity::default()) };
    let set = |list: &Option<String>, field: &str| -> Result<Option<CpuSet>, PlanError> {
        let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else { return Ok(None) };
        let mut set = CpuSet::new();
        each(list, CpuSet::MAX_CPU, |cpu| set.set(cpu))
            .map_err(|reason| PlanError::new(format!("process.execCPUAffinity.{field}"), reason))?;
        Ok(Some(set))
    };
    Ok(Affinity { initial: set(affinity.initial(), "initial")?, last: set(affinity.cpu_affinity_final(), "final")? })
}

pub(crate) fn memory_policy(spec: &Spec) -> Result<Option<MemoryPolicy>, PlanError> {
    let Some(policy) = spec.linux().as_ref().and_then(|linux| linux.memory_policy().as_ref()) else {
        return Ok(None);
    };
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
                MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
                MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
            }
    });
    let list = policy.nodes().as_deref().unwrap_or_default();
    let mut nodes = Nodes::default();
    if !list.is_empty() {
        each(list, MOST_NODES, |node| _ = nodes.insert(node))
            .map_err(|reason| PlanError::new("linux.memoryPolicy.nodes", reason))?;
    }
    let mut words = policy.mode().to_string();
    for flag in policy.flags().iter().flatten() {
        words = format!("{words} with {flag}");
    }
    if !list.is_empty() {
        words = format!("{words} for nodes {list}");
    }
    Ok(Some(MemoryPolicy { mode: mode | flags, nodes, words }))
}

/// Takes every number of a list like `0-3,7`; they are below `limit`.
fn each(list: &str, limit: usize, mut take: impl FnMut(usize)) -> Result<(), String> {
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        // `parse` alone would take a sign.
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(format!("{part:?} is neither a number nor a range like 0-3"));
        };
        if first > last {
            return Err(format!("{part:?} ends before it begins"));
        }
        if last >= limit {
            return Err(format!("{last} is above {}", limit - 1));
        }
        (first..=last).for_each(&mut take);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(list: &str) -> Result<Vec<usize>, String> {
        let mut numbers = Vec::new();
        each(list, 16, |number| numbers.push(number)).map(|()| numbers)
    }

    #[test]
    fn lists_are_numbers_and_ranges() {
        assert_eq!(numbers("0-2,7"), Ok(vec![0, 1, 2, 7]));
        assert_eq!(numbers("15"), Ok(vec![15]));
        for (list, reason) in [
            ("", "\"\" is neither a number nor a range like 0-3"),
            ("1,,2", "\"\" is neither a number nor a range like 0-3"),
            ("+1", "\"+1\" is neither a number nor a range like 0-3"),
            ("1-2-3", "\"1-2-3\" is neither a number nor a range like 0-3"),
            ("99999999999999999999", "\"99999999999999999999\" is neither a number nor a range like 0-3"),
            ("3-1", "\"3-1\" ends before it begins"),
            ("0-16", "16 is above 15"),
        ] {
            assert_eq!(numbers(list), Err(reason.to_owned()), "{list}");
        }
    }

    #[test]
    fn affinities_become_sets() {
        let process = |affinity: &str| -> Process {
            let json = format!(r#"{{"user": {{"uid": 0, "gid": 0}}, "cwd": "/", "execCPUAffinity": {affinity}}}"#);
            serde_json::from_str(&json).expect("process")
        };
        let planned = affinity(&process(r#"{"initial": "0-1", "final": "3"}"#)).expect("plan");
        let (initial, last) = (planned.initial.expect("initial"), planned.last.expect("final"));
        assert_eq!((initial.count(), initial.is_set(0), initial.is_set(1)), (2, true, true));
        assert_eq!((last.count(), last.is_set(3)), (1, true));
        assert_eq!(affinity(&process("{}")).expect("plan"), Affinity::default());
        let error = affinity(&process(r#"{"final": "1024"}"#)).expect_err("refused").to_string();
        assert_eq!(error, "process.execCPUAffinity.final: 1024 is above 1023");
    }

    #[test]
    fn every_memory_policy_and_flag_becomes_the_kernels() {
        let plan = |policy: &str| {
            let json = format!(r#"{{"ociVersion": "1.3.0", "linux": {{"memoryPolicy": {policy}}}}}"#);
            memory_policy(&serde_json::from_str(&json).expect("spec"))
        };
        let modes = [
            ("DEFAULT", 0),
            ("PREFERRED", 1),
            ("BIND", 2),
            ("INTERLEAVE", 3),
            ("LOCAL", 4),
            ("PREFERRED_MANY", 5),
            ("WEIGHTED_INTERLEAVE", 6),
        ];
        for (name, number) in modes {
            let planned = plan(&format!(r#"{{"mode": "MPOL_{name}"}}"#)).expect("plan").expect("a policy");
            assert_eq!((planned.mode, planned.nodes.is_empty()), (number, true), "{name}");
        }
        for (name, bit) in [("STATIC_NODES", 0x8000), ("RELATIVE_NODES", 0x4000), ("NUMA_BALANCING", 0x2000)] {
            let policy = format!(r#"{{"mode": "MPOL_BIND", "nodes": "0,2-3", "flags": ["MPOL_F_{name}"]}}"#);
            let planned = plan(&policy).expect("plan").expect("a policy");
            let mut nodes = Nodes::default();
            assert!([0, 2, 3].into_iter().all(|node| nodes.insert(node)));
            assert_eq!((planned.mode, planned.nodes), (2 | bit, nodes), "{name}");
            assert_eq!(planned.words, format!("MPOL_BIND with MPOL_F_{name} for nodes 0,2-3"));
        }
        let error = plan(r#"{"mode": "MPOL_BIND", "nodes": "0-1024"}"#).expect_err("refused").to_string();
        assert_eq!(error, "linux.memoryPolicy.nodes: 1024 is above 1023");
    }
}
