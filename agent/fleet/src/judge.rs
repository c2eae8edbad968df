//! The one agent that judges: reads what all say, gives slots, and writes how far each workload is.
//!
//! What is kept in memory is what chooses nodes and what they report; a workload itself is read when it is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::{DeserializeGuard, DynamicObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use portreeve_crds::{AgentView, FINALIZER, NodeAgent, NodeWorkload, NodeWorkloadSpec, WorkloadReport, judge, matches};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::FleetConfig;
use crate::connection::is_unauthorized;
use crate::holdings::WorkloadKey;
use crate::watching::{Trouble, trouble};

/// Reports come in bursts: a workload is judged so long after the first of them.
const TOGETHER: Duration = Duration::from_millis(100);
/// After a request that failed.
const AGAIN: Duration = Duration::from_secs(2);

/// What is known of a workload between judgements.
pub(crate) type Touched = (WorkloadKey, Option<Box<NodeWorkloadSpec>>);

/// An agent as it was last heard of.
struct Agent {
    labels: BTreeMap<String, String>,
    reports: BTreeMap<WorkloadKey, WorkloadReport>,
}

/// A Lease as it was last seen, and since when by this machine's clock.
struct Life {
    renewed: Option<MicroTime>,
    since: Instant,
}

/// See the module.
struct Judge<'a> {
    config: &'a FleetConfig,
    client: Client,
    /// What chooses the nodes of each workload.
    workloads: BTreeMap<WorkloadKey, NodeWorkloadSpec>,
    agents: BTreeMap<String, Agent>,
    lives: BTreeMap<String, Life>,
    /// The agents that were alive when workloads were last judged for it.
    alive: BTreeSet<String>,
    due: BTreeMap<WorkloadKey, Instant>,
}

/// Judges as long as this agent holds the Lease, until the credentials are refused.
pub(crate) async fn run(
    config: &FleetConfig,
    client: Client,
    mut leading: watch::Receiver<bool>,
    mut touched: mpsc::UnboundedReceiver<Touched>,
) {
    let mut workloads = BTreeMap::new();
    loop {
        // What is touched while another judges is remembered for when this one does.
        while !*leading.borrow_and_update() {
            tokio::select! {
                // cancel-safe: the value stays in the channel.
                changed = leading.changed() => if changed.is_err() { std::future::pending::<()>().await },
                // cancel-safe: a message stays in the channel until it is received.
                Some(touched) = touched.recv() => note(&mut workloads, touched),
            }
        }
        let due = workloads.keys().map(|key: &WorkloadKey| (key.clone(), Instant::now())).collect();
        let mut judge = Judge {
            config,
            client: client.clone(),
            workloads: std::mem::take(&mut workloads),
            agents: BTreeMap::new(),
            lives: BTreeMap::new(),
            alive: BTreeSet::new(),
            due,
        };
        if judge.judge_while(&mut leading, &mut touched).await {
            return;
        }
        workloads = judge.workloads;
    }
}

fn note(workloads: &mut BTreeMap<WorkloadKey, NodeWorkloadSpec>, (key, spec): Touched) {
    match spec {
        Some(spec) => drop(workloads.insert(key, *spec)),
        None => drop(workloads.remove(&key)),
    }
}

impl Judge<'_> {
    /// Judges while this agent leads; true when the credentials were refused.
    async fn judge_while(
        &mut self,
        leading: &mut watch::Receiver<bool>,
        touched: &mut mpsc::UnboundedReceiver<Touched>,
    ) -> bool {
        let agents: Api<DeserializeGuard<NodeAgent>> = Api::all(self.client.clone());
        let mut agents = pin!(watcher(agents, watcher::Config::default()).default_backoff());
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.config.namespace);
        let mut leases = pin!(watcher(leases, watcher::Config::default()).default_backoff());
        // Nothing is judged by half of the agents.
        let (mut agents_listed, mut leases_listed) = (false, false);
        let mut listing = BTreeSet::new();
        while *leading.borrow_and_update() {
            let next = if agents_listed && leases_listed { self.next_due() } else { None };
            let timer = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // cancel-safe: the value stays in the channel.
                changed = leading.changed() => if changed.is_err() { std::future::pending::<()>().await },
                // cancel-safe: a message stays in the channel until it is received.
                Some(touched) = touched.recv() => {
                    self.mark([touched.0.clone()]);
                    note(&mut self.workloads, touched);
                }
                // cancel-safe: a stream's next item stays in it.
                Some(event) = agents.next() => match event {
                    Ok(Event::Init) => listing.clear(),
                    Ok(Event::InitApply(agent)) => {
                        listing.insert(agent.name_any());
                        self.hear(agent);
                    }
                    Ok(Event::Apply(agent)) => self.hear(agent),
                    Ok(Event::InitDone) => {
                        let gone: Vec<String> =
                            self.agents.keys().filter(|name| !listing.contains(*name)).cloned().collect();
                        gone.iter().for_each(|name| self.forget(name));
                        agents_listed = true;
                    }
                    Ok(Event::Delete(agent)) => self.forget(&agent.name_any()),
                    Err(error) => if is_refused(&error, "NodeAgents") { return true },
                },
                // cancel-safe: as above.
                Some(event) = leases.next() => match event {
                    Ok(Event::InitApply(lease) | Event::Apply(lease)) => self.see(&lease),
                    Ok(Event::InitDone) => leases_listed = true,
                    // Whose Lease is gone is silent once it would have ended.
                    Ok(Event::Init | Event::Delete(_)) => {}
                    Err(error) => if is_refused(&error, "Leases") { return true },
                },
                // cancel-safe: time passes.
                () = timer => {
                    self.notice_silence();
                    if self.judge_due().await {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Takes in what an agent says; what it says of each workload has that judged.
    fn hear(&mut self, agent: DeserializeGuard<NodeAgent>) {
        let name = agent.name_any();
        let labels = agent.labels().clone();
        let agent = match agent.0 {
            Ok(agent) => agent,
            Err(invalid) => {
                warn!(agent = %name, error = %invalid.error, "a NodeAgent cannot be read: it counts as silent");
                return;
            }
        };
        let reports: BTreeMap<WorkloadKey, WorkloadReport> = agent
            .status
            .into_iter()
            .flat_map(|status| status.workloads)
            .map(|report| (WorkloadKey { namespace: report.namespace.clone(), name: report.name.clone() }, report))
            .collect();
        let before = self.agents.insert(name.clone(), Agent { labels, reports });
        let Some(now) = self.agents.get(&name) else { return };
        let mut keys: BTreeSet<WorkloadKey> = BTreeSet::new();
        let none = BTreeMap::new();
        let old = before.as_ref().map_or(&none, |before| &before.reports);
        for key in old.keys().chain(now.reports.keys()) {
            if old.get(key) != now.reports.get(key) {
                keys.insert(key.clone());
            }
        }
        if before.as_ref().is_none_or(|before| before.labels != now.labels) {
            let mut all = before.iter().map(|before| &before.labels).chain([&now.labels]);
            let chosen = |spec: &NodeWorkloadSpec| all.any(|labels| matches(spec, &name, labels));
            let mut chosen = chosen;
            keys.extend(self.workloads.iter().filter(|(_, spec)| chosen(spec)).map(|(key, _)| key.clone()));
        }
        self.lives.entry(name).or_insert_with(|| Life { renewed: None, since: Instant::now() });
        self.mark(keys);
    }

    fn forget(&mut self, name: &str) {
        let Some(agent) = self.agents.remove(name) else { return };
        let chosen = self.workloads.iter().filter(|(_, spec)| matches(spec, name, &agent.labels));
        let keys: BTreeSet<WorkloadKey> =
            chosen.map(|(key, _)| key.clone()).chain(agent.reports.keys().cloned()).collect();
        self.lives.remove(name);
        self.mark(keys);
    }

    fn see(&mut self, lease: &Lease) {
        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        let name = lease.name_any();
        match self.lives.get_mut(&name) {
            Some(life) if life.renewed == renewed => {}
            Some(life) => *life = Life { renewed, since: Instant::now() },
            // Whether it is old, only time shows.
            None => drop(self.lives.insert(name, Life { renewed, since: Instant::now() })),
        }
        self.notice_silence();
    }

    fn is_alive(&self, name: &str) -> bool {
        self.lives.get(name).is_some_and(|life| life.since.elapsed() < self.config.lease)
    }

    /// Has those workloads judged of which a node has fallen silent or come back.
    fn notice_silence(&mut self) {
        let alive: BTreeSet<String> = self.agents.keys().filter(|name| self.is_alive(name)).cloned().collect();
        let changed: Vec<String> = alive.symmetric_difference(&self.alive).cloned().collect();
        self.alive = alive;
        let mut keys = BTreeSet::new();
        for name in &changed {
            let Some(agent) = self.agents.get(name) else { continue };
            let chosen = self.workloads.iter().filter(|(_, spec)| matches(spec, name, &agent.labels));
            keys.extend(chosen.map(|(key, _)| key.clone()).chain(agent.reports.keys().cloned()));
        }
        self.mark(keys);
    }

    /// Has these judged soon, although they would be later anyway.
    fn mark(&mut self, keys: impl IntoIterator<Item = WorkloadKey>) {
        let at = Instant::now() + TOGETHER;
        for key in keys {
            let due = self.due.entry(key).or_insert(at);
            *due = at.min(*due);
        }
    }

    /// When something is to be judged, or an agent that is not heard of until then is silent.
    fn next_due(&self) -> Option<Instant> {
        let ends = self.alive.iter().filter_map(|name| self.lives.get(name)).map(|life| life.since + self.config.lease);
        self.due.values().copied().chain(ends).min()
    }

    /// Judges what is due; true when the credentials were refused.
    async fn judge_due(&mut self) -> bool {
        let now = Instant::now();
        let due: Vec<WorkloadKey> = self.due.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.due.remove(&key);
            match self.judge_one(&key).await {
                Ok(Some(at)) => drop(self.due.insert(key, at)),
                Ok(None) => {}
                Err(error) if is_unauthorized(&error) => return true,
                Err(error) => {
                    let conflict = matches!(&error, kube::Error::Api(status) if status.code == 409);
                    if conflict {
                        debug!(workload = %key, "somebody else wrote it: judging it again");
                    } else {
                        warn!(workload = %key, error = %error, "the status of a NodeWorkload cannot be written");
                    }
                    self.due.insert(key, Instant::now() + if conflict { TOGETHER } else { AGAIN });
                }
            }
        }
        false
    }

    /// Reads one workload, judges it and writes what follows; says when to judge it again.
    async fn judge_one(&mut self, key: &WorkloadKey) -> kube::Result<Option<Instant>> {
        let api: Api<DeserializeGuard<NodeWorkload>> = Api::namespaced(self.client.clone(), &key.namespace);
        let Some(guard) = api.get_opt(&key.name).await? else {
            self.workloads.remove(key);
            return Ok(None);
        };
        let mut workload = match guard.0 {
            Ok(workload) => workload,
            Err(invalid) => {
                self.say_unreadable(key, &invalid.error).await?;
                return Ok(None);
            }
        };
        let api: Api<NodeWorkload> = Api::namespaced(self.client.clone(), &key.namespace);
        let deleting = workload.metadata.deletion_timestamp.is_some();
        let mut finalizers = workload.metadata.finalizers.clone().unwrap_or_default();
        if !deleting && !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
            workload = self.set_finalizers(&api, &workload, &finalizers).await?;
        }
        let agents: Vec<AgentView<'_>> = self
            .agents
            .iter()
            .map(|(name, agent)| AgentView {
                name,
                labels: &agent.labels,
                alive: self.is_alive(name),
                report: agent.reports.get(key),
            })
            .collect();
        let now = Timestamp::now();
        let judgement = judge(&workload, &agents, now);
        if judgement.released && finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            info!(workload = %key, "no node has anything of it any more");
            finalizers.retain(|finalizer| finalizer != FINALIZER);
            self.set_finalizers(&api, &workload, &finalizers).await?;
            return Ok(None);
        }
        if workload.status.as_ref() != Some(&judgement.status) {
            workload.status = Some(judgement.status);
            // It names the version that was read, which is what keeps two who judge at once apart.
            api.replace_status(&key.name, &PostParams::default(), &workload).await?;
        }
        let again = judgement.again_at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        Ok(again.map(|after| Instant::now() + after.max(TOGETHER)))
    }

    async fn set_finalizers(
        &self,
        api: &Api<NodeWorkload>,
        workload: &NodeWorkload,
        finalizers: &[String],
    ) -> kube::Result<NodeWorkload> {
        let metadata = json!({ "finalizers": finalizers, "resourceVersion": workload.resource_version() });
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        api.patch(&workload.name_any(), &PatchParams::default(), &patch).await
    }

    /// Tells of an object that its definition should not have let in.
    async fn say_unreadable(&self, key: &WorkloadKey, problem: &str) -> kube::Result<()> {
        let kind = kube::core::ApiResource::erase::<NodeWorkload>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &kind);
        let message: String = format!("it cannot be read: {problem}").chars().take(1024).collect();
        let before = api.get(&key.name).await?;
        let said = before.data.pointer("/status/conditions/0/message").and_then(serde_json::Value::as_str);
        if said == Some(&message) {
            return Ok(());
        }
        let condition = json!({
            "type": "Progressing", "status": "False", "reason": "Unreadable", "message": message,
            "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        });
        let patch = Patch::Merge(json!({ "status": { "conditions": [condition] } }));
        api.patch_status(&key.name, &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

/// Whether the error is that the credentials are refused; others are told of and pass.
fn is_refused(error: &watcher::Error, what: &str) -> bool {
    match trouble(error) {
        Trouble::Unauthorized => return true,
        Trouble::Passing => {}
        Trouble::Lasting(why) => warn!(error = %why, "{what} cannot be read: nothing is judged anew"),
    }
    false
}
