//! The loops: sources, desired state, pod workers, probes, status, metrics.
