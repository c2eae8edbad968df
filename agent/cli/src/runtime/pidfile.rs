//! `--pid-file`.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use portreeve_oci::Pid;

/// Writes a process id, without a line's end, so that a reader sees all of it or nothing.
///
/// The new file replaces what is at the path: a link there is not followed.
pub(super) fn write(path: &Path, pid: Pid) -> anyhow::Result<()> {
    replace(path, &pid.as_raw_nonzero().to_string()).with_context(|| format!("writing the pid file {}", path.display()))
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o644);
    let written = options
        .open(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = &written
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        // What failed is told; that its rest could not be removed adds nothing.
        let _rest = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_whole_and_replaces_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("pid"), folder.path().join("other"));
        std::fs::write(&other, "untouched").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        write(&path, Pid::from_raw(4711).unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "4711");
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "untouched");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn a_pid_file_that_cannot_be_written_is_named() {
        for path in ["/nowhere/pid", "/"] {
            let error = write(Path::new(path), Pid::from_raw(1).unwrap()).unwrap_err();
            assert!(format!("{error:#}").contains(path), "{error:#}");
        }
    }
}
