//! The demo's image: this very executable, as a tar that `docker load` and `portreeve image load`
//! read. Nothing is fetched from anywhere.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

/// The name under which the image is loaded.
pub(super) const REFERENCE: &str = "portreeve.local/demo:latest";

/// Where the executable lies in the image.
pub(super) const EXECUTABLE: &str = "/portreeve";

/// Writes the image to `path` as a docker-archive.
///
/// # Errors
/// When our executable cannot be read or needs libraries, or the tar cannot be written.
pub(super) fn write(path: &Path) -> anyhow::Result<()> {
    let layer = layer()?;
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&layer)));
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
        "os": "linux",
        "config": {
            "Entrypoint": [EXECUTABLE],
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

fn layer() -> anyhow::Result<Vec<u8>> {
    if !cfg!(target_feature = "crt-static") {
        bail!(
            "the demo's image holds nothing but this program, which was linked to libraries: build it without \
             RUSTFLAGS, or with `-C target-feature=+crt-static` among them"
        );
    }
    let executable = std::fs::read("/proc/self/exe").context("reading our own executable")?;
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, EXECUTABLE.trim_start_matches('/'), 0o755, &executable)?;
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
