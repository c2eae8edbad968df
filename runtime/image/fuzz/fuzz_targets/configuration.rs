//! Any bytes as an image's configuration: what is kept of it is within the bounds, or it is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portreeve_image::fuzz;

fuzz_target!(|bytes: &[u8]| {
    let Ok((layers, text)) = fuzz::configuration(bytes) else { return };
    assert!(layers <= 499 && text <= bytes.len());
});
