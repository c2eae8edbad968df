//! A model of a node: applies steps to an observation, and refuses what no executor may be told.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodStatus};
use portreeve_plan::{
    Action, Attempted, Beside, ContainerId, ContainerState, ContainerView, DesiredPod, Exit, Failure, HookState,
    ImageName, ImageView, Intent, ObservedPod, Plan, ProbeVerdicts, Resources, ResourcesView, SandboxId, SandboxState,
    SandboxView, Step, Stopping, Verdict, container_record, needed_images, plan, remember, sandbox_record, status,
    volume_records,
};
use serde_json::Value;

use crate::pods;

/// A node with one pod.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) desired: DesiredPod,
    pub(crate) observed: ObservedPod,
    pub(crate) now: Timestamp,
    /// Images that no registry has.
    pub(crate) unknown_images: BTreeSet<String>,
    /// Every step that was carried out, printed.
    pub(crate) done: Vec<String>,
    pub(crate) ids: u32,
}

impl Node {
    pub(crate) fn new(desired: DesiredPod) -> Node {
        Node {
            now: desired.admitted_at,
            desired,
            observed: ObservedPod { host_ips: vec!["192.0.2.1".to_owned()], ..ObservedPod::default() },
            unknown_images: BTreeSet::new(),
            done: Vec::new(),
            ids: 0,
        }
    }

    /// A node on which the pod of `spec` runs, and has so for 20 minutes.
    pub(crate) fn running(spec: Value) -> Node {
        Node::running_pod(pods::wanted(spec))
    }

    pub(crate) fn running_pod(desired: DesiredPod) -> Node {
        let mut node = Node::new(desired);
        node.settle();
        node.pass(1200);
        node
    }

    pub(crate) fn plan(&self) -> Plan {
        plan(&self.desired, &self.observed, self.now)
    }

    pub(crate) fn status(&self) -> PodStatus {
        status(&self.desired, &self.observed, self.now)
    }

    /// The steps, printed without their reasons.
    pub(crate) fn steps(&self) -> Vec<String> {
        self.plan().steps.iter().map(|step| step.action.to_string()).collect()
    }

    pub(crate) fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// The manifest was edited.
    pub(crate) fn edit(&mut self, spec: Value) {
        let mut pod = pods::pod(spec);
        pod.metadata.annotations.clone_from(&self.desired.pod.metadata.annotations);
        self.desired.pod = Arc::new(pod);
        self.desired.generation += 1;
        self.desired.changed_at = self.now;
    }

    pub(crate) fn annotate(&mut self, name: &str, value: &str) {
        let pod = Arc::make_mut(&mut self.desired.pod);
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(name.to_owned(), value.to_owned());
    }

    pub(crate) fn remove(&mut self) {
        self.desired.intent = Intent::Remove { since: self.now, grace: None };
    }

    pub(crate) fn drain(&mut self) {
        self.desired.intent = Intent::Rest { since: self.now, grace: None };
    }

    /// The newest container of this name.
    pub(crate) fn container(&mut self, name: &str) -> &mut ContainerView {
        let all = self.observed.containers.iter_mut().filter(|view| view.name == name);
        all.max_by_key(|view| view.attempt).expect("there is such a container")
    }

    pub(crate) fn sandbox(&mut self) -> &mut SandboxView {
        self.observed.sandboxes.last_mut().expect("there is a sandbox")
    }

    pub(crate) fn exit(&mut self, name: &str, code: i32) {
        let now = self.now;
        let view = self.container(name);
        let ContainerState::Running { started_at } = view.state else { panic!("{name} runs") };
        view.state = exited(code, Some(started_at), now);
    }

    pub(crate) fn probe(&mut self, name: &str, change: impl FnOnce(&mut ProbeVerdicts)) {
        let id = self.container(name).id.clone();
        change(self.observed.probes.entry(id).or_default());
    }

    pub(crate) fn fail(&mut self, attempted: Attempted, reason: &str) {
        let attempts = self.observed.failures.get(&attempted).map_or(1, |f| f.attempts + 1);
        let failure = self.failure(attempts, reason);
        self.observed.failures.insert(attempted, failure);
    }

    pub(crate) fn failure(&self, attempts: u32, reason: &str) -> Failure {
        Failure {
            at: self.now,
            attempts,
            generation: self.desired.generation,
            reason: reason.to_owned(),
            message: "it said no".to_owned(),
            not_before: None,
        }
    }

    /// Carries out the plan of this moment, or its first `limit` steps.
    pub(crate) fn round(&mut self, limit: usize) -> Result<Plan, String> {
        let plan = self.plan();
        let seen = self.observed.clone();
        for step in plan.steps.iter().take(limit) {
            if !self.apply(step, &seen)? {
                break;
            }
        }
        self.observed.history = remember(&self.observed, self.status());
        Ok(plan)
    }

    /// One round in which stops only begin, and what does not go beside them is left to a later one.
    /// Says whether anything was done.
    pub(crate) fn slow_round(&mut self) -> Result<bool, String> {
        let plan = self.plan();
        let seen = self.observed.clone();
        let mut did = false;
        for step in &plan.steps {
            match step.action.beside_stops(&self.stopping()) {
                Beside::Now => {}
                Beside::Skip => continue,
                Beside::Wait => break,
            }
            if let Action::KillContainer { id, grace, cause, .. } = &step.action {
                let deadline = self.now + SignedDuration::try_from(*grace).map_err(|e| e.to_string())?;
                let cause = *cause;
                let view = self.view(id)?;
                if view.stopping.is_none() {
                    view.stopping = Some(Stopping { deadline, pre_stop_ran: true, cause });
                    did = true;
                }
                continue;
            }
            did = true;
            if !self.apply(step, &seen)? {
                break;
            }
        }
        self.observed.history = remember(&self.observed, self.status());
        Ok(did)
    }

    fn stopping(&self) -> BTreeSet<String> {
        let stopped = |view: &&ContainerView| self.ours(view) && running(view) && view.stopping.is_some();
        self.observed.containers.iter().filter(stopped).map(|view| view.name.clone()).collect()
    }

    /// One of the stops that have begun is through; false if there is none.
    pub(crate) fn end_a_stop(&mut self) -> bool {
        let (now, uid) = (self.now, self.desired.uid.clone());
        let mut views = self.observed.containers.iter_mut();
        let found = views.find(|view| view.uid == uid && running(view) && view.stopping.is_some());
        let Some(view) = found else { return false };
        let ContainerState::Running { started_at } = view.state else { return false };
        view.state = exited(137, Some(started_at), now);
        true
    }

    /// Rounds until nothing is left to do at this moment; init containers end by themselves, and
    /// startup probes succeed.
    pub(crate) fn settle(&mut self) {
        for _ in 0..40 {
            let plan = self.round(usize::MAX).unwrap_or_else(|wrong| panic!("{wrong}\n{self:#?}"));
            let moved = self.world_moves();
            if plan.is_empty() && !moved {
                return;
            }
        }
        panic!("does not settle; it did {:#?}\nand wants {}", self.done, self.plan());
    }

    /// What happens by itself: init containers end, probes succeed.
    pub(crate) fn world_moves(&mut self) -> bool {
        let spec = self.desired.pod.spec.clone().unwrap_or_default();
        let now = self.now;
        let mut moved = false;
        for view in &mut self.observed.containers {
            let ContainerState::Running { started_at } = view.state else { continue };
            let init = spec.init_containers.iter().flatten().find(|c| c.name == view.name);
            if init.is_some_and(|c| c.restart_policy.is_none()) {
                view.state = exited(0, Some(started_at), now);
                moved = true;
            }
            let probed = init.into_iter().chain(&spec.containers).find(|c| c.name == view.name);
            if probed.is_some_and(|c| c.startup_probe.is_some()) {
                let verdicts = self.observed.probes.entry(view.id.clone()).or_default();
                if verdicts.startup == Verdict::Unknown {
                    verdicts.startup = Verdict::Success;
                    moved = true;
                }
            }
        }
        moved
    }

    fn id(&mut self) -> String {
        self.ids += 1;
        format!("{:04}", self.ids)
    }

    fn spec_of(&self, name: &str) -> Option<Container> {
        let spec = self.desired.pod.spec.clone().unwrap_or_default();
        let mut all = spec.init_containers.into_iter().flatten().chain(spec.containers);
        all.find(|container| container.name == name)
    }

    fn home(&self) -> Result<SandboxId, String> {
        let mut ready = self.observed.sandboxes.iter().filter(|s| s.state == SandboxState::Ready);
        ready.next_back().map(|sandbox| sandbox.id.clone()).ok_or_else(|| "no ready sandbox".to_owned())
    }

    fn view(&mut self, id: &ContainerId) -> Result<&mut ContainerView, String> {
        let uid = self.desired.uid.clone();
        let view = self.observed.containers.iter_mut().find(|view| view.id == *id);
        let view = view.ok_or_else(|| format!("no container {id}"))?;
        if view.uid != uid {
            return Err(format!("container {id} belongs to another pod"));
        }
        Ok(view)
    }

    fn box_view(&mut self, id: &SandboxId) -> Result<&mut SandboxView, String> {
        let uid = self.desired.uid.clone();
        let view = self.observed.sandboxes.iter_mut().find(|view| view.id == *id);
        let view = view.ok_or_else(|| format!("no sandbox {id}"))?;
        if view.uid != uid {
            return Err(format!("sandbox {id} belongs to another pod"));
        }
        Ok(view)
    }

    fn made(&mut self, name: &str, attempt: u32) -> Result<&mut ContainerView, String> {
        let home = self.home()?;
        let mut all = self.observed.containers.iter_mut();
        all.find(|view| view.name == name && view.attempt == attempt && view.sandbox == home)
            .ok_or_else(|| format!("container {name} {attempt} was not created"))
    }

    /// Carries out one step; `Ok(false)` is a failure of the world, `Err` one of the planner.
    pub(crate) fn apply(&mut self, step: &Step, seen: &ObservedPod) -> Result<bool, String> {
        let now = self.now;
        self.done.push(step.action.to_string());
        if step.reason.is_empty() {
            return Err(format!("{} has no reason", step.action));
        }
        match &step.action {
            Action::RecordFinished { finished } => {
                let mut finished = (**finished).clone();
                finished.status = Some(Box::new(self.status()));
                self.desired.finished = Some(finished);
            }
            Action::PullImage { image, .. } => return Ok(self.pull(image)),
            Action::MountVolumes { volumes } | Action::RefreshVolumes { volumes } => {
                let records = volume_records(&self.desired);
                for name in volumes {
                    let mounted = self.observed.volumes.get(name);
                    let refresh = matches!(step.action, Action::RefreshVolumes { .. });
                    if mounted.is_some() != refresh {
                        return Err(format!("volume {name} is mounted twice, or refreshed before"));
                    }
                    let record = records.get(name).ok_or_else(|| format!("no volume {name}"))?;
                    self.observed.volumes.insert(name.clone(), record.clone());
                }
            }
            Action::UnmountVolumes { volumes } => {
                if self.observed.containers.iter().any(|view| running(view) && self.ours(view)) {
                    return Err("volumes are unmounted under a running container".to_owned());
                }
                self.observed.volumes.retain(|name, _| !volumes.contains(name));
            }
            Action::CreateSandbox { attempt, backoff } => {
                if self.home().is_ok() {
                    return Err("there is a sandbox already".to_owned());
                }
                let record = sandbox_record(&self.desired, seen, *backoff);
                let id = SandboxId(format!("sandbox-{}", self.id()));
                self.observed.sandboxes.push(SandboxView {
                    id,
                    uid: self.desired.uid.clone(),
                    attempt: *attempt,
                    created_at: now,
                    state: SandboxState::Ready,
                    ips: vec!["10.0.0.2".to_owned()],
                    record: Some(Arc::new(record)),
                });
            }
            Action::CreateContainer { container, attempt, backoff } => {
                self.create(container, *attempt, *backoff)?;
            }
            Action::StartContainer { container, attempt } => self.start(container, *attempt)?,
            Action::RunPostStart { container, attempt } => {
                let view = self.made(container, *attempt)?;
                if !running(view) {
                    return Err(format!("the hook of {container} runs without it"));
                }
                view.post_start = HookState::Done;
            }
            Action::KillContainer { id, grace, cause, .. } => {
                let deadline = now + SignedDuration::try_from(*grace).map_err(|e| e.to_string())?;
                let view = self.view(id)?;
                let ContainerState::Running { started_at } = view.state else {
                    return Err(format!("container {id} is killed and does not run"));
                };
                view.state = exited(137, Some(started_at), now);
                view.stopping = Some(Stopping { deadline, pre_stop_ran: true, cause: *cause });
            }
            Action::RemoveContainer { id, .. } => {
                if running(self.view(id)?) {
                    return Err(format!("container {id} is removed while it runs"));
                }
                self.observed.containers.retain(|view| view.id != *id);
            }
            Action::UpdateResources { id, resources, .. } => {
                self.view(id)?.resources = ResourcesView::InEffect(*resources);
            }
            Action::StopSandbox { id } => {
                self.box_view(id)?.state = SandboxState::Stopped;
                let inside = |view: &&ContainerView| view.sandbox == *id && running(view);
                if let Some(view) = self.observed.containers.iter().find(inside) {
                    return Err(format!("sandbox of running container {} is stopped", view.id));
                }
            }
            Action::RemoveSandbox { id } => {
                if self.box_view(id)?.state != SandboxState::Stopped {
                    return Err(format!("sandbox {id} is removed and not stopped"));
                }
                if self.observed.containers.iter().any(|view| view.sandbox == *id) {
                    return Err(format!("sandbox {id} is removed before its containers"));
                }
                self.observed.sandboxes.retain(|view| view.id != *id);
            }
        }
        Ok(true)
    }

    fn ours(&self, view: &ContainerView) -> bool {
        view.uid == self.desired.uid
    }

    fn pull(&mut self, image: &ImageName) -> bool {
        let ok = !self.unknown_images.contains(&image.0);
        let attempts = match self.observed.images.get(image) {
            Some(ImageView::Failed(failure)) => failure.attempts + 1,
            _ => 1,
        };
        let failed = ImageView::Failed(self.failure(attempts, "ErrImagePull"));
        let id = format!("sha256:{image}");
        let present = ImageView::Present { id, user: None, pulled_at: Some(self.now), failure: None };
        self.observed.images.insert(image.clone(), if ok { present } else { failed });
        ok
    }

    fn create(&mut self, name: &str, attempt: u32, backoff: Option<std::time::Duration>) -> Result<(), String> {
        let spec = self.spec_of(name).ok_or_else(|| format!("the pod has no container {name}"))?;
        let image = ImageName(spec.image.clone().unwrap_or_default());
        let pod = self.desired.pod.spec.clone().unwrap_or_default();
        for needed in needed_images(&pod, &spec) {
            if !matches!(self.observed.images.get(&needed.name), Some(ImageView::Present { .. })) {
                return Err(format!("{name} is created without image {}", needed.name));
            }
        }
        let mut mounts = spec.volume_mounts.iter().flatten();
        if let Some(mount) = mounts.find(|mount| !self.observed.volumes.contains_key(&mount.name)) {
            return Err(format!("{name} is created without volume {}", mount.name));
        }
        let used = |view: &ContainerView| view.name == name && view.attempt == attempt;
        if self.observed.containers.iter().any(used) {
            return Err(format!("attempt {attempt} of {name} was there before"));
        }
        let record = container_record(&self.desired, name, backoff);
        let record = record.ok_or_else(|| format!("no record for {name}"))?;
        let view = ContainerView {
            id: ContainerId(format!("{name}-{}", self.id())),
            uid: self.desired.uid.clone(),
            sandbox: self.home()?,
            name: name.to_owned(),
            attempt,
            created_at: self.now,
            state: ContainerState::Created,
            image: image.0.clone(),
            image_id: format!("sha256:{image}"),
            resources: ResourcesView::InEffect(record.resources),
            record: Some(Arc::new(record)),
            post_start: HookState::Pending,
            stopping: None,
        };
        self.observed.containers.push(view);
        Ok(())
    }

    fn start(&mut self, name: &str, attempt: u32) -> Result<(), String> {
        let ours = |view: &&ContainerView| view.name == name && running(view);
        if self.observed.containers.iter().filter(|view| self.ours(view)).any(|v| ours(&v)) {
            return Err(format!("two containers {name} at once"));
        }
        let spec = self.desired.pod.spec.clone().unwrap_or_default();
        let inits: Vec<Container> = spec.init_containers.unwrap_or_default();
        let home = self.home()?;
        let before = inits.iter().take_while(|init| init.name != name);
        for init in before {
            let mut all = self.observed.containers.iter();
            let passed = all.any(|view| {
                let ended = matches!(&view.state, ContainerState::Exited(exit) if exit.code == 0);
                let sidecar = init.restart_policy.is_some();
                view.name == init.name && view.sandbox == home && (ended || sidecar)
            });
            if !passed {
                return Err(format!("{name} starts before init container {}", init.name));
            }
        }
        let now = self.now;
        let view = self.made(name, attempt)?;
        if view.state != ContainerState::Created {
            return Err(format!("{name} is started twice"));
        }
        view.state = ContainerState::Running { started_at: now };
        Ok(())
    }
}

pub(crate) fn running(view: &ContainerView) -> bool {
    matches!(view.state, ContainerState::Running { .. })
}

pub(crate) fn exited(code: i32, started_at: Option<Timestamp>, at: Timestamp) -> ContainerState {
    ContainerState::Exited(Exit { code, signal: None, reason: None, message: None, started_at, finished_at: at })
}

/// Whether what is observed is what is desired. Written against the promise, not the planner.
pub(crate) fn satisfies(node: &Node) -> Result<(), String> {
    let ours = |uid: &portreeve_plan::PodUid| *uid == node.desired.uid;
    let containers: Vec<_> = node.observed.containers.iter().filter(|v| ours(&v.uid)).collect();
    let sandboxes: Vec<_> = node.observed.sandboxes.iter().filter(|v| ours(&v.uid)).collect();
    let check = |ok: bool, wrong: &str| if ok { Ok(()) } else { Err(wrong.to_owned()) };
    if matches!(node.desired.intent, Intent::Remove { .. }) {
        check(containers.is_empty(), "containers are left")?;
        check(sandboxes.is_empty(), "sandboxes are left")?;
        return check(node.observed.volumes.is_empty(), "volumes are left");
    }
    if matches!(node.desired.intent, Intent::Rest { .. }) {
        let status = node.status();
        let goes_on = status.message.is_some_and(|message| message.contains("starts when the agent starts again"));
        check(goes_on || node.desired.finished.is_some(), "its end is not recorded")?;
    }
    let spec = node.desired.pod.spec.clone().unwrap_or_default();
    let known = |name: &str| {
        let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
        all.any(|container| container.name == name)
    };
    let unknown = check(containers.iter().all(|view| known(&view.name)), "an unknown container is left");
    if node.desired.finished.is_some() || matches!(node.desired.intent, Intent::Rest { .. }) {
        if node.desired.intent == Intent::Run {
            unknown?;
        }
        check(!containers.iter().any(|view| running(view)), "a container runs after the end")?;
        let stopped = sandboxes.iter().all(|s| s.state == SandboxState::Stopped);
        check(stopped, "a sandbox is there after the end")?;
        return check(node.observed.volumes.is_empty(), "volumes are there after the end");
    }
    check(sandboxes.len() == 1, "not exactly one sandbox")?;
    let home = sandboxes.first().ok_or("no sandbox")?;
    check(home.state == SandboxState::Ready, "the sandbox is not ready")?;
    let made = home.record.as_ref().ok_or("the sandbox's record is unreadable")?;
    check(made.spec.hostname == spec.hostname, "the host name is another one")?;
    check(made.spec.volumes == spec.volumes, "the volumes are others")?;
    check(node.observed.volumes == volume_records(&node.desired), "volumes are not up to date")?;
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.is_some());
    let inits = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.is_none());
    for container in spec.containers.iter().chain(sidecars) {
        let name = &container.name;
        let mine: Vec<_> = containers.iter().filter(|view| view.name == *name).collect();
        let up: Vec<_> = mine.iter().filter(|view| running(view)).collect();
        let idle = mine.iter().any(|view| view.state == ContainerState::Created);
        check(!idle, &format!("a {name} was created and never started"))?;
        let dead = mine.len() - up.len();
        check(dead <= 1, &format!("{name} has more than one old record"))?;
        let last = mine.iter().max_by_key(|view| view.attempt);
        let code = last.and_then(|view| match &view.state {
            ContainerState::Exited(exit) => Some(exit.code),
            ContainerState::Unknown => Some(137),
            _ => None,
        });
        let over = match spec.restart_policy.as_deref() {
            Some("Never") => code.is_some(),
            Some("OnFailure") => code == Some(0),
            _ => false,
        };
        // Or it was over before its sandbox was replaced.
        let over = over || made.carried.get(name).is_some_and(|c| c.completed && mine.is_empty());
        if over && container.restart_policy.is_none() && up.is_empty() {
            continue;
        }
        check(up.len() == 1, &format!("{name} runs {} times", up.len()))?;
        let view = up.first().ok_or("it runs")?;
        check(view.sandbox == home.id, &format!("{name} runs elsewhere"))?;
        let record = view.record.as_ref().ok_or("its record is unreadable")?;
        let mut had = record.container.clone();
        had.resources.clone_from(&container.resources);
        had.liveness_probe.clone_from(&container.liveness_probe);
        check(had == *container, &format!("{name} runs an old definition"))?;
        let limits = ResourcesView::InEffect(Resources::of(container));
        check(view.resources == limits, &format!("{name} has other limits"))?;
        let hook = container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
        let hooked = !hook || view.post_start == HookState::Done;
        check(hooked, &format!("the hook of {name} has not run"))?;
        let asked = node.desired.restart_requested_at;
        let fresh = asked.is_none_or(|asked| view.created_at >= asked);
        check(fresh, &format!("{name} was not restarted"))?;
        let verdicts = node.observed.probes.get(&view.id).cloned().unwrap_or_default();
        let alive = !matches!(verdicts.liveness, Verdict::Failure { .. });
        check(alive, &format!("{name} is not alive"))?;
    }
    for container in inits {
        let mine = containers.iter().filter(|view| view.name == container.name);
        check(mine.clone().count() <= 1, "an init container has more than one record")?;
        check(!mine.clone().any(|view| running(view)), "an init container runs")?;
    }
    unknown
}
