//! Resources: limits, requests and claims.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, PodResourceClaim, PodSpec, ResourceClaim, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::container::Scope;
use super::metadata::{check, label};
use super::{given, names};
use crate::defaults::{container_limits, container_requests};
use crate::findings::{Findings, near_or};
use crate::path::Path;
use crate::problem::Reason;
use crate::quantity::Amount;

type List = BTreeMap<String, Quantity>;

/// Where resources are asked for; some names are good in one place only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Container,
    Pod,
}

pub(super) fn of_container(container: &Container, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(resources) = &container.resources {
        requirements(resources, Place::Container, path, found);
        claim_names(resources.claims.as_deref().unwrap_or_default(), scope.claims, &path.field("claims"), found);
    }
}

pub(super) fn overhead(overhead: Option<&List>, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(overhead) = overhead {
        let limits = ResourceRequirements { limits: Some(overhead.clone()), ..ResourceRequirements::default() };
        // Reported below `overhead.limits`, although they stand directly below `overhead`.
        requirements(&limits, Place::Container, path, found);
    }
}

fn amount(quantity: &Quantity) -> Amount {
    Amount::parse(&quantity.0).unwrap_or(Amount::ZERO)
}

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Names without a domain, or in Kubernetes' own.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn allows_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

const STANDARD: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Resources that only quotas know.
fn is_quota(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "resourcequotas"
            | "services"
            | "replicationcontrollers"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "storage"
            | "requests.storage"
            | "requests.cpu"
            | "requests.memory"
            | "requests.ephemeral-storage"
            | "limits.cpu"
            | "limits.memory"
            | "limits.ephemeral-storage"
    ) || name.starts_with("requests.hugepages-")
}

/// Resources that come in whole pieces only.
fn is_integer(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "services"
            | "replicationcontrollers"
            | "resourcequotas"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    ) || is_extended(name)
}

fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified(&format!("requests.{name}")).is_ok()
}

fn requirements(resources: &ResourceRequirements, place: Place, path: &Path<'_>, found: &mut Findings<'_>) {
    let empty = List::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    let limit_path = path.field("limits");
    let request_path = path.field("requests");
    for (name, quantity) in limits {
        one(name, quantity, place, &limit_path.key(name), found);
    }
    for (name, quantity) in requests {
        let own = request_path.key(name);
        one(name, quantity, place, &own, found);
        let requested = amount(quantity);
        match limits.get(name) {
            Some(limit) if requested != amount(limit) && !allows_overcommit(name) => {
                let message = format!("{} must be the {name} limit of {}", quantity.0, limit.0);
                let fix = "make them the same, or remove the request";
                found.add_as(request_path.to_string(), &own, Reason::FieldValueInvalid, message, fix);
            }
            Some(limit) if requested > amount(limit) => {
                let message = format!("{} is above the {name} limit of {}", quantity.0, limit.0);
                let fix = "lower the request, or raise the limit";
                found.add_as(request_path.to_string(), &own, Reason::FieldValueInvalid, message, fix);
            }
            None if !allows_overcommit(name) => {
                let message = format!("{name} needs a limit, not only a request");
                let fix = format!("set the same limit, {}, or remove the request", quantity.0);
                found.add(&limit_path, Reason::FieldValueRequired, message, fix);
            }
            _ => {}
        }
    }
    let all = || limits.keys().chain(requests.keys());
    if all().any(|name| is_huge_page(name)) && !all().any(|name| matches!(name.as_str(), "cpu" | "memory")) {
        let fix = "add a limit, for example `memory: 128Mi`";
        found.forbidden(path, "huge pages need a cpu or memory request or limit beside them", fix);
    }
}

fn one(name: &str, quantity: &Quantity, place: Place, path: &Path<'_>, found: &mut Findings<'_>) {
    name_of(name, place, path, found);
    let value = amount(quantity);
    if value.is_negative() {
        found.invalid(path, &quantity.0, "may not be below zero", "remove the sign, or the entry");
    }
    if is_integer(name) && !value.is_whole_for_the_server() {
        found.invalid(
            path,
            &quantity.0,
            "must be a whole number",
            format!("for example {}", value.scaled(0).saturating_abs()),
        );
    }
    if let Some(size) = name.strip_prefix("hugepages-") {
        let pages = Amount::parse(size).ok().filter(|size| size.is_whole_for_the_server()).map(|size| size.scaled(0));
        match pages.filter(|size| *size > 0) {
            None => {
                let message = format!("is of no page size: {size:?} is no size in whole bytes");
                found.invalid(path, &quantity.0, message, "for example `hugepages-2Mi`");
            }
            Some(size) if value.scaled(0) % size != 0 => {
                let next = (value.scaled(0) / size).saturating_add(1).saturating_mul(size);
                let message = format!("must be a multiple of the page size {size}");
                found.invalid(path, &quantity.0, message, format!("for example {next}"));
            }
            Some(_) => {}
        }
    }
}

fn name_of(name: &str, place: Place, path: &Path<'_>, found: &mut Findings<'_>) {
    if names::qualified(name).is_err() {
        check(name, names::qualified, path, found);
        return;
    }
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage");
    if !name.contains('/') && !standard && !is_huge_page(name) && !is_quota(name) {
        let others = "use cpu or memory; others have a domain, as in `example.com/gpu`";
        let near = near_or(name, STANDARD.into_iter(), || others.to_owned());
        // Nobody means a processor by this, however near the names are.
        let fix = if name == "gpu" { others.to_owned() } else { near };
        found.invalid(path, &name, "is no resource", fix);
        return;
    }
    match place {
        Place::Pod => {
            if !matches!(name, "cpu" | "memory") && !is_huge_page(name) {
                let fix = "set it for the containers instead";
                found.not_supported(path, name, &["cpu", "memory", "hugepages-"], fix);
            }
        }
        Place::Container if !name.contains('/') => {
            if !standard && !is_huge_page(name) {
                // Quotas know `limits.cpu`, where a container has `cpu` below `limits`.
                let own = name.rsplit('.').next().filter(|own| STANDARD.contains(own));
                let fix = own.map_or("remove it: only quotas know it".to_owned(), |own| format!("write `{own}`"));
                found.invalid(path, &name, "is no resource of containers", fix);
            }
        }
        Place::Container => {
            if !is_native(name) && !is_extended(name) {
                found.invalid(path, &name, "is no extended resource", "for example `example.com/gpu`, or remove it");
            }
        }
    }
}

/// Resources of the pod as a whole.
pub(super) fn of_pod(spec: &PodSpec, claims: &Claims<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(resources) = &spec.resources else {
        return;
    };
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        found.forbidden(path, "may not be set for a windows pod", "remove `spec.os`: only Linux runs here");
        return;
    }
    if resources.claims.is_some() {
        found.forbidden(&path.field("claims"), "claims belong to containers", "move them to a container's `resources`");
    }
    requirements(resources, Place::Pod, path, found);
    claim_names(resources.claims.as_deref().unwrap_or_default(), claims, &path.field("claims"), found);
    let empty = List::new();
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let request_path = path.field("requests");
    for (name, sum) in container_requests(spec) {
        if let Some(own) = requests.get(&name).filter(|own| sum > amount(own)) {
            let message = format!("is below what the containers request together: {sum}");
            let fix = format!("raise it to {sum}, or lower those of the containers");
            found.invalid(&request_path.key(&name), &own.0, message, fix);
        }
    }
    let limit_path = path.field("limits");
    for (name, sum) in container_limits(spec).into_iter().filter(|(name, _)| is_huge_page(name)) {
        if let Some(own) = limits.get(&name).filter(|own| sum > amount(own)) {
            let message = format!("is below what the containers are limited to together: {sum}");
            let fix = format!("raise it to {sum}, or lower those of the containers");
            found.invalid(&limit_path.key(&name), &own.0, message, fix);
        }
    }
    let root = Path::ROOT;
    let real = root.field("spec");
    let real = real.field("containers");
    for (index, container) in spec.containers.iter().enumerate() {
        let own = container.resources.as_ref().and_then(|it| it.limits.as_ref());
        for (name, limit) in own.into_iter().flatten() {
            let Some(most) = limits.get(name) else { continue };
            if amount(limit) > amount(most) {
                let real = real.index(index);
                let real = real.field("resources");
                let real = real.field("limits");
                // The API server's path is not the field's own.
                found.add_as(
                    format!("{path}.containers[{index}][{name}].limits"),
                    &real.key(name),
                    Reason::FieldValueInvalid,
                    format!("{} is above the pod's limit of {}", limit.0, most.0),
                    format!("lower it to {}, or raise the pod's", most.0),
                );
            }
        }
    }
}

/// The names of a pod's claims, and where each stands first.
pub(super) type Claims<'a> = BTreeMap<&'a str, usize>;

/// The claims that a pod declares. A static pod may have none.
pub(super) fn claims<'a>(
    claims: &'a [PodResourceClaim],
    is_mirror: bool,
    path: &Path<'_>,
    found: &mut Findings<'_>,
) -> Claims<'a> {
    let mut seen = Claims::new();
    let list = path;
    for (index, claim) in claims.iter().enumerate() {
        let path = list.index(index);
        let name = claim.name.as_str();
        if is_mirror {
            // The API server names no field.
            let message = "a static pod may not have resourceClaims";
            let fix = "remove them, or the annotation kubernetes.io/config.mirror";
            found.add_as("[]".to_owned(), &path, Reason::FieldValueForbidden, message, fix);
            if !name.is_empty() {
                seen.entry(name).or_insert(index);
            }
            continue;
        }
        if name.is_empty() {
            found.required(&path.field("name"), "a claim needs a name", "name: gpu");
        } else {
            let first = *seen.entry(name).or_insert(index);
            if first == index {
                label(name, &path.field("name"), found);
            } else {
                found.duplicate(&path.field("name"), &name, &list.index(first).field("name"));
            }
        }
        let sources = [
            ("resourceClaimName", &claim.resource_claim_name),
            ("resourceClaimTemplateName", &claim.resource_claim_template_name),
        ];
        match sources.iter().filter(|(_, name)| name.is_some()).count() {
            0 => found.add(
                &path,
                Reason::FieldValueInvalid,
                "must have one of resourceClaimName, resourceClaimTemplateName",
                "for example `resourceClaimName: gpu`",
            ),
            1 => {}
            _ => found.add(
                &path,
                Reason::FieldValueInvalid,
                "may have only one of resourceClaimName, resourceClaimTemplateName",
                "remove one of the two",
            ),
        }
        for (field, name) in sources {
            if let Some(name) = name {
                check(name, names::subdomain, &path.field(field), found);
            }
        }
    }
    seen
}

fn claim_names(claims: &[ResourceClaim], known: &Claims<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut seen: BTreeSet<(&str, &str)> = BTreeSet::new();
    let mut seen_names: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, claim) in claims.iter().enumerate() {
        let own = path.index(index);
        let name = claim.name.as_str();
        if name.is_empty() {
            found.required(&own, "a claim needs a name", "name: gpu");
            continue;
        }
        let request = given(claim.request.as_ref()).unwrap_or_default();
        let first = path.index(seen_names.get(name).copied().unwrap_or(index));
        if seen.contains(&(name, "")) {
            found.duplicate(&own, &name, &first);
        } else {
            if !request.is_empty() {
                label(request, &own.field("request"), found);
            }
            let overlaps = seen.contains(&(name, request)) || (request.is_empty() && seen_names.contains_key(name));
            if overlaps {
                found.duplicate(&own, &name, &first);
            }
            seen.insert((name, request));
            seen_names.entry(name).or_insert(index);
        }
        if !known.contains_key(name) {
            let otherwise = "add it to `spec.resourceClaims`";
            found.not_found(&own, name, "is none of the pod's resourceClaims", known.keys().copied(), otherwise);
        }
    }
}
