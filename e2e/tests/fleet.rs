//! Agents that take what they run from a cluster: real definitions in a real API server, several nodes on one machine.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use portreeve_e2e::cluster::{ApiServer, Door};
use portreeve_e2e::{Agent, BUSYBOX, World, patience, preload_busybox, skipped_without_root, wait_until};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const LEASES: &str = "portreeve-system";

/// An API server with our definitions, and an administrator in it.
struct Cluster {
    server: ApiServer,
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Cluster {
    fn start() -> Self {
        let server = ApiServer::start();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
        let kubeconfig = Kubeconfig::read_from(server.door().kubeconfig()).expect("a kubeconfig");
        let client = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
            Client::try_from(config.expect("a configuration")).expect("a client")
        });
        let cluster = Self { server, runtime, client };
        for file in ["nodeagents.portreeve.dev.yaml", "nodeworkloads.portreeve.dev.yaml"] {
            cluster.define(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/crds").join(file));
        }
        for name in [LEASES, "shop"] {
            let namespace = json!({ "metadata": { "name": name } });
            cluster.create::<Namespace>(&Api::all(cluster.client.clone()), &namespace);
        }
        cluster
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// As `kubectl apply -f`, and waits until the server serves it.
    fn define(&self, file: &Path) {
        let text = std::fs::read_to_string(file).expect("a definition");
        let definition: CustomResourceDefinition = serde_yaml::from_str(&text).expect("a definition");
        let name = definition.metadata.name.clone().expect("a name");
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        self.run(api.create(&PostParams::default(), &definition)).unwrap_or_else(|error| panic!("{name}: {error}"));
        wait_until(&format!("{name} is served"), 30, || {
            let now = self.run(api.get(&name)).map_err(|error| error.to_string())?;
            let conditions = now.status.and_then(|status| status.conditions).unwrap_or_default();
            let established = conditions.iter().any(|it| it.type_ == "Established" && it.status == "True");
            if established { Ok(()) } else { Err(format!("{conditions:?}")) }
        });
    }

    fn create<K>(&self, api: &Api<K>, object: &Value)
    where
        K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
    {
        let object: K = serde_json::from_value(object.clone()).expect("an object");
        self.run(api.create(&PostParams::default(), &object)).expect("created");
    }

    fn workloads(&self) -> Api<DynamicObject> {
        let kind = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("portreeve.dev", "v1alpha1", "NodeWorkload"),
            "nodeworkloads",
        );
        Api::namespaced_with(self.client.clone(), "shop", &kind)
    }

    fn agents(&self) -> Api<DynamicObject> {
        let kind = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("portreeve.dev", "v1alpha1", "NodeAgent"),
            "nodeagents",
        );
        Api::all_with(self.client.clone(), &kind)
    }

    fn workload(&self, spec: &Value) {
        let object = json!({
            "apiVersion": "portreeve.dev/v1alpha1", "kind": "NodeWorkload",
            "metadata": { "name": "web" }, "spec": spec,
        });
        self.create(&self.workloads(), &object);
    }

    fn patch(&self, change: &Value) {
        let patched = self.run(self.workloads().patch("web", &PatchParams::default(), &Patch::Merge(change)));
        patched.expect("patched");
    }

    /// What is said of the workload as it is now: nothing, as long as what is said is of another version.
    fn status(&self) -> Value {
        let object = self.run(self.workloads().get("web")).expect("the workload");
        let status = object.data["status"].clone();
        if status["observedGeneration"].as_i64() == object.metadata.generation { status } else { Value::Null }
    }

    fn progress(&self) -> String {
        let status = self.status();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let progressing = conditions.iter().find(|condition| condition["type"] == "Progressing").cloned();
        progressing.map(|it| it["reason"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
    }

    fn wait_status(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        wait_until(what, 60, || {
            let status = self.status();
            if is(&status) { Ok(status) } else { Err(format!("{:?}", self.run(self.workloads().get("web")))) }
        })
    }

    /// All nodes run what is said now, and are ready.
    fn wait_complete(&self, nodes: u64) {
        self.wait_status("the rollout is complete", |status| {
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let complete = conditions.iter().any(|it| it["reason"] == "RolloutComplete");
            complete
                && status["updatedNodes"] == nodes
                && status["readyNodes"] == nodes
                && status["desiredNodes"] == nodes
                && status["grants"].as_array().is_none_or(Vec::is_empty)
        });
    }
}

/// A node of the fleet.
struct Member<'w> {
    agent: Agent<'w>,
    door: Door,
}

fn join<'w>(cluster: &Cluster, world: &'w World, name: &str) -> Member<'w> {
    preload_busybox(world);
    let door = cluster.server.open_door(name, Some(world));
    let kubeconfig = door.kubeconfig().display().to_string();
    let agent = Agent::start_with(world, &["--kubeconfig", &kubeconfig, "--node-name", name]);
    Member { agent, door }
}

/// A program that is ready after a moment, of version `number`.
fn template(number: u32) -> Value {
    let command = format!("sleep 0.3; echo {number} > /ready; exec sleep 100000");
    template_of(&command, number)
}

fn template_of(command: &str, number: u32) -> Value {
    json!({
        "metadata": { "labels": { "version": number.to_string() } },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", command],
                "readinessProbe": { "exec": { "command": ["cat", "/ready"] }, "periodSeconds": 1 },
            }],
        },
    })
}

#[test]
fn a_workload_runs_where_it_belongs_until_it_is_deleted() {
    if skipped_without_root("a_workload_runs_where_it_belongs_until_it_is_deleted") {
        return;
    }
    let cluster = Cluster::start();
    let world = World::new("fleet-one");
    let member = join(&cluster, &world, "one");
    // It introduces itself.
    let introduced = wait_until("the NodeAgent is ready", 30, || {
        let agent = cluster.run(cluster.agents().get("one")).map_err(|error| error.to_string())?;
        let conditions = agent.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().any(|it| it["type"] == "Ready" && it["status"] == "True");
        if ready { Ok(agent) } else { Err(agent.data.to_string()) }
    });
    assert_eq!(introduced.data["status"]["version"], env!("CARGO_PKG_VERSION"));

    let mut with_config = template(1);
    with_config["spec"]["containers"][0]["env"] =
        json!([{ "name": "TIDE", "valueFrom": { "configMapKeyRef": { "name": "tides", "key": "now" } } }]);
    cluster.workload(&json!({ "nodeSelector": { "kubernetes.io/hostname": "one" }, "template": with_config }));
    // The ConfigMap that it names comes later, and is found by its name.
    let waiting = cluster.wait_status("it waits", |status| status["nodes"][0]["name"] == "one");
    assert_eq!(waiting["readyNodes"], 0);
    let tides = json!({ "metadata": { "name": "tides", "namespace": "shop" }, "data": { "now": "high" } });
    cluster.create::<ConfigMap>(&Api::namespaced(cluster.client.clone(), "shop"), &tides);
    cluster.wait_complete(1);
    let pods = member.agent.pods();
    let [pod] = pods.as_slice() else { panic!("{pods:?}") };
    assert_eq!((&pod["metadata"]["namespace"], &pod["metadata"]["name"]), (&json!("shop"), &json!("web-0")));
    assert_eq!(pod["metadata"]["labels"]["portreeve.dev/workload"], "web");
    let seen = member.agent.client(&["exec", "-n", "shop", "web-0", "--", "sh", "-c", "echo $TIDE"]).ok();
    assert_eq!(seen.trim(), "high");
    let sources = member.agent.client(&["get", "sources", "-o", "json"]).ok();
    assert!(sources.contains("cluster/nodeworkloads/shop/web"), "{sources}");

    // It is for another node now, and then gone for good.
    cluster.patch(&json!({ "spec": { "nodeNames": ["another"] } }));
    cluster.wait_status("no node has it", |status| status["desiredNodes"] == 0);
    wait_until("its pod is gone", 30, || {
        if member.agent.pods().is_empty() { Ok(()) } else { Err("it is there".to_owned()) }
    });
    cluster.patch(&json!({ "spec": { "nodeNames": null } }));
    cluster.wait_complete(1);
    cluster.run(cluster.workloads().delete("web", &DeleteParams::default())).expect("deleted");
    wait_until("the workload is gone", 60, || {
        match cluster.run(cluster.workloads().get_opt("web")).map_err(|error| error.to_string())? {
            None => Ok(()),
            Some(object) => Err(object.data.to_string()),
        }
    });
    assert_eq!(member.agent.pods(), Vec::<Value>::new());
    drop(member.door);
}

#[test]
fn a_change_goes_from_node_to_node_and_a_bad_one_goes_back() {
    if skipped_without_root("a_change_goes_from_node_to_node_and_a_bad_one_goes_back") {
        return;
    }
    let cluster = Cluster::start();
    let worlds = [World::new("fleet-a"), World::new("fleet-b"), World::new("fleet-c")];
    let names = ["a", "b", "c"];
    let members: Vec<Member<'_>> = worlds.iter().zip(names).map(|(world, name)| join(&cluster, world, name)).collect();
    let rollout = json!({ "progressDeadlineSeconds": 5, "onFailure": "Revert" });
    cluster.workload(&json!({ "template": template(1), "rollout": rollout }));
    cluster.wait_complete(3);

    cluster.patch(&json!({ "spec": { "template": template(2) } }));
    let begun = Instant::now();
    let mut holders = std::collections::BTreeSet::new();
    loop {
        let status = cluster.status();
        let grants = status["grants"].as_array().cloned().unwrap_or_default();
        assert!(grants.len() <= 1, "{status}");
        holders.extend(grants.iter().filter_map(|grant| grant["node"].as_str().map(str::to_owned)));
        let down = members.iter().filter(|member| !is_ready(member)).count();
        assert!(down <= 1, "{down} nodes are down at once");
        if status["updatedNodes"] == 3 && status["readyNodes"] == 3 && grants.is_empty() {
            break;
        }
        assert!(begun.elapsed() < patience(60), "{status}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(holders.len(), 3, "each had its turn: {holders:?}");

    // It never becomes ready: one node shows it, and gets back what it had.
    cluster.patch(&json!({ "spec": { "template": template_of("exec sleep 100000", 3) } }));
    cluster.wait_status("it is given up", |status| status["target"]["revertedFrom"].is_string());
    assert_eq!(cluster.progress(), "Reverted");
    cluster.wait_status("all are as they were", |status| {
        status["readyNodes"] == 3
            && status["updatedNodes"] == 3
            && status["grants"].as_array().is_none_or(Vec::is_empty)
    });
    for member in &members {
        let pods = member.agent.pods();
        assert_eq!(pods[0]["metadata"]["labels"]["version"], "2", "{pods:?}");
    }
    drop(members);
}

fn is_ready(member: &Member<'_>) -> bool {
    let pods = member.agent.pods();
    let conditions = pods.first().map(|pod| pod["status"]["conditions"].as_array().cloned().unwrap_or_default());
    conditions.into_iter().flatten().any(|it| it["type"] == "Ready" && it["status"] == "True")
}

#[test]
fn a_node_without_its_server_goes_on_and_catches_up() {
    if skipped_without_root("a_node_without_its_server_goes_on_and_catches_up") {
        return;
    }
    let cluster = Cluster::start();
    let world = World::new("fleet-off");
    let mut member = join(&cluster, &world, "off");
    cluster.workload(&json!({ "template": template(1) }));
    cluster.wait_complete(1);
    let id = |member: &Member<'_>| member.agent.pods()[0]["status"]["containerStatuses"][0]["containerID"].clone();
    let before = id(&member);

    cluster.server.stop();
    member.agent.kill();
    member.agent.launch();
    wait_until("it tells of the server", 30, || {
        let sources = member.agent.client(&["get", "sources"]).ok();
        if sources.contains("Unreadable") { Ok(()) } else { Err(sources) }
    });
    assert_eq!(id(&member), before, "what runs goes on");

    cluster.server.start_again();
    cluster.patch(&json!({ "spec": { "template": template(2) } }));
    cluster.wait_complete(1);
    assert_ne!(id(&member), before);
    // The token that it had is refused, and another lies in its place.
    member.door.rotate_token();
    member.door.refuse_old_tokens();
    cluster.patch(&json!({ "spec": { "template": template(3) } }));
    cluster.wait_complete(1);
}

#[test]
fn hostile_objects_are_told_of_and_harm_nobody() {
    if skipped_without_root("hostile_objects_are_told_of_and_harm_nobody") {
        return;
    }
    let cluster = Cluster::start();
    let world = World::new("fleet-bad");
    let member = join(&cluster, &world, "bad");
    cluster.workload(&json!({ "template": { "spec": { "containers": "none" } } }));
    let status = cluster.wait_status("it is told of", |status| status["nodes"][0]["phase"] == "Failed");
    let message = status["nodes"][0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("spec.containers"), "{message}");
    // Into another namespace than its own it puts nothing.
    let foreign = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "x", "namespace": "kube-system" },
        "spec": template(1)["spec"] });
    cluster.patch(&json!({ "spec": { "template": null, "manifests": [foreign] } }));
    let status = cluster.wait_status("it is told of", |status| {
        status["nodes"][0]["message"].as_str().is_some_and(|message| message.contains("another namespace"))
    });
    assert_eq!(status["readyNodes"], 0);
    assert_eq!(member.agent.pods(), Vec::<Value>::new());
    // Neither both nor none.
    let both = json!({ "spec": { "template": template(1) } });
    let refused = cluster.run(cluster.workloads().patch("web", &PatchParams::default(), &Patch::Merge(&both)));
    assert!(refused.expect_err("refused").to_string().contains("either a template or manifests"));
}
