//! Names of registries: the HTTP client's own way asks the C library, see [`portreeve_network::Resolver`].

use std::time::Duration;

use portreeve_network::Resolver;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::registry::realm::is_local_address;

/// Finds registries for an HTTP client.
#[derive(Debug)]
pub(super) struct Names {
    resolver: Resolver,
    within: Duration,
    from_elsewhere: bool,
}

impl Names {
    /// For a client that gives up connecting after `timeout`: a name that cannot be found is said
    /// to be that before, and some of the time is left for the connection. `from_elsewhere`: the names are another
    /// host's, and may not lead to this machine or its link.
    pub(super) fn new(timeout: Duration, from_elsewhere: bool) -> Self {
        Self { resolver: Resolver::default(), within: timeout / 5 * 4, from_elsewhere }
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, within, from_elsewhere) = (self.resolver.clone(), self.within, self.from_elsewhere);
        Box::pin(async move {
            // The client puts the port.
            let mut addresses = resolver.lookup(name.as_str(), 0, within).await?;
            addresses.retain(|address| !(from_elsewhere && is_local_address(address.ip())));
            if addresses.is_empty() {
                return Err(
                    format!("{:?} is this machine or on its link, and a redirect led to it", name.as_str()).into()
                );
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_leads_to_this_machine_is_not_gone_to_on_the_word_of_another() {
        let find = async |from_elsewhere| {
            let names = Names::new(Duration::from_secs(2), from_elsewhere);
            names.resolve("localhost".parse().unwrap()).await.map(Iterator::count)
        };
        assert!(find(false).await.unwrap() > 0);
        let refused = find(true).await.unwrap_err();
        assert!(refused.to_string().contains("a redirect led to it"), "{refused}");
    }
}
