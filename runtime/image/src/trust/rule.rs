//! The part of a policy that holds for one reference, and what comes of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Digest,
    reference::ImageRef,
    text::shown,
    trust::{Signatures, identity::Identity, key::Key, signature::Flaw},
};

/// Ways in which signatures do not count that are told of.
const MOST_TOLD: usize = 5;

/// The trust policy does not let an image be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image {image} is refused by {rule}: {problem}")]
pub struct Refusal {
    /// The reference.
    pub image: String,
    /// The file, the place in it, and the requirement's type.
    pub rule: String,
    /// What does not hold.
    pub problem: String,
}

/// The requirements for one reference, each with its place; all must hold.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(super) image: ImageRef,
    pub(super) checks: Vec<(String, Check)>,
}

/// One requirement, ready to be looked at.
#[derive(Debug)]
pub(super) enum Check {
    AcceptAnything,
    Reject,
    DigestOnly,
    Signed { keys: Vec<Key>, identity: Identity },
}

/// What is known of the image that a reference means.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    /// Of its manifest, and of the index that its name means.
    pub(crate) digests: &'a BTreeSet<Digest>,
    pub(crate) signatures: &'a Signatures,
}

impl Rule {
    /// A signature may be what is missing.
    pub(crate) fn wants_signatures(&self) -> bool {
        self.checks.iter().any(|(_, check)| matches!(check, Check::Signed { .. }))
    }

    /// What the reference itself says, before anybody is asked what it means.
    pub(crate) fn check_reference(&self) -> Result<(), Refusal> {
        self.each(|check| match check {
            Check::AcceptAnything | Check::Signed { .. } => Ok(()),
            Check::Reject => Err("the policy rejects it".to_owned()),
            Check::DigestOnly if self.image.digest().is_some() => Ok(()),
            Check::DigestOnly => Err("it is not named by a digest, as in name@sha256:...".to_owned()),
        })
    }

    /// Whether the image may be used.
    pub(crate) fn check(&self, subject: &Subject<'_>) -> Result<(), Refusal> {
        self.check_reference()?;
        self.each(|check| match check {
            Check::Signed { keys, identity } => self.check_signed(subject, keys, identity),
            Check::AcceptAnything | Check::Reject | Check::DigestOnly => Ok(()),
        })
    }

    fn each(&self, check: impl Fn(&Check) -> Result<(), String>) -> Result<(), Refusal> {
        self.checks.iter().try_for_each(|(place, one)| {
            let refused = |problem| Refusal { image: self.image.to_string(), rule: place.clone(), problem };
            check(one).map_err(refused)
        })
    }

    fn check_signed(&self, subject: &Subject<'_>, keys: &[Key], identity: &Identity) -> Result<(), String> {
        let mut flaws: BTreeMap<Flaw, usize> = BTreeMap::new();
        for signature in subject.signatures.iter() {
            let names = |signed: &str| identity.accepts(&self.image, signed);
            match signature.check(keys, subject.digests, names) {
                Ok(()) => return Ok(()),
                Err(flaw) => *flaws.entry(flaw).or_default() += 1,
            }
        }
        if flaws.is_empty() {
            return Err("it has no signature".to_owned());
        }
        let flaws: Vec<String> = flaws.iter().take(MOST_TOLD).map(|(flaw, count)| told(flaw, *count)).collect();
        Err(format!("none of its {} signatures counts: {}", subject.signatures.iter().len(), flaws.join(", ")))
    }
}

fn told(flaw: &Flaw, count: usize) -> String {
    match flaw {
        Flaw::Key => format!("{count} not made by a key of this rule, or of something else"),
        Flaw::Payload(problem) => format!("{count} of what {}", shown(problem)),
        Flaw::Digest(digest) => format!("{count} for {digest}"),
        Flaw::Name(name) => format!("{count} for the name {:?}, which signedIdentity does not accept", shown(name)),
    }
}
