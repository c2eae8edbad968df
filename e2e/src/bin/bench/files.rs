//! Pods from files in a directory, beside podman and, by CRI, containerd.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use portreeve_e2e::measure::{Account, Figures, appeared, installed, machine, millis, pss_kib, toucher_script, watch};
use portreeve_e2e::{Agent, BUSYBOX, Image, Peers, Registry, World, preload_busybox};

use crate::{OURS, Settings, containerd, judge, podman, pods};

pub(crate) const RUNNING: &str = "file dropped to running";
pub(crate) const GONE: &str = "file removed to gone";
pub(crate) const CYCLE: &str = "CPU per whole cycle, ms";
pub(crate) const IDLE: &str = "idle CPU, % of a core";
pub(crate) const SHIM_PSS: &str = "PSS per shim, MiB";
const POD_CPU: &str = "CPU per pod of those, ms";
const TWICE: &str = "containers started twice";
const AGENT_PSS: &str = "agent PSS, MiB";
const POD_PSS: &str = "PSS per pod, all told, MiB";

pub(crate) fn all_running(pods: usize) -> String {
    format!("{pods} pods dropped at once to all running, ms")
}

pub(crate) fn all_gone(pods: usize) -> String {
    format!("{pods} pods removed at once to all gone, ms")
}

pub(crate) fn pulled(mebibytes: usize) -> String {
    format!("cold pull and unpack of {mebibytes} MiB, ms")
}

pub(crate) fn measure(settings: &Settings) {
    let mut figures = Figures::default();
    println!("{}", machine());
    ours(settings, &mut figures);
    let mut programs = vec![OURS.to_owned()];
    if installed("podman").is_some() {
        programs.push(podman::measure(settings, &mut figures));
    } else {
        println!("podman is not installed: no comparison with it");
    }
    if let Some(peers) = Peers::find() {
        programs.push(beside_containerd(settings, peers, &mut figures));
    } else {
        println!("PORTREEVE_PEERS is not set: no comparison with containerd");
    }
    println!("load at the end {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    figures.print_beside(&programs.iter().map(String::as_str).collect::<Vec<_>>());
    figures.save();
    let value = |figure: &str, part: &str| figures.get(OURS, figure, part).expect("a figure");
    judge(
        settings,
        &[
            ("file dropped to running at best, ms", 25.0, value(&format!("{RUNNING}, ms"), "min")),
            (CYCLE, 30.0, value(CYCLE, "value")),
            ("many pods dropped at once, ms", 2000.0, value(&all_running(settings.pods), "value")),
            (TWICE, 0.0, value(TWICE, "value")),
            (AGENT_PSS, 25.0, value(AGENT_PSS, "value")),
            (SHIM_PSS, 0.5, value(SHIM_PSS, "value")),
            (IDLE, 0.2, value(IDLE, "value")),
        ],
    );
}

/// Containerd has no files: what it is asked for by CRI stands beside the figure of files that it answers to.
fn beside_containerd(settings: &Settings, peers: Peers, figures: &mut Figures) -> String {
    let program = containerd::name(&peers);
    let mut asked = Figures::default();
    containerd::measure(settings, peers, &program, &mut asked);
    for (row, figure) in [
        (pods::UP, format!("{RUNNING}, ms")),
        (pods::DOWN, format!("{GONE}, ms")),
        (pods::CYCLE, CYCLE.to_owned()),
        (pods::ALL_UP, all_running(settings.pods)),
        (pods::POD_CPU, POD_CPU.to_owned()),
        (pods::IDLE, IDLE.to_owned()),
        (pods::PSS_PER_POD, POD_PSS.to_owned()),
        (pods::ALL_REMOVED, all_gone(settings.pods)),
    ] {
        figures.take(&asked, &program, row, &figure);
    }
    program
}

/// A pod of one such container.
pub(crate) fn toucher(name: &str, image: &str, out: &Path) -> String {
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
    report.times(OURS, RUNNING, &up);
    report.times(OURS, GONE, &down);
    report.one(OURS, CYCLE, millis(cycles));

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
    report.one(OURS, &all_running(settings.pods), took);
    let each: Vec<Duration> = running.iter().map(|(name, at)| at.duration_since(dropped[name])).collect();
    report.times(OURS, "each of those, dropped to running", &each);
    let cpu = Duration::from_nanos((account.nanoseconds() - before) / settings.pods.max(1) as u64);
    report.one(OURS, POD_CPU, millis(cpu));
    std::thread::sleep(Duration::from_secs(3));

    let before = account.nanoseconds();
    std::thread::sleep(Duration::from_secs(settings.idle));
    let used = Duration::from_nanos(account.nanoseconds() - before).as_secs_f64();
    report.one(OURS, IDLE, 100.0 * used / settings.idle.max(1) as f64);
    report.one(OURS, TWICE, started_again(&out) as f64);

    let shims: Vec<u64> = agent
        .census()
        .processes
        .iter()
        .filter(|line| line.contains(" shim"))
        .filter_map(|line| line.split(' ').next().map(pss_kib))
        .collect();
    let (of_agent, of_shims) = (pss_kib(&agent.pid().to_string()), shims.iter().sum::<u64>());
    report.one(OURS, AGENT_PSS, of_agent as f64 / 1024.0);
    report.one(OURS, "shims", shims.len() as f64);
    report.one(OURS, SHIM_PSS, of_shims as f64 / 1024.0 / shims.len().max(1) as f64);
    report.one(OURS, POD_PSS, (of_agent + of_shims) as f64 / 1024.0 / settings.pods.max(1) as f64);

    let begun = Instant::now();
    for number in 0..settings.pods {
        agent.remove_manifest(&format!("m{number}.yaml"));
    }
    until_no_pod(&agent);
    report.one(OURS, &all_gone(settings.pods), millis(begun.elapsed()));

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

/// A cold pull and unpack.
fn pull(world: &World, agent: &Agent<'_>, mebibytes: usize, report: &mut Figures) {
    let (_registry, reference) = big(world, mebibytes);
    let begun = Instant::now();
    let answer = agent.client(&["image", "pull", &reference]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    report.one(OURS, &pulled(mebibytes), millis(begun.elapsed()));
}

/// An image of four layers, half of it compressible, in a registry.
pub(crate) fn big(world: &World, mebibytes: usize) -> (Registry<'_>, String) {
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
