//! Attacks by what changes while a container is made, or was something else in the image from the beginning; which of
//! the published ones they are is told by the table of `runtime_attacks.rs`.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use portreeve_e2e::{Attempts, Bundle, Runtime, patience};
use serde_json::json;

/// How often an attack is tried: what `PORTREEVE_ROUNDS` says, or as often as usual and not for longer than `seconds`.
struct Rounds {
    left: usize,
    until: Option<Instant>,
}

impl Rounds {
    fn new(usual: usize, seconds: u64) -> Self {
        match std::env::var("PORTREEVE_ROUNDS").ok().and_then(|text| text.parse().ok()) {
            Some(left) => Self { left, until: None },
            None => Self { left: usual, until: Some(Instant::now() + patience(seconds)) },
        }
    }

    fn next(&mut self) -> bool {
        let goes_on = self.left > 0 && self.until.is_none_or(|until| Instant::now() < until);
        self.left = self.left.saturating_sub(1);
        goes_on
    }
}

/// What is in a directory, by name.
fn entries(directory: &Path) -> BTreeSet<PathBuf> {
    std::fs::read_dir(directory).expect("a directory").flatten().map(|entry| entry.path()).collect()
}

#[test]
fn cve_2021_30465_a_destination_that_changes_meanwhile_leads_nowhere_else() {
    let test = "cve_2021_30465_a_destination_that_changes_meanwhile_leads_nowhere_else";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let volume = runtime.world().path("volume");
    let outside = runtime.world().path("outside");
    std::fs::create_dir_all(volume.join("directory")).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "of the host").unwrap();
    symlink(&outside, volume.join("link")).unwrap();
    let shared = || json!({ "destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"] });
    let attacker = runtime.bundle(&["exchange", "/volume/directory", "/volume/link"]).with_mount(shared());
    runtime.create(&attacker, &[]).ok();
    runtime.call(&["start", attacker.id()]).ok();
    let (before, mounts) = (entries(&outside), runtime.world().mounts());
    let mut rounds = Rounds::new(60, 6);
    let (mut ran, mut refused) = (0, 0);
    while rounds.next() {
        let mount = |destination: &str, source: &Path| {
            let options = ["bind"];
            json!({ "destination": destination, "type": "bind", "source": source, "options": options })
        };
        let victim = runtime.bundle(&["try", "list /", "read /volume/directory/deep/er/secret", "list /proc"]);
        let source = victim.folder("source");
        let victim = victim
            .with_mount(shared())
            .with_mount(json!({ "destination": "/volume/directory", "type": "tmpfs", "source": "tmpfs" }))
            .with_mount(mount("/volume/directory/deep/er", &source));
        let answer = runtime.run(&victim, &[]);
        if answer.code == 0 {
            ran += 1;
            assert!(!answer.stdout.contains("of the host"), "{}", answer.stdout);
        } else {
            // To be refused is as good: what was looked up was not there any more a moment later.
            assert!(answer.stderr.contains("volume/directory"), "{}", answer.stderr);
            refused += 1;
        }
        assert_eq!(entries(&outside), before, "after {ran} that ran and {refused} that did not");
        assert_eq!(runtime.world().mounts(), mounts);
        std::fs::remove_dir_all(victim.path()).unwrap();
    }
    assert!(ran > 0 && ran + refused > 3, "{ran} ran and {refused} did not: there were no races");
    assert_eq!(runtime.status(&attacker).as_deref(), Some("running"), "and it was attacked all the time");
}

#[test]
fn cve_2025_31133_and_52565_devices_that_change_meanwhile_mask_nothing_else() {
    let test = "cve_2025_31133_and_52565_devices_that_change_meanwhile_mask_nothing_else";
    let Some(runtime) = Runtime::for_test(test) else { return };
    // Links instead of the nodes that masks and consoles are made from, in an image without a /dev of its own.
    let with_link = |name: &str, arguments: &[&str], kept: &[&str]| {
        let bundle = runtime.bundle_of(arguments);
        bundle.file("masked", "a secret");
        bundle.file("elsewhere", "was replaced");
        symlink("/elsewhere", bundle.root().join("dev").join(name)).unwrap();
        let mut mounts = bundle.config()["mounts"].as_array().unwrap().clone();
        mounts.retain(|mount| {
            let destination = mount["destination"].as_str().unwrap();
            !destination.starts_with("/dev") || kept.contains(&destination)
        });
        bundle.with(json!({ "mounts": mounts, "linux": { "maskedPaths": ["/masked"] } }))
    };
    let unchanged = |bundle: &Bundle, name: &str| {
        assert_eq!(std::fs::read_to_string(bundle.root().join("elsewhere")).unwrap(), "was replaced", "/dev/{name}");
        assert_eq!(std::fs::read_to_string(bundle.root().join("masked")).unwrap(), "a secret", "/dev/{name}");
    };
    let mut ran = Vec::new();
    for name in ["null", "console", "ptmx", "zero", "pts"] {
        let bundle = with_link(name, &["/prober", "try", "read /masked", "write /masked x", "list /dev"], &[]);
        let answer = runtime.run(&bundle, &[]);
        if answer.code == 0 {
            let attempts = Attempts::parse(&answer.stdout);
            assert_eq!(attempts.value("read /masked"), "", "/dev/{name}");
            ran.push(name);
        } else {
            assert!(answer.stderr.contains(&format!("/dev/{name}")), "/dev/{name}: {}", answer.stderr);
        }
        unchanged(&bundle, name);
    }
    assert!(!ran.is_empty(), "no container ran, and nothing was seen from inside");
    // A terminal, which is put onto /dev/console and comes from /dev/ptmx.
    let mut ran = Vec::new();
    for name in ["console", "ptmx"] {
        let script = "cat /masked > /seen && test -t 0 && echo a terminal >> /seen";
        let bundle = with_link(name, &["sh", "-c", script], &["/dev/pts"]);
        let bundle = bundle.with(json!({ "process": { "terminal": true } }));
        bundle.save();
        let terminal = nix::pty::openpty(None, None).expect("a terminal");
        let line = ["run", "--bundle", bundle.path().to_str().unwrap(), bundle.id()];
        let code = runtime.begin_on(&terminal.slave, &line).finish().code;
        if code == 0 {
            assert_eq!(std::fs::read_to_string(bundle.root().join("seen")).unwrap(), "a terminal\n", "/dev/{name}");
            ran.push(name);
        }
        unchanged(&bundle, name);
    }
    assert!(!ran.is_empty(), "no container had a terminal");
}

#[test]
fn cve_2025_31133_a_masked_path_that_changes_meanwhile_masks_nothing_of_the_host() {
    let test = "cve_2025_31133_a_masked_path_that_changes_meanwhile_masks_nothing_of_the_host";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let volume = runtime.world().path("volume");
    let outside = runtime.world().path("outside");
    std::fs::create_dir_all(volume.join("masked")).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "of the host").unwrap();
    symlink(&outside, volume.join("link")).unwrap();
    let shared = || json!({ "destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"] });
    let attacker = runtime.bundle(&["exchange", "/volume/masked", "/volume/link"]).with_mount(shared());
    runtime.create(&attacker, &[]).ok();
    runtime.call(&["start", attacker.id()]).ok();
    let mounts = runtime.world().mounts();
    let mut rounds = Rounds::new(40, 4);
    let (mut ran, mut refused) = (0, 0);
    while rounds.next() {
        let bundle = runtime.bundle(&["try", "list /volume/masked"]).with_mount(shared());
        let path = bundle.path().to_owned();
        let paths = json!({ "maskedPaths": ["/volume/masked"], "readonlyPaths": ["/volume/masked"] });
        let answer = runtime.run(&bundle.with(json!({ "linux": paths })), &[]);
        if answer.code == 0 {
            ran += 1;
        } else {
            refused += 1;
        }
        assert!(!answer.stdout.contains("of the host"), "{}", answer.stdout);
        assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "of the host");
        assert_eq!(runtime.world().mounts(), mounts, "after {ran} that ran and {refused} that did not");
        std::fs::remove_dir_all(path).unwrap();
    }
    assert!(ran > 0 && ran + refused > 3, "{ran} ran and {refused} did not: there were no races");
    assert_eq!(runtime.status(&attacker).as_deref(), Some("running"), "and it was attacked all the time");
}

#[test]
fn cve_2025_52565_a_console_that_changes_meanwhile_covers_nothing_of_the_host() {
    let test = "cve_2025_52565_a_console_that_changes_meanwhile_covers_nothing_of_the_host";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let volume = runtime.world().path("volume");
    let outside = runtime.world().path("outside");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(&outside, "of the host").unwrap();
    std::fs::write(volume.join("console"), "of the volume").unwrap();
    symlink(&outside, volume.join("link")).unwrap();
    let shared = |destination: &str| json!({ "destination": destination, "type": "bind", "source": volume, "options": ["rbind"] });
    let attacker = runtime.bundle(&["exchange", "/volume/console", "/volume/link"]).with_mount(shared("/volume"));
    runtime.create(&attacker, &[]).ok();
    runtime.call(&["start", attacker.id()]).ok();
    let mounts = runtime.world().mounts();
    let mut rounds = Rounds::new(30, 4);
    let (mut ran, mut refused) = (0, 0);
    while rounds.next() {
        // The whole of /dev is the attacker's, too, and the terminal is put onto its console.
        let victim = runtime.bundle_of(&["sh", "-c", "test -t 0"]);
        let mut all = victim.config()["mounts"].as_array().unwrap().clone();
        all.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        all.push(shared("/dev"));
        let pts = ["newinstance", "ptmxmode=0666", "mode=0620"];
        all.push(json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts }));
        let victim = victim.with(json!({ "mounts": all, "process": { "terminal": true } }));
        victim.save();
        let path = victim.path().to_owned();
        let terminal = nix::pty::openpty(None, None).expect("a terminal");
        let line = ["run", "--bundle", path.to_str().unwrap(), victim.id()];
        match runtime.begin_on(&terminal.slave, &line).finish().code {
            0 => ran += 1,
            _ => refused += 1,
        }
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "of the host");
        assert_eq!(runtime.world().mounts(), mounts, "after {ran} that ran and {refused} that did not");
        std::fs::remove_dir_all(path).unwrap();
    }
    assert!(ran > 0 && ran + refused > 3, "{ran} ran and {refused} did not: there were no races");
    assert_eq!(runtime.status(&attacker).as_deref(), Some("running"), "and it was attacked all the time");
}
