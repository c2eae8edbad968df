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

/// Rounds a container's own resources.
pub(super) fn rounded(resources: &mut ResourceRequirements) {
    round_up(resources.limits.as_mut());
    round_up(resources.requests.as_mut());
}

/// What a container limits but does not request, it requests.
fn requests_follow_limits(resources: &mut ResourceRequirements) {
    if let Some(limits) = &resources.limits {
        let requests = resources.requests.get_or_insert_default();
        for (name, quantity) in limits {
            requests.entry(name.clone()).or_insert_with(|| quantity.clone());
        }
    }
}

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_compute(name: &str) -> bool {
    matches!(name, "cpu" | "memory")
}

/// Resources of the containers, then of the whole pod; nothing is rounded before all is filled in.
pub(super) fn pod(spec: &mut PodSpec) {
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for container in containers {
        requests_follow_limits(container.resources.get_or_insert_default());
    }
    if spec.resources.is_none() {
        return;
    }
    let (requested, limited) = (container_requests(spec), container_limits(spec));
    if let Some(resources) = &mut spec.resources {
        huge_page_limits(resources, limited);
        pod_requests(resources, requested);
        rounded(resources);
    }
}

/// A pod that says something about itself limits the huge pages that its containers may use.
fn huge_page_limits(resources: &mut ResourceRequirements, limited: BTreeMap<String, Amount>) {
    let says = |list: &Option<List>| list.as_ref().is_some_and(|list| !list.is_empty());
    if !says(&resources.limits) && !says(&resources.requests) {
        return;
    }
    for (name, amount) in limited.into_iter().filter(|(name, _)| is_huge_page(name)) {
        if resources.requests.as_ref().is_none_or(|requests| !requests.contains_key(&name)) {
            let limits = resources.limits.get_or_insert_default();
            limits.entry(name).or_insert_with(|| Quantity(amount.to_string()));
        }
    }
}

/// Requests of the whole pod, when it limits itself: what its containers request, else its limit.
fn pod_requests(resources: &mut ResourceRequirements, requested: BTreeMap<String, Amount>) {
    let Some(limits) = resources.limits.as_ref().filter(|list| !list.is_empty()) else {
        return;
    };
    let requests = resources.requests.get_or_insert_default();
    for (name, amount) in requested.into_iter().filter(|(name, _)| is_compute(name)) {
        requests.entry(name).or_insert_with(|| Quantity(amount.to_string()));
    }
    for (name, quantity) in limits.iter().filter(|(name, _)| is_compute(name) || is_huge_page(name)) {
        requests.entry(name.clone()).or_insert_with(|| quantity.clone());
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
    at_peak(spec, |resources| resources.requests.as_ref())
}

/// The same for what the containers are limited to (`AggregateContainerLimits`).
pub(crate) fn container_limits(spec: &PodSpec) -> BTreeMap<String, Amount> {
    at_peak(spec, |resources| resources.limits.as_ref())
}

type Which = fn(&ResourceRequirements) -> Option<&List>;

fn at_peak(spec: &PodSpec, which: Which) -> BTreeMap<String, Amount> {
    let mut running = BTreeMap::new();
    for container in &spec.containers {
        add(&mut running, &amounts(container, which));
    }
    let mut sidecars = BTreeMap::new();
    let mut starting = BTreeMap::new();
    for container in spec.init_containers.iter().flatten() {
        let own = amounts(container, which);
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

fn amounts(container: &Container, which: Which) -> BTreeMap<String, Amount> {
    let list = container.resources.as_ref().and_then(which);
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
