//! `ExecSync`: a command and what it wrote, just under 8 MiB of each stream at most; killed after its timeout.

use std::time::Duration;

use tonic::Status;

use super::Answer;
use crate::cri::v1::{ExecSyncRequest, ExecSyncResponse};
use crate::cri::{Cri, MAX_MESSAGE, failure};

/// Of each stream: both together, and what frames them, fit the longest message.
const MOST: usize = MAX_MESSAGE / 2 - 1024;

pub(super) async fn answer(cri: &Cri, asked: ExecSyncRequest) -> Answer<ExecSyncResponse> {
    let container = cri.container(&asked.container_id)?;
    if asked.cmd.is_empty() {
        return Err(Status::invalid_argument("cmd: is empty"));
    }
    let timeout = Duration::from_secs(u64::try_from(asked.timeout).unwrap_or(0));
    let done = cri.engine.exec_sync(&container.id, asked.cmd, timeout, MOST).await;
    let done = done.map_err(|error| failure::engine(&error))?;
    Ok(ExecSyncResponse { stdout: done.stdout, stderr: done.stderr, exit_code: done.exit_code })
}
