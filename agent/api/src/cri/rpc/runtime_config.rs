//! `RuntimeConfig`: who makes cgroups. Paths are taken as they are given, so a kubelet is to make them by itself; where
//! systemd makes them, it is to give slices.

use super::Answer;
use crate::cri::Cri;
use crate::cri::v1::{CgroupDriver, LinuxRuntimeConfiguration, RuntimeConfigResponse};

pub(super) fn answer(cri: &Cri) -> Answer<RuntimeConfigResponse> {
    let driver = if cri.engine.config().systemd_cgroups { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
    let linux = LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
    Ok(RuntimeConfigResponse { linux: Some(linux) })
}
