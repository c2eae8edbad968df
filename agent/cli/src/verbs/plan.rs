//! `plan`: what would change, each step with its reason and what it costs.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};
use portreeve_api::size::size;
use portreeve_api::v1alpha1::{PlanReport, PlanRequest, PodChange, PodPlan};

use super::client::Client;
use super::{manifests, output};

/// The exit code that says there are changes.
const CHANGES: u8 = 2;

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Files or directories laid over what is desired; none: what the agent would do next, and the sources' errors
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Treat PATH as the whole manifests directory: what it does not name is removed
    #[arg(long, requires = "paths")]
    prune: bool,
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// How a plan is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

pub(crate) async fn run(client: &Client, args: PlanArgs) -> anyhow::Result<ExitCode> {
    let files = manifests::read(&args.paths)?;
    // Nothing to lay over is a mistake, and with --prune it would plan the end of everything.
    if files.is_empty() && !args.paths.is_empty() {
        bail!(
            "there are no manifests in {}",
            args.paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        );
    }
    let request = PlanRequest { files, prune: args.prune };
    let report: PlanReport = client.post("/apis/portreeve.dev/v1alpha1/plan", &request).await?;
    let mut out = io::stdout().lock();
    match args.output {
        Some(Format::Json) => output::json(&mut out, &report)?,
        Some(Format::Yaml) => output::yaml(&mut out, &report)?,
        None => print(&mut out, &mut io::stderr().lock(), &report)?,
    }
    Ok(verdict(&report))
}

fn changes(pod: &PodPlan) -> bool {
    pod.change != PodChange::Unchanged || !pod.steps.is_empty()
}

fn verdict(report: &PlanReport) -> ExitCode {
    if report.has_errors() {
        ExitCode::FAILURE
    } else if report.objects.is_empty() && !report.pods.iter().any(changes) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(CHANGES)
    }
}

fn sign(change: PodChange) -> (char, &'static str) {
    match change {
        PodChange::Create => ('+', "is new"),
        PodChange::Update => ('~', "differs"),
        PodChange::Delete => ('-', "is removed"),
        PodChange::Unchanged => (' ', "is as desired"),
    }
}

fn print(out: &mut dyn Write, err: &mut dyn Write, report: &PlanReport) -> io::Result<()> {
    for problem in &report.problems {
        writeln!(err, "{problem}")?;
    }
    for object in &report.objects {
        let sign = match object.change.as_str() {
            "create" => '+',
            "delete" => '-',
            _ => '~',
        };
        write!(out, "{sign} {} {}/{}: {}", object.kind, object.namespace, object.name, object.change)?;
        if !object.keys.is_empty() {
            write!(out, " (keys {})", object.keys.join(", "))?;
        }
        writeln!(out)?;
    }
    for pod in report.pods.iter().filter(|pod| changes(pod) || pod.blocked.is_some()) {
        let (sign, word) = sign(pod.change);
        let cost = pod.cost.as_ref().map(|cost| format!(" [{cost}]")).unwrap_or_default();
        writeln!(out, "{sign} Pod {}/{} {word}{cost}", pod.namespace, pod.name)?;
        for difference in &pod.differences {
            let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "(unset)".to_owned());
            let (from, to) = (value(&difference.from), value(&difference.to));
            writeln!(out, "    {} [{}]: {from} -> {to}", difference.field, difference.cost)?;
        }
        for (number, step) in (1..).zip(&pod.steps) {
            let cost = if step.cost.is_empty() { String::new() } else { format!(" [{}]", step.cost) };
            let bytes = step.fetch_bytes.map(|bytes| format!(" ({} to fetch)", size(bytes))).unwrap_or_default();
            writeln!(out, "    {number}. {}{cost}: {}{bytes}", step.action, step.reason)?;
        }
        for then in &pod.then {
            let word = if then.containers.len() == 1 { "container" } else { "containers" };
            writeln!(out, "    then {word} {}, when {}", then.containers.join(", "), then.when)?;
        }
        if let Some(blocked) = &pod.blocked {
            writeln!(out, "    blocked: {blocked}")?;
        }
        if let Some(wake_at) = pod.wake_at.filter(|_| pod.steps.is_empty()) {
            writeln!(out, "    looks again at {wake_at}")?;
        }
    }
    if report.objects.is_empty() && !report.pods.iter().any(changes) {
        writeln!(out, "No changes.")?;
    }
    if report.drained {
        writeln!(out, "The node is drained: nothing is started until the agent is started again.")?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use portreeve_api::v1alpha1::{FieldDifference, PlannedStep};

    use super::*;

    fn pod(change: PodChange, steps: Vec<PlannedStep>) -> PodPlan {
        PodPlan {
            namespace: "default".into(),
            name: "web".into(),
            uid: None,
            change,
            cost: Some("restart".into()),
            differences: vec![FieldDifference {
                field: "spec.containers[0].image".into(),
                cost: "restart".into(),
                from: Some("nginx:1".into()),
                to: Some("nginx:2".into()),
            }],
            steps,
            then: Vec::new(),
            wake_at: None,
            blocked: None,
        }
    }

    fn printed(report: &PlanReport) -> String {
        let mut out = Vec::new();
        print(&mut out, &mut Vec::new(), report).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_step_has_its_reason_and_cost() {
        let step = PlannedStep {
            action: "KillContainer nginx".into(),
            reason: "its image changes".into(),
            cost: "restart".into(),
            image: None,
            fetch_bytes: None,
        };
        let report = PlanReport { pods: vec![pod(PodChange::Update, vec![step])], ..PlanReport::default() };
        assert_eq!(
            printed(&report),
            "~ Pod default/web differs [restart]\n    \
             spec.containers[0].image [restart]: nginx:1 -> nginx:2\n    \
             1. KillContainer nginx [restart]: its image changes\n"
        );
        assert_eq!(verdict(&report), ExitCode::from(2));
    }

    #[test]
    fn what_follows_the_steps_is_the_last_line() {
        let step = PlannedStep {
            action: "pull image web:1".into(),
            reason: "new".into(),
            cost: "live".into(),
            image: Some("web:1".into()),
            fetch_bytes: Some(34_500_000),
        };
        let mut pod = pod(PodChange::Create, vec![step]);
        pod.differences.clear();
        let mut value = serde_json::to_value(&pod).unwrap();
        assert!(value.get("then").is_none(), "{value}");
        let then = serde_json::json!([{"containers": ["c", "s"], "when": "init container init has ended"}]);
        value["then"] = then.clone();
        let pod: PodPlan = serde_json::from_value(value).unwrap();
        assert_eq!(serde_json::to_value(&pod).unwrap()["then"], then);
        assert_eq!(
            printed(&PlanReport { pods: vec![pod], ..PlanReport::default() }),
            "+ Pod default/web is new [restart]\n    1. pull image web:1 [live]: new (34.5MB to fetch)\n    \
             then containers c, s, when init container init has ended\n"
        );
    }

    #[test]
    fn the_errors_of_the_sources_are_told_and_fail() {
        let problem = serde_json::from_value(serde_json::json!({
            "severity": "error", "file": "/m", "line": 0, "column": 0, "reason": "Unreadable", "message": "not there",
        }));
        let report = PlanReport { problems: vec![problem.unwrap()], ..PlanReport::default() };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        print(&mut out, &mut err, &report).unwrap();
        assert_eq!(String::from_utf8(err).unwrap(), "/m: error: not there\n");
        assert_eq!(String::from_utf8(out).unwrap(), "No changes.\n");
        assert_eq!(verdict(&report), ExitCode::FAILURE);
    }

    #[test]
    fn nothing_to_do_is_said_and_is_success() {
        let report = PlanReport { pods: vec![pod(PodChange::Unchanged, Vec::new())], ..PlanReport::default() };
        assert_eq!(printed(&report), "No changes.\n");
        assert_eq!(verdict(&report), ExitCode::SUCCESS);
        let drained = PlanReport { drained: true, ..report };
        assert_eq!(
            printed(&drained),
            "No changes.\nThe node is drained: nothing is started until the agent is started again.\n"
        );
        assert_eq!(serde_json::to_value(&drained).unwrap()["drained"], true);
    }
}
