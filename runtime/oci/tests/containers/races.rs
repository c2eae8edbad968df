//! Attacks that are races: while containers are made, another process exchanges a directory on the way to a mount point
//! with a link to the host, again and again. Whatever the moment, nothing of the host may be touched or shown.
//!
//! The other process is this program executed anew: here there may be one thread only.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde_json::json;

use crate::Test;
use crate::world::{World, chain, text};

pub(crate) const TESTS: &[Test] = &[
    (
        "cve_2021_30465_a_directory_of_a_volume_that_becomes_a_link_leads_nowhere",
        cve_2021_30465_a_directory_of_a_volume_that_becomes_a_link_leads_nowhere,
    ),
    (
        "a_directory_of_the_root_that_becomes_a_link_leads_nowhere",
        a_directory_of_the_root_that_becomes_a_link_leads_nowhere,
    ),
    (
        "what_takes_the_place_of_a_device_meanwhile_is_not_given_to_its_owner",
        what_takes_the_place_of_a_device_meanwhile_is_not_given_to_its_owner,
    ),
];

/// The word that makes this program the other process.
pub(crate) const EXCHANGE: &str = "exchange";
/// Containers for each kind of link.
const ROUNDS: u32 = 40;

/// Exchanges two names until it is killed.
pub(crate) fn exchange(names: impl Iterator<Item = OsString>) -> ! {
    let names: Vec<PathBuf> = names.map(PathBuf::from).collect();
    let [one, other] = names.as_slice() else { panic!("two names") };
    loop {
        match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
            // One of them is about to be made.
            Ok(()) | Err(Errno::NOENT) => {}
            // Where it is not possible the tests see that nothing changes.
            Err(_) => std::process::exit(1),
        }
    }
}

/// The other process; it ends with the test, however that ends.
struct Exchanger(Child);

impl Exchanger {
    fn of(one: &Path, other: &Path) -> Self {
        let mut command = Command::new("/proc/self/exe");
        Self(command.arg0("exchanger").arg(EXCHANGE).arg(one).arg(other).spawn().expect("spawn"))
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().expect("wait").is_none()
    }
}

impl Drop for Exchanger {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// The host's part: what an attacker wants to reach.
struct Host {
    directory: PathBuf,
    mounts: usize,
}

fn mounts() -> usize {
    std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").lines().count()
}

impl Host {
    fn new(world: &World) -> Self {
        let directory = world.path("host");
        std::fs::create_dir(&directory).expect("mkdir");
        std::fs::write(directory.join("secret"), "secret").expect("write");
        Self { directory, mounts: mounts() }
    }

    fn check(&self) {
        let names: Vec<_> = std::fs::read_dir(&self.directory).expect("read").map(|e| e.expect("entry")).collect();
        let names: Vec<_> = names.iter().map(std::fs::DirEntry::file_name).collect();
        assert_eq!(names, ["secret"], "something was made on the host");
        assert_eq!(std::fs::read_to_string(self.directory.join("secret")).expect("read"), "secret");
        assert_eq!(mounts(), self.mounts, "something was mounted on the host");
    }
}

/// Makes containers while `parent`/way is a directory now, a link to the host then. `destination` leads through it.
fn race(world: World, parent: &Path, destination: &str) {
    let host = Host::new(&world);
    let (way, link) = (parent.join("way"), parent.join("other"));
    let ours = world.path("ours");
    std::fs::create_dir(&ours).expect("mkdir");
    std::fs::write(ours.join("ours"), "").expect("write");
    let world = world.mount(json!({"destination": destination, "type": "bind", "source": ours, "options": ["rbind"]}));
    let absolute = host.directory.display().to_string();
    // And as far up as it may take.
    for target in [format!("../../../../../../../../..{absolute}"), absolute] {
        std::fs::create_dir(&way).expect("mkdir");
        symlink(&target, &link).expect("symlink");
        let mut exchanger = Exchanger::of(&way, &link);
        let (mut started, mut links, mut directories) = (0, 0, 0);
        for _ in 0..ROUNDS {
            match std::fs::symlink_metadata(&way).expect("stat").is_symlink() {
                true => links += 1,
                false => directories += 1,
            }
            let spec = world.typed();
            let (stdio, out, err) = world.streams();
            match world.create(&spec, stdio) {
                Ok(created) => {
                    let (running, starter) = created.split();
                    starter.start().unwrap_or_else(|error| panic!("start: {}", chain(&error)));
                    let _ended = portreeve_sys::process::wait(std::os::fd::AsFd::as_fd(&running.pidfd));
                    started += 1;
                    let said = text(&out);
                    assert!(!said.contains("secret"), "{said} {}", text(&err));
                }
                // To be refused is as good: what was looked up was not there any more a moment later.
                Err(error) => assert!(chain(&error).contains(destination), "{}", chain(&error)),
            }
            host.check();
        }
        assert!(exchanger.runs(), "names could not be exchanged here");
        drop(exchanger);
        println!("    {started} of {ROUNDS} started; before them {links} links, {directories} directories");
        assert!(started > 0 && links > 0 && directories > 0);
        for path in [&way, &link] {
            let removed = if path.is_symlink() { std::fs::remove_file(path) } else { std::fs::remove_dir_all(path) };
            removed.expect("remove");
        }
    }
}

fn cve_2021_30465_a_directory_of_a_volume_that_becomes_a_link_leads_nowhere() {
    let world = World::shell("ls /volume/way/inner /volume/way /volume/other 2>/dev/null");
    let volume = world.path("volume");
    std::fs::create_dir(&volume).expect("mkdir");
    let world = world.mount(json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"]}));
    race(world, &volume, "/volume/way/inner");
}

fn a_directory_of_the_root_that_becomes_a_link_leads_nowhere() {
    let mut world = World::shell("ls /work/way/inner /work/way /work/other 2>/dev/null");
    world.plain = true;
    let parent = world.layer().join("work");
    race(world, &parent, "/work/way/inner");
}

fn what_takes_the_place_of_a_device_meanwhile_is_not_given_to_its_owner() {
    let world = World::shell("true");
    let (volume, host) = (world.path("volume"), Host::new(&world));
    std::fs::create_dir(&volume).expect("mkdir");
    let (node, other) = (volume.join("node"), volume.join("other"));
    let device = json!({"path": "/volume/node", "type": "c", "major": 1, "minor": 3, "uid": 1000, "gid": 1000});
    let mount = json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"]});
    let world = world.mount(mount).with(json!({"linux": {"devices": [device]}}));
    let mut exchanger = Exchanger::of(&node, &other);
    let mut made = 0;
    for _ in 0..ROUNDS {
        // The node is the container's to make, and is exchanged from that moment on.
        let _missing = std::fs::remove_file(&node);
        let _missing = std::fs::remove_file(&other);
        std::fs::hard_link(host.directory.join("secret"), &other).expect("link");
        let (spec, (stdio, ..)) = (world.typed(), world.streams());
        match world.create(&spec, stdio) {
            Ok(created) => {
                let (running, starter) = created.split();
                drop(starter);
                portreeve_sys::process::wait(running.pidfd.as_fd()).expect("wait");
                made += 1;
            }
            Err(error) => assert!(chain(&error).contains("/volume/node"), "{}", chain(&error)),
        }
        let secret = std::fs::metadata(host.directory.join("secret")).expect("stat");
        assert_eq!((secret.uid(), secret.gid()), (0, 0), "a file of the host was given away");
    }
    assert!(exchanger.runs(), "names could not be exchanged here");
    println!("    the device was there in {made} of {ROUNDS}");
    assert!(made > 0);
    drop(exchanger);
    host.check();
}
