//! Names of what is being made: two calls that ask for the same at once do not make two.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The names that are taken.
#[derive(Debug, Clone, Default)]
pub(super) struct Names(Arc<Mutex<BTreeSet<String>>>);

/// A name that is somebody's until this is dropped.
#[derive(Debug)]
pub(super) struct Name {
    names: Names,
    name: String,
}

impl Names {
    /// Takes a name, unless it is taken.
    pub(super) fn take(&self, name: String) -> Option<Name> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(name.clone()).then(|| Name { names: self.clone(), name })
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.names.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_free_again_when_its_owner_has_gone() {
        let names = Names::default();
        let first = names.take("a".to_owned()).unwrap();
        assert!(names.take("a".to_owned()).is_none() && names.take("b".to_owned()).is_some());
        drop(first);
        assert!(names.take("a".to_owned()).is_some());
    }
}
