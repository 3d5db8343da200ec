//! The inbox as a stream, for the people who decide.

use std::time::Duration;

use actix_web::{HttpRequest, Responder, web};
use actix_web_lab::sse::{Data, Event, Sse};
use futures_util::stream::{StreamExt as _, unfold};
use serde::Serialize;
use tokio::time::sleep;

use super::error::ApiError;
use super::identity::{CallerOf, token_time_left};
use super::lists::NoQuery;
use crate::api::connection::end_with_client;
use crate::domain::json;
use crate::requests::inbox::{InboxEvent, InboxStream, change};
use crate::state::AppState;

/// How often an idle stream sends a comment, so that proxies keep it open.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// How long a client of a stream waits before it connects again.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// How many requests wait.
#[derive(Debug, Serialize)]
struct CountsEvent {
    decidable: u64,
    mine: u64,
}

/// A request that has changed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestEvent<'a> {
    request_id: &'a str,
    status: &'static str,
    change: &'static str,
}

/// Listen to your inbox: server-sent events. `counts` comes at once and whenever it changes, `request` for
/// each request of your tenant that is created, commented, decided, withdrawn or expires. The stream ends with the
/// token; then, or after a lost connection, read the list again.
///
/// # Errors
/// `E4000` for any query parameter; `E4290` when too many long-polls and streams are open; `E5000` when
/// the ledger does not answer.
#[utoipa::path(
    get, path = "/aura/hitl/inbox/stream",
    responses((
        status = 200, description = "Events `counts` and `request`",
        body = String, content_type = "text/event-stream",
        example = json!(concat!(
            "retry: 1000\n\nevent: counts\ndata: {\"decidable\":3,\"mine\":1}\n\n",
            "event: request\n",
            r#"data: {"requestId":"req-12345","status":"approved","change":"decided"}"#, "\n\n",
        )),
    ))
)]
pub async fn stream(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    _none: NoQuery,
    request: HttpRequest,
) -> Result<impl Responder, ApiError> {
    end_with_client(&request);
    let work = app.get_ref().clone();
    let inbox = app.run_to_end(async move { InboxStream::of(&work, &caller).await }).await??;
    let events = unfold(inbox, |mut inbox| async {
        let event = inbox.next().await?;
        Some((Event::Data(data(&event)), inbox))
    });
    // The stream ends with the token: the client authenticates again when it reconnects.
    let events = events.take_until(Box::pin(sleep(token_time_left(&request))));
    let stream = Sse::from_infallible_stream(events)
        .with_keep_alive(KEEP_ALIVE_INTERVAL)
        .with_retry_duration(RECONNECT_DELAY);
    // Without this header, nginx buffers the events.
    Ok(stream.customize().insert_header(("X-Accel-Buffering", "no")))
}

fn data(event: &InboxEvent) -> Data {
    match event {
        InboxEvent::Counts(counts) => {
            let counts = CountsEvent { decidable: counts.decidable, mine: counts.mine };
            Data::new(json::raw(&counts).get()).event("counts")
        }
        InboxEvent::Request(changed) => {
            let request = RequestEvent {
                request_id: changed.id.as_str(),
                status: changed.status.as_str(),
                change: change(changed),
            };
            Data::new(json::raw(&request).get()).event("request")
        }
    }
}
