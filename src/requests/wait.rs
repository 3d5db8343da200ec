//! Long-polls: waits over HTTP for an answer.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::error::Result;
use crate::domain::approver::Caller;
use crate::domain::ids::SessionId;
use crate::state::AppState;

/// Pause before asking again a store that did not answer. A wake-up may be lost meanwhile.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the query `ask` at once and after each wake-up of the session, until `is_answer` accepts its
/// result. Returns the last result after `wait`, or when the service stops.
///
/// # Errors
/// [`RequestError::TooMany`](super::RequestError::TooMany) when too many long-polls are open; the last
/// query's error when there was no answer in time.
pub async fn wait<T, Asking>(
    app: &AppState,
    caller: &Caller,
    session: &SessionId,
    wait: Duration,
    ask: impl Fn() -> Asking,
    is_answer: impl Fn(&T) -> bool,
) -> Result<T>
where
    T: Send + 'static,
    Asking: Future<Output = Result<T>> + Send + 'static,
{
    let until = Instant::now() + wait;
    let mut waiter = app.hub.watch(session, caller)?;
    loop {
        let answer = app.query_for_waiter(ask()).await;
        if answer.as_ref().is_ok_and(&is_answer) {
            return answer;
        }
        let again = if answer.is_err() { RETRY_INTERVAL } else { wait };
        tokio::select! {
            () = waiter.changed() => {}
            () = sleep_until(until) => return answer,
            () = app.stopping.cancelled() => return answer,
            () = sleep(again) => {}
        }
    }
}
