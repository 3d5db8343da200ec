//! Retention: deletes what was settled long ago, a batch at a time, so that nobody has to wait for
//! it. What is pending or owed stays, however old it is; each table has an age of its own.
//!
//! One runs in every replica that has a setting for it; which of them deletes a row does not matter.

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

/// Rows to delete in one statement, which has to end in time even if each is as large as may be; if
/// there were as many, the next one follows after a pause.
const BATCH_SIZE: u64 = 100;
/// Leaves the ledger to the others between two batches.
const BATCH_INTERVAL: Duration = Duration::from_millis(10);
/// Youngest that may be deleted. No request, and no signal of one, lives longer than this: whatever
/// is older, nobody waits for.
const YOUNGEST: TimeDelta = TimeDelta::days(1);
/// Oldest that may be kept, to be deleted then.
const MAX_DAYS: u32 = 36_500;

/// How long what is over is kept; `None` is for ever.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    /// Closed requests, from their end on, and refused attempts to decide.
    pub requests: Option<TimeDelta>,
    /// Completed and failed tasks, from their last change on.
    pub tasks: Option<TimeDelta>,
}

/// How many rows are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Of `hitl_request`.
    pub requests: u64,
    /// Of `agent_task`.
    pub tasks: u64,
    /// Of `hitl_refused_attempt`.
    pub attempts: u64,
}

impl Purged {
    /// Whether there may be more to delete.
    #[must_use]
    pub fn is_full(self) -> bool {
        [self.requests, self.tasks, self.attempts].contains(&BATCH_SIZE)
    }
}

impl fmt::Display for Purged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, tasks, attempts } = self;
        write!(
            f,
            "{requests} rows of hitl_request, {tasks} rows of agent_task, \
             {attempts} rows of hitl_refused_attempt"
        )
    }
}

/// An age as operators write it, like `90d`; `name` is what they call it.
///
/// # Errors
/// One sentence: that it is none, or that it is not one to delete by.
pub fn age(name: &str, text: &str) -> anyhow::Result<TimeDelta> {
    let Ok(age) = humantime::parse_duration(text) else {
        bail!("{name} is {text:?}, which is no duration; write it like 90d, 12weeks or 1y")
    };
    let age = TimeDelta::from_std(age).unwrap_or(TimeDelta::MAX);
    ensure!(
        age >= YOUNGEST,
        "{name} is {text}; it must be at least 1d, since agents may wait for what is younger"
    );
    ensure!(
        age <= TimeDelta::days(MAX_DAYS.into()),
        "{name} is {text}; it may be at most {MAX_DAYS}d"
    );
    Ok(age)
}

/// The setting `name`, in days; 0 is for ever.
///
/// # Errors
/// One sentence, when it is too large.
pub fn days(name: &str, days: u32) -> anyhow::Result<Option<TimeDelta>> {
    ensure!(
        days <= MAX_DAYS,
        "{name} is {days}; it may be at most {MAX_DAYS}, and 0 keeps them for ever"
    );
    Ok((days > 0).then(|| TimeDelta::days(days.into())))
}

/// Deletes what is old enough.
#[derive(Debug)]
pub struct RetentionWorker {
    /// From where.
    pub ledger: Ledger,
    /// What time it is.
    pub clock: Clock,
    /// What is old enough.
    pub retention: Retention,
}

impl Worker for RetentionWorker {
    const NAME: &'static str = "retention";
    /// How often to look for what is old enough.
    const INTERVAL: Duration = Duration::from_hours(1);
    const BATCH_INTERVAL: Duration = BATCH_INTERVAL;

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let now = self.clock.now();
        let purged = run_once(&self.ledger, self.retention, now).await.map_err(|error| {
            warn!(%error, "what is old enough cannot be deleted");
            Failed
        })?;
        if purged != Purged::default() {
            let Purged { requests, tasks, attempts } = purged;
            info!(requests, tasks, attempts, "purged");
        }
        Ok(if purged.is_full() { Progress::More } else { Progress::Done })
    }
}

/// Deletes one batch of each table.
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
    }
    if let Some(age) = retention.tasks {
        purged.tasks = ledger.purge_tasks(now - age, limit).await?;
        metrics::purged("agent_task", purged.tasks);
    }
    Ok(purged)
}

/// Deletes all that is old enough.
///
/// # Errors
/// One sentence that says how far it came.
pub async fn purge(
    ledger: &Ledger,
    retention: Retention,
    now: DateTime<Utc>,
) -> anyhow::Result<Purged> {
    let mut all = Purged::default();
    // One table after the other, so that asking again counts nothing twice.
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
            if !purged.is_full() {
                break;
            }
            tokio::time::sleep(BATCH_INTERVAL).await;
        }
    }
    Ok(all)
}

/// What [`purge`] would delete now.
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
    let [requests, attempts, tasks] = counting.await.context("cannot count what is old enough")?;
    Ok(Purged { requests, tasks, attempts })
}
