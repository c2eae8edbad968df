//! Images: only what the API server checks about them.

use k8s_openapi::api::core::v1::Container;

use crate::findings::Findings;
use crate::path::Path;

/// An image may not have spaces around it.
pub(super) fn padded(containers: &[Container], path: &Path<'_>, found: &mut Findings<'_>) {
    for (index, container) in containers.iter().enumerate() {
        if let Some(image) = &container.image
            && image.trim() != image
        {
            found.invalid(&path.index(index).field("image"), image, "may not have spaces around it");
        }
    }
}
