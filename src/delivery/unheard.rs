//! The unheard signals that this replica watches. They are kept in memory until their agents give
//! up. `republish` publishes them again.

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

/// Time from the start of watching a signal to the first check for subscribers.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);
/// Longest time between two checks of one signal. Each interval is a tenth longer than the one
/// before.
const LONGEST_INTERVAL: Duration = Duration::from_secs(1);
/// Most signals to watch at once; each takes about 300 bytes.
const CAPACITY: usize = 20_000;
/// Most answered requests to remember, so that the ledger is not updated again at each poll.
const ANSWERED_CAPACITY: u64 = 20_000;

/// The unheard signals that this replica watches; cheap to clone.
#[derive(Clone, Debug)]
pub struct Unheard {
    signals: Arc<Mutex<HashMap<RequestId, Watched>>>,
    /// Requests whose agents have received the answer over HTTP, and whose rows say so.
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
    /// When to check for subscribers next.
    due: Instant,
    /// Time from the previous check to `due`.
    interval: Duration,
}

impl Unheard {
    /// Takes the result of a delivery: watches the signal if nobody heard it, otherwise forgets it.
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

    /// Stops watching a signal, which its agent has heard or no longer waits for.
    pub fn forget(&self, request: &RequestId) {
        self.signals().remove(request);
    }

    /// Records that this user's agent has received the answer. `true` if that was not recorded
    /// before.
    #[must_use]
    pub fn is_first_answer(&self, request: &RequestId, user: &UserId) -> bool {
        self.answered.entry((request.clone(), user.clone())).or_insert(()).is_fresh()
    }

    /// Undoes [`Self::is_first_answer`], because the ledger could not be updated.
    pub fn unanswered(&self, request: &RequestId, user: &UserId) {
        self.answered.invalidate(&(request.clone(), user.clone()));
    }

    /// How many more signals can be watched.
    #[must_use]
    pub fn room(&self) -> usize {
        CAPACITY.saturating_sub(self.len())
    }

    /// The number of signals that are watched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.signals().len()
    }

    /// Whether no signal is watched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.signals().is_empty()
    }

    /// Watches a signal that nobody heard, unless `CAPACITY` signals are watched already.
    pub fn watch(&self, record: &Record) {
        let mut signals = self.signals();
        if signals.len() < CAPACITY && !signals.contains_key(&record.id) {
            let watched = Watched {
                session: record.session.clone(),
                until: record.asked_at + AGENT_TIMEOUT,
                due: Instant::now() + FIRST_INTERVAL,
                interval: FIRST_INTERVAL,
            };
            signals.insert(record.id.clone(), watched);
        }
    }

    /// The signals whose subscribers are to be checked now. Each is due again after its next
    /// interval. Forgets the signals whose agents have given up.
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
