//! Cgroups made by systemd: `--systemd-cgroup`.
//!
//! ```text
//!   /a.slice/a-b.slice/PREFIX-NAME.scope            systemd's: properties of the unit, written anew as it likes
//!                                      /keeper      who keeps the scope while the container is made (see `Keeper`)
//!                                      /container   the container's: its limits and device rules, ours alone
//! ```
//!
//! The scope is delegated, so that nothing below its cgroup is systemd's business; what it says of the scope itself is
//! what `systemctl` shows, and holds beside the container's own limits. A container that has ended leaves an empty scope,
//! which systemd removes by itself; `delete` makes sure of it.
//!
//! **Invariant:** `oci` is told a path, and a name to remember; it knows nothing of the bus.
//! **Invariant:** nothing here is reached, and nothing made, without `--systemd-cgroup`, but for a container that was made
//! with it.

mod annotations;

use std::collections::{BTreeMap, HashMap};

use oci_spec::runtime::{LinuxResources, Spec};
use portreeve_oci::Warning;
use portreeve_oci::cgroup::{self, Cgroup, Setting};
use portreeve_oci::lifecycle::{CgroupChoice, Container, CreateOptions, Id, LifecycleError};
pub(super) use portreeve_systemd::require;
use portreeve_systemd::{Keeper, Manager, Place, SystemdError, Wanted, of_limits};

/// The scope of a container that is being made.
#[derive(Debug)]
pub(super) struct Scope {
    place: Place,
    keeper: Keeper,
    /// `cpu.max.burst`, for which systemd has no property: without it here, it would count for nothing below.
    burst: Option<String>,
    left_out: Vec<String>,
}

impl Scope {
    /// Makes the scope of a container, which lives as long as this, or as the container's processes in it.
    ///
    /// # Errors
    /// [`SystemdError`]; nothing is left then.
    pub(super) fn make(spec: &Spec, id: &Id) -> Result<Self, SystemdError> {
        let linux = spec.linux().as_ref();
        let path =
            linux.and_then(|linux| linux.cgroups_path().as_ref()).map_or("", |path| path.to_str().unwrap_or("?"));
        let place = Place::of(path, id.as_str())?;
        let asked: BTreeMap<String, String> = spec.annotations().clone().unwrap_or_default().into_iter().collect();
        let settings = settings(spec)?;
        let wanted = Wanted {
            description: format!("container {} of portreeve", id.as_str()),
            asked: annotations::properties(&asked)?,
            limits: of_limits(&settings),
            place,
        };
        let (keeper, left_out) = Keeper::start(&wanted)?;
        Ok(Self { place: wanted.place, keeper, burst: burst(&settings), left_out })
    }

    /// Says where the container goes.
    pub(super) fn choose(&self, options: &mut CreateOptions<'_>) {
        options.cgroup = CgroupChoice::Path(self.place.container());
        options.scope = Some(self.place.unit.clone());
    }

    /// Leaves the scope to the container's process. Answers what systemd knows no property for.
    ///
    /// # Errors
    /// [`SystemdError::Told`], [`SystemdError::Keeper`], [`SystemdError::Cgroup`]: the container lacks a limit.
    pub(super) fn release(self) -> Result<Vec<Warning>, SystemdError> {
        self.keeper.release()?;
        set_burst(&self.place.cgroup, self.burst.as_deref())?;
        Ok(self.left_out.iter().map(|name| left_out(name)).collect())
    }

    /// Removes the scope of a container that could not be made.
    ///
    /// # Errors
    /// [`SystemdError`]; an empty scope is systemd's to remove then.
    pub(super) fn abandon(self) -> Result<(), SystemdError> {
        let unit = self.place.unit.clone();
        drop(self);
        Manager::connect()?.stop(&unit)
    }
}

fn left_out(name: &str) -> Warning {
    Warning { what: format!("{name} of the unit is not set: this systemd does not take it"), errno: None }
}

/// Deletes a container, and the scope it ran in.
///
/// # Errors
/// Those of [`Container::delete`].
pub(super) fn delete(container: Container, force: bool) -> Result<Vec<Warning>, LifecycleError> {
    let scope = container.record().scope.clone();
    let mut warnings = container.delete(force)?;
    if let Some(unit) = scope
        && let Err(error) = Manager::connect().and_then(|mut manager| manager.stop(&unit))
    {
        // Nothing is in it any more, so that systemd removes it by itself when it can.
        warnings.push(Warning { what: format!("{:#}", anyhow::Error::from(error)), errno: None });
    }
    Ok(warnings)
}

/// Changes the limits of a container, and the properties of its unit with them.
///
/// # Errors
/// Those of [`Container::update`], which change nothing; [`SystemdError`], which leaves the new limits to the container's
/// cgroup and the old ones to the unit: it can be said again.
pub(super) fn update(container: &mut Container, resources: &LinuxResources) -> anyhow::Result<Vec<Warning>> {
    let Some(unit) = container.record().scope.clone() else { return Ok(container.update(resources)?) };
    // Before anything changes: without a bus, nothing does.
    let mut manager = Manager::connect()?;
    let mut warnings = container.update(resources)?;
    // All of them, as they are now: what is said of one may follow from another.
    let settings = settings(container.spec()?)?;
    let burst = burst(&settings);
    let scope =
        container.record().cgroup.as_deref().and_then(|path| path.rsplit_once('/')).map_or("", |(scope, _)| scope);
    if burst.is_some() {
        // A quota below the burst that is in force would be refused, unheard.
        set_burst(scope, Some("0"))?;
    }
    for (name, value) in of_limits(&settings) {
        match manager.set(&unit, &[(name.clone(), value)]) {
            Err(SystemdError::Refused { text, .. }) if text.contains(&name) => warnings.push(left_out(&name)),
            other => other?,
        }
    }
    set_burst(scope, burst.as_deref())?;
    Ok(warnings)
}

/// What a configuration's limits write to a cgroup.
fn settings(spec: &Spec) -> Result<Vec<Setting>, SystemdError> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    Ok(resources.map(cgroup::settings).transpose()?.unwrap_or_default())
}

fn burst(settings: &[Setting]) -> Option<String> {
    settings.iter().rev().find(|setting| setting.file == "cpu.max.burst").map(|setting| setting.value.clone())
}

fn set_burst(scope: &str, burst: Option<&str>) -> Result<(), SystemdError> {
    let Some(burst) = burst else { return Ok(()) };
    let mut resources = LinuxResources::default();
    resources.set_unified(Some(HashMap::from([("cpu.max.burst".to_owned(), burst.to_owned())])));
    Ok(Cgroup::at(scope)?.apply(&resources).map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_the_last_that_is_said() {
        let setting = |file: &str, value: &str| Setting { file: file.into(), value: value.into() };
        let settings = [setting("cpu.max.burst", "1"), setting("cpu.max", "5"), setting("cpu.max.burst", "2")];
        assert_eq!(burst(&settings).as_deref(), Some("2"));
        assert_eq!(burst(&[setting("cpu.max", "5")]), None);
    }
}
