//! `CreateContainer`: a container in a ready sandbox, from an image that is here and may be used.

use portreeve_engine::image::{Image, ImageRef};
use tonic::Status;

use super::Answer;
use crate::cri::v1::{CreateContainerRequest, CreateContainerResponse, ImageSpec};
use crate::cri::{Cri, fit, host_path, wanted};

pub(super) async fn answer(cri: &Cri, asked: CreateContainerRequest) -> Answer<CreateContainerResponse> {
    let sandbox = cri.sandbox(&asked.pod_sandbox_id)?;
    let config = asked.config.ok_or_else(|| Status::invalid_argument("config: is missing"))?;
    if let Some(context) = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()) {
        fit::check(context, &sandbox, asked.sandbox_config.as_ref())?;
    }
    let spec = config.image.clone().unwrap_or_default();
    let image = trusted(cri, &spec).await?;
    for shown in config.mounts.iter().filter_map(|mount| mount.image.as_ref()).filter(|image| !image.image.is_empty()) {
        trusted(cri, shown).await?;
    }
    let mut config = wanted::container(config, image.id.to_string())?;
    super::without_missing(&mut config.resources);
    let metadata = &config.metadata;
    let attempt = format!("attempt {} of container {:?} in sandbox {}", metadata.attempt, metadata.name, sandbox.id);
    let name = cri.names.take(attempt.clone());
    let name = name.ok_or_else(|| Status::already_exists(format!("{attempt} is being made")))?;
    if let Some(twin) = cri.containers_in(&sandbox.id).into_iter().find(|other| other.metadata == *metadata) {
        return Err(Status::already_exists(format!("{attempt} is container {}", twin.id)));
    }
    let mounts = std::mem::take(&mut config.mounts);
    config.mounts = tokio::task::spawn_blocking(move || host_path::resolve_blocking(mounts))
        .await
        .map_err(|error| Status::internal(error.to_string()))??;
    let (engine, undoing) = (cri.engine.clone(), cri.engine.clone());
    let making = async move {
        let made = engine.create_container(&sandbox.id, config).await;
        drop(name);
        made
    };
    let id = super::make(cri, making, |id| async move { undoing.remove_container(&id).await }).await?;
    Ok(CreateContainerResponse { container_id: id.to_string() })
}

/// The image, if it is here and the trust policy lets it be used by the name that a user gave, or else by one of its own.
async fn trusted(cri: &Cri, spec: &ImageSpec) -> Result<Image, Status> {
    let store = cri.engine.images().clone();
    let judges = cri.engine.config().images.trust_policy.is_some();
    let (name, asked) = (spec.image.clone(), spec.user_specified_image.clone());
    let judged = tokio::task::spawn_blocking(move || {
        let image = store.resolve(&name).ok_or_else(|| Status::not_found(format!("image {name:?} is not present")))?;
        let given = [asked, name].into_iter().find_map(|name| name.parse::<ImageRef>().ok().filter(|_| !is_id(&name)));
        let names = given.map_or_else(|| image.references.clone(), |name| vec![name]);
        let mut refusal = None;
        for name in &names {
            match store.check_trust(name, &image) {
                Ok(()) => return Ok(image),
                Err(refused) => refusal = refusal.or(Some(refused)),
            }
        }
        match refusal {
            Some(refused) => Err(Status::failed_precondition(format!("SignatureValidationFailed: {refused}"))),
            // It has lost its names, and nothing says by which rule it would be judged.
            None if judges => {
                Err(Status::failed_precondition("SignatureValidationFailed: the image has no name to judge it by"))
            }
            None => Ok(image),
        }
    });
    judged.await.map_err(|error| Status::internal(error.to_string()))?
}

fn is_id(name: &str) -> bool {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}
