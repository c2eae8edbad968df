//! `Version`: who answers. All four fields are there, or a kubelet does not begin.

use super::Answer;
use crate::cri::v1::{VersionRequest, VersionResponse};

pub(super) fn answer(_asked: &VersionRequest) -> Answer<VersionResponse> {
    Ok(VersionResponse {
        version: "0.1.0".to_owned(),
        runtime_name: "portreeve".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    })
}
