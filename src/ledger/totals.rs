//! How many tasks match, where counting them takes long: remembered for a few seconds, so that a
//! list's first page takes no longer with a million tasks than with ten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::ids::{TenantId, UserId};
use crate::domain::task::{TaskFilter, TaskStatus};

/// Totals from here on are remembered; counting fewer takes no time to speak of.
const LARGE: i64 = 1000;
/// How long.
const AGE: Duration = Duration::from_secs(5);

type Which = (TenantId, Option<UserId>, Option<TaskStatus>);

/// Large totals; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Totals(Arc<Mutex<HashMap<Which, (i64, Instant)>>>);

impl Totals {
    /// What was counted lately.
    pub fn find(&self, filter: &TaskFilter) -> Option<i64> {
        let (total, counted_at) = *self.lock().get(&which(filter))?;
        (counted_at.elapsed() < AGE).then_some(total)
    }

    /// Remembers a total if it is large.
    pub fn note(&self, filter: &TaskFilter, total: i64) {
        let mut totals = self.lock();
        if total >= LARGE {
            totals.insert(which(filter), (total, Instant::now()));
        } else {
            totals.remove(&which(filter));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Which, (i64, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn which(filter: &TaskFilter) -> Which {
    (filter.tenant.clone(), filter.user.clone(), filter.status)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that is surprised should fail loudly")]

    use super::*;

    #[test]
    fn only_large_totals_are_remembered() {
        let tenant = TenantId::parse("tenant1").unwrap();
        let filter = TaskFilter { tenant, user: None, status: None, page: 0, size: 20 };
        let done = TaskFilter { status: Some(TaskStatus::Completed), ..filter.clone() };
        let totals = Totals::default();
        for (total, remembered) in [(LARGE - 1, None), (LARGE, Some(LARGE)), (3, None)] {
            totals.note(&filter, total);
            assert_eq!(totals.find(&filter), remembered);
            assert_eq!(totals.find(&done), None);
        }
    }
}
