//! Feeds the Auth server's audit log: sends the entries that decisions and registrations have left
//! in the outbox, and deletes each once the server has answered 204.
//!
//! One worker runs in every replica; a lease on the row keeps two from sending the same at once. An
//! entry may arrive twice (sent, then the replica was killed before the row was deleted). No
//! decision ever waits for this.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode};
use tracing::warn;
use url::Url;

use crate::domain::clock::Clock;
use crate::ledger::{Ledger, LedgerError, OutboxKind, OutboxRow};
use crate::observe::metrics::{self, AuditResult};
use crate::workers::{Failed, Progress, Worker};

/// Longest to wait for the Auth server's answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a replica holds the entries that it has claimed: longer than sending takes, since all of
/// them are sent at the same time.
pub const LEASE: TimeDelta = TimeDelta::seconds(20);
/// Entries to claim and send at the same time.
const BATCH_SIZE: usize = 16;
/// Pause before the first retry; each further one is twice as long.
const FIRST_RETRY_DELAY: TimeDelta = TimeDelta::seconds(1);
/// Longest pause between two retries.
const LONGEST_RETRY_DELAY: TimeDelta = TimeDelta::seconds(60);
/// The same of an entry that the server refuses: it will hardly be taken before somebody mends
/// something.
const LONGEST_REFUSED_DELAY: TimeDelta = TimeDelta::hours(1);

/// Sends to one Auth server.
#[derive(Clone, Debug)]
pub struct AuditSender {
    client: Client,
    address: Url,
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Entries that the server took.
    pub sent: usize,
    /// Entries that are tried again later.
    pub failed: usize,
}

/// Why an entry was not taken.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("{0}")]
    NoAnswer(#[from] reqwest::Error),
    #[error("it answered {0} in place of 204")]
    NotTaken(StatusCode),
}

impl SendError {
    /// Longest pause until the entry is sent again.
    fn longest_delay(&self) -> TimeDelta {
        match self {
            Self::NotTaken(StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            | Self::NoAnswer(_) => LONGEST_RETRY_DELAY,
            Self::NotTaken(status) if status.is_client_error() => LONGEST_REFUSED_DELAY,
            Self::NotTaken(_) => LONGEST_RETRY_DELAY,
        }
    }
}

impl AuditSender {
    /// A sender to the server behind this address, `audit_url`.
    ///
    /// # Errors
    /// When there is no TLS to be had.
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

    /// Claims what is due, sends it, and deletes what was taken.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn run_once(&self, ledger: &Ledger, clock: &Clock) -> Result<Round, LedgerError> {
        let limit = i64::try_from(BATCH_SIZE).unwrap_or(0);
        let now = clock.now();
        let due = ledger.claim_outbox(OutboxKind::Audit, now, now + LEASE, limit).await?;
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
                    let longest = error.longest_delay();
                    let due_at = retry_at(clock.now(), row.attempts, longest);
                    failure = Some(error);
                    // If this fails too, the lease runs out by itself.
                    let _given_back = ledger.postpone_outbox(row.id, due_at).await;
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

/// Feeds the audit log of one Auth server.
#[derive(Debug)]
pub struct AuditFeed {
    /// Sends.
    pub sender: AuditSender,
    /// Where the entries are.
    pub ledger: Ledger,
    /// What time it is.
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
        // A server that takes nothing is not asked again at once.
        Ok(if sent > 0 { Progress::of(sent + failed, BATCH_SIZE) } else { Progress::Done })
    }
}

/// When to try again after so many attempts.
fn retry_at(now: DateTime<Utc>, attempts: i32, longest: TimeDelta) -> DateTime<Utc> {
    let doublings = attempts.saturating_sub(1).clamp(0, 12);
    now + (FIRST_RETRY_DELAY * (1 << doublings)).min(longest)
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
            let at = retry_at(now, attempts, LONGEST_RETRY_DELAY);
            assert_eq!((at - now).num_seconds(), seconds, "{attempts}");
        }
        let at = retry_at(now, i32::MAX, LONGEST_REFUSED_DELAY);
        assert_eq!((at - now).num_seconds(), 3600);
    }
}
