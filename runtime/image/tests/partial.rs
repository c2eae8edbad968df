//! Layers of which only the files are fetched that are not here.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{fs, io::Write, path::Path, process::Command, time::Duration};

use portreeve_image::{Config, Image, ImageRef, KeepBlobs, LayerProgress, Progress, Store};
use serde_json::Value;
use support::{
    Layout, Pack, Registry, Tar,
    facts::facts,
    parts::{self, Blob, chunked, estargz},
    scripted::{Answer, Scripted},
};
use tempfile::TempDir;
use tokio::sync::watch;

const POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
const CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
const TAR_SPLIT: &str = "io.github.containers.zstd-chunked.tarsplit-position";

/// Bytes that do not compress, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Some 4 MB in 200 files, and one of everything else; of each version some files are its own.
fn version(number: u64) -> Vec<u8> {
    let mut tar = Tar::new().dir("./", 0o755).dir("usr/", 0o755).dir("usr/share/", 0o2775);
    for file in 0..200_u64 {
        let seed = if file % 40 == 7 { file + 1000 * number } else { file };
        let length = if file % 10 == 0 { 60_000 } else { 200 + usize::try_from(file * file % 24_000).unwrap() };
        let path = format!("usr/share/{file:03}");
        let mut header = Tar::header(tar::EntryType::Regular, 0o600 + u32::try_from(file % 64).unwrap(), length as u64);
        header.set_uid(file);
        header.set_mtime(1_500_000_000 + file * number);
        tar.raw(header, path.as_bytes(), b"", &noise(seed, length));
    }
    let mut holes = noise(5, 600_000);
    holes[100_000..400_000].fill(0);
    tar = tar
        .file("empty", b"")
        .file("big", &holes)
        .file("one", &noise(11, 5000))
        .file("other", &noise(12, 5000))
        .file("twice", &noise(3, 200 + 9))
        .symlink("link", "usr/share/001")
        .hardlink("usr/share/second", "usr/share/002")
        .file(&format!("usr/{}", "long".repeat(60)), b"a long name")
        .file("new", format!("of version {number}").as_bytes());
    tar.pax(&[("SCHILY.xattr.user.colour", b"blue\0\xff")]);
    tar = tar.file("with attributes", &noise(4, 5000));
    let header = Tar::header(tar::EntryType::Regular, 0o4755, 5000);
    tar.raw(header, b"set-id", b"", &noise(6, 5000));
    tar.bytes()
}

fn as_is(_: &mut Value, _: &mut Vec<u8>) {}

/// A store, and what was shown last of a pull.
struct Place {
    dir: TempDir,
    store: Store,
}

impl Place {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { partial_pulls: true, ..Config::new(dir.path()) };
        change(&mut config);
        Self { store: Store::open(config).unwrap(), dir }
    }

    async fn pull(&self, reference: &ImageRef) -> (Image, LayerProgress) {
        let (sink, progress) = watch::channel(Progress::default());
        let image = self.store.pull(reference, &[], Some(sink)).await.unwrap();
        let layer = progress.borrow().layers.last().unwrap().clone();
        assert!(layer.done && layer.fetched_bytes == layer.total_bytes, "{layer:?}");
        support::nothing_unfinished(self.dir.path());
        (image, layer)
    }
}

/// The tree of a pull that was no partial one.
async fn whole(reference: &ImageRef) -> std::collections::BTreeMap<Vec<u8>, String> {
    let place = Place::new(|config| config.partial_pulls = false);
    let (image, layer) = place.pull(reference).await;
    assert_eq!((layer.reused_bytes, layer.whole), (0, None));
    facts(&image.layers[0])
}

/// Bytes of a blob that a registry has sent, by its own account.
fn sent(registry: &Registry, layout: &Layout) -> u64 {
    let blob = format!("/blobs/{} HTTP", layout.layers[0]);
    let lines = registry.log();
    let answers = lines.lines().filter(|line| line.contains("\"GET ") && line.contains(&blob));
    // "GET /v2/.. HTTP/1.1" 206 1234 ..
    answers
        .map(|line| line.split("HTTP/1.1\" ").nth(1).unwrap().split(' ').nth(1).unwrap().parse::<u64>().unwrap())
        .sum()
}

#[tokio::test]
async fn of_another_version_only_its_own_files_are_fetched() {
    let registry = Registry::start();
    for (case, tar_split, most) in [("headers apart", true, 25), ("headers in the blob", false, 80)] {
        let place = Place::new(|_| ());
        let pushed: Vec<Layout> = [1, 2]
            .iter()
            .map(|number| {
                let layout = parts::layout(&[chunked(&version(*number), tar_split, as_is)], case);
                registry.push(layout.dir.path(), &format!("{}:{number}", case.replace(' ', "-")), &[]);
                layout
            })
            .collect();
        let reference = |number: u32| registry.reference(&format!("{}:{number}", case.replace(' ', "-")));
        let (_, first) = place.pull(&reference(1)).await;
        assert_eq!(first.whole.as_deref(), Some("no file of it is here"), "{case}");
        let before = sent(&registry, &pushed[1]);
        let (image, second) = place.pull(&reference(2)).await;
        let size = fs::metadata(registry.blob_file(&pushed[1].layers[0])).unwrap().len();
        let fetched = sent(&registry, &pushed[1]) - before;
        assert_eq!((second.fetched_bytes, &second.whole), (fetched, &None), "{case}: {second:?}");
        assert!(
            fetched * 100 < size * most && second.reused_bytes > 1 << 20,
            "{case}: {fetched} of {size}, {second:?}"
        );
        assert_eq!(facts(&image.layers[0]), whole(&reference(2)).await, "{case}");
    }
}

/// What other tools write, and what another one makes of it.
async fn of_another_tool(registry: &Registry, name: &str, most: u64) {
    let place = Place::new(|_| ());
    place.pull(&registry.reference(&format!("{name}:1"))).await;
    let reference = registry.reference(&format!("{name}:2"));
    let (image, layer) = place.pull(&reference).await;
    let plain = Place::new(|config| config.partial_pulls = false);
    let (plain_image, whole) = plain.pull(&reference).await;
    assert!(
        layer.reused_bytes > 1 << 20 && layer.fetched_bytes * 100 < whole.fetched_bytes * most,
        "{layer:?} of {whole:?}"
    );
    assert_eq!(facts(&image.layers[0]), facts(&plain_image.layers[0]));
}

#[tokio::test]
async fn what_skopeo_writes_is_fetched_in_parts() {
    let registry = Registry::start();
    for number in [1, 2] {
        let layout = Layout::new(&[version(number)], Pack::Plain);
        registry.push(layout.dir.path(), &format!("skopeo:{number}"), &["--dest-compress-format", "zstd:chunked"]);
    }
    of_another_tool(&registry, "skopeo", 90).await;
}

#[tokio::test]
async fn what_podman_writes_is_fetched_in_parts() {
    let peers = std::env::var_os("PORTREEVE_PEERS").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache/portreeve-e2e/peers"),
        Into::into,
    );
    let podman = peers.join("bin/podman");
    if !podman.exists() {
        writeln!(std::io::stderr(), "SKIPPED: no podman of e2e/peers").unwrap();
        return;
    }
    let registry = Registry::start();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let bin = peers.join("bin").display().to_string();
    let settings = format!("[engine]\nconmon_path = ['{bin}/conmon']\nhelper_binaries_dir = ['{bin}']\n");
    fs::write(file("containers.conf"), settings).unwrap();
    fs::write(file("storage.conf"), "[storage]\ndriver = 'vfs'\n").unwrap();
    fs::write(file("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    let call = |args: &[&str]| {
        let output = Command::new(&podman)
            .args([
                "--root",
                &file("root"),
                "--runroot",
                &file("run"),
                "--tmpdir",
                &file("tmp"),
                "--runtime",
                &format!("{bin}/crun"),
                "--log-level",
                "error",
            ])
            .args(args)
            .env("CONTAINERS_CONF", file("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", file("storage.conf"))
            .env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "podman {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    for number in [1, 2] {
        fs::write(file("tar"), version(number)).unwrap();
        let name = format!("localhost/x:{number}");
        call(&["import", &file("tar"), &name]);
        let to = format!("docker://127.0.0.1:{}/podman:{number}", registry.port);
        let how = ["--compression-format", "zstd:chunked", "--force-compression", "--tls-verify=false"];
        call(&[&["push", "--signature-policy", &file("policy.json")], &how[..], &[&name, &to]].concat());
    }
    of_another_tool(&registry, "podman", 30).await;
}

#[tokio::test]
async fn of_estargz_the_chunks_of_large_files_are_left_out() {
    let registry = Registry::start();
    let tar = |number: u64| {
        let tar = Tar::new()
            .dir("./", 0o755)
            .dir("d/", 0o750)
            .file("d/small", &noise(number, 900))
            .file("d/large", &noise(1, 5_000_000));
        tar.file("d/other", &noise(10 + number, 40_000)).symlink("d/link", "small").bytes()
    };
    for number in [1, 2] {
        let layout = parts::layout(&[estargz(&tar(number), 1 << 20)], "");
        registry.push(layout.dir.path(), &format!("estargz:{number}"), &[]);
    }
    of_another_tool(&registry, "estargz", 25).await;
}

/// Two versions at a scripted registry; what is said of the second one's layer is to be tried.
struct Case {
    name: &'static str,
    second: Blob,
    answer: fn(Answer) -> Answer,
    reason: &'static str,
}

impl Case {
    fn new(name: &'static str, second: Blob, reason: &'static str) -> Self {
        Self { name, second, answer: |answer| answer, reason }
    }
}

fn serve(server: &Scripted, tag: &str, layout: &Layout, answer: fn(Answer) -> Answer) {
    let blob = |hex: &str| fs::read(layout.dir.path().join("blobs/sha256").join(hex)).unwrap();
    for name in [tag.to_owned(), layout.manifest.to_string()] {
        server.on(&format!("/v2/r/manifests/{name}"), Answer::ok(blob(layout.manifest.hex())));
    }
    server.on(&format!("/v2/r/blobs/{}", layout.config), Answer::ok(blob(layout.config.hex())));
    let ranges = Answer { ranges: true, ..Answer::ok(blob(layout.layers[0].hex())) };
    server.replace(&format!("/v2/r/blobs/{}", layout.layers[0]), answer(ranges));
}

fn reference(server: &Scripted, tag: &str) -> ImageRef {
    format!("127.0.0.1:{}/r:{tag}", server.port).parse().unwrap()
}

#[tokio::test]
async fn whatever_does_not_fit_is_pulled_whole() {
    let first = parts::layout(&[chunked(&version(1), true, as_is)], "first");
    let second = version(2);
    let good = chunked(&second, true, as_is);
    let with = |change: fn(&mut Value, &mut Vec<u8>)| chunked(&second, true, change);
    let size = good.bytes.len();
    let mut flipped = good.clone();
    flipped.bytes[size - 200] ^= 1;
    let cases = [
        Case::new(
            "another digest",
            good.clone().annotate(CHECKSUM, &first.config.to_string()),
            "the table of contents has digest",
        ),
        Case::new("no position", good.clone().annotate(POSITION, "1:2"), "is not understood"),
        Case::new(
            "a position that is not its",
            good.clone().annotate(POSITION, "10:20:30:1"),
            "the table of contents has digest",
        ),
        Case::new(
            "a position behind the blob",
            good.clone().annotate(POSITION, &format!("{size}:20:30:1")),
            "is not understood",
        ),
        Case::new(
            "a longer table than is read",
            good.clone().annotate(POSITION, "0:999999999:1:1"),
            "is not understood",
        ),
        Case::new("another place of the tar-split", good.clone().annotate(TAR_SPLIT, "10:20:30"), "is not valid"),
        Case::new("a damaged tar-split", flipped, "has digest"),
        // What it says of sizes and digests is found out when the archive is put together.
        Case::new("a content that is another", with(|table, _| swap(table, "one", "other")), "diff id"),
        Case::new(
            "an order that is another",
            with(|table, _| {
                let entries = table["entries"].as_array_mut().unwrap();
                let at = entries.iter().position(|entry| entry["name"] == "usr/share/100").unwrap();
                entries.swap(at, at + 1);
            }),
            "is not valid",
        ),
        Case::new(
            "a file too few",
            with(|table, _| {
                table["entries"].as_array_mut().unwrap().retain(|entry| entry["name"] != "usr/share/120");
            }),
            "another order of files",
        ),
        Case::new(
            "headers of a file too few",
            with(|_, lines| {
                let text = String::from_utf8(std::mem::take(lines)).unwrap();
                let kept = text.lines().filter(|line| !line.contains("usr/share/150"));
                *lines = kept.map(|line| format!("{line}\n")).collect::<String>().into_bytes();
            }),
            "another order of files",
        ),
        Case::new(
            "other headers",
            with(|_, lines| {
                let text = String::from_utf8(std::mem::take(lines)).unwrap();
                *lines = text.replacen("dXNyL3No", "dXNyL3Nx", 1).into_bytes();
            }),
            "checksum",
        ),
        Case::new("a tar-split that is none", with(|_, lines| *lines = b"{}\n".to_vec()), "tar-split is not valid"),
        Case::new(
            "a fetched file with another digest",
            with(|table, _| {
                let entries = table["entries"].as_array_mut().unwrap();
                let entry = entries.iter_mut().find(|entry| entry["name"] == "usr/share/007").unwrap();
                entry["digest"] = format!("sha256:{}", "0".repeat(64)).into();
            }),
            "is not what the table of contents says",
        ),
        Case {
            answer: |answer| Answer { ranges: false, ..answer },
            ..Case::new("no ranges", good.clone(), "it is the whole blob")
        },
    ];
    let server = Scripted::start();
    serve(&server, "2", &parts::layout(&[good], ""), |answer| answer);
    let expected = whole(&reference(&server, "2")).await;
    for Case { name, second, answer, reason } in cases {
        let server = Scripted::start();
        serve(&server, "1", &first, |answer| answer);
        let layout = parts::layout(&[second], name);
        serve(&server, "2", &layout, answer);
        let place = Place::new(|_| ());
        place.pull(&reference(&server, "1")).await;
        let (image, layer) = place.pull(&reference(&server, "2")).await;
        let told = layer.whole.unwrap_or_default();
        assert!(!told.is_empty() && told.contains(reason), "{name}: {told:?}");
        let size = fs::metadata(layout.dir.path().join("blobs/sha256").join(layout.layers[0].hex())).unwrap().len();
        assert_eq!((layer.fetched_bytes, layer.reused_bytes), (size, 0), "{name}");
        assert_eq!(facts(&image.layers[0]), expected, "{name}");
    }
}

/// Exchanges what a table says of two files' contents.
fn swap(table: &mut Value, one: &str, other: &str) {
    let entries = table["entries"].as_array_mut().unwrap();
    let at = |name: &str, entries: &[Value]| entries.iter().position(|entry| entry["name"] == name).unwrap();
    let (one, other) = (at(one, entries), at(other, entries));
    // Sizes stay, so that only the diff id can tell.
    let (first, second) = (entries[one]["digest"].take(), entries[other]["digest"].take());
    (entries[one]["digest"], entries[other]["digest"]) = (second, first);
}

#[tokio::test]
async fn a_file_that_has_changed_on_the_disk_is_not_used() {
    type Spoil = fn(&Path);
    let spoils: [(&str, Spoil, &str); 5] = [
        (
            "another content",
            |file| {
                let mut content = fs::read(file).unwrap();
                content[50] ^= 1;
                fs::write(file, content).unwrap();
            },
            "is not what it was unpacked as",
        ),
        ("another length", |file| fs::write(file, "short").unwrap(), "is not what it was unpacked as"),
        ("none", |file| fs::remove_file(file).unwrap(), "No such file"),
        (
            "a link",
            |file| {
                fs::rename(file, file.with_extension("moved")).unwrap();
                std::os::unix::fs::symlink(file.with_extension("moved"), file).unwrap();
            },
            "symbolic links",
        ),
        (
            "a pipe",
            |file| {
                fs::remove_file(file).unwrap();
                nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap();
            },
            "is not what it was unpacked as",
        ),
    ];
    let server = Scripted::start();
    for (tag, number) in [("1", 1), ("2", 2)] {
        serve(&server, tag, &parts::layout(&[chunked(&version(number), true, as_is)], ""), |answer| answer);
    }
    let expected = whole(&reference(&server, "2")).await;
    for (case, spoil, reason) in spoils {
        let place = Place::new(|_| ());
        let (first, _) = place.pull(&reference(&server, "1")).await;
        spoil(&first.layers[0].join("usr/share/150"));
        let (image, layer) = place.pull(&reference(&server, "2")).await;
        let told = layer.whole.unwrap_or_default();
        assert!(told.contains(reason) && told.contains("usr/share/150"), "{case}: {told:?}");
        assert_eq!(facts(&image.layers[0]), expected, "{case}");
    }
}

/// Serves the images `1` and `2`; where the layer of the second is, and what it has.
fn serve_two_versions(server: &Scripted) -> (String, Vec<u8>) {
    serve(server, "1", &parts::layout(&[chunked(&version(1), true, as_is)], ""), |answer| answer);
    let layout = parts::layout(&[chunked(&version(2), true, as_is)], "");
    serve(server, "2", &layout, |answer| answer);
    let bytes = fs::read(layout.dir.path().join("blobs/sha256").join(layout.layers[0].hex())).unwrap();
    (format!("/v2/r/blobs/{}", layout.layers[0]), bytes)
}

#[tokio::test]
async fn a_part_that_is_cut_off_is_asked_for_again_from_there() {
    let server = Scripted::start();
    let (path, bytes) = serve_two_versions(&server);
    let cut = Answer { ranges: true, cut_at: Some(2000), ..Answer::ok(bytes) };
    server.before(&path, [cut.clone(), cut.clone(), cut]);
    let place = Place::new(|_| ());
    place.pull(&reference(&server, "1")).await;
    let (_, layer) = place.pull(&reference(&server, "2")).await;
    assert!(layer.whole.is_none() && layer.reused_bytes > 0, "{layer:?}");
    let ranges: Vec<String> =
        server.requests().into_iter().filter(|r| r.path == path).filter_map(|r| r.range).collect();
    let begins = |range: &str| range.strip_prefix("bytes=").unwrap().split_once('-').unwrap().0.parse::<u64>().unwrap();
    let steps: Vec<u64> = ranges.windows(2).take(3).map(|two| begins(&two[1]) - begins(&two[0])).collect();
    assert_eq!(steps, [2000, 2000, 2000], "{ranges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_for_a_moment_sends_the_rest_of_the_parts_later() {
    let server = Scripted::start();
    let (path, bytes) = serve_two_versions(&server);
    let away = Some(Duration::from_millis(1200));
    server.before(&path, [Answer { ranges: true, cut_at: Some(2000), away, ..Answer::ok(bytes) }]);
    let place = Place::new(|_| ());
    place.pull(&reference(&server, "1")).await;
    let (_, layer) = place.pull(&reference(&server, "2")).await;
    assert!(layer.whole.is_none() && layer.reused_bytes > 0, "{layer:?}");
}

#[tokio::test]
async fn it_is_off_by_default_and_where_blobs_are_kept() {
    let server = Scripted::start();
    for (tag, number) in [("1", 1), ("2", 2)] {
        serve(&server, tag, &parts::layout(&[chunked(&version(number), true, as_is)], ""), |answer| answer);
    }
    for (case, change) in [
        ("default", (|config| config.partial_pulls = Config::new("").partial_pulls) as fn(&mut Config)),
        ("kept", |config| config.keep_blobs = KeepBlobs::Always),
    ] {
        let place = Place::new(change);
        place.pull(&reference(&server, "1")).await;
        let before = server.requests().len();
        let (_, layer) = place.pull(&reference(&server, "2")).await;
        assert_eq!((layer.reused_bytes, layer.whole), (0, None), "{case}");
        let asked = server.requests().split_off(before);
        assert_eq!(asked.iter().filter(|request| request.path.contains(layer.digest.hex())).count(), 1, "{case}");
    }
}
