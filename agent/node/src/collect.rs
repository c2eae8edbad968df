//! Keeps the disk of the images from filling up: images that nobody needs go before it is full.
//!
//! How full it is costs one system call. It is asked for when an image came or went, and once a minute, since logs,
//! volumes and other programs fill the same disk and tell nobody.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use portreeve_engine::image::{Filesystem, Freed, ImageId, ImageRef, InUse, Store, StoreError};
use portreeve_engine::{Engine, chain};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::ImageCollection;
use crate::desired::Ledger;
use crate::events::{EventKind, Subject};
use crate::worker::Shared;

const EVERY: Duration = Duration::from_secs(60);

/// Whether the disk has room, and since when that is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Room {
    /// Why there is too little.
    pub(crate) problem: Option<String>,
    pub(crate) since: Timestamp,
}

pub(crate) struct Collector {
    pub(crate) shared: Arc<Shared>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) ledger: watch::Receiver<Arc<Ledger>>,
    pub(crate) bounds: ImageCollection,
    pub(crate) room: watch::Sender<Room>,
    pub(crate) stop: CancellationToken,
}

impl Collector {
    pub(crate) async fn run(self) {
        check_at_changes(self.engine.images().changes(), &self.stop, || self.check()).await;
    }

    /// Whether it could be done.
    async fn check(&self) -> bool {
        let store = self.engine.images().clone();
        let (shared, ledger, bounds) = (self.shared.clone(), self.ledger.clone(), self.bounds);
        let done = tokio::task::spawn_blocking(move || {
            let wanted = |find: Find<'_>| wanted_images(&shared.pods.list().items, &ledger.borrow().clone(), find);
            make_room_blocking(&store, &bounds, &wanted)
        });
        let done = done.await;
        let (freed, filesystem) = match done {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => {
                warn!(error = %chain(&error), "room for images could not be made");
                self.tell(Some(format!("room for images could not be made: {}", chain(&error))));
                return false;
            }
            // The agent ends.
            Err(_) => return false,
        };
        let node = Subject::node(&self.shared.node.name);
        if !freed.images.is_empty() {
            let (images, bytes) = (freed.images.len(), freed.bytes);
            info!(images, bytes, "images were removed to make room");
            let message = format!("removed {images} images that nobody needs, {bytes} bytes, to make room");
            self.shared.events.record(&node, EventKind::Normal, "ImageGCSucceeded", &message);
        }
        let percent = filesystem.used_percent();
        let problem = (percent >= self.bounds.high_percent).then(|| {
            format!(
                "the disk of the images is {percent}% full, {} bytes of {} are free, and no image can go; make room, \
                 or remove images that pods name",
                filesystem.available_bytes, filesystem.capacity_bytes
            )
        });
        self.tell(problem);
        true
    }

    fn tell(&self, problem: Option<String>) {
        let node = Subject::node(&self.shared.node.name);
        let now = self.shared.clock.now();
        let had = self.room.borrow().problem.is_some();
        match &problem {
            Some(problem) => {
                if !had {
                    warn!(problem, "little room is left");
                }
                let until = now + EVERY;
                self.shared.events.record_until(&node, EventKind::Warning, "FreeDiskSpaceFailed", problem, until);
            }
            None if had => {
                let message = "the disk of the images has room again";
                self.shared.events.record(&node, EventKind::Normal, "NodeHasNoDiskPressure", message);
            }
            None => {}
        }
        self.room.send_if_modified(|room| {
            let since = if had == problem.is_some() { room.since } else { now };
            let new = Room { problem, since };
            // Another number of bytes is no other state.
            let changed = room.problem.is_some() != new.problem.is_some();
            *room = new;
            changed
        });
    }
}

/// Checks once a minute and when images change, also when they do so during a check.
async fn check_at_changes<C: Future<Output = bool>>(
    mut images: watch::Receiver<()>,
    stop: &CancellationToken,
    check: impl Fn() -> C,
) {
    let mut clock = tokio::time::interval(EVERY);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // cancel-safe: all three only observe.
            () = stop.cancelled() => return,
            _ = clock.tick() => {}
            changed = images.changed() => if changed.is_err() { return },
        }
        // Before the check: what comes while it works is looked at next. What it removes itself is looked at once more
        // as well, and then it removes nothing.
        images.mark_unchanged();
        if !check().await {
            // A failure changes images for a moment, and is tried again by the clock alone.
            images.mark_unchanged();
        }
    }
}

/// Removes images when the disk is fuller than it may be; what went, and how full it is then.
fn make_room_blocking(
    store: &Store,
    bounds: &ImageCollection,
    wanted: InUse<'_>,
) -> Result<(Freed, Filesystem), StoreError> {
    let filesystem = store.filesystem()?;
    // As with a kubelet, 100 means never.
    if bounds.high_percent >= 100 || filesystem.used_percent() < bounds.high_percent {
        return Ok((Freed::default(), filesystem));
    }
    let freed = store.collect(|now| now.used_percent() <= bounds.low_percent, bounds.min_age, wanted)?;
    Ok((freed, store.filesystem()?))
}

/// Tells which image a reference means.
pub(crate) type Find<'a> = &'a dyn Fn(&ImageRef) -> Option<ImageId>;

/// The images that pods name, whether containers stand on them already or not. `pods` are those that are shown, also
/// ones that are leaving; of the `ledger` are those that are not shown yet, as after a start of the agent.
pub(crate) fn wanted_images(pods: &[Arc<Pod>], ledger: &Ledger, find: Find<'_>) -> BTreeSet<ImageId> {
    let shown = pods.iter().filter_map(|pod| pod.spec.as_ref());
    let names = shown.chain(ledger.pods().filter_map(|(_, _, pod)| pod.spec.as_ref())).flat_map(|spec| {
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
        containers.filter_map(|container| container.image.as_deref()).chain(volumes)
    });
    names.filter_map(|name| find(&name.parse().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use portreeve_manifests::{Object, ObjectKey, parse_file};

    use super::*;
    use crate::desired::Record;

    #[tokio::test(start_paused = true)]
    async fn what_changes_during_a_check_is_looked_at_at_once() {
        let (changed, images) = watch::channel(());
        let checks = std::cell::RefCell::new(Vec::new());
        let begun = tokio::time::Instant::now();
        // Of which check images change meanwhile, and which fails.
        let check = async || {
            let number = checks.borrow().len();
            checks.borrow_mut().push(begun.elapsed().as_secs());
            if number < 3 {
                changed.send_replace(());
            }
            number != 2
        };
        let stop = CancellationToken::new();
        let running = check_at_changes(images, &stop, check);
        let _ended = tokio::time::timeout(EVERY + EVERY / 2, running).await;
        assert_eq!(*checks.borrow(), [0, 0, 0, 60], "a change is looked at, a failure waits for the clock");
    }

    #[test]
    fn the_images_of_pods_that_are_not_shown_yet_are_wanted_too() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers: [{name: c, image: 'own:1'}]\n  \
                    volumes: [{name: v, image: {reference: 'shown:1'}}]\n";
        let parsed = parse_file(std::path::Path::new("a.yaml"), text.as_bytes());
        let object: Object = parsed.objects().next().unwrap().clone();
        let key: ObjectKey = object.key();
        let mut ledger = Ledger::default();
        let record = Record {
            uid: "u".to_owned(),
            file: "a.yaml".into(),
            line: 1,
            generation: 1,
            admitted_at: Timestamp::UNIX_EPOCH,
            changed_at: Timestamp::UNIX_EPOCH,
            hash: object.content_hash(),
            restart_requested_at: None,
            finished: None,
            object: Arc::new(object),
        };
        ledger.objects.insert(key, record);
        let asked = std::cell::RefCell::new(Vec::new());
        let find = |name: &ImageRef| {
            asked.borrow_mut().push(name.to_string());
            None
        };
        assert!(wanted_images(&[], &ledger, &find).is_empty());
        assert_eq!(*asked.borrow(), ["docker.io/library/own:1", "docker.io/library/shown:1"]);
    }
}
