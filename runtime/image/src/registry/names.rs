//! Names of registries: the HTTP client's own way asks the C library, see [`portreeve_network::Resolver`].

use std::time::Duration;

use portreeve_network::Resolver;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::registry::follow::{self, Sent};

/// Finds registries for an HTTP client.
#[derive(Debug)]
pub(super) struct Names {
    resolver: Resolver,
    within: Duration,
    sent: Sent,
}

impl Names {
    /// For a client that gives up connecting after `timeout`: a name that cannot be found is said
    /// to be that before, and some of the time is left for the connection. Who has `sent` us to
    /// them decides where they may lead.
    pub(super) fn new(timeout: Duration, sent: Sent) -> Self {
        Self { resolver: Resolver::default(), within: timeout / 5 * 4, sent }
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, within, sent) = (self.resolver.clone(), self.within, self.sent);
        Box::pin(async move {
            // The client puts the port.
            let mut addresses = resolver.lookup(name.as_str(), 0, within).await?;
            // The administrator's proxy is often on this machine; whoever sends us somewhere does not name it.
            if !follow::is_proxy(name.as_str()) {
                addresses.retain(|address| sent.may_lead_to(address.ip()));
            }
            if addresses.is_empty() {
                return Err(format!(
                    "{:?} is this machine or on its link, and a redirect or a token realm led to it",
                    name.as_str()
                )
                .into());
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
        let find = async |sent| {
            let names = Names::new(Duration::from_secs(2), sent);
            names.resolve("localhost".parse().unwrap()).await.map(Iterator::count)
        };
        for sent in [Sent::Nobody, Sent::Here] {
            assert!(find(sent).await.unwrap() > 0, "{sent:?}");
        }
        for sent in [Sent::Link, Sent::Elsewhere] {
            let refused = find(sent).await.unwrap_err();
            assert!(refused.to_string().contains("a redirect or a token realm led to it"), "{sent:?}: {refused}");
        }
    }
}
