//! Decides what is to be written about a request that was read. Writes nothing itself.

use std::hash::BuildHasher as _;
use std::mem;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use tracing::warn;

use super::leading::{
    Closed, JUDGE_INTERVAL, JUDGE_TIMEOUT, Leading, Refreshed, ToWrite, Unjudged, Writes,
};
use super::reading::{Found, PendingFound};
use crate::courier::Looked;
use crate::domain::ids::RequestId;
use crate::ledger::{GoneRequest, SeenRequest, SeenRow};
use crate::observe::metrics;

/// How long a new request without a tenant waits for a session that has one. Nobody can be shown it
/// before.
const TENANT_TIMEOUT: Duration = Duration::from_mins(1);
/// Most pending requests to keep rows for.
const MAX_PENDING: usize = 500_000;

impl Leading {
    /// Decides what is to be written about one request.
    pub(super) fn take_in(
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
            if known.row.has_moved_on != row.has_moved_on {
                writes.turned.push(row.clone());
            }
            let before = mem::replace(&mut known.row, row.clone());
            writes.refreshed.push(Refreshed { before, after: row });
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
            let before = known.row;
            let row = SeenRow { has_moved_on: true, ..before.clone() };
            writes.turned.push(row.clone());
            writes.refreshed.push(Refreshed { before, after: row });
            return;
        }
        if is_absent {
            writes.absent.push(known.row.clone());
        }
        let SeenRow { tenant, id, .. } = known.row;
        // A key that is there, and not pending, needs no proof of where it is.
        let replication_id = known.row.replication_id.unwrap_or(replication_id);
        writes.gone.push(GoneRequest { tenant, id, read_at, replication_id });
    }

    /// Keeps a key that is not to be read at every pass. Logs and counts once that a request cannot be
    /// read.
    pub(super) fn put_aside(&mut self, id: &RequestId, problem: Option<&'static str>) {
        let hash = self.hashes.hash_one(id);
        let was_unreadable = self.closed.get(&hash).is_some_and(|closed| closed.is_unreadable);
        let (due, pass) = (Instant::now() + self.closed_interval(), self.pass);
        self.closed.insert(hash, Closed { due, pass, is_unreadable: problem.is_some() });
        if let Some(problem) = problem.filter(|_problem| !was_unreadable) {
            metrics::intake_unreadable();
            warn!(request_id = %id, problem, "a request in Redis cannot be read, and is not shown");
        }
    }
}
