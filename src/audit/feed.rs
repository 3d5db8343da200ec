//! Feeds the Auth server's audit log. Decisions and registrations write entries to the outbox
//! table; the feed sends each entry and deletes it once the server has answered 204.
//!
//! One worker runs in every replica; a lease on the row keeps two workers from sending the same
//! entry at once. Delivery is at least once: an entry arrives twice if the replica is killed after
//! sending it and before deleting its row. Decisions do not wait for the feed.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode};
use tracing::warn;
use url::Url;

use crate::domain::clock::Clock;
use crate::ledger::{AUDIT, Ledger, LedgerError, OutboxRow};
use crate::observe::metrics::{self, AuditResult};
use crate::workers::{Failed, Progress, Worker, doubled};

/// Longest time to wait for the Auth server's answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a replica holds the entries that it has claimed. All of them are sent at the same time,
/// so the lease is longer than `SEND_TIMEOUT`.
pub const LEASE: TimeDelta = TimeDelta::seconds(20);
/// Entries to claim and send at the same time.
const BATCH_SIZE: usize = 16;
/// Pause before the first retry. Each further pause is twice as long.
const FIRST_RETRY_DELAY: TimeDelta = TimeDelta::seconds(1);
/// Longest pause between two retries.
const MAX_RETRY_DELAY: TimeDelta = TimeDelta::seconds(60);
/// Longest pause between two retries of an entry that the server refuses with a 4xx status. The
/// server will hardly accept it before an operator has corrected something.
const MAX_REFUSED_RETRY_DELAY: TimeDelta = TimeDelta::hours(1);

/// Sends audit entries to one Auth server.
#[derive(Clone, Debug)]
pub struct AuditSender {
    client: Client,
    address: Url,
}

/// The number of entries in one round, by their result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Entries that the server accepted.
    pub sent: usize,
    /// Entries that failed and are sent again later.
    pub failed: usize,
}

/// Why the server did not accept an entry.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("{0}")]
    NoAnswer(#[from] reqwest::Error),
    #[error("it answered {0} in place of 204")]
    NotTaken(StatusCode),
}

impl SendError {
    /// Longest pause until the entry is sent again.
    fn max_retry_delay(&self) -> TimeDelta {
        match self {
            Self::NotTaken(StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            | Self::NoAnswer(_) => MAX_RETRY_DELAY,
            Self::NotTaken(status) if status.is_client_error() => MAX_REFUSED_RETRY_DELAY,
            Self::NotTaken(_) => MAX_RETRY_DELAY,
        }
    }
}

impl AuditSender {
    /// A sender to the server behind this address, `audit_url`.
    ///
    /// # Errors
    /// When the HTTP client cannot set up TLS, or the address with its path is not a valid URL.
    pub fn new(audit_url: &Url) -> anyhow::Result<Self> {
        let client = Client::builder().redirect(Policy::none()).timeout(SEND_TIMEOUT).build()?;
        let base = audit_url.as_str().trim_end_matches('/');
        Ok(Self { client, address: format!("{base}/internal/audit-logs").parse()? })
    }

    async fn send(&self, row: &OutboxRow) -> Result<(), SendError> {
        let call = self.client.post(self.address.clone());
        let call = call.header(CONTENT_TYPE, "application/json").body(row.payload.clone());
        match call.send().await?.status() {
            StatusCode::NO_CONTENT => Ok(()),
            status => Err(SendError::NotTaken(status)),
        }
    }

    /// Claims the entries that are due, sends them, and deletes those that the server accepted.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn run_once(&self, ledger: &Ledger, clock: &Clock) -> Result<Round, LedgerError> {
        let limit = i64::try_from(BATCH_SIZE).unwrap_or(0);
        let now = clock.now();
        let due = ledger.claim_outbox(AUDIT, now, now + LEASE, limit).await?;
        let results = join_all(due.iter().map(async |row| self.send(row).await)).await;
        let mut taken = Vec::new();
        let mut failure = None;
        for (row, result) in due.iter().zip(results) {
            match result {
                Ok(()) => {
                    metrics::audited(AuditResult::Sent);
                    taken.push(row.id);
                }
                Err(error) => {
                    metrics::audited(AuditResult::Failed);
                    let longest = error.max_retry_delay();
                    let due_at = retry_at(clock.now(), row.attempts, longest);
                    failure = Some(error);
                    // If this fails too, the entry is due again when its lease runs out.
                    let _given_back = ledger.postpone_outbox(row.id, due_at, None).await;
                }
            }
        }
        let round = Round { sent: taken.len(), failed: due.len() - taken.len() };
        if let Some(error) = failure {
            warn!(%error, failed = round.failed, "the Auth server did not take audit entries; they are sent again");
        }
        if !taken.is_empty() {
            crash_point!("audit-sent");
            ledger.delete_outbox(&taken).await?;
        }
        Ok(round)
    }
}

/// The worker that feeds the audit log of one Auth server.
#[derive(Debug)]
pub struct AuditFeed {
    /// Sends the entries.
    pub sender: AuditSender,
    /// The ledger whose outbox holds the entries.
    pub ledger: Ledger,
    /// The source of the current time.
    pub clock: Clock,
}

impl Worker for AuditFeed {
    const NAME: &'static str = "audit_feed";
    /// How often to look for entries.
    const INTERVAL: Duration = Duration::from_secs(1);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let Round { sent, failed } =
            self.sender.run_once(&self.ledger, &self.clock).await.map_err(|error| {
                warn!(%error, "the audit entries to send cannot be read");
                Failed
            })?;
        // If the server accepted no entry, the next round waits, even after a full batch.
        Ok(if sent > 0 { Progress::of(sent + failed, BATCH_SIZE) } else { Progress::Done })
    }
}

/// When to send an entry again after this many attempts.
fn retry_at(now: DateTime<Utc>, attempts: i32, longest: TimeDelta) -> DateTime<Utc> {
    now + doubled(FIRST_RETRY_DELAY, attempts, longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_come_less_and_less_often_up_to_a_limit() {
        let now = DateTime::UNIX_EPOCH;
        for (attempts, seconds) in
            [(0, 1), (1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (i32::MAX, 60)]
        {
            let at = retry_at(now, attempts, MAX_RETRY_DELAY);
            assert_eq!((at - now).num_seconds(), seconds, "{attempts}");
        }
        let at = retry_at(now, i32::MAX, MAX_REFUSED_RETRY_DELAY);
        assert_eq!((at - now).num_seconds(), 3600);
    }
}
