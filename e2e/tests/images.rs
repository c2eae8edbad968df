//! Images on the command line of a real agent.

use portreeve_e2e::{
    Agent, Answer, BUSYBOX, Docker, Enclosure, Image, Peers, Podman, Registry, World, preload_busybox, skipped,
    skipped_without_root, wait_until,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: main, image: '{image}', imagePullPolicy: IfNotPresent, command: [sleep, '1000']}}\n"
    )
}

/// The configuration that docker-registry's and skopeo's users would see, by skopeo itself.
fn seen_by_skopeo(world: &World, reference: &str, what: &[&str]) -> Value {
    let mut command = world.command("skopeo");
    let output = command
        .arg("inspect")
        .args(what)
        .args(["--tls-verify=false", &format!("docker://{reference}")])
        .output()
        .expect("skopeo is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    json(&String::from_utf8_lossy(&output.stdout))
}

#[test]
fn inspect_and_history_tell_what_other_tools_tell_of_the_same_image() {
    if skipped_without_root("images") {
        return;
    }
    let world = World::new("inspect");
    let registry = Registry::start(&world, 5040);
    let reference = registry.push(&Image::pause(world.home(), "local/pause:1"), "pause:1");
    let agent = Agent::start(&world);
    agent.client(&["image", "pull", &reference]).ok();
    let theirs = seen_by_skopeo(&world, &reference, &[]);
    let configuration = seen_by_skopeo(&world, &reference, &["--config"]);

    let all = json(&agent.client(&["image", "inspect", &reference]).ok());
    let image = &all[0];
    assert_eq!(all.as_array().unwrap().len(), 1);
    assert_eq!(image["Digest"], theirs["Digest"]);
    assert_eq!(image["RepoTags"], json!([reference]));
    let name = reference.rsplit_once(':').unwrap().0;
    assert_eq!(image["RepoDigests"], json!([format!("{name}@{}", theirs["Digest"].as_str().unwrap())]));
    assert_eq!(image["Config"], configuration["config"]);
    assert_eq!(image["Config"]["Cmd"], json!(["sleep", "1000000"]));
    assert_eq!(image["RootFS"]["Layers"], configuration["rootfs"]["diff_ids"]);
    assert_eq!((&image["Os"], &image["Architecture"]), (&theirs["Os"], &theirs["Architecture"]));
    assert_eq!(image["Layers"][0]["Blob"], theirs["Layers"][0]);
    let manifest = seen_by_skopeo(&world, &reference, &["--raw"]);
    assert_eq!(image["Layers"][0]["BlobSize"], manifest["layers"][0]["size"]);
    assert_eq!(image["Layers"][0]["BlobKept"], false);
    let id = image["Id"].as_str().unwrap();
    // By any of its names, and several at once; as YAML, too.
    let short = &id["sha256:".len()..][..12];
    let both = json(&agent.client(&["image", "inspect", short, id]).ok());
    assert_eq!(both, json!([image, image]));
    assert!(agent.client(&["image", "inspect", "-o", "yaml", short]).ok().starts_with("- "));
    let absent = agent.client(&["image", "inspect", "nothing:here"]);
    assert!(absent.code == 1 && absent.stderr.contains("\"nothing:here\" not found"), "{absent:?}");

    let history = agent.client(&["image", "history", &reference]).ok();
    let lines: Vec<&str> = history.lines().collect();
    assert!(lines[0].starts_with("CREATED") && lines[0].contains("CREATED BY"), "{history}");
    assert_eq!(lines.len(), 1 + image["Layers"].as_array().unwrap().len(), "{history}");
    let steps = json(&agent.client(&["image", "history", "-o", "json", &reference]).ok());
    assert_eq!(steps[0]["sizeBytes"], image["Size"]);
}

#[test]
fn a_tag_is_a_name_that_pods_can_use_and_what_loses_its_last_one_can_be_pruned() {
    if skipped_without_root("images") {
        return;
    }
    let world = World::new("tags");
    let agent = Agent::with_busybox(&world);
    agent.client(&["image", "tag", BUSYBOX, "test.local/other:2"]).ok();
    agent.client(&["image", "tag", BUSYBOX, "test.local/latest"]).ok();
    let names = agent.client(&["image", "ls", "-o", "name"]).ok();
    for name in [BUSYBOX, "test.local/other:2", "test.local/latest:latest"] {
        assert!(names.lines().any(|line| line == name), "{name} in {names}");
    }
    agent.drop_manifest("a.yaml", &pod("a", "test.local/other:2"));
    agent.wait_ready("a");
    for (arguments, problem) in [
        (["image", "tag", "nothing:1", "x"], "\"nothing:1\" not found"),
        (["image", "tag", BUSYBOX, "Not A Name"], "Not A Name"),
        (["image", "tag", BUSYBOX, &format!("x@sha256:{}", "a".repeat(64))], "has a digest"),
    ] {
        let refused = agent.client(&arguments);
        assert!(refused.code == 1 && refused.stderr.contains(problem), "{refused:?}");
    }

    // A second image takes the name of the first of two.
    let load = |files: &[(&str, &str)]| {
        let image = Image::busybox_with(world.home(), "test.local/moved:1", files);
        agent.client(&["image", "load", image.tar.to_str().unwrap()]).ok();
        json(&agent.client(&["image", "inspect", "test.local/moved:1"]).ok())[0]["Id"].as_str().unwrap().to_owned()
    };
    let (first, second) = (load(&[("a", "1")]), load(&[("a", "2")]));
    assert_ne!(first, second);
    let unsure = agent.client(&["image", "prune"]);
    assert!(unsure.code == 1 && unsure.stderr.contains("--force"), "{unsure:?}");
    let pruned = agent.client(&["image", "prune", "--force"]).ok();
    assert!(pruned.contains(&format!("Deleted: {first}")) && !pruned.contains(&second), "{pruned}");
    // What is tagged, runs, or is wanted by a pod stays; busybox itself is preloaded, and so pinned.
    let pruned = agent.client(&["system", "prune", "--all", "--force"]).ok();
    assert!(pruned.contains(&format!("Deleted: {second}")), "{pruned}");
    assert!(pruned.lines().last().unwrap().starts_with("Total reclaimed space: "), "{pruned}");
    let left = agent.client(&["image", "ls", "-o", "name"]).ok();
    assert_eq!(left.lines().count(), 3, "{left}");
    agent.wait_ready("a");
}

#[test]
fn damage_on_the_disk_is_found_and_repaired_when_no_pod_stands_on_it() {
    if skipped_without_root("images") {
        return;
    }
    let world = World::new("verify");
    let registry = Registry::start(&world, 5048);
    let reference = registry.push(&Image::busybox(world.home(), BUSYBOX), "busybox:1");
    let agent = Agent::start(&world);
    agent.client(&["image", "pull", &reference]).ok();
    let whole = agent.client(&["image", "verify"]).ok();
    assert!(whole.contains("3 parts checked, ") && whole.ends_with(": all whole\n"), "{whole}");
    let layer = json(&agent.client(&["image", "inspect", &reference]).ok())[0]["RootFS"]["Layers"][0].clone();
    let layer = layer.as_str().unwrap().to_owned();
    let place = agent.root().join("images/layers").join(&layer["sha256:".len()..]);
    assert!(place.is_dir(), "{}", place.display());
    agent.drop_manifest("a.yaml", &pod("a", &reference));
    agent.wait_ready("a");
    std::fs::write(place.join("fs/added"), "by somebody").unwrap();

    let found = agent.client(&["system", "check", "-o", "json"]);
    assert_eq!(found.code, 1, "{found:?}");
    let parts = json(&found.stdout)["parts"].clone();
    let damaged: Vec<&Value> = parts.as_array().unwrap().iter().filter(|part| part["state"] != "whole").collect();
    assert_eq!(damaged.len(), 1, "{parts}");
    assert_eq!((&damaged[0]["kind"], &damaged[0]["digest"]), (&json!("layer"), &json!(layer)));
    assert_eq!(damaged[0]["images"], json!([reference]));
    let added = json!({ "path": "added", "problem": "was not unpacked from the image" });
    assert!(damaged[0]["problems"].as_array().unwrap().contains(&added), "{parts}");

    let refused = agent.client(&["image", "verify", &reference, "--repair"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    let who = "not repaired: container main of pod default/a stands on it";
    assert!(refused.stdout.contains(who) && refused.stdout.contains("1 damaged"), "{refused:?}");
    assert!(place.join("fs/added").exists());
    agent.remove_manifest("a.yaml");
    agent.wait_gone("a");
    let repaired = agent.client(&["image", "verify", &reference, "--repair"]).ok();
    assert!(repaired.contains("is repaired") && repaired.contains("1 repaired"), "{repaired}");
    assert!(!place.join("fs/added").exists());
    assert!(agent.client(&["image", "verify", &reference]).ok().ends_with(": all whole\n"));
    let absent = agent.client(&["image", "verify", "nothing:here"]);
    assert!(absent.code == 1 && absent.stderr.contains("\"nothing:here\" not found"), "{absent:?}");
    agent.drop_manifest("a.yaml", &pod("a", &reference));
    agent.wait_ready("a");
}

#[test]
fn an_image_that_a_pod_names_is_not_pruned_before_its_container_is_there() {
    if skipped_without_root("images") {
        return;
    }
    let world = World::new("wanted");
    let mut agent = Agent::start(&world);
    let image = Image::busybox(world.home(), BUSYBOX);
    agent.client(&["image", "load", image.tar.to_str().unwrap()]).ok();
    // Its container is never made.
    let never = pod("a", BUSYBOX).replace("command:", "volumeMounts: [{name: v, mountPath: /v}], command:")
        + "  volumes:\n  - {name: v, hostPath: {path: /does/not/exist, type: Directory}}\n";
    agent.drop_manifest("a.yaml", &never);
    agent.wait_pod("a", "waits for its volume", |pod| pod["status"]["phase"] == "Pending");
    let pruned = agent.client(&["image", "prune", "-af"]).ok();
    assert_eq!(pruned, "Total reclaimed space: 0B\n");
    // A version that cannot be used names another one: the last good version counts, also for who has only its word.
    let broken = never.replace(BUSYBOX, "test.local/other:1").replace("terminationGracePeriodSeconds", "gracePeriod");
    agent.drop_manifest("a.yaml", &broken);
    let held_back = |agent: &Agent<'_>| {
        wait_until("the file is refused", 20, || {
            let sources = agent.client(&["get", "sources"]).ok();
            if sources.contains("gracePeriod") { Ok(()) } else { Err(sources) }
        });
    };
    held_back(&agent);
    assert_eq!(agent.client(&["image", "prune", "-af"]).ok(), "Total reclaimed space: 0B\n");
    agent.terminate();
    agent.launch();
    held_back(&agent);
    assert_eq!(agent.client(&["image", "prune", "-af"]).ok(), "Total reclaimed space: 0B\n");
    agent.remove_manifest("a.yaml");
    agent.wait_gone("a");
    let pruned = agent.client(&["image", "prune", "-af"]).ok();
    assert!(pruned.starts_with("Deleted: sha256:"), "{pruned}");
    assert_eq!(agent.client(&["image", "ls", "-o", "name"]).ok(), "");
}

#[test]
fn df_tells_what_is_on_the_disk_and_what_could_go() {
    if skipped_without_root("images") {
        return;
    }
    let world = World::new("df");
    let agent = Agent::with_busybox(&world);
    let disk = || json(&agent.client(&["system", "df", "-o", "json"]).ok());
    let before = disk();
    assert_eq!((&before["images"]["count"], &before["images"]["needed"]), (&json!(1), &json!(1)), "it is pinned");
    assert_eq!(before["images"]["reclaimableBytes"], 0);
    assert_eq!(before["containers"], json!({ "count": 0, "bytes": 0 }));
    let image = Image::busybox_with(world.home(), "test.local/unused:1", &[("a", "1")]);
    agent.client(&["image", "load", image.tar.to_str().unwrap()]).ok();
    let manifest = pod("a", BUSYBOX)
        .replace("command: [sleep, '1000']", "volumeMounts: [{name: v, mountPath: /v}], command: [sh, -c, WRITE]")
        .replace("WRITE", "'dd if=/dev/zero of=/own bs=1M count=3; dd if=/dev/zero of=/v/file bs=1M count=5; touch /v/done; sleep 1000'")
        + "  volumes: [{name: v, emptyDir: {}}]\n";
    agent.drop_manifest("a.yaml", &manifest);
    agent.wait_ready("a");
    portreeve_e2e::wait_until("the container writes", 20, || {
        let written = agent.client(&["exec", "a", "--", "ls", "/v/done"]);
        if written.code == 0 { Ok(()) } else { Err(written.stderr) }
    });
    let after = disk();
    assert_eq!((&after["images"]["count"], &after["images"]["needed"]), (&json!(2), &json!(1)));
    let unused = json(&agent.client(&["image", "inspect", "test.local/unused:1"]).ok());
    assert_eq!(after["images"]["reclaimableBytes"], unused[0]["Size"]);
    for (kind, mebibytes) in [("containers", 3), ("volumes", 5)] {
        assert_eq!(after[kind]["count"], 1, "{after}");
        let bytes = after[kind]["bytes"].as_u64().unwrap();
        assert!((mebibytes << 20..(mebibytes + 1) << 20).contains(&bytes), "{kind}: {bytes}");
    }
    assert_eq!(after["logs"]["count"], 1);
    assert!(after["filesystem"]["availableBytes"].as_u64() > Some(0));
    let table = agent.client(&["system", "df"]).ok();
    let rows: Vec<&str> = table.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(rows[..6], ["TYPE", "Images", "Image", "Containers", "Volumes", "Logs"], "{table}");
    assert!(table.lines().any(|line| line.starts_with("Images ") && line.ends_with("%)")), "{table}");
}

#[test]
fn a_pods_image_comes_from_the_mirror_that_has_it_and_its_events_say_so() {
    if skipped_without_root("images") {
        return;
    }
    let world = World::new("mirror");
    let (empty, mirror) = (Registry::start(&world, 5041), Registry::start(&world, 5042));
    mirror.push(&Image::busybox(world.home(), "local/box:1"), "team/box:1");
    let hosts = world.path("certs.d");
    std::fs::create_dir_all(hosts.join("registry.test")).unwrap();
    let file = format!("server = 'http://{}'\n[host.'http://{}']\n", mirror.host(), empty.host());
    std::fs::write(hosts.join("registry.test/hosts.toml"), &file).unwrap();
    let conf = world.path("registries.conf");
    let agent = Agent::start_with(
        &world,
        &["--registry-hosts", hosts.to_str().unwrap(), "--registries-conf", conf.to_str().unwrap()],
    );
    agent.drop_manifest("a.yaml", &pod("a", "registry.test/team/box:1"));
    agent.wait_ready("a");
    let events = agent.client(&["describe", "pod", "a"]).ok();
    let line = events.lines().find(|line| line.contains("Successfully pulled image")).unwrap_or_default();
    let (from, before) =
        (format!("from {} (before: {}: ", mirror.host(), empty.host()), "does not exist in its registry");
    assert!(line.contains(&from) && line.contains(before), "{events}");
    assert_eq!(agent.client(&["image", "ls", "-o", "name"]).ok(), "registry.test/team/box:1\n");

    // What podman's users have written counts where nothing of containerd's does, and a change at once.
    let table = |location: &str| {
        let text = format!("[[registry]]\nprefix = 'podman.test'\nlocation = '{location}'\n");
        std::fs::write(&conf, text).unwrap();
    };
    table(&empty.host());
    let absent = agent.client(&["image", "pull", "podman.test/team/box:1"]);
    assert!(absent.code == 1 && absent.stderr.contains("does not exist in its registry"), "{absent:?}");
    table(&mirror.host());
    let pulled = agent.client(&["image", "pull", "podman.test/team/box:1"]).ok();
    assert!(pulled.starts_with("podman.test/team/box:1 podman.test/team/box@sha256:"), "{pulled}");
    // A person sees which host it was.
    let shown = agent.client(&["image", "pull", "--progress", "registry.test/team/box:1"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    std::fs::write(&conf, "[[registry]\n").unwrap();
    let broken = agent.client(&["image", "pull", "podman.test/team/box:1"]);
    let told = format!("{}: line 1: ", conf.display());
    assert!(
        broken.code == 1 && broken.stderr.contains(&told) && broken.stderr.contains("mend that file"),
        "{broken:?}"
    );
}

/// Names and blobs of a directory that is an OCI layout.
fn layout_blobs(directory: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory.join("blobs/sha256"))
        .unwrap()
        .map(|blob| blob.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn images_go_into_tars_and_directories_and_come_back_the_same() {
    if skipped_without_root("images") {
        return;
    }
    let world = World::new("save");
    let registry = Registry::start(&world, 5043);
    let pulled = registry.push(&Image::busybox_with(world.home(), "local/box:1", &[("own", "1")]), "box:1");
    let agent = Agent::with_busybox(&world);
    agent.client(&["image", "pull", &pulled]).ok();
    let path = |name: &str| world.path(name).display().to_string();
    let id = |name: &str| json(&agent.client(&["image", "inspect", name]).ok())[0]["Id"].as_str().unwrap().to_owned();
    let (pulled_id, loaded_id) = (id(&pulled), id(BUSYBOX));

    agent.client(&["image", "save", "-o", &path("both.tar"), &pulled, BUSYBOX]).ok();
    let piped =
        agent.verb(&["image", "save", &pulled, BUSYBOX]).stderr(std::process::Stdio::inherit()).output().unwrap();
    assert_eq!(piped.stdout, std::fs::read(path("both.tar")).unwrap(), "a pipe gets what a file gets");
    agent.client(&["image", "export", "-o", &path("layout"), &pulled]).ok();
    world.sh(&format!("skopeo inspect --raw oci:{}", path("layout")));
    let entries: Vec<_> = std::fs::read_dir(path("layout")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(entries.len(), 3, "{entries:?}");
    assert_eq!(layout_blobs(&world.path("layout")).len(), 3, "a layer, its configuration and its manifest");

    agent.client(&["image", "rm", &pulled]).ok();
    let loaded = agent.client(&["image", "load", &path("both.tar")]).ok();
    assert!(loaded.contains(&format!("Loaded image: {pulled}")), "{loaded}");
    assert_eq!((id(&pulled), id(BUSYBOX)), (pulled_id.clone(), loaded_id));
    agent.client(&["image", "rm", &pulled]).ok();
    let imported = agent.client(&["image", "import", &path("layout")]).ok();
    assert_eq!(imported, format!("Loaded image: {pulled}\n"));
    assert_eq!(id(&pulled), pulled_id);
    // Loaded, it needs its registry no more.
    drop(registry);
    agent.client(&["image", "save", "-o", &path("again.tar"), &pulled]).ok();

    std::fs::write(world.path("there"), "kept").unwrap();
    for (arguments, problem) in [
        (vec!["image", "save", "-o", &path("x.tar"), "nothing:1"], "\"nothing:1\" not found"),
        (vec!["image", "save", "-o", &path("none/x.tar"), BUSYBOX], "none/x.tar"),
        (vec!["image", "save", "-o", &path("layout"), BUSYBOX], "is a directory"),
        (vec!["image", "export", "-o", &path("layout"), BUSYBOX], "is not empty"),
        (vec!["image", "export", "-o", &path("there"), BUSYBOX], "there"),
        (vec!["image", "import", &path("layout/blobs")], "has no index.json"),
        (vec!["image", "load", &path("layout")], "image import"),
    ] {
        let refused = agent.client(&arguments);
        assert!(refused.code == 1 && refused.stderr.contains(problem), "{arguments:?}: {refused:?}");
    }
    assert_eq!(std::fs::read_to_string(world.path("there")).unwrap(), "kept");
    let left: Vec<_> = std::fs::read_dir(world.home()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("portreeve-save")), "{left:?}");
}

/// Until then the blobs of what was pulled are here.
fn wait_until_synced(agent: &Agent<'_>) {
    wait_until("all of it is on the disk, and the blobs are gone", 20, || {
        let left: Vec<_> = std::fs::read_dir(agent.root().join("images/unsynced")).unwrap().collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn a_pulled_image_whose_registry_is_gone_is_not_saved_by_half() {
    if skipped_without_root("images") {
        return;
    }
    let world = World::new("unsaved");
    let registry = Registry::start(&world, 5044);
    let pulled = registry.push(&Image::busybox_with(world.home(), "local/box:1", &[("own", "1")]), "box:1");
    let agent = Agent::start(&world);
    agent.client(&["image", "pull", &pulled]).ok();
    drop(registry);
    wait_until_synced(&agent);
    let file = world.path("x.tar");
    std::fs::write(&file, "kept").unwrap();
    let refused = agent.client(&["image", "save", "-o", file.to_str().unwrap(), &pulled]);
    assert!(refused.code == 1 && refused.stderr.contains("which is kept only unpacked"), "{refused:?}");
    assert!(refused.stderr.contains("connection refused"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
}

/// What another engine reads, and runs, of what is saved here: a loaded image, a pulled one, and both in one tar.
fn engine_runs_what_we_save(world: &World, agent: &Agent<'_>, pulled: &str, engine: &dyn Fn(&[&str]) -> Answer) {
    let path = |name: &str| world.path(name).display().to_string();
    for (name, file) in [(BUSYBOX, "loaded.tar"), (pulled, "pulled.tar")] {
        agent.client(&["image", "save", "-o", &path(file), name]).ok();
        let loaded = engine(&["load", "-i", &path(file)]).ok();
        assert!(loaded.contains(name), "{loaded}");
        let id = engine(&["image", "inspect", "--format", "{{.Id}}", name]).ok();
        let ours = json(&agent.client(&["image", "inspect", name]).ok());
        assert_eq!(format!("sha256:{}", id.trim().trim_start_matches("sha256:")), ours[0]["Id"].as_str().unwrap());
        let said = engine(&["run", "--rm", "--network", "none", name, "cat", "/www/index.html"]).ok();
        assert_eq!(said, "a page from busybox\n");
    }
    // Two in one tar, as docker has it.
    engine(&["rmi", "--force", BUSYBOX, pulled]).ok();
    agent.client(&["image", "save", "-o", &path("both.tar"), BUSYBOX, pulled]).ok();
    engine(&["load", "-i", &path("both.tar")]).ok();
    let names = engine(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
    assert!(names.contains(BUSYBOX) && names.contains(pulled), "{names}");
}

/// What another engine saves, with `save` as its arguments before `-o`, comes up here as the pod `pod`.
fn we_run_what_an_engine_saves(
    world: &World,
    agent: &Agent<'_>,
    pod_name: &str,
    engine: &dyn Fn(&[&str]) -> Answer,
    save: &[&str],
) {
    let (name, file) =
        (format!("saved.test/{pod_name}:1"), world.path(&format!("{pod_name}.tar")).display().to_string());
    engine(&["tag", BUSYBOX, &name]).ok();
    engine(&[save, &["-o", &file, &name]].concat()).ok();
    let loaded = agent.client(&["image", "load", &file]).ok();
    // It has the name that the agent began with as well, which is not in the archive.
    assert_eq!(loaded, format!("Loaded image: {name}\n"));
    agent.drop_manifest(&format!("{pod_name}.yaml"), &pod(pod_name, &name));
    agent.wait_ready(pod_name);
}

#[test]
fn podman_runs_what_we_save_and_we_run_what_podman_saves() {
    let Some(peers) = Peers::for_test("podman_runs_what_we_save_and_we_run_what_podman_saves") else { return };
    let enclosure = Enclosure::new(peers);
    let podman = Podman::install(&enclosure);
    let engine = |arguments: &[&str]| podman.call(arguments);
    let world = World::new("podman");
    let registry = Registry::start(&world, 5045);
    let pulled = registry.push(&Image::busybox_with(world.home(), "local/box:1", &[("own", "1")]), "box:1");
    let agent = Agent::with_busybox(&world);
    agent.client(&["image", "pull", &pulled]).ok();
    engine_runs_what_we_save(&world, &agent, &pulled, &engine);
    for form in ["docker-archive", "oci-archive"] {
        we_run_what_an_engine_saves(&world, &agent, form, &engine, &["save", "--format", form]);
    }
}

#[test]
fn docker_runs_what_we_save_and_we_run_what_docker_saves() {
    let Some(peers) = Peers::for_test("docker_runs_what_we_save_and_we_run_what_docker_saves") else { return };
    let enclosure = Enclosure::new(peers);
    let docker = Docker::install(&enclosure);
    let engine = |arguments: &[&str]| docker.call(arguments);
    let world = World::new("docker");
    let registry = Registry::start(&world, 5048);
    let pulled = registry.push(&Image::busybox_with(world.home(), "local/box:1", &[("own", "1")]), "box:1");
    let agent = Agent::with_busybox(&world);
    agent.client(&["image", "pull", &pulled]).ok();
    engine_runs_what_we_save(&world, &agent, &pulled, &engine);
    we_run_what_an_engine_saves(&world, &agent, "docker", &engine, &["save"]);
}

#[test]
fn what_is_pushed_is_what_others_see_and_logins_are_those_of_the_user() {
    if skipped_without_root("images") {
        return;
    }
    let world = World::new("push");
    let (open, closed) = (Registry::start(&world, 5046), Registry::closed(&world, 5047));
    let agent = Agent::with_busybox(&world);
    let name = format!("{}/team/box:1", open.host());
    let pushed = agent.client(&["image", "push", "--progress", BUSYBOX, &name]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    let digest = pushed.stdout.trim().rsplit_once('@').unwrap().1.to_owned();
    assert!(pushed.stdout.starts_with(&format!("{name} ")), "{pushed:?}");
    assert!(pushed.stderr.lines().filter(|line| line.contains(": done (")).count() >= 2, "{pushed:?}");
    assert_eq!(seen_by_skopeo(&world, &name, &[])["Digest"], digest);
    let again = agent.client(&["image", "push", "--progress", BUSYBOX, &name]);
    assert!(again.code == 0 && again.stderr.contains("already there"), "{again:?}");

    let private = format!("{}/box:1", closed.host());
    agent.client(&["image", "tag", BUSYBOX, &private]).ok();
    let refused = agent.client(&["image", "push", &private]);
    assert!(refused.code == 1 && refused.stderr.contains("no login was given for it"), "{refused:?}");
    let file = |name: &str, text: String| {
        std::fs::write(world.path(name), text).unwrap();
        world.path(name).display().to_string()
    };
    // As `docker login` and `podman login` write it.
    let (user, password) = portreeve_e2e::LOGIN;
    let login = world.sh(&format!("printf '%s:%s' '{user}' '{password}' | base64"));
    let right = file("right.json", json!({ "auths": { closed.host(): { "auth": login.trim() } } }).to_string());
    let other = file("other.json", json!({ "auths": { "other.test": { "auth": login.trim() } } }).to_string());
    let refused = agent.client(&["image", "push", "--authfile", &other, &private]);
    assert!(refused.code == 1 && refused.stderr.contains("no login was given for it"), "{refused:?}");
    agent.client(&["image", "push", "--authfile", &right, &private]).ok();
    agent.client(&["image", "rm", &private]).ok();
    let refused = agent.client(&["image", "pull", &private]);
    assert!(refused.code == 1 && !refused.stderr.contains(password), "{refused:?}");
    agent.client(&["image", "pull", "--authfile", &right, &private]).ok();
    agent.client(&["image", "rm", &private]).ok();

    // A program that keeps logins, as docker's users have them.
    let helper = world.path("docker-credential-kept");
    let answer = json!({ "ServerURL": closed.host(), "Username": user, "Secret": password });
    std::fs::write(
        &helper,
        format!("#!/bin/sh\nread -r server; [ \"$server\" = {} ] && echo '{answer}'\n", closed.host()),
    )
    .unwrap();
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir(world.path("docker")).unwrap();
    file("docker/config.json", json!({ "auths": { closed.host(): {} }, "credsStore": "kept" }).to_string());
    let mut pull = agent.verb(&["image", "pull", &private]);
    let path = format!("{}:{}", world.home().display(), std::env::var("PATH").unwrap());
    let pulled = pull.env("DOCKER_CONFIG", world.path("docker")).env("PATH", path).output().unwrap();
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    // The agent keeps none of them.
    assert!(!agent.log().contains(password));
}

#[test]
fn a_disk_that_fills_up_costs_images_that_nobody_needs_and_is_told_when_none_can_go() {
    if skipped_without_root("images") {
        return;
    }
    let world = World::new("collect");
    preload_busybox(&world);
    // Every disk is fuller than that.
    let bounds = ["--image-gc-high-threshold-percent", "1", "--image-minimum-gc-age"];
    let mut agent = Agent::start_with(&world, &[&bounds[..], &["1h"]].concat());
    let load = |agent: &Agent<'_>, name: &str| {
        let image = Image::busybox_with(world.home(), name, &[("own", name)]);
        agent.client(&["image", "load", image.tar.to_str().unwrap()]).ok();
    };
    let names = |agent: &Agent<'_>| agent.client(&["image", "ls", "-o", "name"]).ok();
    load(&agent, "test.local/wanted:1");
    load(&agent, "test.local/unused:1");
    // Its container is never made, so nothing but the pod's word keeps the image.
    let never = pod("a", "test.local/wanted:1")
        .replace("command:", "volumeMounts: [{name: v, mountPath: /v}], command:")
        + "  volumes:\n  - {name: v, hostPath: {path: /does/not/exist, type: Directory}}\n";
    agent.drop_manifest("a.yaml", &never);
    agent.wait_pod("a", "waits for its volume", |pod| pod["status"]["phase"] == "Pending");
    let pressure = |agent: &Agent<'_>| {
        let node = json(&agent.client(&["get", "nodes", "-o", "json"]).ok());
        let conditions =
            node.pointer("/items/0/status/conditions").or(node.pointer("/status/conditions")).unwrap().clone();
        conditions.as_array().unwrap().iter().find(|one| one["type"] == "DiskPressure").unwrap().clone()
    };
    wait_until("the pressure is told", 20, || {
        let told = pressure(&agent);
        if told["status"] == "True" { Ok(()) } else { Err(told.to_string()) }
    });
    assert_eq!(names(&agent).lines().count(), 3, "the unused one is too young to go");
    let events = agent.client(&["get", "events", "-A"]).ok();
    assert!(events.contains("FreeDiskSpaceFailed") && events.contains("no image can go"), "{events}");

    agent.terminate();
    agent.use_arguments(&[&bounds[..], &["0s"]].concat());
    agent.launch();
    wait_until("the unused one goes", 20, || {
        let names = names(&agent);
        if names.contains("unused") { Err(names) } else { Ok(()) }
    });
    let left = names(&agent);
    assert!(left.contains("test.local/wanted:1") && left.contains(BUSYBOX) && left.lines().count() == 2, "{left}");
    wait_until("it is told", 20, || {
        let events = agent.client(&["get", "events", "-A"]).ok();
        if events.contains("ImageGCSucceeded") { Ok(()) } else { Err(events) }
    });
    agent.terminate();
    // A disk with room is none that anything is removed from.
    agent.use_arguments(&["--image-gc-high-threshold-percent", "100", "--image-minimum-gc-age", "0s"]);
    agent.launch();
    load(&agent, "test.local/unused:1");
    assert_eq!(pressure(&agent)["status"], "False");
    assert_eq!(names(&agent).lines().count(), 3);
}

fn metrics_of(world: &World, agent: &Agent<'_>) -> String {
    let facts = std::fs::read_to_string(agent.run_dir().join("agent.json")).unwrap();
    let listen = json(&facts)["listen"].as_str().unwrap().to_owned();
    world.fetch(&format!("http://{listen}/metrics")).unwrap()
}

#[test]
fn how_far_a_pull_is_and_when_it_is_tried_again_is_seen_everywhere() {
    if skipped_without_root("images") {
        return;
    }
    let world = World::new("progress");
    let registry = Registry::start(&world, 5049);
    // Six megabytes that do not compress well, at about two megabytes per second.
    let content: String = (0..750_000_u64).map(|n| format!("{:08x}", n.wrapping_mul(2_654_435_761) >> 7)).collect();
    let image = Image::busybox_with(world.home(), BUSYBOX, &[("big", &content[..6_000_000])]);
    let reference = registry.push(&image, "big:1");
    let agent = Agent::start_with(&world, &["--download-rate-limit", "1M"]);

    let manifest = world.home().join("planned.yaml");
    std::fs::write(&manifest, pod("a", &reference)).unwrap();
    let planned = agent.client(&["plan", manifest.to_str().unwrap(), "-o", "json"]);
    assert_eq!(planned.code, 2, "{planned:?}");
    let steps = json(&planned.stdout)["pods"][0]["steps"].clone();
    let pull = steps.as_array().unwrap().iter().find(|step| step["image"] == json!(reference)).unwrap();
    let bytes = pull["fetchBytes"].as_u64().unwrap();
    let words = agent.client(&["plan", manifest.to_str().unwrap()]).stdout;
    assert!(bytes > 2_000_000 && words.contains("to fetch)"), "{bytes}: {words}");

    agent.drop_manifest("a.yaml", &pod("a", &reference));
    // Who wants the same image at the same time waits for the same pull, whose bytes count once.
    agent.drop_manifest("twin.yaml", &pod("twin", &reference));
    let waiting = agent.wait_pod("a", "says how far its pull is", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["message"].as_str().is_some_and(|message| message.contains(" layers, "))
    });
    let waiting = &waiting["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["reason"], "ContainerCreating");
    let message = waiting["message"].as_str().unwrap();
    assert!(message.contains("MB of ") && message.ends_with("/s"), "{message}");
    let pulls = json(&agent.client(&["image", "pulls", "-o", "json"]).ok());
    assert_eq!((&pulls[0]["image"], &pulls[0]["state"]), (&json!(reference), &json!("Pulling")));
    assert_eq!(pulls[0]["totalBytes"], bytes);
    let rate = pulls[0]["bytesPerSecond"].as_u64().unwrap();
    assert!((100_000..2_000_000).contains(&rate), "{pulls}");
    let metrics = metrics_of(&world, &agent);
    assert!(metrics.contains("portreeve_image_pulls{state=\"pulling\"} 1"), "{metrics}");
    let value = |metrics: &str, name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}"));
        line.trim().parse::<u64>().unwrap()
    };
    assert!(value(&metrics, "portreeve_image_pull_remaining_bytes ") > 0);
    agent.wait_ready("a");
    agent.wait_ready("twin");
    let pulls = json(&agent.client(&["image", "pulls", "-o", "json"]).ok());
    assert_eq!((pulls.as_array().unwrap().len(), &pulls[0]["state"]), (1, &json!("Pulled")), "{pulls}");
    assert!(pulls[0]["message"].as_str().unwrap().starts_with("from "), "{pulls}");
    let metrics = metrics_of(&world, &agent);
    // Its configuration comes besides.
    let fetched = value(&metrics, "portreeve_image_pulled_bytes_total ");
    assert!((bytes..bytes + 2000).contains(&fetched), "{bytes}: {fetched}");
    assert_eq!(value(&metrics, "portreeve_image_pull_remaining_bytes "), 0);

    wait_until_synced(&agent);
    // What is fetched again for an archive comes no faster; who does not wait for it leaves nothing behind.
    let place = world.home().join("saved");
    std::fs::create_dir(&place).unwrap();
    for (verb, output) in [("save", place.join("big.tar")), ("export", place.join("layout"))] {
        let mut saving = agent.verb(&["image", verb, &reference, "-o", output.to_str().unwrap()]).spawn().unwrap();
        let names = || std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        wait_until("it is begun", 10, || if names().is_empty() { Err(String::new()) } else { Ok(()) });
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(saving.id()).unwrap()),
            nix::sys::signal::Signal::SIGINT,
        )
        .unwrap();
        assert_eq!(saving.wait().unwrap().code(), Some(1));
        assert_eq!(names(), Vec::<std::ffi::OsString>::new());
    }

    let absent = reference.replace("big:1", "absent:1");
    agent.drop_manifest("b.yaml", &pod("b", &absent));
    wait_until("the failure is listed", 20, || {
        let pulls = json(&agent.client(&["image", "pulls", "-o", "json"]).ok());
        let failed = pulls.as_array().unwrap().iter().find(|pull| pull["state"] == "Failed");
        let tells = |pull: &Value| pull["attempts"].as_u64() >= Some(1) && pull["nextTry"].is_string();
        if failed.is_some_and(tells) { Ok(()) } else { Err(pulls.to_string()) }
    });
    let table = agent.client(&["image", "pulls"]).ok();
    let row = table.lines().find(|line| line.starts_with(&absent)).unwrap_or_else(|| panic!("{table}"));
    assert!(row.contains("Failed") && row.contains("does not exist in its registry"), "{table}");
}

#[test]
fn of_another_version_only_what_is_new_is_fetched_when_the_setting_says_so() {
    if skipped_without_root("images") {
        return;
    }
    let world = World::new("partial");
    let registry = Registry::start(&world, 5050);
    let content: String = (0..750_000_u64).map(|n| format!("{:08x}", n.wrapping_mul(2_654_435_761) >> 7)).collect();
    let push = |version: &str| {
        let image = Image::busybox_with(world.home(), "local/box:1", &[("big", &content), ("version", version)]);
        let reference = format!("{}/box:{version}", registry.host());
        let mut command = world.command("skopeo");
        let how = ["--quiet", "--dest-tls-verify=false", "--format=oci", "--dest-compress-format=zstd:chunked"];
        let names = [format!("docker-archive:{}", image.tar.display()), format!("docker://{reference}")];
        let output = command.args(["--insecure-policy", "copy"]).args(how).args(names).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        reference
    };
    let (first, second) = (push("1"), push("2"));
    let agent = Agent::start_with(&world, &["--partial-pulls"]);
    let shown = agent.client(&["image", "pull", "--progress", &first]).stderr;
    assert!(shown.contains(", fetched whole: no file of it is here)"), "{shown}");
    let shown = agent.client(&["image", "pull", "--progress", &second]).stderr;
    assert!(shown.contains(" bytes of files were here)"), "{shown}");
    agent.drop_manifest("a.yaml", &pod("a", &second));
    agent.wait_ready("a");
    assert_eq!(agent.client(&["exec", "a", "--", "cat", "/version"]).ok(), "2");
}

/// Pushes the signature that cosign makes of the image at `reference`, by openssl with the key in `key.pem`.
fn sign(world: &World, reference: &str) {
    let digest = seen_by_skopeo(world, reference, &[])["Digest"].as_str().unwrap().to_owned();
    let name = reference.rsplit_once(':').unwrap().0;
    let payload = json!({
        "critical": {"identity": {"docker-reference": name}, "image": {"docker-manifest-digest": digest},
                     "type": "cosign container image signature"},
        "optional": null,
    });
    std::fs::write(world.path("payload"), payload.to_string()).unwrap();
    let at = |name: &str| world.path(name).display().to_string();
    let (key, text, signature) = (at("key.pem"), at("payload"), at("signature"));
    world.sh(&format!("openssl dgst -sha256 -sign {key} {text} | openssl base64 -A > {signature}"));
    let blobs = world.path("signed/blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: &[u8]| {
        let hex = hex::encode(Sha256::digest(bytes));
        std::fs::write(blobs.join(&hex), bytes).unwrap();
        json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let mut layer = put("application/vnd.dev.cosign.simplesigning.v1+json", payload.to_string().as_bytes());
    layer["annotations"] =
        json!({"dev.cosignproject.cosign/signature": std::fs::read_to_string(&signature).unwrap().trim()});
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let config = put("application/vnd.oci.image.config.v1+json", b"{}");
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
    let mut entry = put(kind, manifest.to_string().as_bytes());
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "x"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    std::fs::write(world.path("signed/index.json"), index).unwrap();
    std::fs::write(world.path("signed/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let (layout, tag) = (at("signed"), digest.replace(':', "-"));
    world.sh(&format!(
        "skopeo --insecure-policy copy --quiet --dest-tls-verify=false oci:{layout}:x docker://{name}:{tag}.sig"
    ));
}

#[test]
fn a_pod_waits_until_its_image_is_signed_and_runs_on_when_the_policy_changes() {
    if skipped_without_root("images") {
        return;
    }
    let world = World::new("trust");
    let mut registry = Registry::start(&world, 5047);
    let reference = registry.push(&Image::busybox(world.home(), "local/box:1"), "team/box:1");
    let path = |name: &str| world.path(name).display().to_string();
    world.sh(&format!("openssl ecparam -name prime256v1 -genkey -noout -out {}", path("key.pem")));
    world.sh(&format!("openssl ec -in {} -pubout -out {}", path("key.pem"), path("key.pub")));
    let file = path("policy.json");
    let host = registry.host();
    let policy = |requirement: &Value| {
        let scope = json!({&host: [requirement]});
        let default = json!([{"type": "insecureAcceptAnything"}]);
        std::fs::write(&file, json!({"default": default, "transports": {"docker": scope}}).to_string()).unwrap();
    };
    let signed =
        json!({"type": "sigstoreSigned", "keyPath": path("key.pub"), "signedIdentity": {"type": "matchRepository"}});
    policy(&signed);
    let agent = Agent::start_with(&world, &["--image-policy", &file]);
    let until_asked =
        pod("a", &reference).replace("[sleep, '1000']", "[sh, -c, 'while [ ! -e /end ]; do sleep 0.1; done']");
    agent.drop_manifest("a.yaml", &until_asked);
    let waits = |pod: &Value, what: &str| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let message = waiting["message"].as_str().unwrap_or_default();
        waiting["reason"] == "SignatureValidationFailed" && message.contains(what)
    };
    let rule = format!("{file}: transports[\"docker\"][\"{host}\"][0] (sigstoreSigned): it has no signature");
    agent.wait_pod("a", "waits for a signature", |pod| waits(pod, &rule));
    let refused = agent.client(&["image", "pull", &reference]);
    assert!(
        refused.code == 1 && refused.stderr.contains(&rule) && refused.stderr.contains("sign the image"),
        "{refused:?}"
    );
    assert_eq!(agent.client(&["image", "ls", "-o", "name"]).ok(), "");

    sign(&world, &reference);
    agent.wait_ready("a");
    // A restart asks nobody.
    registry.stop();
    let count = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
    agent.client(&["exec", "a", "--", "touch", "/end"]).ok();
    agent.wait_pod("a", "runs again", |pod| {
        count(pod) == Some(1) && pod["status"]["containerStatuses"][0]["ready"] == true
    });

    // What runs goes on, and does not start again.
    policy(&json!({"type": "reject"}));
    agent.client(&["restart", "pod", "a"]).ok();
    agent.wait_pod("a", "is kept, with the reason", |pod| {
        let conditions = pod["status"]["conditions"].to_string();
        conditions.contains("the policy rejects it") && pod["status"]["containerStatuses"][0]["ready"] == true
    });
    assert_eq!(agent.pod("a").as_ref().and_then(count), Some(1));
    agent.client(&["exec", "a", "--", "touch", "/end"]).ok();
    agent.wait_pod("a", "does not start again", |pod| waits(pod, "(reject): the policy rejects it"));
    assert_eq!(agent.pod("a").as_ref().and_then(count), Some(1));
    // The rule holds for what is shown as a volume, too.
    let busybox = Image::busybox(world.home(), BUSYBOX);
    agent.client(&["image", "load", busybox.tar.to_str().unwrap()]).ok();
    let shows = "volumes: [{name: files, image: {reference: 'IT'}}]\n  containers:".replace("IT", &reference);
    let mounts = "command: [sleep, '1000'], volumeMounts: [{name: files, mountPath: /files}]";
    let pod_b = pod("b", BUSYBOX).replace("containers:", &shows).replace("command: [sleep, '1000']", mounts);
    agent.drop_manifest("b.yaml", &pod_b);
    agent.wait_pod("b", "does not start", |pod| waits(pod, "(reject): the policy rejects it"));

    let doctor = |policy: &[&str]| {
        let output = world.command(portreeve_e2e::binary()).arg("doctor").args(policy).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find(|line| line.contains("image trust")).unwrap_or_default().to_owned();
        (line, output.status.code())
    };
    assert!(doctor(&[]).0.contains("every image is accepted: no imagePolicy is set"));
    let (line, code) = doctor(&["--image-policy", &file]);
    assert!(line.contains("policy.json: 1 scope of registries, by default insecureAcceptAnything"), "{line}");
    assert_eq!(code, doctor(&[]).1);
    std::fs::write(&file, r#"{"default":[{"type":"signedBy"}]}"#).unwrap();
    let (line, code) = doctor(&["--image-policy", &file]);
    assert!(line.starts_with("missing") && line.contains("default[0] is of type \"signedBy\""), "{line}");
    assert_eq!(code, Some(1));
}

/// Layers of zstd have the largest windows; each has more than one of them.
#[test]
fn twenty_pulls_at_once_take_no_more_memory_than_a_few() {
    if skipped_without_root("images") {
        return;
    }
    if std::env::var_os("PORTREEVE_GUEST").is_some() {
        return skipped("twenty_pulls_at_once_take_no_more_memory_than_a_few", "the guest is too slow for its images");
    }
    let world = World::new("twenty");
    let registry = Registry::start(&world, 5052);
    let mut state = 1_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b' ' + (state >> 32) as u8 % 64)
    };
    let references: Vec<String> = (0..20)
        .map(|number| {
            let content: String = (0..12 << 20).map(|_| noise()).collect();
            let layer = Image::layer(&[("noise", 0o644, &content)]);
            let image = Image::archive(world.home(), &format!("local/m{number}:1"), &[layer]);
            let (from, to) =
                (format!("docker-archive:{}", image.tar.display()), format!("{}/m{number}:1", registry.host()));
            let mut skopeo = world.command("skopeo");
            skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
            skopeo.args(["--dest-compress-format=zstd", &from, &format!("docker://{to}")]);
            let output = skopeo.output().expect("skopeo is installed");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            std::fs::remove_file(&image.tar).expect("removing the archive");
            to
        })
        .collect();
    let agent = Agent::start(&world);
    std::thread::scope(|scope| {
        for reference in &references {
            scope.spawn(|| agent.client(&["image", "pull", reference]).ok());
        }
    });
    assert_eq!(json(&agent.client(&["image", "ls", "-o", "json"]).ok())["items"].as_array().unwrap().len(), 20);
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")).unwrap();
    let peak_bytes = peak.trim().parse::<u64>().unwrap() * 1024;
    // The budget is 150 MB. It is 58 MB with three layers at a time, and 129 MB with all of them.
    assert!(peak_bytes < 100_000_000, "the agent has had {peak_bytes} bytes");
}
