//! Registry client, content store, unpacking and overlay snapshots.
