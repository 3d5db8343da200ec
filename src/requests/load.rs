//! Loads a request from Redis and compares it with the ledger's record. Redis is read first and the
//! ledger second: a decision is committed to the ledger before Redis has it, so the ledger knows every
//! genuine decision that was read from Redis. A row that was only seen in Redis is compared with nothing:
//! it is what Redis said before.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tracing::warn;

use super::error::{RequestError, Result};
use crate::courier::Unavailable;
use crate::domain::approver::Caller;
use crate::domain::decision::State;
use crate::domain::ids::{RequestId, TenantId};
use crate::domain::record::{Candidate, Record, is_same};
use crate::domain::request::{ApprovalRequest, Origin, REQUEST_TTL_SECONDS, Scope, age};
use crate::domain::rules::{Refusal, is_visible};
use crate::domain::session::SessionPointer;
use crate::state::AppState;

/// What Redis has under a request's key, as one caller may see it.
pub(super) enum InRedis {
    /// Nothing, or a request that this caller may not see. Callers cannot tell these cases apart.
    NotFound,
    /// A request, and the pointer of its session.
    Request(Box<(Candidate, SessionPointer)>),
    /// A text that is not a valid request, and that does not name another tenant.
    Unreadable {
        /// What is wrong with it.
        problem: &'static str,
        /// The text.
        text: String,
    },
    /// Redis does not answer.
    Unreachable(Unavailable),
}

/// Reads a request and the pointer of its session from Redis.
pub(super) async fn find_in_redis(app: &AppState, caller: &Caller, id: &RequestId) -> InRedis {
    let stored = match app.courier.find_request(id).await {
        Ok(Some(stored)) => stored,
        Ok(None) => return InRedis::NotFound,
        Err(unavailable) => return InRedis::Unreachable(unavailable),
    };
    // Checked first: a stranger must not learn from the time of the answer that a request exists.
    let is_foreign = |tenant: Option<&TenantId>| tenant.is_some_and(|is| *is != caller.tenant);
    let scope = Scope::read(&stored.document);
    if is_foreign(scope.tenant.as_ref()) {
        return InRedis::NotFound;
    }
    let pointer = match &scope.session {
        Some(session) => match app.courier.session_of(stored.guessed_session, session).await {
            Ok(pointer) => pointer,
            Err(unavailable) => return InRedis::Unreachable(unavailable),
        },
        None => SessionPointer::default(),
    };
    if scope.tenant.is_none() && is_foreign(pointer.tenant.as_ref()) {
        return InRedis::NotFound;
    }
    let request = match ApprovalRequest::read(id, stored.document.clone()) {
        Ok(request) => request,
        Err(problem) => return InRedis::Unreadable { problem, text: stored.document },
    };
    if pointer.is_ambiguous && (request.tenant.is_none() || request.user.is_none()) {
        // A request without a tenant belongs to nobody.
        if request.tenant.as_ref() != Some(&caller.tenant) {
            return InRedis::NotFound;
        }
        let problem = "is in a session that does not say plainly whose it is";
        return InRedis::Unreadable { problem, text: stored.document };
    }
    let candidate = redis_candidate(request, &pointer, stored.ttl, app.clock.now());
    let user = candidate.user.as_ref();
    if is_visible(candidate.tenant.as_ref(), user, caller, app.policy) {
        InRedis::Request(Box::new((candidate, pointer)))
    } else {
        InRedis::NotFound
    }
}

/// Compares the request in Redis with the ledger's record of the same id, which was read after it, and
/// reports a difference as a forgery. Returns whether the content differs while the request is pending
/// in Redis or in the ledger: such a request must not be decided.
pub(super) fn compare_and_report(app: &AppState, record: &Record, found: &InRedis) -> bool {
    match found {
        InRedis::NotFound | InRedis::Unreachable(_) => false,
        InRedis::Unreadable { text, .. } => {
            app.forgeries.request(&record.id, text);
            true
        }
        InRedis::Request(request) => {
            let asked = &request.0.request;
            let is_altered = !is_same(record, &request.0)
                && (asked.is_pending() || record.state == State::Pending);
            // A decided document differs from the pending one, but must have the ledger's status.
            if is_altered || !(asked.is_pending() || asked.status == record.state.as_str()) {
                app.forgeries.request(&record.id, &asked.document);
            }
            is_altered
        }
    }
}

/// Logs a request in Redis that is not valid: nobody can decide or read it.
pub(super) fn unreadable(problem: &'static str) -> RequestError {
    warn!(problem, "a request in Redis cannot be read");
    RequestError::Unreadable(problem)
}

/// The candidate for a decision that an agent wrote to Redis.
pub(super) fn redis_candidate(
    request: ApprovalRequest,
    pointer: &SessionPointer,
    ttl: Option<Duration>,
    now: DateTime<Utc>,
) -> Candidate {
    let created_at = now - age(ttl);
    let lifetime = TimeDelta::seconds(i64::try_from(REQUEST_TTL_SECONDS).unwrap_or(0));
    // A session of another tenant does not name the owner.
    let owning_session = (!pointer.is_anothers(request.tenant.as_ref(), None)).then_some(pointer);
    Candidate {
        tenant: request.tenant.clone().or_else(|| owning_session?.tenant.clone()),
        user: request.user.clone().or_else(|| owning_session?.user.clone()),
        request,
        origin: Origin::Redis,
        created_at,
        expires_at: created_at + lifetime,
    }
}

/// The candidate for a decision that the ledger has.
///
/// # Errors
/// [`RequestError::Unreadable`], when its row was edited by hand.
pub(super) fn ledger_candidate(record: Record) -> Result<Candidate> {
    Ok(Candidate {
        request: ApprovalRequest::read(&record.id, record.document)
            .map_err(RequestError::Unreadable)?,
        origin: record.origin,
        tenant: Some(record.tenant),
        user: record.user,
        created_at: record.asked_at,
        expires_at: record.expires_at,
    })
}

/// The pending request in Redis of an id that the ledger, read after Redis, does not know, or has only
/// seen.
///
/// # Errors
/// [`RequestError::UnrecordedDecision`] when the request in Redis is not pending: a genuine decision
/// would be in the ledger.
pub(super) async fn pending_in_redis(
    app: &AppState,
    id: &RequestId,
    found: InRedis,
) -> Result<Candidate> {
    match found {
        InRedis::NotFound => Err(Refusal::NotFound.into()),
        InRedis::Unreachable(unavailable) => Err(unavailable.into()),
        InRedis::Unreadable { problem, .. } => Err(unreadable(problem)),
        InRedis::Request(request) if request.0.request.is_pending() => Ok(request.0),
        InRedis::Request(request) => Err(unrecorded_decision(app, id, &request.0).await?),
    }
}

/// The error for a request that is not pending in Redis, and that the ledger, read after Redis, does
/// not have for this tenant.
pub(super) async fn unrecorded_decision(
    app: &AppState,
    id: &RequestId,
    found: &Candidate,
) -> Result<RequestError> {
    let recorded = app.ledger.find_request_of_redis(id).await?;
    if recorded.is_some_and(|record| !record.is_only_seen()) {
        // The request was another tenant's when it was decided.
        return Ok(Refusal::NotFound.into());
    }
    app.forgeries.request(id, &found.request.document);
    Ok(RequestError::UnrecordedDecision)
}
