//! Get, List, Watch, discovery, and who may come in.

use std::os::unix::fs::PermissionsExt;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{House, in_time};

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_list_selects_by_namespace_labels_and_fields() {
    let house = House::open().await;
    house.fake.put("default", "web", &[("app", "web")], true);
    house.fake.put("default", "job", &[("app", "job")], false);
    house.fake.put("prod", "web", &[("app", "web")], true);
    for (path, expected) in [
        ("/api/v1/pods", vec!["job", "web", "web"]),
        ("/api/v1/namespaces/default/pods", vec!["job", "web"]),
        ("/api/v1/pods?labelSelector=app%3Dweb", vec!["web", "web"]),
        ("/api/v1/pods?labelSelector=app+notin+(web)", vec!["job"]),
        ("/api/v1/pods?fieldSelector=status.phase%3DSucceeded", vec!["job"]),
        ("/api/v1/pods?fieldSelector=metadata.namespace%3Dprod,metadata.name%3Dweb", vec!["web"]),
        ("/api/v1/pods?fieldSelector=spec.nodeName!%3Dedge", vec![]),
    ] {
        let (status, list) = house.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(list["kind"], "PodList");
        assert_eq!(names(&list), expected, "{path}");
    }
}

#[tokio::test]
async fn errors_are_statuses_with_the_code_and_reason_of_an_api_server() {
    let house = House::open().await;
    for (path, code, reason) in [
        ("/api/v1/namespaces/default/pods/missing", 404, "NotFound"),
        ("/api/v1/nothing", 404, "NotFound"),
        ("/apis/unknown.example", 404, "NotFound"),
        ("/api/v1/pods?labelSelector=a%20b", 400, "BadRequest"),
        ("/api/v1/pods?fieldSelector=spec.foo%3D1", 400, "BadRequest"),
        ("/api/v1/pods?watch=perhaps", 400, "BadRequest"),
    ] {
        let (status, body) = house.get(path).await;
        assert_eq!(
            (status.as_u16(), &body["reason"], &body["kind"]),
            (code, &json!(reason), &json!("Status")),
            "{path}"
        );
        assert_eq!(body["code"], code);
    }
    let (status, body) = house.send(Method::PUT, "/api/v1/pods", "*/*", "").await;
    assert_eq!((status.as_u16(), &body["reason"]), (405, &json!("MethodNotAllowed")));
}

#[tokio::test]
async fn a_limited_list_goes_on_where_it_stopped() {
    let house = House::open().await;
    for name in ["a", "b", "c", "d", "e"] {
        house.fake.put("default", name, &[], true);
    }
    let mut seen = Vec::new();
    let mut path = "/api/v1/pods?limit=2".to_owned();
    loop {
        let (_, list) = house.get(&path).await;
        seen.extend(names(&list).into_iter().map(str::to_owned));
        match list["metadata"]["continue"].as_str() {
            Some(token) => path = format!("/api/v1/pods?limit=2&continue={}", token.replace('/', "%2F")),
            None => break,
        }
    }
    assert_eq!(seen, ["a", "b", "c", "d", "e"]);
}

#[tokio::test]
async fn a_watch_from_a_list_sees_every_change_once() {
    let house = House::open().await;
    house.fake.put("default", "web", &[("app", "web")], true);
    let (_, list) = house.get("/api/v1/pods").await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = house.lines(&format!("/api/v1/pods?watch=1&resourceVersion={version}"), "*/*").await;
    house.fake.put("default", "other", &[], true);
    house.fake.put("default", "web", &[("app", "web")], false);
    house.fake.remove("default", "other");
    let mut seen = Vec::new();
    for _ in 0..3 {
        let line = watch.next().await.unwrap();
        assert_eq!(line["object"]["kind"], "Pod");
        seen.push((
            line["type"].as_str().unwrap().to_owned(),
            line["object"]["metadata"]["name"].as_str().unwrap().to_owned(),
        ));
    }
    let seen: Vec<_> = seen.iter().map(|(word, name)| (word.as_str(), name.as_str())).collect();
    assert_eq!(seen, [("ADDED", "other"), ("MODIFIED", "web"), ("DELETED", "other")]);
}

#[tokio::test]
async fn a_pod_that_leaves_a_selector_is_deleted_for_its_watchers() {
    let house = House::open().await;
    let mut watch = house.lines("/api/v1/pods?watch=true&labelSelector=app%3Dweb", "*/*").await;
    house.fake.put("default", "web", &[("app", "db")], true);
    house.fake.put("default", "web", &[("app", "web")], true);
    house.fake.put("default", "web", &[("app", "web"), ("n", "2")], true);
    house.fake.put("default", "web", &[], true);
    let mut words = Vec::new();
    for _ in 0..3 {
        words.push(watch.next().await.unwrap()["type"].clone());
    }
    assert_eq!(words, ["ADDED", "MODIFIED", "DELETED"]);
}

#[tokio::test]
async fn a_version_that_is_forgotten_is_gone() {
    let house = House::with_ring(2).await;
    house.fake.put("default", "web", &[], true);
    let (_, list) = house.get("/api/v1/pods").await;
    for running in [false, true, false, true] {
        house.fake.put("default", "web", &[], running);
    }
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    // As an API server has it that keeps what it watches: the stream begins, and says so.
    let mut watch = house.lines(&format!("/api/v1/pods?watch=1&resourceVersion={version}"), "*/*").await;
    let line = watch.next().await.unwrap();
    assert_eq!((&line["type"], &line["object"]["reason"]), (&json!("ERROR"), &json!("Expired")));
    assert_eq!(watch.next().await, None);
    let exact = format!("/api/v1/pods?resourceVersion={version}&resourceVersionMatch=Exact");
    let (status, body) = house.get(&exact).await;
    assert_eq!((status.as_u16(), &body["reason"]), (410, &json!("Expired")));
}

#[tokio::test]
async fn a_list_is_of_the_version_that_was_asked_for_or_refused() {
    let house = House::open().await;
    house.fake.put("default", "web", &[], true);
    let (_, list) = house.get("/api/v1/pods").await;
    let version: u64 = list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    house.fake.config_maps.put(portreeve_node::NamespacedName::new("default", "a"), Default::default());
    let (ahead, exact) = (version + 1, "resourceVersionMatch=Exact");
    for query in [
        "resourceVersion=0".to_owned(),
        "resourceVersion=1".to_owned(),
        format!("resourceVersion={version}"),
        format!("resourceVersion={version}&{exact}"),
        // Given out for another list: this one has not changed since.
        format!("resourceVersion={ahead}"),
    ] {
        let (status, body) = house.get(&format!("/api/v1/pods?{query}")).await;
        assert_eq!((status.as_u16(), names(&body)), (200, vec!["web"]), "{query}: {body}");
    }
    let future = format!("resourceVersion={}", version + 1000);
    for (query, code, reason) in [
        ("resourceVersion=abc".to_owned(), 400, "BadRequest"),
        (exact.to_owned(), 422, "Invalid"),
        (format!("resourceVersion=1&{exact}"), 410, "Expired"),
        (future.clone(), 504, "Timeout"),
    ] {
        let (status, body) = house.get(&format!("/api/v1/pods?{query}")).await;
        assert_eq!((status.as_u16(), body["reason"].as_str()), (code, Some(reason)), "{query}: {body}");
    }
    let (_, body) = house.get(&format!("/api/v1/pods?{future}")).await;
    assert_eq!(body["details"]["causes"][0]["reason"], "ResourceVersionTooLarge", "{body}");
    let (status, _) = house.get(&format!("/api/v1/namespaces/default/pods/web?{future}")).await;
    assert_eq!(status.as_u16(), 504);
}

#[tokio::test]
async fn a_path_means_the_same_with_a_slash_behind_it() {
    let house = House::open().await;
    for path in ["/api/", "/apis/", "/api/v1/pods/", "/api/v1/pods/?limit=1", "/version/"] {
        assert_eq!(house.get(path).await.0, StatusCode::OK, "{path}");
    }
    assert_eq!(house.get("/").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_watch_can_begin_with_what_is_there_and_mark_its_end() {
    let house = House::open().await;
    house.fake.put("default", "web", &[], true);
    let path = "/api/v1/pods?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let mut watch = house.lines(path, "*/*").await;
    assert_eq!(watch.next().await.unwrap()["type"], "ADDED");
    let mark = watch.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_over_and_when_the_agent_stops() {
    let house = House::open().await;
    let mut short = house.lines("/api/v1/pods?watch=1&timeoutSeconds=1", "*/*").await;
    let mut long = house.lines("/api/v1/events?watch=1", "*/*").await;
    assert_eq!(short.next().await, None);
    house.stop.cancel();
    assert_eq!(long.next().await, None);
}

#[tokio::test]
async fn a_table_has_its_columns_once_in_a_watch() {
    const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let house = House::open().await;
    house.fake.put("default", "web", &[], true);
    let (_, table) = house.send(Method::GET, "/api/v1/namespaces/default/pods", TABLE, "").await;
    assert_eq!(table["kind"], "Table");
    let columns: Vec<_> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|column| column["name"].clone()).collect();
    assert_eq!(columns[..5], ["Name", "Ready", "Status", "Restarts", "Age"]);
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..4], [json!("web"), json!("1/1"), json!("Running"), json!("0")]);
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");

    let mut watch = house.lines("/api/v1/pods?watch=1", TABLE).await;
    house.fake.put("default", "web", &[], false);
    assert!(watch.next().await.unwrap()["object"]["columnDefinitions"].is_array());
    assert!(watch.next().await.unwrap()["object"]["columnDefinitions"].is_null());
}

#[tokio::test]
async fn a_client_that_does_not_read_its_watch_hinders_nobody() {
    let house = House::with_ring(8).await;
    let lazy = house.lines("/api/v1/pods?watch=1", "*/*").await;
    for round in 0..2000 {
        house.fake.put("default", "web", &[("round", &round.to_string())], true);
    }
    let (status, _) = house.get("/api/v1/pods").await;
    assert_eq!(status, StatusCode::OK);
    drop(lazy);
}

#[tokio::test]
async fn a_watcher_that_falls_behind_is_told_to_list_again() {
    let house = House::with_ring(8).await;
    house.fake.put("default", "web", &[], true);
    let mut slow = house.lines("/api/v1/pods?watch=1", "*/*").await;
    assert_eq!(slow.next().await.unwrap()["type"], "ADDED");
    // Nothing else gets a turn meanwhile: the watcher is twenty changes behind when it does.
    for round in 0..20 {
        house.fake.put("default", "web", &[("round", &round.to_string())], true);
    }
    let line = slow.next().await.unwrap();
    assert_eq!((&line["type"], &line["object"]["kind"]), (&json!("ERROR"), &json!("Status")));
    assert_eq!((&line["object"]["code"], &line["object"]["reason"]), (&json!(410), &json!("Expired")));
    assert_eq!(slow.next().await, None, "what would follow has a gap before it");
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_and_goes_with_the_agent() {
    let mut house = House::open().await;
    let mode = std::fs::metadata(&house.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    house.stop.cancel();
    in_time(&mut house.served).await.unwrap();
    assert!(!house.socket.exists());
}

#[tokio::test]
async fn a_socket_that_a_dead_agent_left_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("portreeve.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let doors = portreeve_api::Doors::bind(&portreeve_api::Config::new(&path)).await;
    assert!(doors.is_ok());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn the_tcp_door_tells_of_health_and_of_nothing_else() {
    let house = House::open().await;
    let ask = async |path: &str| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(house.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        in_time(stream.read_to_string(&mut answer)).await.unwrap();
        answer
    };
    assert!(ask("/livez").await.starts_with("HTTP/1.1 200"));
    let unready = ask("/readyz").await;
    assert!(unready.starts_with("HTTP/1.1 503") && unready.contains("no source was read"), "{unready}");
    house.fake.put("default", "web", &[], true);
    assert!(ask("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(ask("/metrics").await.contains("portreeve_up 1"));
    assert!(ask("/api/v1/pods").await.starts_with("HTTP/1.1 404"));
}
