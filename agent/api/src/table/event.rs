//! The line of an event.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};

use super::{Column, column, wide};
use crate::age::age;

pub(super) const COLUMNS: &[Column] = &[
    column("Last Seen"),
    column("Type"),
    column("Reason"),
    column("Object"),
    wide("Subobject"),
    wide("Source"),
    column("Message"),
    wide("First Seen"),
    wide("Count"),
    wide("Name"),
];

pub(super) fn cells(event: &Event, now: Timestamp) -> Vec<Value> {
    let first =
        event.first_timestamp.as_ref().map(|time| time.0).or_else(|| event.event_time.as_ref().map(|time| time.0));
    let last = event.last_timestamp.as_ref().map(|time| time.0).or(first);
    let seen = |moment: Option<Timestamp>| moment.map_or_else(|| "<unknown>".to_owned(), |at| age(at, now));
    let object = &event.involved_object;
    let kind = object.kind.as_deref().unwrap_or_default().to_lowercase();
    let source = match &event.source {
        Some(source) => {
            [source.component.as_deref(), source.host.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
        None => event.reporting_component.clone().unwrap_or_default(),
    };
    vec![
        json!(seen(last)),
        json!(event.type_),
        json!(event.reason),
        json!(format!("{kind}/{}", object.name.as_deref().unwrap_or_default())),
        json!(object.field_path.as_deref().unwrap_or_default()),
        json!(source),
        json!(event.message.as_deref().unwrap_or_default().trim()),
        json!(seen(first)),
        json!(event.count.unwrap_or(1)),
        json!(event.metadata.name),
    ]
}
