//! Signals, for agents that Pub/Sub did not reach.

use actix_web::web;
use serde::Deserialize;
use utoipa::IntoParams;

use super::envelope::{Answer, nothing, ok};
use super::error::ApiError;
use super::{request_id, session_id};
use crate::approvals;
use crate::auth::CallerOf;
use crate::core::Core;

/// Which signal.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct SignalQuery {
    /// Only a signal for this request.
    #[param(example = "req-12345")]
    request_id: Option<String>,
}

/// Read the signal that answers what a session waits for. `data` is the signal as a JSON string,
/// and absent when there is none.
///
/// # Errors
/// As the contract says.
#[utoipa::path(
    get, path = "/aura/hitl/signals/{sessionId}", tag = "signals",
    params(("sessionId" = String, Path, example = "session_user123_1706149260"), SignalQuery),
    responses((status = 200, description = "The signal as a JSON string, or no data", body = super::envelope::Envelope<String>))
)]
pub async fn read(
    CallerOf(caller): CallerOf,
    core: web::Data<Core>,
    session: web::Path<String>,
    query: web::Query<SignalQuery>,
) -> Result<Answer<String>, ApiError> {
    let session = session_id(&session)?;
    let wanted = query.into_inner().request_id.map(|id| request_id(&id)).transpose()?;
    let work = core.get_ref().clone();
    let signal = core
        .run_to_end(async move {
            approvals::find_signal(&work, &caller, &session, wanted.as_ref()).await
        })
        .await?;
    Ok(match signal? {
        Some(signal) => ok("Signal retrieved", signal),
        None => nothing("No signal found for session"),
    })
}
