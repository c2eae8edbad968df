//! Errors for a person.

/// An error and everything behind it, on one line: the words of every crate above the one that failed.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
