//! Defaults of resources: requests follow limits, and nothing is finer than a thousandth.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity::Amount;

pub(crate) type List = BTreeMap<String, Quantity>;

const MILLI: i32 = -3;

/// Rounds every quantity up to thousandths.
pub(super) fn round_up(list: Option<&mut List>) {
    for quantity in list.into_iter().flat_map(BTreeMap::values_mut) {
        if let Ok(amount) = Amount::parse(&quantity.0) {
            quantity.0 = amount.rounded_up(MILLI).to_string();
        }
    }
}

/// What a container limits but does not request, it requests.
pub(super) fn container(resources: &mut ResourceRequirements) {
    round_up(resources.limits.as_mut());
    round_up(resources.requests.as_mut());
    if let Some(limits) = &resources.limits {
        let requests = resources.requests.get_or_insert_default();
        for (name, quantity) in limits {
            requests.entry(name.clone()).or_insert_with(|| quantity.clone());
        }
    }
}

/// Requests of the whole pod, when it limits itself: what its containers request, else its limit.
pub(super) fn pod(spec: &mut PodSpec) {
    let sums = container_requests(spec);
    let Some(resources) = &mut spec.resources else {
        return;
    };
    round_up(resources.limits.as_mut());
    round_up(resources.requests.as_mut());
    let Some(limits) = resources.limits.as_ref().filter(|list| !list.is_empty()) else {
        return;
    };
    let requests = resources.requests.get_or_insert_default();
    for (name, amount) in sums {
        if matches!(name.as_str(), "cpu" | "memory") {
            requests.entry(name).or_insert_with(|| Quantity(amount.to_string()));
        }
    }
    for (name, quantity) in limits {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            requests.entry(name.clone()).or_insert_with(|| quantity.clone());
        }
    }
    if requests.is_empty() {
        resources.requests = None;
    }
}

/// What the containers of a pod request at their peak: all that run at once together, or the
/// init container that needs the most.
///
/// Source: Kubernetes `component-helpers/resource`, `AggregateContainerRequests`.
pub(crate) fn container_requests(spec: &PodSpec) -> BTreeMap<String, Amount> {
    let mut running = BTreeMap::new();
    for container in &spec.containers {
        add(&mut running, &requests(container));
    }
    let mut sidecars = BTreeMap::new();
    let mut starting = BTreeMap::new();
    for container in spec.init_containers.iter().flatten() {
        let own = requests(container);
        let now = if container.restart_policy.as_deref() == Some("Always") {
            add(&mut running, &own);
            add(&mut sidecars, &own);
            sidecars.clone()
        } else {
            let mut now = own;
            add(&mut now, &sidecars);
            now
        };
        most(&mut starting, &now);
    }
    most(&mut running, &starting);
    running
}

fn requests(container: &Container) -> BTreeMap<String, Amount> {
    let list = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    list.into_iter()
        .flatten()
        .filter_map(|(name, quantity)| Some((name.clone(), Amount::parse(&quantity.0).ok()?)))
        .collect()
}

fn add(sum: &mut BTreeMap<String, Amount>, more: &BTreeMap<String, Amount>) {
    for (name, amount) in more {
        let slot = sum.entry(name.clone()).or_insert(Amount::ZERO);
        *slot = slot.plus(*amount);
    }
}

fn most(max: &mut BTreeMap<String, Amount>, other: &BTreeMap<String, Amount>) {
    for (name, amount) in other {
        let slot = max.entry(name.clone()).or_insert(*amount);
        *slot = (*slot).max(*amount);
    }
}
