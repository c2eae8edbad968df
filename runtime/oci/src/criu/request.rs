//! What CRIU is asked for. Source of the numbers: CRIU, images/rpc.proto, `criu_req` and `criu_opts`.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use portreeve_sys::clone::NEW_NET;

use super::message::{Kind, Message};
use super::{IMAGES, WORK};

/// What CRIU does about the cgroups of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupMode {
    /// Nothing: the restored processes are in the container's cgroup, and none of them below it.
    Ignore = 0,
    /// Processes are put where they were; the settings of cgroups that are there already stay, as those of the container's
    /// own, which the runtime has made from the configuration.
    #[default]
    Soft = 3,
    /// As soft, with the settings of the images.
    Full = 4,
    /// None may be there already.
    Strict = 5,
}

/// How to checkpoint, and to restore.
#[derive(Debug, Clone, Default)]
pub struct CriuOptions {
    /// CRIU; else that of PATH.
    pub program: Option<PathBuf>,
    /// Directory of the images.
    pub images: PathBuf,
    /// Directory for logs; else that of the images.
    pub work: Option<PathBuf>,
    /// With connections of TCP that are established.
    pub tcp_established: bool,
    /// Without those that are being made.
    pub tcp_skip_in_flight: bool,
    /// With unix sockets whose other end is outside.
    pub external_unix_sockets: bool,
    /// With a session and a terminal of the caller's.
    pub shell_job: bool,
    /// With file locks.
    pub file_locks: bool,
    /// With open files that have been removed.
    pub link_remap: bool,
    /// Memory that a later dump has again goes from the images before.
    pub auto_dedup: bool,
    /// Cgroups.
    pub cgroups: CgroupMode,
}

/// A request to CRIU.
#[derive(Debug)]
pub(crate) struct Request {
    pub(super) kind: Kind,
    pub(super) message: Message,
}

/// Further options of a dump.
#[derive(Debug)]
pub(crate) struct Dump<'a> {
    pub(crate) pid: i32,
    /// The root file system on the host.
    pub(crate) root: &'a Path,
    pub(crate) leave_running: bool,
    pub(crate) pre_dump: bool,
    pub(crate) parent: Option<&'a Path>,
    pub(crate) page_server: Option<(&'a str, u16)>,
    /// The cgroup by which the processes are stopped.
    pub(crate) freezer: Option<&'a Path>,
    pub(crate) externals: &'a [Vec<u8>],
    pub(crate) log: &'a str,
}

/// Further options of a restoration.
#[derive(Debug)]
pub(crate) struct Restore<'a> {
    /// The root file system, a mount.
    pub(crate) root: &'a Path,
    /// The container's cgroup.
    pub(crate) cgroup: Option<&'a str>,
    pub(crate) externals: &'a [Vec<u8>],
    /// What of the images is one of CRIU's descriptors.
    pub(crate) inherited: &'a [(String, i32)],
    /// Namespaces to join: type and path.
    pub(crate) joined: &'a [(&'static str, PathBuf)],
    pub(crate) lsm_profile: Option<&'a str>,
    pub(crate) lsm_mount_context: Option<&'a str>,
    pub(crate) log: &'a str,
}

impl Request {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, message: Message::default().number(1, kind as i64) }
    }

    /// Whether changes of memory are tracked.
    pub(super) fn for_tracking() -> Self {
        let mut request = Self::new(Kind::FeatureCheck);
        request.message = request.message.message(5, &Message::default().number(1, true));
        request
    }

    fn with(kind: Kind, options: &Message) -> Self {
        let mut request = Self::new(kind);
        request.message = request.message.message(2, options);
        request
    }

    /// To write images.
    pub(crate) fn dump(options: &CriuOptions, dump: &Dump<'_>) -> Self {
        let mut message =
            common(options, dump.log).number(2, dump.pid).number(3, dump.leave_running).bytes(13, path(dump.root));
        if let Some(parent) = dump.parent {
            message = message.bytes(14, path(parent));
        }
        if dump.pre_dump || dump.parent.is_some() {
            message = message.number(15, true);
        }
        if let Some((address, port)) = dump.page_server {
            message = message.message(11, &Message::default().bytes(1, address).number(2, port));
        }
        if let Some(freezer) = dump.freezer {
            message = message.bytes(44, path(freezer));
        }
        message = externals(message, dump.externals);
        Self::with(if dump.pre_dump { Kind::PreDump } else { Kind::Dump }, &message)
    }

    /// To make processes from images, as children of this one.
    pub(crate) fn restore(options: &CriuOptions, restore: &Restore<'_>) -> Self {
        // With devices that are at another path, and children of CRIU's parent.
        let mut message = common(options, restore.log).number(6, true).number(26, true).bytes(13, path(restore.root));
        if let Some(cgroup) = restore.cgroup {
            message = message.message(25, &Message::default().bytes(2, cgroup));
        }
        for (name, number) in restore.inherited {
            message = message.message(27, &Message::default().bytes(1, name).number(2, *number));
        }
        for (kind, file) in restore.joined {
            message = message.message(39, &Message::default().bytes(1, kind).bytes(2, path(file)));
        }
        if let Some(profile) = restore.lsm_profile {
            message = message.bytes(53, profile);
        }
        if let Some(context) = restore.lsm_mount_context {
            message = message.bytes(63, context);
        }
        Self::with(Kind::Restore, &externals(message, restore.externals))
    }
}

fn common(options: &CriuOptions, log: &str) -> Message {
    Message::default()
        .number(1, IMAGES)
        .number(17, WORK)
        .number(4, options.external_unix_sockets)
        .number(5, options.tcp_established)
        .number(7, options.shell_job)
        .number(8, options.file_locks)
        // With all that helps to find out why something failed.
        .number(9, 4)
        .bytes(10, log)
        // Notifications.
        .number(12, true)
        .number(16, options.auto_dedup)
        .number(18, options.link_remap)
        .number(24, true)
        .number(34, options.cgroups as i64)
        // A new network namespace is there again, and what is in it is for others to make: hooks, engines.
        .number(38, NEW_NET.cast_signed())
        .number(46, options.tcp_skip_in_flight)
        // Of a terminal whose other side is outside, that side comes with a notification.
        .number(50, true)
}

fn externals(message: Message, externals: &[Vec<u8>]) -> Message {
    externals.iter().fold(message, |message, external| message.bytes(37, external))
}

fn path(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
