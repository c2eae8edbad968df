//! Any bytes as `hosts.toml`: endpoints that are URLs without a login, or a refusal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portreeve_image::fuzz;

fuzz_target!(|bytes: &[u8]| {
    let place = tempfile::tempdir().expect("a directory");
    let registry = place.path().join("registry.example");
    std::fs::create_dir(&registry).expect("a directory");
    // A file that is named is read, as the administrator wants it: here nobody has said which may be.
    if bytes.windows(5).any(|part| part == b"/proc") {
        return;
    }
    std::fs::write(registry.join("hosts.toml"), bytes).expect("writing a file");
    let reference = "registry.example/a/b:1".parse().expect("a reference");
    let asked = fuzz::endpoints(Some(place.path().to_owned()), None, &reference);
    let Ok(endpoints) = asked else { return };
    assert!(!endpoints.is_empty());
    for (api, repository) in endpoints {
        let rest = api.strip_prefix("https://").or_else(|| api.strip_prefix("http://")).expect("a URL");
        assert!(!rest.split('/').next().expect("a host").contains('@') && !rest.contains(['?', '#', ' ']), "{api}");
        assert_eq!(repository, "a/b");
    }
});
