//! YAML as the API server and kubectl read it, into a tree that knows where everything stood.
//!
//! ```text
//!  text --scan--> tokens --parse--> nodes with aliases --resolve--> tree of typed values
//! ```
//!
//! The type of a plain scalar follows YAML 1.1 and Go's number syntax ([`scalar`]); keys become
//! text; merge keys and aliases are applied, within a budget; a duplicate key is a fault that
//! names both places.

mod foreign;
mod parse;
mod resolve;
mod scalar;
mod scan;

use std::rc::Rc;

pub(crate) use foreign::{RETYPE, UNFILLED, about_blank, false_blank, has_template};
pub(crate) use parse::decode_text;
pub(crate) use resolve::{Fault, FaultKind};
pub(crate) use scalar::{float_text, is_plainly_text};

use crate::problem::Position;

/// A place in the text; all three count from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Mark {
    index: usize,
    line: usize,
    column: usize,
}

impl From<Mark> for Position {
    fn from(mark: Mark) -> Self {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1);
        Self { line: number(mark.line), column: number(mark.column) }
    }
}

/// The text is no YAML from here on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SyntaxError {
    mark: Mark,
    message: String,
    fix: &'static str,
}

/// A value and where it stood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) position: Position,
    pub(crate) value: Value,
}

/// What a node holds; what JSON can hold, with numbers kept apart as Go keeps them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Unsigned(u64),
    /// Beyond 64 bits, as decimal digits.
    Huge(Rc<str>),
    Float(f64),
    Text(Rc<str>),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a mapping; keys are text, and each occurs once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: Rc<str>,
    pub(crate) key_position: Position,
    pub(crate) node: Node,
}

impl Node {
    /// The value of a key, when this is a mapping that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.node)
    }

    /// A key with its value, when this is a mapping that has it.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| &*entry.key == key),
            _ => None,
        }
    }

    /// The text, when this is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The type's name in a message.
    pub(crate) fn type_name(&self) -> &'static str {
        match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Integer(_) | Value::Unsigned(_) | Value::Huge(_) | Value::Float(_) => "a number",
            Value::Text(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// One document of a stream.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) root: Node,
    /// What is wrong with it, short of being unreadable.
    pub(crate) faults: Vec<Fault>,
}

/// A stream that broke off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) position: Position,
    pub(crate) message: String,
    pub(crate) fix: &'static str,
    /// The text is fine, but more than this reader takes.
    pub(crate) over_limit: bool,
}

impl From<SyntaxError> for Broken {
    fn from(error: SyntaxError) -> Self {
        Self { position: error.mark.into(), message: error.message, fix: error.fix, over_limit: false }
    }
}

/// Reads a stream of documents; `first_only` stops after the first, as the API server does.
///
/// An error ends the stream; the documents before it are lost on purpose, because a text that
/// breaks off may have been cut anywhere.
pub(crate) fn read(bytes: &[u8], first_only: bool) -> Result<Vec<Document>, Broken> {
    let text = decode_text(bytes)?;
    let read = read_text(&text, first_only);
    read.map_err(|broken| if broken.over_limit { broken } else { foreign::explain(&text, broken) })
}

fn read_text(text: &str, first_only: bool) -> Result<Vec<Document>, Broken> {
    let mut parser = parse::Parser::new(text);
    let mut documents = Vec::new();
    while let Some(arena) = parser.document()? {
        documents.push(resolve::resolve(&arena)?);
        if first_only {
            break;
        }
    }
    Ok(documents)
}
