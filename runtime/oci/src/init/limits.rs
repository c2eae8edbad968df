//! Resource limits, scheduling, execution domain.

use portreeve_sys::process;

use crate::error::{SetupError, Step};
use crate::plan::identity::Identity;

const NAMES: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

pub(super) fn set(identity: &Identity) -> Result<(), SetupError> {
    for (resource, soft, hard) in &identity.limits {
        let name = usize::try_from(*resource).ok().and_then(|index| NAMES.get(index)).unwrap_or(&"?");
        let what =
            format!("setting RLIMIT_{name} to {soft} (soft) and {hard} (hard; raising it needs CAP_SYS_RESOURCE)");
        process::set_limit(*resource, *soft, *hard).step(&what, "")?;
    }
    if let Some(attributes) = &identity.scheduling {
        process::set_scheduling(attributes).step("setting the scheduler", "")?;
    }
    if let Some((class, level)) = identity.io_priority {
        process::set_io_priority(class, level).step("setting the I/O priority", "")?;
    }
    if let Some(persona) = identity.personality {
        process::set_personality(persona).step("setting the personality", "")?;
    }
    Ok(())
}
