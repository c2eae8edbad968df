//! CRIU, which the runtime drives to checkpoint and restore.

use std::path::PathBuf;
use std::process::Command;

use crate::foreign::Peers;
use crate::measure::installed;
use crate::{skipped, skipped_without_root};

/// The program: `PORTREEVE_CRIU`, else the one of `PORTREEVE_PEERS`, else that of PATH. Nothing, said loudly, where
/// there is none, or where it says that this kernel does not have what it takes.
#[must_use]
pub fn criu(test: &str) -> Option<PathBuf> {
    if skipped_without_root(test) {
        return None;
    }
    if std::env::var_os("PORTREEVE_GUEST").is_some_and(|guest| guest == "uml") {
        skipped(test, "User Mode Linux's processes cannot be traced as criu does it: see the run in qemu");
        return None;
    }
    let fetched = || Peers::find().map(|peers| peers.criu());
    let Some(program) =
        std::env::var_os("PORTREEVE_CRIU").map(PathBuf::from).or_else(fetched).or_else(|| installed("criu"))
    else {
        skipped(test, "criu is not there: PORTREEVE_PEERS=$(e2e/peers) fetches it, PORTREEVE_CRIU names it");
        return None;
    };
    let answer = match Command::new(&program).arg("check").output() {
        Ok(answer) => answer,
        Err(error) => {
            skipped(test, &format!("{} does not run here: {error}", program.display()));
            return None;
        }
    };
    if !answer.status.success() {
        let said = String::from_utf8_lossy(&answer.stderr).into_owned() + &String::from_utf8_lossy(&answer.stdout);
        let why =
            said.lines().rfind(|line| line.contains("Error")).or_else(|| said.lines().last()).unwrap_or("nothing");
        skipped(test, &format!("criu says that this kernel does not have what it takes: {why}"));
        return None;
    }
    Some(program)
}
