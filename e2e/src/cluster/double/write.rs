//! Writes: create, update, patch, apply, delete.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::defaults::fill_in;
use super::selector::Selector;
use super::{Client, Decision, Key, Kind, Store, fields, now, text};
use crate::cluster::call::Call;
use crate::cluster::status::{Body, Refusal, json_answer};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// A write of one object.
struct Write<'c> {
    kind: &'static Kind,
    call: &'c Call,
    /// Who owns what it changes.
    manager: String,
}

/// Carries out a write.
pub(super) fn write(
    store: &Store,
    kind: &'static Kind,
    call: &Call,
    body: &[u8],
    client: &Client,
) -> Result<Response<Body>, Refusal> {
    let manager = call.option("fieldManager").unwrap_or(&client.manager).to_owned();
    let write = Write { kind, call, manager };
    let read = || -> Result<Value, Refusal> {
        let read: Value = match call.verb {
            // JSON is YAML.
            "apply" => serde_yaml::from_slice(body).map_err(|error| Refusal::bad_request(error.to_string()))?,
            _ => serde_json::from_slice(body).map_err(|error| Refusal::bad_request(error.to_string()))?,
        };
        if read.is_object() { Ok(read) } else { Err(Refusal::bad_request("the body of the request is no object")) }
    };
    if ["create", "update"].contains(&call.verb) && call.content_type != JSON {
        return Err(Refusal::unsupported_media(JSON));
    }
    let mut made = false;
    let object = match call.verb {
        "create" if call.name.is_empty() => {
            made = true;
            write.create(store, read()?)?
        }
        "update" => write.update(store, &read()?, &mut made)?,
        "patch" if call.content_type == MERGE => write.merge(store, &read()?)?,
        "patch" => return Err(Refusal::unsupported_media(&format!("{MERGE}, {APPLY}"))),
        "apply" => write.apply(store, &read()?, &mut made)?,
        "delete" => return write.delete(store, body),
        "deletecollection" => return write.delete_many(store, body),
        _ => return Err(Refusal::method_not_allowed()),
    };
    let code = if made { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json_answer(code, &client.shape.of(&object)))
}

impl Write<'_> {
    fn key(&self) -> Key {
        (self.call.namespace.clone(), self.call.name.clone())
    }

    fn create(&self, store: &Store, mut object: Value) -> Result<Arc<Value>, Refusal> {
        if text(&object, "/metadata/name").is_empty() && !text(&object, "/metadata/generateName").is_empty() {
            let name = format!("{}{}", text(&object, "/metadata/generateName"), &random()[..5]);
            object["metadata"]["name"] = name.into();
        }
        let name = text(&object, "/metadata/name").to_owned();
        if !text(&object, "/metadata/resourceVersion").is_empty() {
            return Err(Refusal::bad_request("resourceVersion should not be set on objects to be created"));
        }
        self.check(&mut object, &name)?;
        fill_in(self.kind, &mut object);
        self.check_namespace(store)?;
        let key = (self.call.namespace.clone(), name.clone());
        store.change(self.kind, &key, |existing| match existing {
            Some(_) => Err(Refusal::already_exists(self.kind, &name)),
            None => {
                let mut object = self.begun(object);
                fields::note_update(&Value::Null, &mut object, &self.manager, "");
                Ok(self.put(object))
            }
        })
    }

    fn update(&self, store: &Store, body: &Value, made: &mut bool) -> Result<Arc<Value>, Refusal> {
        let name = &self.call.name;
        let mut object = body.clone();
        self.check(&mut object, name)?;
        fill_in(self.kind, &mut object);
        let version = text(&object, "/metadata/resourceVersion").to_owned();
        if version.is_empty() && !self.kind.updates_unconditionally {
            let why = "Invalid value: 0: must be specified for an update";
            return Err(Refusal::invalid(self.kind, name, "metadata.resourceVersion", why));
        }
        self.check_namespace(store)?;
        store.change(self.kind, &self.key(), |existing| match existing {
            Some(existing) => self.replace(existing, object),
            None if self.kind.creates_on_update && version.is_empty() => {
                *made = true;
                let mut object = self.begun(object);
                fields::note_update(&Value::Null, &mut object, &self.manager, "");
                Ok(self.put(object))
            }
            None => Err(Refusal::not_found(self.kind, name)),
        })
    }

    fn merge(&self, store: &Store, patch: &Value) -> Result<Arc<Value>, Refusal> {
        store.change(self.kind, &self.key(), |existing| {
            let existing = existing.ok_or_else(|| Refusal::not_found(self.kind, &self.call.name))?;
            let mut object = existing.clone();
            merge(&mut object, patch);
            self.check(&mut object, &self.call.name)?;
            fill_in(self.kind, &mut object);
            self.replace(existing, object)
        })
    }

    fn apply(&self, store: &Store, config: &Value, made: &mut bool) -> Result<Arc<Value>, Refusal> {
        let name = &self.call.name;
        let Some(manager) = self.call.option("fieldManager") else {
            let message =
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
            return Err(Refusal::bad_request(message));
        };
        if !config["metadata"]["managedFields"].is_null() {
            return Err(Refusal::bad_request("metadata.managedFields must be nil"));
        }
        let mut config = config.clone();
        self.check(&mut config, name)?;
        self.check_namespace(store)?;
        store.change(self.kind, &self.key(), |existing| {
            let version = text(&config, "/metadata/resourceVersion");
            let begun = match existing {
                Some(existing) => existing.clone(),
                None if version.is_empty() => {
                    *made = true;
                    let mut bare = json!({ "apiVersion": self.kind.api_version(), "kind": self.kind.kind, "metadata": { "name": name } });
                    if self.kind.namespaced {
                        bare["metadata"]["namespace"] = self.call.namespace.clone().into();
                    }
                    self.begun(bare)
                }
                None => return Err(Refusal::not_found(self.kind, name)),
            };
            self.check_version(&begun, &config)?;
            let applied = fields::apply(&begun, &config, manager, &self.call.sub, self.call.is_set("force"));
            let mut object = applied.map_err(|conflicts| Refusal::fields_are_owned(&conflicts))?;
            fill_in(self.kind, &mut object);
            Ok(if existing == Some(&object) { Decision::Leave(object) } else { self.put(object) })
        })
    }

    fn delete(&self, store: &Store, body: &[u8]) -> Result<Response<Body>, Refusal> {
        let options: Value =
            if body.is_empty() { Value::Null } else { serde_json::from_slice(body).unwrap_or_default() };
        let object = self.delete_one(store, &self.key(), &options)?;
        if !text(&object, "/metadata/deletionTimestamp").is_empty() {
            return Ok(json_answer(StatusCode::OK, &object));
        }
        let uid = &object["metadata"]["uid"];
        let details = json!({ "name": self.call.name, "group": self.kind.group, "kind": self.kind.plural, "uid": uid });
        Ok(json_answer(StatusCode::OK, &success(details)))
    }

    fn delete_many(&self, store: &Store, body: &[u8]) -> Result<Response<Body>, Refusal> {
        let options: Value =
            if body.is_empty() { Value::Null } else { serde_json::from_slice(body).unwrap_or_default() };
        let selector = Selector::of(self.call, self.kind)?;
        let (_, objects) = store.all(self.kind);
        for (key, _) in objects.iter().filter(|(_, object)| selector.matches(object)) {
            // Another may have removed it meanwhile.
            let _ = self.delete_one(store, key, &options);
        }
        Ok(json_answer(StatusCode::OK, &success(json!({ "group": self.kind.group, "kind": self.kind.plural }))))
    }

    fn delete_one(&self, store: &Store, key: &Key, options: &Value) -> Result<Arc<Value>, Refusal> {
        store.change(self.kind, key, |existing| {
            let existing = existing.ok_or_else(|| Refusal::not_found(self.kind, &key.1))?;
            for (name, path) in [("uid", "/metadata/uid"), ("resourceVersion", "/metadata/resourceVersion")] {
                let (wanted, is) = (text(options, &format!("/preconditions/{name}")), text(existing, path));
                if !wanted.is_empty() && wanted != is {
                    let why =
                        format!("Precondition failed: {name} in precondition: {wanted}, {name} in object meta: {is}");
                    return Err(Refusal::conflict(self.kind, &key.1, &why));
                }
            }
            let mut object = existing.clone();
            if !has_finalizers(&object) {
                return Ok(if self.call.is_set("dryRun") { Decision::Leave(object) } else { Decision::Remove(object) });
            }
            if object["metadata"]["deletionTimestamp"].is_null() {
                object["metadata"]["deletionTimestamp"] = now();
                object["metadata"]["deletionGracePeriodSeconds"] = 0.into();
                return Ok(self.put(object));
            }
            Ok(Decision::Leave(object))
        })
    }

    /// What an update makes of what is there.
    fn replace(&self, existing: &Value, mut object: Value) -> Result<Decision, Refusal> {
        self.check_version(existing, &object)?;
        if existing["immutable"] == true
            && ["data", "binaryData", "immutable"].iter().any(|key| existing[*key] != object[*key])
        {
            let why = "Forbidden: field is immutable when `immutable` is set";
            return Err(Refusal::invalid(self.kind, &self.call.name, "data", why));
        }
        if self.kind.has_status {
            if self.call.sub == "status" {
                let status = object["status"].take();
                object = existing.clone();
                object["status"] = status;
            } else {
                object["status"] = existing["status"].clone();
            }
            if object["status"].is_null() {
                object.as_object_mut().map(|object| object.remove("status"));
            }
        }
        let kept = ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"];
        for key in kept.into_iter().chain(["managedFields"]) {
            match &existing["metadata"][key] {
                Value::Null => drop(object["metadata"].as_object_mut().map(|metadata| metadata.remove(key))),
                value => object["metadata"][key] = value.clone(),
            }
        }
        if object == *existing {
            return Ok(Decision::Leave(object));
        }
        fields::note_update(existing, &mut object, &self.manager, &self.call.sub);
        Ok(self.put(object))
    }

    /// Refuses what does not fit its path, and completes what is left out.
    fn check(&self, object: &mut Value, name: &str) -> Result<(), Refusal> {
        let kind = self.kind;
        let (api_version, named) = (text(object, "/apiVersion"), text(object, "/kind"));
        let left_out = api_version.is_empty() && named.is_empty();
        if !left_out && (api_version, named) != (&*kind.api_version(), kind.kind) {
            let message = format!(
                "{api_version}, Kind={named} was sent where {}, Kind={} belongs",
                kind.api_version(),
                kind.kind
            );
            return Err(Refusal::bad_request(message));
        }
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.kind.into();
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        match text(object, "/metadata/name") {
            "" if name.is_empty() => {
                let why = "Required value: name or generateName is required";
                return Err(Refusal::invalid(kind, "", "metadata.name", why));
            }
            "" => object["metadata"]["name"] = name.into(),
            own if own != name => {
                let message = format!("the name of the object ({own}) does not match the name on the URL ({name})");
                return Err(Refusal::bad_request(message));
            }
            _ => {}
        }
        let ends =
            |letter: Option<char>| letter.is_some_and(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit());
        let within = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.".contains(letter);
        if !(ends(name.chars().next()) && ends(name.chars().last()) && name.chars().all(within) && name.len() <= 253) {
            let why = format!("Invalid value: {name:?}: a lowercase RFC 1123 subdomain is needed");
            return Err(Refusal::invalid(kind, name, "metadata.name", &why));
        }
        match (kind.namespaced, text(object, "/metadata/namespace")) {
            (true, own) if !own.is_empty() && own != self.call.namespace => Err(Refusal::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            )),
            (true, _) => {
                object["metadata"]["namespace"] = self.call.namespace.clone().into();
                Ok(())
            }
            (false, _) => Ok(()),
        }
    }

    /// Objects are made in namespaces that are there and stay.
    fn check_namespace(&self, store: &Store) -> Result<(), Refusal> {
        let namespace = &self.call.namespace;
        if !self.kind.namespaced {
            return Ok(());
        }
        let kind = Kind::find("", "v1", "namespaces").ok_or_else(Refusal::no_such_resource)?;
        let key = (String::new(), namespace.clone());
        let found = store.get(kind, &key).ok_or_else(|| Refusal::not_found(kind, namespace))?;
        if text(&found, "/metadata/deletionTimestamp").is_empty() {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        Err(Refusal::forbidden(self.kind, &self.call.name, &why))
    }

    /// A write that names a revision or a uid is for that alone.
    fn check_version(&self, existing: &Value, object: &Value) -> Result<(), Refusal> {
        let differs = |pointer: &str| {
            let wanted = text(object, pointer);
            !wanted.is_empty() && wanted != text(existing, pointer)
        };
        let name = &self.call.name;
        if differs("/metadata/uid") {
            let (wanted, is) = (text(object, "/metadata/uid"), text(existing, "/metadata/uid"));
            let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {is}");
            return Err(Refusal::conflict(self.kind, name, &why));
        }
        if differs("/metadata/resourceVersion") {
            let why = "the object has been modified; please apply your changes to the latest version and try again";
            return Err(Refusal::conflict(self.kind, name, why));
        }
        Ok(())
    }

    /// A new object with what the server gives it.
    fn begun(&self, mut object: Value) -> Value {
        object["metadata"]["uid"] = random().into();
        object["metadata"]["creationTimestamp"] = now();
        object
    }

    /// What is stored: an object whose last finalizer goes while it is deleted goes with it.
    fn put(&self, object: Value) -> Decision {
        if self.call.option("dryRun") == Some("All") {
            return Decision::Leave(object);
        }
        let deleted = !object["metadata"]["deletionTimestamp"].is_null();
        if deleted && !has_finalizers(&object) { Decision::Remove(object) } else { Decision::Put(object) }
    }
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
}

fn success(details: Value) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

/// A JSON merge patch, RFC 7386.
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        if !value.is_null() {
            merge(&mut object[key], value);
        } else if let Some(object) = object.as_object_mut() {
            object.remove(key);
        }
    }
}

/// A random UUID.
fn random() -> String {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("the kernel makes UUIDs");
    uuid.trim().to_owned()
}
