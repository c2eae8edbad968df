//! Names of registries: the HTTP client's own way asks the C library, see [`portreeve_network::Resolver`].

use std::time::Duration;

use portreeve_network::Resolver;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Finds registries for an HTTP client.
#[derive(Debug)]
pub(super) struct Names {
    resolver: Resolver,
    within: Duration,
}

impl Names {
    /// For a client that gives up connecting after `timeout`: a name that cannot be found is said
    /// to be that before, and some of the time is left for the connection.
    pub(super) fn new(timeout: Duration) -> Self {
        Self { resolver: Resolver::default(), within: timeout / 5 * 4 }
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, within) = (self.resolver.clone(), self.within);
        Box::pin(async move {
            // The client puts the port.
            let addresses = resolver.lookup(name.as_str(), 0, within).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
