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
    /// KIND[,KIND...] [NAME...] or KIND/NAME...; a kind is pods, containers, images, sources, events, nodes, namespaces
    /// or configmaps. A container is named as it is shown, or as POD/CONTAINER
    #[arg(value_name = "KIND [NAME]", required = true)]
    words: Vec<String>,
    /// The namespace
    #[arg(short, long, default_value = "default", value_parser = super::namespace)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    /// The plural, in paths.
    plural: &'static str,
    /// The word in `-o name`.
    singular: &'static str,
    group: &'static str,
    namespaced: bool,
}

/// The suffix of our own kinds where a kind is given with its group.
const OWN_GROUP: &str = ".portreeve.dev";

const fn core(plural: &'static str, singular: &'static str, namespaced: bool) -> Kind {
    Kind { plural, singular, group: "/api/v1", namespaced }
}

const fn own(plural: &'static str, singular: &'static str, namespaced: bool) -> Kind {
    Kind { plural, singular, group: "/apis/portreeve.dev/v1alpha1", namespaced }
}

fn kind(word: &str) -> anyhow::Result<Kind> {
    Ok(match word {
        "pods" | "pod" | "po" => core("pods", "pod", true),
        "events" | "event" | "ev" => core("events", "event", true),
        "configmaps" | "configmap" | "cm" => core("configmaps", "configmap", true),
        "nodes" | "node" | "no" => core("nodes", "node", false),
        "namespaces" | "namespace" | "ns" => core("namespaces", "namespace", false),
        other => match other.strip_suffix(OWN_GROUP).unwrap_or(other) {
            "containers" | "container" => own("containers", "container.portreeve.dev", true),
            "images" | "image" => own("images", "image.portreeve.dev", false),
            "sources" | "source" => own("sources", "source.portreeve.dev", false),
            _ => bail!(
                "there is no kind {other:?} here: it may be pods, containers, images, sources, events, nodes, namespaces or configmaps"
            ),
        },
    })
}

/// Objects of one kind: those of these names, or all.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    kind: Kind,
    names: Vec<String>,
}

/// Reads `KIND[,KIND] [NAME...]` or `KIND/NAME...`, as kubectl does.
fn asked(words: &[String]) -> anyhow::Result<Vec<Asked>> {
    let Some((first, names)) = words.split_first() else { bail!("which kind? give one, e.g. pods") };
    if !first.contains('/') {
        let kinds = first.split(',').map(kind).collect::<anyhow::Result<Vec<Kind>>>()?;
        // Names of containers and images have slashes of their own.
        let with_kind = |name: &&String| name.split_once('/').is_some_and(|(word, _)| kind(word).is_ok());
        if let Some(name) = names.iter().find(with_kind).filter(|_| kinds.iter().all(|kind| kind.group == "/api/v1")) {
            bail!("{name} names its kind already: leave {first} out");
        }
        return Ok(kinds.into_iter().map(|kind| Asked { kind, names: names.to_vec() }).collect());
    }
    let mut all: Vec<Asked> = Vec::new();
    for word in words {
        let Some((word, name)) = word.split_once('/').filter(|(_, name)| !name.is_empty()) else {
            bail!("{word:?} is not KIND/NAME, as the first is");
        };
        let kind = kind(word)?;
        match all.iter_mut().find(|asked| asked.kind == kind) {
            Some(asked) => asked.names.push(name.to_owned()),
            None => all.push(Asked { kind, names: vec![name.to_owned()] }),
        }
    }
    Ok(all)
}

impl Asked {
    fn path(&self, args: &GetArgs) -> String {
        let Kind { group, plural, .. } = self.kind;
        if self.kind.namespaced && !args.all_namespaces {
            format!("{group}/namespaces/{}/{plural}", escape(&args.namespace))
        } else {
            format!("{group}/{plural}")
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| self.means(wanted, name))
    }

    /// Whether an object is called so. A container is `pod.container` to the agent; the table shows the last part.
    fn means(&self, wanted: &str, name: &str) -> bool {
        let as_container = || {
            let (pod, container) = name.rsplit_once('.')?;
            Some(wanted.rsplit_once('/').map_or(wanted == container, |both| both == (pod, container)))
        };
        wanted == name || (self.kind.plural == "containers" && as_container() == Some(true))
    }

    /// The complaints about what is not there.
    fn absent<'a>(&self, found: impl Iterator<Item = &'a str>) -> Vec<String> {
        let found: Vec<&str> = found.collect();
        let is_absent = |wanted: &&String| !found.iter().any(|name| self.means(wanted, name));
        self.names.iter().filter(is_absent).map(|name| format!("{} \"{name}\" not found", self.kind.plural)).collect()
    }
}

impl GetArgs {
    fn query(&self) -> Vec<(&str, &str)> {
        let selectors = [("labelSelector", &self.selector), ("fieldSelector", &self.field_selector)];
        selectors.into_iter().filter_map(|(key, selector)| Some((key, selector.as_deref()?))).collect()
    }
}

pub(crate) async fn run(client: &Client, args: GetArgs) -> anyhow::Result<ExitCode> {
    let asked = asked(&args.words)?;
    if args.watch && asked.len() > 1 {
        bail!("-w follows one kind at a time: give one");
    }
    if args.all_namespaces && asked.iter().any(|asked| !asked.names.is_empty()) {
        bail!("an object cannot be named across all namespaces: leave -A or the names out");
    }
    let mut out = io::stdout().lock();
    let absent = match args.output {
        None | Some(Format::Wide) => tables(client, &args, &asked, &mut out).await?,
        Some(format) => documents(client, &args, &asked, format, &mut out).await?,
    };
    if absent.is_empty() { Ok(ExitCode::SUCCESS) } else { bail!("{}", absent.join("\nerror: ")) }
}

/// Prints a table per kind; the complaints about what is not there.
async fn tables(client: &Client, args: &GetArgs, asked: &[Asked], out: &mut dyn Write) -> anyhow::Result<Vec<String>> {
    let (mut absent, mut any) = (Vec::new(), false);
    for one in asked {
        let table: Table = client.get_as(&with_query(&one.path(args), &args.query()), TABLE).await?;
        absent.extend(one.absent(table.rows.iter().map(|row| row.meta("name"))));
        let mut shown = Shown::new(args, one, &table, asked.len() > 1);
        let rows = shown.rows(&table);
        if any && !rows.is_empty() {
            writeln!(out)?;
        }
        any |= !rows.is_empty() || !one.names.is_empty();
        shown.print(out, &rows)?;
        if one.kind.plural == "sources" {
            problems(client, one, out).await?;
        }
        if args.watch {
            if !any {
                nothing(args, asked)?;
            }
            follow_table(client, args, one, table.metadata.resource_version, &mut shown, out).await?;
            return Ok(Vec::new());
        }
    }
    if !any {
        nothing(args, asked)?;
    }
    Ok(absent)
}

/// Goes on with every change of a table after `version`, until the agent ends.
async fn follow_table(
    client: &Client,
    args: &GetArgs,
    asked: &Asked,
    mut version: String,
    shown: &mut Shown<'_>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let path = asked.path(args);
    loop {
        match each_row(client, args, asked, &version, shown, out).await {
            Err(error) if has_expired(&error) => writeln!(io::stderr(), "{BEHIND}")?,
            ended => return ended,
        }
        let table: Table = client.get_as(&with_query(&path, &args.query()), TABLE).await?;
        shown.print(out, &shown.rows(&table))?;
        version = table.metadata.resource_version;
    }
}

/// Prints the row of every change after `version`, until the agent ends.
async fn each_row(
    client: &Client,
    args: &GetArgs,
    asked: &Asked,
    version: &str,
    shown: &mut Shown<'_>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut changes = follow(client, &asked.path(args), &args.query(), version, TABLE).await?;
    while let Some(change) = changes.next().await? {
        let rows = shown.rows(&serde_json::from_value(change.object)?);
        shown.print(out, &rows)?;
        if asked.kind.plural == "sources" && !rows.is_empty() {
            problems(client, asked, out).await?;
        }
    }
    Ok(())
}

/// A table of one kind as it is shown.
struct Shown<'a> {
    asked: &'a Asked,
    /// Which of the agent's columns.
    columns: Vec<bool>,
    /// The column that is prefixed with the kind, where several kinds are shown.
    name: Option<usize>,
    namespaces: bool,
    print: Columns,
}

impl<'a> Shown<'a> {
    fn new(args: &GetArgs, asked: &'a Asked, table: &Table, several: bool) -> Self {
        let definitions = table.column_definitions.as_deref().unwrap_or_default();
        let wide = args.output == Some(Format::Wide);
        let columns: Vec<bool> = definitions.iter().map(|column| wide || column.priority == 0).collect();
        let namespaces = args.all_namespaces && asked.kind.namespaced;
        let headers = definitions.iter().zip(&columns).filter(|(_, shown)| **shown).map(|(column, _)| &*column.name);
        let print = Columns::new(namespaces.then_some("Namespace").into_iter().chain(headers), args.no_headers);
        let name = definitions.iter().position(|column| column.name == "Name").filter(|_| several);
        Shown { asked, columns, name, namespaces, print }
    }

    fn rows(&self, table: &Table) -> Vec<Vec<String>> {
        table.rows.iter().filter(|row| self.asked.wants(row.meta("name"))).map(|row| self.row(row)).collect()
    }

    fn row(&self, row: &TableRow) -> Vec<String> {
        let cells = row.cells.iter().enumerate().zip(&self.columns).filter(|(_, shown)| **shown);
        let text = |(index, value): (usize, &Value)| match self.name {
            Some(name) if name == index => format!("{}/{}", self.asked.kind.singular, cell(value)),
            _ => cell(value),
        };
        let namespace = self.namespaces.then(|| row.meta("namespace").to_owned());
        namespace.into_iter().chain(cells.map(|(one, _)| text(one))).collect()
    }

    fn print(&mut self, out: &mut dyn Write, rows: &[Vec<String>]) -> anyhow::Result<()> {
        if !rows.is_empty() {
            self.print.print(out, rows)?;
        }
        Ok(())
    }
}

/// Below the sources, what is wrong in them: a table has no room for that.
async fn problems(client: &Client, asked: &Asked, out: &mut dyn Write) -> anyhow::Result<()> {
    use portreeve_api::v1alpha1::{ObjectList, Source};
    let sources: ObjectList<Source> = client.get("/apis/portreeve.dev/v1alpha1/sources").await?;
    for source in sources.items.iter().filter(|source| asked.wants(&source.metadata.name)) {
        if let Some(reason) = &source.status.reason {
            writeln!(out, "{}: {reason}", source.status.path.display())?;
        }
        for problem in source.status.files.iter().flat_map(|file| &file.problems) {
            writeln!(out, "{problem}")?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Prints objects as documents; the complaints about what is not there.
async fn documents(
    client: &Client,
    args: &GetArgs,
    asked: &[Asked],
    format: Format,
    out: &mut dyn Write,
) -> anyhow::Result<Vec<String>> {
    let mut print = Documents { out, format, any: false };
    let (mut absent, mut all) = (Vec::new(), Vec::new());
    for one in asked {
        let (items, version) = listed(client, args, one).await?;
        if args.watch {
            follow_documents(client, args, one, (items, version), &mut print).await?;
            return Ok(Vec::new());
        }
        absent.extend(one.absent(items.iter().map(name_of)));
        all.extend(items.into_iter().map(|item| (one.kind, item)));
    }
    let named: usize = asked.iter().map(|asked| asked.names.len()).sum();
    match (format, all.as_slice()) {
        (Format::Name, all) => all.iter().try_for_each(|(kind, item)| print.one(*kind, item))?,
        (_, [(kind, item)]) if named == 1 => print.one(*kind, item)?,
        (_, []) if named == 1 => {}
        (_, all) => {
            let items: Vec<&Value> = all.iter().map(|(_, item)| item).collect();
            let list = json!({
                "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "" }, "items": items,
            });
            print.document(&list)?;
        }
    }
    Ok(absent)
}

/// What is asked for, and the version that it is of.
async fn listed(client: &Client, args: &GetArgs, asked: &Asked) -> anyhow::Result<(Vec<Value>, String)> {
    let list: Value = client.get(&with_query(&asked.path(args), &args.query())).await?;
    let version = list.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut items = list.pointer("/items").and_then(Value::as_array).cloned().unwrap_or_default();
    items.retain(|item| asked.wants(name_of(item)));
    Ok((items, version))
}

/// Prints a list and goes on with every change, until the agent ends.
async fn follow_documents(
    client: &Client,
    args: &GetArgs,
    asked: &Asked,
    mut list: (Vec<Value>, String),
    print: &mut Documents<'_>,
) -> anyhow::Result<()> {
    loop {
        let (items, version) = &list;
        items.iter().try_for_each(|item| print.one(asked.kind, item))?;
        match each_document(client, args, asked, version, print).await {
            Err(error) if has_expired(&error) => writeln!(io::stderr(), "{BEHIND}")?,
            ended => return ended,
        }
        list = listed(client, args, asked).await?;
    }
}

/// Prints the object of every change after `version`, until the agent ends.
async fn each_document(
    client: &Client,
    args: &GetArgs,
    asked: &Asked,
    version: &str,
    print: &mut Documents<'_>,
) -> anyhow::Result<()> {
    let mut changes = follow(client, &asked.path(args), &args.query(), version, "application/json").await?;
    while let Some(change) = changes.next().await? {
        if asked.wants(name_of(&change.object)) {
            print.one(asked.kind, &change.object)?;
        }
    }
    Ok(())
}

fn name_of(item: &Value) -> &str {
    item.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

/// Documents one after the other.
struct Documents<'a> {
    out: &'a mut dyn Write,
    format: Format,
    any: bool,
}

impl Documents<'_> {
    fn one(&mut self, kind: Kind, item: &Value) -> anyhow::Result<()> {
        if self.format != Format::Name {
            return self.document(item);
        }
        writeln!(self.out, "{}/{}", kind.singular, name_of(item))?;
        self.out.flush()?;
        Ok(())
    }

    fn document(&mut self, document: &Value) -> anyhow::Result<()> {
        if self.format != Format::Yaml {
            return output::json(self.out, document);
        }
        // Without it what follows would belong to the document before.
        if std::mem::replace(&mut self.any, true) {
            writeln!(self.out, "---")?;
        }
        output::yaml(self.out, document)
    }
}

fn nothing(args: &GetArgs, asked: &[Asked]) -> io::Result<()> {
    let mut err = io::stderr().lock();
    if asked.iter().all(|asked| asked.kind.namespaced) && !args.all_namespaces {
        writeln!(err, "No resources found in {} namespace.", args.namespace)
    } else {
        writeln!(err, "No resources found")
    }
}

/// Removes an object by its path; shared by the verbs that remove.
pub(crate) async fn remove(client: &Client, path: &str) -> anyhow::Result<Value> {
    // The files of a large image take a while.
    client.request_long(Method::DELETE, path, "application/json", empty()).await?.json().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str], output: Format) -> GetArgs {
        GetArgs {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            namespace: "default".into(),
            all_namespaces: false,
            output: Some(output),
            watch: true,
            selector: None,
            field_selector: None,
            no_headers: false,
        }
    }

    #[tokio::test]
    async fn each_document_of_a_watch_is_one_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let pod = |name: &str| json!({ "metadata": { "name": name } });
        let list = json!({ "metadata": { "resourceVersion": "1" }, "items": [pod("a"), pod("b")] });
        let change = json!({ "type": "MODIFIED", "object": pod("a") });
        let answers = [("/pods ", 200, list.to_string()), ("resourceVersion=1 ", 200, format!("{change}\n"))];
        let (args, client, mut out) = (args(&["pods"], Format::Yaml), Client::new(socket, None), Vec::new());
        let asked = asked(&args.words).unwrap();
        let (printed, ()) =
            tokio::join!(documents(&client, &args, &asked, Format::Yaml, &mut out), serve(listener, &answers));
        printed.unwrap();
        let text = String::from_utf8(out).unwrap();
        let names: Vec<Value> = serde_yaml::Deserializer::from_str(&text)
            .map(|one| serde::Deserialize::deserialize(one).map(|one: Value| one["metadata"]["name"].clone()).unwrap())
            .collect();
        assert_eq!(names, ["a", "b", "a"], "{text}");
    }

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
        let args = args(&["pods"], Format::Name);
        let client = Client::new(socket, None);
        let mut out = Vec::new();
        let asked = asked(&args.words).unwrap();
        let (printed, ()) =
            tokio::join!(documents(&client, &args, &asked, Format::Name, &mut out), serve(listener, &answers));
        printed.unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "pod/a\npod/b\npod/c\npod/d\npod/e\n");
    }

    #[test]
    fn a_kind_has_the_names_kubectl_gives_it() {
        for word in ["pods", "pod", "po"] {
            assert_eq!(kind(word).unwrap().plural, "pods");
        }
        assert_eq!(kind("image.portreeve.dev").unwrap().plural, "images");
        assert!(kind("deployments").unwrap_err().to_string().contains("sources"));
        assert!(kind("pods.portreeve.dev").is_err());
    }

    #[test]
    fn objects_are_asked_for_in_kubectls_ways() {
        let ask = |words: &[&str]| -> Result<Vec<(&'static str, Vec<String>)>, String> {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let all = asked(&words).map_err(|error| error.to_string())?;
            Ok(all.into_iter().map(|one| (one.kind.plural, one.names)).collect())
        };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (words, expected) in [
            (&["pods"][..], vec![("pods", names(&[]))]),
            (&["po", "a", "b"], vec![("pods", names(&["a", "b"]))]),
            (&["pod/a", "pods/b"], vec![("pods", names(&["a", "b"]))]),
            (&["pod/a", "cm/b", "po/c"], vec![("pods", names(&["a", "c"])), ("configmaps", names(&["b"]))]),
            (&["pods,containers"], vec![("pods", names(&[])), ("containers", names(&[]))]),
            (&["pods,cm", "a"], vec![("pods", names(&["a"])), ("configmaps", names(&["a"]))]),
            (&["container", "a/main"], vec![("containers", names(&["a/main"]))]),
            (&["container.portreeve.dev/a.main"], vec![("containers", names(&["a.main"]))]),
            (&["images", "registry/image:1"], vec![("images", names(&["registry/image:1"]))]),
        ] {
            assert_eq!(ask(words), Ok(expected), "{words:?}");
        }
        for words in [&["pods", "pod/a"][..], &["pod/a", "b"], &["pod/"], &["pods,"], &["pods,none"], &["none/a"]] {
            assert!(ask(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn a_container_is_called_as_it_is_shown_or_with_its_pod() {
        let containers = |name: &str| Asked { kind: kind("containers").unwrap(), names: vec![name.to_owned()] };
        for name in ["main", "web.1/main", "web.1.main"] {
            assert!(containers(name).wants("web.1.main"), "{name}");
        }
        for name in ["web.1", "other/main", "1.main", "ain"] {
            assert!(!containers(name).wants("web.1.main"), "{name}");
        }
        let pods = Asked { kind: kind("pods").unwrap(), names: vec!["main".to_owned()] };
        assert!(!pods.wants("web.main"));
    }
}
