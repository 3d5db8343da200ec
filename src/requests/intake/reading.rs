//! Reads requests from Redis: those whose turn it is, and those that a pass over all keys finds.

use std::collections::HashSet;
use std::hash::BuildHasher as _;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use super::leading::{BATCH_SIZE, Leading, Writes};
use crate::courier::{Looked, Scan, StoredRequest, Unavailable};
use crate::domain::ids::RequestId;
use crate::domain::record::Ruling;
use crate::domain::request::{ApprovalRequest, REQUEST_TTL_SECONDS, Scope};
use crate::domain::session::SessionPointer;
use crate::ledger::{SeenRequest, SeenRow};
use crate::observe::metrics;
use crate::requests::load::redis_candidate;
use crate::state::AppState;

/// Where Redis announces changes, a pass is made this many times as seldom.
const ANNOUNCED_FACTOR: u32 = 10;
/// Most sessions to read at once, on a Cluster.
const CONCURRENCY: usize = 32;
/// A remaining time to live that is larger by this than expected: the key was written anew.
const TTL_TOLERANCE: TimeDelta = TimeDelta::seconds(2);

impl Leading {
    /// Goes on with the pass over all keys, or begins one if it is time to. Reads the requests that
    /// are new.
    pub(super) async fn scan(
        &mut self,
        app: &AppState,
        writes: &mut Writes,
    ) -> Result<(), Unavailable> {
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
                let factor = if self.are_changes_announced() { ANNOUNCED_FACTOR } else { 1 };
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
    pub(super) async fn look(
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
}

/// What was found under a request's key.
pub(super) enum Found {
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

pub(super) struct PendingFound {
    pub(super) seen: SeenRequest,
    pub(super) pointer: SessionPointer,
    /// The key was written again since its row was.
    pub(super) is_anew: bool,
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
        ruling: Ruling::default(),
    };
    Found::Pending(Box::new(PendingFound { seen, pointer, is_anew }))
}

/// Whether the key's time to live says that the key was written since the row was. A key that does not
/// expire, or later than requests do, says nothing.
fn is_asked_anew(row: &SeenRow, ttl: Option<Duration>, now: DateTime<Utc>) -> bool {
    let Some(ttl) = ttl.filter(|ttl| ttl.as_secs() <= REQUEST_TTL_SECONDS) else { return false };
    // Not `row.expires_at`: a rule of the policy file may have shortened the time of the request.
    let lifetime = TimeDelta::seconds(i64::try_from(REQUEST_TTL_SECONDS).unwrap_or(0));
    let expires_at = row.asked_at + lifetime;
    now + TimeDelta::from_std(ttl).unwrap_or_default() > expires_at + TTL_TOLERANCE
}
