//! The process that makes a scope, and keeps it while nothing else is in it.
//!
//! systemd makes a scope around processes that are there, and removes one in which none is left. A container's first
//! process does not exist yet, and is to be born in its cgroup, under its limits; and its maker has to stay outside,
//! because what goes wrong with a container kills all that is in its cgroup. So a child of the maker is the first process
//! of the scope:
//!
//! ```text
//!   maker                           keeper
//!   -----                           ------
//!   clone3 -----------------------> StartTransientUnit(PIDs = itself), wait for the job
//!                                   into SCOPE/keeper: a cgroup that gives controllers to others has no processes itself
//!         <------------------ "+"   (or: why not)
//!   containers below SCOPE          keeps
//!         --- "go" ---------------> TasksMax, which would have counted the keeper
//!         <------------------ "+"   ends
//!   reap, remove SCOPE/keeper
//! ```
//!
//! The scope of one container is left to that container's process by "go"; that of a pod is kept as long as its shim
//! lives. When the maker dies, or gives up, the keeper hears the end of the socket and ends; the scope is empty then, and
//! systemd removes it: there is nothing to record before it is made.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use portreeve_oci::cgroup::Cgroup;
use portreeve_sys::chain;
use portreeve_sys::clone::{Child, Clone3, clone3};
use portreeve_sys::fd::close_range;
use portreeve_sys::socket::{message_pair, receive, send};

use crate::SystemdError;
use crate::bus::Manager;
use crate::name::Place;
use crate::properties::{self, Property};

/// Longest message.
const LIMIT: usize = 4096;

const STDERR: i32 = 2;

/// The first letter of a message that tells of no failure.
const DONE: &str = "+";

/// What a scope is to be like.
#[derive(Debug)]
pub struct Wanted {
    /// Its names.
    pub place: Place,
    /// What it is for, for people.
    pub description: String,
    /// That the configuration asks for by name: one that systemd does not know is an error.
    pub asked: Vec<Property>,
    /// Limits, which the container's own cgroup has as well: one that systemd does not know is left out.
    pub limits: Vec<Property>,
}

/// Keeps a scope while it is there.
#[derive(Debug)]
pub struct Keeper {
    line: Option<OwnedFd>,
    child: Child,
    place: String,
}

impl Keeper {
    /// Makes the scope; answers which properties systemd did not take.
    ///
    /// The caller has one thread.
    ///
    /// # Errors
    /// [`SystemdError`]; there is no scope then.
    pub fn start(wanted: &Wanted) -> Result<(Self, Vec<String>), SystemdError> {
        let failed = |source| SystemdError::Keeper { source };
        let (ours, theirs) = message_pair().map_err(failed)?;
        let child = clone3(&Clone3::default(), || {
            // Nobody drops them here: this process ends without destructors. It may live long, and holds nothing for others.
            let kept = theirs.as_raw_fd();
            match close_range(STDERR + 1, kept - 1).and_then(|()| close_range(kept + 1, i32::MAX)) {
                Ok(()) => keep(theirs.as_fd(), wanted),
                Err(_) => 1,
            }
        });
        let keeper = Self { line: Some(ours), child: child.map_err(failed)?, place: wanted.place.keeper() };
        drop(theirs);
        let left_out = keeper.hear()?;
        Ok((keeper, left_out))
    }

    /// Ends it, when the container's process is in the scope.
    ///
    /// # Errors
    /// [`SystemdError::Told`] when the last limits could not be set.
    pub fn release(self) -> Result<(), SystemdError> {
        if let Some(line) = &self.line {
            send(line.as_fd(), b"go", &[]).map_err(|source| SystemdError::Keeper { source })?;
        }
        self.hear().map(drop)
    }

    fn hear(&self) -> Result<Vec<String>, SystemdError> {
        let mut buffer = [0; LIMIT];
        let length = match &self.line {
            Some(line) => receive(line.as_fd(), &mut buffer).map_err(|source| SystemdError::Keeper { source })?.0,
            None => 0,
        };
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
        match text.strip_prefix(DONE) {
            Some(names) => Ok(names.split_whitespace().map(str::to_owned).collect()),
            None if text.is_empty() => Err(SystemdError::Keeper { source: std::io::ErrorKind::UnexpectedEof.into() }),
            None => Err(SystemdError::Told(text)),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.line.take());
        // It ends by itself when the line does; a failure to reap, or to remove an empty cgroup, is systemd's to clear.
        let _reaped = portreeve_sys::process::wait(self.child.pidfd.as_fd());
        let _removed = Cgroup::at(&self.place).and_then(|cgroup| cgroup.remove());
    }
}

/// The keeper's whole life; answers its exit code.
fn keep(line: BorrowedFd<'_>, wanted: &Wanted) -> i32 {
    let say = |result: Result<Vec<String>, SystemdError>| {
        let text = match result {
            Ok(left_out) => format!("{DONE}{}", left_out.join(" ")),
            Err(error) => chain(&error),
        };
        let end = (0..=text.len().min(LIMIT)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        // Nobody is left to hear it.
        let _gone = send(line, text.get(..end).unwrap_or_default().as_bytes(), &[]);
    };
    let (later, now): (Vec<Property>, Vec<Property>) =
        wanted.limits.iter().filter_map(copy).partition(|(name, _)| name == "TasksMax");
    let mut manager = match make(wanted, now) {
        Ok((manager, left_out)) => {
            say(Ok(left_out));
            manager
        }
        Err(error) => {
            say(Err(error));
            return 1;
        }
    };
    // It may take as long as the pod lives.
    portreeve_sys::memory::release_free();
    let mut word = [0; 8];
    if !matches!(receive(line, &mut word), Ok((1.., _))) {
        return 1;
    }
    let set = if later.is_empty() { Ok(()) } else { manager.set(&wanted.place.unit, &later) };
    say(set.map(|()| Vec::new()));
    0
}

/// Copying a value can fail for descriptors alone, of which there are none.
fn copy((name, value): &Property) -> Option<Property> {
    Some((name.clone(), value.try_clone().ok()?))
}

fn make(wanted: &Wanted, mut limits: Vec<Property>) -> Result<(Manager, Vec<String>), SystemdError> {
    let Wanted { place, description, asked, .. } = wanted;
    let mut manager = Manager::connect()?;
    let mut left_out = Vec::new();
    loop {
        let mut all = properties::of_scope(place, description, std::process::id());
        all.extend(asked.iter().filter_map(copy));
        all.extend(limits.iter().filter_map(copy));
        match manager.start(&place.unit, &all) {
            Err(SystemdError::Refused { text, .. }) if let Some(at) = named_in(&limits, &text) => {
                left_out.push(limits.remove(at).0);
            }
            other => break other?,
        }
    }
    enter(place)?;
    Ok((manager, left_out))
}

/// The limit that an older systemd complains about.
fn named_in(limits: &[Property], text: &str) -> Option<usize> {
    let is_word = |name: &str| text.split(|letter: char| !letter.is_ascii_alphanumeric()).any(|word| word == name);
    limits.iter().position(|(name, _)| is_word(name))
}

/// Moves this process, which systemd has put into the scope's cgroup, into one below it.
fn enter(place: &Place) -> Result<(), SystemdError> {
    let scope = Cgroup::at(&place.cgroup)?;
    let own = i32::try_from(std::process::id()).ok();
    if !scope.processes()?.iter().any(|pid| Some(pid.as_raw_nonzero().get()) == own) {
        let found = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        return Err(SystemdError::Elsewhere { place: place.cgroup.clone(), found: found.trim().to_owned() });
    }
    for directory in Cgroup::at(&place.keeper())?.directories() {
        let failed = |action, path: &std::path::Path| {
            let path = path.to_owned();
            move |source| SystemdError::File { action, path, source }
        };
        std::fs::create_dir(&directory).map_err(failed("making the cgroup", &directory))?;
        let file = directory.join("cgroup.procs");
        std::fs::write(&file, "0").map_err(failed("writing", &file))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_that_an_older_systemd_does_not_know_is_found_in_what_it_says() {
        let limits = [("MemoryMax".to_owned(), 1_u64.into()), ("Memory".to_owned(), 1_u64.into())];
        assert_eq!(named_in(&limits, "Cannot set property Memory, or unknown property."), Some(1));
        assert_eq!(named_in(&limits, "Value specified in MemoryMax= is out of range"), Some(0));
        assert_eq!(named_in(&limits, "Unit x.scope is masked."), None);
    }
}
