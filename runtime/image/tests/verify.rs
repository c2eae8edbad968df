//! What is damaged on the disk is found, and made whole again.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    ops::ControlFlow,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use portreeve_image::{Check, Config, Damage, Digest, Finding, Image, KeepBlobs, Part, RepairError, Store};
use support::{Layout, Pack, Registry, Tar, store, tree, two_layers};
use tar::EntryType;

fn verify(store: &Store, image: &Image) -> Vec<Check> {
    let mut checks = Vec::new();
    store.verify(&BTreeSet::from([image.id.clone()]), |check| {
        checks.push(check);
        ControlFlow::Continue(())
    });
    checks
}

fn damaged(store: &Store, image: &Image) -> Vec<Check> {
    let damaged = |check: &Check| !matches!(check.finding, Finding::Whole(_));
    verify(store, image).into_iter().filter(damaged).collect()
}

/// All that is wrong, as a person reads it.
fn told(check: &Check) -> String {
    let Finding::Damaged(Damage { told, .. }) = &check.finding else { return format!("{:?}", check.finding) };
    told.iter().map(|(path, problem)| format!("{path}: {problem}")).collect::<Vec<_>>().join("\n")
}

fn layer(root: &Path, diff_id: &Digest) -> PathBuf {
    root.join("layers").join(diff_id.hex())
}

/// Whatever an archive can hold, and files that two layers have in directories that a third one leaves out.
fn of_all_kinds() -> Vec<Vec<u8>> {
    let mut tar = Tar::new()
        .dir("./", 0o755)
        .dir("bin/", 0o755)
        .file("bin/sh", b"shell")
        .hardlink("bin/ash", "bin/sh")
        .file("bin/empty", b"")
        .symlink("lib", "usr/lib")
        .dir("usr/", 0o711)
        .dir("usr/lib/", 0o750)
        .file("replaced", b"first")
        .file("replaced", b"second")
        .file("files.mtree", b"not the record")
        .file("with space", b"x")
        .file("eq=ual#*?[", b"x");
    let header = |kind, mode| Tar::header(kind, mode, 0);
    tar.raw(Tar::header(EntryType::Regular, 0o644, 1), b"not-utf8-\xff", b"", b"x");
    tar.raw(header(EntryType::Fifo, 0o600), b"fifo", b"", b"");
    tar.pax(&[
        ("SCHILY.xattr.user.note", b"one\ntwo"),
        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ]);
    let tar = tar.file("bin/ping", b"ping");
    let mut tar = tar;
    tar.pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"100000"),
    ]);
    let mut sparse = b"1\n50000\n3\n".to_vec();
    sparse.resize(512, 0);
    sparse.extend_from_slice(b"mid");
    let tar = tar.file("GNUSparseFile.0/sparse", &sparse);
    let upper = Tar::new().file("lib/in-lower-link", b"x").file("usr/lib/new", b"y").file("etc/.wh.gone", b"").bytes();
    vec![tar.bytes(), two_layers().remove(1), upper]
}

async fn pulled(root: &Path, registry: &Registry, layers: &[Vec<u8>]) -> (Store, Image) {
    let layout = Layout::new(layers, Pack::Gzip);
    registry.push(layout.dir.path(), "box:1", &[]);
    let store = store(root);
    let image = store.pull(&registry.reference("box:1"), &[], None).await.unwrap();
    (store, image)
}

#[tokio::test]
async fn what_was_unpacked_is_whole_whatever_it_holds() {
    let (root, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let layers = of_all_kinds();
    let (store, image) = pulled(root.path(), &registry, &layers).await;
    let checks = verify(&store, &image);
    let wrong: Vec<String> = checks.iter().filter(|c| !matches!(c.finding, Finding::Whole(_))).map(told).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    let count = |wanted: fn(&Part) -> bool| checks.iter().filter(|check| wanted(&check.part)).count();
    assert_eq!(count(|part| matches!(part, Part::Layer(_))), 3);
    assert_eq!(count(|part| matches!(part, Part::Blob(_))), 2, "manifest and configuration");
    assert_eq!(count(|part| matches!(part, Part::Top(_))), 1, "the link of the lowest layer is followed");
    // The record is what others read, too: each name once, and the digest of what a hole reads as.
    let record = fs::read_to_string(layer(root.path(), &Digest::of(&layers[0])).join("files.mtree")).unwrap();
    let lines: Vec<&str> = record.lines().collect();
    assert_eq!(lines[0], "#mtree");
    let line = |start: &str| lines.iter().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}"));
    let second = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(b"second"));
    assert_eq!(
        **line("./replaced "),
        format!("./replaced type=file mode=0644 uid=0 gid=0 size=6 time=1600000000.000000000 sha256digest={second}")
    );
    let mut sparse = vec![0; 100_000];
    sparse[50_000..50_003].copy_from_slice(b"mid");
    assert!(line("./sparse ").ends_with(&format!("sha256digest={}", Digest::of(&sparse).hex())));
    assert!(line("./bin/ping ").contains("xattr.user.note=b25lCnR3bw=="));
    assert!(line("./not-utf8-\\377 ").contains("type=file"));
    assert!(line("./with\\040space ").contains("type=file"));
    assert!(line("./lib ").contains("type=link") && line("./lib ").contains("link=usr/lib"));
    assert!(line("./files.mtree ").contains("type=file"));
}

#[tokio::test]
async fn each_change_of_a_layer_is_found_and_named() {
    let (root, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let layers = of_all_kinds();
    let (store, image) = pulled(root.path(), &registry, &layers).await;
    let place = layer(root.path(), &Digest::of(&layers[0]));
    let kept_time = |path: &Path, change: &dyn Fn()| {
        let before = fs::metadata(path).unwrap();
        change();
        let time = nix::sys::time::TimeSpec::new(before.mtime(), before.mtime_nsec());
        nix::sys::stat::utimensat(
            nix::fcntl::AT_FDCWD,
            path,
            &time,
            &time,
            nix::sys::stat::UtimensatFlags::NoFollowSymlink,
        )
        .unwrap();
    };
    let fs_of = |name: &str| place.join("fs").join(name);
    type Change<'a> = (&'a str, &'a dyn Fn(), &'a str);
    let changes: [Change<'_>; 12] = [
        (
            "a bit",
            &|| kept_time(&fs_of("bin/ping"), &|| fs::write(fs_of("bin/ping"), b"pinh").unwrap()),
            "bin/ping: its content has changed",
        ),
        (
            "mode",
            &|| fs::set_permissions(fs_of("bin/sh"), fs::Permissions::from_mode(0o4755)).unwrap(),
            "mode is 4755 instead of 0644",
        ),
        ("owner", &|| std::os::unix::fs::chown(fs_of("usr"), Some(7), None).unwrap(), "usr: uid is 7 instead of 0"),
        (
            "time",
            &|| fs::File::open(fs_of("usr")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap(),
            "usr: time is 0.000000000",
        ),
        ("missing", &|| fs::remove_file(fs_of("with space")).unwrap(), "with space: is missing"),
        ("missing at the end", &|| fs::remove_dir_all(fs_of("usr")).unwrap(), "usr/lib: is missing"),
        ("added", &|| fs::write(fs_of("bin/zz"), b"").unwrap(), "bin/zz: was not unpacked from the image"),
        (
            "link",
            &|| {
                fs::remove_file(fs_of("lib")).unwrap();
                symlink("/etc", fs_of("lib")).unwrap()
            },
            "link is /etc instead of usr/lib",
        ),
        (
            "kind",
            &|| {
                fs::remove_file(fs_of("fifo")).unwrap();
                fs::write(fs_of("fifo"), b"").unwrap()
            },
            "type is file instead of fifo",
        ),
        (
            "attribute",
            &|| rustix::fs::lremovexattr(fs_of("bin/ping"), "security.capability").unwrap(),
            "xattr.security.capability is nothing instead of",
        ),
        (
            "record",
            &|| {
                let file = place.join("files.mtree");
                let text = fs::read_to_string(&file).unwrap();
                fs::write(&file, text.replace("mode=0711", "mode=0777")).unwrap();
                fs::set_permissions(fs_of("usr"), fs::Permissions::from_mode(0o777)).unwrap()
            },
            "the record of its files is itself damaged",
        ),
        ("gone", &|| fs::remove_dir_all(&place).unwrap(), "layer.json: is missing"),
    ];
    for (what, change, expect) in changes {
        change();
        let found = damaged(&store, &image);
        let layers: Vec<&Check> = found.iter().filter(|check| matches!(check.part, Part::Layer(_))).collect();
        assert_eq!(layers.len(), 1, "{what}: {found:?}");
        assert!(told(layers[0]).contains(expect), "{what}: {}", told(layers[0]));
        store.repair(layers[0], &[]).await.unwrap();
        let left = damaged(&store, &image);
        for check in &left {
            // What lies on top has links to files of the layer that was replaced.
            assert!(matches!(check.part, Part::Top(_)), "{what}: {left:?}");
            store.repair(check, &[]).await.unwrap();
        }
        assert!(damaged(&store, &image).is_empty(), "{what}: {:?}", damaged(&store, &image));
    }
    support::nothing_unfinished(root.path());
}

#[tokio::test]
async fn documents_and_kept_blobs_are_checked_and_got_again() {
    let (root, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    registry.push(layout.dir.path(), "box:1", &[]);
    let mut config = Config::new(root.path());
    config.keep_blobs = KeepBlobs::Always;
    let store = Store::open(config).unwrap();
    let image = store.pull(&registry.reference("box:1"), &[], None).await.unwrap();
    for digest in layout.layers.iter().chain([&layout.config, &layout.manifest]) {
        let blob = root.path().join("blobs/sha256").join(digest.hex());
        let whole = fs::read(&blob).unwrap();
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        for damage in [Some(changed), None] {
            match &damage {
                Some(bytes) => fs::write(&blob, bytes).unwrap(),
                None => fs::remove_file(&blob).unwrap(),
            }
            let found = damaged(&store, &image);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].part, Part::Blob(digest.clone()));
            let expect = if damage.is_some() { "with digest" } else { "is missing" };
            assert!(told(&found[0]).contains(expect), "{}", told(&found[0]));
            store.repair(&found[0], &[]).await.unwrap();
            assert_eq!(fs::read(&blob).unwrap(), whole);
            assert!(damaged(&store, &image).is_empty());
        }
    }
}

#[tokio::test]
async fn a_repair_that_cannot_be_leaves_what_is_there() {
    let (root, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let (store, image) = pulled(root.path(), &registry, &two_layers()).await;
    support::synced(root.path());
    let file = layer(root.path(), &Digest::of(&two_layers()[0])).join("fs/etc/kept");
    fs::write(&file, b"bent").unwrap();
    let found = damaged(&store, &image).remove(0);

    store.snapshot("c1", &image, &[]).unwrap();
    let inode = fs::metadata(&file).unwrap().ino();
    let refused = store.repair(&found, &[]).await.unwrap_err();
    assert!(matches!(&refused, RepairError::InUse { container } if container == "c1"), "{refused:?}");
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
    store.remove_snapshot("c1").unwrap();

    drop(registry);
    let refused = store.repair(&found, &[]).await.unwrap_err();
    assert!(matches!(&refused, RepairError::Content(_)), "{refused:?}");
    assert_eq!(fs::read(&file).unwrap(), b"bent");
    support::nothing_unfinished(root.path());
}

#[tokio::test]
async fn a_layer_that_another_images_container_stands_on_is_left_as_it_is() {
    let (root, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let (store, image) = pulled(root.path(), &registry, &two_layers()).await;
    let shared = two_layers().remove(0);
    let other = Layout::salted(std::slice::from_ref(&shared), Pack::Gzip, "other");
    registry.push(other.dir.path(), "other:1", &[]);
    let other = store.pull(&registry.reference("other:1"), &[], None).await.unwrap();
    store.snapshot("c1", &other, &[]).unwrap();
    let file = layer(root.path(), &Digest::of(&shared)).join("fs/etc/kept");
    fs::write(&file, b"bent").unwrap();
    let inode = fs::metadata(&file).unwrap().ino();
    let found = damaged(&store, &image).remove(0);
    assert_eq!(found.images, BTreeSet::from([image.id.clone()]), "the other one was not asked about");
    let refused = store.repair(&found, &[]).await.unwrap_err();
    assert!(matches!(&refused, RepairError::InUse { container } if container == "c1"), "{refused:?}");
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
    // A check that is at work keeps no collection from what it may take.
    store.remove_snapshot("c1").unwrap();
    store.verify(&BTreeSet::from([image.id.clone(), other.id.clone()]), |_| {
        let mut asked = 0..1;
        let room = |_: &portreeve_image::Filesystem| asked.next().is_none();
        let freed = store.collect(room, std::time::Duration::ZERO, &|_| BTreeSet::new()).unwrap();
        assert_eq!(freed.images.len(), 1, "one is enough");
        ControlFlow::Break(())
    });
    assert_eq!(store.list().len(), 1);
}

#[tokio::test]
async fn a_loaded_image_is_repaired_from_what_is_kept_of_it() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let layout = Layout::new(&two_layers(), Pack::Zstd);
    let image = store.load(layout.archive()).await.unwrap().remove(0);
    let before: Vec<_> = image.layers.iter().map(|layer| tree(layer)).collect();
    fs::write(layer(root.path(), &layout.diff_ids[1]).join("fs/etc/added"), b"bent").unwrap();
    let found = damaged(&store, &image).remove(0);
    store.repair(&found, &[]).await.unwrap();
    assert!(damaged(&store, &image).is_empty());
    assert_eq!(image.layers.iter().map(|layer| tree(layer)).collect::<Vec<_>>(), before);
    // Nobody else has the documents.
    let manifest = root.path().join("blobs/sha256").join(layout.manifest.hex());
    fs::write(&manifest, b"{}").unwrap();
    let found = damaged(&store, &image).remove(0);
    let refused = store.repair(&found, &[]).await.unwrap_err();
    assert!(matches!(&refused, RepairError::Document { source: None, .. }), "{refused:?}");
}

#[tokio::test]
async fn a_layer_of_an_older_version_is_said_to_be_unrecorded() {
    let (root, registry) = (tempfile::tempdir().unwrap(), Registry::start());
    let (store, image) = pulled(root.path(), &registry, &two_layers()).await;
    let place = layer(root.path(), &Digest::of(&two_layers()[0]));
    fs::remove_file(place.join("files.mtree")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(place.join("layer.json")).unwrap()).unwrap();
    assert!(json.as_object_mut().unwrap().remove("record").is_some());
    fs::write(place.join("layer.json"), json.to_string()).unwrap();
    let found = damaged(&store, &image);
    assert!(matches!(found.as_slice(), [Check { finding: Finding::Unrecorded, .. }]), "{found:?}");
    store.repair(&found[0], &[]).await.unwrap();
    assert!(damaged(&store, &image).is_empty());
}
