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
    cpu_shares(shares(cpu_request_millis(spec)))
}

/// What the engine is told to enforce for a QoS level: all BestEffort pods together get the least,
/// all Burstable pods together what they ask for. `pods` are those of the level; of a level without
/// a pod nothing is told.
///
/// Source: kubernetes `pkg/kubelet/cm/qos_container_manager_linux.go` setCPUCgroupConfig.
pub(crate) fn level_resources<'a>(level: QosClass, pods: impl Iterator<Item = &'a PodSpec>) -> Option<LinuxResources> {
    let asked = pods.map(cpu_request_millis).reduce(u64::saturating_add)?;
    match level {
        QosClass::Guaranteed => None,
        QosClass::Burstable => Some(cpu_shares(shares(asked))),
        QosClass::BestEffort => Some(cpu_shares(MIN_SHARES)),
    }
}

fn cpu_shares(shares: u64) -> LinuxResources {
    let cpu = LinuxCpuBuilder::default().shares(shares).build();
    let all = cpu.and_then(|cpu| LinuxResourcesBuilder::default().cpu(cpu).build());
    all.unwrap_or_default()
}

/// What a pod asks of the processor, in thousandths of a core: its containers and sidecars
/// together, or the init container that asks for more, beside the sidecars that run by then.
///
/// Source: kubernetes `component-helpers/resource/helpers.go` PodRequests.
fn cpu_request_millis(spec: &PodSpec) -> u64 {
    let of = |container: &Container| {
        let resources = Resources::of(container);
        resources.cpu_request_millis.or(resources.cpu_limit_millis).unwrap_or(0)
    };
    let (mut sidecars, mut starting) = (0_u64, 0_u64);
    for init in spec.init_containers.iter().flatten() {
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.saturating_add(of(init));
        } else {
            starting = starting.max(sidecars.saturating_add(of(init)));
        }
    }
    let running = spec.containers.iter().map(of).fold(sidecars, u64::saturating_add);
    running.max(starting)
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
    #[test]
    fn a_pods_share_counts_its_sidecars() {
        let container = |name: &str, cpu: &str, restart: Option<&str>| {
            let mut container = serde_json::json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
            if let Some(restart) = restart {
                container["restartPolicy"] = restart.into();
            }
            container
        };
        for (inits, mains, expected) in [
            (vec![container("side", "300m", Some("Always"))], vec![container("g", "100m", None)], 409),
            // An init container runs beside the sidecars that were declared before it, not those after.
            (
                vec![
                    container("a", "250m", Some("Always")),
                    container("i", "500m", None),
                    container("b", "250m", Some("Always")),
                ],
                vec![container("g", "100m", None)],
                768,
            ),
            (vec![container("i", "2", None)], vec![container("g", "1", None)], 2048),
            (vec![], vec![container("g", "1", None), container("h", "1", None)], 2048),
        ] {
            let spec: PodSpec =
                serde_json::from_value(serde_json::json!({"initContainers": inits, "containers": mains})).unwrap();
            let cpu = pod_resources(&spec).cpu().clone().unwrap();
            assert_eq!(cpu.shares(), Some(expected), "{spec:?}");
        }
    }
}
