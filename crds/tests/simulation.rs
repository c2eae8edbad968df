//! Many nodes and several who judge, over an API that loses answers, shows old states and refuses stale writes: at no
//! moment may more nodes be down for an update than the workload allows, and in the end all run what is wanted.
//!
//! Every run takes other seeds, from the clock. `PORTREEVE_SIM_RUNS` sets how many, `PORTREEVE_SIM_FIRST` the first
//! one, `PORTREEVE_SIM_SEED` runs one again.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::cast_possible_wrap)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use jiff::{SignedDuration, Timestamp};
use portreeve_crds::{
    AgentView, Content, Decision, Grant, Held, NodeWorkload, NodeWorkloadSpec, Phase, WorkloadReport, decide, judge,
    settled,
};
use serde_json::json;

const QUICK_RUNS: u64 = 150;
const WATCHES: usize = 3;

/// xorshift64*: the same seed gives the same world.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What a node has on its disk, and what its kernel runs: both outlive its agent.
#[derive(Default)]
struct Machine {
    held: Option<Held>,
    /// Steps until the pods are ready; `None`: they never are.
    ready_in: Option<u32>,
    /// Since it took something down for an update and until it stood again: counted against the limit.
    down_for_an_update: bool,
    /// It has no network: nothing is read and nothing reported.
    offline: bool,
}

impl Machine {
    fn is_down_for_an_update(&self) -> bool {
        self.down_for_an_update && !self.stands()
    }

    fn stands(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.content.is_some()) && self.ready_in == Some(0)
    }
}

/// A way to break the scheme, for the test of the test.
#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    None,
    /// Nodes forget which grants they called done.
    Forgetful,
    /// Who judges writes without the check of the version.
    Unfenced,
    /// A silent node's slot is given to another.
    Impatient,
}

struct World {
    dice: Dice,
    now: Timestamp,
    /// Every state of the workload that was ever written: what is stale is one of them.
    versions: Vec<NodeWorkload>,
    /// Every report, by node.
    reports: BTreeMap<String, Vec<WorkloadReport>>,
    machines: BTreeMap<String, Machine>,
    /// What each who judges has seen of the workload: a version.
    seen: [usize; WATCHES],
    edits: i64,
    limit: usize,
    flaw: Flaw,
    quiet: bool,
    log: Vec<String>,
}

fn template(number: i64, works: bool) -> serde_json::Value {
    json!({ "spec": { "containers": [{ "name": "c", "image": format!("web:{number}") }], "works": works } })
}

fn works(content: &Content) -> bool {
    content.template.as_ref().is_some_and(|template| template.spec["works"] == true)
}

impl World {
    fn new(seed: u64, flaw: Flaw) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let nodes = 2 + dice.below(9);
        let limit = 1 + dice.below(3);
        let on_failure = if dice.chance(50) { "Revert" } else { "Stop" };
        let spec: NodeWorkloadSpec = serde_json::from_value(json!({
            "template": template(0, true),
            "rollout": { "maxUnavailable": limit, "progressDeadlineSeconds": 60, "onFailure": on_failure },
        }))
        .unwrap();
        let mut workload = NodeWorkload::new("web", spec);
        workload.metadata.uid = Some("uid-1".to_owned());
        workload.metadata.generation = Some(1);
        Self {
            dice,
            now: Timestamp::UNIX_EPOCH,
            versions: vec![workload],
            reports: BTreeMap::new(),
            machines: (0..nodes).map(|number| (format!("n{number}"), Machine::default())).collect(),
            seen: [0; WATCHES],
            edits: 0,
            limit,
            flaw,
            quiet: false,
            log: Vec::new(),
        }
    }

    fn newest(&self) -> &NodeWorkload {
        self.versions.last().unwrap()
    }

    /// A version that a reader may get: the newest, or any older one.
    fn some_version(&mut self) -> usize {
        let newest = self.versions.len() - 1;
        if self.quiet || self.dice.chance(60) { newest } else { newest - self.dice.below(1 + newest.min(12)) }
    }

    fn edit(&mut self) {
        self.edits += 1;
        let good = self.quiet || self.dice.chance(70);
        let pause = !self.quiet && self.dice.chance(15);
        let mut next = self.newest().clone();
        if self.quiet || self.dice.chance(80) {
            next.spec.template = serde_json::from_value(template(self.edits, good)).unwrap();
        }
        next.spec.rollout.paused = pause;
        next.metadata.generation = Some(self.edits + 1);
        self.log.push(format!("edit {}, good: {good}, paused: {pause}", self.edits));
        self.versions.push(next);
    }

    /// One of those who judge reads, decides and writes.
    fn judges(&mut self) {
        let who = self.dice.below(WATCHES);
        let base = self.some_version();
        self.seen[who] = base;
        let workload = self.versions[base].clone();
        let labels = BTreeMap::new();
        let names: Vec<String> = self.machines.keys().cloned().collect();
        // Reports are read stale, too.
        let reports: Vec<Option<WorkloadReport>> = names
            .iter()
            .map(|name| {
                let said = self.reports.get(name)?;
                let back = if self.quiet { 0 } else { self.dice.below(1 + said.len().min(4)) };
                said.get(said.len() - 1 - back.min(said.len() - 1)).cloned()
            })
            .collect();
        let agents: Vec<AgentView<'_>> = names
            .iter()
            .zip(&reports)
            .map(|(name, report)| AgentView {
                name,
                labels: &labels,
                alive: !self.machines[name].offline,
                report: report.as_ref(),
            })
            .collect();
        let mut judgement = judge(&workload, &agents, self.now);
        if self.flaw == Flaw::Impatient {
            let machines = &self.machines;
            judgement.status.grants.retain(|grant: &Grant| !machines[&grant.node].offline);
        }
        if workload.status.as_ref() == Some(&judgement.status) {
            return;
        }
        // Checked by resourceVersion: nobody wrote since.
        if base != self.versions.len() - 1 && self.flaw != Flaw::Unfenced {
            return;
        }
        let mut next = self.newest().clone();
        self.log.push(format!("judge {who} at {base}: {:?} {:?}", judgement.status.target, judgement.status.grants));
        next.status = Some(judgement.status);
        self.versions.push(next);
        // That the answer is lost changes nothing: the next look sees what was written.
    }

    /// One node's agent reads and acts.
    fn acts(&mut self) {
        let names: Vec<String> = self.machines.keys().cloned().collect();
        let name = &names[self.dice.below(names.len())];
        if self.machines[name].offline {
            return;
        }
        let version = self.some_version();
        let workload = self.versions[version].clone();
        let machine = self.machines.get_mut(name).unwrap();
        if let Decision::Adopt(content) = decide(&workload, name, &BTreeMap::new(), machine.held.as_ref()) {
            machine.down_for_an_update |= machine.held.as_ref().is_some_and(|held| held.content.is_some());
            machine.ready_in = works(&content).then(|| self.dice.below(6) as u32);
            self.log.push(format!("{name} at {version}: takes on {}", content.revision()));
            let grant = machine.held.as_ref().map_or(0, |held| held.grant);
            machine.held = Some(Held { uid: "uid-1".to_owned(), content: Some(content), grant });
            // Killed here, it finds on its disk what it took on.
            if self.dice.chance(10) {
                return;
            }
        }
        let stands = machine.stands();
        let Some(held) = machine.held.as_mut() else { return };
        let done = settled(&workload, name, held, stands);
        if self.flaw != Flaw::Forgetful {
            held.grant = done;
        }
        // Killed between the disk and the API.
        if self.dice.chance(10) {
            return;
        }
        let said = self.reports.entry(name.clone()).or_default();
        let report = WorkloadReport {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: "uid-1".to_owned(),
            revision: held.content.as_ref().map(|content| content.revision().0),
            available: stands,
            phase: if stands { Phase::Available } else { Phase::Starting },
            message: String::new(),
            grant: done,
        };
        if said.last() != Some(&report) {
            said.push(report);
        }
    }

    /// Time passes: pods come up, nodes come and go.
    fn passes(&mut self) {
        self.now += SignedDuration::from_secs(self.dice.below(6) as i64);
        for (name, machine) in &mut self.machines {
            if let Some(left) = machine.ready_in.as_mut() {
                *left = left.saturating_sub(1);
            }
            if machine.stands() {
                machine.down_for_an_update = false;
            }
            if self.quiet {
                machine.offline = false;
            } else if self.dice.chance(2) {
                machine.offline = !machine.offline;
                self.log.push(format!("{name} offline: {}", machine.offline));
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        let down: Vec<&String> =
            self.machines.iter().filter(|(_, machine)| machine.is_down_for_an_update()).map(|(name, _)| name).collect();
        if down.len() > self.limit {
            return Err(format!("{down:?} are down for an update, and {} may be", self.limit));
        }
        let grants = self.newest().status.iter().flat_map(|status| &status.grants);
        let holders: BTreeSet<&str> = grants.clone().map(|grant| grant.node.as_str()).collect();
        if holders.len() != grants.count() {
            return Err("a node has two grants".to_owned());
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        match self.dice.below(10) {
            0..3 => self.judges(),
            3..9 => self.acts(),
            _ => self.passes(),
        }
        self.check()
    }
}

/// One world: faults for a while, then none, a good edit, and all must run it and then be quiet.
fn run(seed: u64, flaw: Flaw) -> Result<(), String> {
    let mut world = World::new(seed, flaw);
    let failed = |world: &World, error: String| {
        let tail: Vec<&str> = world.log.iter().rev().take(40).rev().map(String::as_str).collect();
        format!("{error}\n{}", tail.join("\n"))
    };
    for _ in 0..600 {
        if world.dice.chance(1) {
            world.edit();
        }
        world.step().map_err(|error| failed(&world, error))?;
    }
    world.quiet = true;
    world.edit();
    let wanted = Content::of(&world.newest().spec).revision().0;
    let arrived = |world: &World| {
        world.newest().status.as_ref().is_some_and(|status| status.grants.is_empty() && status.unavailable_nodes == 0)
            && world.machines.values().all(|machine| {
                machine.stands()
                    && machine.held.as_ref().and_then(|held| held.content.as_ref()).map(|it| it.revision().0).as_ref()
                        == Some(&wanted)
            })
    };
    for _ in 0..20_000 {
        world.step().map_err(|error| failed(&world, error))?;
        if arrived(&world) {
            let written = world.versions.len();
            for _ in 0..200 {
                world.step().map_err(|error| failed(&world, error))?;
            }
            let more = world.versions.len() - written;
            return if more <= 2 { Ok(()) } else { Err(failed(&world, format!("{more} writes after the end"))) };
        }
    }
    Err(failed(&world, format!("it never arrived at {wanted}: {:?}", world.newest().status)))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn now() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(1)
}

#[test]
fn no_more_nodes_are_down_than_may_be_and_all_arrive() {
    if let Some(seed) = number("PORTREEVE_SIM_SEED") {
        run(seed, Flaw::None).unwrap();
        return;
    }
    let runs = number("PORTREEVE_SIM_RUNS").unwrap_or(QUICK_RUNS);
    let first = number("PORTREEVE_SIM_FIRST").unwrap_or_else(now);
    let said = format!("PORTREEVE_SIM_FIRST={first} PORTREEVE_SIM_RUNS={runs}: simulated rollouts\n");
    std::io::stderr().write_all(said.as_bytes()).unwrap();
    for seed in first..first + runs {
        if let Err(error) = run(seed, Flaw::None) {
            panic!("seed {seed} (PORTREEVE_SIM_SEED={seed} runs it again): {error}");
        }
    }
}

/// Each rule of the scheme is needed: without it the world above finds too many nodes down.
#[test]
fn each_rule_is_needed() {
    for flaw in [Flaw::Forgetful, Flaw::Unfenced, Flaw::Impatient] {
        let found = (1..=400).any(|seed| run(seed, flaw).is_err_and(|error| error.contains("are down for an update")));
        let which = match flaw {
            Flaw::Forgetful => "nodes that forget their grants",
            Flaw::Unfenced => "writes without a check",
            Flaw::Impatient => "slots of silent nodes given away",
            Flaw::None => "nothing",
        };
        assert!(found, "{which} did no harm in 400 worlds");
    }
}
