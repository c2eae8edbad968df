//! Checkpoint and restore by CRIU, a program of the host's, which is spoken to as its `swrk` mode has it: one process for
//! one request, at the other end of a socket.
//!
//! ```text
//!   this process                            criu swrk 3
//!   ------------                            -----------
//!   clone, execve ------------------------> (in a mount namespace of its own to restore: what is mounted there goes with it)
//!   request ------------------------------>
//!           <---------------- notification  setup-namespaces, post-restore, orphan-pts-master + descriptor, ...
//!   answer  ------------------------------>
//!           <---------------------- result
//!   close   ------------------------------> ends; what it has restored is a child of this process
//! ```
//!
//! Not by its command line: that has no moment at which the restored process is known and does not run yet, hands over no
//! terminal, and takes directories by their paths.
//!
//! Source: CRIU, images/rpc.proto and criu(8).

mod images;
mod message;
mod plan;
mod request;

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use portreeve_sys::clone::{Child, Clone3, clone3};
use portreeve_sys::process::{Exit, wait};
use portreeve_sys::socket::{message_pair, receive, send};
use portreeve_sys::{exec, fd, process};
use rustix::fs::{Access, Mode, OFlags};

pub(crate) use images::Images;
pub(crate) use message::{Kind, Notice};
pub(crate) use plan::plan;
pub use request::{CgroupMode, CriuOptions};
pub(crate) use request::{Dump, Request, Restore};

use crate::cgroup::{Join, Options};
use crate::error::{SetupError, Step};
use crate::handshake;
use crate::init::{self, Joining};
use crate::spawn::describe;
use message::{Message, Response, Version};

/// What restores PID and network namespaces that are not the container's alone, and freezes by cgroup v2.
const OLDEST: Version = Version { major: 3, minor: 15, sublevel: 0 };

/// Why a container could not be checkpointed or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CriuError {
    /// There is no such program.
    #[error(
        "CRIU is not installed ({looked_for}): install it, 3.15 or newer (Debian, Fedora: package criu), or name it with \
         --criu"
    )]
    Missing {
        /// Where it was looked for.
        looked_for: String,
    },
    /// It cannot be used with this runtime.
    #[error("{program} is CRIU {found}, and at least 3.15 is needed")]
    Old {
        /// The program.
        program: PathBuf,
        /// Its version.
        found: String,
    },
    /// The kernel does not tell what memory has changed.
    #[error("this kernel does not track changes of memory, without which there is no --pre-dump and no --parent-path")]
    NoTracking,
    /// The program could not be run, or spoken to.
    #[error("running {program}")]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What has to be ready before could not be made ready.
    #[error("preparing what CRIU needs")]
    Prepare(#[from] SetupError),
    /// It says that it failed, or has ended before it said anything.
    #[error("CRIU could not {verb}: {reason}")]
    Failed {
        /// What it was to do.
        verb: &'static str,
        /// In its own words: of its answer, and of its log, which is named.
        reason: String,
    },
    /// A directory for images or logs.
    #[error("{action} {path}")]
    Directory {
        /// What was tried, a gerund.
        action: &'static str,
        /// Which one.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Where CRIU is.
#[derive(Debug, Clone)]
pub(crate) struct Criu {
    program: PathBuf,
}

/// What CRIU's process is made with.
pub(crate) struct Terms<'a> {
    /// `NEW_*` flags.
    pub(crate) namespaces: u64,
    /// What it does before it becomes CRIU.
    pub(crate) first: &'a dyn Fn() -> Result<(), SetupError>,
    /// What it joins, and then all that it restores.
    pub(crate) join: Option<&'a Join>,
    /// Its first descriptors; `None`: the null device.
    pub(crate) streams: [Option<BorrowedFd<'a>>; 3],
    /// The directories that it gets.
    pub(crate) images: Option<&'a Images>,
    /// Further descriptors, from [`FIRST_FD`] on.
    pub(crate) fds: &'a [BorrowedFd<'a>],
    /// Mode bits that its files do not get.
    pub(crate) umask: Option<u32>,
}

/// Numbers of directories in CRIU's process.
const IMAGES: i32 = 4;
const WORK: i32 = 5;

/// The number that the first of [`Terms::fds`] has there.
pub(crate) const FIRST_FD: i32 = 6;

impl Default for Terms<'_> {
    fn default() -> Self {
        Self { namespaces: 0, first: &|| Ok(()), join: None, streams: [None; 3], images: None, fds: &[], umask: None }
    }
}

impl Criu {
    /// The program that the caller names, or that of PATH; of a version that can be used.
    pub(crate) fn find(named: Option<&Path>) -> Result<Self, CriuError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = match named {
            Some(program) => is_program(program).then(|| program.to_owned()),
            None => std::env::split_paths(&path)
                .filter(|directory| directory.is_absolute())
                .map(|directory| directory.join("criu"))
                .find(|program| is_program(program)),
        };
        let looked_for = || match named {
            Some(program) => format!("there is no program {}", program.display()),
            None => "no criu in PATH".to_owned(),
        };
        let criu = Self { program: program.ok_or_else(|| CriuError::Missing { looked_for: looked_for() })? };
        let answer =
            criu.begin(&Terms::default())?.ask("tell its version", &Request::new(Kind::Version), |_, _| true)?;
        if answer.version < OLDEST {
            return Err(CriuError::Old { program: criu.program, found: answer.version.to_string() });
        }
        Ok(criu)
    }

    /// Whether changes of memory are tracked here.
    pub(crate) fn require_tracking(&self) -> Result<(), CriuError> {
        let session = self.begin(&Terms::default())?;
        let answer = session.ask("tell what this kernel has", &Request::for_tracking(), |_, _| true)?;
        if answer.tracks_memory { Ok(()) } else { Err(CriuError::NoTracking) }
    }

    /// Starts it.
    pub(crate) fn begin(&self, terms: &Terms<'_>) -> Result<Session<'_>, CriuError> {
        let run = |source| CriuError::Run { program: self.program.clone(), source };
        let text = |word: OsString| CString::new(word.into_vec()).map_err(|error| run(error.into()));
        let program = text(self.program.clone().into_os_string())?;
        let arguments = [c"criu".into(), c"swrk".into(), CString::from(c"3")];
        let environment = std::env::vars_os().map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            text(name)
        });
        let environment = environment.collect::<Result<Vec<CString>, _>>()?;
        let options = Options::read().map_err(run)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| run(error.into()))?;
        let (words, lower) = message_pair().map_err(run)?;
        let streams = terms.streams.map(|stream| stream.unwrap_or(null.as_fd()));
        let count = FIRST_FD.saturating_add(i32::try_from(terms.fds.len()).unwrap_or(i32::MAX));
        // Until execve it is needed: its number is not one of those that are replaced.
        let its_words = fd::duplicate_above(lower.as_fd(), count).map_err(run)?;
        drop(lower);
        let how = Clone3 { namespaces: terms.namespaces, ..Clone3::default() };
        let child = clone3(&how, || {
            let become_criu = || -> Result<(), SetupError> {
                process::reset_signals().step("resetting signals", "")?;
                (terms.first)()?;
                init::join_cgroup(terms.join, Joining::All)?;
                if let Some(umask) = terms.umask {
                    rustix::process::umask(Mode::from_raw_mode(umask));
                }
                let directories = terms.images.map(Images::open_again).transpose()?;
                let directories =
                    directories.as_ref().map_or([null.as_fd(); 2], |both| both.each_ref().map(AsFd::as_fd));
                // CRIU takes numbers of directories for those of the process that has made its socket: itself.
                let (ours, its_socket) = message_pair().step("making a socket", "")?;
                handshake::socket(its_words.as_fd(), ours.as_fd()).step("handing over a socket", "")?;
                let all =
                    streams.into_iter().chain([its_socket.as_fd()]).chain(directories).chain(terms.fds.iter().copied());
                place(&all.collect::<Vec<_>>(), count).step("placing the descriptors of CRIU", "")?;
                Err(exec::execve(&program, &arguments, &environment)).step("executing", &self.program)
            };
            if let Err(error) = become_criu() {
                // Who does not hear it sees that the process has ended.
                let _ = handshake::failed(its_words.as_fd(), &error);
            }
            127
        })
        .map_err(run)?;
        drop(its_words);
        let mut session = Session { criu: self, child, socket: None, reaped: false, options };
        let told = loop {
            match handshake::next(words.as_fd()) {
                Ok(handshake::Message::Socket(socket)) => session.socket = Some(socket),
                Ok(handshake::Message::Failed(error)) => break Some(error.into()),
                Ok(_) => break None,
                Err(error) => break Some(run(error)),
            }
        };
        match told {
            None if session.socket.is_some() => Ok(session),
            told => {
                let how = session.end().map_err(run)?;
                Err(told.unwrap_or_else(|| run(io::Error::other(format!("it {} at its beginning", describe(how))))))
            }
        }
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file()) && rustix::fs::access(path, Access::EXEC_OK).is_ok()
}

/// Gives descriptors the numbers from 0 on; what else is open is closed by execve.
fn place(fds: &[BorrowedFd<'_>], count: i32) -> io::Result<()> {
    // Copies above the numbers that are about to be replaced.
    let copies: Vec<OwnedFd> = fds.iter().map(|one| fd::duplicate_above(*one, count)).collect::<Result<_, _>>()?;
    for (number, copy) in (0..).zip(&copies) {
        process::place_fd(copy, number)?;
    }
    fd::close_on_exec_from(count.unsigned_abs())
}

/// A running CRIU, which takes one request. Dropped, it hears no more, and its end is waited for.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    criu: &'a Criu,
    child: Child,
    /// Until it was asked.
    socket: Option<OwnedFd>,
    reaped: bool,
    /// Of the cgroups' file system before: CRIU mounts it once more, without any, and so takes them from every mount of
    /// it, the machine's own too (<https://github.com/checkpoint-restore/criu/issues/3029>).
    options: Option<Options>,
}

impl Session<'_> {
    /// Asks, and calls `notice` at each moment at which CRIU waits for us, with the descriptors that came; where that
    /// answers `false`, CRIU undoes what it has done and fails.
    ///
    /// # Errors
    /// [`CriuError::Failed`], without what its log says.
    pub(crate) fn ask(
        mut self,
        verb: &'static str,
        request: &Request,
        mut notice: impl FnMut(&Notice, Vec<OwnedFd>) -> bool,
    ) -> Result<Response, CriuError> {
        let run = |source| CriuError::Run { program: self.criu.program.clone(), source };
        let failed = |reason: String| CriuError::Failed { verb, reason };
        let Some(socket) = self.socket.take() else { return Err(failed("it was asked already".into())) };
        match send(socket.as_fd(), request.message.as_bytes(), &[]) {
            // It has ended: how says more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other.map(drop).map_err(run)?,
        }
        let mut buffer = vec![0; 64 << 10];
        loop {
            let (length, fds) = match receive(socket.as_fd(), &mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (0, Vec::new()),
                other => other.map_err(run)?,
            };
            if length == 0 {
                drop(socket);
                let how = self.end().map_err(run)?;
                return Err(failed(format!("it {} before it had answered", describe(how))));
            }
            let response = Response::read(buffer.get(..length).unwrap_or_default()).map_err(run)?;
            if response.success && response.is(Kind::Notify) {
                let fine = notice(&response.notice, fds);
                let answer = Message::default().number(1, Kind::Notify as i64).number(3, fine);
                send(socket.as_fd(), answer.as_bytes(), &[]).map_err(run)?;
                continue;
            }
            drop(socket);
            let how = self.end().map_err(run)?;
            return match &response {
                Response { success: true, .. } if !response.is(request.kind) => {
                    Err(failed("it answered something else than what was asked".into()))
                }
                // After memory alone it waits for the next dump, and fails when there is none.
                Response { success: true, .. } if how == Exit::Code(0) || request.kind == Kind::PreDump => Ok(response),
                Response { success: true, .. } => Err(failed(format!("it succeeded, and then {}", describe(how)))),
                Response { errno: 0, words: None, .. } => Err(failed("it failed".into())),
                Response { words: Some(words), .. } => Err(failed(words.clone())),
                Response { errno, .. } => Err(failed(io::Error::from_raw_os_error(*errno).to_string())),
            };
        }
    }

    /// Says no more, and waits for the end.
    fn end(&mut self) -> io::Result<Exit> {
        self.socket = None;
        self.reaped = true;
        let exit = wait(self.child.pidfd.as_fd())?;
        let failed =
            |error| io::Error::other(format!("setting the options of the cgroups' file system again: {error}"));
        self.options.as_ref().map_or(Ok(()), Options::put_back).map_err(failed)?;
        Ok(exit)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.reaped {
            // It ends by itself when nobody listens; that it could not be waited for changes nothing any more.
            let _ = self.end();
        }
    }
}
