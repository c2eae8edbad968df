//! What the node counts, in a registry of its own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use crate::report::{PodUsage, PullReport, SourceReport, SourceState};

/// The metrics of a node.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    pub(crate) reconciles: Histogram,
    pub(crate) steps: HistogramVec,
    pub(crate) step_failures: IntCounterVec,
    pub(crate) pods: IntGaugeVec,
    pub(crate) restarts: IntCounter,
    pub(crate) pulls: HistogramVec,
    pulled_bytes: IntCounter,
    /// What of them is counted.
    fetched: Arc<Mutex<u64>>,
    pulls_now: IntGaugeVec,
    pulls_left: IntGauge,
    pub(crate) starts: Histogram,
    pub(crate) ledger_writes: IntCounterVec,
    pub(crate) unhealthy: IntCounterVec,
    source_errors: IntGaugeVec,
    source_ready: IntGaugeVec,
    source_held_back: IntGaugeVec,
    source_last_read: GaugeVec,
    build: GaugeVec,
    started: Gauge,
}

impl Metrics {
    pub(crate) fn new(version: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let short = vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
        let long = vec![0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0];
        let metrics = Self {
            reconciles: Histogram::with_opts(
                HistogramOpts::new("portreeve_reconcile_duration_seconds", "Time of one reconcile of one pod.")
                    .buckets(short.clone()),
            )?,
            steps: HistogramVec::new(
                HistogramOpts::new("portreeve_step_duration_seconds", "Time of one step of a plan.")
                    .buckets(short.clone()),
                &["step"],
            )?,
            step_failures: IntCounterVec::new(
                Opts::new("portreeve_step_failures_total", "Steps that failed."),
                &["step"],
            )?,
            pods: IntGaugeVec::new(Opts::new("portreeve_pods", "Pods by phase."), &["phase"])?,
            restarts: IntCounter::new("portreeve_container_restarts_total", "Containers that were started again.")?,
            pulls: HistogramVec::new(
                HistogramOpts::new("portreeve_image_pull_duration_seconds", "Time of one image pull.").buckets(long),
                &["result"],
            )?,
            pulled_bytes: IntCounter::new(
                "portreeve_image_pulled_bytes_total",
                "Bytes of blobs that came from registries, for pulls and archives, failed ones too.",
            )?,
            fetched: Arc::default(),
            pulls_now: IntGaugeVec::new(
                Opts::new("portreeve_image_pulls", "Image pulls that run, or wait for their next try."),
                &["state"],
            )?,
            pulls_left: IntGauge::new(
                "portreeve_image_pull_remaining_bytes",
                "Bytes of layers that the image pulls that run have still to fetch.",
            )?,
            starts: Histogram::with_opts(
                HistogramOpts::new(
                    "portreeve_pod_start_duration_seconds",
                    "From the admission of a pod to its containers running.",
                )
                .buckets(short),
            )?,
            ledger_writes: IntCounterVec::new(
                Opts::new("portreeve_ledger_writes_total", "Writes of the ledger."),
                &["result"],
            )?,
            unhealthy: IntCounterVec::new(
                Opts::new("portreeve_probe_failures_total", "Probe tries that failed."),
                &["probe"],
            )?,
            source_errors: IntGaugeVec::new(
                Opts::new("portreeve_source_errors", "Errors in the manifests of a source."),
                &["source"],
            )?,
            source_ready: IntGaugeVec::new(
                Opts::new("portreeve_source_ready", "Whether a source can be read."),
                &["source"],
            )?,
            source_held_back: IntGaugeVec::new(
                Opts::new("portreeve_source_held_back_objects", "Objects that run in their last good version."),
                &["source"],
            )?,
            source_last_read: GaugeVec::new(
                Opts::new("portreeve_source_last_read_timestamp_seconds", "When a source was last read in full."),
                &["source"],
            )?,
            build: GaugeVec::new(Opts::new("portreeve_build_info", "1, with the version."), &["version"])?,
            started: Gauge::new("portreeve_start_time_seconds", "When the agent started.")?,
            registry,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.reconciles.clone()))?;
        registry.register(Box::new(metrics.steps.clone()))?;
        registry.register(Box::new(metrics.step_failures.clone()))?;
        registry.register(Box::new(metrics.pods.clone()))?;
        registry.register(Box::new(metrics.restarts.clone()))?;
        registry.register(Box::new(metrics.pulls.clone()))?;
        registry.register(Box::new(metrics.pulled_bytes.clone()))?;
        registry.register(Box::new(metrics.pulls_now.clone()))?;
        registry.register(Box::new(metrics.pulls_left.clone()))?;
        registry.register(Box::new(metrics.starts.clone()))?;
        registry.register(Box::new(metrics.ledger_writes.clone()))?;
        registry.register(Box::new(metrics.unhealthy.clone()))?;
        registry.register(Box::new(metrics.source_errors.clone()))?;
        registry.register(Box::new(metrics.source_ready.clone()))?;
        registry.register(Box::new(metrics.source_held_back.clone()))?;
        registry.register(Box::new(metrics.source_last_read.clone()))?;
        registry.register(Box::new(metrics.build.clone()))?;
        registry.register(Box::new(metrics.started.clone()))?;
        metrics.build.with_label_values(&[version]).set(1.0);
        metrics.started.set(jiff::Timestamp::now().as_duration().as_secs_f64());
        Ok(metrics)
    }

    pub(crate) fn step(&self, step: &str, took: Duration, failed: bool) {
        self.steps.with_label_values(&[step]).observe(took.as_secs_f64());
        if failed {
            self.step_failures.with_label_values(&[step]).inc();
        }
    }

    /// `fetched` are the bytes that came from registries since the agent started.
    pub(crate) fn pulls(&self, reports: &[PullReport], fetched: u64) {
        {
            let mut told = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
            self.pulled_bytes.inc_by(fetched.saturating_sub(*told));
            *told = fetched.max(*told);
        }
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        for state in ["Pulling", "Failed"] {
            let here = reports.iter().filter(|report| report.state == state).count();
            self.pulls_now.with_label_values(&[&state.to_lowercase()]).set(count(here as u64));
        }
        let left = reports
            .iter()
            .filter(|report| report.state == "Pulling")
            .map(|report| report.total_bytes.saturating_sub(report.bytes))
            .sum();
        self.pulls_left.set(count(left));
    }

    pub(crate) fn sources(&self, reports: &[SourceReport]) {
        for report in reports {
            let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            let labels = [report.name.as_str()];
            self.source_errors.with_label_values(&labels).set(count(report.errors));
            self.source_held_back.with_label_values(&labels).set(count(report.held_back));
            let ready = report.state == SourceState::Ready;
            self.source_ready.with_label_values(&labels).set(i64::from(ready));
            if let Some(at) = report.last_read {
                self.source_last_read.with_label_values(&labels).set(at.as_duration().as_secs_f64());
            }
        }
    }
}

/// What containers use, in cAdvisor's names.
pub(crate) fn usage_text(pods: &[PodUsage]) -> String {
    use std::fmt::Write;
    let mut cpu = String::new();
    let mut memory = String::new();
    for pod in pods {
        for (container, usage) in &pod.containers {
            // Names of pods and containers are DNS labels: nothing in them needs escaping.
            let labels = format!("container=\"{container}\",namespace=\"{}\",pod=\"{}\"", pod.namespace, pod.name);
            let seconds = std::time::Duration::from_nanos(usage.cpu_ns).as_secs_f64();
            // Writing to a string does not fail.
            let _ = writeln!(cpu, "container_cpu_usage_seconds_total{{{labels}}} {seconds}");
            let _ =
                writeln!(memory, "container_memory_working_set_bytes{{{labels}}} {}", usage.memory_working_set_bytes);
        }
    }
    if cpu.is_empty() {
        return String::new();
    }
    format!(
        "# HELP container_cpu_usage_seconds_total CPU time used by a container.\n\
         # TYPE container_cpu_usage_seconds_total counter\n{cpu}\
         # HELP container_memory_working_set_bytes Memory of a container that cannot be reclaimed at once.\n\
         # TYPE container_memory_working_set_bytes gauge\n{memory}"
    )
}
