//! What is printed: tables as kubectl prints them, JSON, YAML; colour on a terminal only.

use std::io::{self, IsTerminal, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A table as the agent makes it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Table {
    #[serde(default)]
    pub(crate) metadata: ListMeta,
    #[serde(default)]
    pub(crate) column_definitions: Option<Vec<ColumnDefinition>>,
    #[serde(default)]
    pub(crate) rows: Vec<TableRow>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListMeta {
    #[serde(default)]
    pub(crate) resource_version: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ColumnDefinition {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) priority: i32,
}

#[derive(Debug, Deserialize)]
pub(crate) struct TableRow {
    pub(crate) cells: Vec<Value>,
    #[serde(default)]
    pub(crate) object: Value,
}

impl TableRow {
    /// A field of the object's metadata.
    pub(crate) fn meta(&self, field: &str) -> &str {
        self.object.pointer(&format!("/metadata/{field}")).and_then(Value::as_str).unwrap_or_default()
    }
}

/// The words of a cell.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "<none>".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Prints rows under headers in aligned columns, remembering the widths for rows that come later.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    headers: Vec<String>,
    widths: Vec<usize>,
    header_done: bool,
}

/// The space between columns, as kubectl has it.
const GAP: usize = 3;

impl Columns {
    /// Columns with these headers, in capitals; with `silent` the headers themselves do not show.
    pub(crate) fn new<T: AsRef<str>>(headers: impl IntoIterator<Item = T>, silent: bool) -> Columns {
        let headers: Vec<String> = headers.into_iter().map(|header| header.as_ref().to_uppercase()).collect();
        Columns { widths: vec![0; headers.len()], headers, header_done: silent }
    }

    /// Columns whose headers keep their case.
    pub(crate) fn verbatim(headers: Vec<&str>, silent: bool) -> Columns {
        let headers: Vec<String> = headers.into_iter().map(str::to_owned).collect();
        Columns { widths: vec![0; headers.len()], headers, header_done: silent }
    }

    /// Prints rows, and before the first ones the headers.
    pub(crate) fn print(&mut self, out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
        let with_header = !self.header_done;
        for (index, width) in self.widths.iter_mut().enumerate() {
            let cells = rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count());
            let header = self.headers.get(index).map(|header| header.chars().count()).filter(|_| with_header);
            *width = cells.chain(header).fold(*width, usize::max);
        }
        let colour = colours();
        if with_header {
            self.header_done = true;
            let headers = self.headers.clone();
            self.line(out, &headers, false)?;
        }
        rows.iter().try_for_each(|row| self.line(out, row, colour))?;
        out.flush()
    }

    fn line(&self, out: &mut dyn Write, cells: &[String], colour: bool) -> io::Result<()> {
        let mut line = String::new();
        for (index, text) in cells.iter().enumerate() {
            // What comes from a container or a file must not steer the terminal.
            let text: String = text.chars().map(|one| if one.is_control() { ' ' } else { one }).collect();
            let header = self.headers.get(index).map(String::as_str).unwrap_or_default();
            match paint(header, &text).filter(|_| colour) {
                Some(code) => line.push_str(&format!("\u{1b}[{code}m{text}\u{1b}[0m")),
                None => line.push_str(&text),
            }
            if index + 1 < cells.len() {
                let width = self.widths.get(index).copied().unwrap_or_default();
                line.push_str(&" ".repeat(width.saturating_sub(text.chars().count()) + GAP));
            }
        }
        writeln!(out, "{}", line.trim_end())
    }
}

/// The colour of a word in a column that judges.
fn paint(header: &str, word: &str) -> Option<u8> {
    const RED: u8 = 31;
    const GREEN: u8 = 32;
    const YELLOW: u8 = 33;
    if !matches!(header, "STATUS" | "STATE" | "TYPE" | "COST") {
        return None;
    }
    Some(match word {
        "Running" | "Ready" | "Completed" | "Succeeded" | "Active" | "live" => GREEN,
        "Pending" | "ContainerCreating" | "PodInitializing" | "Terminating" | "Warning" | "NotReady" | "Starting"
        | "in-place" | "restart" => YELLOW,
        "Normal" => return None,
        word if word.starts_with("Init:") && word.ends_with(|last: char| last.is_ascii_digit()) => YELLOW,
        "" | "<none>" => return None,
        _ => RED,
    })
}

/// Whether standard output takes colours.
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints a document as JSON, with kubectl's four spaces.
pub(crate) fn json(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut text = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    text.push(b'\n');
    out.write_all(&text)?;
    out.flush()?;
    Ok(())
}

/// Prints a document as YAML.
pub(crate) fn yaml(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    out.write_all(portreeve_manifests::to_yaml(&serde_json::to_value(value)?).as_bytes())?;
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(columns: &mut Columns, rows: &[&[&str]]) -> String {
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect();
        let mut out = Vec::new();
        columns.print(&mut out, &rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_three_spaces_apart_and_lines_end_with_their_text() {
        let mut columns = Columns::new(["Name", "Ready", "Age"], false);
        let text = printed(&mut columns, &[&["web", "1/1", "5m12s"], &["database", "0/1", ""]]);
        assert_eq!(text, "NAME       READY   AGE\nweb        1/1     5m12s\ndatabase   0/1\n");
    }

    #[test]
    fn rows_that_come_later_keep_the_columns_and_repeat_no_header() {
        let mut columns = Columns::new(["Name", "Age"], false);
        printed(&mut columns, &[&["database", "1s"]]);
        assert_eq!(printed(&mut columns, &[&["web", "2s"]]), "web        2s\n");
    }

    #[test]
    fn a_cell_cannot_steer_the_terminal() {
        let mut columns = Columns::new(["Message"], true);
        assert_eq!(printed(&mut columns, &[&["\u{1b}[2Jgone\nline"]]), " [2Jgone line\n");
    }

    #[test]
    fn json_has_four_spaces() {
        let mut out = Vec::new();
        json(&mut out, &serde_json::json!({ "a": 1 })).unwrap();
        assert_eq!(out, b"{\n    \"a\": 1\n}\n");
    }
}
