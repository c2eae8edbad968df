//! Layers: from a stream of bytes to a directory that an overlay can stand on.
//!
//! Each layer goes into a directory of its own, so that layers need no order. What is deleted from
//! lower layers becomes overlayfs whiteouts (character device 0:0) and opaque directories
//! (`trusted.overlay.opaque`). Source: OCI image-spec `layer.md`, Linux `overlayfs.rst`.

mod apply;
mod archive;
mod decompress;
mod diff;
mod digests;
mod error;
mod limits;
mod pax;
mod place;
mod stream;
mod xattr;

pub use apply::{Applied, apply_layer};
pub use diff::write_diff;
pub use error::LayerError;
pub use limits::Limits;

pub(crate) use archive::{Archive, Kind};
pub(crate) use decompress::{Decompressor, USUAL_WINDOW_LOG};
pub(crate) use error::is_disk_full;
pub(crate) use place::{DIRECTORY, is_whiteout, open_beneath, remove, shown};
pub(crate) use stream::{Expected, check, read_filled, unpack};
pub(crate) use xattr::{is_opaque, set_opaque};
