//! What the chart installs is what the code says, and small enough for every way to install it.

#![allow(clippy::unwrap_used)]

use std::path::Path;

/// `kubectl apply` keeps a copy of what it applied in an annotation, and annotations end here.
const MOST_BYTES: usize = 256 << 10;

#[test]
fn the_files_of_the_chart_are_fresh() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/crds");
    let files = portreeve_crds::files();
    for (name, text) in &files {
        assert!(text.len() < MOST_BYTES / 4, "{name}: {} bytes", text.len());
        let kept = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(
            kept == *text,
            "helm/crds/{name} is stale: cargo run -p portreeve-crds --bin crdgen -- helm/crds writes it again"
        );
    }
    let kept: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(kept.len(), files.len(), "{kept:?}");
}

#[test]
fn a_definition_describes_every_field_but_those_of_others() {
    for (name, text) in portreeve_crds::files() {
        assert_eq!(
            text.matches("x-kubernetes-preserve-unknown-fields").count(),
            if name.starts_with("nodew") { 3 } else { 0 }
        );
        for word in ["categories", "shortNames", "additionalPrinterColumns", "subresources"] {
            assert!(text.contains(word), "{name}: {word}");
        }
    }
}
