//! A connection to whom a probe or hook names.

use std::time::Duration;

use portreeve_engine::network::Resolver;
use tokio::net::TcpStream;

/// What finding a host may take where the caller has no time of its own.
const LOOKUP: Duration = Duration::from_secs(10);

/// Connects to `host`, a name or an address. `timeout` is the caller's, for the lookup of a name
/// (zero: none); the caller bounds the whole.
///
/// # Errors
/// In the words of a kubelet's probe.
pub(super) async fn dial(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let failed = |why: &dyn std::fmt::Display| format!("dial tcp {host}:{port}: {why}");
    // Shorter than the caller's, who can only say that it took too long.
    let within = if timeout.is_zero() { LOOKUP } else { timeout / 10 * 9 };
    let addresses = Resolver::default().lookup(host, port, within).await;
    let addresses = addresses.map_err(|error| failed(&portreeve_engine::chain(&error)))?;
    TcpStream::connect(&*addresses).await.map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_leads_where_an_address_leads_and_a_wrong_one_is_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let second = Duration::from_secs(1);
        for host in ["127.0.0.1", "localhost", "probed.localhost"] {
            dial(host, port, second).await.unwrap();
        }
        let error = dial("a..b", port, second).await.unwrap_err();
        assert!(error.starts_with(&format!("dial tcp a..b:{port}: \"a..b\" is no name")), "{error}");
    }
}
