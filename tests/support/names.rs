//! Unique names, so that tests share servers without sharing rows and keys, and the variables in which
//! `scripts/test` gives the servers' addresses. A missing variable fails the test; it never skips it.

use std::sync::atomic::{AtomicU32, Ordering};

/// A variable that `scripts/test` sets. A missing one fails the test.
pub fn test_variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test"))
}

/// A name that no other test uses.
pub fn unique(prefix: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!(
        "{prefix}_{}_{count}_{}",
        std::process::id(),
        &uuid::Uuid::new_v4().simple().to_string()[..8]
    )
}
