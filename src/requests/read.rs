//! Reads a request: its document, and its state.

use super::bound::deciders;
use super::error::{RequestError, Result};
use super::load::{InRedis, compare_and_report, find_in_redis, ledger_candidate, pending_in_redis};
use crate::domain::approver::Caller;
use crate::domain::decision::State;
use crate::domain::ids::{RequestId, SessionId, UserId};
use crate::domain::record::{Candidate, Record};
use crate::domain::request::{Origin, closed_document, decided_document};
use crate::domain::rules::Refusal;
use crate::permit::{Seen, may_see};
use crate::state::AppState;

/// The request as one JSON object, as the ledger has it, and its entity tag. When an agent has asked
/// again through Redis since the decision was sent, the pending document from Redis is returned.
///
/// # Errors
/// `RequestError::Refused` with `Refusal::NotFound` for strangers and unknown ids alike.
pub async fn read_request(
    app: &AppState,
    caller: &Caller,
    id: &RequestId,
) -> Result<(String, String)> {
    let found = find_in_redis(app, caller, id).await;
    let record = app.ledger.find_request(&caller.tenant, id).await?;
    let is_gone = matches!(found, InRedis::NotFound);
    // Redis has the present content of a request that was only seen there.
    let Some(record) = record.filter(|record| is_gone || !record.is_only_seen()) else {
        let candidate = pending_in_redis(app, id, found).await?;
        check_may_see(app, caller, &candidate, None).await?;
        let Candidate { request, .. } = candidate;
        return Ok((request.document, request.etag));
    };
    check_may_see_record(app, caller, &record).await?;
    app.decisions.remember(&record, app.clock.now());
    let is_altered = compare_and_report(app, &record, &found);
    if let InRedis::Request(request) = found
        && request.0.request.is_pending()
        && !is_altered
        && has_been_sent(&record)
    {
        let (Candidate { request, .. }, _pointer) = *request;
        return Ok((request.document, request.etag));
    }
    let etag = record.etag();
    let document = match &record.state {
        State::Pending => record.document,
        State::Decided(decision) => decided_document(&record.document, decision),
        State::Expired | State::Cancelled => closed_document(&record.document, &record.state),
    };
    Ok((document, etag))
}

/// Whether Redis had the answer to this request of Redis. If the same request is pending there now, its
/// agent has asked again.
fn has_been_sent(record: &Record) -> bool {
    record.origin == Origin::Redis && record.state.decision().is_some() && !record.is_unsent()
}

/// A request and the store that has it.
#[derive(Debug)]
pub enum Found {
    /// The ledger has the request.
    InLedger(Box<Record>),
    /// An agent wrote the request to Redis, and nobody has decided it.
    InRedis(Box<Candidate>),
}

/// Finds one request in the ledger or, while it is pending, in Redis.
///
/// # Errors
/// `RequestError`; `Refusal::NotFound` for strangers, unknown ids, and those whom the policy file does not
/// let see the request, alike.
pub async fn find(app: &AppState, caller: &Caller, id: &RequestId) -> Result<Found> {
    let found = find_of_tenant(app, caller, id).await?;
    match &found {
        Found::InLedger(record) => check_may_see_record(app, caller, record).await?,
        Found::InRedis(candidate) => check_may_see(app, caller, candidate, None).await?,
    }
    Ok(found)
}

/// Whether the policy file lets a caller see a request of their tenant.
///
/// # Errors
/// `Refusal::NotFound`, if it does not; `RequestError::Ledger` when the ledger does not answer.
pub(super) async fn check_may_see_record(
    app: &AppState,
    caller: &Caller,
    record: &Record,
) -> Result<()> {
    if !app.rules.in_force().has_file() {
        return Ok(());
    }
    let candidate = ledger_candidate(record.clone())?;
    check_may_see(app, caller, &candidate, Some(record)).await
}

/// Whether the caller may see this request; see [`check_may_see_record`].
///
/// # Errors
/// `RequestError::Ledger` when the ledger does not answer.
pub(super) async fn may_see_record(
    app: &AppState,
    caller: &Caller,
    record: &Record,
) -> Result<bool> {
    match check_may_see_record(app, caller, record).await {
        Ok(()) => Ok(true),
        Err(RequestError::Refused(Refusal::NotFound)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// [`check_may_see_record`] for a request that may be in Redis alone.
async fn check_may_see(
    app: &AppState,
    caller: &Caller,
    candidate: &Candidate,
    record: Option<&Record>,
) -> Result<()> {
    let law = app.rules.in_force();
    if !law.has_file() {
        return Ok(());
    }
    let deciders = record.map(deciders).unwrap_or_default();
    let seen = Seen {
        requester: candidate.user.as_ref(),
        deciders: &deciders,
        ways: candidate.ways(),
        created_at: candidate.created_at,
    };
    let binding = law.binding(candidate, &caller.tenant);
    if may_see(binding.as_ref(), &seen, caller, app.clock.now()) {
        return Ok(());
    }
    // Who has voted may go on to see it, also without the right to vote.
    let votes = app.ledger.votes_on(&caller.tenant, &candidate.request.id).await?;
    if votes.iter().any(|vote| vote.voter == caller.user) {
        return Ok(());
    }
    Err(Refusal::NotFound.into())
}

async fn find_of_tenant(app: &AppState, caller: &Caller, id: &RequestId) -> Result<Found> {
    let recorded = async || app.ledger.find_request(&caller.tenant, id).await;
    let seen = match recorded().await? {
        Some(record) if !record.is_only_seen() => return Ok(Found::InLedger(Box::new(record))),
        seen => seen,
    };
    let found = find_in_redis(app, caller, id).await;
    match &found {
        // Either decided after the ledger was read, or forged: the ledger knows.
        InRedis::Request(request) if !request.0.request.is_pending() => {
            if let Some(record) = recorded().await?.filter(|record| !record.is_only_seen()) {
                return Ok(Found::InLedger(Box::new(record)));
            }
        }
        // The key is gone, and was decided meanwhile, or expired.
        InRedis::NotFound if seen.is_some() => {
            if let Some(record) = recorded().await? {
                return Ok(Found::InLedger(Box::new(record)));
            }
        }
        _ => {}
    }
    let candidate = pending_in_redis(app, id, found).await?;
    Ok(Found::InRedis(Box::new(candidate)))
}

impl Found {
    /// The session that waits.
    #[must_use]
    pub fn session(&self) -> &SessionId {
        match self {
            Self::InLedger(record) => &record.session,
            Self::InRedis(candidate) => &candidate.request.session,
        }
    }

    /// The user whose request it is: the request's own, else the session's.
    #[must_use]
    pub fn user(&self) -> Option<&UserId> {
        match self {
            Self::InLedger(record) => record.user.as_ref(),
            Self::InRedis(candidate) => candidate.user.as_ref(),
        }
    }

    /// The entity tag of the request's content.
    #[must_use]
    pub fn etag(&self) -> String {
        match self {
            Self::InLedger(record) => record.etag(),
            Self::InRedis(candidate) => candidate.request.etag.clone(),
        }
    }

    /// Whether the request is still pending.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        match self {
            Self::InLedger(record) => record.state == State::Pending,
            Self::InRedis(_) => true,
        }
    }
}
