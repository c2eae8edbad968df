//! Reading and writing our table.

use std::collections::BTreeSet;

use nix::libc;

use super::probe::is_of_lack;
use super::protocol::*;
use super::ruleset::{Chain, Element, Extent, PORTS, PORTS_OF_ADDRESS, Ruleset};
use crate::netlink::{Attribute, Batch, Message, Refusal, Socket, find};

/// Data types of nft, six bits each in a concatenation.
const TYPE_ADDRESS: u32 = 7;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
const TYPE_TARGET: u32 = TYPE_ADDRESS << 6 | TYPE_PORT;
/// Maps: name, type of key, length of key, transaction id.
const MAPS: [(&str, u32, u32, u32); 2] = [
    (PORTS, TYPE_PROTOCOL << 6 | TYPE_PORT, 8, 1),
    (PORTS_OF_ADDRESS, TYPE_ADDRESS << 12 | TYPE_PROTOCOL << 6 | TYPE_PORT, 12, 2),
];
const TARGET_LENGTH: u32 = 8;
/// Elements of one message: an attribute cannot exceed 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// Replaces the whole table in one transaction; nothing is ever missing in between.
pub(crate) fn rebuild(socket: &mut Socket, ruleset: &Ruleset, elements: &[Element]) -> Result<(), Refusal> {
    if ruleset.extent == Extent::Nothing {
        return Ok(());
    }
    let table = ruleset.table.as_str();
    let batch = transaction(|batch| {
        push_table(batch, NEWTABLE, NLM_F_CREATE, "making the table", table);
        push_table(batch, DELTABLE, 0, "emptying the table", table);
        batch.push(kind(NEWTABLE), NLM_F_CREATE, "making the table", |w| {
            header(w, NFPROTO_IPV4);
            w.string(NFTA_TABLE_NAME, table);
            if !ruleset.comment.is_empty() {
                w.bytes(NFTA_TABLE_USERDATA, &comment_userdata(&ruleset.comment));
            }
        });
        for (name, key_type, key_length, id) in MAPS {
            batch.push(kind(NEWSET), NLM_F_CREATE, format!("making map {name}"), |w| {
                header(w, NFPROTO_IPV4);
                w.string(NFTA_SET_TABLE, table).string(NFTA_SET_NAME, name);
                w.be32(NFTA_SET_FLAGS, NFT_SET_MAP).be32(NFTA_SET_ID, id);
                w.be32(NFTA_SET_KEY_TYPE, key_type);
                w.be32(NFTA_SET_KEY_LEN, key_length);
                w.be32(NFTA_SET_DATA_TYPE, TYPE_TARGET);
                w.be32(NFTA_SET_DATA_LEN, TARGET_LENGTH);
            });
        }
        push_elements(batch, NEWSETELEM, table, elements);
        for chain in ruleset.chains() {
            push_chain(batch, table, chain);
        }
        for rule in &ruleset.rules {
            let action = format!("making rule {:?} of chain {}", rule.comment, rule.chain);
            let flags = NLM_F_CREATE | NLM_F_APPEND;
            batch.push(kind(NEWRULE), flags, action, |w| {
                header(w, NFPROTO_IPV4);
                w.string(NFTA_RULE_TABLE, table);
                w.string(NFTA_RULE_CHAIN, rule.chain);
                w.bytes(NFTA_RULE_EXPRESSIONS | 1 << 15, rule.expressions.bytes());
                w.bytes(NFTA_RULE_USERDATA, &comment_userdata(&rule.comment));
            });
        }
    });
    socket.run(&batch)
}

/// Adds elements; one that is there already with the same value is no error.
pub(crate) fn add_elements(socket: &mut Socket, table: &str, elements: &[Element]) -> Result<(), Refusal> {
    if elements.is_empty() {
        return Ok(());
    }
    socket.run(&transaction(|batch| {
        push_elements(batch, NEWSETELEM, table, elements);
    }))
}

/// Removes elements; absent is success.
pub(crate) fn delete_elements(socket: &mut Socket, table: &str, elements: &[Element]) -> Result<(), Refusal> {
    if elements.is_empty() {
        return Ok(());
    }
    let delete = |elements: &[Element]| transaction(|batch| push_elements(batch, DELSETELEM, table, elements));
    match socket.run(&delete(elements)) {
        // The transaction was undone because one of them is absent: remove those that are there.
        Err(refusal) if refusal.is(libc::ENOENT) => {
            let present: BTreeSet<Element> = read_elements(socket, table)?.into_iter().collect();
            let left: Vec<Element> = elements.iter().filter(|element| present.contains(element)).cloned().collect();
            if left.is_empty() {
                return Ok(());
            }
            socket.run(&delete(&left))
        }
        answer => answer,
    }
}

/// Removes the table with all that is in it; absent is success.
pub(crate) fn delete_table(socket: &mut Socket, table: &str) -> Result<(), Refusal> {
    let removed = socket.run(&transaction(|batch| {
        push_table(batch, NEWTABLE, NLM_F_CREATE, "finding the table", table);
        push_table(batch, DELTABLE, 0, "removing the table", table);
    }));
    match removed {
        // A kernel that cannot hold a table has none.
        Err(refusal) if is_of_lack(&refusal) => Ok(()),
        answer => answer,
    }
}

/// The comment of a table, if it has one; `None` when there is no such table.
pub(crate) fn table_comment(socket: &mut Socket, table: &str) -> Result<Option<Option<String>>, Refusal> {
    let request = listing(NFPROTO_IPV4, GETTABLE, "listing tables", &[]);
    let found = socket.collect(&request, |message| {
        let of_table = message.payload.get(4..)?;
        (find(of_table, NFTA_TABLE_NAME)?.text() == table).then(|| comment(find(of_table, NFTA_TABLE_USERDATA)))
    })?;
    Ok(found.into_iter().next())
}

/// The first difference between the kernel's table and the desired one.
pub(crate) fn difference(
    socket: &mut Socket,
    ruleset: &Ruleset,
    elements: &[Element],
) -> Result<Option<String>, Refusal> {
    let table = ruleset.table.as_str();
    if ruleset.extent == Extent::Nothing {
        return Ok(None);
    }
    let desired: BTreeSet<_> = ruleset
        .chains()
        .map(|(name, chain_type, hook, priority)| (name.to_owned(), Some((chain_type.to_owned(), hook, priority))))
        .collect();
    let observed: BTreeSet<_> = read_chains(socket, table)?.into_iter().collect();
    if let Some((name, _)) = desired.difference(&observed).next() {
        return Ok(Some(format!("chain {name} is absent or changed")));
    }
    if let Some((name, _)) = observed.difference(&desired).next() {
        return Ok(Some(format!("chain {name} is not ours")));
    }
    let rules = read_rules(socket, table)?;
    for (chain, ..) in ruleset.chains() {
        let of_chain = |(of, comment): &(String, String)| (of == chain).then(|| comment.clone());
        let observed: Vec<String> = rules.iter().filter_map(of_chain).collect();
        let desired: Vec<&str> =
            ruleset.rules.iter().filter(|rule| rule.chain == chain).map(|rule| rule.comment.as_str()).collect();
        if observed != desired {
            return Ok(Some(format!("the rules of chain {chain} were changed")));
        }
    }
    let desired: BTreeSet<Element> = elements.iter().cloned().collect();
    let observed: BTreeSet<Element> = match read_elements(socket, table) {
        Ok(elements) => elements.into_iter().collect(),
        Err(refusal) if refusal.is(libc::ENOENT) => {
            return Ok(Some("a map of published ports is absent".to_owned()));
        }
        Err(refusal) => return Err(refusal),
    };
    if let Some(element) = desired.difference(&observed).next() {
        return Ok(Some(format!("host port {} is absent", element.describe())));
    }
    if let Some(element) = observed.difference(&desired).next() {
        let port = element.describe();
        return Ok(Some(format!("host port {port} belongs to no sandbox")));
    }
    Ok(None)
}

/// Whether a notification is about this table.
pub(crate) fn is_of_table(message: &Message<'_>, table: &str) -> bool {
    // The table's name is the first attribute of tables, chains, rules, sets and elements alike.
    let name = message.payload.get(4..).and_then(|attributes_of| find(attributes_of, NFTA_TABLE_NAME));
    message.kind != kind(NEWGEN) && name.is_some_and(|name| name.text() == table)
}

/// Whether a notification says that a transaction was committed; it comes after those about its content.
#[cfg(test)]
pub(crate) fn is_end_of_transaction(message: &Message<'_>) -> bool {
    message.kind == kind(NEWGEN)
}

fn push_table(batch: &mut Batch, message: u16, flags: u16, action: &str, table: &str) {
    batch.push(kind(message), flags, action, |w| {
        header(w, NFPROTO_IPV4);
        w.string(NFTA_TABLE_NAME, table);
    });
}

/// Makes a base chain that accepts what its rules do not drop.
pub(super) fn push_chain(batch: &mut Batch, table: &str, (name, chain_type, hook, priority): Chain) {
    batch.push(kind(NEWCHAIN), NLM_F_CREATE, format!("making chain {name}"), |w| {
        header(w, NFPROTO_IPV4);
        w.string(NFTA_CHAIN_TABLE, table);
        w.string(NFTA_CHAIN_NAME, name);
        w.nest(NFTA_CHAIN_HOOK, |w| {
            w.be32(NFTA_HOOK_HOOKNUM, hook);
            w.be32_signed(NFTA_HOOK_PRIORITY, priority);
        });
        w.be32(NFTA_CHAIN_POLICY, NF_ACCEPT);
        w.string(NFTA_CHAIN_TYPE, chain_type);
    });
}

fn push_elements(batch: &mut Batch, message: u16, table: &str, elements: &[Element]) {
    let (flags, verb) = match message {
        NEWSETELEM => (NLM_F_CREATE, "publishing"),
        _ => (0, "withdrawing"),
    };
    for (map, ..) in MAPS {
        let of_map: Vec<&Element> = elements.iter().filter(|e| e.map == map).collect();
        for chunk in of_map.chunks(ELEMENTS_PER_MESSAGE) {
            let ports: Vec<String> = chunk.iter().take(4).map(|e| e.describe()).collect();
            let action = format!("{verb} host port {}", ports.join(", "));
            batch.push(kind(message), flags, action, |w| {
                header(w, NFPROTO_IPV4);
                w.string(NFTA_SET_ELEM_LIST_TABLE, table);
                w.string(NFTA_SET_ELEM_LIST_SET, map);
                w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
                    for element in chunk {
                        w.nest(NFTA_LIST_ELEM, |w| {
                            w.nest(NFTA_SET_ELEM_KEY, |w| {
                                w.bytes(NFTA_DATA_VALUE, &element.key);
                            });
                            if message == NEWSETELEM {
                                w.nest(NFTA_SET_ELEM_DATA, |w| {
                                    w.bytes(NFTA_DATA_VALUE, &element.value);
                                });
                            }
                        });
                    }
                });
            });
        }
    }
}

/// A comment in the form that `nft` shows: type 0, length, text, zero.
fn comment_userdata(comment: &str) -> Vec<u8> {
    let text: Vec<u8> = comment.bytes().take(127).collect();
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut userdata = vec![0, length];
    userdata.extend_from_slice(&text);
    userdata.push(0);
    userdata
}

fn comment(userdata: Option<Attribute<'_>>) -> Option<String> {
    let text = userdata?.value.get(2..)?;
    Some(Attribute { kind: 0, value: text }.text())
}

type ObservedChain = (String, Option<(String, u32, i32)>);

/// The chains of our table, with type, hook and priority of base chains.
fn read_chains(socket: &mut Socket, table: &str) -> Result<Vec<ObservedChain>, Refusal> {
    let request = listing(NFPROTO_IPV4, GETCHAIN, "listing chains", &[]);
    socket.collect(&request, |message| {
        let attributes_of = message.payload.get(4..)?;
        if find(attributes_of, NFTA_CHAIN_TABLE)?.text() != table {
            return None;
        }
        let name = find(attributes_of, NFTA_CHAIN_NAME)?.text();
        let base = find(attributes_of, NFTA_CHAIN_HOOK).and_then(|hook| {
            let chain_type = find(attributes_of, NFTA_CHAIN_TYPE)?.text();
            let hooknum = find(hook.value, NFTA_HOOK_HOOKNUM)?.be32()?;
            let priority = find(hook.value, NFTA_HOOK_PRIORITY)?.be32()?;
            let accepts = find(attributes_of, NFTA_CHAIN_POLICY)?.be32()? == NF_ACCEPT;
            accepts.then_some((chain_type, hooknum, priority.cast_signed()))
        });
        Some((name, base))
    })
}

/// Chain and comment of every rule of our table, in order.
fn read_rules(socket: &mut Socket, table: &str) -> Result<Vec<(String, String)>, Refusal> {
    let request = listing(NFPROTO_IPV4, GETRULE, "listing rules", &[(NFTA_RULE_TABLE, table)]);
    socket.collect(&request, |message| {
        let attributes_of = message.payload.get(4..)?;
        if find(attributes_of, NFTA_RULE_TABLE)?.text() != table {
            return None;
        }
        let chain = find(attributes_of, NFTA_RULE_CHAIN)?.text();
        Some((chain, comment(find(attributes_of, NFTA_RULE_USERDATA)).unwrap_or_default()))
    })
}

/// The elements of both maps.
fn read_elements(socket: &mut Socket, table: &str) -> Result<Vec<Element>, Refusal> {
    let mut elements = Vec::new();
    for (map, ..) in MAPS {
        let names = [(NFTA_SET_ELEM_LIST_TABLE, table), (NFTA_SET_ELEM_LIST_SET, map)];
        let request = listing(NFPROTO_IPV4, GETSETELEM, "listing published ports", &names);
        let lists = socket.collect(&request, |message| {
            let list = find(message.payload.get(4..)?, NFTA_SET_ELEM_LIST_ELEMENTS)?;
            let of_list = list.nested().filter_map(|element| {
                let key = find(element.value, NFTA_SET_ELEM_KEY)?;
                let value = find(element.value, NFTA_SET_ELEM_DATA)?;
                Some(Element {
                    map,
                    key: find(key.value, NFTA_DATA_VALUE)?.value.to_vec(),
                    value: find(value.value, NFTA_DATA_VALUE)?.value.to_vec(),
                })
            });
            Some(of_list.collect::<Vec<_>>())
        })?;
        elements.extend(lists.into_iter().flatten());
    }
    Ok(elements)
}

/// A request for a listing, narrowed by names.
pub(super) fn listing(family: u8, message: u16, action: &str, names: &[(u16, &str)]) -> Batch {
    let mut request = Batch::new();
    request.push(kind(message), NLM_F_DUMP, action, |w| {
        header(w, family);
        for (attribute, name) in names {
            w.string(*attribute, name);
        }
    });
    request
}
