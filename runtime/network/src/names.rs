//! Names that are derived and not stored: links, labels, MAC addresses.

use std::net::Ipv4Addr;

/// Every link of this program starts so.
const PREFIX: &str = "pr";

/// FNV-1a with the finish of MurmurHash3, so that every bit depends on every byte.
///
/// It spreads names; nothing secret depends on it, and it never changes: links are named by it.
pub(crate) fn fingerprint(bytes: &[u8]) -> u64 {
    let mut hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3_u64));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// The host's end of a pod's link: `pr`, four digits of the bridge, nine of the sandbox.
///
/// Ids of 64 hex digits show their first nine, so that an operator sees which pod it is.
pub(crate) fn host_link(bridge: &str, sandbox_id: &str) -> String {
    let of_bridge = fingerprint(bridge.as_bytes()) >> 48;
    let head =
        sandbox_id.get(..9).filter(|head| sandbox_id.len() == 64 && head.bytes().all(|byte| byte.is_ascii_hexdigit()));
    match head {
        Some(head) => format!("{PREFIX}{of_bridge:04x}{}", head.to_ascii_lowercase()),
        None => {
            let of_sandbox = fingerprint(sandbox_id.as_bytes()) >> 28;
            format!("{PREFIX}{of_bridge:04x}{of_sandbox:09x}")
        }
    }
}

/// What the label of our bridges begins with, by which every agent knows those of the others; see `owner`.
pub(crate) const BRIDGE_ALIAS: &str = "portreeve bridge";

/// The label of a pod's link on the host: whose it is, whatever happens to our records.
pub(crate) fn link_alias(bridge: &str, sandbox_id: &str) -> String {
    format!("portreeve {bridge} {sandbox_id}")
}

/// The sandbox that a label names, when it is one of this bridge.
pub(crate) fn sandbox_of_alias<'a>(bridge: &str, alias: &'a str) -> Option<&'a str> {
    alias.strip_prefix("portreeve ")?.strip_prefix(bridge)?.strip_prefix(' ')
}

/// The MAC address that belongs to an address: when the address goes to another pod, what its
/// neighbours remember stays right.
pub(crate) fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    // 02: locally administered, one station.
    [0x02, 0x50, a, b, c, d]
}

/// Whether an id can be part of a file name and of a label.
pub(crate) fn is_sandbox_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Why a name cannot be that of a link, if so.
pub(crate) fn link_name_fault(name: &str) -> Option<&'static str> {
    // Linux, dev_valid_name, narrowed to what also needs no quoting anywhere.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 15 {
        Some("a link's name has 1 to 15 bytes")
    } else if name == "." || name == ".." || name == "all" || name == "default" {
        Some("this name means something else to the kernel")
    } else if !name.bytes().all(plain) {
        Some("only letters, digits, '-', '_' and '.' are possible")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_name_fits_and_shows_the_sandbox() {
        let id = "0123456789abcdef".repeat(4);
        let name = host_link("portreeve0", &id);
        assert_eq!(name.len(), 15);
        assert!(name.ends_with("012345678"), "{name}");
        assert_eq!(host_link("portreeve0", "web").len(), 15);
        assert_ne!(host_link("portreeve0", &id), host_link("portreeve1", &id));
    }

    #[test]
    fn a_label_of_another_bridge_is_not_ours() {
        let alias = link_alias("br1", "abc");
        assert_eq!(sandbox_of_alias("br1", &alias), Some("abc"));
        assert_eq!(sandbox_of_alias("br", &alias), None);
        assert_eq!(sandbox_of_alias("br1", "portreeve bridge"), None);
    }

    #[test]
    fn ids_that_leave_the_directory_are_refused() {
        for id in ["", "..", "a/b", "a b", "a\n", &"x".repeat(129)] {
            assert!(!is_sandbox_id(id), "{id:?}");
        }
    }
}
