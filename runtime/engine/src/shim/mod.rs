//! The shim.

use std::ffi::OsString;

/// Becomes the shim of one sandbox: never returns. `args` are those after `shim`.
pub fn main(_args: impl Iterator<Item = OsString>) -> ! {
    std::process::exit(1)
}
