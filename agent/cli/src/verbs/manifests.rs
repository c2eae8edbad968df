//! Manifests from files, directories and standard input, as the agent's verbs take them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use portreeve_api::v1alpha1::ManifestFile;
use portreeve_manifests::text_of;
use portreeve_node::source::manifests_below;

/// The largest manifest.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// All manifests of one request together.
const MAX_TOTAL_BYTES: usize = 12 * 1024 * 1024;

/// Reads what the paths name; a directory means every manifest in it, `-` standard input.
///
/// # Errors
/// What cannot be read, or is larger than its bound.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<ManifestFile>> {
    let mut names = Vec::new();
    for path in paths {
        if path.is_dir() {
            let (below, unreadable) = manifests_below(path).with_context(|| format!("reading {}", path.display()))?;
            if let Some((folder, reason)) = unreadable.first_key_value() {
                bail!("reading {}: {reason}", folder.display());
            }
            names.extend(below);
        } else {
            names.push(path.clone());
        }
    }
    let mut seen = BTreeSet::new();
    let mut files = Vec::new();
    let mut total = 0;
    for name in names {
        let is_stdin = name == Path::new("-");
        // The agent says file:line in the user's own words, and knows its files by absolute paths.
        let path = if is_stdin { name.clone() } else { std::path::absolute(&name)? };
        if !seen.insert(path.clone()) {
            continue;
        }
        let bytes = if is_stdin {
            bounded(io::stdin().lock(), &name)?
        } else {
            bounded(File::open(&name).with_context(|| format!("opening {}", name.display()))?, &name)?
        };
        total += bytes.len();
        if total > MAX_TOTAL_BYTES {
            bail!("the manifests are larger than {} MiB together: give fewer at a time", MAX_TOTAL_BYTES >> 20);
        }
        // In the words of the agent, where it would find the same.
        let content =
            text_of(&path, &bytes).map_err(|problem| anyhow!("1 problem(s) in the manifests\n  {problem}"))?;
        files.push(ManifestFile { path, content });
    }
    Ok(files)
}

fn bounded(from: impl Read, name: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = from.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    let read = read.with_context(|| format!("reading {}", name.display()))?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        bail!("{} is larger than {} MiB", name.display(), MAX_FILE_BYTES >> 20);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_means_its_manifests_in_order_without_hidden_ones() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("sub")).unwrap();
        std::fs::create_dir_all(root.path().join(".git")).unwrap();
        for name in ["b.yaml", "a.yml", "sub/c.json", ".hidden.yaml", ".git/d.yaml", "notes.txt", "e.yaml~"] {
            std::fs::write(root.path().join(name), name).unwrap();
        }
        let files = read(&[root.path().to_owned()]).unwrap();
        let contents: Vec<_> = files.iter().map(|file| file.content.as_str()).collect();
        assert_eq!(contents, ["a.yml", "b.yaml", "sub/c.json"]);
    }

    #[test]
    fn a_directory_is_read_as_the_agent_reads_it() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir_all(at("m/.trees/one")).unwrap();
        std::fs::write(at("m/.trees/one/a.yaml"), "a").unwrap();
        std::os::unix::fs::symlink(".trees/one", at("m/current")).unwrap();
        let files = read(&[at("m")]).unwrap();
        assert_eq!(files.iter().map(|file| &*file.path).collect::<Vec<_>>(), [at("m/current/a.yaml")]);
        std::os::unix::fs::symlink("/", at("m/out")).unwrap();
        let error = read(&[at("m")]).unwrap_err().to_string();
        assert!(error.contains("m/out") && error.contains("outside"), "{error}");
    }

    #[test]
    fn a_file_is_decoded_as_the_agent_decodes_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.yaml");
        let text = "kind: é\n";
        let units = |bytes: fn(u16) -> [u8; 2]| -> Vec<u8> { text.encode_utf16().flat_map(bytes).collect() };
        for encoded in [
            text.as_bytes().to_vec(),
            [b"\xef\xbb\xbf", text.as_bytes()].concat(),
            [b"\xff\xfe".to_vec(), units(u16::to_le_bytes)].concat(),
            [b"\xfe\xff".to_vec(), units(u16::to_be_bytes)].concat(),
        ] {
            std::fs::write(&path, &encoded).unwrap();
            assert_eq!(read(std::slice::from_ref(&path)).unwrap()[0].content, text, "{encoded:?}");
        }
        std::fs::write(&path, b"kind: Pod\nname: \xe9\n").unwrap();
        let told = read(std::slice::from_ref(&path)).unwrap_err().to_string();
        let known = portreeve_manifests::parse_file(&path, &std::fs::read(&path).unwrap());
        assert!(told.contains(&known.problems[0].to_string()), "{told}");
        assert!(told.contains("a.yaml:2:7: error: the text is not UTF-8"), "{told}");
    }

    #[test]
    fn a_file_that_is_named_twice_is_read_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.yaml");
        std::fs::write(&path, "a").unwrap();
        let files = read(&[root.path().to_owned(), path, root.path().join("./a.yaml")]).unwrap();
        assert_eq!(files.len(), 1, "{files:?}");
    }

    #[test]
    fn a_file_beyond_the_bound_is_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("big.yaml");
        File::create(&path).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(read(&[path]).unwrap_err().to_string().contains("big.yaml"));
    }
}
