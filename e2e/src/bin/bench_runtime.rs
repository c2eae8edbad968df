//! The benchmark of `portreeve runtime`: the time, the processor and the memory that its verbs take, beside the bare
//! system calls (the floor) and other runtimes.
//!
//! Every program makes the same container, which is looked at before anything is measured: all namespaces but the
//! user's, limits of memory and processes, devices, the specification's own mounts, a static busybox. They take turns,
//! so that what else the machine does falls on all of them. Wall time is from before the program is started until after
//! it was waited for; processor time is what the kernel charged to it and to the container meanwhile; peak RSS is the
//! largest resident set of the program and of what it waited for.
//!
//! On a machine with both versions of cgroups the others do not see the second one, without which crun does not run: the
//! floor and ours make one directory more.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use portreeve_e2e::measure::{
    Figures, accounting_hierarchy, charged_nanoseconds, installed, machine, millis, usage_file,
};
use portreeve_e2e::{Bundle, binary, built, cgroup_hierarchies, cgroup_version, remove_cgroup};
use serde_json::{Value, json};
use tempfile::TempDir;

const FLOOR: &str = "floor";
const OURS: &str = "portreeve-runtime";

/// What is done in each round, one after the other, with one container and then, for the last two, with another each.
const VERBS: [&str; 7] = ["create", "start", "exec", "state", "delete --force", "run", RUN_FILTERED];
const RUN_FILTERED: &str = "run with a seccomp profile";

/// Where a machine with both versions of cgroups has the second.
const SECOND: &str = "/sys/fs/cgroup/unified";

const MEMORY_BYTES: &str = "67108864";
const PROCESSES: &str = "100";

/// What [`FLOOR`] takes at best for `run` on the machine for which [`BUDGETS`] says how much time may be spent, in ms.
const FLOOR_OF_THE_BUDGETS: f64 = 2.1;

/// What may be spent at most, of [`OURS`] back to back: figure, which part of it, limit.
const BUDGETS: [(&str, &str, f64); 10] = [
    ("run, ms", "min", 3.5),
    ("run, CPU ms", "p50", 4.0),
    ("exec, ms", "min", 2.5),
    ("delete --force, ms", "min", 3.0),
    ("run, peak RSS MiB", "p99", 4.0),
    ("create, peak RSS MiB", "p99", 4.0),
    ("start, peak RSS MiB", "p99", 4.0),
    ("exec, peak RSS MiB", "p99", 4.0),
    ("state, peak RSS MiB", "p99", 4.0),
    ("delete --force, peak RSS MiB", "p99", 4.0),
];

struct Settings {
    rounds: usize,
    pause: Duration,
    check: bool,
}

fn main() {
    let settings = settings();
    // Not a real-time policy: a kernel with groups of them refuses such a process in a cgroup without a budget.
    if let Err(error) = rustix::process::setpriority_process(None, -10) {
        println!("measured at the usual priority: {error}");
    }
    let ground = Ground::new();
    println!("{}", machine());
    let programs = ground.programs();
    let mut figures = Figures::default();
    let spawn: Vec<f64> =
        (0..settings.rounds).map(|_| ground.time("", Path::new("/bin/busybox"), &["true".into()]).wall_ms).collect();
    figures.spread(FLOOR, "a static program that does nothing, ms", &spawn);
    measure(&ground, &programs, "", settings.rounds, Duration::ZERO, &mut figures);
    let after = format!(" after {} ms", settings.pause.as_millis());
    measure(&ground, &programs, &after, settings.rounds, settings.pause, &mut figures);
    drop(ground);
    println!("load at the end {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    figures.print_beside(&programs.iter().map(|program| program.label.as_str()).collect::<Vec<_>>());
    let kept = compare(&figures);
    figures.save();
    if settings.check && !kept {
        eprintln!("bench_runtime: a budget was not kept");
        std::process::exit(1);
    }
}

fn settings() -> Settings {
    let mut settings = Settings { rounds: 100, pause: Duration::from_millis(50), check: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        if flag == "--check" {
            settings.check = true;
            continue;
        }
        let number = arguments.next().and_then(|text| text.parse::<u32>().ok());
        let Some(number) = number else { usage_error() };
        match flag.as_str() {
            "--rounds" => settings.rounds = number as usize,
            "--pause" => settings.pause = Duration::from_millis(number.into()),
            _ => usage_error(),
        }
    }
    settings
}

fn usage_error() -> ! {
    eprintln!("usage: e2e/bench runtime [--check] [--rounds N] [--pause MILLISECONDS]");
    std::process::exit(2);
}

/// Prints how far each budget was kept, as measured and on a machine of the speed that they are meant for; whether all
/// were, as measured.
fn compare(figures: &Figures) -> bool {
    let floor = figures.get(FLOOR, "run, ms", "min").expect("the floor is measured");
    println!(
        "\nThe floor of run takes {floor:.2} ms at best; the budgets are for a machine where it takes {FLOOR_OF_THE_BUDGETS:.2} ms:\n\n\
         | {OURS} | part | budget | measured | at that speed | to spare as measured |\n|---|---|---:|---:|---:|---:|"
    );
    let mut kept = true;
    for (figure, part, budget) in BUDGETS {
        let measured = figures.get(OURS, figure, part).expect("every figure with a budget is measured");
        let scaled = if figure.ends_with("ms") { measured * FLOOR_OF_THE_BUDGETS / floor } else { measured };
        println!("| {figure} | {part} | {budget:.2} | {measured:.2} | {scaled:.2} | {:.2} |", budget - measured);
        kept &= measured <= budget;
    }
    kept
}

/// Takes turns with the verbs of all programs, and adds what they took.
fn measure(ground: &Ground, programs: &[Program], suffix: &str, rounds: usize, pause: Duration, figures: &mut Figures) {
    const WARM: usize = 3;
    let mut spent: BTreeMap<(usize, usize), Vec<Spent>> = BTreeMap::new();
    for round in 0..rounds + WARM {
        for turn in 0..programs.len() {
            let which = (round + turn) % programs.len();
            let program = &programs[which];
            let ids = ["c", "r", "s"].map(|kind| format!("{kind}{round}"));
            for (number, verb) in VERBS.iter().enumerate() {
                if *verb == RUN_FILTERED && !program.can_filter(ground) {
                    continue;
                }
                let (id, words): (_, &[&str]) = match *verb {
                    "create" => (&ids[0], &["/bin/sleep", "100000"]),
                    "run" => (&ids[1], &["/bin/true"]),
                    RUN_FILTERED => (&ids[2], &["/bin/true"]),
                    _ => (&ids[0], &["/bin/true"]),
                };
                program.prepare(ground, verb, id, words);
                std::thread::sleep(pause);
                let used = program.call(ground, verb, id, words);
                assert_eq!(used.code, 0, "{}: {verb}: {}", program.label, used.said);
                if round >= WARM {
                    spent.entry((number, which)).or_default().push(used);
                }
            }
        }
    }
    for ((number, which), spent) in spent {
        let (verb, label) = (VERBS[number], &programs[which].label);
        let of = |part: fn(&Spent) -> f64| spent.iter().map(part).collect::<Vec<_>>();
        figures.spread(label, &format!("{verb}{suffix}, ms"), &of(|used| used.wall_ms));
        figures.spread(label, &format!("{verb}{suffix}, CPU ms"), &of(|used| used.cpu_ms));
        figures.spread(label, &format!("{verb}{suffix}, peak RSS MiB"), &of(|used| used.peak_mib));
    }
}

/// What a call took.
struct Spent {
    wall_ms: f64,
    cpu_ms: f64,
    peak_mib: f64,
    code: i32,
    said: String,
}

/// Where the programs run: a mount namespace of this process, a directory, and a cgroup in every hierarchy.
struct Ground {
    home: TempDir,
    floor: PathBuf,
    cgroups: Vec<PathBuf>,
    profile: Option<Value>,
}

impl Ground {
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: this needs root");
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).expect("mounts of our own");
        let floor = built("PORTREEVE_FLOOR", "examples/floor");
        let home = tempfile::Builder::new().prefix("prt-bench-").tempdir().expect("a temporary directory");
        // As /run is, where runtimes keep the state of their containers.
        mount(nothing, home.path(), Some("tmpfs"), MsFlags::empty(), nothing).expect("a file system in memory");
        let name = format!("prt-bench-{}", std::process::id());
        let cgroups = cgroup_hierarchies().iter().map(|top| top.join(&name)).collect();
        let ground = Self { home, floor, cgroups, profile: profile() };
        for cgroup in &ground.cgroups {
            std::fs::create_dir(cgroup).expect("a cgroup for what is measured");
            for (file, value) in inherited(cgroup) {
                std::fs::write(file, value).expect("a cpuset like the one above");
            }
            for directory in [cgroup.parent().expect("a top"), cgroup] {
                if cgroup_version() == 2 {
                    std::fs::write(directory.join("cgroup.subtree_control"), "+memory +pids").expect("controllers");
                }
            }
        }
        std::fs::create_dir(ground.account().join("calls")).expect("a cgroup for the programs");
        ground
    }

    /// The cgroup by which processor time is counted: that of the programs is below it, and those of the containers.
    fn account(&self) -> &Path {
        let top = accounting_hierarchy();
        self.cgroups.iter().find(|cgroup| cgroup.starts_with(&top)).expect("a hierarchy that counts time")
    }

    /// Path of a container's cgroup below the top of each hierarchy.
    fn cgroup_path(&self, id: &str) -> String {
        let name = self.account().file_name().expect("it has a name");
        format!("/{}/{id}", name.to_string_lossy())
    }

    /// The floor, ours by its name and from a file system that nobody can write, and what else is installed.
    fn programs(&self) -> Vec<Program> {
        let binary = binary().canonicalize().expect("the binary's path");
        let link = self.home.path().join(OURS);
        std::os::unix::fs::symlink(&binary, &link).expect("a link to the binary");
        let folder = self.home.path().join("read-only");
        std::fs::create_dir(&folder).expect("a directory");
        let sealed = folder.join(OURS);
        File::create(&sealed).expect("a file to mount on");
        let nothing = None::<&str>;
        mount(Some(&binary), &sealed, nothing, MsFlags::MS_BIND, nothing).expect("a second place of the binary");
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(nothing, &sealed, nothing, read_only, nothing).expect("a read-only place of the binary");

        let mut programs = vec![
            self.program(FLOOR, &self.floor, ""),
            self.program(OURS, &link, ""),
            self.program(&format!("{OURS}, read-only"), &sealed, ""),
        ];
        for program in &programs {
            program.verify(self).unwrap_or_else(|why| panic!("{}: {why}", program.label));
        }
        for (name, variable) in [("crun", "CRUN"), ("runc", "RUNC")] {
            let chosen = std::env::var(variable).unwrap_or_else(|_| name.to_owned());
            let Some(path) = installed(&chosen) else {
                println!("{chosen} is not there: no column for {name}; {variable} may name it");
                continue;
            };
            let hidden = if Path::new(SECOND).join("cgroup.procs").exists() { SECOND } else { "" };
            let program = self.program(&format!("{name} {}", version(&path)), &path, hidden);
            match program.verify(self) {
                Ok(()) => programs.push(program),
                Err(why) => println!("{} does not run here: {why}", program.label),
            }
        }
        programs
    }

    fn program(&self, label: &str, path: &Path, hidden: &'static str) -> Program {
        let place = |kind: &str| self.home.path().join(format!("{kind} of {label}").replace([' ', ','], "-"));
        let state = place("state");
        std::fs::create_dir(&state).expect("a directory for the state of containers");
        let bundle = Bundle::plain(place("bundle"), "", "", &[]);
        Program { label: label.to_owned(), path: path.to_owned(), hidden, state, bundle }
    }

    /// Runs a program with the stop-watch.
    fn time(&self, hidden: &str, program: &Path, arguments: &[String]) -> Spent {
        let said = self.home.path().join("said");
        let file = File::create(&said).expect("a file for what programs say");
        let calls = self.account().join("calls");
        let join = if cgroup_version() == 2 { "cgroup.procs" } else { "tasks" };
        let mut watch = Command::new(&self.floor);
        watch
            .arg("time")
            .arg(calls.join(join))
            .arg(usage_file(self.account()))
            .arg(hidden)
            .arg(program)
            .args(arguments);
        let output = watch.stdin(Stdio::null()).stderr(file).output().expect("the stop-watch");
        let said = std::fs::read_to_string(said).expect("what programs say");
        let text = String::from_utf8(output.stdout).expect("the stop-watch speaks UTF-8");
        let lines: Vec<&str> = text.lines().collect();
        let [wall, peak, code, before, after] = lines[..] else {
            panic!("the stop-watch says {text:?} of {}: {said}", program.display());
        };
        let number = |text: &str| text.parse::<u64>().expect("a number");
        let charged = |line| charged_nanoseconds(line).expect("CPU time");
        Spent {
            wall_ms: millis(Duration::from_nanos(number(wall))),
            cpu_ms: millis(Duration::from_nanos(charged(after) - charged(before))),
            peak_mib: number(peak) as f64 / 1024.0,
            code: code.parse().expect("an exit code"),
            said,
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for cgroup in &self.cgroups {
            remove_cgroup(cgroup);
        }
        umount2(self.home.path(), MntFlags::MNT_DETACH).expect("the file system in memory goes");
    }
}

/// What a new cgroup must have from the one above before a process can join it: cpuset of version 1.
fn inherited(cgroup: &Path) -> Vec<(PathBuf, String)> {
    let above = cgroup.parent().expect("a hierarchy has a top");
    let files = ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| cgroup_version() == 1);
    let value = |name: &&str| Some(std::fs::read_to_string(above.join(name)).ok()?.trim().to_owned());
    files.filter_map(|name| Some((cgroup.join(name), value(name)?))).collect()
}

/// The last word of the first line of `--version`.
fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().and_then(|line| line.split(' ').next_back()).unwrap_or("of no version").to_owned()
}

/// What podman's own profile allows on this machine without further conditions, in the specification's form; nothing
/// where podman is not installed.
fn profile() -> Option<Value> {
    let path = "/usr/share/containers/seccomp.json";
    let Ok(text) = std::fs::read(path) else {
        println!("{path} is not there: nothing is measured with a seccomp profile");
        return None;
    };
    let theirs: Value = serde_json::from_slice(&text).expect("podman's profile is JSON");
    // In the words of Go.
    let machine = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let conditions = |value: &Value| value.as_object().map_or(0, serde_json::Map::len);
    let applies = |rule: &&Value| {
        let includes = &rule["includes"];
        let is_for = includes["arches"].as_array().is_some_and(|all| all.iter().any(|one| one == machine));
        conditions(&rule["excludes"]) == 0 && conditions(includes) == usize::from(is_for)
    };
    let rules = theirs["syscalls"].as_array().expect("a list of rules").iter();
    let rules = rules.filter(applies).map(|rule| {
        let mut ours = json!({ "names": rule["names"], "action": rule["action"] });
        for field in ["args", "errnoRet"] {
            if !rule[field].is_null() {
                ours[field] = rule[field].clone();
            }
        }
        ours
    });
    Some(json!({
        "defaultAction": theirs["defaultAction"],
        "defaultErrnoRet": theirs["defaultErrnoRet"],
        "architectures": if cfg!(target_arch = "x86_64") {
            json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])
        } else {
            json!([])
        },
        "syscalls": rules.collect::<Vec<_>>(),
    }))
}

/// A runtime, or the floor.
struct Program {
    label: String,
    path: PathBuf,
    /// A mount that it does not see, if any.
    hidden: &'static str,
    state: PathBuf,
    bundle: Bundle,
}

impl Program {
    fn is_floor(&self) -> bool {
        self.label == FLOOR
    }

    fn can_filter(&self, ground: &Ground) -> bool {
        !self.is_floor() && ground.profile.is_some()
    }

    /// Writes the configuration for a verb that reads it.
    fn prepare(&self, ground: &Ground, verb: &str, id: &str, words: &[&str]) {
        if self.is_floor() || !matches!(verb, "create" | "run" | RUN_FILTERED) {
            return;
        }
        let limits = json!({
            "memory": { "limit": MEMORY_BYTES.parse::<u64>().expect("a number") },
            "pids": { "limit": PROCESSES.parse::<u64>().expect("a number") },
        });
        let profile = ground.profile.clone().filter(|_| verb == RUN_FILTERED);
        let linux = json!({ "cgroupsPath": ground.cgroup_path(id), "resources": limits, "seccomp": profile });
        self.bundle.clone().with(json!({ "process": { "args": words }, "linux": linux })).save();
    }

    fn call(&self, ground: &Ground, verb: &str, id: &str, words: &[&str]) -> Spent {
        let arguments =
            if self.is_floor() { self.floors(ground, verb, id, words) } else { self.runcs(verb, id, words) };
        ground.time(self.hidden, &self.path, &arguments)
    }

    /// Arguments in runc's manner.
    fn runcs(&self, verb: &str, id: &str, words: &[&str]) -> Vec<String> {
        let verb = if verb == RUN_FILTERED { "run" } else { verb };
        let mut arguments = vec!["--root".to_owned(), text(&self.state)];
        arguments.extend(verb.split(' ').map(str::to_owned));
        if matches!(verb, "create" | "run") {
            arguments.extend(["--bundle".to_owned(), text(self.bundle.path())]);
        }
        arguments.push(id.to_owned());
        if verb == "exec" {
            arguments.extend(words.iter().map(|word| (*word).to_owned()));
        }
        arguments
    }

    /// Arguments of the floor, see there.
    fn floors(&self, ground: &Ground, verb: &str, id: &str, words: &[&str]) -> Vec<String> {
        let cgroups: Vec<PathBuf> = ground.cgroups.iter().map(|cgroup| cgroup.join(id)).collect();
        let mut asked: Vec<String> = cgroups.iter().map(|cgroup| text(cgroup)).collect();
        let mut arguments = vec![verb.split(' ').next().expect("a verb").to_owned()];
        if verb != "run" {
            arguments.push(text(&self.state.join(id)));
        }
        if matches!(verb, "create" | "run") {
            arguments.push(text(&self.bundle.root()));
            for cgroup in &ground.cgroups {
                asked.extend(
                    limits(cgroup)
                        .into_iter()
                        .map(|(name, value)| format!("{}={value}", text(&cgroup.join(id).join(name)))),
                );
            }
        }
        if !matches!(verb, "start" | "state") {
            arguments.extend(asked);
        }
        if matches!(verb, "create" | "run" | "exec") {
            arguments.push("--".to_owned());
            arguments.extend(words.iter().map(|word| (*word).to_owned()));
        }
        arguments
    }

    /// Whether it makes the container that is meant; what not.
    fn verify(&self, ground: &Ground) -> Result<(), String> {
        let inside = "[ $$ = 1 ] && [ \"$(cat /proc/sys/kernel/hostname)\" = probed ] && [ -c /dev/null ] && \
                      [ -e /dev/pts/ptmx ] && [ -d /dev/mqueue ] && [ -d /sys/kernel ] && ! [ -s /proc/keys ] && \
                      ! [ -e /proc/acpi/wakeup ] || exit 1; \
                      while read -r line; do case $line in *:/) ;; *) exit 2 ;; esac; done < /proc/self/cgroup; exit 42";
        let expect = |verb: &str, id: &str, words: &[&str], code: i32| {
            self.prepare(ground, verb, id, words);
            let used = self.call(ground, verb, id, words);
            if used.code == code { Ok(()) } else { Err(format!("{verb} ends with {}: {}", used.code, used.said)) }
        };
        expect("run", "v0", &["/bin/sh", "-c", inside], 42)?;
        if self.can_filter(ground) {
            expect(RUN_FILTERED, "v1", &["/bin/sh", "-c", inside], 42)?;
        }
        expect("create", "v2", &["/bin/sleep", "100000"], 0)?;
        let limits = if cgroup_version() == 2 {
            [("", "memory.max", MEMORY_BYTES), ("", "pids.max", PROCESSES)]
        } else {
            [("memory", "memory.limit_in_bytes", MEMORY_BYTES), ("pids", "pids.max", PROCESSES)]
        };
        for (hierarchy, file, value) in limits {
            let top = ground.cgroups.iter().find(|cgroup| cgroup.to_string_lossy().contains(hierarchy));
            let path = top.expect("a hierarchy with the controller").join("v2").join(file);
            let found = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            if found.trim() != value {
                return Err(format!("{} is {}, not {value}", path.display(), found.trim()));
            }
        }
        expect("start", "v2", &[], 0)?;
        expect("exec", "v2", &["/bin/sh", "-c", "[ $$ != 1 ] && [ -d /proc/1 ] && exit 43"], 43)?;
        expect("state", "v2", &[], 0)?;
        expect("delete --force", "v2", &[], 0)?;
        let left: Vec<_> = ground.cgroups.iter().map(|cgroup| cgroup.join("v2")).filter(|path| path.exists()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
    }
}

/// What the floor writes into a cgroup below this one: cpuset, the limits, and the rules of the specification's devices.
fn limits(above: &Path) -> Vec<(String, String)> {
    let has = |name: &str| above.join(name).exists();
    let mut writes: Vec<(String, String)> = Vec::new();
    for (path, value) in inherited(&above.join("new")) {
        writes.push((path.file_name().expect("a file").to_string_lossy().into_owned(), value));
    }
    for (name, value) in
        [("memory.limit_in_bytes", MEMORY_BYTES), ("memory.max", MEMORY_BYTES), ("pids.max", PROCESSES)]
    {
        if has(name) {
            writes.push((name.to_owned(), value.to_owned()));
        }
    }
    if has("devices.deny") {
        writes.push(("devices.deny".to_owned(), "a".to_owned()));
        let nodes =
            ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:1", "5:2", "136:*"].map(|node| format!("c {node} rwm"));
        let rules = ["c *:* m".to_owned(), "b *:* m".to_owned()].into_iter().chain(nodes);
        writes.extend(rules.map(|rule| ("devices.allow".to_owned(), rule)));
    }
    writes
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}
