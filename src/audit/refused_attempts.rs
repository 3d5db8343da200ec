//! Records the attempts to decide that were refused, one row each, for auditors to export.
//!
//! The answer to an attempt does not wait for its row: a queue passes the attempt to a worker,
//! which writes rows in batches. If the process is killed, the attempts in the queue are lost. Two
//! limits bound the number of rows. Each process records at most `BURST` attempts of one person at
//! once and then one every `ATTEMPT_INTERVAL`; retention deletes the rows with the requests. A
//! metric counts the dropped attempts, and the log has a line for every refusal.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tracing::warn;

use crate::ledger::{Ledger, LedgerError, RefusedAttempt};
use crate::observe::metrics;
use crate::workers::{Failed, Progress, Worker};

/// Attempts of one person that are recorded without a pause between them.
const BURST: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// After the burst, one attempt of a person is recorded per this interval.
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(10);
/// Attempts that may wait in the queue.
const QUEUE_SIZE: usize = 1024;
/// Attempts to write in one statement.
const BATCH_SIZE: usize = 100;

/// Queues refused attempts for the [`AttemptWriter`]; cheap to clone.
#[derive(Clone, Debug)]
pub struct RefusedAttempts {
    queue: Sender<RefusedAttempt>,
    people: Arc<DefaultKeyedRateLimiter<(String, String)>>,
}

/// The receiving end of the queue, for the [`AttemptWriter`].
#[derive(Debug)]
pub struct Queue(Receiver<RefusedAttempt>);

impl RefusedAttempts {
    /// Makes an empty queue, and returns both of its ends.
    #[must_use]
    pub fn new() -> (Self, Queue) {
        let (queue, attempts) = mpsc::channel(QUEUE_SIZE);
        let quota = Quota::with_period(ATTEMPT_INTERVAL).map(|quota| quota.allow_burst(BURST));
        let quota = quota.unwrap_or_else(|| Quota::per_minute(BURST));
        let people = Arc::new(RateLimiter::keyed(quota));
        (Self { queue, people }, Queue(attempts))
    }

    /// Queues an attempt. Drops and counts it if the person has used up the limit or the queue is
    /// full.
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

/// The worker that writes refused attempts to the ledger.
#[derive(Debug)]
pub struct AttemptWriter {
    ledger: Ledger,
    attempts: Receiver<RefusedAttempt>,
    batch: Vec<RefusedAttempt>,
}

impl AttemptWriter {
    /// Makes the worker that writes the attempts of a queue to a ledger.
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
    /// Longest time between two rounds. Rounds go on while no attempt is refused, so that the
    /// metric of the last success stays recent.
    const INTERVAL: Duration = Duration::from_secs(5);
    /// Pause after a failed write, before the same attempts are written again.
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
