//! Whether a document is a specification: what the reference implementation wants of one, pkg/cdi/spec.go and specs-go/version.go.

use std::collections::BTreeSet;

use super::FileError;
use super::document::{ContainerEdits, Document, IntelRdt};
use super::name::{check_device, check_kind};

/// Those that there are, the oldest first.
const VERSIONS: [&str; 10] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
/// Points of a container's life. Source: OCI runtime-spec, config.md, POSIX-platform Hooks.
const HOOKS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// All of it.
///
/// # Errors
/// [`FileError::Field`] for the first thing that is wrong.
pub(super) fn check(document: &Document) -> Result<(), FileError> {
    version(document)?;
    check_kind(&document.kind).map_err(|reason| FileError::field("kind", reason))?;
    edits("containerEdits", &document.container_edits)?;
    let mut names = BTreeSet::new();
    for (number, device) in document.devices.iter().enumerate() {
        let field = |name: &str| format!("devices[{number}].{name}");
        check_device(&device.name).map_err(|reason| FileError::field(field("name"), reason))?;
        if !names.insert(&device.name) {
            return Err(FileError::field(field("name"), format!("there is a device {:?} already", device.name)));
        }
        if device.container_edits == ContainerEdits::default() {
            let reason = format!("device {:?} changes nothing: say what a container needs for it", device.name);
            return Err(FileError::field(field("containerEdits"), reason));
        }
        edits(&field("containerEdits"), &device.container_edits)?;
    }
    if names.is_empty() { Err(FileError::field("devices", "there is none")) } else { Ok(()) }
}

fn version(document: &Document) -> Result<(), FileError> {
    let refused = |reason: String| Err(FileError::field("cdiVersion", reason));
    let said = document.cdi_version.as_str();
    let said = said.strip_prefix('v').unwrap_or(said);
    let Some(found) = VERSIONS.iter().position(|version| *version == said) else {
        return refused(format!("{said:?} is not one of {}", VERSIONS.join(", ")));
    };
    let since = |version: &str| VERSIONS.iter().position(|one| *one == version).unwrap_or(VERSIONS.len());
    for (version, what) in needed(document) {
        if found < since(version) {
            return refused(format!("{said} has no {what}: say {version}, or a later one"));
        }
    }
    let monitors = |rdt: &IntelRdt| rdt.enable_cmt || rdt.enable_mbm;
    if found >= since("1.1.0") && all(document).filter_map(|edits| edits.intel_rdt.as_ref()).any(monitors) {
        return refused(format!("{said} has no intelRdt.enableCMT and enableMBM: say enableMonitoring"));
    }
    Ok(())
}

fn all(document: &Document) -> impl Iterator<Item = &ContainerEdits> {
    let own = document.devices.iter().map(|device| &device.container_edits);
    std::iter::once(&document.container_edits).chain(own)
}

/// Versions since which there is what the document has.
fn needed(document: &Document) -> impl Iterator<Item = (&'static str, &'static str)> {
    let any = |has: fn(&ContainerEdits) -> bool| all(document).any(has);
    let rdt = |has: fn(&IntelRdt) -> bool| all(document).filter_map(|edits| edits.intel_rdt.as_ref()).any(has);
    let annotated =
        !document.annotations.is_empty() || document.devices.iter().any(|device| !device.annotations.is_empty());
    let dotted = document.kind.split_once('/').is_some_and(|(_, class)| class.contains('.'));
    let numbered = document.devices.iter().any(|device| device.name.starts_with(|c: char| c.is_ascii_digit()));
    [
        ("1.1.0", "netDevices", any(|edits| !edits.net_devices.is_empty())),
        ("1.1.0", "intelRdt.schemata", rdt(|rdt| rdt.schemata.is_some())),
        ("1.1.0", "intelRdt.enableMonitoring", rdt(|rdt| rdt.enable_monitoring)),
        ("0.7.0", "intelRdt", any(|edits| edits.intel_rdt.is_some())),
        ("0.7.0", "additionalGids", any(|edits| !edits.additional_gids.is_empty())),
        ("0.6.0", "annotations", annotated),
        ("0.6.0", "dot in a class", dotted),
        ("0.5.0", "device name that begins with a digit", numbered),
        (
            "0.5.0",
            "deviceNodes.hostPath",
            any(|edits| edits.device_nodes.iter().any(|node| !node.host_path.as_os_str().is_empty())),
        ),
        ("0.4.0", "mounts.type", any(|edits| edits.mounts.iter().any(|mount| !mount.kind.is_empty()))),
    ]
    .into_iter()
    .filter_map(|(version, what, has)| has.then_some((version, what)))
}

fn edits(place: &str, edits: &ContainerEdits) -> Result<(), FileError> {
    environment(&format!("{place}.env"), &edits.env)?;
    for (number, node) in edits.device_nodes.iter().enumerate() {
        let refused =
            |name: &str, reason: String| Err(FileError::field(format!("{place}.deviceNodes[{number}].{name}"), reason));
        if node.path.as_os_str().is_empty() {
            return refused("path", "is missing".to_owned());
        }
        if !matches!(node.kind.as_str(), "" | "b" | "c" | "u" | "p") {
            return refused("type", format!("{:?} is not one of b, c, u and p", node.kind));
        }
        if node.major < 0 || node.minor < 0 {
            return refused("major", format!("{}:{} is no number of a device", node.major, node.minor));
        }
        if node.permissions != "none" && node.permissions.contains(|c| !matches!(c, 'r' | 'w' | 'm')) {
            return refused("permissions", format!("{:?} are not of r, w and m, and not none", node.permissions));
        }
    }
    let (mut hosts, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (number, link) in edits.net_devices.iter().enumerate() {
        let refused = |name: &str, reason: &str| {
            Err(FileError::field(format!("{place}.netDevices[{number}].{name}"), reason.to_owned()))
        };
        for (field, value, seen) in
            [("hostInterfaceName", &link.host_interface_name, &mut hosts), ("name", &link.name, &mut names)]
        {
            if value.is_empty() {
                return refused(field, "is missing");
            }
            if !seen.insert(value) {
                return refused(field, "is that of another one already");
            }
        }
    }
    for (number, hook) in edits.hooks.iter().enumerate() {
        let field = |name: &str| format!("{place}.hooks[{number}].{name}");
        if !HOOKS.contains(&hook.hook_name.as_str()) {
            let reason = format!("{:?} is not one of {}", hook.hook_name, HOOKS.join(", "));
            return Err(FileError::field(field("hookName"), reason));
        }
        if hook.path.as_os_str().is_empty() {
            return Err(FileError::field(field("path"), "is missing"));
        }
        environment(&field("env"), &hook.env)?;
    }
    for (number, mount) in edits.mounts.iter().enumerate() {
        for (field, path) in [("hostPath", &mount.host_path), ("containerPath", &mount.container_path)] {
            if path.as_os_str().is_empty() {
                return Err(FileError::field(format!("{place}.mounts[{number}].{field}"), "is missing"));
            }
        }
    }
    if let Some(rdt) = &edits.intel_rdt {
        let name = rdt.clos_id.as_str();
        if name != "/" && (name.len() >= 4096 || matches!(name, "." | "..") || name.contains(['/', '\n'])) {
            return Err(FileError::field(
                format!("{place}.intelRdt.closID"),
                format!("{name:?} is no name of a group"),
            ));
        }
    }
    Ok(())
}

fn environment(field: &str, variables: &[String]) -> Result<(), FileError> {
    match variables.iter().find(|one| one.find('=').is_none_or(|at| at == 0)) {
        Some(wrong) => Err(FileError::field(field, format!("{wrong:?} is no NAME=value"))),
        None => Ok(()),
    }
}
