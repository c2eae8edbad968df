//! `RemoveImage`: with all its names; one that is gone is fine. What the node's own manifests name, or is pinned, stays.

use portreeve_engine::chain;
use tonic::Status;

use super::{Answer, list_images};
use crate::cri::Cri;
use crate::cri::v1::{RemoveImageRequest, RemoveImageResponse};

pub(super) async fn answer(cri: &Cri, asked: RemoveImageRequest) -> Answer<RemoveImageResponse> {
    let name = asked.image.unwrap_or_default().image;
    let store = cri.engine.images().clone();
    let Some(image) = store.resolve(&name).filter(|_| !name.is_empty()) else { return Ok(RemoveImageResponse {}) };
    if image.pinned || list_images::needed_by_others(cri).contains(&image.id) {
        return Err(Status::failed_precondition(format!("image {name:?} is pinned, or needed by pods of the node")));
    }
    let removed = tokio::task::spawn_blocking(move || store.remove_image(&image.id)).await;
    let removed = removed.map_err(|error| Status::internal(error.to_string()))?;
    removed.map_err(|error| Status::failed_precondition(chain(&error)))?;
    Ok(RemoveImageResponse {})
}
