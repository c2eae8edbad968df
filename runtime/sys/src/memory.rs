//! Memory of a small process: giving back what a moment of work has left behind.

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

/// Lets all threads of this process share at most `arenas` pools of memory, where the C library has such pools.
///
/// For a process of many short-lived threads: by default each leaves what it freed in a pool of its own. Threads that
/// have a pool already keep it, so this is called before they start.
/// Source: mallopt(3), `M_ARENA_MAX`.
pub fn limit_arenas(arenas: u16) {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and is safe to call at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, i32::from(arenas));
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = arenas;
}

/// Has what is larger than `bytes` mapped by itself, where the C library can, so that it goes back to the system as soon as
/// it is freed.
///
/// For a process that needs large buffers for a moment: by default the first one that is freed makes the library keep the
/// next ones in its pools, up to 32 MiB each.
/// Source: mallopt(3), `M_MMAP_THRESHOLD`.
pub fn map_large(bytes: u32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and is safe to call at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::try_from(bytes).unwrap_or(i32::MAX));
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}

/// Gives back pages of the main thread's stack that earlier, deeper calls have used.
///
/// Does nothing in any other thread, or when the stack's place cannot be read.
#[inline(never)]
pub fn release_stack() {
    /// Left alone below this frame: what the calls made here use themselves, and the red zone.
    const MARGIN: usize = 32 << 10;
    const PAGE: usize = 4096;
    let here = 0_u8;
    let here = std::ptr::from_ref(&here).addr();
    let Some((low, high)) = stack() else { return };
    let end = here.saturating_sub(MARGIN) & !(PAGE - 1);
    if here < high && low < end {
        // SAFETY: the range is whole pages of the calling thread's own stack, well below its stack pointer: no frame
        // is there, so nobody has a reference into it, and the kernel gives zeroed pages when the stack grows again.
        unsafe {
            libc::madvise(std::ptr::without_provenance_mut(low), end - low, libc::MADV_DONTNEED);
        }
    }
}

/// Unmaps the pages of the program's code that a start or a burst of work has mapped; what is used again comes back from
/// the page cache by itself, sixteen pages at a time.
///
/// The kernel maps the neighbours of every page that is touched, so that most of a large program counts as used by a
/// process that ran little of it. Does nothing when the code's place cannot be read.
pub fn release_code() {
    let Some((low, high)) = mapping(|line| line.contains(" r-xp ") && holds(line, release_code as *const () as usize))
    else {
        return;
    };
    // SAFETY: the range is one mapping of a file that nobody may write to, so that no page of it differs from the file:
    // whoever runs or reads one that was dropped gets the same bytes again.
    unsafe {
        libc::madvise(std::ptr::without_provenance_mut(low), high - low, libc::MADV_DONTNEED);
    }
}

/// Where the main thread's stack lies now.
fn stack() -> Option<(usize, usize)> {
    mapping(|line| line.ends_with("[stack]"))
}

/// Where the first mapping lies whose line is one that is looked for.
/// Source: proc_pid_maps(5).
fn mapping(wanted: impl Fn(&str) -> bool) -> Option<(usize, usize)> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    range(maps.lines().find(|line| wanted(line))?)
}

fn range(line: &str) -> Option<(usize, usize)> {
    let (low, high) = line.split(' ').next()?.split_once('-')?;
    Some((usize::from_str_radix(low, 16).ok()?, usize::from_str_radix(high, 16).ok()?))
}

fn holds(line: &str, address: usize) -> bool {
    range(line).is_some_and(|(low, high)| (low..high).contains(&address))
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// What one test gives back the other would meet as not mapped.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    #[cfg(target_env = "gnu")]
    fn a_large_buffer_goes_back_when_it_is_freed() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        map_large(1 << 20);
        // By default the first one that is freed raises the bound for the second.
        assert_eq!([is_kept(), is_kept()], [false, false]);
    }

    /// Whether the place of a large buffer is still mapped after it was freed.
    #[cfg(target_env = "gnu")]
    fn is_kept() -> bool {
        let buffer = std::hint::black_box(vec![1_u8; 8 << 20]);
        let place = buffer.as_ptr().addr();
        let is_mapped = || mapping(|line| holds(line, place + (4 << 20))).is_some();
        assert!(is_mapped());
        drop(buffer);
        is_mapped()
    }

    #[inline(never)]
    fn deep(levels: u32) -> u64 {
        let frame = [u64::from(levels); 512];
        if levels == 0 { frame.iter().sum() } else { deep(levels - 1) + std::hint::black_box(frame)[3] }
    }

    #[test]
    fn a_stack_that_was_given_back_grows_again() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = deep(60);
        release_stack();
        release_free();
        assert_eq!(deep(60), before);
    }

    /// How often this thread met a page that was not mapped while it did this. Source: getrusage(2).
    fn faults(work: impl Fn()) -> i64 {
        let count = || {
            // SAFETY: all zeroes are a value of this structure of numbers, and the call writes nothing else.
            unsafe {
                let mut usage: libc::rusage = std::mem::zeroed();
                assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage), 0);
                usage.ru_minflt
            }
        };
        let before = count();
        work();
        count() - before
    }

    #[test]
    fn code_that_was_given_back_runs_again() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = deep(60);
        // Else the same work, the second time with all that it needs in place.
        let look = || assert!(mapping(|line| holds(line, deep as *const () as usize)).is_some());
        look();
        let without = faults(look);
        let with = faults(release_code);
        assert!(with > without, "{with} faults, {without} without giving anything back");
        assert_eq!(deep(60), sum);
    }
}
