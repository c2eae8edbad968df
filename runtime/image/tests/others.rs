//! What other tools make of the same image, and what a kill in the middle leaves.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    ops::ControlFlow,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use portreeve_image::{Check, Config, Finding, Image, KeepBlobs, Store};
use support::{Layout, Pack, Registry, Tar, facts::facts, in_mount_namespace, mount_overlay, podman::Podman, store};
use tar::EntryType;

/// Layers with everything that images have, and that layers do to each other.
fn rich_layers() -> Vec<Vec<u8>> {
    let mut base = Tar::new().dir("./", 0o755);
    for (name, mode) in [
        ("bin/", 0o755),
        ("etc/", 0o755),
        ("tmp/", 0o1777),
        ("var/", 0o755),
        ("home/", 0o700),
        ("srv/", 0o2775),
        ("dev/", 0o755),
    ] {
        base = base.dir(name, mode);
    }
    let mut owned = Tar::header(EntryType::Regular, 0o4755, 3);
    owned.set_uid(1000);
    owned.set_gid(100_000);
    base.raw(owned, b"bin/su", b"", b"su!");
    base.pax(&[
        ("SCHILY.xattr.user.note", b"hello\nworld"),
        (
            "SCHILY.xattr.security.capability",
            b"\x01\x00\x00\x02\x0a\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        ),
        ("mtime", b"1111111111.25"),
    ]);
    let long = format!("var/{}", "very-long-name/".repeat(12));
    let mut base = base
        .file("bin/ping", &[9; 5000])
        .hardlink("bin/ping6", "bin/ping")
        .symlink("bin/sh", "/bin/busybox")
        .symlink("lib", "usr/lib")
        .file("etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        .file("etc/removed", b"x")
        .dir(&long, 0o711)
        .file(&format!("{long}file"), b"deep");
    for i in 0..250_u8 {
        base = base.file(&format!("home/file-{i}"), &vec![i; usize::from(i) * 13]);
    }
    let mut device = Tar::header(EntryType::Char, 0o666, 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    base.raw(device, b"dev/null", b"", b"");
    base.raw(Tar::header(EntryType::Fifo, 0o600, 0), b"dev/fifo", b"", b"");
    let middle = Tar::new()
        .dir("etc/", 0o750)
        .file("etc/.wh.removed", b"")
        .file("etc/passwd", b"changed\n")
        .dir("home/", 0o711)
        .file("home/.wh..wh..opq", b"")
        .file("home/only", b"1")
        .file("bin/.wh.ping6", b"");
    let top = Tar::new().dir("etc/", 0o755).file("etc/removed", b"back").dir("usr/", 0o755).dir("usr/lib/", 0o755);
    vec![base.bytes(), middle.bytes(), top.bytes()]
}

/// Compares the mounted image with what umoci unpacks; `in_mount_namespace` only.
fn compare_with_umoci(what: &str, layers: &[Vec<u8>]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(layers, Pack::Gzip);
    let bundle = dir.path().join("bundle");
    let output = Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:x", layout.dir.path().display()))
        .arg(&bundle)
        .output()
        .expect("umoci must be installed");
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_dir_all("", layout.dir.path()).unwrap();
    let store = store(&dir.path().join("store"));
    let archive = std::io::Cursor::new(archive.into_inner().unwrap());
    let image = runtime.block_on(store.load(archive)).unwrap().remove(0);
    let ours = merged(&store, &image, dir.path());
    same(what, without_times_of_directories(ours), without_times_of_directories(facts(&bundle.join("rootfs"))));
}

type Facts = BTreeMap<Vec<u8>, String>;

/// What a container of the image would see; `in_mount_namespace` only.
fn merged(store: &Store, image: &Image, dir: &Path) -> Facts {
    let snapshot = store.snapshot("c", image, &[]).unwrap();
    let target = dir.join("merged");
    fs::create_dir(&target).unwrap();
    mount_overlay(&snapshot, &target);
    let facts = facts(&target);
    nix::mount::umount(&target).unwrap();
    facts
}

/// umoci leaves directories the time at which something was last put into them.
fn without_times_of_directories(mut facts: Facts) -> Facts {
    for fact in facts.values_mut().filter(|f| f.starts_with('4')) {
        *fact = fact.split(' ').enumerate().filter(|(i, _)| *i != 2).map(|(_, f)| f).collect::<Vec<_>>().join(" ");
    }
    facts
}

fn same(what: &str, ours: Facts, theirs: Facts) {
    let names: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let differ = names.into_iter().filter(|name| ours.get(*name) != theirs.get(*name));
    let told: Vec<_> = differ
        .map(|name| {
            let [ours, theirs] = [&ours, &theirs].map(|facts| facts.get(name).map_or("nothing", String::as_str));
            format!("{}: here {ours}, there {theirs}", String::from_utf8_lossy(name))
        })
        .collect();
    assert!(told.is_empty(), "{what}: {} differ: {:#?}", told.len(), &told[..told.len().min(20)]);
}

/// Debian with what trees can have that tools disagree on, from a registry: ours, umoci's and podman's.
#[test]
fn the_tree_of_a_distribution_is_what_umoci_and_podman_make_of_it() {
    if std::env::var_os("PORTREEVE_GUEST").is_some() {
        let why = "SKIPPED: its image is made by debootstrap, for which the guest is too slow";
        return writeln!(std::io::stderr(), "{why}").unwrap();
    }
    let Some(podman) = Podman::find("overlay") else { return };
    // `debian` is what this is about, `nginx` what there is time for in every run.
    let name = std::env::var("PORTREEVE_TREE").unwrap_or_else(|_| "nginx".to_owned());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/images").join(&name);
    let output = Command::new(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let archive = format!("docker-archive:{}", String::from_utf8(output.stdout).unwrap().trim());
    in_mount_namespace(move || {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let registry = Registry::start();
        let reference = registry.reference("debian:1");
        let remote = format!("docker://{reference}");
        support::skopeo(&["copy", "--dest-tls-verify=false", "--dest-compress-format=gzip", &archive, &remote]);

        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let store = store(&dir.path().join("store"));
        let image = runtime.block_on(store.pull(&reference, &[], None)).unwrap();
        assert_eq!(wrong(&store), []);
        let ours = merged(&store, &image, dir.path());
        let files = ours.values().filter(|fact| fact.starts_with("100")).count();
        let figures = (image.layers.len(), files, image.size_bytes >> 20);
        writeln!(std::io::stderr(), "{} layers, {} files, {} MiB", figures.0, figures.1, figures.2).unwrap();
        let large = figures.0 >= 8 && files >= 10_000 && figures.2 >= 400;
        assert!(large || name != "debian", "too small to say much");

        podman.run(&["pull", "--quiet", "--tls-verify=false", &reference.to_string()]).unwrap();
        let theirs = podman.run(&["image", "mount", &reference.to_string()]).unwrap();
        // Of the root's own entries podman takes nothing.
        let below = |facts: &Facts| {
            facts.iter().filter(|(name, _)| !name.is_empty()).map(|(n, f)| (n.clone(), f.clone())).collect()
        };
        same("podman", below(&ours), below(&facts(Path::new(theirs.trim()))));
        podman.run(&["image", "umount", "--all"]).unwrap();

        support::skopeo(&["copy", "--src-tls-verify=false", &remote, &format!("oci:{}:x", at("layout"))]);
        let unpack = ["unpack", "--image", &format!("{}:x", at("layout")), &at("bundle")];
        let output = Command::new("umoci").args(unpack).output().expect("umoci must be installed");
        assert!(output.status.success(), "umoci: {}", String::from_utf8_lossy(&output.stderr));
        let theirs = facts(&dir.path().join("bundle/rootfs"));
        same("umoci", without_times_of_directories(ours), without_times_of_directories(theirs));
    });
}

#[test]
fn the_mounted_image_is_what_umoci_unpacks() {
    in_mount_namespace(|| compare_with_umoci("rich", &rich_layers()));
}

fn owned(tar: Tar, path: &str, mode: u32, uid: u64) -> Tar {
    let mut tar = tar;
    let mut header = Tar::header(EntryType::Directory, mode, 0);
    header.set_uid(uid);
    tar.raw(header, path.as_bytes(), b"", b"");
    tar
}

#[test]
fn directories_without_an_entry_become_what_umoci_makes_of_them() {
    let base = || {
        let base = owned(Tar::new().dir("./", 0o755), "srv/", 0o1777, 5).file("srv/old", b"old").symlink("lnk", "srv");
        let base = owned(base, "var/", 0o700, 1000).file("var/gone", b"1").file("var/kept", b"2");
        let base = owned(owned(base, "var/sub/", 0o750, 7), "usr/", 0o711, 0);
        let base = owned(base, "usr/lib/", 0o755, 0).file("usr/lib/libc", b"c").symlink("lib", "usr/lib");
        let base = owned(base, "usr/lib/mod/", 0o700, 3).symlink("usr/lib/alias", "../../lib/mod");
        base.symlink("far", "/opt/not/here").symlink("up", "../../../../../../srv").symlink("chain", "lnk")
    };
    let plain = |layers: Vec<Tar>| layers.into_iter().map(Tar::bytes).collect::<Vec<_>>();
    let cases: Vec<(&str, Vec<Tar>)> = vec![
        ("opaque keeps attributes", vec![base(), Tar::new().file("var/.wh..wh..opq", b"").file("var/b", b"b")]),
        ("opaque twice", {
            let opaque = |name| Tar::new().file("var/.wh..wh..opq", b"").file(name, b"b");
            vec![base(), opaque("var/b"), opaque("var/c")]
        }),
        ("opaque root", {
            let upper = Tar::new().file(".wh..wh..opq", b"").file("srv/new", b"new").file("only", b"1");
            vec![base(), upper.dir("./", 0o755), Tar::new().file("srv/more", b"more")]
        }),
        ("opaque first", { vec![base(), Tar::new().file("var/.wh..wh..opq", b"").file("var/sub/b", b"b")] }),
        ("opaque last", vec![base(), Tar::new().file("var/sub/b", b"b").file("var/.wh..wh..opq", b"")]),
        ("made anew", vec![base(), Tar::new().file(".wh.var", b"").file("var/sub/b", b"b")]),
        ("made anew, told late", vec![base(), Tar::new().file("var/b", b"b").file(".wh.var", b"")]),
        ("made anew, then more", {
            vec![base(), Tar::new().file(".wh.var", b"").file("var/b", b"b"), Tar::new().file("var/c", b"c")]
        }),
        ("a link below", vec![base(), Tar::new().file("lnk/via", b"via")]),
        ("links of links", vec![base(), Tar::new().file("chain/via", b"via").file("up/over", b"over")]),
        ("a link to a link's inside", vec![base(), Tar::new().file("usr/lib/alias/deep/x", b"x").file("lib/y", b"y")]),
        ("a link to nowhere", vec![base(), Tar::new().file("far/x", b"x")]),
        ("both ways", vec![base(), Tar::new().file("lib/x", b"x").file("usr/lib/y", b"y").file("lib/mod/z", b"z")]),
        ("everything behind a link", {
            let upper = owned(Tar::new().file("lib/x", b"x").hardlink("lib/h", "lib/x"), "lib/own/", 0o750, 9);
            let upper = upper.file("lib/own/in", b"in").symlink("lib/s", "x").file("lib/mod/m", b"m");
            vec![base(), upper.file("lib/.wh.libc", b"")]
        }),
        ("a directory behind a link that is a link below", {
            vec![
                base(),
                owned(Tar::new(), "lib/alias/", 0o750, 9).file("lib/alias/in", b"in").file("lib/alias/d/e", b"e"),
            ]
        }),
        ("opaque behind a link", {
            let upper = Tar::new().file("lnk/.wh..wh..opq", b"").file("lnk/a", b"a");
            vec![base(), upper.file("srv/b", b"b"), Tar::new().file("lnk/c", b"c")]
        }),
        ("a whiteout behind a link, not for its own layer", {
            let upper = Tar::new().file("lib/.wh.mod", b"").file("usr/lib/mod/n", b"n").file("lib/.wh.libc", b"");
            vec![base(), upper.file("usr/lib/libc", b"new")]
        }),
        ("more layers on top", {
            let third = Tar::new().file("srv/.wh.via", b"").file("lnk/third", b"3").file("lib/b", b"b");
            let fourth = Tar::new().file(".wh.lnk", b"").file("lnk/dir", b"d").file("usr/lib/.wh.b", b"");
            vec![base(), Tar::new().file("lnk/via", b"via").file("lib/a", b"a"), third, fourth]
        }),
        ("the link is replaced between", {
            let between = Tar::new().dir("lnk/", 0o711).file("lnk/mine", b"m");
            vec![base(), Tar::new().file("lnk/first", b"1"), between, Tar::new().file("lnk/second", b"2")]
        }),
        ("a link of its own to what only lower layers have", {
            let upper =
                Tar::new().symlink("own", "srv").file("own/x", b"x").symlink("two", "/own").file("two/d/y", b"y");
            vec![base(), upper.symlink("three", "lnk").file("three/z", b"z")]
        }),
        ("a link of its own, its directory told late", {
            let upper = Tar::new().symlink("own", "srv").file("own/d/x", b"x");
            vec![base(), owned(upper, "srv/d/", 0o751, 4).file("own/d/y", b"y")]
        }),
        (
            "no entry anywhere",
            vec![Tar::new().file("a/b/c", b"c"), Tar::new().file("a/b/d", b"d").symlink("a/l", "b"), {
                Tar::new().file("a/l/e", b"e")
            }],
        ),
    ];
    in_mount_namespace(move || {
        for (what, layers) in cases {
            compare_with_umoci(what, &plain(layers));
        }
    });
}

/// Not a test of its own: the process that the next test kills.
#[test]
fn pulls_for_the_test_that_kills_it() {
    let (Ok(root), Ok(reference)) = (std::env::var("PULL_ROOT"), std::env::var("PULL_REFERENCE")) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = Store::open(keeping(Path::new(&root), std::env::var("PULL_KEEPS").is_ok())).unwrap();
    runtime.block_on(store.pull(&reference.parse().unwrap(), &[], None)).unwrap();
}

fn keeping(root: &Path, keeps: bool) -> Config {
    let mut config = Config::new(root);
    config.keep_blobs = if keeps { KeepBlobs::Always } else { KeepBlobs::default() };
    config
}

/// Says nothing of a store of which everything is as it was unpacked and fetched.
fn wrong(store: &Store) -> Vec<Check> {
    let mut wrong = Vec::new();
    store.verify(&store.list().into_iter().map(|image| image.id).collect(), |check| {
        if !matches!(check.finding, Finding::Whole(_)) {
            wrong.push(check);
        }
        ControlFlow::Continue(())
    });
    wrong
}

#[test]
fn a_pull_killed_at_any_moment_leaves_a_whole_store() {
    let registry = Registry::start();
    let layers: Vec<Vec<u8>> = (0..4_u8)
        .map(|l| {
            (0..60_u8)
                .fold(Tar::new().dir("./", 0o755).dir(&format!("l{l}/"), 0o755), |tar, i| {
                    let content: Vec<u8> =
                        (0..20_000_u32).map(|n| (n.wrapping_mul(u32::from(i) + 7) >> 3).to_le_bytes()[0] ^ l).collect();
                    tar.file(&format!("l{l}/f{i}"), &content)
                })
                .bytes()
        })
        .collect();
    registry.push(Layout::new(&layers, Pack::Gzip).dir.path(), "killed", &[]);
    let reference = registry.reference("killed");
    let whole = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let begun = std::time::Instant::now();
    let expect = {
        let store = store(whole.path());
        let image = runtime.block_on(store.pull(&reference, &[], None)).unwrap();
        image.layers.iter().map(|l| facts(l)).collect::<Vec<_>>()
    };
    // Within it pulls are killed; it follows the machine, so that about half of them are complete then.
    let mut span = begun.elapsed();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let rounds = number("PORTREEVE_ROUNDS").unwrap_or(40);
    let nanos = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let mut random = number("PORTREEVE_SEED").unwrap_or_else(nanos);
    // Past the capture of passing tests: a run that went well may be of interest, too.
    writeln!(std::io::stderr(), "PORTREEVE_SEED={random} PORTREEVE_ROUNDS={rounds}: kills of pulls").unwrap();
    let mut recorded = 0;
    for round in 0..rounds {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let root = tempfile::tempdir().unwrap();
        let keeps = round % 2 == 1;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pulls_for_the_test_that_kills_it"])
            .envs(keeps.then_some(("PULL_KEEPS", "1")))
            .env("PULL_ROOT", root.path())
            .env("PULL_REFERENCE", reference.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(span.mul_f64(f64::from(random >> 16) / 65536.0) + Duration::from_millis(2));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(keeping(root.path(), keeps)).unwrap();
        recorded += store.list().len();
        span = span.mul_f64(if store.list().is_empty() { 1.2 } else { 0.85 });
        assert_eq!(wrong(&store), [], "round {round}: a recorded image is not whole");
        support::nothing_unfinished(root.path());
        let image = runtime.block_on(store.pull(&reference, &[], None)).unwrap();
        let found: Vec<_> = image.layers.iter().map(|l| facts(l)).collect();
        assert!(found == expect, "round {round}: the next pull did not complete it");
        assert_eq!(wrong(&store), [], "round {round}");
    }
    writeln!(std::io::stderr(), "{recorded} of {rounds} pulls were complete when they were killed").unwrap();
    assert!((1..rounds as usize).contains(&recorded), "all were killed on the same side of the commit");
}
