//! What the store keeps, gives back and survives.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use portreeve_image::{Config, Image, KeepBlobs, LoadError, SnapshotError, Store, StoreError, Unneeded};
use support::{Layout, Pack, Tar, pack, store, tree, two_layers};

/// A docker-archive of one image, made by hand.
fn archive(tars: &[Vec<u8>], name: &str, salt: &str) -> Vec<u8> {
    let layout = Layout::salted(tars, Pack::Plain, salt);
    let config = fs::read(layout.dir.path().join("blobs/sha256").join(layout.config.hex())).unwrap();
    let layers: Vec<String> = (0..tars.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": layers}]).to_string();
    // The manifest comes last, as `docker save` has it.
    let mut tar = Tar::new().file("config.json", &config);
    for (name, content) in layers.iter().zip(tars) {
        tar = tar.file(name, content);
    }
    tar.file("manifest.json", manifest.as_bytes()).bytes()
}

async fn load(store: &Store, tars: &[Vec<u8>], name: &str, salt: &str) -> Image {
    store.load(std::io::Cursor::new(archive(tars, name, salt))).await.unwrap().remove(0)
}

fn layer_dirs(root: &Path) -> usize {
    fs::read_dir(root.join("layers")).unwrap().count()
}

#[tokio::test]
async fn removing_a_tag_removes_the_image_with_its_last_name_and_the_layers_only_it_has() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let base = Tar::new().dir("./", 0o755).file("base", b"1").bytes();
    let (one, two) =
        (Tar::new().dir("./", 0o755).file("one", b"1").bytes(), Tar::new().dir("./", 0o755).file("two", b"22").bytes());
    let first = load(&store, &[base.clone(), one.clone()], "first:1", "1").await;
    load(&store, &[base.clone(), one], "first:2", "1").await;
    let second = load(&store, &[base, two], "second:1", "2").await;
    assert_eq!(layer_dirs(root.path()), 3);
    assert_eq!(store.image(&first.id).unwrap().references.len(), 2);
    let removed = store.remove(&"first:1".parse().unwrap()).unwrap();
    assert_eq!((removed.untagged.len(), &removed.deleted), (1, &None));
    let blobs = || -> u64 {
        let files = fs::read_dir(root.path().join("blobs/sha256")).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    };
    let before = blobs();
    let removed = store.remove(&"first:2".parse().unwrap()).unwrap();
    assert!(before > blobs(), "loaded layers are kept as they came");
    assert_eq!((removed.deleted, removed.freed_bytes), (Some(first.id.clone()), 1 + before - blobs()));
    assert_eq!(layer_dirs(root.path()), 2);
    assert!(second.layers.iter().all(|l| l.is_dir()), "the shared layer stays");
    // Absent is removed already.
    assert_eq!(store.remove(&"first:2".parse().unwrap()).unwrap().untagged.len(), 0);
    assert_eq!(store.remove_image(&first.id).unwrap().deleted, None);
    let removed = store.remove_image(&second.id).unwrap();
    assert_eq!(removed.deleted, Some(second.id));
    assert_eq!(layer_dirs(root.path()), 0);
    assert_eq!(fs::read_dir(root.path().join("blobs/sha256")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_a_container_stands_on_is_never_removed() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = load(&store, &two_layers(), "a", "").await;
    let other = load(&store, &two_layers(), "b", "other").await;
    let snapshot = store.snapshot("c1", &image, &[]).unwrap();
    let error = store.remove(&"a".parse().unwrap()).unwrap_err();
    assert!(matches!(&error, StoreError::InUse { container, .. } if container == "c1"), "{error}");
    assert!(store.remove_image(&image.id).is_err());
    assert_eq!(store.image(&image.id).unwrap().references.len(), 1, "nothing changed");
    // The collector asks the snapshots itself, whatever its caller forgot.
    let freed = store.gc(Unneeded::All, &|_| BTreeSet::new()).unwrap();
    assert_eq!(freed.images, std::slice::from_ref(&other.id));
    assert!(snapshot.lower.iter().all(|l| l.is_dir()));
    store.remove_snapshot("c1").unwrap();
    assert!(store.gc(Unneeded::All, &|_| BTreeSet::from([image.id.clone()])).unwrap().images.is_empty());
    let freed = store.gc(Unneeded::All, &|_| BTreeSet::new()).unwrap();
    assert_eq!((freed.images, freed.layers), (vec![image.id], 2));
    assert!(freed.bytes >= 300_000);
    assert_eq!(layer_dirs(root.path()), 0);
}

#[tokio::test]
async fn what_a_container_shows_as_a_volume_is_never_removed() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = load(&store, &two_layers(), "a", "").await;
    let shown = load(&store, &two_layers(), "b", "b").await;
    let too = load(&store, &two_layers(), "c", "c").await;
    store.snapshot("c1", &image, &[shown.clone(), too.clone(), shown.clone()]).unwrap();
    for one in [&shown, &too] {
        let error = store.remove_image(&one.id).unwrap_err();
        assert!(matches!(&error, StoreError::InUse { container, .. } if container == "c1"), "{error}");
    }
    assert!(store.gc(Unneeded::All, &|_| BTreeSet::new()).unwrap().images.is_empty());
    assert_eq!(store.usage(&|_| BTreeSet::new()).unwrap().images_needed, 3);
    store.remove_snapshot("c1").unwrap();
    store.remove_image(&shown.id).unwrap();
    // One that is gone cannot be shown any more, and nothing is left of the attempt.
    let answer = store.snapshot("c2", &image, &[too.clone(), shown]);
    assert!(matches!(answer, Err(SnapshotError::ImageGone { .. })), "{answer:?}");
    assert!(store.snapshots().unwrap().is_empty());
}

#[tokio::test]
async fn a_snapshot_carries_the_mode_and_owner_of_the_images_root() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let mut tar = Tar::new();
    let mut header = Tar::header(tar::EntryType::Directory, 0o1751, 0);
    header.set_uid(42);
    header.set_gid(43);
    tar.raw(header, b"./", b"", b"");
    let base = tar.file("x", b"").bytes();
    let silent = Tar::new().file("y", b"").bytes();
    let image = load(&store, &[base, silent], "a", "").await;
    let snapshot = store.snapshot("c1", &image, &[]).unwrap();
    let upper = fs::metadata(&snapshot.upper).unwrap();
    assert_eq!((upper.mode() & 0o7777, upper.uid(), upper.gid()), (0o1751, 42, 43));
    assert_eq!(fs::metadata(snapshot.upper.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(snapshot.lower, image.layers);
    assert!(matches!(store.snapshot("c1", &image, &[]), Err(SnapshotError::Exists { .. })));
    assert_eq!(store.snapshots().unwrap(), BTreeSet::from(["c1".to_owned()]));
    for bad in ["", ".", "..", "../x", "a/b", "a\0b", ".hidden", "a b"] {
        assert!(matches!(store.snapshot(bad, &image, &[]), Err(SnapshotError::Name { .. })), "{bad:?}");
        assert!(matches!(store.remove_snapshot(bad), Err(SnapshotError::Name { .. })), "{bad:?}");
    }
    fs::write(snapshot.upper.join("file"), "x").unwrap();
    store.remove_snapshot("c1").unwrap();
    store.remove_snapshot("c1").unwrap();
    assert!(store.snapshots().unwrap().is_empty());
    store.remove_image(&image.id).unwrap();
    assert!(matches!(store.snapshot("c2", &image, &[]), Err(SnapshotError::ImageGone { .. })));
    assert!(store.snapshots().unwrap().is_empty());
}

#[tokio::test]
async fn an_image_without_layers_still_has_something_to_stand_on() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = load(&store, &[], "scratch:1", "").await;
    let snapshot = store.snapshot("c", &image, &[]).unwrap();
    assert_eq!(snapshot.lower.len(), 1);
    assert!(tree(&snapshot.lower[0]).is_empty());
}

#[tokio::test]
async fn a_second_process_and_a_newer_format_are_refused_without_harm() {
    let root = tempfile::tempdir().unwrap();
    let first = store(root.path());
    load(&first, &two_layers(), "a", "").await;
    assert!(matches!(Store::open(Config::new(root.path())), Err(StoreError::Locked { .. })));
    drop(first);
    let index = root.path().join("index.json");
    let newer = fs::read_to_string(&index).unwrap().replacen("\"version\": 1", "\"version\": 7, \"x\": []", 1);
    fs::write(&index, &newer).unwrap();
    fs::create_dir(root.path().join("staging/theirs")).unwrap();
    let error = Store::open(Config::new(root.path())).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 7, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("newer version"));
    assert!(root.path().join("staging/theirs").exists());
    assert_eq!(fs::read_to_string(&index).unwrap(), newer);
    assert_eq!(layer_dirs(root.path()), 3);
    fs::write(&index, "{damaged").unwrap();
    assert!(matches!(Store::open(Config::new(root.path())), Err(StoreError::Index { .. })));
    assert_eq!(layer_dirs(root.path()), 3);
}

#[tokio::test]
async fn opening_removes_what_a_crash_left_and_drops_what_is_not_whole() {
    let root = tempfile::tempdir().unwrap();
    let (whole, broken, lost) = {
        let store = store(root.path());
        let whole = load(&store, &two_layers(), "whole", "1").await;
        let broken = load(&store, &[Tar::new().file("only", b"broken").bytes()], "broken", "2").await;
        let lost = load(&store, &[Tar::new().file("only", b"lost").bytes()], "lost", "3").await;
        (whole, broken, lost)
    };
    fs::create_dir_all(root.path().join("staging/layer-0/fs/deep")).unwrap();
    fs::write(root.path().join("staging/file-9"), "half").unwrap();
    let stray = root.path().join("layers").join("ab".repeat(32));
    fs::create_dir_all(stray.join("fs")).unwrap();
    fs::remove_dir_all(broken.layers[0].parent().unwrap()).unwrap();
    fs::write(root.path().join("blobs/sha256").join(lost.id.digest().hex()), "{}").unwrap();
    let store = store(root.path());
    assert_eq!(store.list().iter().map(|i| &i.id).collect::<Vec<_>>(), [&whole.id]);
    support::nothing_unfinished(root.path());
    assert!(!stray.exists());
    let again = load(&store, &[Tar::new().file("only", b"broken").bytes()], "broken", "2").await;
    assert_eq!(tree(&again.layers[0]), ["only = broken"]);
}

#[tokio::test]
async fn layers_under_a_container_stay_also_when_its_image_was_lost() {
    for same_boot in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let lowest = root.path().join("layers").join(portreeve_image::Digest::of(&two_layers()[0]).hex());
        let (image, kept) = {
            let store = store(root.path());
            let image = load(&store, &two_layers(), "a", "").await;
            store.snapshot("c1", &image, &[]).unwrap();
            // As an overlay has it: by what it is, wherever it lies.
            let kept = File::open(lowest.join("fs")).unwrap();
            if !same_boot {
                for entry in fs::read_dir(root.path().join("layers")).unwrap() {
                    let path = entry.unwrap().path().join("layer.json");
                    let Ok(text) = fs::read_to_string(&path) else { continue };
                    let mut layer: serde_json::Value = serde_json::from_str(&text).unwrap();
                    layer["boot"] = "that of last week".into();
                    fs::write(&path, layer.to_string()).unwrap();
                }
            }
            (image, kept)
        };
        let there = || Path::new(&format!("/proc/self/fd/{}/etc/kept", kept.as_raw_fd())).exists();
        fs::write(root.path().join("blobs/sha256").join(image.id.digest().hex()), "{}").unwrap();
        let store = store(root.path());
        assert!(store.list().is_empty() && there(), "{same_boot}");
        load(&store, &[Tar::new().file("only", b"other").bytes()], "other", "2").await;
        store.remove(&"other".parse().unwrap()).unwrap();
        store.gc(Unneeded::All, &|_| Default::default()).unwrap();
        assert!(there(), "{same_boot}: what a container has was taken from it");
        // Not taken for a layer that is in place by who comes later, when another boot has unpacked it.
        assert_eq!(lowest.exists(), same_boot);
        store.remove_snapshot("c1").unwrap();
        store.gc(Unneeded::All, &|_| Default::default()).unwrap();
        assert!(!there() && layer_dirs(root.path()) == 0, "{same_boot}");
        assert_eq!(fs::read_dir(root.path().join("aside")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn bad_archives_say_what_is_wrong_and_leave_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let good = archive(&two_layers(), "a:1", "");
    let replace = |from: &str, to: &str| {
        let text = String::from_utf8_lossy(&good).into_owned();
        assert!(text.contains(from));
        drop(text);
        let position = good.windows(from.len()).rposition(|w| w == from.as_bytes()).unwrap();
        let mut bytes = good.clone();
        bytes[position..position + from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let nothing = Tar::new().file("hello", b"x").bytes();
    type Check = fn(&LoadError) -> bool;
    let cases: Vec<(&str, Vec<u8>, Check)> = vec![
        ("no image", nothing, |e| matches!(e, LoadError::NotAnImage)),
        ("empty", Vec::new(), |e| matches!(e, LoadError::NotAnImage)),
        ("rubbish", vec![b'x'; 2000], |e| matches!(e, LoadError::Archive(_))),
        ("cut", good[..good.len() / 2].to_vec(), |e| matches!(e, LoadError::Archive(_))),
        ("bad name", replace("\"a:1\"", "\"A:1\""), |e| matches!(e, LoadError::Invalid { .. })),
        ("missing layer", replace("[\"0/layer", "[\"9/layer"), |e| matches!(e, LoadError::Invalid { .. })),
        ("changed layer", replace("added", "ADDED"), |e| matches!(e, LoadError::Layer { .. })),
        ("bz2", b"BZh91AY&SY".to_vec(), |e| matches!(e, LoadError::Archive(_))),
    ];
    for (name, bytes, right) in cases {
        let error = store.load(std::io::Cursor::new(bytes)).await.unwrap_err();
        assert!(right(&error), "{name}: {error:?}");
        support::nothing_unfinished(root.path());
        assert!(store.list().is_empty());
    }
    let foreign = support::config_json(&[], "s390x", "");
    let manifest = r#"[{"Config":"c.json","RepoTags":null,"Layers":[]}]"#;
    let tar = Tar::new().file("c.json", foreign.as_bytes()).file("manifest.json", manifest.as_bytes()).bytes();
    let error = store.load(std::io::Cursor::new(tar)).await.unwrap_err();
    assert!(matches!(&error, LoadError::Platform { offered, .. } if offered == "linux/s390x"), "{error}");
    // Names that lead out of the archive mean nothing, and nothing outside is read.
    let outside = r#"[{"Config":"../../../../etc/passwd","RepoTags":null,"Layers":[]}]"#;
    let tar = Tar::new().symlink("l", "/etc/passwd").file("manifest.json", outside.as_bytes()).bytes();
    assert!(store.load(std::io::Cursor::new(tar)).await.is_err());
}

#[tokio::test]
async fn of_names_that_an_archive_has_twice_the_last_one_counts() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let old = Tar::new().file("x", b"old").bytes();
    let new = Tar::new().file("x", b"new").bytes();
    let config = support::config_json(&[portreeve_image::Digest::of(&new)], support::arch(), "");
    let manifest = |name: &str| {
        serde_json::json!([{"Config": "c.json", "RepoTags": [name], "Layers": ["a/layer.tar"]}]).to_string()
    };
    // As `tar -r` makes it: behind what was there, also where that was a link, and once more.
    let tar = Tar::new()
        .file("old.tar", &old)
        .symlink("a/layer.tar", "../old.tar")
        .file("manifest.json", manifest("first:1").as_bytes())
        .file("c.json", config.as_bytes())
        .file("a/layer.tar", &old)
        .file("a/layer.tar", &new)
        .file("manifest.json", manifest("last:1").as_bytes())
        .file("readme", b"x")
        .bytes();
    let image = store.load(std::io::Cursor::new(tar)).await.unwrap().remove(0);
    assert_eq!(image.references, ["last:1".parse().unwrap()]);
    assert_eq!(tree(&image.layers[0]), ["x = new"]);
    support::nothing_unfinished(root.path());
}

#[tokio::test]
async fn an_archive_with_more_than_can_be_used_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let layer = Tar::new().file("x", b"1").bytes();
    let archive = |count: usize, entries: usize| {
        let config = support::config_json(&vec![portreeve_image::Digest::of(&layer); count], support::arch(), "");
        let entry = serde_json::json!({"Config": "c.json", "RepoTags": null, "Layers": vec!["l.tar"; count]});
        let manifest = serde_json::to_vec(&vec![entry; entries]).unwrap();
        Tar::new().file("l.tar", &layer).file("c.json", config.as_bytes()).file("manifest.json", &manifest).bytes()
    };
    for (layers, images, expect) in [(600, 1, "600 layers"), (500, 1, "500 layers"), (1, 1001, "1001 images")] {
        let error = store.load(std::io::Cursor::new(archive(layers, images))).await.unwrap_err();
        assert!(matches!(&error, LoadError::Invalid { problem, .. } if problem.contains(expect)), "{error}");
    }
    store.load(std::io::Cursor::new(archive(499, 2))).await.unwrap();
}

#[tokio::test]
async fn an_archive_that_is_a_bomb_stops_at_its_bound() {
    let root = tempfile::tempdir().unwrap();
    let limits = portreeve_image::Limits { ratio_floor_bytes: 1 << 20, ratio: 20, ..Default::default() };
    let store = Store::open(Config { limits, ..Config::new(root.path()) }).unwrap();
    let big = archive(&[Tar::new().file("zeros", &vec![0; 8 << 20]).bytes()], "a:1", "");
    for how in [Pack::Gzip, Pack::Zstd] {
        let error = store.load(std::io::Cursor::new(pack(&big, how))).await.unwrap_err();
        assert!(matches!(&error, LoadError::Archive(portreeve_image::LayerError::Limit { .. })), "{error:?}");
        support::nothing_unfinished(root.path());
    }
    store.load(std::io::Cursor::new(big)).await.unwrap();
}

#[tokio::test]
async fn the_words_of_an_archive_are_harmless() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let foreign = support::config_json(&[], "\u{1b}[31mred\n", "");
    let missing = serde_json::json!([{"Config": "\u{1b}[31mred\n", "RepoTags": null, "Layers": []}]).to_string();
    let other = r#"[{"Config":"c.json","RepoTags":null,"Layers":[]}]"#.to_owned();
    for manifest in [missing, other] {
        let tar = Tar::new().file("c.json", foreign.as_bytes()).file("manifest.json", manifest.as_bytes()).bytes();
        let error = store.load(std::io::Cursor::new(tar)).await.unwrap_err().to_string();
        assert!(error.contains("red") && !error.chars().any(char::is_control), "{error:?}");
    }
}

#[tokio::test]
async fn a_preloaded_image_is_pinned_until_its_file_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let preload = root.path().join("preload");
    fs::create_dir(&preload).unwrap();
    fs::write(preload.join("good.tar.gz"), pack(&archive(&two_layers(), "app:1", ""), Pack::Gzip)).unwrap();
    fs::write(preload.join("bad.tar"), "rubbish").unwrap();
    fs::write(preload.join(".hidden.tar"), "rubbish").unwrap();
    let config = || Config { preload_dir: Some(preload.clone()), ..Config::new(root.path().join("store")) };
    let store = Store::open(config()).unwrap();
    let loaded = store.preload().await;
    assert_eq!(loaded.len(), 2);
    let by_name = |name: &str| loaded.iter().find(|p| p.file == preload.join(name)).unwrap();
    assert!(by_name("bad.tar").result.is_err());
    assert!(by_name("good.tar.gz").result.as_ref().unwrap()[0].pinned);
    assert!(store.gc(Unneeded::All, &|_| BTreeSet::new()).unwrap().images.is_empty());
    drop((loaded, store));
    // The next start reads no unchanged file again; this one could not be read.
    let store = Store::open(config()).unwrap();
    let modified = fs::metadata(preload.join("good.tar.gz")).unwrap().modified().unwrap();
    let length = fs::metadata(preload.join("good.tar.gz")).unwrap().len();
    fs::write(preload.join("good.tar.gz"), vec![0; usize::try_from(length).unwrap()]).unwrap();
    File::options().write(true).open(preload.join("good.tar.gz")).unwrap().set_modified(modified).unwrap();
    assert!(store.preload().await.iter().any(|p| p.result.is_ok()));
    fs::remove_file(preload.join("good.tar.gz")).unwrap();
    store.preload().await;
    assert_eq!(store.gc(Unneeded::All, &|_| BTreeSet::new()).unwrap().images.len(), 1);
}

#[tokio::test]
async fn an_unreadable_preload_directory_unpins_nothing() {
    let root = tempfile::tempdir().unwrap();
    let preload = root.path().join("preload");
    fs::create_dir(&preload).unwrap();
    fs::write(preload.join("a.tar"), archive(&two_layers(), "app:1", "")).unwrap();
    let config = Config { preload_dir: Some(preload.clone()), ..Config::new(root.path().join("store")) };
    let store = Store::open(config).unwrap();
    store.preload().await;
    fs::rename(&preload, root.path().join("away")).unwrap();
    assert!(store.preload().await[0].result.is_err());
    assert!(store.list()[0].pinned);
}

#[tokio::test]
async fn kept_blobs_of_loaded_images_form_what_was_loaded() {
    for (keep, expect) in [(KeepBlobs::Never, 2), (KeepBlobs::Loaded, 4)] {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(Config { keep_blobs: keep, ..Config::new(root.path()) }).unwrap();
        load(&store, &two_layers(), "a", "").await;
        let blobs: Vec<PathBuf> =
            fs::read_dir(root.path().join("blobs/sha256")).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(blobs.len(), expect, "{keep:?}");
        for blob in blobs {
            let digest = portreeve_image::Digest::of(&fs::read(&blob).unwrap());
            assert_eq!(blob.file_name().unwrap().to_str().unwrap(), digest.hex());
        }
    }
}

#[tokio::test]
async fn usage_counts_shared_layers_once() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = load(&store, &two_layers(), "a", "1").await;
    load(&store, &two_layers(), "b", "2").await;
    let more = Tar::new().dir("./", 0o755).file("more", &[7; 5000]).bytes();
    let big = load(&store, &[two_layers(), vec![more]].concat(), "c", "3").await;
    let usage = store.usage(&|_| BTreeSet::new()).unwrap();
    assert_eq!((usage.images, usage.images_needed, usage.layers), (3, 0, 3));
    assert_eq!((usage.layer_bytes, usage.reclaimable_bytes), (big.size_bytes, big.size_bytes));
    assert!(usage.filesystem.capacity_bytes > usage.filesystem.available_bytes && usage.filesystem.inodes > 0);
    let blobs: Vec<u64> = fs::read_dir(root.path().join("blobs/sha256"))
        .unwrap()
        .map(|blob| blob.unwrap().metadata().unwrap().len())
        .collect();
    assert_eq!((usage.blobs, usage.blob_bytes), (blobs.len() as u64, blobs.iter().sum()));
    // What is needed by a container or its caller's word is not to be had back, nor what it shares.
    store.snapshot("c1", &image, &[]).unwrap();
    let usage = store.usage(&|_| BTreeSet::new()).unwrap();
    assert_eq!((usage.images_needed, usage.reclaimable_bytes), (1, big.size_bytes - image.size_bytes));
    let usage = store.usage(&|_| BTreeSet::from([big.id.clone()])).unwrap();
    assert_eq!((usage.images_needed, usage.reclaimable_bytes), (2, 0));
}

#[tokio::test]
async fn a_staging_directory_that_was_cleared_away_is_made_again() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let staging = root.path().join("staging");
    let image = load(&store, &two_layers(), "a:1", "1").await;
    support::nothing_unfinished(root.path());
    for what in ["a load", "an index", "a removal"] {
        // The last index may still be on its way.
        while fs::remove_dir(&staging).is_err() {}
        match what {
            "a load" => drop(load(&store, &[Tar::new().file("x", b"1").bytes()], "b:1", "2").await),
            "an index" => drop(store.tag(&image.id, &"a:2".parse().unwrap()).unwrap()),
            _ => {
                assert_eq!(store.remove_image(&image.id).unwrap().deleted, Some(image.id.clone()));
                assert!(image.layers.iter().all(|layer| !layer.exists()), "{what}");
            }
        }
        assert_eq!(fs::metadata(&staging).unwrap().permissions().mode() & 0o7777, 0o700, "{what}");
    }
}

#[tokio::test]
async fn a_tag_moves_and_what_it_leaves_without_a_name_can_be_collected() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let name = |text: &str| text.parse::<portreeve_image::ImageRef>().unwrap();
    let old = load(&store, &two_layers(), "web:1", "1").await;
    let other = load(&store, &two_layers(), "db:1", "2").await;
    // One more name.
    let tagged = store.tag(&old.id, &name("web:stable")).unwrap().unwrap();
    assert_eq!(tagged.references, [name("web:1"), name("web:stable")]);
    assert!(store.gc(Unneeded::Untagged, &|_| BTreeSet::new()).unwrap().images.is_empty());
    // A name that another image had.
    store.tag(&other.id, &name("web:stable")).unwrap();
    assert_eq!(store.lookup(&name("web:stable")).unwrap().id, other.id);
    assert_eq!(store.image(&old.id).unwrap().references, [name("web:1")]);
    let new = load(&store, &[two_layers(), two_layers()].concat(), "web:1", "3").await;
    assert!(store.image(&old.id).unwrap().references.is_empty());
    // What names are is kept.
    drop(store);
    let store = support::store(root.path());
    assert_eq!(store.lookup(&name("web:stable")).unwrap().id, other.id);
    let freed = store.gc(Unneeded::Untagged, &|_| BTreeSet::from([old.id.clone()])).unwrap();
    assert!(freed.images.is_empty(), "somebody needs it");
    let freed = store.gc(Unneeded::Untagged, &|_| BTreeSet::new()).unwrap();
    assert_eq!((freed.images, freed.layers), (vec![old.id.clone()], 0), "its layers are the others' too");
    assert_eq!(store.list().len(), 2);
    // What cannot be tagged.
    let pinned = name("web").with_digest(new.id.digest().clone());
    assert!(matches!(store.tag(&new.id, &pinned), Err(StoreError::NoTag { .. })));
    assert!(store.tag(&old.id, &name("web:2")).unwrap().is_none());
    assert!(store.lookup(&name("web:2")).is_none());
}

#[tokio::test]
async fn a_collection_takes_what_was_used_longest_ago_and_no_more_than_it_must() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let layer = |name: &str| Tar::new().dir("./", 0o755).file(name, &[7; 100_000]).bytes();
    let mut images = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        images.push(load(&store, &[layer(name)], name, name).await);
    }
    let [a, b, c, d, e] = <[Image; 5]>::try_from(images).unwrap();
    let none = BTreeSet::<portreeve_image::ImageId>::new;
    // There is room when so many are gone.
    let collect = |most: usize, in_use: BTreeSet<_>| {
        let mut asked = 0..most;
        store.collect(|_| asked.next().is_none(), std::time::Duration::ZERO, &|_| in_use.clone()).unwrap()
    };
    let nobody_is_told = || {
        let changes = store.changes();
        let freed = store.collect(|_| false, std::time::Duration::from_secs(3600), &|_| none()).unwrap();
        assert!(freed.images.is_empty(), "all are young");
        !changes.has_changed().unwrap()
    };
    // That the images are on the disk is written down meanwhile, once.
    assert!((0..10).any(|_| nobody_is_told()), "nothing went");
    assert!(collect(0, none()).images.is_empty());
    let changes = store.changes();
    // The first was used last.
    store.snapshot("x", &a, &[]).unwrap();
    store.snapshot("y", &e, &[]).unwrap();
    store.remove_snapshot("x").unwrap();
    assert_eq!(collect(1, none()).images, std::slice::from_ref(&b.id));
    assert!(changes.has_changed().unwrap());
    // One that is wanted and one that a container stands on are not among those that could go.
    let freed = collect(2, BTreeSet::from([c.id.clone()]));
    assert_eq!((freed.images, freed.layers), (vec![d.id, a.id], 2));
    // Unpacked, and as they came.
    assert!((400_000..420_000).contains(&freed.bytes), "{}", freed.bytes);
    assert_eq!(collect(usize::MAX, none()).images, [c.id]);
    assert_eq!(store.list().len(), 1);
    store.remove_snapshot("y").unwrap();
    assert_eq!(collect(1, none()).images, [e.id]);
}

#[tokio::test]
async fn what_was_used_before_the_store_was_opened_counts_as_used_then() {
    let root = tempfile::tempdir().unwrap();
    let (first, second) = {
        let store = store(root.path());
        (load(&store, &two_layers(), "a", "1").await, load(&store, &two_layers(), "b", "2").await)
    };
    let index = root.path().join("index.json");
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    for image in text["images"].as_array_mut().unwrap() {
        let is_first = image["id"] == first.id.to_string();
        image["added_at"] = if is_first { "2020-01-02T00:00:00Z" } else { "2020-01-01T00:00:00Z" }.into();
    }
    fs::write(&index, text.to_string()).unwrap();
    let store = store(root.path());
    let collect = |age| {
        let mut asked = 0..1;
        store.collect(|_| asked.next().is_none(), age, &|_| BTreeSet::new()).unwrap().images
    };
    assert!(collect(std::time::Duration::from_secs(3600)).is_empty());
    // Which goes first is still told by when they came.
    assert_eq!(collect(std::time::Duration::ZERO), [second.id]);
}

#[test]
fn a_collection_asks_the_disk_after_each_image_for_bytes_and_for_inodes() {
    support::in_mount_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let many = |name: &str| (0..100).fold(Tar::new(), |tar, n| tar.file(&format!("{name}{n}"), b""));
        let large = |name: &str| Tar::new().file(name, &vec![7; 1 << 20]);
        // On the one inodes are scarce, on the other bytes; five of nine images are to go.
        for (options, fill) in [("nr_inodes=1k,size=64M", true), ("nr_inodes=64k,size=20M", false)] {
            let root = tempfile::tempdir().unwrap();
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("tmpfs"), root.path(), Some("tmpfs"), flags, Some(options)).unwrap();
            let store = store(&root.path().join("images"));
            for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i"] {
                let layer = if fill { many(name) } else { large(name) };
                runtime.block_on(load(&store, &[layer.bytes()], name, name));
            }
            let full = store.filesystem().unwrap().used_percent();
            assert!(full >= 85, "{full}%");
            let mut told = Vec::new();
            let room = |now: &portreeve_image::Filesystem| {
                told.push(now.used_percent());
                now.used_percent() <= 50
            };
            let freed = store.collect(room, std::time::Duration::ZERO, &|_| BTreeSet::new()).unwrap();
            assert!((3..6).contains(&freed.images.len()), "{told:?}");
            assert_eq!(told.len(), freed.images.len() + 1);
            let (last, before) = told.split_last().unwrap();
            assert!(*last <= 50 && before.iter().all(|percent| *percent > 50), "{told:?}");
            drop(store);
            nix::mount::umount2(root.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    });
}

#[tokio::test]
async fn an_index_that_cannot_be_written_takes_nothing_away() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let layer = |name: &str| Tar::new().dir("./", 0o755).file(name, b"x").bytes();
    let gone = load(&store, &[layer("a")], "a", "a").await;
    let kept = load(&store, &[layer("b")], "b", "b").await;
    // Whatever was still to be written down about them is when the store is closed.
    drop(store);
    let store = support::store(root.path());
    // As a full disk does, it lets nobody replace the index.
    fs::remove_file(root.path().join("index.json")).unwrap();
    fs::create_dir(root.path().join("index.json")).unwrap();
    let needed = BTreeSet::from([kept.id.clone()]);
    assert!(store.gc(Unneeded::All, &|_| needed.clone()).is_err());
    assert!(store.remove_image(&gone.id).is_err());
    for image in [&gone, &kept] {
        let there = store.image(&image.id).unwrap();
        assert!(there.layers.iter().all(|layer| layer.join("..").join("layer.json").is_file()));
    }
    fs::remove_dir(root.path().join("index.json")).unwrap();
    assert_eq!(store.gc(Unneeded::All, &|_| needed.clone()).unwrap().images, std::slice::from_ref(&gone.id));
    assert!(gone.layers.iter().all(|layer| !layer.exists()));
}

#[test]
fn an_image_goes_from_a_disk_on_which_nothing_can_be_written_any_more() {
    support::in_mount_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let root = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), root.path(), Some("tmpfs"), flags, Some("size=4M,mode=700")).unwrap();
        let images = root.path().join("images");
        fs::create_dir(&images).unwrap();
        let store = store(&images);
        let layer = Tar::new().file("a", &vec![7; 1 << 20]).bytes();
        let image = runtime.block_on(load(&store, &[layer], "a", "a"));
        let mut filler = fs::File::create(root.path().join("filler")).unwrap();
        while filler.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
        let removed = store.remove_image(&image.id).unwrap();
        assert!(removed.freed_bytes > 1 << 20, "{removed:?}");
        assert!(store.list().is_empty() && !image.layers[0].exists());
        drop(store);
        assert!(support::store(&images).list().is_empty());
        nix::mount::umount2(root.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
}

/// Makes a directory in which another one is, and so on: more of them than a stack or a limit of descriptors can take.
fn dig(directory: &Path) {
    let mode = rustix::fs::Mode::RWXU;
    let mut at: std::os::fd::OwnedFd = File::open(directory).unwrap().into();
    for _ in 0..25_000 {
        rustix::fs::mkdirat(&at, "d", mode).unwrap();
        at = rustix::fs::openat(&at, "d", rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    }
}

#[test]
fn directories_of_any_depth_go() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let root = tempfile::tempdir().unwrap();
    let opened = store(root.path());
    let image = runtime.block_on(load(&opened, &two_layers(), "a", "a"));
    dig(&opened.snapshot("c", &image, &[]).unwrap().upper);
    opened.remove_snapshot("c").unwrap();
    assert_eq!(fs::read_dir(root.path().join("snapshots")).unwrap().count(), 0);
    support::nothing_unfinished(root.path());
    drop(opened);
    // What an older version has left.
    let left = root.path().join("staging/trash-1");
    fs::create_dir(&left).unwrap();
    dig(&left);
    drop(store(root.path()));
    support::nothing_unfinished(root.path());
}

#[tokio::test]
async fn a_whole_id_is_that_image_whatever_another_one_is_called() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let good = load(&store, &[Tar::new().file("good", b"x").bytes()], "good", "1").await;
    let evil = load(&store, &[Tar::new().file("evil", b"x").bytes()], "evil", "2").await;
    // This is a name, too: the tag of a repository on the Docker Hub.
    let id = good.id.to_string();
    store.tag(&evil.id, &id.parse().unwrap()).unwrap();
    assert_eq!(store.resolve(&id).unwrap().id, good.id);
    store.remove_image(&good.id).unwrap();
    assert!(store.resolve(&id).is_none());
}

#[tokio::test]
async fn a_layer_that_is_here_is_kept_only_as_its_digest_says() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    store.load(layout.archive()).await.unwrap();
    let blob = root.path().join("blobs/sha256").join(layout.layers[0].hex());
    let whole = fs::read(&blob).unwrap();
    let file = layout.dir.path().join("blobs/sha256").join(layout.layers[0].hex());
    let mut bent = whole.clone();
    *bent.last_mut().unwrap() ^= 1;
    fs::write(file, bent).unwrap();
    let refused = store.load(layout.archive()).await.unwrap_err();
    assert!(matches!(refused, portreeve_image::LoadError::Layer { .. }), "{refused:?}");
    assert_eq!(fs::read(&blob).unwrap(), whole);
}

#[tokio::test]
async fn a_blob_that_is_not_the_layer_is_not_kept_for_one_that_is_here() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let layer = Tar::new().file("x", b"1").bytes();
    let other = Tar::new().file("y", b"2").bytes();
    load(&store, std::slice::from_ref(&layer), "a:1", "1").await;
    let before = fs::read_dir(root.path().join("blobs/sha256")).unwrap().count();
    let is_diff_id = |error: &LoadError| {
        matches!(error, LoadError::Layer { source: portreeve_image::LayerError::DiffId { .. }, .. })
    };
    let config = |salt: &str| support::config_json(&[portreeve_image::Digest::of(&layer)], support::arch(), salt);
    for blob in [other.clone(), pack(&other, Pack::Gzip)] {
        let manifest = r#"[{"Config":"c.json","RepoTags":null,"Layers":["l"]}]"#;
        let tar = Tar::new().file("c.json", config("2").as_bytes()).file("l", &blob);
        let tar = tar.file("manifest.json", manifest.as_bytes()).bytes();
        let error = store.load(std::io::Cursor::new(tar)).await.unwrap_err();
        assert!(is_diff_id(&error), "{error:?}");
        assert_eq!(fs::read_dir(root.path().join("blobs/sha256")).unwrap().count(), before);
    }
    // Nor one that the archive's first image has kept, of which it is a layer.
    let manifest = r#"[{"Config":"o.json","RepoTags":null,"Layers":["l"]},
                       {"Config":"c.json","RepoTags":null,"Layers":["l"]}]"#;
    let others = support::config_json(&[portreeve_image::Digest::of(&other)], support::arch(), "3");
    let tar = Tar::new().file("c.json", config("2").as_bytes()).file("o.json", others.as_bytes());
    let tar = tar.file("l", &other).file("manifest.json", manifest.as_bytes()).bytes();
    let error = store.load(std::io::Cursor::new(tar)).await.unwrap_err();
    assert!(is_diff_id(&error), "{error:?}");
    assert_eq!(store.list().len(), 2);
    // As it should be, packed in another way.
    let tar = Tar::new().file("c.json", config("2").as_bytes()).file("l", &pack(&layer, Pack::Zstd));
    let manifest = r#"[{"Config":"c.json","RepoTags":null,"Layers":["l"]}]"#;
    let tar = tar.file("manifest.json", manifest.as_bytes()).bytes();
    store.load(std::io::Cursor::new(tar)).await.unwrap();
}

#[tokio::test]
async fn who_needs_what_is_asked_when_it_would_go() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = load(&store, &two_layers(), "web:1", "1").await;
    let name: portreeve_image::ImageRef = "web:1".parse().unwrap();
    let wanted = |find: &dyn Fn(&portreeve_image::ImageRef) -> Option<portreeve_image::ImageId>| {
        find(&name).into_iter().collect::<BTreeSet<_>>()
    };
    assert!(store.gc(Unneeded::All, &wanted).unwrap().images.is_empty());
    assert!(store.collect(|_| false, std::time::Duration::ZERO, &wanted).unwrap().images.is_empty());
    assert_eq!(store.usage(&wanted).unwrap().images_needed, 1);
    let newer = load(&store, &[two_layers(), two_layers()].concat(), "web:1", "2").await;
    assert_eq!(store.gc(Unneeded::All, &wanted).unwrap().images, [image.id]);
    assert_eq!(store.list()[0].id, newer.id);
}

#[tokio::test]
async fn details_are_the_configuration_as_it_came_and_each_layer_in_both_forms() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = load(&store, &two_layers(), "a", "note").await;
    let details = store.details(&image.id).unwrap().unwrap();
    assert_eq!(portreeve_image::Digest::of(&details.configuration), *image.id.digest());
    assert_eq!(details.image.references, image.references);
    let tars = two_layers();
    assert_eq!(details.layers.len(), tars.len());
    for (layer, tar) in details.layers.iter().zip(&tars) {
        let digest = portreeve_image::Digest::of(tar);
        assert_eq!((&layer.diff_id, &layer.blob, layer.blob_bytes), (&digest, &digest, tar.len() as u64));
        assert!(layer.kept && layer.size_bytes > 0);
    }
    assert_eq!(details.layers.iter().map(|layer| layer.size_bytes).sum::<u64>(), image.size_bytes);
    store.remove_image(&image.id).unwrap();
    assert!(store.details(&image.id).unwrap().is_none());
}

#[tokio::test]
async fn implied_directories_take_mode_and_owner_from_the_layer_that_says_them() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let dir = |tar: &mut Tar, name: &[u8], mode: u32, uid: u64| {
        let mut header = Tar::header(tar::EntryType::Directory, mode, 0);
        header.set_uid(uid);
        tar.raw(header, name, b"", b"");
    };
    let mut base = Tar::new();
    dir(&mut base, b"a/", 0o700, 5);
    dir(&mut base, b"a/b/", 0o2770, 6);
    dir(&mut base, b"gone/", 0o700, 7);
    dir(&mut base, b"plain/", 0o755, 0);
    let deep = Tar::new().file("a/b/x", b"").file("gone/x", b"").file("plain/x", b"").bytes();
    let top = Tar::new().file(".wh.gone", b"").bytes();
    let image = load(&store, &[base.bytes(), deep, top], "a", "").await;
    assert_eq!(image.layers.len(), 4);
    // Only what differs is there; what the top layer deleted does not come back.
    assert_eq!(tree(&image.layers[0]), ["a/", "a/b/"]);
    let facts = |name: &str| {
        let m = fs::metadata(image.layers[0].join(name)).unwrap();
        (m.mode() & 0o7777, m.uid())
    };
    assert_eq!((facts("a"), facts("a/b")), ((0o700, 5), (0o2770, 6)));
}

#[tokio::test]
async fn a_layer_on_two_bases_is_shared_and_right_on_both() {
    let root = tempfile::tempdir().unwrap();
    let merged = Tar::new().dir("usr/", 0o755).dir("usr/lib/", 0o755).symlink("lib", "usr/lib").bytes();
    let apart = Tar::new().dir("lib/", 0o700).dir("usr/", 0o755).bytes();
    let shared = Tar::new().file("lib/x", b"x").bytes();
    let (first, second, names) = {
        let store = store(root.path());
        let first = load(&store, &[merged, shared.clone()], "merged", "1").await;
        let second = load(&store, &[apart.clone(), shared], "apart", "2").await;
        (first, second, store.list().len())
    };
    assert_eq!(names, 2);
    let trees = |image: &Image| image.layers.iter().map(|l| tree(l)).collect::<Vec<_>>();
    let on_merged: Vec<Vec<&str>> =
        vec![vec!["lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/x = x"], vec!["lib/", "lib/x = x"]];
    assert_eq!(trees(&first)[..2], on_merged);
    assert_eq!(trees(&second)[..2], [vec!["lib/"], vec!["lib/", "lib/x = x"]]);
    assert_eq!(fs::metadata(second.layers[0].join("lib")).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(first.layers[1], second.layers[1], "the layer itself is shared");
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(first.layers[0].join("usr/lib/x")), inode(first.layers[1].join("lib/x")), "its content, too");
    // It is the same after a new start, and goes with its image.
    let store = store(root.path());
    assert_eq!(store.image(&first.id).unwrap().layers, first.layers);
    store.remove_image(&first.id).unwrap();
    assert!(!first.layers[0].exists());
    assert_eq!(fs::read(second.layers[1].join("lib/x")).unwrap(), b"x");
    store.remove_image(&second.id).unwrap();
    assert_eq!(layer_dirs(root.path()), 0);
}

#[tokio::test]
async fn an_image_without_what_follows_its_links_is_not_whole() {
    let root = tempfile::tempdir().unwrap();
    let layers = [Tar::new().symlink("lib", "usr/lib").bytes(), Tar::new().file("lib/x", b"x").bytes()];
    let image = load(&store(root.path()), &layers, "a", "").await;
    fs::remove_dir_all(&image.layers[0]).unwrap();
    let store = store(root.path());
    assert!(store.list().is_empty());
    let again = load(&store, &layers, "a", "").await;
    assert_eq!(tree(&again.layers[0]), ["lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/x = x"]);
}

#[tokio::test]
async fn an_image_that_is_here_keeps_what_containers_stand_on() {
    let root = tempfile::tempdir().unwrap();
    let layers = [Tar::new().symlink("lib", "usr/lib").bytes(), Tar::new().file("lib/x", b"x").bytes()];
    load(&store(root.path()), &layers, "a", "").await;
    // As a version left it that did not follow links.
    let index = root.path().join("index.json");
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    assert_eq!(text["images"][0]["redirected"].as_array().unwrap().len(), 1);
    text["images"][0].as_object_mut().unwrap().remove("redirected");
    fs::write(&index, text.to_string()).unwrap();
    let store = store(root.path());
    assert_eq!(store.list()[0].layers.len(), 2);
    let again = load(&store, &layers, "b", "").await;
    assert_eq!((again.layers.len(), store.list().len()), (2, 1));
    store.remove_image(&again.id).unwrap();
    assert_eq!(load(&store, &layers, "a", "").await.layers.len(), 3);
}

#[tokio::test]
async fn links_of_lower_layers_lead_nowhere_out_of_the_image() {
    let root = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "safe").unwrap();
    let path = outside.path().to_str().unwrap();
    let up = "../".repeat(40);
    let lower = Tar::new()
        .symlink("absolute", path)
        .symlink("relative", &format!("{up}{path}"))
        .symlink("loop", "loop")
        .symlink("magic", "/proc/self/root")
        .symlink("dots", "..")
        .file("file", b"f");
    let mut upper = Tar::new().file("absolute/.wh.victim", b"");
    for name in ["absolute", "relative", "loop", "magic", "dots", "file"] {
        upper = upper.file(&format!("{name}/victim-{name}"), name.as_bytes()).file(&format!("{name}/.wh.gone"), b"");
    }
    let store = store(root.path());
    let image = load(&store, &[lower.bytes(), upper.bytes()], "a", "").await;
    assert_eq!(tree(outside.path()), ["victim = safe"]);
    let found = tree(&image.layers[0]);
    let inside = path.trim_start_matches('/');
    for expect in [
        format!("{inside}/victim-absolute = absolute"),
        format!("{inside}/victim-relative = relative"),
        "proc/self/root/victim-magic = magic".to_owned(),
        "victim-dots = dots".to_owned(),
        format!("relative -> {up}{path}"),
    ] {
        assert!(found.contains(&expect), "{expect}: {found:?}");
    }
    // Where no directory can be meant the layer's own stands.
    assert!(!found.iter().any(|f| f.starts_with("loop") || f.starts_with("file")), "{found:?}");
}
