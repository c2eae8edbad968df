//! What should run: sources merged, names owned, the last good version of everything kept.
//!
//! ```text
//!  SourceSet --+                      +--> Ledger (next) --> disk, when it differs
//!  SourceSet --+--> merge(ledger) ----+
//!                                     +--> SourceReports, news for events
//! ```
//!
//! **Invariant:** the ledger is the desired state. A set of a source changes it only where the
//! source could be read; everything else in it stays as it was.

mod ledger;
mod merge;

pub use ledger::{Ledger, LedgerError, Record, Removal};
pub use merge::{Merged, News, merge};
pub(crate) use merge::{NOT_FOR_THIS_NODE, from_parser, given_uid, not_for_this_node, refused_uid, unreadable};
