//! The group of the resource control file system that a container is in.

use std::os::fd::AsFd;

use oci_spec::runtime::LinuxIntelRdt;
use serde_json::{Value, json};

use super::record::replace;
use super::update::merge;
use super::{Container, LifecycleError, Status};
use crate::cgroup::CgroupError;
use crate::config::{self, ConfigError};
use crate::rdt::{self, Figures, RdtError, Resctrl, Schemata};

/// What a change of a container's group was before: for [`Container::put_back_rdt`].
#[derive(Debug)]
pub struct RdtChange {
    /// The stored configuration.
    configuration: Vec<u8>,
    /// The group's lines; `None` for a group that was made.
    schemata: Option<Schemata>,
}

impl Container {
    /// Changes the share of the cache (`L3:0=f`) and of the memory's bandwidth (`MB:0=20`) of its group, and the stored
    /// configuration with them; what is not named stays. A container that was made without `linux.intelRdt` gets a group of
    /// its own, which all of its processes enter.
    ///
    /// # Errors
    /// [`LifecycleError::Status`]; [`LifecycleError::Cgroup`] with an [`RdtError`]; [`LifecycleError::NoCgroup`] for a
    /// container whose processes cannot be told. Nothing has changed then.
    pub fn update_rdt(&mut self, cache: Option<&str>, bandwidth: Option<&str>) -> Result<RdtChange, LifecycleError> {
        let good = [Status::Created, Status::Running, Status::Paused];
        let (record, change) = self.locked("update", "created or running", &good, |this| {
            // Another one may have given it a group since it was loaded.
            let mut now = this.now()?;
            let change = now.change_rdt(cache, bandwidth)?;
            Ok((now.record, change))
        })?;
        self.record = record;
        self.spec.take();
        Ok(change)
    }

    /// Undoes a change, for a caller whose next one has failed.
    ///
    /// # Errors
    /// [`LifecycleError::Cgroup`] with an [`RdtError`], [`LifecycleError::File`].
    pub fn put_back_rdt(&mut self, change: RdtChange) -> Result<(), LifecycleError> {
        let _lock = self.lock()?;
        self.undo_rdt(&change)
    }

    fn undo_rdt(&mut self, change: &RdtChange) -> Result<(), LifecycleError> {
        match &change.schemata {
            Some(schemata) => schemata.write().map_err(refused)?,
            None => {
                rdt::remove(self.record.resctrl.take().as_deref())?;
                self.save()?;
            }
        }
        self.spec.take();
        self.store(&change.configuration)
    }

    fn store(&self, configuration: &[u8]) -> Result<(), LifecycleError> {
        replace(self.directory.as_fd(), config::NAME, configuration)
            .map_err(|error| self.file("writing", config::NAME, error))
    }

    fn change_rdt(&mut self, cache: Option<&str>, bandwidth: Option<&str>) -> Result<RdtChange, LifecycleError> {
        let before = config::own(self.read(config::NAME, config::LIMIT)?)?;
        let had = before.spec.linux().as_ref().and_then(|linux| linux.intel_rdt().as_ref());
        let mut change = LinuxIntelRdt::default();
        change.set_clos_id(had.and_then(|had| had.clos_id().clone()));
        change.set_l3_cache_schema(cache.map(str::to_owned)).set_mem_bw_schema(bandwidth.map(str::to_owned));
        let plan = rdt::plan(&change).map_err(|error| refused(error.into()))?;
        let json = |error| LifecycleError::Config(ConfigError::Json(error));
        let mut stored: Value = serde_json::from_slice(&before.raw).map_err(json)?;
        merge(&mut stored, json!({"linux": {"intelRdt": serde_json::to_value(&change).map_err(json)?}}));
        let bytes = serde_json::to_vec(&stored).map_err(json)?;
        let resctrl = Resctrl::mounted().map_err(refused)?;
        let schemata = if had.is_some() {
            Some(resctrl.change(&plan, self.id.as_str()).map_err(refused)?)
        } else {
            self.enter_rdt(&resctrl, &plan)?;
            None
        };
        let change = RdtChange { configuration: before.raw, schemata };
        if let Err(error) = self.store(&bytes) {
            // That it could not be written tells more than what could not be undone.
            let _left = self.undo_rdt(&change);
            return Err(error);
        }
        Ok(change)
    }

    /// Makes a group for a container that has none, and moves all of its processes into it.
    fn enter_rdt(&mut self, resctrl: &Resctrl, plan: &rdt::Plan) -> Result<(), LifecycleError> {
        let cgroup = self.own_cgroup("choose a resctrl group for")?;
        // Written down before it is made, as everything that goes with the container; one that is there already stays.
        self.record.resctrl = resctrl.new_group(plan, self.id.as_str());
        self.save()?;
        let tasks = || -> Result<Vec<i32>, CgroupError> {
            let processes = cgroup.processes()?;
            Ok(processes.into_iter().flat_map(|pid| threads(pid.as_raw_nonzero().get())).collect())
        };
        let entered = resctrl.make(plan, self.id.as_str()).map_err(CgroupError::from);
        let entered = entered.and_then(|files| resctrl.move_in(&files, tasks));
        if let Err(error) = entered {
            // With its group, the processes go back to where they were: that it failed says more than what was left.
            let _left = rdt::remove(self.record.resctrl.take().as_deref());
            self.save()?;
            return Err(error.into());
        }
        Ok(())
    }

    /// What is counted for its group; `None` for a container without `linux.intelRdt`.
    ///
    /// # Errors
    /// [`LifecycleError::Cgroup`] with an [`RdtError`], and those of [`Container::spec`].
    pub fn rdt_figures(&self) -> Result<Option<Figures>, LifecycleError> {
        Ok(rdt::figures(self.spec()?, self.id.as_str())?)
    }
}

fn refused(error: RdtError) -> LifecycleError {
    LifecycleError::Cgroup(CgroupError::Resctrl(error))
}

/// The threads of a process; none of one that has ended.
fn threads(pid: i32) -> Vec<i32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
