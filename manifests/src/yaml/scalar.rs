//! The type of a scalar: YAML 1.1 words, and numbers in Go's syntax.
//!
//! `y`, `yes`, `on` are true; `0644`, `0o644`, `0b11`, `0x1f` and `1_000` are integers, `0888`
//! is the float 888; dates stay text. Source: the resolution rules of go-yaml 2, which kubectl
//! and the API server use.

use std::rc::Rc;

use super::Value;

const PREFIX: &str = "tag:yaml.org,2002:";

/// The type of a scalar, or why its tag and its text do not agree.
pub(super) fn value(text: &str, plain: bool, tag: Option<&str>) -> Result<Value, String> {
    let short = tag.map(|tag| tag.strip_prefix(PREFIX).unwrap_or(tag));
    let word = || Value::Text(Rc::from(text));
    match short {
        None if plain => Ok(untagged(text)),
        None | Some("str" | "timestamp") => Ok(word()),
        Some("binary") => {
            let compact: String = text.split_whitespace().collect();
            let engine = base64::engine::general_purpose::STANDARD;
            let bytes =
                base64::Engine::decode(&engine, compact).map_err(|_| "a `!!binary` value must be base64".to_owned())?;
            Ok(Value::Text(Rc::from(String::from_utf8_lossy(&bytes))))
        }
        Some(name @ ("bool" | "int" | "float" | "null")) => {
            let value = untagged(text);
            let agrees = match (&value, name) {
                (Value::Bool(_), "bool")
                | (Value::Integer(_) | Value::Unsigned(_) | Value::Huge(_), "int")
                | (Value::Float(_), "float")
                | (Value::Null, "null") => true,
                (Value::Integer(number), "float") => {
                    return Ok(Value::Float(float_of(*number)));
                }
                _ => false,
            };
            if agrees { Ok(value) } else { Err(format!("`{text}` is no !!{name}")) }
        }
        Some(_) => Ok(word()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "that is what the tag !!float asks for")]
fn float_of(number: i64) -> f64 {
    number as f64
}

/// Whether a text without quotes is read as that text, whatever the version of YAML.
pub(crate) fn is_plainly_text(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let word = matches!(lower.as_str(), "y" | "yes" | "n" | "no" | "on" | "off" | "true" | "false" | "null" | "<<");
    !word && !text.starts_with(|c: char| c.is_ascii_digit() || c == '.') && matches!(untagged(text), Value::Text(_))
}

fn untagged(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Value::Float(f64::INFINITY);
        }
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        _ => {}
    }
    let number = match text.bytes().next() {
        Some(b'.') => float(text),
        Some(b'+' | b'-' | b'0'..=b'9') if !is_timestamp(text) => number(&text.replace('_', "")),
        _ => None,
    };
    number.unwrap_or_else(|| Value::Text(Rc::from(text)))
}

fn number(text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if let Some(value) = integer(negative, digits) {
        return Some(value);
    }
    if is_decimal(digits) { float(text) } else { None }
}

/// An integer in Go's base-0 syntax: `0x`, `0o`, `0b`, a leading zero for octal.
fn integer(negative: bool, digits: &str) -> Option<Value> {
    let lower = digits.get(..2).map(str::to_ascii_lowercase);
    let (radix, body) = match lower.as_deref() {
        Some("0x") => (16, digits.get(2..)?),
        Some("0o") => (8, digits.get(2..)?),
        Some("0b") => (2, digits.get(2..)?),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    if body.is_empty() || !body.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let Ok(magnitude) = u128::from_str_radix(body, radix) else {
        return (radix == 10).then(|| {
            let sign = if negative { "-" } else { "" };
            Value::Huge(Rc::from(format!("{sign}{body}")))
        });
    };
    let signed = i128::try_from(magnitude).ok().map(|value| if negative { -value } else { value });
    if let Some(small) = signed.and_then(|value| i64::try_from(value).ok()) {
        return Some(Value::Integer(small));
    }
    match u64::try_from(magnitude) {
        Ok(value) if !negative => Some(Value::Unsigned(value)),
        _ => {
            let sign = if negative { "-" } else { "" };
            Some(Value::Huge(Rc::from(format!("{sign}{magnitude}"))))
        }
    }
}

/// `12`, `1.5`, `.5`, `1e3`: what Go's YAML takes for a decimal float.
fn is_decimal(text: &str) -> bool {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let whole = digits(text);
    let mut rest = text.get(whole..).unwrap_or_default();
    let mut fraction = 0;
    if let Some(after) = rest.strip_prefix('.') {
        fraction = digits(after);
        rest = after.get(fraction..).unwrap_or_default();
    }
    if whole + fraction == 0 {
        return false;
    }
    if let Some(after) = rest.strip_prefix(['e', 'E']) {
        let after = after.strip_prefix(['+', '-']).unwrap_or(after);
        let power = digits(after);
        return power > 0 && power == after.len();
    }
    rest.is_empty()
}

fn float(text: &str) -> Option<Value> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !is_decimal(unsigned) {
        return None;
    }
    // A number beyond what a float holds stays text, as in Go.
    text.parse::<f64>().ok().filter(|value| value.is_finite()).map(Value::Float)
}

/// Dates and times of the forms that Go's YAML knows; they stay text.
fn is_timestamp(text: &str) -> bool {
    let mut parts = text.splitn(3, '-');
    let (Some(year), Some(month), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let number = |text: &str, longest: usize| {
        !text.is_empty() && text.len() <= longest && text.bytes().all(|b| b.is_ascii_digit())
    };
    let day = rest.bytes().take_while(u8::is_ascii_digit).count();
    year.len() == 4 && number(year, 4) && number(month, 2) && (1..=2).contains(&day)
}

/// A float as JSON prints it in Go: plain digits unless very small or very large.
pub(crate) fn float_text(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
        let text = format!("{value:e}");
        // Go writes the exponent's sign: 1e+21.
        match text.split_once('e') {
            Some((mantissa, power)) if !power.starts_with('-') => format!("{mantissa}e+{power}"),
            _ => text,
        }
    } else {
        format!("{value}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        match untagged(text) {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => format!("bool {value}"),
            Value::Integer(value) => format!("int {value}"),
            Value::Unsigned(value) => format!("uint {value}"),
            Value::Huge(text) => format!("huge {text}"),
            Value::Float(value) => format!("float {}", float_text(value)),
            Value::Text(text) => format!("text {text}"),
            Value::List(_) | Value::Map(_) => "?".to_owned(),
        }
    }

    #[test]
    fn plain_scalars_have_the_types_that_go_gives_them() {
        for (text, expected) in [
            ("y", "bool true"),
            ("tRUE", "text tRUE"),
            ("1:30", "text 1:30"),
            ("0o9", "text 0o9"),
            ("0888", "float 888"),
            ("0o644", "int 420"),
            ("0644", "int 420"),
            ("0b11", "int 3"),
            ("-0b11", "int -3"),
            ("1_000", "int 1000"),
            ("1e2", "float 100"),
            ("1.0", "float 1"),
            (".5", "float 0.5"),
            ("1e21", "float 1e+21"),
            ("2020-01-01", "text 2020-01-01"),
            ("~", "null"),
            ("18446744073709551615", "uint 18446744073709551615"),
            ("18446744073709551616", "huge 18446744073709551616"),
            ("1.2.3", "text 1.2.3"),
            ("-", "text -"),
            ("+12", "int 12"),
            ("0x", "text 0x"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }
}
