//! What only steers a cluster's scheduler: affinity, tolerations, spread, gates.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, PodSpec, Toleration,
    TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::metadata::{check, selector};
use super::pod::choice;
use super::{given, names};
use crate::findings::{Findings, near_or};
use crate::path::Path;
use crate::problem::Reason;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn gates(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    let path = path.field("schedulingGates");
    let mut seen = BTreeMap::new();
    let list = path;
    for (index, gate) in spec.scheduling_gates.iter().flatten().enumerate() {
        let path = list.index(index);
        check(&gate.name, names::qualified, &path, found);
        let first = *seen.entry(gate.name.as_str()).or_insert(index);
        if first != index {
            found.duplicate(&path, &gate.name, &list.index(first));
        }
    }
}

pub(super) fn affinity(affinity: Option<&Affinity>, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(affinity) = affinity else { return };
    if let Some(nodes) = &affinity.node_affinity {
        let path = path.field("nodeAffinity");
        if let Some(required) = &nodes.required_during_scheduling_ignored_during_execution {
            let path = path.field(REQUIRED);
            let path = path.field("nodeSelectorTerms");
            if required.node_selector_terms.is_empty() {
                let fix = "add a term, or remove `nodeAffinity`: there is one node";
                found.add(&path, Reason::FieldValueRequired, "needs at least one term", fix);
            }
            for (index, term) in required.node_selector_terms.iter().enumerate() {
                node_term(term, true, &path.index(index), found);
            }
        }
        let path = path.field(PREFERRED);
        let preferred = nodes.preferred_during_scheduling_ignored_during_execution.iter();
        for (index, term) in preferred.flatten().enumerate() {
            let path = path.index(index);
            weight(term.weight, &path, found);
            node_term(&term.preference, false, &path.field("preference"), found);
        }
    }
    if let Some(pods) = &affinity.pod_affinity {
        pod_terms(
            pods.required_during_scheduling_ignored_during_execution.as_deref(),
            pods.preferred_during_scheduling_ignored_during_execution.as_deref(),
            &path.field("podAffinity"),
            found,
        );
    }
    if let Some(pods) = &affinity.pod_anti_affinity {
        pod_terms(
            pods.required_during_scheduling_ignored_during_execution.as_deref(),
            pods.preferred_during_scheduling_ignored_during_execution.as_deref(),
            &path.field("podAntiAffinity"),
            found,
        );
    }
}

fn weight(weight: i32, path: &Path<'_>, found: &mut Findings<'_>) {
    if !(1..=100).contains(&weight) {
        found.invalid(&path.field("weight"), &weight, "must be between 1 and 100", "for example 50");
    }
}

fn node_term(term: &NodeSelectorTerm, strict: bool, path: &Path<'_>, found: &mut Findings<'_>) {
    for (index, rule) in term.match_expressions.iter().flatten().enumerate() {
        node_rule(rule, strict, &path.field("matchExpressions").index(index), found);
    }
    for (index, rule) in term.match_fields.iter().flatten().enumerate() {
        let path = path.field("matchFields");
        let path = path.index(index);
        let values = rule.values.as_deref().unwrap_or_default();
        match rule.operator.as_str() {
            "In" | "NotIn" => {
                if values.len() != 1 {
                    found.required(&path.field("values"), "must have exactly one value", "values: [node-1]");
                }
            }
            other => found.invalid(&path.field("operator"), &other, "is no operator for fields", "use `In` or `NotIn`"),
        }
        if rule.key == "metadata.name" {
            for (at, value) in values.iter().enumerate() {
                check(value, names::subdomain, &path.field("values").index(at), found);
            }
        } else {
            found.invalid(&path.field("key"), &rule.key, "is no field to select by", "use `metadata.name`");
        }
    }
}

fn node_rule(rule: &NodeSelectorRequirement, strict: bool, path: &Path<'_>, found: &mut Findings<'_>) {
    const OPERATORS: [&str; 6] = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
    let values = rule.values.as_deref().unwrap_or_default();
    let own = path.field("values");
    match rule.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            found.required(&own, "must be given when `operator` is In or NotIn", "values: [a]");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let message = "may not be given when `operator` is Exists or DoesNotExist";
            found.forbidden(&own, message, "remove `values`, or use the operator In or NotIn");
        }
        "Gt" | "Lt" if values.len() != 1 => {
            found.required(&own, "must have exactly one value when `operator` is Gt or Lt", "values: [\"4\"]");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => {
            let fix = near_or(other, OPERATORS.into_iter(), || format!("use one of {}", OPERATORS.join(", ")));
            found.invalid(&path.field("operator"), &other, "is no selector operator", fix);
        }
    }
    check(&rule.key, names::qualified, &path.field("key"), found);
    if strict {
        for (at, value) in values.iter().enumerate() {
            check(value, names::label_value, &own.index(at), found);
        }
    }
}

fn pod_terms(
    required: Option<&[PodAffinityTerm]>,
    preferred: Option<&[WeightedPodAffinityTerm]>,
    path: &Path<'_>,
    found: &mut Findings<'_>,
) {
    let own = path.field(REQUIRED);
    for (index, term) in required.unwrap_or_default().iter().enumerate() {
        pod_term(term, &own.index(index), found);
    }
    let own = path.field(PREFERRED);
    for (index, term) in preferred.unwrap_or_default().iter().enumerate() {
        let own = own.index(index);
        weight(term.weight, &own, found);
        pod_term(&term.pod_affinity_term, &own.field("podAffinityTerm"), found);
    }
}

fn pod_term(term: &PodAffinityTerm, path: &Path<'_>, found: &mut Findings<'_>) {
    selector(term.label_selector.as_ref(), &path.field("labelSelector"), found);
    selector(term.namespace_selector.as_ref(), &path.field("namespaceSelector"), found);
    for (index, name) in term.namespaces.iter().flatten().enumerate() {
        if let Err(message) = names::label(name) {
            // The API server calls this field `namespace`.
            found.add_as(
                path.field("namespace").to_string(),
                &path.field("namespaces").index(index),
                Reason::FieldValueInvalid,
                format!("{name:?} {message}"),
                names::mended(name, names::label),
            );
        }
    }
    let matches = term.match_label_keys.as_deref().unwrap_or_default();
    let mismatches = term.mismatch_label_keys.as_deref().unwrap_or_default();
    let chosen = term.label_selector.as_ref();
    label_keys(matches, chosen, &path.field("matchLabelKeys"), found);
    label_keys(mismatches, chosen, &path.field("mismatchLabelKeys"), found);
    chosen_twice(matches, chosen, path, found);
    let mismatched: BTreeSet<&String> = mismatches.iter().collect();
    for (index, key) in matches.iter().enumerate() {
        if mismatched.contains(key) {
            found.invalid(
                &path.field("matchLabelKeys").index(index),
                key,
                "is in both matchLabelKeys and mismatchLabelKeys",
                "remove it from one of the two",
            );
        }
    }
    let own = path.field("topologyKey");
    if term.topology_key.is_empty() {
        found.required(&own, "a topologyKey is required", "topologyKey: kubernetes.io/hostname");
    }
    check(&term.topology_key, names::qualified, &own, found);
}

fn label_keys(keys: &[String], selector: Option<&LabelSelector>, path: &Path<'_>, found: &mut Findings<'_>) {
    if keys.is_empty() {
        return;
    }
    if selector.is_none() {
        found.forbidden(path, "needs a labelSelector beside it", "add one, or remove the keys");
        return;
    }
    for (index, key) in keys.iter().enumerate() {
        check(key, names::qualified, &path.index(index), found);
    }
}

/// A key may be matched by `matchLabelKeys` or by the selector, not by both. The expressions that
/// `matchLabelKeys` stand for are at the selector's end already.
fn chosen_twice(keys: &[String], selector: Option<&LabelSelector>, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(selector) = selector.filter(|_| !keys.is_empty()) else { return };
    let places: BTreeMap<&str, usize> = keys.iter().map(String::as_str).zip(0..).collect();
    let mut chosen: BTreeSet<&str> =
        selector.match_labels.iter().flat_map(|labels| labels.keys()).map(String::as_str).collect();
    for rule in selector.match_expressions.iter().flatten() {
        if let Some(at) = places.get(rule.key.as_str()).copied()
            && chosen.contains(rule.key.as_str())
        {
            // The API server's path lacks the field's name.
            found.add_as(
                path.index(at).to_string(),
                &path.field("matchLabelKeys").index(at),
                Reason::FieldValueInvalid,
                format!("{:?} is in both matchLabelKeys and labelSelector", rule.key),
                "remove it from one of the two",
            );
        }
        chosen.insert(&rule.key);
    }
}

pub(super) fn tolerations(tolerations: &[Toleration], path: &Path<'_>, found: &mut Findings<'_>) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let operator = toleration.operator.as_deref().unwrap_or_default();
        let value = toleration.value.as_deref().unwrap_or_default();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let own = path.field("operator");
        match given(toleration.key.as_ref()) {
            Some(key) => check(key, names::qualified, &path.field("key"), found),
            None if operator != "Exists" => {
                found.invalid(
                    &own,
                    &operator,
                    "must be Exists when `key` is empty",
                    "set `operator: Exists`, or a `key`",
                );
            }
            None => {}
        }
        if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
            let message = "must be NoExecute when `tolerationSeconds` is set";
            found.invalid(&path.field("effect"), &effect, message, "change it, or remove `tolerationSeconds`");
        }
        match operator {
            "" | "Equal" => {
                if let Err(message) = names::label_value(value) {
                    found.invalid(&own, &value, message, names::mended(value, names::label_value));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    let message = "may not be given when `operator` is Exists";
                    found.invalid(&own, &value, message, "remove `value`, or use the operator Equal");
                }
            }
            other => found.not_supported(&own, other, &["Equal", "Exists"], "remove it for the default, `Equal`"),
        }
        if !effect.is_empty() {
            let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            choice(Some(effect), &effects, "remove it, and every effect is tolerated", &path.field("effect"), found);
        }
    }
}

pub(super) fn spread(constraints: &[TopologySpreadConstraint], path: &Path<'_>, found: &mut Findings<'_>) {
    fn pair(constraint: &TopologySpreadConstraint) -> (&str, &str) {
        (&constraint.topology_key, &constraint.when_unsatisfiable)
    }
    // Of constraints over the same pair all but the last are reported.
    let last: BTreeMap<_, usize> = constraints.iter().map(pair).zip(0..).collect();
    let list = path;
    for (index, constraint) in constraints.iter().enumerate() {
        let path = list.index(index);
        if constraint.max_skew <= 0 {
            found.invalid(&path.field("maxSkew"), &constraint.max_skew, "must be above zero", "for example 1");
        }
        if constraint.topology_key.is_empty() {
            let example = "topologyKey: kubernetes.io/hostname";
            found.required(&path.field("topologyKey"), "a topologyKey is required", example);
        }
        let action = constraint.when_unsatisfiable.as_str();
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        choice(Some(action), &actions, "for example `ScheduleAnyway`", &path.field("whenUnsatisfiable"), found);
        if let Some(last) = last.get(&pair(constraint)).filter(|last| **last != index) {
            found.duplicate(
                &path.field("{topologyKey, whenUnsatisfiable}"),
                &format!("{{{}, {action}}}", constraint.topology_key),
                &list.index(*last),
            );
        }
        if let Some(domains) = constraint.min_domains {
            let own = path.field("minDomains");
            if domains <= 0 {
                found.invalid(&own, &domains, "must be above zero", "remove it for the default, 1");
            }
            if action != "DoNotSchedule" {
                found.invalid(
                    &own,
                    &domains,
                    "needs whenUnsatisfiable DoNotSchedule",
                    "remove it, or change `whenUnsatisfiable`",
                );
            }
        }
        for (field, policy) in [
            ("nodeAffinityPolicy", &constraint.node_affinity_policy),
            ("nodeTaintsPolicy", &constraint.node_taints_policy),
        ] {
            choice(policy.as_deref(), &["Honor", "Ignore"], "remove it for the default", &path.field(field), found);
        }
        let keys = constraint.match_label_keys.as_deref().unwrap_or_default();
        let chosen = constraint.label_selector.as_ref();
        label_keys(keys, chosen, &path.field("matchLabelKeys"), found);
        chosen_twice(keys, chosen, &path, found);
        selector(constraint.label_selector.as_ref(), &path.field("labelSelector"), found);
    }
}
