//! The scanner: characters to tokens, by the rules of YAML 1.1.
//!
//! The API server and kubectl read manifests through a library of the libyaml family; what
//! such a library takes for a token decides what a manifest means. This scanner follows the
//! same rules (YAML 1.1 §§5-9 and libyaml's choices where the text leaves some), among them:
//! a simple key ends on its line and within 1024 characters, `---` at the first column ends
//! even a block scalar, tabs may stand between tokens but never indent, `\/` is no escape.
//!
//! Tokens are made on demand, so a parser that stops after the first document never sees
//! errors behind it.

use std::collections::VecDeque;

use super::{Mark, SyntaxError};

/// How a scalar was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Without quotes: its text decides its type.
    Plain,
    /// Quoted or a block: always text.
    Quoted,
}

/// What a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    StreamEnd,
    VersionDirective { major: u32, minor: u32 },
    TagDirective { handle: String, prefix: String },
    DocumentStart,
    DocumentEnd,
    BlockSequenceStart,
    BlockMappingStart,
    BlockEnd,
    FlowSequenceStart,
    FlowSequenceEnd,
    FlowMappingStart,
    FlowMappingEnd,
    BlockEntry,
    FlowEntry,
    Key,
    Value,
    Alias(String),
    Anchor(String),
    Tag { handle: String, suffix: String },
    Scalar { text: String, style: Style },
}

/// A token and where it begins and ends.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: Mark,
    pub(super) end: Mark,
}

/// A place where a key could turn out to have begun, once its `:` is seen.
#[derive(Debug, Clone, Copy)]
struct SimpleKey {
    token: usize,
    required: bool,
    mark: Mark,
}

/// Flow and block levels beyond this are refused before they cost stack.
const MAX_LEVELS: usize = 128;

/// Makes tokens out of characters.
#[derive(Debug)]
pub(super) struct Scanner {
    chars: Vec<char>,
    mark: Mark,
    tokens: VecDeque<Token>,
    /// How many tokens were handed out.
    taken: usize,
    ended: bool,
    indent: i64,
    indents: Vec<i64>,
    simple_key_allowed: bool,
    /// One candidate per flow level, the last for the current one.
    simple_keys: Vec<Option<SimpleKey>>,
}

const END: char = '\0';

fn is_break(c: char) -> bool {
    matches!(c, '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn is_blank(c: char) -> bool {
    c == ' ' || c == '\t'
}

fn is_break_or_end(c: char) -> bool {
    is_break(c) || c == END
}

fn is_blank_or_end(c: char) -> bool {
    is_blank(c) || is_break_or_end(c)
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

impl Scanner {
    pub(super) fn new(text: &str) -> Self {
        Self {
            chars: text.chars().collect(),
            mark: Mark::default(),
            tokens: VecDeque::new(),
            taken: 0,
            ended: false,
            indent: -1,
            indents: Vec::new(),
            simple_key_allowed: true,
            simple_keys: vec![None],
        }
    }

    /// The next token, not taken.
    pub(super) fn peek(&mut self) -> Result<&Token, SyntaxError> {
        self.fill()?;
        self.tokens.front().ok_or_else(|| early(self.mark))
    }

    /// Takes the next token.
    pub(super) fn next(&mut self) -> Result<Token, SyntaxError> {
        self.fill()?;
        self.taken += 1;
        self.tokens.pop_front().ok_or_else(|| early(self.mark))
    }

    /// Makes tokens until the first in the queue can no longer turn out to be a key.
    fn fill(&mut self) -> Result<(), SyntaxError> {
        loop {
            if !self.tokens.is_empty() {
                let head = self.taken;
                let candidate = self.simple_keys.iter().position(|key| key.is_some_and(|key| key.token == head));
                match candidate {
                    Some(level) if self.still_possible(level)? => {}
                    _ => return Ok(()),
                }
            }
            if self.ended {
                return Ok(());
            }
            self.fetch()?;
        }
    }

    /// Whether the candidate of a level can still become a key; drops it otherwise.
    fn still_possible(&mut self, level: usize) -> Result<bool, SyntaxError> {
        let Some(Some(key)) = self.simple_keys.get(level).copied() else {
            return Ok(false);
        };
        if key.mark.line < self.mark.line || key.mark.index + 1024 < self.mark.index {
            if key.required {
                return Err(error(key.mark, "expected `:` after this key", NO_COLON));
            }
            if let Some(slot) = self.simple_keys.get_mut(level) {
                *slot = None;
            }
            return Ok(false);
        }
        Ok(true)
    }

    fn at(&self, ahead: usize) -> char {
        self.chars.get(self.mark.index + ahead).copied().unwrap_or(END)
    }

    fn here(&self) -> char {
        self.at(0)
    }

    fn skip(&mut self) {
        self.mark.index += 1;
        self.mark.column += 1;
    }

    fn skip_many(&mut self, count: usize) {
        self.mark.index += count;
        self.mark.column += count;
    }

    fn skip_line(&mut self) {
        if self.here() == '\r' && self.at(1) == '\n' {
            self.mark.index += 2;
        } else if is_break(self.here()) {
            self.mark.index += 1;
        } else {
            return;
        }
        self.mark.column = 0;
        self.mark.line += 1;
    }

    /// Takes a line break, normalised.
    fn read_line(&mut self, into: &mut String) {
        let c = self.here();
        if is_break(c) {
            into.push(match c {
                '\u{2028}' | '\u{2029}' => c,
                _ => '\n',
            });
            self.skip_line();
        }
    }

    fn read(&mut self, into: &mut String) {
        into.push(self.here());
        self.skip();
    }

    fn in_flow(&self) -> bool {
        self.simple_keys.len() > 1
    }

    fn column(&self) -> i64 {
        i64::try_from(self.mark.column).unwrap_or(i64::MAX)
    }

    fn push(&mut self, kind: Kind, start: Mark) {
        let end = self.mark;
        self.tokens.push_back(Token { kind, start, end });
    }

    /// `---` or `...` at the first column, followed by a blank.
    fn at_document_indicator(&self, c: char) -> bool {
        self.mark.column == 0 && self.here() == c && self.at(1) == c && self.at(2) == c && is_blank_or_end(self.at(3))
    }

    fn fetch(&mut self) -> Result<(), SyntaxError> {
        self.skip_to_token();
        self.unroll(self.column());
        let c = self.here();
        if c == END {
            return self.fetch_end();
        }
        if self.mark.column == 0 && c == '%' {
            self.unroll(-1);
            self.drop_key()?;
            self.simple_key_allowed = false;
            return self.scan_directive();
        }
        if self.at_document_indicator('-') {
            return self.fetch_document_indicator(Kind::DocumentStart);
        }
        if self.at_document_indicator('.') {
            return self.fetch_document_indicator(Kind::DocumentEnd);
        }
        let next_blank = is_blank_or_end(self.at(1));
        match c {
            '[' => self.fetch_flow_start(Kind::FlowSequenceStart),
            '{' => self.fetch_flow_start(Kind::FlowMappingStart),
            ']' => self.fetch_flow_end(Kind::FlowSequenceEnd),
            '}' => self.fetch_flow_end(Kind::FlowMappingEnd),
            ',' => {
                self.drop_key()?;
                self.simple_key_allowed = true;
                self.fetch_indicator(Kind::FlowEntry);
                Ok(())
            }
            '-' if next_blank => self.fetch_block_entry(),
            '?' if self.in_flow() || next_blank => self.fetch_key(),
            ':' if self.in_flow() || next_blank => self.fetch_value(),
            '*' | '&' => {
                self.save_key()?;
                self.simple_key_allowed = false;
                self.scan_anchor()
            }
            '!' => {
                self.save_key()?;
                self.simple_key_allowed = false;
                self.scan_tag()
            }
            '|' | '>' if !self.in_flow() => {
                self.drop_key()?;
                self.simple_key_allowed = true;
                self.scan_block_scalar(c == '|')
            }
            '\'' | '"' => {
                self.save_key()?;
                self.simple_key_allowed = false;
                self.scan_quoted(c)
            }
            _ if self.begins_plain(c) => {
                self.save_key()?;
                self.simple_key_allowed = false;
                self.scan_plain()
            }
            '\t' => Err(tab(self.mark)),
            '%' | '@' | '`' => {
                let fix = "for example \"@daily\" instead of @daily";
                Err(error(self.mark, "this character cannot begin a value; put it in quotes", fix))
            }
            _ => {
                let fix = "put the value in quotes, or remove the character";
                Err(error(self.mark, "this character cannot begin a value here", fix))
            }
        }
    }

    fn begins_plain(&self, c: char) -> bool {
        let special = is_blank_or_end(c)
            || matches!(
                c,
                '-' | '?'
                    | ':'
                    | ','
                    | '['
                    | ']'
                    | '{'
                    | '}'
                    | '#'
                    | '&'
                    | '*'
                    | '!'
                    | '|'
                    | '>'
                    | '\''
                    | '"'
                    | '%'
                    | '@'
                    | '`'
            );
        !special
            || (c == '-' && !is_blank(self.at(1)))
            || (!self.in_flow() && matches!(c, '?' | ':') && !is_blank_or_end(self.at(1)))
    }

    /// Skips spaces, comments and line breaks; tabs only where no key could begin.
    fn skip_to_token(&mut self) {
        loop {
            while self.here() == ' ' || ((self.in_flow() || !self.simple_key_allowed) && self.here() == '\t') {
                self.skip();
            }
            if self.here() == '#' {
                while !is_break_or_end(self.here()) {
                    self.skip();
                }
            }
            if !is_break(self.here()) {
                return;
            }
            self.skip_line();
            if !self.in_flow() {
                self.simple_key_allowed = true;
            }
        }
    }

    /// Notes that a key may begin here.
    fn save_key(&mut self) -> Result<(), SyntaxError> {
        let required = !self.in_flow() && self.indent == self.column();
        if self.simple_key_allowed {
            self.drop_key()?;
            let key = SimpleKey { token: self.taken + self.tokens.len(), required, mark: self.mark };
            if let Some(slot) = self.simple_keys.last_mut() {
                *slot = Some(key);
            }
        }
        Ok(())
    }

    /// Forgets the candidate of this level; an error when it had to be a key.
    fn drop_key(&mut self) -> Result<(), SyntaxError> {
        if let Some(Some(key)) = self.simple_keys.last().copied()
            && key.required
        {
            return Err(error(key.mark, "expected `:` after this key", NO_COLON));
        }
        if let Some(slot) = self.simple_keys.last_mut() {
            *slot = None;
        }
        Ok(())
    }

    /// Opens a block when the column is deeper than the current one.
    fn roll(&mut self, column: i64, place: Option<usize>, kind: Kind, mark: Mark) -> Result<(), SyntaxError> {
        if self.in_flow() || self.indent >= column {
            return Ok(());
        }
        if self.indents.len() >= MAX_LEVELS {
            return Err(error(mark, "nested too deeply", TOO_DEEP));
        }
        self.indents.push(self.indent);
        self.indent = column;
        let token = Token { kind, start: mark, end: mark };
        match place.and_then(|number| number.checked_sub(self.taken)) {
            Some(at) if at <= self.tokens.len() => self.tokens.insert(at, token),
            _ => self.tokens.push_back(token),
        }
        Ok(())
    }

    /// Closes the blocks that are deeper than the column.
    fn unroll(&mut self, column: i64) {
        if self.in_flow() {
            return;
        }
        while self.indent > column {
            self.push(Kind::BlockEnd, self.mark);
            self.indent = self.indents.pop().unwrap_or(-1);
        }
    }

    fn fetch_end(&mut self) -> Result<(), SyntaxError> {
        if self.mark.column != 0 {
            self.mark.column = 0;
            self.mark.line += 1;
        }
        self.unroll(-1);
        self.drop_key()?;
        self.simple_key_allowed = false;
        self.ended = true;
        self.push(Kind::StreamEnd, self.mark);
        Ok(())
    }

    fn fetch_document_indicator(&mut self, kind: Kind) -> Result<(), SyntaxError> {
        self.unroll(-1);
        self.drop_key()?;
        self.simple_key_allowed = false;
        let start = self.mark;
        self.skip_many(3);
        self.push(kind, start);
        Ok(())
    }

    fn fetch_indicator(&mut self, kind: Kind) {
        let start = self.mark;
        self.skip();
        self.push(kind, start);
    }

    fn fetch_flow_start(&mut self, kind: Kind) -> Result<(), SyntaxError> {
        self.save_key()?;
        if self.simple_keys.len() >= MAX_LEVELS {
            return Err(error(self.mark, "nested too deeply", TOO_DEEP));
        }
        self.simple_keys.push(None);
        self.simple_key_allowed = true;
        self.fetch_indicator(kind);
        Ok(())
    }

    fn fetch_flow_end(&mut self, kind: Kind) -> Result<(), SyntaxError> {
        self.drop_key()?;
        if self.in_flow() {
            self.simple_keys.pop();
        }
        self.simple_key_allowed = false;
        self.fetch_indicator(kind);
        Ok(())
    }

    fn fetch_block_entry(&mut self) -> Result<(), SyntaxError> {
        if !self.in_flow() {
            if !self.simple_key_allowed {
                let fix = "begin the list on the line below its key, or put the text in quotes";
                return Err(error(self.mark, "a list item cannot begin here", fix));
            }
            self.roll(self.column(), None, Kind::BlockSequenceStart, self.mark)?;
        }
        self.drop_key()?;
        self.simple_key_allowed = true;
        self.fetch_indicator(Kind::BlockEntry);
        Ok(())
    }

    fn fetch_key(&mut self) -> Result<(), SyntaxError> {
        if !self.in_flow() {
            if !self.simple_key_allowed {
                let fix = "begin it on a line of its own, or put the text in quotes";
                return Err(error(self.mark, "a key cannot begin here", fix));
            }
            self.roll(self.column(), None, Kind::BlockMappingStart, self.mark)?;
        }
        self.drop_key()?;
        self.simple_key_allowed = !self.in_flow();
        self.fetch_indicator(Kind::Key);
        Ok(())
    }

    fn fetch_value(&mut self) -> Result<(), SyntaxError> {
        let level = self.simple_keys.len().saturating_sub(1);
        let candidate = self.simple_keys.get(level).copied().flatten();
        if let Some(key) = candidate
            && self.still_possible(level)?
        {
            let token = Token { kind: Kind::Key, start: key.mark, end: key.mark };
            let at = key.token.saturating_sub(self.taken).min(self.tokens.len());
            self.tokens.insert(at, token);
            let column = i64::try_from(key.mark.column).unwrap_or(i64::MAX);
            self.roll(column, Some(key.token), Kind::BlockMappingStart, key.mark)?;
            if let Some(slot) = self.simple_keys.last_mut() {
                *slot = None;
            }
            self.simple_key_allowed = false;
        } else {
            if !self.in_flow() {
                if !self.simple_key_allowed {
                    let message = "`: ` is not allowed here; put the value in quotes if it belongs to it";
                    let fix = "or begin a new line after the value, indented as the keys around it";
                    return Err(error(self.mark, message, fix));
                }
                self.roll(self.column(), None, Kind::BlockMappingStart, self.mark)?;
            }
            self.simple_key_allowed = !self.in_flow();
        }
        self.fetch_indicator(Kind::Value);
        Ok(())
    }

    fn skip_blanks(&mut self) {
        while is_blank(self.here()) {
            self.skip();
        }
    }

    /// Skips blanks and a comment up to the end of the line.
    fn finish_line(&mut self, what: &str) -> Result<(), SyntaxError> {
        self.skip_blanks();
        if self.here() == '#' {
            while !is_break_or_end(self.here()) {
                self.skip();
            }
        }
        if !is_break_or_end(self.here()) {
            return Err(error(self.mark, what, "begin a new line here, or a comment with ` #`"));
        }
        self.skip_line();
        Ok(())
    }
}

const NO_COLON: &str = "put `: ` after it, or indent the line as part of the value above";
pub(super) const TOO_DEEP: &str = "nest at most 128 levels; a deeper value can be a text in a ConfigMap";

pub(super) fn error(mark: Mark, message: &str, fix: &'static str) -> SyntaxError {
    SyntaxError { mark, message: message.to_owned(), fix }
}

fn early(mark: Mark) -> SyntaxError {
    error(mark, "the text ends too early", "finish the last line, or close what is open")
}

fn tab(mark: Mark) -> SyntaxError {
    error(mark, "a tab cannot indent; use spaces", "put two spaces for each level in its place")
}

mod property;
mod scalar;
