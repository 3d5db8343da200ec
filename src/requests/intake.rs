//! The intake: every pending request that an agent writes to Redis gets a row in the ledger, so that
//! people can find it. The row decides nothing: see
//! [`Record::is_only_seen`](crate::domain::record::Record::is_only_seen).
//!
//! One replica does this, the holder of a lease. It is told of keys that change where Redis announces
//! that, and beside that it passes over all keys again and again. It reads a request when it is new or
//! announced, and then every few seconds as long as it is pending. Two replicas that believe to hold
//! the lease do no harm.
//!
//! **Judge**: an agent writes the request first and its session a moment later, so a request waits for
//! its session up to a second. **Record**: rows are written in batches. A key that has gone closes its
//! row, except where Redis as a whole may have lost its data.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::load::redis_candidate;
use super::notify::notify;
use crate::courier::{Changed, Courier, Looked, Scan, ScanSettings, StoredRequest, Unavailable};
use crate::domain::ids::RequestId;
use crate::domain::request::{ApprovalRequest, REQUEST_TTL_SECONDS, Scope};
use crate::domain::session::SessionPointer;
use crate::ledger::{AskedAgain, GoneRequest, LedgerError, SeenRequest, SeenRow};
use crate::observe::metrics;
use crate::state::AppState;
use crate::workers::{Failed, Progress, Worker};

/// The name of the lease.
const LEASE_NAME: &str = "intake";
/// How long a replica holds the lease. Another one takes over at most this and `RENEW_INTERVAL` after
/// the holder was killed.
const LEASE: TimeDelta = TimeDelta::milliseconds(3000);
/// How often the lease is renewed, and how often the other replicas try to take it.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// How long a new request waits to be named by its session.
const JUDGE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a new request without a tenant waits for a session that has one. Nobody can be shown it
/// before.
const TENANT_TIMEOUT: Duration = Duration::from_mins(1);
/// How often a request that waits for its session is read, in the first second and later.
const JUDGE_INTERVAL: Duration = Duration::from_millis(150);
const LATE_JUDGE_INTERVAL: Duration = Duration::from_secs(1);
/// How often a request that is pending is read: a key that has gone must be noticed within 5 s.
const PENDING_INTERVAL: Duration = Duration::from_secs(4);
/// The same where Redis announces no changes: then only this notices that a session has moved on.
const UNANNOUNCED_INTERVAL: Duration = Duration::from_millis(1500);
/// How often a key is read that is not pending, or that the ledger takes for closed.
const CLOSED_INTERVAL: Duration = Duration::from_secs(10);
/// At most 10,000 pending requests are read in a second, and 2,000 other keys.
const PENDING_SHARE: Duration = Duration::from_micros(100);
const CLOSED_SHARE: Duration = Duration::from_micros(500);
/// Most pending requests to keep rows for.
const MAX_PENDING: usize = 500_000;
/// How often to ask the ledger which requests were closed.
const SETTLED_INTERVAL: Duration = Duration::from_secs(2);
/// How far that reaches back before the last time: longer than a write takes.
const SETTLED_OVERLAP: TimeDelta = TimeDelta::seconds(5);
/// How often to ask whether Redis announces changes: an operator may switch that off and on.
const FLAGS_INTERVAL: Duration = Duration::from_secs(1);
/// Where Redis announces changes, a pass is made this many times as seldom.
const ANNOUNCED_FACTOR: u32 = 10;
/// Most requests to read and to write in one round.
const BATCH_SIZE: usize = 200;
/// The pause after each write, in times of what the write took, and its longest: 10,000 requests are
/// written within 30 s all the same.
const WRITE_PAUSE: u32 = 4;
const MAX_WRITE_PAUSE: Duration = Duration::from_millis(150);
/// Most bytes of documents to write in one statement.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Most sessions to read at once, on a Cluster.
const CONCURRENCY: usize = 32;
/// How often to note that an agent has asked again, while the ledger refuses that.
const MAX_REFUSALS: u32 = 3;
/// Most announced changes to keep. Beyond that a pass finds them.
const MAX_CHANGES: usize = 100_000;
/// A remaining time to live that is larger by this than expected: the key was written anew.
const TTL_TOLERANCE: TimeDelta = TimeDelta::seconds(2);
/// Pause before another subscription after one was lost or refused.
const RESUBSCRIBE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the subscription is checked.
const PING_INTERVAL: Duration = Duration::from_secs(3);

/// The worker that watches Redis for requests.
#[derive(Debug)]
pub struct IntakeWorker {
    app: AppState,
    settings: ScanSettings,
    /// Who holds the lease: this process.
    holder: String,
    /// Until when this process holds the lease for sure.
    held_until: DateTime<Utc>,
    renew_at: Instant,
    leading: Option<Leading>,
    changes: Arc<Changes>,
}

impl IntakeWorker {
    /// A worker that does not hold the lease yet.
    #[must_use]
    pub fn new(app: AppState, settings: ScanSettings) -> Self {
        let (held_until, renew_at) = (DateTime::UNIX_EPOCH, Instant::now());
        let (holder, changes) = (Uuid::new_v4().to_string(), Arc::default());
        Self { app, settings, holder, held_until, renew_at, leading: None, changes }
    }

    /// Takes or renews the lease if it is time to. Returns whether this process holds it.
    async fn hold_lease(&mut self) -> Result<bool, LedgerError> {
        if Instant::now() >= self.renew_at {
            self.renew_at = Instant::now() + RENEW_INTERVAL;
            let now = self.app.clock.now();
            let until = now + LEASE;
            let held = self.app.ledger.hold_lease(LEASE_NAME, &self.holder, now, until).await;
            match held {
                Ok(true) => self.held_until = until,
                Ok(false) => self.held_until = DateTime::UNIX_EPOCH,
                // The lease may be held until it ends.
                Err(error) if self.app.clock.now() >= self.held_until => return Err(error),
                Err(error) => debug!(%error, "the lease of the intake cannot be renewed"),
            }
        }
        Ok(self.app.clock.now() < self.held_until)
    }
}

impl Worker for IntakeWorker {
    const NAME: &'static str = "intake";
    const INTERVAL: Duration = Duration::from_millis(100);
    const RETRY_INTERVAL: Duration = Duration::from_millis(500);
    const BATCH_INTERVAL: Duration = Duration::from_millis(5);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let failed = |error: IntakeError| {
            warn!(%error, "the intake cannot read Redis or write to the ledger");
            Failed
        };
        if !self.hold_lease().await.map_err(IntakeError::from).map_err(failed)? {
            if self.leading.take().is_some() {
                info!("another replica watches Redis for requests now");
            }
            return Ok(Progress::Done);
        }
        if self.leading.is_none() {
            let leading = Leading::begin(&self.app, self.settings, &self.changes);
            self.leading = Some(leading.await.map_err(IntakeError::from).map_err(failed)?);
            info!("this replica watches Redis for requests");
        }
        let Some(leading) = &mut self.leading else { return Ok(Progress::Done) };
        let done = leading.round(&self.app).await;
        if matches!(done, Err(IntakeError::Ledger(_))) {
            // What the ledger has is unknown: read it again.
            self.leading = None;
        }
        done.map_err(failed)
    }

    async fn wake_up(&mut self) {
        self.changes.added.notified().await;
    }

    async fn finish(&mut self) {
        if self.leading.is_some() {
            // If this fails, the lease ends by itself.
            let _given_back = self.app.ledger.give_lease_back(LEASE_NAME, &self.holder).await;
        }
    }
}

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum IntakeError {
    #[error(transparent)]
    Courier(#[from] Unavailable),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// The changes that Redis has announced and that are still to be looked at.
#[derive(Debug, Default)]
struct Changes {
    waiting: Mutex<(VecDeque<RequestId>, HashSet<String>)>,
    added: Notify,
    /// A subscription holds, and nothing was dropped since.
    is_complete: AtomicBool,
}

impl Changes {
    fn add(&self, changed: Changed) {
        let mut waiting = self.waiting();
        if waiting.0.len() + waiting.1.len() >= MAX_CHANGES {
            self.is_complete.store(false, Ordering::Relaxed);
            return;
        }
        match changed {
            // One write is announced twice, as `set` and as `expire`.
            Changed::Request(id) if waiting.0.back() == Some(&id) => return,
            Changed::Request(id) => waiting.0.push_back(id),
            Changed::Session(session) => {
                waiting.1.insert(session);
            }
        }
        drop(waiting);
        self.added.notify_one();
    }

    fn waiting(&self) -> MutexGuard<'_, (VecDeque<RequestId>, HashSet<String>)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Subscribes to the changes, again after each loss.
async fn listen(courier: Courier, changes: Arc<Changes>) {
    loop {
        if let Err(error) = listen_once(&courier, &changes).await {
            debug!(%error, "no changes of keys are heard");
        }
        changes.is_complete.store(false, Ordering::Relaxed);
        sleep(RESUBSCRIBE_INTERVAL).await;
    }
}

async fn listen_once(courier: &Courier, changes: &Changes) -> Result<(), Unavailable> {
    let Some(mut heard) = courier.listen_to_changes().await? else { return Ok(()) };
    changes.is_complete.store(true, Ordering::Relaxed);
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            next = heard.next() => {
                if let Some(key) = next? {
                    changes.add(key);
                }
            }
            _now = pings.tick() => {
                heard.ping().await?;
                if !changes.is_complete.load(Ordering::Relaxed) {
                    // Too many at once. Another subscription begins with a pass.
                    return Ok(());
                }
            }
        }
    }
}

/// A pending request whose row this process keeps up to date.
#[derive(Debug)]
struct Pending {
    row: SeenRow,
    /// The hash of the text in Redis and of its session's pointer; `None` before they were read.
    texts: Option<(u64, u64)>,
    due: Instant,
}

/// A new request that its session does not name yet.
#[derive(Debug)]
struct Unjudged {
    seen_at: DateTime<Utc>,
    since: Instant,
    session: String,
    due: Instant,
}

/// A request that is pending in Redis, named by its session, and closed in the ledger.
#[derive(Clone, Copy, Debug)]
struct Again {
    due: Instant,
    /// The row says that its agent has asked again.
    is_noted: bool,
    /// How often the ledger has refused to note that. Its answer may be on its way.
    refusals: u32,
}

/// A key that is not pending, cannot be read, or whose request is closed in the ledger.
#[derive(Clone, Copy, Debug)]
struct Closed {
    due: Instant,
    /// The last pass that found the key.
    pass: u32,
    is_unreadable: bool,
}

/// What was found under a request's key.
enum Found {
    Absent,
    NotPending,
    /// A pending request without a tenant, which its session may name yet.
    Nobodys {
        session: String,
        asked_at: DateTime<Utc>,
    },
    Unreadable(&'static str),
    /// The same text and pointer as before, written once.
    Unchanged,
    Pending(Box<PendingFound>),
}

struct PendingFound {
    seen: SeenRequest,
    pointer: SessionPointer,
    /// The key was written again since its row was.
    is_anew: bool,
}

/// A request to be written, or to be found closed in the ledger.
#[derive(Debug)]
struct ToWrite {
    seen: SeenRequest,
    texts: (u64, u64),
    /// Its session names it.
    is_named: bool,
}

/// What a round writes.
#[derive(Debug, Default)]
struct Writes {
    seen: Vec<ToWrite>,
    refreshed: Vec<SeenRow>,
    gone: Vec<GoneRequest>,
    answered: Vec<RequestId>,
}

/// What the holder of the lease knows of Redis.
#[derive(Debug)]
struct Leading {
    settings: ScanSettings,
    hashes: RandomState,
    pending: HashMap<RequestId, Pending>,
    unjudged: HashMap<RequestId, Unjudged>,
    /// The pending and unjudged requests of each session.
    sessions: HashMap<String, HashSet<RequestId>>,
    /// By the hash of the id, since there are many more of these than of the others.
    closed: HashMap<u64, Closed>,
    /// Requests that are pending in Redis, and closed in the ledger.
    asked_again: HashMap<RequestId, Again>,
    /// When to read which request of `pending` or `asked_again`, the earliest first.
    turns: VecDeque<(Instant, RequestId)>,
    changes: Arc<Changes>,
    are_changes_announced: bool,
    ask_for_flags_at: Instant,
    ask_for_settled_at: Instant,
    settled_since: DateTime<Utc>,
    scan: Option<(Scan, Instant)>,
    scan_at: Instant,
    pass: u32,
    /// There are `MAX_PENDING` requests, and the log says so.
    is_full: bool,
    /// How many keys may be touched now, and since when.
    room: f64,
    room_at: Instant,
    /// Hears the announced changes; `None` while Redis announces none.
    listener: Option<AbortOnDropHandle<()>>,
}

impl Leading {
    /// Begins with the rows that the ledger has.
    async fn begin(
        app: &AppState,
        settings: ScanSettings,
        changes: &Arc<Changes>,
    ) -> Result<Self, LedgerError> {
        let now = Instant::now();
        *changes.waiting() = Default::default();
        changes.is_complete.store(false, Ordering::Relaxed);
        let mut leading = Self {
            settings,
            hashes: RandomState::new(),
            pending: HashMap::new(),
            unjudged: HashMap::new(),
            sessions: HashMap::new(),
            closed: HashMap::new(),
            asked_again: HashMap::new(),
            turns: VecDeque::new(),
            changes: Arc::clone(changes),
            are_changes_announced: false,
            ask_for_flags_at: now,
            ask_for_settled_at: now,
            settled_since: app.clock.now(),
            scan: None,
            scan_at: now,
            pass: 0,
            is_full: false,
            room: 0.0,
            room_at: now,
            listener: None,
        };
        let (mut after, limit) = (String::new(), 1000);
        loop {
            let rows = app.ledger.seen_after(&after, limit).await?;
            let Some(last) = rows.last() else { return Ok(leading) };
            last.id.as_str().clone_into(&mut after);
            for row in rows {
                leading.keep(row, None, now);
            }
        }
    }

    async fn round(&mut self, app: &AppState) -> Result<Progress, IntakeError> {
        self.earn_room();
        self.ask_for_flags(app).await;
        self.ask_for_settled(app).await?;
        let mut writes = Writes::default();
        let (announced, more) = self.take_changes();
        let ids = self.next_to_look_at(&announced);
        let mut read = self.look(app, &ids, &mut writes).await;
        if read.is_err() {
            self.changes.waiting().0.extend(announced);
        } else {
            read = self.scan(app, &mut writes).await;
        }
        // What was read before Redis failed is written.
        self.write(app, writes).await?;
        read?;
        let is_scanning = self.scan.is_some();
        let has_turns = self.turns.front().is_some_and(|(due, _)| *due <= Instant::now());
        let is_busy = more || is_scanning || has_turns;
        Ok(if is_busy && self.room > 0.0 { Progress::More } else { Progress::Done })
    }

    /// Adds to the number of keys that may be touched, up to a quarter of a second's.
    fn earn_room(&mut self) {
        let (now, rate) = (Instant::now(), f64::from(self.settings.keys_per_second));
        let earned = rate * (now - self.room_at).as_secs_f64();
        self.room = (self.room + earned).min(rate / 4.0);
        self.room_at = now;
    }

    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    fn spend_room(&mut self, keys: usize) {
        self.room -= keys as f64;
    }

    /// Asks Redis whether it announces changes. If that is new, changes may have been missed before.
    async fn ask_for_flags(&mut self, app: &AppState) {
        let now = Instant::now();
        if now < self.ask_for_flags_at {
            return;
        }
        self.ask_for_flags_at = now + FLAGS_INTERVAL;
        // A refusal is as good as a no.
        let is_on = app.courier.announces_changes().await.unwrap_or(false);
        if !is_on {
            self.listener = None;
            self.changes.is_complete.store(false, Ordering::Relaxed);
        } else if self.listener.is_none() {
            let listening = listen(app.courier.clone(), Arc::clone(&self.changes));
            self.listener = Some(AbortOnDropHandle::new(app.runtime.spawn(listening)));
        }
        let are_announced = self.changes.is_complete.load(Ordering::Relaxed);
        if are_announced != self.are_changes_announced {
            self.are_changes_announced = are_announced;
            info!(are_announced, "whether Redis announces changes of requests");
            // The pass under way may have passed what changed in between.
            self.scan = None;
            self.scan_at = now;
        }
    }

    /// Asks the ledger which requests were closed meanwhile. If such a request looks as before in Redis,
    /// its agent has asked again since.
    async fn ask_for_settled(&mut self, app: &AppState) -> Result<(), LedgerError> {
        let now = app.clock.now();
        if self.pending.is_empty() {
            self.settled_since = now;
        }
        if Instant::now() < self.ask_for_settled_at || self.pending.is_empty() {
            return Ok(());
        }
        let settled = app.ledger.settled_since(self.settled_since - SETTLED_OVERLAP).await?;
        self.ask_for_settled_at = Instant::now() + SETTLED_INTERVAL;
        self.settled_since = now;
        for (_session, tenant, id) in settled {
            if self.pending.get(&id).is_some_and(|pending| pending.row.tenant == tenant) {
                self.forget(&id);
                self.changes.waiting().0.push_back(id);
            }
        }
        Ok(())
    }

    /// Takes announced changes, as many as fit into a round. Returns whether there are more.
    fn take_changes(&mut self) -> (Vec<RequestId>, bool) {
        let mut waiting = self.changes.waiting();
        let sessions = mem::take(&mut waiting.1);
        let length = waiting.0.len().min(BATCH_SIZE);
        let announced = waiting.0.drain(..length).collect::<Vec<_>>();
        let more = !waiting.0.is_empty();
        drop(waiting);
        for session in sessions {
            self.look_again_at(&session, |_row| true);
        }
        (announced, more)
    }

    /// Brings forward the turns of a session's requests: the session may name another request now.
    fn look_again_at(&mut self, session: &str, is_affected: impl Fn(&SeenRow) -> bool) {
        let now = Instant::now();
        for id in self.sessions.get(session).into_iter().flatten().take(BATCH_SIZE) {
            let pending = self.pending.get_mut(id);
            if let Some(pending) = pending.filter(|pending| is_affected(&pending.row)) {
                pending.due = now;
                self.turns.push_front((now, id.clone()));
            } else if let Some(unjudged) = self.unjudged.get_mut(id) {
                unjudged.due = now;
            }
        }
    }

    /// The requests to read in this round: those announced, those that wait for their session, and
    /// those whose turn it is.
    fn next_to_look_at(&mut self, announced: &[RequestId]) -> Vec<RequestId> {
        let now = Instant::now();
        let mut ids = announced.iter().cloned().collect::<HashSet<_>>();
        let unjudged = self.unjudged.iter_mut().filter(|(_, unjudged)| unjudged.due <= now);
        for (id, unjudged) in unjudged.take(BATCH_SIZE) {
            let is_late = now - unjudged.since >= JUDGE_TIMEOUT;
            unjudged.due = now + if is_late { LATE_JUDGE_INTERVAL } else { JUDGE_INTERVAL };
            ids.insert(id.clone());
        }
        let pause = self.pending_interval();
        let mut left = BATCH_SIZE;
        while let Some((due, _)) = self.turns.front()
            && *due <= now
            && left > 0
            && let Some((due, id)) = self.turns.pop_front()
        {
            // An entry whose turn was changed since has another entry.
            let turn = match self.pending.get_mut(&id) {
                Some(pending) => Some(&mut pending.due),
                None => self.asked_again.get_mut(&id).map(|again| &mut again.due),
            };
            if let Some(turn) = turn.filter(|turn| **turn == due) {
                *turn = now + pause;
                self.turns.push_back((now + pause, id.clone()));
                ids.insert(id);
                left -= 1;
            }
        }
        ids.into_iter().collect()
    }

    /// Time between two reads of a pending request. It grows with their number, so that reading them
    /// costs Redis no more from some number on.
    fn pending_interval(&self) -> Duration {
        let pause =
            if self.are_changes_announced { PENDING_INTERVAL } else { UNANNOUNCED_INTERVAL };
        pause.max(PENDING_SHARE * u32::try_from(self.pending.len()).unwrap_or(u32::MAX))
    }

    /// The same for keys that are not pending.
    fn closed_interval(&self) -> Duration {
        let share = CLOSED_SHARE * u32::try_from(self.closed.len()).unwrap_or(u32::MAX);
        CLOSED_INTERVAL.max(share)
    }

    /// Goes on with the pass over all keys, or begins one if it is time to. Reads the requests that
    /// are new.
    async fn scan(&mut self, app: &AppState, writes: &mut Writes) -> Result<(), Unavailable> {
        let now = Instant::now();
        if self.scan.is_none() && now >= self.scan_at {
            self.pass = self.pass.wrapping_add(1);
            self.scan = Some((Scan::default(), now));
        }
        while self.room > 0.0
            && writes.seen.len() < BATCH_SIZE
            && let Some((scan, began)) = &mut self.scan
        {
            let began = *began;
            let found = match app.courier.scan(scan, self.settings.count).await {
                Ok(found) => found,
                Err(error) => {
                    self.scan = None;
                    self.scan_at = Instant::now() + self.settings.interval;
                    return Err(error);
                }
            };
            self.spend_room(self.settings.count);
            let Some(found) = found else {
                metrics::intake_passed(began.elapsed());
                let factor = if self.are_changes_announced { ANNOUNCED_FACTOR } else { 1 };
                self.scan = None;
                self.scan_at = began + self.settings.interval * factor;
                let pass = self.pass;
                self.closed.retain(|_id, closed| pass.wrapping_sub(closed.pass) < 2);
                return Ok(());
            };
            let new = found.into_iter().filter(|id| self.is_new(id)).collect::<Vec<_>>();
            if let Err(error) = self.look(app, &new, writes).await {
                self.scan = None;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether a request that a pass has found is to be read now.
    fn is_new(&mut self, id: &RequestId) -> bool {
        if self.pending.contains_key(id)
            || self.unjudged.contains_key(id)
            || self.asked_again.contains_key(id)
        {
            return false;
        }
        let pass = self.pass;
        let closed = self.closed.get_mut(&self.hashes.hash_one(id));
        closed.is_none_or(|closed| {
            closed.pass = pass;
            closed.due <= Instant::now()
        })
    }

    /// Reads requests and takes in what was found.
    async fn look(
        &mut self,
        app: &AppState,
        ids: &[RequestId],
        writes: &mut Writes,
    ) -> Result<(), Unavailable> {
        for some in ids.chunks(BATCH_SIZE) {
            let mut left = some.to_vec();
            // What did not fit is read next.
            while !left.is_empty() {
                self.spend_room(left.len());
                let read_at = app.clock.now();
                let looked = app.courier.look(&left).await?;
                let now = app.clock.now();
                let before = left.len();
                let read = looked.iter().map(|looked| looked.id.clone()).collect::<HashSet<_>>();
                left.retain(|id| !read.contains(id));
                let found = self.read_sessions(app, looked, read_at, now).await?;
                for (looked, found, texts) in found {
                    self.take_in(looked, found, texts, (read_at, now), writes);
                }
                if left.len() == before {
                    return Err(Unavailable("Redis reads no request".to_owned()));
                }
            }
        }
        Ok(())
    }

    /// Reads the sessions of requests, where they were not read together with them.
    async fn read_sessions(
        &self,
        app: &AppState,
        looked: Vec<Looked>,
        read_at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Vec<(Looked, Found, (u64, u64))>, Unavailable> {
        let reading = looked.into_iter().map(|mut looked| async move {
            let Some(stored) = looked.request.take() else {
                return Ok((looked, Found::Absent, (0, 0)));
            };
            let text = self.hashes.hash_one(&stored.document);
            let known = self.pending.get(&looked.id);
            let is_known = known.and_then(|known| known.texts).is_some_and(|(is, _)| is == text);
            let session = match known.filter(|_known| is_known) {
                Some(known) => Some(known.row.session.clone()),
                None => Scope::read(&stored.document).session,
            };
            let pointer = match session {
                Some(session) => {
                    app.courier.session_of(stored.guessed_session.clone(), &session).await?
                }
                None => SessionPointer::default(),
            };
            let texts = (text, self.hashes.hash_one(&pointer.text));
            let is_anew = known.is_some_and(|known| is_asked_anew(&known.row, stored.ttl, now));
            // Where a session names nothing, its other requests count, too.
            let is_unchanged = known.is_some_and(|known| known.texts == Some(texts))
                && !is_anew
                && pointer.request.is_some();
            let found = if is_unchanged {
                Found::Unchanged
            } else {
                read(&looked, stored, pointer, is_anew, (read_at, now))
            };
            Ok((looked, found, texts))
        });
        futures_util::stream::iter(reading).buffered(CONCURRENCY).try_collect().await
    }

    /// Decides what is to be written about one request.
    fn take_in(
        &mut self,
        looked: Looked,
        found: Found,
        texts: (u64, u64),
        (read_at, now): (DateTime<Utc>, DateTime<Utc>),
        writes: &mut Writes,
    ) {
        let Looked { id, replication_id, .. } = looked;
        let PendingFound { seen, pointer, is_anew } = match found {
            Found::Pending(pending) => *pending,
            Found::Unchanged => {
                self.refresh(&id, replication_id, None, texts, writes);
                return;
            }
            Found::Absent => {
                self.drop_unjudged(&id);
                self.close(&id, true, replication_id, read_at, writes);
                return;
            }
            Found::Nobodys { session, asked_at }
                if !self.pending.contains_key(&id)
                    && self.waits_for_session(&id, &session, asked_at, now, TENANT_TIMEOUT) =>
            {
                return;
            }
            Found::NotPending | Found::Nobodys { .. } | Found::Unreadable(_) => {
                self.drop_unjudged(&id);
                self.close(&id, false, replication_id, read_at, writes);
                let problem = match found {
                    Found::Unreadable(problem) => Some(problem),
                    _ => None,
                };
                self.put_aside(&id, problem);
                return;
            }
        };
        let is_named = pointer.names(&id);
        let is_known = self.pending.contains_key(&id) || self.asked_again.contains_key(&id);
        let seen_at = self.unjudged.get(&id).map_or(seen.seen_at, |unjudged| unjudged.seen_at);
        let session = seen.request.session.as_str();
        if !is_named
            && !is_known
            && self.waits_for_session(&id, session, seen.asked_at, now, JUDGE_TIMEOUT)
        {
            return;
        }
        self.drop_unjudged(&id);
        let has_moved_on = !pointer.allows(&id)
            || pointer.is_anothers(Some(&seen.tenant), seen.user.as_ref())
            || (pointer.request.is_none() && self.has_newer(session, &id, seen.asked_at));
        let seen = SeenRequest { seen_at, has_moved_on, ..seen };
        let is_same = self.pending.get(&id).is_some_and(|known| {
            known.row.content_hash == seen.request.content_hash
                && known.row.tenant == seen.tenant
                && known.row.user == seen.user
                && !is_anew
        });
        if is_same {
            self.refresh(&id, replication_id, Some(has_moved_on), texts, writes);
        } else if !is_known && self.pending.len() >= MAX_PENDING {
            if !mem::replace(&mut self.is_full, true) {
                warn!(MAX_PENDING, "too many requests are pending in Redis: no more get a row");
            }
            self.put_aside(&id, None);
        } else {
            self.is_full = false;
            writes.seen.push(ToWrite { seen, texts, is_named });
        }
    }

    /// Whether a new request, which its agent made at `asked_at`, still waits to be named by its
    /// session. It waits for `longest` at most.
    fn waits_for_session(
        &mut self,
        id: &RequestId,
        session: &str,
        asked_at: DateTime<Utc>,
        now: DateTime<Utc>,
        longest: Duration,
    ) -> bool {
        let instant = Instant::now();
        let (since, seen_at) = match self.unjudged.get(id) {
            Some(unjudged) => (unjudged.since, unjudged.seen_at),
            None => (instant, now),
        };
        let age = (now - asked_at).to_std().unwrap_or_default();
        if age >= longest || instant - since >= longest {
            return false;
        }
        let due = self.unjudged.get(id).map_or(instant + JUDGE_INTERVAL, |unjudged| unjudged.due);
        self.drop_unjudged(id);
        self.sessions.entry(session.to_owned()).or_default().insert(id.clone());
        let session = session.to_owned();
        self.unjudged.insert(id.clone(), Unjudged { seen_at, since, session, due });
        true
    }

    /// Whether a newer request of the session is pending.
    fn has_newer(&self, session: &str, id: &RequestId, asked_at: DateTime<Utc>) -> bool {
        let others = self.sessions.get(session).into_iter().flatten();
        others
            .filter(|other| *other != id)
            .any(|other| self.pending.get(other).is_some_and(|other| other.row.asked_at > asked_at))
    }

    /// Notes what has changed of a pending request besides its content.
    fn refresh(
        &mut self,
        id: &RequestId,
        replication_id: Option<String>,
        has_moved_on: Option<bool>,
        texts: (u64, u64),
        writes: &mut Writes,
    ) {
        let Some(known) = self.pending.get_mut(id) else { return };
        known.texts = Some(texts);
        let mut row = known.row.clone();
        row.has_moved_on = has_moved_on.unwrap_or(row.has_moved_on);
        row.replication_id = replication_id.or(row.replication_id);
        if row != known.row {
            known.row = row.clone();
            writes.refreshed.push(row);
        }
    }

    /// Closes the row of a request that is no longer pending in Redis. If another Redis answers than
    /// the one that had the request, it may have lost its data: then an absent key says nothing, and the
    /// row waits for its own time.
    fn close(
        &mut self,
        id: &RequestId,
        is_absent: bool,
        replication_id: Option<String>,
        read_at: DateTime<Utc>,
        writes: &mut Writes,
    ) {
        if self.asked_again.remove(id).is_some_and(|again| again.is_noted) {
            writes.answered.push(id.clone());
        }
        let Some(known) = self.pending.get(id) else { return };
        // A replica, or a server that does not tell which it is: ask again.
        let Some(replication_id) = replication_id else {
            if read_at >= known.row.expires_at {
                self.forget(id);
            }
            return;
        };
        let is_lost = is_absent && known.row.replication_id.as_ref() != Some(&replication_id);
        let Some(known) = self.forget(id) else { return };
        if is_lost {
            writes.refreshed.push(SeenRow { has_moved_on: true, ..known.row });
            return;
        }
        let SeenRow { tenant, id, .. } = known.row;
        // A key that is there, and not pending, needs no proof of where it is.
        let replication_id = known.row.replication_id.unwrap_or(replication_id);
        writes.gone.push(GoneRequest { tenant, id, read_at, replication_id });
    }

    fn drop_unjudged(&mut self, id: &RequestId) {
        if let Some(unjudged) = self.unjudged.remove(id) {
            self.leave(&unjudged.session, id);
        }
    }

    fn forget(&mut self, id: &RequestId) -> Option<Pending> {
        let known = self.pending.remove(id)?;
        self.leave(known.row.session.as_str(), id);
        Some(known)
    }

    fn leave(&mut self, session: &str, id: &RequestId) {
        if let Some(requests) = self.sessions.get_mut(session) {
            requests.remove(id);
            if requests.is_empty() {
                self.sessions.remove(session);
            }
        }
    }

    /// Keeps a pending request. The other requests of its session may have moved on by that.
    fn keep(&mut self, row: SeenRow, texts: Option<(u64, u64)>, due: Instant) {
        let id = row.id.clone();
        self.forget(&id);
        let session = row.session.as_str().to_owned();
        self.look_again_at(&session, |row| !row.has_moved_on);
        self.sessions.entry(session).or_default().insert(id.clone());
        self.closed.remove(&self.hashes.hash_one(&id));
        self.pending.insert(id.clone(), Pending { row, texts, due });
        if due <= Instant::now() {
            self.turns.push_front((due, id));
        } else {
            self.turns.push_back((due, id));
        }
    }

    /// Keeps a key that is not to be read at every pass. Logs and counts once that a request cannot be
    /// read.
    fn put_aside(&mut self, id: &RequestId, problem: Option<&'static str>) {
        let hash = self.hashes.hash_one(id);
        let was_unreadable = self.closed.get(&hash).is_some_and(|closed| closed.is_unreadable);
        let (due, pass) = (Instant::now() + self.closed_interval(), self.pass);
        self.closed.insert(hash, Closed { due, pass, is_unreadable: problem.is_some() });
        if let Some(problem) = problem.filter(|_problem| !was_unreadable) {
            metrics::intake_unreadable();
            warn!(request_id = %id, problem, "a request in Redis cannot be read, and is not shown");
        }
    }

    /// Writes what a round has found.
    async fn write(&mut self, app: &AppState, writes: Writes) -> Result<(), IntakeError> {
        let Writes { mut seen, refreshed, gone, answered } = writes;
        while !seen.is_empty() {
            let (mut count, mut bytes) = (0, 0);
            for next in seen.iter().take(BATCH_SIZE) {
                bytes += next.seen.request.document.len();
                if count > 0 && bytes > BATCH_BYTES {
                    break;
                }
                count += 1;
            }
            let rest = seen.split_off(count);
            let batch = mem::replace(&mut seen, rest);
            let began = Instant::now();
            self.write_seen(app, batch).await?;
            // Meanwhile the decisions have the stores for themselves.
            sleep((began.elapsed() * WRITE_PAUSE).min(MAX_WRITE_PAUSE)).await;
        }
        for rows in refreshed.chunks(BATCH_SIZE) {
            app.ledger.refresh_seen(rows).await?;
        }
        for gone in gone.chunks(BATCH_SIZE) {
            for record in app.ledger.close_gone(gone, app.clock.now()).await? {
                notify(app, &record);
            }
        }
        if !answered.is_empty() {
            app.ledger.forget_asked_again(&answered).await?;
        }
        Ok(())
    }

    async fn write_seen(&mut self, app: &AppState, batch: Vec<ToWrite>) -> Result<(), IntakeError> {
        // One request may have been read twice in a round; the later one counts.
        let mut latest = HashMap::new();
        for one in batch {
            latest.insert(one.seen.request.id.clone(), one);
        }
        let (rows, others): (Vec<_>, Vec<_>) =
            latest.into_values().map(|one| (one.seen, (one.texts, one.is_named))).unzip();
        let written = app.ledger.write_seen(&rows).await?.into_iter().collect::<HashSet<_>>();
        let (due, mut new, mut asked) = (Instant::now() + self.pending_interval(), 0, Vec::new());
        let mut answered = Vec::new();
        for (seen, (texts, is_named)) in rows.into_iter().zip(others) {
            let id = seen.request.id.clone();
            if written.contains(&id) {
                new += u64::from(!self.pending.contains_key(&id));
                self.asked_again.remove(&id);
                app.inbox.announce(&seen.tenant, &id);
                app.search.write(&seen.tenant, &seen.request);
                self.keep(row_of(seen), Some(texts), due);
                continue;
            }
            // The ledger has closed the request. Its agent may have asked again.
            self.forget(&id);
            if is_named {
                asked.push(AskedAgain {
                    id,
                    tenant: seen.tenant,
                    content_hash: seen.request.content_hash,
                    until: seen.expires_at,
                    read_at: seen.read_at,
                });
            } else {
                if self.asked_again.remove(&id).is_some_and(|again| again.is_noted) {
                    answered.push(id.clone());
                }
                self.put_aside(&id, None);
            }
        }
        metrics::intake_seen(new);
        if !answered.is_empty() {
            app.ledger.forget_asked_again(&answered).await?;
        }
        let noted = app.ledger.note_asked_again(&asked).await?.into_iter().collect::<HashSet<_>>();
        for AskedAgain { id, tenant, .. } in asked {
            let before = self.asked_again.remove(&id);
            let is_noted = noted.contains(&id);
            let refusals = before.map_or(0, |again| again.refusals) + u32::from(!is_noted);
            if refusals > MAX_REFUSALS {
                self.put_aside(&id, None);
                continue;
            }
            if is_noted && !before.is_some_and(|again| again.is_noted) {
                info!(request_id = %id, "a decided request is pending in Redis again");
                app.inbox.announce(&tenant, &id);
            }
            self.asked_again.insert(id.clone(), Again { due, is_noted, refusals });
            self.turns.push_back((due, id));
        }
        Ok(())
    }
}

/// Reads what was found under a request's key.
fn read(
    looked: &Looked,
    stored: StoredRequest,
    pointer: SessionPointer,
    is_anew: bool,
    (read_at, now): (DateTime<Utc>, DateTime<Utc>),
) -> Found {
    let ttl = stored.ttl;
    let request = match ApprovalRequest::read(&looked.id, stored.document) {
        Ok(request) if !request.is_pending() => return Found::NotPending,
        Ok(request) => request,
        Err(problem) => return Found::Unreadable(problem),
    };
    if pointer.is_ambiguous && (request.tenant.is_none() || request.user.is_none()) {
        return Found::Unreadable("is in a session that does not say plainly whose it is");
    }
    let candidate = redis_candidate(request, &pointer, ttl, now);
    let Some(tenant) = candidate.tenant else {
        let session = candidate.request.session.as_str().to_owned();
        return Found::Nobodys { session, asked_at: candidate.created_at };
    };
    let longest = Duration::from_secs(REQUEST_TTL_SECONDS);
    let lifetime = TimeDelta::from_std(ttl.unwrap_or(longest).min(longest)).unwrap_or_default();
    let seen = SeenRequest {
        tenant,
        user: candidate.user,
        request: candidate.request,
        seen_at: now,
        asked_at: candidate.created_at,
        expires_at: now + lifetime,
        read_at,
        has_moved_on: false,
        replication_id: looked.replication_id.clone(),
    };
    Found::Pending(Box::new(PendingFound { seen, pointer, is_anew }))
}

/// Whether the key's time to live says that the key was written since the row was. A key that does not
/// expire, or later than requests do, says nothing.
fn is_asked_anew(row: &SeenRow, ttl: Option<Duration>, now: DateTime<Utc>) -> bool {
    let Some(ttl) = ttl.filter(|ttl| ttl.as_secs() <= REQUEST_TTL_SECONDS) else { return false };
    now + TimeDelta::from_std(ttl).unwrap_or_default() > row.expires_at + TTL_TOLERANCE
}

fn row_of(seen: SeenRequest) -> SeenRow {
    SeenRow {
        id: seen.request.id,
        tenant: seen.tenant,
        user: seen.user,
        session: seen.request.session,
        content_hash: seen.request.content_hash,
        asked_at: seen.asked_at,
        expires_at: seen.expires_at,
        has_moved_on: seen.has_moved_on,
        replication_id: seen.replication_id,
    }
}
