//! `ps`.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, anyhow};

use super::Runtime;
use super::arguments::{Flag, Usage, Verb};

pub(super) const USAGE: Usage = Usage {
    name: "ps",
    operands: "ID [PS-OPTION]...",
    about: "print the processes of a container",
    flags: &[&[Flag::value("format", "FORMAT", "table (default, by the host's ps) or json").short('f')]],
    count: 1..=usize::MAX,
    ends_flags: true,
    read: |mut given| {
        let json = match given.text("format")? {
            None | Some("table" | "") => false,
            Some("json") => true,
            Some(other) => return Err(given.wrong(format!("--format is table or json, not {other:?}"))),
        };
        Ok(Verb::Ps(Ps { json, id: given.id()?, options: given.rest("PS-OPTION")? }))
    },
};

/// Arguments of `ps`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ps {
    id: String,
    json: bool,
    options: Vec<String>,
}

impl Ps {
    pub(super) fn run(self, runtime: &Runtime) -> anyhow::Result<()> {
        let processes = runtime.container(&self.id)?.processes()?;
        let processes: BTreeSet<i32> = processes.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        if self.json {
            let text = serde_json::to_string(&processes).context("writing the processes as JSON")?;
            return super::print(&format!("{text}\n"));
        }
        let options = if self.options.is_empty() { vec!["-ef".to_owned()] } else { self.options };
        let output = Command::new("ps")
            .args(&options)
            .output()
            .context("running ps, which prints the table (--format json needs no ps)")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(anyhow!("`ps {}` ended with {}: {}", options.join(" "), output.status, said.trim_end()));
        }
        super::print(&of_processes(&String::from_utf8_lossy(&output.stdout), &processes)?)
    }
}

/// The heading, and those lines whose column `PID` is one of `processes`.
fn of_processes(table: &str, processes: &BTreeSet<i32>) -> anyhow::Result<String> {
    let heading = table.lines().next().unwrap_or_default();
    let column = heading.split_whitespace().position(|title| title == "PID");
    let column = column.ok_or_else(|| anyhow!("ps prints no column PID with these options"))?;
    let is_of = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse().ok());
        pid.is_some_and(|pid| processes.contains(&pid))
    };
    let lines = std::iter::once(heading).chain(table.lines().skip(1).filter(is_of));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_other_processes_are_left_out() {
        let table = "UID   PID  PPID CMD\nroot    1     0 init 7\nroot    7     1 sh\nroot   17     7 sleep\n";
        let printed = of_processes(table, &BTreeSet::from([7])).unwrap();
        assert_eq!(printed, "UID   PID  PPID CMD\nroot    7     1 sh\n");
        assert!(of_processes("UID CMD\n", &BTreeSet::new()).is_err());
    }
}
