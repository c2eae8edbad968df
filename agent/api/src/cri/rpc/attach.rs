//! `Attach`: where the streams of a container's own process will be.

use portreeve_engine::{AttachRequest, ContainerState};
use tonic::Status;

use super::{Answer, exec};
use crate::cri::Cri;
use crate::cri::streams::Job;
use crate::cri::v1::{self, AttachResponse};

pub(super) fn answer(cri: &Cri, asked: &v1::AttachRequest) -> Answer<AttachResponse> {
    let container = cri.container(&asked.container_id)?;
    exec::streams(asked.tty, asked.stdin, asked.stdout, asked.stderr)?;
    if container.state != ContainerState::Running {
        return Err(Status::failed_precondition(format!("container {} does not run", container.id)));
    }
    let request = AttachRequest {
        // One that was made without input has none to give.
        stdin: asked.stdin && container.stdin,
        stdout: asked.stdout,
        stderr: asked.stderr,
    };
    let url = cri.streams.url(Job::Attach { container: container.id, request, tty: asked.tty })?;
    Ok(AttachResponse { url })
}
