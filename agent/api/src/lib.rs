//! The doors: what a client can see of this machine, and ask of it, over HTTP.
//!
//! ```text
//!   <run>/portreeve.sock                          127.0.0.1:9580
//!     /version /api /apis                           /metrics /livez /readyz
//!     /api/v1/{pods,events,nodes,namespaces}
//!     /apis/portreeve.dev/v1alpha1/...
//!     /apis/metrics.k8s.io/v1beta1/...
//!        |                                             |
//!        +------------> Backend (a trait) <------------+
//!                          |
//!                        portreeve-node
//! ```
//!
//! Beside them lies `<run>/cri.sock`, where kubelets speak [CRI](cri) with the engine itself.
//!
//! The paths, the objects and the errors are those of the Kubernetes API server, so that
//! kubectl and client libraries work unchanged; our own objects live in a group of our own.
//! This crate is codecs, no policy: what is decided is decided in `plan` and done in `node`.
//!
//! **Invariant:** every size a client controls has a bound, and a client that does not read
//! holds no more than one bounded channel.
//!
//! Requests of CRI and streams over SPDY have fuzz targets (`fuzz/`), which `e2e/fuzz` runs.

pub mod age;
pub mod backend;
pub mod channel;
pub mod cri;
#[doc(hidden)]
pub mod fuzz;
pub mod v1alpha1;

mod app;
mod discovery;
mod failure;
mod log;
mod metrics;
mod mirror;
mod node;
mod own;
mod params;
mod reception;
mod resources;
mod selector;
mod server;
mod stream;
mod table;
mod version;
mod watch;

pub use backend::{Backend, BackendError};
pub use failure::Failure;
pub use node::NodeBackend;
pub use portreeve_node::size;
pub use server::{Config, Doors, ServeError};
