//! The keys of `hitl_binding` that this process knows, so that it writes each of them once.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The most keys to remember. Then it begins anew: writing a key again does no harm.
const CAPACITY: usize = 10_000;

/// The keys that this process has written to `hitl_binding`, or found there. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct KnownBindings(Arc<Mutex<HashSet<String>>>);

impl KnownBindings {
    /// Whether a key is known.
    pub fn has(&self, binding: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(binding)
    }

    /// Remembers a key.
    pub fn add(&self, binding: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CAPACITY {
            known.clear();
        }
        known.insert(binding.to_owned());
    }
}
