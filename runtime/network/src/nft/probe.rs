//! What this kernel's nftables can do: transactions that are never committed.
//!
//! Kernels are built without parts of nftables (User Mode Linux, small appliances). A batch
//! without its closing mark is checked in full and then undone, as `nft --check` does it.

use std::net::Ipv4Addr;

use nix::libc;

use super::expression::Expressions;
use super::protocol::*;
use super::ruleset::Extent;
use super::table::push_chain;
use crate::Lack;
use crate::netlink::{Batch, Refusal, Socket};

/// Name of the table that is never made.
const TABLE: &str = "portreeve_probe";

/// One thing that a rule of ours needs.
struct Facility {
    /// How the kernel's builders know it.
    name: &'static str,
    /// What is left without it.
    without: Extent,
    /// Chain type, hook and rule that use it; nothing for the table alone.
    rule: Option<Use>,
}

/// A rule in a base chain: its type, its hook, the rule.
type Use = (&'static str, u32, fn() -> Expressions);

/// From the most to the least needed: what stands behind a missing one can fail because of it.
const FACILITIES: [Facility; 6] = [
    Facility { name: "nf_tables for IPv4 (CONFIG_NF_TABLES_IPV4)", without: Extent::Nothing, rule: None },
    Facility {
        name: "nftables nat chains (CONFIG_NFT_NAT)",
        without: Extent::Forwarding,
        rule: Some(("nat", 4, Expressions::new)),
    },
    Facility {
        name: "nft_masq (CONFIG_NFT_MASQ)",
        without: Extent::Forwarding,
        rule: Some(("nat", 4, || Expressions::new().masquerade())),
    },
    Facility {
        name: "nft_ct (CONFIG_NFT_CT)",
        without: Extent::WayOut,
        rule: Some(("filter", 2, || Expressions::new().was_redirected())),
    },
    Facility {
        name: "nft_fib_ipv4 (CONFIG_NFT_FIB_IPV4)",
        without: Extent::WayOut,
        rule: Some(("filter", 0, || Expressions::new().sent_to_this_host())),
    },
    Facility {
        name: "nft_nat (CONFIG_NFT_NAT)",
        without: Extent::WayOut,
        rule: Some(("nat", 0, || Expressions::new().redirect_to(Ipv4Addr::LOCALHOST))),
    },
];

/// Whether the kernel refused for want of a part of it, and not because of what we asked.
///
/// Everything that our transactions name they make themselves, so `ENOENT` can only be an
/// expression or a kind of chain.
pub(crate) fn is_of_lack(refusal: &Refusal) -> bool {
    [libc::ENOENT, libc::EOPNOTSUPP, libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT].into_iter().any(|code| refusal.is(code))
}

/// What of the ruleset this kernel can hold, and what it lacks for the rest.
///
/// # Errors
/// When the kernel refuses for another reason, such as missing rights.
pub(crate) fn probe(socket: &mut Socket) -> Result<(Extent, Vec<Lack>), Refusal> {
    let mut extent = Extent::Full;
    let mut lacks = Vec::new();
    for facility in &FACILITIES {
        // The rest of what a kernel without the whole would be asked says nothing new.
        if extent == Extent::Nothing || (extent == Extent::Forwarding && facility.without >= Extent::Forwarding) {
            break;
        }
        match socket.run(&rehearsal(facility)) {
            Ok(()) => {}
            Err(refusal) if is_of_lack(&refusal) => {
                extent = extent.min(facility.without);
                let consequence = facility.without.consequence();
                lacks.push(Lack { facility: facility.name, consequence });
            }
            Err(refusal) => return Err(refusal),
        }
    }
    Ok((extent, lacks))
}

/// A transaction that uses the facility and is never committed.
fn rehearsal(facility: &Facility) -> Batch {
    unfinished(|batch| {
        batch.push(kind(NEWTABLE), NLM_F_CREATE, format!("probing for {}", facility.name), |w| {
            header(w, NFPROTO_IPV4);
            w.string(NFTA_TABLE_NAME, TABLE);
        });
        let Some((chain_type, hook, expressions)) = facility.rule else {
            return;
        };
        push_chain(batch, TABLE, ("probe", chain_type, hook, 0));
        batch.push(kind(NEWRULE), NLM_F_CREATE | NLM_F_APPEND, format!("probing for {}", facility.name), |w| {
            header(w, NFPROTO_IPV4);
            w.string(NFTA_RULE_TABLE, TABLE);
            w.string(NFTA_RULE_CHAIN, "probe");
            w.bytes(NFTA_RULE_EXPRESSIONS | 1 << 15, expressions().bytes());
        });
    })
}
