//! Brings one row of the ledger to Redis, under the contract's rules on sessions that have moved
//! on. Used at once by whoever decided, and later by the relay for what was left owing.

use crate::core::Core;
use crate::courier::{self, Outgoing, Seen, Sent, Unavailable};
use crate::domain::decision::{CourierCopy, Decision, Delivery, Record, Settled, State};
use crate::domain::ids::RequestId;
use crate::domain::request::{ApprovalRequest, Origin, PATIENCE, age, decided_document};
use crate::domain::session::{SessionPointer, pointer_json};
use crate::domain::signal::signal_json;
use crate::ledger::LedgerError;

/// How often to look again at a session that keeps changing while we send.
const LOOKS: usize = 3;

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

/// Sends what a row owes. `seen` is what the caller has just judged, if it has.
///
/// # Errors
/// [`Undelivered`]: the row stays owed and may be sent again.
pub async fn deliver(
    core: &Core,
    record: &Record,
    seen: Option<Seen>,
) -> Result<Settled, Undelivered> {
    match &record.state {
        State::Decided(decision) => send_signal(core, record, decision, seen).await,
        State::Pending => announce(core, record, true).await,
        // Not a word on the channel about these: agents take anything for an approval.
        State::Expired | State::Cancelled => Ok(Settled::SENT),
    }
}

/// Writes a registered request's two keys as agents write them, but leaves alone the pointer of a
/// session in which an agent on Redis may still wait: it would take our signal for its answer.
/// `late` is for the relay, which must not overwrite what an agent has written since.
///
/// # Errors
/// [`Undelivered`]: the keys stay owed.
pub async fn announce(core: &Core, record: &Record, late: bool) -> Result<Settled, Undelivered> {
    // Never over what is there: by now that may be the decided request.
    core.courier.put_request(&record.id, &record.document, true).await?;
    crash_point!("announcing");
    let there = core.courier.session(&record.session).await?;
    if may_reach(core, record, &there).await? || !somebody_waits(core, &there).await? {
        let user = record.user.as_ref().map_or("", |user| user.as_str());
        let pointer = pointer_json(&record.session, &record.id, user, &record.tenant);
        core.courier.put_session(&record.session, &pointer, late).await?;
    }
    Ok(Settled::SENT)
}

/// Whether the request that a session names is still pending and its agent still patient.
async fn somebody_waits(core: &Core, pointer: &SessionPointer) -> Result<bool, Unavailable> {
    let Some(named) = pointer.request.as_deref().and_then(|id| RequestId::parse(id).ok()) else {
        return Ok(false);
    };
    let Some(stored) = core.courier.find_request(&named).await? else { return Ok(false) };
    let age = age(stored.ttl);
    let request = ApprovalRequest::read(&named, stored.document);
    Ok(age < PATIENCE && request.is_ok_and(|request| request.is_pending()))
}

async fn send_signal(
    core: &Core,
    record: &Record,
    decision: &Decision,
    mut seen: Option<Seen>,
) -> Result<Settled, Undelivered> {
    let signal = signal_json(&record.id, decision);
    let document = decided_document(&record.document, decision);
    let was_sent = record.sent_to.is_some() || record.listeners.is_some();
    let is_unheard = record.is_waited_for(core.clock.now());
    for _look in 0..LOOKS {
        let seen = match seen.take() {
            Some(seen) => seen,
            None => core.courier.look(&record.id, &record.session).await?,
        };
        let copy = CourierCopy::of(record, seen.document.as_deref());
        let may_reach =
            copy != CourierCopy::Other && may_reach(core, record, &seen.pointer).await?;
        let aloud = may_reach
            && (!was_sent
                || (is_unheard && may_be_said_again(core, record, decision, &seen).await?));
        let is_left_alone = !aloud
            && was_sent
            && if may_reach {
                !may_be_put_back(core, record, decision, &seen, copy).await?
            } else {
                !is_unheard
            };
        if is_left_alone {
            return Ok(Settled { listeners: record.listeners, ..Settled::SENT });
        }
        if !may_reach {
            if copy != CourierCopy::Other {
                core.courier.put_request(&record.id, &document, false).await?;
            }
            return Ok(Settled::SUPERSEDED);
        }
        let outgoing = Outgoing {
            request: &record.id,
            session: &record.session,
            signal: &signal,
            document: &document,
            rank: record.owed_since.timestamp_micros(),
            aloud,
            only_while: &seen,
        };
        if aloud {
            core.watcher.sends(&record.session, &signal);
        }
        match core.courier.send(&outgoing).await? {
            Sent::Published { listeners, history: sent_to } => {
                let listeners = if aloud { listeners } else { record.listeners };
                let settled = Settled { delivery: Delivery::Sent, listeners, sent_to };
                core.unheard.sent(record, &settled);
                return Ok(settled);
            }
            Sent::Changed => {}
        }
    }
    Err(Undelivered::Restless)
}

/// Whether a session names this request and Redis holds what was decided, so that its agent still
/// waits if it has not heard the signal.
#[must_use]
pub fn still_names(record: &Record, decision: &Decision, seen: &Seen) -> bool {
    let Some(document) = seen.document.as_deref() else { return false };
    seen.pointer.request.as_deref() == Some(record.id.as_str())
        && (document == decided_document(&record.document, decision)
            || CourierCopy::of(record, Some(document)) == CourierCopy::Pending)
}

/// Whether a signal that was sent and that nobody heard is published again. A session that names
/// nothing is waited in only if Redis has lost what it named, and then for its newest request.
async fn may_be_said_again(
    core: &Core,
    record: &Record,
    decision: &Decision,
    seen: &Seen,
) -> Result<bool, Undelivered> {
    if still_names(record, decision, seen) {
        return Ok(true);
    }
    let Some(sent_to) = &record.sent_to else { return Ok(false) };
    if seen.pointer.request.is_some()
        || !record.is_unheard(core.clock.now())
        || core.courier.histories().await?.contains(sent_to)
    {
        return Ok(false);
    }
    let newest = core.ledger.newest_decided(&record.session, &record.tenant).await?;
    Ok(newest.is_some_and(|newest| newest.id == record.id))
}

/// Whether a signal that was sent, and that Redis may have lost since, is put back under its key,
/// without a word: its agent may have got it and wait for its next question, to which a message
/// would be the answer. The key is harmless there, as it would be had it not been lost, unless Redis
/// no longer knows what the session waits for; agents that register match on the request id.
async fn may_be_put_back(
    core: &Core,
    record: &Record,
    decision: &Decision,
    seen: &Seen,
    copy: CourierCopy,
) -> Result<bool, Unavailable> {
    if record.origin == Origin::Http {
        return Ok(true);
    }
    if seen.pointer.request.as_deref() != Some(record.id.as_str()) {
        return Ok(false);
    }
    if copy != CourierCopy::Pending {
        return Ok(true);
    }
    // Pending again: forgotten along with its signal, or asked again since, and then somebody has
    // to decide again. Its age is as exact as a call to Redis is long.
    let stored = core.courier.find_request(&record.id).await?;
    let asked = stored.map(|stored| core.clock.now() - age(stored.ttl) - courier::TIMEOUT);
    Ok(asked.is_some_and(|asked| asked < decision.at))
}

/// Whether this signal may go to a session that names what `pointer` names. Agents that write to
/// Redis take any message for their answer, so theirs must name this request or nothing. Agents
/// that register match on the request id, so theirs may name another request that the same user
/// registered; anything else is another agent in the same session, or a stranger's.
async fn may_reach(
    core: &Core,
    record: &Record,
    pointer: &SessionPointer,
) -> Result<bool, LedgerError> {
    if pointer.allows(&record.id) {
        return Ok(true);
    }
    let named = pointer.request.as_deref().and_then(|id| RequestId::parse(id).ok());
    let (Origin::Http, Some(named)) = (record.origin, named) else { return Ok(false) };
    let named = core.ledger.find_request(&named).await?;
    Ok(named.is_some_and(|named| {
        named.origin == Origin::Http && named.tenant == record.tenant && named.user == record.user
    }))
}
