//! From `linux.netDevices` to links of the caller that become the container's. Pure.

use oci_spec::runtime::Spec;
use portreeve_sys::clone::NEW_NET;

use super::PlanError;
use super::namespaces::Namespaces;

/// A link to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetDevice {
    /// Its name in the caller's network.
    pub(crate) name: String,
    /// Its name in the container's.
    pub(crate) inside: String,
}

/// The links of the configuration, in the order of their names.
pub(crate) fn plan(spec: &Spec, namespaces: &Namespaces) -> Result<Vec<NetDevice>, PlanError> {
    let given = spec.linux().as_ref().and_then(|linux| linux.net_devices().as_ref());
    let mut devices: Vec<NetDevice> = Vec::new();
    for (name, device) in given.into_iter().flatten() {
        let refused = |reason: String| PlanError::new(format!("linux.netDevices[{name}]"), reason);
        let inside = device.name().as_ref().filter(|inside| !inside.is_empty()).unwrap_or(name);
        if let Some(bad) = [name, inside].into_iter().find(|name| !is_name(name)) {
            return Err(refused(format!(
                "{bad:?} is no name of a link: 1 to 15 bytes without space, '/', ':' and '%'"
            )));
        }
        if name == "lo" || inside == "lo" {
            return Err(refused("every network has a lo of its own".to_owned()));
        }
        if !namespaces.has(NEW_NET) {
            return Err(refused("needs a network namespace that is not the caller's".to_owned()));
        }
        if devices.iter().any(|other| other.inside == *inside) {
            return Err(refused(format!("{inside:?} is the name of another one in the container")));
        }
        devices.push(NetDevice { name: name.clone(), inside: inside.clone() });
    }
    devices.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(devices)
}

/// What the kernel takes for the name of a link (`dev_valid_name`), without patterns, which it would fill in.
fn is_name(name: &str) -> bool {
    let bad = |byte: u8| matches!(byte, b'/' | b':' | b'%' | 0) || byte.is_ascii_whitespace() || byte == 0x0b;
    !matches!(name, "" | "." | "..") && name.len() <= 15 && !name.bytes().any(bad)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;

    fn check(devices: &Value, namespace: u64, expected: &Expect) {
        let json = json!({"ociVersion": "1.3.0", "linux": {"netDevices": devices}});
        let spec = serde_json::from_value(json).expect("spec");
        let text = match plan(&spec, &Namespaces { new: namespace, ..Namespaces::default() }) {
            Ok(devices) => devices.iter().map(|device| format!("{} -> {}\n", device.name, device.inside)).collect(),
            Err(error) => format!("{error}\n"),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn a_link_keeps_its_name_or_gets_another() {
        let devices = json!({"eth1": {"name": "inner"}, "eth0": {}, "eth2": {"name": ""}});
        check(
            &devices,
            NEW_NET,
            &expect![[r"
                eth0 -> eth0
                eth1 -> inner
                eth2 -> eth2
            "]],
        );
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        for name in ["a/b", "a name", "sixteen-letters-", "..", "eth%d", "a:1", "a\0b"] {
            let json = json!({"ociVersion": "1.3.0", "linux": {"netDevices": {"eth0": {"name": name}}}});
            let spec = serde_json::from_value(json).expect("spec");
            let namespaces = Namespaces { new: NEW_NET, ..Namespaces::default() };
            let error = plan(&spec, &namespaces).expect_err("refused").to_string();
            assert!(error.contains("is no name of a link"), "{error}");
        }
        check(
            &json!({"eth0": {"name": "lo"}}),
            NEW_NET,
            &expect![[r"
                linux.netDevices[eth0]: every network has a lo of its own
            "]],
        );
        check(
            &json!({"eth0": {}}),
            0,
            &expect![[r"
                linux.netDevices[eth0]: needs a network namespace that is not the caller's
            "]],
        );
    }
}
