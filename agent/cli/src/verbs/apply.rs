//! `apply` and `delete`: files stay the truth, these write and remove them.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use http::StatusCode;
use portreeve_api::v1alpha1::{ApplyReport, ApplyRequest, DeleteReport, DeleteRequest, ObjectName};
use serde_json::Value;

use super::client::{Client, Refused, escape};
use super::logs::duration;
use super::manifests;
use super::watch::{follow, has_expired};

const OWN: &str = "/apis/portreeve.dev/v1alpha1";

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// Manifests: files, directories, or - for standard input
    #[arg(short, long, required = true, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// The namespace of objects that say none; others must be in it [default: default]
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Arguments of `delete`.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The kind: pod, configmap or secret; KIND/NAME also does
    #[arg(value_name = "KIND", required_unless_present = "filename", conflicts_with = "filename")]
    kind: Option<String>,
    /// The objects
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Manifests whose objects go: files, directories, or - for standard input
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// The namespace; with -f that of objects that say none, and others must be in it [default: default]
    #[arg(short, long)]
    namespace: Option<String>,
    /// Wait until the pods are gone
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    wait: bool,
    /// What is not there is no error
    #[arg(long)]
    ignore_not_found: bool,
    /// Refused: a pod ends within the grace period that its manifest gives it
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    grace_period: Option<i64>,
    /// Refused, as --grace-period
    #[arg(long)]
    now: bool,
    /// How long to wait; 0 means as long as it takes
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    timeout: Duration,
}

/// A namespace as it was given; an empty one, of a variable that is not set, is none.
fn named(namespace: Option<String>) -> Option<String> {
    namespace.filter(|namespace| !namespace.is_empty())
}

pub(crate) async fn apply(client: &Client, args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let files = manifests::read(&args.filename)?;
    if files.is_empty() {
        bail!("there are no manifests in what was given");
    }
    let report: ApplyReport =
        client.post(&format!("{OWN}/apply"), &ApplyRequest { files, namespace: named(args.namespace) }).await?;
    for warning in &report.warnings {
        writeln!(io::stderr(), "{warning}")?;
    }
    if report.applied.is_empty() {
        // A generator that failed in a pipe gives nothing; kubectl's words.
        bail!("no objects passed to apply");
    }
    let mut out = io::stdout().lock();
    for applied in &report.applied {
        writeln!(out, "{}/{} {}", applied.kind.to_lowercase(), applied.name, applied.outcome)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn kind(word: &str) -> anyhow::Result<&'static str> {
    Ok(match word {
        "pod" | "pods" | "po" => "Pod",
        "configmap" | "configmaps" | "cm" => "ConfigMap",
        "secret" | "secrets" => "Secret",
        other => bail!("{other:?} cannot be deleted here: pods, configmaps and secrets can"),
    })
}

fn objects(args: &DeleteArgs) -> anyhow::Result<Vec<ObjectName>> {
    let Some(word) = &args.kind else { return Ok(Vec::new()) };
    let words: Vec<&String> = std::iter::once(word).chain(&args.names).collect();
    let pairs: Vec<(&str, &str)> = if word.contains('/') {
        words.iter().filter_map(|word| word.split_once('/')).collect()
    } else {
        args.names.iter().map(|name| (word.as_str(), name.as_str())).collect()
    };
    if pairs.is_empty() || (word.contains('/') && pairs.len() != words.len()) {
        bail!("which objects? give KIND NAME..., or KIND/NAME...");
    }
    pairs
        .into_iter()
        .map(|(word, name)| {
            let namespace = named(args.namespace.clone()).unwrap_or_else(|| "default".to_owned());
            let kind = kind(word)?.to_owned();
            Ok(ObjectName { kind, namespace, name: name.to_owned() })
        })
        .collect()
}

pub(crate) async fn delete(client: &Client, args: DeleteArgs) -> anyhow::Result<ExitCode> {
    // As kubectl has it, -1 means the pod's own.
    if args.now || args.grace_period.is_some_and(|seconds| seconds >= 0) {
        bail!(
            "delete removes a manifest, and the pod ends within the grace period that it gives: \
             apply a smaller terminationGracePeriodSeconds first (that costs nothing), then delete without this flag"
        );
    }
    let objects = objects(&args)?;
    let request = DeleteRequest { files: manifests::read(&args.filename)?, namespace: named(args.namespace), objects };
    if request.files.is_empty() && request.objects.is_empty() {
        bail!("there are no manifests in what was given");
    }
    let report: DeleteReport = client.post(&format!("{OWN}/delete"), &request).await?;
    let mut out = io::stdout().lock();
    for one in &report.deleted {
        writeln!(out, "{} \"{}\" deleted", one.object.kind.to_lowercase(), one.object.name)?;
    }
    if report.deleted.is_empty() && report.absent.is_empty() {
        writeln!(out, "No resources found")?;
    }
    out.flush()?;
    for one in report.deleted.iter().filter(|one| one.object.kind == "Pod" && args.wait) {
        let gone = wait_until_gone(client, &one.object);
        if args.timeout.is_zero() {
            gone.await?;
        } else if tokio::time::timeout(args.timeout, gone).await.is_err() {
            bail!("{} is still there after {:?}: it ends within its grace period", one.object, args.timeout);
        }
    }
    if args.ignore_not_found || report.absent.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let absent: Vec<String> = report.absent.iter().map(|object| format!("{object} not found")).collect();
    bail!("{}", absent.join("\nerror: "))
}

/// Waits until a pod is gone, by watching it.
pub(super) async fn wait_until_gone(client: &Client, pod: &ObjectName) -> anyhow::Result<()> {
    let list = format!("/api/v1/namespaces/{}/pods", escape(&pod.namespace));
    let path = format!("{list}/{}", escape(&pod.name));
    loop {
        let found: Value = match client.get(&path).await {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let version = found.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
        let selector = format!("metadata.name={}", pod.name);
        let query = [("fieldSelector", selector.as_str())];
        match is_deleted(client, &list, &query, version).await {
            Ok(true) => return Ok(()),
            Ok(false) => bail!("the agent stopped before {pod} was gone"),
            Err(error) if has_expired(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether something was deleted before the agent ended the stream.
async fn is_deleted(client: &Client, list: &str, query: &[(&str, &str)], version: &str) -> anyhow::Result<bool> {
    let mut changes = follow(client, list, query, version, "application/json").await?;
    while let Some(change) = changes.next().await? {
        if change.word == "DELETED" {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_absent(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == StatusCode::NOT_FOUND)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(kind: &str, names: &[&str]) -> DeleteArgs {
        DeleteArgs {
            kind: Some(kind.into()),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            filename: Vec::new(),
            namespace: Some("prod".into()),
            wait: true,
            ignore_not_found: false,
            grace_period: None,
            now: false,
            timeout: Duration::ZERO,
        }
    }

    #[test]
    fn objects_are_named_in_kubectls_two_ways() {
        let named = |args: &DeleteArgs| objects(args).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(named(&args("pod", &["a", "b"])), ["Pod prod/a", "Pod prod/b"]);
        assert_eq!(named(&args("pod/a", &["cm/b"])), ["Pod prod/a", "ConfigMap prod/b"]);
        assert!(objects(&args("pod", &[])).is_err());
        assert!(objects(&args("pod/a", &["b"])).is_err());
        assert!(objects(&args("deployment", &["a"])).is_err());
    }
}
