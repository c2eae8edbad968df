//! What a layer's archive can do, and what it cannot: one case per attack.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use portreeve_image::{Applied, LayerError, Limits, apply_layer};
use proptest::prelude::*;
use support::{Layout, Pack, Tar, in_mount_namespace, mount_overlay, store, tree, two_layers};
use tar::EntryType;
use tempfile::TempDir;

/// A directory to unpack into, beside one that must never change.
struct Ground {
    dir: TempDir,
    before: Vec<String>,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        fs::set_permissions(dir.path().join("outside/secret"), fs::Permissions::from_mode(0o640)).unwrap();
        let mut ground = Self { dir, before: Vec::new() };
        ground.before = ground.outside();
        ground
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn apply(&self, tar: &[u8]) -> Result<Applied, LayerError> {
        self.apply_with(tar, &Limits::default())
    }

    fn apply_with(&self, tar: &[u8], limits: &Limits) -> Result<Applied, LayerError> {
        apply_layer(tar, File::open(self.root()).unwrap().as_fd(), limits)
    }

    /// Everything about the files outside that an attack could change.
    fn outside(&self) -> Vec<String> {
        let mut found = vec![format!("{:?}", fs::read_dir(self.dir.path()).unwrap().count())];
        for path in [self.dir.path().join("outside"), self.dir.path().join("outside/secret")] {
            let m = fs::symlink_metadata(&path).unwrap();
            found.push(format!("{} {:o} {} {} {}", path.display(), m.mode(), m.uid(), m.nlink(), m.mtime()));
        }
        found.push(fs::read_to_string(self.dir.path().join("outside/secret")).unwrap());
        found.extend(tree(&self.dir.path().join("outside")));
        found
    }

    fn unharmed(&self) {
        assert_eq!(self.outside(), self.before);
    }
}

#[test]
fn no_archive_reaches_outside_its_root() {
    // `{out}` is the absolute path of the directory outside.
    type Case = (&'static str, fn(&str) -> Tar, bool);
    let cases: &[Case] = &[
        ("parent name", |_| Tar::new().file("../outside/new", b"x"), false),
        ("parent name inside", |_| Tar::new().file("a/../../outside/new", b"x"), false),
        ("parent directory", |_| Tar::new().dir("..", 0o777), false),
        ("absolute name", |out| Tar::new().file(&format!("{out}/secret"), b"x"), true),
        ("absolute symlink, then through it", |out| Tar::new().symlink("l", out).file("l/secret", b"x"), true),
        ("relative symlink, then through it", |_| Tar::new().symlink("l", "../outside").file("l/secret", b"x"), true),
        (
            "symlink of many steps",
            |_| Tar::new().dir("d", 0o755).symlink("d/l", "../../../../../../../../../..").file("d/l/etc/x", b"x"),
            true,
        ),
        ("directory over a symlink", |out| Tar::new().symlink("l", out).dir("l", 0o777).file("l/new", b"x"), true),
        (
            "mode through a symlink",
            |out| {
                let target = format!("{out}/secret");
                let mut tar = Tar::new().symlink("l", &target);
                let header = Tar::header(EntryType::Regular, 0o4777, 0);
                tar.raw(header, b"l", b"", b"");
                tar
            },
            true,
        ),
        ("hard link outside", |out| Tar::new().hardlink("h", &format!("{out}/secret")), false),
        ("hard link with parents", |_| Tar::new().hardlink("h", "../outside/secret"), false),
        ("hard link through a symlink", |out| Tar::new().symlink("l", out).hardlink("h", "l/secret"), false),
        (
            "hard link to a symlink, then written",
            |out| Tar::new().symlink("l", &format!("{out}/secret")).hardlink("h", "l").file("h", b"x"),
            true,
        ),
        ("hard link to the root", |_| Tar::new().hardlink("h", "."), false),
        ("hard link to itself", |_| Tar::new().file("h", b"x").hardlink("h", "./h"), false),
        ("whiteout of nothing", |_| Tar::new().file(".wh.", b""), false),
        ("whiteout of dot", |_| Tar::new().file("a/.wh..", b""), false),
        ("whiteout of parent", |_| Tar::new().file(".wh...", b""), false),
        ("whiteout through a symlink", |out| Tar::new().symlink("l", out).file("l/.wh.secret", b""), true),
        ("opaque through a symlink", |out| Tar::new().symlink("l", out).file("l/.wh..wh..opq", b""), true),
        ("below a whiteout", |_| Tar::new().file(".wh.x/y", b""), false),
        ("root as a file", |_| Tar::new().file("./", b"x"), false),
        ("root as a symlink", |out| Tar::new().symlink(".", out), false),
        ("magic link", |_| Tar::new().symlink("l", "/proc/self/root").file("l/etc/x", b"x"), true),
        ("loop of symlinks", |_| Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"x"), false),
        (
            "NUL in a PAX path",
            |_| {
                let mut tar = Tar::new();
                tar.pax(&[("path", b"a\0/../../outside/x")]);
                tar.file("x", b"y")
            },
            false,
        ),
        (
            "parents in a PAX path",
            |_| {
                let mut tar = Tar::new();
                tar.pax(&[("path", b"../outside/x")]);
                tar.file("x", b"y")
            },
            false,
        ),
        (
            "parents in a PAX link",
            |_| {
                let mut tar = Tar::new();
                tar.pax(&[("linkpath", b"../outside/secret")]);
                tar.hardlink("x", "y")
            },
            false,
        ),
        ("empty symlink", |_| Tar::new().symlink("l", ""), false),
        ("name of 5000 bytes", |_| Tar::new().file(&"a/".repeat(2500), b""), false),
        ("part of 300 bytes", |_| Tar::new().file(&"a".repeat(300), b""), false),
    ];
    for (name, make, accepted) in cases {
        let ground = Ground::new();
        let out = ground.dir.path().join("outside").display().to_string();
        let result = ground.apply(&make(&out).bytes());
        ground.unharmed();
        assert_eq!(result.is_ok(), *accepted, "{name}: {result:?}");
        assert!(!Path::new("/etc/x").exists(), "{name}");
    }
}

#[test]
fn bounds_hold_before_anything_is_spent() {
    let limits = Limits { entries: 10, unpacked_bytes: 1000, header_bytes: 4096, ..Limits::default() };
    let many = (0..11).fold(Tar::new(), |tar, i| tar.file(&format!("f{i}"), b"")).bytes();
    let big = Tar::new().file("a", &[1; 600]).file("b", &[1; 600]).bytes();
    let lie = {
        // The header promises a terabyte, the archive ends.
        let mut header = Tar::header(EntryType::Regular, 0o644, 1 << 40);
        header.as_old_mut().name[0] = b'x';
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let mut long_name = Tar::new();
    long_name.raw(Tar::header(EntryType::Regular, 0o644, 0), &[b'n'; 5000], b"", b"");
    let mut wide = Tar::new();
    wide.pax(&[("SCHILY.xattr.user.x", &[b'v'; 5000])]);
    let sparse = {
        let mut header = Tar::header(EntryType::GNUSparse, 0o644, 0);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[0] = b's';
        gnu.realsize.copy_from_slice(b"77777777777\0");
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    for (name, tar) in [
        ("entries", many),
        ("bytes", big),
        ("lie", lie),
        ("long name", long_name.bytes()),
        ("xattr", wide.file("x", b"").bytes()),
        ("sparse", sparse),
    ] {
        let error = Ground::new().apply_with(&tar, &limits).unwrap_err();
        assert!(matches!(error, LayerError::Limit { .. }), "{name}: {error:?}");
    }
}

#[test]
fn names_that_must_be_remembered_are_bounded() {
    let limits = Limits { directory_bytes: 10_000, implied_bytes: 10_000, ..Limits::default() };
    let said = |n: usize| (0..n).fold(Tar::new(), |tar, i| tar.dir(&format!("{i:040}"), 0o755)).bytes();
    let implied = |n: usize| (0..n).fold(Tar::new(), |tar, i| tar.file(&format!("{i:040}/x"), b"")).bytes();
    for archive in [said(90), implied(90)] {
        Ground::new().apply_with(&archive, &limits).unwrap();
    }
    for archive in [said(100), implied(100)] {
        let error = Ground::new().apply_with(&archive, &limits).unwrap_err();
        assert!(matches!(error, LayerError::Limit { .. }), "{error:?}");
    }
    // Many attributes in one header cost no more than their number.
    let records: Vec<(String, Vec<u8>)> = (0..40_000).map(|i| (format!("SCHILY.xattr.x{i}"), Vec::new())).collect();
    let records: Vec<(&str, &[u8])> = records.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
    let mut tar = Tar::new();
    for i in 0..8 {
        tar.pax(&records);
        tar = tar.file(&format!("f{i}"), b"");
    }
    let begun = std::time::Instant::now();
    Ground::new().apply_with(&tar.bytes(), &Limits { header_bytes: 2 << 20, ..Limits::default() }).unwrap();
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn a_size_that_lies_gives_an_error_and_no_space() {
    let pax = |records: &[(&str, &[u8])], content: &[u8]| {
        let mut tar = Tar::new();
        tar.pax(records);
        tar.file("f", content).file("g", b"").bytes()
    };
    let sparse = |size: &'static [u8], map: &'static [u8]| {
        pax(&[("GNU.sparse.major", b"0"), ("GNU.sparse.realsize", size), ("GNU.sparse.map", map)], &[1; 512])
    };
    for (name, tar) in [
        ("longer than the archive", pax(&[("size", b"100000")], &[1; 512])),
        ("shorter than the content", pax(&[("size", b"512")], &[1; 1024])),
        ("of all bits", pax(&[("size", b"18446744073709551615")], b"")),
        ("beyond 64 bits", pax(&[("size", b"99999999999999999999")], b"")),
        ("negative", pax(&[("size", b"-1")], b"")),
        ("a hole beyond every bound", sparse(b"9223372036854775807", b"0,512")),
        ("pieces beyond the end", sparse(b"512", b"512,512")),
        ("pieces that overlap", sparse(b"4096", b"0,256,128,256")),
        ("pieces that overflow", sparse(b"4096", b"18446744073709551615,512")),
        ("more stored than there is", sparse(b"4096", b"0,4096")),
        ("less stored than there is", sparse(b"4096", b"0,1")),
        ("half a piece", sparse(b"4096", b"0,512,600")),
        ("a map in the content that is none", {
            pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"4096")], &[b'9'; 1024])
        }),
        ("a map in the content that is longer than it", {
            pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"4096")], b"4294967295\n")
        }),
    ] {
        let ground = Ground::new();
        let error = ground.apply(&tar).unwrap_err();
        assert!(matches!(error, LayerError::Malformed { .. } | LayerError::Limit { .. }), "{name}: {error:?}");
        let file = fs::metadata(ground.root().join("f"));
        assert!(file.map_or(0, |m| m.len()) <= 4096, "{name}: space was given");
    }
}

#[tokio::test]
async fn a_bomb_stops_at_its_bound_however_it_is_packed() {
    const MIB: usize = 1 << 20;
    let file = Tar::new().file("zeros", &vec![0; 8 * MIB]).bytes();
    let tail = [Tar::new().file("x", b"y").bytes(), vec![0; 8 * MIB]].concat();
    let members = |how: Pack| file.chunks(MIB / 4).flat_map(|part| support::pack(part, how)).collect::<Vec<u8>>();
    let hole = {
        let mut tar = Tar::new();
        tar.pax(&[("GNU.sparse.major", b"0"), ("GNU.sparse.realsize", b"8388608"), ("GNU.sparse.map", b"0,512")]);
        tar.file("hole", &[1; 512]).bytes()
    };
    let twice = support::pack(&support::pack(&file, Pack::Gzip), Pack::Gzip);
    let registry = support::scripted::Scripted::start();
    for (name, archive, packed, stopped) in [
        ("gzip", &file, support::pack(&file, Pack::Gzip), true),
        ("zstd", &file, support::pack(&file, Pack::Zstd), true),
        ("gzip-members", &file, members(Pack::Gzip), true),
        ("zstd-frames", &file, members(Pack::Zstd), true),
        ("after-the-end", &tail, support::pack(&tail, Pack::Gzip), true),
        ("hole", &hole, hole.clone(), true),
        // Only one layer of compression is undone; what is below is no archive.
        ("twice", &file, twice, false),
    ] {
        let (root, layer) = (tempfile::tempdir().unwrap(), portreeve_image::Digest::of(&packed));
        let config = support::config_json(&[portreeve_image::Digest::of(archive)], support::arch(), name);
        let config_digest = portreeve_image::Digest::of(config.as_bytes());
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest,
                       "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": packed.len()}],
        });
        let answer = |body: Vec<u8>| support::scripted::Answer::ok(body);
        registry.on(&format!("/v2/{name}/manifests/latest"), answer(manifest.to_string().into()));
        registry.on(&format!("/v2/{name}/blobs/{config_digest}"), answer(config.into()));
        registry.on(&format!("/v2/{name}/blobs/{layer}"), answer(packed.clone()));
        let limits = Limits { ratio_floor_bytes: MIB as u64, ratio: 2, ..Limits::default() };
        let store = portreeve_image::Store::open(portreeve_image::Config {
            limits,
            ..portreeve_image::Config::new(root.path())
        });
        let reference = format!("127.0.0.1:{}/{name}", registry.port).parse().unwrap();
        let store = store.unwrap();
        let error = store.pull(&reference, &[], None).await.unwrap_err();
        let limit = matches!(&error, portreeve_image::PullError::Layer { source: LayerError::Limit { .. }, .. });
        assert_eq!(limit, stopped, "{name}: {error:?}");
        support::nothing_unfinished(root.path());
    }
}

#[test]
fn damaged_archives_are_errors_and_trailing_bytes_are_not() {
    let good = Tar::new().file("a", &[1; 2000]).file("b", b"x").bytes();
    let cut = &good[..1500];
    let mut sum = good.clone();
    sum[150] ^= 1;
    let mut twice = Tar::new();
    twice.pax(&[("path", b"x")]);
    let dangling = {
        let bytes = twice.bytes();
        bytes[..1024].to_vec()
    };
    for (name, tar) in [("cut", cut.to_vec()), ("checksum", sum), ("dangling pax", dangling)] {
        let error = Ground::new().apply(&tar).unwrap_err();
        assert!(matches!(error, LayerError::Malformed { .. }), "{name}: {error:?}");
    }
    let ground = Ground::new();
    ground.apply(&[&good[..], b"trailing rubbish"].concat()).unwrap();
    assert_eq!(tree(&ground.root()), ["a (2000)", "b = x"]);
    // What umoci's `insert` writes: nothing behind the last byte of the last file. One byte less is an error.
    let unfilled = &good[..good.len() - 1024 - 511];
    let ground = Ground::new();
    ground.apply(unfilled).unwrap();
    assert_eq!(tree(&ground.root()), ["a (2000)", "b = x"]);
    let error = Ground::new().apply(&unfilled[..unfilled.len() - 1]).unwrap_err();
    assert!(matches!(error, LayerError::Malformed { .. }), "{error:?}");
}

#[test]
fn every_kind_of_entry_keeps_what_it_had() {
    let ground = Ground::new();
    let mut tar = Tar::new().dir("./", 0o1755);
    let mut special = |kind: EntryType, mode: u32, name: &[u8], device: (u32, u32)| {
        let mut header = Tar::header(kind, mode, 0);
        header.set_uid(12);
        header.set_gid(34);
        if device != (0, 0) {
            header.set_device_major(device.0).unwrap();
            header.set_device_minor(device.1).unwrap();
        }
        tar.raw(header, name, b"", b"");
    };
    special(EntryType::Char, 0o620, b"char", (5, 1));
    special(EntryType::Block, 0o660, b"block", (8, 3));
    special(EntryType::Fifo, 0o600, b"fifo", (0, 0));
    special(EntryType::Regular, 0o6755, b"setuid", (0, 0));
    special(EntryType::Directory, 0o3775, b"sgid", (0, 0));
    special(EntryType::Regular, 0o644, b"not-\xff-utf8", (0, 0));
    let capability = b"\x01\x00\x00\x02\x0a\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    tar.pax(&[
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.user.note", b"a=b\nc"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.security.selinux", b"label"),
        ("mtime", b"1500000000.123456789"),
        ("uid", b"3000000"),
    ]);
    let long = format!("{}/file", "long-directory-name-".repeat(8));
    let tar = tar
        .file("caps", b"binary")
        .file(&long, b"deep")
        .hardlink("sgid/link", &long)
        .symlink("symlink", "/anywhere/../at all")
        .file("duplicate", b"first")
        .file("duplicate", b"second")
        .file("was-dir/x", b"x")
        .file("was-dir", b"file")
        .file("was-file", b"file")
        .file("sgid/inner", b"inherits no group");
    let mut tar = tar;
    tar.raw(Tar::header(EntryType::Directory, 0o711, 0), b"was-file/", b"", b"");
    let applied = ground.apply(&tar.bytes()).unwrap();
    assert_eq!(applied.implied, [b"long-directory-name-".repeat(8)]);
    let root = ground.root();
    let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    let facts = |name: &str| (stat(name).mode() & 0o7777, stat(name).uid(), stat(name).gid());
    assert_eq!(facts("char"), (0o620, 12, 34));
    assert!(stat("char").file_type().is_char_device() && stat("block").file_type().is_block_device());
    assert_eq!(stat("char").rdev(), nix::sys::stat::makedev(5, 1));
    assert!(stat("fifo").file_type().is_fifo());
    assert_eq!(facts("setuid"), (0o6755, 12, 34));
    assert_eq!(facts("sgid"), (0o3775, 12, 34));
    assert_eq!(facts("sgid/inner"), (0o644, 0, 0));
    assert_eq!(stat("").mode() & 0o7777, 0o1755);
    assert_eq!((stat("caps").mtime(), stat("caps").mtime_nsec()), (1_500_000_000, 123_456_789));
    assert_eq!(stat("caps").uid(), 3_000_000);
    assert_eq!(stat("sgid").mtime(), 1_600_000_000);
    assert_eq!(stat("sgid/link").ino(), stat(&long).ino());
    assert_eq!(fs::read_link(root.join("symlink")).unwrap(), Path::new("/anywhere/../at all"));
    assert_eq!(fs::read(root.join("duplicate")).unwrap(), b"second");
    assert!(stat("was-dir").is_file() && stat("was-file").is_dir());
    assert!(root.join(std::ffi::OsStr::from_bytes(b"not-\xff-utf8")).exists());
    let xattr = |name: &str| {
        let mut value = [0_u8; 100];
        rustix::fs::getxattr(root.join("caps"), name, &mut value).map(|n| value[..n].to_vec())
    };
    assert_eq!(xattr("security.capability").unwrap(), capability);
    assert_eq!(xattr("user.note").unwrap(), b"a=b\nc");
    assert!(xattr("trusted.overlay.opaque").is_err(), "an image must not steer overlayfs");
}

#[test]
fn sparse_files_of_every_format_keep_their_holes() {
    // GNU tar writes them; the content is known here.
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("sparse")).unwrap();
    use std::os::unix::fs::FileExt;
    for i in 0..40_u8 {
        file.write_all_at(&[i + 1; 4096], u64::from(i) * 1_000_000 / 4096 * 4096).unwrap();
    }
    file.set_len(60_000_000).unwrap();
    let expect = fs::read(dir.path().join("sparse")).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let output = std::process::Command::new("tar")
            .args(["-cS", "-C"])
            .arg(dir.path())
            .args(format)
            .arg("sparse")
            .output()
            .unwrap();
        assert!(output.status.success());
        assert!(output.stdout.len() < 1_000_000, "tar made no sparse file");
        let ground = Ground::new();
        ground.apply(&output.stdout).unwrap();
        let path = ground.root().join("sparse");
        assert!(fs::read(&path).unwrap() == expect, "{format:?}");
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 2_000_000, "{format:?}: holes were filled");
    }
}

#[test]
fn a_whiteout_and_an_entry_of_one_layer_do_not_depend_on_their_order() {
    for tar in [
        Tar::new().file(".wh.d", b"").dir("d", 0o755).file("d/x", b"1").file(".wh.f", b"").file("f", b"2"),
        Tar::new().dir("d", 0o755).file("d/x", b"1").file(".wh.d", b"").file("f", b"2").file(".wh.f", b""),
        Tar::new().file(".wh.d", b"").file("d/x", b"1").file("f", b"2").file(".wh.f", b""),
    ] {
        let ground = Ground::new();
        ground.apply(&tar.bytes()).unwrap();
        assert_eq!(tree(&ground.root()), ["d/", "d/x = 1", "f = 2"]);
        let mut value = [0; 4];
        let opaque = rustix::fs::getxattr(ground.root().join("d"), "trusted.overlay.opaque", &mut value);
        assert_eq!(opaque, Ok(1), "what lower layers have in d must not show");
    }
}

#[test]
fn directories_are_implied_where_they_really_are_and_only_while_lower_layers_count() {
    type Case = (Tar, &'static [&'static str], &'static [&'static str]);
    let cases: [Case; 6] = [
        (Tar::new().file("a/b/c", b"1"), &["a/", "a/b/", "a/b/c = 1"], &["", "a", "a/b"]),
        // What a whiteout or an opaque directory hides is made anew.
        (Tar::new().file(".wh.a", b"").file("a/b/c", b"1"), &["a/", "a/b/", "a/b/c = 1"], &[""]),
        (Tar::new().file("a/.wh..wh..opq", b"").file("a/b/c", b"1"), &["a/", "a/b/", "a/b/c = 1"], &["", "a"]),
        // The link leads to what only lower layers have.
        (
            Tar::new().symlink("l", "/run/./x/../y").file("l/d/e", b"1"),
            &["l -> /run/./x/../y", "run/", "run/x/", "run/y/", "run/y/d/", "run/y/d/e = 1"],
            &["", "run", "run/x", "run/y", "run/y/d"],
        ),
        // An entry of its own counts by whichever way it comes.
        (
            Tar::new().symlink("l", "run").file("l/d/e", b"1").dir("run/d", 0o700).dir("l", 0o755),
            &["l/", "run/", "run/d/", "run/d/e = 1"],
            &["", "run"],
        ),
        (Tar::new().file("a/b/c", b"1").file("a", b"2").dir("a", 0o755), &["a/"], &[""]),
    ];
    for (tar, expect, implied) in cases {
        let ground = Ground::new();
        let applied = ground.apply(&tar.bytes()).unwrap();
        assert_eq!(tree(&ground.root()), expect);
        assert_eq!(applied.implied, implied.iter().map(|p| p.as_bytes().to_vec()).collect::<Vec<_>>());
    }
}

#[test]
fn an_overlay_of_the_layers_shows_what_the_image_means() {
    in_mount_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&two_layers(), Pack::Gzip);
        let tar = dir.path().join("image.tar");
        let to = format!("docker-archive:{}:t:1", tar.display());
        support::skopeo(&["copy", &format!("oci:{}:x", layout.dir.path().display()), &to]);
        let store = store(&dir.path().join("store"));
        let image = runtime.block_on(store.load(File::open(&tar).unwrap())).unwrap().remove(0);
        let snapshot = store.snapshot("c1", &image, &[]).unwrap();
        let target = dir.path().join("merged");
        fs::create_dir(&target).unwrap();
        mount_overlay(&snapshot, &target);
        assert_eq!(
            tree(&target),
            [
                "big (300000)",
                "etc/",
                "etc/added = added",
                "etc/kept = kept",
                "opaque/",
                "opaque/new = new",
                "tmp/",
                "tmp/in = x"
            ]
        );
        let mode = |name: &str| fs::metadata(target.join(name)).unwrap().mode() & 0o7777;
        // `tmp` was only implied by the upper layer; its mode is that of the lower one.
        assert_eq!((mode("tmp"), mode("opaque"), mode("etc"), mode("")), (0o1777, 0o750, 0o755, 0o755));
        fs::write(target.join("etc/kept"), "changed").unwrap();
        nix::mount::umount(&target).unwrap();
        assert_eq!(fs::read(snapshot.upper.join("etc/kept")).unwrap(), b"changed");
        store.remove_snapshot("c1").unwrap();
    });
}

#[test]
fn directories_behind_a_link_may_be_replaced_by_a_later_entry() {
    let ground = Ground::new();
    let tar = Tar::new().dir("d", 0o755).symlink("l", "d").dir("l/sub", 0o755).dir("l", 0o755).file("d", b"file");
    ground.apply(&tar.bytes()).unwrap();
    assert_eq!(tree(&ground.root()), ["d = file", "l/"]);
}

#[test]
fn a_layer_that_an_image_has_twice_can_be_mounted() {
    in_mount_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let twice = Tar::new().dir("./", 0o755).file("x", b"twice").file(".wh.gone", b"").bytes();
        let between = Tar::new().dir("./", 0o755).file("x", b"between").file("y", b"y").file("gone", b"").bytes();
        let layout = Layout::new(&[twice.clone(), between, twice.clone()], Pack::Gzip);
        let registry = support::Registry::start();
        registry.push(layout.dir.path(), "twice", &[]);
        let store = store(&dir.path().join("store"));
        let image = runtime.block_on(store.pull(&registry.reference("twice"), &[], None)).unwrap();
        assert_eq!(image.layers.len(), 2);
        let target = dir.path().join("merged");
        fs::create_dir(&target).unwrap();
        mount_overlay(&store.snapshot("c", &image, &[]).unwrap(), &target);
        assert_eq!(tree(&target), ["x = twice", "y = y"]);
        nix::mount::umount(&target).unwrap();
    });
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing_behind() {
    in_mount_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some("size=2m")).unwrap();
        let noise: Vec<u8> = (0..6_000_000_u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
        let layout = Layout::new(&[Tar::new().file("big", &noise).bytes()], Pack::Gzip);
        let registry = support::Registry::start();
        registry.push(layout.dir.path(), "big", &[]);
        let store = store(&dir.path().join("store"));
        let error = runtime.block_on(store.pull(&registry.reference("big"), &[], None)).unwrap_err();
        assert!(matches!(&error, portreeve_image::PullError::DiskFull { .. }), "{error:?}");
        assert!(!error.advice().is_empty());
        assert_eq!(fs::read_dir(dir.path().join("store/staging")).unwrap().count(), 0);
        // The store still works for what fits.
        let small = Layout::new(&two_layers(), Pack::Gzip);
        registry.push(small.dir.path(), "small", &[]);
        runtime.block_on(store.pull(&registry.reference("small"), &[], None)).unwrap();
        drop(store);
        nix::mount::umount(dir.path()).unwrap();
    });
}

#[test]
fn attributes_that_do_not_fit_one_file_are_no_full_disk() {
    let records: Vec<(String, Vec<u8>)> =
        (0..50).map(|n| (format!("SCHILY.xattr.user.{n}"), vec![b'v'; 200])).collect();
    let records: Vec<(&str, &[u8])> = records.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
    let mut many = Tar::new();
    many.pax(&records);
    let ground = Ground::new();
    let Err(error) = ground.apply(&many.file("dir/many", b"x").bytes()) else {
        eprintln!("SKIPPED: the temporary directory's filesystem keeps any number of attributes; ext4 does not");
        return;
    };
    assert!(!error.is_disk_full(), "{error:?}");
    let (text, cause) = (error.to_string(), std::error::Error::source(&error).unwrap().to_string());
    assert!(text.contains("dir/many") && text.contains("attributes"), "{text}");
    assert!(cause.contains("more than this filesystem keeps for one file"), "{cause}");
}

#[test]
fn an_entry_of_an_owner_that_cannot_be_does_not_become_roots() {
    let kinds = [EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Fifo];
    for (kind, id) in kinds.into_iter().flat_map(|kind| [(kind, "uid"), (kind, "gid")]) {
        for name in ["x", "./"] {
            let mut tar = Tar::new();
            tar.pax(&[(id, b"4294967295")]);
            tar.raw(Tar::header(kind, 0o6755, 0), name.as_bytes(), b"target", b"");
            let ground = Ground::new();
            let error = ground.apply(&tar.bytes()).unwrap_err();
            assert!(matches!(error, LayerError::Refused { .. }), "{kind:?} {id} {name}: {error:?}");
            assert!(tree(&ground.root()).is_empty());
        }
        // The largest that can be.
        let mut tar = Tar::new();
        tar.pax(&[(id, b"4294967294")]);
        tar.raw(Tar::header(kind, 0o6755, 0), b"x", b"target", b"");
        let ground = Ground::new();
        ground.apply(&tar.bytes()).unwrap();
        let facts = fs::symlink_metadata(ground.root().join("x")).unwrap();
        assert_eq!(if id == "uid" { facts.uid() } else { facts.gid() }, u32::MAX - 1, "{kind:?}");
    }
}

/// One step of a random archive, over few names so that they meet.
#[derive(Debug, Clone)]
enum Step {
    File(String, u8),
    Dir(String),
    Symlink(String, String),
    Link(String, String),
    Whiteout(String),
}

fn step() -> impl Strategy<Value = Step> {
    let name = || {
        prop_oneof![
            5 => "[ab](/[ab]){0,2}",
            1 => "(\\.\\./|/|\\./){1,2}[ab]",
        ]
    };
    let target = prop_oneof!["[ab](/[ab])?", "(\\.\\./){1,4}outside", Just("/".to_owned()), Just("..".to_owned())];
    prop_oneof![
        4 => (name(), any::<u8>()).prop_map(|(n, c)| Step::File(n, c)),
        2 => name().prop_map(Step::Dir),
        2 => (name(), target).prop_map(|(n, t)| Step::Symlink(n, t)),
        1 => (name(), name()).prop_map(|(n, t)| Step::Link(n, t)),
        1 => name().prop_map(Step::Whiteout),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_archives_stay_inside(steps in proptest::collection::vec(step(), 1..12)) {
        let ground = Ground::new();
        let tar = steps.iter().fold(Tar::new(), |tar, step| match step {
            Step::File(name, content) => tar.file(name, &[*content]),
            Step::Dir(name) => tar.dir(name, 0o755),
            Step::Symlink(name, target) => tar.symlink(name, target),
            Step::Link(name, target) => tar.hardlink(name, target),
            Step::Whiteout(name) => {
                let (dir, last) = name.rsplit_once('/').unwrap_or((".", name));
                tar.file(&format!("{dir}/.wh.{last}"), b"")
            }
        });
        let _accepted_or_not = ground.apply(&tar.bytes());
        ground.unharmed();
    }

    #[test]
    fn archives_without_links_unpack_to_their_last_entries(
        files in proptest::collection::vec(("[a-c](/[d-f]){0,2}/[x-z]", any::<u8>()), 1..20)
    ) {
        let ground = Ground::new();
        let tar = files.iter().fold(Tar::new(), |tar, (name, content)| tar.file(name, &[*content]));
        ground.apply(&tar.bytes()).unwrap();
        let expect: BTreeMap<_, _> = files.into_iter().collect();
        for (name, content) in &expect {
            prop_assert_eq!(fs::read(ground.root().join(name)).unwrap(), [*content]);
        }
        let found = tree(&ground.root()).into_iter().filter(|l| l.contains(" = ")).count();
        prop_assert_eq!(found, expect.len());
    }

    #[test]
    fn damaged_bytes_never_panic_or_escape(position in 0_usize..4000, value in any::<u8>()) {
        let mut tar = Tar::new().dir("d", 0o755).symlink("l", "../outside").hardlink("h", "d/x");
        tar.pax(&[("path", b"d/pax"), ("mtime", b"1.5")]);
        let mut bytes = tar.file("f", &[3; 700]).bytes();
        let length = bytes.len();
        bytes[position % length] = value;
        let ground = Ground::new();
        let limits = Limits { unpacked_bytes: 1 << 20, ..Limits::default() };
        let _accepted_or_not = ground.apply_with(&bytes, &limits);
        ground.unharmed();
    }
}

/// An archive of a million entries, made as it is read: many directories, and one file that comes over and over.
struct Million {
    number: u32,
    rest: io::Cursor<Vec<u8>>,
}

impl Million {
    const ENTRIES: u32 = 1_000_000;
    const DIRECTORIES: u32 = 60_000;
}

impl io::Read for Million {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.position() == self.rest.get_ref().len() as u64 && self.number < Self::ENTRIES {
            let mut block = Vec::new();
            for number in self.number..(self.number + 1000) {
                let (kind, mode, name) = match number < Self::DIRECTORIES {
                    true => (tar::EntryType::Directory, 0o755, format!("d{number}")),
                    false => (tar::EntryType::Regular, 0o644, "f".to_owned()),
                };
                let mut header = Tar::header(kind, mode, 0);
                header.set_path(name).unwrap();
                header.set_cksum();
                block.extend_from_slice(header.as_bytes());
            }
            self.number += 1000;
            if self.number == Self::ENTRIES {
                block.extend([0; 1024]);
            }
            self.rest = io::Cursor::new(block);
        }
        self.rest.read(buffer)
    }
}

#[test]
fn a_million_entries_that_replace_each_other_take_no_longer_than_as_many_others() {
    let ground = Ground::new();
    let begun = Instant::now();
    let archive = Million { number: 0, rest: io::Cursor::default() };
    let root = File::open(ground.root()).unwrap();
    let applied = apply_layer(archive, root.as_fd(), &Limits::default()).unwrap();
    assert_eq!(applied.entries, u64::from(Million::ENTRIES));
    assert_eq!(fs::read_dir(ground.root()).unwrap().count(), Million::DIRECTORIES as usize + 1);
    // Half an hour when each replaced file made the times of all directories be gone through.
    assert!(begun.elapsed() < Duration::from_secs(300), "{:?}", begun.elapsed());
    ground.unharmed();
}
