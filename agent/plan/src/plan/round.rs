//! One round of starts: what can be started now, what must be pulled for it.

use std::collections::BTreeMap;

use crate::difference::Cost;
use crate::fate::{Fate, Replace, Start};
use crate::observed::{ContainerView, HookState, ImageName};
use crate::plan::draft::Draft;
use crate::ready::{Obstacle, Readiness, readiness};
use crate::step::{Action, WaitKind};
use crate::world::{Role, Slot, World};

/// Something to do with one container, in order.
pub(super) enum Go<'a> {
    Make { slot: Slot<'a>, start: Box<Start<'a>>, kill: Option<Box<Replace<'a>>> },
    Hook { slot: Slot<'a>, view: &'a ContainerView },
}

/// What can be started now, what must be pulled for it, and what may be pulled beside it.
#[derive(Default)]
pub(super) struct Round<'a> {
    pub(super) go: Vec<Go<'a>>,
    pub(super) pulls: BTreeMap<ImageName, (Vec<String>, String)>,
    pub(super) early: BTreeMap<ImageName, (Vec<String>, String)>,
    /// What can be started later only, and when.
    later: Vec<(&'a str, String)>,
}

impl<'a> Round<'a> {
    fn want(
        pulls: &mut BTreeMap<ImageName, (Vec<String>, String)>,
        (image, reason): (ImageName, String),
        container: &str,
    ) {
        let entry = pulls.entry(image).or_insert_with(|| (Vec::new(), reason));
        entry.0.push(container.to_owned());
    }

    /// Takes the start of a container into the round, if nothing is in its way.
    fn try_start(
        &mut self,
        world: &World<'a>,
        draft: &mut Draft,
        slot: Slot<'a>,
        start: Start<'a>,
        kill: Option<Replace<'a>>,
    ) -> bool {
        if let Some(at) = start.at.filter(|at| *at > world.now) {
            let name = slot.name();
            draft.wait(
                Some(name),
                Obstacle {
                    reason: "CrashLoopBackOff".to_owned(),
                    kind: WaitKind::BackOff,
                    message: format!("back-off restarting failed container {name}"),
                    until: Some(at),
                },
            );
            return false;
        }
        if start.created.is_none() {
            match readiness(world, slot.container, start.since) {
                Readiness::Ready => {}
                Readiness::Pull { images, look_first } => {
                    if look_first && let Some((own, _)) = images.first() {
                        self.later.push((slot.name(), format!("image {own} is there")));
                    }
                    for image in images {
                        Self::want(&mut self.pulls, image, slot.name());
                    }
                    if look_first {
                        return false;
                    }
                }
                Readiness::Blocked(obstacle) => {
                    draft.wait(Some(slot.name()), obstacle);
                    return false;
                }
            }
        }
        self.go.push(Go::Make { slot, start: Box::new(start), kill: kill.map(Box::new) });
        true
    }

    /// Goes through the containers in their order: init containers one after the other, then the
    /// others together.
    pub(super) fn fill(
        &mut self,
        world: &World<'a>,
        draft: &mut Draft,
        fates: Vec<(Slot<'a>, Fate<'a>)>,
        initialized: bool,
    ) {
        let mut closed_until: Option<String> = None;
        for (slot, fate) in fates {
            let gates = slot.role != Role::Main && !initialized;
            if slot.role == Role::Init && initialized {
                continue;
            }
            if let Some(when) = &closed_until {
                if matches!(fate, Fate::Start(_)) {
                    self.later.push((slot.name(), when.clone()));
                }
                if slot.role == Role::Main {
                    self.pull_early(world, &slot, &fate);
                }
                continue;
            }
            let passed = match fate {
                Fate::Done(exit) => slot.role != Role::Init || exit.code == 0,
                Fate::Keep(view) => {
                    if slot.has_post_start() && view.post_start == HookState::Pending {
                        self.go.push(Go::Hook { slot, view });
                    }
                    let startup = slot.container.startup_probe.is_none();
                    slot.role == Role::Sidecar && (startup || world.started(&slot, view))
                }
                Fate::Start(start) => {
                    let made = self.try_start(world, draft, slot, start, None);
                    let startup = slot.container.startup_probe.is_none();
                    made && slot.role == Role::Sidecar && startup
                }
                Fate::Replace(mut replace) => match replace.then.take() {
                    Some(then) => {
                        self.try_start(world, draft, slot, then, Some(replace));
                        false
                    }
                    None => false,
                },
            };
            if gates && !passed {
                closed_until = Some(match slot.role {
                    Role::Sidecar => format!("sidecar {} has started", slot.name()),
                    Role::Init | Role::Main => format!("init container {} has ended", slot.name()),
                });
            }
        }
    }

    /// While init containers run, the images of those that follow are pulled.
    fn pull_early(&mut self, world: &World<'a>, slot: &Slot<'a>, fate: &Fate<'a>) {
        let Fate::Start(start) = fate else { return };
        if start.at.is_some_and(|at| at > world.now) {
            return;
        }
        if let Readiness::Pull { images, .. } = readiness(world, slot.container, start.since) {
            for image in images {
                if !self.pulls.contains_key(&image.0) {
                    Self::want(&mut self.early, image, slot.name());
                }
            }
        }
    }

    /// Says what follows; after `first`, if that must have happened before anything is started.
    pub(super) fn tell_later(&self, draft: &mut Draft, first: Option<&str>) {
        if let Some(first) = first {
            for go in &self.go {
                if let Go::Make { slot, .. } = go {
                    draft.follow(slot.name(), first);
                }
            }
        }
        for (container, when) in &self.later {
            draft.follow(container, first.unwrap_or(when));
        }
    }

    /// Nothing is started, neither now nor by itself later.
    pub(super) fn give_up(&mut self) {
        self.go.clear();
        self.later.clear();
    }

    pub(super) fn makes(&self) -> bool {
        self.go.iter().any(|go| matches!(go, Go::Make { .. }))
    }
}

pub(super) fn pull(draft: &mut Draft, pulls: BTreeMap<ImageName, (Vec<String>, String)>) {
    for (image, (containers, reason)) in pulls {
        draft.push(Action::PullImage { image, containers }, reason, Cost::Live);
    }
}
