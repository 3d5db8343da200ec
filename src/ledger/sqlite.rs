//! The ledger on SQLite, in WAL mode with full synchronisation: an acknowledged decision survives
//! a power cut. One connection, so writers queue in order instead of meeting `SQLITE_BUSY`.

use std::io;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use sqlx::error::DatabaseError;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection as _, Sqlite};

use super::export::hand_over;
use super::outbox::{OutboxKind, OutboxRow};
use super::refused::{ExportedAttempt, RefusedAttempt};
use super::writes::Writes;
use super::{DecisionRow, Exported, RequestRow, Span, TaskRow, Writing, Written, delivery_str};
use crate::domain::approver::{Caller, Role};
use crate::domain::ids::{RequestId, SessionId, TaskId, TenantId, UserId};
use crate::domain::record::{DeliveryReceipt, Record};
use crate::domain::task::{Task, TaskFilter};

/// The ledger on SQLite.
#[derive(Clone, Debug)]
pub struct SqliteLedger {
    pool: SqlitePool,
    writes: Writes,
}

ledger_queries!(SqliteLedger, Sqlite, claim: "");

impl SqliteLedger {
    pub async fn connect(file: &Path, acquire: Duration) -> sqlx::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(1));
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(acquire)
            // SQLite rolls back by itself when the disk is full. sqlx does not notice, and could
            // begin no transaction on this connection again.
            .after_release(|connection, _| {
                Box::pin(async move {
                    // What is queued before it, a rollback too, has run when this is answered.
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
            .connect_with(options)
            .await?;
        let ledger = Self { pool, writes: Writes::default() };
        // SQLite opens a file that it may not write, for reading.
        ledger.write_header().await?;
        Ok(ledger)
    }

    /// Whether rows can be written. Taking the write lock tells whether the file may be written, and
    /// writes nothing; whether its disk has room is asked only after a write has failed.
    pub async fn check_writable(&self) -> sqlx::Result<()> {
        self.pool.begin_with("BEGIN IMMEDIATE").await?.rollback().await?;
        if self.writes.have_failed() {
            self.write_header().await?;
            self.writes.succeeded();
        }
        Ok(())
    }

    /// Writes the header's page as it was: the smallest write that reaches the disk. The page has a
    /// field for applications, which nobody reads here.
    async fn write_header(&self) -> sqlx::Result<()> {
        sqlx::query("PRAGMA user_version = 0").execute(&self.pool).await.map(drop)
    }

    /// What a call says about whether rows can be written.
    pub fn note<T>(&self, answer: sqlx::Result<T>) -> sqlx::Result<T> {
        answer.inspect_err(|error| {
            let code = error.as_database_error().and_then(DatabaseError::code);
            let code = code.and_then(|code| code.parse::<u32>().ok());
            // READONLY, IOERR, FULL, CANTOPEN.
            if code.is_some_and(|code| [8, 10, 13, 14].contains(&(code & 0xff))) {
                self.writes.failed();
            }
        })
    }

    /// Open connections, idle ones, and most.
    pub fn connections(&self) -> (u32, usize, u32) {
        (self.pool.size(), self.pool.num_idle(), 1)
    }

    /// The same database, for the in-process courier's values.
    pub fn pool(&self) -> SqlitePool {
        self.pool.clone()
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }

    pub async fn record_outcome(&self, writing: &Writing<'_>) -> sqlx::Result<Written> {
        self.write(concat!("WITH ", kept_task!(), decide_request!()), writing).await
    }

    pub async fn register(&self, writing: &Writing<'_>) -> sqlx::Result<Written> {
        self.write(concat!("WITH ", kept_task!(), register_request!()), writing).await
    }

    async fn write(
        &self,
        write_request: &'static str,
        writing: &Writing<'_>,
    ) -> sqlx::Result<Written> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let written = bind_writing(sqlx::query_as(write_request), writing, false);
        let row = match written.fetch_optional(&mut *transaction).await {
            Err(error) if is_id_taken(&error) => return Ok(Written::IdTaken),
            written => written?,
        };
        if row.is_some() {
            let write_task =
                write_task!("hitl_request AS d WHERE d.tenant_id = $3 AND d.request_id = $1");
            bind_writing(sqlx::query_as(write_task), writing, false)
                .fetch_optional(&mut *transaction)
                .await?;
            if writing.audit.body().is_some() {
                let write_audit =
                    write_audit!("hitl_request AS d WHERE d.tenant_id = $3 AND d.request_id = $1");
                bind_writing(sqlx::query_as(write_audit), writing, false)
                    .fetch_optional(&mut *transaction)
                    .await?;
            }
        }
        transaction.commit().await?;
        Ok(Written::of(row))
    }

    pub async fn record_receipts(&self, receipts: &[DeliveryReceipt]) -> sqlx::Result<()> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for DeliveryReceipt { tenant, request, owed_since, result, at } in receipts {
            sqlx::query(
                "UPDATE hitl_request
                    SET delivery = $3, listeners = $4, sent_at = $5, sent_to = $6
                  WHERE tenant_id = $7 AND request_id = $1 AND owed_since = $2
                    AND delivery = 'owed'",
            )
            .bind(request.as_str())
            .bind(owed_since)
            .bind(delivery_str(result.delivery))
            .bind(result.listeners)
            .bind(at)
            .bind(result.replication_id.as_deref())
            .bind(tenant.as_str())
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await
    }

    pub async fn delete_outbox(&self, ids: &[i64]) -> sqlx::Result<()> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for id in ids {
            sqlx::query("DELETE FROM hitl_outbox WHERE outbox_id = $1")
                .bind(id)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await
    }

    pub async fn decisions_of(&self, ids: &[RequestId]) -> sqlx::Result<Vec<DecisionRow>> {
        let ids = ids.iter().map(RequestId::as_str).collect::<Vec<_>>();
        let ids = serde_json::Value::from(ids).to_string();
        let query = decisions_of!("IN (SELECT value FROM json_each($1))");
        sqlx::query_as(query).bind(ids).fetch_all(&self.pool).await
    }

    pub async fn close_open_tasks(
        &self,
        before: DateTime<Utc>,
        limit: i64,
        now: DateTime<Utc>,
    ) -> sqlx::Result<i64> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let close = close_open_tasks!(concat!("(", open_tasks!(""), ")"));
        sqlx::query(close).bind(before).bind(limit).bind(now).execute(&mut *transaction).await?;
        let note = note_closed_tasks!(concat!("(", open_tasks!(""), ")"));
        let noted = sqlx::query(note).bind(before).bind(limit).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(i64::try_from(noted.rows_affected()).unwrap_or(i64::MAX))
    }

    pub async fn expire(
        &self,
        tenant: &TenantId,
        id: &RequestId,
        now: DateTime<Utc>,
    ) -> sqlx::Result<Option<RequestRow>> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let expired = sqlx::query_as(expire_request!())
            .bind(id.as_str())
            .bind(now)
            .bind(tenant.as_str())
            .fetch_optional(&mut *transaction)
            .await?;
        if expired.is_some() {
            sqlx::query(expire_task!("hitl_request WHERE tenant_id = $3 AND request_id = $1"))
                .bind(id.as_str())
                .bind(now)
                .bind(tenant.as_str())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(expired)
    }

    /// Reads all of it in one statement, which sees one moment of the ledger.
    pub async fn export(
        &self,
        span: &Span,
        write: impl FnMut(&Exported) -> io::Result<()>,
    ) -> sqlx::Result<io::Result<()>> {
        hand_over(outcomes_between(&self.pool, span), write).await
    }

    pub async fn export_refused_attempts(
        &self,
        span: &Span,
        write: impl FnMut(&ExportedAttempt) -> io::Result<()>,
    ) -> sqlx::Result<io::Result<()>> {
        hand_over(refused_attempts_between(&self.pool, span), write).await
    }

    pub async fn count_old(
        &self,
        requests: Option<DateTime<Utc>>,
        tasks: Option<DateTime<Utc>>,
    ) -> sqlx::Result<[i64; 3]> {
        let attempts = count_old(&self.pool, count!(old_refused_attempts!("")), requests).await?;
        let requests = count_old(&self.pool, count!(old_requests!("")), requests).await?;
        let tasks = count_old(&self.pool, count!(old_tasks!("")), tasks).await?;
        Ok([requests, attempts, tasks])
    }

    pub async fn purge_requests(&self, before: DateTime<Utc>, limit: i64) -> sqlx::Result<i64> {
        self.purge(
            [
                remember_outcomes!(concat!("(", old_requests!(""), ")")),
                remember_owned!(concat!("(", old_requests!(""), ")")),
                concat!(
                    "DELETE FROM hitl_request
                      WHERE (tenant_id, request_id) IN (SELECT tenant_id, request_id FROM (",
                    old_requests!(""),
                    "))"
                ),
            ],
            before,
            limit,
        )
        .await
    }

    pub async fn purge_tasks(&self, before: DateTime<Utc>, limit: i64) -> sqlx::Result<i64> {
        self.purge(
            [
                concat!(
                    "DELETE FROM owned_task WHERE (tenant_id, task_id) IN (",
                    old_tasks!(""),
                    ")"
                ),
                concat!(
                    "DELETE FROM agent_task WHERE (tenant_id, task_id) IN (",
                    old_tasks!(""),
                    ")"
                ),
            ],
            before,
            limit,
        )
        .await
    }

    /// Runs statements that name the same rows; how many the last one deleted.
    async fn purge<const N: usize>(
        &self,
        statements: [&'static str; N],
        before: DateTime<Utc>,
        limit: i64,
    ) -> sqlx::Result<i64> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut purged = 0;
        for statement in statements {
            let done = sqlx::query(statement).bind(before).bind(limit).execute(&mut *transaction);
            purged = done.await?.rows_affected();
        }
        transaction.commit().await?;
        Ok(i64::try_from(purged).unwrap_or(i64::MAX))
    }
}

/// Whether a request of Redis has this id already, of another tenant.
fn is_id_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        error.is_unique_violation() && error.message().ends_with(": hitl_request.request_id")
    })
}
