//! What a container's status tells, and what of it can be changed while it runs.

use portreeve_e2e::cri::{code, pod, shell, v1};
use portreeve_e2e::{Agent, BUSYBOX, Cri, World, skipped_without_root};
use tonic::Code;

#[test]
fn a_container_is_told_with_the_digest_of_its_image_and_with_its_id() {
    if skipped_without_root("cri_status") {
        return;
    }
    let world = World::new("cri-image-ref");
    let agent = Agent::with_busybox(&world);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let config = pod("a", &world.path("cri-logs"));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let id = cri.create(&sandbox, shell("main", BUSYBOX, "sleep 1000"), &config).unwrap();
    let image = cri.image(BUSYBOX).unwrap();
    let told = cri.container(&id).unwrap();
    assert!(told.image_ref.contains("@sha256:"), "{}", told.image_ref);
    assert_eq!((&told.image_ref, &told.image_id), (&image.repo_digests[0], &image.id));
    // By this a kubelet knows which images are in use.
    let listed = cri.containers(v1::ContainerFilter::default()).remove(0);
    assert_eq!((&listed.image_ref, &listed.image_id), (&image.id, &image.id));
    cri.remove_sandbox(&sandbox).unwrap();
}

#[test]
fn how_soon_a_container_is_killed_can_be_changed_and_is_told() {
    if skipped_without_root("cri_status") {
        return;
    }
    let world = World::new("cri-oom-score");
    let agent = Agent::with_busybox(&world);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let config = pod("a", &world.path("cri-logs"));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let asked = |score: i64| v1::LinuxContainerResources { oom_score_adj: score, ..Default::default() };
    let mut wanted = shell("main", BUSYBOX, "sleep 1000 & sleep 1000");
    wanted.linux = Some(v1::LinuxContainerConfig { resources: Some(asked(300)), security_context: None });
    let id = cri.create(&sandbox, wanted.clone(), &config).unwrap();
    cri.start(&id).unwrap();
    // Of the shell, its two children, and who looks.
    let scores = || {
        let ours = "for p in $(pgrep sleep) $(pgrep -o sh) self; do cat /proc/$p/oom_score_adj; done | sort -u";
        let told = cri.container(&id).unwrap().resources.unwrap().linux.unwrap().oom_score_adj;
        (cri.inside(&id, ours), told)
    };
    assert_eq!(scores(), ("300".to_owned(), 300));
    let update = |resources: v1::LinuxContainerResources| {
        let container_id = id.clone();
        let request =
            v1::UpdateContainerResourcesRequest { container_id, linux: Some(resources), ..Default::default() };
        cri.runtime(async |mut runtime| runtime.update_container_resources(request).await)
    };
    // Only up: not every machine lets an agent lower it.
    update(asked(700)).unwrap();
    assert_eq!(scores(), ("700".to_owned(), 700));
    // What assigns processors says nothing of it.
    update(v1::LinuxContainerResources { cpu_shares: 512, ..Default::default() }).unwrap();
    assert_eq!(scores(), ("700".to_owned(), 700));
    assert_eq!(code(update(asked(1001))), Code::InvalidArgument);
    wanted.metadata.as_mut().unwrap().attempt = 1;
    wanted.linux.as_mut().unwrap().resources = Some(asked(-1001));
    assert_eq!(code(cri.create(&sandbox, wanted, &config)), Code::InvalidArgument);
    cri.remove_sandbox(&sandbox).unwrap();
}

#[test]
fn a_container_that_contradicts_its_sandbox_is_refused() {
    if skipped_without_root("cri_status") {
        return;
    }
    let world = World::new("cri-contradiction");
    let agent = Agent::with_busybox(&world);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let config = pod("a", &world.path("cri-logs"));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let create = |name: &str, context: v1::LinuxContainerSecurityContext| {
        let mut wanted = shell(name, BUSYBOX, "sleep 1000");
        wanted.linux = Some(v1::LinuxContainerConfig { resources: None, security_context: Some(context) });
        cri.create(&sandbox, wanted, &config)
    };
    let plain = v1::LinuxContainerSecurityContext::default;
    let node = v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), ..Default::default() };
    let refused = create("network", v1::LinuxContainerSecurityContext { namespace_options: Some(node), ..plain() });
    assert_eq!(code(refused), Code::InvalidArgument);
    let refused = create("all", v1::LinuxContainerSecurityContext { privileged: true, ..plain() });
    assert_eq!(code(refused), Code::InvalidArgument);
    create("plain", plain()).unwrap();
    cri.remove_sandbox(&sandbox).unwrap();
}
