//! What is ours, and what pods use.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{House, Lines};

const OWN: &str = "/apis/portreeve.dev/v1alpha1";

#[tokio::test]
async fn a_pull_ends_with_its_image_or_its_reason() {
    let house = House::open().await;
    let last = async |reference: &str| {
        let path = format!("{OWN}/images/pull?reference={reference}");
        let (status, body) = house.send(Method::POST, &path, "*/*", "").await;
        assert_eq!(status, StatusCode::OK);
        let text = match body {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        serde_json::from_str::<serde_json::Value>(text.trim().lines().last().unwrap()).unwrap()
    };
    assert_eq!(last("busybox").await["type"], "Done");
    let failed = last("other").await;
    assert_eq!((&failed["type"], &failed["message"]), (&json!("Failed"), &json!("registry: 404")));
}

#[tokio::test]
async fn a_check_tells_each_part_and_that_it_is_complete() {
    let house = House::open().await;
    let path = format!("{OWN}/images/verify?reference=a&reference=b&repair=true");
    let (status, body) = house.send(Method::POST, &path, "*/*", "").await;
    assert_eq!(status, StatusCode::OK);
    let text = body.as_str().unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!((&lines[0]["type"], &lines[0]["state"]), (&json!("Checked"), &json!("repaired")));
    assert_eq!((&lines[1]["images"], &lines[2]), (&json!(["b"]), &json!({ "type": "Done" })));
    let (status, _) = house.send(Method::POST, &format!("{OWN}/images/verify?repair=perhaps"), "*/*", "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_tar_of_any_size_streams_into_the_store() {
    let house = House::open().await;
    let tar = vec![7u8; 40 << 20];
    let (status, list) = house.send(Method::POST, &format!("{OWN}/images/load"), "*/*", tar).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(list["items"][0]["status"]["sizeBytes"], 40 << 20);
}

#[tokio::test]
async fn problems_of_manifests_come_one_by_one() {
    let house = House::open().await;
    let body = json!({ "files": [{ "path": "/m/a.yaml", "content": "x" }] }).to_string();
    let (status, body) = house.send(Method::POST, &format!("{OWN}/apply"), "*/*", body).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(body["reason"], "Invalid");
    assert_eq!(body["details"]["causes"][0]["message"], "/m/a.yaml:1:1: error: bad");
}

#[tokio::test]
async fn a_request_beyond_its_bound_is_refused() {
    let house = House::open().await;
    let body = vec![b' '; 17 << 20];
    let (status, body) = house.send(Method::POST, &format!("{OWN}/plan"), "*/*", body).await;
    assert_eq!((status.as_u16(), &body["kind"]), (413, &json!("Status")));
}

#[tokio::test]
async fn deleting_a_pod_removes_its_file_or_names_the_place_to_edit() {
    let house = House::open().await;
    house.fake.put("default", "web", &[], true);
    house.fake.put("default", "elsewhere", &[], true);
    let delete = async |name: &str| {
        house.send(Method::DELETE, &format!("/api/v1/namespaces/default/pods/{name}"), "*/*", "").await
    };
    let (status, pod) = delete("web").await;
    assert_eq!((status.as_u16(), &pod["metadata"]["name"]), (200, &json!("web")));
    let (status, body) = delete("elsewhere").await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(body["message"].as_str().unwrap().contains("/m/a.yaml:3"));
    assert_eq!(delete("web").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn containers_are_told_of_from_the_status_of_their_pods() {
    let house = House::open().await;
    house.fake.put("default", "web", &[], true);
    let (_, list) = house.get(&format!("{OWN}/namespaces/default/containers")).await;
    assert_eq!(list["items"][0]["metadata"]["name"], "web.main");
    assert_eq!(list["items"][0]["status"]["state"], "Running");
    let (_, none) = house.get(&format!("{OWN}/namespaces/prod/containers")).await;
    assert_eq!(none["items"], json!([]));
    let (status, one) = house.get(&format!("{OWN}/namespaces/default/containers/web.main")).await;
    assert_eq!((status, &one["status"]["pod"]), (StatusCode::OK, &json!("web")));
    let (status, _) = house.get(&format!("{OWN}/namespaces/default/containers/web.none")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

/// Type and name of the next change.
async fn change(watch: &mut Lines) -> (String, String) {
    let line = watch.next().await.unwrap();
    let version = line["object"]["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    assert!(version.parse::<u64>().is_ok(), "{line}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&line["type"]), text(&line["object"]["metadata"]["name"]))
}

/// A watch from the list that is there now.
async fn watched(house: &House, path: &str) -> Lines {
    let (status, list) = house.get(path).await;
    assert_eq!(status, StatusCode::OK, "{list}");
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    house.lines(&format!("{path}?watch=1&resourceVersion={version}"), "*/*").await
}

fn pair(word: &str, name: &str) -> (String, String) {
    (word.to_owned(), name.to_owned())
}

#[tokio::test]
async fn containers_are_watched_through_their_pods() {
    let house = House::open().await;
    house.fake.put("default", "web", &[], true);
    let mut watch = watched(&house, &format!("{OWN}/containers")).await;
    house.fake.put("default", "job", &[], true);
    house.fake.put("default", "web", &[], false);
    house.fake.remove("default", "job");
    assert_eq!(change(&mut watch).await, pair("ADDED", "job.main"));
    assert_eq!(change(&mut watch).await, pair("MODIFIED", "web.main"));
    assert_eq!(change(&mut watch).await, pair("DELETED", "job.main"));
    let mut other = house.lines(&format!("{OWN}/namespaces/prod/containers?watch=1"), "*/*").await;
    house.fake.put("default", "web", &[], true);
    house.fake.put("prod", "web", &[], true);
    assert_eq!(change(&mut other).await, pair("ADDED", "web.main"));
}

#[tokio::test]
async fn images_and_sources_are_watched_and_told_of_when_they_change() {
    let house = House::open().await;
    let mut images = watched(&house, &format!("{OWN}/images")).await;
    let mut sources = watched(&house, &format!("{OWN}/sources")).await;
    house.fake.images.send_replace(vec!["busybox:latest", "web:1"]);
    assert_eq!(change(&mut images).await, pair("ADDED", "web:1"));
    house.fake.images.send_replace(vec!["web:1"]);
    assert_eq!(change(&mut images).await, pair("DELETED", "busybox:latest"));
    house.fake.errors.send_replace(3);
    let line = sources.next().await.unwrap();
    assert_eq!((&line["type"], &line["object"]["status"]["errors"]), (&json!("MODIFIED"), &json!(3)));
    // A version of before that is still remembered shows what was missed.
    let (_, before) = house.get(&format!("{OWN}/images")).await;
    let version = before["metadata"]["resourceVersion"].as_str().unwrap();
    house.fake.images.send_replace(vec![]);
    let mut late = house.lines(&format!("{OWN}/images?watch=1&resourceVersion={version}"), "*/*").await;
    assert_eq!(change(&mut late).await, pair("DELETED", "web:1"));
    house.fake.images.send_replace(vec!["registry.example/web:2"]);
    let (status, one) = house.get(&format!("{OWN}/images/registry.example%2Fweb:2")).await;
    assert_eq!((status, &one["metadata"]["name"]), (StatusCode::OK, &json!("registry.example/web:2")));
    // One of another life is not.
    let mut old = house.lines(&format!("{OWN}/images?watch=1&resourceVersion=1"), "*/*").await;
    assert_eq!(old.next().await.unwrap()["object"]["code"], 410);
}

#[tokio::test]
async fn a_version_of_one_list_is_a_moment_of_every_other() {
    let house = House::open().await;
    let version =
        async |path: &str| house.get(path).await.1["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let (images, pods) = (format!("{OWN}/images"), "/api/v1/pods");
    let first = version(&images).await;
    house.fake.put("default", "web", &[], true);
    let mut watch = house.lines(&format!("{pods}?watch=1&resourceVersion={first}"), "*/*").await;
    assert_eq!(change(&mut watch).await, pair("ADDED", "web"));
    let second = version(pods).await;
    house.fake.images.send_replace(vec!["busybox:latest", "web:1"]);
    let mut watch = house.lines(&format!("{images}?watch=1&resourceVersion={second}"), "*/*").await;
    assert_eq!(change(&mut watch).await, pair("ADDED", "web:1"), "and of nothing before that moment");
}

#[tokio::test]
async fn the_node_and_the_namespaces_are_watched() {
    let house = House::open().await;
    let mut nodes = watched(&house, "/api/v1/nodes").await;
    let mut namespaces = watched(&house, "/api/v1/namespaces").await;
    let (_, before) = house.get("/api/v1/nodes").await;
    let (_, again) = house.get("/api/v1/nodes").await;
    let version = |list: &Value| list["items"][0]["metadata"]["resourceVersion"].clone();
    let beat = |list: &Value| list["items"][0]["status"]["conditions"][0]["lastHeartbeatTime"].clone();
    assert_eq!(version(&before), version(&again), "a heart that beats is no change");
    assert_ne!(beat(&before), beat(&again), "and is told at every look");
    house.fake.drained.send_replace(true);
    let line = nodes.next().await.unwrap();
    assert_eq!((&line["type"], &line["object"]["spec"]["unschedulable"]), (&json!("MODIFIED"), &json!(true)));
    house.fake.put("prod", "web", &[], true);
    assert_eq!(change(&mut namespaces).await, pair("ADDED", "prod"));
    house.fake.remove("prod", "web");
    assert_eq!(change(&mut namespaces).await, pair("DELETED", "prod"));
}

#[tokio::test]
async fn the_use_of_a_pod_is_a_rate() {
    let house = House::open().await;
    house.fake.put("default", "web", &[("app", "web")], true);
    let path = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods?labelSelector=app%3Dweb";
    let (status, list) = house.get(path).await;
    assert_eq!(status, StatusCode::OK);
    let usage = &list["items"][0]["containers"][0]["usage"];
    assert_eq!(usage["memory"], "3072Ki");
    // The fake uses half a core by its own clock.
    let cpu: f64 = usage["cpu"].as_str().unwrap().strip_suffix('n').unwrap().parse().unwrap();
    assert!((0.4e9..0.6e9).contains(&cpu), "{cpu}");
}

#[tokio::test]
async fn an_archive_that_is_refused_at_its_first_byte_is_told_so() {
    let house = House::open().await;
    let mut tar = b"no archive".to_vec();
    tar.resize(64 << 20, 0);
    let (status, answer) = house.send(Method::POST, &format!("{OWN}/images/load"), "*/*", tar).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("it is no archive"), "{answer}");
}
