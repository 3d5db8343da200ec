//! Retention: deletes old rows in small batches, so that no other statement has to wait long.
//! Pending requests and requests whose signal is owed are kept, however old they are. Requests and
//! tasks have separate retention ages.
//!
//! One worker runs in every replica, and any of them may delete a row.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use tracing::{info, warn};

use crate::domain::clock::Clock;
use crate::ledger::patience::patiently;
use crate::ledger::{Ledger, LedgerError};
use crate::observe::metrics;
use crate::workers::{Failed, Progress, Worker};

/// Rows to delete in one statement, which must end within its timeout even if each row has the
/// largest size. After a full batch the next one follows after `BATCH_INTERVAL`.
const BATCH_SIZE: u64 = 100;
/// Pause between two batches, for the other users of the ledger.
const BATCH_INTERVAL: Duration = Duration::from_millis(10);
/// The smallest retention age. No request or signal lives longer than this, so no agent waits for
/// an older row.
const MIN_AGE: TimeDelta = TimeDelta::days(1);
/// The largest retention age, in days.
const MAX_DAYS: u32 = 36_500;

/// How long rows are kept; `None` means for ever.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    /// The age of closed requests, counted from their end, of refused attempts to decide, and of grants,
    /// counted from their expiry.
    pub requests: Option<TimeDelta>,
    /// The age of completed and failed tasks, counted from their last change.
    pub tasks: Option<TimeDelta>,
}

/// The number of deleted rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Rows of `hitl_request`.
    pub requests: u64,
    /// Rows of `agent_task`.
    pub tasks: u64,
    /// Rows of `hitl_refused_attempt`.
    pub attempts: u64,
    /// Rows of `hitl_grant`.
    pub grants: u64,
}

impl Purged {
    /// Whether the batch of a table was full, so that there may be more to delete.
    #[must_use]
    pub fn is_full(self) -> bool {
        [self.requests, self.tasks, self.attempts, self.grants].contains(&BATCH_SIZE)
    }
}

impl fmt::Display for Purged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, tasks, attempts, grants } = self;
        write!(
            f,
            "{requests} rows of hitl_request, {tasks} rows of agent_task, \
             {attempts} rows of hitl_refused_attempt, {grants} rows of hitl_grant"
        )
    }
}

/// Reads a retention age that an operator wrote, like `90d`. `name` is the option, for the error.
///
/// # Errors
/// One sentence, when `text` is not a duration, or the age is under one day or over `MAX_DAYS`.
pub fn age(name: &str, text: &str) -> anyhow::Result<TimeDelta> {
    let Ok(age) = humantime::parse_duration(text) else {
        bail!("{name} is {text:?}, which is no duration; write it like 90d, 12weeks or 1y")
    };
    let age = TimeDelta::from_std(age).unwrap_or(TimeDelta::MAX);
    ensure!(
        age >= MIN_AGE,
        "{name} is {text}; it must be at least 1d, since agents may wait for what is younger"
    );
    ensure!(
        age <= TimeDelta::days(MAX_DAYS.into()),
        "{name} is {text}; it may be at most {MAX_DAYS}d"
    );
    Ok(age)
}

/// Reads the setting `name`, a retention age in days; 0 means for ever.
///
/// # Errors
/// One sentence, when `days` is more than `MAX_DAYS`.
pub fn days(name: &str, days: u32) -> anyhow::Result<Option<TimeDelta>> {
    ensure!(
        days <= MAX_DAYS,
        "{name} is {days}; it may be at most {MAX_DAYS}, and 0 keeps them for ever"
    );
    Ok((days > 0).then(|| TimeDelta::days(days.into())))
}

/// The worker that deletes old rows.
#[derive(Debug)]
pub struct RetentionWorker {
    /// The ledger that holds the rows.
    pub ledger: Ledger,
    /// The source of the current time.
    pub clock: Clock,
    /// How long rows are kept.
    pub retention: Retention,
}

impl Worker for RetentionWorker {
    const NAME: &'static str = "retention";
    /// How often to look for old rows.
    const INTERVAL: Duration = Duration::from_hours(1);
    const BATCH_INTERVAL: Duration = BATCH_INTERVAL;

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let now = self.clock.now();
        let purged = run_once(&self.ledger, self.retention, now).await.map_err(|error| {
            warn!(%error, "what is old enough cannot be deleted");
            Failed
        })?;
        if purged != Purged::default() {
            let Purged { requests, tasks, attempts, grants } = purged;
            info!(requests, tasks, attempts, grants, "purged");
        }
        Ok(if purged.is_full() { Progress::More } else { Progress::Done })
    }
}

/// Deletes one batch of old rows of each table.
///
/// # Errors
/// [`LedgerError`] when the ledger does not answer; trying again is safe.
pub async fn run_once(
    ledger: &Ledger,
    retention: Retention,
    now: DateTime<Utc>,
) -> Result<Purged, LedgerError> {
    let mut purged = Purged::default();
    let limit = i64::try_from(BATCH_SIZE).unwrap_or(0);
    if let Some(age) = retention.requests {
        purged.requests = ledger.purge_requests(now - age, limit).await?;
        metrics::purged("hitl_request", purged.requests);
        purged.attempts = ledger.purge_refused_attempts(now - age, limit).await?;
        metrics::purged("hitl_refused_attempt", purged.attempts);
        purged.grants = ledger.purge_grants(now - age, limit).await?;
        metrics::purged("hitl_grant", purged.grants);
        // What was given up says what the requests say. There is little of it.
        ledger.purge_failed(now - age, limit).await?;
    }
    if let Some(age) = retention.tasks {
        purged.tasks = ledger.purge_tasks(now - age, limit).await?;
        metrics::purged("agent_task", purged.tasks);
    }
    Ok(purged)
}

/// Deletes all old rows, batch by batch.
///
/// # Errors
/// One sentence with the number of rows deleted so far, when the ledger does not answer.
pub async fn purge(
    ledger: &Ledger,
    retention: Retention,
    now: DateTime<Utc>,
) -> anyhow::Result<Purged> {
    let mut all = Purged::default();
    // Requests first, then tasks: if a round on tasks fails and is repeated, the number of deleted
    // requests has been added already and is not lost.
    let parts = [
        Retention { requests: retention.requests, tasks: None },
        Retention { requests: None, tasks: retention.tasks },
    ];
    for part in parts {
        loop {
            let purged = patiently(async || Ok(run_once(ledger, part, now).await?))
                .await
                .with_context(|| format!("purged {all}; run it again for the rest"))?;
            all.requests += purged.requests;
            all.tasks += purged.tasks;
            all.attempts += purged.attempts;
            all.grants += purged.grants;
            if !purged.is_full() {
                break;
            }
            tokio::time::sleep(BATCH_INTERVAL).await;
        }
    }
    Ok(all)
}

/// Counts the rows that [`purge`] would delete now.
///
/// # Errors
/// One sentence, when the ledger does not answer.
pub async fn count(
    ledger: &Ledger,
    retention: Retention,
    now: DateTime<Utc>,
) -> anyhow::Result<Purged> {
    let before = |age: Option<TimeDelta>| age.map(|age| now - age);
    let counting = ledger.count_old(before(retention.requests), before(retention.tasks));
    let counted = counting.await.context("cannot count what is old enough")?;
    let [requests, attempts, grants, tasks] = counted;
    Ok(Purged { requests, tasks, attempts, grants })
}
