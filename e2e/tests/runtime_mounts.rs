//! `mounts`, and what else shapes the tree that a container sees: the root, masked and read-only paths, propagation.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use portreeve_e2e::{Bundle, Runtime, cgroup_version, skipped};
use serde_json::{Value, json};

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A flag that a mount of its own shows: the option, what it shows, what it takes away.
const FLAGS: [(&str, &[&str], &[&str]); 18] = [
    ("ro", &["ro"], &["rw"]),
    ("rw", &["rw"], &["ro"]),
    ("nosuid", &["nosuid"], &[]),
    ("suid", &[], &["nosuid"]),
    ("nodev", &["nodev"], &[]),
    ("dev", &[], &["nodev"]),
    ("noexec", &["noexec"], &[]),
    ("exec", &[], &["noexec"]),
    ("noatime", &["noatime"], &["relatime"]),
    ("atime", &["relatime"], &["noatime"]),
    ("nodiratime", &["nodiratime"], &[]),
    ("diratime", &[], &["nodiratime"]),
    ("relatime", &["relatime"], &["noatime"]),
    // Without the relative kind, and with the strict one, the kernel shows no word.
    ("norelatime", &[], &["relatime", "noatime"]),
    ("strictatime", &[], &["relatime", "noatime"]),
    ("nostrictatime", &["relatime"], &["noatime"]),
    ("nosymfollow", &["nosymfollow"], &[]),
    ("symfollow", &[], &["nosymfollow"]),
];

/// Options of a file system as a whole: what they make it show.
const SUPER: [(&str, &[&str], &[&str]); 9] = [
    ("sync", &["sync"], &[]),
    ("async", &[], &["sync"]),
    ("dirsync", &["dirsync"], &[]),
    ("lazytime", &["lazytime"], &[]),
    ("nolazytime", &[], &["lazytime"]),
    // The kernel has stopped to lock so, and shows that it was asked to.
    ("mand", &["mand"], &[]),
    ("size=64k", &["size=64k"], &[]),
    ("nr_inodes=10", &["nr_inodes=10"], &[]),
    ("uid=5", &["uid=5"], &[]),
];

/// Options that are accepted and mean nothing here: what is so anyway, and what file systems decide by themselves.
const MEANINGLESS: [&str; 8] = ["nomand", "iversion", "noiversion", "silent", "loud", "acl", "noacl", "defaults"];

/// An option of a mount, and the later one that takes it back, with what is shown then.
const TAKEN_BACK: [(&str, &str, &[&str]); 10] = [
    ("ro", "rw", &["rw"]),
    ("nosuid", "suid", &[]),
    ("nodev", "dev", &[]),
    ("noexec", "exec", &[]),
    ("noatime", "atime", &["relatime"]),
    ("nodiratime", "diratime", &[]),
    ("nosymfollow", "symfollow", &[]),
    ("noatime", "strictatime", &[]),
    ("relatime", "norelatime", &[]),
    // The kernel shows no word for the strict kind: that it was taken back is seen by the relative one.
    ("strictatime", "nostrictatime", &["relatime"]),
];

fn check(what: &str, seen: &BTreeSet<String>, shown: &[&str], hidden: &[&str]) {
    for word in shown {
        assert!(seen.contains(*word), "{what}: {word} is not among {seen:?}");
    }
    for word in hidden {
        assert!(!seen.contains(*word), "{what}: {word} is among {seen:?}");
    }
}

/// A bind mount of `source` to `/mnt`.
fn bind(source: &Path, options: &[&str]) -> Value {
    let kind = if options.iter().any(|option| matches!(*option, "bind" | "rbind")) { "none" } else { "bind" };
    json!({ "destination": "/mnt", "type": kind, "source": source, "options": options })
}

/// Two file systems of the world, one in the other, each with a file.
fn tree(runtime: &Runtime, bundle: &Bundle, options: &str) -> std::path::PathBuf {
    let folder = bundle.folder("tree");
    let path = folder.display();
    runtime.world().sh(&format!(
        "mount -t tmpfs -o {options} none {path} && mkdir {path}/sub && mount -t tmpfs -o {options} none {path}/sub && \
         echo outer > {path}/file && echo inner > {path}/sub/file"
    ));
    folder
}

/// Takes away what [`tree`] has made.
fn fell(runtime: &Runtime, tree: &Path) {
    runtime.world().sh(&format!("umount {0}/sub {0}", tree.display()));
}

#[test]
fn each_flag_of_a_new_file_system() {
    let Some(runtime) = Runtime::for_test("each_flag_of_a_new_file_system") else { return };
    for (option, shown, hidden) in FLAGS {
        let mount = json!({ "destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": [option] });
        let report = runtime.report(&runtime.bundle(&["report"]).with_mount(mount));
        check(option, &report.mount("/mnt").expect("a mount").options(), shown, hidden);
    }
    for (option, shown, hidden) in SUPER {
        let mount = json!({ "destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": [option] });
        let report = runtime.report(&runtime.bundle(&["report"]).with_mount(mount));
        check(option, &report.mount("/mnt").expect("a mount").file_system_options(), shown, hidden);
    }
    // Of two that contradict each other the later one counts.
    let system = [("sync", "async", &[][..]), ("lazytime", "nolazytime", &[]), ("mand", "nomand", &[])];
    for (taken, option, shown) in TAKEN_BACK.into_iter().chain(system) {
        let options = [taken, option];
        let mount = json!({ "destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": options });
        let report = runtime.report(&runtime.bundle(&["report"]).with_mount(mount));
        let mount = report.mount("/mnt").expect("a mount");
        let seen = mount.options().union(&mount.file_system_options()).cloned().collect();
        check(&format!("{options:?}"), &seen, shown, &[taken]);
    }
}

#[test]
fn options_that_are_accepted_and_mean_nothing_here() {
    let Some(runtime) = Runtime::for_test("options_that_are_accepted_and_mean_nothing_here") else { return };
    let seen = |options: &[&str], new: bool| {
        let bundle = runtime.bundle(&["report"]);
        let source = bundle.folder("source");
        let fresh = json!({ "destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": options });
        let bound = bind(&source, &[&["bind"], options].concat());
        let report = runtime.report(&bundle.with_mount(if new { fresh } else { bound }));
        let mount = report.mount("/mnt").expect("a mount");
        (mount.options(), mount.file_system_options(), mount.propagation())
    };
    let plain = seen(&[], true);
    for option in MEANINGLESS {
        assert_eq!(seen(&[option], true), plain, "{option} of a new file system");
    }
    // What is one of a file system as a whole says nothing about a bind mount, and is no reason to refuse one.
    let plain = seen(&[], false);
    let whole = ["mand", "async", "sync", "dirsync", "lazytime", "nolazytime"];
    for option in MEANINGLESS.into_iter().chain(whole) {
        assert_eq!(seen(&[option], false), plain, "{option} of a bind mount");
    }
}

#[test]
fn each_flag_of_a_bind_mount() {
    let Some(runtime) = Runtime::for_test("each_flag_of_a_bind_mount") else { return };
    for (option, shown, hidden) in FLAGS {
        let bundle = runtime.bundle(&["report"]);
        let source = bundle.folder("source");
        let report = runtime.report(&bundle.with_mount(bind(&source, &["bind", option])));
        let mount = report.mount("/mnt").expect("a mount");
        check(option, &mount.options(), shown, hidden);
    }
    // What the source has and the option takes away.
    for (given, option, shown) in TAKEN_BACK {
        let bundle = runtime.bundle(&["report"]);
        let source = bundle.folder("source");
        let path = source.display();
        runtime.world().sh(&format!("mount -t tmpfs none {path} && mount -o remount,bind,{given} {path}"));
        let report = runtime.report(&bundle.with_mount(bind(&source, &["bind", option])));
        check(option, &report.mount("/mnt").expect("a mount").options(), shown, &[given]);
        runtime.world().sh(&format!("umount {path}"));
    }
}

#[test]
fn each_recursive_flag_reaches_the_mounts_below() {
    let Some(runtime) = Runtime::for_test("each_recursive_flag_reaches_the_mounts_below") else { return };
    for (option, shown, hidden) in FLAGS {
        let bundle = runtime.bundle(&["report"]);
        let tree = tree(&runtime, &bundle, "rw");
        let option = format!("r{option}");
        let report = runtime.report(&bundle.with_mount(bind(&tree, &["rbind", &option])));
        for point in ["/mnt", "/mnt/sub"] {
            let seen = report.mount(point).unwrap_or_else(|| panic!("{option}: no mount at {point}")).options();
            check(&format!("{option} at {point}"), &seen, shown, hidden);
        }
        fell(&runtime, &tree);
    }
    for (given, option, shown) in TAKEN_BACK {
        let bundle = runtime.bundle(&["report"]);
        let tree = tree(&runtime, &bundle, "rw");
        let path = tree.display();
        runtime.world().sh(&format!("for p in {path} {path}/sub; do mount -o remount,bind,{given} $p; done"));
        let option = format!("r{option}");
        let report = runtime.report(&bundle.with_mount(bind(&tree, &["rbind", &option])));
        for point in ["/mnt", "/mnt/sub"] {
            check(&format!("{option} at {point}"), &report.mount(point).expect("a mount").options(), shown, &[given]);
        }
        fell(&runtime, &tree);
    }
    // Whatever is said of the topmost mount alone, and in whatever order.
    for (options, shown) in
        [(["rbind", "rro", "rw"], "ro"), (["rbind", "rw", "rro"], "ro"), (["rbind", "ro", "rrw"], "rw")]
    {
        let bundle = runtime.bundle(&["report"]);
        let tree = tree(&runtime, &bundle, "rw");
        let report = runtime.report(&bundle.with_mount(bind(&tree, &options)));
        for point in ["/mnt", "/mnt/sub"] {
            let seen = report.mount(point).expect("a mount").options();
            assert!(seen.contains(shown), "{options:?} at {point}: {seen:?}");
        }
        fell(&runtime, &tree);
    }
    // The plain form is of the topmost mount alone.
    let bundle = runtime.bundle(&["report"]);
    let tree = tree(&runtime, &bundle, "rw");
    let report = runtime.report(&bundle.with_mount(bind(&tree, &["rbind", "ro"])));
    check("ro", &report.mount("/mnt").expect("a mount").options(), &["ro"], &[]);
    check("ro below", &report.mount("/mnt/sub").expect("a mount").options(), &["rw"], &["ro"]);
    fell(&runtime, &tree);
}

#[test]
fn a_bind_mount_takes_the_mounts_below_only_when_told_to() {
    let Some(runtime) = Runtime::for_test("a_bind_mount_takes_the_mounts_below_only_when_told_to") else { return };
    for (options, inner) in [(&["bind"][..], "ENOENT"), (&["rbind"], "ok")] {
        let bundle = runtime.bundle(&["try", "read /mnt/file", "read /mnt/sub/file"]);
        let tree = tree(&runtime, &bundle, "rw");
        let attempts = runtime.attempts(&bundle.with_mount(bind(&tree, options)));
        assert_eq!(attempts.value("read /mnt/file"), "outer\n");
        assert_eq!(attempts.errno("read /mnt/sub/file"), inner, "{options:?}");
        fell(&runtime, &tree);
    }
}

#[test]
fn each_propagation_of_a_mount() {
    let Some(runtime) = Runtime::for_test("each_propagation_of_a_mount") else { return };
    for (option, expected, below) in [
        ("private", &[][..], Some(&[][..])),
        ("rprivate", &[], Some(&[])),
        ("shared", &["shared"], None),
        ("rshared", &["shared"], Some(&["shared"])),
        ("slave", &["master"], Some(&["master"])),
        ("rslave", &["master"], Some(&["master"])),
        ("unbindable", &["unbindable"], Some(&[])),
        ("runbindable", &["unbindable"], Some(&["unbindable"])),
    ] {
        let bundle = runtime.bundle(&["report"]).with(json!({ "linux": { "rootfsPropagation": "rslave" } }));
        let tree = tree(&runtime, &bundle, "rw");
        runtime.world().sh(&format!("mount --make-rshared {}", tree.display()));
        let report = runtime.report(&bundle.with_mount(bind(&tree, &["rbind", option])));
        let top = report.mount("/mnt").expect("a mount").propagation();
        let cut = |set: BTreeSet<String>| -> BTreeSet<String> {
            set.into_iter().filter(|word| word != "propagate_from").collect()
        };
        check(option, &top, expected, if expected.contains(&"shared") { &[] } else { &["shared"] });
        if let Some(below) = below {
            let seen = cut(report.mount("/mnt/sub").expect("a mount").propagation());
            assert_eq!(seen.contains("shared"), below.contains(&"shared"), "{option}: {seen:?}");
            check(option, &seen, below, &[]);
        }
        fell(&runtime, &tree);
    }
}

#[test]
fn a_mount_of_layers_has_the_propagation_that_is_said() {
    let Some(runtime) = Runtime::for_test("a_mount_of_layers_has_the_propagation_that_is_said") else { return };
    for (option, shown, hidden) in [("shared", &["shared"][..], &[][..]), ("unbindable", &["unbindable"], &["shared"])]
    {
        let bundle = runtime.bundle(&["report"]);
        let layers = format!("lowerdir={}:{}", bundle.folder("one").display(), bundle.folder("two").display());
        let options = json!([layers, option]);
        let mount = json!({ "destination": "/mnt", "type": "overlay", "source": "overlay", "options": options });
        let report = runtime.report(&bundle.with_mount(mount));
        check(option, &report.mount("/mnt").expect("a mount").propagation(), shown, hidden);
    }
}

#[test]
fn a_mount_of_layers_shows_its_source() {
    let Some(runtime) = Runtime::for_test("a_mount_of_layers_shows_its_source") else { return };
    let bundle = runtime.bundle_of(&["sh", "-c", "cat /proc/self/mountinfo"]);
    let layers = format!("lowerdir={}:{}", bundle.folder("one").display(), bundle.folder("two").display());
    let mount = |source: &str| json!({ "destination": format!("/mnt/{source}"), "type": "overlay", "source": source, "options": [layers] });
    let bundle =
        ["overlay", "of-its-own"].into_iter().fold(bundle.clone(), |bundle, name| bundle.with_mount(mount(name)));
    let said = runtime.run(&bundle, &[]).ok();
    for name in ["overlay", "of-its-own"] {
        let line = said.lines().find(|line| line.contains(&format!(" /mnt/{name} "))).expect("the mount");
        assert!(line.contains(&format!(" - overlay {name} ")), "{line}");
    }
}

#[test]
fn a_mount_made_outside_later_comes_to_a_slave_alone() {
    let Some(runtime) = Runtime::for_test("a_mount_made_outside_later_comes_to_a_slave_alone") else { return };
    for (option, expected) in [("rslave", "ok"), ("rprivate", "ENOENT")] {
        let bundle = runtime.bundle(&["wait"]).with(json!({ "linux": { "rootfsPropagation": "rslave" } }));
        let source = bundle.folder("source");
        let path = source.display();
        runtime.world().sh(&format!("mount -t tmpfs none {path} && mount --make-rshared {path} && mkdir {path}/late"));
        let bundle = bundle.with_mount(bind(&source, &["rbind", option]));
        runtime.start_waiting(&bundle);
        runtime.world().sh(&format!("mount -t tmpfs none {path}/late && echo there > {path}/late/file"));
        let answer = runtime.exec(&bundle, &[], &["/prober", "try", "read /mnt/late/file", "create /mnt/mine x"]);
        let attempts = portreeve_e2e::Attempts::parse(&answer.ok());
        assert_eq!(attempts.errno("read /mnt/late/file"), expected, "{option}");
        assert_eq!(attempts.errno("create /mnt/mine x"), "ok");
        runtime.call(&["delete", "--force", bundle.id()]).ok();
        runtime.world().sh(&format!("umount {path}/late {path}"));
    }
}

#[test]
fn each_propagation_of_the_root() {
    let Some(runtime) = Runtime::for_test("each_propagation_of_the_root") else { return };
    for (propagation, shown, hidden) in [
        ("private", &[][..], &["shared", "master", "unbindable"][..]),
        ("rprivate", &[], &["shared", "master", "unbindable"]),
        ("shared", &["shared"], &[]),
        ("rshared", &["shared"], &[]),
        ("slave", &[], &["shared", "unbindable"]),
        ("rslave", &[], &["shared", "unbindable"]),
        ("unbindable", &["unbindable"], &["shared"]),
    ] {
        let bundle = runtime.bundle(&["report"]).with(json!({ "linux": { "rootfsPropagation": propagation } }));
        let before = runtime.world().mounts();
        let report = runtime.report(&bundle);
        check(propagation, &report.mount("/").expect("a root").propagation(), shown, hidden);
        assert_eq!(runtime.world().mounts(), before, "{propagation}: nothing comes out");
    }
    let wrong = runtime.bundle(&["report"]).with(json!({ "linux": { "rootfsPropagation": "sideways" } }));
    assert_ne!(runtime.run(&wrong, &[]).code, 0);
}

#[test]
fn what_is_mounted_inside_stays_inside() {
    let Some(runtime) = Runtime::for_test("what_is_mounted_inside_stays_inside") else { return };
    let operations = ["mount none /mnt/sub tmpfs 0", "mount none /mnt tmpfs 0", "mount none /tmp tmpfs 0"];
    for options in [&["rbind"][..], &["rbind", "private"], &["rbind", "slave"], &["rbind", "unbindable"]] {
        let bundle = runtime.bundle(&[&["try"], &operations[..]].concat());
        let tree = tree(&runtime, &bundle, "rw");
        runtime.world().sh(&format!("mount --make-rshared {}", tree.display()));
        let before = runtime.world().mounts();
        let capabilities = json!(["CAP_SYS_ADMIN"]);
        let given = json!({ "bounding": capabilities, "effective": capabilities, "permitted": capabilities });
        // The runtime's own mounts as well.
        let inner = json!({ "destination": "/mnt/sub/of-the-runtime", "type": "tmpfs", "source": "tmpfs" });
        let bundle = bundle.with(json!({ "process": { "capabilities": given } }));
        let bundle = bundle.with_mount(bind(&tree, options)).with_mount(inner);
        runtime.create(&bundle, &[]).ok();
        assert_eq!(runtime.world().mounts(), before, "{options:?}");
        runtime.call(&["delete", "--force", bundle.id()]).ok();
        let attempts = runtime.attempts(&bundle);
        assert_eq!(attempts.errno("mount none /mnt tmpfs 0"), "ok");
        assert_eq!(attempts.errno("mount none /mnt/sub tmpfs 0"), "ok");
        assert_eq!(runtime.world().mounts(), before, "{options:?}");
        fell(&runtime, &tree);
    }
}

#[test]
fn an_option_nobody_knows_is_refused() {
    let Some(runtime) = Runtime::for_test("an_option_nobody_knows_is_refused") else { return };
    for (kind, option) in [("tmpfs", "nonsense"), ("tmpfs", "size=many"), ("proc", "hidepid=nonsense"), ("never", "rw")]
    {
        let mount = json!({ "destination": "/mnt", "type": kind, "source": "x", "options": [option] });
        let answer = runtime.run(&runtime.bundle(&["report"]).with_mount(mount), &[]);
        assert_ne!(answer.code, 0, "{kind} with {option}");
        assert!(answer.stderr.contains("mnt"), "which mount it was: {}", answer.stderr);
    }
    let bundle = runtime.bundle(&["report"]);
    let source = bundle.folder("source");
    assert_ne!(runtime.run(&bundle.with_mount(bind(&source, &["bind", "nonsense"])), &[]).code, 0);
}

#[test]
fn a_missing_source_is_said_by_name() {
    let Some(runtime) = Runtime::for_test("a_missing_source_is_said_by_name") else { return };
    let answer = runtime.run(&runtime.bundle(&["report"]).with_mount(bind(Path::new("/no/where"), &["bind"])), &[]);
    assert_ne!(answer.code, 0);
    assert!(answer.stderr.contains("/no/where"), "{}", answer.stderr);
}

#[test]
fn a_file_is_bound_over_a_file_and_parents_are_made() {
    let Some(runtime) = Runtime::for_test("a_file_is_bound_over_a_file_and_parents_are_made") else { return };
    let bundle = runtime.bundle(&["try", "read /etc/passwd", "read /not/there/yet", "list /also/not"]);
    let folder = bundle.folder("source");
    std::fs::write(folder.join("file"), "bound").unwrap();
    let mount = |source: &Path, destination: &str| {
        let options = ["bind", "ro"];
        json!({ "destination": destination, "type": "bind", "source": source, "options": options })
    };
    let bundle = bundle
        .with_mount(mount(&folder.join("file"), "/etc/passwd"))
        .with_mount(mount(&folder.join("file"), "/not/there/yet"))
        .with_mount(mount(&folder, "/also/not"));
    let attempts = runtime.attempts(&bundle);
    assert_eq!(attempts.value("read /etc/passwd"), "bound");
    assert_eq!(attempts.value("read /not/there/yet"), "bound");
    assert_eq!(attempts.value("list /also/not"), &json!(["file"]));
}

#[test]
fn a_destination_is_followed_inside_the_root_only() {
    let Some(runtime) = Runtime::for_test("a_destination_is_followed_inside_the_root_only") else { return };
    let outside = runtime.world().path("outside");
    std::fs::create_dir(&outside).unwrap();
    let bundle = runtime.bundle(&["report"]);
    let root = bundle.root();
    std::fs::create_dir_all(root.join("real")).unwrap();
    symlink("/real", root.join("link")).unwrap();
    symlink("../../../../../../real", root.join("up")).unwrap();
    let mount = |destination: &str| json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs" });
    let mut bundle = bundle;
    for destination in ["/link", "/up/one", "mnt/../relative", "/../../../three"] {
        bundle = bundle.with_mount(mount(destination));
    }
    let report = runtime.report(&bundle);
    for point in ["/real", "/real/one", "/relative", "/three"] {
        assert!(report.mount(point).is_some(), "no mount at {point}");
    }
    // Where the link leads to is not there inside: refused, or made inside.
    for (name, target) in [("out", outside.clone()), ("new", outside.join("new"))] {
        let bundle = runtime.bundle(&["report"]);
        symlink(&target, bundle.root().join(name)).unwrap();
        for destination in [format!("/{name}"), format!("/{name}/below")] {
            let path = Path::new(&destination).strip_prefix(format!("/{name}")).unwrap().to_owned();
            let bundle = runtime.bundle(&["report"]).with_mount(mount(&destination));
            symlink(&target, bundle.root().join(name)).unwrap();
            let answer = runtime.run(&bundle, &[]);
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{destination} was made outside");
            if answer.code == 0 {
                let point = if path.as_os_str().is_empty() { target.clone() } else { target.join(path) };
                let report = portreeve_e2e::Report::parse(&answer.stdout);
                assert!(report.mount(point.to_str().unwrap()).is_some(), "{destination} is elsewhere");
            }
        }
    }
}

#[test]
fn a_relative_source_lies_beside_the_configuration() {
    let Some(runtime) = Runtime::for_test("a_relative_source_lies_beside_the_configuration") else { return };
    let bundle = runtime.bundle(&["try", "read /mnt/file"]);
    std::fs::write(bundle.folder("source").join("file"), "relative").unwrap();
    let attempts = runtime.attempts(&bundle.with_mount(bind(Path::new("source"), &["bind"])));
    assert_eq!(attempts.value("read /mnt/file"), "relative");
}

#[test]
fn mounts_are_made_in_the_order_given() {
    let Some(runtime) = Runtime::for_test("mounts_are_made_in_the_order_given") else { return };
    let mount = |destination: &str, size: &str| {
        let options = [format!("size={size}")];
        json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options })
    };
    let bundle = runtime.bundle(&["report"]);
    let bundle = bundle.with_mount(mount("/mnt", "64k")).with_mount(mount("/mnt/below", "128k"));
    let bundle = bundle.with_mount(mount("/tmp/hidden", "64k")).with_mount(mount("/tmp", "128k"));
    let report = runtime.report(&bundle);
    let points: Vec<_> = report.mounts().iter().map(|mount| mount["point"].as_str().unwrap().to_owned()).collect();
    let place = |point: &str| points.iter().position(|seen| seen == point);
    assert!(place("/mnt") < place("/mnt/below"), "{points:?}");
    assert!(place("/tmp/hidden") < place("/tmp"), "{points:?}");
    assert_eq!(report.mount("/mnt/below").expect("a mount")["parent"], report.mount("/mnt").expect("a mount")["id"]);
}

#[test]
fn a_read_only_tmpfs_holds_what_belongs_into_it() {
    let Some(runtime) = Runtime::for_test("a_read_only_tmpfs_holds_what_belongs_into_it") else { return };
    let dev = ["stat /dev/null", "stat /dev/pts", "write /dev/null", "create /dev/file"];
    let mnt = ["stat /mnt/below", "create /mnt/below/file", "create /mnt/file", "stat /mnt/work"];
    let bundle = runtime.bundle(&[&["try"][..], &dev, &mnt].concat());
    let mut mounts = bundle.config()["mounts"].clone();
    let own = mounts.as_array_mut().unwrap().iter_mut().find(|mount| mount["destination"] == "/dev").unwrap();
    own["options"].as_array_mut().unwrap().push(json!("ro"));
    let mount = |destination: &str, options: &[&str]| {
        let kind = "tmpfs";
        json!({ "destination": destination, "type": kind, "source": kind, "options": options })
    };
    let bundle = bundle.with(json!({ "mounts": mounts, "process": { "cwd": "/mnt/work" } }));
    let bundle = bundle.with_mount(mount("/mnt", &["ro"])).with_mount(mount("/mnt/below", &[]));
    let attempts = runtime.attempts(&bundle);
    for done in ["stat /dev/null", "stat /dev/pts", "write /dev/null", "stat /mnt/below", "stat /mnt/work"] {
        assert_eq!(attempts.errno(done), "ok", "{done}");
    }
    assert_eq!(attempts.errno("create /mnt/below/file"), "ok");
    for refused in ["create /dev/file", "create /mnt/file"] {
        assert_eq!(attempts.errno(refused), "EROFS", "{refused}");
    }
}

#[test]
fn a_new_file_system_takes_the_mode_of_what_it_covers() {
    let Some(runtime) = Runtime::for_test("a_new_file_system_takes_the_mode_of_what_it_covers") else { return };
    let bundle = runtime.bundle(&["try", "stat /tmp", "stat /var", "stat /home", "stat /fresh"]);
    std::fs::set_permissions(bundle.root().join("var"), PermissionsExt::from_mode(0o750)).unwrap();
    let mount = |destination: &str, options: &[&str]| {
        let kind = "tmpfs";
        json!({ "destination": destination, "type": kind, "source": kind, "options": options })
    };
    let bundle = bundle
        .with_mount(mount("/tmp", &[]))
        .with_mount(mount("/var", &[]))
        .with_mount(mount("/home", &["mode=700", "uid=1000", "gid=1001"]))
        .with_mount(mount("/fresh", &[]));
    let attempts = runtime.attempts(&bundle);
    assert_eq!(attempts.value("stat /tmp")["mode"], 0o1777);
    assert_eq!(attempts.value("stat /var")["mode"], 0o750);
    let home = attempts.value("stat /home");
    assert_eq!((&home["mode"], &home["uid"], &home["gid"]), (&json!(0o700), &json!(1000), &json!(1001)));
    assert_eq!(attempts.value("stat /fresh")["mode"], 0o1777, "what covers nothing is as the kernel makes it");
}

#[test]
fn tmpcopyup_starts_with_what_was_there() {
    let Some(runtime) = Runtime::for_test("tmpcopyup_starts_with_what_was_there") else { return };
    let bundle = runtime.bundle(&[
        "try",
        "read /data/deep/er/file",
        "stat /data/deep/er/file",
        "stat /data/deep",
        "readlink /data/link",
        "create /data/new text",
        "unlink /data/deep/er/file",
        "stat /data",
    ]);
    bundle.file("data/deep/er/file", "copied");
    let data = bundle.root().join("data");
    std::fs::set_permissions(data.join("deep/er/file"), PermissionsExt::from_mode(0o640)).unwrap();
    std::fs::set_permissions(data.join("deep"), PermissionsExt::from_mode(0o711)).unwrap();
    std::os::unix::fs::chown(data.join("deep/er/file"), Some(1000), Some(1001)).unwrap();
    symlink("/etc/passwd", data.join("link")).unwrap();
    let capabilities = json!(["CAP_DAC_OVERRIDE"]);
    let given = json!({ "bounding": capabilities, "effective": capabilities, "permitted": capabilities });
    let bundle = bundle.with(json!({ "process": { "capabilities": given } }));
    let options = ["tmpcopyup", "size=1m"];
    let mount = json!({ "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": options });
    let attempts = runtime.attempts(&bundle.with_mount(mount));
    assert_eq!(attempts.value("read /data/deep/er/file"), "copied");
    let file = attempts.value("stat /data/deep/er/file");
    assert_eq!((&file["mode"], &file["uid"], &file["gid"]), (&json!(0o640), &json!(1000), &json!(1001)));
    assert_eq!(attempts.value("stat /data/deep")["mode"], 0o711);
    assert_eq!(attempts.value("readlink /data/link"), "/etc/passwd");
    assert_eq!(attempts.errno("unlink /data/deep/er/file"), "ok");
    assert_eq!(std::fs::read_to_string(data.join("deep/er/file")).unwrap(), "copied", "the image keeps it");
    assert!(!data.join("new").exists());
}

#[test]
fn a_mapped_mount_shows_other_owners() {
    let Some(runtime) = Runtime::for_test("a_mapped_mount_shows_other_owners") else { return };
    // Of the host's ids as a container with users of its own sees them.
    for option in ["idmap", "ridmap"] {
        let bundle = runtime.bundle(&["try", "stat /mnt/file", "create /mnt/made x", "stat /mnt/sub/file"]);
        let bundle = bundle.with_users(100_000, 65536);
        let tree = tree(&runtime, &bundle, "rw,mode=755");
        let attempts = runtime.attempts(&bundle.with_mount(bind(&tree, &["rbind", option])));
        assert_eq!(attempts.value("stat /mnt/file")["uid"], 0, "{option}: the host's user 0 is the container's");
        let below = if option == "ridmap" { 0 } else { 65534 };
        assert_eq!(attempts.value("stat /mnt/sub/file")["uid"], below, "{option}");
        assert_eq!(attempts.errno("create /mnt/made x"), "ok");
        let owner = runtime.world().sh(&format!("stat -c %u:%g {}/made", tree.display()));
        assert_eq!(owner.trim(), "0:0", "{option}");
        fell(&runtime, &tree);
    }
    // With maps of the mount's own, and no user namespace.
    let bundle = runtime.bundle(&["try", "stat /mnt/file"]);
    let tree = tree(&runtime, &bundle, "rw");
    let maps = json!([{ "containerID": 0, "hostID": 5000, "size": 100 }]);
    let mut mount = bind(&tree, &["bind"]);
    mount["uidMappings"] = maps.clone();
    mount["gidMappings"] = maps;
    let attempts = runtime.attempts(&bundle.with_mount(mount));
    assert_eq!(attempts.value("stat /mnt/file")["uid"], 5000);
    assert_eq!(attempts.value("stat /mnt/file")["gid"], 5000);
    fell(&runtime, &tree);
}

#[test]
fn flags_of_a_mount_cannot_be_taken_back_by_users_of_their_own() {
    let Some(runtime) = Runtime::for_test("flags_of_a_mount_cannot_be_taken_back_by_users_of_their_own") else {
        return;
    };
    let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    let given = json!({ "process": { "capabilities": { "bounding": all, "effective": all, "permitted": all } } });
    // Taken back where it is, in a copy of it elsewhere, and below it.
    let elsewhere = "mount /mnt /tmp none 20480";
    let tries = [
        "writable /mnt",
        "create /mnt/made x",
        "writable /mnt/sub",
        "create /mnt/sub/made x",
        elsewhere,
        "writable /tmp",
        "create /tmp/made x",
        "writable /single",
        "write /single x",
        "umount /mnt/sub",
    ];
    let mounted = |name: &str| {
        let bundle = runtime.bundle(&[&["try"], &tries[..]].concat()).with(given.clone());
        bundle.file("/tmp/below", "");
        let tree = tree(&runtime, &bundle, "rw,mode=777");
        let single = bundle.folder("alone").join("single");
        std::fs::write(&single, name).unwrap();
        std::fs::set_permissions(&single, PermissionsExt::from_mode(0o666)).unwrap();
        let file =
            json!({ "destination": "/single", "type": "bind", "source": single, "options": ["bind", "ro", "nosuid"] });
        (bundle.with_mount(bind(&tree, &["rbind", "rro", "nosuid", "nodev"])).with_mount(file), tree)
    };
    // What it would come to without users of its own, as with other runtimes: these tries are worth something.
    let (bundle, open) = mounted("open");
    let attempts = runtime.attempts(&bundle);
    for what in ["writable /mnt", "create /mnt/made x", "writable /tmp", "writable /single", "umount /mnt/sub"] {
        assert_eq!(attempts.errno(what), "ok", "{what}");
    }
    fell(&runtime, &open);

    let (bundle, locked) = mounted("locked");
    let bundle = bundle.with_users(100_000, 65536);
    let attempts = runtime.attempts(&bundle);
    assert_eq!(attempts.errno(elsewhere), "ok", "a copy is no harm");
    for what in ["writable /mnt", "writable /mnt/sub", "writable /tmp", "writable /single"] {
        assert_eq!(attempts.errno(what), "EPERM", "{what}");
    }
    for what in ["create /mnt/made x", "create /mnt/sub/made x", "create /tmp/made x", "write /single x"] {
        assert_eq!(attempts.errno(what), "EROFS", "{what}");
    }
    assert_eq!(attempts.errno("umount /mnt/sub"), "EINVAL", "what it covers stays covered");
    fell(&runtime, &locked);
}

#[test]
fn the_cgroup_file_system_shows_the_containers_own() {
    let Some(runtime) = Runtime::for_test("the_cgroup_file_system_shows_the_containers_own") else { return };
    let (procs, made) = if cgroup_version() == 2 {
        ("/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/made")
    } else {
        ("/sys/fs/cgroup/pids/cgroup.procs", "/sys/fs/cgroup/pids/made")
    };
    for (options, expected) in [
        (&["ro", "nosuid", "nodev", "noexec"][..], "EROFS"),
        (&["rro"], "EROFS"),
        (&["rw", "rro"], "EROFS"),
        (&["rw"], "ok"),
    ] {
        let mkdir = format!("mkdir {made}");
        let read = format!("read {procs}");
        let mount =
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options });
        let bundle = runtime.bundle(&["try", &read, &mkdir]).with_mount(mount);
        let attempts = runtime.attempts(&bundle);
        assert_eq!(attempts.value(&read), "1\n", "its own process, and nobody else");
        assert_eq!(attempts.errno(&mkdir), expected, "{options:?}");
    }
}

#[test]
fn a_read_only_root_cannot_be_written() {
    let Some(runtime) = Runtime::for_test("a_read_only_root_cannot_be_written") else { return };
    let operations = ["create /made x", "create /etc/passwd x", "create /dev/shm/made x", "mkdir /var/x"];
    let bundle = runtime.bundle(&[&["try"], &operations[..]].concat()).with(json!({ "root": { "readonly": true } }));
    let attempts = runtime.attempts(&bundle);
    for operation in ["create /made x", "create /etc/passwd x", "mkdir /var/x"] {
        assert_eq!(attempts.errno(operation), "EROFS", "{operation}");
    }
    assert_eq!(attempts.errno("create /dev/shm/made x"), "ok", "a mount of its own stays writable");
    let report = runtime.report(&runtime.bundle(&["report"]).with(json!({ "root": { "readonly": true } })));
    assert!(report.mount("/").expect("a root").options().contains("ro"));
}

#[test]
fn masked_paths_are_empty_and_read_only_paths_stay() {
    let Some(runtime) = Runtime::for_test("masked_paths_are_empty_and_read_only_paths_stay") else { return };
    let operations = [
        "list /secrets",
        "read /etc/secret",
        "create /secrets/x y",
        "write /etc/secret y",
        "list /fixed",
        "create /fixed/x y",
        "write /etc/fixed y",
        "read /etc/fixed",
        "writable /fixed",
        "umount /secrets",
    ];
    let bundle = runtime.bundle(&[&["try"], &operations[..]].concat());
    for (path, content) in
        [("secrets/key", "s"), ("etc/secret", "s"), ("fixed/file", "f"), ("etc/fixed", "f"), ("linked/file", "l")]
    {
        bundle.file(path, content);
    }
    let bundle = bundle.with(json!({ "linux": {
        "maskedPaths": ["/secrets", "/etc/secret", "/not/there"],
        "readonlyPaths": ["/fixed", "/etc/fixed", "/not/there"],
    } }));
    let attempts = runtime.attempts(&bundle);
    assert_eq!(attempts.value("list /secrets"), &json!([]));
    assert_eq!(attempts.value("read /etc/secret"), "");
    assert_eq!(attempts.errno("create /secrets/x y"), "EROFS");
    assert_eq!(attempts.value("list /fixed"), &json!(["file"]));
    assert_eq!(attempts.value("read /etc/fixed"), "f");
    for operation in ["create /fixed/x y", "write /etc/fixed y"] {
        assert_eq!(attempts.errno(operation), "EROFS", "{operation}");
    }
    for operation in ["writable /fixed", "umount /secrets"] {
        assert_eq!(attempts.errno(operation), "EPERM", "{operation}");
    }
    assert_eq!(std::fs::read_to_string(bundle.root().join("etc/secret")).unwrap(), "s", "the image keeps it");
}

#[test]
fn a_mount_may_lie_in_the_image_where_nothing_of_the_host_is_touched() {
    let test = "a_mount_may_lie_in_the_image_where_nothing_of_the_host_is_touched";
    let Some(runtime) = Runtime::for_test(test) else { return };
    // An image whose /proc, /sys or /dev is a link cannot have them anywhere else.
    for name in ["proc", "dev"] {
        let bundle = runtime.bundle(&["report"]);
        let outside = runtime.world().path(&format!("outside-{name}"));
        std::fs::create_dir(&outside).unwrap();
        std::fs::remove_dir(bundle.root().join(name)).unwrap();
        symlink(&outside, bundle.root().join(name)).unwrap();
        let answer = runtime.run(&bundle, &[]);
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "/{name}: {}", answer.stderr);
        if name == "proc" {
            assert_ne!(answer.code, 0, "a procfs elsewhere would be no procfs: {}", answer.stdout);
        }
    }
}

#[test]
fn a_root_that_is_a_link_or_a_file_is_refused() {
    let Some(runtime) = Runtime::for_test("a_root_that_is_a_link_or_a_file_is_refused") else { return };
    let bundle = runtime.bundle(&["report"]);
    symlink("/", bundle.path().join("link")).unwrap();
    std::fs::write(bundle.path().join("file"), "").unwrap();
    let bundle = bundle.with(json!({ "root": { "path": "link" } }));
    assert_ne!(runtime.run(&bundle, &[]).code, 0);
    let bundle = bundle.with(json!({ "root": { "path": "file" } }));
    assert_ne!(runtime.run(&bundle, &[]).code, 0);
    let absolute = bundle.root();
    let bundle = bundle.with(json!({ "root": { "path": absolute } }));
    assert_eq!(runtime.report(&bundle)["pid"], 1);
}

#[test]
fn a_mount_label_needs_its_security_module() {
    let test = "a_mount_label_needs_its_security_module";
    let Some(runtime) = Runtime::for_test(test) else { return };
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return skipped(test, "SELinux is on");
    }
    let label = "system_u:object_r:container_file_t:s0:c1,c2";
    let answer = runtime.run(&runtime.bundle(&["report"]).with(json!({ "linux": { "mountLabel": label } })), &[]);
    assert_ne!(answer.code, 0, "{}", answer.stdout);
    assert!(answer.stderr.to_lowercase().contains("selinux"), "{}", answer.stderr);
}

#[test]
fn no_pivot_gives_the_same_tree() {
    let Some(runtime) = Runtime::for_test("no_pivot_gives_the_same_tree") else { return };
    let bundle = runtime.bundle(&["report"]);
    let with = portreeve_e2e::Report::parse(&runtime.run(&bundle, &["--no-pivot"]).ok());
    let without = runtime.report(&bundle);
    let points = |report: &portreeve_e2e::Report| -> BTreeSet<String> {
        report.mounts().iter().filter_map(|mount| mount["point"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!(points(&with), points(&without));
    assert_eq!(set(&["/"]).difference(&points(&with)).count(), 0);
}

#[test]
fn nothing_is_mounted_for_the_caller_and_no_mode_of_the_image_changes() {
    let test = "nothing_is_mounted_for_the_caller_and_no_mode_of_the_image_changes";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let before = runtime.world().mounts();
    let bundle = runtime.bundle(&["wait"]);
    let owners = |bundle: &Bundle| -> Vec<(u32, u32, u32)> {
        ["", "dev", "proc", "sys", "tmp", "etc"]
            .map(|name| std::fs::metadata(bundle.root().join(name)).unwrap())
            .map(|file| (file.mode(), file.uid(), file.gid()))
            .to_vec()
    };
    let modes = owners(&bundle);
    runtime.start_waiting(&bundle);
    assert_eq!(runtime.world().mounts(), before);
    runtime.call(&["delete", "--force", bundle.id()]).ok();
    assert_eq!(owners(&bundle), modes);
}

#[test]
fn a_remount_changes_what_is_mounted() {
    let Some(runtime) = Runtime::for_test("a_remount_changes_what_is_mounted") else { return };
    let bundle = runtime.bundle(&["report"]);
    let source = bundle.folder("source");
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let bundle = bundle
        .with_mount(mount("/mnt", "tmpfs", "tmpfs", &["nosuid", "size=8m", "mode=700"]))
        .with_mount(mount("/data", "bind", source.to_str().unwrap(), &["bind", "nodev"]))
        .with_mount(mount("/mnt", "tmpfs", "tmpfs", &["remount", "size=1m"]))
        .with_mount(mount("/mnt", "none", "", &["remount", "bind", "ro"]))
        .with_mount(mount("/data", "none", "", &["remount", "bind", "noexec"]));
    let report = runtime.report(&bundle);
    let at = |point: &str| report.mounts().iter().filter(|mount| mount["point"] == point).count();
    assert_eq!((at("/mnt"), at("/data")), (1, 1), "nothing is mounted a second time");
    let mnt = report.mount("/mnt").expect("a mount");
    assert!(mnt.options().is_superset(&["ro", "nosuid"].map(str::to_owned).into()), "{mnt:?}");
    assert!(mnt.file_system_options().is_superset(&["size=1024k", "mode=700"].map(str::to_owned).into()), "{mnt:?}");
    let data = report.mount("/data").expect("a mount");
    assert!(data.options().contains("nodev") && data.options().contains("noexec"), "{data:?}");
    let stray = runtime.bundle(&["report"]).with_mount(mount("/mnt", "none", "", &["remount", "bind", "ro"]));
    let refused = runtime.run(&stray, &[]);
    assert!(refused.code != 0 && refused.stderr.contains("none is there"), "{}", refused.stderr);
}
