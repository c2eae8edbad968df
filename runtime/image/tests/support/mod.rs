//! Real registries, images made by hand, and namespaces of their own for tests that mount.

#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing, missing_docs, unreachable_pub)]

pub mod facts;
pub mod held;
pub mod parts;
pub mod podman;
pub mod scripted;
pub mod signing;

use std::{
    fs,
    io::Write,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use portreeve_image::{Config, Digest, ImageRef, Store};
use tempfile::TempDir;

/// User `me`, password `s3cret`.
const HTPASSWD: &str = "me:$2b$04$3s/5uFUohbaNi0n9ITBNV.g5pKd9xs3BTNPXSEEoYZOkEkmlAhmWy";

/// Debian's `docker-registry` on a free port of 127.0.0.1, gone with this value.
pub struct Registry {
    pub port: u16,
    child: Child,
    dir: TempDir,
}

impl Registry {
    pub fn start() -> Self {
        Self::launch(false, None)
    }

    pub fn with_login() -> Self {
        Self::launch(true, None)
    }

    pub fn with_tls(certificate: &Path, key: &Path) -> Self {
        Self::launch(false, Some((certificate, key, None)))
    }

    /// One that speaks only to those whose certificate this authority signed.
    pub fn with_clients(certificate: &Path, key: &Path, authority: &Path) -> Self {
        Self::launch(false, Some((certificate, key, Some(authority))))
    }

    fn launch(login: bool, tls: Option<(&Path, &Path, Option<&Path>)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let storage = dir.path().join("storage");
        let mut config = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: false}}, level: info}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http:\n  addr: '{}:{port}'\n",
            storage.display(),
            // A test that needs a real name or address uses one of this machine; the rest stays local.
            if tls.is_some() { "0.0.0.0" } else { "127.0.0.1" },
        );
        if let Some((certificate, key, authority)) = tls {
            let clients = authority.map(|file| format!(", clientcas: [{}]", file.display())).unwrap_or_default();
            let (certificate, key) = (certificate.display(), key.display());
            config.push_str(&format!("  tls: {{certificate: {certificate}, key: {key}{clients}}}\n"));
        }
        if login {
            let file = dir.path().join("htpasswd");
            fs::write(&file, HTPASSWD).unwrap();
            config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display()));
        }
        let path = dir.path().join("config.yml");
        fs::write(&path, config).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("docker-registry must be installed");
        let this = Self { port, child, dir };
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "registry did not start: {}", this.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        this
    }

    pub fn reference(&self, name: &str) -> ImageRef {
        format!("127.0.0.1:{}/{name}", self.port).parse().unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// How often a blob was sent.
    pub fn downloads(&self, digest: &Digest) -> usize {
        let line = format!("blobs/{digest} HTTP");
        self.log().lines().filter(|l| l.contains("\"GET ") && l.contains(&line)).count()
    }

    /// Where the registry keeps a blob's bytes.
    pub fn blob_file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.path().join("storage/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// Pushes a layout with skopeo; `extra` are skopeo's own arguments.
    pub fn push(&self, layout: &Path, name: &str, extra: &[&str]) {
        let to = format!("docker://127.0.0.1:{}/{name}", self.port);
        let mut args = vec!["copy", "--dest-tls-verify=false"];
        args.extend(extra);
        skopeo(&[&args[..], &[&format!("oci:{}:x", layout.display()), &to]].concat());
    }
}

/// Signs certificates, by openssl.
pub struct Authority {
    dir: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap() };
        let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem"];
        let who = ["-days", "2", "-subj", "/CN=test ca", "-addext", "basicConstraints=critical,CA:TRUE"];
        this.openssl(&[&request[..], &who].concat());
        this
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes `name.pem` and `name.key`, good for what the extensions say.
    pub fn issue(&self, name: &str, extensions: &str) {
        let (key, request, certificate) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        fs::write(self.file("ext"), extensions).unwrap();
        let new = ["req", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &request, "-subj", "/CN=localhost"];
        self.openssl(&new);
        let sign = ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        self.openssl(&[&sign[..], &["-days", "2", "-extfile", "ext", "-out", &certificate]].concat());
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn skopeo(args: &[&str]) {
    let output = Command::new("skopeo").arg("--insecure-policy").args(args).output().expect("skopeo must be installed");
    assert!(output.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

pub fn store(root: &Path) -> Store {
    Store::open(Config::new(root)).unwrap()
}

/// How a layer is packed.
#[derive(Clone, Copy, PartialEq)]
pub enum Pack {
    Plain,
    Gzip,
    Zstd,
}

/// A tar under construction.
pub struct Tar(pub tar::Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(size);
        header
    }

    pub fn file(mut self, path: &str, content: &[u8]) -> Self {
        let header = Self::header(tar::EntryType::Regular, 0o644, content.len() as u64);
        self.raw(header, path.as_bytes(), b"", content);
        self
    }

    pub fn dir(mut self, path: &str, mode: u32) -> Self {
        let header = Self::header(tar::EntryType::Directory, mode, 0);
        self.raw(header, path.as_bytes(), b"", b"");
        self
    }

    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        let header = Self::header(tar::EntryType::Symlink, 0o777, 0);
        self.raw(header, path.as_bytes(), target.as_bytes(), b"");
        self
    }

    pub fn hardlink(mut self, path: &str, target: &str) -> Self {
        let header = Self::header(tar::EntryType::Link, 0o644, 0);
        self.raw(header, path.as_bytes(), target.as_bytes(), b"");
        self
    }

    /// Puts names into the header as they are: the crate's own setters refuse what attacks need.
    pub fn raw(&mut self, mut header: tar::Header, path: &[u8], link: &[u8], content: &[u8]) {
        for (kind, text) in [(b'L', path), (b'K', link)] {
            if text.len() > 100 {
                let mut long = Self::header(tar::EntryType::new(kind), 0, text.len() as u64 + 1);
                long.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
                long.set_cksum();
                self.0.append(&long, &[text, b"\0"].concat()[..]).unwrap();
            }
        }
        let old = header.as_old_mut();
        let (path, link) = (&path[..path.len().min(100)], &link[..link.len().min(100)]);
        old.name[..path.len()].copy_from_slice(path);
        old.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
    }

    pub fn pax(&mut self, records: &[(&str, &[u8])]) {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            write!(text, "{length} {key}=").unwrap();
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        let header = Self::header(tar::EntryType::XHeader, 0o644, text.len() as u64);
        self.raw(header, b"PaxHeaders/x", b"", &text);
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// An OCI layout directory with one image (tag `x`), made by hand.
pub struct Layout {
    pub dir: TempDir,
    pub config: Digest,
    pub manifest: Digest,
    pub layers: Vec<Digest>,
    pub diff_ids: Vec<Digest>,
}

pub fn pack(tar: &[u8], pack: Pack) -> Vec<u8> {
    match pack {
        Pack::Plain => tar.to_vec(),
        Pack::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        Pack::Zstd => zstd::encode_all(tar, 1).unwrap(),
    }
}

pub fn config_json(diff_ids: &[Digest], architecture: &str, salt: &str) -> String {
    serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "created": "2020-01-02T03:04:05Z",
        "config": {"Env": ["PATH=/bin", format!("SALT={salt}")], "Cmd": ["/bin/sh"], "WorkingDir": "/work",
                   "StopSignal": "SIGINT", "User": "7:8", "Volumes": {"/vol": {}}, "Labels": {"a": "b"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
}

impl Layout {
    pub fn new(tars: &[Vec<u8>], how: Pack) -> Self {
        Self::salted(tars, how, "")
    }

    pub fn salted(tars: &[Vec<u8>], how: Pack, salt: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let put = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            fs::write(dir.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
            digest
        };
        let suffix = match how {
            Pack::Plain => "",
            Pack::Gzip => "+gzip",
            Pack::Zstd => "+zstd",
        };
        let diff_ids: Vec<Digest> = tars.iter().map(|t| Digest::of(t)).collect();
        let packed: Vec<Vec<u8>> = tars.iter().map(|t| pack(t, how)).collect();
        let layers: Vec<Digest> = packed.iter().map(|p| put(p)).collect();
        let config_text = config_json(&diff_ids, arch(), salt);
        let config = put(config_text.as_bytes());
        let manifest_text = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": config, "size": config_text.len()},
            "layers": packed.iter().map(|p| serde_json::json!({
                "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
                "digest": Digest::of(p), "size": p.len(),
            })).collect::<Vec<_>>(),
        })
        .to_string();
        let manifest = put(manifest_text.as_bytes());
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest,
                           "size": manifest_text.len(),
                           "annotations": {"org.opencontainers.image.ref.name": "x"}}],
        });
        fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
        Self { dir, config, manifest, layers, diff_ids }
    }
}

impl Layout {
    /// All of it as a tar.
    pub fn archive(&self) -> std::io::Cursor<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_dir_all(".", self.dir.path()).unwrap();
        std::io::Cursor::new(tar.into_inner().unwrap())
    }
}

pub fn arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Two small layers: the second changes, deletes and hides things of the first.
pub fn two_layers() -> Vec<Vec<u8>> {
    let lower = Tar::new()
        .dir("./", 0o755)
        .dir("etc/", 0o755)
        .file("etc/kept", b"kept")
        .file("etc/deleted", b"deleted")
        .dir("tmp/", 0o1777)
        .dir("opaque/", 0o755)
        .file("opaque/old", b"old")
        .file("big", &vec![7; 300_000])
        .bytes();
    let upper = Tar::new()
        .file("etc/.wh.deleted", b"")
        .dir("opaque/", 0o750)
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"new")
        .file("tmp/in", b"x")
        .file("etc/added", b"added")
        .bytes();
    vec![lower, upper]
}

/// Nothing is left in the staging directory, but for an index that is being written just now.
pub fn nothing_unfinished(root: &Path) {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let left: Vec<_> = fs::read_dir(root.join("staging")).unwrap().map(|entry| entry.unwrap().path()).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "left unfinished: {left:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until blobs that are kept until their layers are on the disk are gone.
pub fn synced(root: &Path) {
    let end = Instant::now() + Duration::from_secs(20);
    while fs::read_dir(root.join("unsynced")).unwrap().next().is_some() {
        assert!(Instant::now() < end, "nothing was put on the disk");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a test on a thread with a mount namespace of its own; whatever it mounts goes with it.
/// Says so, and does not run it, without the privilege.
pub fn in_mount_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(e) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS) {
            let _ = writeln!(std::io::stderr(), "SKIPPED: no mount namespace of our own ({e}); run as root");
            return;
        }
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Mounts an overlay at `target`, in the current mount namespace.
pub fn mount_overlay(snapshot: &portreeve_image::Snapshot, target: &Path) {
    let lower: Vec<String> = snapshot.lower.iter().map(|p| p.display().to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        snapshot.upper.display(),
        snapshot.work.display()
    );
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str())).unwrap();
}

/// Every path below `root` with its kind and content, as text.
pub fn tree(root: &Path) -> Vec<String> {
    fn walk(root: &Path, path: &Path, found: &mut Vec<String>) {
        let mut entries: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for entry in entries {
            let name = entry.strip_prefix(root).unwrap().display().to_string();
            let metadata = fs::symlink_metadata(&entry).unwrap();
            if metadata.is_dir() {
                found.push(format!("{name}/"));
                walk(root, &entry, found);
            } else if metadata.is_symlink() {
                found.push(format!("{name} -> {}", fs::read_link(&entry).unwrap().display()));
            } else if metadata.is_file() {
                let content = fs::read(&entry).unwrap();
                match content.len() {
                    0..100 => found.push(format!("{name} = {}", String::from_utf8_lossy(&content))),
                    length => found.push(format!("{name} ({length})")),
                }
            } else {
                found.push(format!("{name} special"));
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found
}

/// An address of this machine that is not loopback, found without sending anything.
pub fn own_address() -> Option<std::net::Ipv4Addr> {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(v4) if !v4.is_loopback() && !v4.is_unspecified() => Some(v4),
        _ => None,
    }
}
