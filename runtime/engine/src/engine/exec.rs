//! Processes beside a container's first one, attached streams, and connections into the pod.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::unix::pipe;
use tokio::net::{TcpSocket, TcpStream};

use super::Core;
use super::table::Container;
use super::terminal::{Master, Resizer};
use crate::client::Client;
use crate::container::ContainerState;
use crate::protocol::{Answer, Call, ExecCall};
use crate::session::{DRAIN, EXEC_OUTPUT_LIMIT};
use crate::{
    AttachRequest, AttachSession, ContainerId, EngineError, ExecOutput, ExecRequest, ExecSession, Input, Output,
    SandboxId,
};

/// Kills one exec'd process.
#[derive(Debug, Clone)]
pub(crate) struct ExecKill {
    client: Arc<Client>,
    exec: u64,
}

impl ExecKill {
    pub(crate) async fn kill(&self) -> Result<(), EngineError> {
        self.client.ask(Call::KillExec { exec: self.exec }).await.map(drop)
    }

    /// Gives the order, and waits for nothing.
    pub(crate) fn order(&self) {
        self.client.kill_exec(self.exec);
    }
}

fn streams(source: io::Error) -> EngineError {
    EngineError::Shim(format!("making streams: {source}"))
}

/// A pipe whose reading end is ours.
fn from_process() -> Result<(Output, OwnedFd), EngineError> {
    let (reader, writer) = io::pipe().map_err(streams)?;
    let reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(streams)?;
    Ok((Box::new(reader), writer.into()))
}

/// A pipe whose writing end is ours.
fn to_process() -> Result<(Input, OwnedFd), EngineError> {
    let (reader, writer) = io::pipe().map_err(streams)?;
    let writer = pipe::Sender::from_owned_fd(writer.into()).map_err(streams)?;
    Ok((Box::new(writer), reader.into()))
}

impl Core {
    fn running(&self, id: &ContainerId) -> Result<(Arc<Container>, Arc<Client>), EngineError> {
        let container = self.find_container(id)?;
        match container.state() {
            ContainerState::Running => {}
            state => return Err(EngineError::WrongState { id: id.clone(), state, wanted: "running" }),
        }
        let client = self.find_sandbox(&container.sandbox)?.ready()?;
        Ok((container, client))
    }

    pub(super) async fn exec(&self, id: &ContainerId, request: ExecRequest) -> Result<ExecSession, EngineError> {
        let (_, client) = self.running(id)?;
        if request.command.is_empty() {
            return Err(EngineError::invalid("command", "is empty"));
        }
        if let Some(bad) = request.command.iter().find(|arg| arg.contains('\0')) {
            return Err(EngineError::invalid("command", format!("{bad:?} contains a NUL byte")));
        }
        let pipes = !request.tty;
        let mut fds = Vec::new();
        let mut stdin = None;
        if pipes && request.stdin {
            let (ours, theirs) = to_process()?;
            stdin = Some(ours);
            fds.push(theirs);
        }
        let mut outputs = [None, None];
        for (slot, wanted) in outputs.iter_mut().zip([request.stdout, request.stderr]) {
            if pipes && wanted {
                let (ours, theirs) = from_process()?;
                *slot = Some(ours);
                fds.push(theirs);
            }
        }
        let call = ExecCall {
            container: id.to_string(),
            args: request.command,
            envs: request.envs.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            cwd: request.working_dir,
            tty: request.tty,
            size: request.size.map(|size| (size.columns, size.rows)),
            stdin: pipes && request.stdin,
            stdout: pipes && request.stdout,
            stderr: pipes && request.stderr,
        };
        let ((answer, mut fds), exit) = client.exec(Call::Exec(call), fds).await?;
        let Answer::Exec { exec, .. } = answer else {
            return Err(EngineError::Shim("the shim gave no answer to an exec".to_owned()));
        };
        let [stdout, stderr] = outputs;
        let kill = ExecKill { client, exec };
        let mut session = ExecSession { stdin, stdout, stderr, resizer: None, exit, kill, ends_with_us: pipes };
        if request.tty {
            let master = fds.pop().ok_or_else(|| EngineError::Shim("the shim passed no terminal".to_owned()))?;
            let master = Master::new(master).map_err(streams)?;
            session.resizer = Some(master.resizer());
            session.stdin = request.stdin.then(|| Box::new(master.clone()) as Input);
            session.stdout = Some(Box::new(master));
        }
        Ok(session)
    }

    pub(super) async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Duration,
        output_limit: usize,
    ) -> Result<ExecOutput, EngineError> {
        let request = ExecRequest { command, stdout: true, stderr: true, ..ExecRequest::default() };
        let work = async {
            let mut session = self.exec(id, request).await?;
            let limit = output_limit.min(EXEC_OUTPUT_LIMIT);
            let (mut stdout, mut stderr) = (Collected::new(limit), Collected::new(limit));
            let (out, err) = (session.stdout.take(), session.stderr.take());
            let mut reading = Box::pin(async { tokio::join!(stdout.read(out), stderr.read(err)) });
            let mut finished = false;
            let exit_code = loop {
                tokio::select! {
                    // cancel-safe: a oneshot
                    code = session.wait() => break code?,
                    // cancel-safe: pinned, goes on where it was
                    _ = &mut reading, if !finished => finished = true,
                }
            };
            if !finished {
                // Heirs of its streams may hold them open for ever.
                let _held_open = tokio::time::timeout(DRAIN, &mut reading).await;
            }
            drop(reading);
            let truncated = stdout.truncated || stderr.truncated;
            Ok(ExecOutput { stdout: stdout.bytes, stderr: stderr.bytes, exit_code, truncated })
        };
        if timeout.is_zero() {
            return work.await;
        }
        match tokio::time::timeout(timeout, work).await {
            Ok(answer) => answer,
            // The session was dropped with the work: the process is being killed.
            Err(_) => Err(EngineError::ExecTimeout { timeout }),
        }
    }

    pub(super) async fn attach(&self, id: &ContainerId, request: AttachRequest) -> Result<AttachSession, EngineError> {
        let (container, client) = self.running(id)?;
        let (tty, takes_input) = {
            let facts = container.facts();
            (facts.record.config.tty, facts.record.config.stdin)
        };
        if request.stdin && !takes_input {
            return Err(EngineError::invalid("stdin", "the container was made without input"));
        }
        let (stdin, stdout, stderr) = (request.stdin, request.stdout, request.stderr && !tty);
        let call = Call::Attach { container: id.to_string(), stdin, stdout, stderr };
        let (_, fds) = client.ask(call).await?;
        let mut fds = fds.into_iter();
        let mut take = |wanted: bool| -> Result<Option<OwnedFd>, EngineError> {
            match (wanted, wanted.then(|| fds.next()).flatten()) {
                (true, None) => Err(EngineError::Shim("the shim passed too few streams".to_owned())),
                (_, fd) => Ok(fd),
            }
        };
        let stdin = match take(stdin)? {
            Some(fd) if tty => Some(Box::new(Master::new(fd).map_err(streams)?) as Input),
            Some(fd) => Some(Box::new(pipe::Sender::from_owned_fd(fd).map_err(streams)?) as Input),
            None => None,
        };
        let output = |fd: Option<OwnedFd>| -> Result<Option<Output>, EngineError> {
            let receiver = fd.map(pipe::Receiver::from_owned_fd).transpose().map_err(streams)?;
            Ok(receiver.map(|receiver| Box::new(receiver) as Output))
        };
        let (stdout, stderr) = (output(take(stdout)?)?, output(take(stderr)?)?);
        let resizer = tty.then(|| Resizer::of_container(client, id.clone()));
        Ok(AttachSession { stdin, stdout, stderr, resizer })
    }

    pub(super) async fn forward(&self, id: &SandboxId, port: u16) -> Result<TcpStream, EngineError> {
        let client = self.find_sandbox(id)?.ready()?;
        let mut first = None;
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let (_, mut fds) = client.ask(Call::Socket { ipv6: address.is_ipv6() }).await?;
            let fd = fds.pop().ok_or_else(|| EngineError::Shim("the shim passed no socket".to_owned()))?;
            let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(fd));
            match socket.connect(SocketAddr::new(address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        let source = first.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into());
        Err(EngineError::Forward { id: id.clone(), port, source })
    }
}

/// Output up to a bound; the rest is read, so that nobody blocks, and dropped.
#[derive(Debug)]
struct Collected {
    bytes: Vec<u8>,
    limit: usize,
    truncated: bool,
}

impl Collected {
    fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, truncated: false }
    }

    async fn read(&mut self, stream: Option<impl AsyncRead + Unpin>) {
        let Some(mut stream) = stream else { return };
        let mut chunk = vec![0; 16 << 10];
        while let Ok(count) = stream.read(&mut chunk).await {
            if count == 0 {
                return;
            }
            let room = self.limit.saturating_sub(self.bytes.len());
            self.bytes.extend(chunk.iter().take(count.min(room)));
            self.truncated |= count > room;
        }
    }
}
