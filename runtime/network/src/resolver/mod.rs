//! Names of hosts to addresses, without the C library.
//!
//! A program that is linked statically must not ask glibc for a host: glibc loads the modules that
//! `/etc/nsswitch.conf` names from this machine, which were built for the machine's own version of
//! it, and a mismatch crashes. So what `hosts(5)` and `resolv.conf(5)` say is done here. Both files
//! are read at each lookup, as cheap as that is: no lease that is renewed, and no network that is
//! joined, leaves an old nameserver behind, and nothing is held while nobody asks.
//!
//! ```text
//!   address? ── /etc/hosts ── localhost? ── for each name that `search` and `ndots` make of it:
//!                                               for each try: nameserver 1, 2, 3 over UDP (cut: TCP)
//! ```
//!
//! resolv-conf reads the file, hickory-net speaks with the nameservers.
//!
//! Not done, on purpose: nsswitch.conf and what it may name (mDNS, LDAP, host names that systemd
//! makes up), caching, DNSSEC, the options `rotate` and `trust-ad`. Not done by resolv-conf: a nameserver
//! whose zone is a link with other than letters and digits in its name (`fe80::1%br-lan`) is passed over.

mod exchange;

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use exchange::{Failure, Nameservers};
use hickory_net::proto::rr::Name;
use resolv_conf::Config;
use tokio::task::spawn_blocking;
use tracing::debug;

/// As much of a hosts file as is read, in bytes; lists against advertisements have some MiB.
const HOSTS_LIMIT: u64 = 64 << 20;
/// As much of a resolv.conf as is read, in bytes.
const CONF_LIMIT: u64 = 64 << 10;
/// A name is asked for in that many domains at most.
const MAX_SEARCH: usize = 32;

/// Why a host has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// No host can have this name.
    #[error("{host:?} is no name of a host: labels of 1 to 63 letters, digits, '-' or '_' between dots, at most 253")]
    Invalid {
        /// The name.
        host: String,
    },
    /// A file that says how names become addresses cannot be read.
    #[error("reading {path} to find {host}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The host that was asked for.
        host: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Everybody who could know it was asked.
    #[error("no such host: {host} is not in {hosts}, and {servers} has no address for it")]
    Unknown {
        /// The host.
        host: String,
        /// The hosts file.
        hosts: PathBuf,
        /// Who was asked.
        servers: String,
    },
    /// Whoever could know it did not say.
    #[error("looking up {host}: {why}; see the nameservers in {resolv_conf}")]
    Unanswered {
        /// The host.
        host: String,
        /// What each nameserver did.
        why: String,
        /// Where they are configured.
        resolv_conf: PathBuf,
    },
}

/// Finds the addresses of hosts as this machine's files say.
#[derive(Debug, Clone)]
pub struct Resolver {
    hosts: PathBuf,
    resolv_conf: PathBuf,
    /// Where nameservers listen.
    port: u16,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { hosts: "/etc/hosts".into(), resolv_conf: "/etc/resolv.conf".into(), port: 53 }
    }
}

impl Resolver {
    /// The addresses of `host`, each with `port`, IPv6 first: where there is no way to these, that is found at
    /// once, and the error of the last one that was tried is the one that says something.
    /// Never empty. An address is its own answer.
    ///
    /// Takes at most `within`, which is shared among the nameservers and tries that `resolv.conf`
    /// asks for, and what reading two files takes; no try takes longer than its `timeout`.
    ///
    /// # Errors
    /// [`ResolveError`]: `Unknown` when the answer is that there is no such host.
    ///
    /// # Cancel safety
    /// Nothing is held; a file that is being read is read to its end.
    pub async fn lookup(&self, host: &str, port: u16, within: Duration) -> Result<Vec<SocketAddr>, ResolveError> {
        if let Some(address) = address(host, port) {
            return Ok(vec![address]);
        }
        let name = Name::from_str(host)
            .ok()
            .filter(|name| name.num_labels() > 0)
            .ok_or_else(|| ResolveError::Invalid { host: host.to_owned() })?;
        let read = |path: &Path, source| ResolveError::Read { path: path.to_owned(), host: host.to_owned(), source };
        let (path, word) = (self.hosts.clone(), host.strip_suffix('.').unwrap_or(host).to_owned());
        let found = spawn_blocking(move || in_hosts(&path, &word, port)).await;
        let mut found = found.unwrap_or_else(|error| Err(error.into())).map_err(|error| read(&self.hosts, error))?;
        // RFC 6761 §6.3: these never go to a nameserver, who could answer with somebody else's address.
        if found.is_empty() && name.is_localhost() {
            found = [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].map(|ip| (ip, port).into()).into();
        }
        if found.is_empty() {
            let path = self.resolv_conf.clone();
            let conf = spawn_blocking(move || read_conf(&path)).await;
            let conf =
                conf.unwrap_or_else(|error| Err(error.into())).map_err(|error| read(&self.resolv_conf, error))?;
            let addresses = self.ask(&conf, host, &name, Instant::now() + within).await?;
            found = addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        }
        found.sort_by_key(SocketAddr::is_ipv4);
        Ok(found)
    }

    /// Asks for each name that `name` may stand for until one has addresses.
    async fn ask(&self, conf: &Config, host: &str, name: &Name, until: Instant) -> Result<Vec<IpAddr>, ResolveError> {
        let nameservers = Nameservers::new(conf, self.port);
        let mut unanswered = None;
        for name in candidates(conf, name) {
            match nameservers.ask(&name, until).await {
                Ok(found) if found.is_empty() => {}
                Ok(found) => return Ok(found),
                Err(failures) => {
                    // A server that cannot tell about one name may know the next; one that is not there will not be.
                    let gone = !failures.iter().any(|(_, failure)| matches!(failure, Failure::Code(_)));
                    unanswered.get_or_insert(failures);
                    if gone || Instant::now() >= until {
                        break;
                    }
                }
            }
        }
        let host = host.to_owned();
        let list = |texts: Vec<String>| texts.join(", ");
        Err(match unanswered {
            None => ResolveError::Unknown {
                host,
                hosts: self.hosts.clone(),
                servers: list(nameservers.addresses.iter().map(|at| format!("nameserver {}", at.ip())).collect()),
            },
            Some(failures) => ResolveError::Unanswered {
                host,
                why: list(failures.iter().map(|(server, why)| format!("nameserver {} {why}", server.ip())).collect()),
                resolv_conf: self.resolv_conf.clone(),
            },
        })
    }
}

/// An address, with the zone of a link-local one if it has one (RFC 4007 §11).
fn address(text: &str, port: u16) -> Option<SocketAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, port));
    }
    let (ip, zone) = text.split_once('%')?;
    let zone = zone.parse().ok().or_else(|| nix::net::if_::if_nametoindex(zone).ok())?;
    Some(SocketAddrV6::new(ip.parse().ok()?, port, 0, zone).into())
}

/// What hosts(5) says; a file that is not there says nothing.
fn in_hosts(path: &Path, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for line in BufReader::new(file.take(HOSTS_LIMIT)).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        if let Some(first) = words.next()
            && words.any(|word| word.strip_suffix('.').unwrap_or(word).eq_ignore_ascii_case(name))
            && let Some(address) = address(first, port)
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    Ok(found)
}

/// What resolv.conf(5) says; without such a file everything has its default.
fn read_conf(path: &Path) -> io::Result<Config> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(CONF_LIMIT).read_to_end(&mut bytes).map(drop)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let (conf, faults) = Config::parse_with_errors(&bytes);
    for fault in faults {
        debug!(path = %path.display(), %fault, "a line of the resolver's configuration was passed over");
    }
    Ok(conf)
}

/// The whole names that `name` may stand for, in the order of asking.
fn candidates(conf: &Config, name: &Name) -> Vec<Name> {
    if name.is_fqdn() {
        return vec![name.clone()];
    }
    // Where the file says nothing, this machine's own domain counts.
    let unsaid = conf.get_search().is_none() && conf.get_domain().is_none();
    let own = if unsaid { conf.get_system_domain() } else { None };
    let below = |domain: &String| {
        let domain = Name::from_str(domain).ok().filter(|domain| domain.num_labels() > 0)?;
        // What it makes too long is a name that nobody has.
        name.clone().append_domain(&domain).ok()
    };
    let mut names: Vec<_> = conf.get_last_search_or_domain().chain(&own).filter_map(below).take(MAX_SEARCH).collect();
    let mut whole = name.clone();
    whole.set_fqdn(true);
    let dots = u32::from(name.num_labels()).saturating_sub(1);
    names.insert(if dots >= conf.ndots { 0 } else { names.len() }, whole);
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
