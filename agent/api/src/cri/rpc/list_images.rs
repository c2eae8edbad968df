//! `ListImages` and `StreamImages`: the images of the store. Those that others need or pin are told as pinned.

use std::collections::BTreeSet;

use portreeve_engine::image::ImageId;
use tonic::Status;

use super::{Answer, Batches};
use crate::cri::v1::{
    Image, ImageFilter, ListImagesRequest, ListImagesResponse, StreamImagesRequest, StreamImagesResponse,
};
use crate::cri::{Cri, view};

pub(super) fn answer(cri: &Cri, asked: &ListImagesRequest) -> Answer<ListImagesResponse> {
    Ok(ListImagesResponse { images: list(cri, asked.filter.as_ref()) })
}

pub(super) fn stream(cri: &Cri, asked: &StreamImagesRequest) -> Result<Batches<StreamImagesResponse>, Status> {
    let all = list(cri, asked.filter.as_ref());
    Ok(super::batches(all, |images| StreamImagesResponse { images }))
}

fn list(cri: &Cri, filter: Option<&ImageFilter>) -> Vec<Image> {
    let store = cri.engine.images();
    let wanted = filter.and_then(|filter| filter.image.as_ref()).map(|image| image.image.as_str()).unwrap_or_default();
    let images = match wanted {
        "" => store.list(),
        name => store.resolve(name).into_iter().collect(),
    };
    let others = needed_by_others(cri);
    images.iter().map(|image| view::image(image, others.contains(&image.id))).collect()
}

/// The images that the node's own manifests name.
pub(super) fn needed_by_others(cri: &Cri) -> BTreeSet<ImageId> {
    let store = cri.engine.images();
    cri.node.wanted_images(&|name| store.lookup(name).map(|image| image.id))
}
