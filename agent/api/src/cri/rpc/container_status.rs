//! `ContainerStatus`: one container.

use std::collections::BTreeMap;

use super::Answer;
use crate::cri::Cri;
use crate::cri::v1::{ContainerStatusRequest, ContainerStatusResponse};

pub(super) fn answer(cri: &Cri, asked: &ContainerStatusRequest) -> Answer<ContainerStatusResponse> {
    let container = cri.container(&asked.container_id)?;
    let mut info = BTreeMap::new();
    if asked.verbose {
        let text = serde_json::json!({
            "pid": container.pid, "sandboxID": container.sandbox.as_str(), "cgroup": container.cgroup,
        });
        info.insert("info".to_owned(), text.to_string());
    }
    Ok(ContainerStatusResponse { status: Some(cri.show(&container)), info })
}
