//! Capability sets of the calling thread.

use std::io;

use crate::raw::{check, check_int};

/// Highest capability this crate knows (CAP_CHECKPOINT_RESTORE); the kernel may know fewer or more.
pub const LAST_KNOWN: u32 = 40;

/// May become any group, and write any map of groups. Source of the numbers: linux/capability.h.
pub const CAP_SETGID: u32 = 6;
/// May become any user, and write any map of users.
pub const CAP_SETUID: u32 = 7;
/// May take capabilities out of its bounding set.
pub const CAP_SETPCAP: u32 = 8;
/// May look into any process.
pub const CAP_SYS_PTRACE: u32 = 19;
/// May mount, among much else.
pub const CAP_SYS_ADMIN: u32 = 21;
/// May raise its limits and lower its score.
pub const CAP_SYS_RESOURCE: u32 = 24;

/// The three sets of capset(2), one bit per capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sets {
    /// What counts now.
    pub effective: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What an executed file may inherit.
    pub inheritable: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

#[expect(clippy::cast_possible_truncation, reason = "the low and the high half are taken on purpose")]
fn halves(set: u64) -> (u32, u32) {
    (set as u32, (set >> 32) as u32)
}

/// Sets effective, permitted and inheritable capabilities.
///
/// # Errors
/// `EPERM` for a capability that is not permitted already.
pub fn set(sets: &Sets) -> io::Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let (effective, permitted, inheritable) =
        (halves(sets.effective), halves(sets.permitted), halves(sets.inheritable));
    let body = [
        Half { effective: effective.0, permitted: permitted.0, inheritable: inheritable.0 },
        Half { effective: effective.1, permitted: permitted.1, inheritable: inheritable.1 },
    ];
    // SAFETY: version 3 takes a header and two halves, both valid and outliving the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, body.as_ptr()) })?;
    Ok(())
}

/// Effective, permitted and inheritable capabilities of this thread.
///
/// # Errors
/// None in practice.
pub fn get() -> io::Result<Sets> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut body = [Half::default(); 2];
    // SAFETY: version 3 stores two halves at the pointer.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, body.as_mut_ptr()) })?;
    let [low, high] = body;
    let whole = |low: u32, high: u32| u64::from(low) | (u64::from(high) << 32);
    Ok(Sets {
        effective: whole(low.effective, high.effective),
        permitted: whole(low.permitted, high.permitted),
        inheritable: whole(low.inheritable, high.inheritable),
    })
}

/// The bounding set of this thread.
///
/// # Errors
/// None in practice.
pub fn bounding() -> io::Result<u64> {
    let mut set = 0;
    for number in 0..64_u32 {
        // SAFETY: PR_CAPBSET_READ takes a number.
        match unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(number)) } {
            1 => set |= 1 << number,
            0 => {}
            _ => break, // beyond what the kernel knows
        }
    }
    Ok(set)
}

/// Drops from the bounding set everything that is not in `keep`.
///
/// # Errors
/// `EPERM` without CAP_SETPCAP.
pub fn limit_bounding(keep: u64) -> io::Result<()> {
    for number in 0..64_u32 {
        if keep & (1 << number) != 0 {
            continue;
        }
        // SAFETY: PR_CAPBSET_DROP takes a number.
        match check_int(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number)) }) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break, // beyond what the kernel knows
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes the ambient set exactly `ambient`, whose members must be permitted and inheritable.
///
/// # Errors
/// `EPERM` when one is not.
pub fn set_ambient(ambient: u64) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: PR_CAP_AMBIENT takes numbers.
    check_int(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, zero, zero, zero) })?;
    for number in 0..64_u32 {
        if ambient & (1 << number) == 0 {
            continue;
        }
        let number = libc::c_ulong::from(number);
        // SAFETY: PR_CAP_AMBIENT takes numbers.
        check_int(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, zero, zero) })?;
    }
    Ok(())
}
