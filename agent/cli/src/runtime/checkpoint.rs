//! `checkpoint`, and the flags that it shares with `restore`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use portreeve_oci::lifecycle::{CheckpointOptions, Rootless};
use portreeve_oci::{CgroupMode, CriuOptions};

use super::Runtime;
use super::arguments::{Flag, Given, Usage, UsageError, Verb};

pub(super) const USAGE: Usage = Usage {
    name: "checkpoint",
    operands: "ID",
    about: "write a running container's processes to files, by CRIU, and delete it",
    flags: &[
        CRIU,
        &[
            Flag::switch("leave-running", "the container goes on"),
            Flag::switch("pre-dump", "memory alone, of a container that goes on"),
            Flag::value("parent-path", "DIR", "where the images of the dump before are, relative to --image-path"),
            Flag::value("page-server", "ADDRESS:PORT", "send memory to the page server there"),
            Flag::value("status-fd", "FD", "ignored: it is for --lazy-pages"),
        ],
    ],
    count: 1..=1,
    ends_flags: false,
    read: |given| Ok(Verb::Checkpoint(Box::new(Checkpoint::read(given)?))),
};

pub(super) const CRIU: &[Flag] = &[
    Flag::value("image-path", "DIR", "where the images are (default: ./checkpoint)"),
    Flag::value("work-path", "DIR", "where CRIU logs (default: beside the images)"),
    Flag::switch("tcp-established", "with TCP connections that are established"),
    Flag::switch("tcp-skip-in-flight", "without TCP connections that are being made"),
    Flag::switch("ext-unix-sk", "with unix sockets whose other end is outside"),
    Flag::switch("shell-job", "with a session and a terminal of the caller's"),
    Flag::switch("file-locks", "with file locks"),
    Flag::switch("link-remap", "with open files that have been removed"),
    Flag::switch("lazy-pages", "refused: memory that follows when it is used"),
    Flag::switch("auto-dedup", "remove memory from the images before that a later dump has again"),
    Flag::value("manage-cgroups-mode", "MODE", "soft (default), full, strict or ignore"),
    Flag::value("empty-ns", "NAMESPACE", "network: make it, and nothing in it; that is done without the flag too"),
];

/// Arguments of `checkpoint`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Checkpoint {
    id: String,
    common: Common,
    leave_running: bool,
    pre_dump: bool,
    parent: Option<PathBuf>,
    page_server: Option<(String, u16)>,
}

/// What both verbs say to CRIU.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Common {
    images: Option<PathBuf>,
    work: Option<PathBuf>,
    tcp_established: bool,
    tcp_skip_in_flight: bool,
    external_unix_sockets: bool,
    shell_job: bool,
    file_locks: bool,
    link_remap: bool,
    lazy_pages: bool,
    auto_dedup: bool,
    cgroups: CgroupMode,
}

impl Common {
    pub(super) fn read(given: &Given) -> Result<Self, UsageError> {
        let cgroups = match given.text("manage-cgroups-mode")? {
            None | Some("" | "soft") => CgroupMode::Soft,
            Some("full") => CgroupMode::Full,
            Some("strict") => CgroupMode::Strict,
            Some("ignore") => CgroupMode::Ignore,
            Some(other) => {
                return Err(
                    given.wrong(format!("--manage-cgroups-mode is soft, full, strict or ignore, not {other:?}"))
                );
            }
        };
        if let Some(other) = given.texts("empty-ns")?.iter().find(|name| *name != "network") {
            return Err(given.wrong(format!("--empty-ns is network, not {other:?}")));
        }
        Ok(Self {
            images: given.path("image-path"),
            work: given.path("work-path"),
            tcp_established: given.has("tcp-established")?,
            tcp_skip_in_flight: given.has("tcp-skip-in-flight")?,
            external_unix_sockets: given.has("ext-unix-sk")?,
            shell_job: given.has("shell-job")?,
            file_locks: given.has("file-locks")?,
            link_remap: given.has("link-remap")?,
            lazy_pages: given.has("lazy-pages")?,
            auto_dedup: given.has("auto-dedup")?,
            cgroups,
        })
    }

    pub(super) fn options(self, runtime: &Runtime) -> anyhow::Result<CriuOptions> {
        if runtime.rootless() == Rootless::Yes {
            bail!("checkpoint and restore need the privileges of the machine's root, with which CRIU works");
        }
        if self.lazy_pages {
            bail!("--lazy-pages is not supported: memory comes with the images, or by --page-server");
        }
        let absolute = |path: &Path| std::path::absolute(path).context("finding the working directory");
        Ok(CriuOptions {
            program: runtime.global.criu.as_deref().map(absolute).transpose()?,
            images: absolute(self.images.as_deref().unwrap_or(Path::new("checkpoint")))?,
            work: self.work.as_deref().map(absolute).transpose()?,
            tcp_established: self.tcp_established,
            tcp_skip_in_flight: self.tcp_skip_in_flight,
            external_unix_sockets: self.external_unix_sockets,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            link_remap: self.link_remap,
            auto_dedup: self.auto_dedup,
            cgroups: self.cgroups,
        })
    }
}

impl Checkpoint {
    fn read(mut given: Given) -> Result<Self, UsageError> {
        let page_server = given.text("page-server")?.filter(|text| !text.is_empty());
        let page_server = page_server.map(|text| {
            let server = text.rsplit_once(':').and_then(|(address, port)| Some((address, port.parse().ok()?)));
            let server = server.filter(|(address, port)| !address.is_empty() && *port > 0);
            let wrong = || given.wrong(format!("--page-server is ADDRESS:PORT, not {text:?}"));
            server.map(|(address, port)| (address.trim_matches(['[', ']']).to_owned(), port)).ok_or_else(wrong)
        });
        // For --lazy-pages, which is refused by itself.
        let _: Option<i32> = given.number("status-fd")?;
        Ok(Self {
            page_server: page_server.transpose()?,
            common: Common::read(&given)?,
            leave_running: given.has("leave-running")?,
            pre_dump: given.has("pre-dump")?,
            parent: given.path("parent-path"),
            id: given.id()?,
        })
    }

    pub(super) fn run(self, runtime: &Runtime) -> anyhow::Result<()> {
        let mut options = CheckpointOptions::default();
        options.criu = self.common.options(runtime)?;
        options.parent = self.parent;
        options.leave_running = self.leave_running;
        options.pre_dump = self.pre_dump;
        options.page_server = self.page_server;
        runtime.warn(&runtime.container(&self.id)?.checkpoint(&options)?);
        Ok(())
    }
}
