//! Evidence of attempts to decide that were refused: each is a row that auditors export.
//!
//! An answer never waits for its row. Attempts are handed to a worker, which writes them in batches;
//! those of the last moment are lost if the process is killed. Two things bound the rows: a person
//! leaves at most `BURST` at once and then one every `PAUSE`, per process, and retention deletes
//! them with the requests. What is dropped is counted, and every refusal is in the log.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::ledger::{Ledger, RefusedAttempt};
use crate::observe::metrics;

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

    /// Hands an attempt to the worker, or drops and counts it.
    pub fn record(&self, attempt: RefusedAttempt) {
        if self.people.len() > QUEUE_SIZE {
            self.people.retain_recent();
        }
        let person = (attempt.caller.tenant.to_string(), attempt.caller.user.to_string());
        if self.people.check_key(&person).is_err() || self.queue.try_send(attempt).is_err() {
            metrics::refused_attempt_dropped();
        }
    }
}

/// Writes attempts until the process is asked to stop and nothing is under way any more.
pub async fn run(ledger: Ledger, under_way: TaskTracker, Queue(mut attempts): Queue) {
    let mut batch = Vec::new();
    let mut ends = false;
    while !ends {
        tokio::select! {
            biased;
            _count = attempts.recv_many(&mut batch, BATCH_SIZE) => {}
            () = under_way.wait() => {
                ends = true;
                while let Ok(attempt) = attempts.try_recv() {
                    batch.push(attempt);
                }
            }
        }
        while !batch.is_empty() {
            match ledger.insert_refused_attempts(&batch).await {
                Ok(()) => batch.clear(),
                Err(error) => {
                    warn!(%error, count = batch.len(), "refused attempts are not recorded yet");
                    tokio::select! {
                        () = sleep(RETRY_DELAY) => {}
                        () = under_way.wait() => {
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
