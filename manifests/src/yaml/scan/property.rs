//! Scanning what stands before values: directives, anchors, aliases and tags.

use super::{Kind, Mark, Scanner, SyntaxError, error, is_blank, is_blank_or_end, is_name};

const TAG: &str = "remove the tag, or quote a text that begins with `!`";
const TAG_LINE: &str = "remove the line, or write it as `%TAG !x! tag:example.com,2000:`";

impl Scanner {
    pub(super) fn scan_directive(&mut self) -> Result<(), SyntaxError> {
        let start = self.mark;
        self.skip();
        let mut name = String::new();
        while is_name(self.here()) {
            self.read(&mut name);
        }
        if !is_blank_or_end(self.here()) {
            return Err(error(start, "unknown directive", "put a text that begins with `%` in quotes"));
        }
        let kind = match name.as_str() {
            "YAML" => {
                self.skip_blanks();
                let major = self.scan_version_number(start)?;
                if self.here() != '.' {
                    return Err(error(start, "expected `%YAML 1.1`", "remove the line: it is not needed"));
                }
                self.skip();
                let minor = self.scan_version_number(start)?;
                Kind::VersionDirective { major, minor }
            }
            "TAG" => {
                self.skip_blanks();
                let handle = self.scan_tag_handle(true, start)?;
                if !is_blank(self.here()) {
                    return Err(error(start, "expected a blank after the tag handle", TAG_LINE));
                }
                self.skip_blanks();
                let prefix = self.scan_tag_uri(true, None, start)?;
                if !is_blank_or_end(self.here()) {
                    return Err(error(start, "expected a blank after the tag prefix", TAG_LINE));
                }
                Kind::TagDirective { handle, prefix }
            }
            _ => return Err(error(start, "unknown directive", "put a text that begins with `%` in quotes")),
        };
        self.push(kind, start);
        self.finish_line("expected the end of the line after a directive")
    }

    fn scan_version_number(&mut self, start: Mark) -> Result<u32, SyntaxError> {
        let mut value: u32 = 0;
        let mut length = 0;
        while let Some(digit) = self.here().to_digit(10) {
            length += 1;
            if length > 9 {
                return Err(error(start, "the version number is too long", "remove the line: it is not needed"));
            }
            value = value * 10 + digit;
            self.skip();
        }
        if length == 0 {
            return Err(error(start, "expected a version number", "remove the line: it is not needed"));
        }
        Ok(value)
    }

    pub(super) fn scan_anchor(&mut self) -> Result<(), SyntaxError> {
        let start = self.mark;
        let is_alias = self.here() == '*';
        self.skip();
        let mut name = String::new();
        while is_name(self.here()) {
            self.read(&mut name);
        }
        let ends = is_blank_or_end(self.here()) || matches!(self.here(), '?' | ':' | ',' | ']' | '}' | '%' | '@' | '`');
        if name.is_empty() || !ends {
            let (message, fix) = if is_alias {
                (
                    "an alias is `*` and a name of letters and digits; a value that begins with `*` needs quotes",
                    "for example \"*.example.com\"",
                )
            } else {
                (
                    "an anchor is `&` and a name of letters and digits; a value that begins with `&` needs quotes",
                    "for example \"&value\"",
                )
            };
            return Err(error(start, message, fix));
        }
        self.push(if is_alias { Kind::Alias(name) } else { Kind::Anchor(name) }, start);
        Ok(())
    }

    pub(super) fn scan_tag(&mut self) -> Result<(), SyntaxError> {
        let start = self.mark;
        let (handle, suffix) = if self.at(1) == '<' {
            self.skip_many(2);
            let suffix = self.scan_tag_uri(false, None, start)?;
            if self.here() != '>' {
                return Err(error(start, "expected `>` at the end of the tag", TAG));
            }
            self.skip();
            (String::new(), suffix)
        } else {
            let handle = self.scan_tag_handle(false, start)?;
            if handle.len() >= 2 && handle.starts_with('!') && handle.ends_with('!') {
                let suffix = self.scan_tag_uri(false, None, start)?;
                (handle, suffix)
            } else {
                let suffix = self.scan_tag_uri(false, Some(&handle), start)?;
                if suffix.is_empty() { (String::new(), "!".to_owned()) } else { ("!".to_owned(), suffix) }
            }
        };
        if !is_blank_or_end(self.here()) {
            return Err(error(start, "expected a blank after the tag", TAG));
        }
        self.push(Kind::Tag { handle, suffix }, start);
        Ok(())
    }

    fn scan_tag_handle(&mut self, directive: bool, start: Mark) -> Result<String, SyntaxError> {
        if self.here() != '!' {
            return Err(error(start, "expected `!`", TAG));
        }
        let mut handle = String::new();
        self.read(&mut handle);
        while is_name(self.here()) {
            self.read(&mut handle);
        }
        if self.here() == '!' {
            self.read(&mut handle);
        } else if directive && handle != "!" {
            return Err(error(start, "expected `!` at the end of the tag handle", TAG_LINE));
        }
        Ok(handle)
    }

    fn scan_tag_uri(&mut self, directive: bool, head: Option<&str>, start: Mark) -> Result<String, SyntaxError> {
        let mut uri = String::new();
        let mut has_tag = false;
        if let Some(head) = head
            && head.len() > 1
        {
            uri.push_str(head.get(1..).unwrap_or_default());
        }
        while is_name(self.here())
            || matches!(
                self.here(),
                ';' | '/'
                    | '?'
                    | ':'
                    | '@'
                    | '&'
                    | '='
                    | '+'
                    | '$'
                    | '.'
                    | '!'
                    | '~'
                    | '*'
                    | '\''
                    | '('
                    | ')'
                    | '%'
                    | ','
                    | '['
                    | ']'
            )
        {
            if self.here() == '%' {
                self.scan_uri_escape(&mut uri, start)?;
            } else {
                self.read(&mut uri);
            }
            has_tag = true;
        }
        if !has_tag && uri.is_empty() && (directive || head.is_none()) {
            return Err(error(start, "expected a tag", TAG));
        }
        Ok(uri)
    }

    fn scan_uri_escape(&mut self, uri: &mut String, start: Mark) -> Result<(), SyntaxError> {
        let mut bytes = Vec::new();
        while self.here() == '%' {
            let high = self.at(1).to_digit(16);
            let low = self.at(2).to_digit(16);
            let (Some(high), Some(low)) = (high, low) else {
                return Err(error(start, "`%` in a tag needs two hexadecimal digits", TAG));
            };
            bytes.push(u8::try_from(high * 16 + low).unwrap_or(u8::MAX));
            self.skip_many(3);
        }
        let text = String::from_utf8(bytes).map_err(|_| error(start, "the tag's escapes are no UTF-8", TAG))?;
        uri.push_str(&text);
        Ok(())
    }
}
