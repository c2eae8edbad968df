//! Names of devices, `vendor.com/class=name`, and where a request has them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::CdiError;

/// Annotations of a container that name devices begin so. Source: CDI, pkg/cdi/annotations.go; kubelets pass on those of
/// device plugins.
const ANNOTATION: &str = "cdi.k8s.io/";

/// A device's whole name, `vendor.com/class=name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName {
    kind: String,
    device: String,
}

impl DeviceName {
    /// Of parts that were checked.
    pub(super) fn new(kind: &str, device: &str) -> Self {
        Self { kind: kind.to_owned(), device: device.to_owned() }
    }

    /// Vendor and class, `vendor.com/class`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

impl TryFrom<String> for DeviceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (kind, device) = text.split_once('=').ok_or("it has no =")?;
        check_kind(kind)?;
        check_device(device)?;
        Ok(Self::new(kind, device))
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.to_string()
    }
}

/// The devices that a request names: those of its own field first, then those of its annotations in the order of their
/// keys; each once. Source: containerd, internal/cri/opts, `WithCDI`.
///
/// # Errors
/// [`CdiError::Name`] for what is no name.
pub fn requested<'a>(
    named: impl IntoIterator<Item = &'a str>,
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<DeviceName>, CdiError> {
    let listed = annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION));
    let listed = listed.flat_map(|(key, value)| value.split(',').map(move |name| (Some(key), name)));
    let mut all = Vec::new();
    for (key, name) in named.into_iter().map(|name| (None, name)).chain(listed) {
        let parsed = DeviceName::try_from(name.to_owned()).map_err(|reason| CdiError::Name {
            source_field: key.map_or_else(|| "CDI_devices".to_owned(), |key| format!("annotations[{key}]")),
            name: name.to_owned(),
            reason,
        })?;
        if !all.contains(&parsed) {
            all.push(parsed);
        }
    }
    Ok(all)
}

/// Whether this is a vendor and a class. Source: CDI SPEC.md, "Kind"; pkg/parser.
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let (vendor, class) = kind.split_once('/').ok_or_else(|| format!("{kind:?} is no vendor and class with a /"))?;
    let begins = |name: &str| name.starts_with(|c: char| c.is_ascii_alphabetic());
    for (what, name) in [("vendor", vendor), ("class", class)] {
        if !begins(name) {
            return Err(format!("the {what} {name:?} has to begin with a letter"));
        }
        characters(what, name, "_-.")?;
    }
    Ok(())
}

/// Whether this can be the name of a device among those of its kind.
pub(super) fn check_device(name: &str) -> Result<(), String> {
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(format!("the device {name:?} has to begin with a letter or digit"));
    }
    characters("device", name, "_-.:")
}

fn characters(what: &str, name: &str, further: &str) -> Result<(), String> {
    if let Some(wrong) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !further.contains(*c)) {
        return Err(format!("{wrong:?} cannot be in the {what} {name:?}"));
    }
    if name.ends_with(|c: char| c.is_ascii_alphanumeric()) {
        Ok(())
    } else {
        Err(format!("the {what} {name:?} has to end with a letter or digit"))
    }
}
