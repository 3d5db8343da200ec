//! What is asked too much of, and when to try again.

use std::time::Duration;

/// What there is too much of, with the most that there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// A person's calls.
    Calls,
    /// A person's long-polls and streams.
    WaitsOfPerson(usize),
    /// A tenant's long-polls and streams.
    WaitsOfTenant(usize),
    /// Everybody's long-polls and streams.
    Waits(usize),
    /// A person's pending requests.
    PendingOfPerson(u64),
    /// A tenant's pending requests.
    PendingOfTenant(u64),
    /// Bytes of the requests and tasks that a tenant sends in an hour.
    BytesOfTenant(u64),
}

/// Somebody asks for too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much: {limit:?}; there is room again in {retry_after_seconds} s")]
pub struct TooMany {
    /// Of what.
    pub limit: Limit,
    /// When to try again; at least 1.
    pub retry_after_seconds: u64,
}

impl TooMany {
    /// For the next call of a person, after so long.
    #[must_use]
    pub fn of_calls(wait: Duration) -> Self {
        let seconds = u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
        Self { limit: Limit::Calls, retry_after_seconds: seconds.max(1) }
    }
}
