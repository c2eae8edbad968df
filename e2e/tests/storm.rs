//! SIGKILL the agent at random moments during a churn of manifests: afterwards the right pods
//! run, each once, and nothing is left over.
//!
//! `PORTREEVE_KILLS` is the number of kills (20 unless told; the full run takes 200) and
//! `PORTREEVE_SEED` replays a run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portreeve_e2e::{
    Agent, BUSYBOX, Census, World, condition, patience, preload_busybox, skipped_without_host_ports,
    skipped_without_root, wait_until,
};
use serde_json::{Value, json};

/// xorshift64*: small, seeded, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

/// Shapes of pods: what one may have that could be left behind.
const SHAPES: usize = 6;

/// Pod `p<number>` in its `revision`; of the same revision every pod is always the same.
///
/// Each container sleeps for a number of seconds that no other container of any revision sleeps for, so that its
/// processes can be counted.
fn manifest(number: usize, revision: u64, with_host_port: bool) -> Value {
    let container = |container: usize, revision: u64| {
        json!({
            "name": format!("c{container}"), "image": BUSYBOX,
            "command": ["sleep", marker(number, container, revision)],
        })
    };
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("p{number}") },
        "spec": { "terminationGracePeriodSeconds": 0, "containers": [container(0, revision)] },
    });
    let spec = &mut pod["spec"];
    match number % SHAPES {
        0 => {
            spec["volumes"] = json!([
                { "name": "disk", "emptyDir": {} },
                { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
                { "name": "config", "configMap": { "name": "c" } },
                { "name": "secret", "secret": { "secretName": "s" } },
            ]);
            let mounts = ["disk", "memory", "config", "secret"];
            spec["containers"][0]["volumeMounts"] =
                mounts.iter().map(|name| json!({ "name": name, "mountPath": format!("/{name}") })).collect();
        }
        1 if with_host_port => {
            let ports = json!([{ "containerPort": 80, "hostPort": 20000 + number }]);
            spec["containers"][0]["ports"] = ports;
        }
        2 => {
            let probe = json!({ "exec": { "command": ["true"] }, "periodSeconds": 1 });
            spec["containers"][0]["readinessProbe"] = probe.clone();
            spec["containers"][0]["livenessProbe"] = probe;
        }
        // Of the two only one changes with the revision.
        3 => spec["containers"] = json!([container(0, revision), container(1, 0)]),
        4 => {
            // Another init container makes the whole pod anew.
            spec["initContainers"] = json!([
                { "name": "init", "image": BUSYBOX, "command": ["sh", "-c", format!("echo {revision}")] },
            ]);
        }
        _ => {}
    }
    pod
}

fn marker(number: usize, container: usize, revision: u64) -> String {
    (1_000_000 + number * 100_000 + container * 10_000 + usize::try_from(revision).unwrap()).to_string()
}

fn number_of(name: &str) -> usize {
    name.trim_start_matches('p').parse().expect("p and a number")
}

/// The command of each container of the pod.
fn commands(pod: &Value) -> Vec<String> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    containers.map(|container| format!("sleep {}", container["command"][1].as_str().unwrap_or_default())).collect()
}

/// Of every container that is, its id and how often it was restarted.
fn containers(agent: &Agent<'_>) -> BTreeMap<String, (String, u64)> {
    let mut all = BTreeMap::new();
    for pod in agent.pods() {
        for one in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            let name = format!("{}/{}", pod["metadata"]["name"], one["name"]);
            let id = one["containerID"].as_str().unwrap_or_default().to_owned();
            all.insert(name, (id, one["restartCount"].as_u64().unwrap_or_default()));
        }
    }
    all
}

/// Everything of the agent but the agent itself.
fn made_by(agent: &Agent<'_>) -> Census {
    let own = format!("{} ", agent.pid());
    let mut census = agent.census();
    census.processes.retain(|process| !process.starts_with(&own));
    census
}

fn configuration(word: u64) -> String {
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "c" }, "data": { "word": word.to_string() } });
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "stringData": { "word": word.to_string() } });
    json!({ "apiVersion": "v1", "kind": "List", "items": [map, secret] }).to_string()
}

/// Pods that nobody edits, one of each shape; the churn has those of the numbers before.
const STEADY: std::ops::Range<usize> = SHAPES..2 * SHAPES;

#[test]
fn the_agent_may_be_killed_at_any_moment() {
    if skipped_without_root("storm") {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let kills = number("PORTREEVE_KILLS").unwrap_or(20);
    let seed = number("PORTREEVE_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::from(now.subsec_nanos()) | 1
    });
    // Past the capture of passing tests: a run that went well may be of interest, too.
    writeln!(std::io::stderr(), "PORTREEVE_SEED={seed} PORTREEVE_KILLS={kills}: kills of the agent").unwrap();
    let mut random = Random(seed);
    let world = World::new("storm");
    let host_ports = !skipped_without_host_ports(&world, "the host ports of the storm");
    preload_busybox(&world);
    let mut agent = Agent::start(&world);
    let before = made_by(&agent);
    agent.drop_manifest("configuration.yaml", &configuration(0));
    for steady in STEADY {
        agent.drop_manifest(&format!("p{steady}.yaml"), &manifest(steady, 0, host_ports).to_string());
    }
    for steady in STEADY {
        agent.wait_ready(&format!("p{steady}"));
    }
    let steady = containers(&agent);

    let mut desired: BTreeMap<String, Value> =
        STEADY.map(|number| (format!("p{number}"), manifest(number, 0, host_ports))).collect();
    for _ in 0..kills {
        for _ in 0..1 + random.below(4) {
            let number = usize::try_from(random.below(STEADY.start as u64)).unwrap();
            let name = format!("p{number}");
            let file = format!("{name}.yaml");
            if desired.contains_key(&name) && random.below(3) == 0 {
                agent.remove_manifest(&file);
                desired.remove(&name);
            } else {
                let pod = manifest(number, 1000 + random.below(5), host_ports);
                agent.drop_manifest(&file, &pod.to_string());
                desired.insert(name, pod);
            }
            if random.below(4) == 0 {
                agent.drop_manifest("configuration.yaml", &configuration(random.below(1000)));
            }
            std::thread::sleep(Duration::from_millis(random.below(15)));
        }
        std::thread::sleep(Duration::from_millis(random.below(120)));
        agent.kill();
        agent.launch();
    }

    let wanted: BTreeMap<String, Vec<String>> =
        desired.iter().map(|(name, pod)| (name.clone(), commands(pod))).collect();
    wait_until("exactly the desired pods are ready", 120, || {
        let pods = agent.pods();
        let ready = pods.iter().filter(|pod| condition(pod, "Ready") == Some("True"));
        let observed: BTreeMap<String, Vec<String>> =
            ready.map(|pod| (pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(), commands(pod))).collect();
        let quiet = agent.client(&["plan"]);
        if observed == wanted && pods.len() == desired.len() && quiet.code == 0 {
            Ok(())
        } else {
            Err(format!("seed {seed}: wanted {wanted:?}, have {observed:?}\n{}", quiet.stdout))
        }
    });
    let settled = containers(&agent);
    for (container, was) in &steady {
        assert_eq!(settled.get(container), Some(was), "seed {seed}: {container}, which nobody edited, was restarted");
    }
    wait_until("everything is there once", 10, || {
        once(&agent, &wanted, host_ports).map_err(|why| format!("seed {seed}: {why}"))
    });

    // Nothing changes any more, so nothing may be touched, however often the agent ends.
    for _ in 0..3 {
        agent.kill();
        agent.launch();
        std::thread::sleep(Duration::from_millis(random.below(60)));
    }
    for name in wanted.keys() {
        agent.wait_ready(name);
    }
    assert_eq!(containers(&agent), settled, "seed {seed}: an agent that found all as desired changed something");
    wait_until("everything is there once", 10, || {
        once(&agent, &wanted, host_ports).map_err(|why| format!("seed {seed}: {why}"))
    });

    for name in desired.keys() {
        agent.remove_manifest(&format!("{name}.yaml"));
    }
    agent.remove_manifest("configuration.yaml");
    wait_until("all pods are gone", 60, || {
        let pods = agent.pods();
        if pods.is_empty() { Ok(()) } else { Err(format!("seed {seed}: {} are left", pods.len())) }
    });
    let begun = std::time::Instant::now();
    let left = loop {
        let left = left_over(&before, &made_by(&agent));
        if left.is_empty() || begun.elapsed() > patience(10) {
            break left;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(left.is_empty(), "seed {seed}: left over by removed pods: {left:#?}");
    let left = agent.erase();
    assert!(left.is_empty(), "seed {seed}: left over: {left:#?}");
}

/// Whether each of the pods has exactly what it needs, and nothing else is there.
fn once(agent: &Agent<'_>, wanted: &BTreeMap<String, Vec<String>>, host_ports: bool) -> Result<(), String> {
    let census = agent.census();
    let pods = agent.pods();
    let uid = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let equal = |what: &str, seen: &BTreeSet<String>, due: &BTreeSet<String>| {
        if seen == due { Ok(()) } else { Err(format!("{what}: there is {seen:?}, due is {due:?}")) }
    };
    let number = |what: &str, seen: usize, due: usize| {
        if seen == due { Ok(()) } else { Err(format!("{what}: {seen} instead of {due}: {census:#?}")) }
    };
    // Each container's process once, and beside them at most the shims: nothing else is in the cgroups.
    let commands = census.commands();
    let running: BTreeMap<String, usize> = commands
        .iter()
        .filter(|(line, _)| !line.contains(" shim "))
        .map(|(line, count)| (line.clone(), *count))
        .collect();
    let due: BTreeMap<String, usize> = wanted.values().flatten().map(|line| (line.clone(), 1)).collect();
    if running != due {
        return Err(format!("processes are {running:?}, due is {due:?}"));
    }
    let shims = census.processes.iter().filter(|line| line.contains(" shim ")).count();
    number("shims", shims, pods.len())?;
    let links = census.links.iter().filter(|link| !link.starts_with("prt-")).count();
    number("links", links, pods.len())?;
    number("network namespaces", census.namespaces.len(), pods.len())?;
    let published = wanted.keys().filter(|name| host_ports && number_of(name) % SHAPES == 1).count();
    number("nftables elements", census.elements.len(), published)?;
    let sandboxes = census.entries("run/sandboxes");
    number("sandboxes", sandboxes.len(), pods.len())?;
    let attachments = sandboxes.iter().map(|id| format!("{id}.json")).collect();
    equal("attachments", &census.entries("run/network/attachments"), &attachments)?;
    let uids: BTreeSet<String> = pods.iter().map(uid).collect();
    equal("pods below root", &census.entries("root/pods"), &uids)?;
    if let Some(foreign) = census.entries("run/pods").difference(&uids).next() {
        return Err(format!("{foreign} in run/pods belongs to no pod"));
    }
    let logs =
        pods.iter().map(|pod| format!("default_{}_{}", pod["metadata"]["name"].as_str().unwrap_or_default(), uid(pod)));
    equal("logs", &census.entries("root/logs"), &logs.collect())?;
    // A container keeps its last ended one for `logs --previous`.
    let containers = |pod: &Value, of: &str| pod["spec"][of].as_array().map_or(0, Vec::len);
    let most: usize =
        pods.iter().map(|pod| 2 * (containers(pod, "containers") + containers(pod, "initContainers"))).sum();
    let snapshots = census.entries("root/images/snapshots").len();
    if !(due.len()..=most).contains(&snapshots) {
        return Err(format!("{snapshots} snapshots for at least {} and at most {most} containers", due.len()));
    }
    let folders = census.cgroups.iter().filter_map(|cgroup| {
        let name = cgroup.file_name()?.to_str()?.strip_prefix("pod")?;
        Some(name.to_owned())
    });
    equal("pods with a cgroup", &folders.collect(), &uids)
}

/// Whether a cgroup is one that the agent makes with its first pod and keeps for the next ones.
fn is_shared(cgroup: &Path) -> bool {
    let shared = ["besteffort", "burstable", "shims"];
    cgroup.file_name().is_some_and(|name| {
        let name = name.to_string_lossy();
        name.starts_with("portreeve-") || shared.contains(&&*name)
    })
}

/// What is there and was not before.
fn left_over(before: &Census, now: &Census) -> Vec<String> {
    fn more<T: Ord + std::fmt::Debug>(what: &str, before: &BTreeSet<T>, now: &BTreeSet<T>) -> Vec<String> {
        now.difference(before).map(|one| format!("{what}: {one:?}")).collect()
    }
    [
        more("cgroup", &before.cgroups, &now.cgroups.iter().filter(|cgroup| !is_shared(cgroup)).cloned().collect()),
        more("mount", &before.mounts, &now.mounts),
        more("link", &before.links, &now.links),
        more("address", &before.addresses, &now.addresses),
        more("route", &before.routes, &now.routes),
        more("network namespace", &before.namespaces, &now.namespaces),
        more("nftables table", &before.tables, &now.tables),
        more("nftables rule", &before.rules, &now.rules),
        more("nftables element", &before.elements, &now.elements),
        more("process", &before.processes, &now.processes),
        more("process in a cgroup", &before.contained, &now.contained),
        more("file", &before.files, &now.files),
    ]
    .concat()
}
