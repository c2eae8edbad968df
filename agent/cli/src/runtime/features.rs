//! `features`.

use std::collections::HashMap;

use anyhow::Context as _;
use serde_json::Value;

use super::arguments::{Usage, Verb};
use super::{print, version};

pub(super) const USAGE: Usage = Usage {
    name: "features",
    operands: "",
    about: "print as JSON what of the specification is carried out",
    flags: &[],
    count: 0..=0,
    ends_flags: false,
    read: |_| Ok(Verb::Features),
};

/// Prints what the specification's features.md defines.
pub(super) fn run() -> anyhow::Result<()> {
    let about = HashMap::from([
        ("dev.portreeve.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("dev.portreeve.commit".to_owned(), version::commit().to_owned()),
    ]);
    let features = portreeve_oci::features::features(about);
    let text = serde_json::to_value(&features).map(said).and_then(|value| serde_json::to_string_pretty(&value));
    print(&format!("{}\n", text.context("writing the features as JSON")?))
}

/// Without what nothing is said of: the specification has no null.
fn said(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key, said(value))).collect()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_said_is_absent() {
        let value = json!({"a": null, "b": {"c": null, "d": false}, "e": [], "f": {}});
        assert_eq!(said(value), json!({"b": {"d": false}, "e": [], "f": {}}));
    }
}
