//! How much one person may ask for: so many calls a second, and so many at once. Whoever floods the
//! service is told to wait, and nobody else notices.
//!
//! Replicas share the limit through the agents' Redis. They do not need it: one that does not reach
//! Redis limits by itself, so an outage neither locks anybody out nor opens the gates. Who is
//! calling must be known by then (see `auth`): nothing here can be spent in another's name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::runtime::Handle;

use super::too_many::TooMany;
use crate::courier::Courier;
use crate::domain::approver::Caller;
use crate::domain::rate::RateLimit;

/// Longest to wait for what Redis says about a call. Short, because without an answer the call goes
/// on, and has its own calls to Redis to wait for.
const SHARED_BUCKET_TIMEOUT: Duration = Duration::from_millis(300);
/// Which part of the limit each replica grants without asking Redis.
const FREE_DIVISOR: u32 = 10;
/// After so many calls, those who have been quiet are forgotten.
const CALLS_BETWEEN_SWEEPS: u32 = 4096;

/// The limits of this process; cheap to clone, and clones share them.
#[derive(Clone, Debug)]
pub struct Limits(Arc<Gate>);

#[derive(Debug)]
struct Gate {
    /// None while there are no limits.
    buckets: ArcSwapOption<Buckets>,
    courier: Courier,
    runtime: Handle,
}

#[derive(Debug)]
struct Buckets {
    /// The whole limit, for what passes through this process.
    own: Bucket,
    /// What all replicas let pass together.
    shared: Option<Shared>,
    /// Calls since the last sweep.
    calls: AtomicU32,
}

/// The limit that replicas share through Redis.
#[derive(Debug)]
struct Shared {
    limit: RateLimit,
    /// A part that each replica grants beyond it, so that a person's clicks cost no extra round
    /// trip.
    free: Bucket,
    courier: Courier,
    /// Where connections to Redis live.
    runtime: Handle,
}

type Bucket = DefaultKeyedRateLimiter<String>;

impl Limits {
    /// The limits, or none at all. Only a courier that replicas share is asked about them.
    #[must_use]
    pub fn new(limit: Option<RateLimit>, courier: &Courier, runtime: &Handle) -> Self {
        let (buckets, courier, runtime) =
            (ArcSwapOption::empty(), courier.clone(), runtime.clone());
        let limits = Self(Arc::new(Gate { buckets, courier, runtime }));
        limits.set(limit);
        limits
    }

    /// From the next call on, these limits hold; in this process everybody begins anew.
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

    /// Counts a call of this person's, unless there have been too many.
    ///
    /// # Errors
    /// [`TooMany`]; the call must not be answered then.
    pub async fn admit(&self, caller: &Caller) -> Result<(), TooMany> {
        let Some(buckets) = self.0.buckets.load_full() else { return Ok(()) };
        buckets.sweep();
        let key = bucket_key(caller);
        let Some(shared) = &buckets.shared else { return check(&buckets.own, &key) };
        if check(&shared.free, &key).is_ok() {
            return Ok(());
        }
        // Whoever asks too much of this replica alone is not worth a question.
        check(&buckets.own, &key)?;
        shared.check(key).await
    }
}

impl Buckets {
    /// A bucket that has drained says no more than one that is not there.
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
    /// Without an answer in time the call is admitted: this process's own bucket had room for it.
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

/// A person's bucket, here and in Redis. Tenants and users may hold colons, so the tenant's length
/// comes first: no two people share a key.
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
    fn a_part_is_never_nothing() {
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
                token_id: None,
                via: Via::default(),
            })
        });
        assert_eq!(HashSet::from(keys).len(), people.len());
    }

    #[test]
    fn those_who_are_quiet_are_forgotten() {
        let buckets = Buckets {
            // Drained again before the next line.
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
