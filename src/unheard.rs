//! Signals that nobody heard: an agent that subscribes after it has asked misses a decision that came
//! at once. Such a signal is published again as soon as somebody listens, for as long as its agent is
//! patient, and never to a session that waits for something else.
//!
//! Each replica remembers the unheard signals that it sent, and finds those of others, which may have
//! died, in the ledger. It asks Redis for the listeners of many sessions in one command. Whoever
//! publishes again claims the row in the ledger first, so that two replicas do not both publish.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt as _;
use moka::sync::Cache;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::core::Core;
use crate::courier::Courier;
use crate::delivery::{self, Undelivered};
use crate::domain::approver::Caller;
use crate::domain::decision::{Delivery, Mark, Record, Settled, State};
use crate::domain::ids::{RequestId, SessionId, UserId};
use crate::domain::printable::printable;
use crate::domain::request::{Origin, PATIENCE};
use crate::domain::signal::signal_request;
use crate::ledger::LedgerError;
use crate::marks;
use crate::metrics::{self, By, Forgery};

/// How soon to look whether somebody listens, after a signal was sent to nobody.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);
/// How often at most for one signal. Each interval is a tenth longer than the one before.
const LONGEST_INTERVAL: Duration = Duration::from_secs(1);
/// How often to see which signals are due.
const TICK: Duration = Duration::from_millis(50);
/// How often to look for unheard signals of other replicas.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// How far a scan looks back beyond the one before: longer than a delivery takes to be noted.
const SCAN_OVERLAP: TimeDelta = TimeDelta::seconds(10);
/// Most signals to watch at once; each takes about 300 bytes.
const CAPACITY: usize = 20_000;
/// Most answered requests to remember, so that the ledger is not told again at each poll.
const ANSWERED_CAPACITY: u64 = 20_000;
/// Most sessions to ask about in one command: 0.2 ms of Redis' time.
const BATCH_SIZE: usize = 1000;
/// Most signals to publish again at the same time.
const CONCURRENCY: usize = 16;

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

/// What came of an attempt to publish a signal again.
enum Again {
    /// Its session no longer waits for it, or somebody heard it: there is nothing left to do.
    Over,
    /// It was published, to so many; or it may be tried once more.
    Watched,
}

impl Unheard {
    /// A signal was sent. Begins to watch it if nobody heard it, else ceases to.
    pub fn sent(&self, record: &Record, settled: &Settled) {
        if record.origin != Origin::Redis || !matches!(record.state, State::Decided(_)) {
            return;
        }
        if settled.delivery == Delivery::Sent && settled.listeners == Some(0) {
            self.watch(record);
        } else {
            self.forget(&record.id);
        }
    }

    fn forget(&self, request: &RequestId) {
        self.signals().remove(request);
    }

    /// An agent was answered the signal of its request over HTTP: it has heard it. What a person is
    /// shown, or an agent of a colleague, nobody has heard. The ledger is told beside the answer.
    pub fn answered(&self, core: &Core, caller: &Caller, signal: &str) {
        if caller.via.caller_type.as_deref() != Some("AGENT") {
            return;
        }
        let Some(request) = signal_request(signal).and_then(|id| RequestId::parse(id).ok()) else {
            return;
        };
        let answered = (request.clone(), caller.user.clone());
        if self.answered.entry(answered.clone()).or_insert(()).is_fresh() {
            let (core, tenant, user) = (core.clone(), caller.tenant.clone(), caller.user.clone());
            let (under_way, runtime) = (core.under_way.clone(), core.runtime.clone());
            let telling = async move {
                match core.ledger.heard(&tenant, &user, &request, core.clock.now()).await {
                    Ok(true) => core.unheard.forget(&request),
                    Ok(false) => {}
                    Err(error) => {
                        core.unheard.answered.invalidate(&answered);
                        debug!(request_id = %request, %error, "heard over HTTP, and not noted");
                    }
                }
            };
            under_way.spawn_on(telling, &runtime);
        }
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

    fn watch(&self, record: &Record) {
        let mut signals = self.signals();
        if signals.len() < CAPACITY && !signals.contains_key(&record.id) {
            let watched = Watched {
                session: record.session.clone(),
                until: record.created_at + PATIENCE,
                due: Instant::now() + FIRST_INTERVAL,
                interval: FIRST_INTERVAL,
            };
            signals.insert(record.id.clone(), watched);
        }
    }

    /// Those whose time to be looked at has come; each is due again after its next interval. Forgets
    /// those whose agents have given up.
    fn due(&self, now: DateTime<Utc>) -> Vec<(RequestId, SessionId)> {
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

/// Publishes unheard signals again until the process is asked to stop.
pub async fn run(core: Core) {
    let working = async {
        if !matches!(core.courier, Courier::Redis(_)) {
            std::future::pending::<()>().await;
        }
        tokio::join!(scan(&core), listen(&core))
    };
    tokio::select! {
        _never = working => {}
        () = core.stopping.cancelled() => {}
    }
}

async fn listen(core: &Core) {
    loop {
        sleep(TICK).await;
        for some in core.unheard.due(core.clock.now()).chunks(BATCH_SIZE) {
            let sessions = some.iter().map(|(_request, session)| session.clone());
            // While Redis is away nobody listens.
            let Ok(counts) = core.courier.listeners(&sessions.collect::<Vec<_>>()).await else {
                continue;
            };
            let listening = some.iter().zip(counts).filter(|(_signal, count)| *count > 0);
            let requests = listening.map(|((request, session), _count)| (request, session));
            futures_util::stream::iter(requests)
                .for_each_concurrent(CONCURRENCY, async |(request, session)| {
                    match publish_again(core, request, session).await {
                        Ok(Again::Over) => core.unheard.forget(request),
                        Ok(Again::Watched) => {}
                        Err(error) => debug!(request_id = %request, %error, "still unheard"),
                    }
                })
                .await;
        }
    }
}

/// Publishes one signal again, if its session still names its request and nobody was faster.
async fn publish_again(
    core: &Core,
    request: &RequestId,
    session: &SessionId,
) -> Result<Again, Undelivered> {
    let Some(mut record) = core.ledger.find_request_of_redis(request).await? else {
        // This service has sent a signal whose decision is gone.
        metrics::forged(Forgery::Signal);
        warn!(security = true, request_id = %request, session_id = printable(session.as_str()),
            "a signal was sent and the ledger does not know its decision any more: a failover of \
             the database lost it");
        return Ok(Again::Over);
    };
    if let Some(mark) = core.marks.of(&record) {
        // Only what is noted can be claimed.
        marks::write_one(core, mark.clone()).await?;
        core.marks.apply(&mut record);
        (record.delivery, record.listeners) = (mark.settled.delivery, mark.settled.listeners);
        record.sent_to = mark.settled.sent_to;
    }
    let State::Decided(decision) = record.state.clone() else { return Ok(Again::Over) };
    if record.delivery == Delivery::Owed {
        // The relay, or another replica, is about to send it.
        return Ok(Again::Watched);
    }
    if record.delivery != Delivery::Sent || record.listeners != Some(0) {
        return Ok(Again::Over);
    }
    let seen = core.courier.look(&record.id, &record.session).await?;
    if !seen.pointer.allows(&record.id) {
        // Noted for every replica: whoever makes the session name it once more wakes nobody.
        if let Some(claimed) = core.ledger.claim_unheard(&record, core.clock.now()).await? {
            let mark = Mark::of(&claimed, Settled::SUPERSEDED, core.clock.now());
            marks::write_one(core, mark).await?;
        }
        return Ok(Again::Over);
    }
    if !delivery::still_names(&record, &decision, &seen) {
        return Ok(Again::Watched);
    }
    let Some(record) = core.ledger.claim_unheard(&record, core.clock.now()).await? else {
        return Ok(Again::Watched);
    };
    crash_point!("unheard-claimed");
    let delivered = delivery::deliver(core, &record, Some(seen)).await;
    metrics::delivered(By::Listener, delivered.as_ref().ok().map(|settled| settled.delivery));
    match delivered {
        Ok(settled) => {
            crash_point!("unheard-signalled");
            let listeners = settled.listeners;
            info!(request_id = %record.id, ?listeners, "somebody listens; published again");
            core.marks.hand_in(Mark::of(&record, settled, core.clock.now()));
            Ok(Again::Watched)
        }
        Err(error) => {
            // Else the relay would wait for the lease to run out.
            let _given_back = core.ledger.postpone(&record, core.clock.now()).await;
            Err(error)
        }
    }
}

/// Finds the unheard signals of replicas that may have died.
async fn scan(core: &Core) {
    let mut since = core.clock.now() - PATIENCE;
    loop {
        let now = core.clock.now();
        match scan_once(core, since).await {
            Ok(()) => since = now - SCAN_OVERLAP,
            Err(error) => debug!(%error, "cannot look for signals that nobody heard"),
        }
        sleep(SCAN_INTERVAL).await;
    }
}

async fn scan_once(core: &Core, since: DateTime<Utc>) -> Result<(), LedgerError> {
    let room = CAPACITY.saturating_sub(core.unheard.len());
    let limit = i64::try_from(room.min(BATCH_SIZE)).unwrap_or(0);
    let patient = core.clock.now() - PATIENCE;
    for record in core.ledger.unheard(since, patient, limit).await? {
        core.unheard.watch(&record);
    }
    Ok(())
}
