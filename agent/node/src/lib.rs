//! The loops of one node: sources, desired state, one worker per pod, executor, observer, probes,
//! volumes, events, status and metrics; and [`Node`], the facade that the doors use.
//!
//! ```text
//!  source::* --full sets--> desired (merge, ledger) --> worker (one per pod uid)
//!                                                          |  plan::plan(desired, observed, now)
//!        doors <-- history (pods, events) <-- status <-----+
//!                                                          v
//!     observe <---- engine events, relist ---- engine <-- execute (in order, stops at first failure)
//! ```
//!
//! **Invariant:** every decision about a pod is the planner's; this crate does what a plan says
//! and reports what happened.
//!
//! **Invariant:** what cannot be read or parsed changes nothing that runs.
//!
//! **Invariant:** killed at any instruction, the next start finds everything again: intent in the
//! ledger, what runs in the engine.

mod apply;
mod clock;
mod collect;
mod config;
pub mod desired;
mod disk;
mod downward;
mod error;
pub mod events;
pub mod fake;
mod history;
mod index;
mod machine;
mod metrics;
mod node;
mod notes;
mod preview;
mod probes;
mod pulls;
mod report;
mod runtime;
pub mod size;
pub mod source;
mod storage;
mod supervisor;
mod translate;
mod volumes;
mod worker;

pub use clock::Clock;
pub use config::{ImageCollection, NodeConfig};
pub use disk::replace_blocking;
pub use error::{NodeError, StartError};
pub use history::{Change, ChangeKind, History, Listed, NamespacedName, Versions, Watch, WatchError};
pub use node::{ContainerHandle, Node};
pub use report::{
    Applied, ApplyReport, DeleteReport, Deleted, FieldDifference, FileReport, FileState, ManifestFile, ObjectChange,
    ObjectName, PlanReport, PlanRequest, PlannedStart, PlannedStep, PodChange, PodPlan, PodUsage, ProblemReport,
    PullReport, SourceReport, SourceState, Standing, StorageReport, Stored, Usage,
};
pub use runtime::{ImageFacts, PullFailure, Runtime};
