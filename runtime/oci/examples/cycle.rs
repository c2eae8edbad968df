//! Time of create, start, exec and removal of a container of /bin/true, full namespaces and limits: minimum and median.
//!
//! `cargo run --release -p portreeve-oci --example cycle -- [rounds] [pause in ms]`, as root, with a static /bin/busybox.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use oci_spec::runtime::Spec;
use portreeve_oci::cgroup::Cgroup;
use portreeve_oci::{ContainerRef, Create, Exec, RootFs, Stdio, exec};
use portreeve_sys::process::{pidfd_send_signal, wait};
use serde_json::json;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let (rounds, pause) = (arguments.next().unwrap_or(100), Duration::from_millis(arguments.next().unwrap_or(0)));
    let directory = tempfile::tempdir()?;
    let layer = directory.path().join("layer");
    std::fs::create_dir_all(layer.join("bin"))?;
    std::fs::copy("/bin/busybox", layer.join("bin/busybox"))?;
    for name in ["true", "sleep"] {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(name))?;
    }
    let (mut runs, mut execs, mut creates, mut starts, mut removals) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let place = |name: &str| directory.path().join(format!("{name}{round}"));
        std::fs::create_dir(place("upper"))?;
        std::fs::create_dir(place("work"))?;
        let rootfs = RootFs::Overlay { lower: vec![layer.clone()], upper: place("upper"), work: place("work") };
        let cgroup = Cgroup::at(&format!("/prt-test-{}-{round}", std::process::id()))?;
        std::thread::sleep(pause);
        let program = if round % 2 == 0 { ["true", "0"] } else { ["sleep", "100"] };
        let spec = spec(&program)?;
        let begin = Instant::now();
        let created = portreeve_oci::create(Create::new("cycle", &spec, rootfs, &cgroup, null()?))?;
        creates.push(begin.elapsed());
        let (running, starter) = created.split();
        let starting = Instant::now();
        starter.start()?;
        starts.push(starting.elapsed());
        if round % 2 == 0 {
            wait(running.pidfd.as_fd())?;
            runs.push(begin.elapsed());
        } else {
            let begin = Instant::now();
            let container = ContainerRef { pidfd: running.pidfd.as_fd(), spec: &spec, cgroup: Some(&cgroup) };
            let mut process = spec.process().clone().ok_or("no process")?;
            process.set_args(Some(vec!["true".into()]));
            let execed = exec(Exec::new(container, &process, null()?))?;
            wait(execed.pidfd.as_fd())?;
            execs.push(begin.elapsed());
        }
        let begin = Instant::now();
        let _ = pidfd_send_signal(running.pidfd.as_fd(), 9);
        cgroup.kill_all()?;
        let _ = wait(running.pidfd.as_fd());
        cgroup.wait_empty(Duration::from_secs(2))?;
        cgroup.remove()?;
        removals.push(begin.elapsed());
    }
    for (name, times) in [
        ("run true", runs),
        ("create", creates),
        ("start", starts),
        ("exec true", execs),
        ("kill and remove", removals),
    ] {
        print(name, times);
    }
    let usage =
        |text: String| text.lines().filter(|line| line.starts_with("VmHWM")).map(str::to_owned).collect::<String>();
    println!("{}", usage(std::fs::read_to_string("/proc/self/status")?));
    Ok(())
}

fn print(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1000.0);
    println!(
        "{name:16} {:6.2} {:6.2} ms (minimum, median of {})",
        ms(times.first()),
        ms(times.get(times.len() / 2)),
        times.len()
    );
}

fn null() -> Result<Stdio, Error> {
    let open = || std::fs::OpenOptions::new().write(true).open("/dev/null").map(OwnedFd::from);
    Ok(Stdio::Pipes { stdin: None, stdout: open()?, stderr: open()? })
}

fn spec(arguments: &[&str]) -> Result<Spec, Error> {
    let spec = json!({
        "ociVersion": "1.2.0", "hostname": "box", "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "args": arguments, "env": ["PATH=/bin"], "cwd": "/", "noNewPrivileges": true,
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "ipc"}, {"type": "cgroup"}],
            "resources": {"memory": {"limit": 67_108_864}, "pids": {"limit": 100}},
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    });
    Ok(serde_json::from_value(spec)?)
}
