//! Which file names are manifests.

use std::path::Path;

/// Whether a file of this name is read: `*.yaml`, `*.yml`, `*.json`, and neither hidden nor an
/// editor's backup or scratch file.
pub(crate) fn is_manifest_name(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    if name.starts_with(['.', '#', '~']) || name.ends_with(['~', '#']) {
        return false;
    }
    let Some((stem, extension)) = name.rsplit_once('.') else {
        return false;
    };
    // `a.yaml.bak` fails here by its extension; `a.bak.yaml` is a name that someone chose.
    !stem.is_empty() && matches!(extension, "yaml" | "yml" | "json")
}

/// Whether a folder of this name is entered.
pub(crate) fn is_visible(name: &std::ffi::OsStr) -> bool {
    !name.as_encoded_bytes().starts_with(b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_manifests_are_read_and_never_what_an_editor_leaves() {
        for (name, read) in [
            ("web.yaml", true),
            ("web.yml", true),
            ("web.json", true),
            ("web.v2.yaml", true),
            ("WEB.YAML", false),
            ("web.yaml~", false),
            (".web.yaml", false),
            (".web.yaml.swp", false),
            ("web.yaml.swp", false),
            ("web.yaml.bak", false),
            ("web.yaml.orig", false),
            ("web.yaml.tmp", false),
            ("web.yaml.1", false),
            ("#web.yaml#", false),
            (".#web.yaml", false),
            ("~web.yaml", false),
            ("4913", false),
            (".yaml", false),
            ("README.md", false),
            ("web", false),
        ] {
            assert_eq!(is_manifest_name(Path::new(name)), read, "{name}");
        }
    }
}
