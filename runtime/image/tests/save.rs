//! Archives that are written, and what others make of them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Cursor, Read},
    path::Path,
    process::Command,
};

use portreeve_image::{Chosen, Config, Digest, Image, KeepBlobs, SaveError, Store};
use serde_json::Value;
use support::{
    Layout, Pack, Registry,
    held::{Held, until},
    skopeo, store, tree, two_layers,
};

/// By the name that it has, or by none.
fn chosen(image: &Image, name: &str) -> Chosen {
    (image.id.clone(), (!name.is_empty()).then(|| name.parse().unwrap()))
}

async fn save(store: &Store, images: &[Chosen]) -> Vec<u8> {
    let saving = store.save(images, &[]).await.unwrap();
    let mut tar = Vec::new();
    saving.write_to(&mut tar).unwrap();
    tar
}

fn files(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().display().to_string(), bytes)
    });
    entries.filter(|(name, _)| !name.ends_with('/')).collect()
}

fn json(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Value {
    serde_json::from_slice(&files[name]).unwrap()
}

fn blobs(root: &Path) -> BTreeSet<String> {
    let blobs = fs::read_dir(root.join("blobs/sha256")).unwrap();
    blobs.map(|blob| blob.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_third_archive_waits_for_one_of_two() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let image = store.load(layout.archive()).await.unwrap().remove(0);
    let wanted = [chosen(&image, "")];
    let first = store.save(&wanted, &[]).await.unwrap();
    let _second = store.save(&wanted, &[]).await.unwrap();
    let pause = std::time::Duration::from_millis(200);
    assert!(tokio::time::timeout(pause, store.save(&wanted, &[])).await.is_err());
    drop(first);
    store.save(&wanted, &[]).await.unwrap();
}

#[tokio::test]
async fn what_was_loaded_is_saved_as_it_came_and_loads_again() {
    for how in [Pack::Plain, Pack::Gzip, Pack::Zstd] {
        let root = tempfile::tempdir().unwrap();
        let first = store(root.path());
        let layout = Layout::new(&two_layers(), how);
        let image = first.load(layout.archive()).await.unwrap().remove(0);
        first.tag(&image.id, &"example.org/team/box:1".parse().unwrap()).unwrap();
        first.tag(&image.id, &"box:2".parse().unwrap()).unwrap();
        let names = [chosen(&image, "example.org/team/box:1"), chosen(&image, "box:2")];
        let saved = save(&first, &names).await;
        assert_eq!(saved, save(&first, &names).await, "the same images make the same bytes");

        let inside = files(&saved);
        for digest in layout.layers.iter().chain([&layout.config, &layout.manifest]) {
            assert_eq!(Digest::of(&inside[&format!("blobs/sha256/{}", digest.hex())]), *digest);
        }
        assert_eq!(inside.len(), layout.layers.len() + 5, "{:?}", inside.keys());
        let index = json(&inside, "index.json");
        let full: Vec<_> = index["manifests"].as_array().unwrap().iter().collect();
        assert_eq!(full.len(), 2);
        assert!(full.iter().all(|entry| entry["digest"] == layout.manifest.as_str()));
        assert_eq!(full[0]["annotations"]["io.containerd.image.name"], "docker.io/library/box:2");
        assert_eq!(full[0]["annotations"]["org.opencontainers.image.ref.name"], "2");
        let docker = json(&inside, "manifest.json");
        assert_eq!(docker[0]["RepoTags"], serde_json::json!(["box:2", "example.org/team/box:1"]));

        let other = tempfile::tempdir().unwrap();
        let second = store(other.path());
        let again = second.load(Cursor::new(saved)).await.unwrap();
        assert_eq!((again.len(), &again[0].id), (1, &image.id));
        let names: BTreeSet<String> = again[0].references.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["docker.io/library/box:2", "example.org/team/box:1"].map(str::to_owned).into());
        assert_eq!(blobs(root.path()), blobs(other.path()));
    }
}

#[tokio::test]
async fn what_was_damaged_on_the_disk_is_not_saved() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let image = store.load(layout.archive()).await.unwrap().remove(0);
    let names = [chosen(&image, "")];
    let blob = |digest: &Digest| root.path().join("blobs/sha256").join(digest.hex());
    let spoil = |digest: &Digest| {
        let mut bytes = fs::read(blob(digest)).unwrap();
        bytes[10] ^= 1;
        fs::write(blob(digest), bytes).unwrap();
    };
    spoil(&layout.layers[0]);
    let saving = store.save(&names, &[]).await.unwrap();
    let error = saving.write_to(std::io::sink()).unwrap_err();
    assert!(error.to_string().contains(layout.layers[0].hex()) && error.to_string().contains("is damaged"), "{error}");
    spoil(&layout.manifest);
    assert!(matches!(store.save(&names, &[]).await, Err(SaveError::Store(_))));
}

#[tokio::test]
async fn images_of_one_archive_share_their_layers_and_may_have_no_name() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let mut images = Vec::new();
    for (salt, tars) in [("1", two_layers()), ("2", two_layers())] {
        let layout = Layout::salted(&tars, Pack::Gzip, salt);
        images.push(store.load(layout.archive()).await.unwrap().remove(0));
    }
    store.tag(&images[0].id, &"one:1".parse().unwrap()).unwrap();
    let saved = files(&save(&store, &[chosen(&images[0], "one:1"), chosen(&images[1], "")]).await);
    let layers = json(&saved, "manifest.json");
    assert_eq!(layers[0]["Layers"], layers[1]["Layers"]);
    assert_eq!(saved.len(), 2 + 2 + 2 + 3, "two layers, two configurations, two manifests: {:?}", saved.keys());
    let nameless = json(&saved, "index.json");
    let nameless = nameless["manifests"].as_array().unwrap().iter().filter(|entry| entry["annotations"].is_null());
    assert_eq!(nameless.count(), 1);
    let gone = chosen(&images[1], "");
    store.remove_image(&images[1].id).unwrap();
    assert!(matches!(store.save(&[gone], &[]).await, Err(SaveError::Absent { .. })));
}

#[tokio::test]
async fn layers_of_a_pulled_image_are_fetched_again_and_not_kept() {
    let registry = Registry::start();
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    registry.push(layout.dir.path(), "r:x", &[]);
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = store.pull(&registry.reference("r:x"), &[], None).await.unwrap();
    let before = blobs(root.path());
    assert!(layout.layers.iter().all(|layer| !before.contains(layer.hex())), "one copy on disk");
    support::synced(root.path());
    let name = chosen(&image, &registry.reference("r:x").to_string());
    let saved = files(&save(&store, std::slice::from_ref(&name)).await);
    for layer in &layout.layers {
        assert_eq!(Digest::of(&saved[&format!("blobs/sha256/{}", layer.hex())]), *layer);
        assert_eq!(registry.downloads(layer), 2);
    }
    assert_eq!(blobs(root.path()), before);
    support::nothing_unfinished(root.path());
    // A blob that was changed there is not saved, and is named.
    for changed in &layout.layers {
        let whole = fs::read(registry.blob_file(changed)).unwrap();
        fs::write(registry.blob_file(changed), b"another").unwrap();
        let error = store.save(std::slice::from_ref(&name), &[]).await.unwrap_err();
        assert!(matches!(&error, SaveError::Layer { layer, source: Some(_), .. } if layer == changed), "{error:?}");
        fs::write(registry.blob_file(changed), whole).unwrap();
    }
    // Nor does an image whose registry is gone become half an archive.
    let host = registry.reference("r:x").registry().to_owned();
    drop(registry);
    let error = store.save(std::slice::from_ref(&name), &[]).await.unwrap_err();
    let text = error.to_string();
    let named = layout.layers.iter().any(|layer| text.contains(layer.hex()));
    assert!(text.contains("again, which is kept only unpacked") && named, "{text}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains(&format!("registry {host}")), "{cause}");
    support::nothing_unfinished(root.path());
}

#[tokio::test]
async fn what_several_archives_need_is_fetched_once() {
    let registry = Registry::start();
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    registry.push(layout.dir.path(), "r:x", &[]);
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = store.pull(&registry.reference("r:x"), &[], None).await.unwrap();
    support::synced(root.path());
    let name = [chosen(&image, &registry.reference("r:x").to_string())];
    let other = Registry::start();
    let target = other.reference("copy:x");
    // Two archives and a push, at once: each has all that it needs, and one has asked for it.
    let (first, second, pushed) =
        tokio::join!(store.save(&name, &[]), store.save(&name, &[]), store.push(&image.id, &target, &[], None));
    assert_eq!(pushed.unwrap(), layout.manifest);
    for saving in [first.unwrap(), second.unwrap()] {
        let mut tar = Vec::new();
        saving.write_to(&mut tar).unwrap();
        let saved = files(&tar);
        for layer in &layout.layers {
            assert_eq!(Digest::of(&saved[&format!("blobs/sha256/{}", layer.hex())]), *layer);
        }
    }
    for layer in &layout.layers {
        assert_eq!(registry.downloads(layer), 2, "for the pull, and for what followed");
    }
    support::nothing_unfinished(root.path());
}

#[tokio::test]
async fn a_store_that_keeps_all_blobs_needs_nobody_to_save() {
    let registry = Registry::start();
    let layout = Layout::new(&two_layers(), Pack::Zstd);
    registry.push(layout.dir.path(), "r:x", &["--preserve-digests"]);
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(Config { keep_blobs: KeepBlobs::Always, ..Config::new(root.path()) }).unwrap();
    let image = store.pull(&registry.reference("r:x"), &[], None).await.unwrap();
    drop(registry);
    for layer in &layout.layers {
        let blob = fs::read(root.path().join("blobs/sha256").join(layer.hex())).unwrap();
        assert_eq!(Digest::of(&blob), *layer);
    }
    assert!(store.details(&image.id).unwrap().unwrap().layers.iter().all(|layer| layer.kept));
    let saved = files(&save(&store, &[chosen(&image, "")]).await);
    assert_eq!(json(&saved, "manifest.json")[0]["Layers"].as_array().unwrap().len(), 2);
    // They go with their image.
    store.remove_image(&image.id).unwrap();
    assert!(blobs(root.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_are_kept_also_of_a_pull_that_goes_on_after_a_restart() {
    for keeps in [true, false] {
        let (registry, root) = (Held::new(), tempfile::tempdir().unwrap());
        let config = || Config { keep_blobs: KeepBlobs::Always, ..Config::new(root.path()) };
        // The first layer is in place, with or without its blob, when the program ends.
        let keep_blobs = if keeps { KeepBlobs::Always } else { KeepBlobs::Never };
        let store = Store::open(Config { keep_blobs, ..config() }).unwrap();
        let (puller, reference) = (store.clone(), registry.reference());
        let pulling = tokio::spawn(async move { puller.pull(&reference, &[], None).await });
        until("the first layer is in place", || fs::read_dir(root.path().join("layers")).unwrap().count() == 1).await;
        pulling.abort();
        assert!(pulling.await.unwrap_err().is_cancelled());
        drop(store);
        registry.hold_nothing();
        let store = Store::open(config()).unwrap();
        store.pull(&registry.reference(), &[], None).await.unwrap();
        let kept = blobs(root.path());
        assert!(registry.layout.layers.iter().all(|layer| kept.contains(layer.hex())), "{keeps}: {kept:?}");
        let index: Value = serde_json::from_slice(&fs::read(root.path().join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"][0]["digest"], registry.layout.manifest.to_string(), "{keeps}: it is kept whole");
    }
}

#[tokio::test]
async fn skopeo_and_umoci_read_both_forms_and_find_the_same_files() {
    let registry = Registry::start();
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    registry.push(layout.dir.path(), "oci:x", &[]);
    registry.push(layout.dir.path(), "docker:x", &["--format", "v2s2"]);
    for name in ["oci:x", "docker:x"] {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let image = store.pull(&registry.reference(name), &[], None).await.unwrap();
        let file = root.path().join("saved.tar");
        let reference = registry.reference(name).to_string();
        fs::write(&file, save(&store, &[chosen(&image, &reference)]).await).unwrap();
        let file = file.display().to_string();
        let at = |what: &str| root.path().join(what).display().to_string();
        skopeo(&["copy", &format!("oci-archive:{file}"), &format!("oci:{}:x", at("from-oci"))]);
        skopeo(&["copy", &format!("docker-archive:{file}"), &format!("oci:{}:x", at("from-docker"))]);
        for form in ["from-oci", "from-docker"] {
            let unpacked = at(&format!("{form}-unpacked"));
            let umoci = Command::new("umoci")
                .args(["unpack", "--image", &format!("{}:x", at(form)), &unpacked])
                .output()
                .expect("umoci is installed");
            assert!(umoci.status.success(), "{name} {form}: {}", String::from_utf8_lossy(&umoci.stderr));
            let mut ours: BTreeSet<String> = BTreeSet::new();
            for layer in &image.layers {
                ours.extend(tree(layer).into_iter().map(|line| line.split(' ').next().unwrap_or_default().to_owned()));
            }
            let theirs = tree(&Path::new(&unpacked).join("rootfs"));
            let theirs: BTreeSet<String> =
                theirs.into_iter().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect();
            assert!(!theirs.is_empty() && theirs.is_subset(&ours), "{name} {form}: {theirs:?} {ours:?}");
        }
    }
}

#[tokio::test]
async fn images_that_are_kept_whole_are_a_layout_that_other_tools_read() {
    let registry = Registry::start();
    let (kept, unpacked) = (Layout::new(&two_layers(), Pack::Gzip), Layout::salted(&two_layers(), Pack::Zstd, "other"));
    registry.push(unpacked.dir.path(), "unpacked:1", &[]);
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = store.load(kept.archive()).await.unwrap().remove(0);
    store.tag(&image.id, &"example.org/team/box:1".parse().unwrap()).unwrap();
    store.pull(&registry.reference("unpacked:1"), &[], None).await.unwrap();

    let output = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let names = output(Command::new("umoci").args(["ls", "--layout"]).arg(root.path()));
    // What is kept only unpacked is not in it.
    assert_eq!(names, "example.org/team/box:1\n");
    let place = format!("oci:{}:example.org/team/box:1", root.path().display());
    let seen = output(Command::new("skopeo").args(["inspect", "--format", "{{.Digest}}", &place]));
    assert_eq!(seen.trim(), kept.manifest.as_str());
    let copy = tempfile::tempdir().unwrap();
    skopeo(&["copy", &place, &format!("dir:{}", copy.path().display())]);
    for layer in &kept.layers {
        assert_eq!(Digest::of(&fs::read(copy.path().join(layer.hex())).unwrap()), *layer);
    }
    // A pull with keepBlobs keeps it whole, too; and what is removed is not in it any more.
    drop(store);
    let mut config = Config::new(root.path());
    config.keep_blobs = KeepBlobs::Always;
    let store = Store::open(config).unwrap();
    store.remove(&"example.org/team/box:1".parse().unwrap()).unwrap();
    store.remove_image(&store.lookup(&registry.reference("unpacked:1")).unwrap().id).unwrap();
    store.pull(&registry.reference("unpacked:1"), &[], None).await.unwrap();
    let names = output(Command::new("umoci").args(["ls", "--layout"]).arg(root.path()));
    assert_eq!(names.trim(), registry.reference("unpacked:1").to_string());
}
