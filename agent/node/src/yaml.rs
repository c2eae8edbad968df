//! Writes JSON values as YAML that every reader takes the same way: whatever could be anything but
//! a string is quoted.

use std::fmt::Write;

use serde_json::Value;

/// The value as a YAML document.
pub(crate) fn document(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                pad(indent, out);
                out.push_str(&scalar_text(key));
                out.push(':');
                nested(value, indent, out);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for item in list {
                pad(indent, out);
                out.push('-');
                match item {
                    Value::Object(map) if !map.is_empty() => {
                        let mut inner = String::new();
                        block(item, indent + 2, &mut inner);
                        // The first key stands behind the dash.
                        out.push(' ');
                        out.push_str(inner.get(indent + 2..).unwrap_or_default());
                    }
                    _ => nested(item, indent, out),
                }
            }
        }
        other => {
            pad(indent, out);
            out.push_str(&inline(other));
            out.push('\n');
        }
    }
}

fn nested(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            block(value, indent + 2, out);
        }
        Value::Array(list) if !list.is_empty() => {
            out.push('\n');
            block(value, indent + 2, out);
        }
        other => {
            // Writing to a string does not fail.
            let _ = writeln!(out, " {}", inline(other));
        }
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => scalar_text(text),
        Value::Object(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        other => other.to_string(),
    }
}

/// Plain if it can only be a string, else quoted as JSON, which is YAML too.
fn scalar_text(text: &str) -> String {
    const WORDS: [&str; 10] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan"];
    let plain = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_that_could_be_something_else_are_quoted() {
        let value = json!({
            "kind": "Pod",
            "list": [{"a": "yes", "b": 1}, "0644", [], {}],
            "text": "two\nlines: #1",
            "null": null,
            "on": true,
            "deep": {"x": {"y": ["z"]}},
        });
        let text = document(&value);
        for line in ["kind: Pod", "  - a: \"yes\"", "    b: 1", "  - \"0644\"", "\"null\": null", "\"on\": true"] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.contains(r#"text: "two\nlines: #1""#), "{text}");
    }
}
