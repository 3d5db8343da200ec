//! Sends the signal of a decided request of Redis, under the contract's rules on sessions that have
//! moved on. Used at once by whoever decided, and later by the relay for what was left owing.

use chrono::TimeDelta;

use super::unheard::Unheard;
use crate::courier::{self, Courier, Outgoing, Sent, SessionSnapshot, Unavailable};
use crate::domain::clock::Clock;
use crate::domain::decision::{Decision, State};
use crate::domain::record::{CourierCopy, Delivery, DeliveryResult, Record};
use crate::domain::request::{Origin, age, decided_document};
use crate::domain::session::SessionPointer;
use crate::domain::signal::signal_json;
use crate::ledger::{Ledger, LedgerError};

/// How often to look again at a session that keeps changing while we send.
const LOOKS: usize = 3;

/// How long a request of another tenant keeps a session from being signalled in: for as long as a
/// request lives in Redis, so that its agent may wait there.
pub const SESSION_LIFETIME: TimeDelta = TimeDelta::seconds(1800);

/// Why a row is still owed.
#[derive(Debug, thiserror::Error)]
pub enum Undelivered {
    /// Redis did not answer.
    #[error(transparent)]
    Courier(#[from] Unavailable),
    /// The ledger did not answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The session's pointer changed each time we looked.
    #[error("the session keeps changing")]
    Restless,
}

/// Sends signals; cheap to clone.
#[derive(Clone, Debug)]
pub struct Sender {
    /// What was decided.
    pub ledger: Ledger,
    /// How it travels.
    pub courier: Courier,
    /// What time it is.
    pub clock: Clock,
    /// Signals that nobody heard.
    pub unheard: Unheard,
}

impl Sender {
    /// Sends what a row owes. `seen` is what the caller has just judged, if it has.
    ///
    /// # Errors
    /// [`Undelivered`]: the row stays owed and may be sent again.
    pub async fn deliver(
        &self,
        record: &Record,
        seen: Option<SessionSnapshot>,
    ) -> Result<DeliveryResult, Undelivered> {
        match (&record.state, record.origin) {
        (State::Decided(decision), Origin::Redis) => {
            self.send_signal(record, decision, seen).await
        }
        // Registered requests have no keys in Redis. An older release may have left one owed.
        (State::Decided(_), Origin::Http)
        // Not a word on the channel about these: agents take anything for an approval.
        | (State::Pending | State::Expired | State::Cancelled, _) => Ok(DeliveryResult::SENT),
    }
    }

    async fn send_signal(
        &self,
        record: &Record,
        decision: &Decision,
        mut seen: Option<SessionSnapshot>,
    ) -> Result<DeliveryResult, Undelivered> {
        let signal = signal_json(&record.id, decision);
        let document = decided_document(&record.document, decision);
        let was_sent = record.replication_id.is_some() || record.listeners.is_some();
        let is_unheard = record.is_missed_within_agent_timeout(self.clock.now());
        // The decision's own write has just looked.
        let is_shared = (seen.is_none() || was_sent)
            && self
                .ledger
                .is_shared(&record.session, &record.tenant, self.clock.now() - SESSION_LIFETIME)
                .await?;
        for _look in 0..LOOKS {
            let seen = match seen.take() {
                Some(seen) => seen,
                None => self.courier.snapshot(&record.id, &record.session).await?,
            };
            let copy = CourierCopy::of(record, seen.document.as_deref());
            let is_anothers =
                is_shared || seen.pointer.is_anothers(Some(&record.tenant), record.user.as_ref());
            let may_reach = copy != CourierCopy::Other
                && !is_anothers
                && self.is_waited_for(record, &seen.pointer).await?;
            let publish = may_reach
                && (!was_sent
                    || (is_unheard && self.may_be_said_again(record, decision, &seen).await?));
            let is_left_alone = !publish
                && was_sent
                && if may_reach {
                    !self.may_be_put_back(record, decision, &seen, copy).await?
                } else {
                    !is_unheard
                };
            if is_left_alone {
                return Ok(DeliveryResult { listeners: record.listeners, ..DeliveryResult::SENT });
            }
            if !may_reach {
                if copy != CourierCopy::Other {
                    self.courier.put_request(&record.id, &document).await?;
                }
                return Ok(DeliveryResult::SUPERSEDED);
            }
            let outgoing = Outgoing {
                request: &record.id,
                session: &record.session,
                signal: &signal,
                document: &document,
                rank: record.owed_since.timestamp_micros(),
                publish,
                only_if: &seen,
            };
            match self.courier.send(&outgoing).await? {
                Sent::Published { listeners, replication_id } => {
                    let listeners = if publish { listeners } else { record.listeners };
                    let settled =
                        DeliveryResult { delivery: Delivery::Sent, listeners, replication_id };
                    self.unheard.sent(record, &settled);
                    return Ok(settled);
                }
                Sent::Changed => {}
            }
        }
        Err(Undelivered::Restless)
    }

    /// Whether a session names this request, or names nothing and the ledger knows no newer request of
    /// Redis in it.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn is_waited_for(
        &self,
        record: &Record,
        pointer: &SessionPointer,
    ) -> Result<bool, LedgerError> {
        if pointer.request.is_some() {
            return Ok(pointer.names(&record.id));
        }
        let newest = self.ledger.newest_of_redis(&record.session).await?;
        Ok(newest.is_none_or(|newest| newest.created_at <= record.created_at))
    }

    /// Whether a signal that was sent and that nobody heard is published again. A session that names
    /// nothing is waited in only if Redis has lost what it named, and then for its newest request.
    async fn may_be_said_again(
        &self,
        record: &Record,
        decision: &Decision,
        seen: &SessionSnapshot,
    ) -> Result<bool, Undelivered> {
        if still_names(record, decision, seen) {
            return Ok(true);
        }
        let Some(replication_id) = &record.replication_id else { return Ok(false) };
        // Of a session that names nothing, `is_waited_for` has found this to be the newest request.
        Ok(seen.pointer.request.is_none()
            && record.is_missed_within_lookup_timeout(self.clock.now())
            && !self.courier.replication_ids().await?.contains(replication_id))
    }

    /// Whether a signal that was sent, and that Redis may have lost since, is put back under its key,
    /// without a word: its agent may have got it and wait for its next question, to which a message
    /// would be the answer. The key is harmless there, as it would be had it not been lost, unless Redis
    /// no longer knows what the session waits for.
    async fn may_be_put_back(
        &self,
        record: &Record,
        decision: &Decision,
        seen: &SessionSnapshot,
        copy: CourierCopy,
    ) -> Result<bool, Unavailable> {
        if !seen.pointer.names(&record.id) {
            return Ok(false);
        }
        if copy != CourierCopy::Pending {
            return Ok(true);
        }
        // Pending again: forgotten along with its signal, or asked again since, and then somebody has
        // to decide again. Its age is as exact as a call to Redis is long.
        let stored = self.courier.find_request(&record.id).await?;
        let asked = stored.map(|stored| self.clock.now() - age(stored.ttl) - courier::TIMEOUT);
        Ok(asked.is_some_and(|asked| asked < decision.at))
    }
}

/// Whether a session names this request and Redis holds what was decided, so that its agent still
/// waits if it has not heard the signal.
#[must_use]
pub fn still_names(record: &Record, decision: &Decision, seen: &SessionSnapshot) -> bool {
    let Some(document) = seen.document.as_deref() else { return false };
    seen.pointer.names(&record.id)
        && (document == decided_document(&record.document, decision)
            || CourierCopy::of(record, Some(document)) == CourierCopy::Pending)
}
