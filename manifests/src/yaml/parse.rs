//! The parser: tokens to nodes, still with their aliases.

use std::collections::HashMap;

use super::scan::{Kind, Scanner, Style, TOO_DEEP, error};
use super::{Broken, Mark, SyntaxError};
use crate::problem::Position;

/// A node's number in its [`Arena`].
pub(super) type Id = usize;

#[derive(Debug)]
pub(super) enum Content {
    Scalar {
        text: String,
        /// Its text decides its type, unless a tag does.
        plain: bool,
        tag: Option<String>,
    },
    List(Vec<Id>),
    Map(Vec<(Id, Id)>),
    Alias(Id),
}

#[derive(Debug)]
pub(super) struct Raw {
    pub(super) mark: Mark,
    pub(super) content: Content,
}

/// The nodes of one document.
#[derive(Debug, Default)]
pub(super) struct Arena {
    pub(super) nodes: Vec<Raw>,
    pub(super) root: Id,
}

/// Checks the encoding; a byte order mark at the beginning is dropped.
pub(crate) fn decode_text(bytes: &[u8]) -> Result<String, Broken> {
    let broken = |line: usize, column: usize, message: &str, fix| Broken {
        position: Position::from(Mark { index: 0, line, column }),
        message: message.to_owned(),
        fix,
        over_limit: false,
    };
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => std::str::from_utf8(rest).ok().map(str::to_owned),
        _ => std::str::from_utf8(bytes).ok().map(str::to_owned),
    };
    let Some(text) = text else {
        let valid = match std::str::from_utf8(bytes) {
            Err(error) => bytes.get(..error.valid_up_to()).unwrap_or_default(),
            Ok(_) => bytes,
        };
        let text = String::from_utf8_lossy(valid);
        let line = text.matches('\n').count();
        let column = text.rsplit('\n').next().unwrap_or_default().chars().count();
        return Err(broken(
            line,
            column,
            "the text is not UTF-8",
            "save the file as UTF-8, or remove the character here",
        ));
    };
    let allowed = |c: char| {
        matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{7e}' | '\u{85}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}')
            || c >= '\u{10000}'
    };
    if let Some((at, c)) = text.char_indices().find(|(_, c)| !allowed(*c)) {
        let before = text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count();
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
        let message = format!("the control character {c:?} is not allowed in YAML");
        return Err(broken(line, column, &message, "remove it, or write it as `\\x..` within double quotes"));
    }
    Ok(text)
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Option<String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    char::decode_utf16(pairs.iter().map(|pair| unit(*pair))).collect::<Result<_, _>>().ok()
}

/// Reads one document after the other.
#[derive(Debug)]
pub(super) struct Parser {
    scanner: Scanner,
    first: bool,
    arena: Arena,
    anchors: HashMap<String, Id>,
    tags: Vec<(String, String)>,
    depth: usize,
}

/// The properties before a node.
#[derive(Default)]
struct Properties {
    anchor: Option<String>,
    tag: Option<String>,
    mark: Option<Mark>,
}

/// Nodes nested deeper than this are refused before they cost stack.
const MAX_DEPTH: usize = 128;

impl Parser {
    pub(super) fn new(text: &str) -> Self {
        Self {
            scanner: Scanner::new(text),
            first: true,
            arena: Arena::default(),
            anchors: HashMap::new(),
            tags: Vec::new(),
            depth: 0,
        }
    }

    /// The next document, `None` at the end of the stream.
    pub(super) fn document(&mut self) -> Result<Option<Arena>, SyntaxError> {
        self.arena = Arena::default();
        self.anchors.clear();
        self.tags.clear();
        let implicit = std::mem::replace(&mut self.first, false);
        if !implicit {
            while self.scanner.peek()?.kind == Kind::DocumentEnd {
                self.scanner.next()?;
            }
        }
        let explicit = matches!(
            self.scanner.peek()?.kind,
            Kind::VersionDirective { .. } | Kind::TagDirective { .. } | Kind::DocumentStart
        );
        if self.scanner.peek()?.kind == Kind::StreamEnd {
            return Ok(None);
        }
        if explicit || !implicit {
            self.directives()?;
            let token = self.scanner.next()?;
            if token.kind != Kind::DocumentStart {
                let message = "expected the end of the document (`---` begins another one)";
                return Err(error(token.start, message, "indent this line as the one that it belongs to"));
            }
        }
        let token = self.scanner.peek()?;
        let empty = matches!(
            token.kind,
            Kind::VersionDirective { .. }
                | Kind::TagDirective { .. }
                | Kind::DocumentStart
                | Kind::DocumentEnd
                | Kind::StreamEnd
        );
        let mark = token.start;
        self.arena.root = if empty && (explicit || !implicit) { self.empty(mark) } else { self.node(true, false)? };
        if self.scanner.peek()?.kind == Kind::DocumentEnd {
            self.scanner.next()?;
        }
        Ok(Some(std::mem::take(&mut self.arena)))
    }

    fn directives(&mut self) -> Result<(), SyntaxError> {
        let mut version = false;
        loop {
            let token = self.scanner.peek()?.clone();
            match token.kind {
                Kind::VersionDirective { major, minor } => {
                    if version {
                        return Err(error(token.start, "a second %YAML directive", "remove this line"));
                    }
                    if (major, minor) != (1, 1) {
                        let message = "manifests are read as YAML 1.1; remove the %YAML line";
                        return Err(error(token.start, message, "start the document with `---` alone"));
                    }
                    version = true;
                }
                Kind::TagDirective { handle, prefix } => {
                    if self.tags.iter().any(|(known, _)| *known == handle) {
                        return Err(error(token.start, "a second %TAG for the same handle", "remove this line"));
                    }
                    self.tags.push((handle, prefix));
                }
                _ => break,
            }
            self.scanner.next()?;
        }
        for (handle, prefix) in [("!", "!"), ("!!", "tag:yaml.org,2002:")] {
            if !self.tags.iter().any(|(known, _)| known == handle) {
                self.tags.push((handle.to_owned(), prefix.to_owned()));
            }
        }
        Ok(())
    }

    fn add(&mut self, mark: Mark, content: Content) -> Id {
        self.arena.nodes.push(Raw { mark, content });
        self.arena.nodes.len() - 1
    }

    fn set(&mut self, id: Id, content: Content) {
        if let Some(raw) = self.arena.nodes.get_mut(id) {
            raw.content = content;
        }
    }

    fn empty(&mut self, mark: Mark) -> Id {
        self.add(mark, Content::Scalar { text: String::new(), plain: true, tag: None })
    }

    fn resolve_tag(&self, handle: &str, suffix: String, mark: Mark) -> Result<String, SyntaxError> {
        if handle.is_empty() {
            return Ok(suffix);
        }
        let prefix = self
            .tags
            .iter()
            .find(|(known, _)| known == handle)
            .map(|(_, prefix)| prefix.as_str())
            .or(match handle {
                "!" => Some("!"),
                "!!" => Some("tag:yaml.org,2002:"),
                _ => None,
            })
            .ok_or_else(|| {
                error(mark, "the tag's handle is not declared", "remove the tag, or quote a text that begins with `!`")
            })?;
        Ok(format!("{prefix}{suffix}"))
    }

    /// The anchor and the tag before a node, in either order.
    fn properties(&mut self) -> Result<Properties, SyntaxError> {
        let mut found = Properties::default();
        loop {
            let token = self.scanner.peek()?;
            let start = token.start;
            match &token.kind {
                Kind::Anchor(name) if found.anchor.is_none() => {
                    found.anchor = Some(name.clone());
                }
                Kind::Tag { handle, suffix } if found.tag.is_none() => {
                    let (handle, suffix) = (handle.clone(), suffix.clone());
                    found.tag = Some(self.resolve_tag(&handle, suffix, start)?);
                }
                _ => return Ok(found),
            }
            found.mark.get_or_insert(start);
            self.scanner.next()?;
        }
    }

    fn node(&mut self, block: bool, indentless: bool) -> Result<Id, SyntaxError> {
        let token = self.scanner.peek()?;
        let start = token.start;
        if let Kind::Alias(name) = &token.kind {
            let target = self.anchors.get(name).copied();
            let message = format!("no anchor `&{name}` stands before this alias");
            self.scanner.next()?;
            let target = target.ok_or_else(|| {
                error(start, &message, "write the value itself, or quote a text that begins with `*`")
            })?;
            return Ok(self.add(start, Content::Alias(target)));
        }
        if self.depth >= MAX_DEPTH {
            return Err(error(start, "nested too deeply", TOO_DEEP));
        }
        self.depth += 1;
        let id = self.content(block, indentless);
        self.depth -= 1;
        id
    }

    fn content(&mut self, block: bool, indentless: bool) -> Result<Id, SyntaxError> {
        let Properties { anchor, tag, mark } = self.properties()?;
        let token = self.scanner.peek()?;
        let start = token.start;
        let bare = anchor.is_none() && tag.is_none();
        let kind = token.kind.clone();
        // The number is known before the children are, as an alias among them may name it.
        let id = self.add(mark.unwrap_or(start), Content::List(Vec::new()));
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, id);
        }
        let content = match kind {
            Kind::BlockEntry if indentless => self.indentless_list()?,
            Kind::Scalar { text, style } => {
                self.scanner.next()?;
                let non_specific = tag.as_deref() == Some("!");
                Content::Scalar {
                    text,
                    plain: (style == Style::Plain && tag.is_none()) || non_specific,
                    tag: tag.filter(|_| !non_specific),
                }
            }
            Kind::FlowSequenceStart => self.flow_list()?,
            Kind::FlowMappingStart => self.flow_map()?,
            Kind::BlockSequenceStart if block => self.block_list()?,
            Kind::BlockMappingStart if block => self.block_map()?,
            _ if !bare => Content::Scalar {
                text: String::new(),
                plain: tag.is_none() || tag.as_deref() == Some("!"),
                tag: tag.filter(|tag| tag != "!"),
            },
            _ => {
                let (message, fix) = unexpected(&kind);
                return Err(error(start, message, fix));
            }
        };
        self.set(id, content);
        Ok(id)
    }

    fn block_list(&mut self) -> Result<Content, SyntaxError> {
        self.scanner.next()?;
        let mut items = Vec::new();
        loop {
            let token = self.scanner.next()?;
            match token.kind {
                Kind::BlockEntry => {
                    let next = self.scanner.peek()?;
                    let item = if matches!(next.kind, Kind::BlockEntry | Kind::BlockEnd) {
                        self.empty(token.end)
                    } else {
                        self.node(true, false)?
                    };
                    items.push(item);
                }
                Kind::BlockEnd => return Ok(Content::List(items)),
                _ => {
                    let fix = "indent it as the item it belongs to, or begin it with `- `";
                    return Err(error(token.start, "expected `-`; is the indentation right?", fix));
                }
            }
        }
    }

    fn indentless_list(&mut self) -> Result<Content, SyntaxError> {
        let mut items = Vec::new();
        while self.scanner.peek()?.kind == Kind::BlockEntry {
            let token = self.scanner.next()?;
            let next = self.scanner.peek()?;
            let item = if matches!(next.kind, Kind::BlockEntry | Kind::Key | Kind::Value | Kind::BlockEnd) {
                self.empty(token.end)
            } else {
                self.node(true, false)?
            };
            items.push(item);
        }
        Ok(Content::List(items))
    }

    fn block_map(&mut self) -> Result<Content, SyntaxError> {
        self.scanner.next()?;
        let mut entries = Vec::new();
        loop {
            let token = self.scanner.next()?;
            match token.kind {
                Kind::Key => {}
                Kind::BlockEnd => return Ok(Content::Map(entries)),
                _ => {
                    let fix = "indent this line as the keys around it, and put `: ` after its key";
                    return Err(error(token.start, "expected a key; is the indentation right?", fix));
                }
            }
            let key = self.block_part(token.end)?;
            let value = if self.scanner.peek()?.kind == Kind::Value {
                let token = self.scanner.next()?;
                self.block_part(token.end)?
            } else {
                let mark = self.scanner.peek()?.start;
                self.empty(mark)
            };
            entries.push((key, value));
        }
    }

    fn block_part(&mut self, end: Mark) -> Result<Id, SyntaxError> {
        match self.scanner.peek()?.kind {
            Kind::Key | Kind::Value | Kind::BlockEnd => Ok(self.empty(end)),
            _ => self.node(true, true),
        }
    }

    fn flow_list(&mut self) -> Result<Content, SyntaxError> {
        let open = self.scanner.next()?.start;
        let mut items = Vec::new();
        loop {
            if !items.is_empty() && self.scanner.peek()?.kind != Kind::FlowSequenceEnd {
                let token = self.scanner.next()?;
                if token.kind != Kind::FlowEntry {
                    return Err(unclosed(token.start, "`,` or `]`", open));
                }
            }
            let token = self.scanner.peek()?;
            let start = token.start;
            match token.kind {
                Kind::FlowSequenceEnd => {
                    self.scanner.next()?;
                    return Ok(Content::List(items));
                }
                Kind::Key => {
                    // A single pair in a list is a mapping of its own: `[a: b]`.
                    self.scanner.next()?;
                    let key = self.flow_part(Kind::FlowSequenceEnd, start)?;
                    let value = self.flow_value(Kind::FlowSequenceEnd)?;
                    items.push(self.add(start, Content::Map(vec![(key, value)])));
                }
                _ => items.push(self.node(false, false)?),
            }
        }
    }

    fn flow_map(&mut self) -> Result<Content, SyntaxError> {
        let open = self.scanner.next()?.start;
        let mut entries = Vec::new();
        loop {
            if !entries.is_empty() && self.scanner.peek()?.kind != Kind::FlowMappingEnd {
                let token = self.scanner.next()?;
                if token.kind != Kind::FlowEntry {
                    return Err(unclosed(token.start, "`,` or `}`", open));
                }
            }
            let token = self.scanner.peek()?;
            let start = token.start;
            match token.kind {
                Kind::FlowMappingEnd => {
                    self.scanner.next()?;
                    return Ok(Content::Map(entries));
                }
                Kind::Key => {
                    self.scanner.next()?;
                    let key = self.flow_part(Kind::FlowMappingEnd, start)?;
                    let value = self.flow_value(Kind::FlowMappingEnd)?;
                    entries.push((key, value));
                }
                _ => {
                    let key = self.node(false, false)?;
                    let value = self.empty(start);
                    entries.push((key, value));
                }
            }
        }
    }

    fn flow_value(&mut self, end: Kind) -> Result<Id, SyntaxError> {
        let token = self.scanner.peek()?;
        let mark = token.start;
        if token.kind == Kind::Value {
            self.scanner.next()?;
            self.flow_part(end, mark)
        } else {
            Ok(self.empty(mark))
        }
    }

    fn flow_part(&mut self, end: Kind, mark: Mark) -> Result<Id, SyntaxError> {
        let kind = &self.scanner.peek()?.kind;
        if *kind == end || matches!(kind, Kind::Value | Kind::FlowEntry) {
            Ok(self.empty(mark))
        } else {
            self.node(false, false)
        }
    }
}

fn unclosed(mark: Mark, expected: &str, open: Mark) -> SyntaxError {
    let opened = Position::from(open);
    let fix = "close it, put a comma before the next item, or quote a text that begins with a bracket";
    error(mark, &format!("expected {expected} for what was opened at {opened}"), fix)
}

/// What is wrong with a token where a value should begin, and what to do about it.
fn unexpected(kind: &Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::StreamEnd => ("the text ends where a value was expected", "finish the file, or close what is open"),
        Kind::BlockEntry => ("a list item cannot begin here", "begin the list on the line below its key"),
        Kind::FlowEntry => ("`,` cannot stand here", "remove it, or put a value before it"),
        Kind::FlowSequenceEnd => ("`]` closes nothing", "remove it, or open the list with `[`"),
        Kind::FlowMappingEnd => ("`}` closes nothing", "remove it, or open the mapping with `{`"),
        Kind::DocumentEnd | Kind::DocumentStart => {
            ("the document ends where a value was expected", "write the value before this line, or close what is open")
        }
        _ => ("expected a value", "write a value here, in quotes if it begins with a special character"),
    }
}
