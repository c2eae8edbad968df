//! Any bytes as a layer's table of contents: contents lie in order, apart, and in the blob, or the table is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portreeve_image::fuzz;

const END: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    for places in fuzz::table(bytes, END) {
        assert!(places.iter().all(|place| place.start < place.end && place.end <= END));
        assert!(places.windows(2).all(|two| two[0].end <= two[1].start));
    }
});
