//! Properties of every plan, over cases.

use jiff::SignedDuration;
use portreeve_plan::{Action, Intent};
use proptest::prelude::*;

use crate::cases::{Case, Shape, cases, shapes, world};
use crate::model::{Node, satisfies};

/// Rounds until the goal is reached, or why it is not. Each round is cut after the number of steps
/// that `cuts` says next, as if the agent had been killed there.
fn reach(node: &mut Node, mut cuts: impl Iterator<Item = usize>) -> Result<(), String> {
    for _ in 0..200 {
        let limit = cuts.next().unwrap_or(usize::MAX);
        let plan = node.round(limit)?;
        let moved = node.world_moves();
        if !plan.is_empty() || moved {
            continue;
        }
        if satisfies(node).is_ok() {
            return Ok(());
        }
        match plan.wake_at {
            Some(at) => node.now = at,
            None => return Err(format!("stuck: {:?}", satisfies(node))),
        }
    }
    Err(format!("no end: {:?}\n{:#?}\n{}", satisfies(node), node.done, node.plan()))
}

/// The ids of what belongs to another pod.
fn foreign(node: &Node) -> Vec<String> {
    let theirs = node.observed.containers.iter().filter(|view| view.uid != node.desired.uid);
    theirs.map(|view| format!("{view:?}")).collect()
}

fn settings() -> ProptestConfig {
    // More with PROPTEST_CASES=20000.
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

fn worlds() -> impl Strategy<Value = (Shape, Vec<Case>)> {
    (shapes(), cases())
}

proptest! {
    #![proptest_config(settings())]

    /// The model refuses two instances, steps on foreign things, wrong order: any of it fails here.
    #[test]
    fn every_world_reaches_its_goal_and_then_is_quiet((shape, cases) in worlds()) {
        let mut node = world(&shape, &cases);
        let theirs = foreign(&node);
        if let Err(wrong) = reach(&mut node, std::iter::empty()) {
            return Err(TestCaseError::fail(wrong));
        }
        prop_assert!(node.plan().is_empty());
        prop_assert_eq!(foreign(&node), theirs);
        let far = Node { now: node.now + SignedDuration::from_hours(24), ..node.clone() };
        if node.plan().wake_at.is_none() {
            prop_assert!(far.plan().is_empty(), "time alone changed a plan that did not say so");
        }
        prop_assert_eq!(node.plan().rests, matches!(node.desired.intent, Intent::Rest { .. }));
        prop_assert_eq!(node.plan().removed, matches!(node.desired.intent, Intent::Remove { .. }));
    }

    #[test]
    fn an_agent_killed_after_any_steps_still_reaches_the_goal(
        (shape, cases) in worlds(),
        cuts in proptest::collection::vec(0..4_usize, 0..30),
    ) {
        let mut node = world(&shape, &cases);
        if let Err(wrong) = reach(&mut node, cuts.into_iter()) {
            return Err(TestCaseError::fail(wrong));
        }
        prop_assert!(node.plan().is_empty());
    }

    /// Whatever is done while containers take their time to stop, the model allows it.
    #[test]
    fn a_pod_whose_containers_stop_slowly_reaches_the_goal((shape, cases) in worlds()) {
        let mut node = world(&shape, &cases);
        let mut reached = false;
        for _ in 0..400 {
            let did = node.slow_round().map_err(TestCaseError::fail)?;
            if did || node.world_moves() || node.end_a_stop() {
                continue;
            }
            reached = satisfies(&node).is_ok();
            match node.plan().wake_at {
                Some(at) if !reached => node.now = at,
                _ => break,
            }
        }
        prop_assert!(reached, "{:?}\n{:#?}\n{}", satisfies(&node), node.done, node.plan());
    }

    /// Where one round reaches the goal, each of its steps is needed for it.
    #[test]
    fn no_step_is_there_for_nothing((shape, cases) in worlds()) {
        let node = world(&shape, &cases);
        let plan = node.plan();
        let seen = node.observed.clone();
        let run = |without: Option<usize>| -> Result<Node, String> {
            let mut node = node.clone();
            for (at, step) in plan.steps.iter().enumerate() {
                if Some(at) != without {
                    node.apply(step, &seen)?;
                }
            }
            satisfies(&node)?;
            Ok(node)
        };
        if run(None).is_ok() {
            for (at, step) in plan.steps.iter().enumerate() {
                // A refresh of an image is asked for by policy, which no state shows.
                let asked = matches!(step.action, Action::PullImage { .. }) && step.reason.contains("Always");
                prop_assert!(asked || run(Some(at)).is_err(), "{} is not needed in\n{}", step, plan);
            }
        }
    }

    /// Until `wake_at` nothing changes; at it something does.
    #[test]
    fn wake_at_is_honest((shape, cases) in worlds()) {
        let mut node = world(&shape, &cases);
        for _ in 0..20 {
            let plan = node.round(usize::MAX).map_err(TestCaseError::fail)?;
            if !plan.is_empty() || node.world_moves() {
                continue;
            }
            let told = |node: &Node| {
                let mut status = node.status();
                for condition in status.conditions.iter_mut().flatten() {
                    condition.last_transition_time = None;
                }
                status
            };
            let Some(wake) = plan.wake_at else { break };
            prop_assert!(wake > node.now);
            let before = Node { now: wake - SignedDuration::from_nanos(1), ..node.clone() };
            prop_assert_eq!(&before.plan(), &plan);
            prop_assert_eq!(told(&before), told(&node));
            let then = Node { now: wake, ..node.clone() };
            prop_assert!(then.plan() != plan, "woken for nothing: {}", plan);
            node = then;
        }
    }

    #[test]
    fn the_same_world_gives_the_same_plan_in_whatever_order_it_is_listed((shape, cases) in worlds()) {
        let node = world(&shape, &cases);
        let mut other = node.clone();
        other.observed.containers.reverse();
        other.observed.sandboxes.reverse();
        prop_assert_eq!(node.plan(), other.plan());
        prop_assert_eq!(node.status(), other.status());
    }

    #[test]
    fn a_plan_survives_json((shape, cases) in worlds()) {
        let plan = world(&shape, &cases).plan();
        let text = serde_json::to_string(&plan).unwrap();
        let back: portreeve_plan::Plan = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(back, plan);
    }
}
