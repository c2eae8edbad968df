//! Changing the limits of a container.

use std::os::fd::AsFd;

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};

use super::{Container, LifecycleError, Status, record};
use crate::cgroup::{container_device_rules, settle};
use crate::config::{self, ConfigError};
use crate::error::Warning;

impl Container {
    /// Changes its limits, and the stored configuration with them; what `resources` does not name stays as it is.
    ///
    /// A list, that of the device rules for one, replaces the one before; an empty one says nothing.
    ///
    /// # Errors
    /// [`LifecycleError::Status`], [`LifecycleError::NoCgroup`], [`LifecycleError::Cgroup`]; the stored configuration
    /// is the old one then, and limits that were written before the one that was refused are put back to what they were.
    pub fn update(&mut self, resources: &LinuxResources) -> Result<Vec<Warning>, LifecycleError> {
        let good = [Status::Created, Status::Running, Status::Paused];
        let changed = self.locked("update", "created or running", &good, |this| this.change(resources));
        self.spec.take();
        changed
    }

    fn change(&self, resources: &LinuxResources) -> Result<Vec<Warning>, LifecycleError> {
        let cgroup = self.own_cgroup("update")?;
        let before = config::own(self.read(config::NAME, config::LIMIT)?)?;
        let linux = before.spec.linux().as_ref();
        let resources = &settle(resources, linux.and_then(|linux| linux.resources().as_ref()));
        let json = |error| LifecycleError::Config(ConfigError::Json(error));
        let mut stored: Value = serde_json::from_slice(&before.raw).map_err(json)?;
        let mut change = serde_json::to_value(resources).map_err(json)?;
        for name in ["resources", "linux"] {
            change = Value::Object(Map::from_iter([(name.to_owned(), change)]));
        }
        merge(&mut stored, change);
        let bytes = serde_json::to_vec(&stored).map_err(json)?;
        let failed = |error| self.file("writing", config::NAME, error);
        // First: for want of room it fails, and nothing has changed then.
        record::prepare(self.directory.as_fd(), config::NAME, &bytes).map_err(failed)?;
        let rules = with_device_rules(resources.clone());
        // To exchange them, version 1 lets the processes stand still.
        let standstill = if rules.devices().is_some() { self.standstill_of(&cgroup)? } else { None };
        let warnings = match cgroup.change(&rules) {
            Ok(warnings) => warnings,
            Err(error) => {
                // The values have been put back. Rules of version 1 are lines of which some may have been written.
                let limits = linux.and_then(|linux| linux.resources().as_ref());
                if let Some(rules) = rules_before(limits, resources) {
                    // The kernel had these in force: should it refuse one now, the first refusal tells more.
                    let _as_far_as_possible = cgroup.apply(&rules);
                }
                return Err(error.into());
            }
        };
        drop(standstill);
        record::put(self.directory.as_fd(), config::NAME).map_err(failed)?;
        Ok(warnings)
    }
}

/// Device rules as a container has them from its beginning: behind those for the devices that each has.
fn with_device_rules(mut resources: LinuxResources) -> LinuxResources {
    if resources.devices().as_ref().is_some_and(|rules| !rules.is_empty()) {
        let rules = container_device_rules(Some(&resources));
        resources.set_devices(Some(rules));
    }
    resources
}

/// The device rules of a container with these limits, where `change` was to replace them.
fn rules_before(limits: Option<&LinuxResources>, change: &LinuxResources) -> Option<LinuxResources> {
    change.devices().as_ref().filter(|rules| !rules.is_empty())?;
    let mut rules = LinuxResources::default();
    rules.set_devices(Some(container_device_rules(limits)));
    Some(rules)
}

/// Puts what `change` says over `stored`: objects by their members, anything else as a whole; null and the empty list
/// say nothing.
pub(super) fn merge(stored: &mut Value, change: Value) {
    match (stored, change) {
        (_, Value::Null) => {}
        (_, Value::Array(list)) if list.is_empty() => {}
        (Value::Object(stored), Value::Object(change)) => {
            for (key, value) in change {
                merge(stored.entry(key).or_insert(Value::Null), value);
            }
        }
        (stored, change) => *stored = change,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_update_says_what_changes_and_nothing_else() {
        let mut stored = json!({"memory": {"limit": 1, "swap": 2}, "pids": {"limit": 3}, "cpu": null, "list": [1, 2]});
        merge(
            &mut stored,
            json!({"memory": {"limit": 7, "swap": null}, "cpu": {"shares": 5}, "list": [3], "pids": null}),
        );
        let expected =
            json!({"memory": {"limit": 7, "swap": 2}, "pids": {"limit": 3}, "cpu": {"shares": 5}, "list": [3]});
        assert_eq!(stored, expected);
    }

    #[test]
    fn only_device_rules_that_were_to_change_are_put_back_from_the_configuration() {
        let limits = |json: Value| serde_json::from_value::<LinuxResources>(json).expect("limits");
        let rule = json!({"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw"});
        let before = limits(json!({"memory": {"limit": 5}, "devices": [rule]}));
        for other in [json!({"memory": {"swap": 1}}), json!({"devices": []})] {
            assert_eq!(rules_before(Some(&before), &limits(other)), None);
        }
        let change = limits(json!({"devices": [{"allow": false, "access": "rwm"}]}));
        let back = rules_before(Some(&before), &change).expect("rules");
        let rules = |limits: &LinuxResources| limits.devices().clone().unwrap_or_default();
        assert_eq!(back.memory(), &None);
        assert!(rules(&before).iter().all(|rule| rules(&back).contains(rule)), "{back:?}");
        assert!(!rules(&rules_before(None, &change).expect("rules")).is_empty(), "those that every container has");
    }
}
