//! What the holder of the lease knows of Redis: which requests are pending, which wait for their
//! session, and which keys need no reading; and when each is read next. A round reads (`reading`),
//! judges (`judging`) and records (`recording`).

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use super::changes::{Changes, NO_SUBSCRIPTION, listen};
use crate::courier::{Scan, ScanSettings, Unavailable};
use crate::domain::ids::RequestId;
use crate::ledger::{GoneRequest, LedgerError, SeenRequest, SeenRow};
use crate::state::AppState;
use crate::workers::Progress;

/// How long a new request waits to be named by its session.
pub(super) const JUDGE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a request that waits for its session is read, in the first second and later.
pub(super) const JUDGE_INTERVAL: Duration = Duration::from_millis(150);
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
/// How often to ask the ledger which requests were closed.
const SETTLED_INTERVAL: Duration = Duration::from_secs(2);
/// How far that reaches back before the last time: longer than a write takes.
const SETTLED_OVERLAP: TimeDelta = TimeDelta::seconds(5);
/// How often to ask whether Redis announces changes: an operator may switch that off and on.
const FLAGS_INTERVAL: Duration = Duration::from_secs(1);
/// Most requests to read and to write in one round.
pub(super) const BATCH_SIZE: usize = 200;

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum IntakeError {
    #[error(transparent)]
    Courier(#[from] Unavailable),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A pending request whose row this process keeps up to date.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) row: SeenRow,
    /// The hash of the text in Redis and of its session's pointer; `None` before they were read.
    pub(super) texts: Option<(u64, u64)>,
    pub(super) due: Instant,
}

/// A new request that its session does not name yet.
#[derive(Debug)]
pub(super) struct Unjudged {
    pub(super) seen_at: DateTime<Utc>,
    pub(super) since: Instant,
    pub(super) session: String,
    pub(super) due: Instant,
}

/// A request that is pending in Redis, named by its session, and closed in the ledger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Again {
    pub(super) due: Instant,
    /// The row says that its agent has asked again.
    pub(super) is_noted: bool,
    /// How often the ledger has refused to note that. Its answer may be on its way.
    pub(super) refusals: u32,
}

/// A key that is not pending, cannot be read, or whose request is closed in the ledger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closed {
    pub(super) due: Instant,
    /// The last pass that found the key.
    pub(super) pass: u32,
    pub(super) is_unreadable: bool,
}

/// A request to be written, or to be found closed in the ledger.
#[derive(Debug)]
pub(super) struct ToWrite {
    pub(super) seen: SeenRequest,
    pub(super) texts: (u64, u64),
    /// Its session names it.
    pub(super) is_named: bool,
}

/// A pending request of which something has changed besides its content.
#[derive(Debug)]
pub(super) struct Refreshed {
    /// The row as the ledger has it until the change is written.
    pub(super) before: SeenRow,
    pub(super) after: SeenRow,
}

/// What a round writes.
#[derive(Debug, Default)]
pub(super) struct Writes {
    pub(super) seen: Vec<ToWrite>,
    pub(super) refreshed: Vec<Refreshed>,
    pub(super) gone: Vec<GoneRequest>,
    /// Those of them whose keys are absent, as they were known.
    pub(super) absent: Vec<SeenRow>,
    pub(super) answered: Vec<RequestId>,
    /// Pending requests whose `has_moved_on` has changed, with the new value.
    pub(super) turned: Vec<SeenRow>,
}

/// What the holder of the lease knows of Redis.
#[derive(Debug)]
pub(super) struct Leading {
    pub(super) settings: ScanSettings,
    pub(super) hashes: RandomState,
    pub(super) pending: HashMap<RequestId, Pending>,
    pub(super) unjudged: HashMap<RequestId, Unjudged>,
    /// The pending and unjudged requests of each session.
    pub(super) sessions: HashMap<String, HashSet<RequestId>>,
    /// By the hash of the id, since there are many more of these than of the others.
    pub(super) closed: HashMap<u64, Closed>,
    /// Requests that are pending in Redis, and closed in the ledger.
    pub(super) asked_again: HashMap<RequestId, Again>,
    /// When to read which request of `pending` or `asked_again`, the earliest first.
    pub(super) turns: VecDeque<(Instant, RequestId)>,
    pub(super) changes: Arc<Changes>,
    /// The subscription to announced changes at the last look, or `NO_SUBSCRIPTION`.
    subscription: u64,
    pub(super) ask_for_flags_at: Instant,
    pub(super) ask_for_settled_at: Instant,
    pub(super) settled_since: DateTime<Utc>,
    pub(super) scan: Option<(Scan, Instant)>,
    pub(super) scan_at: Instant,
    pub(super) pass: u32,
    /// There are `MAX_PENDING` requests, and the log says so.
    pub(super) is_full: bool,
    /// How many keys may be touched now, and since when.
    pub(super) room: f64,
    pub(super) room_at: Instant,
    /// Hears the announced changes; `None` while Redis announces none.
    pub(super) listener: Option<AbortOnDropHandle<()>>,
}

impl Leading {
    /// Begins with the rows that the ledger has.
    pub(super) async fn begin(
        app: &AppState,
        settings: ScanSettings,
        changes: &Arc<Changes>,
    ) -> Result<Self, LedgerError> {
        let now = Instant::now();
        *changes.waiting() = Default::default();
        changes.lose();
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
            subscription: NO_SUBSCRIPTION,
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

    pub(super) async fn round(&mut self, app: &AppState) -> Result<Progress, IntakeError> {
        self.earn_room();
        self.ask_for_flags(app).await;
        self.notice_missed_changes();
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
    pub(super) fn spend_room(&mut self, keys: usize) {
        self.room -= keys as f64;
    }

    /// Asks Redis whether it announces changes, and listens to them if so.
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
            self.changes.lose();
        } else if self.listener.is_none() {
            let listening = listen(app.courier.clone(), Arc::clone(&self.changes));
            self.listener = Some(AbortOnDropHandle::new(app.runtime.spawn(listening)));
        }
    }

    /// Begins a pass over all keys if a subscription was lost or made since the last look: what changed
    /// in between was announced to nobody, and the pass under way may have passed it.
    fn notice_missed_changes(&mut self) {
        let subscription = self.changes.subscription();
        if subscription != self.subscription {
            self.subscription = subscription;
            let are_announced = self.are_changes_announced();
            info!(are_announced, "whether Redis announces changes of requests");
            self.scan = None;
            self.scan_at = Instant::now();
        }
    }

    pub(super) fn are_changes_announced(&self) -> bool {
        self.subscription != NO_SUBSCRIPTION
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
    pub(super) fn pending_interval(&self) -> Duration {
        let pause =
            if self.are_changes_announced() { PENDING_INTERVAL } else { UNANNOUNCED_INTERVAL };
        pause.max(PENDING_SHARE * u32::try_from(self.pending.len()).unwrap_or(u32::MAX))
    }

    /// The same for keys that are not pending.
    pub(super) fn closed_interval(&self) -> Duration {
        let share = CLOSED_SHARE * u32::try_from(self.closed.len()).unwrap_or(u32::MAX);
        CLOSED_INTERVAL.max(share)
    }

    pub(super) fn drop_unjudged(&mut self, id: &RequestId) {
        if let Some(unjudged) = self.unjudged.remove(id) {
            self.leave(&unjudged.session, id);
        }
    }

    pub(super) fn forget(&mut self, id: &RequestId) -> Option<Pending> {
        let known = self.pending.remove(id)?;
        self.leave(known.row.session.as_str(), id);
        Some(known)
    }

    pub(super) fn leave(&mut self, session: &str, id: &RequestId) {
        if let Some(requests) = self.sessions.get_mut(session) {
            requests.remove(id);
            if requests.is_empty() {
                self.sessions.remove(session);
            }
        }
    }

    /// Keeps a pending request. The other requests of its session may have moved on by that.
    pub(super) fn keep(&mut self, row: SeenRow, texts: Option<(u64, u64)>, due: Instant) {
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
}
