//! Real images, made without a network: busybox, and whatever a test puts beside it.

use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// An image as a docker-archive tar.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name and tag.
    pub reference: String,
    /// Where the tar lies.
    pub tar: PathBuf,
}

/// The programs that the busybox image has.
const APPLETS: [&str; 33] = [
    "sh", "sleep", "true", "false", "cat", "echo", "ls", "httpd", "wget", "nc", "id", "env", "stat", "touch", "rm",
    "mkdir", "mount", "ip", "hostname", "ps", "kill", "tail", "head", "grep", "dd", "tar", "date", "seq", "test",
    "readlink", "mv", "nslookup", "timeout",
];

impl Image {
    /// A busybox with a shell, in a tar below `directory`.
    ///
    /// # Panics
    /// When Debian's busybox-static is not installed, or the directory cannot be written.
    #[must_use]
    pub fn busybox(directory: &Path, reference: &str) -> Self {
        Self::busybox_with(directory, reference, &[])
    }

    /// A busybox with further files, as (path, contents).
    ///
    /// # Panics
    /// As [`busybox`](Self::busybox).
    #[must_use]
    pub fn busybox_with(directory: &Path, reference: &str, files: &[(&str, &str)]) -> Self {
        Self::archive(directory, reference, &[Self::busybox_layer(files)])
    }

    /// A busybox whose configuration names directories as volumes.
    ///
    /// # Panics
    /// As [`busybox`](Self::busybox).
    #[must_use]
    pub fn busybox_with_volumes(directory: &Path, reference: &str, volumes: &[&str]) -> Self {
        let volumes: serde_json::Map<_, _> =
            volumes.iter().map(|volume| ((*volume).to_owned(), serde_json::json!({}))).collect();
        let more = serde_json::json!({ "Volumes": volumes });
        Self::archive_with(directory, reference, &[Self::busybox_layer(&[])], &more)
    }

    /// A busybox whose configuration names the user that its programs run as. `/etc/passwd` knows `user`, 1000:1000,
    /// who is in the group `extra`, 2000, too.
    ///
    /// # Panics
    /// As [`busybox`](Self::busybox).
    #[must_use]
    pub fn busybox_of_user(directory: &Path, reference: &str, user: &str) -> Self {
        let more = serde_json::json!({ "User": user });
        Self::archive_with(directory, reference, &[Self::busybox_layer(&[])], &more)
    }

    /// A busybox whose program, when none is given, does nothing until it is killed.
    ///
    /// # Panics
    /// As [`busybox`](Self::busybox).
    #[must_use]
    pub fn pause(directory: &Path, reference: &str) -> Self {
        let more = serde_json::json!({ "Cmd": ["sleep", "1000000"] });
        Self::archive_with(directory, reference, &[Self::busybox_layer(&[])], &more)
    }

    fn busybox_layer(files: &[(&str, &str)]) -> Vec<u8> {
        let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
        let mut layer = tar::Builder::new(Vec::new());
        for folder in ["bin/", "etc/", "tmp/", "root/", "www/"] {
            let mut header = header(tar::EntryType::Directory, if folder == "tmp/" { 0o1777 } else { 0o755 }, 0);
            layer.append_data(&mut header, folder, &b""[..]).expect("writing to memory");
        }
        append(&mut layer, "bin/busybox", 0o755, &busybox);
        for applet in APPLETS {
            let mut header = header(tar::EntryType::Symlink, 0o777, 0);
            layer.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("writing to memory");
        }
        append(&mut layer, "etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n");
        append(&mut layer, "etc/group", 0o644, b"root:x:0:\nuser:x:1000:\nextra:x:2000:user\n");
        append(&mut layer, "www/index.html", 0o644, b"a page from busybox\n");
        for (path, contents) in files {
            append(&mut layer, path, 0o644, contents.as_bytes());
        }
        layer.into_inner().expect("writing to memory")
    }

    /// A layer of these files, as (path, mode, contents).
    ///
    /// # Panics
    /// When a path is too long for a tar.
    #[must_use]
    pub fn layer(files: &[(&str, u32, &str)]) -> Vec<u8> {
        let mut layer = tar::Builder::new(Vec::new());
        for (path, mode, contents) in files {
            append(&mut layer, path, *mode, contents.as_bytes());
        }
        layer.into_inner().expect("writing to memory")
    }

    /// An image of the given uncompressed layers, the lowest first.
    ///
    /// # Panics
    /// When the directory cannot be written.
    #[must_use]
    pub fn archive(directory: &Path, reference: &str, layers: &[Vec<u8>]) -> Self {
        Self::archive_with(directory, reference, layers, &serde_json::json!({}))
    }

    fn archive_with(directory: &Path, reference: &str, layers: &[Vec<u8>], more: &serde_json::Value) -> Self {
        let mut settings = serde_json::json!({ "Env": ["PATH=/bin:/usr/bin:/usr/sbin:/sbin"], "Cmd": ["sh"] });
        for (key, value) in more.as_object().into_iter().flatten() {
            settings[key] = value.clone();
        }
        let diff_ids: Vec<String> =
            layers.iter().map(|layer| format!("sha256:{}", hex::encode(Sha256::digest(layer)))).collect();
        let config = serde_json::to_vec(&serde_json::json!({
            "architecture": "amd64",
            "os": "linux",
            "config": settings,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        }))
        .expect("JSON");
        let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
        let names: Vec<String> = (0..layers.len()).map(|index| format!("{index}/layer.tar")).collect();
        let manifest = serde_json::json!([{ "Config": config_name, "RepoTags": [reference], "Layers": names }]);
        let path = directory.join(format!("{}.tar", reference.replace(['/', ':'], "_")));
        let file = std::fs::File::create(&path).expect("creating an image's tar");
        let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
        append(&mut tar, "manifest.json", 0o644, manifest.to_string().as_bytes());
        append(&mut tar, &config_name, 0o644, &config);
        for (name, layer) in names.iter().zip(layers) {
            append(&mut tar, name, 0o644, layer);
        }
        tar.into_inner().and_then(|mut file| file.flush()).expect("writing an image's tar");
        Self { reference: reference.to_owned(), tar: path }
    }
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    header
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, mode: u32, bytes: &[u8]) {
    let mut header = header(tar::EntryType::Regular, mode, bytes.len());
    tar.append_data(&mut header, path, bytes).expect("adding a file to a tar");
}
