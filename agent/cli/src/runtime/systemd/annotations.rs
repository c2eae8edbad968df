//! Properties of a container's unit that its configuration asks for by annotations:
//! `"org.systemd.property.TimeoutStopUSec": "uint64 5000000"`.

use std::collections::BTreeMap;

use portreeve_systemd::{Property, SystemdError};
use zbus::Variant;

/// What the names of such annotations begin with.
pub(crate) const PREFIX: &str = "org.systemd.property.";

/// What makes a unit the container's is not up to its configuration.
const OURS: [&str; 5] = ["Delegate", "DelegateControllers", "DelegateSubgroup", "PIDs", "Slice"];

/// The properties that annotations ask for. Values are written as GVariant's text; a time in seconds (`...Sec`) becomes one
/// in microseconds (`...USec`), which is what systemd takes.
///
/// Source: runc, docs/systemd-properties.md.
///
/// # Errors
/// [`SystemdError::Annotation`].
pub(crate) fn properties(annotations: &BTreeMap<String, String>) -> Result<Vec<Property>, SystemdError> {
    let asked = annotations.iter().filter_map(|(key, text)| Some((key.strip_prefix(PREFIX)?, text)));
    asked.map(|(name, text)| property(name, text)).collect()
}

fn property(name: &str, text: &str) -> Result<Property, SystemdError> {
    let wrong = |reason: &str| SystemdError::Annotation { name: format!("{PREFIX}{name}"), reason: reason.to_owned() };
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(wrong("its end is no name of a property"));
    }
    if OURS.contains(&name) {
        return Err(wrong("the runtime sets it itself"));
    }
    let value = value(text.trim()).ok_or_else(|| wrong(&format!("{text:?} is no value as GVariant writes it")))?;
    match name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U')) {
        None => Ok((name.to_owned(), value)),
        Some(stem) => {
            let time = microseconds(&value).ok_or_else(|| wrong("a time in seconds is a number, and not below 0"))?;
            Ok((format!("{stem}USec"), time.into()))
        }
    }
}

fn microseconds(value: &Variant<'_>) -> Option<u64> {
    let seconds = match value {
        Variant::U8(number) => u64::from(*number),
        Variant::I16(number) => u64::try_from(*number).ok()?,
        Variant::U16(number) => u64::from(*number),
        Variant::I32(number) => u64::try_from(*number).ok()?,
        Variant::U32(number) => u64::from(*number),
        Variant::I64(number) => u64::try_from(*number).ok()?,
        Variant::U64(number) => *number,
        Variant::F64(number) => {
            let time = std::time::Duration::try_from_secs_f64(*number).ok()?;
            return u64::try_from(time.as_micros()).ok();
        }
        _ => return None,
    };
    seconds.checked_mul(1_000_000)
}

/// Booleans, numbers, strings and lists of strings, with their types before them or not.
///
/// Source: GVariant text format (GLib).
fn value(text: &str) -> Option<Variant<'static>> {
    match text {
        "true" => return Some(true.into()),
        "false" => return Some(false.into()),
        _ => {}
    }
    if text.starts_with(['\'', '"']) {
        let (word, rest) = quoted(text)?;
        return rest.is_empty().then(|| word.into());
    }
    if text.starts_with('[') {
        return list(text).filter(|words| !words.is_empty()).map(Variant::from);
    }
    let Some((kind, rest)) = text.split_once(char::is_whitespace) else {
        // A number of which nothing else is said.
        return text.parse::<i32>().map(Variant::from).or_else(|_| decimal(text).map(Variant::from).ok_or(())).ok();
    };
    let rest = rest.trim_start();
    Some(match kind {
        "boolean" | "@b" => rest.parse::<bool>().ok()?.into(),
        "byte" | "@y" => rest.parse::<u8>().ok()?.into(),
        "int16" | "@n" => rest.parse::<i16>().ok()?.into(),
        "uint16" | "@q" => rest.parse::<u16>().ok()?.into(),
        "int32" | "@i" => rest.parse::<i32>().ok()?.into(),
        "uint32" | "@u" => rest.parse::<u32>().ok()?.into(),
        "int64" | "@x" => rest.parse::<i64>().ok()?.into(),
        "uint64" | "@t" => rest.parse::<u64>().ok()?.into(),
        "double" | "@d" => rest.parse::<f64>().ok()?.into(),
        "string" | "@s" => quoted(rest).filter(|(_, rest)| rest.is_empty())?.0.into(),
        "@as" => list(rest)?.into(),
        _ => return None,
    })
}

/// Not `inf`, `nan` or `infinity`, which are words elsewhere.
fn decimal(text: &str) -> Option<f64> {
    text.parse().ok().filter(|_| text.contains('.'))
}

/// A string in quotes, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut letters = text.char_indices();
    let (_, quote) = letters.next().filter(|(_, letter)| matches!(letter, '\'' | '"'))?;
    let mut word = String::new();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => word.push(match letters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                // Numbers of letters: nothing that systemd reads needs them.
                'u' | 'U' => return None,
                other => other,
            }),
            letter if letter == quote => return Some((word, text.get(at + letter.len_utf8()..)?)),
            letter => word.push(letter),
        }
    }
    None
}

fn list(text: &str) -> Option<Vec<String>> {
    let mut rest = text.strip_prefix('[')?.trim_start();
    let mut words = Vec::new();
    if rest == "]" {
        return Some(words);
    }
    loop {
        let (word, after) = quoted(rest)?;
        words.push(word);
        let after = after.trim_start();
        if after == "]" {
            return Some(words);
        }
        rest = after.strip_prefix(',')?.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Vec<Property>, SystemdError> {
        properties(&BTreeMap::from([(format!("{PREFIX}{name}"), text.to_owned()), ("other".into(), "x".into())]))
    }

    #[test]
    fn values_have_the_types_that_they_are_written_with() {
        let strings =
            |words: &[&str]| Variant::from(words.iter().map(|&word| word.to_owned()).collect::<Vec<String>>());
        let cases = [
            ("true", Variant::from(true)),
            ("boolean false", false.into()),
            ("7", 7_i32.into()),
            ("-7", (-7_i32).into()),
            ("1.5", 1.5_f64.into()),
            ("byte 7", 7_u8.into()),
            ("uint32 7", 7_u32.into()),
            ("int64 -7", (-7_i64).into()),
            (" uint64  18446744073709551615 ", u64::MAX.into()),
            ("@t 7", 7_u64.into()),
            ("'inactive-or-failed'", "inactive-or-failed".into()),
            (r#""it's""#, "it's".into()),
            (r"'it\'s'", "it's".into()),
            ("string 'x'", "x".into()),
            ("['a', \"b\"]", strings(&["a", "b"])),
            ("@as []", strings(&[])),
        ];
        for (text, expected) in cases {
            assert_eq!(read("CollectMode", text).expect(text), [("CollectMode".to_owned(), expected)], "{text}");
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        let cases = [("TimeoutStopSec", "5", 5_000_000_u64), ("TimeoutStopSec", "1.5", 1_500_000)];
        for (name, text, expected) in cases {
            assert_eq!(read(name, text).expect(text), [("TimeoutStopUSec".to_owned(), Variant::from(expected))]);
        }
        let plain = read("TimeoutStopUSec", "uint64 5").expect("a value");
        assert_eq!(plain, [("TimeoutStopUSec".to_owned(), Variant::from(5_u64))]);
        for wrong in ["-5", "'5'", "-1.0", "uint64 18446744073709551615"] {
            assert!(read("TimeoutStopSec", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_value_or_not_up_to_the_configuration_is_refused() {
        for wrong in
            ["", "x", "uint64", "uint64 -1", "byte 256", "'x", "'x' y", "[]", "['a'", "['a' 'b']", "[1]", "nan"]
        {
            let error = read("CollectMode", wrong).expect_err(wrong).to_string();
            assert!(error.contains("org.systemd.property.CollectMode"), "{wrong}: {error}");
        }
        for name in ["Slice", "PIDs", "Delegate", "", "ab", "Timeout-Stop", "a b c"] {
            assert!(read(name, "true").is_err(), "{name}");
        }
    }
}
