//! The allocator of a small process.

/// Gives memory that was allocated and freed back to the system, where the C library can.
///
/// For a process that needs much for a moment and little for the rest of its life.
pub fn release_free() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number and only touches what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
