//! The API that fleets are tested with: that the server for custom resources and the double beside it do what Kubernetes
//! documents, and that each fault does what it says. Driven by the client that agents have.

use std::fmt::Debug;
use std::future::Future;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
    Preconditions, WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Client, Config, ResourceExt};
use portreeve_e2e::cluster::{ApiServer, Door, Fault, Reads, Requests};
use portreeve_e2e::{World, patience, skipped_without_root, wait_until};
use serde_json::{Value, json};

/// A client that tries nothing twice.
async fn client(door: &Door) -> Client {
    let kubeconfig = Kubeconfig::read_from(door.kubeconfig()).expect("a kubeconfig file");
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a config");
    config.default_retry = false;
    Client::try_from(config).expect("a client")
}

/// A definition with a default, a rule in CEL and a status.
fn definition() -> Value {
    let length = json!({ "type": "integer", "minimum": 1 });
    let spec = json!({
        "type": "object",
        "required": ["length"],
        "properties": { "length": length, "depth": { "type": "integer", "default": 4 }, "quay": { "type": "string" } },
        "x-kubernetes-validations": [{ "rule": "self.depth <= self.length", "message": "deeper than long" }],
    });
    let status = json!({ "type": "object", "properties": { "ship": { "type": "string" } } });
    let schema = json!({ "type": "object", "properties": { "spec": spec, "status": status } });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": "berths.portreeve.dev" },
        "spec": {
            "group": "portreeve.dev",
            "scope": "Namespaced",
            "names": { "plural": "berths", "singular": "berth", "kind": "Berth", "shortNames": ["bt"] },
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": schema }, "subresources": { "status": {} },
            }],
        },
    })
}

fn berth(name: &str, spec: Value) -> DynamicObject {
    let object =
        json!({ "apiVersion": "portreeve.dev/v1alpha1", "kind": "Berth", "metadata": { "name": name }, "spec": spec });
    serde_json::from_value(object).expect("an object")
}

fn berths(client: &Client) -> Api<DynamicObject> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("portreeve.dev", "v1alpha1", "Berth"));
    Api::default_namespaced_with(client.clone(), &kind)
}

/// Makes the definition, and waits until its resources are served.
async fn define(client: &Client) {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let crd = serde_json::from_value(definition()).expect("a definition");
    crds.create(&PostParams::default(), &crd).await.expect("the definition is taken");
    until("the definition is established", || async {
        let crd = crds.get("berths.portreeve.dev").await.map_err(|error| error.to_string())?;
        let conditions = crd.status.and_then(|status| status.conditions).unwrap_or_default();
        let established = conditions.iter().any(|it| it.type_ == "Established" && it.status == "True");
        if established { Ok(()) } else { Err(format!("{conditions:?}")) }
    })
    .await;
    // What is established is served a moment later.
    until("berths are served", || async {
        berths(client).list(&ListParams::default()).await.map_err(|e| e.to_string())
    })
    .await;
}

/// Waits as `wait_until` does, and lets others go on meanwhile.
async fn until<T, F: Future<Output = Result<T, String>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(found) => return found,
            Err(last) => assert!(begun.elapsed() < patience(20), "waited until {what}; at last: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What happens next, which must be soon.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(patience(20), future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// The code, the reason and the message of a refusal.
#[track_caller]
fn refused<T: Debug>(result: Result<T, kube::Error>) -> (u16, String, String) {
    match result.expect_err("it is refused") {
        kube::Error::Api(status) => (status.code, status.reason, status.message),
        other => panic!("no answer of the API: {other:?}"),
    }
}

/// There was no answer.
#[track_caller]
fn unanswered<T: Debug>(result: Result<T, kube::Error>) {
    let error = result.expect_err("there is no answer");
    assert!(!matches!(error, kube::Error::Api(_)), "{error:?}");
}

/// Whether an event is more than a revision.
fn no_bookmark<K>(event: &Result<WatchEvent<K>, kube::Error>) -> std::future::Ready<bool> {
    std::future::ready(!matches!(event, Ok(WatchEvent::Bookmark(_))))
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({ "metadata": { "name": name }, "data": { "key": value } })).expect("a ConfigMap")
}

fn lease(name: &str, spec: Value) -> Lease {
    let object =
        json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": name }, "spec": spec });
    serde_json::from_value(object).expect("a Lease")
}

#[tokio::test]
async fn custom_resources_are_defaulted_checked_and_owned() {
    let cluster = ApiServer::start();
    let client = client(cluster.door()).await;
    define(&client).await;
    let (berths, post) = (berths(&client), PostParams::default());

    let made =
        berths.create(&post, &berth("a", json!({ "length": 9, "left": true }))).await.expect("it fits the schema");
    assert_eq!(made.data["spec"], json!({ "length": 9, "depth": 4 }), "defaulted, and pruned of what is in no schema");
    let (code, _, message) = refused(berths.create(&post, &berth("b", json!({ "length": "long" }))).await);
    assert!(code == 422 && message.contains("spec.length"), "{code} {message}");

    let deep = Patch::Merge(json!({ "spec": { "depth": 10 } }));
    let (code, reason, message) = refused(berths.patch("a", &PatchParams::default(), &deep).await);
    assert!(code == 422 && reason == "Invalid" && message.contains("deeper than long"), "{code} {message}");

    // Each of the two writes its own part alone.
    let mut both = made.clone();
    both.data["status"] = json!({ "ship": "Argo" });
    both.data["spec"]["quay"] = "north".into();
    let status = berths.replace_status("a", &post, &both).await.expect("a status");
    assert_eq!((&status.data["status"]["ship"], &status.data["spec"]["quay"]), (&json!("Argo"), &Value::Null));
    assert_eq!(status.metadata.generation, Some(1), "a status is no new generation");
    let (code, reason, _) = refused(berths.replace("a", &post, &both).await);
    assert_eq!((code, &*reason), (409, "Conflict"), "it was made of an older version");

    let apply = |manager: &str| PatchParams::apply(manager);
    let quay = |quay: &str| Patch::Apply(berth("c", json!({ "length": 9, "quay": quay })));
    berths.patch("c", &apply("one"), &quay("north")).await.expect("made by an apply");
    let (code, _, message) = refused(berths.patch("c", &apply("two"), &quay("south")).await);
    assert!(code == 409 && message.contains("conflict with \"one\"") && message.contains(".spec.quay"), "{message}");
    let forced = berths.patch("c", &apply("two").force(), &quay("south")).await.expect("by force");
    assert_eq!((&forced.data["spec"]["quay"], forced.metadata.generation), (&json!("south"), Some(2)));

    let (code, _, message) =
        refused(Api::<Lease>::namespaced(client.clone(), "none").create(&post, &lease("l", json!({}))).await);
    assert!(code == 404 && message.contains("namespaces \"none\" not found"), "{message}");
}

#[tokio::test]
async fn a_killed_server_comes_back_with_what_it_had() {
    let cluster = ApiServer::start();
    let client = client(cluster.door()).await;
    define(&client).await;
    let berths = berths(&client);
    berths.create(&PostParams::default(), &berth("a", json!({ "length": 9 }))).await.expect("made");
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    maps.create(&PostParams::default(), &config_map("m", "1")).await.expect("made");
    let mut events = std::pin::pin!(watcher(berths.clone(), watcher::Config::default()));
    soon("the first list", async { while !matches!(events.next().await, Some(Ok(watcher::Event::InitDone))) {} }).await;
    let latest =
        berths.list(&ListParams::default()).await.expect("a list").metadata.resource_version.expect("a version");

    let address = cluster.door().address();
    cluster.stop();
    let refusal = std::net::TcpStream::connect(address).expect_err("nobody listens");
    assert_eq!(refusal.kind(), std::io::ErrorKind::ConnectionRefused);
    unanswered(berths.get("a").await);
    assert!(matches!(soon("the watch ends", events.next()).await, Some(Err(_))), "the watch is cut");
    cluster.start_again();
    assert_eq!(cluster.door().address(), address);

    assert_eq!(berths.get("a").await.expect("it was kept").data["spec"]["length"], 9);
    assert_eq!(maps.get("m").await.expect("it was kept").data.expect("data")["key"], "1");
    // From where the last list ended, as nothing was written since.
    let from_there = berths.watch(&WatchParams::default(), &latest).await.expect("a watch");
    let mut from_there = std::pin::pin!(from_there);
    berths.create(&PostParams::default(), &berth("b", json!({ "length": 9 }))).await.expect("made");
    match soon("the first event", from_there.next()).await {
        Some(Ok(WatchEvent::Added(object))) => assert_eq!(object.name_any(), "b"),
        other => panic!("{other:?}"),
    }
    soon("the watcher sees it", async {
        loop {
            if let Some(Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) = events.next().await
                && object.name_any() == "b"
            {
                break;
            }
        }
    })
    .await;
}

/// The code that a watch from a revision ends with.
async fn watch_refusal<K>(api: &Api<K>, version: &str) -> u16
where
    K: Clone + Debug + serde::de::DeserializeOwned,
{
    let events = api.watch(&WatchParams::default(), version).await.expect("it begins");
    match soon("the watch's first event", std::pin::pin!(events).next()).await {
        Some(Ok(WatchEvent::Error(status))) => status.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn forgotten_history_is_gone() {
    let cluster = ApiServer::start();
    let client = client(cluster.door()).await;
    define(&client).await;
    let (berths, post) = (berths(&client), PostParams::default());
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    for name in ["a", "b", "c"] {
        berths.create(&post, &berth(name, json!({ "length": 9 }))).await.expect("made");
        maps.create(&post, &config_map(name, "1")).await.expect("made");
    }
    let page = ListParams::default().limit(2);
    let (some_berths, some_maps) = (berths.list(&page).await.expect("a page"), maps.list(&page).await.expect("a page"));
    assert_eq!((some_berths.items.len(), some_maps.items.len()), (2, 2));
    assert_eq!(
        (some_berths.metadata.remaining_item_count, some_maps.metadata.remaining_item_count),
        (Some(1), Some(1))
    );
    let rest = |metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta| {
        page.clone().continue_token(metadata.continue_.as_deref().expect("there is more"))
    };
    let (rest_of_berths, rest_of_maps) = (rest(&some_berths.metadata), rest(&some_maps.metadata));
    // A page is of the list that the first one was of.
    berths.delete("c", &DeleteParams::default()).await.expect("deleted");
    maps.delete("c", &DeleteParams::default()).await.expect("deleted");
    assert_eq!(berths.list(&rest_of_berths).await.expect("a page").items.len(), 1);
    assert_eq!(maps.list(&rest_of_maps).await.expect("a page").items.len(), 1);

    berths.create(&post, &berth("d", json!({ "length": 9 }))).await.expect("made");
    cluster.compact();
    let (code, reason, _) = refused(maps.list(&rest_of_maps).await);
    assert_eq!((code, &*reason), (410, "Expired"));
    assert_eq!(watch_refusal(&maps, &some_maps.metadata.resource_version.expect("a version")).await, 410);
    // The server has the past of custom resources in its memory, too.
    cluster.stop();
    cluster.start_again();
    let (code, reason, _) = refused(berths.list(&rest_of_berths).await);
    assert_eq!((code, &*reason), (410, "Expired"));
    assert_eq!(watch_refusal(&berths, &some_berths.metadata.resource_version.expect("a version")).await, 410);
}

#[tokio::test]
async fn leases_are_written_by_who_has_seen_the_last_version() {
    let cluster = ApiServer::start();
    let client = client(cluster.door()).await;
    let (leases, post) = (Api::<Lease>::default_namespaced(client.clone()), PostParams::default());
    let held = |holder: &str| json!({ "holderIdentity": holder, "leaseDurationSeconds": 15 });
    let first = leases.create(&post, &lease("l", held("a"))).await.expect("made");
    assert_eq!(refused(leases.create(&post, &lease("l", held("b"))).await).1, "AlreadyExists");
    let mut second = first.clone();
    second.spec.get_or_insert_default().holder_identity = Some("b".into());
    let second = leases.replace("l", &post, &second).await.expect("it is of the last version");
    let (code, reason, message) = refused(leases.replace("l", &post, &first).await);
    assert_eq!((code, &*reason), (409, "Conflict"));
    assert!(message.contains("the object has been modified"), "{message}");
    assert_eq!(
        refused(leases.replace("l", &post, &lease("l", held("c"))).await).0,
        422,
        "a Lease's update names a version"
    );
    let same = leases.replace("l", &post, &second).await.expect("nothing to do");
    assert_eq!(same.resource_version(), second.resource_version(), "an update that changes nothing is no new version");

    let stale =
        json!({ "metadata": { "resourceVersion": first.resource_version() }, "spec": { "holderIdentity": "c" } });
    assert_eq!(refused(leases.patch("l", &PatchParams::default(), &Patch::Merge(stale)).await).0, 409);
    let free = json!({ "spec": { "holderIdentity": null } });
    let free = leases.patch("l", &PatchParams::default(), &Patch::Merge(free)).await.expect("patched");
    assert_eq!(free.spec.expect("a spec").holder_identity, None);

    let apply = |holder: &str| Patch::Apply(lease("s", held(holder)));
    leases.patch("s", &PatchParams::apply("a"), &apply("a")).await.expect("made by an apply");
    let (code, _, message) = refused(leases.patch("s", &PatchParams::apply("b"), &apply("b")).await);
    assert!(code == 409 && message.contains("conflict with \"a\": .spec.holderIdentity"), "{message}");
    let taken = leases.patch("s", &PatchParams::apply("b").force(), &apply("b")).await.expect("by force");
    assert_eq!(taken.spec.expect("a spec").holder_identity.as_deref(), Some("b"));

    let older = Preconditions { resource_version: first.resource_version(), uid: None };
    assert_eq!(refused(leases.delete("l", &DeleteParams::default().preconditions(older)).await).0, 409);
    leases.delete("l", &DeleteParams::default()).await.expect("deleted");
    assert_eq!(refused(leases.get("l").await).1, "NotFound");
}

#[tokio::test]
async fn the_double_lists_and_watches_as_the_api_does() {
    let cluster = ApiServer::start();
    let client = client(cluster.door()).await;
    let (maps, post) = (Api::<ConfigMap>::default_namespaced(client.clone()), PostParams::default());
    let mut map = config_map("m", "1");
    map.metadata.labels = Some([("ship".to_owned(), "argo".to_owned())].into());
    map.metadata.finalizers = Some(vec!["portreeve.dev/keep".to_owned()]);
    let made = maps.create(&post, &map).await.expect("made");
    maps.create(&post, &config_map("other", "1")).await.expect("made");

    let by_name = ListParams::default().fields("metadata.name=m");
    assert_eq!(maps.list(&by_name).await.expect("a list").items.len(), 1);
    let by_label = ListParams::default().labels("ship in (argo, beagle)");
    assert_eq!(maps.list(&by_label).await.expect("a list").items[0].name_any(), "m");
    let elsewhere = Api::<ConfigMap>::namespaced(client.clone(), "kube-system").list(&ListParams::default()).await;
    assert_eq!(elsewhere.expect("a list").items.len(), 0);

    // Who no longer has the label is gone for who selects by it.
    let from = made.resource_version().expect("a version");
    let labelled = maps.watch(&WatchParams::default().labels("ship"), &from).await.expect("a watch");
    let named = maps.watch(&WatchParams::default().fields("metadata.name=m").timeout(5), &from).await.expect("a watch");
    let unlabel = Patch::Merge(json!({ "metadata": { "labels": null } }));
    maps.patch("m", &PatchParams::default(), &unlabel).await.expect("patched");
    let first = soon("an event", std::pin::pin!(labelled).next()).await;
    assert!(matches!(&first, Some(Ok(WatchEvent::Deleted(map))) if map.labels()["ship"] == "argo"), "{first:?}");
    // What has a finalizer stays until that is taken.
    let deleted = maps.delete("m", &DeleteParams::default()).await.expect("deleted").left().expect("it is still there");
    assert!(deleted.metadata.deletion_timestamp.is_some());
    let unkeep = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    maps.patch("m", &PatchParams::default(), &unkeep).await.expect("patched");
    assert_eq!(refused(maps.get("m").await).0, 404);
    let events: Vec<_> = soon("the watch ends", named.try_collect()).await.expect("events");
    let told: Vec<_> = events.iter().map(|event| format!("{event:?}")).collect();
    assert_eq!(told, ["Modified event", "Modified event", "Deleted event", "Bookmark event"]);

    for config in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
        watcher::Config::default().page_size(1),
    ] {
        let mut events = std::pin::pin!(watcher(maps.clone(), config.clone()));
        let mut names = Vec::new();
        soon("the first list", async {
            loop {
                match events.next().await.expect("watchers do not end").expect("no failure") {
                    watcher::Event::InitApply(map) => names.push(map.name_any()),
                    watcher::Event::InitDone => break,
                    _ => {}
                }
            }
        })
        .await;
        assert_eq!(names, ["other"], "{config:?}");
    }
    let metadata = maps.get_metadata("other").await.expect("metadata");
    assert_eq!(
        (metadata.name_any(), metadata.types.expect("types").kind),
        ("other".into(), "PartialObjectMetadata".into())
    );

    let node = json!({ "metadata": { "name": "n" }, "status": { "phase": "Running" } });
    let nodes: Api<Node> = Api::all(client.clone());
    let node = nodes.create(&post, &serde_json::from_value(node).expect("a Node")).await.expect("made");
    assert_eq!(node.metadata.namespace, None);
    let secret = json!({ "metadata": { "name": "s" }, "stringData": { "key": "open sesame" } });
    let secrets: Api<Secret> = Api::default_namespaced(client.clone());
    let secret = secrets.create(&post, &serde_json::from_value(secret).expect("a Secret")).await.expect("made");
    assert_eq!((&*secret.data.expect("data")["key"].0, secret.type_.as_deref()), (&b"open sesame"[..], Some("Opaque")));
    assert_eq!(Api::<Namespace>::all(client).list(&ListParams::default()).await.expect("a list").items.len(), 4);
}

#[tokio::test]
async fn each_fault_does_what_it_says() {
    let cluster = ApiServer::start();
    let door = cluster.door();
    let client = client(door).await;
    define(&client).await;
    let (berths, maps) = (berths(&client), Api::<ConfigMap>::default_namespaced(client.clone()));
    let post = PostParams::default();
    maps.create(&post, &config_map("m", "1")).await.expect("made");
    let list = ListParams::default();

    for (fault, code) in [(Fault::Gone, 410), (Fault::Conflict, 409), (Fault::InternalError, 500)] {
        let fault = door.inject(Requests::all().verb("list"), fault);
        assert_eq!((refused(berths.list(&list).await).0, refused(maps.list(&list).await).0), (code, code));
        maps.get("m").await.expect("it is for lists");
        assert_eq!(fault.met(), 2);
    }
    berths.list(&list).await.expect("it ended with what stood for it");
    let gone = door.inject(Requests::all().verb("watch").resource("configmaps"), Fault::Gone);
    assert_eq!(watch_refusal(&maps, "0").await, 410);
    drop(gone);

    let busy = door.inject(Requests::all().times(1), Fault::TooMany(Duration::from_secs(1)));
    match berths.list(&list).await.expect_err("it is refused") {
        kube::Error::Api(status) => {
            assert_eq!((status.code, status.details.expect("details").retry_after_seconds), (429, 1));
        }
        other => panic!("{other:?}"),
    }
    berths.list(&list).await.expect("it was for one");
    drop(busy);

    let slow = door.inject(Requests::all().resource("configmaps").named("m"), Fault::Slow(Duration::from_millis(300)));
    let begun = Instant::now();
    maps.get("m").await.expect("it comes");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    drop(slow);
    let silent = door.inject(Requests::all().verb("get"), Fault::Silence);
    assert!(tokio::time::timeout(Duration::from_millis(300), maps.get("m")).await.is_err(), "nothing comes");
    drop(silent);

    let cut = door.inject(Requests::all().verb("create"), Fault::Cut);
    unanswered(maps.create(&post, &config_map("cut", "1")).await);
    assert_eq!(refused(maps.get("cut").await).0, 404, "it was not carried out");
    drop(cut);
    let lost = door.inject(Requests::all().verb("create"), Fault::LostAnswer);
    unanswered(maps.create(&post, &config_map("lost", "1")).await);
    unanswered(berths.create(&post, &berth("lost", json!({ "length": 9 }))).await);
    drop(lost);
    maps.get("lost").await.expect("it was carried out");
    berths.get("lost").await.expect("it was carried out");

    for cut in [Door::cut as fn(&Door), Door::expire_watches, Door::close] {
        let (of_berths, of_maps) = (WatchParams::default(), WatchParams::default());
        let of_berths = berths.watch(&of_berths, "0").await.expect("a watch").filter(no_bookmark);
        let of_maps = maps.watch(&of_maps, "0").await.expect("a watch").filter(no_bookmark);
        // After what is there comes what happens.
        let (mut of_berths, mut of_maps) = (std::pin::pin!(of_berths.skip(1)), std::pin::pin!(of_maps.skip(2)));
        let both = async { (of_berths.next().await, of_maps.next().await) };
        let mut both = std::pin::pin!(both);
        assert!(tokio::time::timeout(Duration::from_millis(100), &mut both).await.is_err(), "they go on");
        cut(door);
        let expired = |end: &Option<Result<WatchEvent<_>, _>>| matches!(end, Some(Ok(WatchEvent::Error(status))) if status.code == 410);
        let (of_berths, of_maps) = soon("both end", both).await;
        let maps_expired = matches!(&of_maps, Some(Ok(WatchEvent::Error(status))) if status.code == 410);
        assert_eq!(expired(&of_berths), maps_expired, "{of_berths:?} {of_maps:?}");
    }
    assert!(std::net::TcpStream::connect(door.address()).is_err(), "it is closed");
    door.open();
    maps.get("m").await.expect("it is open");
}

#[tokio::test]
async fn a_token_that_was_rotated_is_refused() {
    let cluster = ApiServer::start();
    let door = cluster.door();
    let (old, list) = (client(door).await, ListParams::default());
    let nodes = |client: &Client| Api::<Node>::all(client.clone());
    nodes(&old).list(&list).await.expect("the token is good");
    door.rotate_token();
    nodes(&old).list(&list).await.expect("it is good until it has expired");
    door.refuse_old_tokens();
    let (code, reason, _) = refused(nodes(&old).list(&list).await);
    assert_eq!((code, &*reason), (401, "Unauthorized"));
    nodes(&client(door).await).list(&list).await.expect("who reads the file again has the new one");
}

#[tokio::test]
async fn stale_reads_are_of_one_moment() {
    let cluster = ApiServer::start();
    let door = cluster.door();
    let client = client(door).await;
    define(&client).await;
    let (berths, maps) = (berths(&client), Api::<ConfigMap>::default_namespaced(client.clone()));
    let post = PostParams::default();
    berths.create(&post, &berth("a", json!({ "length": 8 }))).await.expect("made");
    maps.create(&post, &config_map("a", "old")).await.expect("made");
    let snapshot = cluster.snapshot();
    berths.create(&post, &berth("b", json!({ "length": 8 }))).await.expect("made");
    berths
        .patch("a", &PatchParams::default(), &Patch::Merge(json!({ "spec": { "length": 9 } })))
        .await
        .expect("patched");
    maps.patch("a", &PatchParams::default(), &Patch::Merge(json!({ "data": { "key": "new" } })))
        .await
        .expect("patched");
    maps.create(&post, &config_map("b", "new")).await.expect("made");

    let seen = async || {
        let any = ListParams::default().match_any();
        let berth = berths.get("a").await.expect("it is there").data["spec"]["length"].clone();
        let map = maps.get("a").await.expect("it is there").data.expect("data")["key"].clone();
        let latest = (berths.list(&ListParams::default()).await, maps.list(&ListParams::default()).await);
        let (any_berths, any_maps) = (berths.list(&any).await.expect("a list"), maps.list(&any).await.expect("a list"));
        let (berths, maps) = (latest.0.expect("a list"), latest.1.expect("a list"));
        let counts = [berths.items.len(), maps.items.len(), any_berths.items.len(), any_maps.items.len()];
        (berth, map, counts)
    };
    door.serve_stale(&snapshot, Reads::ThatMayBe);
    assert_eq!(seen().await, (json!(9), "new".into(), [2, 2, 1, 1]));
    door.serve_stale(&snapshot, Reads::All);
    assert_eq!(seen().await, (json!(8), "old".into(), [1, 1, 1, 1]));
    assert_eq!(refused(berths.get("b").await).0, 404);
    door.serve_fresh();
    assert_eq!(seen().await, (json!(9), "new".into(), [2, 2, 2, 2]));
}

#[tokio::test]
async fn requests_are_counted() {
    let cluster = ApiServer::start();
    let door = cluster.door();
    let client = client(door).await;
    let (leases, post) = (Api::<Lease>::default_namespaced(client), PostParams::default());
    let sent = lease("l", json!({ "holderIdentity": "a" }));
    leases.create(&post, &sent).await.expect("made");
    refused(leases.create(&post, &sent).await);
    let watch = leases.watch(&WatchParams::default(), "0").await.expect("a watch");
    soon("an event", std::pin::pin!(watch).next()).await.expect("an event").expect("an event");
    let counts = door.take_counts();
    let of = |verb: &str| counts[&(verb.to_owned(), "leases.coordination.k8s.io".to_owned())].clone();
    let body = serde_json::to_vec(&sent).expect("JSON").len();
    assert_eq!((of("create").requests, of("create").received, of("create").latencies.len()), (2, 2 * body, 2));
    assert!(of("create").sent > body);
    assert_eq!((of("watch").requests, of("watch").latencies.len()), (1, 0));
    assert!(of("watch").sent > body);
    assert!(door.counts().is_empty(), "they were taken");
}

#[tokio::test]
async fn agents_in_worlds_of_their_own_share_a_server() {
    if skipped_without_root("agents_in_worlds_of_their_own_share_a_server") {
        return;
    }
    let cluster = ApiServer::start();
    let (here, there) = (World::new("here"), World::new("there"));
    let (a, b) = (cluster.open_door("a", Some(&here)), cluster.open_door("b", Some(&there)));
    let nodes = |world: &World, door: &Door| {
        let mut kubectl = world.command("kubectl");
        kubectl.env("HOME", world.home());
        let output = kubectl.arg("--kubeconfig").arg(door.kubeconfig()).args(["get", "nodes", "-o", "name"]).output();
        output.expect("kubectl is installed").status.success()
    };
    assert!(nodes(&here, &a) && nodes(&there, &b));
    a.close();
    assert!(!nodes(&here, &a) && nodes(&there, &b), "one is cut off");
    cluster.stop();
    assert!(!nodes(&there, &b));
    cluster.start_again();
    assert!(!nodes(&here, &a) && nodes(&there, &b), "what a test has closed stays so");
    a.open();
    assert!(nodes(&here, &a));
}

#[tokio::test]
async fn a_policy_tells_agents_apart_by_the_node_of_their_token() {
    let cluster = ApiServer::start();
    let admin = client(cluster.door()).await;
    define(&admin).await;
    let kind = |kind: &str| {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind));
        Api::<DynamicObject>::all_with(admin.clone(), &resource)
    };
    let own = "object.metadata.name == request.userInfo.extra['authentication.kubernetes.io/node-name'][0]";
    let rules = json!([{ "apiGroups": ["portreeve.dev"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"], "resources": ["berths"] }]);
    let agents = "request.userInfo.username == 'system:serviceaccount:portreeve-system:portreeve'";
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": { "name": "own" },
        "spec": {
            "matchConstraints": { "resourceRules": rules },
            "matchConditions": [{ "name": "agents", "expression": agents }],
            "validations": [{ "expression": own, "message": "an agent writes its own" }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": "own" }, "spec": { "policyName": "own", "validationActions": ["Deny"] },
    });
    let post = PostParams::default();
    for (api, object) in
        [(kind("ValidatingAdmissionPolicy"), policy), (kind("ValidatingAdmissionPolicyBinding"), binding)]
    {
        api.create(&post, &serde_json::from_value(object).expect("an object")).await.expect("made");
    }
    let door = cluster.open_door("node-a", None);
    let agent = berths(&client(&door).await);
    until("the policy holds", || async {
        let of_another = agent.create(&post, &berth("node-b", json!({ "length": 9 }))).await;
        let Err(error) = of_another else {
            berths(&admin).delete("node-b", &DeleteParams::default()).await.expect("deleted");
            return Err("it was made".to_owned());
        };
        let error = error.to_string();
        if error.contains("an agent writes its own") { Ok(()) } else { Err(error) }
    })
    .await;
    agent.create(&post, &berth("node-a", json!({ "length": 9 }))).await.expect("its own");
    berths(&admin).create(&post, &berth("node-b", json!({ "length": 9 }))).await.expect("the policy is for agents");
}

#[test]
fn kubectl_finds_its_way() {
    let cluster = ApiServer::start();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), definition().to_string()).expect("written");
    let home = tempfile::tempdir().expect("a directory");
    let kubectl = |arguments: &[&str]| {
        let mut kubectl = Command::new("kubectl");
        kubectl.arg("--kubeconfig").arg(cluster.door().kubeconfig()).args(arguments).env("HOME", home.path());
        let output = kubectl.output().expect("kubectl is installed");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(String::from_utf8_lossy(&output.stdout).into_owned()) } else { Err(said) }
    };
    let path = |path: &Path| path.display().to_string();
    // What it would check by is in no OpenAPI document here: the server itself checks.
    let apply = ["apply", "--validate=false", "--server-side", "-f", &path(file.path())];
    kubectl(&apply).expect("the definition is taken");
    let object = serde_json::to_string(&berth("a", json!({ "length": 9 }))).expect("JSON");
    std::fs::write(file.path(), object).expect("written");
    wait_until("berths are served", 20, || kubectl(&apply));
    assert_eq!(kubectl(&["get", "bt", "-o", "name"]).expect("by its short name"), "berth.portreeve.dev/a\n");
    let resources = kubectl(&["api-resources", "-o", "name"]).expect("discovery");
    for resource in ["berths.portreeve.dev", "leases.coordination.k8s.io", "nodes", "secrets"] {
        assert!(resources.lines().any(|line| line == resource), "{resource} is not in {resources}");
    }
    let object = serde_json::to_string(&config_map("m", "value")).expect("JSON");
    std::fs::write(file.path(), object).expect("written");
    kubectl(&apply).expect("made");
    assert_eq!(kubectl(&["get", "configmap", "m", "-o", "jsonpath={.data.key}"]).expect("it is there"), "value");
    kubectl(&["delete", "bt", "a"]).expect("deleted");
}
