//! Opening a store: find out what is whole, and remove what is not.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use portreeve_sys::chain;
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::{
    configuration::parse_config,
    digest::Digest,
    registry::{Registries, Terms},
    slots::RegistrySlots,
    store::{
        Config, Inner, StoreError,
        again::Held,
        catalog::{Catalog, Entry, IndexFile, Record, State, VERSION},
        layers::{LayerLocks, read_layer, read_layer_at},
        layout::{Layout, entries, name_of},
        restore::restore,
        save::SAVES_AT_ONCE,
        snapshot,
        sync::{self, Syncer},
    },
};

/// What a killed agent had just forked keeps the lock until it executes its program.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

pub(crate) fn open(config: Config) -> Result<Inner, StoreError> {
    let layout = Layout::new(&config.root);
    // Before anything is touched: a newer program's store is none of our business.
    let index = read_index(&layout)?;
    refuse_newer_layers(&layout)?;
    let authorities = read_authorities(&config)?;
    layout.create()?;
    let lock = lock(&layout)?;
    layout.clear_staging()?;
    let boot = boot_id()?;
    let mut state = State { preloaded: index.preloaded, ..State::default() };
    let mut unsynced = Vec::new();
    let of_another_boot = |record: &Record| record.unsynced_boot.as_ref().is_some_and(|other| *other != boot);
    let (lost, there): (Vec<_>, Vec<_>) = index.images.into_iter().partition(of_another_boot);
    let mut take = |state: &mut State, record: Record| match check(&layout, record) {
        Ok(entry) => {
            if entry.record.unsynced_boot.is_some() {
                unsynced.push(entry.record.id.clone());
            }
            state.images.insert(entry.record.id.clone(), entry);
        }
        Err((image, problem)) => {
            tracing::warn!(%image, problem, "image is not whole and was dropped, it will be pulled again");
        }
    };
    for record in there {
        take(&mut state, record);
    }
    // What is on the disk for good vouches for layers that these share with it.
    for record in lost {
        let image = record.id.clone();
        match restore(&layout, &config, &state, record, &boot) {
            Ok(record) => {
                tracing::info!(%image, "the machine went down before the image was on the disk: it was unpacked again");
                take(&mut state, record);
            }
            Err(error) => {
                let problem = chain(&error);
                tracing::warn!(
                    %image,
                    problem,
                    "the machine went down before the image was on the disk; it was dropped, and will be pulled again"
                );
            }
        }
    }
    remove_untrusted_layers(&layout, &state, &boot)?;
    sync::remove_forgotten(&layout, &state);
    let registries = Registries::new(Terms {
        insecure: config.insecure_registries.iter().cloned().collect(),
        authorities,
        connect_timeout: config.connect_timeout,
        stall_timeout: config.stall_timeout,
        connections: config.connections_per_layer,
        bytes_per_second: config.download_rate_limit,
    });
    let catalog = Arc::new(Catalog::new(layout, state));
    let syncer = Syncer::start(catalog.clone()).map_err(|source| StoreError::Io {
        operation: "starting the sync thread of",
        path: config.root.clone(),
        source,
    })?;
    for image in unsynced {
        drop(syncer.commit(image));
    }
    Ok(Inner {
        syncer,
        catalog,
        registries: Arc::new(registries),
        downloads: RegistrySlots::bounded(
            config.max_concurrent_downloads,
            config.max_concurrent_downloads_per_registry,
        ),
        layer_locks: LayerLocks::default(),
        saves: Arc::new(Semaphore::new(SAVES_AT_ONCE)),
        held: Held::default(),
        artifacts: Arc::new(Semaphore::new(SAVES_AT_ONCE)),
        flights: crate::flight::Flights::default(),
        used: std::sync::Mutex::default(),
        opened: jiff::Timestamp::now(),
        boot,
        config,
        _lock: lock,
    })
}

fn read_index(layout: &Layout) -> Result<IndexFile, StoreError> {
    let path = layout.index();
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(IndexFile::empty());
        }
        Err(source) => return Err(StoreError::Io { operation: "reading", path, source }),
    };
    let damaged = |source| StoreError::Index { path: path.clone(), source };
    // The version first: a newer format may have a shape that we cannot read.
    let Versioned { version } = serde_json::from_slice(&text).map_err(damaged)?;
    if version > VERSION {
        return Err(StoreError::Newer { root: layout.root().to_owned(), found: version, known: VERSION });
    }
    serde_json::from_slice(&text).map_err(damaged)
}

/// A layer that cannot be read is removed; one that a newer program has read is not.
fn refuse_newer_layers(layout: &Layout) -> Result<(), StoreError> {
    let directory = layout.layers();
    if !directory.exists() {
        return Ok(());
    }
    for path in entries(&directory)? {
        let text = fs::read(path.join("layer.json")).unwrap_or_default();
        if let Ok(Versioned { version }) = serde_json::from_slice(&text)
            && version > VERSION
        {
            return Err(StoreError::Newer { root: layout.root().to_owned(), found: version, known: VERSION });
        }
    }
    Ok(())
}

fn read_authorities(config: &Config) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut found = Vec::new();
    for path in &config.ca_files {
        let bad = |problem: String| StoreError::Certificate { path: path.clone(), problem };
        let pem = fs::read(path).map_err(|e| bad(e.to_string()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| bad(e.to_string()))?;
        if certificates.is_empty() {
            return Err(bad("there is no certificate in PEM form in it".to_owned()));
        }
        found.push(pem);
    }
    Ok(found)
}

fn lock(layout: &Layout) -> Result<Flock<File>, StoreError> {
    let path = layout.lock();
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(|source| StoreError::Io { operation: "opening", path: path.clone(), source })?;
    let mut file = file;
    let begin = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((unlocked, nix::errno::Errno::EWOULDBLOCK)) if begin.elapsed() < LOCK_PATIENCE => file = unlocked,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(StoreError::Locked { root: layout.root().to_owned() });
            }
            Err((_, other)) => return Err(StoreError::Io { operation: "locking", path, source: other.into() }),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn boot_id() -> Result<String, StoreError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path);
    let text = text.map_err(|source| StoreError::Io { operation: "reading", path: path.to_owned(), source })?;
    Ok(text.trim().to_owned())
}

/// A record counts only with its configuration and every layer in place.
fn check(layout: &Layout, record: Record) -> Result<Entry, (Digest, &'static str)> {
    let id = record.id.digest().clone();
    let bytes = fs::read(layout.blob(&id)).unwrap_or_default();
    if Digest::of(&bytes) != id {
        return Err((id, "its configuration is missing or damaged"));
    }
    let Ok(config) = parse_config(&bytes) else {
        return Err((id, "its configuration cannot be read"));
    };
    if config.diff_ids != record.layers || record.layers.iter().any(|l| read_layer(layout, l).is_none()) {
        return Err((id, "a layer is missing"));
    }
    if record.finish && !layout.finish(&id).join("fs").is_dir() {
        return Err((id, "its topmost layer is missing"));
    }
    if record.redirected.iter().any(|l| !layout.redirected(&id, l).is_dir()) {
        return Err((id, "what follows a layer's links is missing"));
    }
    let mut record = record;
    if record.kept_whole.is_none() {
        // A version that did not say so may have kept it.
        record.note_kept(layout);
    }
    Ok(Entry { record, config })
}

/// Layers without a record are worth keeping for the pull that was broken off, but only when the
/// kernel that wrote them still runs: else they may be incomplete on the disk.
fn remove_untrusted_layers(layout: &Layout, state: &State, boot: &str) -> Result<(), StoreError> {
    // Containers go on while the agent is away, also on an image whose record was damaged since.
    let careful = snapshot::stands_on_lost(layout, state);
    if careful {
        tracing::warn!("a container stands on an image that was lost: no layer is removed before its pod is");
    }
    let needed: std::collections::BTreeSet<String> = state.needed_layers().iter().map(|d| d.hex().to_owned()).collect();
    for path in entries(&layout.layers())? {
        let Some(name) = name_of(&path) else { continue };
        let recorded = match name.strip_prefix("finish-") {
            Some(hex) => state.images.values().any(|e| e.record.is_finished() && e.record.id.digest().hex() == hex),
            None => needed.contains(name),
        };
        if recorded || read_layer_at(&path).is_some_and(|l| l.boot == boot) {
            continue;
        }
        if careful {
            layout.put_aside(&path)?;
        } else {
            drop(layout.discard(&path)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kept from a program of this version; never changed.
    #[test]
    fn kept_records_of_version_1_are_read() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        layout.create().unwrap();
        fs::write(layout.index(), include_str!("../../tests/fixtures/v1/index.json")).unwrap();
        let index = read_index(&layout).unwrap();
        let record = index.images.first().unwrap();
        assert_eq!(record.references.first().map(ToString::to_string).as_deref(), Some("docker.io/library/box:1"));
        assert!(record.base.is_none() && record.redirected.is_empty());
        let layer = layout.layer(record.layers.first().unwrap());
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("layer.json"), include_str!("../../tests/fixtures/v1/layer.json")).unwrap();
        let layer = read_layer_at(&layer).unwrap();
        assert_eq!((layer.size_bytes, layer.implied), (1_982_256, [String::new()].into()));
    }

    #[test]
    fn a_layer_of_a_newer_version_is_refused_and_kept() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        layout.create().unwrap();
        let layer = layout.layers().join("a".repeat(64));
        fs::create_dir(&layer).unwrap();
        let text = r#"{"version":2,"everything":"else"}"#;
        fs::write(layer.join("layer.json"), text).unwrap();
        let error = open(Config::new(root.path())).err().unwrap();
        assert!(matches!(error, StoreError::Newer { found: 2, known: 1, .. }), "{error}");
        assert_eq!(fs::read_to_string(layer.join("layer.json")).unwrap(), text);
    }
}
