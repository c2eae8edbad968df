//! The demo's image: this very executable and the libraries that it needs, as a tar that
//! `docker load` and `portreeve image load` read. Nothing is fetched from anywhere.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

/// The name under which the image is loaded.
pub(super) const REFERENCE: &str = "portreeve.local/demo:latest";

/// Where the executable lies in the image.
pub(super) const EXECUTABLE: &str = "/portreeve";

/// Writes the image to `path` as a docker-archive.
///
/// # Errors
/// When our executable or one of its libraries cannot be read, or the tar not written.
pub(super) fn write(path: &Path) -> anyhow::Result<()> {
    let layer = layer()?;
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&layer)));
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
        "os": "linux",
        "config": {
            "Entrypoint": [EXECUTABLE],
            "Env": [format!("LD_LIBRARY_PATH={LIBRARIES}")],
            "ExposedPorts": { "8080/tcp": {} },
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    }))?;
    let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
    let manifest = serde_json::to_vec(&serde_json::json!([{
        "Config": config_name, "RepoTags": [REFERENCE], "Layers": ["layer.tar"],
    }]))?;
    let file = std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
    for (name, bytes) in [("manifest.json", &manifest), (config_name.as_str(), &config), ("layer.tar", &layer)] {
        append(&mut tar, name, 0o644, bytes)?;
    }
    tar.into_inner()?.flush().with_context(|| format!("writing {}", path.display()))
}

/// Where the libraries lie in the image.
const LIBRARIES: &str = "/lib/demo";

fn layer() -> anyhow::Result<Vec<u8>> {
    let executable = std::fs::read("/proc/self/exe").context("reading our own executable")?;
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, EXECUTABLE.trim_start_matches('/'), 0o755, &executable)?;
    for library in mapped_libraries()? {
        let bytes = std::fs::read(&library).with_context(|| format!("reading {}", library.display()))?;
        let name = library.file_name().unwrap_or_default().to_string_lossy();
        append(&mut tar, &format!("{}/{name}", LIBRARIES.trim_start_matches('/')), 0o755, &bytes)?;
    }
    if let Some(loader) = loader(&executable)? {
        // The kernel wants the loader at the path that the executable names.
        let bytes = std::fs::read(&loader).with_context(|| format!("reading {loader}"))?;
        append(&mut tar, loader.trim_start_matches('/'), 0o755, &bytes)?;
    }
    let passwd = b"root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    append(&mut tar, "etc/passwd", 0o644, passwd)?;
    Ok(tar.into_inner()?)
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(bytes.len())?);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_cksum();
    tar.append_data(&mut header, name, bytes).with_context(|| format!("adding {name} to the demo's image"))
}

/// The shared libraries that this process runs with: what the kernel has mapped is what it needs.
fn mapped_libraries() -> anyhow::Result<BTreeSet<PathBuf>> {
    let maps = std::fs::read_to_string("/proc/self/maps").context("reading /proc/self/maps")?;
    Ok(maps
        .lines()
        .filter_map(|line| line.find('/').and_then(|at| line.get(at..)))
        .map(Path::new)
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so")))
        .map(Path::to_owned)
        .collect())
}

/// The program interpreter that a 64-bit ELF file names (`PT_INTERP`, elf(5)); `None` when it is static.
fn loader(elf: &[u8]) -> anyhow::Result<Option<String>> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| -> anyhow::Result<u64> {
        let field = elf.get(at..at + bytes).context("our own executable ends within its headers")?;
        Ok(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("our own executable is not a little-endian 64-bit ELF file");
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let header = usize::try_from(table + index * size)?;
        if number(header, 4)? == PT_INTERP {
            let start = usize::try_from(number(header + 8, 8)?)?;
            let length = usize::try_from(number(header + 32, 8)?)?;
            let name = elf.get(start..start + length).context("our own executable's loader lies outside it")?;
            return Ok(Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_loader_and_libraries_are_found() {
        let executable = std::fs::read("/proc/self/exe").unwrap();
        let loader = loader(&executable).unwrap().unwrap();
        assert!(Path::new(&loader).exists(), "{loader}");
        let libraries = mapped_libraries().unwrap();
        assert!(libraries.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{libraries:?}");
    }
}
