//! Pods as a kubelet asks for them, by CRI: of us, and of containerd with runc and the CNI's bridge, in the same run.
//!
//! "Up" is the moment at which the container's own program has touched a file in a volume, seen by inotify. CPU time is
//! what cgroup accounting charged to the runtime, its shims, its plugins and the containers.

mod containerd;
mod pods;

use portreeve_e2e::Peers;
use portreeve_e2e::measure::{Figures, machine};

use crate::pods::{ALL_REMOVED, ALL_UP, CYCLE, PSS_PER_POD, UP};

const OURS: &str = "portreeve";

struct Settings {
    single: usize,
    pods: usize,
    listed: usize,
    idle: u64,
    check: bool,
}

fn main() {
    let settings = settings();
    let peers = Peers::find().expect("PORTREEVE_PEERS=$(e2e/peers) names what this is compared with");
    let containerd = format!("containerd {}, runc {}", peers.version("containerd"), peers.version("runc"));
    let mut figures = Figures::default();
    println!("{}", machine());
    pods::ours(&settings, &mut figures);
    containerd::measure(&settings, peers, &containerd, &mut figures);
    println!("load at the end {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    figures.print_beside(&[OURS, &containerd]);
    let kept = compare(&figures, &containerd);
    figures.save();
    if settings.check && !kept {
        eprintln!("bench_cri: a budget was not kept");
        std::process::exit(1);
    }
}

/// Prints each budget, and whether it is kept; all of them are.
fn compare(figures: &Figures, containerd: &str) -> bool {
    let value = |program: &str, figure: &str, part: &str| figures.get(program, figure, part).expect("a figure");
    let share = |figure: &str, part: &str| value(OURS, figure, part) / value(containerd, figure, part);
    println!("\n| budget | at most | found | |\n|---|---:|---:|---|");
    let mut all = true;
    for (what, most, found) in [
        ("CPU per cycle, of containerd's", 0.1, share(CYCLE, "value")),
        ("up at best, ms", 20.0, value(OURS, UP, "min")),
        ("many pods started, of containerd's time", 0.2, share(ALL_UP, "value")),
        ("PSS per pod, all told, MiB", 0.8, value(OURS, PSS_PER_POD, "value")),
    ] {
        let kept = found <= most;
        all &= kept;
        println!("| {what} | {most} | {found:.3} | {} |", if kept { "kept" } else { "NOT KEPT" });
    }
    println!("\nmany pods removed: {:.3} of containerd's time", share(ALL_REMOVED, "value"));
    all
}

fn settings() -> Settings {
    let mut settings = Settings { single: 30, pods: 100, listed: 250, idle: 30, check: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        if flag == "--check" {
            settings.check = true;
            continue;
        }
        let number = arguments.next().and_then(|text| text.parse::<usize>().ok()).filter(|number| *number > 0);
        let Some(number) = number else { usage_error() };
        match flag.as_str() {
            "--single" => settings.single = number,
            "--pods" => settings.pods = number,
            "--listed" => settings.listed = number,
            "--idle" => settings.idle = number as u64,
            _ => usage_error(),
        }
    }
    settings
}

fn usage_error() -> ! {
    eprintln!("usage: e2e/bench cri [--check] [--single N] [--pods N] [--listed N] [--idle SECONDS]");
    std::process::exit(2);
}
