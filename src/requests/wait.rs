//! Waiting over HTTP for an answer.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::error::Result;
use crate::domain::approver::Caller;
use crate::domain::ids::SessionId;
use crate::state::AppState;

/// Pause before a store that did not answer is asked again: what was published meanwhile may be lost.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Asks until there is an answer, at most for `wait`: at once, and then whenever the session has
/// news. Ends early when the service stops.
///
/// # Errors
/// The last question's, when there was no answer in time.
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
        let answer = app.ask_in_turn(ask()).await;
        if answer.as_ref().is_ok_and(&is_answer) {
            return answer;
        }
        let again = if answer.is_err() { RETRY_INTERVAL } else { wait };
        tokio::select! {
            () = waiter.news() => {}
            () = sleep_until(until) => return answer,
            () = app.stopping.cancelled() => return answer,
            () = sleep(again) => {}
        }
    }
}
