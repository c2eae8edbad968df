//! Hooks of a container whose root is made of layers, and which is held by its maker, as the shim does.

use std::path::Path;
use std::time::{Duration, Instant};

use oci_spec::runtime::Spec;
use portreeve_oci::{Create, LaterHooks, Outside};
use serde_json::{Value, json};

use crate::Test;
use crate::world::{World, chain};

pub(crate) const TESTS: &[Test] = &[
    (
        "hooks_find_layers_in_the_bundle_and_the_host_has_nothing_mounted",
        hooks_find_layers_in_the_bundle_and_the_host_has_nothing_mounted,
    ),
    ("hooks_that_take_too_long_together_are_killed", hooks_that_take_too_long_together_are_killed),
    ("later_hooks_are_those_of_the_start_and_the_end", later_hooks_are_those_of_the_start_and_the_end),
    ("layers_without_a_bundle_have_no_place_for_hooks", layers_without_a_bundle_have_no_place_for_hooks),
];

fn hook(line: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] })
}

fn request<'a>(world: &'a World, spec: &'a Spec) -> Create<'a> {
    std::fs::create_dir_all(world.path("bundle/rootfs")).expect("mkdir");
    let (stdio, ..) = world.streams();
    let mut request = Create::new("test", spec, world.rootfs(), &world.cgroup, stdio);
    request.bundle = world.path("bundle");
    request
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn hooks_find_layers_in_the_bundle_and_the_host_has_nothing_mounted() {
    let world = World::new(&["sleep", "100"]);
    let notes = world.path("notes");
    let world = world.with(json!({ "hooks": {
        // Beside the container: the place is there, and nothing in it.
        "createRuntime": [hook(&format!("pwd >> {0}; ls rootfs | wc -l >> {0}", notes.display()))],
        // In the container's mount namespace: its files are there, and it can add some.
        "createContainer": [hook(&format!("cat rootfs/etc/passwd | head -n1 >> {}; touch rootfs/added", notes.display()))],
    } }));
    let spec = world.typed();
    let went = world.path("went");
    let outside = || std::fs::write(&went, "outside");
    let mut request = request(&world, &spec);
    request.outside = Some(Outside(&outside));
    let created = portreeve_oci::create(request).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let bundle = world.path("bundle");
    assert_eq!(text(&notes), format!("{}\n0\nroot:x:0:0:root:/root:/bin/sh\n", bundle.display()));
    assert_eq!(text(&went), "outside", "what the maker wanted done before");
    assert_eq!(std::fs::read_dir(bundle.join("rootfs")).expect("the place").count(), 0);
    assert!(world.path("upper/added").exists(), "it went into the container's own layer");
    let (_running, starter) = created.split();
    starter.start().unwrap_or_else(|error| panic!("{}", chain(&error)));
}

fn hooks_that_take_too_long_together_are_killed() {
    for point in ["createRuntime", "createContainer", "startContainer"] {
        let world = World::new(&["sleep", "100"]);
        let world = world.with(json!({ "hooks": { point: [hook("sleep 0.2"), hook("echo slow; sleep 100")] } }));
        let spec = world.typed();
        let mut request = request(&world, &spec);
        request.hooks_within = Some(Duration::from_secs(1));
        let began = Instant::now();
        let made = portreeve_oci::create(request).map_err(|error| chain(&error));
        let error = made.and_then(|created| created.start().map_err(|error| chain(&error))).expect_err(point);
        assert!(error.contains(&format!("{point} hook 2 (/bin/sh)")), "{error}");
        assert!(error.contains("when the time that hooks have together was over") && error.contains("slow"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
}

fn later_hooks_are_those_of_the_start_and_the_end() {
    let world = World::new(&["true"]);
    let none = world.with(json!({ "hooks": { "createRuntime": [hook("true")] } }));
    assert!(LaterHooks::of(&none.typed(), "test", Path::new("/")).expect("hooks").is_none());
    let (notes, bundle) = (none.path("notes"), none.path("bundle"));
    let line = |word: &str| format!("echo {word} >> {0}; cat >> {0}; echo >> {0}", notes.display());
    let world = none.with(json!({ "hooks": {
        "poststart": [hook(&line("start")), hook("echo no such luck; exit 3"), hook(&line("never"))],
        "poststop": [hook("exit 4"), hook(&line("stop")), hook("sleep 100")],
    } }));
    std::fs::create_dir(&bundle).expect("mkdir");
    let later = LaterHooks::of(&world.typed(), "an-id", &bundle).expect("hooks").expect("some");
    let nothing = || Ok(());
    let (own, until) = (rustix::process::getpid(), Instant::now() + Duration::from_secs(1));
    let error = later.run_poststart(own, Outside(&nothing), until).expect_err("the second fails").to_string();
    assert_eq!(error, "running the poststart hook 2 (/bin/sh): it ended with code 3, and said: no such luck");
    let errors = later.run_poststop(Outside(&nothing), Instant::now() + Duration::from_secs(1));
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert!(errors[0].contains("poststop hook 1") && errors[0].contains("code 4"), "{errors:?}");
    assert!(errors[1].contains("poststop hook 3") && errors[1].contains("was over"), "{errors:?}");
    let states: Vec<String> = text(&notes).lines().map(str::to_owned).collect();
    assert_eq!((states[0].as_str(), states[2].as_str(), states.len()), ("start", "stop", 4));
    for (line, status, pid) in
        [(&states[1], "running", json!(own.as_raw_nonzero().get())), (&states[3], "stopped", Value::Null)]
    {
        let state: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!((&state["id"], &state["status"], &state["pid"]), (&json!("an-id"), &json!(status), &pid), "{state}");
        assert_eq!(state["bundle"], bundle.to_str().expect("text"));
    }
}

fn layers_without_a_bundle_have_no_place_for_hooks() {
    let world = World::new(&["true"]).with(json!({ "hooks": { "createContainer": [hook("true")] } }));
    assert!(world.refusal().contains("need a bundle"), "{}", world.refusal());
}
