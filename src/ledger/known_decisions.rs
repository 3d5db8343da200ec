//! A cache of decisions that this process has read from the ledger or written to it. A decision
//! never changes, so an agent that polls for a cached decision needs no query.
//!
//! Only decisions of the ledger are cached, never data from Redis.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use moka::sync::Cache;

use crate::domain::decision::{Decision, State, Verdict};
use crate::domain::ids::{RequestId, SessionId, TenantId};
use crate::domain::record::Record;
use crate::domain::request::Origin;
use crate::domain::signal::{SIGNAL_TTL_SECONDS, signal_json};

/// The most decisions that are cached.
const MAX_DECISIONS: u64 = 50_000;
/// Older decisions are not cached. A request stays in the ledger for at least a day after it was
/// closed. The margin of an hour covers the time that a decision stays in the cache, and clocks
/// that differ.
const MAX_DECISION_AGE: TimeDelta = TimeDelta::hours(23);

/// The key of a request: the id of a request of Redis is unique by itself, the id of a registered
/// request is unique within its tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Redis(RequestId),
    Registered(TenantId, RequestId),
}

/// A decided request.
#[derive(Debug)]
pub struct Known {
    /// The id of the request.
    pub id: RequestId,
    /// The tenant of the request.
    pub tenant: TenantId,
    /// The session of the request, whose agent waits.
    pub session: SessionId,
    /// The decision.
    pub decision: Decision,
}

impl Known {
    /// The signal of this decision, as JSON.
    #[must_use]
    pub fn signal(&self) -> String {
        signal_json(&self.id, &self.decision)
    }
}

/// The cache of decisions; cheap to clone.
#[derive(Clone, Debug)]
pub struct KnownDecisions(Cache<Key, Arc<Known>>);

impl Default for KnownDecisions {
    /// An empty cache. A decision stays in the cache as long as a signal stays in Redis, because
    /// agents poll for that long.
    fn default() -> Self {
        let lifetime = Duration::from_secs(SIGNAL_TTL_SECONDS);
        Self(Cache::builder().max_capacity(MAX_DECISIONS).time_to_live(lifetime).build())
    }
}

impl KnownDecisions {
    /// Caches the decision of this row, if the request was approved or rejected as it was asked. A decision older than
    /// `MAX_DECISION_AGE` is not cached: its row could be purged while the decision is cached, and
    /// the id could then belong to another request.
    pub fn remember(&self, record: &Record, now: DateTime<Utc>) {
        let State::Decided(decision) = &record.state else { return };
        // An agent is told more of an edit and of an answer than their signals say.
        let is_plain = matches!(decision.verdict, Verdict::Approve | Verdict::Reject { .. });
        if now - decision.at >= MAX_DECISION_AGE || !is_plain {
            return;
        }
        let key = match record.origin {
            Origin::Redis => Key::Redis(record.id.clone()),
            Origin::Http => Key::Registered(record.tenant.clone(), record.id.clone()),
        };
        let known = Known {
            id: record.id.clone(),
            tenant: record.tenant.clone(),
            session: record.session.clone(),
            decision: decision.clone(),
        };
        self.0.insert(key, Arc::new(known));
    }

    /// The cached decision of a request of Redis.
    #[must_use]
    pub fn of_redis(&self, id: &RequestId) -> Option<Arc<Known>> {
        self.0.get(&Key::Redis(id.clone()))
    }

    /// The cached decision of a request that was registered over HTTP.
    #[must_use]
    pub fn registered(&self, tenant: &TenantId, id: &RequestId) -> Option<Arc<Known>> {
        self.0.get(&Key::Registered(tenant.clone(), id.clone()))
    }
}
