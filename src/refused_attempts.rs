//! Evidence of attempts to decide that were refused: each is a row that auditors export.
//!
//! An answer never waits for its row. Attempts are handed to a worker, which writes them in batches;
//! those of the last moment are lost if the process is killed. Two things bound the rows: a person
//! leaves at most `BURST` at once and then one every `PAUSE`, per process, and retention deletes
//! them with the requests. What is dropped is counted, and every refusal is in the log.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpMessage as _;
use actix_web::HttpRequest;
use actix_web::http::header::IF_MATCH;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::sleep;
use tracing::warn;

use crate::api::error::{ApiError, ErrorCode};
use crate::core::Core;
use crate::domain::approver::Caller;
use crate::domain::ids::RequestId;
use crate::ledger::RefusedAttempt;
use crate::metrics;
use crate::telemetry::header_text;

/// Attempts of one person that are written at once, after a pause.
const BURST: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// In the long run, one attempt of a person is written in this time.
const PAUSE: Duration = Duration::from_secs(10);
/// Attempts that may wait to be written.
const QUEUE_SIZE: usize = 1024;
/// Attempts to write in one statement.
const BATCH_SIZE: usize = 100;
/// Pause before what could not be written is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Longest reason, in characters.
const MAX_REASON_CHARS: usize = 500;

/// Takes attempts; cheap to clone.
#[derive(Clone, Debug)]
pub struct RefusedAttempts {
    queue: Sender<RefusedAttempt>,
    people: Arc<DefaultKeyedRateLimiter<(String, String)>>,
}

/// What [`run`] has to write.
#[derive(Debug)]
pub struct Queue(Receiver<RefusedAttempt>);

impl RefusedAttempts {
    /// A queue with nothing in it.
    #[must_use]
    pub fn new() -> (Self, Queue) {
        let (queue, attempts) = mpsc::channel(QUEUE_SIZE);
        let quota = Quota::with_period(PAUSE).map(|quota| quota.allow_burst(BURST));
        let quota = quota.unwrap_or_else(|| Quota::per_minute(BURST));
        let people = Arc::new(RateLimiter::keyed(quota));
        (Self { queue, people }, Queue(attempts))
    }

    fn note(&self, attempt: RefusedAttempt) {
        if self.people.len() > QUEUE_SIZE {
            self.people.retain_recent();
        }
        let person = (attempt.caller.tenant.to_string(), attempt.caller.user.to_string());
        if self.people.check_key(&person).is_err() || self.queue.try_send(attempt).is_err() {
            metrics::refused_attempt_dropped();
        }
    }
}

/// Notes an answer, if it refuses an attempt to decide by somebody whose token is genuine. Whoever
/// has none left no name.
pub fn note(request: &HttpRequest, route: &str, error: &ApiError) {
    let verdict = if route.ends_with("/approve/{requestId}") {
        "approved"
    } else if route.ends_with("/reject/{requestId}") {
        "rejected"
    } else {
        return;
    };
    let (Some(core), Some(caller)) =
        (request.app_data::<actix_web::web::Data<Core>>(), caller(request))
    else {
        return;
    };
    if !is_evidence(error.code()) {
        return;
    }
    let Some(id) = request.match_info().get("requestId") else { return };
    let Ok(request_id) = RequestId::parse(id) else { return };
    core.refused_attempts.note(RefusedAttempt {
        at: core.clock.now(),
        caller,
        request: request_id,
        verdict,
        error_code: error.code().as_str(),
        reason: error.english().chars().take(MAX_REASON_CHARS).collect(),
        if_match: header_text(request.headers(), IF_MATCH.as_str()),
    });
}

fn caller(request: &HttpRequest) -> Option<Caller> {
    request.extensions().get::<Caller>().cloned()
}

/// Whether an error says that somebody may not decide this, or not so, or not any more; rather than
/// that the call was malformed, too early, or met a fault of ours.
fn is_evidence(code: ErrorCode) -> bool {
    matches!(code.status().as_u16(), 403 | 404 | 409 | 410 | 412 | 422 | 428)
}

/// Writes attempts until the process is asked to stop and nothing is under way any more.
pub async fn run(core: Core, Queue(mut attempts): Queue) {
    let mut batch = Vec::new();
    let mut ends = false;
    while !ends {
        tokio::select! {
            biased;
            _count = attempts.recv_many(&mut batch, BATCH_SIZE) => {}
            () = core.under_way.wait() => {
                ends = true;
                while let Ok(attempt) = attempts.try_recv() {
                    batch.push(attempt);
                }
            }
        }
        while !batch.is_empty() {
            match core.ledger.insert_refused_attempts(&batch).await {
                Ok(()) => batch.clear(),
                Err(error) => {
                    warn!(%error, count = batch.len(), "refused attempts are not recorded yet");
                    tokio::select! {
                        () = sleep(RETRY_DELAY) => {}
                        () = core.under_way.wait() => {
                            for _lost in batch.drain(..) {
                                metrics::refused_attempt_dropped();
                            }
                        }
                    }
                }
            }
        }
    }
}
