//! The quality-of-service class of a pod.

use std::fmt;

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Serialize;
use std::collections::BTreeMap;

use crate::quantity;

/// The quality-of-service class of a pod, which decides its cgroup and its OOM score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum QosClass {
    /// Every container has cpu and memory limits, and its requests are the same.
    Guaranteed,
    /// Some container has a cpu or memory request or limit.
    Burstable,
    /// No container has any.
    BestEffort,
}

impl QosClass {
    /// The class as `status.qosClass` spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

impl fmt::Display for QosClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// The class of a pod, from its defaulted spec: pod-level resources decide when there are any,
/// else all containers and init containers together.
///
/// Source: Kubernetes `pkg/apis/core/v1/helper/qos/qos.go`, `ComputePodQOS`.
#[must_use]
pub fn qos_class(spec: &PodSpec) -> QosClass {
    let mut requests = BTreeMap::new();
    let mut limits = BTreeMap::new();
    let mut guaranteed = true;
    if let Some(resources) = &spec.resources {
        add(&mut requests, resources.requests.as_ref());
        let named = add(&mut limits, resources.limits.as_ref());
        guaranteed &= named == COMPUTE.len();
    } else {
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        for container in containers {
            let Some(resources) = &container.resources else {
                guaranteed = false;
                continue;
            };
            add(&mut requests, resources.requests.as_ref());
            let named = add(&mut limits, resources.limits.as_ref());
            guaranteed &= named == COMPUTE.len();
        }
    }
    if requests.is_empty() && limits.is_empty() {
        QosClass::BestEffort
    } else if guaranteed && requests == limits {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

/// Adds the positive cpu and memory quantities; says how many of the two were there.
fn add(sums: &mut BTreeMap<&'static str, i128>, list: Option<&BTreeMap<String, Quantity>>) -> usize {
    let mut named = 0;
    for name in COMPUTE {
        let amount = list
            .and_then(|list| list.get(name))
            .and_then(|quantity| quantity::Amount::parse(&quantity.0).ok())
            .map_or(0, |amount| amount.nanos());
        if amount > 0 {
            named += 1;
            *sums.entry(name).or_insert(0) += amount;
        }
    }
    named
}
