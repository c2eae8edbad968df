//! JSON inside of values, as Go's `encoding/json` reads it.
//!
//! It is more lenient than `serde_json`: broken UTF-8 and lone surrogates in texts pass, names of
//! fields match in any case, and nesting goes down to 10,000.

use k8s_openapi::api::core::v1::Toleration;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

/// Go's own limit of nesting.
const DEEPEST: usize = 10_000;

/// Says whether the bytes are a JSON object, or `null`; the message does not show what they say.
pub(super) fn object(bytes: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(bytes);
    // Reading past everything neither recurses nor looks into texts.
    serde_json::from_str::<IgnoredAny>(&text)
        .map_err(|error| format!("is no JSON (line {}, column {} of it)", error.line(), error.column()))?;
    let body = text.trim_start();
    if !body.starts_with('{') && !body.starts_with("null") {
        return Err("is no JSON object".to_owned());
    }
    within_limits(&text)
}

/// What is good JSON otherwise: its depth, and the size of its numbers.
fn within_limits(text: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    let mut rest = text.bytes().enumerate().peekable();
    while let Some((at, byte)) = rest.next() {
        match byte {
            b'"' => {
                while let Some((_, byte)) = rest.next() {
                    match byte {
                        b'\\' => drop(rest.next()),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            b'{' | b'[' => {
                depth += 1;
                if depth > DEEPEST {
                    return Err(format!("is nested more than {DEEPEST} deep"));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'-' | b'0'..=b'9' => {
                let in_number = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E');
                let mut end = at + 1;
                while rest.next_if(|(_, byte)| in_number(*byte)).is_some() {
                    end += 1;
                }
                let number = text.get(at..end).and_then(|number| number.parse::<f64>().ok());
                if number.is_none_or(f64::is_infinite) {
                    return Err("has a number that is too large".to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A list of tolerations, `null` being none; `None` when the text is no such list.
pub(super) fn tolerations(text: &str) -> Option<Vec<Toleration>> {
    let list: Option<Vec<Option<Map<String, Value>>>> = serde_json::from_str(text).ok()?;
    list.unwrap_or_default().into_iter().map(|fields| toleration(fields.unwrap_or_default())).collect()
}

fn toleration(fields: Map<String, Value>) -> Option<Toleration> {
    let mut toleration = Toleration::default();
    for (name, value) in fields {
        let slot = match name.to_ascii_lowercase().as_str() {
            "key" => &mut toleration.key,
            "operator" => &mut toleration.operator,
            "value" => &mut toleration.value,
            "effect" => &mut toleration.effect,
            "tolerationseconds" => {
                if !value.is_null() {
                    toleration.toleration_seconds = Some(value.as_i64()?);
                }
                continue;
            }
            _ => continue,
        };
        match value {
            Value::Null => {}
            Value::String(text) => *slot = Some(text),
            _ => return None,
        }
    }
    Some(toleration)
}

#[cfg(test)]
mod tests {
    use super::{object, tolerations};

    #[test]
    fn what_go_takes_for_an_object_is_one() {
        for good in [
            b"{}".as_slice(),
            b" {\"a\": [1, -2.5e3, {\"b\": null}]}\n",
            b"null",
            b"{\"a\": \"\xff\"}",
            br#"{"a": "\ud800"}"#,
            br#"{"\ud800": 1}"#,
            br#"{"a": "\"[[[", "b": "1e999"}"#,
            b"{\"a\": 1e-999}",
        ] {
            assert_eq!(object(good), Ok(()), "{}", String::from_utf8_lossy(good));
        }
        let nested = |depth: usize| format!("{{\"a\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(object(nested(9_999).as_bytes()).is_ok());
        assert!(object(nested(10_000).as_bytes()).is_err());
        for bad in ["", "[]", "1", "\"x\"", "{", "{} {}", "{\"a\": 1e999}", "{a: 1}", "{\"a\": \"\n\"}", "nullx"] {
            assert!(object(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn tolerations_are_read_as_go_reads_them() {
        let read = |text: &str| tolerations(text).map(|list| list.len());
        assert_eq!(read("null"), Some(0));
        assert_eq!(read("[null, {}]"), Some(2));
        assert_eq!(read(r#"[{"Key": "a", "unknown": [1], "tolerationSeconds": null}]"#), Some(1));
        for bad in ["[1]", "{}", r#"[{"key": 1}]"#, r#"[{"tolerationSeconds": 1.5}]"#, "[", "[] []"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
