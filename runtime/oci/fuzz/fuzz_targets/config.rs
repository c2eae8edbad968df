//! Any bytes: read and planned, or refused; what was read reads the same when it is written down again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::Spec;
use portreeve_oci::{check, config};

fuzz_target!(|bytes: &[u8]| {
    let Ok(read) = config::parse(bytes) else { return };
    assert_eq!(read.raw, bytes);
    let _planned_or_refused = check(&read.spec);
    let again: Spec = serde_json::from_slice(&serde_json::to_vec(&read.spec).expect("JSON")).expect("the same");
    assert_eq!(again, read.spec);
});
