//! What packets reach, by real connections.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use super::world::{
    HOST, IMPATIENCE, Netns, OUTSIDE, PATIENCE, ask_udp_from, can_masquerade, can_publish, id, tcp, udp, world,
};
use crate::{PortMapping, Protocol};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

#[test]
fn a_pod_reaches_its_gateway_its_neighbour_and_itself() {
    world(|world| {
        let network = world.open();
        let (a, b) = (Netns::new(), Netns::new());
        let at_a = network.attach(&id('a'), a.as_fd(), &[]).unwrap();
        let at_b = network.attach(&id('b'), b.as_fd(), &[]).unwrap();
        world.host.serve("host", 80);
        b.serve("b", 80);
        a.serve("a", 80);
        assert_eq!(a.ask(at_a.gateway, 80), Some(format!("host sees {}", at_a.address)));
        assert_eq!(a.ask(at_b.address, 80), Some(format!("b sees {}", at_a.address)));
        assert_eq!(a.ask(LOCALHOST, 80), Some("a sees 127.0.0.1".to_owned()));
        assert_eq!(world.host.ask(at_b.address, 80), Some(format!("b sees {}", at_b.gateway)));
    });
}

#[test]
fn the_outside_sees_a_pod_with_the_hosts_address() {
    if !can_masquerade() {
        return;
    }
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        network.attach(&id('a'), pod.as_fd(), &[]).unwrap();
        world.outside.serve("outside", 80);
        world.outside.serve_udp("outside", 53);
        assert_eq!(pod.ask(OUTSIDE, 80), Some(format!("outside sees {HOST}")));
        assert_eq!(pod.ask_udp(OUTSIDE, 53), Some(format!("outside sees {HOST}")));
    });
}

#[test]
fn a_published_port_answers_everywhere() {
    if !can_publish() {
        return;
    }
    world(|world| {
        let network = world.open();
        let (pod, neighbour) = (Netns::new(), Netns::new());
        let at = network.attach(&id('a'), pod.as_fd(), &[tcp(8080, 80), tcp(8081, 81), udp(5300, 53)]).unwrap();
        network.attach(&id('b'), neighbour.as_fd(), &[]).unwrap();
        pod.serve("eighty", 80);
        pod.serve("eighty-one", 81);
        pod.serve_udp("fifty-three", 53);
        let gateway = at.gateway;
        let cases = [
            ("from loopback", &world.host, LOCALHOST, gateway),
            ("from the host's address", &world.host, HOST, HOST),
            ("from the bridge's address", &world.host, gateway, gateway),
            ("from outside", &world.outside, HOST, OUTSIDE),
            ("from the pod itself", &pod, HOST, gateway),
            ("from the pod itself, by the gateway", &pod, gateway, gateway),
            ("from its neighbour", &neighbour, HOST, gateway),
        ];
        for (what, from, to, seen) in cases {
            assert_eq!(from.ask(to, 8080), Some(format!("eighty sees {seen}")), "{what}");
            assert_eq!(from.ask(to, 8081), Some(format!("eighty-one sees {seen}")), "{what}");
            let answer = from.ask_udp(to, 5300);
            assert_eq!(answer, Some(format!("fifty-three sees {seen}")), "{what}");
        }
        // The pod's own port is not the host's.
        assert_eq!(world.host.ask_within(LOCALHOST, 80, IMPATIENCE), None);
        network.detach(&id('a')).unwrap();
        assert_eq!(world.host.ask_within(LOCALHOST, 8080, IMPATIENCE), None);
        assert_eq!(world.outside.ask_within(HOST, 8080, IMPATIENCE), None);
    });
}

#[test]
fn a_port_of_one_address_answers_there_alone() {
    if !can_publish() {
        return;
    }
    world(|world| {
        let network = world.open();
        let (local, public) = (Netns::new(), Netns::new());
        let on = |ip: Ipv4Addr| PortMapping { host_ip: Some(ip), ..tcp(8080, 80) };
        network.attach(&id('a'), local.as_fd(), &[on(LOCALHOST)]).unwrap();
        network.attach(&id('b'), public.as_fd(), &[on(HOST)]).unwrap();
        local.serve("local", 80);
        public.serve("public", 80);
        let told = |answer: Option<String>| answer.unwrap_or_default();
        assert!(told(world.host.ask(LOCALHOST, 8080)).starts_with("local "));
        assert!(told(world.host.ask(HOST, 8080)).starts_with("public "));
        assert!(told(world.outside.ask(HOST, 8080)).starts_with("public "));
        let any = PortMapping {
            host_ip: Some(Ipv4Addr::UNSPECIFIED),
            protocol: Protocol::Tcp,
            host_port: 9090,
            container_port: 80,
        };
        let third = Netns::new();
        third.serve("third", 80);
        network.attach(&id('c'), third.as_fd(), &[any]).unwrap();
        assert!(told(world.host.ask(LOCALHOST, 9090)).starts_with("third "));
    });
}

#[test]
fn the_hosts_loopback_is_out_of_reach_for_pods() {
    if !can_publish() {
        return;
    }
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        let at = network.attach(&id('a'), pod.as_fd(), &[]).unwrap();
        world.host.serve("secret", 9000);
        // The pod sends packets for 127.0.0.1 to its gateway instead of keeping them.
        pod.set_sysctl("ipv4/conf/all/route_localnet", "1");
        let gateway = at.gateway.to_string();
        let spoof = |arguments: &[&str]| pod.program("ip", arguments);
        let Some(_) = spoof(&["rule", "add", "pref", "100", "to", "127.0.0.0/8", "lookup", "7"]) else {
            return;
        };
        spoof(&["rule", "add", "pref", "32000", "lookup", "local"]);
        spoof(&["rule", "del", "pref", "0"]);
        spoof(&["route", "add", "127.0.0.0/8", "via", &gateway, "table", "7"]);
        assert_eq!(pod.ask_within(LOCALHOST, 9000, IMPATIENCE), None);
        // The same without the guard: it is the guard that keeps the packets out.
        let table = ["flush", "chain", "ip", "portreeve_test", "guard"];
        if world.host.program("nft", &table).is_some() {
            let answer = pod.ask(LOCALHOST, 9000);
            assert_eq!(answer, Some(format!("secret sees {}", at.address)));
            assert_eq!(network.ensure().unwrap().len(), 1);
            assert_eq!(pod.ask_within(LOCALHOST, 9000, IMPATIENCE), None);
        }
    });
}

#[test]
fn a_udp_client_that_keeps_its_port_follows_the_pod() {
    if !can_publish() {
        return;
    }
    world(|world| {
        let network = world.open();
        let (first, second) = (Netns::new(), Netns::new());
        let client = world.outside.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        let server = SocketAddr::from((HOST, 5300));
        let ask = |within: Duration| ask_udp_from(&client, server, within);
        network.ensure().unwrap();
        // The host remembers this flow as one to itself.
        assert_eq!(ask(IMPATIENCE), None);
        first.serve_udp("first", 53);
        second.serve_udp("second", 53);
        network.attach(&id('a'), first.as_fd(), &[udp(5300, 53)]).unwrap();
        // A refused packet of before may be reported now.
        let answer = ask(PATIENCE).or_else(|| ask(PATIENCE));
        assert_eq!(answer, Some(format!("first sees {OUTSIDE}")));
        network.detach(&id('a')).unwrap();
        network.attach(&id('b'), second.as_fd(), &[udp(5300, 53)]).unwrap();
        let answer = ask(PATIENCE).or_else(|| ask(PATIENCE));
        assert_eq!(answer, Some(format!("second sees {OUTSIDE}")));
    });
}
