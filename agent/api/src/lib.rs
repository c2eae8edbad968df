//! The doors: Kubernetes-shaped HTTP over a unix socket.
