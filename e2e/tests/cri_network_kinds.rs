//! A kubelet's pods in networks of each kind that clusters have: dual-stack bridges, macvlan, ptp.

use std::path::Path;

use portreeve_e2e::cri::{pod, shell};
use portreeve_e2e::{Agent, BUSYBOX, Cri, World, preload_busybox, skipped, skipped_without_root, wait_until};
use serde_json::{Value, json};

/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// A kubelet's client in a world with one network.
struct Place<'w> {
    agent: Agent<'w>,
    cri: Cri,
    world: &'w World,
}

impl<'w> Place<'w> {
    /// With a network whose only plugin is this one; its addresses are of these subnets.
    fn with(world: &'w World, mut plugin: Value, subnets: &[&str]) -> Self {
        preload_busybox(world);
        let agent = Agent::start_with(world, &["--cri-network", "cni", "--cri-cni-bin-dir", PLUGINS]);
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        plugin["ipam"] = json!({ "type": "host-local", "dataDir": world.path("ipam"), "ranges": ranges });
        let list = json!({ "cniVersion": "1.0.0", "name": "kind", "plugins": [plugin] });
        std::fs::create_dir(agent.networks()).unwrap();
        std::fs::write(agent.networks().join("10-kind.conflist"), list.to_string()).unwrap();
        let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
        Self { agent, cri, world }
    }

    /// A pod that serves its name as a page: its sandbox, its container and its addresses.
    fn serve(&self, name: &str) -> (String, String, Vec<String>) {
        let config = pod(name, &self.world.path("cri-logs"));
        let sandbox = self.cri.run_sandbox(&config).unwrap();
        let line = format!("echo {name} > /index.html; exec httpd -f -p 80 -h /");
        let container = self.cri.create(&sandbox, shell(name, BUSYBOX, &line), &config).unwrap();
        self.cri.start(&container).unwrap();
        let network = self.cri.sandbox(&sandbox).unwrap().network.unwrap();
        let addresses = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|one| one.ip));
        (sandbox, container, addresses.collect())
    }

    /// That one container gets the page of a pod at each of its addresses.
    fn is_reached(&self, from: &str, name: &str, addresses: &[String]) {
        for address in addresses {
            let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
            // An address of IPv6 is the pod's when nobody else has claimed it, which takes a second.
            wait_until("the pod answers the other one", 15, || {
                let command = ["wget", "-q", "-O", "-", &format!("http://{host}/")];
                let asked = self.cri.exec(from, &command, 5).map_err(|refused| refused.to_string())?;
                let page = String::from_utf8_lossy(&asked.stdout).into_owned();
                let said = String::from_utf8_lossy(&asked.stderr).into_owned();
                if page.trim() == name { Ok(()) } else { Err(format!("{address}: {page:?} {said}")) }
            });
        }
    }

    /// Removes pods, and that nothing of them is left in the network.
    fn leave(&self, sandboxes: &[&String]) {
        for sandbox in sandboxes {
            self.cri.stop_sandbox(sandbox).unwrap();
            self.cri.remove_sandbox(sandbox).unwrap();
        }
        let given = std::fs::read_dir(self.world.path("ipam/kind")).unwrap().map(|entry| entry.unwrap().file_name());
        let given: Vec<_> = given.filter(|name| name.to_string_lossy().starts_with(['1', 'f'])).collect();
        assert!(given.is_empty(), "{given:?}");
        assert_eq!(std::fs::read_dir(self.agent.run_dir().join("netns")).unwrap().count(), 0);
    }
}

fn skipped_without(plugin: &str) -> bool {
    if skipped_without_root("cri_network_kinds") {
        return true;
    }
    let installed = Path::new(PLUGINS).join(plugin).exists();
    if !installed {
        skipped("cri_network_kinds", "Debian's containernetworking-plugins are not installed");
    }
    !installed
}

#[test]
fn pods_of_a_dual_stack_bridge_reach_each_other_and_are_reached_by_both_families() {
    if skipped_without("bridge") {
        return;
    }
    let world = World::new("cri-dual");
    let plugin = json!({ "type": "bridge", "bridge": "prtdual0", "isGateway": true });
    let place = Place::with(&world, plugin, &["10.93.0.0/24", "fd93::/64"]);
    let (first, _, addresses) = place.serve("first");
    assert_eq!(addresses, ["10.93.0.2", "fd93::2"]);
    let (second, client, others) = place.serve("second");
    assert_eq!(others, ["10.93.0.3", "fd93::3"]);
    place.is_reached(&client, "first", &addresses);
    for host in ["10.93.0.2", "[fd93::2]"] {
        wait_until("the node has its page", 15, || match world.fetch(&format!("http://{host}/")) {
            Ok(page) if page == "first\n" => Ok(()),
            other => Err(format!("{host}: {other:?}")),
        });
    }
    let seen = place.cri.inside(&client, "ip addr show dev eth0");
    assert!(seen.contains("10.93.0.3/24") && seen.contains("fd93::3/64"), "{seen}");
    place.leave(&[&first, &second]);
    world.sh("ip link del prtdual0");
}

#[test]
fn pods_of_a_macvlan_reach_each_other() {
    if skipped_without("macvlan") {
        return;
    }
    let world = World::new("cri-macvlan");
    let links = "ip link add mvparent type veth peer name mvpeer && ip link set mvparent up && ip link set mvpeer up && \
                 ip link add link mvparent name mvprobe type macvlan mode bridge && ip link del mvprobe";
    if !world.command("sh").args(["-c", links]).status().is_ok_and(|status| status.success()) {
        skipped("cri_network_kinds: macvlan", "this kernel has no macvlan links");
        return;
    }
    let place =
        Place::with(&world, json!({ "type": "macvlan", "master": "mvparent", "mode": "bridge" }), &["10.94.0.0/24"]);
    let (first, _, addresses) = place.serve("first");
    let (second, client, _) = place.serve("second");
    assert_eq!(addresses, ["10.94.0.2"]);
    place.is_reached(&client, "first", &addresses);
    place.leave(&[&first, &second]);
    world.sh("ip link del mvparent");
}

#[test]
fn pods_of_a_ptp_network_are_reached_by_the_node_and_by_each_other() {
    if skipped_without("ptp") {
        return;
    }
    let world = World::new("cri-ptp");
    let place = Place::with(&world, json!({ "type": "ptp" }), &["10.95.0.0/24"]);
    let (first, _, addresses) = place.serve("first");
    let (second, client, _) = place.serve("second");
    assert_eq!(addresses, ["10.95.0.2"]);
    wait_until("the node has its page", 10, || match world.fetch("http://10.95.0.2/") {
        Ok(page) if page == "first\n" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    place.is_reached(&client, "first", &addresses);
    place.leave(&[&first, &second]);
}
