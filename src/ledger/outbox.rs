//! The outbox: what other services still have to be told, written in the statement that makes it
//! true, and claimed by a worker under a lease.

use chrono::{DateTime, Utc};
use const_format::str_replace;

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::Result;

/// What kind of message a row holds; each kind has a worker of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboxKind {
    /// An entry of the Auth server's audit log.
    Audit,
}

impl OutboxKind {
    /// Its name in `hitl_outbox.kind`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
        }
    }
}

/// A row of `hitl_outbox` that this process holds.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct OutboxRow {
    /// Its number.
    pub id: i64,
    /// What to send.
    pub payload: String,
    /// How often it was claimed, this time included.
    pub attempts: i32,
}

impl Ledger {
    /// Takes the lease of up to `limit` rows of the outbox that are due, until then: first what was
    /// never tried, so that nothing new waits behind what its receiver refuses, then the earliest.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn claim_outbox(
        &self,
        kind: OutboxKind,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<OutboxRow>> {
        // What is due and was never tried, and then what was.
        const CLAIM: &str = "\
            UPDATE hitl_outbox SET due_at = $3, attempts = attempts + 1
              WHERE outbox_id IN (
                  SELECT outbox_id FROM (
                      SELECT outbox_id FROM hitl_outbox
                       WHERE kind = $1 AND CASE WHEN attempts > 0 THEN 1 ELSE 0 END = 0
                         AND due_at >= '-infinity' AND due_at <= $2
                       ORDER BY due_at LIMIT $4 FOR UPDATE SKIP LOCKED) AS untried
                  UNION ALL
                  SELECT outbox_id FROM (
                      SELECT outbox_id FROM hitl_outbox
                       WHERE kind = $1 AND CASE WHEN attempts > 0 THEN 1 ELSE 0 END = 1
                         AND due_at >= '-infinity' AND due_at <= $2
                       ORDER BY due_at LIMIT $4 FOR UPDATE SKIP LOCKED) AS tried
                  LIMIT $4
              ) RETURNING outbox_id AS id, payload, attempts";
        const CLAIM_OUTBOX: Statement = Statement::new("ledger.claim_outbox", CLAIM)
            .on_sqlite(str_replace!(CLAIM, "FOR UPDATE SKIP LOCKED", ""));
        self.engine.fetch_all(CLAIM_OUTBOX, &values![kind.as_str(), now, until, limit]).await
    }

    /// Gives a lease back: the row of the outbox is due again at `due_at`.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError); the lease then runs out by itself.
    pub async fn postpone_outbox(&self, id: i64, due_at: DateTime<Utc>) -> Result<()> {
        const POSTPONE: Statement = Statement::new(
            "ledger.postpone_outbox",
            "UPDATE hitl_outbox SET due_at = $2 WHERE outbox_id = $1",
        );
        self.engine.execute(POSTPONE, &values![id, due_at]).await.map(drop)
    }

    /// Deletes rows of the outbox whose receivers have taken them.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError); the rows are then sent again once their leases are over.
    pub async fn delete_outbox(&self, ids: &[i64]) -> Result<()> {
        const DELETE: Statement = Statement::new(
            "ledger.delete_outbox",
            "DELETE FROM hitl_outbox WHERE outbox_id = ANY($1)",
        )
        .on_sqlite("DELETE FROM hitl_outbox WHERE outbox_id IN (SELECT value FROM json_each($1))");
        self.engine.execute(DELETE, &values![ids]).await.map(drop)
    }

    /// When the oldest row of a kind in the outbox was written.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn oldest_in_outbox(&self, kind: OutboxKind) -> Result<Option<DateTime<Utc>>> {
        const OLDEST: Statement = Statement::new(
            "ledger.oldest_in_outbox",
            "SELECT MIN(created_at) FROM hitl_outbox WHERE kind = $1",
        );
        let (oldest,) = self.engine.fetch_one(OLDEST, &values![kind.as_str()]).await?;
        Ok(oldest)
    }
}
