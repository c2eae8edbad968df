//! What goes on for a while: attempts on the runtime, and the other end of a filter's notifications.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Failure;

/// Keeps the programs of foreign processes open and tries to open each for writing, also when they have ended; and to
/// make the mounts that they lie on writable before.
///
/// A program that is executed cannot be written; one that was, and whose file a descriptor still leads to, could be.
pub(crate) fn prey(time: Duration) -> Result<Value, Failure> {
    let own = std::fs::metadata("/proc/self/exe")?;
    let own = (own.dev(), own.ino());
    let mut caught: BTreeMap<(u64, u64), File> = BTreeMap::new();
    let (mut opened, mut loosened) = (BTreeSet::new(), BTreeSet::new());
    let mut roots = BTreeSet::new();
    let mut refusals = BTreeMap::<String, usize>::new();
    let begun = Instant::now();
    while begun.elapsed() < time {
        for entry in std::fs::read_dir("/proc")?.flatten() {
            // With what it executes, which says whose it is: the machine has processes that are nobody's prey.
            let whose = std::fs::metadata(entry.path().join("exe"));
            if let (Ok(program), Ok(root)) = (whose, std::fs::metadata(entry.path().join("root"))) {
                roots.insert(((program.dev(), program.ino()), (root.dev(), root.ino())));
            }
            // Its own /proc/self included: what executes this was something else before.
            let Ok(file) = File::open(entry.path().join("exe")) else { continue };
            let Ok(found) = file.metadata() else { continue };
            if (found.dev(), found.ino()) != own {
                caught.entry((found.dev(), found.ino())).or_insert(file);
            }
        }
        for file in caught.values() {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            if loosen(file) {
                loosened.insert(std::fs::read_link(&path)?.display().to_string());
            }
            match OpenOptions::new().write(true).open(&path) {
                Ok(_) => {
                    opened.insert(std::fs::read_link(&path)?.display().to_string());
                }
                Err(error) => *refusals.entry(error.kind().to_string()).or_default() += 1,
            }
        }
    }
    let path = |file: &File| std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let caught: Vec<_> = caught
        .iter()
        .map(|(id, file)| Ok(json!({ "path": path(file)?.display().to_string(), "id": id })))
        .collect::<Result<_, std::io::Error>>()?;
    Ok(json!({ "caught": caught, "opened": opened, "loosened": loosened, "refusals": refusals, "roots": roots }))
}

/// Takes read-only away from the mount whose root is this file: the kernel asks for nothing but CAP_SYS_ADMIN in the
/// user namespace of the caller's mounts when it is attached nowhere. Whether it did.
fn loosen(file: &File) -> bool {
    /// `struct mount_attr` of linux/mount.h.
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        namespace: u64,
    }
    const READ_ONLY: u64 = 1;
    let attributes = Attributes { set: 0, clear: READ_ONLY, propagation: 0, namespace: 0 };
    // SAFETY: the path is an empty C string, and the structure, of the size given, lives through the call.
    let code = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    code == 0
}

/// Exchanges two names until this process is ended.
pub(crate) fn exchange(first: &str, second: &str) -> Result<(), Failure> {
    let (first, second) = (CString::new(first)?, CString::new(second)?);
    let (directory, how) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
    loop {
        // SAFETY: both are strings that live through the call.
        let code = unsafe { libc::renameat2(directory, first.as_ptr(), directory, second.as_ptr(), how) };
        if code != 0 {
            return Err(io::Error::last_os_error().into());
        }
    }
}

/// Takes a filter's listener at the socket `path`, says the state that came with it, and then answers each call that
/// it is told of with `errno`, or lets it go on where that is 0; says the number of each.
pub(crate) fn agent(path: &str, errno: i32) -> Result<(), Failure> {
    let listener = UnixListener::bind(path)?;
    super::say(&json!("ready"))?;
    let (stream, _) = listener.accept()?;
    let (state, descriptor) = receive(&stream)?;
    super::say(&serde_json::from_slice(&state).unwrap_or(Value::Null))?;
    loop {
        // SAFETY: the structure is plain memory, and the kernel wants it to be zero.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the request fills the structure, which lives through the call.
        if unsafe { libc::ioctl(descriptor.as_raw_fd(), NOTIFICATION_RECEIVE, &raw mut asked) } != 0 {
            let error = io::Error::last_os_error();
            // The process has ended meanwhile, or all of them have.
            if error.raw_os_error() == Some(libc::ENOENT) {
                return Ok(());
            }
            return Err(error.into());
        }
        super::say(&json!(asked.data.nr))?;
        let flags = if errno == 0 { CONTINUE } else { 0 };
        let answer = libc::seccomp_notif_resp { id: asked.id, val: 0, error: -errno, flags };
        // SAFETY: the request reads the structure, which lives through the call.
        unsafe { libc::ioctl(descriptor.as_raw_fd(), NOTIFICATION_SEND, &raw const answer) };
    }
}

/// `SECCOMP_IOCTL_NOTIF_RECV`, `SECCOMP_IOCTL_NOTIF_SEND`, `SECCOMP_USER_NOTIF_FLAG_CONTINUE` of linux/seccomp.h.
const NOTIFICATION_RECEIVE: libc::c_ulong = 0xc050_2100;
const NOTIFICATION_SEND: libc::c_ulong = 0xc018_2101;
const CONTINUE: u32 = 1;

/// A message with one descriptor.
fn receive(stream: &std::os::unix::net::UnixStream) -> Result<(Vec<u8>, OwnedFd), Failure> {
    let mut data = vec![0; 1 << 16];
    let mut space = [0_u64; 16];
    let mut slice = IoSliceMut::new(&mut data);
    // SAFETY: the structure is plain memory, and zero is a value of it.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = (&raw mut slice).cast();
    message.msg_iovlen = 1;
    message.msg_control = space.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&space);
    // SAFETY: all that the message points to lives through the call.
    let length = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled the message's control buffer, which is aligned as its headers are.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() }.ok_or("no descriptor came")?;
    if header.cmsg_type != libc::SCM_RIGHTS {
        return Err("something else than descriptors came".into());
    }
    // SAFETY: the kernel puts at least one whole descriptor after such a header.
    let descriptor = unsafe { libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned() };
    // SAFETY: the descriptor was just received and is nobody else's.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    data.truncate(length);
    Ok((data, descriptor))
}
