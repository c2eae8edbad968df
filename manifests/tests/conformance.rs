//! What a real API server answers, case by case.
//!
//! The cases are not part of the repository: the test reads them from `../shared/conformance`
//! beside it, or from the directory that `PORTREEVE_CONFORMANCE` names, and says loudly when
//! they are not there. Every case of our kinds must be answered as the server answered it; what
//! we answer otherwise on purpose stands, with its reason, in `conformance_deviations.txt`.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use portreeve_manifests::{ApiAnswer, Kind, Problem, Reason, Severity, parse_document_as, parse_file, to_yaml};
use serde_json::Value;

fn directory() -> PathBuf {
    std::env::var_os("PORTREEVE_CONFORMANCE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance"), PathBuf::from)
}

fn cases() -> Option<Vec<Value>> {
    let file = directory().join("validation.jsonl.gz");
    let Ok(packed) = std::fs::read(&file) else {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no conformance cases at {}; set PORTREEVE_CONFORMANCE to their directory",
            file.display()
        );
        return None;
    };
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut text).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// `spec.containers[0].env` as the server writes it where it decodes: `spec.containers.env`.
fn without_indices(field: &str) -> String {
    let mut out = String::new();
    let mut depth = 0;
    for c in field.chars() {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            c if depth == 0 => out.push(c),
            _ => {}
        }
    }
    out
}

fn last_part(field: &str) -> &str {
    field.rsplit(['.', '[']).next().unwrap_or(field)
}

/// What differs between the server's answer and ours; empty when they agree.
fn difference(case: &Value, ours: &ApiAnswer) -> String {
    let mut out = String::new();
    let accepted = case["accepted"].as_bool().unwrap();
    if accepted != ours.object.is_some() {
        write!(out, "verdict: server {accepted}, ours {}; ", ours.object.is_some()).unwrap();
    }
    let theirs: BTreeSet<(String, String)> = case["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| {
            let text = |name: &str| cause[name].as_str().unwrap_or_default().to_owned();
            (text("reason"), text("field"))
        })
        .collect();
    let found: BTreeSet<(String, String)> =
        ours.problems.iter().map(|problem| (problem.reason.to_string(), problem.field.clone())).collect();
    if case["http"] == 400 {
        // The server stops at the first of these; we may name more.
        for (reason, field) in &theirs {
            let seen = ours.problems.iter().any(|problem| {
                let own = match problem.reason {
                    Reason::TypeMismatch => without_indices(&problem.field),
                    Reason::StrictDuplicateKeyYAML => last_part(&problem.field).to_owned(),
                    _ => problem.field.clone(),
                };
                problem.reason.to_string() == *reason
                    && (field.is_empty() || own == field.replace("\\ufeff", "\u{feff}"))
            });
            if !seen {
                write!(out, "cause {reason} {field:?} not in {found:?}; ").unwrap();
            }
        }
    } else if theirs != found {
        let missing: Vec<_> = theirs.difference(&found).collect();
        let extra: Vec<_> = found.difference(&theirs).collect();
        write!(out, "causes: missing {missing:?}, extra {extra:?}; ").unwrap();
    }
    if let Some(object) = &ours.object
        && accepted
    {
        compare("", &case["defaulted"], &object.to_json(), &mut out);
    }
    out
}

fn compare(path: &str, theirs: &Value, ours: &Value, out: &mut String) {
    match (theirs, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let get = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
                let path = format!("{path}.{key}");
                // Both are moments of the server's clock.
                if !matches!(key.as_str(), "lastTransitionTime" | "lastProbeTime") {
                    compare(&path, &get(a), &get(b), out);
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}[{index}]"), a, b, out);
            }
        }
        (a, b) if a == b => {}
        (a, b) => write!(out, "default {path}: server {a}, ours {b}; ").unwrap(),
    }
}

#[test]
fn every_case_is_answered_as_the_api_server_answers_it() {
    let Some(cases) = cases() else { return };
    let known: BTreeMap<&str, &str> = include_str!("conformance_deviations.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(": ").expect("each deviation has a reason"))
        .collect();
    let mut totals: BTreeMap<Kind, (usize, usize)> = BTreeMap::new();
    let mut unexplained = String::new();
    let mut deviating = BTreeSet::new();
    for case in &cases {
        let Ok(kind) = case["kind"].as_str().unwrap().parse::<Kind>() else {
            continue;
        };
        let id = case["id"].as_str().unwrap();
        let ours = parse_document_as(
            kind,
            case["namespace"].as_str().unwrap(),
            Path::new("case.yaml"),
            case["manifest"].as_str().unwrap().as_bytes(),
        );
        let difference = difference(case, &ours);
        let total = totals.entry(kind).or_default();
        total.1 += 1;
        if difference.is_empty() {
            total.0 += 1;
        } else {
            deviating.insert(id);
            if !known.contains_key(id) {
                let category = case["category"].as_str().unwrap_or_default();
                writeln!(unexplained, "{id} ({category}): {difference}").unwrap();
            }
        }
    }
    for (kind, (agree, all)) in &totals {
        println!("{kind}: {agree} of {all} cases agree");
    }
    for (id, reason) in &known {
        println!("deviation {id}: {reason}");
    }
    assert!(unexplained.is_empty(), "cases that differ without a recorded reason:\n{unexplained}");
    let healed: Vec<_> = known.keys().filter(|id| !deviating.contains(*id)).collect();
    assert!(healed.is_empty(), "recorded deviations that agree by now: {healed:?}");
}

/// The errors that an API server would have too.
fn shared_errors<'a>(problems: impl IntoIterator<Item = &'a Problem>) -> BTreeSet<(String, String)> {
    problems
        .into_iter()
        .filter(|problem| problem.severity == Severity::Error && !problem.reason.is_own_rule())
        .map(|problem| (problem.reason.to_string(), problem.field.clone()))
        .collect()
}

/// Cases that a file answers otherwise than a request, by their nature.
fn only_for_requests(case: &Value, ours: &ApiAnswer) -> bool {
    let generated = ours.object.as_ref().is_some_and(|object| object.key().name == "<generated>");
    let manifest = case["manifest"].as_str().unwrap();
    // A request has one document and brings its own kind and namespace; a file has neither.
    generated
        || case["url_dependent"] == true
        || case["namespace"] != "default"
        || manifest.contains("namespace: ")
        || manifest.contains("kind: List")
        || matches!(case["category"].as_str().unwrap(), "yaml:multi-doc" | "yaml:empty" | "yaml:json")
}

#[test]
fn a_file_is_judged_as_a_request_is() {
    let Some(cases) = cases() else { return };
    let mut unexplained = String::new();
    for case in &cases {
        let Ok(kind) = case["kind"].as_str().unwrap().parse::<Kind>() else {
            continue;
        };
        let bytes = case["manifest"].as_str().unwrap().as_bytes();
        let request = parse_document_as(kind, "default", Path::new("case.yaml"), bytes);
        if only_for_requests(case, &request) {
            continue;
        }
        let file = parse_file(Path::new("case.yaml"), bytes);
        let (by_request, by_file) = (shared_errors(&request.problems), shared_errors(&file.problems));
        // A file's reader goes on where the server stops, so it may find more.
        let agrees = if case["http"] == 400 { by_request.is_subset(&by_file) } else { by_request == by_file };
        if !agrees {
            let (id, category) = (&case["id"], &case["category"]);
            writeln!(unexplained, "{id} ({category}): request {by_request:?}, file {by_file:?}").unwrap();
        }
        let refused_by_own_rule =
            || file.problems.iter().any(|it| it.reason.is_own_rule() && it.severity == Severity::Error);
        if request.object.is_some() && file.objects().next().is_none() && !refused_by_own_rule() {
            writeln!(unexplained, "{} is refused in a file without a reason", case["id"]).unwrap();
        }
    }
    assert!(unexplained.is_empty(), "{unexplained}");
}

#[test]
fn an_object_of_a_file_is_the_same_when_it_is_written_out_and_read_again() {
    let Some(cases) = cases() else { return };
    let (mut differ, mut seen) = (String::new(), 0);
    for case in &cases {
        let file = parse_file(Path::new("case.yaml"), case["manifest"].as_str().unwrap().as_bytes());
        for object in file.objects() {
            let again = parse_file(Path::new("case.yaml"), to_yaml(&object.to_json()).as_bytes());
            seen += 1;
            if again.objects().next() != Some(object) {
                let problems: Vec<String> = again.problems.iter().map(ToString::to_string).collect();
                writeln!(differ, "{} ({}): {problems:?}", case["id"], case["category"]).unwrap();
            }
        }
    }
    assert!(seen > 500, "only {seen} objects");
    assert!(differ.is_empty(), "{differ}");
}

/// Whether a problem says what to do, briefly and beyond what its message says.
fn has_a_fix(problem: &Problem) -> bool {
    const LONGEST: usize = 120;
    let fix = problem.fix.as_str();
    let plain = !fix.is_empty() && !fix.contains('\n') && fix.trim() == fix && !fix.ends_with('.');
    // The fields that may stand in the place of an unknown one can be many.
    let short = fix.len() <= LONGEST || problem.reason == Reason::StrictUnknownField;
    plain && short && !problem.message.contains(fix) && !fix.contains(&problem.message)
}

#[test]
fn every_problem_of_every_case_says_how_to_fix_it() {
    let Some(cases) = cases() else { return };
    let mut without = BTreeSet::new();
    let mut seen = 0;
    for case in &cases {
        let file = Path::new("case.yaml");
        let bytes = case["manifest"].as_str().unwrap().as_bytes();
        let mut problems = parse_file(file, bytes).problems;
        if let Ok(kind) = case["kind"].as_str().unwrap().parse::<Kind>() {
            problems.extend(parse_document_as(kind, case["namespace"].as_str().unwrap(), file, bytes).problems);
        }
        seen += problems.len();
        without.extend(problems.iter().filter(|it| !has_a_fix(it)).map(ToString::to_string));
    }
    assert!(seen > cases.len(), "only {seen} problems");
    assert!(without.is_empty(), "problems without a fix:\n{}", without.into_iter().collect::<Vec<_>>().join("\n"));
}
