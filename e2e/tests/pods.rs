//! What a manifest promises about a container, seen from inside it.

use portreeve_e2e::{
    Agent, BUSYBOX, Image, LOGIN, Registry, World, skipped_without_own_users, skipped_without_root, wait_until,
};

fn inside(agent: &Agent<'_>, pod: &str, line: &str) -> String {
    let answer = agent.client(&["exec", pod, "-c", "main", "--", "sh", "-c", line]);
    assert_eq!(answer.code, 0, "`{line}` in {pod}: {}{}", answer.stdout, answer.stderr);
    answer.stdout.trim().to_owned()
}

#[test]
fn a_pod_with_its_own_users_is_root_inside_and_nobody_outside() {
    if skipped_without_root("pods") || skipped_without_own_users("a pod with its own users") {
        return;
    }
    let world = World::new("users");
    let agent = Agent::with_busybox(&world);
    let host = world.path("shared");
    std::fs::create_dir(&host).unwrap();
    agent.drop_manifest(
        "a.yaml",
        &format!(
            "apiVersion: v1
kind: Secret
metadata: {{name: key}}
stringData: {{word: hidden}}
---
apiVersion: v1
kind: Pod
metadata: {{name: a}}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 0
  volumes:
  - {{name: key, secret: {{secretName: key, defaultMode: 0400}}}}
  - {{name: data, emptyDir: {{}}}}
  - {{name: host, hostPath: {{path: '{host}'}}}}
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sleep, '1000']
    volumeMounts:
    - {{name: key, mountPath: /key}}
    - {{name: data, mountPath: /data, subPath: part}}
    - {{name: host, mountPath: /host}}
",
            host = host.display()
        ),
    );
    let pod = agent.wait_ready("a");
    assert_eq!(inside(&agent, "a", "id -u"), "0");
    let map = inside(&agent, "a", "cat /proc/self/uid_map");
    let numbers: Vec<u64> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert!(matches!(numbers[..], [0, first, 65536] if first >= 65536), "{map}");
    assert_eq!(
        inside(&agent, "a", "cat /key/word; touch /data/x /host/y; echo '# more' >>/etc/hosts; stat -c %u /data/x"),
        "hidden0"
    );
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(host.join("y")).unwrap()), 0, "mapped back");
    // Seen from the machine, its processes are nobody that has anything.
    let census = agent.census();
    let owners: Vec<u64> = census
        .contained
        .iter()
        .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .filter_map(|status| status.lines().find(|l| l.starts_with("Uid:"))?.split_whitespace().nth(1)?.parse().ok())
        .collect();
    assert!(owners.contains(&numbers[1]), "{owners:?} of {}", pod["metadata"]["name"]);
}

#[test]
fn a_pod_that_shares_its_processes_shows_nothing_of_the_machine() {
    if skipped_without_root("pods") {
        return;
    }
    let world = World::new("pause");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest(
        "a.yaml",
        &format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: a}}
spec:
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sleep, '1000']
    securityContext: {{capabilities: {{add: [SYS_PTRACE]}}}}
  - {{name: other, image: '{BUSYBOX}', command: [sleep, '2000']}}
"
        ),
    );
    agent.wait_ready("a");
    assert!(inside(&agent, "a", "ps").contains("sleep 2000"), "the other container's process is seen");
    assert_eq!(inside(&agent, "a", "ls -A /proc/1/root/ | head -3"), "");
    assert_eq!(inside(&agent, "a", "ls -A /proc/1/fd | head -3"), "");
    let status = inside(&agent, "a", "cat /proc/1/status");
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is missing:\n{status}");
    }
    for namespace in ["mnt", "net", "uts", "ipc"] {
        // AppArmor's default profile does not even let it look.
        let theirs = inside(&agent, "a", &format!("readlink /proc/1/ns/{namespace} || true"));
        let host = std::fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
        assert_ne!(theirs, host.to_string_lossy(), "{namespace}");
    }
}

#[test]
fn an_image_volume_is_a_writable_directory_with_the_images_content() {
    if skipped_without_root("pods") {
        return;
    }
    let world = World::new("volume");
    let images = world.path("agent/images");
    std::fs::create_dir_all(&images).unwrap();
    let reference = "test.local/volumes:1";
    let _image = Image::busybox_with_volumes(&images, reference, &["/data", "/www"]);
    let agent = Agent::start(&world);
    for (name, users, security) in [
        ("plain", "true", "{}"),
        ("strict", "true", "{readOnlyRootFilesystem: true}"),
        ("mapped", "false", "{readOnlyRootFilesystem: true}"),
    ] {
        if users == "false" && skipped_without_own_users("an image volume in a pod with its own users") {
            continue;
        }
        agent.drop_manifest(
            &format!("{name}.yaml"),
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  hostUsers: {users}\n  terminationGracePeriodSeconds: 0\n  \
                 containers:\n  - {{name: main, image: '{reference}', command: [sleep, '1000'], securityContext: {security}}}\n"
            ),
        );
        agent.wait_ready(name);
        let seen =
            inside(&agent, name, "cat /www/index.html; touch /data/x /www/y && stat -c %u:%a /data /www && ls /data");
        assert_eq!(seen, "a page from busybox\n0:755\n0:755\nx", "{name}");
        agent.remove_manifest(&format!("{name}.yaml"));
        agent.wait_gone(name);
    }
}

#[test]
fn a_volumes_part_belongs_to_whom_the_volume_belongs() {
    if skipped_without_root("pods") {
        return;
    }
    let world = World::new("part");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest(
        "a.yaml",
        &format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: a}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {{runAsUser: 1000, runAsGroup: 1000}}
  volumes: [{{name: data, emptyDir: {{}}}}]
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sleep, '1000']
    volumeMounts: [{{name: data, mountPath: /data, subPath: one/two}}]
"
        ),
    );
    agent.wait_ready("a");
    assert_eq!(inside(&agent, "a", "touch /data/x && stat -c %a:%u /data /data/x"), "777:0\n644:1000");
}

#[test]
fn a_closed_registry_opens_for_the_pods_own_secret_alone() {
    if skipped_without_root("pods") {
        return;
    }
    let world = World::new("closed");
    let registry = Registry::closed(&world, 5001);
    let reference = registry.push(&Image::busybox(world.home(), "test.local/closed:1"), "closed:1");
    let agent = Agent::start(&world);
    let pod = |name: &str, secret: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  {secret}\n  \
             containers: [{{name: main, image: '{reference}', command: [sleep, '1000']}}]\n"
        )
    };
    agent.drop_manifest("without.yaml", &pod("without", ""));
    let refused = agent.wait_pod("without", "is refused", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["reason"] == "ErrImagePull" || waiting["reason"] == "ImagePullBackOff"
    });
    let why = refused["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
    assert!(why.contains("401") || why.to_lowercase().contains("login") || why.contains("nauthorized"), "{why}");
    agent.drop_manifest(
        "secret.yaml",
        &format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: login}}\ntype: kubernetes.io/dockerconfigjson\nstringData:\n  \
             .dockerconfigjson: '{{\"auths\": {{\"{}\": {{\"username\": \"{}\", \"password\": \"{}\"}}}}}}'\n",
            registry.host(),
            LOGIN.0,
            LOGIN.1
        ),
    );
    agent.drop_manifest("with.yaml", &pod("with", "imagePullSecrets: [{name: login}]"));
    agent.wait_ready("with");
    assert!(!agent.log().contains(LOGIN.1), "a password is in the log");
}

#[test]
fn a_memory_limit_below_what_is_in_use_is_refused_and_nothing_is_lost() {
    if skipped_without_root("pods") {
        return;
    }
    let world = World::new("below");
    let agent = Agent::with_busybox(&world);
    let pod = |limit: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             volumes: [{{name: m, emptyDir: {{medium: Memory}}}}]\n  containers:\n  - name: main\n    image: {BUSYBOX}\n    \
             command: [sh, -c, 'dd if=/dev/zero of=/m/block bs=1M count=40; sleep 1000']\n    \
             volumeMounts: [{{name: m, mountPath: /m}}]\n    resources: {{limits: {{memory: {limit}}}, requests: {{memory: 8Mi}}}}\n"
        )
    };
    agent.drop_manifest("a.yaml", &pod("128Mi"));
    let before = agent.wait_ready("a");
    wait_until("the block is written", 20, || {
        let size = inside(&agent, "a", "stat -c %s /m/block");
        if size == "41943040" { Ok(()) } else { Err(size) }
    });
    agent.drop_manifest("a.yaml", &pod("24Mi"));
    let events = wait_until("the refusal is told", 20, || {
        let events = agent.client(&["get", "events"]).ok();
        if events.contains("FailedResize") { Ok(events) } else { Err(events) }
    });
    assert!(events.contains("in use"), "{events}");
    let after = agent.pod("a").unwrap();
    let container = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(container(&after), container(&before));
    assert_eq!(inside(&agent, "a", "stat -c %s /m/block"), "41943040");
    agent.drop_manifest("a.yaml", &pod("64Mi"));
    agent.wait_pod("a", "has the new limit", |pod| {
        pod["status"]["containerStatuses"][0]["resources"]["limits"]["memory"] == "64Mi"
    });
    assert_eq!(container(&agent.pod("a").unwrap()), container(&before));
}
