//! What this node holds of each workload, and what follows from it: one task, so that nothing is decided twice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use portreeve_crds::{Decision, Held, NodeWorkload, Phase, WorkloadReport, decide, matches, render, settled};
use portreeve_manifests::{Kind, ObjectKey, ParsedFile, references};
use portreeve_node::source::{FileContent, SourceFile, SourceSet};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::holdings::{Holdings, WorkloadKey};

/// What the files of this source begin with: no directory of manifests, whose paths are absolute.
const ROOT: &str = "cluster";

/// The revision that is told of what was let go of and still runs: it counts as there until it is gone.
const LEAVING: &str = "leaving";

/// What others tell the keeper.
#[derive(Debug)]
pub(crate) enum Said {
    /// The list of all workloads begins.
    Listing,
    /// A workload is so now, or cannot be read.
    Workload(WorkloadKey, Box<Result<NodeWorkload, String>>),
    /// A workload is gone.
    Gone(WorkloadKey),
    /// What was not told of since [`Said::Listing`] is gone.
    Listed,
    /// The labels of this node's NodeAgent.
    Labels(BTreeMap<String, String>),
    /// A ConfigMap or Secret is so now, or is not there.
    Config(ObjectKey, Option<Arc<ParsedFile>>),
    /// How the workloads are.
    Assessed(BTreeMap<WorkloadKey, Assessment>),
    /// The server cannot be read, and why; or can again.
    Trouble(Option<String>),
}

/// How a workload is on this node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Assessment {
    /// The revision of which this is said; none: of what is left after it was let go of.
    pub(crate) revision: Option<String>,
    /// Whether all of it was ready for long enough.
    pub(crate) available: bool,
    /// Nothing of it is left.
    pub(crate) gone: bool,
    pub(crate) phase: Phase,
    /// Why it is not available.
    pub(crate) message: String,
}

/// What is held of a workload, for those who look how it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Holding {
    pub(crate) key: WorkloadKey,
    /// None: it was let go of.
    pub(crate) revision: Option<String>,
    /// Its file in the set.
    pub(crate) file: PathBuf,
    /// Its objects, with the hash of each.
    pub(crate) objects: Vec<(ObjectKey, String)>,
    /// The first thing that is wrong with it.
    pub(crate) problem: Option<String>,
    pub(crate) min_ready: Duration,
    /// The ConfigMaps and Secrets that it names and does not bring.
    pub(crate) configs: BTreeSet<ObjectKey>,
}

/// The objects of a revision.
#[derive(Debug)]
struct Rendered {
    revision: String,
    parsed: Arc<ParsedFile>,
    hashes: Vec<(ObjectKey, String)>,
}

/// The other ends.
pub(crate) struct Channels {
    pub(crate) inbox: mpsc::Receiver<Said>,
    pub(crate) sets: watch::Sender<SourceSet>,
    pub(crate) held: watch::Sender<Arc<Vec<Holding>>>,
    pub(crate) reports: watch::Sender<Vec<WorkloadReport>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Keeper {
    node: String,
    source: String,
    labels: Option<BTreeMap<String, String>>,
    holdings: Holdings,
    /// The workloads that concern this node: for it, or held by it.
    workloads: BTreeMap<WorkloadKey, NodeWorkload>,
    /// Those of them that cannot be read now, and why.
    unreadable: BTreeMap<WorkloadKey, String>,
    /// While a list comes: what was in it.
    listing: Option<BTreeSet<WorkloadKey>>,
    /// Whether a list was ever read in full.
    listed: bool,
    rendered: BTreeMap<WorkloadKey, Rendered>,
    /// What is known of the ConfigMaps and Secrets: those that are not in here were not answered yet.
    configs: BTreeMap<ObjectKey, Option<Arc<ParsedFile>>>,
    assessed: BTreeMap<WorkloadKey, Assessment>,
    trouble: Option<String>,
    read_at: Option<Timestamp>,
}

impl Keeper {
    /// A keeper of what is held, for the cluster whose server is `server`.
    pub(crate) fn new(node: &str, server: &str, holdings: Holdings) -> Self {
        let mut keeper = Self {
            node: node.to_owned(),
            source: format!("crd:{server}"),
            labels: None,
            holdings,
            workloads: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            listing: None,
            listed: false,
            rendered: BTreeMap::new(),
            configs: BTreeMap::new(),
            assessed: BTreeMap::new(),
            trouble: Some("the API server has not answered yet".to_owned()),
            read_at: None,
        };
        keeper.render();
        keeper
    }

    /// Takes in what is said until nobody says anything any more.
    pub(crate) async fn run(mut self, mut channels: Channels) {
        while let Some(said) = channels.inbox.recv().await {
            self.take(said);
            // What came meanwhile is one change.
            while let Ok(said) = channels.inbox.try_recv() {
                self.take(said);
            }
            let before = self.holdings.clone();
            self.decide();
            let settled = self.settle();
            if self.holdings != before && !self.write().await {
                // What is not on disk is not acted on; the next word tries again.
                self.holdings = before;
                continue;
            }
            if settled {
                info!("grants of updates given back");
            }
            self.render();
            let set = self.set();
            channels.sets.send_if_modified(|published| {
                let same = SourceSet { read_at: published.read_at, ..set.clone() } == *published;
                *published = set;
                !same
            });
            let holdings = self.holdings();
            channels.held.send_if_modified(|published| {
                let same = *published == holdings;
                *published = holdings;
                !same
            });
            let reports = self.reports();
            channels.reports.send_if_modified(|published| {
                let same = *published == reports;
                *published = reports;
                !same
            });
        }
    }

    async fn write(&self) -> bool {
        let holdings = self.holdings.clone();
        let written = tokio::task::spawn_blocking(move || holdings.write_blocking()).await;
        let problem = match written {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic.to_string(),
        };
        let path = self.holdings.path().display();
        warn!(%path, error = %problem, "what this node takes on cannot be kept: nothing of it changes until it can");
        false
    }

    fn take(&mut self, said: Said) {
        match said {
            Said::Listing => self.listing = Some(BTreeSet::new()),
            Said::Workload(key, workload) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(key.clone());
                }
                self.take_workload(key, *workload);
            }
            Said::Gone(key) => {
                self.workloads.remove(&key);
                self.unreadable.remove(&key);
            }
            Said::Listed => {
                let listed = self.listing.take().unwrap_or_default();
                self.workloads.retain(|key, _| listed.contains(key));
                self.unreadable.retain(|key, _| listed.contains(key));
                self.listed = true;
                self.read_at = Some(Timestamp::now());
            }
            Said::Labels(labels) => self.labels = Some(labels),
            Said::Config(key, file) => {
                self.configs.insert(key, file);
            }
            Said::Assessed(assessed) => self.assessed = assessed,
            Said::Trouble(trouble) => self.trouble = trouble,
        }
    }

    fn take_workload(&mut self, key: WorkloadKey, workload: Result<NodeWorkload, String>) {
        match workload {
            Ok(workload) => {
                self.unreadable.remove(&key);
                let labels = self.labels.as_ref();
                let for_us = labels.is_none_or(|labels| matches(&workload.spec, &self.node, labels));
                // What does not concern this node is not kept in memory.
                if for_us || self.holdings.by_workload.contains_key(&key) {
                    self.workloads.insert(key, workload);
                } else {
                    self.workloads.remove(&key);
                }
            }
            Err(problem) => {
                // What it said before still counts.
                warn!(workload = %key, error = %problem, "a NodeWorkload cannot be read, and changes nothing here");
                self.unreadable.insert(key, problem);
            }
        }
    }

    /// Takes on and lets go of what the cluster says, once all of it is known.
    fn decide(&mut self) {
        let Some(labels) = self.labels.as_ref().filter(|_| self.listed && self.listing.is_none()) else { return };
        for (key, workload) in &self.workloads {
            let held = self.holdings.by_workload.get(key);
            let uid = workload.metadata.uid.clone().unwrap_or_default();
            match decide(workload, &self.node, labels, held) {
                Decision::Ignore | Decision::Keep => {}
                Decision::Adopt(content) => {
                    // Of another workload of this name, the remains go first.
                    let same = held.is_none_or(|held| held.uid == uid);
                    if !same && !self.assessed.get(key).is_some_and(|assessed| assessed.gone) {
                        continue;
                    }
                    info!(workload = %key, revision = %content.revision(), "workload taken on");
                    let grant = held.filter(|_| same).map_or(0, |held| held.grant);
                    self.holdings.by_workload.insert(key.clone(), Held { uid, content: Some(content), grant });
                }
                Decision::Drop => {
                    info!(workload = %key, "workload let go of");
                    if let Some(held) = self.holdings.by_workload.get_mut(key) {
                        held.content = None;
                    }
                }
            }
        }
        let known = |key: &WorkloadKey| self.workloads.contains_key(key) || self.unreadable.contains_key(key);
        for (key, held) in &mut self.holdings.by_workload {
            if !known(key) && held.content.take().is_some() {
                info!(workload = %key, "workload removed");
            }
        }
        // What is gone everywhere is forgotten.
        let gone = |key: &WorkloadKey| self.assessed.get(key).is_some_and(|assessed| assessed.gone);
        let forgotten: Vec<WorkloadKey> = self
            .holdings
            .by_workload
            .iter()
            .filter(|(key, held)| held.content.is_none() && !known(key) && gone(key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in forgotten {
            self.holdings.by_workload.remove(&key);
        }
    }

    /// Calls those grants done of which the workload stands as it is aimed at.
    fn settle(&mut self) -> bool {
        let mut any = false;
        for (key, held) in &mut self.holdings.by_workload {
            let Some(workload) = self.workloads.get(key) else { continue };
            let Some(assessed) = self.assessed.get(key) else { continue };
            let revision = held.content.as_ref().map(|content| content.revision().0);
            if assessed.revision != revision || workload.metadata.uid.as_deref() != Some(&held.uid) {
                continue;
            }
            // Of what was let go of, something may still run.
            if revision.is_none() && !assessed.gone {
                continue;
            }
            let done = settled(workload, &self.node, held, assessed.available);
            any |= done != held.grant;
            held.grant = done;
        }
        any
    }

    fn render(&mut self) {
        let mut rendered = BTreeMap::new();
        for (key, held) in &self.holdings.by_workload {
            let Some(content) = &held.content else { continue };
            let revision = content.revision().0;
            let known = self.rendered.remove(key).filter(|before| before.revision == revision);
            let made = known.unwrap_or_else(|| {
                let parsed = Arc::new(render(&file_of(key), &key.namespace, &key.name, content));
                let hashes = parsed.objects().map(|object| (object.key(), object.content_hash())).collect();
                Rendered { revision, parsed, hashes }
            });
            rendered.insert(key.clone(), made);
        }
        self.rendered = rendered;
    }

    /// What is wanted of this node.
    pub(crate) fn set(&self) -> SourceSet {
        let mut set = SourceSet::starting(Path::new(ROOT));
        set.name.clone_from(&self.source);
        set.complete = self.listed && self.labels.is_some();
        set.unreadable.clone_from(&self.trouble);
        set.read_at = self.read_at;
        let file = |parsed: &Arc<ParsedFile>| SourceFile {
            content: FileContent::Parsed(Arc::clone(parsed)),
            vanishing: false,
        };
        for (key, rendered) in &self.rendered {
            set.files.insert(file_of(key), file(&rendered.parsed));
        }
        for key in self.wanted_configs() {
            match self.configs.get(&key) {
                Some(Some(parsed)) => drop(set.files.insert(config_file(&key), file(parsed))),
                Some(None) => {}
                // As long as nobody answered, what was there stays.
                None => {
                    set.unreadable_folders.insert(config_file(&key), "not read yet".to_owned());
                }
            }
        }
        set
    }

    fn wanted_configs(&self) -> BTreeSet<ObjectKey> {
        self.holdings().iter().flat_map(|holding| holding.configs.clone()).collect()
    }

    /// What is held, for those who look how it is.
    pub(crate) fn holdings(&self) -> Arc<Vec<Holding>> {
        let brought: BTreeSet<ObjectKey> =
            self.rendered.values().flat_map(|rendered| rendered.hashes.iter().map(|(key, _)| key.clone())).collect();
        let holding = |(key, _): (&WorkloadKey, &Held)| {
            let rendered = self.rendered.get(key);
            let parsed = rendered.map(|rendered| &*rendered.parsed);
            let workload = self.workloads.get(key);
            let seconds = workload.map_or(0, |workload| workload.spec.rollout.min_ready_seconds.max(0));
            Holding {
                key: key.clone(),
                revision: rendered.map(|rendered| rendered.revision.clone()),
                file: file_of(key),
                objects: rendered.map(|rendered| rendered.hashes.clone()).unwrap_or_default(),
                problem: parsed.and_then(first_problem),
                min_ready: Duration::from_secs(seconds.unsigned_abs()),
                configs: parsed.map(|parsed| named(parsed, &brought)).unwrap_or_default(),
            }
        };
        Arc::new(self.holdings.by_workload.iter().map(holding).collect())
    }

    /// What is told of each workload.
    fn reports(&self) -> Vec<WorkloadReport> {
        let report = |(key, held): (&WorkloadKey, &Held)| {
            let revision = held.content.as_ref().map(|content| content.revision().0);
            let assessed = self.assessed.get(key).filter(|assessed| assessed.revision == revision);
            let unreadable = self.unreadable.get(key).map(|problem| format!("it cannot be read: {problem}"));
            let message = unreadable.or_else(|| assessed.map(|assessed| assessed.message.clone()));
            let leaving = revision.is_none() && !assessed.is_some_and(|assessed| assessed.gone);
            WorkloadReport {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                uid: held.uid.clone(),
                revision: if leaving { Some(LEAVING.to_owned()) } else { revision },
                available: assessed.is_some_and(|assessed| assessed.available),
                phase: assessed.map_or(if leaving { Phase::Removing } else { Phase::Starting }, |it| it.phase),
                message: message.unwrap_or_default().chars().take(256).collect(),
                grant: held.grant,
            }
        };
        self.holdings.by_workload.iter().map(report).collect()
    }
}

fn file_of(key: &WorkloadKey) -> PathBuf {
    [ROOT, "nodeworkloads", &key.namespace, &key.name].iter().collect()
}

/// The file of a ConfigMap or Secret in the set.
pub(crate) fn config_file(key: &ObjectKey) -> PathBuf {
    let folder = if key.kind == Kind::Secret { "secrets" } else { "configmaps" };
    [ROOT, folder, &key.namespace, &key.name].iter().collect()
}

fn first_problem(parsed: &ParsedFile) -> Option<String> {
    let errors = || parsed.problems.iter().filter(|it| it.severity == portreeve_manifests::Severity::Error);
    let first = errors().next()?;
    let more = errors().count() - 1;
    let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
    Some(format!("{}: {}{more}", first.field, first.message))
}

/// The ConfigMaps and Secrets that pods of this file name and no workload brings.
fn named(parsed: &ParsedFile, brought: &BTreeSet<ObjectKey>) -> BTreeSet<ObjectKey> {
    let mut found = BTreeSet::new();
    for object in parsed.objects() {
        let portreeve_manifests::Object::Pod(pod) = object else { continue };
        let namespace = object.key().namespace;
        for (kind, name, _) in references(pod) {
            let key = ObjectKey { kind, namespace: namespace.clone(), name };
            if !brought.contains(&key) {
                found.insert(key);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn key() -> WorkloadKey {
        WorkloadKey { namespace: "shop".to_owned(), name: "web".to_owned() }
    }

    fn workload(image: &str, more: &Value) -> NodeWorkload {
        let mut object = json!({
            "apiVersion": "portreeve.dev/v1alpha1", "kind": "NodeWorkload",
            "metadata": { "name": "web", "namespace": "shop", "uid": "u", "generation": 1 },
            "spec": { "template": { "spec": { "containers": [{
                "name": "c", "image": image, "envFrom": [{ "configMapRef": { "name": "settings" } }],
            }] } } },
        });
        for (pointer, value) in more.as_object().into_iter().flatten() {
            let (parent, last) = pointer.rsplit_once('/').expect("a pointer");
            object.pointer_mut(parent).expect("a parent")[last] = value.clone();
        }
        serde_json::from_value(object).expect("a workload")
    }

    struct Place {
        folder: tempfile::TempDir,
        keeper: Keeper,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("folder");
            let keeper = Self::open(&folder);
            Self { folder, keeper }
        }

        fn open(folder: &tempfile::TempDir) -> Keeper {
            let holdings = Holdings::read(&folder.path().join("workloads.json")).expect("holdings");
            Keeper::new("n1", "https://server", holdings)
        }

        fn hear(&mut self, said: impl IntoIterator<Item = Said>) {
            said.into_iter().for_each(|said| self.keeper.take(said));
            self.keeper.decide();
            self.keeper.settle();
            self.keeper.holdings.write_blocking().expect("written");
            self.keeper.render();
        }

        fn list(&mut self, workloads: Vec<NodeWorkload>) {
            let all = workloads.into_iter().map(|workload| Said::Workload(key(), Box::new(Ok(workload))));
            let all: Vec<Said> = std::iter::once(Said::Listing).chain(all).chain([Said::Listed]).collect();
            self.hear(all);
        }

        /// The server answers, and has no labels for this node.
        fn labels(&mut self) {
            self.hear([Said::Trouble(None), Said::Labels(BTreeMap::new())]);
        }

        fn files(&self) -> Vec<String> {
            self.keeper.set().files.keys().map(|path| path.display().to_string()).collect()
        }

        fn image(&self) -> String {
            let set = self.keeper.set();
            let file = set.files.get(Path::new("cluster/nodeworkloads/shop/web")).expect("the workload");
            let FileContent::Parsed(parsed) = &file.content else { panic!("parsed") };
            let Some(portreeve_manifests::Object::Pod(pod)) = parsed.objects().next() else { panic!("a pod") };
            pod.spec.as_ref().and_then(|spec| spec.containers.first()?.image.clone()).expect("an image")
        }

        fn assess(&mut self, available: bool, gone: bool) {
            let held = self.keeper.holdings.by_workload.get(&key());
            let revision = held.and_then(|held| Some(held.content.as_ref()?.revision().0));
            let phase = if available { Phase::Available } else { Phase::Starting };
            let assessment = Assessment { revision, available, gone, phase, message: String::new() };
            self.hear([Said::Assessed(BTreeMap::from([(key(), assessment)]))]);
        }

        fn report(&self) -> WorkloadReport {
            self.keeper.reports().into_iter().next().expect("a report")
        }
    }

    #[test]
    fn nothing_is_taken_on_or_removed_before_all_is_known() {
        let mut place = Place::new();
        place.hear([Said::Listing, Said::Workload(key(), Box::new(Ok(workload("web:1", &json!({})))))]);
        assert!(place.files().is_empty() && !place.keeper.set().complete);
        place.hear([Said::Listed]);
        assert!(place.files().is_empty() && !place.keeper.set().complete, "its own labels are not known");
        place.labels();
        assert_eq!(place.files(), ["cluster/nodeworkloads/shop/web"]);
        assert!(place.keeper.set().complete);

        // Another start: what was taken on is there before the server says anything.
        place.keeper = Place::open(&place.folder);
        assert_eq!(place.image(), "web:1");
        assert!(!place.keeper.set().complete);
        place.labels();
        place.hear([Said::Listing]);
        assert_eq!(place.image(), "web:1", "a list that has begun says nothing yet");
        place.hear([Said::Listed]);
        assert!(place.files().is_empty(), "it is gone");
    }

    #[test]
    fn an_update_waits_for_its_grant_and_the_grant_for_the_update() {
        let mut place = Place::new();
        place.labels();
        place.list(vec![workload("web:1", &json!({}))]);
        let next = workload("web:2", &json!({}));
        place.hear([Said::Workload(key(), Box::new(Ok(next.clone())))]);
        assert_eq!(place.image(), "web:1");
        let revision = portreeve_crds::Content::of(&next.spec).revision().0;
        let granted = json!({ "/status": {
            "target": { "revision": revision },
            "grants": [{ "node": "n1", "number": 4, "since": "2026-01-01T00:00:00Z" }],
        } });
        place.hear([Said::Workload(key(), Box::new(Ok(workload("web:2", &granted))))]);
        assert_eq!(place.image(), "web:2");
        assert_eq!(place.report().grant, 0);
        // What is said of the former revision is not said of this one.
        let old = Assessment {
            revision: Some("old".to_owned()),
            available: true,
            gone: false,
            phase: Phase::Available,
            message: String::new(),
        };
        place.hear([Said::Assessed(BTreeMap::from([(key(), old)]))]);
        assert_eq!((place.report().grant, place.report().available), (0, false));
        place.assess(true, false);
        assert_eq!((place.report().grant, place.report().available), (4, true));
        // It is on disk before it is told.
        place.keeper = Place::open(&place.folder);
        assert_eq!(place.report().grant, 4);
    }

    #[test]
    fn what_cannot_be_read_goes_on() {
        let mut place = Place::new();
        place.labels();
        place.list(vec![workload("web:1", &json!({}))]);
        place.hear([Said::Workload(key(), Box::new(Err("spec: wrong".to_owned())))]);
        assert_eq!(place.image(), "web:1");
        assert_eq!(place.report().message, "it cannot be read: spec: wrong");
        place.hear([Said::Listing, Said::Workload(key(), Box::new(Err("spec: wrong".to_owned()))), Said::Listed]);
        assert_eq!(place.image(), "web:1", "it is there");
        place.hear([Said::Trouble(Some("no answer".to_owned()))]);
        assert_eq!(place.keeper.set().unreadable.as_deref(), Some("no answer"));
        assert_eq!(place.image(), "web:1");
    }

    #[test]
    fn a_config_that_nobody_answered_for_stays_as_it_was() {
        let mut place = Place::new();
        place.labels();
        place.list(vec![workload("web:1", &json!({}))]);
        let config = ObjectKey { kind: Kind::ConfigMap, namespace: "shop".to_owned(), name: "settings".to_owned() };
        let path = config_file(&config);
        assert!(place.keeper.set().is_silent_about(&path));
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: shop}\n";
        let parsed = portreeve_manifests::parse_file(&path, text.as_bytes());
        place.hear([Said::Config(config.clone(), Some(Arc::new(parsed)))]);
        assert_eq!(place.files(), ["cluster/configmaps/shop/settings", "cluster/nodeworkloads/shop/web"]);
        place.hear([Said::Config(config, None)]);
        assert!(!place.keeper.set().is_silent_about(&path), "the server says that there is none");
        assert_eq!(place.files(), ["cluster/nodeworkloads/shop/web"]);
    }

    #[test]
    fn what_was_let_go_of_is_told_until_it_is_gone_and_then_forgotten() {
        let mut place = Place::new();
        place.labels();
        place.list(vec![workload("web:1", &json!({}))]);
        place.list(vec![workload("web:1", &json!({ "/metadata/deletionTimestamp": "2026-01-01T00:00:00Z" }))]);
        assert!(place.files().is_empty());
        place.assess(false, false);
        assert_eq!(place.report().revision.as_deref(), Some(LEAVING));
        place.assess(false, true);
        assert_eq!(place.report().revision, None);
        place.hear([Said::Gone(key())]);
        assert!(place.keeper.reports().is_empty() && place.keeper.holdings.by_workload.is_empty());
    }

    #[tokio::test]
    async fn what_is_taken_on_or_gone_is_so_on_disk_too() {
        let place = Place::new();
        let there = Said::Workload(key(), Box::new(Ok(workload("web:1", &json!({})))));
        let lists = [vec![Said::Listing, there, Said::Listed], vec![Said::Listing, Said::Listed]];
        for (list, held) in lists.into_iter().zip([true, false]) {
            let (outbox, inbox) = mpsc::channel(8);
            let keeper = Place::open(&place.folder);
            let channels = Channels {
                inbox,
                sets: watch::Sender::new(keeper.set()),
                held: watch::Sender::new(keeper.holdings()),
                reports: watch::Sender::new(Vec::new()),
            };
            for said in std::iter::once(Said::Labels(BTreeMap::new())).chain(list) {
                outbox.send(said).await.expect("room");
            }
            drop(outbox);
            keeper.run(channels).await;
            let kept = Place::open(&place.folder).holdings.by_workload;
            assert_eq!(kept.get(&key()).is_some_and(|kept| kept.content.is_some()), held);
        }
    }

    #[test]
    fn workloads_of_other_nodes_are_not_kept() {
        let mut place = Place::new();
        place.labels();
        place.list(vec![workload("web:1", &json!({ "/spec/nodeNames": ["n2"] }))]);
        assert!(place.keeper.workloads.is_empty() && place.files().is_empty());
    }
}
