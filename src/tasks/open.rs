//! Closes the tasks that we made for approved requests and that no agent reports on. Without this
//! they would stay `IN_PROGRESS` for ever.
//!
//! An agent that acknowledges has its task completed at once. Once the agent's patience has passed
//! after the approval reached it, a task is `COMPLETED` with `{"reportedByAgent":false}` if the
//! approval was heard, else `FAILED`. Tasks that agents keep are left alone. One worker runs in every
//! replica; which of them closes a task does not matter.

use std::time::Duration;

use tracing::{info, warn};

use crate::domain::clock::Clock;
use crate::domain::request::AGENT_TIMEOUT;
use crate::ledger::{Ledger, LedgerError};
use crate::workers::{Failed, Progress, Worker};

/// Tasks to close in one statement; if there were as many, the next one follows at once.
const BATCH_SIZE: u64 = 100;

/// Closes such tasks.
#[derive(Debug)]
pub struct OpenTasks {
    /// Where they are.
    pub ledger: Ledger,
    /// What time it is.
    pub clock: Clock,
}

impl Worker for OpenTasks {
    const NAME: &'static str = "open_tasks";
    /// How often to look for such tasks.
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

/// Closes a batch; says of how many requests.
///
/// # Errors
/// [`LedgerError`] when the ledger does not answer.
pub async fn run_once(ledger: &Ledger, clock: &Clock) -> Result<u64, LedgerError> {
    let now = clock.now();
    let limit = i64::try_from(BATCH_SIZE).unwrap_or(0);
    ledger.close_open_tasks(now - AGENT_TIMEOUT, limit, now).await
}
