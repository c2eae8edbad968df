//! A host, pods and an outside machine, each a network namespace.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, setns, unshare};
use tempfile::TempDir;

use crate::link::{self, NewPair, Which};
use crate::netlink::{Batch, Socket};
use crate::nft::{self, Extent};
use crate::{Config, Network, PortMapping, Protocol};

pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// What a refused connection may take: nothing answers, so this time passes in full.
pub(super) const IMPATIENCE: Duration = Duration::from_millis(400);

/// A network namespace that lives as long as this does.
#[derive(Debug)]
pub(super) struct Netns {
    fd: OwnedFd,
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<File> for Netns {
    fn from(file: File) -> Self {
        Self { fd: file.into() }
    }
}

impl Netns {
    /// A new one, with nothing in it but a loopback link that is down.
    pub(super) fn new() -> Self {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            // By default the machine's own setting is taken over.
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
            Self::of_this_thread()
        })
        .join()
        .unwrap()
    }

    fn of_this_thread() -> Self {
        Self { fd: File::open("/proc/thread-self/ns/net").unwrap().into() }
    }

    /// Runs `work` inside.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.fd, CloneFlags::CLONE_NEWNET).unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }

    /// A server on every address that tells each client who it is and whom it sees.
    pub(super) fn serve(&self, name: &'static str, port: u16) {
        let listener = self.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip();
                let _ = write!(stream, "{name} sees {peer}");
            }
        });
    }

    /// A server that is there during `work` only.
    pub(super) fn serve_until_dropped<T>(&self, name: &'static str, port: u16, work: impl FnOnce() -> T) -> T {
        let listener = self.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        let address = self.run(|| listener.local_addr()).unwrap();
        std::thread::scope(|scope| {
            let server = scope.spawn(move || {
                loop {
                    let (mut stream, peer) = listener.accept().unwrap();
                    if peer.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
                        return;
                    }
                    let _ = write!(stream, "{name} sees {}", peer.ip());
                }
            });
            let result = work();
            self.run(|| drop(TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).unwrap()));
            server.join().unwrap();
            result
        })
    }

    /// The same over UDP.
    pub(super) fn serve_udp(&self, name: &'static str, port: u16) {
        let socket = self.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let answer = format!("{name} sees {}", peer.ip());
                let _ = socket.send_to(answer.as_bytes(), peer);
            }
        });
    }

    /// What the server at this address says to a client in here; `None` when none answers.
    pub(super) fn ask(&self, ip: impl Into<IpAddr>, port: u16) -> Option<String> {
        self.ask_within(ip, port, PATIENCE)
    }

    pub(super) fn ask_within(&self, ip: impl Into<IpAddr>, port: u16, within: Duration) -> Option<String> {
        let address = SocketAddr::new(ip.into(), port);
        self.run(move || {
            let mut answer = String::new();
            let asked = TcpStream::connect_timeout(&address, within).and_then(|mut stream| {
                stream.set_read_timeout(Some(within))?;
                stream.read_to_string(&mut answer)
            });
            // Seen when the test fails: no answer may be a refusal or a silence.
            asked.inspect_err(|error| println!("{address}: {error}")).ok().map(|_| answer)
        })
    }

    /// The same over UDP, from a fresh port.
    pub(super) fn ask_udp(&self, ip: impl Into<IpAddr>, port: u16) -> Option<String> {
        let socket = self.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        ask_udp_from(&socket, SocketAddr::new(ip.into(), port), PATIENCE)
    }

    /// The links, addresses and routes of this namespace change only through this socket.
    pub(super) fn route(&self) -> Socket {
        self.run(|| Socket::open(0).unwrap())
    }

    pub(super) fn sysctl(&self, name: &str) -> String {
        self.run(|| crate::setting::read(name).unwrap().unwrap())
    }

    pub(super) fn set_sysctl(&self, name: &str, value: &str) {
        self.run(|| crate::setting::write(name, value).unwrap());
    }

    /// Whether a program in here succeeds; `None` when it is not installed, which is said.
    pub(super) fn succeeds(&self, name: &str, arguments: &[&str]) -> Option<bool> {
        let output = self.run(|| std::process::Command::new(name).args(arguments).output());
        let Ok(output) = output else {
            let _ = writeln!(std::io::stderr(), "SKIPPED IN PART: {name} is not installed");
            return None;
        };
        Some(output.status.success())
    }

    /// Runs a program in here; `None` when it is not installed, which is said.
    pub(super) fn program(&self, name: &str, arguments: &[&str]) -> Option<String> {
        let output = self.run(|| std::process::Command::new(name).args(arguments).output());
        let Ok(output) = output else {
            let _ = writeln!(std::io::stderr(), "SKIPPED IN PART: {name} is not installed");
            return None;
        };
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} {arguments:?}: {error}");
        Some(String::from_utf8(output.stdout).unwrap())
    }
}

/// Asks over UDP from a socket that may have been used before.
pub(super) fn ask_udp_from(socket: &UdpSocket, to: SocketAddr, within: Duration) -> Option<String> {
    socket.set_read_timeout(Some(within)).unwrap();
    socket.send_to(b"who", to).ok()?;
    let mut buffer = [0; 64];
    let (length, _) = socket.recv_from(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(buffer.get(..length)?).into_owned())
}

/// One host with a network of ours, and a machine outside of it.
#[derive(Debug)]
pub(super) struct World {
    pub(super) host: Netns,
    pub(super) outside: Netns,
    pub(super) directory: TempDir,
}

/// The host's address towards the outside, and the outside machine's.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Runs a test on a thread that is in the host's namespace; without root it says that it did not.
pub(super) fn world(test: impl FnOnce(&World) + Send) {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: network namespaces need root");
        return;
    }
    let world = World { host: Netns::new(), outside: Netns::new(), directory: tempfile::tempdir().unwrap() };
    world.wire_outside();
    world.host.run(|| test(&world));
}

/// How much of a ruleset the kernel below can hold, by asking it.
pub(super) fn extent() -> Extent {
    let netns = Netns::new();
    nft::probe(&mut netns.run(|| Socket::open(12).unwrap())).unwrap().0
}

/// Whether the kernel can publish ports; when not, it is said that the test did not run.
pub(super) fn can_publish() -> bool {
    can_hold(Extent::Full, "publish host ports")
}

/// Whether the kernel lets pods leave with the host's address; when not, it is said.
pub(super) fn can_masquerade() -> bool {
    can_hold(Extent::WayOut, "masquerade")
}

/// Whether the kernel has nftables for IPv4; when not, it is said.
pub(super) fn can_filter() -> bool {
    can_hold(Extent::Forwarding, "filter IPv4")
}

/// Whether the kernel can limit what links carry, as CNI's bandwidth plugin does it; when not, it is said.
pub(super) fn can_shape() -> bool {
    let netns = Netns::new();
    let bucket = ["qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1gbit", "burst", "1mb", "latency", "25ms"];
    let can = netns.succeeds("tc", &bucket) == Some(true)
        && netns.succeeds("ip", &["link", "add", "probe", "type", "ifb"]) == Some(true);
    if !can {
        let _ = writeln!(std::io::stderr(), "SKIPPED IN PART: this kernel has no token bucket or no ifb links");
    }
    can
}

fn can_hold(needed: Extent, what: &str) -> bool {
    // Without root nothing runs at all, which `world` says.
    if !nix::unistd::geteuid().is_root() || extent() >= needed {
        return true;
    }
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    // Past the capture of passing tests: who reads the run has to see it.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: the nftables of this kernel cannot {what}");
    false
}

/// These ports where the kernel can publish any, for tests that are about something else.
pub(super) fn where_possible(ports: &[PortMapping]) -> Vec<PortMapping> {
    match extent() {
        Extent::Full => ports.to_vec(),
        _ => Vec::new(),
    }
}

impl World {
    fn wire_outside(&self) {
        let mut host = self.host.route();
        let mut outside = self.outside.route();
        let mut batch = Batch::new();
        let pair = NewPair {
            host_link: "uplink",
            bridge: 0,
            netns: self.outside.as_fd(),
            pod_interface: "eth0",
            pod_mac: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
        };
        link::push_new_pair(&mut batch, &pair);
        link::push_up(&mut batch, Which::Name("uplink"));
        link::push_up(&mut batch, Which::Name("lo"));
        host.run(&batch).unwrap();
        for (socket, name, ip) in [(&mut host, "uplink", HOST), (&mut outside, "eth0", OUTSIDE)] {
            let index = link::link(socket, name).unwrap().unwrap().index;
            let mut batch = Batch::new();
            link::push_address(&mut batch, index, Ipv4Net::new_assert(ip, 24));
            link::push_up(&mut batch, Which::Name("lo"));
            link::push_up(&mut batch, Which::Index(index));
            socket.run(&batch).unwrap();
        }
        let index = link::link(&mut host, "uplink").unwrap().unwrap().index;
        let mut batch = Batch::new();
        link::push_default_route(&mut batch, index, OUTSIDE);
        host.run(&batch).unwrap();
    }

    pub(super) fn config(&self) -> Config {
        Config {
            bridge: "prtest0".to_owned(),
            nft_table: "portreeve_test".to_owned(),
            subnet_lock: self.directory.path().join("subnets.lock"),
            ..Config::new(self.directory.path().join("state"))
        }
    }

    pub(super) fn open(&self) -> Network {
        Network::open(self.config()).unwrap()
    }

    /// Names of the links on the host that are not the test's own.
    pub(super) fn links(&self) -> Vec<String> {
        let links = link::links(&mut self.host.route()).unwrap();
        let mut names: Vec<String> = links.into_iter().map(|link| link.name).collect();
        names.retain(|name| name.starts_with("pr"));
        names.sort();
        names
    }

    /// Removes a link by name, as a stranger would.
    pub(super) fn delete_link(&self, name: &str) {
        let mut batch = Batch::new();
        link::push_delete(&mut batch, Which::Name(name));
        self.host.route().run(&batch).unwrap();
    }
}

pub(super) fn id(letter: char) -> String {
    letter.to_string().repeat(64)
}

pub(super) fn tcp(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol: Protocol::Tcp, host_ip: None, host_port, container_port }
}

pub(super) fn udp(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol: Protocol::Udp, ..tcp(host_port, container_port) }
}
