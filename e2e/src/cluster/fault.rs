//! Faults that a test switches on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::call::Call;
use super::status::Refusal;

/// What goes wrong with a request.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// 410: what is asked for is older than what is kept. A watch hears it as its only event, as of the API server.
    Gone,
    /// 409: another write came first. Nothing is carried out.
    Conflict,
    /// 429, with Retry-After in whole seconds.
    TooMany(Duration),
    /// 500. Nothing is carried out.
    InternalError,
    /// Carried out after this time.
    Slow(Duration),
    /// Never answered, nor carried out: the connection stays.
    Silence,
    /// The connection is cut; nothing is carried out.
    Cut,
    /// Carried out; the connection is cut before the answer.
    LostAnswer,
}

/// Which requests a fault is for.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    verbs: Vec<&'static str>,
    resource: Option<String>,
    name: Option<String>,
    times: Option<usize>,
}

impl Requests {
    /// All.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Only those of this verb: `get`, `list`, `watch`, `create`, `update`, `patch`, `apply`, `delete` or
    /// `deletecollection`. Called again, of this verb too.
    #[must_use]
    pub fn verb(mut self, verb: &'static str) -> Self {
        self.verbs.push(verb);
        self
    }

    /// Only those for this resource: its plural name, its group and what of it is meant, such as
    /// `leases.coordination.k8s.io` or `nodes/status`.
    #[must_use]
    pub fn resource(mut self, resource: &str) -> Self {
        self.resource = Some(resource.to_owned());
        self
    }

    /// Only those for the object of this name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Only the first that come.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = Some(times);
        self
    }

    fn include(&self, call: &Call) -> bool {
        (self.verbs.is_empty() || self.verbs.contains(&call.verb))
            && self.resource.as_ref().is_none_or(|resource| *resource == call.resource())
            && self.name.as_ref().is_none_or(|name| *name == call.name)
    }
}

/// A fault that is on until this is dropped.
#[derive(Debug)]
#[must_use = "the fault ends when this is dropped"]
pub struct Injected(Arc<Rule>);

impl Injected {
    /// How many requests it has met.
    #[must_use]
    pub fn met(&self) -> usize {
        self.0.met.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct Rule {
    requests: Requests,
    fault: Fault,
    met: AtomicUsize,
}

/// The faults of a door, the first one first.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<Weak<Rule>>>);

impl Faults {
    pub(super) fn inject(&self, requests: Requests, fault: Fault) -> Injected {
        let rule = Arc::new(Rule { requests, fault, met: AtomicUsize::new(0) });
        let mut rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rules.retain(|rule| rule.strong_count() > 0);
        rules.push(Arc::downgrade(&rule));
        Injected(rule)
    }

    /// Those that meet a request.
    pub(super) fn meet(&self, call: &Call) -> Vec<Fault> {
        let rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut faults = Vec::new();
        for rule in rules.iter().filter_map(Weak::upgrade).filter(|rule| rule.requests.include(call)) {
            let left = |met: usize| rule.requests.times.is_none_or(|times| met < times).then_some(met + 1);
            if rule.met.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
                faults.push(rule.fault.clone());
            }
        }
        faults
    }
}

impl Fault {
    /// The refusal that it is, if it is one.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Gone => Some(Refusal::expired("The resourceVersion is too old: a test wants it so.")),
            Self::Conflict => {
                Some(Refusal::modified("a test wants it so; please apply your changes to the latest version"))
            }
            Self::TooMany(after) => Some(Refusal::too_many(*after)),
            Self::InternalError => Some(Refusal::internal("a test wants it so")),
            Self::Slow(_) | Self::Silence | Self::Cut | Self::LostAnswer => None,
        }
    }
}
