//! `ImageStatus`: one image; that there is none is no error.

use std::collections::BTreeMap;

use super::{Answer, list_images};
use crate::cri::v1::{ImageStatusRequest, ImageStatusResponse};
use crate::cri::{Cri, view};

pub(super) fn answer(cri: &Cri, asked: &ImageStatusRequest) -> Answer<ImageStatusResponse> {
    let name = asked.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    let Some(image) = cri.engine.images().resolve(name).filter(|_| !name.is_empty()) else {
        return Ok(ImageStatusResponse { image: None, info: BTreeMap::new() });
    };
    let mut info = BTreeMap::new();
    if asked.verbose {
        info.insert("info".to_owned(), serde_json::json!({ "imageSpec": *image.config }).to_string());
    }
    let pinned = list_images::needed_by_others(cri).contains(&image.id);
    Ok(ImageStatusResponse { image: Some(view::image(&image, pinned)), info })
}
