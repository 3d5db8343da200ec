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
use tracing::warn;

use crate::ledger::{Ledger, LedgerError, RefusedAttempt};
use crate::observe::metrics;
use crate::workers::{Failed, Progress, Worker};

/// Attempts of one person that are written at once, after a pause.
const BURST: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// In the long run, one attempt of a person is written in this time.
const PAUSE: Duration = Duration::from_secs(10);
/// Attempts that may wait to be written.
const QUEUE_SIZE: usize = 1024;
/// Attempts to write in one statement.
const BATCH_SIZE: usize = 100;

/// Takes attempts; cheap to clone.
#[derive(Clone, Debug)]
pub struct RefusedAttempts {
    queue: Sender<RefusedAttempt>,
    people: Arc<DefaultKeyedRateLimiter<(String, String)>>,
}

/// What an [`AttemptWriter`] has to write.
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

/// Writes attempts.
#[derive(Debug)]
pub struct AttemptWriter {
    ledger: Ledger,
    attempts: Receiver<RefusedAttempt>,
    batch: Vec<RefusedAttempt>,
}

impl AttemptWriter {
    /// What writes the attempts of a queue into a ledger.
    #[must_use]
    pub fn new(ledger: Ledger, Queue(attempts): Queue) -> Self {
        Self { ledger, attempts, batch: Vec::new() }
    }

    async fn write(&mut self) -> Result<(), LedgerError> {
        if !self.batch.is_empty() {
            self.ledger.insert_refused_attempts(&self.batch).await.inspect_err(|error| {
                warn!(%error, count = self.batch.len(), "refused attempts are not recorded yet");
            })?;
            self.batch.clear();
        }
        Ok(())
    }
}

impl Worker for AttemptWriter {
    const NAME: &'static str = "refused_attempts";
    /// Longest between two rounds while no attempt is refused, so that the last success is a fresh one.
    const INTERVAL: Duration = Duration::from_secs(5);
    /// Pause before what could not be written is tried again.
    const RETRY_INTERVAL: Duration = Duration::from_secs(1);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        self.write().await.map(|()| Progress::Done).map_err(|_logged| Failed)
    }

    async fn wake_up(&mut self) {
        self.attempts.recv_many(&mut self.batch, BATCH_SIZE).await;
    }

    async fn finish(&mut self) {
        while let Ok(attempt) = self.attempts.try_recv() {
            self.batch.push(attempt);
        }
        if self.write().await.is_err() {
            for _lost in self.batch.drain(..) {
                metrics::refused_attempt_dropped();
            }
        }
    }
}
