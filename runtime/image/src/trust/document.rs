//! JSON whose every part is wanted: what nobody asked for, or is there twice, is an error with its place.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

/// A value, and where it is: `transports.docker["a"][0]`.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) place: String,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Text(String),
    List(Vec<Value>),
    Object(Vec<(String, Value)>),
    /// Numbers, truth values, null: nothing here is one.
    Other,
}

/// An object whose keys are taken one after the other; none may be left.
#[derive(Debug)]
pub(super) struct Object {
    place: String,
    fields: Vec<(String, Value)>,
}

/// Reads a document.
pub(super) fn parse(text: &[u8]) -> Result<Part, String> {
    let value = serde_json::from_slice(text).map_err(|error| format!("it is no JSON of the wanted kind: {error}"))?;
    Ok(Part { place: String::new(), value })
}

impl Part {
    /// What is wrong with it, with its place.
    pub(super) fn wrong(&self, problem: impl fmt::Display) -> String {
        match self.place.as_str() {
            "" => problem.to_string(),
            place => format!("{place} {problem}"),
        }
    }

    pub(super) fn text(self) -> Result<String, String> {
        match self.value {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong("must be a string")),
        }
    }

    /// The parts of a list, of which there must be one at least.
    pub(super) fn list(self) -> Result<Vec<Part>, String> {
        match self.value {
            Value::List(values) if !values.is_empty() => {
                let place = |number| format!("{}[{number}]", self.place);
                Ok(values.into_iter().enumerate().map(|(n, value)| Part { place: place(n), value }).collect())
            }
            _ => Err(self.wrong("must be a list that is not empty")),
        }
    }

    pub(super) fn object(self) -> Result<Object, String> {
        match self.value {
            Value::Object(fields) => Ok(Object { place: self.place, fields }),
            _ => Err(self.wrong("must be an object")),
        }
    }

    /// The parts of an object whose keys are anybody's.
    pub(super) fn entries(self) -> Result<Vec<(String, Part)>, String> {
        let Object { place, fields } = self.object()?;
        let part = |(key, value): (String, Value)| {
            let place = format!("{place}[{key:?}]");
            (key, Part { place, value })
        };
        Ok(fields.into_iter().map(part).collect())
    }
}

impl Object {
    pub(super) fn take(&mut self, key: &str) -> Option<Part> {
        let at = self.fields.iter().position(|(name, _)| name == key)?;
        let (_, value) = self.fields.remove(at);
        let place = if self.place.is_empty() { key.to_owned() } else { format!("{}.{key}", self.place) };
        Some(Part { place, value })
    }

    pub(super) fn need(&mut self, key: &str) -> Result<Part, String> {
        self.take(key).ok_or_else(|| self.wrong(format!("has no {key:?}")))
    }

    /// The place of the object with what is wrong in it.
    pub(super) fn wrong(&self, problem: impl fmt::Display) -> String {
        let place = if self.place.is_empty() { "the policy" } else { &self.place };
        format!("{place} {problem}")
    }

    /// Nothing is left. `known` is what there may be.
    pub(super) fn end(self, known: &str) -> Result<(), String> {
        match self.fields.first() {
            None => Ok(()),
            Some((key, _)) => Err(self.wrong(format!("has the unknown key {key:?}; known are {known}"))),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields: Vec<(String, Value)> = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            if fields.iter().any(|(known, _)| *known == key) {
                return Err(A::Error::custom(format!("the key {key:?} is there twice")));
            }
            fields.push((key, value));
        }
        Ok(Value::Object(fields))
    }
}
