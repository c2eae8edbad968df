//! Registry client, content store, unpacking and overlay snapshots.
//!
//! What containerd's content store, snapshotter and transfer service are, for one node:
//!
//! ```text
//!  registry --> manifest --> config
//!      |            |
//!      |            v   one pass per layer, several layers at once
//!      +--------> bytes -> sha256 -> decompress -> sha256 (diff id) -> tar -> <root>/staging/..
//!                                                                               | rename = commit
//!                                                                               v
//!                                  <root>/layers/<diff id>/fs   shared by all images and containers
//! ```
//!
//! **Invariant:** nothing below `layers/` or `blobs/` was ever visible under its final name before its
//! digests were verified, and an image is recorded only once all its layers are in place.

mod configuration;
mod credential;
mod digest;
mod flight;
#[doc(hidden)]
pub mod fuzz;
mod hosts;
mod image;
mod layer;
mod manifest;
mod partial;
mod platform;
mod progress;
mod record;
mod reference;
mod registry;
mod slots;
mod store;
mod text;
mod trust;
mod window;

pub use credential::{Credential, CredentialError, Secret};
pub use digest::{Digest, DigestError};
pub use hosts::HostsError;
pub use image::{Image, ImageId};
pub use layer::{Applied, LayerError, Limits, apply_layer, write_diff};
pub use platform::Platform;
pub use progress::{LayerProgress, Phase, Progress, ProgressSink, Tried};
pub use record::Damage;
pub use reference::{ImageRef, ReferenceError};
pub use registry::{Referrer, RegistryError};
pub use slots::{RegistrySlot, RegistrySlots};
pub use store::{
    Check, Chosen, Config, Details, Filesystem, Finding, Freed, InUse, KeepBlobs, LayerDetails, LoadError, Part,
    Preloaded, PullError, PushError, Removed, RepairError, Retry, SaveError, Saving, Snapshot, SnapshotError, Store,
    StoreError, Unneeded, Usage,
};
pub use trust::{PolicyError, PolicySurvey, Refusal, survey_policy};
pub use window::{DownloadWindow, WindowError};

/// Makes ring the TLS provider of this process, once, unless the program chose one before.
pub(crate) fn ensure_tls_provider() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // An error only says that the program has installed its own choice already.
        let _already_chosen = rustls::crypto::ring::default_provider().install_default();
    });
}
