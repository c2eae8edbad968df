//! Keeps the runtime's own executable out of the reach of containers: CVE-2019-5736.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use anyhow::Context as _;
use portreeve_sys::{exec, self_exe};

/// Returns in a process whose executable cannot be written by way of it: this one, or where it may not be moved the same
/// one executed again, from the beginning, with its id, arguments, environment and descriptors.
///
/// The answer, where there is one, holds the mount together that it was moved to, and takes its time to drop.
///
/// For the verbs that clone a process into a container, before anything is opened. Nothing the caller can set decides
/// whether it is needed: the file itself is looked at, in the second round too.
pub(super) fn protect() -> anyhow::Result<Option<OwnedFd>> {
    let looking = "looking at the runtime's own executable, /proc/self/exe: is /proc mounted?";
    if self_exe::is_out_of_reach().context(looking)? {
        return Ok(None);
    }
    // Where this is refused, executing it again takes ten times as long, and less of a kernel and its user.
    if let Ok(mount) = self_exe::move_to_read_only()
        && self_exe::is_out_of_reach().context(looking)?
    {
        return Ok(Some(mount));
    }
    let executable = match self_exe::read_only_executable() {
        Ok(executable) => executable,
        Err(_) if self_exe::is_roots_alone().context(looking)? => return Ok(None),
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
