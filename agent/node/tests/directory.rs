//! The directory source on real files: what counts, and from when.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare};
use nix::unistd::Pid;
use portreeve_node::source::{DirectorySource, FileContent, Hints, Scanner, SourceSet};
use rustix::process::setpriority_process;

const LATER: Duration = Duration::from_millis(250);

fn rescan() -> Hints {
    Hints { rescan: true, ..Hints::default() }
}

fn closed(path: &Path) -> Hints {
    Hints { closed: [path.to_owned()].into(), ..Hints::default() }
}

fn touched(path: &Path) -> Hints {
    Hints { touched: [path.to_owned()].into(), ..Hints::default() }
}

/// Names of the files of a set that are not vanishing.
fn names(set: &SourceSet) -> Vec<String> {
    let files = set.files.iter().filter(|(_, file)| !file.vanishing);
    files.map(|(path, _)| path.strip_prefix(&set.path).unwrap().display().to_string()).collect()
}

fn objects(set: &SourceSet, name: &str) -> usize {
    match &set.files[&set.path.join(name)].content {
        FileContent::Parsed(parsed) => parsed.documents.len(),
        FileContent::Unreadable(message) => panic!("{message}"),
    }
}

fn map(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n")
}

#[test]
fn a_file_counts_when_it_was_closed_or_has_settled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    let mut scanner = Scanner::new(dir.path(), None);
    let start = Instant::now();
    scanner.scan(&rescan(), start);
    fs::write(&path, map("a")).unwrap();
    scanner.scan(&touched(&path), start);
    assert!(names(&scanner.set()).is_empty(), "half written, for all we know");
    assert!(scanner.deadline().unwrap() > start);
    scanner.scan(&Hints::default(), start + LATER);
    assert_eq!(names(&scanner.set()), ["a.yaml"]);

    fs::write(&path, map("a") + "---\n" + &map("b")).unwrap();
    scanner.scan(&touched(&path), start + LATER);
    assert_eq!(objects(&scanner.set(), "a.yaml"), 1, "the former content until it is closed");
    scanner.scan(&closed(&path), start + LATER);
    assert_eq!(objects(&scanner.set(), "a.yaml"), 2);
}

#[test]
fn each_change_of_an_open_file_makes_it_wait_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    let mut scanner = Scanner::new(dir.path(), None);
    let start = Instant::now();
    scanner.scan(&rescan(), start);
    let mut file = File::create(&path).unwrap();
    for step in 0..4 {
        file.write_all(b"# more\n").unwrap();
        scanner.scan(&touched(&path), start + Duration::from_millis(150) * step);
        assert!(names(&scanner.set()).is_empty());
    }
}

#[test]
fn a_file_that_is_removed_and_written_again_is_not_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, map("a")).unwrap();
    let mut scanner = Scanner::new(dir.path(), None);
    let start = Instant::now();
    scanner.scan(&Hints { rescan: true, ..closed(&path) }, start);
    fs::remove_file(&path).unwrap();
    scanner.scan(&touched(&path), start);
    assert!(scanner.set().files[&path].vanishing);
    fs::write(&path, map("a")).unwrap();
    scanner.scan(&closed(&path), start + Duration::from_millis(20));
    assert!(!scanner.set().files[&path].vanishing);
    fs::remove_file(&path).unwrap();
    scanner.scan(&touched(&path), start + Duration::from_millis(30));
    scanner.scan(&Hints::default(), start + LATER);
    assert!(scanner.set().files.is_empty());
    assert!(scanner.set().unreadable.is_none(), "all removed from the same directory is a removal");
}

#[test]
fn folders_are_read_and_what_is_hidden_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("sub/deep")).unwrap();
    fs::create_dir_all(at(".git")).unwrap();
    for name in ["a.yaml", "sub/b.yml", "sub/deep/c.json", ".git/d.yaml", "e.yaml~", ".f.yaml", "g.txt"] {
        fs::write(at(name), map("x")).unwrap();
    }
    symlink(dir.path(), at("sub/loop")).unwrap();
    let mut scanner = Scanner::new(dir.path(), None);
    let start = Instant::now();
    scanner.scan(&rescan(), start);
    scanner.scan(&rescan(), start + LATER);
    assert_eq!(names(&scanner.set()), ["a.yaml", "sub/b.yml", "sub/deep/c.json"]);
    // A report from inside a hidden folder brings nothing in.
    scanner.scan(&closed(&at(".git/d.yaml")), start + LATER);
    assert_eq!(names(&scanner.set()).len(), 3);
}

#[test]
fn links_to_folders_are_followed_inside_the_directory_only() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for folder in ["real/.trees/one", "real/.trees/two", "real/plain", "outside/deep"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    for file in ["real/.trees/one/a.yaml", "real/.trees/two/b.yaml", "real/plain/c.yaml", "outside/d.yaml"] {
        fs::write(at(file), map("x")).unwrap();
    }
    fs::write(at("outside/deep/e.yaml"), map("x")).unwrap();
    // The directory itself may be a link.
    symlink("real", at("m")).unwrap();
    for (target, link) in [
        (PathBuf::from(".trees/one"), "current"),
        (at("real/.trees/two"), "absolute"),
        ("plain".into(), "another-name-of-plain"),
        ("../outside".into(), "out"),
        (at("outside/deep"), "plain/out"),
        ("/proc/self".into(), "process"),
        ("../outside/d.yaml".into(), "d.yaml"),
        ("/proc/self/status".into(), "kernel.yaml"),
        ("nowhere".into(), "dangling"),
        ("round".into(), "round"),
    ] {
        symlink(target, at("real").join(link)).unwrap();
    }
    let mut scanner = Scanner::new(&at("m"), None);
    let start = Instant::now();
    scanner.scan(&rescan(), start);
    scanner.scan(&rescan(), start + LATER);
    let set = scanner.set();
    assert_eq!(names(&set), ["absolute/b.yaml", "current/a.yaml", "d.yaml", "kernel.yaml", "plain/c.yaml"]);
    let refused: Vec<_> = set.unreadable_folders.keys().map(|path| path.strip_prefix(at("m")).unwrap()).collect();
    assert_eq!(refused, ["dangling", "out", "plain/out", "process", "round"].map(Path::new));
    assert!(set.unreadable_folders[&at("m/out")].contains(at("outside").to_str().unwrap()));
    let kernel = &set.files[&at("m/kernel.yaml")].content;
    assert!(matches!(kernel, FileContent::Unreadable(message) if message.contains("procfs")), "{kernel:?}");

    // What ran from behind a link that leads elsewhere now runs on, until the link is gone.
    fs::remove_file(at("real/current")).unwrap();
    symlink("../outside", at("real/current")).unwrap();
    scanner.scan(&rescan(), start + 2 * LATER);
    scanner.scan(&rescan(), start + 3 * LATER);
    let set = scanner.set();
    assert!(names(&set).contains(&"current/a.yaml".to_owned()), "{:?}", names(&set));
    assert!(set.is_silent_about(&at("m/current/a.yaml")) && !set.files.contains_key(&at("m/current/d.yaml")));
    fs::remove_file(at("real/current")).unwrap();
    scanner.scan(&rescan(), start + 4 * LATER);
    scanner.scan(&rescan(), start + 5 * LATER);
    assert!(!scanner.set().files.contains_key(&at("m/current/a.yaml")));
}

#[test]
fn a_link_whose_target_is_away_and_what_is_no_file_keep_what_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("m/.trees/one")).unwrap();
    fs::write(at("target"), map("a")).unwrap();
    fs::write(at("m/.trees/one/b.yaml"), map("b")).unwrap();
    fs::write(at("m/c.yaml"), map("c")).unwrap();
    symlink("../target", at("m/a.yaml")).unwrap();
    symlink(".trees/one", at("m/current")).unwrap();
    let start = Instant::now();
    let look = |scanner: &mut Scanner, times: std::ops::Range<u32>| {
        times.for_each(|time| scanner.scan(&rescan(), start + time * LATER));
    };
    let unreadable = |set: &SourceSet, name: &str| {
        set.files.get(&at("m").join(name)).is_some_and(|file| matches!(file.content, FileContent::Unreadable(_)))
    };
    let mut scanner = Scanner::new(&at("m"), None);
    look(&mut scanner, 0..2);
    assert_eq!(names(&scanner.set()), ["a.yaml", "c.yaml", "current/b.yaml"]);

    fs::rename(at("target"), at("away")).unwrap();
    fs::rename(at("m/.trees/one"), at("m/.trees/two")).unwrap();
    fs::remove_file(at("m/c.yaml")).unwrap();
    symlink("c.yaml", at("m/c.yaml")).unwrap();
    let mut restarted = Scanner::new(&at("m"), scanner.ground());
    for scanner in [&mut scanner, &mut restarted] {
        look(scanner, 2..6);
        let set = scanner.set();
        assert!(unreadable(&set, "a.yaml") && unreadable(&set, "c.yaml"), "{set:#?}");
        assert!(set.is_silent_about(&at("m/current/b.yaml")), "{set:#?}");
    }

    fs::rename(at("away"), at("target")).unwrap();
    fs::rename(at("m/.trees/two"), at("m/.trees/one")).unwrap();
    fs::remove_file(at("m/c.yaml")).unwrap();
    look(&mut scanner, 6..10);
    let set = scanner.set();
    assert_eq!(names(&set), ["a.yaml", "current/b.yaml"], "{set:#?}");
    assert!(!unreadable(&set, "a.yaml") && !set.is_silent_about(&at("m/current/b.yaml")), "{set:#?}");
}

#[test]
fn a_file_in_the_place_of_a_folder_ends_what_was_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("team");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.yaml"), map("a")).unwrap();
    fs::write(dir.path().join("b.yaml"), map("b")).unwrap();
    let mut scanner = Scanner::new(dir.path(), None);
    let start = Instant::now();
    for time in 0..2 {
        scanner.scan(&rescan(), start + time * LATER);
    }
    assert_eq!(names(&scanner.set()), ["b.yaml", "team/a.yaml"]);
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "").unwrap();
    for time in 2..6 {
        scanner.scan(&rescan(), start + time * LATER);
    }
    assert_eq!(names(&scanner.set()), ["b.yaml"]);
}

#[test]
fn the_kernels_own_files_are_no_manifests() {
    let mut scanner = Scanner::new(Path::new("/proc/self"), None);
    scanner.scan(&rescan(), Instant::now());
    assert!(scanner.unreadable().unwrap().contains("procfs"), "{:?}", scanner.unreadable());
}

#[test]
fn a_directory_that_cannot_be_read_has_nothing_due_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let manifests = dir.path().join("m");
    fs::create_dir(&manifests).unwrap();
    let mut scanner = Scanner::new(&manifests, None);
    let start = Instant::now();
    scanner.scan(&rescan(), start);
    fs::write(manifests.join("a.yaml"), map("a")).unwrap();
    scanner.scan(&touched(&manifests.join("a.yaml")), start);
    assert!(scanner.deadline().is_some(), "it is not settled yet");
    fs::rename(&manifests, dir.path().join("away")).unwrap();
    scanner.scan(&rescan(), start + LATER);
    assert!(scanner.unreadable().is_some());
    assert_eq!(scanner.deadline(), None, "looking again at once would never end");
}

#[test]
fn a_missing_or_exchanged_empty_directory_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let manifests = dir.path().join("m");
    fs::create_dir(&manifests).unwrap();
    fs::write(manifests.join("a.yaml"), map("a")).unwrap();
    let mut scanner = Scanner::new(&manifests, None);
    let start = Instant::now();
    scanner.scan(&rescan(), start);
    scanner.scan(&rescan(), start + LATER);
    assert_eq!(names(&scanner.set()), ["a.yaml"]);
    let ground = scanner.ground();

    fs::rename(&manifests, dir.path().join("away")).unwrap();
    scanner.scan(&rescan(), start + LATER);
    assert!(scanner.set().unreadable.is_some());
    assert_eq!(names(&scanner.set()), ["a.yaml"]);

    // As after an unmount: another directory, and empty.
    fs::create_dir(&manifests).unwrap();
    scanner.scan(&rescan(), start + 2 * LATER);
    assert!(scanner.set().unreadable.is_some());
    assert_eq!(names(&scanner.set()), ["a.yaml"]);
    // Also for an agent that only remembers the identity.
    let mut restarted = Scanner::new(&manifests, ground);
    restarted.scan(&rescan(), start);
    assert!(restarted.set().unreadable.is_some() && !restarted.set().complete);

    fs::write(manifests.join("b.yaml"), map("b")).unwrap();
    for scanner in [&mut scanner, &mut restarted] {
        for times in [3, 5, 7] {
            scanner.scan(&rescan(), start + times * LATER);
        }
        assert_eq!(names(&scanner.set()), ["b.yaml"]);
    }
}

#[test]
fn what_comes_in_place_of_another_directory_is_read_when_its_list_is_quiet() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let fill = |folder: &str, files: &[&str]| {
        fs::create_dir_all(at(folder)).unwrap();
        files.iter().for_each(|name| fs::write(at(folder).join(name), map(name)).unwrap());
    };
    fill("m", &["a.yaml", "b.yaml"]);
    let mut scanner = Scanner::new(&at("m"), None);
    let mut now = Instant::now();
    let mut scan = |scanner: &mut Scanner, after: Duration| {
        now += after;
        scanner.scan(&rescan(), now);
        names(&scanner.set())
    };
    scan(&mut scanner, Duration::ZERO);
    assert_eq!(scan(&mut scanner, LATER), ["a.yaml", "b.yaml"]);
    let ground = scanner.ground();

    fs::rename(at("m"), at("away")).unwrap();
    // Filled step by step, as a mount may be: for the agent that runs and for one that starts in between.
    let mut restarted = Scanner::new(&at("m"), ground);
    for files in [&["a.yaml"][..], &["b.yaml"], &["c.yaml"]] {
        fill("m", files);
        assert_eq!(scan(&mut scanner, LATER), ["a.yaml", "b.yaml"], "what was read counts until it is quiet");
        assert!(scanner.deadline().is_some());
        assert!(scan(&mut restarted, Duration::ZERO).is_empty() && !restarted.set().complete);
    }
    for scanner in [&mut scanner, &mut restarted] {
        scan(scanner, LATER);
        assert_eq!(scan(scanner, LATER), ["a.yaml", "b.yaml", "c.yaml"]);
        assert!(scanner.set().complete && scanner.deadline().is_none());
    }
}

#[test]
fn a_file_that_was_due_is_not_gone_with_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (manifests, path) = (dir.path().join("m"), dir.path().join("m/a.yaml"));
    fs::create_dir(&manifests).unwrap();
    fs::write(&path, map("a")).unwrap();
    fs::write(manifests.join("b.yaml"), map("b")).unwrap();
    let mut scanner = Scanner::new(&manifests, None);
    let start = Instant::now();
    scanner.scan(&rescan(), start);
    scanner.scan(&rescan(), start + LATER);
    fs::write(&path, map("a") + "# more\n").unwrap();
    scanner.scan(&touched(&path), start + LATER);
    fs::rename(&manifests, dir.path().join("away")).unwrap();
    for times in 2..5 {
        scanner.scan(&Hints::default(), start + LATER * times);
        assert_eq!(names(&scanner.set()), ["a.yaml", "b.yaml"]);
    }
    assert!(scanner.unreadable().is_some());
}

/// Runs `test` on a thread with mounts of its own, which go with it.
fn with_own_mounts(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let tested = scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
                let _ = writeln!(std::io::stderr(), "SKIPPED: no mounts of our own ({error}); run as root");
                return;
            }
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            test();
        });
        tested.join().unwrap();
    });
}

#[test]
fn a_folder_that_is_no_longer_mounted_is_not_read_as_empty() {
    with_own_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let none = None::<&str>;
        for folder in ["m/tmpfs", "m/bound", "source/deep"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at("source/b.yaml"), map("b")).unwrap();
        fs::write(at("m/z.yaml"), map("z")).unwrap();
        let bind = || mount(Some(&at("source")), &at("m/bound"), none, MsFlags::MS_BIND, none).unwrap();
        bind();
        mount(Some("m"), &at("m/tmpfs"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        fs::write(at("m/tmpfs/a.yaml"), map("a")).unwrap();
        let all = ["bound/b.yaml", "tmpfs/a.yaml", "z.yaml"];
        let mut scanner = Scanner::new(&at("m"), None);
        let start = Instant::now();
        scanner.scan(&rescan(), start);
        scanner.scan(&rescan(), start + LATER);
        assert_eq!(names(&scanner.set()), all);
        let ground = scanner.ground();
        assert_eq!(ground.as_ref().unwrap().mounts.len(), 2);

        umount2(&at("m/tmpfs"), MntFlags::empty()).unwrap();
        umount2(&at("m/bound"), MntFlags::empty()).unwrap();
        let mut restarted = Scanner::new(&at("m"), ground);
        for times in 2..5 {
            // Also where only a file in it is looked at.
            let hints = if times == 2 { touched(&at("m/tmpfs/a.yaml")) } else { rescan() };
            scanner.scan(&hints, start + LATER * times);
            assert_eq!(names(&scanner.set()), all);
            restarted.scan(&rescan(), start + LATER * times);
        }
        for scanner in [&scanner, &restarted] {
            let set = scanner.set();
            assert!(set.complete && scanner.misses_something() && scanner.deadline().is_none());
            for name in ["tmpfs", "bound"] {
                assert!(set.unreadable_folders[&at("m").join(name)].contains("not mounted"));
                assert!(set.is_silent_about(&at("m").join(name).join("a.yaml")));
            }
            assert_eq!(set.mounts.len(), 2, "remembered for the next agent");
        }

        // Mounted again; and the folder of the other one is removed, which removes what it had.
        bind();
        fs::remove_dir(at("m/tmpfs")).unwrap();
        for scanner in [&mut scanner, &mut restarted] {
            for times in 5..9 {
                scanner.scan(&rescan(), start + LATER * times);
            }
            assert_eq!(names(&scanner.set()), ["bound/b.yaml", "z.yaml"]);
            assert!(scanner.set().files.len() == 2 && !scanner.misses_something());
            assert_eq!(scanner.ground().unwrap().mounts.len(), 1);
        }
        // What is removed from what is mounted was removed by somebody.
        fs::remove_file(at("source/b.yaml")).unwrap();
        scanner.scan(&rescan(), start + LATER * 9);
        scanner.scan(&rescan(), start + LATER * 10);
        assert_eq!(scanner.set().files.len(), 1);
        umount2(&at("m/bound"), MntFlags::empty()).unwrap();
    });
}

#[test]
fn a_list_is_complete_when_every_file_of_it_was_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), map("a")).unwrap();
    let mut scanner = Scanner::new(dir.path(), None);
    let start = Instant::now();
    scanner.scan(&rescan(), start);
    assert!(!scanner.set().complete, "what is just being written may own what runs");
    scanner.scan(&Hints::default(), start + LATER);
    assert!(scanner.set().complete);
}

fn wait_for(source: &DirectorySource, what: &str, good: impl Fn(&SourceSet) -> bool) -> Duration {
    let began = Instant::now();
    let sets = source.sets();
    while !good(&sets.borrow()) {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}: {:?}", sets.borrow());
        std::thread::sleep(Duration::from_millis(1));
    }
    began.elapsed()
}

fn source(dir: &Path) -> DirectorySource {
    let source = DirectorySource::start(dir, None, Duration::from_secs(60)).unwrap();
    wait_for(&source, "first list", |set| set.complete);
    source
}

#[test]
fn closed_and_renamed_files_count_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path());
    fs::write(dir.path().join("a.yaml"), map("a")).unwrap();
    wait_for(&source, "closed", |set| names(set) == ["a.yaml"]);
    fs::write(dir.path().join(".b.tmp"), map("b")).unwrap();
    fs::rename(dir.path().join(".b.tmp"), dir.path().join("b.yaml")).unwrap();
    wait_for(&source, "renamed", |set| names(set) == ["a.yaml", "b.yaml"]);
    fs::rename(dir.path().join("a.yaml"), dir.path().join("c.yaml")).unwrap();
    wait_for(&source, "moved", |set| names(set) == ["b.yaml", "c.yaml"] && set.files.len() == 2);
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/d.yaml"), map("d")).unwrap();
    wait_for(&source, "folder", |set| names(set) == ["b.yaml", "c.yaml", "sub/d.yaml"]);
    fs::remove_dir_all(dir.path().join("sub")).unwrap();
    wait_for(&source, "removed", |set| set.files.len() == 2);
}

#[test]
fn an_open_file_is_not_read_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path());
    let path = dir.path().join("a.yaml");
    let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
    for _ in 0..6 {
        file.write_all(b"# not yet\n").unwrap();
        std::thread::sleep(Duration::from_millis(60));
        assert!(source.sets().borrow().files.is_empty());
    }
    file.write_all(map("a").as_bytes()).unwrap();
    drop(file);
    wait_for(&source, "closed", |set| names(set) == ["a.yaml"] && objects(set, "a.yaml") == 1);
}

/// A new folder is reported before its own watch is there: what comes in between is reported by nobody.
#[test]
fn a_file_is_seen_however_soon_it_comes_into_a_new_folder() {
    // One CPU, which is taken from the thread that makes the watches as soon as it has reported a folder.
    let mut one = CpuSet::new();
    one.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path());
    for task in fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path()) {
        if fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("notify")) {
            let thread = task.file_name().unwrap().to_str().unwrap().parse().unwrap();
            setpriority_process(rustix::process::Pid::from_raw(thread), 19).unwrap();
        }
    }
    for round in 0..100_u64 {
        // So long that the folder is listed at once.
        std::thread::sleep(Duration::from_millis(20));
        let folder = dir.path().join(round.to_string());
        fs::create_dir(&folder).unwrap();
        std::thread::sleep(Duration::from_micros(3 * round));
        fs::write(folder.join("a.yaml"), map("a")).unwrap();
        let seen = |set: &SourceSet| set.files.contains_key(&folder.join("a.yaml"));
        wait_for(&source, &format!("round {round}"), seen);
        fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn a_swapped_data_link_brings_the_new_content() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (folder, text) in [("..1", map("a")), ("..2", map("a") + "---\n" + &map("b"))] {
        fs::create_dir(at(folder)).unwrap();
        fs::write(at(folder).join("a.yaml"), text).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let source = source(dir.path());
    wait_for(&source, "before", |set| names(set) == ["a.yaml"] && objects(set, "a.yaml") == 1);
    symlink("..2", at("..tmp")).unwrap();
    fs::rename(at("..tmp"), at("..data")).unwrap();
    wait_for(&source, "after", |set| names(set) == ["a.yaml"] && objects(set, "a.yaml") == 2);
}

#[test]
fn a_directory_that_is_a_link_is_watched() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("real/sub")).unwrap();
    fs::create_dir_all(at("real/.trees/one")).unwrap();
    symlink("real", at("m")).unwrap();
    symlink(".trees/one", at("real/current")).unwrap();
    let source = source(&at("m"));
    fs::write(at("real/a.yaml"), map("a")).unwrap();
    wait_for(&source, "written", |set| names(set) == ["a.yaml"]);
    fs::write(at("m/sub/b.yaml"), map("b")).unwrap();
    wait_for(&source, "in a folder", |set| names(set) == ["a.yaml", "sub/b.yaml"]);
    fs::write(at("real/.trees/one/c.yaml"), map("c")).unwrap();
    wait_for(&source, "behind a link", |set| names(set) == ["a.yaml", "current/c.yaml", "sub/b.yaml"]);
    fs::remove_file(at("real/a.yaml")).unwrap();
    wait_for(&source, "removed", |set| names(set) == ["current/c.yaml", "sub/b.yaml"] && set.files.len() == 2);
}

#[test]
fn a_directory_that_goes_and_comes_back_is_watched_again() {
    let dir = tempfile::tempdir().unwrap();
    let manifests: PathBuf = dir.path().join("m");
    let source = DirectorySource::start(&manifests, None, Duration::from_secs(60)).unwrap();
    wait_for(&source, "missing", |set| set.unreadable.is_some());
    fs::create_dir(&manifests).unwrap();
    fs::write(manifests.join("a.yaml"), map("a")).unwrap();
    wait_for(&source, "made", |set| set.unreadable.is_none() && names(set) == ["a.yaml"]);
    fs::write(manifests.join("b.yaml"), map("b")).unwrap();
    wait_for(&source, "watched", |set| names(set) == ["a.yaml", "b.yaml"]);
}

#[test]
fn a_watched_directory_rests_whether_it_is_empty_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path());
    let listed_again = || {
        std::thread::sleep(Duration::from_millis(300));
        let before = source.sets().borrow().read_at;
        std::thread::sleep(Duration::from_millis(500));
        let after = source.sets().borrow().read_at;
        assert!(before.is_some());
        before != after
    };
    wait_for(&source, "the empty directory was read", |set| set.complete);
    assert!(!listed_again(), "our own look at the empty directory was answered with another one");
    fs::write(dir.path().join("a.yaml"), map("a")).unwrap();
    wait_for(&source, "the file counts", |set| names(set) == ["a.yaml"]);
    assert!(!listed_again());
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    wait_for(&source, "the file is gone", |set| names(set).is_empty());
    assert!(!listed_again());
}
