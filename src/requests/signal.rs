//! The signal that a poll finds: what answers a session, or a request that the agent names; never
//! another's, and never one that the ledger does not know. The rules are in docs/api.md.

use chrono::{DateTime, Utc};

use super::error::Result;
use crate::courier::{Polled, Unavailable};
use crate::domain::approver::Caller;
use crate::domain::decision::State;
use crate::domain::ids::{RequestId, SessionId};
use crate::domain::record::{CourierCopy, Delivery, Record};
use crate::domain::request::{AGENT_TIMEOUT, Origin, status_of};
use crate::domain::signal::{signal_json, signal_request};
use crate::state::AppState;

/// The signal of a registered request whose decision is known here.
#[must_use]
pub fn known_signal(
    app: &AppState,
    caller: &Caller,
    session: &SessionId,
    wanted: &RequestId,
) -> Option<String> {
    let known = app.decisions.registered(&caller.tenant, wanted)?;
    (known.session == *session).then(|| known.signal())
}

/// What Redis has for a session, in one command.
///
/// # Errors
/// [`Unavailable`] when Redis does not answer.
pub async fn poll(app: &AppState, session: &SessionId) -> std::result::Result<Polled, Unavailable> {
    app.courier.poll(session).await
}

/// The signal that answers what a session waits for, or what the agent names, if that can be told by
/// what was read of the session and a decision that is known here: the common case of one that is
/// answered.
#[must_use]
pub fn signal_at_hand(
    app: &AppState,
    caller: &Caller,
    session: &SessionId,
    wanted: Option<&RequestId>,
    polled: &Polled,
) -> Option<String> {
    let named = RequestId::parse(polled.pointer.request.as_deref()?).ok()?;
    let known = app.decisions.of_redis(&named)?;
    let (answered, document) = polled.answered.as_ref()?;
    if wanted.is_some_and(|wanted| *wanted != named)
        || known.tenant != caller.tenant
        || known.session != *session
        || answered != named.as_str()
    {
        return None;
    }
    let status = status_of(document)?;
    if status == State::Pending.as_str() {
        return None;
    }
    let signal = known.signal();
    if polled.signal.as_ref() != Some(&signal) {
        app.forgeries.signal(session, polled.signal.as_deref().unwrap_or_default());
    }
    if status != known.decision.verdict.status() {
        app.forgeries.request(&named, document);
    }
    Some(signal)
}

/// The signal that answers what a session waits for, or what the agent names; never another, and
/// never one that the ledger does not know. `polled` is what was just read of the session.
///
/// # Errors
/// [`RequestError::Courier`] when Redis is silent and it cannot be told what the session waits for.
pub async fn find_signal(
    app: &AppState,
    caller: &Caller,
    session: &SessionId,
    wanted: Option<&RequestId>,
    polled: Option<std::result::Result<Polled, Unavailable>>,
) -> Result<Option<String>> {
    let record = match wanted {
        Some(wanted) => app.ledger.find_request(&caller.tenant, wanted).await?,
        None => None,
    };
    if let Some(record) = record.as_ref().filter(|record| record.origin == Origin::Http) {
        // Registered requests do not depend on what their session names.
        app.decisions.remember(record, app.clock.now());
        return Ok(answer_of(record, caller, session));
    }
    let polled = match polled {
        Some(polled) => polled?,
        None => poll(app, session).await?,
    };
    if let Some(signal) = signal_at_hand(app, caller, session, wanted, &polled) {
        return Ok(Some(signal));
    }
    let Polled { pointer, signal, .. } = polled;
    let under_the_key = match &signal {
        Some(signal) => answered_by(app, caller, session, signal).await?,
        None => None,
    };
    let named = pointer.request.clone();
    // Read after Redis: what was decided in between is found.
    let record = match (wanted.cloned(), named.clone().map(RequestId::parse)) {
        (Some(id), _) | (None, Some(Ok(id))) => {
            app.ledger.find_request(&caller.tenant, &id).await?
        }
        (None, Some(Err(_invalid))) => None,
        (None, None) => app.ledger.newest_of_redis(session).await?,
    };
    let is_ours =
        |record: &Record| record.origin == Origin::Redis && record.tenant == caller.tenant;
    let Some(mut record) = record.filter(is_ours) else { return Ok(None) };
    app.decisions.remember(&record, app.clock.now());
    app.receipts.apply(&mut record);
    let names_nothing = named.is_none() && wanted.is_none();
    let is_under_the_key = under_the_key.as_ref() == Some(&record.id);
    if names_nothing && !is_under_the_key && !still_waits(&record, app.clock.now()) {
        return Ok(None);
    }
    if !app.sender().is_waited_for(&record, &pointer).await? {
        return Ok(None);
    }
    let stored = app.courier.find_request(&record.id).await?;
    let document = stored.as_ref().map(|stored| &*stored.document);
    if let (Some(status), Some(document)) = (document.and_then(status_of), document)
        && ![State::Pending.as_str(), record.state.as_str()].contains(&&*status)
    {
        app.forgeries.request(&record.id, document);
    }
    let is_answered = match CourierCopy::of(&record, document) {
        CourierCopy::NotPending => true,
        // An agent on Redis has asked again, so an earlier answer is not the answer; one that is
        // still owed has simply not reached Redis yet.
        CourierCopy::Pending => record.is_unsent(),
        CourierCopy::Other => false,
    };
    if !is_answered {
        return Ok(None);
    }
    Ok(answer_of(&record, caller, session))
}

/// Which request a signal under a session's key answers, if it says what the ledger says; reports it
/// otherwise.
async fn answered_by(
    app: &AppState,
    caller: &Caller,
    session: &SessionId,
    signal: &str,
) -> Result<Option<RequestId>> {
    if app.forgeries.is_known_signal(session, signal) {
        return Ok(None);
    }
    let says_so = |record: &Record| {
        let said = record.state.decision().map(|decision| signal_json(&record.id, decision));
        record.session == *session && said.as_deref() == Some(signal)
    };
    let id = signal_request(signal).and_then(|id| RequestId::parse(id).ok());
    if let Some(id) = id {
        let is_known = app.decisions.of_redis(&id);
        if is_known.is_some_and(|known| known.session == *session && known.signal() == signal) {
            return Ok(Some(id));
        }
        let of_redis = app.ledger.find_request_of_redis(&id).await?;
        if let Some(record) = of_redis.filter(says_so) {
            app.decisions.remember(&record, app.clock.now());
            return Ok(Some(id));
        }
        // An older release signals registered requests, too.
        if app.ledger.find_request(&caller.tenant, &id).await?.is_some_and(|r| says_so(&r)) {
            return Ok(Some(id));
        }
    }
    app.forgeries.signal(session, signal);
    Ok(None)
}

fn answer_of(record: &Record, caller: &Caller, session: &SessionId) -> Option<String> {
    match &record.state {
        State::Decided(decision)
            if record.tenant == caller.tenant && record.session == *session =>
        {
            Some(signal_json(&record.id, decision))
        }
        _ => None,
    }
}

/// Whether an agent whose session names nothing can still be waiting for this answer.
///
/// If Redis was wiped, the session may by now wait for a request that nobody knows, and an agent
/// that asks without a request id takes whatever it gets for its answer. So an answer that never
/// left us counts only while the agent's patience lasts, and one that did only for a moment and
/// only if nobody was listening.
fn still_waits(record: &Record, now: DateTime<Utc>) -> bool {
    match record.delivery {
        Delivery::Owed if record.is_unsent() => now < record.created_at + AGENT_TIMEOUT,
        Delivery::Owed | Delivery::Sent => record.is_missed_within_lookup_timeout(now),
        Delivery::Superseded => false,
    }
}
