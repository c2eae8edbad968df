//! Lookups, with nameservers on loopback.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};

use tempfile::TempDir;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(20);

/// A nameserver's behaviour: what it says to a name and a kind (1 or 28); `None` is silence.
type Zone = fn(&str, u8) -> Option<Reply>;

#[derive(Clone)]
enum Reply {
    Has(&'static [&'static str]),
    Code(u8),
    /// Cut over UDP; these over TCP.
    Cut(&'static [&'static str]),
}

/// The bytes of a reply to `question`.
fn reply(question: &[u8], zone: Zone, tcp: bool) -> Option<Vec<u8>> {
    let mut name = String::new();
    let mut at = 12;
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        name += std::str::from_utf8(&question[at + 1..end]).unwrap();
        name.push('.');
        at = end;
    }
    let kind = question[at + 2];
    let (code, cut, addresses) = match zone(name.trim_end_matches('.'), kind)? {
        Reply::Has(addresses) => (0, false, addresses),
        Reply::Code(code) => (code, false, &[][..]),
        Reply::Cut(addresses) => (0, !tcp, if tcp { addresses } else { &[] }),
    };
    let mut message = question.to_vec();
    message[2] = 0x81 | if cut { 2 } else { 0 };
    message[3] = 0x80 | code;
    message[7] = u8::try_from(addresses.len()).unwrap();
    for address in addresses {
        message.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0]);
        match address.parse().unwrap() {
            IpAddr::V4(ip) => message.extend([&[4][..], &ip.octets()].concat()),
            IpAddr::V6(ip) => message.extend([&[16][..], &ip.octets()].concat()),
        }
    }
    Some(message)
}

/// A machine's two files, and the port of its nameservers.
struct Machine {
    dir: TempDir,
    resolver: Resolver,
}

impl Machine {
    /// With a nameserver on each of these addresses of loopback; the port is the same on all.
    fn new(servers: &[(&str, Zone)]) -> Self {
        let port = servers.first().map_or(1, |(ip, zone)| serve(ip, 0, *zone));
        for (ip, zone) in servers.iter().skip(1) {
            serve(ip, port, *zone);
        }
        let dir = tempfile::tempdir().unwrap();
        let resolver = Resolver { hosts: dir.path().join("hosts"), resolv_conf: dir.path().join("resolv.conf"), port };
        let machine = Self { dir, resolver };
        machine.write("hosts", "");
        machine.write("resolv.conf", &servers.iter().map(|(ip, _)| format!("nameserver {ip}\n")).collect::<String>());
        machine
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.dir.path().join(file), text).unwrap();
    }

    async fn lookup(&self, host: &str) -> Result<String, String> {
        let found = self.resolver.lookup(host, 80, LONG).await.map_err(|error| error.to_string())?;
        Ok(found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }
}

/// Serves on UDP and TCP until the test program ends; returns the port.
fn serve(ip: &str, port: u16, zone: Zone) -> u16 {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind((ip.parse::<IpAddr>().unwrap(), port)).unwrap();
        // Taken for TCP by somebody else: the kernel chooses again.
        match TcpListener::bind(udp.local_addr().unwrap()) {
            Ok(tcp) => break (udp, tcp),
            Err(error) => assert!(port == 0, "{ip}:{port}: {error}"),
        }
    };
    let port = udp.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            if let Some(message) = reply(&buffer[..length], zone, false) {
                udp.send_to(&message, from).unwrap();
            }
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut question).unwrap();
            if let Some(message) = reply(&question, zone, true) {
                let whole = [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat();
                // In pieces: a stream keeps no borders.
                for piece in whole.chunks(7) {
                    stream.write_all(piece).unwrap();
                }
            }
        }
    });
    port
}

fn never(_: &str, _: u8) -> Option<Reply> {
    None
}

fn broken(_: &str, _: u8) -> Option<Reply> {
    Some(Reply::Code(2))
}

fn town(name: &str, kind: u8) -> Option<Reply> {
    Some(match (name, kind) {
        ("hub.town.test" | "both.test", 1) => Reply::Has(&["127.0.0.4"]),
        ("both.test", 28) => Reply::Has(&["::1"]),
        ("hub.town.test" | "empty.test", _) => Reply::Has(&[]),
        ("long.test", 1) => Reply::Cut(&["127.0.0.5", "127.0.0.6"]),
        ("long.test", _) => Reply::Cut(&[]),
        ("half.test", 1) => Reply::Has(&["127.0.0.7"]),
        ("half.test", _) | ("ill.test", 1) => Reply::Code(2),
        ("ill.test", _) => Reply::Has(&[]),
        ("deaf.test", 1) => Reply::Has(&["127.0.0.7"]),
        ("deaf.test", _) => return None,
        ("odd.town.test", _) => Reply::Code(2),
        ("odd", 1) => Reply::Has(&["127.0.0.8"]),
        _ => Reply::Code(3),
    })
}

#[tokio::test]
async fn an_address_asks_nobody() {
    let machine = Machine::new(&[]);
    assert_eq!(machine.lookup("192.0.2.1").await.unwrap(), "192.0.2.1:80");
    assert_eq!(machine.lookup("2001:db8::1").await.unwrap(), "[2001:db8::1]:80");
    assert_eq!(machine.lookup("fe80::1%lo").await.unwrap(), "[fe80::1%1]:80");
}

#[tokio::test]
async fn the_hosts_file_comes_first_whatever_the_case_and_wherever_on_the_line() {
    let machine = Machine::new(&[("127.0.0.1", town)]);
    machine.write(
        "hosts",
        "# both.test\n127.0.0.9 other.test  Both.Test # comment\n\n127.0.0.10\tboth.test.\nnonsense both.test\n",
    );
    assert_eq!(machine.lookup("both.test").await.unwrap(), "127.0.0.9:80 127.0.0.10:80");
    assert_eq!(machine.lookup("BOTH.test.").await.unwrap(), "127.0.0.9:80 127.0.0.10:80");
    machine.write("hosts", "127.0.0.9 both.test.other\n");
    assert!(machine.lookup("both.test").await.unwrap().contains("127.0.0.4:80"));
}

#[tokio::test]
async fn localhost_never_goes_to_a_nameserver() {
    fn lying(_: &str, kind: u8) -> Option<Reply> {
        Some(if kind == 1 { Reply::Has(&["192.0.2.66"]) } else { Reply::Has(&[]) })
    }
    let machine = Machine::new(&[("127.0.0.1", lying)]);
    for name in ["localhost", "LOCALHOST.", "registry.localhost"] {
        assert!(machine.lookup(name).await.unwrap().contains("127.0.0.1:80"), "{name}");
    }
    assert_eq!(machine.lookup("localhost.example.test").await.unwrap(), "192.0.2.66:80");
}

#[tokio::test]
async fn a_nameserver_is_asked_for_both_kinds_and_in_the_domains_of_the_search_list() {
    let machine = Machine::new(&[("127.0.0.1", town)]);
    assert_eq!(machine.lookup("both.test").await.unwrap(), "[::1]:80 127.0.0.4:80");
    assert!(machine.lookup("hub").await.is_err());
    machine.write("resolv.conf", "nameserver 127.0.0.1\nsearch village.test town.test\n");
    assert_eq!(machine.lookup("hub").await.unwrap(), "127.0.0.4:80", "the second domain");
    assert!(machine.lookup("hub.").await.is_err(), "a whole name is not completed");
    assert_eq!(machine.lookup("half.test").await.unwrap(), "127.0.0.7:80", "one kind is enough");
    machine.write("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1\nsearch village.test town.test\n");
    assert_eq!(machine.lookup("deaf.test").await.unwrap(), "127.0.0.7:80", "even when the other is not answered");
    assert_eq!(machine.lookup("odd").await.unwrap(), "127.0.0.8:80", "a failure in one domain does not end the search");
}

#[tokio::test]
async fn an_answer_that_is_too_long_for_a_datagram_comes_over_tcp() {
    let machine = Machine::new(&[("127.0.0.1", town)]);
    assert_eq!(machine.lookup("long.test").await.unwrap(), "127.0.0.5:80 127.0.0.6:80");
    let tasks = tokio::runtime::Handle::current().metrics();
    let gone = async {
        while tasks.num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SECOND, gone).await.expect("no connection outlives its lookup");
    machine.write("resolv.conf", "nameserver 127.0.0.1\noptions use-vc no-aaaa\n");
    assert_eq!(machine.lookup("both.test").await.unwrap(), "127.0.0.4:80");
}

#[tokio::test]
async fn a_file_that_changes_counts_at_the_next_lookup() {
    let machine = Machine::new(&[("127.0.0.1", broken), ("127.0.0.2", town)]);
    machine.write("resolv.conf", "nameserver 127.0.0.1\n");
    assert!(machine.lookup("both.test").await.is_err());
    machine.write("resolv.conf", "nameserver 127.0.0.2\n");
    assert!(machine.lookup("both.test").await.is_ok());
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_is_silent_failing_or_not_there() {
    let machine = Machine::new(&[("127.0.0.1", never), ("127.0.0.2", broken), ("127.0.0.4", town)]);
    // Nothing listens on 127.0.0.3.
    for bad in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
        machine.write("resolv.conf", &format!("nameserver {bad}\nnameserver 127.0.0.4\noptions timeout:1\n"));
        assert!(machine.lookup("both.test").await.unwrap().contains("127.0.0.4:80"), "{bad}");
    }
}

#[tokio::test]
async fn a_name_that_nobody_has_is_told_from_servers_that_do_not_say() {
    let machine = Machine::new(&[("127.0.0.1", town), ("127.0.0.2", never), ("127.0.0.3", broken)]);
    machine.write("resolv.conf", "nameserver 127.0.0.1\n");
    for host in ["nowhere.test", "empty.test"] {
        let error = machine.resolver.lookup(host, 80, LONG).await.unwrap_err();
        assert!(matches!(error, ResolveError::Unknown { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("no such host: {host} ")) && text.contains("nameserver 127.0.0.1"), "{text}");
    }
    let error = machine.lookup("ill.test").await.unwrap_err();
    assert!(error.starts_with("looking up ill.test: nameserver 127.0.0.1 failed"), "no IPv6 is not no host: {error}");
    machine.write("resolv.conf", "nameserver 127.0.0.2\nnameserver 127.0.0.3\nnameserver 127.0.0.4\n");
    let error = machine.resolver.lookup("both.test", 80, SECOND).await.unwrap_err();
    assert!(matches!(error, ResolveError::Unanswered { .. }), "{error:?}");
    let text = error.to_string();
    for part in [
        "looking up both.test: ",
        "nameserver 127.0.0.2 did not answer within ",
        "nameserver 127.0.0.3 failed (Server Failure)",
        "nameserver 127.0.0.4 cannot be reached (Connection refused",
        "resolv.conf",
    ] {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
}

#[tokio::test]
async fn silence_ends_in_the_time_given_however_many_names_and_tries_there_are() {
    let machine = Machine::new(&[("127.0.0.1", never), ("127.0.0.2", never)]);
    machine.write(
        "resolv.conf",
        "nameserver 127.0.0.1\nnameserver 127.0.0.2\nsearch a.test b.test c.test\noptions attempts:5 timeout:30\n",
    );
    let begun = Instant::now();
    let error = machine.resolver.lookup("hub", 80, SECOND).await.unwrap_err();
    assert!(matches!(error, ResolveError::Unanswered { .. }), "{error:?}");
    assert!(begun.elapsed() >= SECOND / 2 && begun.elapsed() < 10 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_cannot_be_a_name_is_said_to_be_none() {
    let machine = Machine::new(&[]);
    for host in ["", ".", "a..b", "a b", "http://x", &"x".repeat(64)] {
        let error = machine.resolver.lookup(host, 80, SECOND).await.unwrap_err();
        assert!(matches!(error, ResolveError::Invalid { .. }), "{host:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let machine = Machine::new(&[]);
    fs::remove_file(machine.dir.path().join("hosts")).unwrap();
    fs::create_dir(machine.dir.path().join("hosts")).unwrap();
    let error = machine.lookup("both.test").await.unwrap_err();
    assert!(error.contains("/hosts to find both.test"), "{error}");
}

#[test]
fn a_file_says_who_is_asked_and_within_which_bounds() {
    let conf = |text: &str| Config::parse_with_errors(text.as_bytes()).0;
    let asked = |text: &str| format!("{:?}", Nameservers::new(&conf(text), 53));
    let said = asked(
        "# comment\n; another\nnameserver 192.0.2.1\nnameserver nonsense\nnameserver fe80::1%lo\n\
         options timeout:99 attempts:0 unknown rotate\noptions use-vc no-aaaa\n nameserver 192.0.2.2\n\
         nameserver 192.0.2.3\n",
    );
    for part in ["[192.0.2.1:53, [fe80::1%1]:53, 192.0.2.2:53]", "timeout: 30s, attempts: 1, tcp: true, aaaa: false"] {
        assert!(said.contains(part), "{part:?} is missing: {said}");
    }
    let unsaid = asked("");
    assert!(unsaid.contains("[127.0.0.1:53], timeout: 5s, attempts: 2, tcp: false, aaaa: true"), "{unsaid}");
    assert!(asked("options attempts:4294967295 timeout:0").contains("timeout: 1s, attempts: 5"));
}

#[test]
fn names_are_completed_as_search_and_ndots_say() {
    let text = "domain old.test\nsearch a.test b.test. .\noptions ndots:2\n";
    let conf = Config::parse_with_errors(text.as_bytes()).0;
    for (host, names) in [
        ("hub", &["hub.a.test.", "hub.b.test.", "hub."][..]),
        ("hub.lan", &["hub.lan.a.test.", "hub.lan.b.test.", "hub.lan."]),
        ("hub.lan.x", &["hub.lan.x.", "hub.lan.x.a.test.", "hub.lan.x.b.test."]),
        ("hub.", &["hub."]),
    ] {
        let found: Vec<_> = candidates(&conf, &Name::from_str(host).unwrap()).iter().map(ToString::to_string).collect();
        assert_eq!(found, names, "{host}");
    }
}
