//! What pods use: stats, and metrics by cAdvisor's names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use portreeve_e2e::cri::{code, pod, shell, v1};
use portreeve_e2e::{Agent, BUSYBOX, Cri, World, cgroup_version, skipped_without_root, wait_until};
use tonic::Code;

/// An id that nothing has.
const NOBODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn connect(agent: &Agent<'_>) -> Cri {
    Cri::connect(&agent.run_dir().join("cri.sock"))
}

fn logs(world: &World) -> PathBuf {
    world.path("cri-logs")
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn clear(cri: &Cri) {
    for sandbox in cri.sandboxes(v1::PodSandboxFilter::default()) {
        cri.remove_sandbox(&sandbox.id).unwrap();
    }
}

fn stats(cri: &Cri, id: &str) -> Result<v1::ContainerStats, tonic::Status> {
    let request = v1::ContainerStatsRequest { container_id: id.to_owned() };
    cri.runtime(async |mut runtime| runtime.container_stats(request).await).map(|answer| answer.stats.unwrap())
}

#[test]
fn what_pods_use_is_told_and_limits_change_while_they_run() {
    if skipped_without_root("cri_stats") {
        return;
    }
    let world = World::new("cri-stats");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let mut config = pod("a", &logs(&world));
    config.labels = labels(&[("app", "a")]);
    let sandbox = cri.run_sandbox(&config).unwrap();
    let mut wanted = shell(
        "main",
        BUSYBOX,
        "head -c 1048576 /dev/zero > /written; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000",
    );
    wanted.labels = labels(&[("io.kubernetes.container.name", "main")]);
    let limits = v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        ..v1::LinuxContainerResources::default()
    };
    wanted.linux = Some(v1::LinuxContainerConfig { resources: Some(limits.clone()), security_context: None });
    let id = cri.create(&sandbox, wanted.clone(), &config).unwrap();
    cri.start(&id).unwrap();
    wait_until("it has written", 10, || {
        match cri.exec(&id, &["sh", "-c", "[ $(stat -c %s /written) = 1048576 ]"], 5) {
            Ok(done) if done.exit_code == 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let told = cri.container(&id).unwrap().resources.unwrap().linux.unwrap();
    assert_eq!((told.cpu_quota, told.cpu_shares, told.memory_limit_in_bytes), (50_000, 512, 64 << 20));

    let one = stats(&cri, &id).unwrap();
    assert_eq!(one.attributes.as_ref().unwrap().labels, wanted.labels);
    assert!(one.memory.as_ref().unwrap().working_set_bytes.unwrap().value > 0);
    let cpu = |stats: &v1::ContainerStats| stats.cpu.as_ref().unwrap().usage_core_nano_seconds.unwrap().value;
    wait_until("it has used processor time", 20, || {
        let used = cpu(&stats(&cri, &id).unwrap());
        if used > 1_000_000 { Ok(()) } else { Err(used.to_string()) }
    });
    assert_eq!(code(stats(&cri, NOBODY)), Code::NotFound);
    let listed = |filter: v1::ContainerStatsFilter| {
        let request = v1::ListContainerStatsRequest { filter: Some(filter) };
        let all = cri.runtime(async |mut runtime| runtime.list_container_stats(request).await).unwrap().stats;
        all.into_iter().map(|stats| stats.attributes.unwrap().id).collect::<Vec<_>>()
    };
    let any = v1::ContainerStatsFilter::default;
    assert_eq!(listed(any()), [id.as_str()]);
    assert_eq!(listed(v1::ContainerStatsFilter { pod_sandbox_id: sandbox.clone(), ..any() }), [id.as_str()]);
    let other = v1::ContainerStatsFilter { label_selector: labels(&[("a", "b")]), ..any() };
    assert_eq!(listed(other), Vec::<String>::new());
    // Each of these lists has one entry, and so one message.
    let streamed = cri.wait(async {
        let mut client = cri.runtime_client();
        let mut lengths = Vec::new();
        let mut stats =
            client.stream_container_stats(v1::StreamContainerStatsRequest::default()).await.unwrap().into_inner();
        lengths.push(stats.message().await.unwrap().unwrap().container_stats.len());
        let mut pods =
            client.stream_pod_sandbox_stats(v1::StreamPodSandboxStatsRequest::default()).await.unwrap().into_inner();
        lengths.push(pods.message().await.unwrap().unwrap().pod_sandbox_stats.len());
        let mut metrics =
            client.stream_pod_sandbox_metrics(v1::StreamPodSandboxMetricsRequest {}).await.unwrap().into_inner();
        lengths.push(metrics.message().await.unwrap().unwrap().pod_sandbox_metrics.len());
        let mut containers =
            client.stream_containers(v1::StreamContainersRequest::default()).await.unwrap().into_inner();
        lengths.push(containers.message().await.unwrap().unwrap().containers.len());
        assert_eq!(containers.message().await.unwrap(), None);
        lengths
    });
    assert_eq!(streamed, [1, 1, 1, 1]);

    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: sandbox.clone() };
    let pod = cri.runtime(async |mut runtime| runtime.pod_sandbox_stats(request).await).unwrap().stats.unwrap();
    let linux = pod.linux.unwrap();
    assert_eq!(pod.attributes.unwrap().labels, config.labels);
    assert_eq!(linux.containers.len(), 1);
    assert!(linux.process.unwrap().process_count.unwrap().value >= 1);
    assert!(linux.memory.unwrap().usage_bytes.unwrap().value > 0);
    let used = &linux.containers[0];
    let memory = used.memory.as_ref().unwrap();
    assert!(memory.rss_bytes.unwrap().value > 0 && memory.page_faults.unwrap().value > 0, "{memory:?}");
    assert_eq!(used.swap.as_ref().unwrap().swap_usage_bytes.unwrap().value, 0);
    // The kernel counts who waited under version 2 only.
    let counts_waiting = cgroup_version() == 2 && Path::new("/proc/pressure/cpu").exists();
    assert_eq!((used.cpu.as_ref().unwrap().psi.is_some(), memory.psi.is_some()), (counts_waiting, counts_waiting));
    assert_eq!(used.io.is_some(), counts_waiting);
    let network = linux.network.unwrap().default_interface.unwrap();
    assert_eq!(network.name, "eth0");
    assert!(network.rx_bytes.is_some() && network.tx_errors.is_some());
    let layer = linux.containers[0].writable_layer.as_ref().unwrap();
    assert!(PathBuf::from(&layer.fs_id.as_ref().unwrap().mountpoint).is_dir());
    assert!(layer.used_bytes.unwrap().value >= 1 << 20, "{layer:?}");
    assert!(layer.inodes_used.unwrap().value >= 1);
    let label_selector = config.labels.clone();
    let filter = v1::PodSandboxStatsFilter { label_selector, ..v1::PodSandboxStatsFilter::default() };
    let request = v1::ListPodSandboxStatsRequest { filter: Some(filter) };
    let pods = cri.runtime(async |mut runtime| runtime.list_pod_sandbox_stats(request).await).unwrap().stats;
    assert_eq!(pods.len(), 1);

    let more = v1::LinuxContainerResources { cpu_quota: 80_000, memory_limit_in_bytes: 96 << 20, ..Default::default() };
    let request = v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(more),
        ..v1::UpdateContainerResourcesRequest::default()
    };
    cri.runtime(async |mut runtime| runtime.update_container_resources(request).await).unwrap();
    let told = cri.container(&id).unwrap().resources.unwrap().linux.unwrap();
    assert_eq!((told.cpu_quota, told.cpu_shares, told.memory_limit_in_bytes), (80_000, 512, 96 << 20));
    cri.stop(&id, 0).unwrap();
    assert_eq!(listed(any()), Vec::<String>::new(), "what has ended uses nothing");
    clear(&cri);
}

#[test]
fn what_is_used_per_second_is_told_from_the_second_reading_on() {
    if skipped_without_root("cri_stats") {
        return;
    }
    let world = World::new("cri-rates");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let config = pod("a", &logs(&world));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let mut busy = shell("busy", BUSYBOX, "while :; do :; done");
    let limits = v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        ..v1::LinuxContainerResources::default()
    };
    busy.linux = Some(v1::LinuxContainerConfig { resources: Some(limits), security_context: None });
    let id = cri.create(&sandbox, busy, &config).unwrap();
    cri.start(&id).unwrap();
    let of_container = || stats(&cri, &id).unwrap().cpu.unwrap().usage_nano_cores;
    let of_pod = || {
        let request = v1::PodSandboxStatsRequest { pod_sandbox_id: sandbox.clone() };
        let pod = cri.runtime(async |mut runtime| runtime.pod_sandbox_stats(request).await).unwrap().stats.unwrap();
        pod.linux.unwrap().cpu.unwrap().usage_nano_cores
    };
    assert_eq!((of_container(), of_pod()), (None, None));
    for (what, rate) in [("container", &of_container as &dyn Fn() -> Option<v1::UInt64Value>), ("pod", &of_pod)] {
        let rate = wait_until("there is a rate", 10, || rate().ok_or_else(|| what.to_owned())).value;
        // A fifth of a processor, less what the machine has to do beside, and more where a period was half over.
        assert!((10_000_000..=400_000_000).contains(&rate), "{what}: {rate}");
    }
    clear(&cri);
}

#[test]
fn what_cannot_be_read_is_left_out_and_told_once() {
    if skipped_without_root("cri_stats") {
        return;
    }
    let world = World::new("cri-unread");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let config = pod("a", &logs(&world));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let id = cri.create(&sandbox, shell("main", BUSYBOX, "sleep 1000"), &config).unwrap();
    cri.start(&id).unwrap();
    let found = world.sh(&format!("find {} -path '*/{id}/upper' -type d", agent.root().display()));
    let (layer, aside) = (PathBuf::from(found.trim()), world.path("aside"));
    std::fs::rename(&layer, &aside).unwrap();
    for _ in 0..2 {
        let one = stats(&cri, &id).unwrap();
        assert!(one.writable_layer.is_none() && one.memory.is_some(), "{one:?}");
    }
    let told = agent.log().lines().filter(|line| line.contains("could not be read") && line.contains(&id)).count();
    assert_eq!(told, 1, "{}", agent.log());
    std::fs::rename(&aside, &layer).unwrap();
    assert!(stats(&cri, &id).unwrap().writable_layer.is_some());
    clear(&cri);
}

/// Every name that the CRI validation suite wants, and whether it wants values: not of what depends on the machine.
const WANTED: [(&str, bool); 56] = [
    ("container_blkio_device_usage_total", false),
    ("container_cpu_cfs_periods_total", true),
    ("container_cpu_cfs_throttled_periods_total", true),
    ("container_cpu_cfs_throttled_seconds_total", true),
    ("container_cpu_system_seconds_total", true),
    ("container_cpu_usage_seconds_total", true),
    ("container_cpu_user_seconds_total", true),
    ("container_file_descriptors", true),
    ("container_fs_inodes_free", true),
    ("container_fs_inodes_total", true),
    ("container_fs_limit_bytes", true),
    ("container_fs_reads_bytes_total", false),
    ("container_fs_reads_total", false),
    ("container_fs_usage_bytes", true),
    ("container_fs_writes_bytes_total", false),
    ("container_fs_writes_total", false),
    ("container_hugetlb_max_usage_bytes", false),
    ("container_hugetlb_usage_bytes", false),
    ("container_last_seen", true),
    ("container_memory_cache", true),
    ("container_memory_failcnt", true),
    ("container_memory_failures_total", true),
    ("container_memory_kernel_usage", true),
    ("container_memory_mapped_file", true),
    ("container_memory_max_usage_bytes", true),
    ("container_memory_rss", true),
    ("container_memory_swap", true),
    ("container_memory_usage_bytes", true),
    ("container_memory_working_set_bytes", true),
    ("container_network_receive_bytes_total", true),
    ("container_network_receive_errors_total", true),
    ("container_network_receive_packets_dropped_total", true),
    ("container_network_receive_packets_total", true),
    ("container_network_transmit_bytes_total", true),
    ("container_network_transmit_errors_total", true),
    ("container_network_transmit_packets_dropped_total", true),
    ("container_network_transmit_packets_total", true),
    ("container_oom_events_total", true),
    ("container_pressure_cpu_stalled_seconds_total", false),
    ("container_pressure_cpu_waiting_seconds_total", false),
    ("container_pressure_io_stalled_seconds_total", false),
    ("container_pressure_io_waiting_seconds_total", false),
    ("container_pressure_memory_stalled_seconds_total", false),
    ("container_pressure_memory_waiting_seconds_total", false),
    ("container_processes", true),
    ("container_sockets", true),
    ("container_spec_cpu_period", true),
    ("container_spec_cpu_quota", true),
    ("container_spec_cpu_shares", true),
    ("container_spec_memory_limit_bytes", true),
    ("container_spec_memory_reservation_limit_bytes", true),
    ("container_spec_memory_swap_limit_bytes", true),
    ("container_start_time_seconds", true),
    ("container_threads", true),
    ("container_threads_max", true),
    ("container_ulimits_soft", true),
];

#[test]
fn metrics_are_all_that_cadvisor_has_and_each_has_been_described() {
    if skipped_without_root("cri_stats") {
        return;
    }
    let world = World::new("cri-metrics");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let config = pod("a", &logs(&world));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let mut wanted = shell("main", BUSYBOX, "head -c 1048576 /dev/zero > /written; nc -l -p 80 & sleep 1000");
    let limits = v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        ..v1::LinuxContainerResources::default()
    };
    wanted.linux = Some(v1::LinuxContainerConfig { resources: Some(limits), security_context: None });
    let id = cri.create(&sandbox, wanted, &config).unwrap();
    cri.start(&id).unwrap();
    wait_until("it has written and listens", 10, || {
        match cri.exec(&id, &["sh", "-c", "[ $(stat -c %s /written) = 1048576 ] && grep -q :0050 /proc/net/tcp*"], 5) {
            Ok(done) if done.exit_code == 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let asked = v1::ListMetricDescriptorsRequest {};
    let descriptors =
        cri.runtime(async |mut runtime| runtime.list_metric_descriptors(asked).await).unwrap().descriptors;
    let asked = v1::ListPodSandboxMetricsRequest {};
    let metrics = cri.runtime(async |mut runtime| runtime.list_pod_sandbox_metrics(asked).await).unwrap().pod_metrics;
    assert_eq!((metrics.len(), metrics[0].container_metrics.len()), (1, 1));
    assert_eq!(metrics[0].container_metrics[0].container_id, id);
    let (of_pod, of_container) = (&metrics[0].metrics, &metrics[0].container_metrics[0].metrics);
    for (name, needs_value) in WANTED {
        assert!(descriptors.iter().any(|descriptor| descriptor.name == name), "{name} is described");
        let given = of_pod.iter().chain(of_container).any(|metric| metric.name == name);
        assert!(given || !needs_value, "{name} is given");
    }
    let mut seen = BTreeSet::new();
    for metric in of_pod.iter().chain(of_container) {
        let descriptor = descriptors.iter().find(|descriptor| descriptor.name == metric.name).unwrap();
        assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{metric:?}");
        let label = |key: &str| {
            let place = descriptor.label_keys.iter().position(|other| other == key).unwrap();
            metric.label_values[place].as_str()
        };
        assert_eq!((label("pod"), label("namespace")), ("a", "default"));
        // A kubelet shows none at all when two are alike.
        assert!(seen.insert((&metric.name, &metric.label_values)), "{metric:?}");
    }
    let value = |metrics: &[v1::Metric], name: &str| {
        let found = metrics.iter().find(|metric| metric.name == name);
        found.unwrap_or_else(|| panic!("{name}")).value.unwrap().value
    };
    let of_main = |name: &str| value(of_container, name);
    assert!(of_main("container_fs_usage_bytes") >= 1 << 20);
    let inodes = world.sh(&format!("stat -f -c '%c %S %b' {}", agent.root().display()));
    let inodes: Vec<u64> = inodes.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(of_main("container_fs_inodes_total"), inodes[0]);
    assert_eq!(of_main("container_fs_limit_bytes"), inodes[1] * inodes[2]);
    assert!(of_main("container_fs_inodes_free") <= inodes[0]);
    // A shell may become the last of its commands.
    assert!((2..=3).contains(&of_main("container_processes")));
    assert!(of_main("container_sockets") >= 1 && of_main("container_file_descriptors") > of_main("container_sockets"));
    assert_eq!(of_main("container_spec_memory_limit_bytes"), 64 << 20);
    assert_eq!((of_main("container_spec_cpu_quota"), of_main("container_spec_cpu_shares")), (20_000, 1024));
    let limit: u64 = cri.inside(&id, "awk '/^Max open files/ { print $4 }' /proc/1/limits").parse().unwrap();
    assert_eq!(of_main("container_ulimits_soft"), limit);
    assert!(of_main("container_memory_failures_total") > 0);
    assert!(of_main("container_start_time_seconds") <= of_main("container_last_seen"));
    let _packets = value(of_pod, "container_network_receive_packets_total");
    clear(&cri);
}
