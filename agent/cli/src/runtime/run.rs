//! `run`.

use std::os::fd::AsFd as _;

use anyhow::Context as _;
use portreeve_oci::lifecycle::CreatedContainer;

use super::arguments::{Flag, Usage, Verb};
use super::creation::{self, Creation, Stays, abandon};
use super::relay::{Relay, Signals};
use super::{Prepared, Runtime, systemd};

pub(super) const USAGE: Usage = Usage {
    name: "run",
    operands: "ID",
    about: "make a container, start it, and wait for its end",
    flags: &[
        creation::FLAGS,
        &[
            Flag::switch("detach", "end when the container has been started").short('d'),
            Flag::switch("keep", "do not delete the container when it has ended"),
            Flag::switch("no-subreaper", "leave orphans of the container to another process"),
        ],
    ],
    count: 1..=1,
    ends_flags: false,
    read: |mut given| {
        Ok(Verb::Run(Run {
            detach: given.has("detach")?,
            keep: given.has("keep")?,
            no_subreaper: given.has("no-subreaper")?,
            creation: Creation::read(&mut given)?,
        }))
    },
};

/// Arguments of `run`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) creation: Creation,
    detach: bool,
    keep: bool,
    no_subreaper: bool,
}

impl Run {
    pub(super) fn run(self, runtime: &Runtime, prepared: Prepared) -> anyhow::Result<i32> {
        let Prepared { passed, executable } = prepared;
        if self.detach {
            // A process that holds the terminal would keep it for as long as the container lives.
            let created = self.creation.make(runtime, passed, executable.as_ref(), Stays::Ends)?;
            return match created.container.start() {
                Ok(()) => Ok(0),
                Err(error) => Err(abandon(created.container, error.into())),
            };
        }
        if !self.no_subreaper {
            portreeve_sys::process::set_child_subreaper(true).context("becoming the parent of orphans")?;
        }
        let CreatedContainer { container, pid, pidfd, terminal, .. } =
            self.creation.make(runtime, passed, executable.as_ref(), Stays::Here)?;
        // From before the start: a signal that comes now waits for the program.
        let ended = Signals::hold().and_then(|signals| {
            let relay = Relay::new(signals, pid, pidfd.as_fd(), terminal)?;
            container.start()?;
            // It takes its time, while the program has the other processors.
            drop(executable);
            relay.until_the_end()
        });
        match ended {
            Ok(code) if self.keep => Ok(code),
            Ok(code) => {
                runtime.warn(&systemd::delete(container, true).context("deleting the container, which has ended")?);
                Ok(code)
            }
            Err(error) => Err(abandon(container, error)),
        }
    }
}
