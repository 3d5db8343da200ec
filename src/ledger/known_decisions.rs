//! Decisions that this process has seen in the ledger. A decision never changes, so whoever polls for
//! one that is known here needs no query.
//!
//! Only what was read from the ledger, or written to it, is remembered: never what Redis says.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use moka::sync::Cache;

use crate::domain::decision::{Decision, State};
use crate::domain::ids::{RequestId, SessionId, TenantId};
use crate::domain::record::Record;
use crate::domain::request::Origin;
use crate::domain::signal::{SIGNAL_TTL_SECONDS, signal_json};

/// Most decisions to remember.
const CAPACITY: u64 = 50_000;
/// Older decisions are read from the ledger. Nothing younger than a day is purged; the rest is for
/// the time that a decision is remembered, and for clocks that differ.
const MAX_AGE: TimeDelta = TimeDelta::hours(23);

/// Which request: an id of Redis is unique by itself, a registered one within its tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Redis(RequestId),
    Registered(TenantId, RequestId),
}

/// A decided request.
#[derive(Debug)]
pub struct Known {
    /// Its id.
    pub id: RequestId,
    /// Its tenant.
    pub tenant: TenantId,
    /// The session that waits.
    pub session: SessionId,
    /// What was decided.
    pub decision: Decision,
}

impl Known {
    /// The signal that says so.
    #[must_use]
    pub fn signal(&self) -> String {
        signal_json(&self.id, &self.decision)
    }
}

/// Remembers decisions; cheap to clone.
#[derive(Clone, Debug)]
pub struct KnownDecisions(Cache<Key, Arc<Known>>);

impl Default for KnownDecisions {
    /// None yet. Each is remembered for as long as its signal lives, since that is how long agents
    /// poll for it.
    fn default() -> Self {
        let lifetime = Duration::from_secs(SIGNAL_TTL_SECONDS);
        Self(Cache::builder().max_capacity(CAPACITY).time_to_live(lifetime).build())
    }
}

impl KnownDecisions {
    /// Remembers what the ledger says, if it says that somebody has decided: but not what can be
    /// purged while it is remembered, since its id may stand for another request then.
    pub fn remember(&self, record: &Record, now: DateTime<Utc>) {
        let State::Decided(decision) = &record.state else { return };
        if now - decision.at >= MAX_AGE {
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

    /// What was decided of a request of Redis.
    #[must_use]
    pub fn of_redis(&self, id: &RequestId) -> Option<Arc<Known>> {
        self.0.get(&Key::Redis(id.clone()))
    }

    /// What was decided of a registered request.
    #[must_use]
    pub fn registered(&self, tenant: &TenantId, id: &RequestId) -> Option<Arc<Known>> {
        self.0.get(&Key::Registered(tenant.clone(), id.clone()))
    }
}
