//! `get`: lists. The columns are the agent's; what is done here is their print.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, TABLE, empty, escape, with_query};
use super::output::{self, Columns, Table, TableRow, cell};
use super::watch::{follow, has_expired};

/// Said before a list that was followed is taken again.
const BEHIND: &str = "the list changed faster than it was read, here it is anew:";

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
    let mut out = io::stdout().lock();
    match args.output {
        None | Some(Format::Wide) => tables(client, &args, &kind, &mut out).await,
        Some(format) => documents(client, &args, &kind, format, &mut out).await,
    }
}

async fn tables(client: &Client, args: &GetArgs, kind: &Kind, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let path = args.path(kind);
    let wide = args.output == Some(Format::Wide);
    let named = args.with_namespace(kind);
    let mut columns = None;
    loop {
        let table: Table = client.get_as(&with_query(&path, &args.query(kind)), TABLE).await?;
        let definitions = table.column_definitions.clone().unwrap_or_default();
        let shown: Vec<bool> = definitions.iter().map(|column| wide || column.priority == 0).collect();
        let columns = columns.get_or_insert_with(|| {
            let shown = definitions.iter().zip(&shown).filter(|(_, shown)| **shown).map(|(column, _)| &*column.name);
            Columns::new(named.then_some("Namespace").into_iter().chain(shown), args.no_headers)
        });
        let line = |row: &TableRow| -> Vec<String> {
            let cells = row.cells.iter().zip(&shown).filter(|(_, shown)| **shown).map(|(value, _)| cell(value));
            named.then(|| row.meta("namespace").to_owned()).into_iter().chain(cells).collect()
        };
        let lines = |table: &Table| -> Vec<Vec<String>> {
            table.rows.iter().filter(|row| args.wanted(row.meta("name"))).map(line).collect()
        };
        let found = lines(&table);
        if found.is_empty() && args.names.is_empty() {
            nothing(args, kind)?;
        } else if !found.is_empty() {
            columns.print(out, &found)?;
        }
        if kind.plural == "sources" {
            problems(client, args, out).await?;
        }
        if !args.watch {
            return absent(kind, &missing(args, table.rows.iter().map(|row| row.meta("name"))));
        }
        let show = |change: Value| -> anyhow::Result<()> {
            let rows = lines(&serde_json::from_value(change)?);
            if !rows.is_empty() {
                columns.print(out, &rows)?;
            }
            Ok(())
        };
        let version = &table.metadata.resource_version;
        match each_change(client, &path, &args.query(kind), version, TABLE, show).await {
            Err(error) if has_expired(&error) => writeln!(io::stderr(), "{BEHIND}")?,
            ended => return ended.map(|()| ExitCode::SUCCESS),
        }
    }
}

/// Hands each change after `version` to `show`, until the agent ends.
async fn each_change(
    client: &Client,
    path: &str,
    query: &[(&str, &str)],
    version: &str,
    accept: &str,
    mut show: impl FnMut(Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut changes = follow(client, path, query, version, accept).await?;
    while let Some(change) = changes.next().await? {
        show(change.object)?;
    }
    Ok(())
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

async fn documents(
    client: &Client,
    args: &GetArgs,
    kind: &Kind,
    format: Format,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let path = args.path(kind);
    loop {
        let list: Value = client.get(&with_query(&path, &args.query(kind))).await?;
        let mut items = list.pointer("/items").and_then(Value::as_array).cloned().unwrap_or_default();
        items.retain(|item| args.wanted(name_of(item)));
        if args.watch {
            items.iter().try_for_each(|item| document(out, kind, item, format))?;
            let version = list.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
            let show = |object: Value| {
                if args.wanted(name_of(&object)) { document(out, kind, &object, format) } else { Ok(()) }
            };
            match each_change(client, &path, &args.query(kind), version, "application/json", show).await {
                Err(error) if has_expired(&error) => writeln!(io::stderr(), "{BEHIND}")?,
                ended => return ended.map(|()| ExitCode::SUCCESS),
            }
            continue;
        }
        let missing = missing(args, items.iter().map(name_of));
        match (format, items.as_slice()) {
            (Format::Name, items) => items.iter().try_for_each(|item| document(out, kind, item, format))?,
            (_, [item]) if args.names.len() == 1 => document(out, kind, item, format)?,
            (_, []) if args.names.len() == 1 => {}
            _ => {
                let list = json!({
                    "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "" }, "items": items,
                });
                document(out, kind, &list, format)?;
            }
        }
        return absent(kind, &missing);
    }
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

    /// Answers one request after the other: what its path must hold, the code, the body.
    async fn serve(listener: tokio::net::UnixListener, answers: &[(&str, u16, String)]) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for (wanted, code, body) in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            assert!(request.lines().next().unwrap().contains(wanted), "{wanted}: {request}");
            let head = format!("HTTP/1.1 {code} x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all((head + body).as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_watch_that_fell_behind_lists_again() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let pod = |name: &str| json!({ "metadata": { "name": name } });
        let list = |version: &str, name: &str| {
            json!({ "metadata": { "resourceVersion": version }, "items": [pod(name)] }).to_string()
        };
        let expired = json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" });
        let lines = |lines: &[Value]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        let answers = [
            ("/pods ", 200, list("1", "a")),
            (
                "resourceVersion=1 ",
                200,
                lines(&[
                    json!({ "type": "ADDED", "object": pod("b") }),
                    json!({ "type": "ERROR", "object": expired.clone() }),
                ]),
            ),
            ("/pods ", 200, list("7", "c")),
            ("resourceVersion=7 ", 410, expired.to_string()),
            ("/pods ", 200, list("9", "d")),
            ("resourceVersion=9 ", 200, lines(&[json!({ "type": "MODIFIED", "object": pod("e") })])),
        ];
        let args = GetArgs {
            kind: "pods".into(),
            names: Vec::new(),
            namespace: "default".into(),
            all_namespaces: false,
            output: Some(Format::Name),
            watch: true,
            selector: None,
            field_selector: None,
            no_headers: false,
        };
        let client = Client::new(socket);
        let mut out = Vec::new();
        let kind = kind("pods").unwrap();
        let (printed, ()) =
            tokio::join!(documents(&client, &args, &kind, Format::Name, &mut out), serve(listener, &answers));
        printed.unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "pod/a\npod/b\npod/c\npod/d\npod/e\n");
    }

    #[test]
    fn a_kind_has_the_names_kubectl_gives_it() {
        for word in ["pods", "pod", "po"] {
            assert_eq!(kind(word).unwrap().plural, "pods");
        }
        assert!(kind("deployments").unwrap_err().to_string().contains("sources"));
    }
}
