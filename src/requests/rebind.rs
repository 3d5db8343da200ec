//! Binds pending requests anew after another policy file was put in force, and those that were written
//! without one. One replica does this, the holder of a lease, so that replicas with two versions of the
//! file do not undo each other's work. Decisions do not wait for it: they read the request.

use std::time::Duration;

use chrono::TimeDelta;
use tracing::{info, warn};
use uuid::Uuid;

use super::load::ledger_candidate;
use super::standing::votes_on;
use crate::domain::record::Record;
use crate::ledger::{LedgerError, Rebound};
use crate::permit::{self, Law, Terms};
use crate::state::AppState;
use crate::workers::{Failed, Progress, Worker};

/// The name of the lease.
const LEASE_NAME: &str = "rebind";
/// How long a replica holds the lease: longer than the pause between two rounds.
const LEASE: TimeDelta = TimeDelta::seconds(5);
/// Requests of one key to bind in a round.
const BATCH_SIZE: i64 = 100;

/// The worker that binds requests anew.
#[derive(Debug)]
pub struct RebindWorker {
    app: AppState,
    holder: String,
}

impl RebindWorker {
    /// A worker that does not hold the lease yet.
    #[must_use]
    pub fn new(app: AppState) -> Self {
        Self { app, holder: Uuid::new_v4().to_string() }
    }
}

impl Worker for RebindWorker {
    const NAME: &'static str = "rebind";
    const INTERVAL: Duration = Duration::from_secs(1);
    const BATCH_INTERVAL: Duration = Duration::from_millis(20);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let bound = run_once(&self.app, &self.holder).await;
        bound.map_err(|error| {
            warn!(%error, "pending requests are not bound by the policy file yet");
            Failed
        })
    }
}

async fn run_once(app: &AppState, holder: &str) -> Result<Progress, LedgerError> {
    let law = app.rules.in_force();
    let Some(version) = law.version() else { return Ok(Progress::Done) };
    let now = app.clock.now();
    if !app.ledger.hold_lease(LEASE_NAME, holder, now, now + LEASE).await? {
        return Ok(Progress::Done);
    }
    let is_current = |key: &String| key.split_once(' ').is_some_and(|(of, _rules)| of == version);
    let (mut is_full, mut count) = (false, 0);
    for key in app.ledger.pending_bindings().await? {
        if is_current(&key) {
            continue;
        }
        let (records, mut unread) = app.ledger.bound_by(&key, BATCH_SIZE).await?;
        is_full |= i64::try_from(records.len() + unread.len()).is_ok_and(|it| it == BATCH_SIZE);
        let mut rebound = Vec::with_capacity(records.len());
        for record in records {
            let (tenant, id) = (record.tenant.clone(), record.id.clone());
            match rebind(app, &law, record).await? {
                Some(row) => rebound.push(row),
                None => unread.push((tenant, id)),
            }
        }
        app.ledger.rebind(&rebound).await?;
        app.ledger.bind_unread(&unread, &law.ruling_of_unreadable()).await?;
        count += rebound.len();
        for row in &rebound {
            app.inbox.announce(&row.tenant, &row.id);
        }
    }
    if count > 0 {
        info!(count, version, "pending requests were bound by the policy file");
    }
    Ok(if is_full { Progress::More } else { Progress::Done })
}

/// What the policy file in force says of a request; `None` if its document cannot be read.
async fn rebind(app: &AppState, law: &Law, record: Record) -> Result<Option<Rebound>, LedgerError> {
    let (tenant, id, ballots) = (record.tenant.clone(), record.id.clone(), record.ruling.ballots);
    let content_hash = record.content_hash.clone();
    let Ok(candidate) = ledger_candidate(record) else { return Ok(None) };
    let binding = law.binding(&candidate, &tenant);
    let Terms { mut ruling, expires_at, .. } = law.terms_of(&candidate, binding.as_ref());
    if ballots > 0 {
        let votes = votes_on(app, &tenant, &id).await?;
        let standing = permit::standing(law, &candidate, &tenant, &votes, app.clock.now());
        ruling = standing.approvals.of(ruling);
    }
    Ok(Some(Rebound { tenant, id, content_hash, ruling, expires_at }))
}
