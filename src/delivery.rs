//! Brings one row of the ledger to Redis, under the contract's rules on sessions that have moved
//! on. Used at once by whoever decided, and later by the relay for what was left owing.

use crate::core::Core;
use crate::courier::{Outgoing, Sent, Unavailable};
use crate::domain::decision::{Decision, Delivery, Record, State};
use crate::domain::ids::RequestId;
use crate::domain::request::{ApprovalRequest, Origin, decided_document};
use crate::domain::session::{SessionPointer, pointer_json};
use crate::domain::signal::signal_json;

/// How often to look again at a session that keeps changing while we send.
const LOOKS: usize = 3;

/// What became of a delivery, to be noted in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Sent or superseded.
    pub delivery: Delivery,
    /// Subscribers that the signal reached.
    pub listeners: Option<i64>,
}

const SUPERSEDED: Settled = Settled { delivery: Delivery::Superseded, listeners: None };
const SENT: Settled = Settled { delivery: Delivery::Sent, listeners: None };

/// Sends what a row owes. `seen` is the session's pointer if the caller has just judged it.
///
/// # Errors
/// [`Unavailable`]: the row stays owed and may be sent again.
pub async fn deliver(
    core: &Core,
    record: &Record,
    seen: Option<SessionPointer>,
) -> Result<Settled, Unavailable> {
    match &record.state {
        State::Decided(decision) => send_signal(core, record, decision, seen).await,
        State::Pending => announce(core, record, true).await,
        // Not a word on the channel about these: agents take anything for an approval.
        State::Expired | State::Cancelled => Ok(SENT),
    }
}

/// Writes a registered request's two keys as agents write them, but never over a request that an
/// agent wrote, nor over the pointer of a session in which one waits. `late` is for the relay,
/// which must not overwrite what has been written since.
///
/// # Errors
/// [`Unavailable`]: the keys stay owed.
pub async fn announce(core: &Core, record: &Record, late: bool) -> Result<Settled, Unavailable> {
    let user = record.user.as_ref().map_or("", |user| user.as_str());
    let pointer = pointer_json(&record.session, &record.id, user, &record.tenant);
    core.courier.put_request(&record.id, &record.document, true).await?;
    let there = core.courier.session(&record.session).await?;
    if may_hear(core, record, &there).await? {
        core.courier.put_session(&record.session, &pointer, late).await?;
    }
    Ok(SENT)
}

async fn send_signal(
    core: &Core,
    record: &Record,
    decision: &Decision,
    seen: Option<SessionPointer>,
) -> Result<Settled, Unavailable> {
    if seen.is_none()
        && record.origin == Origin::Redis
        && asks_for_something_else(core, record).await?
    {
        return Ok(SUPERSEDED);
    }
    let signal = signal_json(&record.id, decision);
    let document = decided_document(&record.document, decision);
    // Registered requests are decided without a look at their session.
    let mut seen = seen.filter(|_| record.origin == Origin::Redis);
    for _look in 0..LOOKS {
        let pointer = match seen.take() {
            Some(pointer) => pointer,
            None => core.courier.session(&record.session).await?,
        };
        if !may_hear(core, record, &pointer).await? {
            return Ok(SUPERSEDED);
        }
        let outgoing = Outgoing {
            session: &record.session,
            signal: &signal,
            rank: record.owed_since.timestamp_micros(),
            only_while: Some(&pointer),
        };
        let (sent, rewritten) = tokio::join!(
            core.courier.send(&outgoing),
            core.courier.put_request(&record.id, &document, false)
        );
        rewritten?;
        match sent? {
            Sent::Published { listeners } => {
                return Ok(Settled { delivery: Delivery::Sent, listeners: Some(listeners) });
            }
            Sent::SessionChanged => {}
        }
    }
    Err(Unavailable("the session keeps changing".to_owned()))
}

/// Whether a signal for this record may go to a session that names what `pointer` says. Agents that
/// register over HTTP match on the request id, so another registered request of their tenant may be
/// named there. Anything else is for an agent that takes any message for its answer, and anybody
/// can register a request in a session whose name they guess.
async fn may_hear(
    core: &Core,
    record: &Record,
    pointer: &SessionPointer,
) -> Result<bool, Unavailable> {
    if pointer.allows(&record.id) {
        return Ok(true);
    }
    let named = pointer.request.as_deref().map(RequestId::parse);
    let (Origin::Http, Some(Ok(named))) = (record.origin, named) else { return Ok(false) };
    let named = core.ledger.find_request(&named).await;
    let named = named.map_err(|error| Unavailable(error.to_string()))?;
    Ok(named.is_some_and(|named| named.origin == Origin::Http && named.tenant == record.tenant))
}

/// Whether the agent has asked for something else under the same id since the decision.
async fn asks_for_something_else(core: &Core, record: &Record) -> Result<bool, Unavailable> {
    let Some(stored) = core.courier.find_request(&record.id).await? else { return Ok(false) };
    let request = ApprovalRequest::read(&record.id, stored.document);
    Ok(request
        .is_ok_and(|request| request.is_pending() && request.fingerprint != record.fingerprint))
}
