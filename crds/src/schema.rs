//! Schemas of fields that are described by another authority than this crate.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// An object of which the server keeps every field: what it may say is Kubernetes' own to describe, in half a
/// megabyte; agents judge it as they judge a manifest.
pub(crate) fn kept(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// Whole objects, of which the server checks that they have a kind, a version and a name.
pub(crate) fn embedded(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 100,
        "items": {
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": true,
            "x-kubernetes-embedded-resource": true,
        },
    })
}

/// A number of nodes, or a share of them in percent.
pub(crate) fn number_or_percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "anyOf": [{ "type": "integer" }, { "type": "string" }],
        "x-kubernetes-validations": [{
            "rule": "type(self) == int ? self >= 1 : self.matches('^([1-9][0-9]?|100)%$')",
            "message": "must be a number of at least 1, or a share from \"1%\" to \"100%\"",
        }],
    })
}

/// A list of which each item has a name of its own.
pub(crate) fn by_key<T: JsonSchema>(generator: &mut SchemaGenerator, keys: &[&str]) -> Schema {
    let mut schema = <Vec<T>>::json_schema(generator);
    schema.insert("x-kubernetes-list-type".to_owned(), "map".into());
    schema.insert("x-kubernetes-list-map-keys".to_owned(), keys.into());
    schema
}
