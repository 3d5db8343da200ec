//! The rate limit of one person: calls per second, and calls at once. One caller's excess must not affect
//! other callers.
//!
//! Replicas share the limit through Redis. A replica that cannot reach Redis applies the limit to its own
//! calls, so an outage of Redis neither refuses all calls nor lifts the limit. Calls are counted after
//! the token is verified (see `api::identity`), so nobody can use up another user's limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::runtime::Handle;

use super::too_many::TooMany;
use crate::courier::Courier;
use crate::domain::approver::Caller;
use crate::domain::rate::RateLimit;

/// Longest time to wait for the shared bucket in Redis. Short, because without an answer the call goes on
/// and has to wait for its own commands to Redis.
const SHARED_BUCKET_TIMEOUT: Duration = Duration::from_millis(300);
/// Each replica admits the limit divided by this number without asking Redis.
const FREE_DIVISOR: u32 = 10;
/// Pause before looking for room again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// After this many calls, the buckets that are empty again are removed.
const CALLS_BETWEEN_SWEEPS: u32 = 4096;

/// The rate limits of this process. Cheap to clone; clones share the buckets.
#[derive(Clone, Debug)]
pub struct Limits(Arc<Gate>);

#[derive(Debug)]
struct Gate {
    /// `None` if there is no limit.
    buckets: ArcSwapOption<Buckets>,
    courier: Courier,
    runtime: Handle,
}

#[derive(Debug)]
struct Buckets {
    /// The whole limit, applied to the calls of this process.
    own: Bucket,
    /// The limit applied to the calls of all replicas together; `None` in-process.
    shared: Option<Shared>,
    /// Calls since the last sweep.
    calls: AtomicU32,
}

/// The limit that replicas share through Redis.
#[derive(Debug)]
struct Shared {
    limit: RateLimit,
    /// A fraction of the limit that each replica admits without asking Redis, so that a person's clicks
    /// cost no extra round trip.
    free: Bucket,
    courier: Courier,
    /// The runtime that runs the connection to Redis.
    runtime: Handle,
}

type Bucket = DefaultKeyedRateLimiter<String>;

impl Limits {
    /// Rate limits with this limit; without one if `limit` is `None`. Calls are also counted in `courier`
    /// if it is Redis.
    #[must_use]
    pub fn new(limit: Option<RateLimit>, courier: &Courier, runtime: &Handle) -> Self {
        let (buckets, courier, runtime) =
            (ArcSwapOption::empty(), courier.clone(), runtime.clone());
        let limits = Self(Arc::new(Gate { buckets, courier, runtime }));
        limits.set(limit);
        limits
    }

    /// Replaces the limit, from the next call on. The buckets of this process start empty.
    pub fn set(&self, limit: Option<RateLimit>) {
        let Gate { buckets, courier, runtime } = &*self.0;
        buckets.store(limit.map(|limit| {
            let shared = match courier {
                Courier::Redis(_) => Some(Shared {
                    limit,
                    free: bucket(limit.divided_by(FREE_DIVISOR)),
                    courier: courier.clone(),
                    runtime: runtime.clone(),
                }),
                Courier::InProcess => None,
            };
            Arc::new(Buckets { own: bucket(limit), shared, calls: AtomicU32::new(0) })
        }));
    }

    /// Counts a call of this person, unless the limit is reached.
    ///
    /// # Errors
    /// [`TooMany`] when the limit is reached. The call must be refused then.
    pub async fn admit(&self, caller: &Caller) -> Result<(), TooMany> {
        let Some(buckets) = self.0.buckets.load_full() else { return Ok(()) };
        buckets.sweep();
        let key = bucket_key(caller);
        let Some(shared) = &buckets.shared else { return check(&buckets.own, &key) };
        if check(&shared.free, &key).is_ok() {
            return Ok(());
        }
        // A person who exceeds the limit on this replica alone is refused without asking Redis.
        check(&buckets.own, &key)?;
        shared.check(key).await
    }

    /// Like [`Self::admit`], but waits for room until `until`. For a call that counts as several.
    ///
    /// # Errors
    /// [`TooMany`] when there was no room in time.
    pub async fn admit_until(&self, caller: &Caller, until: Instant) -> Result<(), TooMany> {
        loop {
            match self.admit(caller).await {
                Err(_full) if Instant::now() + RETRY_INTERVAL < until => {
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                admitted => return admitted,
            }
        }
    }
}

impl Buckets {
    /// Removes empty buckets, every [`CALLS_BETWEEN_SWEEPS`] calls. An empty bucket behaves like one that
    /// does not exist.
    fn sweep(&self) {
        if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(CALLS_BETWEEN_SWEEPS) {
            let free = self.shared.as_ref().map(|shared| &shared.free);
            for bucket in free.into_iter().chain([&self.own]) {
                bucket.retain_recent();
                bucket.shrink_to_fit();
            }
        }
    }
}

impl Shared {
    /// If Redis does not answer in time, the call is admitted: this process's own bucket had room for it.
    async fn check(&self, key: String) -> Result<(), TooMany> {
        let (courier, limit) = (self.courier.clone(), self.limit);
        let asking = self.runtime.spawn(async move { courier.admit(key, limit).await });
        match tokio::time::timeout(SHARED_BUCKET_TIMEOUT, asking).await {
            Ok(Ok(Ok(Some(wait)))) => Err(TooMany::of_calls(wait)),
            _ => Ok(()),
        }
    }
}

fn bucket(limit: RateLimit) -> Bucket {
    RateLimiter::keyed(Quota::per_second(limit.per_second).allow_burst(limit.burst))
}

fn check(bucket: &Bucket, key: &String) -> Result<(), TooMany> {
    let full = |until: governor::NotUntil<_>| until.wait_time_from(DefaultClock::default().now());
    bucket.check_key(key).map_err(|until| TooMany::of_calls(full(until)))
}

/// The key of a person's bucket, in this process and in Redis. Tenant and user ids may contain colons, so
/// the tenant's length comes first and no two people share a key.
fn bucket_key(caller: &Caller) -> String {
    let tenant = caller.tenant.as_str();
    format!("hitl:rate:{}:{tenant}:{}", tenant.len(), caller.user)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that is surprised should fail loudly")]

    use std::collections::HashSet;
    use std::num::NonZeroU32;

    use super::*;
    use crate::domain::approver::{Role, Via};
    use crate::domain::ids::{TenantId, UserId};

    fn limit(per_second: u32, burst: u32) -> RateLimit {
        let number = |number| NonZeroU32::new(number).unwrap();
        RateLimit { per_second: number(per_second), burst: number(burst) }
    }

    #[test]
    fn the_wait_is_in_whole_seconds_and_never_zero() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_999, 60)] {
            let wait = TooMany::of_calls(Duration::from_millis(millis));
            assert_eq!(wait.retry_after_seconds, seconds, "{millis}");
        }
    }

    #[test]
    fn a_divided_limit_stays_above_zero() {
        assert_eq!(limit(50, 100).divided_by(FREE_DIVISOR), limit(5, 10));
        assert_eq!(limit(1, 9).divided_by(FREE_DIVISOR), limit(1, 1));
    }

    #[test]
    fn nobody_shares_a_bucket() {
        let people =
            [("a", "b"), ("a:1", "b"), ("a", "1:b"), ("a:1:a", "b"), ("a", "a:b"), ("{a}", "b")];
        let keys = people.map(|(tenant, user)| {
            bucket_key(&Caller {
                user: UserId::parse(user).unwrap(),
                tenant: TenantId::parse(tenant).unwrap(),
                role: Role::User,
                memberships: std::sync::Arc::default(),
                token_id: None,
                via: Via::default(),
            })
        });
        assert_eq!(HashSet::from(keys).len(), people.len());
    }

    #[test]
    fn empty_buckets_are_removed() {
        let buckets = Buckets {
            // Drains so fast that it is empty again at once.
            own: bucket(limit(1_000_000_000, 1)),
            shared: None,
            calls: AtomicU32::new(1),
        };
        for number in 0..1000 {
            check(&buckets.own, &number.to_string()).unwrap();
        }
        assert_eq!(buckets.own.len(), 1000);
        for _call in 1..CALLS_BETWEEN_SWEEPS {
            buckets.sweep();
        }
        assert_eq!(buckets.own.len(), 1000);
        buckets.sweep();
        assert_eq!(buckets.own.len(), 0);
    }
}
