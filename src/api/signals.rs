//! Signals and outcomes of a session, for agents that no Pub/Sub message reaches.

use std::time::Duration;

use actix_web::http::header::{HeaderMap, RETRY_AFTER};
use actix_web::{HttpRequest, Responder, web};
use actix_web_lab::sse::{Data, Event, Sse};
use futures_util::stream::{StreamExt as _, unfold};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::sleep;
use utoipa::IntoParams;

use super::body::Query;
use super::envelope::{Answer, Envelope, nothing, ok};
use super::error::ApiError;
use super::examples::success;
use super::identity::{CallerOf, is_agent, token_time_left};
use super::outcomes::{VotesView, grant_id, parse_wait};
use super::schemas;
use super::{request_id, session_id};
use crate::api::connection::end_with_client;
use crate::domain::approver::Caller;
use crate::domain::comment::Comment;
use crate::domain::decision::State;
use crate::domain::ids::RequestId;
use crate::domain::json;
use crate::domain::record::Record;
use crate::requests::answers::{Answer as Told, decided_via};
use crate::requests::read_receipts::{
    record_decision_read, record_decision_read_by_id, record_signal_read,
};
use crate::requests::signal::{cached_signal, cached_signal_of_poll, find_signal, poll};
use crate::requests::stream::{Outcomes, StreamEvent};
use crate::requests::wait;
use crate::state::AppState;

/// How often an idle stream sends a comment, so that proxies keep it open.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// How long a client of a stream waits before it connects again.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);
/// The messages of the wire contract.
const NO_SIGNAL: &str = "No signal found for session";
const RETRIEVED: &str = "Signal retrieved";

/// Which signal.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct SignalQuery {
    /// Only a signal for this request.
    #[param(value_type = Option<schemas::Id>, inline, example = "req-12345")]
    request_id: Option<String>,
    /// How long to wait for a signal, in seconds; 0 when absent.
    #[param(value_type = u64, required = false, minimum = 0, maximum = 55)]
    wait_seconds: Option<String>,
}

/// Which outcomes.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct StreamQuery {
    /// Only those of this request.
    #[param(value_type = Option<schemas::Id>, inline, example = "req-12345")]
    request_id: Option<String>,
}

/// A comment in the stream.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CommentEvent<'a> {
    r#type: &'static str,
    request_id: &'a str,
    number: i64,
    user_id: &'a str,
    author: &'static str,
    text: &'a str,
    /// Unix seconds.
    timestamp: i64,
}

/// An outcome in the stream: the signal's fields and the request's fingerprint.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OutcomeEvent<'a> {
    r#type: &'static str,
    request_id: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// Unix seconds.
    timestamp: i64,
    fingerprint: String,
    /// How it was decided under a policy file.
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_via: Option<&'static str>,
    /// The grant that approved it.
    #[serde(skip_serializing_if = "Option::is_none")]
    grant_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    votes: Option<VotesView>,
    /// See [`Told`].
    #[serde(skip_serializing_if = "Option::is_none")]
    requested_fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<Box<RawValue>>,
}

/// Read the signal for which a session waits, and wait for it if asked to. `data` is the signal as a
/// JSON string, and absent without a signal.
///
/// # Errors
/// `E4000` when an id or a parameter is not valid; `E4290` when too many long-polls and streams are open;
/// `E5000` when a store does not answer.
#[utoipa::path(
    get, path = "/aura/hitl/signals/{sessionId}", params(SignalQuery),
    responses((
        status = 200, description = "The signal as a JSON string, or no data", body = Envelope<String>,
        example = json!(success(
            RETRIEVED,
            r#"{"type":"approval","requestId":"req-12345","status":"approved","timestamp":1706152860}"#,
        )),
    ))
)]
pub async fn read(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    session: web::Path<String>,
    Query(query): Query<SignalQuery>,
    request: HttpRequest,
) -> Result<Answer<String>, ApiError> {
    let session = session_id(&session)?;
    let wanted = query.request_id.map(|id| request_id(&id)).transpose()?;
    let wait = parse_wait(query.wait_seconds.as_deref(), &request)?;
    let ask = |polled: Option<_>| {
        let (app, caller) = (app.get_ref().clone(), caller.clone());
        let (session, wanted) = (session.clone(), wanted.clone());
        // Boxed, because the future is large.
        async move { Box::pin(find_signal(&app, &caller, &session, wanted.as_ref(), polled)).await }
    };
    // Most polls end here. They only read, so they need not run to their end.
    let mut polled = None;
    if let Some(wanted) = &wanted
        && let Some(signal) = cached_signal(&app, &caller, &session, wanted)
    {
        record_signal_read(&app, &caller, &signal);
        record_wanted_read(&app, &caller, Some(wanted), &request);
        return Ok(ok(RETRIEVED, signal));
    }
    // A registered request does not need Redis. If the agent names a request, read Redis first only when
    // the cache has it as a request of Redis.
    if wanted.as_ref().is_none_or(|wanted| app.decisions.of_redis(wanted).is_some()) {
        let permit = app.acquire_call_permit()?;
        let answer = poll(&app, &session).await;
        drop(permit);
        if let Ok(found) = &answer
            && let Some(signal) =
                cached_signal_of_poll(&app, &caller, &session, wanted.as_ref(), found)
        {
            record_signal_read(&app, &caller, &signal);
            return Ok(ok(RETRIEVED, signal));
        }
        polled = Some(answer);
    }
    let mut signal = app.run_to_end(ask(polled)).await??;
    if let Some(wait) = wait.filter(|wait| signal.is_none() && !wait.is_zero()) {
        end_with_client(&request);
        let ask = || ask(None);
        let waiting = wait::wait(&app, &caller, &session, wait, ask, Option::is_some);
        signal = Box::pin(waiting).await?;
    }
    if let Some(signal) = &signal {
        record_signal_read(&app, &caller, signal);
        record_wanted_read(&app, &caller, wanted.as_ref(), &request);
    }
    Ok(match signal {
        Some(signal) => ok(RETRIEVED, signal),
        None if wait.is_some() => nothing(NO_SIGNAL).with((RETRY_AFTER, "0")),
        None => nothing(NO_SIGNAL),
    })
}

/// Listen to the outcomes of a session: server-sent events, in the order in which they were recorded.
/// `id` counts them; with `Last-Event-ID` the stream goes on after that one. Without it, it begins
/// with those of the last 30 minutes that nobody has acknowledged. Comments on requests of the session
/// come without an `id`; a stream begins with those of the last 30 minutes.
///
/// # Errors
/// `E4000` when an id or a parameter is not valid; `E4290` when too many long-polls and streams are open;
/// `E5000` when a store does not answer.
#[utoipa::path(
    get, path = "/aura/hitl/signals/{sessionId}/stream",
    params(StreamQuery, ("Last-Event-ID" = Option<String>, Header)),
    responses((
        status = 200, description = "Events `approval`, `rejection`, `answer`, `expired`, `cancelled` and `comment`",
        body = String, content_type = "text/event-stream",
        example = json!(concat!(
            "retry: 1000\n\nid: 1\nevent: approval\n",
            r#"data: {"type":"approval","requestId":"req-12345","status":"approved","timestamp":1706152860,"#,
            r#""fingerprint":"867fde4fc583e15bf89001ed3d7d15494603a334605ab747d88130cf7ed58894"}"#,
            "\n\n",
        )),
    ))
)]
pub async fn stream(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    session: web::Path<String>,
    Query(query): Query<StreamQuery>,
    request: HttpRequest,
) -> Result<impl Responder, ApiError> {
    let session = session_id(&session)?;
    let wanted = query.request_id.map(|id| request_id(&id)).transpose()?;
    let after = last_event(request.headers())?;
    end_with_client(&request);
    let agent = is_agent(&caller, &request).then(|| (app.get_ref().clone(), caller.clone()));
    let work = app.get_ref().clone();
    let outcomes = app
        .run_to_end(async move { Outcomes::of(&work, &caller, session, wanted, after).await })
        .await??;
    let events = unfold((outcomes, agent), |(mut outcomes, agent)| async {
        let data = match outcomes.next().await? {
            StreamEvent::Outcome(record) => {
                if let Some((app, caller)) = &agent {
                    record_decision_read(app, caller, &record);
                }
                event(&record)
            }
            StreamEvent::Comment(comment) => comment_event(&comment),
        };
        Some((Event::Data(data), (outcomes, agent)))
    });
    // The stream ends with the token: the client authenticates again when it reconnects.
    let events = events.take_until(Box::pin(sleep(token_time_left(&request))));
    let stream = Sse::from_infallible_stream(events)
        .with_keep_alive(KEEP_ALIVE_INTERVAL)
        .with_retry_duration(RECONNECT_DELAY);
    // Without this header, nginx buffers the events.
    Ok(stream.customize().insert_header(("X-Accel-Buffering", "no")))
}

/// Records that an agent has read the decision of the request that it named.
fn record_wanted_read(
    app: &AppState,
    caller: &Caller,
    wanted: Option<&RequestId>,
    request: &HttpRequest,
) {
    if let Some(id) = wanted.filter(|_id| is_agent(caller, request)) {
        record_decision_read_by_id(app, caller, id);
    }
}

/// The header `Last-Event-ID`: the sequence number of the last outcome that the client has seen.
fn last_event(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    let Some(value) = headers.get("Last-Event-ID") else { return Ok(None) };
    let text = value.to_str().unwrap_or("?").trim();
    if text.is_empty() {
        return Ok(None);
    }
    let number = text.parse().ok().filter(|number| *number >= 0);
    number.map(Some).ok_or_else(|| {
        ApiError::invalid_header("Last-Event-ID", "the number of an event", "이벤트 번호")
    })
}

/// Without an id: those number the outcomes.
fn comment_event(comment: &Comment) -> Data {
    let data = CommentEvent {
        r#type: "comment",
        request_id: comment.request.as_str(),
        number: comment.number,
        user_id: comment.user.as_str(),
        author: comment.author.as_str(),
        text: &comment.text,
        timestamp: comment.at.timestamp(),
    };
    Data::new(json::raw(&data).get()).event("comment")
}

fn event(record: &Record) -> Data {
    let (kind, reason) = match &record.state {
        State::Decided(decision) => (decision.verdict.signal_type(), decision.verdict.reason()),
        state => (state.as_str(), None),
    };
    let Told { fingerprint, requested_fingerprint, arguments, response } = Told::of(record);
    let at = record.state.decision().map(|decision| decision.at).or(record.closed_at);
    let data = OutcomeEvent {
        r#type: kind,
        request_id: record.id.as_str(),
        status: record.state.as_str(),
        reason,
        timestamp: at.unwrap_or_default().timestamp(),
        fingerprint,
        decided_via: decided_via(record),
        grant_id: grant_id(record),
        votes: VotesView::of(record),
        requested_fingerprint,
        arguments,
        response,
    };
    let id = record.sequence.unwrap_or_default().to_string();
    Data::new(json::raw(&data).get()).event(kind).id(id)
}
