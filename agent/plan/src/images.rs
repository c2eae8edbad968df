//! The images that a container needs: its own, and those that the volumes it mounts show.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::observed::ImageName;

/// An image without which a container cannot be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeededImage<'a> {
    /// Which.
    pub name: ImageName,
    /// `Always`, `IfNotPresent` or `Never`.
    pub policy: &'a str,
    /// The volume that shows it; `None` for the container's own.
    pub volume: Option<&'a str>,
}

/// The images that `container` needs: its own first, then one per image volume that it mounts, in the order of the
/// pod's volumes. A volume that no container mounts needs nothing.
pub fn needed_images<'a>(
    spec: &'a PodSpec,
    container: &'a Container,
) -> impl Iterator<Item = NeededImage<'a>> + use<'a> {
    let own = NeededImage {
        name: ImageName(container.image.clone().unwrap_or_default()),
        policy: container.image_pull_policy.as_deref().unwrap_or("IfNotPresent"),
        volume: None,
    };
    let mounts = |volume: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == volume);
    let shown = spec.volumes.iter().flatten().filter_map(move |volume| {
        let image = volume.image.as_ref().filter(|_| mounts(&volume.name))?;
        Some(NeededImage {
            name: ImageName(image.reference.clone().unwrap_or_default()),
            policy: image.pull_policy.as_deref().unwrap_or("IfNotPresent"),
            volume: Some(&volume.name),
        })
    });
    std::iter::once(own).chain(shown)
}
