//! Scanning scalars: blocks, quotes and plain text.

use super::{
    END, Kind, Mark, Scanner, Style, SyntaxError, error, is_blank, is_blank_or_end, is_break, is_break_or_end, tab,
};

const UNCLOSED: &str = "close it with the quote that it begins with; `''` is a quote within single quotes";

/// What to do with the line breaks at the end of a block scalar.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chomp {
    Strip,
    Clip,
    Keep,
}

impl Scanner {
    /// `|` and `>`.
    pub(super) fn scan_block_scalar(&mut self, literal: bool) -> Result<(), SyntaxError> {
        let start = self.mark;
        self.skip();
        let mut chomp = Chomp::Clip;
        let mut increment: i64 = 0;
        // The indicators for chomping and indentation, in either order, each at most once.
        let mut seen_chomp = false;
        for _ in 0..2 {
            match self.here() {
                '+' | '-' if !seen_chomp => {
                    chomp = if self.here() == '+' { Chomp::Keep } else { Chomp::Strip };
                    seen_chomp = true;
                    self.skip();
                }
                '0' if increment == 0 => {
                    let fix = "leave the digit out: the first line says the indentation";
                    return Err(error(start, "a block's indentation is between 1 and 9", fix));
                }
                digit if digit.is_ascii_digit() && increment == 0 => {
                    increment = i64::from(digit.to_digit(10).unwrap_or(1));
                    self.skip();
                }
                _ => break,
            }
        }
        self.finish_line("expected the end of the line after `|` or `>`")?;

        let mut indent = if increment > 0 { self.indent.max(0) + increment } else { 0 };
        let mut text = String::new();
        let mut breaks = String::new();
        let mut end = self.mark;
        self.scan_block_breaks(&mut indent, &mut breaks, start, &mut end)?;

        let mut leading_break = String::new();
        let mut leading_blank = false;
        while self.column() == indent && self.here() != END {
            let trailing_blank = is_blank(self.here());
            if !literal && leading_break.starts_with('\n') && !leading_blank && !trailing_blank {
                // Folding: one break becomes a space, more lose one.
                if breaks.is_empty() {
                    text.push(' ');
                }
                leading_break.clear();
            } else {
                text.push_str(&leading_break);
                leading_break.clear();
            }
            text.push_str(&breaks);
            breaks.clear();

            leading_blank = is_blank(self.here());
            while !is_break_or_end(self.here()) {
                self.read(&mut text);
            }
            self.read_line(&mut leading_break);
            self.scan_block_breaks(&mut indent, &mut breaks, start, &mut end)?;
        }
        if chomp != Chomp::Strip {
            text.push_str(&leading_break);
        }
        if chomp == Chomp::Keep {
            text.push_str(&breaks);
        }
        self.push_scalar(text, Style::Quoted, start);
        Ok(())
    }

    /// Takes indentation and empty lines; finds the block's indentation when it is not known.
    fn scan_block_breaks(
        &mut self,
        indent: &mut i64,
        breaks: &mut String,
        start: Mark,
        end: &mut Mark,
    ) -> Result<(), SyntaxError> {
        *end = self.mark;
        let mut deepest = 0;
        loop {
            while (*indent == 0 || self.column() < *indent) && self.here() == ' ' {
                self.skip();
            }
            deepest = deepest.max(self.column());
            if (*indent == 0 || self.column() < *indent) && self.here() == '\t' {
                return Err(tab(if self.mark.index == 0 { start } else { self.mark }));
            }
            if !is_break(self.here()) {
                break;
            }
            self.read_line(breaks);
            *end = self.mark;
        }
        if *indent == 0 {
            *indent = deepest.max(self.indent + 1).max(1);
        }
        Ok(())
    }

    /// `'...'` and `"..."`.
    pub(super) fn scan_quoted(&mut self, quote: char) -> Result<(), SyntaxError> {
        let start = self.mark;
        let single = quote == '\'';
        self.skip();
        let mut text = String::new();
        loop {
            if self.at_document_indicator('-') || self.at_document_indicator('.') {
                let message = "the quoted text is not closed before the document ends";
                return Err(error(start, message, UNCLOSED));
            }
            if self.here() == END {
                return Err(error(start, "the quoted text is not closed", UNCLOSED));
            }
            let mut leading_blanks = false;
            while !is_blank_or_end(self.here()) {
                match self.here() {
                    '\'' if single && self.at(1) == '\'' => {
                        text.push('\'');
                        self.skip_many(2);
                    }
                    c if c == quote => break,
                    '\\' if !single && is_break(self.at(1)) => {
                        self.skip();
                        self.skip_line();
                        leading_blanks = true;
                        break;
                    }
                    '\\' if !single => self.scan_escape(&mut text)?,
                    _ => self.read(&mut text),
                }
            }
            if self.here() == quote {
                break;
            }
            self.scan_folded_blanks(&mut text, leading_blanks);
        }
        self.skip();
        self.push_scalar(text, Style::Quoted, start);
        Ok(())
    }

    /// Takes blanks and breaks between the words of a quoted scalar, and folds them.
    fn scan_folded_blanks(&mut self, text: &mut String, mut leading_blanks: bool) {
        let mut whitespace = String::new();
        let mut leading_break = String::new();
        let mut trailing_breaks = String::new();
        while is_blank(self.here()) || is_break(self.here()) {
            if is_blank(self.here()) {
                if leading_blanks {
                    self.skip();
                } else {
                    self.read(&mut whitespace);
                }
            } else if leading_blanks {
                self.read_line(&mut trailing_breaks);
            } else {
                whitespace.clear();
                self.read_line(&mut leading_break);
                leading_blanks = true;
            }
        }
        if leading_blanks {
            fold(text, &leading_break, &trailing_breaks);
        } else {
            text.push_str(&whitespace);
        }
    }

    fn scan_escape(&mut self, text: &mut String) -> Result<(), SyntaxError> {
        let start = self.mark;
        let (c, hex) = match self.at(1) {
            '0' => ('\0', 0),
            'a' => ('\u{7}', 0),
            'b' => ('\u{8}', 0),
            't' | '\t' => ('\t', 0),
            'n' => ('\n', 0),
            'v' => ('\u{b}', 0),
            'f' => ('\u{c}', 0),
            'r' => ('\r', 0),
            'e' => ('\u{1b}', 0),
            ' ' => (' ', 0),
            '"' => ('"', 0),
            '\'' => ('\'', 0),
            '\\' => ('\\', 0),
            'N' => ('\u{85}', 0),
            '_' => ('\u{a0}', 0),
            'L' => ('\u{2028}', 0),
            'P' => ('\u{2029}', 0),
            'x' => (END, 2),
            'u' => (END, 4),
            'U' => (END, 8),
            _ => {
                let message = "unknown escape in double quotes; write `\\\\` for a backslash or use single quotes";
                return Err(error(start, message, "for example '\\d+' instead of \"\\d+\""));
            }
        };
        self.skip_many(2);
        if hex == 0 {
            text.push(c);
            return Ok(());
        }
        let mut value: u32 = 0;
        for place in 0..hex {
            let short =
                || error(start, "the escape needs more hexadecimal digits", "as in \\x41, \\u00e9 or \\U0001f600");
            let digit = self.at(place).to_digit(16).ok_or_else(short)?;
            value = (value << 4) | digit;
        }
        let unknown = || error(start, "the escape names no Unicode character", "write the character itself");
        let c = char::from_u32(value).ok_or_else(unknown)?;
        text.push(c);
        self.skip_many(hex);
        Ok(())
    }

    /// Text without quotes.
    pub(super) fn scan_plain(&mut self) -> Result<(), SyntaxError> {
        let start = self.mark;
        let mut end = start;
        let indent = self.indent + 1;
        let mut text = String::new();
        let mut whitespace = String::new();
        let mut leading_break = String::new();
        let mut trailing_breaks = String::new();
        let mut leading_blanks = false;
        loop {
            if self.at_document_indicator('-') || self.at_document_indicator('.') || self.here() == '#' {
                break;
            }
            while !is_blank_or_end(self.here()) {
                let c = self.here();
                if (c == ':' && is_blank_or_end(self.at(1)))
                    || (self.in_flow() && matches!(c, ',' | '?' | '[' | ']' | '{' | '}'))
                {
                    break;
                }
                if leading_blanks {
                    fold(&mut text, &leading_break, &trailing_breaks);
                    leading_break.clear();
                    trailing_breaks.clear();
                    leading_blanks = false;
                    whitespace.clear();
                } else if !whitespace.is_empty() {
                    text.push_str(&whitespace);
                    whitespace.clear();
                }
                self.read(&mut text);
                end = self.mark;
            }
            if !is_blank(self.here()) && !is_break(self.here()) {
                break;
            }
            while is_blank(self.here()) || is_break(self.here()) {
                if is_blank(self.here()) {
                    if leading_blanks && self.column() < indent && self.here() == '\t' {
                        return Err(tab(self.mark));
                    }
                    if leading_blanks {
                        self.skip();
                    } else {
                        self.read(&mut whitespace);
                    }
                } else if leading_blanks {
                    self.read_line(&mut trailing_breaks);
                } else {
                    whitespace.clear();
                    self.read_line(&mut leading_break);
                    leading_blanks = true;
                }
            }
            if !self.in_flow() && self.column() < indent {
                break;
            }
        }
        let token = super::Token { kind: Kind::Scalar { text, style: Style::Plain }, start, end };
        self.tokens.push_back(token);
        if leading_blanks {
            self.simple_key_allowed = true;
        }
        Ok(())
    }

    fn push_scalar(&mut self, text: String, style: Style, start: Mark) {
        self.push(Kind::Scalar { text, style }, start);
    }
}

/// Joins two lines: one break becomes a space, of more the first is dropped.
fn fold(text: &mut String, leading_break: &str, trailing_breaks: &str) {
    if leading_break.starts_with('\n') {
        if trailing_breaks.is_empty() {
            text.push(' ');
        } else {
            text.push_str(trailing_breaks);
        }
    } else {
        text.push_str(leading_break);
        text.push_str(trailing_breaks);
    }
}
