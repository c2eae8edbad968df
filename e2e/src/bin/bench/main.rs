//! Benchmarks of pods: from a file in a directory, beside podman and containerd, or as a kubelet asks for them.
//!
//! "Running" and "up" are the moment at which the container's own program has touched a file in a volume, seen by
//! inotify: nothing that an agent claims about itself is trusted. CPU time is what cgroup accounting charged to the
//! agent or daemon, its shims, its plugins and the containers.

mod containerd;
mod cri;
mod files;
mod podman;
mod pods;

const OURS: &str = "portreeve";

struct Settings {
    single: usize,
    pods: usize,
    idle: u64,
    pull: usize,
    listed: usize,
    check: bool,
}

fn main() {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == "cri").is_some() {
        let asked = Settings { single: 30, pods: 100, idle: 30, pull: 0, listed: 250, check: false };
        cri::measure(&settings(asked, &["--single", "--pods", "--listed", "--idle"], arguments));
    } else {
        let asked = Settings { single: 30, pods: 100, idle: 60, pull: 400, listed: 0, check: false };
        files::measure(&settings(asked, &["--single", "--pods", "--idle", "--pull"], arguments));
    }
}

/// Of the flags with a number, those of `numbers` are known.
fn settings(mut settings: Settings, numbers: &[&str], mut arguments: impl Iterator<Item = String>) -> Settings {
    while let Some(flag) = arguments.next() {
        if flag == "--check" {
            settings.check = true;
            continue;
        }
        let number = arguments.next().and_then(|text| text.parse::<usize>().ok());
        let Some(number) = number.filter(|_| numbers.contains(&flag.as_str())) else { usage_error(numbers) };
        match flag.as_str() {
            "--single" => settings.single = number,
            "--pods" => settings.pods = number,
            "--idle" => settings.idle = number as u64,
            "--pull" => settings.pull = number,
            "--listed" => settings.listed = number,
            _ => usage_error(numbers),
        }
    }
    settings
}

fn usage_error(numbers: &[&str]) -> ! {
    eprintln!("usage: e2e/bench [cri] [--check] [{} NUMBER]...", numbers.join(" | "));
    std::process::exit(2);
}

/// Prints each budget, and ends with 1 when one shall be kept and is not.
fn judge(settings: &Settings, budgets: &[(&str, f64, f64)]) {
    println!("\n| budget | at most | found | |\n|---|---:|---:|---|");
    let mut all = true;
    for (what, most, found) in budgets {
        let kept = found <= most;
        all &= kept;
        println!("| {what} | {most} | {found:.3} | {} |", if kept { "kept" } else { "NOT KEPT" });
    }
    if settings.check && !all {
        eprintln!("bench: a budget was not kept");
        std::process::exit(1);
    }
}
