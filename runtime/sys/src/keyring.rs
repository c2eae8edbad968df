//! Session keyrings.

use std::ffi::CStr;
use std::io;

use crate::raw::check;

/// Gives this process a new session keyring, so that it shares no key with its parent; answers its serial number.
///
/// # Errors
/// `EDQUOT` at the limit of keys, `ENOSYS` without CONFIG_KEYS.
pub fn join_new_session(name: &CStr) -> io::Result<i32> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: `name` is a C string that outlives the call.
    let serial = check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    i32::try_from(serial).map_err(|_| io::Error::other("keyctl gave no serial number"))
}
