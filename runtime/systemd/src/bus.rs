//! A conversation with the system's message bus: one call after the other, each answered before the next, on this thread.
//!
//! ```text
//!   connect  --  AUTH EXTERNAL, BEGIN  --  Hello  --  AddMatch(JobRemoved)  --  call, answer  --  call, answer ...
//!                                                                                    signals that come meanwhile are kept
//! ```
//!
//! What messages consist of is encoded by `zbus`; its connections are not used, because they need an async runtime and
//! threads, which the maker of a container may not have.
//!
//! Source: D-Bus specification, "Message Protocol", "Authentication Protocol".

use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{DynamicType, Endian, to_bytes};
use zbus::{OwnedObjectPath, Variant};

use crate::SystemdError;
use crate::properties::Property;

/// Where the bus listens: D-Bus specification, "Well-known Message Bus Instances".
const SOCKET: &str = "/run/dbus/system_bus_socket";

/// How long an answer, or the end of a job, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer has at most this many bytes; the ones that are waited for have a few hundred.
const LIMIT: usize = 1 << 20;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

// Header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// Who is called.
struct Callee {
    name: &'static str,
    path: &'static str,
    interface: &'static str,
}

const BUS: Callee =
    Callee { name: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };
const MANAGER: Callee = Callee {
    name: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

/// systemd's manager, by way of the bus.
#[derive(Debug)]
pub struct Manager {
    stream: UnixStream,
    patience: Duration,
    serial: u32,
    /// Jobs that have ended, and how: their signals may come before the answer that names the job.
    ended: Vec<(String, String)>,
}

/// A message that has come.
struct Message {
    kind: u8,
    reply_to: Option<u32>,
    member: Option<String>,
    error: Option<String>,
    body: Vec<u8>,
    endian: Endian,
}

impl Manager {
    /// Connects to the system's manager.
    ///
    /// # Errors
    /// [`SystemdError::Connect`], [`SystemdError::Talk`].
    pub fn connect() -> Result<Self, SystemdError> {
        let failed = |source| SystemdError::Connect { socket: SOCKET, source };
        let socket = portreeve_sys::socket::connect(Path::new(SOCKET), PATIENCE).map_err(failed)?;
        let mut manager =
            Self { stream: greet(socket).map_err(failed)?, patience: PATIENCE, serial: 0, ended: Vec::new() };
        manager.call(&BUS, "Hello", "", &())?;
        let rule = format!(
            "type='signal',sender='{}',path='{}',interface='{}',member='JobRemoved'",
            MANAGER.name, MANAGER.path, MANAGER.interface
        );
        manager.call(&BUS, "AddMatch", "s", &(rule.as_str(),))?;
        Ok(manager)
    }

    /// Makes a scope, and returns when it is there. One of this name that has failed before is forgotten.
    ///
    /// # Errors
    /// [`SystemdError::Refused`], also for a name that a living unit has; [`SystemdError::Job`], [`SystemdError::Late`];
    /// [`SystemdError::Talk`].
    pub fn start(&mut self, unit: &str, properties: &[Property]) -> Result<(), SystemdError> {
        let started = match self.start_once(unit, properties) {
            Err(SystemdError::Refused { .. }) if self.reset(unit).is_ok() => self.start_once(unit, properties),
            other => other,
        };
        if let Err(SystemdError::Job { .. } | SystemdError::Late { .. }) = &started {
            // A job that waits for others would make a scope of nobody later. How it failed says more than that it could
            // not be taken back.
            let _as_far_as_possible = self.call(&MANAGER, "StopUnit", "ss", &(unit, "replace"));
            let _as_far_as_possible = self.reset(unit);
        }
        started
    }

    fn start_once(&mut self, unit: &str, properties: &[Property]) -> Result<(), SystemdError> {
        let no_others: [(&str, Vec<Property>); 0] = [];
        let body = (unit, "fail", properties, no_others.as_slice());
        let answer = self.call(&MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", &body);
        let job = answer.map_err(|error| error.about(format!("making the unit {unit}")))?.job()?;
        self.wait(unit, &job)
    }

    /// Stops a unit, and forgets one that has failed; returns when that is done. One that is not there is stopped.
    ///
    /// # Errors
    /// [`SystemdError::Refused`], [`SystemdError::Job`], [`SystemdError::Late`], [`SystemdError::Talk`].
    pub fn stop(&mut self, unit: &str) -> Result<(), SystemdError> {
        let stopped = match self.call(&MANAGER, "StopUnit", "ss", &(unit, "replace")) {
            Err(SystemdError::Refused { name, .. }) if name == NO_SUCH_UNIT => return Ok(()),
            Err(error) => Err(error.about(format!("stopping the unit {unit}"))),
            Ok(answer) => answer.job().and_then(|job| self.wait(unit, &job)),
        };
        match self.reset(unit) {
            // It is forgotten as soon as it has stopped.
            Err(SystemdError::Refused { name, .. }) if name == NO_SUCH_UNIT => stopped,
            other => stopped.and(other),
        }
    }

    /// Changes properties of a unit, until the machine is booted anew.
    ///
    /// # Errors
    /// [`SystemdError::Refused`], [`SystemdError::Talk`].
    pub fn set(&mut self, unit: &str, properties: &[Property]) -> Result<(), SystemdError> {
        let answer = self.call(&MANAGER, "SetUnitProperties", "sba(sv)", &(unit, true, properties));
        answer.map(drop).map_err(|error| error.about(format!("setting properties of the unit {unit}")))
    }

    fn reset(&mut self, unit: &str) -> Result<(), SystemdError> {
        let answer = self.call(&MANAGER, "ResetFailedUnit", "s", &(unit,));
        answer.map(drop).map_err(|error| error.about(format!("forgetting the failure of the unit {unit}")))
    }

    /// Waits for the end of a job.
    fn wait(&mut self, unit: &str, job: &str) -> Result<(), SystemdError> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(ended, _)| ended == job) {
                return match result.as_str() {
                    "done" => Ok(()),
                    other => Err(SystemdError::Job { unit: unit.to_owned(), result: other.to_owned() }),
                };
            }
            match self.receive(deadline) {
                Err(SystemdError::Talk(error)) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(SystemdError::Late { unit: unit.to_owned() });
                }
                other => other.map(drop)?,
            }
        }
    }

    /// Calls a method, whose arguments have the types of `signature`, and waits for its answer.
    fn call(
        &mut self,
        to: &Callee,
        member: &str,
        signature: &str,
        body: &(impl Serialize + DynamicType),
    ) -> Result<Message, SystemdError> {
        self.serial += 1;
        let serial = self.serial;
        let body = if signature.is_empty() { Vec::new() } else { encode(body)? };
        let bytes = frame(to, member, signature, serial, &body)?;
        self.stream.write_all(&bytes).map_err(SystemdError::Talk)?;
        let deadline = Instant::now() + self.patience;
        loop {
            let Some(answer) = self.receive(deadline)?.filter(|message| message.reply_to == Some(serial)) else {
                continue;
            };
            if answer.kind != ERROR {
                return Ok(answer);
            }
            let text = answer.read::<(String,)>().map_or_else(|_| String::new(), |(text,)| text);
            let name = answer.error.unwrap_or_default();
            return Err(SystemdError::Refused { what: format!("calling {member}"), name, text });
        }
    }

    /// The next message that is an answer; keeps what signals say.
    fn receive(&mut self, deadline: Instant) -> Result<Option<Message>, SystemdError> {
        let message = self.next(deadline).map_err(SystemdError::Talk)?;
        if message.kind == SIGNAL && message.member.as_deref() == Some("JobRemoved") {
            let (_, job, _, result) = message.read::<(u32, OwnedObjectPath, String, String)>()?;
            self.ended.push((job.to_string(), result));
        }
        Ok(Some(message).filter(|message| matches!(message.kind, METHOD_RETURN | ERROR)))
    }

    fn next(&mut self, deadline: Instant) -> io::Result<Message> {
        let mut start = [0; 16];
        self.read(&mut start, deadline)?;
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let endian = match start.first() {
            Some(b'l') => Endian::Little,
            Some(b'B') => Endian::Big,
            _ => return Err(wrong("the bus has sent something that is no message")),
        };
        let length = |at: usize| -> Option<usize> {
            let bytes: [u8; 4] = start.get(at..at + 4)?.try_into().ok()?;
            let length = if endian == Endian::Little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) };
            usize::try_from(length).ok()
        };
        let (body, fields) = length(4).zip(length(12)).unwrap_or_default();
        if body > LIMIT || fields > LIMIT {
            return Err(wrong("the bus has sent a message that is too long"));
        }
        let header = (start.len() + fields).next_multiple_of(8);
        let mut bytes = start.to_vec();
        bytes.resize(header + body, 0);
        self.read(bytes.get_mut(start.len()..).unwrap_or_default(), deadline)?;
        let body = bytes.split_off(header);

        type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'a>)>);
        let data = Data::new(bytes, Context::new(endian, 0));
        let header = data.deserialize::<Header<'_>>().map_err(|error| wrong(&error.to_string()))?.0;
        let mut message = Message { kind: header.1, reply_to: None, member: None, error: None, body, endian };
        for (code, value) in header.6 {
            match (code, value) {
                (REPLY_SERIAL, Variant::U32(serial)) => message.reply_to = Some(serial),
                (MEMBER, Variant::Str(name)) => message.member = Some(name.to_string()),
                (ERROR_NAME, Variant::Str(name)) => message.error = Some(name.to_string()),
                _ => {}
            }
        }
        Ok(message)
    }

    fn read(&mut self, bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "there was no answer in time");
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).ok_or_else(late)?;
        self.stream.set_read_timeout(Some(left))?;
        match self.stream.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(late()),
            other => other,
        }
    }
}

impl Message {
    fn read<T: for<'de> serde::Deserialize<'de> + zbus::Type>(&self) -> Result<T, SystemdError> {
        let data = Data::new(self.body.as_slice(), Context::new(self.endian, 0));
        Ok(data.deserialize::<T>().map_err(SystemdError::Encoding)?.0)
    }

    /// The job that a call has begun.
    fn job(&self) -> Result<String, SystemdError> {
        Ok(self.read::<(OwnedObjectPath,)>()?.0.to_string())
    }
}

/// Says who we are, which the kernel confirms to the bus.
fn greet(socket: OwnedFd) -> io::Result<UnixStream> {
    let mut stream = UnixStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let user: String =
        portreeve_sys::process::user_id().to_string().bytes().map(|byte| format!("{byte:02x}")).collect();
    stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        if line.len() > 512 || stream.read(&mut byte)? == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the bus has not answered the greeting"));
        }
        line.extend(byte);
    }
    if !line.starts_with(b"OK ") {
        let text = format!("the bus has refused the greeting: {}", String::from_utf8_lossy(&line).trim_end());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    stream.write_all(b"BEGIN\r\n")?;
    Ok(stream)
}

fn encode(value: &(impl Serialize + DynamicType)) -> Result<Vec<u8>, SystemdError> {
    let data = to_bytes(Context::new(Endian::Little, 0), value).map_err(SystemdError::Encoding)?;
    Ok(data.bytes().to_vec())
}

/// A call as it goes over the socket.
fn frame(to: &Callee, member: &str, signature: &str, serial: u32, body: &[u8]) -> Result<Vec<u8>, SystemdError> {
    let mut fields = Vec::new();
    let texts =
        [(PATH, 'o', to.path), (DESTINATION, 's', to.name), (INTERFACE, 's', to.interface), (MEMBER, 's', member)];
    for (code, kind, text) in texts {
        pad(&mut fields, 8);
        fields.extend([code, 1, u8::try_from(kind).unwrap_or_default(), 0]);
        fields.extend(length(text.len())?.to_le_bytes());
        fields.extend(text.bytes().chain([0]));
    }
    if !signature.is_empty() {
        pad(&mut fields, 8);
        fields.extend([SIGNATURE, 1, b'g', 0, u8::try_from(signature.len()).unwrap_or_default()]);
        fields.extend(signature.bytes().chain([0]));
    }
    let mut bytes = vec![b'l', METHOD_CALL, 0, 1];
    bytes.extend(length(body.len())?.to_le_bytes());
    bytes.extend(serial.to_le_bytes());
    bytes.extend(length(fields.len())?.to_le_bytes());
    bytes.extend(fields);
    pad(&mut bytes, 8);
    bytes.extend(body);
    Ok(bytes)
}

fn length(length: usize) -> Result<u32, SystemdError> {
    u32::try_from(length).map_err(|_| SystemdError::Talk(io::ErrorKind::FileTooLarge.into()))
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

#[cfg(test)]
mod tests {
    use zbus::ObjectPath;

    use super::*;

    /// A manager whose bus is what the test writes.
    fn manager() -> (Manager, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (Manager { stream: ours, patience: PATIENCE, serial: 0, ended: Vec::new() }, theirs)
    }

    /// A message of the bus's.
    fn message(kind: u8, fields: Vec<(u8, Variant<'_>)>, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).expect("short");
        let mut bytes = encode(&(b'l', kind, 0_u8, 1_u8, length, 9_u32, fields)).expect("a header");
        pad(&mut bytes, 8);
        bytes.extend(body);
        bytes
    }

    fn answer(serial: u32, body: &[u8]) -> Vec<u8> {
        message(METHOD_RETURN, vec![(REPLY_SERIAL, serial.into())], body)
    }

    fn job_removed(job: &str, result: &str) -> Vec<u8> {
        let path = ObjectPath::try_from(job).expect("a path");
        let body = encode(&(1_u32, path, "x.scope", result)).expect("a body");
        message(SIGNAL, vec![(MEMBER, "JobRemoved".into())], &body)
    }

    fn job(serial: u32, path: &str) -> Vec<u8> {
        answer(serial, &encode(&(ObjectPath::try_from(path).expect("a path"),)).expect("a body"))
    }

    #[test]
    fn a_call_is_framed_as_the_specification_says() {
        let body = encode(&("x.scope", "replace")).expect("a body");
        let bytes = frame(&MANAGER, "StopUnit", "ss", 3, &body).expect("a call");
        type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'a>)>);
        let data = Data::new(bytes.as_slice(), Context::new(Endian::Little, 0));
        let (header, read) = data.deserialize::<Header<'_>>().expect("a header");
        assert_eq!((header.0, header.1, header.3, header.5), (b'l', METHOD_CALL, 1, 3));
        let path = ObjectPath::try_from(MANAGER.path).expect("a path");
        let texts: Vec<&(u8, Variant<'_>)> = header.6.iter().filter(|(code, _)| *code != SIGNATURE).collect();
        let expected = [
            (PATH, Variant::from(path)),
            (DESTINATION, MANAGER.name.into()),
            (INTERFACE, MANAGER.interface.into()),
            (MEMBER, "StopUnit".into()),
        ];
        assert!(texts.into_iter().eq(&expected), "{:?}", header.6);
        assert_eq!(bytes[read.next_multiple_of(8)..], body);
        assert_eq!(usize::try_from(header.4).expect("a length"), body.len());
    }

    #[test]
    fn the_end_of_a_job_may_come_before_the_answer_that_names_it() {
        let (mut manager, mut bus) = manager();
        for bytes in [job_removed("/job/6", "failed"), job_removed("/job/7", "done"), job(1, "/job/7")] {
            bus.write_all(&bytes).expect("write");
        }
        manager.start("x.scope", &[]).expect("started");
    }

    #[test]
    fn a_job_that_ends_otherwise_is_an_error_that_says_how() {
        let (mut manager, mut bus) = manager();
        for bytes in [job(1, "/job/7"), job_removed("/job/7", "dependency"), job(2, "/job/8"), answer(3, &[])] {
            bus.write_all(&bytes).expect("write");
        }
        let error = manager.start("x.scope", &[]).expect_err("not done");
        assert!(error.to_string().contains("x.scope") && error.to_string().contains("dependency"), "{error}");
    }

    #[test]
    fn a_job_that_does_not_end_is_taken_back() {
        let (mut manager, mut bus) = manager();
        manager.patience = Duration::from_millis(20);
        bus.write_all(&job(1, "/job/7")).expect("write");
        let error = manager.start("x.scope", &[]).expect_err("not done").to_string();
        assert!(error.contains("x.scope") && error.contains("not ended in time"), "{error}");
        drop(manager);
        let mut calls = Vec::new();
        bus.read_to_end(&mut calls).expect("read");
        let names = ["StartTransientUnit", "StopUnit", "ResetFailedUnit"];
        let at = names.map(|name| calls.windows(name.len()).position(|window| window == name.as_bytes()));
        assert!(at.is_sorted() && at[0].is_some(), "{at:?}");
    }

    #[test]
    fn a_refusal_says_what_the_other_side_said() {
        let (mut manager, mut bus) = manager();
        let refusal = |serial: u32, name: &str| {
            let fields = vec![(REPLY_SERIAL, serial.into()), (ERROR_NAME, Variant::from(name.to_owned()))];
            message(ERROR, fields, &encode(&("no such thing",)).expect("a body"))
        };
        for bytes in [refusal(1, "a.b.C"), refusal(2, NO_SUCH_UNIT)] {
            bus.write_all(&bytes).expect("write");
        }
        let error = manager.start("x.scope", &[]).expect_err("refused").to_string();
        assert!(error.contains("making the unit x.scope") && error.contains("no such thing"), "{error}");
        // A unit that is not there is stopped.
        bus.write_all(&refusal(3, NO_SUCH_UNIT)).expect("write");
        manager.stop("x.scope").expect("stopped");
    }

    #[test]
    fn what_is_no_message_or_too_long_is_an_error() {
        for bytes in [vec![b'x'; 16], [&[b'l', 2, 0, 1], [255_u8; 12].as_slice()].concat(), vec![]] {
            let (mut manager, mut bus) = manager();
            bus.write_all(&bytes).expect("write");
            drop(bus);
            assert!(matches!(manager.set("x.scope", &[]), Err(SystemdError::Talk(_))), "{bytes:?}");
        }
    }

    #[test]
    fn a_bus_that_does_not_know_us_is_an_error() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(b"REJECTED EXTERNAL\r\n").expect("write");
        let error = greet(OwnedFd::from(ours)).expect_err("rejected").to_string();
        assert!(error.contains("REJECTED EXTERNAL"), "{error}");
    }
}
