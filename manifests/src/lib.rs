//! Parse, default and validate Kubernetes manifests, with positions.
