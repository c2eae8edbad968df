//! Manifests from files, directories and standard input, as the agent's verbs take them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use nix::libc;
use portreeve_api::v1alpha1::ManifestFile;
use portreeve_manifests::text_of;
use portreeve_node::source::manifests_below;

/// The largest manifest, as the agent has it.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// All manifests of one request together.
const MAX_TOTAL_BYTES: usize = 12 * 1024 * 1024;

/// A manifest that a path names.
#[derive(Debug)]
pub(crate) struct Named {
    /// `-` is standard input.
    pub(crate) path: PathBuf,
    in_directory: bool,
}

/// What a path names: itself, or every manifest in it when it is a directory.
///
/// # Errors
/// A directory that cannot be read; an address.
pub(crate) fn named(path: &Path) -> anyhow::Result<Vec<Named>> {
    let text = path.to_string_lossy();
    if text.starts_with("http://") || text.starts_with("https://") {
        bail!("{text} is not fetched: give files, or pipe it in, as in `curl -fsSL {text} | portreeve ... -`");
    }
    if path == Path::new("-") || !path.is_dir() {
        return Ok(vec![Named { path: path.to_owned(), in_directory: false }]);
    }
    let (below, unreadable) = manifests_below(path).with_context(|| format!("reading {}", path.display()))?;
    if let Some((folder, reason)) = unreadable.first_key_value() {
        bail!("reading {}: {reason}", folder.display());
    }
    Ok(below.into_iter().map(|path| Named { path, in_directory: true }).collect())
}

impl Named {
    pub(crate) fn is_stdin(&self) -> bool {
        !self.in_directory && self.path == Path::new("-")
    }

    /// Its content; of what is larger than any manifest, as much as shows that it is.
    ///
    /// # Errors
    /// What cannot be read, and what was found in a directory and is no file.
    pub(crate) fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        let path = self.path.display();
        let mut bytes = Vec::new();
        let read = if self.is_stdin() {
            io::stdin().lock().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)
        } else {
            // Who names a pipe waits for its writer; nobody named what merely lies in a directory.
            let flags = if self.in_directory { libc::O_NONBLOCK | libc::O_NOCTTY } else { 0 };
            let opened = File::options().read(true).custom_flags(flags).open(&self.path);
            let file = opened.with_context(|| format!("opening {path}"))?;
            if self.in_directory && !file.metadata().with_context(|| format!("reading {path}"))?.is_file() {
                bail!("reading {path}: it is no regular file (a pipe or a device?); move it out of the directory");
            }
            file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)
        };
        read.with_context(|| format!("reading {path}"))?;
        Ok(bytes)
    }
}

/// Reads what the paths name; a directory means every manifest in it, `-` standard input.
///
/// # Errors
/// What cannot be read, or is larger than its bound.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<ManifestFile>> {
    let mut all = Vec::new();
    for path in paths {
        all.extend(named(path)?);
    }
    let mut seen = BTreeSet::new();
    let mut files = Vec::new();
    let mut total = 0;
    for one in all {
        // The agent says file:line in the user's own words, and knows its files by absolute paths.
        let path = if one.is_stdin() { one.path.clone() } else { std::path::absolute(&one.path)? };
        if !seen.insert(path.clone()) {
            continue;
        }
        let bytes = one.bytes()?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
            bail!("{} is larger than {} MiB", one.path.display(), MAX_FILE_BYTES >> 20);
        }
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

    #[test]
    fn a_pipe_in_a_directory_is_named_instead_of_waited_for() {
        let root = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&root.path().join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = read(&[root.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("pipe.yaml") && error.contains("no regular file"), "{error}");
    }

    #[test]
    fn what_has_no_end_is_read_to_the_bound_alone() {
        let endless = &named(Path::new("/dev/zero")).unwrap()[0];
        assert_eq!(endless.bytes().unwrap().len() as u64, MAX_FILE_BYTES + 1);
        let error = read(&["/dev/zero".into()]).unwrap_err().to_string();
        assert!(error.contains("/dev/zero is larger than 4 MiB"), "{error}");
    }

    #[test]
    fn an_address_is_no_file() {
        let error = read(&["https://example.com/a.yaml".into()]).unwrap_err().to_string();
        assert!(error.contains("is not fetched"), "{error}");
    }
}
