//! Requests and limits to cgroup values, by the kubelet's formulas.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder};
use portreeve_manifests::{QosClass, qos_class};
use portreeve_plan::Resources;

const PERIOD_US: u64 = 100_000;
const MIN_QUOTA_US: i64 = 1_000;
const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;

/// `cpu.shares` of a request; nothing asked for is the least.
fn shares(millis: u64) -> u64 {
    (millis.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// What the engine is told to enforce for a container.
pub(crate) fn enforced(resources: &Resources) -> LinuxResources {
    let request = resources.cpu_request_millis.or(resources.cpu_limit_millis).unwrap_or(0);
    let mut cpu = LinuxCpuBuilder::default().shares(shares(request));
    if let Some(limit) = resources.cpu_limit_millis.filter(|limit| *limit > 0) {
        let quota = i64::try_from(limit.saturating_mul(PERIOD_US) / 1000).unwrap_or(i64::MAX);
        cpu = cpu.quota(quota.max(MIN_QUOTA_US)).period(PERIOD_US);
    }
    let mut all = LinuxResourcesBuilder::default();
    if let Ok(cpu) = cpu.build() {
        all = all.cpu(cpu);
    }
    if let Some(limit) = resources.memory_limit_bytes.filter(|limit| *limit > 0)
        && let Ok(memory) = LinuxMemoryBuilder::default().limit(i64::try_from(limit).unwrap_or(i64::MAX)).build()
    {
        all = all.memory(memory);
    }
    if let Some(limit) = resources.pids_limit.filter(|limit| *limit > 0)
        && let Ok(pids) = LinuxPidsBuilder::default().limit(i64::try_from(limit).unwrap_or(i64::MAX)).build()
    {
        all = all.pids(pids);
    }
    all.build().unwrap_or_default()
}

/// What the engine is told to enforce for the pod as a whole: its share of the processor. Limits
/// stay with the containers, so that changing one needs no other order.
pub(crate) fn pod_resources(spec: &PodSpec) -> LinuxResources {
    let requests = |container: &Container| {
        let resources = Resources::of(container);
        resources.cpu_request_millis.or(resources.cpu_limit_millis).unwrap_or(0)
    };
    let running: u64 = spec.containers.iter().map(requests).sum();
    let init = spec.init_containers.iter().flatten().map(requests).max().unwrap_or(0);
    let mut all = LinuxResourcesBuilder::default();
    if let Ok(cpu) = LinuxCpuBuilder::default().shares(shares(running.max(init))).build() {
        all = all.cpu(cpu);
    }
    all.build().unwrap_or_default()
}

/// `oom_score_adj` of a container.
///
/// Source: kubernetes `pkg/kubelet/qos/policy.go`.
pub(super) fn oom_score_adj(spec: &PodSpec, resources: &Resources, memory_bytes: u64) -> i32 {
    match qos_class(spec) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let request = resources.memory_request_bytes.unwrap_or(0);
            let share = request.saturating_mul(1000).checked_div(memory_bytes).unwrap_or(0);
            let score = 1000_i64.saturating_sub(i64::try_from(share).unwrap_or(1000));
            i32::try_from(score.clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_limits_become_the_kubelets_values() {
        let resources = Resources {
            cpu_request_millis: Some(250),
            cpu_limit_millis: Some(500),
            memory_limit_bytes: Some(64 << 20),
            pids_limit: Some(100),
            ..Resources::default()
        };
        let linux = enforced(&resources);
        let cpu = linux.cpu().clone().unwrap();
        assert_eq!((cpu.shares(), cpu.quota(), cpu.period()), (Some(256), Some(50_000), Some(100_000)));
        assert_eq!(linux.memory().unwrap().limit(), Some(64 << 20));
        let nothing = enforced(&Resources::default());
        assert_eq!(nothing.cpu().clone().unwrap().shares(), Some(2));
        assert!(nothing.cpu().clone().unwrap().quota().is_none() && nothing.memory().is_none());
        let tiny = enforced(&Resources { cpu_limit_millis: Some(1), ..Resources::default() });
        assert_eq!(tiny.cpu().clone().unwrap().quota(), Some(1000));
    }
}
