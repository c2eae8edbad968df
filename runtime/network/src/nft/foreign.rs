//! Chains of others that may drop what our pods send or receive.
//!
//! A packet is forwarded only when no base chain of the forward hook drops it: our `accept` does
//! not undo the `drop` of another table. Firewalls (ufw, firewalld, Docker) drop by policy.

use std::collections::{BTreeMap, BTreeSet};

use super::protocol::*;
use super::table::listing;
use crate::netlink::{Attribute, Refusal, Socket, find};

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;

/// A base chain of the forward hook that can drop packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForwardChain {
    pub(crate) family: &'static str,
    pub(crate) table: String,
    pub(crate) chain: String,
    /// It drops what no rule of it accepts: by its policy, or by a rule for all packets.
    pub(crate) drops_by_policy: bool,
    /// It has a rule, or leads to one, that drops or rejects.
    pub(crate) has_drop_rule: bool,
    /// It has a rule, or leads to one, that names our bridge and accepts.
    pub(crate) accepts_bridge: bool,
}

/// What a rule does, as far as it matters here.
#[derive(Debug, Default)]
struct RuleSummary {
    drops: bool,
    /// ... every packet that comes to it.
    drops_all: bool,
    accepts_bridge: bool,
    leads_to: Vec<String>,
}

/// The foreign base chains of the forward hook that can drop packets.
pub(crate) fn forward_chains(socket: &mut Socket, our_table: &str, bridge: &str) -> Result<Vec<ForwardChain>, Refusal> {
    let mut found = Vec::new();
    for (family, name) in [(NFPROTO_IPV4, "ip"), (NFPROTO_INET, "inet")] {
        let bases = base_chains(socket, family)?;
        if bases.iter().all(|(table, ..)| is_ours(name, table, our_table)) {
            continue;
        }
        let rules = summaries(socket, family, bridge)?;
        for (table, chain, drops_by_policy) in bases {
            if is_ours(name, &table, our_table) {
                continue;
            }
            let reached = reachable(&rules, &table, &chain);
            let any = |test: fn(&RuleSummary) -> bool| {
                reached
                    .iter()
                    .any(|chain| rules.get(&(table.clone(), chain.clone())).is_some_and(|rules| rules.iter().any(test)))
            };
            let has_drop_rule = any(|rule| rule.drops);
            let own_rules = rules.get(&(table.clone(), chain.clone()));
            let drops_by_policy = drops_by_policy || own_rules.is_some_and(|rules| rules.iter().any(|r| r.drops_all));
            if drops_by_policy || has_drop_rule {
                found.push(ForwardChain {
                    family: name,
                    accepts_bridge: any(|rule| rule.accepts_bridge),
                    table,
                    chain,
                    drops_by_policy,
                    has_drop_rule,
                });
            }
        }
    }
    Ok(found)
}

fn is_ours(family: &str, table: &str, our_table: &str) -> bool {
    family == "ip" && table == our_table
}

/// Table, name and whether the policy drops, of each base chain of the forward hook.
fn base_chains(socket: &mut Socket, family: u8) -> Result<Vec<(String, String, bool)>, Refusal> {
    let request = listing(family, GETCHAIN, "listing chains", &[]);
    socket.collect(&request, |message| {
        let of_chain = message.payload.get(4..)?;
        let hook = find(of_chain, NFTA_CHAIN_HOOK)?;
        if find(hook.value, NFTA_HOOK_HOOKNUM)?.be32()? != FORWARD {
            return None;
        }
        let policy = find(of_chain, NFTA_CHAIN_POLICY).and_then(|policy| policy.be32());
        Some((
            find(of_chain, NFTA_CHAIN_TABLE)?.text(),
            find(of_chain, NFTA_CHAIN_NAME)?.text(),
            policy == Some(NF_DROP),
        ))
    })
}

type Summaries = BTreeMap<(String, String), Vec<RuleSummary>>;

fn summaries(socket: &mut Socket, family: u8, bridge: &str) -> Result<Summaries, Refusal> {
    let request = listing(family, GETRULE, "listing rules", &[]);
    let rules = socket.collect(&request, |message| {
        let of_rule = message.payload.get(4..)?;
        let table = find(of_rule, NFTA_RULE_TABLE)?.text();
        let chain = find(of_rule, NFTA_RULE_CHAIN)?.text();
        let summary =
            find(of_rule, NFTA_RULE_EXPRESSIONS).map(|expressions| summarize(expressions, bridge)).unwrap_or_default();
        Some(((table, chain), summary))
    })?;
    let mut by_chain = Summaries::new();
    for (chain, summary) in rules {
        by_chain.entry(chain).or_default().push(summary);
    }
    Ok(by_chain)
}

fn summarize(expressions: Attribute<'_>, bridge: &str) -> RuleSummary {
    let mut summary = RuleSummary::default();
    let mut names_bridge = false;
    let mut accepts = false;
    let mut judges = false;
    for expression in expressions.nested() {
        let Some(name) = find(expression.value, NFTA_EXPR_NAME) else {
            continue;
        };
        let content = find(expression.value, NFTA_EXPR_DATA).map_or(&[][..], |data| data.value);
        match name.text().as_str() {
            "reject" => summary.drops = true,
            "counter" | "log" => {}
            "cmp" => {
                judges = true;
                let value = find(content, 3).and_then(|data| find(data.value, NFTA_DATA_VALUE));
                names_bridge |= value.is_some_and(|value| value.text() == bridge);
            }
            "immediate" => {
                let verdict = find(content, 2).and_then(|data| find(data.value, NFTA_DATA_VERDICT));
                let Some(verdict) = verdict else { continue };
                let code = find(verdict.value, NFTA_VERDICT_CODE).and_then(|code| code.be32());
                match code.map(u32::cast_signed) {
                    Some(0) => summary.drops = true,
                    Some(1) => accepts = true,
                    Some(NFT_JUMP | NFT_GOTO) => {
                        summary.leads_to.extend(find(verdict.value, NFTA_VERDICT_CHAIN).map(|name| name.text()))
                    }
                    _ => {}
                }
            }
            _ => judges = true,
        }
    }
    summary.drops_all = summary.drops && !judges;
    summary.accepts_bridge = names_bridge && accepts;
    summary
}

/// The chains of a table that packets of `chain` can come to, itself included.
fn reachable(rules: &Summaries, table: &str, chain: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![chain.to_owned()];
    while let Some(chain) = open.pop() {
        let key = (table.to_owned(), chain.clone());
        if reached.insert(chain)
            && let Some(rules) = rules.get(&key)
        {
            open.extend(rules.iter().flat_map(|rule| rule.leads_to.iter().cloned()));
        }
    }
    reached
}
