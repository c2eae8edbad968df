//! Printing YAML that every reader of manifests reads alike.
//!
//! A YAML 1.2 printer leaves `y`, `on` or `0o7` without quotes; kubectl, the API server and this
//! crate then read a boolean or a number. Here a text stands without quotes only when it cannot
//! be taken for anything else.

use serde_json::Value;

use crate::yaml::is_plainly_text;

/// A JSON value as a YAML document.
pub(crate) fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(value, 0, &mut out),
        Value::Array(items) if !items.is_empty() => block(value, 0, &mut out),
        scalar => {
            inline(scalar, 0, &mut out);
            out.push('\n');
        }
    }
    out
}

fn indent(depth: usize, out: &mut String) {
    out.extend(std::iter::repeat_n("  ", depth));
}

/// A mapping or a list over lines of its own.
fn block(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| order(key));
            for (at, (key, value)) in entries.into_iter().enumerate() {
                // The first key of a list's item stands behind the `- `.
                if at > 0 || !out.ends_with("- ") {
                    indent(depth, out);
                }
                text(key, out);
                out.push(':');
                below(value, depth, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                indent(depth, out);
                out.push_str("- ");
                match item {
                    Value::Object(map) if !map.is_empty() => block(item, depth + 1, out),
                    _ => {
                        inline(item, depth + 1, out);
                        out.push('\n');
                    }
                }
            }
        }
        _ => {}
    }
}

/// The value of a key.
fn below(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            block(value, depth + 1, out);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            block(value, depth, out);
        }
        scalar => {
            out.push(' ');
            inline(scalar, depth + 1, out);
            out.push('\n');
        }
    }
}

/// What people look for first comes first.
fn order(key: &str) -> (usize, &str) {
    const FIRST: [&str; 5] = ["apiVersion", "kind", "metadata", "name", "spec"];
    let place = FIRST.iter().position(|first| *first == key);
    (place.unwrap_or(FIRST.len()), key)
}

/// A scalar, or an empty or nested collection, on the line that has begun.
fn inline(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::String(string) if string.contains('\n') && is_literal(string) => literal(string, depth, out),
        Value::String(string) => text(string, out),
        // JSON is YAML, as long as its texts are escaped as YAML wants it.
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                flow(item, out);
            }
            out.push(']');
        }
        other => flow(other, out),
    }
}

fn flow(value: &Value, out: &mut String) {
    match value {
        Value::String(string) => quoted(string, out),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                flow(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (at, (key, value)) in map.iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                quoted(key, out);
                out.push_str(": ");
                flow(value, out);
            }
            out.push('}');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
    }
}

fn text(string: &str, out: &mut String) {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '+' | '=' | '@');
    let begins = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/');
    let simple = string.starts_with(begins) && string.chars().all(|c| inner(c) || c == ':' || c == ' ');
    let separated = string.contains(": ") || string.ends_with(':') || string.ends_with(' ');
    if simple && !separated && is_plainly_text(string) {
        out.push_str(string);
    } else {
        quoted(string, out);
    }
}

fn quoted(string: &str, out: &mut String) {
    out.push('"');
    for c in string.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            ' '..='~' => out.push(c),
            // Letters as they are; what YAML forbids or folds as numbers.
            c if c.is_alphanumeric() => out.push(c),
            c if u32::from(c) > 0xffff => out.push_str(&format!("\\U{:08x}", u32::from(c))),
            c => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    out.push('"');
}

/// Whether a text of several lines can stand as a block without quotes and escapes.
fn is_literal(string: &str) -> bool {
    let body = string.strip_suffix('\n').unwrap_or(string);
    !body.is_empty()
        && !body.ends_with('\n')
        && !body.starts_with([' ', '\n', '\t'])
        && string.chars().all(|c| matches!(c, '\n' | '\t' | ' '..='~') || c.is_alphanumeric())
}

fn literal(string: &str, depth: usize, out: &mut String) {
    out.push_str(if string.ends_with('\n') { "|" } else { "|-" });
    for line in string.strip_suffix('\n').unwrap_or(string).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            indent(depth, out);
            out.push_str(line);
        }
    }
}
