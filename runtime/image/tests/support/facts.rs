//! What a file system says of a tree.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

/// Everything that a file system can say about what is below `root`: kind, mode, owner, time, size or
/// target, content, attributes, and which names are one file.
pub fn facts(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    let mut first_name = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let kind = m.file_type();
        let mut fact = format!("{:o} {}:{} {}.{} ", m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec());
        if kind.is_dir() {
            let mut entries: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()).collect();
            entries.sort_by(|a, b| b.cmp(a));
            left.extend(entries);
        } else if kind.is_symlink() {
            fact += &format!("-> {:?}", fs::read_link(&path).unwrap());
        } else if kind.is_file() {
            fact += &format!("{} {}", m.len(), portreeve_image::Digest::of(&fs::read(&path).unwrap()));
            let first = first_name.entry(m.ino()).or_insert_with(|| name.clone());
            fact += &format!(" same as {}", String::from_utf8_lossy(first));
        } else if kind.is_char_device() || kind.is_block_device() {
            fact += &format!("{:x}", m.rdev());
        }
        let mut list = vec![0_u8; 4096];
        let length = rustix::fs::llistxattr(&path, &mut list[..]).unwrap_or(0);
        let mut attributes: Vec<_> = list[..length].split(|b| *b == 0).filter(|a| !a.is_empty()).collect();
        attributes.sort_unstable();
        for attribute in attributes {
            let attribute = std::ffi::OsStr::from_bytes(attribute);
            let mut value = vec![0_u8; 4096];
            let length = rustix::fs::lgetxattr(&path, attribute, &mut value[..]).unwrap_or(0);
            fact += &format!(" {attribute:?}={:x?}", &value[..length]);
        }
        found.insert(name, fact);
    }
    found
}
