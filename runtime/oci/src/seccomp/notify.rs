//! The way of a filter's listener to the program that answers it: runtime-spec, config-linux.md, `listenerPath`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{ContainerProcessState, LinuxSeccomp, SECCOMP_FD_NAME, State};
use portreeve_sys::socket;

use super::SeccompError;

/// How long the other side may take to accept and to read. Meanwhile the container is neither made nor failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Length of `sun_path`, unix(7), without the NUL at its end.
const LONGEST_PATH: usize = 107;

/// Where a filter's listener goes, and with which words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    path: PathBuf,
    metadata: Option<String>,
}

/// Why a filter's listener did not reach its program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenerError {
    /// Nobody takes it.
    #[error("connecting to linux.seccomp.listenerPath {path}: is the program that answers notifications running?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The other side went away or did not read.
    #[error("sending the seccomp listener to {path}")]
    Send {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The state has a path that JSON cannot hold.
    #[error("writing the state that goes with the seccomp listener")]
    State(#[source] serde_json::Error),
}

impl Listener {
    /// Of a profile that has `SCMP_ACT_NOTIFY`: without it these fields do not count.
    pub(super) fn of(profile: &LinuxSeccomp) -> Result<Self, SeccompError> {
        let wrong = |reason: &str| Err(SeccompError::new("listenerPath", reason));
        match profile.listener_path() {
            None => wrong("is missing, and SCMP_ACT_NOTIFY needs it"),
            Some(path) if path.as_os_str().is_empty() => wrong("is empty, and SCMP_ACT_NOTIFY needs it"),
            Some(path) if !path.is_absolute() => wrong("is not an absolute path"),
            Some(path) if path.as_os_str().len() > LONGEST_PATH => wrong("is longer than a socket's path can be (107)"),
            Some(path) => Ok(Self { path: path.clone(), metadata: profile.listener_metadata().clone() }),
        }
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends the listener of `pid`, a process of the container in `state`, in one message over a connection of its own.
    ///
    /// # Errors
    /// [`ListenerError`], after 10 seconds at the latest when the other side does not accept, and again when it does not
    /// read.
    pub fn send(&self, listener: BorrowedFd<'_>, pid: i32, state: State) -> Result<(), ListenerError> {
        self.send_within(PATIENCE, listener, pid, state)
    }

    fn send_within(
        &self,
        patience: Duration,
        listener: BorrowedFd<'_>,
        pid: i32,
        state: State,
    ) -> Result<(), ListenerError> {
        let mut message = ContainerProcessState::default();
        message
            .set_version(state.version().clone())
            .set_fds(vec![SECCOMP_FD_NAME.to_owned()])
            .set_pid(pid)
            .set_metadata(self.metadata.clone())
            .set_state(state);
        let message = serde_json::to_vec(&message).map_err(ListenerError::State)?;
        let socket = socket::connect(&self.path, patience)
            .map_err(|source| ListenerError::Connect { path: self.path.clone(), source })?;
        let sent = socket::send(socket.as_fd(), &message, &[listener]).and_then(|sent| {
            let text = || format!("it has read no more than {sent} of {} bytes in {patience:?}", message.len());
            if sent < message.len() { Err(io::Error::new(io::ErrorKind::TimedOut, text())) } else { Ok(()) }
        });
        sent.map_err(|source| ListenerError::Send { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use oci_spec::runtime::ContainerState;
    use serde_json::{Value, json};

    use super::*;

    fn profile(change: Value) -> LinuxSeccomp {
        let mut profile = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        for (key, value) in change.as_object().expect("an object") {
            profile[key.as_str()] = value.clone();
        }
        serde_json::from_value(profile).expect("profile")
    }

    fn state() -> State {
        let mut state = State::default();
        state.set_version("1.3.0".into()).set_id("box".into()).set_status(ContainerState::Creating).set_pid(Some(7));
        state
    }

    #[test]
    fn the_listener_arrives_with_the_state_in_one_message_and_the_connection_ends() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("agent");
        let agent = UnixListener::bind(&path).expect("bind");
        let listener =
            Listener::of(&profile(json!({"listenerPath": path, "listenerMetadata": "for you"}))).expect("of");
        let (mut reader, writer) = io::pipe().expect("pipe");
        listener.send(writer.as_fd(), 8, state()).expect("send");
        drop(writer);

        let (mut connection, _) = agent.accept().expect("accept");
        let mut buffer = [0; 4096];
        let (length, mut fds) = socket::receive(connection.as_fd(), &mut buffer).expect("receive");
        let message: Value = serde_json::from_slice(&buffer[..length]).expect("JSON");
        assert_eq!(
            message,
            json!({
                "ociVersion": "1.3.0", "fds": ["seccompFd"], "pid": 8, "metadata": "for you",
                "state": {"ociVersion": "1.3.0", "id": "box", "status": "creating", "pid": 7, "bundle": ""}
            })
        );
        std::fs::File::from(fds.pop().expect("one descriptor")).write_all(b"through").expect("write");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!((text.as_str(), fds.len()), ("through", 0));
        assert_eq!(connection.read(&mut buffer).expect("end"), 0);
    }

    #[test]
    fn a_message_larger_than_the_sockets_buffer_arrives_whole() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("agent");
        let agent = UnixListener::bind(&path).expect("bind");
        let words = "x".repeat(1 << 20);
        let listener = Listener::of(&profile(json!({"listenerPath": path, "listenerMetadata": words}))).expect("of");
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            agent.accept().expect("accept").0.read_to_string(&mut text).expect("read");
            text
        });
        let (reader, _writer) = io::pipe().expect("pipe");
        listener.send(reader.as_fd(), 8, state()).expect("send");
        let message: Value = serde_json::from_str(&reading.join().expect("thread")).expect("JSON");
        assert_eq!(message["metadata"].as_str().map(str::len), Some(1 << 20));
    }

    #[test]
    fn one_who_does_not_read_is_not_waited_for_without_end() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("agent");
        let _agent = UnixListener::bind(&path).expect("bind");
        let words = "x".repeat(4 << 20);
        let listener = Listener::of(&profile(json!({"listenerPath": path, "listenerMetadata": words}))).expect("of");
        let (reader, _writer) = io::pipe().expect("pipe");
        let error =
            listener.send_within(Duration::from_millis(20), reader.as_fd(), 8, state()).expect_err("nobody reads");
        assert!(matches!(error, ListenerError::Send { source, .. } if source.kind() == io::ErrorKind::TimedOut));
    }

    #[test]
    fn a_listener_that_nobody_takes_is_an_error_that_names_the_socket() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("nobody");
        let listener = Listener::of(&profile(json!({"listenerPath": path}))).expect("of");
        let (reader, _writer) = io::pipe().expect("pipe");
        let error = listener.send(reader.as_fd(), 8, state()).expect_err("nobody listens");
        assert!(error.to_string().contains(path.to_str().expect("text")), "{error}");
        assert!(matches!(error, ListenerError::Connect { source, .. } if source.kind() == io::ErrorKind::NotFound));
    }

    #[test]
    fn a_path_that_cannot_be_a_sockets_is_refused() {
        let long = format!("/{}", "x".repeat(LONGEST_PATH));
        for (path, reason) in [
            (Value::Null, "is missing"),
            (json!(""), "is empty"),
            (json!("agent"), "is not an absolute path"),
            (json!(long), "is longer"),
        ] {
            let error = Listener::of(&profile(json!({"listenerPath": path}))).expect_err("refused").to_string();
            assert!(error.starts_with("linux.seccomp.listenerPath: ") && error.contains(reason), "{error}");
        }
    }
}
