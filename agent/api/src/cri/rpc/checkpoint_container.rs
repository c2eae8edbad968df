//! `CheckpointContainer`: a container's processes and files as an archive at a path, while it goes on. By CRIU, where that
//! is installed.

use std::path::PathBuf;
use std::time::Duration;

use tonic::Status;

use super::Answer;
use crate::cri::Cri;
use crate::cri::v1::{CheckpointContainerRequest, CheckpointContainerResponse};

/// As a kubelet has it for those who say nothing.
const TIMEOUT: Duration = Duration::from_secs(120);

pub(super) async fn answer(cri: &Cri, asked: CheckpointContainerRequest) -> Answer<CheckpointContainerResponse> {
    let container = cri.container(&asked.container_id)?;
    let timeout = match asked.timeout {
        0 => TIMEOUT,
        seconds => {
            Duration::from_secs(u64::try_from(seconds).map_err(|_| Status::invalid_argument("timeout: is negative"))?)
        }
    };
    let location = PathBuf::from(asked.location);
    let (engine, place) = (cri.engine.clone(), location.clone());
    let making = async move { engine.checkpoint_container(&container.id, place).await };
    // CRIU is not broken off, which could leave the container standing still: its work is thrown away.
    let made = super::make(cri, making, move |()| async move {
        if let Err(error) = std::fs::remove_file(&location) {
            tracing::warn!(path = %location.display(), %error, "a checkpoint that nobody waited for was not removed");
        }
        Ok(())
    });
    match tokio::time::timeout(timeout, made).await {
        Ok(made) => made.map(|()| CheckpointContainerResponse {}),
        Err(_) => Err(Status::deadline_exceeded(format!("the checkpoint took longer than {timeout:?}"))),
    }
}
