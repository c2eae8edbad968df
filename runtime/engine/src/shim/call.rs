//! What an agent asks for, and the answer. One request at a time.

use std::os::fd::{AsFd as _, OwnedFd};

use jiff::Timestamp;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::container::{Container, Refusal};
use super::pod::Namespaces;
use super::run::Shim;
use super::{exec, pod, process_id};
use crate::protocol::{Answer, BareRequest, Call, Failure, Message, Request, VERSION};

type Reply = Result<(Answer, Vec<OwnedFd>), Refusal>;

impl Shim {
    /// Answers one frame of a connection.
    pub(super) fn answer(&mut self, connection: u64, json: &[u8], fds: Vec<OwnedFd>) {
        let request = match serde_json::from_slice::<Request>(json) {
            Ok(request) => request,
            Err(error) => {
                // Without an id nobody waits for an answer.
                if let Ok(BareRequest { id }) = serde_json::from_slice(json) {
                    let refusal = Refusal::new(Failure::Unsupported, format!("this shim does not know: {error}"));
                    self.say(connection, &Message::Reply { id, answer: refusal.answer() }, Vec::new());
                }
                return;
            }
        };
        let id = request.id;
        let big = matches!(request.call, Call::Create(_) | Call::Exec(_));
        let (answer, fds) = match request.call {
            Call::Shutdown => {
                self.ending = Some((connection, id));
                for container in self.containers.values() {
                    if container.kill(nix::libc::SIGKILL, true).is_err() {
                        let _second_way = container.kill(nix::libc::SIGKILL, false);
                    }
                }
                return;
            }
            call => self.call(connection, call, fds).unwrap_or_else(|refusal| (refusal.answer(), Vec::new())),
        };
        self.say(connection, &Message::Reply { id, answer }, fds);
        if big {
            portreeve_sys::memory::release_free();
            portreeve_sys::memory::release_stack();
        }
    }

    fn call(&mut self, connection: u64, call: Call, fds: Vec<OwnedFd>) -> Reply {
        match call {
            Call::Hello { version } => self.hello(connection, version),
            Call::State => {
                let containers = self.containers.values().map(Container::report).collect();
                Ok((Answer::State { containers }, Vec::new()))
            }
            Call::Create(call) => {
                if self.find(&call.container).is_some() {
                    return Err(Refusal::new(Failure::Other, "there is a container of this id already"));
                }
                if self.ending.is_some() {
                    return Err(Refusal::new(Failure::Other, "the sandbox is being stopped"));
                }
                // Its number is no other process's: whatever ends while this goes on is reaped afterwards.
                if let Some((target, pid)) = &call.processes_of
                    && !self.find(target).is_some_and(|(_, one)| one.running() && u32::try_from(one.pid) == Ok(*pid))
                {
                    return Err(Refusal::new(Failure::NotFound, format!("container {target} does not run any more")));
                }
                let directory = self.directory.join("containers").join(&call.container);
                let (container, warnings) =
                    Container::create(directory, call, self.runtime.as_ref(), &self.namespaces)?;
                let pid = u32::try_from(container.pid).unwrap_or(0);
                let number = self.number();
                self.containers.insert(number, container);
                Ok((Answer::Created { pid, warnings }, Vec::new()))
            }
            Call::Start { container } => match self.start(&container) {
                Ok(started_at) => Ok((Answer::Started { started_at }, Vec::new())),
                Err(refusal) => {
                    self.settle(&container);
                    Err(refusal)
                }
            },
            Call::Kill { container, signal, all } => done(self.container(&container)?.kill(signal, all)),
            Call::Delete { container } => self.delete(&container),
            Call::Exec(call) => {
                let missing = || Refusal::new(Failure::NotFound, "the container does not run");
                let (of, container) =
                    self.find(&call.container).filter(|(_, one)| one.running()).ok_or_else(missing)?;
                let (running, terminal) = exec::exec(of, container, call, fds)?;
                let pid = u32::try_from(running.pid).unwrap_or(0);
                let number = self.number();
                self.execs.insert(number, running);
                Ok((Answer::Exec { exec: number, pid }, terminal.into_iter().collect()))
            }
            Call::KillExec { exec } => {
                if let Some(running) = self.execs.get(&exec) {
                    let cgroup = self.containers.get(&running.container).map(|one| &one.cgroup);
                    exec::kill_tree(running.pid, running.pidfd.as_fd(), cgroup);
                }
                Ok((Answer::Done, Vec::new()))
            }
            Call::Resize { container, columns, rows } => done(self.container(&container)?.resize(columns, rows)),
            Call::Attach { container, stdin, stdout, stderr } => {
                let fds = self.container(&container)?.attach(stdin, stdout, stderr)?;
                Ok((Answer::Done, fds))
            }
            Call::Socket { ipv6 } => {
                let family = if ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
                    .map_err(|error| Refusal::context("making a socket", &error))?;
                Ok((Answer::Done, vec![socket]))
            }
            Call::Sysctls { values } => {
                done(pod::set(&values).map_err(|error| Refusal::context("setting up the pod", &error)))
            }
            Call::ReopenLog { container } => done(self.container(&container)?.reopen_log()),
            Call::Shutdown => Ok((Answer::Done, Vec::new())),
        }
    }

    fn hello(&mut self, connection: u64, version: u32) -> Reply {
        self.greet(connection);
        let netns = self.namespaces.network.as_ref().map(OwnedFd::try_clone).transpose();
        let netns = netns.map_err(|error| Refusal::context("passing the network namespace", &error))?;
        let answer = Answer::Hello {
            version: VERSION.min(version),
            pid: process_id(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            user_namespace: Namespaces::path(self.namespaces.user.as_ref()),
            pid_namespace: Namespaces::path(self.namespaces.pid.as_ref()),
            hooks: true,
        };
        Ok((answer, netns.into_iter().collect()))
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Refusal> {
        self.find(id).map(|(_, container)| container).ok_or_else(|| missing(id))
    }

    fn start(&mut self, id: &str) -> Result<Timestamp, Refusal> {
        let container = self.containers.values_mut().find(|one| one.id == id);
        container.ok_or_else(|| missing(id))?.start(&self.namespaces)
    }

    /// After a failed start: the process is ending; its exit is announced before the failure is answered.
    fn settle(&mut self, id: &str) {
        if let Some((_, container)) = self.find(id)
            && container.alive()
        {
            let _nothing_to_wait_for = portreeve_sys::process::has_ended(container.first(), 1000);
        }
        self.reap();
    }

    fn delete(&mut self, id: &str) -> Reply {
        let Some((number, container)) = self.find(id) else {
            return Ok((Answer::Done, Vec::new()));
        };
        if container.running() {
            return Err(Refusal::new(Failure::Other, "the container still runs"));
        }
        // A merely created one ends when it is dropped; it is reaped as an orphan.
        if let Some(mut container) = self.containers.remove(&number) {
            container.give_up(&self.namespaces);
            container.forget();
        }
        Ok((Answer::Done, Vec::new()))
    }
}

fn missing(id: &str) -> Refusal {
    Refusal::new(Failure::NotFound, format!("this shim has no container {id}"))
}

fn done(result: Result<(), Refusal>) -> Reply {
    result.map(|()| (Answer::Done, Vec::new()))
}
