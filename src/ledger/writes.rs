//! Whether writing has failed since it was last known to work. A full disk and a read-only file
//! answer every question, so whether the ledger can write is asked of its last failure too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is known of the writes of this process; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Writes(Arc<AtomicBool>);

impl Writes {
    /// Whether the last one that is known of failed.
    pub fn have_failed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// A write failed because nothing can be written.
    pub fn failed(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// A write succeeded.
    pub fn succeeded(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
