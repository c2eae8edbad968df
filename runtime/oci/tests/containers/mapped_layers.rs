//! Tests that need what not every kernel can. The engine's tests use this very file.

/// Whether layers cannot be id-mapped here, as `doctor` says it.
pub(crate) fn skipped_without_mapped_layers(test: &str) -> bool {
    let facts = portreeve_oci::kernel::survey();
    let lacking = facts
        .iter()
        .find(|fact| fact.name == "user namespaces" && fact.verdict != portreeve_oci::kernel::Verdict::Present);
    if let Some(advice) = lacking.and_then(|fact| fact.advice.as_ref()) {
        eprintln!("SKIPPED {test}: {advice}");
    }
    lacking.is_some()
}
