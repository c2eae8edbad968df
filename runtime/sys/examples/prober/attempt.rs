//! One operation, performed for how it ends.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use serde_json::{Value, json};

/// Performs `operation`, words with blanks between, and says what came of it.
///
/// `{"try": operation, "errno": null, "value": ...}`; the errno is a name of errno(3) where it has one here.
pub(crate) fn attempt(operation: &str) -> Value {
    let words: Vec<_> = operation.split(' ').collect();
    match perform(&words) {
        Ok(value) => json!({ "try": operation, "errno": null, "value": value }),
        Err(error) => json!({ "try": operation, "errno": name(&error), "value": null }),
    }
}

/// The name of the calling thread's errno.
pub(crate) fn last_errno() -> String {
    name(&io::Error::last_os_error())
}

fn perform(words: &[&str]) -> io::Result<Value> {
    match *words {
        ["open", path, how] => {
            let mut options = OpenOptions::new();
            options.read(how.contains('r')).write(how.contains('w')).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK);
            if how.contains('c') {
                options.write(true).create_new(true);
            }
            options.open(path).map(|_| Value::Null)
        }
        ["read", path] => std::fs::read(path).map(|bytes| json!(String::from_utf8_lossy(&bytes))),
        ["write", path, ref text @ ..] => {
            let mut file = OpenOptions::new().write(true).open(path)?;
            io::Write::write_all(&mut file, text.join(" ").as_bytes()).map(|()| Value::Null)
        }
        ["create", path, ref text @ ..] => std::fs::write(path, text.join(" ")).map(|()| Value::Null),
        ["list", path] => std::fs::read_dir(path).map(|_| super::report::entries(path)),
        ["stat", path] => stat(path),
        ["readlink", path] => std::fs::read_link(path).map(|target| json!(target.to_string_lossy())),
        ["mkdir", path] => std::fs::create_dir(path).map(|()| Value::Null),
        ["unlink", path] => std::fs::remove_file(path).map(|()| Value::Null),
        ["symlink", target, path] => std::os::unix::fs::symlink(target, path).map(|()| Value::Null),
        ["chdir", path] => std::env::set_current_dir(path).map(|()| Value::Null),
        ["chown", path, uid, gid] => {
            std::os::unix::fs::chown(path, Some(number(uid)?), Some(number(gid)?)).map(|()| Value::Null)
        }
        ["mknod", path, kind, major, minor] => mknod(path, kind, number(major)?, number(minor)?),
        ["mount", source, target, kind, flags] => mount(source, target, kind, number(flags)?),
        // MS_BIND and MS_REMOUNT alone: what was read-only becomes writable.
        ["writable", path] => mount("none", path, "none", libc::MS_BIND | libc::MS_REMOUNT),
        ["umount", path] => {
            let path = c_string(path)?;
            // SAFETY: the path is a string that lives through the call.
            check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }.into())
        }
        // SAFETY: the call takes a number.
        ["unshare", kind] => check(unsafe { libc::unshare(namespace(kind)?) }.into()),
        ["setns", path] => {
            let file = std::fs::File::open(path)?;
            // SAFETY: the descriptor is open.
            check(unsafe { libc::setns(file.as_raw_fd(), 0) }.into())
        }
        ["chroot", path] => std::os::unix::fs::chroot(path).map(|()| Value::Null),
        ["exec", path] => std::process::Command::new(path)
            .args(["exit", "0"])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .status()
            .map(|status| json!(status.code())),
        ["kill", pid, signal] => {
            let (pid, signal) = (number(pid)?, number(signal)?);
            // SAFETY: the call takes numbers.
            check(unsafe { libc::kill(pid, signal) }.into())
        }
        ["socket", family, kind, protocol] => {
            let (family, kind, protocol) = (number(family)?, number(kind)?, number(protocol)?);
            // SAFETY: the call takes numbers.
            let descriptor = unsafe { libc::socket(family, kind, protocol) };
            check(descriptor.into())?;
            // SAFETY: the descriptor is new and nobody else's.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
            Ok(Value::Null)
        }
        // SAFETY: the request reads one byte, which lives through the call.
        ["tiocsti"] => check(unsafe { libc::ioctl(0, libc::TIOCSTI, &raw const b"x"[0]) }.into()),
        ["ptrace", pid] => {
            let pid: libc::pid_t = number(pid)?;
            // SAFETY: attaching touches no memory of this process.
            check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) })
        }
        ["sethostname", name] => {
            // SAFETY: the name lives through the call and is as long as said.
            check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into())
        }
        // SAFETY: the call takes a number.
        ["setuid", uid] => check(unsafe { libc::setuid(number(uid)?) }.into()),
        // SAFETY: the call takes a number.
        ["setgid", gid] => check(unsafe { libc::setgid(number(gid)?) }.into()),
        ["bind", port] => {
            let port: u16 = number(port)?;
            std::net::UdpSocket::bind(("127.0.0.1", port)).map(|_| Value::Null)
        }
        ["call", call, ref arguments @ ..] => system_call(number(call)?, arguments),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no operation {words:?}"))),
    }
}

fn stat(path: &str) -> io::Result<Value> {
    let file = std::fs::symlink_metadata(path)?;
    Ok(json!({
        "mode": file.mode() & 0o7777, "directory": file.is_dir(), "uid": file.uid(), "gid": file.gid(),
        "size": file.size(), "modified": file.mtime(), "accessed": file.atime(), "device": file.dev(),
        "inode": file.ino(),
    }))
}

fn mknod(path: &str, kind: &str, major: u32, minor: u32) -> io::Result<Value> {
    let kind = match kind {
        "b" => libc::S_IFBLK,
        "p" => libc::S_IFIFO,
        _ => libc::S_IFCHR,
    };
    let path = c_string(path)?;
    // SAFETY: the path is a string that lives through the call.
    check(unsafe { libc::mknod(path.as_ptr(), kind | 0o600, libc::makedev(major, minor)) }.into())
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong) -> io::Result<Value> {
    let (source, target, kind) = (c_string(source)?, c_string(target)?, c_string(kind)?);
    // SAFETY: all are strings that live through the call, and there is no data.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) }.into())
}

/// Any system call with numbers as its arguments: with pointers among them only where they are not looked at.
fn system_call(call: libc::c_long, arguments: &[&str]) -> io::Result<Value> {
    let mut values = [0_i64; 6];
    for (value, text) in values.iter_mut().zip(arguments) {
        *value = number(text)?;
    }
    let [a, b, c, d, e, f] = values;
    // SAFETY: whoever names the call answers for it; the program does nothing after it but tell how it ended.
    let value = unsafe { libc::syscall(call, a, b, c, d, e, f) };
    check(value)?;
    Ok(json!(value))
}

fn namespace(kind: &str) -> io::Result<libc::c_int> {
    Ok(match kind {
        "user" => libc::CLONE_NEWUSER,
        "mount" => libc::CLONE_NEWNS,
        "network" => libc::CLONE_NEWNET,
        "pid" => libc::CLONE_NEWPID,
        "ipc" => libc::CLONE_NEWIPC,
        "uts" => libc::CLONE_NEWUTS,
        "cgroup" => libc::CLONE_NEWCGROUP,
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    })
}

fn check(value: libc::c_long) -> io::Result<Value> {
    if value == -1 { Err(io::Error::last_os_error()) } else { Ok(Value::Null) }
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{text} is no number")))
}

fn name(error: &io::Error) -> String {
    let name = match error.raw_os_error() {
        Some(libc::EPERM) => "EPERM",
        Some(libc::ENOENT) => "ENOENT",
        Some(libc::ESRCH) => "ESRCH",
        Some(libc::EIO) => "EIO",
        Some(libc::ENXIO) => "ENXIO",
        Some(libc::EBADF) => "EBADF",
        Some(libc::EAGAIN) => "EAGAIN",
        Some(libc::ENOMEM) => "ENOMEM",
        Some(libc::EACCES) => "EACCES",
        Some(libc::EFAULT) => "EFAULT",
        Some(libc::EBUSY) => "EBUSY",
        Some(libc::EEXIST) => "EEXIST",
        Some(libc::EXDEV) => "EXDEV",
        Some(libc::ENODEV) => "ENODEV",
        Some(libc::ENOTDIR) => "ENOTDIR",
        Some(libc::EISDIR) => "EISDIR",
        Some(libc::EINVAL) => "EINVAL",
        Some(libc::ENOTTY) => "ENOTTY",
        Some(libc::ETXTBSY) => "ETXTBSY",
        Some(libc::ENOSPC) => "ENOSPC",
        Some(libc::EROFS) => "EROFS",
        Some(libc::ELOOP) => "ELOOP",
        Some(libc::ENOSYS) => "ENOSYS",
        Some(libc::EOVERFLOW) => "EOVERFLOW",
        Some(libc::EAFNOSUPPORT) => "EAFNOSUPPORT",
        _ => return error.to_string(),
    };
    name.to_owned()
}
