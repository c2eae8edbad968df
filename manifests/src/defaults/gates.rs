//! Fields behind feature gates that are off by default: the API server removes them silently.

use k8s_openapi::api::core::v1::{Lifecycle, Pod};

/// Removes what a server with default gates would remove; it still validates the rest.
pub(crate) fn drop_gated(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    spec.scheduling_group = None;
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    let ephemeral = spec.ephemeral_containers.iter_mut().flatten();
    containers.map(|it| &mut it.lifecycle).chain(ephemeral.map(|it| &mut it.lifecycle)).for_each(stop_signal);
    let projected = spec.volumes.iter_mut().flatten().filter_map(|volume| volume.projected.as_mut());
    for source in projected.flat_map(|it| it.sources.iter_mut().flatten()) {
        source.cluster_trust_bundle = None;
        source.pod_certificate = None;
    }
}

fn stop_signal(lifecycle: &mut Option<Lifecycle>) {
    if let Some(given) = lifecycle
        && given.stop_signal.take().is_some()
        && *given == Lifecycle::default()
    {
        *lifecycle = None;
    }
}
