//! How often one person may call.

use std::num::NonZeroU32;
use std::time::Duration;

/// How many calls one person may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// In the long run.
    pub per_second: NonZeroU32,
    /// At once, after a pause.
    pub burst: NonZeroU32,
}

impl RateLimit {
    /// A part of it, but never nothing.
    #[must_use]
    pub fn part(self, of: u32) -> Self {
        let part = |whole: NonZeroU32| NonZeroU32::new(whole.get() / of).unwrap_or(NonZeroU32::MIN);
        Self { per_second: part(self.per_second), burst: part(self.burst) }
    }

    /// How long one call takes to drain from its bucket.
    #[must_use]
    pub fn drain(self) -> Duration {
        Duration::from_secs(1) / self.per_second.get()
    }
}
