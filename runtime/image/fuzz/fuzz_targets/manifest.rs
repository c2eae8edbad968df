//! Any bytes as a manifest or an index, with or without a media type before them: within the bounds, or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portreeve_image::fuzz;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    // The first line is what the registry calls it.
    let (told, document) = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) if bytes.starts_with(b"application/") => (std::str::from_utf8(&bytes[..end]).ok(), &bytes[end + 1..]),
        _ => (None, bytes),
    };
    let Ok(sizes) = fuzz::manifest(document, told) else { return };
    assert!(sizes.len() <= 499);
    // Never both at once, CVE-2021-41190. Not every reader takes all that is skipped.
    let Ok(document) = serde_json::from_slice::<Value>(document) else { return };
    assert!(document["manifests"].is_null() || document["layers"].is_null());
});
