//! Devices that a container is given by name, CDI: what a specification says is there inside, and what cannot be is refused.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use portreeve_e2e::cri::{pod, shell, v1};
use portreeve_e2e::{
    Agent, BUSYBOX, Cri, OTHERS, Peers, World, preload_busybox, skipped, skipped_without_own_users,
    skipped_without_root, wait_until,
};
use serde_json::{Value, json};
use tonic::Code;

/// A node of the machine that no container may use by itself.
const NODE: &str = "/dev/kmsg";

fn connect(agent: &Agent<'_>) -> Cri {
    Cri::connect(&agent.run_dir().join("cri.sock"))
}

fn sandbox(cri: &Cri, world: &World, users: Option<v1::UserNamespace>) -> (String, v1::PodSandboxConfig) {
    let mut config = pod("a", &world.path("cri-logs"));
    let options =
        v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), userns_options: users, ..Default::default() };
    let context = v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    config.linux = Some(v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() });
    (cri.run_sandbox(&config).unwrap_or_else(|refused| panic!("{refused}")), config)
}

/// A container that sleeps and is given these devices.
fn with(name: &str, devices: &[&str]) -> v1::ContainerConfig {
    let cdi_devices = devices.iter().map(|name| v1::CdiDevice { name: (*name).to_owned() }).collect();
    v1::ContainerConfig { cdi_devices, ..shell(name, BUSYBOX, "sleep 1000") }
}

fn start(cri: &Cri, (sandbox, config): &(String, v1::PodSandboxConfig), wanted: v1::ContainerConfig) -> String {
    let id = cri.create(sandbox, wanted, config).unwrap_or_else(|refused| panic!("{refused}"));
    cri.start(&id).unwrap_or_else(|refused| panic!("{refused}"));
    id
}

fn clear(cri: &Cri) {
    for sandbox in cri.sandboxes(v1::PodSandboxFilter::default()) {
        cri.remove_sandbox(&sandbox.id).unwrap();
    }
}

/// Puts a specification of `vendor.com/<class>` on the node.
fn put(agent: &Agent<'_>, class: &str, edits: &Value, devices: &[(&str, Value)]) -> PathBuf {
    let devices: Vec<Value> =
        devices.iter().map(|(name, edits)| json!({ "name": name, "containerEdits": edits })).collect();
    let kind = format!("vendor.com/{class}");
    let text = json!({ "cdiVersion": "1.1.0", "kind": kind, "containerEdits": edits, "devices": devices });
    write(agent, &format!("{class}.json"), &text.to_string())
}

fn write(agent: &Agent<'_>, file: &str, text: &str) -> PathBuf {
    std::fs::create_dir_all(agent.device_specifications()).unwrap();
    let path = agent.device_specifications().join(file);
    std::fs::write(&path, text).unwrap();
    path
}

/// A shell line as a hook.
fn hook(kind: &str, line: &str) -> Value {
    let env = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"];
    json!({ "hookName": kind, "path": "/bin/sh", "args": ["sh", "-c", line], "env": env })
}

fn lacks_node(test: &str) -> bool {
    let there = std::fs::metadata(NODE).is_ok_and(|found| found.file_type().is_char_device());
    if !there {
        skipped(test, &format!("this machine has no {NODE}"));
    }
    !there
}

#[test]
fn a_container_has_what_the_specifications_of_its_devices_say() {
    let test = "a_container_has_what_the_specifications_of_its_devices_say";
    if skipped_without_root(test) || lacks_node(test) {
        return;
    }
    let world = World::new("cri-cdi");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let pod = sandbox(&cri, &world, None);
    let share = world.path("share");
    std::fs::create_dir(&share).unwrap();
    std::fs::write(share.join("driver"), "of the node").unwrap();
    let everybodys = json!({
        "env": ["CLASS=gpu", "WHO=class"],
        "mounts": [{ "hostPath": share, "containerPath": "/opt/driver", "options": ["ro", "rbind", "nosuid", "nodev"] }],
    });
    let one = json!({
        "env": ["WHO=one", "ONE=1"],
        "deviceNodes": [{ "path": "/dev/vendor/one", "hostPath": NODE, "permissions": "w", "fileMode": 0o620 }],
        "additionalGids": [4567],
    });
    put(&agent, "gpu", &everybodys, &[("one", one), ("two", json!({ "env": ["TWO=2"] }))]);
    let net = "cdiVersion: 0.3.0\nkind: vendor.com/net\ndevices:\n- name: x\n  containerEdits:\n    env: [NET=x]\n";
    write(&agent, "net.yaml", net);

    // By the field, and by an annotation of a device plugin, which names one of them again.
    let mut wanted = with("main", &["vendor.com/gpu=one"]);
    let annotation = ("cdi.k8s.io/plugin_0".to_owned(), "vendor.com/gpu=one,vendor.com/net=x".to_owned());
    wanted.annotations = [annotation].into();
    let id = start(&cri, &pod, wanted);
    let variables = "echo $CLASS $WHO $ONE \"<$TWO>\" $NET";
    let seen = cri.exec(&id, &["sh", "-c", variables], 5).unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout).trim(), "gpu one 1 <> x");
    let number = std::fs::metadata(NODE).unwrap().rdev();
    let number = format!("{:x} {:x}", rustix::fs::major(number), rustix::fs::minor(number));
    assert_eq!(cri.inside(&id, "stat -c '%t %T %a' /dev/vendor/one"), format!("{number} 620"));
    let tries = |id: &str, line: &str| cri.exec(id, &["sh", "-c", line], 5).unwrap().exit_code == 0;
    assert!(tries(&id, "exec 3>/dev/vendor/one"), "the rule that goes with it");
    assert!(!tries(&id, "exec 3</dev/vendor/one"), "and no more than that");
    assert_eq!(cri.inside(&id, "cat /opt/driver/driver"), "of the node");
    assert!(!tries(&id, "touch /opt/driver/x"));
    let groups = cri.container(&id).unwrap().user.unwrap().linux.unwrap().supplemental_groups;
    assert!(groups.contains(&4567) && cri.inside(&id, "id -G").ends_with("4567"), "{groups:?}");

    // One without it makes the node itself, and cannot use it.
    let id = start(&cri, &pod, with("without", &["vendor.com/gpu=two"]));
    let seen = cri.exec(&id, &["sh", "-c", variables], 5).unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout).trim(), "gpu class <2>");
    let made = NODE.replace("/dev/", "/tmp/");
    let [major, minor] = [rustix::fs::major, rustix::fs::minor].map(|of| of(std::fs::metadata(NODE).unwrap().rdev()));
    assert!(tries(&id, &format!("mkdir -p /tmp && mknod {made} c {major} {minor}")));
    assert!(!tries(&id, &format!("exec 3>{made}")));
    clear(&cri);
}

#[test]
fn hooks_run_on_the_node_with_the_state_and_the_last_ones_at_the_end_also_without_an_agent() {
    if skipped_without_root("cri_devices: hooks") {
        return;
    }
    let world = World::new("cri-cdi-hooks");
    let mut agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let pod = sandbox(&cri, &world, None);
    let notes = world.path("notes");
    std::fs::create_dir(&notes).unwrap();
    let noting = |kind: &str| {
        let line = format!(
            "cd {0} && cat >> {1} && {{ echo; readlink /proc/self/ns/net; cat /proc/self/oom_score_adj; }} >> {1}",
            notes.display(),
            kind
        );
        hook(kind, &line)
    };
    let kinds = ["prestart", "createRuntime", "poststart", "poststop"];
    let mut hooks: Vec<Value> = kinds.iter().map(|kind| noting(kind)).collect();
    // Its directory is the bundle, and the container's files are there for it.
    hooks.push(hook("createContainer", "grep -q busybox rootfs/www/index.html; echo $? > rootfs/seen"));
    hooks.push(hook("startContainer", "echo inside > /started"));
    put(&agent, "gpu", &json!({ "hooks": hooks }), &[("one", json!({ "env": ["ONE=1"] }))]);
    let id =
        cri.create(&pod.0, with("main", &["vendor.com/gpu=one"]), &pod.1).unwrap_or_else(|refused| panic!("{refused}"));
    let note = |kind: &str| {
        let text = std::fs::read_to_string(notes.join(kind)).unwrap_or_else(|error| panic!("{kind}: {error}"));
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 3, "{kind} ran once: {text}");
        let state: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(state["id"], id, "{kind}");
        assert_eq!(lines[1], world.sh("readlink /proc/self/ns/net").trim(), "{kind} has the node's network");
        assert_eq!(lines[2], "0", "{kind} is killed as readily as others");
        state
    };
    let created = note("createRuntime");
    assert_eq!(created["status"], "creating");
    let bundle = PathBuf::from(created["bundle"].as_str().unwrap());
    let configuration: Value =
        serde_json::from_str(&std::fs::read_to_string(bundle.join("config.json")).unwrap()).unwrap();
    assert_eq!(configuration["root"]["path"], "rootfs");
    let mounted = world.sh(&format!("ls -A {}", bundle.join("rootfs").display()));
    assert_eq!(mounted, "", "nothing is mounted on the node");
    assert_eq!(note("prestart")["pid"], created["pid"]);
    assert!(!notes.join("poststart").exists());

    cri.start(&id).unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(note("poststart")["status"], "running");
    assert_eq!(cri.inside(&id, "cat /seen /started"), "0\ninside");

    // Nobody has to ask for the last ones.
    agent.kill();
    assert!(!notes.join("poststop").exists());
    world.sh(&format!("kill -9 {}", created["pid"]));
    let ended = wait_until("the last hook has run", 20, || {
        let text = std::fs::read_to_string(notes.join("poststop")).map_err(|error| error.to_string())?;
        if text.lines().count() == 3 { Ok(note("poststop")) } else { Err(text) }
    });
    assert_eq!((&ended["status"], &ended["pid"]), (&json!("stopped"), &Value::Null));
    agent.launch();
    let cri = connect(&agent);
    assert_eq!(cri.container(&id).unwrap().exit_code, 137);
    clear(&cri);
    assert_eq!(note("poststop"), ended, "not once more");
}

#[test]
fn hooks_of_containers_that_another_runtime_makes_run_in_the_nodes_namespaces() {
    let Some(peers) = Peers::for_test("cri_devices: hooks by other runtimes") else { return };
    for handler in OTHERS {
        let world = World::new(&format!("cri-cdi-{handler}"));
        // crun refuses to run beside a second hierarchy of version 2.
        world.sh("! [ -d /sys/fs/cgroup/unified ] || mount -t tmpfs none /sys/fs/cgroup/unified");
        preload_busybox(&world);
        let program = format!("{handler}={}", peers.program(handler).display());
        let agent = Agent::start_with(&world, &["--cri-runtime-handler", &program]);
        let (cri, notes) = (connect(&agent), world.path("notes"));
        let namespaces = ["net", "uts", "ipc"];
        let kinds = ["createRuntime", "poststart", "poststop"];
        let noting = |kind: &&str| {
            let found = namespaces.map(|one| format!("$(readlink /proc/$$/ns/{one})")).join(" ");
            hook(kind, &format!("echo {kind} {found} >> {}", notes.display()))
        };
        let hooks: Vec<Value> = kinds.iter().map(noting).collect();
        put(&agent, "gpu", &json!({ "hooks": hooks }), &[("one", json!({ "env": ["ONE=1"] }))]);
        let config = pod("a", &world.path("cri-logs"));
        let sandbox = cri.run_sandbox_by(&config, handler).unwrap();
        let own = (sandbox, config);
        let id = start(&cri, &own, with("main", &["vendor.com/gpu=one"]));
        cri.stop(&id, 0).unwrap();
        cri.remove(&id).unwrap();
        let node = namespaces.map(|one| {
            let link = std::fs::read_link(format!("/proc/{}/ns/{one}", agent.pid())).unwrap();
            link.display().to_string()
        });
        let wanted: Vec<String> = kinds.iter().map(|kind| format!("{kind} {}", node.join(" "))).collect();
        wait_until("all hooks have run", 20, || {
            let seen = std::fs::read_to_string(&notes).unwrap_or_default();
            if seen.lines().eq(wanted.iter()) {
                Ok(())
            } else {
                Err(format!("{handler}: {seen} instead of {wanted:?}"))
            }
        });
        clear(&cri);
    }
}

#[test]
fn a_hook_that_fails_is_the_answer_in_its_own_words() {
    if skipped_without_root("cri_devices: failing hooks") {
        return;
    }
    let world = World::new("cri-cdi-failures");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let pod = sandbox(&cri, &world, None);
    let notes = world.path("stopped");
    let of = |kind: &str, timeout: Option<u32>, line: &str| {
        let mut failing = hook(kind, line);
        if let Some(seconds) = timeout {
            failing["timeout"] = json!(seconds);
        }
        let last = hook("poststop", &format!("echo {kind} >> {}", notes.display()));
        (kind.to_lowercase(), json!({ "hooks": [failing, last] }))
    };
    let complains = "echo the cable is loose >&2; exit 3";
    let mut cases: Vec<_> = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"]
        .iter()
        .map(|kind| (*kind, of(kind, None, complains), "ended with code 3, and said: the cable is loose"))
        .collect();
    cases[1] = ("createRuntime", of("createRuntime", Some(1), "sleep 100"), "it timed out after 1 s");
    let devices: Vec<_> = cases.iter().map(|(_, (name, edits), _)| (name.as_str(), edits.clone())).collect();
    put(&agent, "gpu", &json!({}), &devices);
    for (kind, (name, _), words) in &cases {
        let made = cri.create(&pod.0, with(name, &[&format!("vendor.com/gpu={name}")]), &pod.1);
        let started = made.and_then(|id| cri.start(&id).map(|()| id));
        let refused = started.unwrap_err();
        assert!(refused.message().contains(kind) && refused.message().contains(words), "{kind}: {refused}");
        wait_until("what it has begun is ended", 10, || match std::fs::read_to_string(&notes) {
            Ok(text) if text.lines().filter(|line| line == kind).count() == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    let mut left = cri.containers(v1::ContainerFilter::default());
    left.retain(|one| one.state() != v1::ContainerState::ContainerExited);
    assert!(left.is_empty(), "{left:?}");
    clear(&cri);
    // And nothing of them holds up the pod.
    let pod = sandbox(&cri, &world, None);
    start(&cri, &pod, shell("next", BUSYBOX, "sleep 1000"));
    clear(&cri);
}

#[test]
fn a_device_that_is_unknown_or_cannot_be_given_is_refused_in_words_and_its_file_spoils_no_other() {
    if skipped_without_root("cri_devices: refusals") {
        return;
    }
    let world = World::new("cri-cdi-refusals");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let pod = sandbox(&cri, &world, None);
    let refused = |device: &str| cri.create(&pod.0, with("refused", &[device]), &pod.1).unwrap_err();
    let unknown = refused("vendor.com/gpu=one");
    assert_eq!(unknown.code(), Code::FailedPrecondition, "{unknown}");
    let directory = agent.device_specifications();
    for word in ["vendor.com/gpu=one", directory.to_str().unwrap()] {
        assert!(unknown.message().contains(word), "{unknown}");
    }
    assert_eq!(refused("one").code(), Code::InvalidArgument);

    put(&agent, "gpu", &json!({}), &[("one", json!({ "env": ["ONE=1"] }))]);
    let broken = write(&agent, "broken.yaml", "cdiVersion: 1.0.0\nkind: vendor.com/broken\ndevices: [{nam: x}]\n");
    let open = put(&agent, "open", &json!({}), &[("x", json!({ "env": ["X=1"] }))]);
    world.sh(&format!("chmod 666 {}", open.display()));
    put(
        &agent,
        "wrong",
        &json!({}),
        &[
            ("link", json!({ "netDevices": [{ "hostInterfaceName": "lo", "name": "x" }] })),
            ("share", json!({ "intelRdt": { "closID": "portreeve-e2e-none" } })),
            ("root", json!({ "mounts": [{ "hostPath": "/", "containerPath": "/proc", "options": ["rbind"] }] })),
        ],
    );
    for (device, words) in [
        ("vendor.com/broken=x", format!("{}: ", broken.display())),
        ("vendor.com/open=x", "chmod go-w".to_owned()),
        ("vendor.com/gpu=two", "of its kind there are vendor.com/gpu=one".to_owned()),
        ("vendor.com/wrong=link", "containerEdits.netDevices: ".to_owned()),
        ("vendor.com/wrong=root", "/proc".to_owned()),
    ] {
        let refused = refused(device);
        assert!(refused.message().contains(&words), "{device}: {refused}");
    }
    if !std::path::Path::new("/sys/fs/resctrl/schemata").exists() {
        let refused = refused("vendor.com/wrong=share");
        assert!(refused.message().contains("resctrl"), "{refused}");
    }
    let id = start(&cri, &pod, with("main", &["vendor.com/gpu=one"]));
    assert_eq!(cri.inside(&id, "echo $ONE; env").lines().next(), Some("1"));
    clear(&cri);
}

#[test]
fn a_mount_stays_in_the_container_whatever_links_its_image_has() {
    if skipped_without_root("cri_devices: links") {
        return;
    }
    let world = World::new("cri-cdi-links");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let pod = sandbox(&cri, &world, None);
    let (share, outside) = (world.path("share"), world.path("outside"));
    for directory in [&share, &outside] {
        std::fs::create_dir(directory).unwrap();
    }
    // What a container has written into a volume is there for the next one to stumble over.
    let volume = world.path("volume");
    std::fs::create_dir(&volume).unwrap();
    std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
    let edits = json!({
        "mounts": [{ "hostPath": share, "containerPath": "/volume/link/mounted", "options": ["rbind"] }],
        "deviceNodes": [{ "path": "/volume/link/null", "hostPath": "/dev/null" }],
    });
    put(&agent, "gpu", &json!({}), &[("one", edits)]);
    let mut wanted = with("main", &["vendor.com/gpu=one"]);
    wanted.mounts = vec![v1::Mount {
        container_path: "/volume".to_owned(),
        host_path: volume.display().to_string(),
        ..Default::default()
    }];
    // Refused, or made inside: both are fine.
    if let Ok(id) = cri.create(&pod.0, wanted, &pod.1) {
        let _ = cri.start(&id);
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "nothing is made outside");
    clear(&cri);
}

#[test]
fn a_pod_with_users_of_its_own_has_the_nodes_own_devices() {
    let test = "a_pod_with_users_of_its_own_has_the_nodes_own_devices";
    if skipped_without_root(test) || skipped_without_own_users(test) || lacks_node(test) {
        return;
    }
    let world = World::new("cri-cdi-users");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let rows = vec![v1::IdMapping { host_id: 700_000, container_id: 0, length: 65_536 }];
    let users = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: rows.clone(), gids: rows };
    let pod = sandbox(&cri, &world, Some(users));
    let stopped = world.path("stopped");
    let last = hook("poststop", &format!("touch {}", stopped.display()));
    put(
        &agent,
        "gpu",
        &json!({}),
        &[
            (
                "one",
                json!({
                    "deviceNodes": [{ "path": "/dev/one", "hostPath": NODE }, { "path": "/dev/two", "hostPath": "/dev/full" }],
                    "hooks": [last],
                }),
            ),
            ("hooked", json!({ "hooks": [hook("createRuntime", "true")] })),
        ],
    );
    let refused = cri.create(&pod.0, with("hooked", &["vendor.com/gpu=hooked"]), &pod.1).unwrap_err();
    assert!(refused.message().contains("hooks[0]") && refused.message().contains("hostUsers"), "{refused}");
    let id = start(&cri, &pod, with("main", &["vendor.com/gpu=one"]));
    let number = |path: &str| std::fs::metadata(path).unwrap().rdev();
    let seen = cri.inside(&id, "stat -c '%t:%T' /dev/one /dev/two");
    let expected = [NODE, "/dev/full"]
        .map(|path| format!("{:x}:{:x}", rustix::fs::major(number(path)), rustix::fs::minor(number(path))));
    assert_eq!(seen.lines().collect::<Vec<_>>(), expected);
    let written = cri.exec(&id, &["sh", "-c", "echo x > /dev/two"], 5).unwrap();
    assert!(String::from_utf8_lossy(&written.stderr).contains("No space left"), "{written:?}");
    cri.stop(&id, 0).unwrap();
    wait_until("the last hook has run", 10, || if stopped.exists() { Ok(()) } else { Err(String::new()) });
    clear(&cri);
}
