//! Field paths, as the API server writes them: `spec.containers[0].ports[1].hostPort`.

use std::fmt;

use crate::problem::Position;
use crate::yaml::{Node, Value};

/// One step of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

/// A path from the root of an object; lives on the stack and costs nothing until it is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

impl<'a> Path<'a> {
    pub(crate) const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    fn then<'b>(&'b self, step: Step<'b>) -> Path<'b>
    where
        'a: 'b,
    {
        Path { parent: Some(self), step }
    }

    /// `path.name`
    pub(crate) fn field<'b>(&'b self, name: &'b str) -> Path<'b>
    where
        'a: 'b,
    {
        self.then(Step::Field(name))
    }

    /// `path[3]`
    pub(crate) fn index<'b>(&'b self, index: usize) -> Path<'b>
    where
        'a: 'b,
    {
        self.then(Step::Index(index))
    }

    /// `path[key]`, for a key that the user chose.
    pub(crate) fn key<'b>(&'b self, key: &'b str) -> Path<'b>
    where
        'a: 'b,
    {
        self.then(Step::Key(key))
    }

    /// Whether the last step is a key that the user chose.
    pub(crate) fn is_key(&self) -> bool {
        matches!(self.step, Step::Key(_))
    }

    /// The node at this path, or the nearest one above it, and whether it is the very one.
    fn nearest<'n>(&self, root: &'n Node) -> (&'n Node, Position, bool) {
        let Some(parent) = self.parent else {
            return (root, root.position, true);
        };
        let (node, position, exact) = parent.nearest(root);
        if !exact {
            return (node, position, false);
        }
        match (self.step, &node.value) {
            (Step::Field(name) | Step::Key(name), Value::Map(_)) => match node.entry(name) {
                Some(entry) => (&entry.node, entry.key_position, true),
                None => (node, position, false),
            },
            (Step::Index(index), Value::List(items)) => match items.get(index) {
                Some(item) => (item, item.position, true),
                None => (node, position, false),
            },
            (Step::Root, _) => (node, position, true),
            _ => (node, position, false),
        }
    }

    /// The key that the user chose, when the last step is one.
    pub(crate) fn last_key(&self) -> Option<&'a str> {
        match self.step {
            Step::Key(key) => Some(key),
            _ => None,
        }
    }

    /// Whether the document says something at this path.
    pub(crate) fn is_in(&self, root: &Node) -> bool {
        self.nearest(root).2
    }

    /// The text at this path, when there is one.
    pub(crate) fn text<'n>(&self, root: &'n Node) -> Option<&'n str> {
        let (node, _, exact) = self.nearest(root);
        node.text().filter(|_| exact)
    }

    /// Where this path stands in the document: its key, its list item, or what is nearest.
    pub(crate) fn position(&self, root: &Node) -> Position {
        self.nearest(root).1
    }

    /// Where the value at this path stands; its key's place when the value is no scalar.
    pub(crate) fn value_position(&self, root: &Node) -> Position {
        let (node, position, exact) = self.nearest(root);
        match node.value {
            Value::Map(_) | Value::List(_) | Value::Null => position,
            _ if exact => node.position,
            _ => position,
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else {
            return Ok(());
        };
        parent.fmt(f)?;
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) if matches!(parent.step, Step::Root) => f.write_str(name),
            Step::Field(name) => write!(f, ".{name}"),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}
