//! Which memory nodes a process's pages come from: set_mempolicy(2).

use std::io;

use crate::raw::check;

/// Nodes have numbers below this, whatever the kernel (`MAX_NUMNODES` is at most 1024).
pub const MOST_NODES: usize = 1024;

const WORDS: usize = MOST_NODES / 64;

/// A set of memory nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Nodes([u64; WORDS]);

impl Nodes {
    /// Adds a node; `false` for one that cannot exist.
    #[must_use]
    pub fn insert(&mut self, node: usize) -> bool {
        let word = self.0.get_mut(node / 64);
        word.map(|word| *word |= 1 << (node % 64)).is_some()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Sets the policy of the calling thread, which its children and programs inherit: `mode` is `MPOL_*` with its flags.
///
/// # Errors
/// `EINVAL` for a mode that is unknown or does not fit `nodes`, and when none of them is online and allowed by the
/// cpuset; `ENOSYS` without NUMA.
pub fn set(mode: u32, nodes: &Nodes) -> io::Result<()> {
    // The kernel leaves the last bit of the mask out of account; without a node it wants no mask.
    let (mask, bits) = if nodes.is_empty() { (std::ptr::null(), 0) } else { (nodes.0.as_ptr(), MOST_NODES + 1) };
    // SAFETY: the mask is null or has as many bits as the kernel reads, which are those that it is told less one.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_their_bits_and_numbers_beyond_the_last_are_refused() {
        let mut nodes = Nodes::default();
        assert!(nodes.is_empty());
        for node in [0, 64, 65, MOST_NODES - 1] {
            assert!(nodes.insert(node), "{node}");
        }
        assert!(!nodes.insert(MOST_NODES));
        assert_eq!((nodes.0[0], nodes.0[1], nodes.0[WORDS - 1]), (1, 3, 1 << 63));
    }
}
