//! What went through a pod's own network, as the kernel counts it by interface.

use std::io;

use jiff::Timestamp;
use portreeve_engine::{NetworkNamespace, SandboxState, SandboxStatus};
use rustix::io::Errno;

use super::{Cri, v1, view};

/// One interface of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) received: Direction,
    pub(super) sent: Direction,
}

/// What went one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Direction {
    pub(super) bytes: u64,
    pub(super) packets: u64,
    pub(super) errors: u64,
    pub(super) dropped: u64,
}

impl Cri {
    /// The interfaces of a pod but loopback; nothing when it has the node's network, or when nobody is in its own.
    /// `pids` are first processes of its containers.
    pub(super) async fn traffic(&self, sandbox: &SandboxStatus, pids: Vec<u32>) -> Vec<Interface> {
        if sandbox.namespaces.network == NetworkNamespace::Node {
            return Vec::new();
        }
        // A pod with users of its own has its network away from its shim, which is asked last.
        let shim = sandbox.shim_pid;
        let read = tokio::task::spawn_blocking(move || inside(pids.into_iter().chain(shim))).await;
        match read.map_err(io::Error::other).flatten() {
            Ok(interfaces) => interfaces,
            Err(error) => {
                if self.engine.sandbox(&sandbox.id).is_some_and(|sandbox| sandbox.state == SandboxState::Ready) {
                    self.complaints.unread(sandbox.id.as_str(), "network", &error.to_string());
                }
                Vec::new()
            }
        }
    }
}

/// As CRI shows them: the first is the default one.
pub(super) fn usage(interfaces: &[Interface]) -> Option<v1::NetworkUsage> {
    let count = |value| Some(v1::UInt64Value { value });
    let one = |interface: &Interface| v1::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: count(interface.received.bytes),
        rx_errors: count(interface.received.errors),
        tx_bytes: count(interface.sent.bytes),
        tx_errors: count(interface.sent.errors),
    };
    let (first, others) = interfaces.split_first()?;
    Some(v1::NetworkUsage {
        timestamp: view::nanoseconds(Timestamp::now()),
        default_interface: Some(one(first)),
        interfaces: others.iter().map(one).collect(),
    })
}

/// The interfaces that the first of some processes sees that is in another network than the node's.
fn inside(pids: impl Iterator<Item = u32>) -> io::Result<Vec<Interface>> {
    let own = std::fs::read_link("/proc/self/ns/net")?;
    for pid in pids {
        let read = || -> io::Result<Option<String>> {
            if std::fs::read_link(format!("/proc/{pid}/ns/net"))? == own {
                return Ok(None);
            }
            std::fs::read_to_string(format!("/proc/{pid}/net/dev")).map(Some)
        };
        match read() {
            Ok(Some(text)) => return Ok(interfaces(&text)),
            Ok(None) => {}
            // It has ended meanwhile.
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::SRCH | Errno::INVAL)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Vec::new())
}

/// The interfaces of `/proc/<pid>/net/dev`, but loopback. Source: proc_pid_net(5).
fn interfaces(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        let mut counts = counts.split_ascii_whitespace().map(|count| count.parse().unwrap_or(0));
        // Eight columns each: what follows drops is no part of it.
        let mut direction = || {
            let mut count = || counts.next();
            let direction = Direction { bytes: count()?, packets: count()?, errors: count()?, dropped: count()? };
            (0..4).try_for_each(|_| count().map(drop))?;
            Some(direction)
        };
        let interface = Interface { name: name.trim().to_owned(), received: direction()?, sent: direction()? };
        (interface.name != "lo").then_some(interface)
    };
    text.lines().filter_map(interface).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_but_loopback_are_read() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
                    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
                    eth0: 1234      10    1    3    0     0          0         0     5678      20    2    4    0     0       0          0\n";
        let eth0 = Interface {
            name: "eth0".to_owned(),
            received: Direction { bytes: 1234, packets: 10, errors: 1, dropped: 3 },
            sent: Direction { bytes: 5678, packets: 20, errors: 2, dropped: 4 },
        };
        assert_eq!(interfaces(text), std::slice::from_ref(&eth0));
        assert_eq!(interfaces("nonsense\neth0: 1 2"), []);
        let shown = usage(&[eth0.clone(), Interface { name: "eth1".to_owned(), ..eth0 }]).unwrap();
        let first = shown.default_interface.unwrap();
        let numbers = [first.rx_bytes, first.rx_errors, first.tx_bytes, first.tx_errors];
        assert_eq!(numbers.map(|number| number.unwrap().value), [1234, 1, 5678, 2]);
        assert_eq!((first.name.as_str(), shown.interfaces.len()), ("eth0", 1));
        assert_eq!(usage(&[]), None);
    }

    #[test]
    fn processes_that_have_ended_or_are_in_the_nodes_network_are_passed_over() {
        assert_eq!(inside([0, std::process::id()].into_iter()).unwrap(), []);
    }
}
