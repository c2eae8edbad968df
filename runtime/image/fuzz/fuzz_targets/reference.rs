//! Any text as a reference: what is read means the same when it is written down again, and cannot leave a path or a URL.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portreeve_image::ImageRef;

fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<ImageRef>() else { return };
    for again in [reference.to_string(), reference.familiar()] {
        assert_eq!(again.parse().as_ref(), Ok(&reference), "{again}");
    }
    assert!(reference.tag().is_some() || reference.digest().is_some());
    assert!(reference.name().split('/').all(|part| !matches!(part, "" | "." | "..")));
    let harmless = |c: char| c.is_ascii_alphanumeric() || "./:_-[]".contains(c);
    assert!(reference.name().chars().all(harmless), "{reference}");
});
