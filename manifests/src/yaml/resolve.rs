//! Resolution: aliases and merge keys applied, scalars typed, keys made text.

use std::collections::HashMap;
use std::rc::Rc;

use super::parse::{Arena, Content, Id, Raw};
use super::scalar::{self, float_text};
use super::{Broken, Document, Entry, Mark, Node, Value};
use crate::path::Path;
use crate::problem::Position;

/// What is wrong with a document that could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// The key occurs twice.
    DuplicateKey,
    /// The key cannot become text.
    BadKey,
    /// Not a number that JSON can hold.
    NotANumber,
}

/// One fault, with the place and the path of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) position: Position,
    pub(crate) field: String,
    pub(crate) message: String,
    pub(crate) fix: &'static str,
}

/// Aliases may not blow a document up beyond this many nodes and bytes of text.
const MAX_NODES: usize = 200_000;
const MAX_TEXT: usize = 16 << 20;
const FEWER: &str = "write the values out, or split the file: what aliases stand for counts too";

struct Resolver<'a> {
    arena: &'a Arena,
    faults: Vec<Fault>,
    /// Anchored nodes that are being resolved: an alias to one of them would never end.
    open: Vec<Id>,
    nodes: usize,
    text: usize,
    alias_depth: usize,
    alias_nodes: usize,
}

pub(super) fn resolve(arena: &Arena) -> Result<Document, Broken> {
    let mut resolver =
        Resolver { arena, faults: Vec::new(), open: Vec::new(), nodes: 0, text: 0, alias_depth: 0, alias_nodes: 0 };
    let root = resolver.node(arena.root, &Path::ROOT)?;
    Ok(Document { root, faults: resolver.faults })
}

fn broken(mark: Mark, message: &str, fix: &'static str) -> Broken {
    Broken { position: mark.into(), message: message.to_owned(), fix, over_limit: false }
}

fn endless(mark: Mark) -> Broken {
    broken(mark, "the anchor's value contains itself", "write the value in the place of the alias")
}

impl<'a> Resolver<'a> {
    fn fault(&mut self, fault: Fault) {
        if self.faults.len() < crate::findings::MOST {
            self.faults.push(fault);
        }
    }

    fn raw(&self, id: Id, mark: Mark) -> Result<&'a Raw, Broken> {
        self.arena.nodes.get(id).ok_or_else(|| broken(mark, "expected a value", "write a value here"))
    }

    fn node(&mut self, id: Id, path: &Path<'_>) -> Result<Node, Broken> {
        let raw = self.raw(id, Mark::default())?;
        self.count(raw.mark)?;
        if let Content::Alias(target) = raw.content {
            if self.open.contains(&target) {
                return Err(endless(raw.mark));
            }
            self.alias_depth += 1;
            let node = self.node(target, path);
            self.alias_depth -= 1;
            return node;
        }
        let position = raw.mark.into();
        let value = match &raw.content {
            Content::Scalar { text, plain, tag } => self.scalar(text, *plain, tag.as_deref(), raw.mark, path)?,
            Content::List(items) => {
                self.open.push(id);
                let mut nodes = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    nodes.push(self.node(*item, &path.index(index))?);
                }
                self.open.pop();
                Value::List(nodes)
            }
            Content::Map(entries) => {
                self.open.push(id);
                let mut map = Mapping::default();
                self.fill(entries, &mut map, path)?;
                self.open.pop();
                Value::Map(map.entries)
            }
            Content::Alias(_) => Value::Null,
        };
        Ok(Node { position, value })
    }

    /// Counts a node against the budgets; go-yaml's rule on the share of aliases first.
    fn count(&mut self, mark: Mark) -> Result<(), Broken> {
        self.nodes += 1;
        if self.alias_depth == 0 {
            return Ok(());
        }
        self.alias_nodes += 1;
        if self.alias_nodes > 100 && self.nodes > 1000 && self.alias_nodes * 100 > self.nodes * 99 {
            return Err(broken(mark, "excessive use of aliases", FEWER));
        }
        if self.nodes > MAX_NODES || self.text > MAX_TEXT {
            return Err(Broken { over_limit: true, ..broken(mark, "the aliases make this document too large", FEWER) });
        }
        Ok(())
    }

    fn scalar(
        &mut self,
        text: &str,
        plain: bool,
        tag: Option<&str>,
        mark: Mark,
        path: &Path<'_>,
    ) -> Result<Value, Broken> {
        self.text += text.len();
        let value = scalar::value(text, plain, tag)
            .map_err(|message| broken(mark, &message, "remove the tag, or write what it asks for"))?;
        if let Value::Float(number) = value
            && !number.is_finite()
        {
            self.fault(Fault {
                kind: FaultKind::NotANumber,
                position: mark.into(),
                field: path.to_string(),
                message: format!("`{text}` is a number that JSON cannot hold"),
                fix: "put it in quotes if it is a text, or write a finite number",
            });
            return Ok(Value::Null);
        }
        Ok(value)
    }

    /// Takes the entries of a mapping, merge keys included, into `map`.
    fn fill(&mut self, entries: &[(Id, Id)], map: &mut Mapping, path: &Path<'_>) -> Result<(), Broken> {
        for (key, value) in entries {
            let raw = self.raw(*key, Mark::default())?;
            if let Content::Scalar { text, plain, tag } = &raw.content
                && text == "<<"
                && (*plain || tag.as_deref() == Some("tag:yaml.org,2002:merge"))
            {
                self.merge(*value, map, path)?;
                continue;
            }
            let key = self.node(*key, path)?;
            let Some(name) = self.key(&key, path)? else {
                continue;
            };
            let node = self.node(*value, &path.field(&name))?;
            match map.add(&name, raw.mark.into(), node) {
                None => {}
                Some(first) => self.fault(Fault {
                    kind: FaultKind::DuplicateKey,
                    position: raw.mark.into(),
                    field: path.field(&name).to_string(),
                    message: format!("the key `{name}` is already there, at {first}"),
                    fix: "remove one of the two, or join what stands below them",
                }),
            }
        }
        Ok(())
    }

    /// `<<: *a`: the entries of another mapping, as if they stood here.
    fn merge(&mut self, value: Id, map: &mut Mapping, path: &Path<'_>) -> Result<(), Broken> {
        let raw = self.raw(value, Mark::default())?;
        let (target, is_alias) = match raw.content {
            Content::Alias(target) => (target, true),
            _ => (value, false),
        };
        if self.open.contains(&target) {
            return Err(endless(raw.mark));
        }
        let Content::Map(entries) = &self.raw(target, raw.mark)?.content else {
            let message = "`<<` takes one mapping (a list of mappings is not supported)";
            return Err(broken(raw.mark, message, "name one anchor of a mapping, as in `<<: *defaults`"));
        };
        self.count(raw.mark)?;
        self.open.push(target);
        self.alias_depth += usize::from(is_alias);
        let result = self.fill(entries, map, path);
        self.alias_depth -= usize::from(is_alias);
        self.open.pop();
        result
    }

    /// A key as text; `None` when it cannot be one, which is then a fault.
    fn key(&mut self, key: &Node, path: &Path<'_>) -> Result<Option<Rc<str>>, Broken> {
        Ok(match &key.value {
            Value::Text(text) => Some(Rc::clone(text)),
            Value::Bool(value) => Some(Rc::from(value.to_string())),
            Value::Integer(value) => Some(Rc::from(value.to_string())),
            Value::Float(value) => Some(Rc::from(float_text(*value))),
            Value::List(_) | Value::Map(_) => {
                return Err(Broken {
                    position: key.position,
                    message: "a key must be text; put a value that begins with `{` or `[` in quotes".to_owned(),
                    fix: "for example \"{{ name }}\", or fill the template in first",
                    over_limit: false,
                });
            }
            Value::Null | Value::Unsigned(_) | Value::Huge(_) => {
                self.fault(Fault {
                    kind: FaultKind::BadKey,
                    position: key.position,
                    field: path.to_string(),
                    message: "this key cannot be text; put it in quotes".to_owned(),
                    fix: "for example \"null\" or \"~\", or remove the entry",
                });
                None
            }
        })
    }
}

#[derive(Default)]
struct Mapping {
    entries: Vec<Entry>,
    /// Where in `entries` each key is.
    seen: HashMap<Rc<str>, usize>,
}

impl Mapping {
    /// Adds a key; when it is there already, says where; the last value counts.
    ///
    /// `1` and `"1"` are the same key here: both become the same text, and Go then keeps one
    /// of the two by chance.
    fn add(&mut self, key: &Rc<str>, key_position: Position, node: Node) -> Option<Position> {
        if let Some(known) = self.seen.get(key).and_then(|at| self.entries.get_mut(*at)) {
            known.node = node;
            return Some(known.key_position);
        }
        self.seen.insert(Rc::clone(key), self.entries.len());
        self.entries.push(Entry { key: Rc::clone(key), key_position, node });
        None
    }
}
