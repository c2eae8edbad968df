//! Whether a container could be created now: its images, its configuration, its last failure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

use crate::backoff::{after, retry_at};
use crate::env::env_use;
use crate::images::{NeededImage, needed_images};
use crate::observed::{Attempted, Failure, ImageName, ImageView};
use crate::step::WaitKind;
use crate::world::World;

/// The word for an image that a trust policy refuses, of the kubelet's.
pub const UNTRUSTED: &str = "SignatureValidationFailed";
/// How soon it is looked again at an image that is refused and not asked for: the policy is in a file that may change.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Readiness {
    /// It could.
    Ready,
    /// It could once these images are pulled.
    Pull {
        /// Which, and why.
        images: Vec<(ImageName, String)>,
        /// The container's own image must be seen before the container can be made.
        look_first: bool,
    },
    /// It could not.
    Blocked(Obstacle),
}

/// Why a container cannot be created, in the words of `state.waiting`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Obstacle {
    pub(crate) reason: String,
    pub(crate) kind: WaitKind,
    pub(crate) message: String,
    pub(crate) until: Option<Timestamp>,
}

impl Obstacle {
    /// Something that is wrong until somebody mends it.
    pub(crate) fn fault(reason: &str, message: impl Into<String>) -> Obstacle {
        Obstacle { reason: reason.to_owned(), kind: WaitKind::Fault, message: message.into(), until: None }
    }

    /// A failure that is tried again at `until`.
    pub(crate) fn failed(failure: &Failure, kind: WaitKind, until: Timestamp) -> Obstacle {
        let (reason, message) = (failure.reason.clone(), failure.message.clone());
        Obstacle { reason, kind, message, until: Some(until) }
    }
}

/// Whether `container` could be created. A pull that succeeded at or after `since` is recent enough
/// for `imagePullPolicy: Always`.
pub(crate) fn readiness(world: &World<'_>, container: &Container, since: Timestamp) -> Readiness {
    let missing = env_use(world.desired, container).missing;
    if !missing.is_empty() {
        let message = missing.join("; ");
        return Readiness::Blocked(Obstacle::fault("CreateContainerConfigError", message));
    }
    if let Some(failure) = world.failure(&Attempted::Container(container.name.clone()))
        && retry_at(failure) > world.now
    {
        return match images(world, container, since) {
            // What lasts longer says when the next try is.
            Readiness::Blocked(obstacle) if obstacle.until > Some(retry_at(failure)) => Readiness::Blocked(obstacle),
            _ => Readiness::Blocked(Obstacle::failed(failure, WaitKind::Fault, retry_at(failure))),
        };
    }
    images(world, container, since)
}

/// What is in the way of any of its images is in the way of the container; those that can be pulled are, together.
fn images(world: &World<'_>, container: &Container, since: Timestamp) -> Readiness {
    let mut pulls = Vec::new();
    for needed in needed_images(world.desired.spec(), container) {
        match image(world, &needed, since) {
            Seen::Ready { user } if needed.volume.is_none() => {
                if let Some(message) = runs_as_root(world, container, user) {
                    return Readiness::Blocked(Obstacle::fault("CreateContainerConfigError", message));
                }
            }
            Seen::Ready { .. } => {}
            Seen::Pull(reason) => pulls.push((needed, reason)),
            Seen::Blocked(obstacle) => return Readiness::Blocked(obstacle),
        }
    }
    if pulls.is_empty() {
        return Readiness::Ready;
    }
    let own = pulls.iter().any(|(needed, _)| needed.volume.is_none());
    let look_first = own && must_not_be_root(world, container).is_some_and(|user| user.is_none());
    Readiness::Pull { images: pulls.into_iter().map(|(needed, reason)| (needed.name, reason)).collect(), look_first }
}

/// What one image is good for now.
enum Seen<'a> {
    Ready { user: Option<&'a str> },
    Pull(String),
    Blocked(Obstacle),
}

fn image<'a>(world: &World<'a>, needed: &NeededImage<'_>, since: Timestamp) -> Seen<'a> {
    let (name, policy) = (&needed.name, needed.policy);
    let (shown, field) = match needed.volume {
        None => (format!("image {name}"), "imagePullPolicy"),
        Some(volume) => (format!("image {name} of volume {volume}"), "pullPolicy"),
    };
    let pull = |reason: &str| Seen::Pull(format!("{shown} {reason}"));
    match world.observed.images.get(name).unwrap_or(&ImageView::Absent) {
        ImageView::Invalid { message } => Seen::Blocked(Obstacle::fault("InvalidImageName", message)),
        ImageView::Present { user, pulled_at, failure, .. } => {
            if policy == "Always" && pulled_at.is_none_or(|pulled_at| pulled_at < since) {
                return match backing_off(world, name, failure.as_ref()) {
                    Some(obstacle) => Seen::Blocked(obstacle),
                    None => pull(&format!("is asked for again ({field} Always)")),
                };
            }
            Seen::Ready { user: user.as_deref() }
        }
        ImageView::Refused { message, pulled_at, failure } => {
            let wait = |until, message: String| {
                Seen::Blocked(Obstacle { until: Some(until), ..Obstacle::fault(UNTRUSTED, message) })
            };
            if policy == "Never" {
                let why = format!("{field} is Never, so that its registry is not asked for signatures");
                return wait(after(world.now, LOOK_AGAIN), format!("{message}; {why}"));
            }
            // A pull that succeeded and changed nothing is not made again at once.
            if let Some(soon) = pulled_at.map(|at| after(at, LOOK_AGAIN)).filter(|soon| *soon > world.now) {
                return wait(soon, message.clone());
            }
            match failure.as_ref().filter(|failure| backing_off(world, name, Some(failure)).is_some()) {
                Some(failure) if failure.reason == UNTRUSTED => wait(retry_at(failure), failure.message.clone()),
                Some(failure) => {
                    let asked = format!("{message}; asking its registry again: {}", failure.message);
                    wait(retry_at(failure), asked)
                }
                None => pull("is refused by the trust policy as it is here"),
            }
        }
        _ if policy == "Never" => Seen::Blocked(Obstacle::fault(
            "ErrImageNeverPull",
            format!("{shown} is not on this node and {field} is Never; load it"),
        )),
        ImageView::Absent => pull("is not on this node"),
        ImageView::Pulling { after: None, progress } => {
            let colon = if progress.is_empty() { "" } else { ": " };
            let message = format!("pulling {shown}{colon}{progress}");
            Seen::Blocked(Obstacle { kind: WaitKind::Progress, ..Obstacle::fault("ContainerCreating", message) })
        }
        ImageView::Pulling { after: Some(failure), .. } => {
            Seen::Blocked(Obstacle { until: None, ..pull_failed(name, failure) })
        }
        ImageView::Failed(failure) => match backing_off(world, name, Some(failure)) {
            Some(obstacle) => Seen::Blocked(obstacle),
            None => pull("could not be pulled before"),
        },
    }
}

/// The obstacle of a pull that failed and is not to be tried again yet.
fn backing_off(world: &World<'_>, name: &ImageName, failure: Option<&Failure>) -> Option<Obstacle> {
    let failure = failure.filter(|failure| world.counts(failure))?;
    (retry_at(failure) > world.now).then(|| pull_failed(name, failure))
}

/// `ErrImagePull` for the first failure, `ImagePullBackOff` for those after it. That an image is not trusted is said
/// each time: it is no trouble that passes.
fn pull_failed(name: &ImageName, failure: &Failure) -> Obstacle {
    let first = Obstacle::failed(failure, WaitKind::Fault, retry_at(failure));
    if failure.attempts <= 1 || failure.reason == UNTRUSTED {
        return first;
    }
    let message = format!("back-off pulling image {name}: {}", failure.message);
    Obstacle { reason: "ImagePullBackOff".to_owned(), kind: WaitKind::BackOff, message, ..first }
}

/// `Some(user of the spec)` if the container may not run as root.
fn must_not_be_root(world: &World<'_>, container: &Container) -> Option<Option<i64>> {
    let own = container.security_context.as_ref();
    let pod = world.desired.spec().security_context.as_ref();
    let refused = own
        .and_then(|context| context.run_as_non_root)
        .or_else(|| pod.and_then(|context| context.run_as_non_root))
        .unwrap_or(false);
    let user = own.and_then(|context| context.run_as_user).or_else(|| pod.and_then(|context| context.run_as_user));
    refused.then_some(user)
}

/// Why the container would break `runAsNonRoot`. Source: kubelet security_context.go
/// verifyRunAsNonRoot.
fn runs_as_root(world: &World<'_>, container: &Container, image: Option<&str>) -> Option<String> {
    match must_not_be_root(world, container)? {
        Some(0) => Some("container's runAsUser breaks non-root policy".to_owned()),
        Some(_) => None,
        None => {
            let user = image.unwrap_or_default();
            let user = user.split_once(':').map_or(user, |(user, _)| user);
            match user.parse::<u32>() {
                Ok(0) => Some("container has runAsNonRoot and image will run as root".to_owned()),
                Ok(_) => None,
                Err(_) if user.is_empty() => Some("container has runAsNonRoot and image will run as root".to_owned()),
                Err(_) => Some(format!(
                    "container has runAsNonRoot and image has non-numeric user ({user}), cannot \
                     verify user is non-root; set runAsUser"
                )),
            }
        }
    }
}
