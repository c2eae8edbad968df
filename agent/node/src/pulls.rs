//! Pulls of the whole node: bounded in number, visible while they run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use portreeve_engine::image::{Credential, ImageRef, Progress, ProgressSink, RegistrySlots};
use portreeve_manifests::Kind;
use portreeve_plan::{Config, Configs, Failure, retry_at};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::report::PullReport;
use crate::runtime::{ImageFacts, PullFailure, Runtime};
use crate::size::size;

/// Pulls that went well are shown so long, and so many of them.
const SHOWN_AFTERWARDS: Duration = Duration::from_secs(600);
const MOST_SHOWN_AFTERWARDS: usize = 64;

/// The pulls of a node.
#[derive(Debug)]
pub(crate) struct Pulls {
    slots: RegistrySlots,
    clock: Clock,
    shown: Mutex<BTreeMap<(String, String), Shown>>,
    /// Those that went well, the latest last; each image once.
    pulled: Mutex<VecDeque<PullReport>>,
}

#[derive(Debug)]
enum Shown {
    Running(Watched),
    Failed(Failure),
}

/// A pull that runs, for who looks at it.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    progress: watch::Receiver<Progress>,
}

impl Watched {
    /// Where a pull shows how far it is, and where that is seen.
    pub(crate) fn new() -> (ProgressSink, Self) {
        let (sink, progress) = watch::channel(Progress::default());
        (sink, Self { progress })
    }

    /// Waits until it is further than when it was looked at; `false` when it has ended.
    pub(crate) async fn changed(&mut self) -> bool {
        self.progress.changed().await.is_ok()
    }

    /// How far it is: layers, bytes, and bytes per second since the first was asked for; nothing before layers are fetched.
    pub(crate) fn words(&self) -> String {
        let report = report("", &Shown::Running(self.clone()));
        if report.layers == 0 {
            return String::new();
        }
        let PullReport { layers_done, layers, bytes, total_bytes, bytes_per_second, .. } = report;
        format!(
            "{layers_done} of {layers} layers, {} of {}, {}/s",
            size(bytes),
            size(total_bytes),
            size(bytes_per_second)
        )
    }
}

impl Pulls {
    pub(crate) fn new(at_once: usize, clock: Clock) -> Self {
        Self { slots: RegistrySlots::new(at_once), clock, shown: Mutex::default(), pulled: Mutex::default() }
    }

    fn show(&self, uid: &str, image: &str, shown: Option<Shown>) {
        let mut all = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (uid.to_owned(), image.to_owned());
        match shown {
            Some(shown) => all.insert(key, shown),
            None => all.remove(&key),
        };
    }

    /// Pulls `image` for the pod `uid`, when it is its turn.
    pub(crate) async fn pull(
        self: Arc<Self>,
        runtime: Arc<dyn Runtime>,
        uid: String,
        image: String,
        credentials: Vec<Credential>,
        sink: ProgressSink,
    ) -> Result<ImageFacts, PullFailure> {
        let progress = sink.subscribe();
        let watched = Watched { progress: progress.clone() };
        self.show(&uid, &image, Some(Shown::Running(watched)));
        let _shown = Hide { pulls: &self, uid: &uid, image: &image, progress: &progress };
        // A name that is no reference has no registry to wait for: the pull says so.
        let registry = image.parse::<ImageRef>().map(|name| name.registry().to_owned()).unwrap_or_default();
        let _slot = self.slots.take(&registry).await;
        let mut facts = runtime.pull(&image, credentials, Some(sink)).await?;
        facts.way = way(&progress.borrow());
        self.pulled(&image, progress.clone());
        Ok(facts)
    }

    fn pulled(&self, image: &str, progress: watch::Receiver<Progress>) {
        let from = progress.borrow().host.as_ref().map(|host| format!("from {host}"));
        let message = way(&progress.borrow()).or(from);
        let running = report(image, &Shown::Running(Watched { progress }));
        let ended_at = Some(self.clock.now());
        let mut pulled = self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
        pulled.retain(|known| known.image != image);
        pulled.push_back(PullReport { state: "Pulled".to_owned(), message, ended_at, ..running });
        if pulled.len() > MOST_SHOWN_AFTERWARDS {
            pulled.pop_front();
        }
    }

    /// Notes that a pull failed, until the pod is gone or the next try begins.
    pub(crate) fn failed(&self, uid: &str, image: &str, failure: &Failure) {
        self.show(uid, image, Some(Shown::Failed(failure.clone())));
    }

    /// Forgets a pull that failed and is not made again.
    pub(crate) fn settled(&self, uid: &str, image: &str) {
        self.show(uid, image, None);
    }

    /// Forgets the pulls of a pod.
    pub(crate) fn forget(&self, uid: &str) {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _), _| of != uid);
    }

    /// What to show of all pulls.
    pub(crate) fn reports(&self) -> Vec<PullReport> {
        let all = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reports: BTreeMap<&str, PullReport> = BTreeMap::new();
        for ((_, image), shown) in &*all {
            let report = report(image, shown);
            // Of several pods that want one image, the pull that runs says most.
            let known = reports.entry(image).or_insert_with(|| report.clone());
            if known.state == "Failed" && report.state == "Pulling" {
                *known = report;
            }
        }
        let mut pulled = self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
        pulled.retain(|report| report.ended_at.is_some_and(|at| self.clock.since(at) < SHOWN_AFTERWARDS));
        for report in &*pulled {
            // What is asked for now says more.
            reports.entry(&report.image).or_insert_with(|| report.clone());
        }
        reports.into_values().collect()
    }
}

/// Where an image came from, when others were asked before.
fn way(progress: &Progress) -> Option<String> {
    let tried: Vec<String> = progress.tried.iter().map(|tried| format!("{}: {}", tried.host, tried.problem)).collect();
    let host = progress.host.as_ref().filter(|_| !tried.is_empty())?;
    Some(format!("from {host} (before: {})", tried.join("; ")))
}

fn report(image: &str, shown: &Shown) -> PullReport {
    let mut report = PullReport {
        image: image.to_owned(),
        state: String::new(),
        layers: 0,
        layers_done: 0,
        bytes: 0,
        total_bytes: 0,
        bytes_per_second: 0,
        attempts: 0,
        message: None,
        next_try: None,
        ended_at: None,
    };
    match shown {
        Shown::Running(Watched { progress }) => {
            let progress = progress.borrow();
            "Pulling".clone_into(&mut report.state);
            report.layers = progress.layers.len() as u64;
            report.layers_done = progress.layers.iter().filter(|layer| layer.done).count() as u64;
            report.bytes = progress.fetched_bytes();
            report.total_bytes = progress.total_bytes();
            report.bytes_per_second = progress.bytes_per_second();
        }
        Shown::Failed(failure) => {
            "Failed".clone_into(&mut report.state);
            report.attempts = failure.attempts;
            report.message = Some(failure.message.clone());
            report.next_try = Some(next_try(failure));
        }
    }
    report
}

/// When a failed pull is tried again.
pub(crate) fn next_try(failure: &Failure) -> Timestamp {
    retry_at(failure)
}

/// A pull that has ended, or was given up, is shown no more.
struct Hide<'a> {
    pulls: &'a Pulls,
    uid: &'a str,
    image: &'a str,
    progress: &'a watch::Receiver<Progress>,
}

impl Drop for Hide<'_> {
    fn drop(&mut self) {
        let mut all = self.pulls.shown.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was given up may end after its successor began.
        all.retain(|(uid, image), shown| {
            let own = matches!(shown, Shown::Running(watched) if watched.progress.same_channel(self.progress));
            uid != self.uid || image != self.image || !own
        });
    }
}

/// The logins of a pod's imagePullSecrets, and a word for each that cannot be read.
pub(crate) fn credentials(pod: &k8s_openapi::api::core::v1::Pod, configs: &Configs) -> (Vec<Credential>, Vec<String>) {
    let mut found = Vec::new();
    let mut problems = Vec::new();
    let named = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    for secret in named {
        let Some(config) = configs.secrets.get(&secret.name) else {
            problems.push(format!("{} {:?} does not exist", Kind::Secret, secret.name));
            continue;
        };
        let Some(bytes) = docker_config(config) else {
            problems.push(format!("{} {:?} has neither .dockerconfigjson nor .dockercfg", Kind::Secret, secret.name));
            continue;
        };
        match Credential::from_docker_config(bytes) {
            Ok(credentials) => found.extend(credentials),
            Err(error) => {
                problems.push(format!("{} {:?}: {}", Kind::Secret, secret.name, portreeve_engine::chain(&error)));
            }
        }
    }
    (found, problems)
}

fn docker_config(config: &Config) -> Option<&[u8]> {
    let data = config.data();
    data.get(".dockerconfigjson").or_else(|| data.get(".dockercfg")).map(Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeRuntime, Script};
    use portreeve_engine::image::{Digest, LayerProgress, Tried};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_pull_tells_its_layers_bytes_and_rate() {
        let (sink, mut watched) = Watched::new();
        assert_eq!(watched.words(), "");
        let layer = |name: &[u8], fetched_bytes, done| LayerProgress {
            digest: Digest::of(name),
            total_bytes: 3_000_000,
            fetched_bytes,
            done,
            present: false,
            foreign: false,
            reused_bytes: 0,
            whole: None,
        };
        let layers = vec![layer(b"a", 3_000_000, true), layer(b"b", 1_000_000, false)];
        // The wait for a slot is no time in which bytes come.
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        sink.send_modify(|progress| (progress.layers, progress.began) = (layers, Some(Instant::now())));
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        assert!(watched.changed().await);
        assert_eq!(watched.words(), "1 of 2 layers, 4.0MB of 6.0MB, 2.0MB/s");
        // Who joins late is told what the pull shows to all.
        let (late_sink, late) = Watched::new();
        late_sink.send_replace(sink.borrow().clone());
        assert_eq!(late.words(), watched.words());
        drop(sink);
        assert!(!watched.changed().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_that_went_well_says_for_a_while_where_the_image_came_from() {
        let clock = Clock::tokio_from(Timestamp::UNIX_EPOCH);
        let runtime = FakeRuntime::new(1, Script::default(), clock.clone());
        let pulls = Arc::new(Pulls::new(2, clock));
        let pull = |image: &str, tried: Vec<Tried>| {
            let (sink, _progress) = Watched::new();
            sink.send_modify(|progress| (progress.host, progress.tried) = (Some("r.example".to_owned()), tried));
            pulls.clone().pull(runtime.clone(), "uid".to_owned(), image.to_owned(), Vec::new(), sink)
        };
        let told = || pulls.reports().into_iter().map(|report| (report.image, report.state, report.message));
        assert!(pull("a", Vec::new()).await.is_err());
        assert_eq!(told().count(), 0, "it failed");
        runtime.publish("a");
        let tried = vec![Tried { host: "mirror.lan".to_owned(), problem: "timed out".to_owned() }];
        assert!(pull("a", tried).await.is_ok());
        let way = "from r.example (before: mirror.lan: timed out)".to_owned();
        assert_eq!(told().collect::<Vec<_>>(), [("a".to_owned(), "Pulled".to_owned(), Some(way))]);
        assert!(pulls.reports().iter().all(|report| report.ended_at.is_some()));
        // Each once, and the last of them.
        for number in 0..2 * MOST_SHOWN_AFTERWARDS {
            let image = format!("i{:03}", number.min(100));
            runtime.publish(&image);
            assert!(pull(&image, Vec::new()).await.is_ok());
        }
        let all: Vec<_> = told().collect();
        assert_eq!(all.len(), MOST_SHOWN_AFTERWARDS);
        assert_eq!(all.last(), Some(&("i100".to_owned(), "Pulled".to_owned(), Some("from r.example".to_owned()))));
        tokio::time::sleep(SHOWN_AFTERWARDS).await;
        assert_eq!(told().count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn pulls_from_a_slow_registry_hold_up_no_other() {
        let runtime = FakeRuntime::new(1, Script::default(), Clock::system());
        let pulls = Arc::new(Pulls::new(2, Clock::system()));
        let _stuck = (pulls.slots.take("slow.example").await, pulls.slots.take("slow.example").await);
        let pull = |image: &str| {
            runtime.publish(image);
            let (sink, _progress) = Watched::new();
            let pull = pulls.clone().pull(runtime.clone(), "uid".to_owned(), image.to_owned(), Vec::new(), sink);
            tokio::time::timeout(std::time::Duration::from_secs(60), pull)
        };
        assert!(pull("slow.example/a").await.is_err(), "all its slots are taken");
        assert!(pull("other.example/a").await.is_ok_and(|pulled| pulled.is_ok()));
    }
}
