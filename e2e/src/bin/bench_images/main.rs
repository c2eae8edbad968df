//! The benchmark of pulls: portreeve beside containerd, podman and docker, in the same run, from the same registry.
//!
//! Cold means: the daemon was started just before, on a file system that was made just before, and what others have
//! written is on the disk. The registry, Debian's docker-registry on loopback, has the image in the page cache. They take
//! turns.
//!
//! ```text
//! whole   an image of eight layers, of which nothing is there
//! next    another one, which shares seven of these layers
//! parts   twenty images at once, which share nothing
//! ```
//!
//! Wall time is until the last client has ended. CPU is what the kernel charged to the daemon and the clients, not to
//! the registry. Peak RSS is the largest resident set of the daemon while it pulled, and of the largest process of a
//! client. Written is what both caused to be written to disks, fetched what the loopback carried, headers included.

mod content;
mod disk;
mod engines;

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;
use portreeve_e2e::measure::{Figures, machine};
use portreeve_e2e::{Peers, World};

use content::{Content, FORMS, PARTS};
use disk::Disk;
use engines::{Engine, Ground, Program};

/// Of the time and the processor time of containerd, what a pull of the whole image may take at most.
const WALL_SHARE: f64 = 0.5;
const CPU_SHARE: f64 = 0.7;
/// Largest resident set of the agent, in MB: while it pulls one image, and twenty.
const PEAK_MB: f64 = 60.0;
const PEAK_OF_PARTS_MB: f64 = 150.0;
/// What requests and answers have besides a layer, in MB.
const HEADERS_MB: f64 = 1.0;

struct Settings {
    rounds: usize,
    check: bool,
    programs: Vec<Program>,
}

fn main() {
    let settings = settings();
    let peers = Peers::find().expect("PORTREEVE_PEERS=$(e2e/peers) names what this is compared with");
    let home = tempfile::Builder::new().prefix("prt-bench-").tempdir().expect("a temporary directory");
    Disk::prepare(home.path());
    let content = Content::ensure(&peers);
    println!("{}", machine());
    describe(&content);
    let mut spent: BTreeMap<(&str, Program, &str), Vec<Spent>> = BTreeMap::new();
    for round in 0..settings.rounds {
        for turn in 0..settings.programs.len() {
            let program = settings.programs[(round + turn) % settings.programs.len()];
            for form in FORMS {
                let parts: Vec<String> = (0..PARTS).map(|number| format!("part-{number}")).collect();
                let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                for steps in [vec![("whole", vec!["whole"]), ("next", vec!["next"])], vec![("parts", parts)]] {
                    let _disk = Disk::fresh(home.path());
                    let ground = Ground::new(&peers);
                    // The same storage, once in each network.
                    let registries = ground.worlds().map(|world| content.serve(world, 5000));
                    let engine = Engine::start(&ground, program);
                    for (name, tags) in steps {
                        let reference = |tag: &&str| format!("{}/bench/{form}:{tag}", registries[0].host());
                        let used = pull(&engine, &tags.iter().map(reference).collect::<Vec<_>>());
                        spent.entry((name, program, form)).or_default().push(used);
                    }
                }
            }
        }
    }
    println!("load at the end {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    let label = |program: &Program| program.label(&peers);
    let mut figures = Figures::default();
    for ((tag, program, form), spent) in &spent {
        for (part, unit, of) in PARTS_OF_SPENT {
            let values: Vec<f64> = spent.iter().filter_map(of).collect();
            if !values.is_empty() {
                figures.spread(&label(program), &format!("{tag}, {form}: {part}, {unit}"), &values);
            }
        }
    }
    figures.print_beside(
        &settings.programs.iter().map(label).collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let kept = compare(&figures, &content, &label(&Program::Portreeve), &label(&Program::Containerd));
    figures.save();
    if settings.check && !kept {
        eprintln!("bench_images: a budget was not kept");
        drop(home);
        std::process::exit(1);
    }
}

fn settings() -> Settings {
    let everyone = vec![Program::Portreeve, Program::Containerd, Program::Podman, Program::Docker];
    let mut settings = Settings { rounds: 3, check: false, programs: everyone };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        match flag.as_str() {
            "--check" => settings.check = true,
            "--alone" => settings.programs = vec![Program::Portreeve],
            "--rounds" => match arguments.next().and_then(|text| text.parse().ok()) {
                Some(rounds) if rounds > 0 => settings.rounds = rounds,
                _ => usage_error(),
            },
            _ => usage_error(),
        }
    }
    if settings.check && settings.programs.len() == 1 {
        usage_error();
    }
    settings
}

fn usage_error() -> ! {
    eprintln!("usage: e2e/bench images [--rounds N] [--check | --alone]");
    std::process::exit(2);
}

fn describe(content: &Content) {
    let (files, bytes) = content.unpacked();
    println!(
        "the image has {files} files of {:.0} MB; cold: an empty store on a fresh ext4, the registry's blobs in the page cache",
        bytes as f64 / 1e6
    );
    for form in FORMS {
        let layers = content.layers(form, "whole");
        let each: Vec<String> = layers.iter().map(|&bytes| format!("{:.0}", bytes as f64 / 1e6)).collect();
        println!("{form}: {:.0} MB, layers of {} MB", layers.iter().sum::<u64>() as f64 / 1e6, each.join(", "));
    }
}

/// What pulls took.
struct Spent {
    wall_s: f64,
    cpu_s: f64,
    /// Without a daemon there is none.
    peak_mb: Option<f64>,
    client_peak_mb: f64,
    written_mb: f64,
    fetched_mb: f64,
}

type Part = (&'static str, &'static str, fn(&Spent) -> Option<f64>);

const PARTS_OF_SPENT: [Part; 6] = [
    ("wall", "s", |spent| Some(spent.wall_s)),
    ("CPU", "s", |spent| Some(spent.cpu_s)),
    ("peak RSS of the daemon", "MB", |spent| spent.peak_mb),
    ("peak RSS of a client", "MB", |spent| Some(spent.client_peak_mb)),
    ("written", "MB", |spent| Some(spent.written_mb)),
    ("fetched", "MB", |spent| Some(spent.fetched_mb)),
];

/// Pulls all of `references` at once.
fn pull(engine: &Engine<'_>, references: &[String]) -> Spent {
    // What was written before is not written while this is measured.
    nix::unistd::sync();
    let daemon = engine.daemon();
    if let Some(pid) = daemon {
        // Source: proc_pid_clear_refs(5).
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("forgetting the largest resident set so far");
    }
    let written = || daemon.map_or(0, daemon_written) + clients_written();
    let before = (engine.account().nanoseconds(), written(), carried(engine.world()));
    let begun = Instant::now();
    let clients: Vec<Child> = references
        .iter()
        .map(|reference| {
            let mut command = engine.pull(reference);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("the stop-watch")
        })
        .collect();
    let peaks: Vec<f64> =
        clients.into_iter().zip(references).map(|(client, reference)| finish(client, reference)).collect();
    Spent {
        wall_s: begun.elapsed().as_secs_f64(),
        cpu_s: (engine.account().nanoseconds() - before.0) as f64 / 1e9,
        peak_mb: daemon.map(|pid| number_in(&format!("/proc/{pid}/status"), "VmHWM:") as f64 * 1024.0 / 1e6),
        client_peak_mb: peaks.into_iter().fold(0.0, f64::max),
        written_mb: (written() - before.1) as f64 / 1e6,
        fetched_mb: (carried(engine.world()) - before.2) as f64 / 1e6,
    }
}

/// Waits for a client, which must succeed; tells its peak RSS in MB.
fn finish(client: Child, reference: &str) -> f64 {
    let output = client.wait_with_output().expect("waiting for a client");
    let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    let [_wall, peak, code, ..] = lines[..] else { panic!("the stop-watch says {text:?} of {reference}: {said}") };
    assert_eq!(code, "0", "pulling {reference}: {said}");
    peak.parse::<f64>().expect("a number of KiB") * 1024.0 / 1e6
}

/// What the process, and those that it has waited for, caused to be written. Source: proc_pid_io(5).
fn daemon_written(pid: Pid) -> u64 {
    number_in(&format!("/proc/{pid}/io"), "write_bytes:")
}

/// The same of the clients so far. Source: getrusage(2); Linux counts blocks of 512 bytes.
fn clients_written() -> u64 {
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).expect("what the clients have used");
    u64::try_from(used.block_writes()).expect("a count") * 512
}

/// What the loopback of a network namespace has carried so far, in bytes.
fn carried(world: &World) -> u64 {
    let devices = world.sh("cat /proc/net/dev");
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("lo:")).expect("a loopback device");
    line.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).expect("a count of bytes")
}

/// The number after `name` in a file of procfs.
fn number_in(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).expect("the daemon runs");
    let value = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line that Linux always has");
    value.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Prints how far each budget was kept; whether all were.
fn compare(figures: &Figures, content: &Content, ours: &str, theirs: &str) -> bool {
    println!("\n| budget of {ours} | at most | measured |\n|---|---:|---:|");
    let mut kept = true;
    let mut line = |what: String, limit: f64, measured: f64| {
        println!("| {what} | {limit:.2} | {measured:.2} |");
        kept &= measured <= limit;
    };
    for form in FORMS {
        for (part, share) in [("wall, s", WALL_SHARE), ("CPU, s", CPU_SHARE)] {
            let figure = format!("whole, {form}: {part}");
            let median = |program| figures.get(program, &figure, "p50");
            let (Some(own), Some(other)) = (median(ours), median(theirs)) else { continue };
            line(format!("{figure}, median, {share} of {theirs}"), share * other, own);
        }
        let worst = |figure: &str| figures.get(ours, figure, "p99").expect("ours is measured");
        for (tag, limit) in [("whole", PEAK_MB), ("parts", PEAK_OF_PARTS_MB)] {
            let figure = format!("{tag}, {form}: peak RSS of the daemon, MB");
            line(figure.clone(), limit, worst(&figure));
        }
        let eighth = *content.layers(form, "next").last().expect("eight layers") as f64 / 1e6;
        let figure = format!("next, {form}: fetched, MB");
        line(format!("{figure}, of which the eighth layer has {eighth:.2}"), eighth + HEADERS_MB, worst(&figure));
    }
    kept
}
