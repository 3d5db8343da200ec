//! Sends the signal of a decided request of Redis, under the wire contract's rules for sessions
//! that have moved on. The call that decides a request uses it at once. The relay uses it for
//! signals that are still owed, and `republish` for signals that nobody heard.

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

/// How many times to read a session and send, if the session changes between the two.
const MAX_ATTEMPTS: usize = 3;

/// How long another tenant's request in the same session keeps signals from being sent there. A
/// request lives this long in Redis, and meanwhile its agent may wait in the session.
pub const SESSION_LIFETIME: TimeDelta = TimeDelta::seconds(1800);

/// Why a signal was not sent. It is still owed.
#[derive(Debug, thiserror::Error)]
pub enum Undelivered {
    /// Redis did not answer.
    #[error(transparent)]
    Courier(#[from] Unavailable),
    /// The ledger did not answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The session changed between reading and sending in every attempt.
    #[error("the session keeps changing")]
    Restless,
}

/// Sends signals; cheap to clone.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The ledger that holds the requests and their decisions.
    pub ledger: Ledger,
    /// The courier that carries the signals.
    pub courier: Courier,
    /// The source of the current time.
    pub clock: Clock,
    /// The unheard signals that this replica watches.
    pub unheard: Unheard,
}

impl Sender {
    /// Sends the signal of a row. `seen` is the session as the caller has just read it, if the
    /// caller has.
    ///
    /// # Errors
    /// [`Undelivered`] when a store does not answer or the session keeps changing. The signal is
    /// still owed, and sending it again is safe.
    pub async fn deliver(
        &self,
        record: &Record,
        seen: Option<SessionSnapshot>,
    ) -> Result<DeliveryResult, Undelivered> {
        match (&record.state, record.origin) {
        (State::Decided(decision), Origin::Redis) => {
            self.send_signal(record, decision, seen).await
        }
        // Requests that were registered over HTTP have no keys in Redis. An older release may have
        // left such a row owed.
        (State::Decided(_), Origin::Http)
        // Nothing is published for these states, because agents take any message for an approval.
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
        // The call that decides passes `seen`, and has just made this check in its write. All other
        // callers make it now.
        let is_shared = (seen.is_none() || was_sent)
            && self
                .ledger
                .is_shared(&record.session, &record.tenant, self.clock.now() - SESSION_LIFETIME)
                .await?;
        for _attempt in 0..MAX_ATTEMPTS {
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
                    || (is_unheard
                        && self.may_be_published_again(record, decision, &seen).await?));
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

    /// Whether the session waits for this request: it names the request, or it names none and the
    /// ledger knows no newer request of Redis in it.
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
        Ok(newest.is_none_or(|newest| newest.asked_at <= record.asked_at))
    }

    /// Whether a signal that was sent and that nobody heard is published again. If the session
    /// names no request, its agent waits only if Redis has lost the pointer, and then for the newest
    /// request.
    async fn may_be_published_again(
        &self,
        record: &Record,
        decision: &Decision,
        seen: &SessionSnapshot,
    ) -> Result<bool, Undelivered> {
        if still_names(record, decision, seen) {
            return Ok(true);
        }
        let Some(replication_id) = &record.replication_id else { return Ok(false) };
        // If the session names no request, `is_waited_for` has checked that this one is its newest.
        Ok(seen.pointer.request.is_none()
            && record.is_missed_within_lookup_timeout(self.clock.now())
            && !self.courier.replication_ids().await?.contains(replication_id))
    }

    /// Whether a signal that was sent, and that Redis may have lost since, is written to its key
    /// again without being published. The agent may have received the signal and wait for the
    /// answer to its next request; it would take a published message for that answer. Writing the
    /// key is safe while the session names this request: the key would be there if Redis had not
    /// lost it.
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
        // Redis holds the request as pending. Either Redis has lost the decision, or the agent has
        // made the request again since, and then an approver has to decide it again. The request's
        // age tells which; it is exact to within the duration of a call to Redis.
        let stored = self.courier.find_request(&record.id).await?;
        let asked = stored.map(|stored| self.clock.now() - age(stored.ttl) - courier::TIMEOUT);
        Ok(asked.is_some_and(|asked| asked < decision.at))
    }
}

/// Whether the session names this request, and Redis holds it as pending or with this decision. If
/// so, an agent that has not heard the signal still waits for it.
#[must_use]
pub fn still_names(record: &Record, decision: &Decision, seen: &SessionSnapshot) -> bool {
    let Some(document) = seen.document.as_deref() else { return false };
    seen.pointer.names(&record.id)
        && (document == decided_document(&record.document, decision)
            || CourierCopy::of(record, Some(document)) == CourierCopy::Pending)
}
