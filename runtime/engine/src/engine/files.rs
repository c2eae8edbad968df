//! The files that a sandbox's containers see as `/etc/hostname`, `/etc/resolv.conf` and `/etc/hosts`, where nobody mounts
//! one of his own there.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::sandbox::{DnsConfig, NetworkNamespace, SandboxConfig};
use crate::{EngineError, Owner};

/// A file of the node longer than this is cut.
const LONGEST: u64 = 64 << 10;
/// The name of `/etc/hosts` in a sandbox's directory.
pub(super) const HOSTS: &str = "hosts";

/// Writes them into a directory that is new. The node's own pods bring their `/etc/hosts` themselves.
pub(super) fn write(directory: &Path, config: &SandboxConfig) -> Result<(), EngineError> {
    let hostname = hostname(config);
    let resolver = match config.dns == DnsConfig::default() {
        true => of_node(Path::new("/etc/resolv.conf"))?,
        false => resolver(&config.dns).into_bytes(),
    };
    let mut files = vec![("hostname", (hostname + "\n").into_bytes()), ("resolv.conf", resolver)];
    if config.owner == Owner::Cri {
        files.push((HOSTS, of_node(Path::new("/etc/hosts"))?));
    }
    for (name, bytes) in files {
        let path = directory.join(name);
        fs::write(&path, &bytes).map_err(EngineError::file("writing", &path))?;
        // Whatever the agent's umask is, the container's users read it.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .map_err(EngineError::file("opening up", &path))?;
    }
    Ok(())
}

/// What the node has in a file; nothing of one that is not there.
fn of_node(path: &Path) -> Result<Vec<u8>, EngineError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(EngineError::file("reading", path)(error)),
        _ => Ok(bytes),
    }
}

/// The hostname inside: the pod's own, or with the node's network the node's.
pub(super) fn hostname(config: &SandboxConfig) -> String {
    match config.namespaces.network {
        NetworkNamespace::Pod => config.hostname.clone(),
        NetworkNamespace::Node => {
            fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim_end().to_owned()
        }
    }
}

fn resolver(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// A resolver that cannot add lines of its own.
pub(super) fn check(dns: &DnsConfig) -> Result<(), EngineError> {
    let all = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    match all.into_iter().find(|one| one.is_empty() || one.contains(char::is_whitespace) || one.contains('\0')) {
        Some(one) => Err(EngineError::invalid("dnsConfig", format!("{one:?} is not one word"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_file_has_the_order_that_the_kubelet_writes() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let dns = DnsConfig { servers: words("10.0.0.1 10.0.0.2"), searches: words("a b"), options: words("ndots:5") };
        assert_eq!(resolver(&dns), "search a b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n");
    }

    #[test]
    fn a_line_cannot_be_smuggled_in() {
        let dns = DnsConfig { servers: vec!["1.1.1.1\nnameserver 6.6.6.6".to_owned()], ..DnsConfig::default() };
        assert!(check(&dns).is_err());
    }
}
