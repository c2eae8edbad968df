//! The network of a container: its loopback, and `linux.netDevices`, links of the caller that become the container's.

use portreeve_e2e::{Report, Runtime};
use serde_json::{Value, json};

fn links(report: &Report) -> Vec<String> {
    let names = report["links"].as_array().into_iter().flatten().filter_map(Value::as_str);
    names.filter(|name| *name != "lo").map(str::to_owned).collect()
}

/// One end of a cable in the world, with addresses, which is up.
fn cable(runtime: &Runtime, name: &str) {
    runtime.world().sh(&format!(
        "ip link add {name} mtu 1400 type veth peer name {name}-far && ip addr add 10.9.8.7/24 dev {name} && \
         ip link set {name} up && ip link set {name}-far up"
    ));
}

#[test]
fn a_link_is_moved_with_its_addresses() {
    let Some(runtime) = Runtime::for_test("a_link_is_moved_with_its_addresses") else { return };
    for (change, inside) in [(json!({ "cable": {} }), "cable"), (json!({ "cable": { "name": "inner" } }), "inner")] {
        cable(&runtime, "cable");
        let bundle = runtime.bundle(&["wait"]).with(json!({ "linux": { "netDevices": change } }));
        runtime.start_waiting(&bundle);
        assert_eq!(links(&runtime.exec_report(&bundle, &[])), [inside]);
        let pid = runtime.pid(&bundle);
        let seen = runtime.world().sh(&format!("nsenter --target {pid} --net ip -o addr show dev {inside}"));
        assert!(seen.contains("10.9.8.7/24"), "{seen}");
        let seen = runtime.world().sh(&format!("nsenter --target {pid} --net ip -o link show dev {inside}"));
        assert!(seen.contains("mtu 1400") && seen.contains("UP"), "{seen}");
        assert!(!runtime.world().sh("ip -o link").contains(" cable@"), "it is not the caller's any more");
        // Its network ends with the container, and a cable with its network.
        runtime.call(&["delete", "--force", bundle.id()]).ok();
        runtime.world().sh("ip link del cable-far 2>/dev/null; true");
    }
}

#[test]
fn a_link_that_cannot_be_moved_is_an_error_and_stays() {
    let Some(runtime) = Runtime::for_test("a_link_that_cannot_be_moved_is_an_error_and_stays") else { return };
    cable(&runtime, "cable");
    let with = |devices: Value| runtime.bundle(&["wait"]).with(json!({ "linux": { "netDevices": devices } }));
    let cases = [
        with(json!({ "nowhere": {} })),
        with(json!({ "cable": { "name": "a/b" } })),
        with(json!({ "cable": { "name": "a name that is too long" } })),
        with(json!({ "cable": { "name": "lo" } })),
        with(json!({ "cable": {} })).with_namespace("network", None),
        // After it has been moved.
        with(json!({ "cable": { "name": "inner" } })).with(json!({ "process": { "args": ["/nowhere"] } })),
    ];
    for bundle in cases {
        let answer = runtime.create(&bundle, &[]);
        assert_ne!(answer.code, 0, "{}", bundle.config()["linux"]["netDevices"]);
        assert!(!answer.stderr.trim().is_empty());
        assert!(runtime.world().sh("ip -o addr show dev cable").contains("10.9.8.7/24"), "it is as it was");
        assert_eq!(runtime.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn the_loopback_of_a_new_network_is_up() {
    let Some(runtime) = Runtime::for_test("the_loopback_of_a_new_network_is_up") else { return };
    for users in [false, true] {
        let bundle = runtime.bundle_of(&["busybox", "ifconfig", "lo"]);
        let bundle = if users { bundle.with_users(100_000, 65536) } else { bundle };
        let said = runtime.run(&bundle, &[]).ok();
        assert!(said.contains("UP LOOPBACK RUNNING") && said.contains("inet addr:127.0.0.1"), "{users}: {said}");
    }
}

#[test]
fn the_loopback_of_a_network_that_is_joined_is_left_alone() {
    let test = "the_loopback_of_a_network_that_is_joined_is_left_alone";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let first = runtime.bundle(&["wait"]);
    runtime.start_waiting(&first);
    let network = format!("/proc/{}/ns/net", runtime.pid(&first));
    runtime.world().sh(&format!("nsenter --net={network} ip link set lo down"));
    let namespaces = json!([{ "type": "mount" }, { "type": "uts" }, { "type": "network", "path": network }]);
    let bundle = runtime.bundle_of(&["busybox", "ifconfig", "lo"]);
    let said = runtime.run(&bundle.with(json!({ "linux": { "namespaces": namespaces } })), &[]).ok();
    assert!(said.contains("LOOPBACK") && !said.contains("UP"), "{said}");
}
