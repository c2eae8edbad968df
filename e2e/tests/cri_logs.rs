//! Where containers of a kubelet log, and that nobody leads a log elsewhere.

use std::os::unix::fs::symlink;

use portreeve_e2e::cri::{code, pod, shell, v1};
use portreeve_e2e::{Agent, BUSYBOX, Cri, World, skipped_without_root, wait_until};
use tonic::Code;

#[test]
fn no_link_leads_a_log_out_of_its_pods_directory() {
    if skipped_without_root("cri_logs") {
        return;
    }
    let world = World::new("cri-logs");
    let agent = Agent::with_busybox(&world);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let (real, logs, outside) = (world.path("real-logs"), world.path("cri-logs"), world.path("outside"));
    for directory in [&real, &outside] {
        std::fs::create_dir(directory).unwrap();
    }
    // As where a machine has /var/log elsewhere.
    symlink(&real, &logs).unwrap();
    let config = pod("a", &logs);
    let sandbox = cri.run_sandbox(&config).unwrap();
    let create = |name: &str, log_path: &str| {
        let line = "while :; do echo line; sleep 0.05; done";
        let wanted = v1::ContainerConfig { log_path: log_path.to_owned(), ..shell(name, BUSYBOX, line) };
        cri.create(&sandbox, wanted, &config)
    };
    let reopen = |container: &str| {
        let asked = v1::ReopenContainerLogRequest { container_id: container.to_owned() };
        cri.runtime(async |mut runtime| runtime.reopen_container_log(asked).await)
    };
    let lines = |path: &str| std::fs::read_to_string(real.join(path)).unwrap_or_default().lines().count();
    let id = create("main", "main/0.log").unwrap();
    cri.start(&id).unwrap();
    wait_until("it logs", 10, || if lines("a/main/0.log") > 0 { Ok(()) } else { Err("nothing".to_owned()) });
    // As a kubelet rotates.
    std::fs::rename(real.join("a/main/0.log"), real.join("a/main/0.log.1")).unwrap();
    reopen(&id).unwrap();
    wait_until("it logs anew", 10, || if lines("a/main/0.log") > 0 { Ok(()) } else { Err("nothing".to_owned()) });

    // As a pod does that may write where logs are.
    std::fs::rename(real.join("a/main"), real.join("a/moved")).unwrap();
    for name in ["main", "late"] {
        symlink(&outside, real.join("a").join(name)).unwrap();
    }
    assert!(reopen(&id).is_err());
    assert!(create("late", "late/0.log").is_err());
    assert!(create("deep", "late/deep/0.log").is_err());
    let before = lines("a/moved/0.log");
    wait_until("it logs where it did", 10, || {
        if lines("a/moved/0.log") > before { Ok(()) } else { Err("nothing".to_owned()) }
    });
    symlink(&outside, real.join("b")).unwrap();
    assert_eq!(code(cri.run_sandbox(&pod("b", &logs))), Code::InvalidArgument);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    cri.remove_sandbox(&sandbox).unwrap();
}

#[test]
fn a_log_that_was_renamed_is_opened_anew_and_never_rotated_by_us() {
    if skipped_without_root("cri_logs") {
        return;
    }
    let world = World::new("cri-log");
    let agent = Agent::with_busybox(&world);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let logs = world.path("cri-logs");
    let config = pod("a", &logs);
    let sandbox = cri.run_sandbox(&config).unwrap();
    // More than the 10 MiB at which logs of manifests are rotated.
    let line = "dd if=/dev/zero bs=1M count=13 2>/dev/null | tr '\\0' x; echo; while :; do echo tick; sleep 0.1; done";
    let line = line.replace("tr '\\0' x", "cat");
    let id = cri.create(&sandbox, shell("main", BUSYBOX, &line), &config).unwrap();
    cri.start(&id).unwrap();
    let log = logs.join("a/main.log");
    let ticks = |path: &std::path::Path| {
        let text = std::fs::read(path).map_err(|error| error.to_string())?;
        let ends = text.ends_with(b" stdout F tick\n");
        if ends { Ok(text.len()) } else { Err(format!("{} bytes", text.len())) }
    };
    let length = wait_until("it ticks", 30, || ticks(&log));
    assert!(length > 13 << 20);
    let names = || {
        let folder = std::fs::read_dir(logs.join("a")).unwrap();
        let mut names: Vec<_> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["main.log"]);
    let renamed = logs.join("a/main.log.20261122");
    std::fs::rename(&log, &renamed).unwrap();
    let reopen = |container: &str| {
        let request = v1::ReopenContainerLogRequest { container_id: container.to_owned() };
        cri.runtime(async |mut runtime| runtime.reopen_container_log(request).await)
    };
    reopen(&id).unwrap();
    let fresh = wait_until("the new file ticks", 10, || ticks(&log));
    assert!(fresh < 1 << 20);
    let old = std::fs::metadata(&renamed).unwrap().len();
    wait_until("the new file grows", 10, || {
        ticks(&log).and_then(|now| if now > fresh { Ok(()) } else { Err(String::new()) })
    });
    assert_eq!(std::fs::metadata(&renamed).unwrap().len(), old, "nothing goes to the renamed file any more");
    assert_eq!(code(reopen(&"0123456789abcdef".repeat(4))), Code::NotFound);
    cri.remove_sandbox(&sandbox).unwrap();
}
