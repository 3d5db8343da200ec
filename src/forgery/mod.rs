//! What Redis says and the ledger does not: found, reported, never answered.

pub mod reports;
pub mod watcher;
