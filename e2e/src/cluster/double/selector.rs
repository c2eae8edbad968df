//! Label and field selectors.

use serde_json::Value;

use super::{Kind, text};
use crate::cluster::call::Call;
use crate::cluster::status::Refusal;

/// Which objects a list, a watch or a deletion of many means.
#[derive(Debug, Clone, Default)]
pub(super) struct Selector {
    namespace: Option<String>,
    fields: Vec<(String, bool, String)>,
    labels: Vec<Requirement>,
}

#[derive(Debug, Clone)]
struct Requirement {
    key: String,
    /// Whether one of the values must be there, or none; without values, whether the label must.
    wanted: bool,
    values: Option<Vec<String>>,
}

impl Selector {
    /// That of a request.
    pub(super) fn of(call: &Call, kind: &Kind) -> Result<Self, Refusal> {
        let namespace = Some(call.namespace.clone()).filter(|namespace| !namespace.is_empty());
        let mut selector = Self { namespace, ..Self::default() };
        for term in call.option("fieldSelector").unwrap_or_default().split(',').filter(|term| !term.is_empty()) {
            let (key, wanted, value) = term
                .split_once("!=")
                .map(|(key, value)| (key, false, value))
                .or_else(|| term.split_once('=').map(|(key, value)| (key, true, value.trim_start_matches('='))))
                .ok_or_else(|| Refusal::bad_request(format!("invalid field selector {term:?}")))?;
            let known = ["metadata.name", "metadata.namespace"].contains(&key)
                || (kind.kind == "Event" && (key.starts_with("involvedObject.") || ["reason", "type"].contains(&key)))
                || (kind.kind == "Secret" && key == "type");
            if !known {
                let message = format!(
                    "Unable to find {:?} that match label selector \"\", field selector {term:?}: ",
                    kind.resource()
                );
                return Err(Refusal::bad_request(message + &format!("field label not supported: {key}")));
            }
            selector.fields.push((key.to_owned(), wanted, value.to_owned()));
        }
        for term in terms(call.option("labelSelector").unwrap_or_default()) {
            selector.labels.push(Requirement::read(&term)?);
        }
        Ok(selector)
    }

    /// Whether it leaves out objects by their labels or fields: how many match is then not told.
    pub(super) fn selects(&self) -> bool {
        !self.fields.is_empty() || !self.labels.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let field = |path: &str| text(object, &format!("/{}", path.replace('.', "/"))).to_owned();
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        self.namespace.as_ref().is_none_or(|namespace| *namespace == field("metadata.namespace"))
            && self.fields.iter().all(|(path, wanted, value)| (field(path) == *value) == *wanted)
            && self.labels.iter().all(|requirement| requirement.holds(label(&requirement.key)))
    }
}

impl Requirement {
    fn read(term: &str) -> Result<Self, Refusal> {
        let make = |key: &str, wanted, values| Self { key: key.trim().to_owned(), wanted, values };
        let one = |value: &str| Some(vec![value.trim().to_owned()]);
        let many = |list: &str| {
            let list = list.trim().strip_prefix('(')?.strip_suffix(')')?;
            Some(list.split(',').map(|value| value.trim().to_owned()).collect())
        };
        let refused = || Refusal::bad_request(format!("unable to parse requirement: {term:?}"));
        if let Some((key, list)) = term.split_once(" notin ") {
            return Ok(make(key, false, Some(many(list).ok_or_else(refused)?)));
        }
        if let Some((key, list)) = term.split_once(" in ") {
            return Ok(make(key, true, Some(many(list).ok_or_else(refused)?)));
        }
        if let Some((key, value)) = term.split_once("!=") {
            return Ok(make(key, false, one(value)));
        }
        if let Some((key, value)) = term.split_once('=') {
            return Ok(make(key, true, one(value.trim_start_matches('='))));
        }
        match term.trim().strip_prefix('!') {
            Some(key) => Ok(make(key, false, None)),
            None => Ok(make(term, true, None)),
        }
    }

    fn holds(&self, label: Option<&str>) -> bool {
        match &self.values {
            None => label.is_some() == self.wanted,
            Some(values) => label.is_some_and(|label| values.iter().any(|value| value == label)) == self.wanted,
        }
    }
}

/// The terms between commas; those in parentheses part values.
fn terms(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut depth = 0_usize;
    for letter in text.chars() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if letter == ',' && depth == 0 {
            terms.push(String::new());
        } else if let Some(term) = terms.last_mut() {
            term.push(letter);
        }
    }
    terms.retain(|term| !term.trim().is_empty());
    terms
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_mean_what_they_mean_to_kubernetes() {
        let node = json!({ "metadata": { "name": "n", "labels": { "zone": "a", "ssd": "" } } });
        let kind = Kind::find("", "v1", "nodes").expect("nodes are served");
        let matches = |option: &str, value: &str| {
            let options = BTreeMap::from([(option.to_owned(), value.to_owned())]);
            Selector::of(&Call { options, ..Call::default() }, kind).map(|selector| selector.matches(&node)).ok()
        };
        for (selector, expect) in [
            ("zone=a", true),
            ("zone==a,ssd", true),
            ("zone!=a", false),
            ("zone in (b, a),ssd", true),
            ("zone notin (b,c)", true),
            ("rack notin (b)", true),
            ("!rack", true),
            ("!ssd", false),
            ("rack", false),
        ] {
            assert_eq!(matches("labelSelector", selector), Some(expect), "{selector}");
        }
        assert_eq!(matches("fieldSelector", "metadata.name=n"), Some(true));
        assert_eq!(matches("fieldSelector", "metadata.name!=n"), Some(false));
        assert_eq!(
            matches("fieldSelector", "spec.unschedulable=true"),
            None,
            "a field that the double cannot select by"
        );
    }
}
