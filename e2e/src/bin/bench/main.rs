//! The benchmark: from a file in a directory to a process that runs, and what that costs.
//!
//! "Running" is the moment at which the container's own program has touched a file in a
//! hostPath volume, seen by inotify: nothing that an agent claims about itself is trusted.
//! CPU time is what cgroup accounting charged to the agent, its shims and the containers.

mod podman;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use portreeve_e2e::measure::{Account, Figures, appeared, installed, machine, millis, pss_kib, toucher_script, watch};
use portreeve_e2e::{Agent, BUSYBOX, Image, Registry, World, preload_busybox};

struct Settings {
    single: usize,
    pods: usize,
    idle: u64,
    pull: usize,
}

fn main() {
    let settings = settings();
    let mut report = Figures::default();
    println!("{}", machine());
    ours(&settings, &mut report);
    if installed("podman").is_some() {
        podman::measure(&settings, &mut report);
    } else {
        println!("podman is not installed: no comparison with it");
    }
    report.print();
    report.save();
}

fn settings() -> Settings {
    let mut settings = Settings { single: 30, pods: 100, idle: 60, pull: 400 };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let number = arguments.next().and_then(|text| text.parse::<usize>().ok());
        let Some(number) = number else { usage_error() };
        match flag.as_str() {
            "--single" => settings.single = number,
            "--pods" => settings.pods = number,
            "--idle" => settings.idle = number as u64,
            "--pull" => settings.pull = number,
            _ => usage_error(),
        }
    }
    settings
}

fn usage_error() -> ! {
    eprintln!("usage: e2e/bench [--single N] [--pods N] [--idle SECONDS] [--pull MEBIBYTES]");
    std::process::exit(2);
}

/// A pod of one such container.
fn toucher(name: &str, image: &str, out: &Path) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  volumes: \
         [{{name: out, hostPath: {{path: '{}'}}}}]\n  containers:\n  - {{name: main, image: '{image}', command: [sh, -c, \
         '{}'], volumeMounts: [{{name: out, mountPath: /out}}]}}\n",
        out.display(),
        toucher_script(name)
    )
}

/// How many programs were started in excess of one for each file in the directory.
fn started_again(out: &Path) -> usize {
    let files = std::fs::read_dir(out).expect("the output directory").map(|entry| entry.expect("an entry").path());
    files.map(|file| std::fs::read_to_string(file).expect("a file of a pod").lines().count() - 1).sum()
}

fn ours(settings: &Settings, report: &mut Figures) {
    let world = World::new("bench");
    preload_busybox(&world);
    let mut agent = Agent::start(&world);
    let account = Account::of(&agent);
    let out = world.path("out");
    let inotify = watch(&out);

    let (mut up, mut down) = (Vec::new(), Vec::new());
    let before = account.nanoseconds();
    for number in 0..settings.single {
        let name = format!("s{number}");
        let begun = Instant::now();
        agent.drop_manifest("single.yaml", &toucher(&name, BUSYBOX, &out));
        appeared(&inotify, 1);
        up.push(begun.elapsed());
        let begun = Instant::now();
        agent.remove_manifest("single.yaml");
        until_no_pod(&agent);
        down.push(begun.elapsed());
    }
    let cycles = Duration::from_nanos((account.nanoseconds() - before) / settings.single.max(1) as u64);
    report.times("portreeve", "file dropped to running", &up);
    report.times("portreeve", "file removed to gone", &down);
    report.one("portreeve", "CPU per whole cycle, ms", millis(cycles));

    let before = account.nanoseconds();
    let begun = Instant::now();
    let mut dropped = BTreeMap::new();
    for number in 0..settings.pods {
        let name = format!("m{number}");
        dropped.insert(name.clone(), Instant::now());
        agent.drop_manifest(&format!("{name}.yaml"), &toucher(&name, BUSYBOX, &out));
    }
    let running = appeared(&inotify, settings.pods);
    let took = millis(begun.elapsed());
    report.one("portreeve", &format!("{} pods dropped at once to all running, ms", settings.pods), took);
    let each: Vec<Duration> = running.iter().map(|(name, at)| at.duration_since(dropped[name])).collect();
    report.times("portreeve", "each of those, dropped to running", &each);
    let cpu = Duration::from_nanos((account.nanoseconds() - before) / settings.pods.max(1) as u64);
    report.one("portreeve", "CPU per pod of those, ms", millis(cpu));
    std::thread::sleep(Duration::from_secs(3));

    let before = account.nanoseconds();
    std::thread::sleep(Duration::from_secs(settings.idle));
    let used = Duration::from_nanos(account.nanoseconds() - before).as_secs_f64();
    report.one("portreeve", "idle CPU, % of a core", 100.0 * used / settings.idle.max(1) as f64);
    report.one("portreeve", "containers started twice", started_again(&out) as f64);

    let shims: Vec<u64> = agent
        .census()
        .processes
        .iter()
        .filter(|line| line.contains(" shim"))
        .filter_map(|line| line.split(' ').next().map(pss_kib))
        .collect();
    report.one("portreeve", "agent PSS, MiB", pss_kib(&agent.pid().to_string()) as f64 / 1024.0);
    report.one("portreeve", "shims", shims.len() as f64);
    report.one("portreeve", "PSS per shim, MiB", shims.iter().sum::<u64>() as f64 / 1024.0 / shims.len().max(1) as f64);

    let begun = Instant::now();
    for number in 0..settings.pods {
        agent.remove_manifest(&format!("m{number}.yaml"));
    }
    until_no_pod(&agent);
    report.one(
        "portreeve",
        &format!("{} pods removed at once to all gone, ms", settings.pods),
        millis(begun.elapsed()),
    );

    if settings.pull > 0 {
        pull(&world, &agent, settings.pull, report);
    }
    let left = agent.erase();
    assert!(left.is_empty(), "left over: {left:#?}");
    drop(account);
}

/// Waits until the agent keeps no pod any more, by the sandboxes that it has on disk.
fn until_no_pod(agent: &Agent<'_>) {
    let sandboxes = agent.run_dir().join("sandboxes");
    while std::fs::read_dir(&sandboxes).is_ok_and(|mut entries| entries.next().is_some()) {
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn pulled(mebibytes: usize) -> String {
    format!("cold pull and unpack of {mebibytes} MiB, ms")
}

/// A cold pull and unpack.
fn pull(world: &World, agent: &Agent<'_>, mebibytes: usize, report: &mut Figures) {
    let (_registry, reference) = big(world, mebibytes);
    let begun = Instant::now();
    let answer = agent.client(&["image", "pull", &reference]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    report.one("portreeve", &pulled(mebibytes), millis(begun.elapsed()));
}

/// An image of four layers, half of it compressible, in a registry.
fn big(world: &World, mebibytes: usize) -> (Registry<'_>, String) {
    let layers: Vec<Vec<u8>> = (0..4u64).map(|layer| filler(layer, mebibytes / 4)).collect();
    let image = Image::archive(world.home(), "big:1", &layers);
    let registry = Registry::start(world, 5000);
    let reference = registry.push(&image, "big:1");
    (registry, reference)
}

/// A layer of files of 1 MiB, each half noise and half zeros.
fn filler(seed: u64, mebibytes: usize) -> Vec<u8> {
    let mut state = seed + 1;
    let mut layer = tar::Builder::new(Vec::new());
    for number in 0..mebibytes {
        let mut contents = vec![0u8; 1 << 20];
        for word in contents.chunks_exact_mut(8).take(1 << 16) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        let name = format!("data/{seed}/{number}");
        layer.append_data(&mut header, name, contents.as_slice()).expect("writing to memory");
    }
    layer.into_inner().expect("writing to memory")
}
