//! What a client meets when others hold every place.

use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::client::{House, in_time};

/// Opens a connection to the metrics and asks something that keeps it.
async fn health(house: &House) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut head = vec![0; 1024];
    let length = in_time(stream.read(&mut head)).await.unwrap();
    head.truncate(length);
    (stream, String::from_utf8(head).unwrap())
}

#[tokio::test]
async fn a_client_without_a_place_is_told_to_come_again() {
    let house = House::with_places(1).await;
    let (held, answer) = health(&house).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (_, answer) = health(&house).await;
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("TooManyRequests"), "{answer}");
    drop(held);
    in_time(async {
        while !health(&house).await.1.starts_with("HTTP/1.1 200") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn root_has_places_that_others_do_not_take() {
    let house = House::with_places(1).await;
    // Half-open connections of root take the places of all first, then root's own.
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(UnixStream::connect(&house.socket).await.unwrap());
    }
    let (status, answer) = house.get("/version").await;
    let root = rustix::process::geteuid().is_root();
    let expected = if root { StatusCode::OK } else { StatusCode::TOO_MANY_REQUESTS };
    assert_eq!(status, expected, "{answer}");
    for _ in 0..20 {
        held.push(UnixStream::connect(&house.socket).await.unwrap());
    }
    let (status, answer) = house.get("/version").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{answer}");
    drop(held);
}

#[tokio::test]
async fn an_address_that_is_taken_leaves_no_socket_behind() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = portreeve_api::Config::new(directory.path().join("portreeve.sock"));
    config.listen = Some(taken.local_addr().unwrap());
    assert!(portreeve_api::Doors::bind(&config).await.is_err());
    assert!(!config.socket.exists());
}
