//! Podman beside us: the same pods by `podman kube play`.

use std::path::Path;
use std::time::{Duration, Instant};

use portreeve_e2e::measure::{Account, Figures, appeared, millis, pss_kib, watch};
use portreeve_e2e::{BUSYBOX, Image, World};

use crate::Settings;
use crate::files::{CYCLE, GONE, IDLE, RUNNING, SHIM_PSS, all_gone, all_running, big, pulled, toucher};

/// Measures `podman kube play` and `kube down` with its OCI runtime of choice; says what it is called in tables.
pub(crate) fn measure(settings: &Settings, report: &mut Figures) -> String {
    let world = World::new("podman");
    let title = world.sh("podman --version").trim().replace(" version", "") + " kube play";
    let program = title.as_str();
    // Where this process may not raise limits, podman's own defaults are refused; and crun
    // refuses a cgroup v1 machine that shows it the v2 hierarchy as well. Neither costs time.
    let configuration = world.path("containers.conf");
    std::fs::write(&configuration, "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n")
        .expect("writing podman's configuration");
    world.sh("! [ -d /sys/fs/cgroup/unified ] || mount -t tmpfs none /sys/fs/cgroup/unified");
    let image = Image::busybox(world.home(), BUSYBOX);
    let account = Account::new(&[Path::new("libpod_parent")]);
    let podman = |arguments: &[&str]| {
        let mut command = account.command(|shell| world.command(shell), "podman");
        command.env("CONTAINERS_CONF", &configuration);
        command.arg("--root").arg(world.path("podman")).arg("--runroot").arg(world.path("podman-run"));
        let output = command.args(["--cgroup-manager", "cgroupfs"]).args(arguments).output().expect("podman");
        output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    if let Err(error) = podman(&["load", "-q", "-i", &image.tar.to_string_lossy()]) {
        println!("podman does not run here: {error}");
        return title;
    }
    let out = world.path("out");
    let inotify = watch(&out);
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let file = world.path("pod.yaml").to_string_lossy().into_owned();
    let cycles = settings.single.min(10);
    let before = account.nanoseconds();
    for number in 0..cycles {
        std::fs::write(&file, toucher(&format!("s{number}"), BUSYBOX, &out)).expect("writing a manifest");
        let begun = Instant::now();
        if let Err(error) = podman(&["kube", "play", &file]) {
            println!("podman kube play does not run here: {error}");
            return title;
        }
        appeared(&inotify, 1);
        up.push(begun.elapsed());
        let begun = Instant::now();
        podman(&["kube", "down", &file]).expect("podman kube down");
        down.push(begun.elapsed());
    }
    let cpu = Duration::from_nanos((account.nanoseconds() - before) / cycles.max(1) as u64);
    report.times(program, RUNNING, &up);
    report.times(program, GONE, &down);
    report.one(program, CYCLE, millis(cpu));

    let all: Vec<String> = (0..settings.pods).map(|number| toucher(&format!("m{number}"), BUSYBOX, &out)).collect();
    std::fs::write(&file, all.join("---\n")).expect("writing a manifest");
    let begun = Instant::now();
    let played = podman(&["kube", "play", &file]);
    if let Err(error) = &played {
        println!("podman kube play of {} pods failed: {error}", settings.pods);
    } else {
        appeared(&inotify, settings.pods);
        let took = millis(begun.elapsed());
        report.one(program, &all_running(settings.pods), took);
        let keepers: Vec<u64> = account.processes("conmon").iter().map(|pid| pss_kib(pid)).collect();
        report.one(program, "shims", keepers.len() as f64);
        let each = keepers.iter().sum::<u64>() as f64 / 1024.0 / keepers.len().max(1) as f64;
        report.one(program, SHIM_PSS, each);
        let before = account.nanoseconds();
        std::thread::sleep(Duration::from_secs(settings.idle));
        let used = Duration::from_nanos(account.nanoseconds() - before).as_secs_f64();
        report.one(program, IDLE, 100.0 * used / settings.idle.max(1) as f64);
    }
    let begun = Instant::now();
    podman(&["kube", "down", &file]).expect("podman kube down");
    if played.is_ok() {
        let took = millis(begun.elapsed());
        report.one(program, &all_gone(settings.pods), took);
    }

    if settings.pull > 0 {
        let (_registry, reference) = big(&world, settings.pull);
        let begun = Instant::now();
        match podman(&["pull", "-q", "--tls-verify=false", &reference]) {
            Ok(()) => report.one(program, &pulled(settings.pull), millis(begun.elapsed())),
            Err(error) => println!("podman pull does not run here: {error}"),
        }
    }
    title
}
