//! What `create` and `run` share: a bundle to a container that waits for its start.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::Context as _;
use portreeve_oci::config::{self, Config};
use portreeve_oci::lifecycle::{Container, CreateOptions, CreatedContainer, Id, LifecycleError, Root, Rootless};
use portreeve_oci::{Pid, Pivot, Stdio};
use portreeve_sys::self_exe::ReadOnlyPlace;

use super::arguments::{Flag, Given, UsageError};
use super::console::{self, Holder};
use super::pidfile;
use super::streams::Passed;
use super::systemd::Scope;
use super::{Runtime, systemd};

pub(super) const FLAGS: &[Flag] = &[
    Flag::value("bundle", "DIR", "directory with config.json (default: the current one)").short('b'),
    Flag::value("console-socket", "SOCKET", "send the master side of the terminal to this socket"),
    Flag::value("pid-file", "FILE", "write the process id of the container to FILE"),
    Flag::value("pidfd-socket", "SOCKET", "send a pidfd of the container's process to this socket"),
    Flag::switch("no-pivot", "move the root mount instead of pivot_root, for a root on rootfs"),
    Flag::switch("no-new-keyring", "keep the caller's session keyring"),
    Flag::value("preserve-fds", "N", "pass on N descriptors, from 3 or after those of LISTEN_FDS"),
];

/// A container to make.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Creation {
    id: String,
    bundle: PathBuf,
    console_socket: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    pidfd_socket: Option<PathBuf>,
    no_pivot: bool,
    no_new_keyring: bool,
    pub(super) preserve_fds: u32,
}

/// Whether the runtime ends before the container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stays {
    /// It passes on signals and streams, and answers how the program ended.
    Here,
    /// It ends when the container is there.
    Ends,
}

impl Creation {
    pub(super) fn read(given: &mut Given) -> Result<Self, UsageError> {
        Ok(Self {
            bundle: given.path("bundle").unwrap_or_else(|| PathBuf::from(".")),
            console_socket: given.path("console-socket"),
            pid_file: given.path("pid-file"),
            pidfd_socket: given.path("pidfd-socket"),
            no_pivot: given.has("no-pivot")?,
            no_new_keyring: given.has("no-new-keyring")?,
            preserve_fds: given.number("preserve-fds")?.unwrap_or(0),
            id: given.id()?,
        })
    }

    /// Makes the container. When this fails nothing is left of it.
    pub(super) fn make(
        &self,
        runtime: &Runtime,
        passed: Passed,
        executable: Option<&ReadOnlyPlace>,
        stays: Stays,
    ) -> anyhow::Result<CreatedContainer> {
        if runtime.global.systemd_cgroup {
            systemd::require(runtime.rootless() == Rootless::No)?;
        }
        let id = Id::parse(&self.id)?;
        let root = runtime.root()?;
        let directory =
            File::open(&self.bundle).with_context(|| format!("opening the bundle {}", self.bundle.display()))?;
        let mut config = config::read(directory.as_fd())
            .with_context(|| format!("making a container of the bundle {}", self.bundle.display()))?;
        let pidfd_socket = self.pidfd_socket.as_deref().map(|path| console::connect(path, "pidfd")).transpose()?;

        let process = config.spec.process().as_ref();
        let terminal = process.is_some_and(|process| process.terminal().unwrap_or(false));
        let holder = Holder::choose(terminal, stays == Stays::Ends, self.console_socket.as_deref())?;
        let stdio = process.map_or(Stdio::Inherit, |process| holder.stdio(process));
        if let Some(process) = config.spec.process_mut() {
            process.env_mut().get_or_insert_default().extend(passed.environment);
        }

        let mut options = CreateOptions::new(stdio);
        options.extra_fds = passed.fds;
        options.keep_keyring = self.no_new_keyring;
        options.pivot = if self.no_pivot { Pivot::MoveMount } else { Pivot::PivotRoot };
        options.rootless = runtime.rootless();
        options.hold = stays == Stays::Here;
        options.executable = executable;
        let created = self.create(runtime, &root, &id, config, options)?;
        let told = holder
            .hand_over(created.terminal.as_ref().map(|master| master.as_fd()))
            .and_then(|()| match &pidfd_socket {
                None => Ok(()),
                Some(stream) => console::send(stream, b"pidfd", created.pidfd.as_fd())
                    .context("sending the pidfd over --pidfd-socket"),
            })
            .and_then(|()| self.write_pid(created.pid));
        match told {
            Ok(()) => {
                runtime.warn(&created.warnings);
                Ok(created)
            }
            Err(error) => Err(abandon(created.container, error)),
        }
    }

    /// Makes the container, in a scope of systemd's where that is asked for.
    fn create(
        &self,
        runtime: &Runtime,
        root: &Root,
        id: &Id,
        config: Config,
        mut options: CreateOptions<'_>,
    ) -> anyhow::Result<CreatedContainer> {
        if !runtime.global.systemd_cgroup {
            return Ok(root.create_from(id, &self.bundle, config, options)?);
        }
        // Whose name is taken hears of that, and not that the unit's is.
        if !matches!(root.load(id), Err(LifecycleError::NotFound { .. })) {
            return Err(LifecycleError::Exists { id: self.id.clone() }.into());
        }
        let scope = Scope::make(&config.spec, id)?;
        scope.choose(&mut options);
        match root.create_from(id, &self.bundle, config, options) {
            Ok(mut created) => match scope.release() {
                Ok(left_out) => {
                    created.warnings.extend(left_out);
                    Ok(created)
                }
                Err(error) => Err(abandon(created.container, error.into())),
            },
            Err(error) => Err(match scope.abandon() {
                Ok(()) => error.into(),
                Err(left) => anyhow::Error::from(error)
                    .context(format!("removing the scope afterwards: {:#}", anyhow::Error::from(left))),
            }),
        }
    }

    fn write_pid(&self, pid: Pid) -> anyhow::Result<()> {
        self.pid_file.as_deref().map_or(Ok(()), |path| pidfile::write(path, pid))
    }
}

/// Removes a container that its caller will not hear of; answers the error that is the reason, and with it what the
/// removal left: podman finds the reason of a failure in the log only when that is the log's one line.
pub(super) fn abandon(container: Container, error: anyhow::Error) -> anyhow::Error {
    let left = match systemd::delete(container, true) {
        Ok(warnings) => warnings.iter().map(ToString::to_string).collect(),
        Err(left) => vec![format!("{:#}", anyhow::Error::from(left))],
    };
    if left.is_empty() {
        error
    } else {
        error.context(format!("removing the container afterwards: {}", left.join("; ")))
    }
}
