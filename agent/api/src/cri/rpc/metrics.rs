//! `ListMetricDescriptors`, `ListPodSandboxMetrics` and `StreamPodSandboxMetrics`: the same figures as the stats, with
//! cAdvisor's names. A value is a whole number there, so seconds of processor time come without their fractions.

use jiff::Timestamp;
use portreeve_engine::{ContainerStatus, SandboxState, SandboxStatus, Usage};
use tonic::Status;

use super::{Answer, Batches};
use crate::cri::v1::{
    ContainerMetrics, ListMetricDescriptorsResponse, ListPodSandboxMetricsResponse, Metric, MetricDescriptor,
    MetricType, NetworkInterfaceUsage, PodSandboxMetrics, StreamPodSandboxMetricsResponse, UInt64Value,
};
use crate::cri::{Cri, failure, view};

/// What every series is told apart by, and a series of a network also by its interface.
const LABELS: [&str; 6] = ["id", "name", "image", "container", "pod", "namespace"];
const INTERFACE: &str = "interface";

/// Name, help, and whether it belongs to an interface of a pod.
const SERIES: [(&str, &str, bool); 27] = [
    ("container_cpu_usage_seconds_total", "Processor time used, in seconds.", false),
    ("container_cpu_user_seconds_total", "Of it in user mode, in seconds.", false),
    ("container_cpu_system_seconds_total", "Of it in the kernel, in seconds.", false),
    ("container_cpu_cfs_periods_total", "Periods in which a quota of processor time was enforced.", false),
    ("container_cpu_cfs_throttled_periods_total", "Of these, how many were throttled.", false),
    ("container_cpu_cfs_throttled_seconds_total", "Time for which it was throttled, in seconds.", false),
    ("container_memory_usage_bytes", "Memory used, with caches.", false),
    ("container_memory_working_set_bytes", "Memory used, without inactive caches of files.", false),
    ("container_memory_rss", "Anonymous memory, in bytes.", false),
    ("container_memory_swap", "Swap used, in bytes.", false),
    ("container_memory_max_usage_bytes", "The most memory that was used, in bytes.", false),
    ("container_spec_memory_limit_bytes", "The limit on memory, in bytes.", false),
    ("container_oom_events_total", "Processes that were killed for lack of memory.", false),
    (
        "container_pressure_cpu_waiting_seconds_total",
        "Time for which some task waited for a processor, in seconds.",
        false,
    ),
    ("container_pressure_cpu_stalled_seconds_total", "Time for which all tasks did, in seconds.", false),
    (
        "container_pressure_memory_waiting_seconds_total",
        "Time for which some task waited for memory, in seconds.",
        false,
    ),
    ("container_pressure_memory_stalled_seconds_total", "Time for which all tasks did, in seconds.", false),
    ("container_pressure_io_waiting_seconds_total", "Time for which some task waited for a disk, in seconds.", false),
    ("container_pressure_io_stalled_seconds_total", "Time for which all tasks did, in seconds.", false),
    ("container_threads", "Processes and threads.", false),
    ("container_start_time_seconds", "When it was started, in seconds since 1970.", false),
    ("container_fs_usage_bytes", "Bytes of what the container wrote to its own layer.", false),
    ("container_fs_inodes_total", "Files of what the container wrote to its own layer.", false),
    ("container_network_receive_bytes_total", "Bytes received.", true),
    ("container_network_receive_errors_total", "Errors while receiving.", true),
    ("container_network_transmit_bytes_total", "Bytes sent.", true),
    ("container_network_transmit_errors_total", "Errors while sending.", true),
];

pub(super) fn descriptors() -> ListMetricDescriptorsResponse {
    let descriptor = |(name, help, of_interface): &(&str, &str, bool)| MetricDescriptor {
        name: (*name).to_owned(),
        help: (*help).to_owned(),
        label_keys: LABELS.iter().copied().chain(of_interface.then_some(INTERFACE)).map(str::to_owned).collect(),
    };
    ListMetricDescriptorsResponse { descriptors: SERIES.iter().map(descriptor).collect() }
}

pub(super) async fn list(cri: &Cri) -> Answer<ListPodSandboxMetricsResponse> {
    Ok(ListPodSandboxMetricsResponse { pod_metrics: all(cri).await })
}

pub(super) async fn stream(cri: &Cri) -> Result<Batches<StreamPodSandboxMetricsResponse>, Status> {
    let all = all(cri).await;
    Ok(super::batches(all, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
}

async fn all(cri: &Cri) -> Vec<PodSandboxMetrics> {
    let mut found = Vec::new();
    for sandbox in cri.sandboxes().iter().filter(|sandbox| sandbox.state == SandboxState::Ready) {
        // One that has ended since uses nothing any more.
        found.extend(of(cri, sandbox).await.ok());
    }
    found
}

async fn of(cri: &Cri, sandbox: &SandboxStatus) -> Result<PodSandboxMetrics, Status> {
    let used = cri.engine.sandbox_stats(&sandbox.id).await.map_err(|error| failure::engine(&error))?;
    let (mut container_metrics, mut pids) = (Vec::new(), Vec::new());
    for used in &used.containers {
        let Some(container) = cri.engine.container(&used.id) else { continue };
        pids.extend(container.pid);
        let mut series = Series { labels: labels(sandbox, Some(&container)), at: used.usage.at, metrics: Vec::new() };
        series.cgroup(&used.usage);
        if let Some(started_at) = container.started_at {
            series.gauge("container_start_time_seconds", u64::try_from(started_at.as_second()).unwrap_or(0));
        }
        if let Some(written) = cri.written(&container).await {
            series.gauge("container_fs_usage_bytes", written.used_bytes.unwrap_or_default().value);
            series.gauge("container_fs_inodes_total", written.inodes_used.unwrap_or_default().value);
        }
        container_metrics.push(ContainerMetrics { container_id: container.id.to_string(), metrics: series.metrics });
    }
    let mut series = Series { labels: labels(sandbox, None), at: used.usage.at, metrics: Vec::new() };
    series.cgroup(&used.usage);
    if let Some(network) = Cri::network(sandbox, pids) {
        for interface in network.default_interface.iter().chain(&network.interfaces) {
            series.network(interface);
        }
    }
    Ok(PodSandboxMetrics { pod_sandbox_id: sandbox.id.to_string(), metrics: series.metrics, container_metrics })
}

fn labels(sandbox: &SandboxStatus, container: Option<&ContainerStatus>) -> Vec<String> {
    let metadata = &sandbox.metadata;
    let (id, name, image, container) = match container {
        Some(one) => (one.cgroup.clone(), one.id.to_string(), one.image.clone(), one.metadata.name.clone()),
        None => (sandbox.cgroup_parent.clone(), sandbox.id.to_string(), String::new(), String::new()),
    };
    vec![id, name, image, container, metadata.name.clone(), metadata.namespace.clone()]
}

/// The series of one container or pod.
struct Series {
    labels: Vec<String>,
    at: Timestamp,
    metrics: Vec<Metric>,
}

impl Series {
    fn put(&mut self, name: &str, kind: MetricType, value: u64, interface: Option<&str>) {
        self.metrics.push(Metric {
            name: name.to_owned(),
            timestamp: view::nanoseconds(self.at),
            metric_type: kind.into(),
            label_values: self.labels.iter().map(String::as_str).chain(interface).map(str::to_owned).collect(),
            value: Some(UInt64Value { value }),
        });
    }

    fn gauge(&mut self, name: &str, value: u64) {
        self.put(name, MetricType::Gauge, value, None);
    }

    fn counter(&mut self, name: &str, value: u64) {
        self.put(name, MetricType::Counter, value, None);
    }

    fn cgroup(&mut self, used: &Usage) {
        let (counted, waited) = (&used.counted, &used.waited);
        for (name, nanoseconds) in [
            ("container_cpu_usage_seconds_total", counted.cpu_usage_ns),
            ("container_cpu_user_seconds_total", counted.cpu_user_ns),
            ("container_cpu_system_seconds_total", counted.cpu_system_ns),
            ("container_cpu_cfs_throttled_seconds_total", counted.cpu_throttled_ns),
        ] {
            self.counter(name, nanoseconds / 1_000_000_000);
        }
        self.counter("container_cpu_cfs_periods_total", counted.cpu_periods);
        self.counter("container_cpu_cfs_throttled_periods_total", counted.cpu_throttled_periods);
        self.gauge("container_memory_usage_bytes", counted.memory_bytes);
        self.gauge("container_memory_working_set_bytes", counted.memory_working_set_bytes);
        self.gauge("container_memory_rss", counted.memory_rss_bytes);
        self.gauge("container_memory_swap", counted.swap_bytes);
        self.gauge("container_memory_max_usage_bytes", counted.memory_peak_bytes);
        if let Some(limit) = counted.memory_limit_bytes {
            self.gauge("container_spec_memory_limit_bytes", limit);
        }
        self.counter("container_oom_events_total", counted.oom_kills);
        self.gauge("container_threads", counted.pids);
        for (waiting, stalled, waited) in [
            (
                "container_pressure_cpu_waiting_seconds_total",
                "container_pressure_cpu_stalled_seconds_total",
                waited.cpu,
            ),
            (
                "container_pressure_memory_waiting_seconds_total",
                "container_pressure_memory_stalled_seconds_total",
                waited.memory,
            ),
            ("container_pressure_io_waiting_seconds_total", "container_pressure_io_stalled_seconds_total", waited.io),
        ] {
            if let Some(waited) = waited {
                self.counter(waiting, waited.some.total / 1_000_000);
                self.counter(stalled, waited.full.total / 1_000_000);
            }
        }
    }

    fn network(&mut self, interface: &NetworkInterfaceUsage) {
        for (name, value) in [
            ("container_network_receive_bytes_total", interface.rx_bytes),
            ("container_network_receive_errors_total", interface.rx_errors),
            ("container_network_transmit_bytes_total", interface.tx_bytes),
            ("container_network_transmit_errors_total", interface.tx_errors),
        ] {
            self.put(name, MetricType::Counter, value.unwrap_or_default().value, Some(&interface.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use portreeve_engine::{Pressure, Pressures, Stats};

    use super::*;

    #[test]
    fn a_series_has_as_many_values_of_labels_as_its_descriptor_has_keys() {
        let descriptors = descriptors().descriptors;
        let labels = LABELS.iter().map(|label| (*label).to_owned()).collect();
        let mut series = Series { labels, at: Timestamp::UNIX_EPOCH, metrics: Vec::new() };
        let waited = Some(Pressure::default());
        series.cgroup(&Usage {
            at: Timestamp::UNIX_EPOCH,
            counted: Stats { cpu_usage_ns: 3_900_000_000, memory_limit_bytes: Some(1), ..Stats::default() },
            waited: Pressures { cpu: waited, memory: waited, io: waited },
        });
        series.network(&NetworkInterfaceUsage { name: "eth0".into(), ..Default::default() });
        assert_eq!(series.metrics[0].value, Some(UInt64Value { value: 3 }));
        for metric in &series.metrics {
            let descriptor = descriptors.iter().find(|descriptor| descriptor.name == metric.name).unwrap();
            assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
        }
    }
}
