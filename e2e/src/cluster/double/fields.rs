//! Who owns which field: what server-side apply decides by.
//!
//! As in the API, an apply owns the fields that it names and an update those that it changes; an apply that would
//! change what another owns is a conflict, unless it is forced. Lists are owned whole here, whatever their kind says:
//! no kind of the double that is applied has others but finalizers and owners.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::now;

/// A field, by the keys that lead to it.
type Field = Vec<String>;

/// What of `metadata` nobody owns.
const UNOWNED: [&str; 10] = [
    "name",
    "namespace",
    "generateName",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "managedFields",
];

/// The fields that one manager owns by one operation.
struct Entry {
    manager: String,
    operation: String,
    sub: String,
    time: Value,
    fields: BTreeSet<Field>,
}

/// Applies `config` for `manager` to what is there; fields that others own as pairs of manager and field where it may not.
pub(super) fn apply(
    existing: &Value,
    config: &Value,
    manager: &str,
    sub: &str,
    force: bool,
) -> Result<Value, Vec<(String, String)>> {
    let mut entries = entries(existing);
    let wanted = leaves(config);
    let changed: BTreeSet<_> =
        wanted.iter().filter(|field| at(existing, field) != at(config, field)).cloned().collect();
    let own = |entry: &Entry| (&*entry.manager, &*entry.operation, &*entry.sub) == (manager, "Apply", sub);
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|entry| !own(entry)) {
        for field in entry.fields.clone() {
            if changed.iter().any(|change| touches(change, &field)) {
                conflicts.push((entry.manager.clone(), format!(".{}", field.join("."))));
                entry.fields.remove(&field);
            }
        }
    }
    if !conflicts.is_empty() && !force {
        return Err(conflicts);
    }
    let mut object = existing.clone();
    let before = entries.iter().find(|entry| own(entry)).map(|entry| entry.fields.clone()).unwrap_or_default();
    for field in before.difference(&wanted) {
        if !entries.iter().any(|entry| !own(entry) && entry.fields.iter().any(|other| touches(other, field))) {
            remove(&mut object, field);
        }
    }
    for field in &wanted {
        if let Some(value) = at(config, field) {
            set(&mut object, field, value.clone());
        }
    }
    let time = entries.iter().find(|entry| own(entry)).map(|entry| entry.time.clone());
    let time = time.filter(|_| object == *existing).unwrap_or_else(now);
    let mine = Entry { manager: manager.into(), operation: "Apply".into(), sub: sub.into(), time, fields: wanted };
    // In its place: an apply that changes nothing leaves the object as it was.
    match entries.iter_mut().find(|entry| own(entry)) {
        Some(entry) => *entry = mine,
        None => entries.push(mine),
    }
    write(&mut object, entries);
    Ok(object)
}

/// Notes in `object` that `manager` has made it of what was there by an update.
pub(super) fn note_update(existing: &Value, object: &mut Value, manager: &str, sub: &str) {
    let mut entries = entries(existing);
    let all: BTreeSet<_> = leaves(existing).union(&leaves(object)).cloned().collect();
    let changed: BTreeSet<_> = all.into_iter().filter(|field| at(existing, field) != at(object, field)).collect();
    for entry in &mut entries {
        entry.fields.retain(|field| !changed.iter().any(|change| touches(change, field)));
    }
    let mut fields: BTreeSet<_> = changed.into_iter().filter(|field| at(object, field).is_some()).collect();
    let own = |entry: &Entry| (&*entry.manager, &*entry.operation, &*entry.sub) == (manager, "Update", sub);
    if let Some(mine) = entries.iter().find(|entry| own(entry)) {
        fields.extend(mine.fields.iter().cloned());
    }
    entries.retain(|entry| !own(entry));
    entries.push(Entry { manager: manager.into(), operation: "Update".into(), sub: sub.into(), time: now(), fields });
    write(object, entries);
}

/// Whether one field is the other, or leads to it.
fn touches(one: &Field, other: &Field) -> bool {
    one.iter().zip(other).all(|(one, other)| one == other)
}

fn leaves(object: &Value) -> BTreeSet<Field> {
    fn walk(value: &Value, path: &mut Field, found: &mut BTreeSet<Field>) {
        match value {
            // An empty one names nothing.
            Value::Object(map) => {
                for (key, value) in map {
                    path.push(key.clone());
                    walk(value, path, found);
                    path.pop();
                }
            }
            _ => drop(found.insert(path.clone())),
        }
    }
    let mut found = BTreeSet::new();
    walk(object, &mut Vec::new(), &mut found);
    found.retain(|field| match field.as_slice() {
        [top] => !["apiVersion", "kind", "metadata"].contains(&top.as_str()),
        [top, second, ..] => top != "metadata" || !UNOWNED.contains(&second.as_str()),
        [] => false,
    });
    found
}

fn at<'v>(object: &'v Value, field: &Field) -> Option<&'v Value> {
    field.iter().try_fold(object, |value, key| value.get(key))
}

fn set(object: &mut Value, field: &[String], new: Value) {
    let Some((last, path)) = field.split_last() else { return };
    let mut value = object;
    for key in path {
        if !value[key].is_object() {
            value[key] = json!({});
        }
        value = &mut value[key];
    }
    value[last] = new;
}

fn remove(object: &mut Value, field: &[String]) {
    let Some((last, path)) = field.split_last() else { return };
    let parent = path.iter().try_fold(object, |value, key| value.get_mut(key));
    if let Some(map) = parent.and_then(Value::as_object_mut) {
        map.remove(last);
    }
}

fn entries(object: &Value) -> Vec<Entry> {
    fn read(value: &Value, path: &mut Field, found: &mut BTreeSet<Field>) {
        let keys =
            value.as_object().into_iter().flatten().filter_map(|(key, value)| Some((key.strip_prefix("f:")?, value)));
        let mut leaf = true;
        for (key, value) in keys {
            leaf = false;
            path.push(key.to_owned());
            read(value, path, found);
            path.pop();
        }
        if leaf && !path.is_empty() {
            found.insert(path.clone());
        }
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten().map(|entry| {
        let mut fields = BTreeSet::new();
        read(&entry["fieldsV1"], &mut Vec::new(), &mut fields);
        let (manager, operation, sub) = (&entry["manager"], &entry["operation"], &entry["subresource"]);
        let time = entry["time"].clone();
        Entry { manager: text(manager), operation: text(operation), sub: text(sub), time, fields }
    });
    entries.collect()
}

fn write(object: &mut Value, entries: Vec<Entry>) {
    let api_version = object["apiVersion"].clone();
    let entries = entries.into_iter().filter(|entry| !entry.fields.is_empty()).map(|entry| {
        let mut fields = Value::Object(Map::new());
        for field in &entry.fields {
            let path: Vec<_> = field.iter().map(|key| format!("f:{key}")).collect();
            set(&mut fields, &path, json!({}));
        }
        let mut written = json!({
            "manager": entry.manager, "operation": entry.operation, "apiVersion": api_version,
            "time": entry.time, "fieldsType": "FieldsV1", "fieldsV1": fields,
        });
        if !entry.sub.is_empty() {
            written["subresource"] = entry.sub.into();
        }
        written
    });
    object["metadata"]["managedFields"] = entries.collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(spec: Value) -> Value {
        json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "l" }, "spec": spec })
    }

    #[test]
    fn an_apply_owns_what_it_names_and_gives_up_what_it_no_longer_does() {
        let bare = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "l" } });
        let spec = json!({ "holderIdentity": "a", "leaseDurationSeconds": 15 });
        let mine = apply(&bare, &lease(spec), "a", "", false).expect("nobody owns anything");
        let conflicts = apply(&mine, &lease(json!({ "holderIdentity": "b" })), "b", "", false).expect_err("a owns it");
        assert_eq!(conflicts, [("a".to_owned(), ".spec.holderIdentity".to_owned())]);
        let same = apply(&mine, &lease(json!({ "holderIdentity": "a" })), "b", "", false).expect("they agree");
        assert_eq!(same["spec"]["leaseDurationSeconds"], 15);
        let forced = apply(&mine, &lease(json!({ "holderIdentity": "b" })), "b", "", true).expect("by force");
        assert_eq!(forced["spec"], json!({ "holderIdentity": "b", "leaseDurationSeconds": 15 }));
        let left = apply(&forced, &lease(json!({})), "a", "", false).expect("a gives up what is left");
        assert_eq!(left["spec"], json!({ "holderIdentity": "b" }));
    }

    #[test]
    fn an_update_takes_the_fields_that_it_changes() {
        let bare = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "l" } });
        let mine =
            apply(&bare, &lease(json!({ "holderIdentity": "a" })), "a", "", false).expect("nobody owns anything");
        let mut updated = mine.clone();
        updated["spec"]["holderIdentity"] = "u".into();
        note_update(&mine, &mut updated, "u", "");
        let conflicts = apply(&updated, &lease(json!({ "holderIdentity": "a" })), "a", "", false);
        assert_eq!(conflicts.expect_err("u owns it now"), [("u".to_owned(), ".spec.holderIdentity".to_owned())]);
    }
}
