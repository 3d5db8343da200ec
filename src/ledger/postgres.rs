//! The ledger on Postgres. Every change is one statement that commits by itself, so a client that
//! vanishes can leave no transaction behind.

use std::io;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection, Postgres, Row as _, raw_sql};

use super::connections::{self, Connections, Pooler, Unpooled};
use super::export::hand_over;
use super::outbox::{OutboxKind, OutboxRow};
use super::refused::{ExportedAttempt, RefusedAttempt};
use super::writes::Writes;
use super::{DecisionRow, Exported, RequestRow, Span, TaskRow, Writing, Written, delivery_str};
use crate::domain::approver::{Caller, Role};
use crate::domain::ids::{RequestId, SessionId, TaskId, TenantId, UserId};
use crate::domain::record::{DeliveryReceipt, Record};
use crate::domain::task::{Task, TaskFilter};

/// The ledger on Postgres.
#[derive(Clone, Debug)]
pub struct PgLedger {
    pool: Connections,
    writes: Writes,
}

/// The request and its task in one statement. Answers the request's row, if it was written, with
/// the state of its task.
macro_rules! in_one_statement {
    ($write_request:expr) => {
        concat!(
            "WITH ",
            kept_task!(),
            ", written AS (",
            $write_request,
            "), touched AS (",
            write_task!("written AS d WHERE true"),
            " RETURNING status), audited AS (",
            write_audit!("written AS d WHERE true"),
            ")
             SELECT written.*, touched.status AS task_status FROM written, touched"
        )
    };
}

ledger_queries!(PgLedger, Postgres, claim: "FOR UPDATE SKIP LOCKED");

impl PgLedger {
    pub async fn connect(url: &str, pooler: Pooler, max_connections: u32) -> sqlx::Result<Self> {
        let options = reach(url, pooler).await?;
        let pool = Connections::new(options, pooler, max_connections)?;
        Ok(Self { pool, writes: Writes::default() })
    }

    /// Logs in to the same database by other means. Nothing changes until [`Self::adopt`].
    pub async fn try_login(&self, url: &str) -> sqlx::Result<PgConnectOptions> {
        fn place(options: &PgConnectOptions) -> impl PartialEq {
            // Without a name it is the one of the user.
            let database = options.get_database().unwrap_or(options.get_username());
            (options.get_host(), options.get_port(), options.get_socket(), database)
        }
        let (new, current) = (PgConnectOptions::from_str(url)?, self.pool.options());
        if place(&new) != place(&current) {
            let reason = "it is another server or database, which needs a restart";
            return Err(sqlx::Error::Configuration(reason.into()));
        }
        reach(url, self.pool.pooler()).await
    }

    /// Every connection from now on is made this way. Those that are open live on, at most half an
    /// hour.
    pub fn adopt(&self, login: PgConnectOptions) {
        self.pool.set_options(login);
    }

    /// Whether rows can be written. Asking costs no write, unless a write failed since the last one
    /// that is known to have succeeded: then rows are written and rolled back, as many bytes as a
    /// full disk has no room for.
    pub async fn check_writable(&self) -> sqlx::Result<()> {
        self.pool.check_writable().await?;
        if self.writes.have_failed() {
            self.pool
                .run_raw(
                    "BEGIN;
                     INSERT INTO owned_task (tenant_id, task_id)
                     SELECT '', n || repeat(md5(random()::text), 32) FROM generate_series(1, 16) AS n;
                     ROLLBACK",
                )
                .await?;
            self.writes.succeeded();
        }
        Ok(())
    }

    /// What a call says about whether rows can be written.
    pub fn note<T>(&self, answer: sqlx::Result<T>) -> sqlx::Result<T> {
        answer.inspect_err(|error| {
            // Read-only (25006), and out of disk, memory or other resources (53).
            let code = error.as_database_error().and_then(DatabaseError::code);
            if code.is_some_and(|code| code == "25006" || code.starts_with("53")) {
                self.writes.failed();
            }
        })
    }

    /// A connection that may only read, and take its time: in a transaction, which a pooler keeps on
    /// one server.
    async fn reader(&self) -> sqlx::Result<PgConnection> {
        let mut reader = PgConnection::connect_with(&self.pool.options()).await?;
        let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = 0; \
                     SET LOCAL idle_in_transaction_session_timeout = 0";
        raw_sql(begin).execute(&mut reader).await?;
        Ok(reader)
    }

    /// Reads all of it in one statement, which sees one moment of the ledger.
    pub async fn export(
        &self,
        span: &Span,
        write: impl FnMut(&Exported) -> io::Result<()>,
    ) -> sqlx::Result<io::Result<()>> {
        hand_over(outcomes_between(Unpooled(&mut self.reader().await?), span), write).await
    }

    pub async fn export_refused_attempts(
        &self,
        span: &Span,
        write: impl FnMut(&ExportedAttempt) -> io::Result<()>,
    ) -> sqlx::Result<io::Result<()>> {
        hand_over(refused_attempts_between(Unpooled(&mut self.reader().await?), span), write).await
    }

    pub async fn count_old(
        &self,
        requests: Option<DateTime<Utc>>,
        tasks: Option<DateTime<Utc>>,
    ) -> sqlx::Result<[i64; 3]> {
        let mut reader = self.reader().await?;
        let attempts =
            count_old(Unpooled(&mut reader), count!(old_refused_attempts!("")), requests).await?;
        let requests =
            count_old(Unpooled(&mut reader), count!(old_requests!("")), requests).await?;
        let tasks = count_old(Unpooled(&mut reader), count!(old_tasks!("")), tasks).await?;
        Ok([requests, attempts, tasks])
    }

    /// Replicas that purge at once take other rows each.
    pub async fn purge_requests(&self, before: DateTime<Utc>, limit: i64) -> sqlx::Result<i64> {
        let purge = concat!(
            "WITH old AS MATERIALIZED (",
            old_requests!("FOR UPDATE SKIP LOCKED"),
            "), gone AS (
                DELETE FROM hitl_request
                 WHERE (tenant_id, request_id) IN (SELECT tenant_id, request_id FROM old)
                RETURNING tenant_id, task_id, owns_task, outcome
            ), numbers AS (",
            remember_outcomes!("gone"),
            "), tasks AS (",
            remember_owned!("gone"),
            ") SELECT COUNT(*) FROM gone"
        );
        sqlx::query_scalar(purge).bind(before).bind(limit).fetch_one(&self.pool).await
    }

    /// As [`Self::purge_requests`]. A row of `owned_task` without a tenant is an older release's. Each
    /// row is looked up by itself: a join would read the whole table.
    pub async fn purge_tasks(&self, before: DateTime<Utc>, limit: i64) -> sqlx::Result<i64> {
        let purge = concat!(
            "WITH old AS MATERIALIZED (",
            old_tasks!("FOR UPDATE SKIP LOCKED"),
            "), gone AS (
                DELETE FROM agent_task
                 WHERE (tenant_id, task_id) IN (SELECT tenant_id, task_id FROM old)
                RETURNING tenant_id, task_id
            ), forgotten AS (
                DELETE FROM owned_task WHERE ctid = ANY(ARRAY(
                    SELECT (SELECT o.ctid FROM owned_task o
                             WHERE o.tenant_id IN (gone.tenant_id, '') AND o.task_id = gone.task_id
                             LIMIT 1)
                      FROM gone
                ))
            ) SELECT COUNT(*) FROM gone"
        );
        sqlx::query_scalar(purge).bind(before).bind(limit).fetch_one(&self.pool).await
    }

    /// Open connections, idle ones, and most.
    pub fn connections(&self) -> (u32, usize, u32) {
        self.pool.count()
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }

    pub async fn record_outcome(&self, writing: &Writing<'_>) -> sqlx::Result<Written> {
        self.write(in_one_statement!(decide_request!()), writing).await
    }

    pub async fn register(&self, writing: &Writing<'_>) -> sqlx::Result<Written> {
        self.write(in_one_statement!(register_request!()), writing).await
    }

    async fn write(&self, statement: &'static str, writing: &Writing<'_>) -> sqlx::Result<Written> {
        let write = async |is_task_taken| {
            bind_writing(sqlx::query_as(statement), writing, is_task_taken)
                .fetch_optional(&self.pool)
                .await
        };
        let mut is_task_taken = false;
        loop {
            match write(is_task_taken).await {
                // Nothing was written. If this tenant made it at the same moment, it can be seen now.
                Err(error) if is_task_id_taken(&error) => {
                    is_task_taken = true;
                    crash_point!("task-taken");
                }
                // Nor then: the session's next outcome has the number after it.
                Err(error) if is_number_taken(&error) => {}
                Err(error) if is_id_taken(&error) => {
                    let (tenant, id) = (writing.tenant(), &writing.candidate.request.id);
                    if self.find_request(tenant, id).await?.is_none() {
                        return Ok(Written::IdTaken);
                    }
                    // The same tenant wrote it at the same moment; now it can be seen.
                }
                written => return written.map(Written::of),
            }
        }
    }

    pub async fn record_receipts(&self, receipts: &[DeliveryReceipt]) -> sqlx::Result<()> {
        // In one order everywhere, so that two batches cannot wait for each other.
        let mut receipts = receipts.iter().collect::<Vec<_>>();
        receipts
            .sort_unstable_by_key(|receipt| (receipt.tenant.as_str(), receipt.request.as_str()));
        let result = || receipts.iter().map(|receipt| &receipt.result);
        let texts =
            |texts: &mut dyn Iterator<Item = &str>| texts.map(str::to_owned).collect::<Vec<_>>();
        sqlx::query(
            "UPDATE hitl_request AS r
                SET delivery = m.delivery, listeners = m.listeners, sent_at = m.sent_at,
                    sent_to = m.sent_to
               FROM UNNEST($1::text[], $2::timestamptz[], $3::text[], $4::bigint[],
                           $5::timestamptz[], $6::text[], $7::text[])
                    AS m(request_id, owed_since, delivery, listeners, sent_at, sent_to, tenant_id)
              WHERE r.tenant_id = m.tenant_id AND r.request_id = m.request_id AND r.owed_since = m.owed_since
                AND r.delivery = 'owed'",
        )
        .bind(texts(&mut receipts.iter().map(|receipt| receipt.request.as_str())))
        .bind(receipts.iter().map(|receipt| receipt.owed_since).collect::<Vec<_>>())
        .bind(texts(&mut result().map(|result| delivery_str(result.delivery))))
        .bind(result().map(|result| result.listeners).collect::<Vec<_>>())
        .bind(receipts.iter().map(|receipt| receipt.at).collect::<Vec<_>>())
        .bind(result().map(|result| result.replication_id.clone()).collect::<Vec<_>>())
        .bind(texts(&mut receipts.iter().map(|receipt| receipt.tenant.as_str())))
        .execute(&self.pool)
        .await
        .map(drop)
    }

    pub async fn delete_outbox(&self, ids: &[i64]) -> sqlx::Result<()> {
        sqlx::query("DELETE FROM hitl_outbox WHERE outbox_id = ANY($1)")
            .bind(ids)
            .execute(&self.pool)
            .await
            .map(drop)
    }

    pub async fn decisions_of(&self, ids: &[RequestId]) -> sqlx::Result<Vec<DecisionRow>> {
        let ids = ids.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>();
        sqlx::query_as(decisions_of!("= ANY($1)")).bind(ids).fetch_all(&self.pool).await
    }

    pub async fn close_open_tasks(
        &self,
        before: DateTime<Utc>,
        limit: i64,
        now: DateTime<Utc>,
    ) -> sqlx::Result<i64> {
        let close = concat!(
            "WITH due AS MATERIALIZED (",
            open_tasks!("FOR UPDATE SKIP LOCKED"),
            "), closed AS (",
            close_open_tasks!("due"),
            "), noted AS (",
            note_closed_tasks!("due"),
            ") SELECT COUNT(*) FROM due"
        );
        let close = sqlx::query_scalar(close).bind(before).bind(limit).bind(now);
        close.fetch_one(&self.pool).await
    }

    pub async fn expire(
        &self,
        tenant: &TenantId,
        id: &RequestId,
        now: DateTime<Utc>,
    ) -> sqlx::Result<Option<RequestRow>> {
        let expire = concat!(
            "WITH expired AS (",
            expire_request!(),
            "), touched AS (",
            expire_task!("expired"),
            ") SELECT * FROM expired"
        );
        loop {
            let expired = sqlx::query_as(expire).bind(id.as_str()).bind(now).bind(tenant.as_str());
            match expired.fetch_optional(&self.pool).await {
                Err(error) if is_number_taken(&error) => {}
                expired => return expired,
            }
        }
    }
}

/// How connections are made, after one has been: it says what is wrong.
async fn reach(url: &str, pooler: Pooler) -> sqlx::Result<PgConnectOptions> {
    let options = options(url)?;
    let mut connection = connections::log_in(&options, pooler).await?;
    let encoding = raw_sql("SHOW server_encoding").fetch_one(&mut connection).await?;
    let encoding: String = encoding.try_get(0)?;
    if encoding != "UTF8" {
        let reason = format!(
            "the database's encoding is {encoding}, which cannot hold every text; create it with \
             ENCODING 'UTF8' TEMPLATE template0"
        );
        return Err(sqlx::Error::Configuration(reason.into()));
    }
    connection.close().await?;
    if pooler == Pooler::None && connections::share_a_session(&options).await {
        let reason = "a pooler in transaction mode stands before it (two connections share one \
                      session); set database_pooler = \"transaction\", or take its session mode";
        return Err(sqlx::Error::Configuration(reason.into()));
    }
    Ok(options)
}

/// Without the start-up parameters that `PgBouncer` refuses: `options` and `extra_float_digits`.
fn options(url: &str) -> sqlx::Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url)?;
    Ok(options.application_name("aura-hitl").extra_float_digits(None))
}

/// Whether another outcome of the session took its number at the same moment.
fn is_number_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::constraint) == Some("hitl_request_outcome")
}

/// Whether a row has the id of this request: another tenant's, or one of this tenant's that was
/// written at the same moment.
fn is_id_taken(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(DatabaseError::constraint)
        .is_some_and(|name| ["hitl_request_pkey", "hitl_request_of_redis"].contains(&name))
}

/// Whether a task has the id that the request names: another tenant's, in a database whose upgrade is
/// not finished, or one of this tenant's that was made at the same moment.
fn is_task_id_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::constraint) == Some("agent_task_pkey")
}
