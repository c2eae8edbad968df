//! `ImageFsInfo`: how much the store takes of its file system. Containers write to the same one.

use jiff::Timestamp;
use portreeve_engine::chain;
use tonic::Status;

use super::Answer;
use crate::cri::v1::{FilesystemIdentifier, FilesystemUsage, ImageFsInfoResponse, UInt64Value};
use crate::cri::{Cri, view};

pub(super) async fn answer(cri: &Cri) -> Answer<ImageFsInfoResponse> {
    let store = cri.engine.images().clone();
    let used = tokio::task::spawn_blocking(move || store.usage(&|_| std::collections::BTreeSet::new())).await;
    let used = used.map_err(|error| Status::internal(error.to_string()))?;
    let used = used.map_err(|error| Status::unknown(chain(&error)))?;
    let filesystem = FilesystemUsage {
        timestamp: view::nanoseconds(Timestamp::now()),
        fs_id: Some(FilesystemIdentifier { mountpoint: cri.engine.config().images.root.display().to_string() }),
        used_bytes: Some(UInt64Value { value: used.layer_bytes + used.blob_bytes }),
        // Those of the whole file system: nobody counts ours, and a kubelet only shows them.
        inodes_used: Some(UInt64Value { value: used.filesystem.inodes.saturating_sub(used.filesystem.inodes_free) }),
    };
    Ok(ImageFsInfoResponse { image_filesystems: vec![filesystem.clone()], container_filesystems: vec![filesystem] })
}
