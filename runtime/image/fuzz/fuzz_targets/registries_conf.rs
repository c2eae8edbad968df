//! Any bytes as `registries.conf`: endpoints that are URLs without a login, or a refusal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portreeve_image::fuzz;

fuzz_target!(|bytes: &[u8]| {
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("registries.conf");
    std::fs::write(&file, bytes).expect("writing a file");
    for reference in ["registry.example/a/b:1", "busybox"] {
        let reference = reference.parse().expect("a reference");
        let Ok(endpoints) = fuzz::endpoints(None, Some(file.clone()), &reference) else { continue };
        assert!(!endpoints.is_empty());
        for (api, repository) in endpoints {
            let rest = api.strip_prefix("https://").or_else(|| api.strip_prefix("http://")).expect("a URL");
            let host = rest.strip_suffix("/v2").expect("an API");
            assert!(!host.is_empty() && !host.contains(['@', '/', '?', '#', ' ']), "{api}");
            assert!(!repository.is_empty());
        }
    }
});
