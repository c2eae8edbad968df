//! Validation: the API server's rules, with its reasons and its field paths.
//!
//! Source: Kubernetes `pkg/apis/core/validation` and `apimachinery/pkg/api/validation`, at the
//! default feature gates of 1.36. Rules are grouped as there; the messages are our own.

mod container;
mod environment;
mod go_json;
mod hosts;
mod images;
mod metadata;
mod names;
mod objects;
mod pod;
mod ports;
mod probes;
mod resources;
mod scheduling;
mod security;
mod storage;
mod volumes;
mod windows;

pub(crate) use objects::{config_map, secret};
pub(crate) use pod::pod;

/// Whether an optional text says something.
fn given(text: Option<&String>) -> Option<&str> {
    text.map(String::as_str).filter(|text| !text.is_empty())
}
