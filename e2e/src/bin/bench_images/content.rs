//! What is pulled: images of this machine's own files, made once and kept below `$XDG_CACHE_HOME/portreeve-e2e`.
//!
//! ```text
//! images-<key>/registry   the storage of a docker-registry with
//!   bench/<form>:whole      eight layers
//!   bench/<form>:next       seven of these, and another eighth
//!   bench/<form>:part-<n>   one layer each, of which no other image has a file
//! images-<key>/about.json what was made: sizes of the layers as they are stored
//! ```
//!
//! The files are a sample of /usr, drawn by the digest of their paths, in the order of their paths: programs, libraries,
//! headers, documentation, as images have them. The key is that of this text: what was made once stays.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use portreeve_e2e::{Enclosure, Peers, Registry, World};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::engines::enclosure;

/// How layers are compressed in the registry.
pub(crate) const FORMS: [&str; 2] = ["gzip", "zstd"];
/// Images that are pulled at once.
pub(crate) const PARTS: usize = 20;

/// Bytes of all files of the image.
const WHOLE_BYTES: u64 = 1_100_000_000;
/// How they are shared out among its layers, the lowest first, in 32ths: a distribution, packages, and what is built on them.
const SHARES: [u64; 8] = [10, 7, 5, 4, 2, 2, 1, 1];
/// Bytes of the files of a layer that takes the place of the eighth.
const NEXT_BYTES: u64 = 40_000_000;
/// Bytes of the files of each image that is pulled beside others.
const PART_BYTES: u64 = 30_000_000;
/// A larger file would be most of a layer.
const LARGEST_FILE: u64 = 64 << 20;

/// The images, ready to be served.
pub(crate) struct Content {
    folder: PathBuf,
    about: Value,
    /// Nobody else measures with them, or makes others, at the same time.
    _lock: Flock<File>,
}

impl Content {
    /// Finds the images, or makes them with the help of a registry and of skopeo.
    pub(crate) fn ensure(peers: &Peers) -> Self {
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home).expect("HOME is set");
        let cache = cache.join("portreeve-e2e");
        std::fs::create_dir_all(&cache).expect("the cache");
        let lock = File::create(cache.join("images.lock")).expect("a lock in the cache");
        let lock = Flock::lock(lock, FlockArg::LockExclusive).expect("waiting for who uses the images now");
        let key = hex::encode(Sha256::digest(include_bytes!("content.rs")));
        let folder = cache.join(format!("images-{}", &key[..16]));
        let about = folder.join("about.json");
        if !about.exists() {
            // Those of earlier versions of this text, and what somebody who was killed has left: the lock is ours.
            for entry in std::fs::read_dir(&cache).expect("the cache").flatten() {
                if entry.file_name().to_string_lossy().starts_with("images-") {
                    std::fs::remove_dir_all(entry.path()).expect("removing older images");
                }
            }
            let made = make(peers, &folder);
            // Last: what has this file is complete.
            std::fs::write(&about, made.to_string()).expect("writing what was made");
        }
        let about = serde_json::from_slice(&std::fs::read(&about).expect("what was made")).expect("JSON");
        Self { folder, about, _lock: lock }
    }

    /// Serves them on `port`.
    pub(crate) fn serve<'w>(&self, world: &'w World, port: u16) -> Registry<'w> {
        Registry::serving(world, port, &self.folder.join("registry"))
    }

    /// Bytes of the layers of an image, as they are stored, the lowest first.
    pub(crate) fn layers(&self, form: &str, tag: &str) -> Vec<u64> {
        let layers = self.about["stored"][form][tag].as_array().expect("an image that was made");
        layers.iter().map(|bytes| bytes.as_u64().expect("a size")).collect()
    }

    /// Files in the large image, and their bytes.
    pub(crate) fn unpacked(&self) -> (u64, u64) {
        let number = |name: &str| self.about[name].as_u64().expect("a number");
        (number("files"), number("bytes"))
    }
}

/// A layer that was written.
struct Layer {
    digest: String,
    size: u64,
}

fn make(peers: &Peers, folder: &Path) -> Value {
    println!("making the images, once: some minutes");
    let (layout, storage) = (folder.join("layout"), folder.join("registry"));
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("a layout");
    std::fs::create_dir_all(&storage).expect("the registry's directory");
    let mut files = drawn();
    let mut take = |bytes: u64| {
        let mut taken: Vec<(PathBuf, u64)> = files.drain(..first(&files, bytes)).collect();
        assert!(taken.iter().map(|(_, size)| size).sum::<u64>() >= bytes, "/usr is too small for images");
        taken.sort();
        taken
    };
    let mut whole = take(WHOLE_BYTES);
    let next = take(NEXT_BYTES);
    let parts: Vec<_> = (0..PARTS).map(|_| take(PART_BYTES)).collect();
    let (count, bytes) = (whole.len(), whole.iter().map(|(_, size)| size).sum::<u64>());

    let mut layers = Vec::new();
    for share in SHARES {
        // Rounding leaves something to the last one.
        let last = layers.len() + 1 == SHARES.len();
        let end = if last { whole.len() } else { first(&whole, bytes * share / SHARES.iter().sum::<u64>()) };
        layers.push(write_layer(&blobs, &whole.drain(..end).collect::<Vec<_>>()));
    }
    let mut images = vec![("whole".to_owned(), write_image(&blobs, &layers))];
    layers.pop();
    layers.push(write_layer(&blobs, &next));
    images.push(("next".to_owned(), write_image(&blobs, &layers)));
    for (number, part) in parts.iter().enumerate() {
        images.push((format!("part-{number}"), write_image(&blobs, &[write_layer(&blobs, part)])));
    }
    let manifests: Vec<Value> = images
        .iter()
        .map(|(tag, manifest)| {
            json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest.digest,
                    "size": manifest.size, "annotations": { "org.opencontainers.image.ref.name": tag } })
        })
        .collect();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a layout");
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    std::fs::write(layout.join("index.json"), index.to_string()).expect("a layout");

    let enclosure = enclosure(peers);
    let registry = Registry::serving(enclosure.world(), 5000, &storage);
    let mut stored = json!({});
    for form in FORMS {
        // It would take blobs that it remembers in the other form.
        enclosure.call(&["mount", "-t", "tmpfs", "none", "/var/lib"]).ok();
        for (tag, _) in &images {
            let name = format!("{}/bench/{form}:{tag}", registry.host());
            let mut copy = enclosure.command("skopeo");
            copy.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--format", "oci"]);
            copy.args(["--dest-compress-format", form]).arg(format!("oci:{}:{tag}", layout.display()));
            let output = copy.arg(format!("docker://{name}")).output().expect("skopeo is installed");
            assert!(output.status.success(), "pushing {name}: {}", String::from_utf8_lossy(&output.stderr));
            stored[form][tag] = layers_of(&enclosure, &registry, form, tag);
        }
    }
    drop(registry);
    std::fs::remove_dir_all(&layout).expect("removing the layout");
    json!({ "files": count, "bytes": bytes, "stored": stored })
}

/// How many of the first files have so many bytes together.
fn first(files: &[(PathBuf, u64)], bytes: u64) -> usize {
    let sums = files.iter().scan(0, |sum, (_, size)| Some(std::mem::replace(sum, *sum + size)));
    sums.take_while(|before| *before < bytes).count()
}

/// The sizes of an image's layers as the registry has them; they must have the form that was asked for.
fn layers_of(enclosure: &Enclosure, registry: &Registry<'_>, form: &str, tag: &str) -> Value {
    let url = format!("http://{}/v2/bench/{form}/manifests/{tag}", registry.host());
    let script = format!("busybox wget -q -O - --header 'Accept: application/vnd.oci.image.manifest.v1+json' '{url}'");
    let manifest: Value = serde_json::from_str(&enclosure.world().sh(&script)).expect("a manifest");
    let layers = manifest["layers"].as_array().expect("its layers");
    for layer in layers {
        let kind = layer["mediaType"].as_str().expect("a media type");
        assert!(kind.ends_with(form), "{url} has a layer of {kind}");
    }
    layers.iter().map(|layer| layer["size"].clone()).collect()
}

/// The regular files of /usr in an order that mixes them, with their sizes. Files of several names are left out.
fn drawn() -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from("/usr")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            // What has gone since it was listed is not drawn.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if metadata.is_file() && metadata.nlink() == 1 && metadata.len() <= LARGEST_FILE {
                files.push((entry.path(), metadata.len()));
            }
        }
    }
    files.sort_by_cached_key(|(path, _)| Sha256::digest(path.as_os_str().as_encoded_bytes()).to_vec());
    files
}

/// Writes the files and the directories above them as one layer.
fn write_layer(blobs: &Path, files: &[(PathBuf, u64)]) -> Layer {
    let unfinished = blobs.join("unfinished");
    let file = BufWriter::with_capacity(1 << 20, File::create(&unfinished).expect("a layer's file"));
    let mut tar = tar::Builder::new(Summed { inner: file, sum: Sha256::new(), size: 0 });
    let mut above: HashMap<PathBuf, ()> = HashMap::new();
    for (path, size) in files {
        let folders: Vec<&Path> = path.ancestors().skip(1).take_while(|folder| folder.parent().is_some()).collect();
        for folder in folders.into_iter().rev() {
            if above.insert(folder.to_owned(), ()).is_none() {
                let metadata = std::fs::metadata(folder).expect("a directory of /usr");
                let mut header = header(tar::EntryType::Directory, &metadata, 0);
                tar.append_data(&mut header, named(folder), &b""[..]).expect("writing a layer");
            }
        }
        let source = File::open(path).expect("a file of /usr");
        let mut header = header(tar::EntryType::Regular, &source.metadata().expect("a file of /usr"), *size);
        tar.append_data(&mut header, named(path), Exactly { source, at: 0, size: *size }).expect("writing a layer");
    }
    let summed = tar.into_inner().expect("writing a layer");
    summed.inner.into_inner().expect("writing a layer");
    let digest = hex::encode(summed.sum.finalize());
    std::fs::rename(&unfinished, blobs.join(&digest)).expect("naming a layer");
    Layer { digest: format!("sha256:{digest}"), size: summed.size }
}

fn named(path: &Path) -> &Path {
    path.strip_prefix("/").expect("an absolute path")
}

fn header(kind: tar::EntryType, metadata: &std::fs::Metadata, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header
}

/// Writes the configuration and the manifest of an image of these layers.
fn write_image(blobs: &Path, layers: &[Layer]) -> Layer {
    let diff_ids: Vec<&String> = layers.iter().map(|layer| &layer.digest).collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["/usr/bin/true"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = write_document(blobs, &config);
    let descriptor = |kind: &str, layer: &Layer| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": layer.digest, "size": layer.size });
    let layers: Vec<Value> = layers.iter().map(|layer| descriptor("layer.v1.tar", layer)).collect();
    write_document(
        blobs,
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config),
            "layers": layers,
        }),
    )
}

fn write_document(blobs: &Path, document: &Value) -> Layer {
    let text = document.to_string();
    let digest = hex::encode(Sha256::digest(&text));
    std::fs::write(blobs.join(&digest), &text).expect("writing a document");
    Layer { digest: format!("sha256:{digest}"), size: text.len() as u64 }
}

/// A file's first bytes, and zeros for those that have gone since it was measured.
struct Exactly {
    source: File,
    at: u64,
    size: u64,
}

impl std::io::Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.source.read_at(&mut buffer[..left], self.at)?;
        let read = if read == 0 {
            buffer[..left].fill(0);
            left
        } else {
            read
        };
        self.at += read as u64;
        Ok(read)
    }
}

/// Passes bytes on and takes their digest.
struct Summed<W> {
    inner: W,
    sum: Sha256,
    size: u64,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
