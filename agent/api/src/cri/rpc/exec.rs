//! `Exec`: where the streams of a command will be. It runs when somebody comes there.

use portreeve_engine::{ContainerState, ExecRequest};
use tonic::Status;

use super::Answer;
use crate::cri::Cri;
use crate::cri::streams::Job;
use crate::cri::v1::{self, ExecResponse};

/// The most bytes a command has, arguments together.
const MAX_COMMAND_BYTES: usize = 128 * 1024;

pub(super) fn answer(cri: &Cri, asked: v1::ExecRequest) -> Answer<ExecResponse> {
    let container = cri.container(&asked.container_id)?;
    if asked.cmd.first().is_none_or(String::is_empty) {
        return Err(Status::invalid_argument("cmd: is empty"));
    }
    if asked.cmd.iter().map(String::len).sum::<usize>() > MAX_COMMAND_BYTES {
        return Err(Status::invalid_argument("cmd: is longer than 128 KiB"));
    }
    streams(asked.tty, asked.stdin, asked.stdout, asked.stderr)?;
    if container.state != ContainerState::Running {
        return Err(Status::failed_precondition(format!("container {} does not run", container.id)));
    }
    let request = ExecRequest {
        command: asked.cmd,
        tty: asked.tty,
        stdin: asked.stdin,
        stdout: asked.stdout,
        stderr: asked.stderr,
        ..ExecRequest::default()
    };
    let url = cri.streams.url(Job::Exec { container: container.id, request })?;
    Ok(ExecResponse { url })
}

/// What `Exec` and `Attach` both want of the streams.
pub(super) fn streams(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<(), Status> {
    if tty && stderr {
        return Err(Status::invalid_argument("stderr: a terminal has one output; set stdout alone"));
    }
    if !stdin && !stdout && !stderr {
        return Err(Status::invalid_argument("one of stdin, stdout and stderr must be set"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_one_output_and_a_session_has_a_stream() {
        assert!(streams(true, true, true, false).is_ok() && streams(false, false, false, true).is_ok());
        assert!(streams(true, true, true, true).is_err() && streams(true, false, false, false).is_err());
    }
}
