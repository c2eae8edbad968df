//! `/etc/passwd` and `/etc/group` of images, read once per image.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use portreeve_image::Image;

use crate::spec::Accounts;
use crate::{EngineError, rootfs};

/// A longer file is refused.
const LONGEST: u64 = 1 << 20;
/// So many images are remembered.
const IMAGES: usize = 64;

/// Accounts by image id; an image never changes.
#[derive(Debug, Default)]
pub(super) struct AccountCache {
    known: Mutex<HashMap<String, Arc<Accounts>>>,
}

impl AccountCache {
    /// The accounts of an image. Blocking.
    pub(super) fn of(&self, image: &Image) -> Result<Arc<Accounts>, EngineError> {
        let id = image.id.to_string();
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(accounts) = known().get(&id) {
            return Ok(Arc::clone(accounts));
        }
        let accounts =
            Arc::new(Accounts::parse(&read(&image.layers, "etc/passwd")?, &read(&image.layers, "etc/group")?));
        let mut known = known();
        if known.len() >= IMAGES {
            known.clear();
        }
        known.insert(id, Arc::clone(&accounts));
        Ok(accounts)
    }
}

fn read(layers: &[PathBuf], path: &str) -> Result<Vec<u8>, EngineError> {
    match rootfs::read(layers, path, LONGEST) {
        Ok(bytes) => Ok(bytes.unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            Err(EngineError::invalid("image", format!("its /{path} is {error}")))
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            Err(EngineError::invalid("image", format!("its /{path} cannot be used: {error}")))
        }
        Err(source) => {
            Err(EngineError::Images { action: format!("reading /{path} of an image"), source: source.into() })
        }
    }
}
