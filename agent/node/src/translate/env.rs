//! The environment of a container, and `$(NAME)` in it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVarSource};
use portreeve_plan::config::ConfigKind;

use crate::downward::{self, DownwardError};
use crate::volumes::Facts;

/// Why a variable has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvError {
    /// Its ConfigMap or Secret does not exist.
    #[error("{kind} {name:?} does not exist")]
    Missing {
        /// ConfigMap or Secret.
        kind: ConfigKind,
        /// Its name.
        name: String,
    },
    /// It has no such key.
    #[error("{kind} {name:?} has no key {key:?}")]
    Key {
        /// ConfigMap or Secret.
        kind: ConfigKind,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// Its value is no text.
    #[error("{kind} {name:?}: the value of {key:?} is not UTF-8, or has a zero byte")]
    Text {
        /// ConfigMap or Secret.
        kind: ConfigKind,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// It comes from a field that has no value.
    #[error("variable {variable}")]
    Downward {
        /// The variable.
        variable: String,
        /// Why.
        #[source]
        source: DownwardError,
    },
}

/// The variables in the order in which they are given; of one name the last counts.
pub(crate) fn environment(
    facts: Facts<'_>,
    ips: &[String],
    container: &Container,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut order: Vec<String> = Vec::new();
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |values: &mut BTreeMap<String, String>, name: String, value: String| {
        if values.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional) = if let Some(map) = &source.config_map_ref {
            (ConfigKind::ConfigMap, &map.name, map.optional)
        } else if let Some(secret) = &source.secret_ref {
            (ConfigKind::Secret, &secret.name, secret.optional)
        } else {
            continue;
        };
        let Some(config) = facts.configs.get(kind, name) else {
            if optional == Some(true) {
                continue;
            }
            return Err(EnvError::Missing { kind, name: name.clone() });
        };
        for (key, value) in config.variables() {
            let variable = format!("{prefix}{key}");
            // A key that is no name is left out, as the kubelet does.
            if variable.is_empty() || variable.contains(['=', '\0']) {
                continue;
            }
            let text = text(value).ok_or_else(|| EnvError::Text { kind, name: name.clone(), key: key.clone() })?;
            set(&mut values, variable, text);
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => {
                let given = variable.value.as_deref().unwrap_or_default();
                Some(expand(given, &|name| values.get(name).cloned()))
            }
            Some(from) => value_from(facts, ips, container, &variable.name, from)?,
        };
        if let Some(value) = value {
            set(&mut values, variable.name.clone(), value);
        }
    }
    Ok(order
        .into_iter()
        .filter_map(|name| {
            let value = values.remove(&name)?;
            Some((name, value))
        })
        .collect())
}

fn text(value: &[u8]) -> Option<String> {
    String::from_utf8(value.to_vec()).ok().filter(|text| !text.contains('\0'))
}

fn value_from(
    facts: Facts<'_>,
    ips: &[String],
    container: &Container,
    variable: &str,
    from: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    let downward = |source| EnvError::Downward { variable: variable.to_owned(), source };
    if let Some(field) = &from.field_ref {
        return downward::field(facts, ips, &field.field_path).map(Some).map_err(downward);
    }
    if let Some(resource) = &from.resource_field_ref {
        return downward::resource(facts, Some(container), resource).map(Some).map_err(downward);
    }
    let (kind, name, key, optional) = if let Some(map) = &from.config_map_key_ref {
        (ConfigKind::ConfigMap, &map.name, &map.key, map.optional)
    } else if let Some(secret) = &from.secret_key_ref {
        (ConfigKind::Secret, &secret.name, &secret.key, secret.optional)
    } else {
        return Ok(Some(String::new()));
    };
    let optional = optional == Some(true);
    let Some(config) = facts.configs.get(kind, name) else {
        return if optional { Ok(None) } else { Err(EnvError::Missing { kind, name: name.clone() }) };
    };
    let Some(value) = config.variable(key) else {
        return if optional { Ok(None) } else { Err(EnvError::Key { kind, name: name.clone(), key: key.clone() }) };
    };
    text(value).map(Some).ok_or_else(|| EnvError::Text { kind, name: name.clone(), key: key.clone() })
}

/// Replaces `$(NAME)`; `$$` is `$`, and what has no value stays as it is.
///
/// Source: kubernetes `third_party/forked/golang/expansion/expand.go`.
pub(crate) fn expand(text: &str, value: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = if let Some(escaped) = after.strip_prefix('$') {
            out.push('$');
            escaped
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match value(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            tail
        } else {
            out.push('$');
            after
        };
    }
    out.push_str(rest);
    out
}

/// The names that `text` refers to and that have no value, each once, sorted.
pub(crate) fn missing(text: &str, value: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let names = std::cell::RefCell::new(std::collections::BTreeSet::new());
    expand(text, &|name| {
        let found = value(name);
        if found.is_none() {
            names.borrow_mut().insert(name.to_owned());
        }
        found
    });
    names.into_inner().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use portreeve_plan::{Config, Configs};
    use serde_json::json;

    use super::*;
    use crate::volumes::NodeFacts;

    #[test]
    fn binary_data_is_for_files_alone() {
        let data = BTreeMap::from([("text".to_owned(), b"a".to_vec())]);
        let binary = BTreeMap::from([("blob".to_owned(), vec![0xff, 0x00])]);
        let map = Config::new(data).with_binary(binary);
        assert_eq!(map.data().len(), 2);
        let configs = Configs { config_maps: BTreeMap::from([("m".to_owned(), map)]), ..Configs::default() };
        let (pod, node) = (Pod::default(), NodeFacts::default());
        let facts = Facts { pod: &pod, uid: "u", configs: &configs, node: &node };
        let read = |container: serde_json::Value| environment(facts, &[], &serde_json::from_value(container).unwrap());
        let all = read(json!({"name": "c", "envFrom": [{"configMapRef": {"name": "m"}}]})).unwrap();
        assert_eq!(all, [("text".to_owned(), "a".to_owned())]);
        let key = |key: &str, optional: bool| {
            let from = json!({"configMapKeyRef": {"name": "m", "key": key, "optional": optional}});
            read(json!({"name": "c", "env": [{"name": "V", "valueFrom": from}]}))
        };
        assert_eq!(key("text", false).unwrap(), [("V".to_owned(), "a".to_owned())]);
        assert_eq!(key("blob", true).unwrap(), []);
        assert!(matches!(key("blob", false).unwrap_err(), EnvError::Key { .. }));
    }

    #[test]
    fn references_are_replaced_as_the_kubelet_does() {
        let value = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            "B" => Some("$(A)".to_owned()),
            _ => None,
        };
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(EMPTY)", ""),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(A)"),
            ("$A", "$A"),
            ("${A}", "${A}"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("a$", "a$"),
            ("$$", "$"),
            ("$()", "$()"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &value), expected, "{text}");
        }
    }
}
