//! User namespaces: writing maps, and making one for its maps alone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::LinuxIdMapping;
use portreeve_sys::clone::{Clone3, NEW_USER, clone3};
use portreeve_sys::process::{pidfd_send_signal, wait};
use portreeve_sys::socket::message_pair;

use crate::Pid;
use crate::handshake;

/// The maps as the kernel wants them: `inside outside count` per line.
pub(crate) fn map_text(maps: &[LinuxIdMapping]) -> String {
    maps.iter().map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size())).collect()
}

/// Id of the host that the container's root (0) is mapped to.
pub(crate) fn host_root(maps: &[LinuxIdMapping]) -> Option<u32> {
    maps.iter().find(|map| map.container_id() == 0 && map.size() > 0).map(LinuxIdMapping::host_id)
}

/// Writes the maps of a child's user namespace. The child is not reaped, so its id cannot name another process.
pub(crate) fn write_maps(pid: Pid, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> io::Result<()> {
    let directory = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    std::fs::write(directory.join("uid_map"), map_text(uids))?;
    match std::fs::write(directory.join("gid_map"), map_text(gids)) {
        // Without privilege over the parent namespace a group map needs setgroups denied first.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            std::fs::write(directory.join("setgroups"), "deny")?;
            std::fs::write(directory.join("gid_map"), map_text(gids))
        }
        other => other,
    }
}

/// A user namespace with these maps, kept alive by its descriptor alone.
pub(crate) fn with_maps(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> io::Result<OwnedFd> {
    let (ours, theirs) = message_pair()?;
    let child = clone3(&Clone3 { namespaces: NEW_USER, ..Clone3::default() }, || {
        let _ = handshake::wait_go(theirs.as_fd());
        0
    })?;
    let namespace = write_maps(child.pid, uids, gids).and_then(|()| {
        let path = format!("/proc/{}/ns/user", child.pid.as_raw_nonzero());
        Ok(OwnedFd::from(std::fs::File::open(path)?))
    });
    drop(ours);
    let _ = pidfd_send_signal(child.pidfd.as_fd(), 9);
    wait(child.pidfd.as_fd())?;
    namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_written_as_inside_outside_count() {
        let maps: Vec<LinuxIdMapping> = serde_json::from_str(
            r#"[{"containerID": 0, "hostID": 100000, "size": 65536}, {"containerID": 70000, "hostID": 1, "size": 1}]"#,
        )
        .expect("maps");
        assert_eq!(map_text(&maps), "0 100000 65536\n70000 1 1\n");
        assert_eq!(host_root(&maps), Some(100_000));
        assert_eq!(host_root(maps.get(1..).expect("second")), None);
    }
}
