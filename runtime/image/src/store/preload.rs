//! Images that come with the machine: tars in a directory, loaded at every start and pinned.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    image::{Image, ImageId},
    store::{
        Inner, LoadError, StoreError,
        catalog::Preload,
        layout::{entries, name_of},
        load,
    },
};

/// One file of the preload directory.
#[derive(Debug)]
pub struct Preloaded {
    /// The tar file.
    pub file: PathBuf,
    /// Its images, pinned; or why there are none.
    pub result: Result<Vec<Image>, LoadError>,
}

pub(crate) async fn preload(inner: &Arc<Inner>) -> Vec<Preloaded> {
    let Some(directory) = &inner.config.preload_dir else { return Vec::new() };
    let files = match list(directory) {
        Ok(files) => files,
        // Unreadable is not empty: what was preloaded stays as it is.
        Err(error) => {
            return vec![Preloaded { file: directory.clone(), result: Err(LoadError::Store(error)) }];
        }
    };
    let mut results = Vec::new();
    let mut marks = BTreeMap::new();
    for (file, mark) in files {
        let known = inner.catalog.read().preloaded.get(&file).cloned();
        let result = match known.filter(|k| same_file(k, &mark)).and_then(|k| present(inner, &k.images)) {
            Some(images) => Ok(images),
            None => match File::open(&file) {
                Ok(tar) => load::load(inner, tar, true).await,
                Err(source) => Err(LoadError::Open { path: file.clone(), source }),
            },
        };
        match &result {
            Ok(images) => {
                let images = images.iter().map(|i| i.id.clone()).collect();
                marks.insert(file.clone(), Preload { images, ..mark });
            }
            // A file that became unreadable keeps what it gave before.
            Err(_) => {
                let before = inner.catalog.read().preloaded.get(&file).cloned();
                marks.extend(before.map(|b| (file.clone(), b)));
            }
        }
        results.push(Preloaded { file, result });
    }
    if let Err(error) = remember(inner, marks) {
        results.push(Preloaded { file: directory.clone(), result: Err(LoadError::Store(error)) });
    }
    results
}

/// Notes what is preloaded now; images that no file holds any more are ordinary ones from here on.
fn remember(inner: &Inner, marks: BTreeMap<PathBuf, Preload>) -> Result<(), StoreError> {
    if inner.catalog.read().preloaded == marks {
        return Ok(());
    }
    inner.catalog.change(|state| {
        let pinned: BTreeSet<&ImageId> = marks.values().flat_map(|m| &m.images).collect();
        for (id, entry) in &mut state.images {
            entry.record.pinned = pinned.contains(id);
        }
        state.preloaded = marks;
        Ok(())
    })
}

fn present(inner: &Inner, ids: &BTreeSet<ImageId>) -> Option<Vec<Image>> {
    let state = inner.catalog.read();
    ids.iter().map(|id| state.images.get(id).map(|e| inner.catalog.image(e))).collect()
}

fn list(directory: &Path) -> Result<Vec<(PathBuf, Preload)>, StoreError> {
    let mut files = Vec::new();
    for path in entries(directory)? {
        let hidden = name_of(&path).is_none_or(|n| n.starts_with('.') || n.ends_with('~'));
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if hidden || !metadata.is_file() {
            continue;
        }
        let modified_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        let (size, inode) = (metadata.len(), metadata.ino());
        files.push((path, Preload { size, modified_ns, inode, images: BTreeSet::new() }));
    }
    Ok(files)
}

fn same_file(a: &Preload, b: &Preload) -> bool {
    (a.size, a.modified_ns, a.inode) == (b.size, b.modified_ns, b.inode)
}
