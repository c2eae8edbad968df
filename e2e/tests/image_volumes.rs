//! Volumes that show an image, as pods of a real agent see them.

use portreeve_e2e::{Agent, BUSYBOX, Image, World, skipped_without_own_users, skipped_without_root};

/// Mounts all of an image at `/all` and a part of it at `/part`, and has a container that mounts neither.
fn pod(name: &str, users: bool, reference: &str, part: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  hostUsers: {users}
  terminationGracePeriodSeconds: 0
  volumes: [{{name: files, image: {{reference: '{reference}'}}}}]
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sleep, '1000']
    volumeMounts:
    - {{name: files, mountPath: /all}}
    - {{name: files, mountPath: /part, subPath: '{part}'}}
  - {{name: other, image: {BUSYBOX}, command: [sleep, '1000']}}
"
    )
}

/// The output of a shell's line in the container, whether it succeeds or not.
fn inside(agent: &Agent<'_>, pod: &str, line: &str) -> String {
    agent
        .client(&["exec", pod, "-c", "main", "--", "sh", "-c", &format!("{{ {line}; }} 2>&1")])
        .stdout
        .trim()
        .to_owned()
}

fn load(world: &World, agent: &Agent<'_>, reference: &str, layers: &[Vec<u8>]) {
    let image = Image::archive(world.home(), reference, layers);
    agent.client(&["image", "load", image.tar.to_str().unwrap()]).ok();
}

#[test]
fn an_image_is_shown_as_its_layers_make_it_and_cannot_be_changed_or_executed() {
    if skipped_without_root("image_volumes") {
        return;
    }
    let world = World::new("shows");
    let agent = Agent::with_busybox(&world);
    let base = Image::layer(&[
        ("kept", 0o640, "kept"),
        ("gone", 0o644, "gone"),
        ("run", 0o755, "#!/bin/sh\necho ran\n"),
        ("dir/x", 0o644, "x of the base"),
        ("dir/y", 0o644, "y"),
        ("hidden/old", 0o644, "old"),
    ]);
    let above = Image::layer(&[
        (".wh.gone", 0o644, ""),
        ("dir/x", 0o644, "x of the layer above"),
        ("hidden/.wh..wh..opq", 0o644, ""),
        ("hidden/new", 0o644, "new"),
    ]);
    load(&world, &agent, "test.local/one:1", std::slice::from_ref(&base));
    load(&world, &agent, "test.local/two:1", &[base.clone(), above.clone()]);
    // What one layer hides is not there either when there is nothing below it.
    let hides = Image::layer(&[
        ("kept", 0o640, "kept"),
        ("run", 0o755, "#!/bin/sh\necho ran\n"),
        ("dir/x", 0o644, "x of the layer above"),
        ("dir/y", 0o644, "y"),
        ("dir/.wh.z", 0o644, ""),
        (".wh.gone", 0o644, ""),
        ("hidden/.wh..wh..opq", 0o644, ""),
        ("hidden/new", 0o644, "new"),
    ]);
    load(&world, &agent, "test.local/hides:1", std::slice::from_ref(&hides));
    // More of them than one page of mount options could name.
    let many: Vec<Vec<u8>> = (0..60).map(|n| Image::layer(&[(&format!("n{n}"), 0o644, "n")])).collect();
    load(&world, &agent, "test.local/many:1", &[vec![base], many, vec![above]].concat());

    for (name, users, reference, merged) in [
        ("one", true, "test.local/one:1", false),
        ("two", true, "test.local/two:1", true),
        ("many", true, "test.local/many:1", true),
        ("hides", true, "test.local/hides:1", true),
        ("mapped", false, "test.local/many:1", true),
        ("mapped-one", false, "test.local/hides:1", true),
    ] {
        if !users && skipped_without_own_users("a volume of an image in a pod with its own users") {
            continue;
        }
        let file = format!("{name}.yaml");
        agent.drop_manifest(&file, &pod(name, users, reference, "dir"));
        agent.wait_ready(name);
        assert_eq!(inside(&agent, name, "stat -c %u:%g:%a /all/kept && cat /all/kept"), "0:0:640\nkept", "{name}");
        let (x, left, hidden) = if merged { ("x of the layer above", 0, "new") } else { ("x of the base", 1, "old") };
        assert_eq!(inside(&agent, name, "cat /all/dir/x && cat /part/x"), format!("{x}{x}"), "{name}");
        assert_eq!(inside(&agent, name, "ls /part && ls /all/hidden"), format!("x\ny\n{hidden}"), "{name}");
        assert_eq!(inside(&agent, name, "ls /all | grep -c gone"), left.to_string(), "{name}");
        for write in ["touch /all/new", "touch /part/new", "rm /all/kept", "echo x > /part/x", "mkdir /all/dir/z"] {
            let answer = inside(&agent, name, write);
            assert!(answer.contains("Read-only file system"), "{name}: {write}: {answer}");
        }
        assert!(inside(&agent, name, "/all/run").contains("Permission denied"), "{name}");
        assert_eq!(inside(&agent, name, "sh /all/run"), "ran", "{name}");
        let other = agent.client(&["exec", name, "-c", "other", "--", "ls", "/"]).ok();
        assert!(!other.contains("all"), "{other}");
        agent.remove_manifest(&file);
        agent.wait_gone(name);
    }
}

#[test]
fn an_image_that_a_container_shows_stays_as_long_as_the_container() {
    if skipped_without_root("image_volumes") {
        return;
    }
    let world = World::new("shown");
    let agent = Agent::with_busybox(&world);
    let (old, new) = ("test.local/files:1", "test.local/files:2");
    load(&world, &agent, old, &[Image::layer(&[("dir/version", 0o644, "1")])]);
    agent.drop_manifest("a.yaml", &pod("a", true, old, "dir"));
    agent.wait_ready("a");
    let described = agent.client(&["describe", "pod", "a"]).ok();
    assert!(described.contains("Reference:  test.local/files:1  PullPolicy: IfNotPresent"), "{described}");
    let refused = agent.client(&["image", "rm", old]);
    assert!(refused.code == 1 && refused.stderr.contains("in use by container"), "{refused:?}");
    let pruned = agent.client(&["image", "prune", "--all", "--force"]).ok();
    assert!(!pruned.contains("Deleted"), "{pruned}");

    // An edit to what is not here changes nothing that runs, and says why; then it is here.
    let mut next = pod("a", true, new, "dir").replace(&format!("'{new}'"), &format!("'{new}', pullPolicy: Never"));
    agent.drop_manifest("a.yaml", &next);
    agent.wait_pod("a", "tells what it waits for", |pod| {
        pod["status"]["conditions"].to_string().contains("image test.local/files:2 of volume files is not on this node")
    });
    assert_eq!(inside(&agent, "a", "cat /all/dir/version /part/version"), "11");
    load(&world, &agent, new, &[Image::layer(&[("dir/version", 0o644, "2")])]);
    agent.wait_pod("a", "shows the other image", |_| inside(&agent, "a", "cat /part/version") == "2");
    agent.client(&["image", "rm", old]).ok();

    // A part that the image does not have is refused by name.
    next = next.replace("subPath: 'dir'", "subPath: 'dir/absent'");
    agent.drop_manifest("a.yaml", &next);
    agent.wait_pod("a", "says which part is absent", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["message"].as_str().is_some_and(|message| {
            message.contains("subPath dir/absent") && message.contains("is not a directory of the image")
        })
    });
}

#[test]
fn who_may_mount_in_his_own_namespaces_cannot_write_to_the_store() {
    if skipped_without_root("image_volumes") {
        return;
    }
    let world = World::new("remount");
    let agent = Agent::with_busybox(&world);
    let one = Image::layer(&[("hello", 0o755, "#!/bin/sh\necho genuine\n"), ("dir/x", 0o644, "x")]);
    load(&world, &agent, "test.local/victim:1", std::slice::from_ref(&one));
    for (name, users, security) in [
        ("own-users", false, "{capabilities: {add: [SYS_ADMIN]}}"),
        ("root", true, "{capabilities: {add: [SYS_ADMIN]}}"),
        ("privileged", true, "{privileged: true}"),
    ] {
        if !users && skipped_without_own_users("a container that may mount in its own namespaces") {
            continue;
        }
        let manifest = pod(name, users, "test.local/victim:1", "dir");
        let manifest =
            manifest.replace("    volumeMounts:", &format!("    securityContext: {security}\n    volumeMounts:"));
        agent.drop_manifest(&format!("{name}.yaml"), &manifest);
        agent.wait_ready(name);
        for place in ["/all", "/part"] {
            for how in ["remount,rw,bind", "remount,rw"] {
                let tried = inside(&agent, name, &format!("mount -o {how} {place}; touch {place}/new && echo WROTE"));
                assert!(!tried.contains("WROTE"), "{name}: {how} {place}: {tried}");
            }
        }
        assert_eq!(inside(&agent, name, "echo EVIL >> /all/hello; sh /all/hello").lines().last(), Some("genuine"));
        agent.remove_manifest(&format!("{name}.yaml"));
        agent.wait_gone(name);
    }
    let checked = agent.client(&["image", "verify", "test.local/victim:1"]);
    assert_eq!(checked.code, 0, "{checked:?}");
}
