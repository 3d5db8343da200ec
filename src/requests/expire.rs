//! The expiry worker: closes pending requests whose time is over. They can no longer be decided,
//! their tasks fail, and their agents are notified. One worker runs in every replica, and any of
//! them may close a request; the ledger lets only one succeed.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use tracing::{info, warn};

use super::notify::notify;
use crate::domain::printable::printable;
use crate::domain::record::Record;
use crate::ledger::{LedgerError, Overdue};
use crate::observe::metrics;
use crate::state::AppState;
use crate::workers::{Failed, Progress, Worker};

/// Requests to close in one round. After a full batch the next round follows at once.
const BATCH_SIZE: usize = 100;

/// The worker that closes requests whose time is over.
#[derive(Debug)]
pub struct ExpiryWorker(pub AppState);

impl Worker for ExpiryWorker {
    const NAME: &'static str = "expiry";
    /// How often to look for requests whose time is over.
    const INTERVAL: Duration = Duration::from_secs(1);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let closed = run_once(&self.0).await.map_err(|error| {
            warn!(%error, "requests whose time is over cannot be closed");
            Failed
        })?;
        Ok(Progress::of(closed, BATCH_SIZE))
    }
}

/// Closes one batch of requests whose time is over, and returns how many were closed or found
/// closed.
///
/// # Errors
/// [`LedgerError`] when the ledger does not answer, or when requests failed and none was closed.
pub async fn run_once(app: &AppState) -> Result<usize, LedgerError> {
    let now = app.clock.now();
    let limit = i64::try_from(BATCH_SIZE).unwrap_or(0);
    let overdue = app.ledger.overdue(now, limit).await?;
    if app.stopping.is_cancelled() {
        return Ok(0);
    }
    // All at once, so that they share statements.
    let closing = overdue.iter().map(|overdue| expire(app, overdue, now));
    let (mut closed, mut failure) = (0, None);
    for (overdue, ended) in overdue.iter().zip(join_all(closing).await) {
        match ended {
            Ok(_) => closed += 1,
            Err(error @ (LedgerError::NotExecuted(_) | LedgerError::OutcomeUnknown(_))) => {
                return Err(error);
            }
            // A row that is locked or cannot be read must not keep the other requests open.
            Err(error) => {
                let id = &overdue.id;
                warn!(request_id = %id, %error, "a request whose time is over cannot be closed");
                failure = Some(error);
            }
        }
    }
    if let Some(error) = failure.filter(|_error| closed == 0) {
        return Err(error);
    }
    Ok(closed)
}

/// Closes a request whose time is over. `None` if it is not pending any more.
///
/// # Errors
/// [`LedgerError`] when the ledger does not answer.
pub async fn expire(
    app: &AppState,
    overdue: &Overdue,
    now: DateTime<Utc>,
) -> Result<Option<Record>, LedgerError> {
    let expired = app.ledger.expire(overdue, now).await?;
    if let Some(record) = &expired {
        info!(
            request_id = %record.id,
            session_id = printable(record.session.as_str()),
            "expired undecided"
        );
        metrics::closed(record);
        notify(app, record);
    }
    Ok(expired)
}
