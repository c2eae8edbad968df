//! Tables made here, as kubectl asks for with `Accept: application/json;as=Table`.
//!
//! One place decides what a column says, for every client: `portreeve get` prints these too.

mod event;
mod pod;

use http::HeaderMap;
use http::header::ACCEPT;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Serialize;
use serde_json::{Value, json};

use crate::age::age;
use crate::failure::Failure;
use crate::params::Params;
use crate::size::size;
use crate::v1alpha1::{Container, Image, Source};

/// One column; those of priority 1 show in wide output only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    name: &'static str,
    wide: bool,
    format: &'static str,
}

const fn column(name: &'static str) -> Column {
    Column { name, wide: false, format: "" }
}

const fn wide(name: &'static str) -> Column {
    Column { name, wide: true, format: "" }
}

const NAME: Column = Column { name: "Name", wide: false, format: "name" };

/// What has a row in a table.
pub(crate) trait Row: Serialize {
    /// The columns.
    const COLUMNS: &'static [Column];
    /// One cell per column.
    fn cells(&self, now: Timestamp) -> Vec<Value>;
    /// The object's metadata.
    fn row_metadata(&self) -> Value;
}

/// The form a client wants an answer in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The objects themselves.
    Objects,
    /// A table, with as much of each object as asked for.
    Table(Include),
}

/// How much of each object goes into its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    /// Nothing.
    Nothing,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

impl Form {
    /// Reads `Accept` and `includeObject`; the first form that is known wins.
    pub(crate) fn of(headers: &HeaderMap, params: &Params) -> Result<Form, Failure> {
        let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
        for alternative in accept.split(',') {
            let mut parts = alternative.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            if !matches!(kind, "" | "*/*" | "application/*" | "application/json") {
                continue;
            }
            let parts: Vec<&str> = parts.collect();
            match parts.iter().find_map(|part| part.strip_prefix("as=")) {
                None => return Ok(Form::Objects),
                Some("Table") if parts.contains(&"g=meta.k8s.io") && parts.contains(&"v=v1") => {
                    return Ok(Form::Table(match params.get("includeObject") {
                        Some("None") => Include::Nothing,
                        Some("Object") => Include::Object,
                        _ => Include::Metadata,
                    }));
                }
                Some(_) => {}
            }
        }
        Err(Failure::not_acceptable())
    }
}

/// A table of these objects; watches send the columns only once.
pub(crate) fn table<'a, T: Row + 'a>(
    items: impl IntoIterator<Item = &'a T>,
    include: Include,
    with_columns: bool,
    metadata: &Value,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = items
        .into_iter()
        .map(|item| {
            let mut row = json!({ "cells": item.cells(now) });
            let object = match include {
                Include::Nothing => None,
                Include::Metadata => Some(json!({
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": item.row_metadata(),
                })),
                Include::Object => serde_json::to_value(item).ok(),
            };
            if let (Some(object), Some(fields)) = (object, row.as_object_mut()) {
                fields.insert("object".to_owned(), object);
            }
            row
        })
        .collect();
    let columns = if with_columns { columns(T::COLUMNS) } else { Value::Null };
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

fn columns(columns: &[Column]) -> Value {
    columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": "string",
                "format": column.format,
                "description": "",
                "priority": i32::from(column.wide),
            })
        })
        .collect()
}

fn metadata(meta: &ObjectMeta) -> Value {
    serde_json::to_value(meta).unwrap_or_default()
}

/// The age of what was made at `then`, or kubectl's word for not knowing.
fn age_of(then: Option<&Time>, now: Timestamp) -> String {
    then.map_or_else(|| "<unknown>".to_owned(), |then| age(then.0, now))
}

fn or_none(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("<none>").to_owned()
}

impl Row for Pod {
    const COLUMNS: &'static [Column] = pod::COLUMNS;

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        pod::cells(self, now)
    }

    fn row_metadata(&self) -> Value {
        metadata(&self.metadata)
    }
}

impl Row for Event {
    const COLUMNS: &'static [Column] = event::COLUMNS;

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        event::cells(self, now)
    }

    fn row_metadata(&self) -> Value {
        metadata(&self.metadata)
    }
}

impl Row for ConfigMap {
    const COLUMNS: &'static [Column] = &[NAME, column("Data"), column("Age")];

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let keys =
            self.data.as_ref().map_or(0, |data| data.len()) + self.binary_data.as_ref().map_or(0, |data| data.len());
        let age = age_of(self.metadata.creation_timestamp.as_ref(), now);
        vec![json!(self.metadata.name), json!(keys), json!(age)]
    }

    fn row_metadata(&self) -> Value {
        metadata(&self.metadata)
    }
}

impl Row for Namespace {
    const COLUMNS: &'static [Column] = &[NAME, column("Status"), column("Age")];

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let phase = self.status.as_ref().and_then(|status| status.phase.as_deref());
        let age = age_of(self.metadata.creation_timestamp.as_ref(), now);
        vec![json!(self.metadata.name), json!(phase), json!(age)]
    }

    fn row_metadata(&self) -> Value {
        metadata(&self.metadata)
    }
}

impl Row for Node {
    const COLUMNS: &'static [Column] = &[
        NAME,
        column("Status"),
        column("Roles"),
        column("Age"),
        column("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ];

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let status = self.status.clone().unwrap_or_default();
        let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
        let mut word = match ready {
            Some(condition) if condition.status == "True" => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        }
        .to_owned();
        if self.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
            word.push_str(",SchedulingDisabled");
        }
        let address = |kind: &str| {
            or_none(
                status
                    .addresses
                    .iter()
                    .flatten()
                    .find(|address| address.type_ == kind)
                    .map(|address| address.address.as_str()),
            )
        };
        let system = status.node_info.clone().unwrap_or_default();
        let age = age_of(self.metadata.creation_timestamp.as_ref(), now);
        [
            self.metadata.name.clone().unwrap_or_default(),
            word,
            "<none>".to_owned(),
            age,
            system.kubelet_version,
            address("InternalIP"),
            address("ExternalIP"),
            system.os_image,
            system.kernel_version,
            system.container_runtime_version,
        ]
        .into_iter()
        .map(Value::String)
        .collect()
    }

    fn row_metadata(&self) -> Value {
        metadata(&self.metadata)
    }
}

impl Row for Container {
    const COLUMNS: &'static [Column] = &[
        NAME,
        column("Pod"),
        column("Ready"),
        column("Status"),
        column("Restarts"),
        column("Age"),
        column("Image"),
        wide("Role"),
        wide("Container-ID"),
        wide("Image-ID"),
    ];

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let view = &self.status;
        vec![
            json!(view.name),
            json!(view.pod),
            json!(view.ready.to_string()),
            json!(view.state),
            json!(view.restarts),
            json!(view.since.map_or_else(|| "<unknown>".to_owned(), |since| age(since, now))),
            json!(view.image),
            json!(view.role),
            json!(or_none(Some(&view.container_id))),
            json!(or_none(Some(&view.image_id))),
        ]
    }

    fn row_metadata(&self) -> Value {
        json!(self.metadata)
    }
}

impl Row for Image {
    const COLUMNS: &'static [Column] =
        &[NAME, column("ID"), column("Size"), column("Age"), wide("Digest"), wide("Pinned")];

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let id = self.status.id.strip_prefix("sha256:").unwrap_or(&self.status.id);
        let created = self.metadata.creation_timestamp;
        vec![
            json!(self.metadata.name),
            json!(id.chars().take(12).collect::<String>()),
            json!(size(self.status.size_bytes)),
            json!(created.map_or_else(|| "<unknown>".to_owned(), |created| age(created, now))),
            json!(or_none(self.status.repo_digests.first().map(String::as_str))),
            json!(self.status.pinned.to_string()),
        ]
    }

    fn row_metadata(&self) -> Value {
        json!(self.metadata)
    }
}

impl Row for Source {
    const COLUMNS: &'static [Column] = &[
        NAME,
        column("State"),
        column("Files"),
        column("Objects"),
        column("Errors"),
        column("Warnings"),
        column("Held-Back"),
        column("Last-Read"),
        wide("Path"),
        wide("Reason"),
    ];

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let report = &self.status;
        vec![
            json!(report.name),
            json!(format!("{:?}", report.state)),
            json!(report.files.len()),
            json!(report.objects),
            json!(report.errors),
            json!(report.warnings),
            json!(report.held_back),
            json!(report.last_read.map_or_else(|| "<never>".to_owned(), |read| age(read, now))),
            json!(report.path),
            json!(or_none(report.reason.as_deref())),
        ]
    }

    fn row_metadata(&self) -> Value {
        json!(self.metadata)
    }
}

#[cfg(test)]
mod tests;
