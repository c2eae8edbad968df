//! `RunPodSandbox`: a pod's namespaces, network and files; ready when it answers.

use tonic::Status;

use super::Answer;
use crate::cri::v1::{RunPodSandboxRequest, RunPodSandboxResponse};
use crate::cri::{Cri, wanted};

pub(super) async fn answer(cri: &Cri, asked: RunPodSandboxRequest) -> Answer<RunPodSandboxResponse> {
    let handler = cri.handlers.find(&asked.runtime_handler)?;
    let config = asked.config.ok_or_else(|| Status::invalid_argument("config: is missing"))?;
    let mut config = wanted::sandbox(config, &cri.engine.config().cgroup_root)?;
    config.handler = handler;
    let metadata = &config.metadata;
    let attempt = format!("attempt {} of pod {}/{}", metadata.attempt, metadata.namespace, metadata.name);
    let name = cri.names.take(format!("{attempt} {}", metadata.uid));
    let name = name.ok_or_else(|| Status::already_exists(format!("{attempt} is being made")))?;
    let twins = cri.engine.sandboxes_where(|other| other.owner == config.owner && other.metadata == *metadata);
    if let Some(twin) = twins.first() {
        return Err(Status::already_exists(format!("{attempt} is sandbox {}", twin.id)));
    }
    let (engine, undoing) = (cri.engine.clone(), cri.engine.clone());
    let making = async move {
        let made = engine.run_sandbox(config).await;
        drop(name);
        made
    };
    let id = super::make(cri, making, |id| async move { undoing.remove_sandbox(&id).await }).await?;
    Ok(RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
}
