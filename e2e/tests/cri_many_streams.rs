//! Many streams at a time, and clients that take their time: nobody gets what is another one's, and nobody waits for them.

use std::io::Read as _;
use std::time::{Duration, Instant};

use portreeve_e2e::cri::{pod, shell, v1};
use portreeve_e2e::streaming::{Spdy, over_socket, over_spdy};
use portreeve_e2e::{Agent, BUSYBOX, Cri, World, skipped_without_root, wait_until};

/// A pod whose container runs a line.
fn run(cri: &Cri, world: &World, line: &str, stdin: bool) -> (String, String) {
    let config = pod("many", &world.path("cri-logs"));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let wanted = v1::ContainerConfig { stdin, ..shell("main", BUSYBOX, line) };
    let container = cri.create(&sandbox, wanted, &config).unwrap();
    cri.start(&container).unwrap();
    (sandbox, container)
}

fn exec(container: &str, line: &str, stdin: bool) -> v1::ExecRequest {
    v1::ExecRequest {
        container_id: container.to_owned(),
        cmd: ["sh", "-c", line].map(str::to_owned).to_vec(),
        stdin,
        stdout: true,
        stderr: true,
        ..v1::ExecRequest::default()
    }
}

fn url(cri: &Cri, request: v1::ExecRequest) -> String {
    cri.runtime(async |mut runtime| runtime.exec(request).await).unwrap().url
}

/// The pid of a pod's shim.
fn shim(cri: &Cri, sandbox: &str) -> String {
    let asked = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: true };
    let told = cri.runtime(async |mut runtime| runtime.pod_sandbox_status(asked).await).unwrap();
    let info: serde_json::Value = serde_json::from_str(&told.info["info"]).unwrap();
    info["pid"].to_string()
}

#[test]
fn a_hundred_streams_at_once_each_have_their_own_bytes() {
    const EXECS: usize = 80;
    const ATTACHED: usize = 20;
    if skipped_without_root("cri_many_streams") {
        return;
    }
    let world = World::new("cri-hundred");
    let agent = Agent::with_busybox(&world);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    // Whoever is attached sees all that the container says, from when it is told to begin.
    let line =
        "while [ ! -e /go ]; do sleep 0.1; done; i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; exit 7";
    let (sandbox, id) = run(&cri, &world, line, false);
    let (other, busy) = run_beside(&cri, &world);
    let shim = shim(&cri, &sandbox);
    let descriptors = || std::fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    let before = descriptors();
    let said: String = (0..500).map(|number| format!("line {number}\n")).collect();
    let attach = v1::AttachRequest { container_id: id.clone(), stdout: true, stderr: true, ..Default::default() };
    let attached: Vec<String> = (0..ATTACHED)
        .map(|_| cri.runtime(async |mut runtime| runtime.attach(attach.clone()).await).unwrap().url)
        .collect();
    let commands: Vec<String> = (0..EXECS)
        .map(|number| url(&cri, exec(&busy, &format!("cat; echo {number} >&2; exit {}", number % 50), true)))
        .collect();
    let input = |number: usize| format!("these are the bytes of {number}\n").repeat(4000).into_bytes();
    std::thread::scope(|scope| {
        for (number, address) in attached.iter().enumerate() {
            let (world, said) = (&world, &said);
            scope.spawn(move || {
                let found = match number % 2 {
                    0 => over_spdy(world, address, &["stdout", "stderr"], b"", None),
                    _ => over_socket(world, address, None, None),
                };
                assert!(found.stdout == said.as_bytes(), "{number}: {}", String::from_utf8_lossy(&found.stdout));
            });
        }
        for (number, address) in commands.iter().enumerate() {
            let world = &world;
            scope.spawn(move || {
                let input = input(number);
                let found = match number % 2 {
                    0 => over_spdy(world, address, &["stdin", "stdout", "stderr"], &input, None),
                    _ => over_socket(world, address, Some(&input), None),
                };
                assert!(found.stdout == input, "{number} has {} bytes", found.stdout.len());
                assert_eq!(String::from_utf8_lossy(&found.stderr), format!("{number}\n"));
                assert_eq!(found.exit_code(), Some(i32::try_from(number % 50).unwrap()));
            });
        }
        // For each that is attached the shim has the ends of two pipes.
        wait_until("all are attached", 30, || match descriptors() {
            now if now >= before + 2 * ATTACHED => Ok(()),
            now => Err(format!("{now} descriptors, {before} before")),
        });
        assert_eq!(cri.inside(&id, "touch /go"), "");
    });
    assert_eq!(cri.wait_exited(&id).exit_code, 7);
    for sandbox in [sandbox, other] {
        cri.remove_sandbox(&sandbox).unwrap();
    }
}

/// Another pod, whose container waits.
fn run_beside(cri: &Cri, world: &World) -> (String, String) {
    let config = pod("beside", &world.path("cri-logs-beside"));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let container = cri.create(&sandbox, shell("main", BUSYBOX, "sleep 1000"), &config).unwrap();
    cri.start(&container).unwrap();
    (sandbox, container)
}

/// What a process has written to of its memory: how much of the program is there depends on who else executes it.
fn own_memory_kib(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_client_that_reads_slowly_costs_no_memory_and_holds_up_nobody() {
    /// What the agent and the shim may grow by: some buffers, not the ten megabytes.
    const GROWTH_KIB: u64 = 3 * 1024;
    if skipped_without_root("cri_many_streams") {
        return;
    }
    let world = World::new("cri-slow");
    let agent = Agent::with_busybox(&world);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let (sandbox, id) = run(&cri, &world, "sleep 1000", false);
    let shim = shim(&cri, &sandbox);
    let both = || own_memory_kib(&agent.pid().to_string()) + own_memory_kib(&shim);
    // What a first stream needs in any case.
    let first = url(&cri, exec(&id, "head -c 10000000 /dev/zero", false));
    assert_eq!(over_spdy(&world, &first, &["stdout", "stderr"], b"", None).stdout.len(), 10_000_000);
    let before = both();

    let address = url(&cri, exec(&id, "head -c 10000000 /dev/zero; echo written > /written", false));
    let mut slow = Spdy::connect(&world, &address, "v4.channel.k8s.io");
    for kind in ["error", "stdout", "stderr"] {
        slow.open(&[("streamtype", kind)]);
    }
    let mut reader = slow.writer();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        reader.read_exact(&mut [0; 1024]).unwrap();
        let asked = Instant::now();
        assert_eq!(cri.inside(&id, "echo served"), "served");
        let quick = url(&cri, exec(&id, "echo quick", false));
        assert_eq!(over_socket(&world, &quick, None, None).stdout, b"quick\n");
        assert!(asked.elapsed() < Duration::from_secs(5), "others waited {:?}", asked.elapsed());
        let grown = both().saturating_sub(before);
        assert!(grown < GROWTH_KIB, "{grown} KiB more than before");
        std::thread::sleep(Duration::from_secs(1));
    }
    // It is the command that waits.
    assert_eq!(cri.inside(&id, "test -e /written || echo waits"), "waits");
    drop((slow, reader));
    cri.remove_sandbox(&sandbox).unwrap();
}
