//! `RuntimeConfig`: who makes cgroups. Paths are taken as they are given, so a kubelet is to make them by itself.

use super::Answer;
use crate::cri::v1::{CgroupDriver, LinuxRuntimeConfiguration, RuntimeConfigRequest, RuntimeConfigResponse};

pub(super) fn answer(_asked: &RuntimeConfigRequest) -> Answer<RuntimeConfigResponse> {
    let linux = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs.into() };
    Ok(RuntimeConfigResponse { linux: Some(linux) })
}
