//! The group of the resource control file system that a container is in.

use std::os::fd::AsFd;

use oci_spec::runtime::LinuxIntelRdt;
use serde_json::{Value, json};

use super::record::replace;
use super::update::merge;
use super::{Container, LifecycleError, Status};
use crate::cgroup::CgroupError;
use crate::config::{self, ConfigError};
use crate::plan::PlanError;
use crate::rdt::{self, Figures, RdtError, Resctrl};

impl Container {
    /// Changes the share of the cache (`L3:0=f`) and of the memory's bandwidth (`MB:0=20`) of its group, and the stored
    /// configuration with them; what is not named stays.
    ///
    /// # Errors
    /// [`LifecycleError::Status`]; [`LifecycleError::Cgroup`] with an [`RdtError`], also for a container that was made
    /// without `linux.intelRdt`; nothing has changed then.
    pub fn update_rdt(&mut self, cache: Option<&str>, bandwidth: Option<&str>) -> Result<(), LifecycleError> {
        let _lock = self.lock()?;
        self.expect("update", "created or running", &[Status::Created, Status::Running, Status::Paused])?;
        let before = config::parse(&self.read(config::NAME, config::LIMIT)?)?;
        let refused = |error: RdtError| LifecycleError::Cgroup(CgroupError::Resctrl(error));
        let Some(had) = before.spec.linux().as_ref().and_then(|linux| linux.intel_rdt().as_ref()) else {
            let reason =
                "was not there when the container was made: its processes are in no group that could be changed";
            return Err(refused(PlanError::new("linux.intelRdt", reason).into()));
        };
        let mut change = LinuxIntelRdt::default();
        change.set_clos_id(had.clos_id().clone());
        change.set_l3_cache_schema(cache.map(str::to_owned)).set_mem_bw_schema(bandwidth.map(str::to_owned));
        let plan = rdt::plan(&change).map_err(|error| refused(error.into()))?;
        Resctrl::mounted().and_then(|resctrl| resctrl.change(&plan, self.id.as_str())).map_err(refused)?;
        let json = |error| LifecycleError::Config(ConfigError::Json(error));
        let mut stored: Value = serde_json::from_slice(&before.raw).map_err(json)?;
        merge(&mut stored, json!({"linux": {"intelRdt": serde_json::to_value(&change).map_err(json)?}}));
        let bytes = serde_json::to_vec(&stored).map_err(json)?;
        replace(self.directory.as_fd(), config::NAME, &bytes).map_err(|error| self.file("writing", config::NAME, error))
    }

    /// What is counted for its group; `None` for a container without `linux.intelRdt`.
    ///
    /// # Errors
    /// [`LifecycleError::Cgroup`] with an [`RdtError`], and those of [`Container::spec`].
    pub fn rdt_figures(&self) -> Result<Option<Figures>, LifecycleError> {
        Ok(rdt::figures(&self.spec()?, self.id.as_str())?)
    }
}
