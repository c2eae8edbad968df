//! The ConfigMaps and Secrets that pods of workloads name, each watched by its name alone: a node sees no others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use portreeve_manifests::{Kind, ObjectKey, ParsedFile, parse_file_in};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::warn;

use crate::keeper::{Holding, Said, config_file};
use crate::watching::{Trouble, trouble};

/// Watches what the holdings name until the credentials are refused.
pub(crate) async fn run(client: Client, said: mpsc::Sender<Said>, mut holdings: watch::Receiver<Arc<Vec<Holding>>>) {
    let mut watched = BTreeMap::new();
    // They end with it.
    let mut tasks = JoinSet::new();
    loop {
        let wanted: BTreeSet<ObjectKey> =
            holdings.borrow_and_update().iter().flat_map(|holding| holding.configs.clone()).collect();
        watched.retain(|key, task: &mut tokio::task::AbortHandle| {
            let kept = wanted.contains(key);
            if !kept {
                task.abort();
            }
            kept
        });
        for key in wanted {
            watched.entry(key.clone()).or_insert_with(|| {
                let (client, said) = (client.clone(), said.clone());
                tasks.spawn(async move {
                    match key.kind {
                        Kind::Secret => follow::<Secret>(client, key, said).await,
                        _ => follow::<ConfigMap>(client, key, said).await,
                    }
                })
            });
        }
        tokio::select! {
            // cancel-safe: the value stays in the channel.
            changed = holdings.changed() => if changed.is_err() { return },
            // cancel-safe: as its documentation says.
            Some(ended) = tasks.join_next() => match ended {
                // Only refused credentials end one.
                Ok(()) => return,
                Err(error) if error.is_cancelled() => {}
                Err(error) => warn!(error = %error, "a watch of a ConfigMap or Secret has failed"),
            },
        }
    }
}

async fn follow<K>(client: Client, key: ObjectKey, said: mpsc::Sender<Said>)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + 'static,
{
    let api: Api<K> = Api::namespaced(client, &key.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut listed = None;
    while let Some(event) = events.next().await {
        let now = match event {
            Ok(Event::Init) => {
                listed = None;
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listed = Some(object);
                continue;
            }
            Ok(Event::InitDone) => listed.take(),
            Ok(Event::Apply(object)) => Some(object),
            Ok(Event::Delete(_)) => None,
            Err(error) => match trouble(&error) {
                Trouble::Unauthorized => return,
                Trouble::Passing => continue,
                Trouble::Lasting(why) => {
                    warn!(object = %key, error = %why, "it cannot be read, and stays as it was");
                    continue;
                }
            },
        };
        let file = now.and_then(|object| file(&key, &object)).map(Arc::new);
        if said.send(Said::Config(key.clone(), file)).await.is_err() {
            return;
        }
    }
}

/// The object as a manifest: what only the cluster says of it left out.
fn file(key: &ObjectKey, object: &impl Serialize) -> Option<ParsedFile> {
    let Ok(Value::Object(mut said)) = serde_json::to_value(object) else { return None };
    let metadata = said.get("metadata").cloned().unwrap_or_default();
    said.insert("apiVersion".to_owned(), "v1".into());
    said.insert("kind".to_owned(), key.kind.as_str().into());
    said.insert(
        "metadata".to_owned(),
        json!({
            "name": key.name, "namespace": key.namespace,
            "labels": metadata.get("labels"), "annotations": metadata.get("annotations"),
        }),
    );
    Some(parse_file_in(&config_file(key), Value::Object(said).to_string().as_bytes(), &key.namespace))
}
