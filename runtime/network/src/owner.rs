//! Whose the bridge and the table are, written on them.
//!
//! Both are found by name, and an administrator can give two agents the same name. So each says in its label (alias,
//! comment) which agent made it: a fingerprint of that agent's directory of records, and for whoever reads it the
//! directory itself. Only the fingerprint counts, since a label is short. What says nothing is of an older version of
//! this program, or of somebody else: it is ours when our records name it, and only then.

use std::path::Path;

use crate::link::{self, Link};
use crate::names::{BRIDGE_ALIAS, fingerprint};
use crate::network::route_error;
use crate::nft;
use crate::{Network, NetworkError};

/// A comment of nft has 127 bytes.
const LONGEST_PLACE: usize = 90;
/// What the comment of our table begins with.
const TABLE_COMMENT: &str = "portreeve";

/// How an agent signs what it makes.
#[derive(Debug)]
pub(crate) struct Owner {
    signature: String,
}

/// What a label says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Label {
    /// This agent's.
    Ours,
    /// Of this program, without a word whose.
    Unsigned,
    /// Another agent's: its directory of records.
    Another(String),
    /// Not of this program.
    Foreign,
}

impl Owner {
    /// The agent with this directory of records, by whichever way it is named.
    pub(crate) fn of(records: &Path) -> Self {
        let place = records.canonicalize().unwrap_or_else(|_| records.to_owned());
        let print = fingerprint(place.as_os_str().as_encoded_bytes());
        let readable: Vec<char> = place.to_string_lossy().chars().filter(|c| !c.is_control()).collect();
        let mut shown = String::new();
        // The end of a long path tells more than its beginning.
        for c in readable.iter().rev() {
            if shown.len() + c.len_utf8() > LONGEST_PLACE {
                break;
            }
            shown.insert(0, *c);
        }
        Self { signature: format!("{print:016x} {shown}") }
    }

    pub(crate) fn bridge_alias(&self) -> String {
        format!("{BRIDGE_ALIAS} {}", self.signature)
    }

    pub(crate) fn table_comment(&self) -> String {
        format!("{TABLE_COMMENT} {}", self.signature)
    }

    pub(crate) fn of_bridge(&self, link: &Link) -> Label {
        match link.kind.as_str() {
            "bridge" => self.read(BRIDGE_ALIAS, &link.alias),
            _ => Label::Foreign,
        }
    }

    /// An older version made tables without a comment, as others do.
    pub(crate) fn of_table(&self, comment: Option<&str>) -> Label {
        comment.map_or(Label::Unsigned, |comment| self.read(TABLE_COMMENT, comment))
    }

    fn read(&self, kind: &str, label: &str) -> Label {
        let Some(rest) = label.strip_prefix(kind) else { return Label::Foreign };
        let Some(signature) = rest.strip_prefix(' ') else {
            return if rest.is_empty() { Label::Unsigned } else { Label::Foreign };
        };
        let (theirs, place) = signature.split_once(' ').unwrap_or((signature, ""));
        match self.signature.split_once(' ') {
            Some((ours, _)) if ours == theirs => Label::Ours,
            _ => Label::Another(place.to_owned()),
        }
    }
}

impl Network {
    /// Looks whether the configured names can be ours: `Ok` is no promise that [`Network::ensure`] works, but what is
    /// refused here is refused there too. Nothing is changed.
    ///
    /// # Errors
    /// [`NetworkError::ForeignLink`], [`NetworkError::ForeignTable`] when bridge or table are somebody else's;
    /// [`NetworkError::Config`] when pods run with other names or another subnet.
    pub fn check(&self) -> Result<(), NetworkError> {
        self.refuse_other_configuration()?;
        self.own_bridge()?;
        self.own_table()?;
        Ok(())
    }

    /// The link with the bridge's name, which must be a bridge that we made.
    pub(crate) fn own_bridge(&self) -> Result<Option<Link>, NetworkError> {
        let name = self.config.bridge.as_str();
        let found = link::link(&mut self.route(), name).map_err(route_error)?;
        let Some(found) = found else { return Ok(None) };
        let why = match self.owner.of_bridge(&found) {
            Label::Ours => return Ok(Some(found)),
            Label::Unsigned if self.is_recorded_bridge(name) => return Ok(Some(found)),
            Label::Unsigned => "it was made by an earlier portreeve for another agent".to_owned(),
            Label::Another(place) => another(&place),
            Label::Foreign => "it exists and was not made by portreeve".to_owned(),
        };
        Err(NetworkError::ForeignLink { name: name.to_owned(), why: format!("{why}; {ADVICE}") })
    }

    /// The table with our table's name, which must be ours: whether there is one, and whether it says so.
    pub(crate) fn own_table(&self) -> Result<Option<Label>, NetworkError> {
        let name = self.config.nft_table.as_str();
        let label = self.table_label(name)?;
        let why = match &label {
            None | Some(Label::Ours) => return Ok(label),
            Some(Label::Unsigned) if self.is_recorded_table(name) => return Ok(label),
            Some(Label::Another(place)) => another(place),
            Some(_) => "it exists and was not made by this agent".to_owned(),
        };
        Err(NetworkError::ForeignTable { table: name.to_owned(), why: format!("{why}; {ADVICE}") })
    }

    /// Whether a bridge is ours to remove.
    pub(crate) fn may_remove_bridge(&self, link: &Link) -> bool {
        match self.owner.of_bridge(link) {
            Label::Ours => true,
            Label::Unsigned => self.is_recorded_bridge(&link.name),
            Label::Another(_) | Label::Foreign => false,
        }
    }

    /// Removes a table that is ours; absent is success, and one of somebody else stays.
    pub(crate) fn remove_table(&self, name: &str) -> Result<(), NetworkError> {
        let ours = match self.table_label(name)? {
            Some(Label::Ours) => true,
            Some(Label::Unsigned) => self.is_recorded_table(name),
            None | Some(Label::Another(_) | Label::Foreign) => false,
        };
        if !ours {
            return Ok(());
        }
        nft::delete_table(&mut self.netfilter(), name)
            .map_err(|refusal| self.nftables_error("removing the ruleset", refusal))
    }

    fn table_label(&self, name: &str) -> Result<Option<Label>, NetworkError> {
        match nft::table_comment(&mut self.netfilter(), name) {
            Ok(found) => Ok(found.map(|comment| self.owner.of_table(comment.as_deref()))),
            // A kernel that cannot hold a table has none.
            Err(refusal) if nft::is_of_lack(&refusal) => Ok(None),
            Err(refusal) => Err(self.nftables_error("looking for the table", refusal)),
        }
    }

    fn is_recorded_bridge(&self, name: &str) -> bool {
        self.state().record.as_ref().is_some_and(|record| record.bridge == name)
    }

    fn is_recorded_table(&self, name: &str) -> bool {
        self.state().record.as_ref().is_some_and(|record| record.nft_table == name)
    }
}

const ADVICE: &str = "configure another name, or remove it if nothing uses it";

fn another(place: &str) -> String {
    format!("it belongs to the agent that keeps its records in {place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_known_again_and_fits_its_labels() {
        let long = format!("/run/{}", "ä".repeat(2000));
        let (a, b) = (Owner::of(Path::new("/run/a/network")), Owner::of(Path::new(&long)));
        for (owner, other) in [(&a, &b), (&b, &a)] {
            assert!(owner.bridge_alias().len() < 256 && owner.table_comment().len() < 128);
            assert_eq!(owner.of_table(Some(&owner.table_comment())), Label::Ours);
            assert!(matches!(owner.of_table(Some(&other.table_comment())), Label::Another(_)));
        }
        assert_eq!(b.of_table(Some(&a.table_comment())), Label::Another("/run/a/network".to_owned()));
        assert_eq!(a.of_table(None), Label::Unsigned);
        assert_eq!(a.read(BRIDGE_ALIAS, BRIDGE_ALIAS), Label::Unsigned);
        for foreign in ["", "portreeve bridges", "docker"] {
            assert_eq!(a.read(BRIDGE_ALIAS, foreign), Label::Foreign, "{foreign:?}");
        }
    }
}
