//! Images: only what the API server checks about them.

use k8s_openapi::api::core::v1::Container;

use crate::findings::Findings;
use crate::path::Path;

/// An image may not have spaces around it.
pub(super) fn padded(container: &Container, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(image) = &container.image
        && image.trim() != image
    {
        found.invalid(&path.field("image"), image, "may not have spaces around it", "remove them");
    }
}
