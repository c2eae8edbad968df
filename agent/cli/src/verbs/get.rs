//! `get`: lists. The columns are the agent's; what is done here is their print.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, TABLE, empty, escape, with_query};
use super::output::{self, Columns, Table, TableRow, cell};

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// pods, containers, images, sources, events, nodes, namespaces or configmaps; KIND/NAME also does
    #[arg(value_name = "KIND")]
    kind: String,
    /// Only the objects of these names
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// The namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
    /// Go on with every change
    #[arg(short, long)]
    watch: bool,
    /// Only objects with such labels, e.g. app=web,tier!=test
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Only objects with such fields, e.g. status.phase=Running
    #[arg(long, value_name = "FIELDS")]
    field_selector: Option<String>,
    /// Leave the headers out
    #[arg(long)]
    no_headers: bool,
}

/// How objects are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// KIND/NAME, one per line
    Name,
}

/// A kind that can be listed.
#[derive(Debug, PartialEq, Eq)]
struct Kind {
    /// The plural, in paths.
    plural: &'static str,
    /// The word in `-o name`.
    singular: &'static str,
    group: &'static str,
    namespaced: bool,
    watchable: bool,
}

const fn core(plural: &'static str, singular: &'static str, namespaced: bool) -> Kind {
    Kind { plural, singular, group: "/api/v1", namespaced, watchable: true }
}

const fn own(plural: &'static str, singular: &'static str, namespaced: bool) -> Kind {
    Kind { plural, singular, group: "/apis/portreeve.dev/v1alpha1", namespaced, watchable: false }
}

fn kind(word: &str) -> anyhow::Result<Kind> {
    Ok(match word {
        "pods" | "pod" | "po" => core("pods", "pod", true),
        "events" | "event" | "ev" => core("events", "event", true),
        "configmaps" | "configmap" | "cm" => core("configmaps", "configmap", true),
        "nodes" | "node" | "no" => core("nodes", "node", false),
        "namespaces" | "namespace" | "ns" => core("namespaces", "namespace", false),
        "containers" | "container" => own("containers", "container.portreeve.dev", true),
        "images" | "image" => own("images", "image.portreeve.dev", false),
        "sources" | "source" => own("sources", "source.portreeve.dev", false),
        other => bail!(
            "there is no kind {other:?} here: it may be pods, containers, images, sources, events, nodes, namespaces or configmaps"
        ),
    })
}

impl GetArgs {
    fn path(&self, kind: &Kind) -> String {
        if kind.namespaced && !self.all_namespaces {
            format!("{}/namespaces/{}/{}", kind.group, escape(&self.namespace), kind.plural)
        } else {
            format!("{}/{}", kind.group, kind.plural)
        }
    }

    fn query(&self, kind: &Kind) -> Vec<(&str, &str)> {
        let mut query = Vec::new();
        if let Some(selector) = &self.selector {
            query.push(("labelSelector", selector.as_str()));
        }
        if let (Some(selector), true) = (&self.field_selector, kind.watchable) {
            query.push(("fieldSelector", selector.as_str()));
        }
        query
    }

    fn wanted(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    fn with_namespace(&self, kind: &Kind) -> bool {
        self.all_namespaces && kind.namespaced
    }
}

pub(crate) async fn run(client: &Client, mut args: GetArgs) -> anyhow::Result<ExitCode> {
    let word = match args.kind.split_once('/') {
        Some((word, name)) => {
            args.names.insert(0, name.to_owned());
            word.to_owned()
        }
        None => args.kind.clone(),
    };
    let kind = kind(&word)?;
    if args.watch && !kind.watchable {
        bail!("{} cannot be watched; pods, events and configmaps can", kind.plural);
    }
    if args.all_namespaces && !args.names.is_empty() {
        bail!("an object cannot be named across all namespaces: leave -A or the names out");
    }
    match args.output {
        None | Some(Format::Wide) => tables(client, &args, &kind).await,
        Some(format) => documents(client, &args, &kind, format).await,
    }
}

async fn tables(client: &Client, args: &GetArgs, kind: &Kind) -> anyhow::Result<ExitCode> {
    let path = args.path(kind);
    let wide = args.output == Some(Format::Wide);
    let table: Table = client.get_as(&with_query(&path, &args.query(kind)), TABLE).await?;
    let definitions = table.column_definitions.clone().unwrap_or_default();
    let shown: Vec<bool> = definitions.iter().map(|column| wide || column.priority == 0).collect();
    let named = args.with_namespace(kind);
    let headers = named
        .then_some("Namespace")
        .into_iter()
        .chain(definitions.iter().zip(&shown).filter(|(_, shown)| **shown).map(|(column, _)| column.name.as_str()));
    let mut columns = Columns::new(headers, args.no_headers);
    let line = |row: &TableRow| -> Vec<String> {
        let cells = row.cells.iter().zip(&shown).filter(|(_, shown)| **shown).map(|(value, _)| cell(value));
        named.then(|| row.meta("namespace").to_owned()).into_iter().chain(cells).collect()
    };
    let found: Vec<&TableRow> = table.rows.iter().filter(|row| args.wanted(row.meta("name"))).collect();
    let missing = missing(args, found.iter().map(|row| row.meta("name")));
    let mut out = io::stdout().lock();
    if found.is_empty() && args.names.is_empty() {
        nothing(args, kind)?;
    } else if !found.is_empty() {
        columns.print(&mut out, &found.into_iter().map(line).collect::<Vec<_>>())?;
    }
    if kind.plural == "sources" {
        problems(client, args, &mut out).await?;
    }
    if args.watch {
        let mut changes =
            super::watch::follow(client, &path, &args.query(kind), &table.metadata.resource_version, TABLE).await?;
        while let Some(change) = changes.next().await? {
            let table: Table = serde_json::from_value(change.object)?;
            let rows: Vec<_> = table.rows.iter().filter(|row| args.wanted(row.meta("name"))).map(line).collect();
            if !rows.is_empty() {
                columns.print(&mut out, &rows)?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    absent(kind, &missing)
}

/// Below the sources, what is wrong in them: a table has no room for that.
async fn problems(client: &Client, args: &GetArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    use portreeve_api::v1alpha1::{ObjectList, Source};
    let sources: ObjectList<Source> = client.get("/apis/portreeve.dev/v1alpha1/sources").await?;
    for source in sources.items.iter().filter(|source| args.wanted(&source.metadata.name)) {
        for problem in source.status.files.iter().flat_map(|file| &file.problems) {
            writeln!(out, "{problem}")?;
        }
    }
    out.flush()?;
    Ok(())
}

async fn documents(client: &Client, args: &GetArgs, kind: &Kind, format: Format) -> anyhow::Result<ExitCode> {
    let path = args.path(kind);
    let list: Value = client.get(&with_query(&path, &args.query(kind))).await?;
    let mut items = list.pointer("/items").and_then(Value::as_array).cloned().unwrap_or_default();
    items.retain(|item| args.wanted(name_of(item)));
    let missing = missing(args, items.iter().map(name_of));
    let mut out = io::stdout().lock();
    if args.watch {
        for item in &items {
            document(&mut out, kind, item, format)?;
        }
        let version = list.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
        let mut changes = super::watch::follow(client, &path, &args.query(kind), version, "application/json").await?;
        while let Some(change) = changes.next().await? {
            if args.wanted(name_of(&change.object)) {
                document(&mut out, kind, &change.object, format)?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    match (format, items.as_slice()) {
        (Format::Name, items) => items.iter().try_for_each(|item| document(&mut out, kind, item, format))?,
        (_, [item]) if args.names.len() == 1 => document(&mut out, kind, item, format)?,
        (_, []) if args.names.len() == 1 => {}
        _ => {
            let list = json!({
                "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "" }, "items": items,
            });
            document(&mut out, kind, &list, format)?;
        }
    }
    absent(kind, &missing)
}

fn name_of(item: &Value) -> &str {
    item.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

fn document(out: &mut dyn Write, kind: &Kind, item: &Value, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Name => writeln!(out, "{}/{}", kind.singular, name_of(item))?,
        Format::Yaml => output::yaml(out, item)?,
        Format::Json | Format::Wide => output::json(out, item)?,
    }
    out.flush()?;
    Ok(())
}

fn missing<'a>(args: &GetArgs, found: impl Iterator<Item = &'a str>) -> Vec<String> {
    let found: Vec<&str> = found.collect();
    args.names.iter().filter(|name| !found.contains(&name.as_str())).cloned().collect()
}

fn absent(kind: &Kind, missing: &[String]) -> anyhow::Result<ExitCode> {
    match missing {
        [] => Ok(ExitCode::SUCCESS),
        names => {
            let lines: Vec<String> = names.iter().map(|name| format!("{} \"{name}\" not found", kind.plural)).collect();
            bail!("{}", lines.join("\nerror: "))
        }
    }
}

fn nothing(args: &GetArgs, kind: &Kind) -> io::Result<()> {
    let mut err = io::stderr().lock();
    if kind.namespaced && !args.all_namespaces {
        writeln!(err, "No resources found in {} namespace.", args.namespace)
    } else {
        writeln!(err, "No resources found")
    }
}

/// Removes an object by its path; shared by the verbs that remove.
pub(crate) async fn remove(client: &Client, path: &str) -> anyhow::Result<Value> {
    client.request(Method::DELETE, path, "application/json", empty()).await?.json().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_the_names_kubectl_gives_it() {
        for word in ["pods", "pod", "po"] {
            assert_eq!(kind(word).unwrap().plural, "pods");
        }
        assert!(kind("deployments").unwrap_err().to_string().contains("sources"));
    }
}
