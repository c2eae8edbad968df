//! `checkpoint` and `restore`: known by name and flags, so that who calls them hears the reason and not a complaint about
//! words.

use anyhow::bail;

use super::arguments::{Flag, Usage, Verb};
use super::creation;

pub(super) const CHECKPOINT: Usage = Usage {
    name: "checkpoint",
    operands: "ID",
    about: "not supported: CRIU is not driven by this version",
    flags: &[
        CRIU,
        &[
            Flag::switch("leave-running", "do not end the container"),
            Flag::switch("pre-dump", "memory alone, of a container that goes on"),
            Flag::value("parent-path", "DIR", "where the images of the dump before are"),
            Flag::value("page-server", "ADDRESS:PORT", "serve pages there"),
            Flag::value("status-fd", "FD", "say on it that pages are served"),
        ],
    ],
    count: 1..=1,
    ends_flags: false,
    read: |mut given| Ok(Verb::Checkpoint { verb: "checkpoint", id: given.id()? }),
};

pub(super) const RESTORE: Usage = Usage {
    name: "restore",
    operands: "ID",
    about: "not supported: CRIU is not driven by this version",
    flags: &[
        creation::FLAGS,
        CRIU,
        &[
            Flag::switch("detach", "end when the container has been restored").short('d'),
            Flag::switch("no-subreaper", "leave orphans of the container to another process"),
            Flag::value("lsm-profile", "KIND:LABEL", "another label for its processes"),
            Flag::value("lsm-mount-context", "CONTEXT", "another SELinux context for its mounts"),
        ],
    ],
    count: 1..=1,
    ends_flags: false,
    read: |mut given| Ok(Verb::Checkpoint { verb: "restore", id: given.id()? }),
};

const CRIU: &[Flag] = &[
    Flag::value("image-path", "DIR", "where CRIU's images are"),
    Flag::value("work-path", "DIR", "where CRIU works and logs"),
    Flag::switch("tcp-established", "with open TCP connections"),
    Flag::switch("tcp-skip-in-flight", "without TCP connections that are being made"),
    Flag::switch("ext-unix-sk", "with unix sockets of others"),
    Flag::switch("shell-job", "with the caller's terminal"),
    Flag::switch("file-locks", "with file locks"),
    Flag::switch("link-remap", "with open files that have been removed"),
    Flag::switch("lazy-pages", "with pages that follow when they are used"),
    Flag::switch("auto-dedup", "without pages that are there twice"),
    Flag::value("manage-cgroups-mode", "MODE", "soft, full, strict or ignore"),
    Flag::value("empty-ns", "NAMESPACE", "without what this namespace holds"),
];

/// Says that it cannot be done. The container, if there is one, is not touched.
pub(super) fn refuse(verb: &str, id: &str) -> anyhow::Result<()> {
    let installed = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join("criu").metadata().is_ok_and(|file| file.is_file()))
    });
    let criu = if installed { "" } else { ", which is not installed here either" };
    bail!("cannot {verb} container {id}: that takes CRIU{criu}, and this version of the runtime does not drive it")
}
