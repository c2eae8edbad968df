//! One look at a pod: what is desired and what is observed, brought together per container name.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

use crate::backoff::after;
use crate::desired::{DesiredPod, PodUid};
use crate::observed::{
    Attempted, Carried, ContainerState, ContainerView, Exit, Failure, ObservedPod, Past, ProbeVerdicts, SandboxState,
    SandboxView, Verdict,
};

/// Everything that `plan` and `status` look at. Things of other pods are not in it.
#[derive(Debug)]
pub(crate) struct World<'a> {
    pub(crate) desired: &'a DesiredPod,
    pub(crate) observed: &'a ObservedPod,
    pub(crate) now: Timestamp,
    /// This pod's sandboxes, the newest last.
    pub(crate) sandboxes: Vec<&'a SandboxView>,
    /// This pod's containers, by name and attempt.
    pub(crate) containers: Vec<&'a ContainerView>,
    /// The containers of the spec, init containers first.
    pub(crate) slots: Vec<Slot<'a>>,
    pub(crate) policy: Policy,
}

/// The place of one container in the spec.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot<'a> {
    pub(crate) container: &'a Container,
    pub(crate) role: Role,
}

impl<'a> Slot<'a> {
    pub(crate) fn name(&self) -> &'a str {
        &self.container.name
    }

    pub(crate) fn has_post_start(&self) -> bool {
        let lifecycle = self.container.lifecycle.as_ref();
        lifecycle.is_some_and(|lifecycle| lifecycle.post_start.is_some())
    }

    pub(crate) fn has_pre_stop(&self) -> bool {
        let lifecycle = self.container.lifecycle.as_ref();
        lifecycle.is_some_and(|lifecycle| lifecycle.pre_stop.is_some())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: runs beside the containers.
    Sidecar,
    Main,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    Always,
    OnFailure,
    Never,
}

impl<'a> World<'a> {
    pub(crate) fn new(desired: &'a DesiredPod, observed: &'a ObservedPod, now: Timestamp) -> World<'a> {
        let ours = |uid: &PodUid| *uid == desired.uid;
        let mut sandboxes: Vec<_> = observed.sandboxes.iter().filter(|s| ours(&s.uid)).collect();
        sandboxes.sort_by_key(|sandbox| (sandbox.attempt, sandbox.created_at, &sandbox.id));
        let mut containers: Vec<_> = observed.containers.iter().filter(|c| ours(&c.uid)).collect();
        containers.sort_by_key(|view| (&view.name, view.attempt, view.created_at, &view.id));
        let spec = desired.spec();
        let init = spec.init_containers.iter().flatten().map(|container| Slot {
            container,
            role: match container.restart_policy.as_deref() {
                Some("Always") => Role::Sidecar,
                _ => Role::Init,
            },
        });
        let main = spec.containers.iter().map(|container| Slot { container, role: Role::Main });
        World {
            desired,
            observed,
            now,
            sandboxes,
            containers,
            slots: init.chain(main).collect(),
            policy: match spec.restart_policy.as_deref() {
                Some("Never") => Policy::Never,
                Some("OnFailure") => Policy::OnFailure,
                _ => Policy::Always,
            },
        }
    }

    /// The newest sandbox: the one that counts, in whatever state it is.
    pub(crate) fn home(&self) -> Option<&'a SandboxView> {
        self.sandboxes.last().copied()
    }

    /// The newest sandbox, if containers can live in it.
    pub(crate) fn ready_home(&self) -> Option<&'a SandboxView> {
        self.home().filter(|home| home.state == SandboxState::Ready && home.record.is_some())
    }

    /// The containers of this name, the newest last.
    pub(crate) fn instances(&self, name: &str) -> impl Iterator<Item = &'a ContainerView> {
        self.containers.iter().copied().filter(move |view| view.name == name)
    }

    /// The newest container of this name in the newest sandbox.
    pub(crate) fn latest(&self, name: &str) -> Option<&'a ContainerView> {
        let home = self.home()?;
        self.instances(name).filter(|view| view.sandbox == home.id).last()
    }

    /// What the container of this name had come to before the newest sandbox.
    pub(crate) fn carried(&self, name: &str) -> Option<Carried> {
        self.home()?.record.as_ref()?.carried.get(name).cloned()
    }

    /// What the pod had come to before every record of it went.
    pub(crate) fn past(&self) -> Option<&'a Past> {
        let desired = self.desired;
        self.observed.history.past.as_deref().filter(|past| {
            self.home().is_none()
                && past.generation == desired.generation
                && past.restart_requested_at == desired.restart_requested_at
        })
    }

    /// The least attempt that no container of this name has had, as far as known.
    pub(crate) fn next_attempt(&self, name: &str) -> u32 {
        let seen = self.instances(name).map(|view| view.attempt);
        let records = self.sandboxes.iter().filter_map(|sandbox| sandbox.record.as_ref());
        let records = records.map(|record| &record.carried).chain(self.past().map(|past| &past.carried));
        let carried = records.filter_map(|carried| carried.get(name)).map(|c| c.attempt);
        let next = seen.chain(carried).max().map_or(0, |attempt| attempt.saturating_add(1));
        next.max(self.observed.history.attempts.get(name).copied().unwrap_or(0))
    }

    pub(crate) fn next_sandbox_attempt(&self) -> u32 {
        self.home().map_or(0, |home| home.attempt.saturating_add(1))
    }

    /// The failure of a kind of step, unless an edit has made it void.
    pub(crate) fn failure(&self, attempted: &Attempted) -> Option<&'a Failure> {
        let failure = self.observed.failures.get(attempted)?;
        self.counts(failure).then_some(failure)
    }

    /// Whether a failure still holds back the next try: an edit of the pod voids it.
    pub(crate) fn counts(&self, failure: &Failure) -> bool {
        failure.generation >= self.desired.generation
    }

    pub(crate) fn probes(&self, view: &ContainerView) -> ProbeVerdicts {
        self.observed.probes.get(&view.id).cloned().unwrap_or_default()
    }

    /// Whether a running container counts as started: hook done and startup probe passed.
    pub(crate) fn started(&self, slot: &Slot<'_>, view: &ContainerView) -> bool {
        let hook = !slot.has_post_start() || view.post_start == crate::observed::HookState::Done;
        let probe = slot.container.startup_probe.is_none() || self.probes(view).startup == Verdict::Success;
        is_running(view) && hook && probe
    }

    /// Whether the init containers are through: main containers exist in the newest sandbox.
    pub(crate) fn initialized(&self) -> bool {
        let mut mains = self.slots.iter().filter(|slot| slot.role == Role::Main);
        mains.any(|slot| self.latest(slot.name()).is_some())
    }

    /// `status.startTime`: what an earlier status said, else the admission.
    pub(crate) fn start_time(&self) -> Timestamp {
        let previous = self.observed.history.previous.as_ref();
        let previous = previous.and_then(|status| status.start_time.as_ref());
        previous.map_or(self.desired.admitted_at, |time| time.0)
    }

    /// When `activeDeadlineSeconds` is over.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        let seconds = self.desired.spec().active_deadline_seconds?;
        let seconds = u64::try_from(seconds).unwrap_or(0);
        Some(after(self.start_time(), std::time::Duration::from_secs(seconds)))
    }
}

pub(crate) fn is_running(view: &ContainerView) -> bool {
    matches!(view.state, ContainerState::Running { .. })
}

/// How a container ended, if it did. One that left no trace counts as killed.
pub(crate) fn exit_of(view: &ContainerView) -> Option<Exit> {
    match &view.state {
        ContainerState::Exited(exit) => Some(exit.clone()),
        ContainerState::Unknown => Some(Exit {
            code: 137,
            signal: None,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("the container went away without a record of its end".to_owned()),
            started_at: None,
            finished_at: view.created_at,
        }),
        ContainerState::Created | ContainerState::Running { .. } => None,
    }
}
