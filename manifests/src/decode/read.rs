//! The deserializer over the tree.

use std::fmt::Display;
use std::slice::Iter;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::{Shared, zero};
use crate::path::Path;
use crate::problem::Reason;
use crate::quantity::{Amount, QuantityError};
use crate::yaml::{Entry, Node, Value, float_text};

/// Reads one node; `path` is where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) node: &'a Node,
    pub(super) path: &'a Path<'a>,
    pub(super) shared: &'a Shared,
}

/// What the visitor says that it expects: the only way to tell the few types apart that ask
/// for "anything".
fn expectation<'de, V: Visitor<'de>>(visitor: &V) -> String {
    struct Shown<'v>(&'v dyn Expected);
    impl Display for Shown<'_> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.fmt(f)
        }
    }
    Shown(visitor).to_string()
}

const QUANTITY: &str = "for example 500m, 2, 128Mi or 1.5Gi";

/// What may have been meant by a text that is no quantity: `1 gb` by `1G`.
fn near_quantity(text: &str) -> String {
    const SUFFIXES: [&str; 12] = ["k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let suffix = suffix.trim_start().trim_end_matches(['b', 'B']);
    let near = SUFFIXES.into_iter().find(|known| known.eq_ignore_ascii_case(suffix));
    match near.map(|suffix| format!("{number}{suffix}")).filter(|near| Amount::parse(near).is_ok()) {
        Some(near) if near.len() <= 40 => format!("did you mean `{near}`?"),
        _ => QUANTITY.to_owned(),
    }
}

/// A time as Go reads RFC 3339: one digit is enough for the hour, and a comma may begin the fraction.
fn timestamp(text: &str) -> Option<jiff::Timestamp> {
    let (date, time) = text.split_once('T')?;
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = date.split('-');
    let dated = parts.next().is_some_and(|year| digits(year, 4))
        && parts.next().is_some_and(|month| digits(month, 2))
        && parts.next().is_some_and(|day| digits(day, 2))
        && parts.next().is_none();
    let (clock, zone) = time.split_at(time.find(['Z', '+', '-'])?);
    let (clock, fraction) = match clock.split_once(['.', ',']) {
        Some((clock, fraction)) => (clock, Some(fraction)),
        None => (clock, None),
    };
    let (hour, rest) = clock.split_once(':')?;
    let (minute, second) = rest.split_once(':')?;
    // A leap second is none here.
    let timed = (digits(hour, 1) || digits(hour, 2)) && digits(minute, 2) && digits(second, 2) && second < "60";
    let fraction_good = fraction.is_none_or(|it| !it.is_empty() && digits(it, it.len()));
    let zoned = zone == "Z"
        || zone.get(1..).and_then(|zone| zone.split_once(':')).is_some_and(|(h, m)| digits(h, 2) && digits(m, 2));
    if !(dated && timed && fraction_good && zoned) {
        return None;
    }
    let nanos = fraction.and_then(|it| it.get(..it.len().min(9))).unwrap_or("0");
    format!("{date}T{hour:0>2}:{minute}:{second}.{nanos}{zone}").parse().ok()
}

fn text_reader(text: &str) -> StrDeserializer<'_, Error> {
    text.into_deserializer()
}

impl Reader<'_> {
    fn mismatch(&self, expected: &str) {
        self.shared.mismatch(self.node, self.path, expected);
    }

    /// An integer in the given range, as Go would read its JSON; zero when it is none.
    fn integer(&self, least: i64, most: i64, expected: &str) -> i64 {
        let found = match &self.node.value {
            Value::Null => Some(0),
            Value::Integer(value) => Some(*value),
            // 1e2 and 1.0 are integers in Go's JSON, 1.5 and 1e21 are not.
            Value::Float(value) => float_text(*value).parse().ok(),
            _ => None,
        };
        match found {
            Some(value) if (least..=most).contains(&value) => value,
            _ => {
                self.mismatch(expected);
                0
            }
        }
    }

    fn byte(&self) -> u8 {
        let value = self.integer(0, u8::MAX.into(), "a byte");
        u8::try_from(value).unwrap_or_default()
    }

    fn quantity(&self) -> String {
        let text = match &self.node.value {
            Value::Null => return "0".to_owned(),
            Value::Text(text) => text.to_string(),
            Value::Integer(value) => value.to_string(),
            Value::Unsigned(value) => value.to_string(),
            Value::Huge(text) => text.to_string(),
            Value::Float(value) => float_text(*value),
            Value::Bool(_) | Value::List(_) | Value::Map(_) => {
                let message = format!("expected a quantity, found {}", self.node.type_name());
                self.fault(Reason::QuantityParse, message, QUANTITY);
                return "0".to_owned();
            }
        };
        // The server looks at the JSON as it stands there, where these are escapes.
        let escaped = text.contains(['\t', '\n', '\r', '\u{b}', '\u{c}', '\u{2028}', '\u{2029}']);
        let amount = if escaped { Err(QuantityError::Format(text.clone())) } else { Amount::parse(&text) };
        match amount {
            Ok(amount) => amount.to_string(),
            Err(error) => {
                self.fault(Reason::QuantityParse, error.to_string(), near_quantity(&text));
                "0".to_owned()
            }
        }
    }

    fn time(&self) -> String {
        const EPOCH: &str = "1970-01-01T00:00:00Z";
        match &self.node.value {
            Value::Null => EPOCH.to_owned(),
            Value::Text(text) => match timestamp(text) {
                Some(time) => time.to_string(),
                None => {
                    let message = format!("{text:?} is no time");
                    self.fault(Reason::TimeParse, message, "for example 2026-01-31T12:00:00Z");
                    EPOCH.to_owned()
                }
            },
            _ => {
                self.mismatch("a string");
                EPOCH.to_owned()
            }
        }
    }

    /// Base64 in its canonical form. As in Go, line breaks in it are allowed, what its last digit says too much does
    /// not count, and a list of bytes is another way to say the same.
    fn base64(&self) -> Option<String> {
        const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
        const ENGINE: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);
        let text = match &self.node.value {
            Value::Text(text) => text,
            Value::List(items) => {
                let path = |index| self.path.index(index);
                let byte = |(index, node)| Reader { node, path: &path(index), ..*self }.byte();
                let bytes: Vec<u8> = items.iter().enumerate().map(byte).collect();
                return Some(ENGINE.encode(bytes));
            }
            _ => {
                self.mismatch("a string");
                return None;
            }
        };
        let compact: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
        match ENGINE.decode(&compact) {
            Ok(bytes) => Some(ENGINE.encode(bytes)),
            Err(error) => {
                // A ConfigMap has plain text elsewhere than a Secret.
                let plain = if self.path.to_string().starts_with("binaryData") { "data" } else { "stringData" };
                let fix = format!("encode it (`base64 -w0`), or use `{plain}` for plain text");
                self.fault(Reason::Base64, format!("not base64: {error}"), fix);
                None
            }
        }
    }

    fn fault(&self, reason: Reason, message: String, fix: impl Into<String>) {
        self.shared.fault(self.node, self.path, reason, message, fix);
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if expectation(&visitor) == "IntOrString" {
            return match &self.node.value {
                Value::Text(text) => visitor.visit_str(text),
                _ => visitor.visit_i64(self.integer(i32::MIN.into(), i32::MAX.into(), "an integer or a string")),
            };
        }
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) | Value::Huge(text) => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(Items::new(self, items)),
            Value::Map(entries) => visitor.visit_map(Pairs::new(self, entries)),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Null => visitor.visit_bool(false),
            _ => {
                self.mismatch("a boolean");
                visitor.visit_bool(false)
            }
        }
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let value = self.integer(i32::MIN.into(), i32::MAX.into(), "a 32-bit integer");
        visitor.visit_i32(i32::try_from(value).unwrap_or_default())
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i64(self.integer(i64::MIN, i64::MAX, "a 64-bit integer"))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Text(text) => visitor.visit_str(text),
            Value::Null => visitor.visit_str(""),
            _ => {
                self.mismatch("a string");
                visitor.visit_str("")
            }
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.value == Value::Null {
            return visitor.visit_none();
        }
        if self.path.is_key() && expectation(&visitor) == "a base64-encoded string" {
            return match self.base64() {
                Some(text) => visitor.visit_some(text_reader(&text)),
                None => visitor.visit_none(),
            };
        }
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        match name {
            "Quantity" => visitor.visit_newtype_struct(text_reader(&self.quantity())),
            "Time" | "MicroTime" => visitor.visit_newtype_struct(text_reader(&self.time())),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::List(items) => visitor.visit_seq(Items::new(self, items)),
            Value::Null => visitor.visit_seq(Items::new(self, &[])),
            _ => {
                self.mismatch("a list");
                visitor.visit_seq(Items::new(self, &[]))
            }
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Map(entries) => visitor.visit_map(Pairs::new(self, entries)),
            Value::Null => visitor.visit_map(Pairs::new(self, &[])),
            _ => {
                self.mismatch("a mapping");
                visitor.visit_map(Pairs::new(self, &[]))
            }
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let entries: &[Entry] = match &self.node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => {
                self.mismatch("a mapping");
                &[]
            }
        };
        visitor.visit_map(Fields { reader: self, name, fields, entries: entries.iter(), pending: None })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct
        tuple tuple_struct enum identifier
    }
}

/// The items of a list.
struct Items<'a> {
    reader: Reader<'a>,
    items: Iter<'a, Node>,
    index: usize,
}

impl<'a> Items<'a> {
    fn new(reader: Reader<'a>, items: &'a [Node]) -> Self {
        Self { reader, items: items.iter(), index: 0 }
    }
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(node) = self.items.next() else {
            return Ok(None);
        };
        let path = self.reader.path.index(self.index);
        self.index += 1;
        let reader = Reader { node, path: &path, shared: self.reader.shared };
        seed.deserialize(reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

/// The entries of a map with the user's own keys.
struct Pairs<'a> {
    reader: Reader<'a>,
    entries: Iter<'a, Entry>,
    pending: Option<&'a Entry>,
}

impl<'a> Pairs<'a> {
    fn new(reader: Reader<'a>, entries: &'a [Entry]) -> Self {
        Self { reader, entries: entries.iter(), pending: None }
    }
}

impl<'de> MapAccess<'de> for Pairs<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Reader { path, shared, .. } = self.reader;
        self.pending = self.entries.find(|entry| !shared.leaves_out(&path.key(&entry.key)));
        match self.pending {
            Some(entry) => seed.deserialize(text_reader(&entry.key)).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(entry) = self.pending.take() else {
            return seed.deserialize(().into_deserializer());
        };
        let path = self.reader.path.key(&entry.key);
        seed.deserialize(Reader { node: &entry.node, path: &path, shared: self.reader.shared })
    }
}

/// The fields of a struct.
struct Fields<'a> {
    reader: Reader<'a>,
    name: &'static str,
    fields: &'static [&'static str],
    entries: Iter<'a, Entry>,
    pending: Option<&'a Entry>,
}

/// Fields of the types that came after the rules here: Kubernetes 1.36 does not know them.
pub(super) fn is_newer(name: &str, key: &str) -> bool {
    matches!(
        (name, key),
        ("HTTPGetAction", "protocol")
            | ("GRPCAction" | "EmptyDirVolumeSource", "mode")
            | ("VolumeMount", "bindMountOptions")
            | ("PodSpec", "evictionResponders")
            | (
                "KeyToPath"
                    | "DownwardAPIVolumeFile"
                    | "ClusterTrustBundleProjection"
                    | "PodCertificateProjection"
                    | "ServiceAccountTokenProjection",
                "user"
            )
            | (
                "ConfigMapVolumeSource" | "SecretVolumeSource" | "ProjectedVolumeSource" | "DownwardAPIVolumeSource",
                "defaultUser"
            )
            | ("PodStatus", "volumeHealth")
    )
}

/// An object's own `apiVersion` and `kind` are checked before it is decoded.
fn is_identity(name: &str, key: &str) -> bool {
    matches!(name, "Pod" | "ConfigMap" | "Secret") && matches!(key, "apiVersion" | "kind")
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let shared = self.reader.shared;
        for entry in self.entries.by_ref() {
            if !self.fields.contains(&&*entry.key) || is_newer(self.name, &entry.key) {
                shared.unknown_field(entry, self.name, self.fields, self.reader.path);
                continue;
            }
            if is_identity(self.name, &entry.key) || entry.node.value == Value::Null {
                continue;
            }
            if shared.leaves_out(&self.reader.path.field(&entry.key)) {
                continue;
            }
            if zero::is_left_out(self.name, entry) {
                shared.saw_zero.set(true);
                if shared.lean {
                    continue;
                }
            }
            self.pending = Some(entry);
            return seed.deserialize(text_reader(&entry.key)).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(entry) = self.pending.take() else {
            return seed.deserialize(().into_deserializer());
        };
        let path = self.reader.path.field(&entry.key);
        seed.deserialize(Reader { node: &entry.node, path: &path, shared: self.reader.shared })
    }
}
