//! Records refused attempts to decide, as evidence for auditors.

use actix_web::http::header::IF_MATCH;
use actix_web::{HttpMessage as _, HttpRequest, web};

use super::error::{ApiError, ErrorCode};
use super::headers::header_text;
use crate::domain::approver::Caller;
use crate::domain::ids::RequestId;
use crate::ledger::RefusedAttempt;
use crate::state::AppState;

/// How many characters of a reason are recorded.
const MAX_REASON_CHARS: usize = 500;

/// Records an answer that refuses an attempt to decide. Only attempts with a valid token are recorded:
/// the others have no user.
pub fn record(request: &HttpRequest, route: &str, error: &ApiError) {
    let verdict = if route.ends_with("/approve/{requestId}") {
        "approved"
    } else if route.ends_with("/reject/{requestId}") || route.ends_with("/respond/{requestId}") {
        // An answer is kept as a rejection, as in the request's row: the agent does not act.
        "rejected"
    } else {
        return;
    };
    let (Some(app), Some(caller)) = (request.app_data::<web::Data<AppState>>(), caller(request))
    else {
        return;
    };
    let Some(id) = request.match_info().get("requestId") else { return };
    let Ok(request_id) = RequestId::parse(id) else { return };
    let if_match = header_text(request.headers(), IF_MATCH.as_str());
    record_one(app, &caller, Attempt { request: request_id, verdict, if_match }, error);
}

/// An attempt to decide one request.
pub struct Attempt {
    /// The request.
    pub request: RequestId,
    /// `approved` or `rejected`.
    pub verdict: &'static str,
    /// The entity tag of the content that the caller had seen.
    pub if_match: Option<String>,
}

/// Records a refused attempt, if the error is evidence.
pub fn record_one(app: &AppState, caller: &Caller, attempt: Attempt, error: &ApiError) {
    if !is_evidence(error.code()) {
        return;
    }
    let Attempt { request, verdict, if_match } = attempt;
    app.refused_attempts.record(RefusedAttempt {
        at: app.clock.now(),
        caller: caller.clone(),
        request,
        verdict,
        error_code: error.code().as_str(),
        reason: error.english().chars().take(MAX_REASON_CHARS).collect(),
        if_match,
    });
}

fn caller(request: &HttpRequest) -> Option<Caller> {
    request.extensions().get::<Caller>().cloned()
}

/// Whether an error refuses the decision itself: a permission, the request's state or its content.
/// Malformed calls, rate limits and faults of the service are no evidence.
fn is_evidence(code: ErrorCode) -> bool {
    matches!(code.status().as_u16(), 403 | 404 | 409 | 410 | 412 | 422 | 428)
}
