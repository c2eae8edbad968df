//! The NodeWorkloads of all namespaces, told to the keeper as far as they concern this node.

use std::collections::BTreeMap;
use std::pin::pin;

use futures_util::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use portreeve_crds::{NodeWorkload, NodeWorkloadSpec};
use tokio::sync::{mpsc, watch};
use tracing::debug;

use crate::connection::is_unauthorized;
use crate::holdings::WorkloadKey;
use crate::judge::Touched;
use crate::keeper::Said;

/// Workloads of one page of a list: what is read at once is in memory at once.
const PAGE: u32 = 100;

/// What a watch of the cluster says to its reader.
pub(crate) enum Trouble {
    /// It goes on by itself: the server closed it, or forgot where it was.
    Passing,
    /// The server does not answer, or says no.
    Lasting(String),
    /// The credentials are refused.
    Unauthorized,
}

/// What the error of a watch means.
pub(crate) fn trouble(error: &watcher::Error) -> Trouble {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => {
            if is_unauthorized(error) { Trouble::Unauthorized } else { Trouble::Lasting(error.to_string()) }
        }
        watcher::Error::WatchError(status) if status.code == 401 => Trouble::Unauthorized,
        watcher::Error::WatchFailed(error) if is_unauthorized(error) => Trouble::Unauthorized,
        watcher::Error::WatchError(_) | watcher::Error::WatchFailed(_) => Trouble::Passing,
        watcher::Error::NoResourceVersion => Trouble::Lasting(error.to_string()),
    }
}

/// Watches until the credentials are refused; `labels` are those of this node, without which nothing can be chosen.
/// Other labels choose other workloads, so all are listed again then.
pub(crate) async fn run(
    client: Client,
    said: mpsc::Sender<Said>,
    mut labels: watch::Receiver<Option<BTreeMap<String, String>>>,
    touched: mpsc::UnboundedSender<Touched>,
) {
    loop {
        let now = labels.borrow_and_update().clone();
        let Some(now) = now else {
            if labels.changed().await.is_err() {
                // Its sender ends with this one.
                std::future::pending::<()>().await;
            }
            continue;
        };
        if said.send(Said::Labels(now)).await.is_err() {
            return;
        }
        tokio::select! {
            () = follow(&client, &said, &touched) => return,
            // cancel-safe: the value stays in the channel.
            changed = labels.changed() => if changed.is_err() { std::future::pending::<()>().await },
        }
    }
}

/// Follows all workloads until the credentials are refused.
async fn follow(client: &Client, said: &mpsc::Sender<Said>, touched: &mpsc::UnboundedSender<Touched>) {
    let api: Api<DeserializeGuard<NodeWorkload>> = Api::all(client.clone());
    let config = watcher::Config::default().page_size(PAGE);
    let mut events = pin!(watcher(api, config).default_backoff());
    // Whatever was in the way before: the first answer says that it is not any more.
    let mut troubled = true;
    while let Some(event) = events.next().await {
        let word = match event {
            Ok(event) => {
                if std::mem::take(&mut troubled) && said.send(Said::Trouble(None)).await.is_err() {
                    return;
                }
                word(event, touched)
            }
            Err(error) => match trouble(&error) {
                Trouble::Unauthorized => return,
                Trouble::Passing => {
                    debug!(error = %error, "the watch of NodeWorkloads goes on");
                    continue;
                }
                Trouble::Lasting(why) => {
                    troubled = true;
                    Said::Trouble(Some(format!("NodeWorkloads cannot be read: {why}")))
                }
            },
        };
        if said.send(word).await.is_err() {
            return;
        }
    }
}

fn word(event: Event<DeserializeGuard<NodeWorkload>>, touched: &mpsc::UnboundedSender<Touched>) -> Said {
    let key = |guard: &DeserializeGuard<NodeWorkload>| WorkloadKey {
        namespace: guard.namespace().unwrap_or_default(),
        name: guard.name_any(),
    };
    let touch = |key: &WorkloadKey, spec| {
        // Who judges ends with this one.
        let _ = touched.send((key.clone(), spec));
    };
    match event {
        Event::Init => Said::Listing,
        Event::InitDone => Said::Listed,
        Event::InitApply(guard) | Event::Apply(guard) => {
            let key = key(&guard);
            touch(&key, Some(Box::new(guard.0.as_ref().map(choice).unwrap_or_else(|_| nobody()))));
            let workload = guard.0.map(without_records).map_err(|invalid| invalid.error);
            Said::Workload(key, Box::new(workload))
        }
        Event::Delete(guard) => {
            let key = key(&guard);
            touch(&key, None);
            Said::Gone(key)
        }
    }
}

/// What chooses a workload's nodes, without what runs on them.
fn choice(workload: &NodeWorkload) -> NodeWorkloadSpec {
    NodeWorkloadSpec {
        node_selector: workload.spec.node_selector.clone(),
        node_names: workload.spec.node_names.clone(),
        ..NodeWorkloadSpec::default()
    }
}

/// Chooses no node: what cannot be read is for none.
fn nobody() -> NodeWorkloadSpec {
    NodeWorkloadSpec { node_names: vec![String::new()], ..NodeWorkloadSpec::default() }
}

/// Who wrote which field is as long as the object itself, and nobody here asks.
fn without_records(mut workload: NodeWorkload) -> NodeWorkload {
    workload.metadata.managed_fields = None;
    if let Some(annotations) = &mut workload.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    workload
}
