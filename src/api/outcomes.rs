//! The outcome of one request, for its agent: to read, to wait for, to acknowledge; and withdrawing a
//! request. Reads the ledger, so that Redis is not needed for a request that the ledger has.

use std::time::Duration;

use actix_web::http::header::RETRY_AFTER;
use actix_web::{HttpRequest, web};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::approvals::etag;
use super::body::Query;
use super::envelope::{Answer, Envelope, ok, wire_time};
use super::error::ApiError;
use super::examples::{FINGERPRINT, REQUEST, SESSION, success};
use super::identity::{CallerOf, is_agent, token_time_left};
use super::request_id;
use super::schemas;
use super::text::Text;
use crate::api::connection::end_with_client;
use crate::domain::decision::State;
use crate::domain::record::{Delivery, Record};
use crate::domain::request::Origin;
use crate::requests::answers::{Answer as Told, Votes, decided_via};
use crate::requests::read::{Found, find};
use crate::requests::read_receipts::record_decision_read;
use crate::requests::{acknowledge, wait, withdraw};
use crate::state::AppState;

/// How long a call may wait, in seconds: less than the minute after which many proxies give up.
pub const MAX_WAIT_SECONDS: u64 = 55;

/// How long to wait.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// How long to wait for an outcome, in seconds; 0 when absent.
    #[param(value_type = u64, required = false, minimum = 0, maximum = 55)]
    wait_seconds: Option<String>,
}

/// The state of a request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutcomeView {
    /// The request.
    #[schema(example = "req-12345")]
    request_id: String,
    /// The session of the request.
    #[schema(example = "session_user123_1706149260")]
    session_id: String,
    /// `pending`, `approved`, `rejected`, `answered`, `expired` or `cancelled`.
    #[schema(example = "approved")]
    status: &'static str,
    /// SHA-256 of `actionType` and `context`, in hex; of an edit, with its `arguments` as the context. Act
    /// only on this content.
    fingerprint: String,
    /// Of an approved request whose agent takes other arguments: the fingerprint of what was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    requested_fingerprint: Option<String>,
    /// The arguments to act with, if other than those that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::any)]
    arguments: Option<Box<RawValue>>,
    /// The answer that was given instead of an approval.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::any)]
    response: Option<Box<RawValue>>,
    /// When the request expires. UTC, whole seconds, no zone suffix, as all times here.
    expires_at: String,
    /// Why it was rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The user who decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_by: Option<String>,
    /// When the request was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_at: Option<String>,
    /// When the request was closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    settled_at: Option<String>,
    /// How it was decided under a policy file: `person`, `policy` or `grant`.
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_via: Option<&'static str>,
    /// The grant that approved it.
    #[serde(skip_serializing_if = "Option::is_none")]
    grant_id: Option<String>,
    /// How many people have approved it, and how many have to, under a policy file.
    #[serde(skip_serializing_if = "Option::is_none")]
    votes: Option<VotesView>,
    /// The state of the signal in Redis.
    signal: SignalView,
    /// When the agent acknowledged the outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    acted_at: Option<String>,
}

/// The approvals of a request.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct VotesView {
    /// How many people have to approve it.
    #[schema(example = 2)]
    needed: u32,
    /// How many have.
    #[schema(example = 1)]
    given: u32,
}

impl VotesView {
    /// Those of a request under a policy file.
    pub(super) fn of(record: &Record) -> Option<Self> {
        Votes::of(record).map(|Votes { needed, given }| Self { needed, given })
    }
}

/// The grant that approved a request.
pub(super) fn grant_id(record: &Record) -> Option<String> {
    record.used_grant().map(ToString::to_string)
}

/// The state of a signal.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignalView {
    /// `none`: undecided, or registered over HTTP and so not signalled in Redis. `owed`, `sent`, or
    /// `superseded`: its session had moved on.
    #[schema(example = "sent")]
    state: &'static str,
    /// When it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_at: Option<String>,
    /// How many subscribers its channel had then. 0 does not mean that the signal is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    listeners: Option<i64>,
}

/// A request after its agent withdrew or acknowledged it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClosedView {
    /// The request.
    #[schema(example = "req-12345")]
    request_id: String,
    /// Its session.
    #[schema(example = "session_user123_1706149260")]
    session_id: String,
    /// The state of the request.
    #[schema(example = "approved")]
    status: &'static str,
    /// When the agent first acknowledged the outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    acted_at: Option<String>,
}

/// The wait that the caller asks for, cut to the rest of its token's lifetime.
///
/// # Errors
/// `E4000` when `waitSeconds` is not a number or more than [`MAX_WAIT_SECONDS`].
pub fn parse_wait(
    seconds: Option<&str>,
    request: &HttpRequest,
) -> Result<Option<Duration>, ApiError> {
    let Some(text) = seconds else { return Ok(None) };
    let seconds = text.parse().ok().filter(|seconds| *seconds <= MAX_WAIT_SECONDS);
    let seconds = seconds.ok_or_else(|| {
        let text = Text::new("must be from 0 to 55", "0에서 55 사이여야 합니다");
        ApiError::invalid_field("waitSeconds", text)
    })?;
    Ok(Some(Duration::from_secs(seconds).min(token_time_left(request))))
}

/// Read the state of a request, and wait for its outcome if asked to. The answer comes from the
/// ledger, also long after the decision.
///
/// # Errors
/// `E1004` when there is no such request; `E4220` when the request in Redis is not valid; `E4290` when
/// too many long-polls are open.
#[utoipa::path(
    get, path = "/aura/hitl/requests/{requestId}/decision", params(WaitQuery),
    responses((
        status = 200, description = "Where it stands, pending included", body = Envelope<OutcomeView>,
        example = json!(success("Decision retrieved", json!({
            "requestId": REQUEST, "sessionId": SESSION, "status": "approved",
            "fingerprint": FINGERPRINT, "expiresAt": "2026-01-16T12:30:00",
            "decidedBy": "user123", "decidedAt": "2026-01-16T12:00:00",
            "settledAt": "2026-01-16T12:00:00",
            "signal": { "state": "sent", "sentAt": "2026-01-16T12:00:00", "listeners": 1 },
        }))),
    ))
)]
pub async fn read(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
    Query(query): Query<WaitQuery>,
    request: HttpRequest,
) -> Result<Answer<OutcomeView>, ApiError> {
    let id = request_id(&id)?;
    let wait = parse_wait(query.wait_seconds.as_deref(), &request)?;
    let ask = || {
        let (app, caller, id) = (app.get_ref().clone(), caller.clone(), id.clone());
        async move { find(&app, &caller, &id).await }
    };
    let mut found = app.run_to_end(ask()).await??;
    if let Some(wait) = wait.filter(|wait| found.is_pending() && !wait.is_zero()) {
        end_with_client(&request);
        let session = found.session().clone();
        found = wait::wait(&app, &caller, &session, wait, ask, |found| !found.is_pending()).await?;
        if matches!(found, Found::InRedis(_)) {
            // By now its key may be gone.
            found = app.run_to_end(ask()).await??;
        }
    }
    if let Found::InLedger(record) = &found
        && is_agent(&caller, &request)
    {
        record_decision_read(&app, &caller, record);
    }
    let is_pending = found.is_pending();
    let tag = etag(found.etag());
    let answer = ok("Decision retrieved", view(found)).with(tag);
    Ok(if is_pending && wait.is_some() { answer.with((RETRY_AFTER, "0")) } else { answer })
}

/// Withdraw a pending request. Withdrawing it again is answered alike.
///
/// # Errors
/// `E3006` with the decision, if a person decided first; `E3007` after the request has expired.
#[utoipa::path(
    post, path = "/aura/hitl/requests/{requestId}/cancel",
    responses((
        status = 200, description = "Withdrawn: nobody can decide it any more", body = Envelope<ClosedView>,
        example = json!(success("Request cancelled", json!({
            "requestId": REQUEST, "sessionId": SESSION, "status": "cancelled",
        }))),
    ))
)]
pub async fn cancel(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
) -> Result<Answer<ClosedView>, ApiError> {
    let id = request_id(&id)?;
    let work = app.get_ref().clone();
    let cancelled =
        app.run_to_end(async move { withdraw::cancel(&work, &caller, &id).await }).await??;
    Ok(ok("Request cancelled", closed(&cancelled)))
}

/// Acknowledge that the agent has acted on the outcome. The first acknowledgement counts.
///
/// # Errors
/// `E3008` while the request is pending.
#[utoipa::path(
    post, path = "/aura/hitl/requests/{requestId}/ack",
    responses((
        status = 200, description = "Noted", body = Envelope<ClosedView>,
        example = json!(success("Decision acknowledged", json!({
            "requestId": REQUEST, "sessionId": SESSION, "status": "approved",
            "actedAt": "2026-01-16T12:00:05",
        }))),
    ))
)]
pub async fn acknowledge(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
) -> Result<Answer<ClosedView>, ApiError> {
    let id = request_id(&id)?;
    let work = app.get_ref().clone();
    let noted = app
        .run_to_end(async move { acknowledge::acknowledge(&work, &caller, &id).await })
        .await??;
    Ok(ok("Decision acknowledged", closed(&noted)))
}

fn closed(record: &Record) -> ClosedView {
    ClosedView {
        request_id: record.id.to_string(),
        session_id: record.session.to_string(),
        status: record.state.as_str(),
        acted_at: record.acted_at.map(wire_time),
    }
}

fn view(found: Found) -> OutcomeView {
    match found {
        Found::InLedger(record) => {
            let decision = record.state.decision();
            let Told { fingerprint, requested_fingerprint, arguments, response } =
                Told::of(&record);
            OutcomeView {
                request_id: record.id.to_string(),
                session_id: record.session.to_string(),
                status: record.state.as_str(),
                expires_at: wire_time(record.expires_at),
                reason: decision
                    .and_then(|decision| decision.verdict.reason())
                    .map(ToOwned::to_owned),
                decided_by: decision.map(|decision| decision.by.to_string()),
                decided_at: decision.map(|decision| wire_time(decision.at)),
                settled_at: record.closed_at.map(wire_time),
                decided_via: decided_via(&record),
                grant_id: grant_id(&record),
                votes: VotesView::of(&record),
                signal: signal(&record),
                acted_at: record.acted_at.map(wire_time),
                fingerprint,
                requested_fingerprint,
                arguments,
                response,
            }
        }
        Found::InRedis(candidate) => OutcomeView {
            request_id: candidate.request.id.to_string(),
            session_id: candidate.request.session.to_string(),
            status: State::Pending.as_str(),
            fingerprint: candidate.request.fingerprint,
            requested_fingerprint: None,
            arguments: None,
            response: None,
            expires_at: wire_time(candidate.expires_at),
            reason: None,
            decided_by: None,
            decided_at: None,
            settled_at: None,
            decided_via: None,
            grant_id: None,
            votes: None,
            signal: NO_SIGNAL,
            acted_at: None,
        },
    }
}

/// The state of a signal that there is not.
pub(super) const NO_SIGNAL: SignalView =
    SignalView { state: "none", sent_at: None, listeners: None };

/// The state of a request's signal.
pub(super) fn signal(record: &Record) -> SignalView {
    if record.state.decision().is_none() || record.origin == Origin::Http {
        return NO_SIGNAL;
    }
    let state = match record.delivery {
        Delivery::Owed => "owed",
        Delivery::Sent => "sent",
        Delivery::Superseded => return SignalView { state: "superseded", ..NO_SIGNAL },
    };
    SignalView { state, sent_at: record.sent_at.map(wire_time), listeners: record.listeners }
}
