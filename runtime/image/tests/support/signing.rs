//! Keys and signatures by openssl, put into a registry as cosign puts them.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use portreeve_image::Digest;
use serde_json::{Value, json};
use tempfile::TempDir;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// Who signs, with a key of his own.
pub struct Signer(TempDir);

/// One signature.
#[derive(Clone)]
pub struct Signature {
    pub payload: Vec<u8>,
    pub signature: Vec<u8>,
}

impl Signer {
    pub fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        this.openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key"]);
        this.openssl(&["ec", "-in", "key", "-pubout", "-out", "pub"]);
        this
    }

    /// The public key's file.
    pub fn public(&self) -> PathBuf {
        self.0.path().join("pub")
    }

    /// Signs that `name` is the image with this manifest.
    pub fn sign(&self, name: &str, digest: &Digest) -> Signature {
        let payload = json!({
            "critical": {
                "identity": {"docker-reference": name},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        self.sign_bytes(payload.to_string().as_bytes())
    }

    pub fn sign_bytes(&self, payload: &[u8]) -> Signature {
        fs::write(self.0.path().join("payload"), payload).unwrap();
        self.openssl(&["dgst", "-sha256", "-sign", "key", "-out", "signature", "payload"]);
        Signature { payload: payload.to_vec(), signature: fs::read(self.0.path().join("signature")).unwrap() }
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A manifest with signatures, the newest last.
pub fn manifest_of(signatures: &[Signature]) -> String {
    let layers: Vec<Value> = signatures
        .iter()
        .map(|one| {
            json!({
                "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
                "digest": Digest::of(&one.payload),
                "size": one.payload.len(),
                "annotations": {"dev.cosignproject.cosign/signature": STANDARD.encode(&one.signature)},
            })
        })
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"{}"), "size": 2},
        "layers": layers,
    })
    .to_string()
}

/// The tag under which cosign looks for signatures.
pub fn tag_of(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// Puts signatures where cosign puts those of `digest`, in place of any that are there.
pub fn attach(port: u16, repository: &str, digest: &Digest, signatures: &[Signature]) {
    push_signatures(port, repository, &tag_of(digest), signatures);
}

pub fn push_signatures(port: u16, repository: &str, tag: &str, signatures: &[Signature]) -> String {
    let mut done = std::collections::BTreeSet::new();
    for blob in signatures.iter().map(|one| one.payload.as_slice()).chain([b"{}".as_slice()]) {
        if done.insert(blob) {
            push_blob(port, repository, blob);
        }
    }
    let manifest = manifest_of(signatures);
    push_manifest(port, repository, tag, MANIFEST, &manifest);
    manifest
}

pub fn push_manifest(port: u16, repository: &str, tag: &str, kind: &str, manifest: &str) {
    let path = format!("/v2/{repository}/manifests/{tag}");
    let (status, _) = request(port, "PUT", &path, kind, manifest.as_bytes());
    assert_eq!(status, 201, "{path}");
}

pub fn push_blob(port: u16, repository: &str, blob: &[u8]) {
    let (status, head) = request(port, "POST", &format!("/v2/{repository}/blobs/uploads/"), "text/plain", b"");
    assert_eq!(status, 202, "{head}");
    let location = head.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
    let (_, path) = location.trim().split_once("://").unwrap().1.split_once('/').unwrap();
    let path = format!("/{path}&digest={}", Digest::of(blob));
    let (status, head) = request(port, "PUT", &path, "application/octet-stream", blob);
    assert_eq!(status, 201, "{head}");
}

fn request(port: u16, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Type: {kind}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

/// A policy file that wants `requirements` (JSON, in brackets) of every image.
pub fn policy(path: &Path, requirements: &str) {
    fs::write(path, format!(r#"{{"default":{requirements}}}"#)).unwrap();
}

/// Signed with this key, for this repository.
pub fn signed_with(key: &Path) -> String {
    format!(
        r#"[{{"type":"sigstoreSigned","keyPath":"{}","signedIdentity":{{"type":"matchRepository"}}}}]"#,
        key.display()
    )
}
