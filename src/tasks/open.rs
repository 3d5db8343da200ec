//! Closes open tasks: tasks that this service made for approved requests and that no agent reports
//! on. Without this worker they would stay `IN_PROGRESS` for ever.
//!
//! When an agent acknowledges the approval, its task is completed at once. Otherwise the task is
//! closed one agent timeout after the approval was sent: as `COMPLETED` with
//! `{"reportedByAgent":false}` if the approval was heard, else as `FAILED`. The worker leaves a
//! task alone if an agent created it or has changed it since the approval. One worker runs in every
//! replica, and any of them may close a task.

use std::time::Duration;

use tracing::{info, warn};

use crate::domain::clock::Clock;
use crate::domain::request::AGENT_TIMEOUT;
use crate::ledger::{Ledger, LedgerError};
use crate::workers::{Failed, Progress, Worker};

/// Requests whose tasks are closed in one statement. After a full batch the next one follows at
/// once.
const BATCH_SIZE: u64 = 100;

/// The worker that closes open tasks.
#[derive(Debug)]
pub struct OpenTasks {
    /// The ledger that holds the tasks.
    pub ledger: Ledger,
    /// The source of the current time.
    pub clock: Clock,
}

impl Worker for OpenTasks {
    const NAME: &'static str = "open_tasks";
    /// How often to look for open tasks.
    const INTERVAL: Duration = Duration::from_secs(10);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let requests = run_once(&self.ledger, &self.clock).await.map_err(|error| {
            warn!(%error, "tasks that no agent reports on cannot be closed");
            Failed
        })?;
        if requests > 0 && requests < BATCH_SIZE {
            info!(requests, "closed tasks that no agent reported on");
        }
        Ok(Progress::of(requests, BATCH_SIZE))
    }
}

/// Closes the tasks of one batch of requests, and returns the number of requests.
///
/// # Errors
/// [`LedgerError`] when the ledger does not answer.
pub async fn run_once(ledger: &Ledger, clock: &Clock) -> Result<u64, LedgerError> {
    let now = clock.now();
    let limit = i64::try_from(BATCH_SIZE).unwrap_or(0);
    ledger.close_open_tasks(now - AGENT_TIMEOUT, limit, now).await
}
