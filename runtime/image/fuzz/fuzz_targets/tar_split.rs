//! Any bytes as a tar-split: it has no more of an archive than base64 can have in so many bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portreeve_image::fuzz;

fuzz_target!(|bytes: &[u8]| assert!(fuzz::tar_split(bytes) <= bytes.len() as u64));
