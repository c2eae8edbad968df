//! `list`.

use std::fmt::Write as _;

use anyhow::Context as _;
use portreeve_oci::lifecycle::LifecycleError;

use super::Runtime;
use super::arguments::{Flag, Usage, Verb};
use super::state::Printed;

pub(super) const USAGE: Usage = Usage {
    name: "list",
    operands: "",
    about: "print all containers",
    flags: &[&[
        Flag::value("format", "FORMAT", "table (default) or json").short('f'),
        Flag::switch("quiet", "print ids only").short('q'),
    ]],
    count: 0..=0,
    ends_flags: false,
    read: |given| {
        let form = match given.text("format")? {
            _ if given.has("quiet")? => Form::Quiet,
            None | Some("table" | "") => Form::Table,
            Some("json") => Form::Json,
            Some(other) => return Err(given.wrong(format!("--format is table or json, not {other:?}"))),
        };
        Ok(Verb::List(List { form }))
    },
};

/// Arguments of `list`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct List {
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Table,
    Json,
    Quiet,
}

impl List {
    pub(super) fn run(self, runtime: &Runtime) -> anyhow::Result<()> {
        let root = runtime.root()?;
        let ids = root.ids()?;
        if self.form == Form::Quiet {
            return super::print(&ids.iter().map(|id| format!("{}\n", id.as_str())).collect::<String>());
        }
        let mut all = Vec::new();
        for id in &ids {
            match root.load(id).map_err(anyhow::Error::from).and_then(|container| Printed::of(&container)) {
                Ok(printed) => all.push(printed),
                // Deleted since its name was read.
                Err(error) if matches!(error.downcast_ref(), Some(LifecycleError::NotFound { .. })) => {}
                Err(error) => runtime.log.warning(&format!("container {} is left out: {error:#}", id.as_str())),
            }
        }
        if self.form == Form::Json {
            let text = serde_json::to_string(&all).context("writing the list as JSON")?;
            return super::print(&format!("{text}\n"));
        }
        let heading = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
        let rows = all.into_iter().map(|one| {
            let bundle = one.bundle.display().to_string();
            [one.id, one.pid.to_string(), one.status, bundle, one.created, one.owner]
        });
        super::print(&table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))
    }
}

/// Rows with columns as wide as their widest cell, three apart.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:<width$}   ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["ID", "PID"], ["long-name", "7"], ["x", "1234"]].map(|row| row.map(str::to_owned));
        assert_eq!(super::table(&rows), "ID          PID\nlong-name   7\nx           1234\n");
    }
}
