//! What often stands in a text and is no YAML: templates, merge conflicts, blanks that only look like spaces.
//!
//! The scanner would name the consequence (a key without a colon, a list that cannot begin here); a reader needs the cause.

use super::Broken;
use crate::problem::Position;

/// What to do about a template.
pub(crate) const UNFILLED: &str = "fill it in first, as `helm template` does";
const UNMERGED: &str = "keep one of the two sides, and remove the lines that begin with <<<<<<<, ======= and >>>>>>>";
/// What to do about a character that only looks like a space.
pub(crate) const RETYPE: &str = "type plain spaces in the place of all such characters of the file";

/// The first character that looks like a space, or like nothing, and is text to YAML.
pub(crate) fn false_blank(text: &str) -> Option<char> {
    text.chars().find(|c| is_false_blank(*c))
}

fn is_false_blank(c: char) -> bool {
    // Whitespace of Unicode that is none of YAML's own (which its line breaks are), and what has no width.
    let line_break = matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}');
    (c.is_whitespace() && !c.is_ascii() && !line_break) || matches!(c, '\u{200b}' | '\u{2060}' | '\u{feff}')
}

/// Says what a false blank is.
pub(crate) fn about_blank(c: char) -> String {
    let name = if c == '\u{a0}' { "a no-break space" } else { "an invisible character" };
    format!("{name} (U+{:04X}) stands where YAML takes plain spaces only", u32::from(c))
}

/// Whether a text holds a template's action.
pub(crate) fn has_template(text: &str) -> bool {
    text.find("{{").is_some_and(|at| text.get(at..).is_some_and(|rest| rest.contains("}}")))
}

/// The cause in the place of the consequence, where the text shows it.
pub(super) fn explain(text: &str, broken: Broken) -> Broken {
    let at = usize::try_from(broken.position.line.saturating_sub(1)).unwrap_or(usize::MAX);
    let lines = || text.lines().enumerate();
    // A conflict's first line can be no YAML, wherever the reading broke off.
    if let Some((number, _)) = lines().find(|(_, line)| line.starts_with("<<<<<<< ")) {
        return cause(number, 0, "a merge conflict was left in the file".to_owned(), UNMERGED);
    }
    let line = lines().nth(at).map_or("", |(_, line)| line);
    if is_side_of_conflict(line) {
        return cause(at, 0, "a line of a merge conflict was left in the file".to_owned(), UNMERGED);
    }
    if let Some((column, c)) = blank_of_structure(line) {
        return cause(at, column, about_blank(c), RETYPE);
    }
    // A template alone on its line is a value to YAML, and what follows it is one too many.
    let before = lines().take(at).filter(|(_, line)| !line.trim().is_empty()).last();
    for (number, line) in [(at, line)].into_iter().chain(before) {
        if let Some(column) = template(line) {
            return cause(number, column, "a template that was not filled in begins here".to_owned(), UNFILLED);
        }
    }
    broken
}

fn cause(line: usize, column: usize, message: String, fix: &'static str) -> Broken {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1);
    Broken { position: Position { line: number(line), column: number(column) }, message, fix, over_limit: false }
}

fn is_side_of_conflict(line: &str) -> bool {
    line.trim_end() == "=======" || [">>>>>>> ", "||||||| "].iter().any(|marker| line.starts_with(marker))
}

/// Where an action of a template stands without quotes in the place of a line or a value.
fn template(line: &str) -> Option<usize> {
    let start = ["{{", "{%"].iter().filter_map(|open| line.find(open)).min()?;
    let before = line.get(..start)?;
    let in_place = before.trim_end();
    let begins = in_place.is_empty() || in_place.ends_with([':', '-']);
    begins.then(|| before.chars().count())
}

/// A false blank in the indentation, or right behind the `:` or `-` that needs a space.
fn blank_of_structure(line: &str) -> Option<(usize, char)> {
    let mut former = ' ';
    let mut indents = true;
    for (column, c) in line.chars().enumerate() {
        if is_false_blank(c) && (indents || matches!(former, ':' | '-')) {
            return Some((column, c));
        }
        indents = indents && c.is_whitespace();
        former = c;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_counts_where_a_value_or_a_line_begins() {
        for (line, expected) in [
            ("{{- if .Values.on }}", Some(0)),
            ("  image: {{ .Values.image }}:{{ .Values.tag }}", Some(9)),
            ("  - {% for a in b %}", Some(4)),
            ("  run: echo '{{ .State }}' x: y", None),
            ("  name: web", None),
        ] {
            assert_eq!(template(line), expected, "{line}");
        }
    }

    #[test]
    fn a_false_blank_counts_where_yaml_needs_a_space() {
        assert_eq!(blank_of_structure("  \u{a0}name: a"), Some((2, '\u{a0}')));
        assert_eq!(blank_of_structure("image:\u{a0}a"), Some((6, '\u{a0}')));
        assert_eq!(blank_of_structure("  -\u{3000}name: a"), Some((3, '\u{3000}')));
        assert_eq!(blank_of_structure("text: a\u{a0}b"), None);
    }
}
