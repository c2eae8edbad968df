//! `--version`.

use portreeve_oci::features::SPECIFICATION;

/// What it was built from.
pub(super) fn commit() -> &'static str {
    option_env!("PORTREEVE_COMMIT").unwrap_or("unknown")
}

/// Three lines: containerd reads the version, the commit and the specification from them.
pub(super) fn text() -> String {
    let (version, commit) = (env!("CARGO_PKG_VERSION"), commit());
    format!("portreeve-runtime version {version}\ncommit: {commit}\nspec: {SPECIFICATION}\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn version_is_three_lines() {
        let text = super::text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(matches!(lines[..], [version, commit, spec]
            if version.starts_with("portreeve-runtime version 0.") && commit.starts_with("commit: ") && spec == "spec: 1.3.0"));
    }
}
