//! The expiry worker: closes pending requests whose time is over, so that nobody can decide them any
//! more, their tasks fail and their agents learn of it. One runs in every replica; which of them
//! closes a request does not matter, since only one can.

use std::time::Duration;

use tracing::{error, warn};

use crate::core::Core;
use crate::ledger::LedgerError;
use crate::outcomes;

/// How often to look for requests whose time is over.
const INTERVAL: Duration = Duration::from_secs(1);
/// Requests to close in one round; if there were as many, the next one follows at once.
const BATCH: usize = 100;

/// Runs until the process is asked to stop.
pub async fn run(core: Core) {
    loop {
        let pause = match run_once(&core).await {
            Ok(BATCH) => Duration::ZERO,
            Ok(_) => INTERVAL,
            Err(error) => {
                warn!(%error, "requests whose time is over cannot be closed");
                INTERVAL
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = core.stopping.cancelled() => break,
        }
    }
}

/// Closes what is due, and says how many requests that were.
///
/// # Errors
/// [`LedgerError`] when the ledger does not answer.
pub async fn run_once(core: &Core) -> Result<usize, LedgerError> {
    let now = core.clock.now();
    let limit = i64::try_from(BATCH).unwrap_or(0);
    let overdue = core.ledger.overdue(now, limit).await?;
    let mut closed = 0;
    for id in &overdue {
        match outcomes::expire(core, id, now).await {
            Ok(_) => closed += 1,
            // One odd row must not keep the others from being closed.
            Err(LedgerError::Inconsistent(cause)) => {
                error!(request_id = %id, cause, "a request whose time is over cannot be closed");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(closed)
}
