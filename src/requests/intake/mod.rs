//! The intake: every pending request that an agent writes to Redis gets a row in the ledger, so that
//! people can find it. The row decides nothing: see
//! [`Record::is_only_seen`](crate::domain::record::Record::is_only_seen).
//!
//! One replica does this, the holder of a lease. It is told of keys that change where Redis announces
//! that, and beside that it passes over all keys again and again. It reads a request when it is new or
//! announced, and then every few seconds as long as it is pending. Two replicas that believe to hold
//! the lease do no harm.
//!
//! **Judge**: an agent writes the request first and its session a moment later, so a request waits for
//! its session up to a second. **Record**: rows are written in batches. A key that has gone closes its
//! row, except where Redis as a whole may have lost its data.

mod changes;
mod judging;
mod leading;
mod reading;
mod recording;
mod ruling;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;
use tracing::{debug, info, warn};
use uuid::Uuid;

use self::changes::Changes;
use self::leading::{IntakeError, Leading};
use crate::courier::ScanSettings;
use crate::ledger::LedgerError;
use crate::state::AppState;
use crate::workers::{Failed, Progress, Worker};

/// The name of the lease.
const LEASE_NAME: &str = "intake";
/// How long a replica holds the lease. Another one takes over at most this and `RENEW_INTERVAL` after
/// the holder was killed.
const LEASE: TimeDelta = TimeDelta::milliseconds(3000);
/// How often the lease is renewed, and how often the other replicas try to take it.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);

/// The worker that watches Redis for requests.
#[derive(Debug)]
pub struct IntakeWorker {
    app: AppState,
    settings: ScanSettings,
    /// Who holds the lease: this process.
    holder: String,
    /// Until when this process holds the lease for sure.
    held_until: DateTime<Utc>,
    renew_at: Instant,
    leading: Option<Leading>,
    changes: Arc<Changes>,
}

impl IntakeWorker {
    /// A worker that does not hold the lease yet.
    #[must_use]
    pub fn new(app: AppState, settings: ScanSettings) -> Self {
        let (held_until, renew_at) = (DateTime::UNIX_EPOCH, Instant::now());
        let (holder, changes) = (Uuid::new_v4().to_string(), Arc::default());
        Self { app, settings, holder, held_until, renew_at, leading: None, changes }
    }

    /// Takes or renews the lease if it is time to. Returns whether this process holds it.
    async fn hold_lease(&mut self) -> Result<bool, LedgerError> {
        if Instant::now() >= self.renew_at {
            self.renew_at = Instant::now() + RENEW_INTERVAL;
            let now = self.app.clock.now();
            let until = now + LEASE;
            let held = self.app.ledger.hold_lease(LEASE_NAME, &self.holder, now, until).await;
            match held {
                Ok(true) => self.held_until = until,
                Ok(false) => self.held_until = DateTime::UNIX_EPOCH,
                // The lease may be held until it ends.
                Err(error) if self.app.clock.now() >= self.held_until => return Err(error),
                Err(error) => debug!(%error, "the lease of the intake cannot be renewed"),
            }
        }
        Ok(self.app.clock.now() < self.held_until)
    }
}

impl Worker for IntakeWorker {
    const NAME: &'static str = "intake";
    const INTERVAL: Duration = Duration::from_millis(100);
    const RETRY_INTERVAL: Duration = Duration::from_millis(500);
    const BATCH_INTERVAL: Duration = Duration::from_millis(5);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let failed = |error: IntakeError| {
            warn!(%error, "the intake cannot read Redis or write to the ledger");
            Failed
        };
        if !self.hold_lease().await.map_err(IntakeError::from).map_err(failed)? {
            if self.leading.take().is_some() {
                info!("another replica watches Redis for requests now");
            }
            return Ok(Progress::Done);
        }
        if self.leading.is_none() {
            let leading = Leading::begin(&self.app, self.settings, &self.changes);
            self.leading = Some(leading.await.map_err(IntakeError::from).map_err(failed)?);
            info!("this replica watches Redis for requests");
        }
        let Some(leading) = &mut self.leading else { return Ok(Progress::Done) };
        let done = leading.round(&self.app).await;
        if matches!(done, Err(IntakeError::Ledger(_))) {
            // What the ledger has is unknown: read it again.
            self.leading = None;
        }
        done.map_err(failed)
    }

    async fn wake_up(&mut self) {
        self.changes.added.notified().await;
    }

    async fn finish(&mut self) {
        if self.leading.is_some() {
            // If this fails, the lease ends by itself.
            let _given_back = self.app.ledger.give_lease_back(LEASE_NAME, &self.holder).await;
        }
    }
}
