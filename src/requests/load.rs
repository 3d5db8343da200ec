//! Loading a request: what Redis has under its key, what the ledger knows, and whether the two agree.
//! Redis is read first and the ledger after it, so the ledger knows everything that Redis rightly
//! says.

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

/// What Redis has under a request's key, as far as it concerns one caller.
pub(super) enum InRedis {
    /// Nothing, or what is none of the caller's business: there is no telling them apart.
    Nothing,
    /// A request, and what its session names.
    Request(Box<(Candidate, SessionPointer)>),
    /// Something that cannot be read, and does not say that it is another tenant's.
    Unreadable {
        /// What is wrong with it.
        problem: &'static str,
        /// It.
        text: String,
    },
    /// Redis does not answer.
    Unreachable(Unavailable),
}

/// Reads a request from Redis, and what its session names.
pub(super) async fn look(app: &AppState, caller: &Caller, id: &RequestId) -> InRedis {
    let stored = match app.courier.find_request(id).await {
        Ok(Some(stored)) => stored,
        Ok(None) => return InRedis::Nothing,
        Err(unavailable) => return InRedis::Unreachable(unavailable),
    };
    // Judged first: what a stranger is told must not take longer because a request is there.
    let is_foreign = |tenant: Option<&TenantId>| tenant.is_some_and(|is| *is != caller.tenant);
    let scope = Scope::read(&stored.document);
    if is_foreign(scope.tenant.as_ref()) {
        return InRedis::Nothing;
    }
    let pointer = match &scope.session {
        Some(session) => match app.courier.session_of(stored.guessed_session, session).await {
            Ok(pointer) => pointer,
            Err(unavailable) => return InRedis::Unreachable(unavailable),
        },
        None => SessionPointer::default(),
    };
    if scope.tenant.is_none() && is_foreign(pointer.tenant.as_ref()) {
        return InRedis::Nothing;
    }
    let request = match ApprovalRequest::read(id, stored.document.clone()) {
        Ok(request) => request,
        Err(problem) => return InRedis::Unreadable { problem, text: stored.document },
    };
    if pointer.is_ambiguous && (request.tenant.is_none() || request.user.is_none()) {
        // Without a tenant it is nobody's.
        if request.tenant.as_ref() != Some(&caller.tenant) {
            return InRedis::Nothing;
        }
        let problem = "is in a session that does not say plainly whose it is";
        return InRedis::Unreadable { problem, text: stored.document };
    }
    let candidate = in_redis(request, &pointer, stored.ttl, app.clock.now());
    let user = candidate.user.as_ref();
    if is_visible(candidate.tenant.as_ref(), user, caller, app.policy) {
        InRedis::Request(Box::new((candidate, pointer)))
    } else {
        InRedis::Nothing
    }
}

/// Compares what Redis has with what the ledger, read after it, knows under the same id. Reports what
/// differs; says whether somebody asks for something else there, or something else stands there
/// while the ledger waits for a decision.
pub(super) fn compare(app: &AppState, record: &Record, found: &InRedis) -> bool {
    match found {
        InRedis::Nothing | InRedis::Unreachable(_) => false,
        InRedis::Unreadable { text, .. } => {
            app.forgeries.request(&record.id, text);
            true
        }
        InRedis::Request(request) => {
            let asked = &request.0.request;
            let is_altered = !is_same(record, &request.0)
                && (asked.is_pending() || record.state == State::Pending);
            // A decided one has changed with its decision, and must say the same as the ledger.
            if is_altered || !(asked.is_pending() || asked.status == record.state.as_str()) {
                app.forgeries.request(&record.id, &asked.document);
            }
            is_altered
        }
    }
}

/// A request that nobody can decide or be shown.
pub(super) fn unreadable(problem: &'static str) -> RequestError {
    warn!(problem, "a request in Redis cannot be read");
    RequestError::Unreadable(problem)
}

/// What could be decided of a request that an agent wrote to Redis.
pub(super) fn in_redis(
    request: ApprovalRequest,
    pointer: &SessionPointer,
    ttl: Option<Duration>,
    now: DateTime<Utc>,
) -> Candidate {
    let created_at = now - age(ttl);
    let lifetime = TimeDelta::seconds(i64::try_from(REQUEST_TTL_SECONDS).unwrap_or(0));
    // Another tenant's session does not say whose it is.
    let lender = (!pointer.is_anothers(request.tenant.as_ref(), None)).then_some(pointer);
    Candidate {
        tenant: request.tenant.clone().or_else(|| lender?.tenant.clone()),
        user: request.user.clone().or_else(|| lender?.user.clone()),
        request,
        origin: Origin::Redis,
        created_at,
        expires_at: created_at + lifetime,
    }
}

/// What could be decided of a request that the ledger knows.
///
/// # Errors
/// [`RequestError::Unreadable`], when its row was edited by hand.
pub(super) fn candidate(record: Record) -> Result<Candidate> {
    Ok(Candidate {
        request: ApprovalRequest::read(&record.id, record.document)
            .map_err(RequestError::Unreadable)?,
        origin: record.origin,
        tenant: Some(record.tenant),
        user: record.user,
        created_at: record.created_at,
        expires_at: record.expires_at,
    })
}

/// What Redis has under an id that the ledger, read after it, does not know.
///
/// # Errors
/// [`RequestError::DecidedByNobody`] for what says that it was decided, which the ledger would know.
pub(super) async fn undecided(app: &AppState, id: &RequestId, found: InRedis) -> Result<Candidate> {
    match found {
        InRedis::Nothing => Err(Refusal::NotFound.into()),
        InRedis::Unreachable(unavailable) => Err(unavailable.into()),
        InRedis::Unreadable { problem, .. } => Err(unreadable(problem)),
        InRedis::Request(request) if request.0.request.is_pending() => Ok(request.0),
        InRedis::Request(request) => Err(decided_by_nobody(app, id, &request.0).await?),
    }
}

/// What to say of a request in Redis that is not pending, and that the ledger, read after it, does
/// not know as this tenant's.
pub(super) async fn decided_by_nobody(
    app: &AppState,
    id: &RequestId,
    found: &Candidate,
) -> Result<RequestError> {
    if app.ledger.find_request_of_redis(id).await?.is_some() {
        // It was another tenant's when it was decided.
        return Ok(Refusal::NotFound.into());
    }
    app.forgeries.request(id, &found.request.document);
    Ok(RequestError::DecidedByNobody)
}
