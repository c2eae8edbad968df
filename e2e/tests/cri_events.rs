//! What happens to pods, as a kubelet that listens hears of it.

use std::time::Duration;

use portreeve_e2e::cri::{pod, shell, v1};
use portreeve_e2e::{Agent, BUSYBOX, Cri, World, skipped_without_root};
use tonic::{Code, Streaming};

fn listen(agent: &Agent<'_>) -> (Cri, Streaming<v1::ContainerEventResponse>) {
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let asked = v1::GetEventsRequest {};
    let events = cri.wait(async { cri.runtime_client().get_container_events(asked).await.unwrap().into_inner() });
    (cri, events)
}

fn next(
    cri: &Cri,
    events: &mut Streaming<v1::ContainerEventResponse>,
) -> Result<Option<v1::ContainerEventResponse>, tonic::Status> {
    cri.wait(async { tokio::time::timeout(Duration::from_secs(20), events.message()).await }).expect("an event in time")
}

#[test]
fn what_happens_to_a_pod_is_told_in_order_with_the_pod_as_it_was_then() {
    use v1::ContainerEventType as Type;
    if skipped_without_root("cri_events") {
        return;
    }
    let world = World::new("cri-events");
    let agent = Agent::with_busybox(&world);
    let (cri, mut events) = listen(&agent);
    // Nothing is read before all is over: what is told is not what is found when it is read.
    let config = pod("a", &world.path("cri-logs"));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let id = cri.create(&sandbox, shell("main", BUSYBOX, "exit 4"), &config).unwrap();
    cri.start(&id).unwrap();
    let _ended = cri.wait_exited(&id);
    cri.remove(&id).unwrap();
    cri.stop_sandbox(&sandbox).unwrap();
    cri.remove_sandbox(&sandbox).unwrap();

    let (ready, not_ready) = (v1::PodSandboxState::SandboxReady, v1::PodSandboxState::SandboxNotready);
    let none: &[v1::ContainerState] = &[];
    let mut before = 0;
    for (who, kind, pod, containers) in [
        (&sandbox, Type::ContainerCreatedEvent, ready, none),
        (&sandbox, Type::ContainerStartedEvent, ready, none),
        (&id, Type::ContainerCreatedEvent, ready, &[v1::ContainerState::ContainerCreated]),
        (&id, Type::ContainerStartedEvent, ready, &[v1::ContainerState::ContainerRunning]),
        (&id, Type::ContainerStoppedEvent, ready, &[v1::ContainerState::ContainerExited]),
        (&id, Type::ContainerDeletedEvent, ready, none),
        (&sandbox, Type::ContainerStoppedEvent, not_ready, none),
        (&sandbox, Type::ContainerDeletedEvent, not_ready, none),
    ] {
        let event = next(&cri, &mut events).unwrap().expect("the stream goes on");
        assert_eq!((&event.container_id, event.container_event_type()), (who, kind), "{event:?}");
        let status = event.pod_sandbox_status.as_ref().unwrap();
        assert_eq!((&status.id, status.state()), (&sandbox, pod), "{event:?}");
        assert_eq!(status.metadata, config.metadata);
        let states: Vec<_> = event.containers_statuses.iter().map(v1::ContainerStatus::state).collect();
        assert_eq!(states, containers, "{event:?}");
        if kind == Type::ContainerStoppedEvent && who == &id {
            assert_eq!(event.containers_statuses[0].exit_code, 4);
        }
        assert!(event.created_at >= before, "{event:?}");
        before = event.created_at;
    }
}

#[test]
fn a_sandbox_that_is_lost_and_then_stopped_has_stopped_once() {
    use v1::ContainerEventType as Type;
    if skipped_without_root("cri_events") {
        return;
    }
    let world = World::new("cri-events-lost");
    let agent = Agent::with_busybox(&world);
    let (cri, mut events) = listen(&agent);
    let config = pod("a", &world.path("cri-logs"));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let shim = agent.census().processes.into_iter().find(|process| process.contains(&sandbox)).expect("a shim");
    let shim = shim.split(' ').next().and_then(|pid| pid.parse().ok()).expect("its pid");
    rustix::process::kill_process(rustix::process::Pid::from_raw(shim).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    let mut told = Vec::new();
    let mut tell = |events: &mut Streaming<v1::ContainerEventResponse>| {
        let event = next(&cri, events).unwrap().expect("the stream goes on");
        assert_eq!(event.container_id, sandbox, "{event:?}");
        told.push(event.container_event_type());
        told.clone()
    };
    while tell(&mut events).last() != Some(&Type::ContainerStoppedEvent) {}
    cri.stop_sandbox(&sandbox).unwrap();
    cri.stop_sandbox(&sandbox).unwrap();
    cri.remove_sandbox(&sandbox).unwrap();
    let told = tell(&mut events);
    use Type::{ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent};
    assert_eq!(told, [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent]);
}

#[test]
fn a_stream_of_events_ends_with_an_error_when_the_agent_does() {
    if skipped_without_root("cri_events") {
        return;
    }
    let world = World::new("cri-events-end");
    let mut agent = Agent::with_busybox(&world);
    let (cri, mut events) = listen(&agent);
    agent.terminate();
    assert_eq!(next(&cri, &mut events).unwrap_err().code(), Code::Unavailable);
}
