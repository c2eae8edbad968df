//! `GetContainerEvents`: what happens to sandboxes and containers from now on, each event with the whole pod as it was
//! then.
//!
//! A sandbox is told of as a container of its own id: it is created and started when it is ready, stopped when it is
//! stopped or lost, and deleted. That is how containerd and CRI-O tell of theirs, and what a kubelet's evented PLEG wants:
//! it forgets a pod when the sandbox of that id was deleted.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _, stream};
use portreeve_engine::{ContainerStatus, EngineEvent, Owner, PodEvent};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::cri::v1::{self, ContainerEventResponse, ContainerEventType};
use crate::cri::{Cri, view};

/// Events as they come.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

pub(super) fn answer(cri: &Cri) -> Events {
    let shown = cri.clone();
    events(cri.engine.subscribe_with_pods(), cri.stop.clone(), move |one| shown.show(one))
}

/// Every event until `stop`, or until the client has read so slowly that some were lost. Either ends the stream with an
/// error: a kubelet then lists everything and asks for events anew, and a stream that only ended would tell it nothing.
///
/// `show` gives a container, as it was at the event, the words of CRI.
fn events(
    happened: broadcast::Receiver<Arc<PodEvent>>,
    stop: CancellationToken,
    show: impl Fn(&ContainerStatus) -> v1::ContainerStatus + Clone + Send + 'static,
) -> Events {
    let pieces = stream::unfold(Some(happened), move |rest| {
        let (stop, show) = (stop.clone(), show.clone());
        async move {
            let mut happened = rest?;
            let event = tokio::select! {
                biased;
                // cancel-safe: only waits.
                () = stop.cancelled() => Err(Status::unavailable("the agent is stopping")),
                // cancel-safe: what is not received stays for the next time.
                event = happened.recv() => event.map_err(|error| match error {
                    RecvError::Lagged(missed) => {
                        Status::data_loss(format!("{missed} events were not read in time: list, and ask anew"))
                    }
                    RecvError::Closed => Status::unavailable("the agent is stopping"),
                }),
            };
            Some(match event {
                Ok(event) => (told(&event, &show).into_iter().map(Ok).collect(), Some(happened)),
                Err(end) => (vec![Err(end)], None),
            })
        }
    });
    Box::pin(pieces.map(stream::iter).flatten())
}

/// What a client is told of an event: nothing when the pod is not of CRI.
fn told(happened: &PodEvent, show: impl Fn(&ContainerStatus) -> v1::ContainerStatus) -> Vec<ContainerEventResponse> {
    use ContainerEventType as Type;
    if happened.sandbox.owner != Owner::Cri {
        return Vec::new();
    }
    let sandbox = happened.sandbox.id.as_str();
    let (id, kinds): (&str, &[Type]) = match &happened.event {
        EngineEvent::SandboxReady(_) => (sandbox, &[Type::ContainerCreatedEvent, Type::ContainerStartedEvent]),
        EngineEvent::SandboxStopped(_) | EngineEvent::SandboxLost { .. } => (sandbox, &[Type::ContainerStoppedEvent]),
        EngineEvent::SandboxRemoved(_) => (sandbox, &[Type::ContainerDeletedEvent]),
        EngineEvent::ContainerCreated { id, .. } => (id.as_str(), &[Type::ContainerCreatedEvent]),
        EngineEvent::ContainerStarted { id, .. } => (id.as_str(), &[Type::ContainerStartedEvent]),
        EngineEvent::ContainerExited { id, .. } => (id.as_str(), &[Type::ContainerStoppedEvent]),
        EngineEvent::ContainerRemoved { id, .. } => (id.as_str(), &[Type::ContainerDeletedEvent]),
    };
    let event = |kind: &Type| ContainerEventResponse {
        container_id: id.to_owned(),
        container_event_type: (*kind).into(),
        created_at: view::nanoseconds(happened.at),
        pod_sandbox_status: Some(view::sandbox_status(&happened.sandbox)),
        containers_statuses: happened.containers.iter().map(&show).collect(),
    };
    kinds.iter().map(event).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use jiff::Timestamp;
    use portreeve_engine::{Namespaces, SandboxId, SandboxMetadata, SandboxState, SandboxStatus};

    use super::*;

    fn shown(container: &ContainerStatus) -> v1::ContainerStatus {
        view::container_status(container, &[])
    }

    fn event(owner: Owner, make: impl FnOnce(SandboxId) -> EngineEvent) -> Arc<PodEvent> {
        let id: SandboxId = "0".repeat(64).parse().unwrap();
        let sandbox = SandboxStatus {
            id: id.clone(),
            metadata: SandboxMetadata { name: "a".into(), namespace: "b".into(), uid: "u".into(), attempt: 0 },
            owner,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            state: SandboxState::Ready,
            created_at: Timestamp::UNIX_EPOCH,
            handler: None,
            ips: Vec::new(),
            warnings: Vec::new(),
            shim_pid: None,
            namespaces: Namespaces::default(),
            privileged: false,
            cgroup_parent: String::new(),
            log_directory: PathBuf::new(),
        };
        let at = Timestamp::from_nanosecond(7).unwrap();
        Arc::new(PodEvent { event: make(id), at, sandbox, containers: Vec::new() })
    }

    #[test]
    fn a_sandbox_is_told_of_as_a_container_of_its_id() {
        use ContainerEventType as Type;
        let kinds = |event: &PodEvent| -> Vec<Type> {
            let told = told(event, shown);
            for one in &told {
                let pod = one.pod_sandbox_status.as_ref().unwrap();
                assert_eq!((&one.container_id, one.created_at), (&pod.id, 7));
                assert_eq!(pod.metadata.as_ref().unwrap().uid, "u");
            }
            told.iter().map(ContainerEventResponse::container_event_type).collect()
        };
        let ready = event(Owner::Cri, EngineEvent::SandboxReady);
        assert_eq!(kinds(&ready), [Type::ContainerCreatedEvent, Type::ContainerStartedEvent]);
        assert_eq!(kinds(&event(Owner::Cri, EngineEvent::SandboxStopped)), [Type::ContainerStoppedEvent]);
        let lost = event(Owner::Cri, |id| EngineEvent::SandboxLost { id, reason: String::new() });
        assert_eq!(kinds(&lost), [Type::ContainerStoppedEvent]);
        assert_eq!(kinds(&event(Owner::Cri, EngineEvent::SandboxRemoved)), [Type::ContainerDeletedEvent]);
        assert_eq!(kinds(&event(Owner::Node, EngineEvent::SandboxReady)), []);
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_hears_so_and_the_stream_ends() {
        let (happened, listener) = broadcast::channel(2);
        let mut events = events(listener, CancellationToken::new(), shown);
        happened.send(event(Owner::Cri, EngineEvent::SandboxStopped)).unwrap();
        assert!(events.next().await.unwrap().is_ok());
        for _ in 0..3 {
            happened.send(event(Owner::Cri, EngineEvent::SandboxStopped)).unwrap();
        }
        let end = events.next().await.unwrap().unwrap_err();
        assert_eq!(end.code(), tonic::Code::DataLoss);
        assert!(end.message().starts_with("1 events"), "{end}");
        assert!(events.next().await.is_none());
    }

    #[tokio::test]
    async fn a_stream_ends_with_the_agent_and_says_so() {
        let (_happened, listener) = broadcast::channel(2);
        let stop = CancellationToken::new();
        let mut events = events(listener, stop.clone(), shown);
        stop.cancel();
        assert_eq!(events.next().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
        assert!(events.next().await.is_none());
    }
}
