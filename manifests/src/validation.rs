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

/// Whether a text can be the key of a label: a name, below a DNS subdomain or not.
///
/// # Errors
/// What is wrong with it.
pub fn check_label_key(text: &str) -> Result<(), &'static str> {
    names::qualified(text)
}

/// Whether a text can be the value of a label.
///
/// # Errors
/// What is wrong with it.
pub fn check_label_value(text: &str) -> Result<(), &'static str> {
    names::label_value(text)
}

/// Whether a text can be the name of what Kubernetes names by a DNS label (RFC 1123): a namespace, a runtime handler.
///
/// # Errors
/// What is wrong with it.
pub fn check_label(text: &str) -> Result<(), &'static str> {
    names::label(text)
}

/// Whether a text can be the name of what Kubernetes names by a DNS subdomain (RFC 1123): a node, a pod.
///
/// # Errors
/// What is wrong with it.
pub fn check_subdomain(text: &str) -> Result<(), &'static str> {
    names::subdomain(text)
}

/// Whether an optional text says something.
fn given(text: Option<&String>) -> Option<&str> {
    text.map(String::as_str).filter(|text| !text.is_empty())
}
