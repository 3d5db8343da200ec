//! Finds and reports content of Redis that contradicts the ledger. Such content is never returned to
//! callers.

pub mod reports;
pub mod watcher;
