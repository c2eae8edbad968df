//! Logs over the socket.

use std::io::Write;

use http::StatusCode;
use serde_json::json;

use crate::client::House;

fn entry(second: u32, text: &str) -> String {
    format!("2026-01-01T00:00:{second:02}.000000000Z stdout F {text}\n")
}

const LOG: &str = "/api/v1/namespaces/default/pods/web/log";

async fn house() -> House {
    let house = House::open().await;
    house.fake.put("default", "web", &[], true);
    let text: String = (0..5).map(|second| entry(second, &format!("line {second}"))).collect();
    std::fs::write(house.directory.path().join("0.log"), text).unwrap();
    house
}

#[tokio::test]
async fn a_log_comes_as_a_client_asks_for_it() {
    let house = house().await;
    for (query, expected) in [
        ("", "line 0\nline 1\nline 2\nline 3\nline 4\n"),
        ("?tailLines=2", "line 3\nline 4\n"),
        ("?limitBytes=9", "line 0\nli"),
        ("?sinceTime=2026-01-01T00:00:04Z", "line 4\n"),
        ("?tailLines=1&timestamps=true", "2026-01-01T00:00:04.000000000Z line 4\n"),
        ("?tailLines=0", ""),
        ("?stream=Stderr", ""),
    ] {
        assert_eq!(house.get(&format!("{LOG}{query}")).await, (StatusCode::OK, json!(expected)), "{query}");
    }
    let (status, body) = house.get(&format!("{LOG}?sinceSeconds=0")).await;
    let message = "PodLogOptions \"web\" is invalid: sinceSeconds: Invalid value: 0: must be greater than 0";
    assert_eq!((status.as_u16(), &body["message"]), (422, &json!(message)));
    let (_, body) = house.get(&format!("{LOG}?sinceTime=yesterday")).await;
    assert!(body["message"].as_str().unwrap().contains("such as 2026-01-31T08:00:00Z"), "{body}");
    for query in ["?container=none", "?limitBytes=0", "?sinceTime=yesterday", "?tailLines=x"] {
        let (status, body) = house.get(&format!("{LOG}{query}")).await;
        assert!(status.is_client_error() && body["kind"] == "Status", "{query}: {status}");
    }
}

#[tokio::test]
async fn a_followed_log_goes_on_through_a_rotation_and_ends_with_the_container() {
    let house = house().await;
    let mut lines = house.lines(&format!("{LOG}?follow=true&tailLines=1"), "*/*").await;
    assert_eq!(lines.next().await.unwrap(), "line 4");
    let path = house.directory.path().join("0.log");
    let append = |text: &str| {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    append(&entry(5, "five"));
    assert_eq!(lines.next().await.unwrap(), "five");
    append(&entry(6, "six"));
    std::fs::rename(&path, house.directory.path().join("0.log.1")).unwrap();
    append(&entry(7, "seven"));
    assert_eq!(lines.next().await.unwrap(), "six");
    assert_eq!(lines.next().await.unwrap(), "seven");
    append(&entry(8, "the last word"));
    house.fake.put("default", "web", &[], false);
    assert_eq!(lines.next().await.unwrap(), "the last word");
    assert_eq!(lines.next().await, None);
}

#[tokio::test]
async fn a_container_without_a_log_is_said_to_have_none() {
    let house = House::open().await;
    house.fake.put("default", "web", &[], true);
    let (status, body) = house.get(LOG).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body["message"].as_str().unwrap().contains("has no log"));
}
