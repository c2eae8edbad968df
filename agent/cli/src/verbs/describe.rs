//! `describe pod`: everything about it in one page, with its events.

mod page;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use jiff::Timestamp;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::{Event, Pod};

use super::Namespace;
use super::client::{Client, escape, with_query};

/// Arguments of `describe`.
#[derive(Debug, Args)]
pub(crate) struct DescribeArgs {
    /// pod, or pod/NAME
    #[arg(value_name = "KIND")]
    kind: String,
    /// The pods; none: all of the namespace
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    namespace: Namespace,
}

pub(crate) async fn run(client: &Client, args: DescribeArgs) -> anyhow::Result<ExitCode> {
    let mut names = args.names;
    let kind = match args.kind.split_once('/') {
        Some((kind, name)) => {
            names.insert(0, name.to_owned());
            kind
        }
        None => &args.kind,
    };
    if !matches!(kind, "pod" | "pods" | "po") {
        bail!("{kind:?} cannot be described: pods can; `get {kind} -o yaml` tells of the others");
    }
    let namespace = &args.namespace.namespace;
    let path = format!("/api/v1/namespaces/{}/pods", escape(namespace));
    let mut pods: Vec<Pod> = Vec::new();
    if names.is_empty() {
        let list: List<Pod> = client.get(&path).await?;
        pods = list.items;
    }
    for name in &names {
        pods.push(client.get(&format!("{path}/{}", escape(name))).await?);
    }
    if pods.is_empty() {
        writeln!(io::stderr(), "No resources found in {namespace} namespace.")?;
    }
    let mut out = io::stdout().lock();
    for (index, pod) in pods.iter().enumerate() {
        if index > 0 {
            writeln!(out, "\n")?;
        }
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let selector = format!("involvedObject.kind=Pod,involvedObject.name={name}");
        let events = format!("/api/v1/namespaces/{}/events", escape(namespace));
        let events: List<Event> = client.get(&with_query(&events, &[("fieldSelector", &selector)])).await?;
        out.write_all(page::page(pod, &events.items, Timestamp::now()).as_bytes())?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
