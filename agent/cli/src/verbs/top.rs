//! `top`.

use std::io;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde::Deserialize;

use super::client::{Client, escape, with_query};
use super::output::Columns;

/// Arguments of `top`.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// pods or nodes
    #[arg(value_name = "KIND")]
    kind: String,
    /// Only these
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// The namespace
    #[arg(short, long, default_value = "default", value_parser = super::namespace)]
    namespace: String,
    /// The pods of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Each container by itself
    #[arg(long)]
    containers: bool,
    /// Only pods with such labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Leave the headers out
    #[arg(long)]
    no_headers: bool,
}

#[derive(Debug, Deserialize)]
struct MetricsList {
    items: Vec<Metrics>,
}

#[derive(Debug, Deserialize)]
struct Metrics {
    metadata: Meta,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Debug, Deserialize)]
struct Meta {
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Debug, Deserialize)]
struct ContainerMetrics {
    name: String,
    usage: Usage,
}

#[derive(Debug, Default, Deserialize)]
struct Usage {
    #[serde(default)]
    cpu: String,
    #[serde(default)]
    memory: String,
}

impl Usage {
    fn numbers(&self) -> (u64, u64) {
        let cpu = self.cpu.strip_suffix('n').and_then(|cpu| cpu.parse().ok()).unwrap_or_default();
        let memory = self.memory.strip_suffix("Ki").and_then(|memory| memory.parse().ok()).unwrap_or_default();
        (cpu, memory)
    }
}

/// CPU in thousandths of a core and memory in MiB, both rounded up as kubectl does.
fn shown((cpu_ns, memory_kib): (u64, u64)) -> [String; 2] {
    [format!("{}m", cpu_ns.div_ceil(1_000_000)), format!("{}Mi", memory_kib / 1024)]
}

pub(crate) async fn run(client: &Client, args: TopArgs) -> anyhow::Result<ExitCode> {
    const API: &str = "/apis/metrics.k8s.io/v1beta1";
    let nodes = match args.kind.as_str() {
        "pod" | "pods" | "po" => false,
        "node" | "nodes" | "no" => true,
        other => bail!("there is no top of {other:?}: it may be pods or nodes"),
    };
    let path = match (nodes, args.all_namespaces) {
        (true, _) => format!("{API}/nodes"),
        (false, true) => format!("{API}/pods"),
        (false, false) => format!("{API}/namespaces/{}/pods", escape(&args.namespace)),
    };
    let query: Vec<(&str, &str)> = args.selector.iter().map(|selector| ("labelSelector", selector.as_str())).collect();
    let mut list: MetricsList = client.get(&with_query(&path, &query)).await?;
    for name in &args.names {
        if !list.items.iter().any(|item| item.metadata.name == *name) {
            bail!("no metrics of {} {name:?}: it is not there, or does not run", args.kind);
        }
    }
    list.items.retain(|item| args.names.is_empty() || args.names.contains(&item.metadata.name));
    if list.items.is_empty() {
        use std::io::Write;
        let place =
            if args.all_namespaces || nodes { String::new() } else { format!(" in {} namespace.", args.namespace) };
        writeln!(io::stderr(), "No resources found{place}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let named = args.all_namespaces && !nodes;
    let by_container = args.containers && !nodes;
    let mut headers = Vec::new();
    headers.extend(named.then_some("NAMESPACE"));
    headers.extend(by_container.then_some("POD"));
    headers.extend(["NAME", "CPU(cores)", "MEMORY(bytes)"]);
    let mut rows = Vec::new();
    for item in &list.items {
        let namespace = named.then(|| item.metadata.namespace.clone());
        let row = |mut first: Vec<String>, usage: (u64, u64)| {
            first.extend(shown(usage));
            namespace.clone().into_iter().chain(first).collect::<Vec<String>>()
        };
        if by_container {
            for container in &item.containers {
                rows.push(row(vec![item.metadata.name.clone(), container.name.clone()], container.usage.numbers()));
            }
            continue;
        }
        let sum = item
            .containers
            .iter()
            .map(|container| container.usage.numbers())
            .fold(item.usage.numbers(), |(cpu, memory), (more_cpu, more_memory)| {
                (cpu + more_cpu, memory + more_memory)
            });
        rows.push(row(vec![item.metadata.name.clone()], sum));
    }
    // kubectl's headers keep their case here.
    Columns::verbatim(headers, args.no_headers).print(&mut io::stdout().lock(), &rows)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_shown_in_kubectls_units() {
        let usage = Usage { cpu: "12345678n".into(), memory: "20480Ki".into() };
        assert_eq!(shown(usage.numbers()), ["13m", "20Mi"]);
    }
}
