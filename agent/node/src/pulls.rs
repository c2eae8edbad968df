//! Pulls of the whole node: bounded in number, visible while they run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use portreeve_engine::image::{Credential, Progress};
use portreeve_manifests::Kind;
use portreeve_plan::{Config, Configs, Failure, retry_at};
use tokio::sync::{Semaphore, watch};

use crate::report::PullReport;
use crate::runtime::{ImageFacts, PullFailure, Runtime};

/// The pulls of a node.
#[derive(Debug)]
pub(crate) struct Pulls {
    slots: Semaphore,
    shown: Mutex<BTreeMap<(String, String), Shown>>,
}

#[derive(Debug)]
enum Shown {
    Running(watch::Receiver<Progress>),
    Failed(Failure),
}

impl Pulls {
    pub(crate) fn new(at_once: usize) -> Self {
        Self { slots: Semaphore::new(at_once.max(1)), shown: Mutex::new(BTreeMap::new()) }
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
    ) -> Result<ImageFacts, PullFailure> {
        let (sink, progress) = watch::channel(Progress::default());
        self.show(&uid, &image, Some(Shown::Running(progress)));
        let _shown = Hide { pulls: &self, uid: &uid, image: &image };
        let _slot = self.slots.acquire().await.map_err(|_| PullFailure {
            reason: "ErrImagePull".to_owned(),
            message: "the agent is shutting down".to_owned(),
        })?;
        runtime.pull(&image, credentials, Some(sink)).await
    }

    /// Notes that a pull failed, until the pod is gone or the next try begins.
    pub(crate) fn failed(&self, uid: &str, image: &str, failure: &Failure) {
        self.show(uid, image, Some(Shown::Failed(failure.clone())));
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
        reports.into_values().collect()
    }
}

fn report(image: &str, shown: &Shown) -> PullReport {
    let mut report = PullReport {
        image: image.to_owned(),
        state: String::new(),
        bytes: 0,
        total_bytes: 0,
        attempts: 0,
        message: None,
        next_try: None,
    };
    match shown {
        Shown::Running(progress) => {
            let progress = progress.borrow();
            "Pulling".clone_into(&mut report.state);
            report.bytes = progress.fetched_bytes();
            report.total_bytes = progress.total_bytes();
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
}

impl Drop for Hide<'_> {
    fn drop(&mut self) {
        self.pulls.show(self.uid, self.image, None);
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
                problems.push(format!("{} {:?}: {}", Kind::Secret, secret.name, crate::error::chain(&error)));
            }
        }
    }
    (found, problems)
}

fn docker_config(config: &Config) -> Option<&[u8]> {
    let data = config.data();
    data.get(".dockerconfigjson").or_else(|| data.get(".dockercfg")).map(Vec::as_slice)
}
