//! Any members of a layer, of names that get into each other's way: applied or refused, and nothing beside the layer's
//! directory is touched. Needs root, whose layers have devices and owners.
#![no_main]

use std::fs::{self, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use portreeve_image::{Limits, apply_layer};

/// Parts of names; the last but one leads to what must stay as it is.
const PARTS: [&str; 12] =
    ["a", "b", "c", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh.", ".wh..wh.x", ".", "..", "../outside", ""];
const TARGETS: [&str; 10] =
    ["a", "b/c", "..", "../outside", "/", "/outside/secret", "../../outside/secret", "c/../a", "/a/./b", "a/a"];
const SECRET: &str = "what nobody may change";

#[derive(Debug, Arbitrary)]
struct Member {
    kind: Kind,
    /// Drawn from `PARTS`.
    name: Vec<u8>,
    absolute: bool,
    mode: u16,
    owner: u16,
    mtime: i32,
    content: Vec<u8>,
    /// Records of a PAX header before it.
    records: Vec<Record>,
}

#[derive(Debug, Arbitrary)]
enum Kind {
    File,
    Directory,
    Symlink(u8),
    /// To a name like those of members, or to a target like those of links.
    HardLink(Vec<u8>),
    HardLinkOut(u8),
    Device(u8, u8),
    Fifo,
    Other(u8),
}

#[derive(Debug, Arbitrary)]
enum Record {
    Attribute(u8, Vec<u8>),
    Sparse(Vec<u16>, u16),
    Path(Vec<u8>),
    Any(Vec<u8>, Vec<u8>),
}

fn path(parts: &[u8]) -> String {
    let parts = parts.iter().take(6).map(|part| PARTS[usize::from(*part) % PARTS.len()]);
    parts.collect::<Vec<_>>().join("/")
}

fn record(text: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let length = (1..8).map(|digits| rest + digits).find(|length| length.to_string().len() + rest == *length);
    text.extend_from_slice(length.expect("a length that counts itself").to_string().as_bytes());
    text.extend_from_slice(&[b" ", key, b"=", value, b"\n"].concat());
}

fn records(member: &Member) -> Vec<u8> {
    let mut text = Vec::new();
    for one in &member.records {
        match one {
            Record::Attribute(which, value) => {
                let names = [
                    "user.x",
                    "security.capability",
                    "trusted.overlay.opaque",
                    "trusted.overlay.redirect",
                    "system.posix_acl_access",
                    "security.selinux",
                ];
                let name = format!("SCHILY.xattr.{}", names[usize::from(*which) % names.len()]);
                record(&mut text, name.as_bytes(), value);
            }
            Record::Sparse(map, size) => {
                let map: Vec<String> = map.iter().map(u16::to_string).collect();
                record(&mut text, b"GNU.sparse.map", map.join(",").as_bytes());
                record(&mut text, b"GNU.sparse.size", size.to_string().as_bytes());
            }
            Record::Path(parts) => record(&mut text, b"path", path(parts).as_bytes()),
            Record::Any(key, value) => record(&mut text, key, value),
        }
    }
    text
}

fn block(kind: u8, name: &[u8], link: &[u8], content: &[u8], member: &Member) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    let old = header.as_old_mut();
    let put = |field: &mut [u8], text: &[u8]| {
        for (to, from) in field.iter_mut().zip(text) {
            *to = *from;
        }
    };
    put(&mut old.name, name);
    put(&mut old.linkname, link);
    old.linkflag = [kind];
    header.set_size(content.len() as u64);
    header.set_mode(member.mode.into());
    header.set_uid(member.owner.into());
    header.set_gid(member.owner.into());
    header.set_mtime(u64::try_from(member.mtime).unwrap_or(0));
    if let Kind::Device(major, minor) = member.kind {
        header.set_device_major(major.into()).expect("a GNU header has devices");
        header.set_device_minor(minor.into()).expect("a GNU header has devices");
    }
    header.set_cksum();
    let mut bytes = [header.as_bytes().as_slice(), content].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// The members as a tar.
fn archive(members: &[Member]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in members {
        let text = records(member);
        if !text.is_empty() {
            bytes.extend(block(b'x', b"pax", b"", &text, member));
        }
        let name = if member.absolute { format!("/{}", path(&member.name)) } else { path(&member.name) };
        let target = |which: u8| TARGETS[usize::from(which) % TARGETS.len()].to_owned();
        let (kind, link) = match &member.kind {
            Kind::File => (b'0', String::new()),
            Kind::Directory => (b'5', String::new()),
            Kind::Symlink(which) => (b'2', target(*which)),
            Kind::HardLink(parts) => (b'1', path(parts)),
            Kind::HardLinkOut(which) => (b'1', target(*which)),
            Kind::Device(major, _) => (if major % 2 == 0 { b'3' } else { b'4' }, String::new()),
            Kind::Fifo => (b'6', String::new()),
            Kind::Other(flag) => (*flag, String::new()),
        };
        let content: &[u8] = if kind == b'0' { &member.content } else { b"" };
        bytes.extend(block(kind, name.as_bytes(), link.as_bytes(), content, member));
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Everything about what is beside the layer, but when it was read.
fn seen(outside: &Path) -> Vec<(u64, u32, u32, u64, i64, i64, i64)> {
    let of = |path: &Path| {
        let m = fs::symlink_metadata(path).expect("it stays");
        (m.ino(), m.mode(), m.uid(), m.nlink(), m.mtime(), m.mtime_nsec(), m.ctime_nsec())
    };
    vec![of(outside), of(&outside.join("secret"))]
}

fuzz_target!(|members: Vec<Member>| {
    let home = tempfile::tempdir().expect("a directory");
    let (root, outside) = (home.path().join("root"), home.path().join("outside"));
    for directory in [&root, &outside] {
        fs::create_dir(directory).expect("making a directory");
    }
    fs::write(outside.join("secret"), SECRET).expect("writing a file");
    fs::set_permissions(outside.join("secret"), Permissions::from_mode(0o600)).expect("setting a mode");
    let before = seen(&outside);
    let limits = Limits { entries: 64, unpacked_bytes: 1 << 20, ..Limits::default() };
    let directory = fs::File::open(&root).expect("opening a directory");
    if let Ok(applied) = apply_layer(archive(&members).as_slice(), directory.as_fd(), &limits) {
        assert!(applied.bytes <= 1 << 20 && applied.entries <= 64);
    }
    assert_eq!(seen(&outside), before);
    assert_eq!(fs::read_to_string(outside.join("secret")).expect("it stays"), SECRET);
    let beside = fs::read_dir(home.path()).expect("reading a directory").count();
    assert_eq!((beside, fs::read_dir(&outside).expect("reading a directory").count()), (2, 1));
});
