//! SIGKILL the agent at random moments during a churn of manifests: afterwards the right pods
//! run, each once, and nothing is left over.
//!
//! `PORTREEVE_KILLS` is the number of kills (20 unless told; the full run takes 100) and
//! `PORTREEVE_SEED` replays a run.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portreeve_e2e::{Agent, BUSYBOX, World, condition, preload_busybox, skipped_without_root, wait_until};

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

fn manifest(name: &str, revision: u64) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: main, image: '{BUSYBOX}', command: [sleep, '{revision}']}}\n"
    )
}

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
    eprintln!("PORTREEVE_SEED={seed} PORTREEVE_KILLS={kills}");
    let mut random = Random(seed);
    let world = World::new("storm");
    preload_busybox(&world);
    let mut agent = Agent::start(&world);
    agent.drop_manifest("steady.yaml", &manifest("steady", 99999));
    let steady = agent.wait_ready("steady")["status"]["containerStatuses"][0]["containerID"].clone();

    let mut desired: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..kills {
        for _ in 0..1 + random.below(4) {
            let name = format!("p{}", random.below(6));
            let file = format!("{name}.yaml");
            if desired.contains_key(&name) && random.below(3) == 0 {
                agent.remove_manifest(&file);
                desired.remove(&name);
            } else {
                let revision = 1000 + random.below(5);
                agent.drop_manifest(&file, &manifest(&name, revision));
                desired.insert(name, revision);
            }
            std::thread::sleep(Duration::from_millis(random.below(15)));
        }
        std::thread::sleep(Duration::from_millis(random.below(120)));
        agent.kill();
        agent.launch();
    }

    wait_until("exactly the desired pods are ready", 120, || {
        let pods = agent.pods();
        let mut observed = BTreeMap::new();
        for pod in &pods {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let revision =
                pod["spec"]["containers"][0]["command"][1].as_str().and_then(|text| text.parse::<u64>().ok());
            if condition(pod, "Ready") == Some("True") {
                observed.insert(name, revision.unwrap_or(0));
            }
        }
        observed.remove("steady");
        let quiet = agent.client(&["plan"]);
        if observed == desired && pods.len() == desired.len() + 1 && quiet.code == 0 {
            Ok(())
        } else {
            Err(format!("seed {seed}: wanted {desired:?}, have {observed:?}\n{}", quiet.stdout))
        }
    });
    let after = agent.pod("steady").expect("the steady pod")["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(after, steady, "seed {seed}: a pod that nobody edited was restarted");

    // One process per desired container, and no kernel object beyond what these pods need.
    let pods = desired.len() + 1;
    wait_until("nothing is there twice", 10, || {
        let census = agent.census();
        let count = |part: &str| census.files.iter().filter(|path| path.to_string_lossy().contains(part)).count();
        let shims = census.processes.iter().filter(|line| line.contains(" shim ")).count();
        let links = census.links.iter().filter(|link| !link.starts_with("prt-")).count();
        // In the cgroups of each pod: its shim or not, by how shims are placed, and its one process.
        let running = census.contained.len() - shims;
        let seen = (count("/sandboxes/"), shims, links, running);
        // A pod keeps its last ended container for `logs --previous`.
        let snapshots = count("/snapshots/");
        if seen == (pods, pods, pods, pods) && (pods..=2 * pods).contains(&snapshots) {
            Ok(())
        } else {
            Err(format!(
                "seed {seed}: {pods} pods, but sandboxes, shims, links, processes are {seen:?}, snapshots {snapshots}: \
                 {census:#?}"
            ))
        }
    });
    for name in desired.keys() {
        agent.remove_manifest(&format!("{name}.yaml"));
    }
    agent.remove_manifest("steady.yaml");
    wait_until("all pods are gone", 60, || {
        let pods = agent.pods();
        if pods.is_empty() { Ok(()) } else { Err(format!("seed {seed}: {} are left", pods.len())) }
    });
    let left = agent.erase();
    assert!(left.is_empty(), "seed {seed}: left over: {left:#?}");
}
