//! User namespaces: writing maps, and making one for its maps alone.
//!
//! Who has CAP_SETUID writes any map. A user maps himself, alone; ids that /etc/subuid and /etc/subgid lend him are mapped
//! by newuidmap(1) and newgidmap(1), which have the privilege and check what was lent: user_namespaces(7).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use oci_spec::runtime::LinuxIdMapping;
use portreeve_sys::capability::{self, CAP_SETGID, CAP_SETUID};
use portreeve_sys::clone::{Clone3, NEW_USER, clone3};
use portreeve_sys::namespace::enter;
use portreeve_sys::process::{pidfd_send_signal, set_dumpable, wait};
use portreeve_sys::socket::message_pair;
use rustix::io::Errno;

use crate::Pid;
use crate::error::{SetupError, Step};
use crate::handshake::{self, Message};

/// The maps as the kernel wants them: `inside outside count` per line.
pub(crate) fn map_text(maps: &[LinuxIdMapping]) -> String {
    maps.iter().map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size())).collect()
}

/// Id of the host that the container's root (0) is mapped to.
pub(crate) fn host_root(maps: &[LinuxIdMapping]) -> Option<u32> {
    maps.iter().find(|map| map.container_id() == 0 && map.size() > 0).map(LinuxIdMapping::host_id)
}

/// Writes the maps of a child's user namespace. The child is not reaped, so its id cannot name another process.
fn write_maps(pid: Pid, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> io::Result<()> {
    let directory = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let held = capability::get()?.effective;
    let write = |file: &str, text: &str| {
        let path = directory.join(file);
        std::fs::write(&path, text)
            .map_err(|error| io::Error::new(error.kind(), format!("writing {:?} to {}: {error}", text, path.display())))
    };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if held & (1 << CAP_SETUID) != 0 || is_only(uids, uid) {
        write("uid_map", &map_text(uids))?;
    } else {
        lend(&USERS, pid, uids)?;
    }
    if held & (1 << CAP_SETGID) == 0 && !is_only(gids, gid) {
        return lend(&GROUPS, pid, gids);
    }
    match write("gid_map", &map_text(gids)) {
        // Without privilege over the parent namespace a group map needs setgroups denied first.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            write("setgroups", "deny")?;
            write("gid_map", &map_text(gids))
        }
        other => other,
    }
}

/// Whether nothing is mapped but this one id.
fn is_only(maps: &[LinuxIdMapping], id: u32) -> bool {
    matches!(maps, [one] if one.host_id() == id && one.size() == 1)
}

/// A program that maps ids for a user who may not.
struct Lender {
    program: &'static str,
    list: &'static str,
}

const USERS: Lender = Lender { program: "newuidmap", list: "/etc/subuid" };
const GROUPS: Lender = Lender { program: "newgidmap", list: "/etc/subgid" };

/// Has a map written by who may.
fn lend(lender: &Lender, pid: Pid, maps: &[LinuxIdMapping]) -> io::Result<()> {
    let Lender { program, list } = lender;
    let mut command = Command::new(program);
    command.arg(pid.as_raw_nonzero().to_string()).stdin(Stdio::null());
    for map in maps {
        command.args([map.container_id(), map.host_id(), map.size()].map(|number| number.to_string()));
    }
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let text = "is not on PATH, and maps more than the user's own id (Debian has it in the package uidmap)";
            io::Error::new(error.kind(), format!("{program} {text}"))
        }
        kind => io::Error::new(kind, format!("running {program}: {error}")),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let rows = map_text(maps);
    let text = format!(
        "{program} has not mapped {} ({}): {list} has to lend these ids to the user",
        rows.trim_end().replace('\n', ", "),
        said.trim().replace('\n', "; "),
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// Says what may be in the way of a user namespace.
fn not_made(error: io::Error) -> io::Error {
    let hint = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM | Errno::ACCESS) => {
            "the machine may keep users from it: kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns; so does a chroot"
        }
        Some(Errno::NOSPC | Errno::USERS) => "there may be no more of them: user.max_user_namespaces",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error} ({hint})"))
}

/// A user namespace with these maps, kept alive by its descriptor alone.
pub(crate) fn with_maps(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> io::Result<OwnedFd> {
    let (ours, theirs) = message_pair()?;
    let how = Clone3 { namespaces: NEW_USER, ..Clone3::default() };
    let child = clone3(&how, || i32::from(linger(&ours, theirs.as_fd()).is_err())).map_err(not_made)?;
    let namespace = write_maps(child.pid, uids, gids).and_then(|()| {
        let path = format!("/proc/{}/ns/user", child.pid.as_raw_nonzero());
        Ok(OwnedFd::from(std::fs::File::open(path)?))
    });
    drop(ours);
    let _ = pidfd_send_signal(child.pidfd.as_fd(), 9);
    wait(child.pidfd.as_fd())?;
    namespace
}

/// In a clone that is there to be looked at: waits until the process that has `ours` has seen enough, or has ended.
fn linger(ours: &OwnedFd, theirs: BorrowedFd<'_>) -> io::Result<()> {
    handshake::leave(ours).and_then(|()| handshake::wait_go(theirs)).map(drop)
}

/// Ids of the host that the root of an existing user namespace is mapped to: user, group; `None` when one is not.
pub(crate) fn host_root_of(namespace: BorrowedFd<'_>) -> Result<Option<(u32, u32)>, SetupError> {
    let listening = "listening to a process in the user namespace";
    let (ours, theirs) = message_pair().step("making a socket pair", "")?;
    let child = clone3(&Clone3::default(), || {
        // Whoever has all capabilities there shall not look into this copy of our program.
        let entered =
            set_dumpable(false).and_then(|()| enter(namespace, NEW_USER)).step("joining the user namespace", "");
        let said = match entered {
            Ok(()) => handshake::ready(theirs.as_fd()),
            Err(error) => handshake::failed(theirs.as_fd(), &error),
        };
        i32::from(said.and_then(|()| linger(&ours, theirs.as_fd())).is_err())
    })
    .step("cloning a process that joins the user namespace", "")?;
    drop(theirs);
    let read = |file: &str| {
        let path = format!("/proc/{}/{file}", child.pid.as_raw_nonzero());
        std::fs::read_to_string(&path).map(|text| root_in(&text)).step("reading", path)
    };
    let roots = match handshake::next(ours.as_fd()).step(listening, "") {
        Ok(Message::Ready) => read("uid_map").and_then(|user| Ok(user.zip(read("gid_map")?))),
        Ok(Message::Failed(error)) => Err(error),
        Ok(_) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)).step(listening, ""),
        Err(error) => Err(error),
    };
    let ended = pidfd_send_signal(child.pidfd.as_fd(), 9).and_then(|()| wait(child.pidfd.as_fd()));
    ended.step("ending a process in the user namespace", "")?;
    roots
}

/// What 0 is mapped to in a map as the kernel shows it.
fn root_in(map: &str) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace();
        let (inside, outside) = (numbers.next()?, numbers.next()?.parse().ok()?);
        (inside == "0").then_some(outside)
    })
}

#[cfg(test)]
mod tests {
    use portreeve_sys::process::{Exit, has_ended};

    use super::*;

    #[test]
    fn a_process_that_lingers_ends_with_who_looks_at_it() {
        let (ours, theirs) = message_pair().expect("pair");
        let lingers = || i32::from(linger(&ours, theirs.as_fd()).is_err());
        let child = clone3(&Clone3::default(), lingers).expect("clone");
        assert!(!has_ended(child.pidfd.as_fd(), 20).expect("poll"));
        drop(ours);
        assert!(has_ended(child.pidfd.as_fd(), 10_000).expect("poll"), "it waits without end");
        assert_eq!(wait(child.pidfd.as_fd()).expect("wait"), Exit::Code(0));
    }

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

    #[test]
    fn a_user_alone_is_one_row_of_one_id() {
        let maps = |json: &str| serde_json::from_str::<Vec<LinuxIdMapping>>(json).expect("maps");
        let own = maps(r#"[{"containerID": 0, "hostID": 1000, "size": 1}]"#);
        assert!(is_only(&own, 1000));
        assert!(!is_only(&own, 1001));
        assert!(!is_only(&maps(r#"[{"containerID": 0, "hostID": 1000, "size": 2}]"#), 1000));
        assert!(!is_only(&[own.clone(), own].concat(), 1000));
    }

    #[test]
    fn the_root_is_found_in_the_kernels_maps() {
        assert_eq!(root_in("     70000          1          1\n         0     100000      65536\n"), Some(100_000));
        assert_eq!(root_in("         0          0 4294967295\n"), Some(0));
        assert_eq!(root_in("         1     100000      65536\n"), None);
        assert_eq!(root_in(""), None);
    }
}
