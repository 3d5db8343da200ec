//! Finds the signal that answers a poll: the signal of the request that the agent names, or of the
//! request that the session waits for. Never returns another request's signal, nor one that the ledger
//! does not know. The rules are in docs/api.md.

use chrono::{DateTime, Utc};

use super::answers::answer_json;
use super::error::Result;
use super::read::may_see_record;
use crate::courier::{Polled, Unavailable};
use crate::domain::approver::Caller;
use crate::domain::decision::State;
use crate::domain::ids::{RequestId, SessionId};
use crate::domain::record::{CourierCopy, Delivery, Record};
use crate::domain::request::{AGENT_TIMEOUT, Origin, status_of};
use crate::domain::signal::{signal_json, signal_request};
use crate::state::AppState;

/// The signal of a registered request whose decision is in this process's cache.
#[must_use]
pub fn cached_signal(
    app: &AppState,
    caller: &Caller,
    session: &SessionId,
    wanted: &RequestId,
) -> Option<String> {
    // With a policy file, only the ledger's row says who may see the request.
    if app.rules.in_force().has_file() {
        return None;
    }
    let known = app.decisions.registered(&caller.tenant, wanted)?;
    (known.session == *session).then(|| known.signal())
}

/// Polls Redis for a session, in one command.
///
/// # Errors
/// [`Unavailable`] when Redis does not answer.
pub async fn poll(app: &AppState, session: &SessionId) -> std::result::Result<Polled, Unavailable> {
    app.courier.poll(session).await
}

/// The signal for a session or a named request, if the poll of Redis and this process's cache of
/// decisions suffice to find it. Most polls that have an answer find it here.
#[must_use]
pub fn cached_signal_of_poll(
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

/// The signal for a session, or for the request that the agent names. `polled` is what was just read of
/// the session.
///
/// # Errors
/// `RequestError::Courier` when Redis does not answer and only Redis knows what the session waits
/// for; `RequestError::Ledger` when the ledger does not answer.
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
        // A registered request does not depend on its session's pointer.
        app.decisions.remember(record, app.clock.now());
        let answer = answer_of(record, caller, session);
        let may_see = answer.is_some() && may_see_record(app, caller, record).await?;
        return Ok(answer.filter(|_answer| may_see));
    }
    let polled = match polled {
        Some(polled) => polled?,
        None => poll(app, session).await?,
    };
    if let Some(signal) = cached_signal_of_poll(app, caller, session, wanted, &polled) {
        return Ok(Some(signal));
    }
    let Polled { pointer, signal, .. } = polled;
    let signalled_request = match &signal {
        Some(signal) => answered_by(app, caller, session, signal).await?,
        None => None,
    };
    let named = pointer.request.clone();
    // The ledger is read after Redis, so that a decision made in between is found.
    let record = match (wanted.cloned(), named.clone().map(RequestId::parse)) {
        (Some(id), _) | (None, Some(Ok(id))) => {
            app.ledger.find_request(&caller.tenant, &id).await?
        }
        (None, Some(Err(_invalid))) => None,
        (None, None) => app.ledger.newest_of_redis(session).await?,
    };
    // A request that was only seen has no signal, and may be decided while Redis is read below.
    let is_visible = |record: &Record| {
        record.origin == Origin::Redis && record.tenant == caller.tenant && !record.is_only_seen()
    };
    let Some(record) = record.filter(is_visible) else { return Ok(None) };
    app.decisions.remember(&record, app.clock.now());
    let names_nothing = named.is_none() && wanted.is_none();
    let is_signalled = signalled_request.as_ref() == Some(&record.id);
    if names_nothing && !is_signalled && !still_waits(&record, app.clock.now()) {
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
        // If the answer was sent, the agent has asked again since, and waits for a new answer. If the
        // answer is still owed, it has not reached Redis yet.
        CourierCopy::Pending => record.is_unsent(),
        CourierCopy::Other => false,
    };
    if !is_answered {
        return Ok(None);
    }
    Ok(answer_of(&record, caller, session))
}

/// The request that a signal under a session's key answers. Reports a signal that differs from the
/// ledger's decision, and returns `None` for it.
async fn answered_by(
    app: &AppState,
    caller: &Caller,
    session: &SessionId,
    signal: &str,
) -> Result<Option<RequestId>> {
    if app.forgeries.is_known_signal(session, signal) {
        return Ok(None);
    }
    let is_signal_of = |record: &Record| {
        let expected = record.state.decision().map(|decision| signal_json(&record.id, decision));
        record.session == *session && expected.as_deref() == Some(signal)
    };
    let id = signal_request(signal).and_then(|id| RequestId::parse(id).ok());
    if let Some(id) = id {
        let is_known = app.decisions.of_redis(&id);
        if is_known.is_some_and(|known| known.session == *session && known.signal() == signal) {
            return Ok(Some(id));
        }
        let of_redis = app.ledger.find_request_of_redis(&id).await?;
        if let Some(record) = of_redis.filter(is_signal_of) {
            app.decisions.remember(&record, app.clock.now());
            return Ok(Some(id));
        }
        // An older release also sends signals of registered requests.
        if app.ledger.find_request(&caller.tenant, &id).await?.is_some_and(|r| is_signal_of(&r)) {
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
            Some(answer_json(record, decision))
        }
        _ => None,
    }
}

/// Whether an agent whose session names no request may still wait for this answer.
///
/// After Redis was wiped, the session may wait for a request that neither store has, and an agent that
/// polls without a request id takes any signal for its answer. So an unsent answer counts only while
/// an agent waits at most, and a sent answer only for a moment and only if it had no subscriber.
fn still_waits(record: &Record, now: DateTime<Utc>) -> bool {
    match record.delivery {
        Delivery::Owed if record.is_unsent() => now < record.asked_at + AGENT_TIMEOUT,
        Delivery::Owed | Delivery::Sent => record.is_missed_within_lookup_timeout(now),
        Delivery::Superseded => false,
    }
}
