//! What a store is after the machine went down before all of it was on the disk. That machines are really killed is
//! `e2e/vm/power`'s matter: here the disk is as a power cut may have left it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::Duration,
};

use portreeve_image::{Config, Image, KeepBlobs, Store};
use serde_json::Value;
use support::{
    Layout, Pack, Registry, Tar,
    held::{Held, until},
    store, tree, two_layers,
};

fn index(root: &Path) -> Value {
    serde_json::from_slice(&fs::read(root.join("index.json")).unwrap()).unwrap()
}

/// As if the machine had gone down before anything of it was put on the disk for good.
fn lose_power(root: &Path) {
    let mut index_file = index(root);
    for image in index_file["images"].as_array_mut().unwrap() {
        // Closing the store has synced it, so the record no longer depends on the boot.
        assert!(image["unsynced_boot"].is_null());
        image["unsynced_boot"] = "another boot".into();
    }
    fs::write(root.join("index.json"), index_file.to_string()).unwrap();
    boot_anew(root);
}

/// As if the machine had gone down since layers were unpacked.
fn boot_anew(root: &Path) {
    for entry in fs::read_dir(root.join("layers")).unwrap() {
        let path = entry.unwrap().path().join("layer.json");
        if let Ok(layer) = fs::read_to_string(&path) {
            let mut layer: Value = serde_json::from_str(&layer).unwrap();
            layer["boot"] = "another boot".into();
            fs::write(&path, layer.to_string()).unwrap();
        }
    }
}

async fn load(store: &Store, layout: &Layout) -> Image {
    store.load(layout.archive()).await.unwrap().remove(0)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

fn trees(image: &Image) -> Vec<Vec<String>> {
    image.layers.iter().map(|layer| tree(layer)).collect()
}

#[tokio::test]
async fn what_a_power_loss_may_have_taken_is_not_trusted() {
    let root = tempfile::tempdir().unwrap();
    let config = || Config { keep_blobs: KeepBlobs::Never, ..Config::new(root.path()) };
    load(&Store::open(config()).unwrap(), &Layout::new(&two_layers(), Pack::Gzip)).await;
    lose_power(root.path());
    assert!(Store::open(config()).unwrap().list().is_empty());
    assert!(names(&root.path().join("layers")).is_empty());
}

#[tokio::test]
async fn what_a_power_loss_may_have_taken_is_unpacked_again_from_blobs_that_are_whole() {
    let root = tempfile::tempdir().unwrap();
    let image = load(&store(root.path()), &Layout::new(&two_layers(), Pack::Gzip)).await;
    let before = trees(&image);
    lose_power(root.path());
    // The disk has the names of files, and nothing in them.
    for layer in &image.layers {
        for line in tree(layer) {
            let name = line.split_whitespace().next().unwrap();
            let path = layer.join(name);
            if fs::symlink_metadata(&path).is_ok_and(|file| file.is_file()) {
                fs::write(&path, "").unwrap();
            }
        }
    }
    {
        let store = store(root.path());
        let again = store.list().pop().unwrap();
        assert_eq!((&again.id, &again.references), (&image.id, &image.references));
        assert_eq!(trees(&again), before);
    }
    // It counts as synced by now; a second time a blob was lost with it.
    lose_power(root.path());
    let blobs = root.path().join("blobs/sha256");
    let largest = fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap().path());
    let largest = largest.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let length = fs::metadata(&largest).unwrap().len();
    File::options().write(true).open(&largest).unwrap().set_len(length / 2).unwrap();
    assert!(store(root.path()).list().is_empty());
    assert!(names(&root.path().join("layers")).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_of_a_pull_stay_until_its_layers_are_on_the_disk_and_make_them_again() {
    let (registry, root, lost) = (Held::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let unsynced = root.path().join("unsynced");
    let (image, before) = {
        let store = store(root.path());
        let (puller, reference) = (store.clone(), registry.reference());
        let pulling = tokio::spawn(async move { puller.pull(&reference, &[], None).await.unwrap() });
        // As soon as a layer is in place, before there is a record.
        let first = registry.layout.layers[0].hex().to_owned();
        until("the first blob is kept", || names(&unsynced) == [first.as_str()]).await;
        registry.let_go().await;
        let image = pulling.await.unwrap();
        // That the record has named them is seen by their going: what no record names stays for a day.
        until("they go when all is on the disk", || names(&unsynced).is_empty()).await;
        let before = trees(&image);
        (image, before)
    };
    // The other machine went down before that: documents, these blobs, and nothing that was unpacked.
    let mut index = index(root.path());
    assert!(index["images"][0].get("until_synced").is_none());
    index["images"][0]["unsynced_boot"] = "another boot".into();
    index["images"][0]["until_synced"] = registry.layout.layers.iter().map(ToString::to_string).collect();
    fs::write(lost.path().join("index.json"), index.to_string()).unwrap();
    fs::create_dir_all(lost.path().join("blobs/sha256")).unwrap();
    for name in names(&root.path().join("blobs/sha256")) {
        let blob = Path::new("blobs/sha256").join(name);
        fs::copy(root.path().join(&blob), lost.path().join(&blob)).unwrap();
    }
    fs::create_dir(lost.path().join("unsynced")).unwrap();
    for layer in &registry.layout.layers {
        let blob = registry.layout.dir.path().join("blobs/sha256").join(layer.hex());
        fs::copy(blob, lost.path().join("unsynced").join(layer.hex())).unwrap();
    }
    let asked = registry.server.requests().len();
    {
        let store = store(lost.path());
        let again = store.lookup(&registry.reference()).unwrap();
        assert_eq!((&again.id, trees(&again)), (&image.id, before));
    }
    assert_eq!(registry.server.requests().len(), asked, "nobody was asked");
    assert!(names(&lost.path().join("unsynced")).is_empty(), "closing the store has synced it");
    assert!(self::index(lost.path())["images"][0]["unsynced_boot"].is_null());
}

/// A pull of which the first layer is in place, and its blob kept, when the program ends.
async fn pull_half(registry: &Held, root: &Path) {
    let store = store(root);
    let (puller, reference) = (store.clone(), registry.reference());
    let pulling = tokio::spawn(async move { puller.pull(&reference, &[], None).await });
    let unsynced = root.join("unsynced");
    until("the first blob is kept", || names(&unsynced).len() == 1).await;
    pulling.abort();
    assert!(pulling.await.unwrap_err().is_cancelled());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pull_had_when_the_power_went_is_not_fetched_again_when_it_is_whole() {
    for spoil in [false, true] {
        let (registry, root) = (Held::new(), tempfile::tempdir().unwrap());
        pull_half(&registry, root.path()).await;
        boot_anew(root.path());
        registry.hold_nothing();
        let first = &registry.layout.layers[0];
        let blob = root.path().join("unsynced").join(first.hex());
        if spoil {
            // Its length is on the disk, and what was in it is not.
            let length = fs::metadata(&blob).unwrap().len();
            fs::write(&blob, vec![0; usize::try_from(length).unwrap()]).unwrap();
        }
        let store = store(root.path());
        assert!(names(&root.path().join("layers")).is_empty(), "what another boot has unpacked is not believed");
        let asked = |digest: &portreeve_image::Digest| {
            let path = format!("/v2/r/blobs/{digest}");
            registry.server.requests().iter().filter(|request| request.path == path).count()
        };
        let before = asked(first);
        let image = store.pull(&registry.reference(), &[], None).await.unwrap();
        assert_eq!(asked(first) - before, usize::from(spoil));
        let apart = tempfile::tempdir().unwrap();
        let loaded = load(&support::store(apart.path()), &registry.layout).await;
        assert_eq!(trees(&image), trees(&loaded));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_pull_comes_for_goes_when_images_are_pruned() {
    let (registry, root) = (Held::new(), tempfile::tempdir().unwrap());
    pull_half(&registry, root.path()).await;
    let store = store(root.path());
    let unsynced = root.path().join("unsynced");
    assert_eq!(names(&unsynced).len(), 1);
    store.gc(portreeve_image::Unneeded::All, &|_| Default::default()).unwrap();
    assert!(names(&unsynced).is_empty());
}

#[tokio::test]
async fn an_image_is_there_before_the_disk_has_it() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    if nix::sys::statfs::statfs(root.path()).unwrap().filesystem_type() == nix::sys::statfs::TMPFS_MAGIC {
        let _ = writeln!(std::io::stderr(), "SKIPPED: what is in memory alone is never synced");
        return;
    }
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    registry.push(layout.dir.path(), "r:x", &[]);
    let store = store(root.path());
    // A sync of the file system has this to write, which takes longer than to look.
    let mut much = File::create(root.path().join("much")).unwrap();
    (0..1024).for_each(|_| much.write_all(&[7; 1 << 20]).unwrap());
    store.pull(&registry.reference("r:x"), &[], None).await.unwrap();
    let record = index(root.path())["images"][0].clone();
    assert!(record["unsynced_boot"].is_string(), "the pull has waited for the disk: {record}");
    fs::remove_file(root.path().join("much")).unwrap();
}

#[tokio::test]
async fn what_another_boot_has_left_is_used_only_when_it_is_whole() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    registry.push(layout.dir.path(), "r:x", &[]);
    let store = store(root.path());
    let image = store.pull(&registry.reference("r:x"), &[], None).await.unwrap();
    support::synced(root.path());
    let plant = || {
        for layer in &layout.layers {
            let length = fs::metadata(layout.dir.path().join("blobs/sha256").join(layer.hex())).unwrap().len();
            let zeros = vec![0; usize::try_from(length).unwrap()];
            fs::write(root.path().join("unsynced").join(layer.hex()), zeros).unwrap();
        }
    };
    plant();
    let saving = store.save(&[(image.id.clone(), None)], &[]).await.unwrap();
    let mut tar = Vec::new();
    saving.write_to(&mut tar).unwrap();
    assert!(names(&root.path().join("unsynced")).is_empty(), "what is not whole goes");
    plant();
    let other = Registry::start();
    store.push(&image.id, &other.reference("r:y"), &[], None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_comes_for_goes_after_a_day() {
    let (registry, root) = (Held::new(), tempfile::tempdir().unwrap());
    pull_half(&registry, root.path()).await;
    let blob = root.path().join("unsynced").join(registry.layout.layers[0].hex());
    for (age, stays) in [(23, true), (25, false)] {
        let then = std::time::SystemTime::now() - Duration::from_secs(age * 3600);
        File::options().write(true).open(&blob).unwrap().set_modified(then).unwrap();
        let store = store(root.path());
        assert_eq!(blob.exists(), stays, "{age} hours");
        // It is told as long as it is there.
        let usage = store.usage(&|_| Default::default()).unwrap();
        assert_eq!(usage.blobs, u64::from(stays));
    }
}

#[test]
fn a_disk_without_room_for_ten_of_an_images_blobs_keeps_none_of_them() {
    support::in_mount_namespace(|| {
        let root = tempfile::tempdir().unwrap();
        // 2 MiB of bytes that do not compress, on a disk of 16: one of its layers alone would have room.
        let size: Option<&str> = Some("size=16m");
        let (source, flags) = (Some("none"), nix::mount::MsFlags::empty());
        nix::mount::mount(source, root.path(), Some("tmpfs"), flags, size).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut state = 7_u64;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state.to_be_bytes()[0]
            };
            let mut tar = |name: &str| Tar::new().file(name, &(0..1 << 20).map(|_| next()).collect::<Vec<_>>()).bytes();
            let registry = Held::of(&[tar("one"), tar("two")]);
            let store = store(root.path());
            let (puller, reference) = (store.clone(), registry.reference());
            let pulling = tokio::spawn(async move { puller.pull(&reference, &[], None).await.unwrap() });
            let layers = root.path().join("layers");
            until("the first layer is in place", || names(&layers).len() == 1).await;
            assert!(names(&root.path().join("unsynced")).is_empty());
            registry.let_go().await;
            pulling.await.unwrap();
        });
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pull_has_in_place_is_not_collected_while_it_goes_on() {
    let (registry, root) = (Held::new(), tempfile::tempdir().unwrap());
    let store = store(root.path());
    let (puller, reference) = (store.clone(), registry.reference());
    let pulling = tokio::spawn(async move { puller.pull(&reference, &[], None).await.unwrap() });
    let layers = root.path().join("layers");
    until("the first layer is in place", || names(&layers).len() == 1).await;
    let freed = store.gc(portreeve_image::Unneeded::All, &|_| Default::default()).unwrap();
    assert_eq!((freed.layers, freed.bytes), (0, 0));
    store.collect(|_| false, Duration::ZERO, &|_| Default::default()).unwrap();
    assert_eq!(names(&layers).len(), 1);
    registry.let_go().await;
    let image = pulling.await.unwrap();
    assert_eq!(store.list().iter().map(|here| &here.id).collect::<Vec<_>>(), [&image.id]);
    let path = format!("/v2/r/blobs/{}", registry.layout.layers[0]);
    let asked = registry.server.requests().iter().filter(|request| request.path == path).count();
    assert_eq!(asked, 1, "nothing was taken away that had to come again");
}
