//! Who of several pods may run: host ports and uids have one owner.

use k8s_openapi::api::core::v1::Pod;
use portreeve_plan::{Candidate, PodKey, PodUid, admit};
use serde_json::{Value, json};

use crate::pods::{at, pod};

struct Row {
    name: &'static str,
    uid: &'static str,
    admitted: i64,
    holds: bool,
    ports: Value,
}

fn row(name: &'static str, uid: &'static str, admitted: i64, ports: Value) -> Row {
    Row { name, uid, admitted, holds: false, ports }
}

/// The names of those who must wait, with the messages.
fn check(rows: &[Row], expected: &[(&str, &str)]) {
    let owned: Vec<(PodUid, PodKey, Pod)> = rows
        .iter()
        .map(|row| {
            let spec = json!({"containers": [{"name": "c", "image": "i", "ports": row.ports}]});
            let key = PodKey { namespace: "default".to_owned(), name: row.name.to_owned() };
            (PodUid(row.uid.to_owned()), key, pod(spec))
        })
        .collect();
    let candidates: Vec<Candidate<'_>> = owned
        .iter()
        .zip(rows)
        .map(|((uid, key, pod), row)| {
            let (admitted_at, holds) = (at(row.admitted), row.holds);
            Candidate { uid, key, pod, admitted_at, holds }
        })
        .collect();
    let found: Vec<(String, String)> =
        admit(&candidates).into_iter().map(|(key, blocked)| (key.name, blocked.message)).collect();
    let expected: Vec<(String, String)> =
        expected.iter().map(|(name, message)| ((*name).into(), (*message).into())).collect();
    assert_eq!(found, expected);
}

fn port(port: u16) -> Value {
    json!([{"containerPort": 80, "hostPort": port}])
}

#[test]
fn the_first_owner_of_a_host_port_keeps_it() {
    check(
        &[row("late", "2", 9, port(80)), row("first", "1", 3, port(80)), row("other", "3", 9, port(81))],
        &[("late", "host port 80/TCP is used by pod default/first; change one of them")],
    );
}

#[test]
fn a_pod_that_holds_a_port_keeps_it_from_an_older_one_that_was_edited() {
    let mut holder = row("young", "2", 9, port(80));
    holder.holds = true;
    check(
        &[row("old", "1", 3, port(80)), holder],
        &[("old", "host port 80/TCP is used by pod default/young; change one of them")],
    );
}

#[test]
fn protocols_and_addresses_keep_ports_apart_and_all_addresses_do_not() {
    let udp = json!([{"containerPort": 80, "hostPort": 80, "protocol": "UDP"}]);
    let on = |ip: &str| json!([{"containerPort": 80, "hostPort": 80, "hostIP": ip}]);
    check(&[row("a", "1", 1, port(80)), row("b", "2", 2, udp)], &[]);
    check(&[row("a", "1", 1, on("10.0.0.1")), row("b", "2", 2, on("10.0.0.2"))], &[]);
    check(
        &[row("a", "1", 1, on("10.0.0.1")), row("b", "2", 2, on("0.0.0.0"))],
        &[("b", "host port 80/TCP is used by pod default/a; change one of them")],
    );
}

#[test]
fn a_uid_has_one_owner_and_a_blocked_pod_owns_nothing() {
    check(
        &[row("a", "1", 1, port(80)), row("b", "1", 2, port(81)), row("c", "3", 3, port(81))],
        &[("b", "uid 1 belongs to pod default/a")],
    );
}
