//! `restart` and `drain`.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use http::Method;
use portreeve_api::v1alpha1::DrainReport;
use serde_json::Value;

use super::client::{Client, empty, escape};
use super::{Namespace, pod_name};

const OWN: &str = "/apis/portreeve.dev/v1alpha1";

/// Arguments of `restart`.
#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    /// `pod` and names, or pod/NAME
    #[arg(required = true, value_name = "pod NAME")]
    words: Vec<String>,
    #[command(flatten)]
    namespace: Namespace,
}

pub(crate) async fn restart(client: &Client, args: RestartArgs) -> anyhow::Result<ExitCode> {
    let names = match args.words.split_first() {
        Some((kind, names)) if matches!(kind.as_str(), "pod" | "pods" | "po") => names,
        _ => &args.words,
    };
    if names.is_empty() {
        bail!("which pod? give its name");
    }
    for name in names {
        let name = pod_name(name).map_err(anyhow::Error::msg)?;
        let path = format!("{OWN}/namespaces/{}/pods/{}/restart", escape(&args.namespace.namespace), escape(&name));
        let _status: Value = client.post(&path, &Value::Null).await?;
        writeln!(io::stdout(), "pod/{name} restarted")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Arguments of `drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// Seconds every pod has instead of its own grace period
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<u64>,
}

pub(crate) async fn drain(client: &Client, args: DrainArgs) -> anyhow::Result<ExitCode> {
    let query = args.grace_period.map(|seconds| format!("?gracePeriodSeconds={seconds}")).unwrap_or_default();
    // It is answered once every pod has had its grace period.
    let path = format!("{OWN}/drain{query}");
    let answer = client.request_long(Method::POST, &path, "application/json", empty()).await?;
    let report: DrainReport = answer.json().await?;
    let mut out = io::stdout().lock();
    for pod in &report.pods {
        writeln!(out, "pod {pod} stopped")?;
    }
    writeln!(out, "drained: nothing is started until the agent is started again")?;
    Ok(ExitCode::SUCCESS)
}
