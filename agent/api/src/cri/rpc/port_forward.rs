//! `PortForward`: where connections to a pod's ports will be carried. Over SPDY each connection names its port, also one
//! that was not asked for here.

use portreeve_engine::SandboxState;
use tonic::Status;

use super::Answer;
use crate::cri::Cri;
use crate::cri::streams::Job;
use crate::cri::v1::{PortForwardRequest, PortForwardResponse};

/// The most ports that one call names.
const MAX_PORTS: usize = 64;

pub(super) fn answer(cri: &Cri, asked: &PortForwardRequest) -> Answer<PortForwardResponse> {
    let sandbox = cri.sandbox(&asked.pod_sandbox_id)?;
    if sandbox.state != SandboxState::Ready {
        return Err(Status::failed_precondition(format!("sandbox {} is not ready", sandbox.id)));
    }
    if asked.port.len() > MAX_PORTS {
        return Err(Status::invalid_argument(format!("port: more than {MAX_PORTS}")));
    }
    let port = |port: &i32| {
        let number = u16::try_from(*port).ok().filter(|port| *port > 0);
        number.ok_or_else(|| Status::invalid_argument(format!("port: {port} is no port")))
    };
    let ports = asked.port.iter().map(port).collect::<Result<_, _>>()?;
    let url = cri.streams.url(Job::Forward { sandbox: sandbox.id, ports })?;
    Ok(PortForwardResponse { url })
}
