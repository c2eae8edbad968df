//! Limits of a sandbox or container.

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxHugepageLimitBuilder, LinuxMemoryBuilder, LinuxResources, LinuxResourcesBuilder,
};
use tonic::Status;

use super::{invalid, v1};

/// Limits; 0 and nothing mean none.
pub(crate) fn resources(asked: v1::LinuxContainerResources) -> Result<LinuxResources, Status> {
    let given = |value: i64| Some(value).filter(|value| *value != 0);
    let positive = |field: &str, value: i64| {
        let value = given(value).map(u64::try_from).transpose();
        value.map_err(|_| invalid(&format!("resources.{field}"), "is negative"))
    };
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let built = |error: oci_spec::OciSpecError| invalid("resources", error);
    let mut cpu = LinuxCpuBuilder::default();
    if let Some(shares) = positive("cpu_shares", asked.cpu_shares)? {
        cpu = cpu.shares(shares);
    }
    if let Some(quota) = given(asked.cpu_quota) {
        cpu = cpu.quota(quota);
    }
    if let Some(period) = positive("cpu_period", asked.cpu_period)? {
        cpu = cpu.period(period);
    }
    if let Some(cpus) = text(asked.cpuset_cpus) {
        cpu = cpu.cpus(cpus);
    }
    if let Some(mems) = text(asked.cpuset_mems) {
        cpu = cpu.mems(mems);
    }
    let mut memory = LinuxMemoryBuilder::default();
    if let Some(limit) = given(asked.memory_limit_in_bytes) {
        memory = memory.limit(limit);
    }
    if let Some(swap) = given(asked.memory_swap_limit_in_bytes) {
        memory = memory.swap(swap);
    }
    let mut all =
        LinuxResourcesBuilder::default().cpu(cpu.build().map_err(built)?).memory(memory.build().map_err(built)?);
    if !asked.hugepage_limits.is_empty() {
        let limits = asked.hugepage_limits.into_iter().map(|limit| {
            let bytes = i64::try_from(limit.limit).unwrap_or(i64::MAX);
            LinuxHugepageLimitBuilder::default().page_size(limit.page_size).limit(bytes).build().map_err(built)
        });
        all = all.hugepage_limits(limits.collect::<Result<Vec<_>, _>>()?);
    }
    if !asked.unified.is_empty() {
        all = all.unified(asked.unified.into_iter().collect::<std::collections::HashMap<_, _>>());
    }
    all.build().map_err(built)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_not_given_are_none() {
        assert_eq!(
            serde_json::to_value(resources(Default::default()).unwrap()).unwrap(),
            serde_json::json!({
                "cpu": {}, "memory": {}
            })
        );
        let all = resources(v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 2,
            cpuset_cpus: "0".into(),
            memory_limit_in_bytes: 7,
            memory_swap_limit_in_bytes: 9,
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 5 }],
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        });
        let all = all.unwrap();
        let (cpu, memory) = (all.cpu().clone().unwrap(), all.memory().unwrap());
        assert_eq!((cpu.period(), cpu.quota(), cpu.shares()), (Some(100_000), Some(-1), Some(2)));
        assert_eq!((memory.limit(), memory.swap()), (Some(7), Some(9)));
        assert_eq!(all.hugepage_limits().as_ref().unwrap().len(), 1);
        assert!(resources(v1::LinuxContainerResources { cpu_shares: -1, ..Default::default() }).is_err());
    }
}
