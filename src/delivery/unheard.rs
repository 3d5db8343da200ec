//! The signals that nobody heard and that this replica watches: in memory, for as long as their agents
//! are patient. `republish` publishes them again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use moka::sync::Cache;
use tokio::time::Instant;

use crate::domain::decision::State;
use crate::domain::ids::{RequestId, SessionId, UserId};
use crate::domain::record::{Delivery, DeliveryResult, Record};
use crate::domain::request::{AGENT_TIMEOUT, Origin};

/// How soon to look whether somebody listens, after a signal was sent to nobody.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);
/// How often at most for one signal. Each interval is a tenth longer than the one before.
const LONGEST_INTERVAL: Duration = Duration::from_secs(1);
/// Most signals to watch at once; each takes about 300 bytes.
const CAPACITY: usize = 20_000;
/// Most answered requests to remember, so that the ledger is not told again at each poll.
const ANSWERED_CAPACITY: u64 = 20_000;

/// The unheard signals that this replica watches; cheap to clone.
#[derive(Clone, Debug)]
pub struct Unheard {
    signals: Arc<Mutex<HashMap<RequestId, Watched>>>,
    /// Requests whose agents were answered over HTTP, and the ledger told of it.
    answered: Cache<(RequestId, UserId), ()>,
}

impl Default for Unheard {
    fn default() -> Self {
        Self { signals: Arc::default(), answered: Cache::new(ANSWERED_CAPACITY) }
    }
}

#[derive(Debug)]
struct Watched {
    session: SessionId,
    /// When its agent gives up.
    until: DateTime<Utc>,
    due: Instant,
    interval: Duration,
}

impl Unheard {
    /// A signal was sent. Begins to watch it if nobody heard it, else ceases to.
    pub fn sent(&self, record: &Record, settled: &DeliveryResult) {
        if record.origin != Origin::Redis || !matches!(record.state, State::Decided(_)) {
            return;
        }
        if settled.delivery == Delivery::Sent && settled.listeners == Some(0) {
            self.watch(record);
        } else {
            self.forget(&record.id);
        }
    }

    /// Ceases to watch a signal: its agent has heard it, or waits for it no longer.
    pub fn forget(&self, request: &RequestId) {
        self.signals().remove(request);
    }

    /// Whether this person's agent was not yet known to have been answered; it is from now on.
    #[must_use]
    pub fn is_first_answer(&self, request: &RequestId, user: &UserId) -> bool {
        self.answered.entry((request.clone(), user.clone())).or_insert(()).is_fresh()
    }

    /// The ledger was not told of that answer.
    pub fn unanswered(&self, request: &RequestId, user: &UserId) {
        self.answered.invalidate(&(request.clone(), user.clone()));
    }

    /// How many more can be watched.
    #[must_use]
    pub fn room(&self) -> usize {
        CAPACITY.saturating_sub(self.len())
    }

    /// How many are watched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.signals().len()
    }

    /// Whether none is watched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.signals().is_empty()
    }

    /// Begins to watch a signal that nobody heard.
    pub fn watch(&self, record: &Record) {
        let mut signals = self.signals();
        if signals.len() < CAPACITY && !signals.contains_key(&record.id) {
            let watched = Watched {
                session: record.session.clone(),
                until: record.created_at + AGENT_TIMEOUT,
                due: Instant::now() + FIRST_INTERVAL,
                interval: FIRST_INTERVAL,
            };
            signals.insert(record.id.clone(), watched);
        }
    }

    /// Those whose time to be looked at has come; each is due again after its next interval. Forgets
    /// those whose agents have given up.
    #[must_use]
    pub fn due(&self, now: DateTime<Utc>) -> Vec<(RequestId, SessionId)> {
        let (mut signals, instant) = (self.signals(), Instant::now());
        signals.retain(|_request, watched| now < watched.until);
        let due = signals.iter_mut().filter(|(_request, watched)| watched.due <= instant);
        let due = due.map(|(request, watched)| {
            watched.interval = watched.interval.mul_f64(1.1).min(LONGEST_INTERVAL);
            watched.due = instant + watched.interval;
            (request.clone(), watched.session.clone())
        });
        due.collect()
    }

    fn signals(&self) -> MutexGuard<'_, HashMap<RequestId, Watched>> {
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
