//! Exec, attach and port-forward over a WebSocket.

use std::time::Duration;

use futures_util::SinkExt;
use http::StatusCode;
use portreeve_api::channel::{ERROR, RESIZE, STDERR, STDIN, STDOUT};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::client::{House, in_time};

const V5: &str = "v5.channel.k8s.io, v4.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const POD: &str = "/api/v1/namespaces/default/pods/web";

async fn house() -> House {
    let house = House::open().await;
    house.fake.put("default", "web", &[], true);
    house
}

fn status(payload: &[u8]) -> Value {
    serde_json::from_slice(payload).unwrap()
}

#[tokio::test]
async fn input_comes_back_from_cat_and_its_end_ends_it() {
    let house = house().await;
    let mut channels =
        house.open_socket(&format!("{POD}/exec?command=cat&stdin=1&stdout=1&stderr=1"), V5).await.unwrap();
    channels.send(STDIN, b"hello ").await;
    channels.send(STDIN, b"world").await;
    channels.end(STDIN).await;
    let all = channels.rest().await;
    assert_eq!(all[&STDOUT], b"hello world");
    assert_eq!(status(&all[&ERROR])["status"], "Success");
}

#[tokio::test]
async fn an_exit_code_travels_as_a_status_after_the_output() {
    let house = house().await;
    for offers in [V5, V4] {
        let path = format!("{POD}/exec?command=fail&command=7&stdout=1&stderr=1");
        let all = house.open_socket(&path, offers).await.unwrap().rest().await;
        assert_eq!(all[&STDERR], b"it failed");
        let status = status(&all[&ERROR]);
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"], json!([{ "reason": "ExitCode", "message": "7" }]));
    }
}

#[tokio::test]
async fn a_command_that_is_not_there_says_so_and_gives_127() {
    let house = house().await;
    let all = house.open_socket(&format!("{POD}/exec?command=nope&stdout=1"), V5).await.unwrap().rest().await;
    assert_eq!(all[&STDERR], b"exec: not found\n");
    assert_eq!(status(&all[&ERROR])["details"]["causes"][0]["message"], "127");
}

#[tokio::test]
async fn a_new_size_reaches_the_terminal() {
    let house = house().await;
    let mut channels = house.open_socket(&format!("{POD}/exec?command=size&stdin=1&stdout=1&tty=1"), V5).await.unwrap();
    channels.send(RESIZE, br#"{"Width":120,"Height":40}"#).await;
    assert_eq!(channels.rest().await[&STDOUT], b"120x40");
}

#[tokio::test]
async fn an_attached_session_lasts_as_long_as_its_output() {
    let house = house().await;
    let all = house.open_socket(&format!("{POD}/attach?stdout=1"), V4).await.unwrap().rest().await;
    assert_eq!(all[&STDOUT], b"attached");
    assert_eq!(status(&all[&ERROR])["status"], "Success");
}

#[tokio::test]
async fn what_cannot_be_streamed_is_refused_before_the_protocol_changes() {
    let house = house().await;
    for (path, offers, code) in [
        (format!("{POD}/exec?stdout=1"), V5, 400),
        (format!("{POD}/exec?command=cat"), V5, 400),
        (format!("{POD}/exec?command=cat&stdout=1"), "channel.k8s.io", 400),
        (format!("{POD}/exec?command=cat&stdout=1&container=none"), V5, 400),
        ("/api/v1/namespaces/default/pods/none/exec?command=cat&stdout=1".to_owned(), V5, 404),
        ("/api/v1/namespaces/default/pods/none/portforward?ports=7".to_owned(), V4, 404),
        (format!("{POD}/portforward"), V4, 400),
        (format!("{POD}/portforward?ports=0"), V4, 400),
    ] {
        let Err((status, body)) = house.open_socket(&path, offers).await else { panic!("{path} was accepted") };
        assert_eq!((status.as_u16(), &body["kind"]), (code, &json!("Status")), "{path}");
    }
    let (status, _) = house.get(&format!("{POD}/exec?command=cat&stdout=1")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn nothing_is_run_or_joined_in_a_completed_pod() {
    let house = house().await;
    house.fake.put("default", "web", &[], false);
    for (path, verb) in [("exec?command=cat&stdout=1", "exec into"), ("attach?stdout=1", "attach")] {
        let Err((status, body)) = house.open_socket(&format!("{POD}/{path}"), V5).await else {
            panic!("{path} was accepted")
        };
        let message = format!("cannot {verb} a container in a completed pod; current phase is Succeeded");
        assert_eq!((status.as_u16(), &body["message"]), (400, &json!(message)));
    }
}

#[tokio::test]
async fn a_forwarded_port_opens_with_its_number_and_ends_by_halves() {
    let house = house().await;
    let mut channels = house.open_socket(&format!("{POD}/portforward?ports=7"), V5).await.unwrap();
    channels.send(0, b"hello").await;
    channels.end(0).await;
    let all = channels.rest().await;
    assert_eq!(all[&0], [&7u16.to_le_bytes()[..], b"hello and that was all"].concat());
    assert_eq!(all[&1], 7u16.to_le_bytes());
}

#[tokio::test]
async fn a_port_nobody_listens_on_is_an_error_on_its_own_channel() {
    let house = house().await;
    let mut channels = house.open_socket(&format!("{POD}/portforward?ports=9"), V4).await.unwrap();
    let all = channels.rest().await;
    let error = String::from_utf8_lossy(&all[&1][2..]).into_owned();
    assert!(error.contains("port 9") && error.contains("connection refused"), "{error}");
}

#[tokio::test]
async fn a_message_beyond_the_bound_ends_the_session() {
    let house = house().await;
    let mut channels = house.open_socket(&format!("{POD}/exec?command=cat&stdin=1&stdout=1"), V5).await.unwrap();
    let _sent = channels.socket.send(Message::Binary(vec![0; 1 << 20].into())).await;
    let ended = in_time(async {
        use futures_util::StreamExt;
        while let Some(Ok(_)) = channels.socket.next().await {}
    });
    ended.await;
}

#[tokio::test]
async fn sessions_of_clients_that_left_are_not_kept() {
    let house = house().await;
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let path = format!("{POD}/exec?command=flood&stdin=1&stdout=1");
    drop(house.open_socket(&path, V5).await.unwrap());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = descriptors();
    for _ in 0..100 {
        drop(house.open_socket(&path, V5).await.unwrap());
    }
    in_time(async {
        // Other tests of this process open descriptors too, by the tens.
        while descriptors() > before + 60 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_agents_stop_ends_a_session_and_says_so() {
    let house = house().await;
    let mut channels = house.open_socket(&format!("{POD}/exec?command=cat&stdin=1&stdout=1"), V5).await.unwrap();
    house.stop.cancel();
    let all = channels.rest().await;
    assert!(String::from_utf8_lossy(&all[&ERROR]).contains("the agent is stopping"));
}

#[tokio::test]
async fn sessions_beyond_the_bound_are_refused_until_one_ends() {
    let house = House::with(100, 1).await;
    house.fake.put("default", "web", &[], true);
    let path = format!("{POD}/exec?command=cat&stdin=1&stdout=1");
    let mut first = house.open_socket(&path, V5).await.unwrap();
    let Err((status, body)) = house.open_socket(&path, V5).await else { panic!("a second session was opened") };
    assert_eq!((status.as_u16(), &body["reason"]), (429, &json!("TooManyRequests")));
    first.end(STDIN).await;
    first.rest().await;
    drop(first);
    in_time(async {
        while house.open_socket(&path, V5).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
