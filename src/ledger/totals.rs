//! Totals of lists that were counted in the last few seconds. A count reads up to 10,000 rows, so one is
//! used for all who ask for the same list meanwhile.

use std::time::Duration;

use moka::sync::Cache;

/// How old a total may be.
const MAX_AGE: Duration = Duration::from_secs(5);
/// The most totals to remember.
const CAPACITY: u64 = 1000;

/// Recent totals, by the statement that counts and its values. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Totals(Cache<String, u64>);

impl Default for Totals {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(CAPACITY).time_to_live(MAX_AGE).build())
    }
}

impl Totals {
    /// The total of this key, if it is recent.
    pub fn get(&self, key: &str) -> Option<u64> {
        self.0.get(key)
    }

    /// Remembers a total.
    pub fn insert(&self, key: String, total: u64) {
        self.0.insert(key, total);
    }
}
