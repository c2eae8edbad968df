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
