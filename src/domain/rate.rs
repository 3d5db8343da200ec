//! The rate limit of one person.

use std::num::NonZeroU32;
use std::time::Duration;

/// How many calls one person may make, as a leaky bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Calls per second in the long run.
    pub per_second: NonZeroU32,
    /// Calls that may be made at once after a pause.
    pub burst: NonZeroU32,
}

impl RateLimit {
    /// This limit divided by `divisor`; both numbers stay at least 1.
    #[must_use]
    pub fn divided_by(self, divisor: u32) -> Self {
        let part =
            |whole: NonZeroU32| NonZeroU32::new(whole.get() / divisor).unwrap_or(NonZeroU32::MIN);
        Self { per_second: part(self.per_second), burst: part(self.burst) }
    }

    /// The time after which the bucket has room for one more call.
    #[must_use]
    pub fn drain(self) -> Duration {
        Duration::from_secs(1) / self.per_second.get()
    }
}
