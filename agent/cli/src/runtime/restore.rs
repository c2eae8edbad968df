//! `restore`.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use portreeve_oci::config;
use portreeve_oci::lifecycle::{CreatedContainer, Id, RestoreOptions};

use super::Runtime;
use super::arguments::{Flag, Given, Usage, UsageError, Verb};
use super::checkpoint::{CRIU, Common};
use super::console::Holder;
use super::creation::abandon;
use super::pidfile;
use super::relay::{Relay, Signals};

pub(super) const USAGE: Usage = Usage {
    name: "restore",
    operands: "ID",
    about: "make a container again from the files of a checkpoint, and wait for its end",
    flags: &[
        CRIU,
        &[
            Flag::value("bundle", "DIR", "directory with config.json (default: the current one)").short('b'),
            Flag::value("console-socket", "SOCKET", "send the master side of the terminal to this socket"),
            Flag::value("pid-file", "FILE", "write the process id of the container to FILE"),
            Flag::switch("detach", "end when the container has been restored").short('d'),
            Flag::switch("no-subreaper", "leave orphans of the container to another process"),
            Flag::switch("no-pivot", "ignored: CRIU uses pivot_root"),
            Flag::value("lsm-profile", "MODULE:LABEL", "another AppArmor profile or SELinux label for its processes"),
            Flag::value("lsm-mount-context", "CONTEXT", "another SELinux context for its mounts"),
        ],
    ],
    count: 1..=1,
    ends_flags: false,
    read: |given| Ok(Verb::Restore(Box::new(Restore::read(given)?))),
};

/// Arguments of `restore`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Restore {
    id: String,
    common: Common,
    bundle: PathBuf,
    console_socket: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    detach: bool,
    no_subreaper: bool,
    no_pivot: bool,
    lsm_profile: Option<String>,
    lsm_mount_context: Option<String>,
}

impl Restore {
    fn read(mut given: Given) -> Result<Self, UsageError> {
        let text = |flag| -> Result<Option<String>, UsageError> {
            Ok(given.text(flag)?.filter(|text| !text.is_empty()).map(str::to_owned))
        };
        let (lsm_profile, lsm_mount_context) = (text("lsm-profile")?, text("lsm-mount-context")?);
        Ok(Self {
            common: Common::read(&given)?,
            bundle: given.path("bundle").unwrap_or_else(|| PathBuf::from(".")),
            console_socket: given.path("console-socket"),
            pid_file: given.path("pid-file"),
            detach: given.has("detach")?,
            no_subreaper: given.has("no-subreaper")?,
            no_pivot: given.has("no-pivot")?,
            lsm_profile,
            lsm_mount_context,
            id: given.id()?,
        })
    }

    pub(super) fn run(self, runtime: &Runtime) -> anyhow::Result<i32> {
        if runtime.global.systemd_cgroup {
            bail!(
                "--systemd-cgroup is not supported by restore: its cgroup is made without systemd (podman: \
                 --cgroup-manager cgroupfs)"
            );
        }
        let detach = self.detach;
        if !detach && !self.no_subreaper {
            portreeve_sys::process::set_child_subreaper(true).context("becoming the parent of orphans")?;
        }
        // From before it runs: a signal that comes now waits for the program.
        let signals = if detach { None } else { Some(Signals::hold()?) };
        let CreatedContainer { container, pid, pidfd, terminal, .. } = self.make(runtime)?;
        let Some(signals) = signals else { return Ok(0) };
        let ended = Relay::new(signals, pid, pidfd.as_fd(), terminal).and_then(Relay::until_the_end);
        match ended {
            Ok(code) => {
                runtime.warn(&container.delete(true).context("deleting the container, which has ended")?);
                Ok(code)
            }
            Err(error) => Err(abandon(container, error)),
        }
    }

    fn make(self, runtime: &Runtime) -> anyhow::Result<CreatedContainer> {
        let id = Id::parse(&self.id)?;
        let root = runtime.root()?;
        let directory =
            File::open(&self.bundle).with_context(|| format!("opening the bundle {}", self.bundle.display()))?;
        let config = config::read(directory.as_fd())
            .with_context(|| format!("restoring a container of the bundle {}", self.bundle.display()))?;
        let terminal = config.spec.process().as_ref().is_some_and(|process| process.terminal().unwrap_or(false));
        let holder = Holder::choose(terminal, self.detach, self.console_socket.as_deref())?;
        let mut options = RestoreOptions::new(self.common.options(runtime)?);
        options.rootless = runtime.rootless();
        options.lsm_profile = self.lsm_profile;
        options.lsm_mount_context = self.lsm_mount_context;
        let created = root.restore(&id, &self.bundle, config, &options)?;
        let told = holder
            .hand_over(created.terminal.as_ref().map(|master| master.as_fd()))
            .and_then(|()| self.pid_file.as_deref().map_or(Ok(()), |path| pidfile::write(path, created.pid)));
        match told {
            Ok(()) => {
                if self.no_pivot {
                    runtime.log.warning("--no-pivot is ignored");
                }
                runtime.warn(&created.warnings);
                Ok(created)
            }
            Err(error) => Err(abandon(created.container, error)),
        }
    }
}
