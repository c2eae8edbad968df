//! Networks of plugins: those of the CNI project, and some that do what a test wants of them.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::world::{Netns, World, can_publish, can_shape, world};
use crate::Protocol;
use crate::cni::{Attach, Attached, Capabilities, Cni, CniConfig, CniError, Names, NetworkList, Published};

/// Where Debian and the project itself install them.
const DIRECTORIES: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// A machine's networks and what is remembered of them.
struct Machine<'w> {
    world: &'w World,
    cni: Cni,
}

impl<'w> Machine<'w> {
    fn with(world: &'w World, plugins: Vec<PathBuf>) -> Self {
        let directory = world.directory.path();
        fs::create_dir_all(directory.join("net.d")).unwrap();
        let config = CniConfig {
            networks: directory.join("net.d"),
            plugins,
            records: directory.join("records"),
            limit: Duration::from_secs(20),
        };
        Self { world, cni: Cni::open(config).unwrap() }
    }

    /// With the real plugins; `None`, and a word, where they are not installed.
    fn real(world: &'w World) -> Option<Self> {
        let plugins: Vec<PathBuf> =
            DIRECTORIES.iter().map(PathBuf::from).filter(|d| d.join("bridge").exists()).collect();
        if plugins.is_empty() {
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            let _ =
                writeln!(std::io::stderr(), "SKIPPED: {test}: Debian's containernetworking-plugins are not installed");
            return None;
        }
        Some(Self::with(world, plugins))
    }

    fn configure(&self, file: &str, configuration: &Value) -> NetworkList {
        fs::write(self.world.directory.path().join("net.d").join(file), configuration.to_string()).unwrap();
        self.cni.network().unwrap().unwrap()
    }

    /// What host-local keeps of addresses.
    fn addresses_taken(&self, network: &str) -> usize {
        let directory = self.world.directory.path().join("ipam").join(network);
        let Ok(entries) = fs::read_dir(directory) else { return 0 };
        entries.filter(|entry| !entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("l")).count()
    }

    fn ipam(&self, ranges: &[&str]) -> Value {
        let ranges: Vec<Value> = ranges.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        json!({ "type": "host-local", "dataDir": self.world.directory.path().join("ipam"), "ranges": ranges,
                "routes": [{ "dst": "0.0.0.0/0" }] })
    }

    fn records(&self) -> usize {
        fs::read_dir(self.world.directory.path().join("records")).unwrap().count()
    }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn path_of(netns: &Netns) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd()))
}

fn attach(
    machine: &Machine<'_>,
    network: &NetworkList,
    id: &str,
    pod: &Netns,
    asks: &Capabilities,
) -> Result<Attached, CniError> {
    let arguments = [("IgnoreUnknown", "1"), ("K8S_POD_NAMESPACE", "default"), ("K8S_POD_NAME", id)];
    let netns = path_of(pod);
    let pod = Attach { container: id, netns: &netns, interface: "eth0", arguments: &arguments, capabilities: asks };
    wait(machine.cni.attach(network, &pod))
}

fn links(netns: &Netns) -> BTreeSet<String> {
    let text = netns.run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    text.lines().skip(2).map(|line| line.split(':').next().unwrap().trim().to_owned()).collect()
}

#[test]
fn pods_are_attached_by_the_plugins_of_a_cluster_and_leave_nothing() {
    world(|world| {
        let Some(machine) = Machine::real(world) else { return };
        let before = links(&world.host);
        let shapes = can_shape();
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let network = machine.configure(
                "10-net.conflist",
                &json!({
                    "cniVersion": version, "name": "net", "plugins": [
                        { "type": "bridge", "bridge": "prcni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                          "ipam": machine.ipam(&["10.77.0.0/24", "fd77::/64"]) },
                        { "type": if shapes { "bandwidth" } else { "tuning" }, "capabilities": { "bandwidth": true } },
                    ],
                }),
            );
            wait(machine.cni.status(&network)).unwrap();
            let (first, second) = (Netns::new(), Netns::new());
            let slow =
                Capabilities { ingress_bits: Some(8_000_000), egress_bits: Some(8_000_000), ..Capabilities::default() };
            let one = attach(&machine, &network, "one", &first, &slow).unwrap();
            let two = attach(&machine, &network, "two", &second, &Capabilities::default()).unwrap();
            let families = |at: &Attached| at.addresses.iter().map(|a| a.addr().is_ipv4()).collect::<Vec<_>>();
            assert_eq!((families(&one), families(&two)), (vec![true, false], vec![true, false]), "{version}");
            first.serve("first", 80);
            for address in &one.addresses {
                let seen = second.ask(address.addr(), 80);
                // A server of IPv4 alone has no answer for the other family but a refusal.
                let expected = address.addr().is_ipv4().then(|| format!("first sees {}", two.addresses[0].addr()));
                assert_eq!(seen, expected, "{version}: {address}");
            }
            assert_eq!(wait(machine.cni.attached("one")).unwrap().as_ref(), Some(&one));
            // What is there already stays.
            assert_eq!(attach(&machine, &network, "one", &first, &slow).unwrap(), one);
            assert_eq!(machine.addresses_taken("net"), 4);
            // Not the other: Debian's bandwidth plugin crashes at a pod without limits.
            wait(machine.cni.check("one")).unwrap();
            // The limit is the plugin's, so it is there.
            let shaped = world.host.program("tc", &["qdisc", "show"]);
            assert!(!shapes || shaped.is_none_or(|shown| shown.contains("tbf")), "{version}");

            // By what they were attached with, whatever has become of it; without a namespace too, and again.
            fs::write(world.directory.path().join("net.d/10-net.conflist"), "{").unwrap();
            drop(second);
            wait(machine.cni.detach("one", Some(&path_of(&first)))).unwrap();
            wait(machine.cni.detach("two", None)).unwrap();
            wait(machine.cni.detach("two", None)).unwrap();
            assert_eq!((machine.addresses_taken("net"), machine.records()), (0, 0), "{version}");
            assert_eq!(links(&first), ["lo".to_owned()].into(), "{version}");
            let left: Vec<_> = links(&world.host).difference(&before).cloned().collect();
            assert_eq!(left, ["prcni0"], "{version}: a bridge is the network's, not a pod's");
        }
    });
}

#[test]
fn a_check_finds_what_is_not_there_any_more() {
    world(|world| {
        let Some(machine) = Machine::real(world) else { return };
        let configuration = |check: bool| {
            json!({
                "cniVersion": "1.0.0", "name": "net", "disableCheck": !check,
                "plugins": [{ "type": "bridge", "bridge": "prcni0", "isGateway": true, "ipam": machine.ipam(&["10.77.0.0/24"]) }],
            })
        };
        let (pod, other) = (Netns::new(), Netns::new());
        let network = machine.configure("net.conflist", &configuration(true));
        attach(&machine, &network, "one", &pod, &Capabilities::default()).unwrap();
        let network = machine.configure("net.conflist", &configuration(false));
        attach(&machine, &network, "two", &other, &Capabilities::default()).unwrap();
        wait(machine.cni.check("one")).unwrap();
        for netns in [&pod, &other] {
            if netns.program("ip", &["link", "del", "eth0"]).is_none() {
                return;
            }
        }
        let error = wait(machine.cni.check("one")).unwrap_err();
        assert!(matches!(&error, CniError::Refused { command: "CHECK", .. }), "{error}");
        assert!(error.to_string().starts_with("network net: CHECK by plugin bridge: "), "{error}");
        wait(machine.cni.check("two")).unwrap();
        assert!(matches!(wait(machine.cni.check("never")), Err(CniError::NotAttached { .. })));
        for id in ["one", "two"] {
            wait(machine.cni.detach(id, None)).unwrap();
        }
    });
}

#[test]
fn ports_lead_to_pods_and_links_of_other_kinds_are_made() {
    world(|world| {
        let Some(machine) = Machine::real(world) else { return };
        let pod = Netns::new();
        if can_publish() && world.host.program("iptables", &["--version"]).is_some() {
            let network = machine.configure(
                "net.conflist",
                &json!({
                    "cniVersion": "1.0.0", "name": "ports", "plugins": [
                        { "type": "ptp", "ipam": machine.ipam(&["10.78.0.0/24"]) },
                        { "type": "portmap", "capabilities": { "portMappings": true } },
                    ],
                }),
            );
            let port = Published { host_ip: None, host_port: 8080, container_port: 80, protocol: Protocol::Tcp };
            let asks = Capabilities { ports: vec![port], ..Capabilities::default() };
            world.host.set_sysctl("ipv4/ip_forward", "1");
            attach(&machine, &network, "published", &pod, &asks).unwrap();
            pod.serve("pod", 80);
            let answer = world.outside.ask(super::world::HOST, 8080).unwrap();
            assert!(answer.starts_with("pod sees "), "{answer}");
            wait(machine.cni.detach("published", Some(&path_of(&pod)))).unwrap();
            assert_eq!(world.outside.ask_within(super::world::HOST, 8080, super::world::IMPATIENCE), None);
        }
        // A link of the machine that there is in any case.
        let below = links(&world.host).into_iter().find(|link| link != "lo").unwrap();
        let network = machine.configure(
            "net.conflist",
            &json!({
                "cniVersion": "1.0.0", "name": "mac", "plugins": [
                    { "type": "macvlan", "master": below, "ipam": machine.ipam(&["10.79.0.0/24"]) },
                ],
            }),
        );
        let attached = attach(&machine, &network, "mac", &pod, &Capabilities::default()).unwrap();
        assert_eq!(attached.addresses[0].to_string(), "10.79.0.2/24");
        assert!(links(&pod).contains("eth0"));
        wait(machine.cni.detach("mac", Some(&path_of(&pod)))).unwrap();
        assert!(!links(&pod).contains("eth0") && machine.records() == 0);
    });
}

/// A plugin that writes down what it is asked, and does what the test says: `script` is a shell's.
fn plugin(world: &World, name: &str, script: &str) {
    let directory = world.directory.path().join("bin");
    fs::create_dir_all(&directory).unwrap();
    let log = world.directory.path().join("asked");
    let text = format!(
        "#!/bin/sh\ninput=$(cat)\n\
         echo \"$CNI_COMMAND {name} $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $CNI_ARGS $input\" >> {}\n{script}\n",
        log.display()
    );
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What the plugins were asked: command and plugin, and the document.
fn asked(world: &World) -> Vec<(String, Value)> {
    let path = world.directory.path().join("asked");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let _nothing_yet = fs::remove_file(&path);
    let line = |line: &str| {
        let (head, document) = line.split_at(line.find('{').unwrap());
        (head.trim().to_owned(), serde_json::from_str(document).unwrap())
    };
    text.lines().map(line).collect()
}

fn fake<'w>(world: &'w World) -> Machine<'w> {
    Machine::with(world, vec![world.directory.path().join("bin")])
}

const RESULT: &str = r#"{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.2/16"}]}"#;

fn two_plugins(version: &str) -> Value {
    json!({ "cniVersion": version, "name": "net", "plugins": [
        { "type": "first", "capabilities": { "portMappings": true, "dns": true } },
        { "type": "second", "own": 1 },
    ] })
}

#[test]
fn plugins_are_told_what_the_specification_says() {
    world(|world| {
        let machine = fake(world);
        plugin(world, "first", &format!("[ $CNI_COMMAND != ADD ] || echo '{RESULT}'"));
        plugin(
            world,
            "second",
            "[ $CNI_COMMAND != ADD ] || echo '{\"ips\":[{\"address\":\"10.1.0.3/16\"}],\"mine\":1}'",
        );
        let network = machine.configure("net.conflist", &two_plugins("1.1.0"));
        let pod = Netns::new();
        let dns = Names { servers: vec!["10.0.0.1".to_owned()], ..Names::default() };
        let asks = Capabilities { dns: Some(dns), ingress_bits: Some(1), ..Capabilities::default() };
        let attached = attach(&machine, &network, "one", &pod, &asks).unwrap();
        assert_eq!(attached.addresses[0].to_string(), "10.1.0.3/16");
        let told = asked(world);
        let netns = path_of(&pod).display().to_string();
        let head = |command: &str, plugin: &str, netns: &str| {
            format!("{command} {plugin} one eth0 {netns} IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=one")
        };
        assert_eq!((&told[0].0, &told[1].0), (&head("ADD", "first", &netns), &head("ADD", "second", &netns)));
        let first = json!({ "cniVersion": "1.1.0", "name": "net", "type": "first", "runtimeConfig": {
            "dns": { "servers": ["10.0.0.1"], "searches": [], "options": [] } } });
        assert_eq!(told[0].1, first, "what it can, and nothing else");
        let second = json!({ "cniVersion": "1.1.0", "name": "net", "type": "second", "own": 1,
                             "prevResult": serde_json::from_str::<Value>(RESULT).unwrap() });
        assert_eq!(told[1].1, second);

        let last = json!({ "ips": [{ "address": "10.1.0.3/16" }], "mine": 1 });
        wait(machine.cni.check("one")).unwrap();
        let told = asked(world);
        assert_eq!((&told[0].0, &told[1].0), (&head("CHECK", "first", &netns), &head("CHECK", "second", &netns)));
        assert!(told.iter().all(|(_, document)| document["prevResult"] == last));
        wait(machine.cni.status(&network)).unwrap();
        let told = asked(world);
        assert_eq!((told[0].0.as_str(), told[1].0.as_str()), ("STATUS first", "STATUS second"));

        let other = Netns::new();
        attach(&machine, &network, "two", &other, &Capabilities::default()).unwrap();
        asked(world);
        wait(machine.cni.collect(&network, &["one".to_owned()].into())).unwrap();
        let told = asked(world);
        let heads: Vec<&str> = told.iter().map(|(head, _)| head.split(" eth0").next().unwrap()).collect();
        assert_eq!(heads, ["DEL second two", "DEL first two", "GC first", "GC second"]);
        let valid = json!([{ "containerID": "one", "ifname": "eth0" }]);
        assert!(told[2..].iter().all(|(_, document)| document["cni.dev/valid-attachments"] == valid), "{told:?}");
        wait(machine.cni.detach("one", None)).unwrap();
        let told = asked(world);
        assert_eq!((&told[0].0, &told[1].0), (&head("DEL", "second", ""), &head("DEL", "first", "")));
        assert!(told.iter().all(|(_, document)| document["prevResult"] == last));

        // Older networks: neither STATUS nor GC, and at first no result for DEL.
        let network = machine.configure("net.conflist", &two_plugins("0.3.1"));
        attach(&machine, &network, "one", &pod, &Capabilities::default()).unwrap();
        asked(world);
        wait(machine.cni.status(&network)).unwrap();
        wait(machine.cni.check("one")).unwrap();
        wait(machine.cni.collect(&network, &BTreeSet::new())).unwrap();
        let told = asked(world);
        assert_eq!(told.len(), 2);
        assert!(told.iter().all(|(head, document)| head.starts_with("DEL") && document.get("prevResult").is_none()));
    });
}

#[test]
fn what_a_plugin_refuses_is_told_in_its_words_and_undone() {
    world(|world| {
        let machine = fake(world);
        let pod = Netns::new();
        let refusal = |script: &str| {
            plugin(world, "first", &format!("[ $CNI_COMMAND != ADD ] || echo '{RESULT}'"));
            plugin(world, "second", &format!("[ $CNI_COMMAND = DEL ] && exit 0\n{script}"));
            let network = machine.configure("net.conflist", &two_plugins("1.0.0"));
            let error = attach(&machine, &network, "one", &pod, &Capabilities::default()).unwrap_err();
            let heads: Vec<String> = asked(world).into_iter().map(|(head, _)| head[..10].trim().to_owned()).collect();
            assert_eq!(heads, ["ADD first", "ADD second", "DEL second", "DEL first"]);
            assert_eq!(machine.records(), 0);
            error
        };
        let error = refusal("echo '{\"code\":11,\"msg\":\"no address\",\"details\":\"all of 10/8\"}'; exit 1");
        assert_eq!(error.to_string(), "network net: ADD by plugin second: no address: all of 10/8 (code 11)");
        assert!(error.passes());
        for (script, why) in [
            ("echo gone wrong >&2; exit 3", "it failed (exit status: 3) and does not say why: \"gone wrong\""),
            ("exit 0", "it answers with no result"),
            ("echo hello", "its answer is no JSON"),
            ("head -c 2000000 /dev/zero", "more than 1048576 bytes"),
            ("echo '{\"ips\":[{\"address\":\"nowhere\"}]}'", "has \"nowhere\" for an address"),
            ("kill -9 $$", "signal: 9"),
        ] {
            let error = refusal(script);
            assert!(error.to_string().contains(why) && !error.passes(), "{script}: {error}");
        }
        fs::remove_file(world.directory.path().join("bin/second")).unwrap();
        let network = machine.cni.network().unwrap().unwrap();
        let error = wait(machine.cni.status(&network)).unwrap_err();
        assert!(error.to_string().contains("plugin \"second\" is in none of "), "{error}");
    });
}

#[test]
fn a_plugin_that_does_not_end_is_killed_with_its_children_and_what_it_began_is_undone_later() {
    world(|world| {
        let directory = world.directory.path();
        let mut machine = fake(world);
        let config = CniConfig {
            networks: directory.join("net.d"),
            plugins: vec![directory.join("bin")],
            records: directory.join("records"),
            limit: Duration::from_millis(300),
        };
        machine.cni = Cni::open(config).unwrap();
        let child = directory.join("child");
        plugin(world, "first", &format!("sleep 1000 & echo $! > {}\nwait", child.display()));
        plugin(world, "second", "exit 0");
        let network = machine.configure("net.conflist", &two_plugins("1.0.0"));
        let pod = Netns::new();
        let begun = Instant::now();
        let error = attach(&machine, &network, "one", &pod, &Capabilities::default()).unwrap_err();
        assert!(matches!(error, CniError::TimedOut { command: "ADD", .. }) && error.passes(), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        let child = fs::read_to_string(&child).unwrap();
        let gone = || !Path::new("/proc").join(child.trim()).join("exe").exists();
        while !gone() {
            assert!(begun.elapsed() < Duration::from_secs(5), "its child runs on");
            std::thread::sleep(Duration::from_millis(10));
        }
        // DEL did not end either: what may be left is known, also to who comes after.
        assert_eq!(machine.records(), 1);
        plugin(world, "first", "exit 0");
        let again = fake(world);
        assert_eq!(wait(again.cni.attached("one")).unwrap(), None);
        asked(world);
        wait(again.cni.detach("one", None)).unwrap();
        assert_eq!(asked(world).len(), 2);
        assert_eq!(machine.records(), 0);
    });
}

#[test]
fn names_that_plugins_would_make_something_else_of_are_refused() {
    world(|world| {
        let machine = fake(world);
        plugin(world, "first", &format!("echo '{RESULT}'"));
        plugin(world, "second", &format!("echo '{RESULT}'"));
        let network = machine.configure("net.conflist", &two_plugins("1.0.0"));
        let netns = path_of(&world.host);
        let none = Capabilities::default();
        let good = Attach { container: "a", netns: &netns, interface: "eth0", arguments: &[], capabilities: &none };
        for bad in [
            Attach { container: "../a", ..good.clone() },
            Attach { container: "", ..good.clone() },
            Attach { interface: "a/b", ..good.clone() },
            Attach { interface: "..", ..good.clone() },
            Attach { interface: "sixteen-letters-", ..good.clone() },
            Attach { arguments: &[("K8S_POD_NAME", "a;IgnoreUnknown=0")], ..good.clone() },
        ] {
            assert!(matches!(wait(machine.cni.attach(&network, &bad)), Err(CniError::Configuration { .. })), "{bad:?}");
        }
        assert!(asked(world).is_empty() && machine.records() == 0);
        wait(machine.cni.detach("../a", None)).unwrap();
    });
}
