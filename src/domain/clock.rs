//! The only module that reads the machine's clock.
//!
//! Times are UTC, truncated to microseconds. Postgres stores microseconds, so a time read back from it
//! equals the time that was written.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

/// The source of the present time: the machine's clock, or a test.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's clock.
    System,
    /// A clock that only a test moves. Holds microseconds since the Unix epoch.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A manual clock, set to the machine's present time.
    #[must_use]
    pub fn manual() -> Self {
        let now = Self::System.now();
        Self::Manual(Arc::new(AtomicI64::new(now.timestamp_micros())))
    }

    /// The present time, UTC, whole microseconds.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that may read the machine's clock"
    )]
    pub fn now(&self) -> DateTime<Utc> {
        match self {
            Self::System => Utc::now().trunc_subsecs(6),
            Self::Manual(micros) => {
                DateTime::from_timestamp_micros(micros.load(Ordering::SeqCst)).unwrap_or_default()
            }
        }
    }

    /// Moves a manual clock forward. Does nothing to the system clock.
    pub fn advance(&self, by: TimeDelta) {
        if let Self::Manual(micros) = self {
            micros.fetch_add(by.num_microseconds().unwrap_or(0), Ordering::SeqCst);
        }
    }
}
