//! Cgroups made by systemd: `--systemd-cgroup`.
//!
//! ```text
//!   /a.slice/a-b.slice/PREFIX-NAME.scope            systemd's: properties of the unit, written anew as it likes
//!                                      /maker       who keeps the scope while the container is made (see `keeper`)
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
mod bus;
mod keeper;
mod name;
mod properties;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Spec};
use portreeve_oci::Warning;
use portreeve_oci::cgroup::{self, Cgroup, CgroupError, Setting, Version};
use portreeve_oci::lifecycle::{CgroupChoice, Container, CreateOptions, Id, LifecycleError};

use bus::Manager;
use keeper::{Keeper, Wanted};
use name::Place;

/// Whether systemd is the init of this machine: sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

/// The scope of a container that is being made.
#[derive(Debug)]
pub(super) struct Scope {
    place: Place,
    keeper: Keeper,
    /// `cpu.max.burst`, for which systemd has no property: without it here, it would count for nothing below.
    burst: Option<String>,
    left_out: Vec<String>,
}

/// Refuses a machine, or a caller, for whom systemd makes no cgroups; touches nothing.
///
/// # Errors
/// [`SystemdError::NotBooted`], [`SystemdError::Version`], [`SystemdError::User`], [`SystemdError::Cgroup`].
pub(super) fn require(is_root: bool) -> Result<(), SystemdError> {
    booted(Path::new(BOOTED))?;
    if cgroup::version()? != Version::V2 {
        return Err(SystemdError::Version);
    }
    // A user's own manager has a bus of its own, which this does not look for.
    if is_root { Ok(()) } else { Err(SystemdError::User) }
}

fn booted(directory: &Path) -> Result<(), SystemdError> {
    // A link would be somebody else's word.
    let is_directory = std::fs::symlink_metadata(directory).is_ok_and(|found| found.is_dir());
    if is_directory { Ok(()) } else { Err(SystemdError::NotBooted) }
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
            id: id.as_str().to_owned(),
            asked: annotations::properties(&asked)?,
            limits: properties::of_limits(&settings),
            place,
        };
        let (keeper, left_out) = Keeper::start(&wanted)?;
        Ok(Self { place: wanted.place, keeper, burst: burst(&settings), left_out })
    }

    /// Says where the container goes.
    pub(super) fn choose(&self, options: &mut CreateOptions) {
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
    for (name, value) in properties::of_limits(&settings) {
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

/// What can go wrong with systemd.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SystemdError {
    /// It is not the init of this machine.
    #[error(
        "--systemd-cgroup: systemd is not the init of this machine ({BOOTED} is missing); \
         leave the flag out, and engines use cgroupfs (podman: --cgroup-manager cgroupfs)"
    )]
    NotBooted,
    /// The machine has version 1 cgroups.
    #[error("--systemd-cgroup needs cgroup v2, this machine has v1; leave the flag out, and engines use cgroupfs")]
    Version,
    /// The caller is not root.
    #[error("--systemd-cgroup needs root; leave the flag out, and engines use cgroupfs")]
    User,
    /// `linux.cgroupsPath` names no scope.
    #[error("linux.cgroupsPath {path:?}: {reason}")]
    Path {
        /// What it says.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An annotation is no property.
    #[error("annotation {name}: {reason}")]
    Annotation {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The bus does not answer.
    #[error("connecting to systemd by the message bus at {socket}")]
    Connect {
        /// Where the bus listens.
        socket: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The conversation broke.
    #[error("talking to systemd")]
    Talk(#[source] io::Error),
    /// A message could not be written or read.
    #[error("encoding a message to systemd, or decoding its answer")]
    Encoding(#[source] zbus::Error),
    /// systemd, or the bus, answered no.
    #[error("{what}: {text} ({name})")]
    Refused {
        /// What was asked for.
        what: String,
        /// Name of the error.
        name: String,
        /// What was said.
        text: String,
    },
    /// A job ended otherwise than it should.
    #[error("the unit {unit} is not as it was asked for: systemd's job has ended with {result:?}")]
    Job {
        /// The unit.
        unit: String,
        /// `canceled`, `timeout`, `failed`, `dependency`, `skipped`.
        result: String,
    },
    /// A job has not ended.
    #[error("systemd's job for the unit {unit} has not ended in time: what does it wait for (`systemctl list-jobs`)?")]
    Late {
        /// The unit.
        unit: String,
    },
    /// The scope's cgroup is not where it should be.
    #[error("systemd has not put the scope to {place}, but to: {found}")]
    Elsewhere {
        /// Where it should be.
        place: String,
        /// /proc/self/cgroup of its process.
        found: String,
    },
    /// A cgroup could not be made or written.
    #[error("{action} {path}")]
    File {
        /// What was tried, a gerund.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The process that makes and keeps the scope.
    #[error("asking the process that makes the scope")]
    Keeper {
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// What that process said.
    #[error("{0}")]
    Told(String),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl SystemdError {
    /// Of a refusal, says what it was about.
    fn about(self, what: String) -> Self {
        match self {
            Self::Refused { name, text, .. } => Self::Refused { what, name, text },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_systemds_when_its_directory_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("system");
        let error = booted(&path).unwrap_err().to_string();
        assert!(error.contains("not the init") && error.contains("cgroupfs"), "{error}");
        std::os::unix::fs::symlink(folder.path(), &path).unwrap();
        assert!(booted(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        booted(&path).unwrap();
    }

    #[test]
    fn a_burst_is_the_last_that_is_said() {
        let setting = |file: &str, value: &str| Setting { file: file.into(), value: value.into() };
        let settings = [setting("cpu.max.burst", "1"), setting("cpu.max", "5"), setting("cpu.max.burst", "2")];
        assert_eq!(burst(&settings).as_deref(), Some("2"));
        assert_eq!(burst(&[setting("cpu.max", "5")]), None);
    }
}
