//! Any tar, whose headers' checksums are made right first: read to its end or refused, and never more than it has.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portreeve_image::{Limits, fuzz};

const BLOCK: usize = 512;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    // Whatever says that it is a header shall pass for one.
    for block in bytes.chunks_exact_mut(BLOCK).filter(|block| block[257..].starts_with(b"ustar")) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let limits = Limits { entries: 100, header_bytes: 4096, ..Limits::default() };
    let Ok(members) = fuzz::archive(&bytes, &limits) else { return };
    assert!(members.len() <= 100);
    assert!(members.len() * BLOCK + members.iter().sum::<u64>() as usize <= bytes.len());
});
