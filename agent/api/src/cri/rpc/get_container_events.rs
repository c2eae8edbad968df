//! `GetContainerEvents`: what happens to containers from now on, each event with the whole pod.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use jiff::Timestamp;
use portreeve_engine::{ContainerId, EngineEvent, SandboxId};
use tokio_stream::wrappers::BroadcastStream;
use tonic::Status;

use crate::cri::v1::{ContainerEventResponse, ContainerEventType};
use crate::cri::{Cri, view};

/// Events as they come.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

pub(super) fn answer(cri: &Cri) -> Events {
    let cri = cri.clone();
    let happened = BroadcastStream::new(cri.engine.subscribe());
    let stop = cri.stop.clone();
    Box::pin(happened.take_until(stop.cancelled_owned()).filter_map(move |event| {
        let told = match event {
            Ok(event) => told(&cri, &event).map(Ok),
            // A client that reads too slowly lists anew.
            Err(error) => Some(Err(Status::data_loss(error.to_string()))),
        };
        std::future::ready(told)
    }))
}

fn told(cri: &Cri, event: &EngineEvent) -> Option<ContainerEventResponse> {
    let (sandbox, id, kind): (&SandboxId, &ContainerId, _) = match event {
        EngineEvent::ContainerCreated { sandbox, id } => (sandbox, id, ContainerEventType::ContainerCreatedEvent),
        EngineEvent::ContainerStarted { sandbox, id } => (sandbox, id, ContainerEventType::ContainerStartedEvent),
        EngineEvent::ContainerExited { sandbox, id, .. } => (sandbox, id, ContainerEventType::ContainerStoppedEvent),
        EngineEvent::ContainerRemoved { sandbox, id } => (sandbox, id, ContainerEventType::ContainerDeletedEvent),
        EngineEvent::SandboxReady(_)
        | EngineEvent::SandboxStopped(_)
        | EngineEvent::SandboxLost { .. }
        | EngineEvent::SandboxRemoved(_) => return None,
    };
    let pod = cri.find_sandbox(sandbox.as_str()).ok()??;
    Some(ContainerEventResponse {
        container_id: id.to_string(),
        container_event_type: kind.into(),
        created_at: view::nanoseconds(Timestamp::now()),
        pod_sandbox_status: Some(view::sandbox_status(&pod)),
        containers_statuses: cri.containers_in(&pod.id).iter().map(view::container_status).collect(),
    })
}
