//! Containerd beside us: the same pods through its CRI, with runc and the CNI's bridge.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use portreeve_e2e::measure::{Account, Figures};
use portreeve_e2e::{Cri, Enclosure, Image, Peers, Registry, wait_until};

use crate::Settings;
use crate::pods::Bench;

/// What it is called in tables.
pub(crate) fn name(peers: &Peers) -> String {
    format!("containerd {}, runc {}", peers.version("containerd"), peers.version("runc"))
}

/// Measures it in namespaces of its own.
pub(crate) fn measure(settings: &Settings, peers: Peers, program: &str, figures: &mut Figures) {
    let daemon = peers.program("containerd");
    let cni = peers.cni();
    // Its cgroup can go only when the enclosure, and with that its processes, have gone, also after a failure.
    let mut account = Account::new(&[]);
    let enclosure = Enclosure::new(peers);
    account.watch(Path::new(enclosure.cgroup().trim_start_matches('/')));
    // What its plugins for networks keep, whatever their settings say.
    let hidden = enclosure.call(&["mount", "-t", "tmpfs", "none", "/var/lib"]);
    assert_eq!(hidden.code, 0, "{}", hidden.stderr);
    let world = enclosure.world();
    let registry = Registry::start(world, 5001);
    let busybox = registry.push(&Image::busybox(world.home(), "busybox:1"), "busybox:1");
    let pause = registry.push(&Image::pause(world.home(), "pause:1"), "pause:1");

    std::fs::create_dir_all(enclosure.path("net.d")).expect("the directory of networks");
    let network = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": { "type": "host-local", "dataDir": enclosure.path("addresses"),
                      "ranges": [[{ "subnet": "10.199.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }] },
        }],
    });
    std::fs::write(enclosure.path("net.d/10-bench.conflist"), network.to_string()).expect("writing a network");
    let socket = enclosure.path("socket");
    let configuration = format!(
        "version = 3\nroot = '{root}'\nstate = '{state}'\n[grpc]\naddress = '{socket}'\n\
         [plugins.'io.containerd.internal.v1.opt']\npath = '{opt}'\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{pause}'\n\
         [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['{cni}']\nconf_dir = '{networks}'\n",
        root = enclosure.path("containerd").display(),
        state = enclosure.path("containerd-state").display(),
        socket = socket.display(),
        opt = enclosure.path("opt").display(),
        cni = cni.display(),
        networks = enclosure.path("net.d").display(),
    );
    std::fs::write(enclosure.path("containerd.toml"), configuration).expect("writing containerd's configuration");
    let log = enclosure.path("containerd.log");
    let mut command = account.command(|shell| enclosure.command(shell), daemon);
    command.arg("--config").arg(enclosure.path("containerd.toml")).stdin(Stdio::null()).stdout(Stdio::null());
    let mut daemon = command.stderr(File::create(&log).expect("a file for the log")).spawn().expect("nsenter");

    wait_until("containerd listens", 30, || if socket.exists() { Ok(()) } else { Err("no socket".to_owned()) });
    let cri = Cri::connect(&socket);
    for image in [&busybox, &pause] {
        cri.pull(image).expect("pulling an image");
    }
    // The kernel keeps 15 bytes of a name.
    let processes = || ["containerd", "containerd-shim"].into_iter().flat_map(|name| account.processes(name)).collect();
    let bench = Bench {
        out: enclosure.path("out"),
        logs: enclosure.path("logs"),
        cgroup_parent: enclosure.cgroup().to_owned(),
        account: &account,
        processes: &processes,
        cri,
        image: busybox,
        program,
    };
    bench.measure(settings, figures);
    drop(bench);
    drop(registry);
    // Its processes end with it.
    drop(enclosure);
    let _ = daemon.wait();
    drop(account);
}
