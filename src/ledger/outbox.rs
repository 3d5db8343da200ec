//! The outbox: messages to other services, table `hitl_outbox`. The statement that changes a
//! request also inserts its message, and a worker claims the row under a lease, sends it and
//! deletes it.

use chrono::{DateTime, Utc};
use const_format::str_replace;

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::Result;

/// The kind of a message. Each kind has its own worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboxKind {
    /// An entry of the Auth server's audit log.
    Audit,
}

impl OutboxKind {
    /// The value of the column `kind`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
        }
    }
}

/// A row of `hitl_outbox` whose lease this process holds.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct OutboxRow {
    /// Column `outbox_id`.
    pub id: i64,
    /// The message to send.
    pub payload: String,
    /// How often the row was claimed, this time included.
    pub attempts: i32,
}

impl Ledger {
    /// Takes the leases of up to `limit` due rows until `until`. Rows that were never tried come
    /// first, so that a new message does not wait behind messages that the receiver refuses.
    /// Otherwise the earliest `due_at` comes first.
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
        // First the due rows that were never tried, then those that were.
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

    /// Gives a lease back: the row is due again at `due_at`.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. The lease then expires
    /// by itself.
    pub async fn postpone_outbox(&self, id: i64, due_at: DateTime<Utc>) -> Result<()> {
        const POSTPONE: Statement = Statement::new(
            "ledger.postpone_outbox",
            "UPDATE hitl_outbox SET due_at = $2 WHERE outbox_id = $1",
        );
        self.engine.execute(POSTPONE, &values![id, due_at]).await.map(drop)
    }

    /// Deletes rows whose messages the receiver has accepted.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. The messages are then
    /// sent again when their leases have expired.
    pub async fn delete_outbox(&self, ids: &[i64]) -> Result<()> {
        const DELETE: Statement = Statement::new(
            "ledger.delete_outbox",
            "DELETE FROM hitl_outbox WHERE outbox_id = ANY($1)",
        )
        .on_sqlite("DELETE FROM hitl_outbox WHERE outbox_id IN (SELECT value FROM json_each($1))");
        self.engine.execute(DELETE, &values![ids]).await.map(drop)
    }

    /// When the oldest row of this kind was written, UTC; `None` if there is none.
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
