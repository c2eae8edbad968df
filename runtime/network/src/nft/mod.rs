//! nftables over nfnetlink: an own encoder for the few expressions of our ruleset.
//!
//! Every change is one batch: the kernel takes all of it or nothing.

mod expression;
mod foreign;
mod probe;
mod protocol;
mod ruleset;
mod stale;
mod table;

pub(crate) use foreign::{ForwardChain, forward_chains};
pub(crate) use probe::{is_of_lack, probe};
pub(crate) use ruleset::{Element, Extent, Ruleset};
pub(crate) use stale::forget_flows;
#[cfg(test)]
pub(crate) use table::is_end_of_transaction;
pub(crate) use table::{add_elements, delete_elements, delete_table, difference, is_of_table, rebuild, table_comment};
