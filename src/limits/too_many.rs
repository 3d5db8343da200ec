//! The error for an exceeded limit: which limit, and when to try again.

use std::time::Duration;

/// The limit that is exceeded, with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Calls of a person.
    Calls,
    /// Concurrent long-polls and streams of a person.
    WaitsOfPerson(usize),
    /// Concurrent long-polls and streams of a tenant.
    WaitsOfTenant(usize),
    /// Concurrent long-polls and streams of all callers.
    Waits(usize),
    /// Large bodies of a person that wait for their turn.
    LargeBodiesOfPerson(usize),
    /// Large bodies of all callers.
    LargeBodies,
    /// Pending requests of a person.
    PendingOfPerson(u64),
    /// Pending requests of a tenant.
    PendingOfTenant(u64),
    /// Bytes of requests and tasks that a tenant writes in an hour.
    BytesOfTenant(u64),
}

/// A limit is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit exceeded: {limit:?}; try again in {retry_after_seconds} s")]
pub struct TooMany {
    /// The limit.
    pub limit: Limit,
    /// Seconds after which to try again; at least 1.
    pub retry_after_seconds: u64,
}

impl TooMany {
    /// The rate limit of a person is exceeded; the next call has room after `wait`.
    #[must_use]
    pub fn of_calls(wait: Duration) -> Self {
        let seconds = u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
        Self { limit: Limit::Calls, retry_after_seconds: seconds.max(1) }
    }
}
