//! What a client that knows nothing learns of the API, and whether it is so.

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::client::{House, in_time};

/// kubectl's, of release 1.35.
const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                         application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,\
                     application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

/// Every group's version with its path.
async fn group_versions(house: &House) -> Vec<(String, String)> {
    let (_, core) = house.send(Method::GET, "/api", DISCOVERY, "").await;
    assert_eq!((&core["kind"], &core["versions"]), (&json!("APIVersions"), &json!(["v1"])));
    let (_, groups) = house.send(Method::GET, "/apis", DISCOVERY, "").await;
    assert_eq!(groups["kind"], "APIGroupList");
    let mut found = vec![("v1".to_owned(), "/api/v1".to_owned())];
    for group in groups["groups"].as_array().unwrap() {
        let (name, version) = (&group["name"], group["preferredVersion"]["groupVersion"].as_str().unwrap());
        let (_, alone) = house.get(&format!("/apis/{}", name.as_str().unwrap())).await;
        assert_eq!((&alone["kind"], &alone["versions"]), (&json!("APIGroup"), &group["versions"]));
        found.push((version.to_owned(), format!("/apis/{version}")));
    }
    found
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[tokio::test]
async fn every_verb_of_the_discovery_documents_is_answered() {
    let house = House::open().await;
    house.fake.put("default", "web", &[], true);
    let mut seen = Vec::new();
    for (version, path) in group_versions(&house).await {
        let (_, list) = house.get(&path).await;
        assert_eq!((&list["kind"], &list["groupVersion"]), (&json!("APIResourceList"), &json!(version)));
        for resource in list["resources"].as_array().unwrap() {
            let (name, kind) = (resource["name"].as_str().unwrap(), resource["kind"].as_str().unwrap());
            assert!(resource["singularName"].is_string() && resource["namespaced"].is_boolean(), "{resource}");
            let verbs = words(&resource["verbs"]);
            assert!(verbs.is_sorted() && !verbs.is_empty(), "{resource}");
            seen.push(format!("{version} {name} {}", resource["shortNames"][0].as_str().unwrap_or("-")));
            if name.contains('/') {
                continue;
            }
            let mut places = vec![format!("{path}/{name}")];
            if resource["namespaced"] == true {
                places.push(format!("{path}/namespaces/default/{name}"));
            }
            for place in places {
                let (status, list) = house.get(&place).await;
                assert_eq!(status, StatusCode::OK, "{place}: {list}");
                assert_eq!((&list["kind"], &list["apiVersion"]), (&json!(format!("{kind}List")), &json!(version)));
                if verbs.contains(&"watch") {
                    drop(house.lines(&format!("{place}?watch=1"), "*/*").await);
                }
            }
            if verbs.contains(&"get") {
                let one = if resource["namespaced"] == true { "namespaces/default/" } else { "" };
                let (status, answer) = house.get(&format!("{path}/{one}{name}/nobody")).await;
                assert_eq!(status, StatusCode::NOT_FOUND, "{name}");
                assert_eq!(answer["details"]["name"], "nobody", "{name}: {answer}");
            }
        }
    }
    for expected in
        ["v1 pods po", "v1 nodes no", "v1 namespaces ns", "v1 events ev", "v1 configmaps cm", "v1 pods/log -"]
    {
        assert!(seen.iter().any(|one| one == expected), "{expected}: {seen:?}");
    }
}

#[tokio::test]
async fn every_kind_has_a_table_that_kubectl_can_print() {
    let house = House::open().await;
    house.fake.put("default", "web", &[], true);
    for (version, path) in
        group_versions(&house).await.into_iter().filter(|(version, _)| !version.starts_with("metrics"))
    {
        let (_, list) = house.get(&path).await;
        for resource in list["resources"].as_array().unwrap() {
            let name = resource["name"].as_str().unwrap();
            if name.contains('/') {
                continue;
            }
            let place = format!("{path}/{name}");
            let (_, objects) = house.get(&place).await;
            let (_, table) = house.send(Method::GET, &format!("{place}?limit=500"), TABLE, "").await;
            assert_eq!(
                (&table["kind"], &table["apiVersion"]),
                (&json!("Table"), &json!("meta.k8s.io/v1")),
                "{version} {name}"
            );
            assert_eq!(table["metadata"]["resourceVersion"], objects["metadata"]["resourceVersion"], "{name}");
            let columns = table["columnDefinitions"].as_array().unwrap();
            for column in columns {
                assert!(
                    ["name", "type", "format", "description"].iter().all(|key| column[key].is_string()),
                    "{column}"
                );
                assert!(column["priority"].is_i64() || column["priority"].is_u64(), "{column}");
            }
            let rows = table["rows"].as_array().unwrap();
            assert_eq!(rows.len(), objects["items"].as_array().unwrap().len(), "{name}");
            for (row, object) in rows.iter().zip(objects["items"].as_array().unwrap()) {
                assert_eq!(row["cells"].as_array().unwrap().len(), columns.len(), "{name}");
                assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
                assert_eq!(row["object"]["metadata"]["name"], object["metadata"]["name"], "{name}");
                assert_eq!(row["object"]["metadata"]["namespace"], object["metadata"]["namespace"], "{name}");
            }
            let (_, whole) = house.send(Method::GET, &format!("{place}?includeObject=Object"), TABLE, "").await;
            for row in whole["rows"].as_array().unwrap() {
                assert_eq!(
                    (&row["object"]["apiVersion"], &row["object"]["kind"]),
                    (&json!(version), &resource["kind"])
                );
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_here_is_told_in_a_status() {
    let house = House::open().await;
    for path in ["/openapi/v2", "/openapi/v3", "/openapi/v3/api/v1", "/apis/apps/v1", "/api/v1/secrets", "/"] {
        let request = Request::builder().uri(path).header("host", "localhost").header("accept", "application/json");
        let response = house.request(request.body(Full::default()).unwrap()).await;
        assert_eq!(
            (response.status(), &response.headers()["content-type"]),
            (StatusCode::NOT_FOUND, &"application/json".parse().unwrap())
        );
        let body = in_time(response.into_body().collect()).await.unwrap().to_bytes();
        let status: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&status["kind"], &status["apiVersion"], &status["code"]),
            (&json!("Status"), &json!("v1"), &json!(404)),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_deletion_is_done_as_it_is_asked_for_or_not_at_all() {
    let house = House::open().await;
    house.fake.put("default", "web", &[], true);
    let path = "/api/v1/namespaces/default/pods/web";
    for (query, body, code, part) in [
        ("", json!({ "dryRun": ["All"] }), 400, "dryRun"),
        ("", json!({ "gracePeriodSeconds": 0 }), 400, "terminationGracePeriodSeconds"),
        ("", json!({ "preconditions": { "uid": "other" } }), 409, "UID in precondition: other"),
        ("", json!({ "preconditions": { "resourceVersion": "1" } }), 409, "ResourceVersion in precondition: 1"),
        ("", json!("nothing"), 400, "request body"),
        ("?dryRun=All", Value::Null, 400, "dryRun"),
        ("?gracePeriodSeconds=0", Value::Null, 400, "terminationGracePeriodSeconds"),
    ] {
        let bytes = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = house.send(Method::DELETE, &format!("{path}{query}"), "*/*", bytes).await;
        assert_eq!(status.as_u16(), code, "{query} {body}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains(part), "{query} {body}: {answer}");
        assert_eq!(house.get(path).await.0, StatusCode::OK, "{query} {body}: it was deleted");
    }
    // What kubectl sends.
    let (_, pod) = house.get(path).await;
    let options = json!({
        "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background",
        "preconditions": { "uid": pod["metadata"]["uid"], "resourceVersion": pod["metadata"]["resourceVersion"] },
    });
    let (status, gone) = house.send(Method::DELETE, path, "*/*", options.to_string()).await;
    assert_eq!((status, &gone["metadata"]["name"]), (StatusCode::OK, &json!("web")));
    assert_eq!(house.get(path).await.0, StatusCode::NOT_FOUND);
}
