//! `image inspect` and `image history`.

use std::io::{self};

use anyhow::Context;
use clap::ValueEnum;
use jiff::Timestamp;
use portreeve_api::age::age;
use portreeve_api::size::size;
use portreeve_api::v1alpha1::{ImageDetails, ImageLayer};
use serde_json::{Map, Value, json};

use super::IMAGES;
use crate::verbs::client::{Client, with_query};
use crate::verbs::output::{self, Columns};

/// Characters of a command that a line of `history` shows.
const SHOWN_COMMAND: usize = 45;

/// How documents are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Document {
    Json,
    Yaml,
}

pub(super) async fn inspect(client: &Client, references: &[String], format: Document) -> anyhow::Result<()> {
    let mut documents = Vec::new();
    for reference in references {
        let (details, configuration) = details(client, reference).await?;
        documents.push(document(&details, configuration));
    }
    let mut out = io::stdout().lock();
    match format {
        Document::Json => output::json(&mut out, &documents),
        Document::Yaml => output::yaml(&mut out, &documents),
    }
}

pub(super) async fn history(
    client: &Client,
    reference: &str,
    whole: bool,
    format: Option<Document>,
) -> anyhow::Result<()> {
    let (details, configuration) = details(client, reference).await?;
    let steps = steps(&configuration, &details.layers);
    let mut out = io::stdout().lock();
    match format {
        Some(Document::Json) => return output::json(&mut out, &steps),
        Some(Document::Yaml) => return output::yaml(&mut out, &steps),
        None => {}
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = steps
        .iter()
        .map(|step| {
            let text = |key: &str| step.get(key).and_then(Value::as_str).unwrap_or_default();
            let created = text("created").parse().map_or_else(|_| "<unknown>".to_owned(), |then| age(then, now));
            let command = text("createdBy");
            let command = match command.char_indices().nth(SHOWN_COMMAND) {
                Some((end, _)) if !whole => format!("{}...", command.get(..end).unwrap_or(command)),
                _ => command.to_owned(),
            };
            let bytes = step.get("sizeBytes").and_then(Value::as_u64).unwrap_or(0);
            vec![created, command, size(bytes), text("comment").to_owned()]
        })
        .collect();
    Ok(Columns::new(["Created", "Created by", "Size", "Comment"], false).print(&mut out, &rows)?)
}

async fn details(client: &Client, reference: &str) -> anyhow::Result<(ImageDetails, Value)> {
    let path = with_query(&format!("{IMAGES}/inspect"), &[("reference", reference)]);
    let details: ImageDetails = client.get(&path).await?;
    let configuration = serde_json::from_str(details.configuration.get());
    let configuration = configuration.with_context(|| format!("reading the configuration of {reference}"))?;
    Ok((details, configuration))
}

/// An image as `docker image inspect` shows it, with podman's additions and the layers as they are here.
fn document(details: &ImageDetails, configuration: Value) -> Value {
    let status = &details.image.status;
    let of = |key: &str| configuration.get(key).cloned().unwrap_or(Value::Null);
    let mut image = Map::new();
    let mut put = |key: &str, value: Value| {
        image.insert(key.to_owned(), value);
    };
    put("Id", json!(status.id));
    put("Digest", json!(details.manifest));
    put("RepoTags", json!(status.references));
    put("RepoDigests", json!(status.repo_digests));
    put("Created", of("created"));
    put("Author", of("author"));
    put("Architecture", of("architecture"));
    put("Variant", of("variant"));
    put("Os", of("os"));
    put("Size", json!(status.size_bytes));
    put("Pinned", json!(status.pinned));
    put("Config", of("config"));
    let diff_ids: Vec<&str> = details.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    put("RootFS", json!({ "Type": "layers", "Layers": diff_ids }));
    let layers = details.layers.iter().map(|layer| {
        json!({
            "DiffId": layer.diff_id,
            "Size": layer.size_bytes,
            "Blob": layer.blob,
            "BlobSize": layer.blob_bytes,
            "BlobKept": layer.kept,
        })
    });
    put("Layers", layers.collect());
    put("History", of("history"));
    image.retain(|_, value| !value.is_null());
    Value::Object(image)
}

/// What was done to make the image, the last step first, each with what it added.
fn steps(configuration: &Value, layers: &[ImageLayer]) -> Vec<Value> {
    let mut sizes = layers.iter().map(|layer| layer.size_bytes);
    let told = configuration.get("history").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut steps: Vec<Value> = Vec::new();
    for entry in told {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
        let empty = entry.get("empty_layer").and_then(Value::as_bool) == Some(true);
        let bytes = if empty { None } else { sizes.next() };
        steps.push(json!({
            "created": text("created"),
            "createdBy": text("created_by"),
            "comment": text("comment"),
            "sizeBytes": bytes.unwrap_or(0),
        }));
    }
    // An image may tell of fewer steps than it has layers, or of none.
    steps.extend(sizes.map(|bytes| json!({ "created": "", "createdBy": "", "comment": "", "sizeBytes": bytes })));
    steps.reverse();
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(size_bytes: u64) -> ImageLayer {
        ImageLayer { size_bytes, ..ImageLayer::default() }
    }

    #[test]
    fn each_step_has_what_it_added_and_layers_nobody_tells_of_are_shown() {
        let told = json!({ "history": [
            { "created": "2026-01-02T03:04:05Z", "created_by": "ADD rootfs" },
            { "created_by": "CMD [\"sh\"]", "empty_layer": true, "comment": "buildkit" },
            { "created_by": "COPY x" },
        ] });
        let steps = steps(&told, &[layer(10), layer(20), layer(30)]);
        let seen: Vec<_> = steps
            .iter()
            .map(|step| (step["createdBy"].as_str().unwrap(), step["sizeBytes"].as_u64().unwrap()))
            .collect();
        assert_eq!(seen, [("", 30), ("COPY x", 20), ("CMD [\"sh\"]", 0), ("ADD rootfs", 10)]);
        assert_eq!(steps[2]["comment"], "buildkit");
        assert_eq!(super::steps(&Value::Null, &[layer(1)]).len(), 1);
    }
}
