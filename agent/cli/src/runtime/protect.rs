//! Keeps the runtime's own executable out of the reach of containers: CVE-2019-5736.

use std::ffi::{CString, OsString};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use anyhow::Context as _;
use portreeve_sys::capability::{self, CAP_SYS_PTRACE};
use portreeve_sys::self_exe::{self, ReadOnlyPlace};
use portreeve_sys::{exec, process};

const LOOKING: &str = "looking at the runtime's own executable, /proc/self/exe: is /proc mounted?";

/// Hides this process, and every clone of it until that executes something, from all who may not look into everybody's;
/// whether it could.
///
/// A clone with users of its own is one that any process of the user who made it may look into, also one without any
/// capability: user_namespaces(7), "Capabilities". A user who is not root has to stay visible, to write the maps of such
/// a clone; so has who may not look into his own clones any more.
pub(super) fn hide() -> anyhow::Result<bool> {
    let capabilities = capability::get().context("reading the runtime's capabilities")?;
    let may = rustix::process::geteuid().is_root() && capabilities.effective & (1 << CAP_SYS_PTRACE) != 0;
    if may {
        process::set_dumpable(false).context("hiding from containers")?;
    }
    Ok(may)
}

/// Returns in a process whose executable cannot be written by way of it: this one, or where it may not be moved the same
/// one executed again, from the beginning, with its id, arguments, environment and descriptors.
///
/// For the verbs that clone a process into a container, before anything is opened. Nothing the caller can set decides
/// whether it is needed: the file itself is looked at, in the second round too.
pub(super) fn protect() -> anyhow::Result<()> {
    if self_exe::is_out_of_reach().context(LOOKING)? {
        return Ok(());
    }
    if ReadOnlyPlace::make().and_then(|place| place.enter()).is_ok() && self_exe::is_out_of_reach().context(LOOKING)? {
        return Ok(());
    }
    execute_again()
}

/// The same for verbs that make a container: where its first process is to move to, if this one is not there, and a
/// process may move.
///
/// To be called by a process that [is hidden](hide). Where nobody else is in the PID namespace in which that process
/// begins, it moves by itself, as its first act. This one stays where it is then: it never enters the container, nobody
/// may look into its clones, and moving takes a twentieth of what `run` takes, as it has to find every page of code anew.
/// Any other container has it move, before it clones.
pub(super) fn protect_newborn() -> anyhow::Result<Option<ReadOnlyPlace>> {
    if self_exe::is_out_of_reach().context(LOOKING)? {
        return Ok(None);
    }
    match ReadOnlyPlace::make() {
        Ok(place) => Ok(Some(place)),
        Err(_) => execute_again().map(|()| None),
    }
}

/// Executes this program again from where containers cannot write it, which takes ten times as long as moving there, and
/// less of a kernel and its user; returns where nothing of a container's can write it anyway.
fn execute_again() -> anyhow::Result<()> {
    let executable = match self_exe::read_only_executable() {
        Ok(executable) => executable,
        Err(_) if self_exe::is_roots_alone().context(LOOKING)? => return Ok(()),
        Err(refused) => self_exe::sealed_copy(Path::new("/proc/self/exe")).with_context(|| {
            format!("copying the runtime's own executable to memory, as it cannot be mounted read-only ({refused})")
        })?,
    };
    let arguments = strings(std::env::args_os())?;
    let environment = strings(std::env::vars_os().map(|(name, value)| {
        let mut variable = name;
        variable.push("=");
        variable.push(value);
        variable
    }))?;
    let error = exec::fexecve(executable.as_fd(), &arguments, &environment);
    Err(error).context("executing the runtime again from where containers cannot write it")
}

fn strings(words: impl Iterator<Item = OsString>) -> anyhow::Result<Vec<CString>> {
    words.map(|word| CString::new(word.into_vec()).context("a word of the command line has a NUL byte")).collect()
}
