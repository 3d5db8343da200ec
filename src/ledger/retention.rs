//! Deletes old rows in batches: closed requests, finished tasks and refused attempts. Replicas that
//! purge at the same time skip each other's rows.

use chrono::{DateTime, Utc};
use const_format::formatcp;

use super::connect::Ledger;
use super::connections::Unpooled;
use super::engine::{Database, Statement, query, values};
use super::error::Result;
use super::export::reader;
use super::request_row::{DELIVERY, SENT_OR_CLOSED_AT};

impl Ledger {
    /// Deletes up to `limit` requests that were closed, and whose signals were sent, before
    /// `before`. Returns the number of deleted requests. The ledger keeps their highest sequence
    /// number in `purged_outcome`, and the tasks that this service made for them in `owned_task`. Their
    /// comments go with them.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. Purging again is safe.
    pub async fn purge_requests(&self, before: DateTime<Utc>, limit: i64) -> Result<u64> {
        let (purged,): (i64,) =
            self.engine.fetch_one(PURGE_REQUESTS, &values![before, limit]).await?;
        Ok(u64::try_from(purged).unwrap_or(0))
    }

    /// Deletes up to `limit` completed or failed tasks that were last changed before `before`.
    /// Keeps tasks with a request that is pending or whose signal is owed. Returns the number of
    /// deleted tasks.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. Purging again is safe.
    pub async fn purge_tasks(&self, before: DateTime<Utc>, limit: i64) -> Result<u64> {
        let (purged,): (i64,) = self.engine.fetch_one(PURGE_TASKS, &values![before, limit]).await?;
        Ok(u64::try_from(purged).unwrap_or(0))
    }

    /// Deletes up to `limit` refused attempts that were made before `before`. Returns the number of
    /// deleted attempts.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. Purging again is safe.
    pub async fn purge_refused_attempts(&self, before: DateTime<Utc>, limit: i64) -> Result<u64> {
        self.engine.execute(PURGE_REFUSED_ATTEMPTS, &values![before, limit]).await
    }

    /// Deletes up to `limit` grants that expired before `before`. Returns the number of deleted grants.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. Purging again is safe.
    pub async fn purge_grants(&self, before: DateTime<Utc>, limit: i64) -> Result<u64> {
        self.engine.execute(PURGE_GRANTS, &values![before, limit]).await
    }

    /// The number of requests, refused attempts, grants and tasks that the purges would delete in all
    /// batches. `requests` is the time before which all of them but tasks are old, `tasks` the same for
    /// tasks. Without such a time the number is 0.
    ///
    /// # Errors
    /// [`sqlx::Error`] when the ledger does not answer.
    pub async fn count_old(
        &self,
        requests: Option<DateTime<Utc>>,
        tasks: Option<DateTime<Utc>>,
    ) -> sqlx::Result<[u64; 4]> {
        let counting = [
            (COUNT_REQUESTS, requests),
            (COUNT_REFUSED_ATTEMPTS, requests),
            (COUNT_GRANTS, requests),
            (COUNT_TASKS, tasks),
        ];
        let mut reader = match &self.engine.database {
            Database::Postgres(connections) => Some(reader(connections).await?),
            Database::Sqlite(_) => None,
        };
        let mut counts = [0; 4];
        for (count, (sql, before)) in counts.iter_mut().zip(counting) {
            let values = values![before, i64::MAX];
            let (old,): (i64,) = match (&self.engine.database, &mut reader) {
                (Database::Sqlite(pool), _) => query(sql, &values)?.fetch_one(pool).await?,
                (_, Some(reader)) => query(sql, &values)?.fetch_one(Unpooled(reader)).await?,
                (_, None) => continue,
            };
            *count = u64::try_from(old).unwrap_or(0);
        }
        Ok(counts)
    }
}

/// Selects up to $2 requests that were closed before $1 and whose signal is not owed and was not
/// sent since $1.
const OLD_REQUESTS: &str = formatcp!(
    "SELECT r.tenant_id, r.request_id, r.task_id, r.owns_task, r.outcome FROM hitl_request AS r
      WHERE r.settled_at >= '-infinity' AND r.settled_at < $1
        AND r.owed_since < $1 AND {SENT_OR_CLOSED_AT} < $1 AND r.status <> 'pending' AND {DELIVERY} <> 'owed'
      ORDER BY r.settled_at, r.tenant_id, r.request_id LIMIT $2"
);

/// Selects up to $2 refused attempts that were made before $1.
const OLD_REFUSED_ATTEMPTS: &str = "\
    SELECT attempt_id FROM hitl_refused_attempt
     WHERE attempted_at >= '-infinity' AND attempted_at < $1
     ORDER BY attempted_at, attempt_id LIMIT $2";

/// Selects up to $2 grants that expired before $1.
const OLD_GRANTS: &str = "\
    SELECT tenant_id, grant_id FROM hitl_grant
     WHERE expires_at >= '-infinity' AND expires_at < $1
     ORDER BY expires_at, tenant_id, grant_id LIMIT $2";

/// Selects up to $2 completed or failed tasks that were not changed since $1 and have no request
/// that is pending or owed. The subquery is not `NOT EXISTS`: Postgres would turn that into a join
/// that reads all requests.
const OLD_TASKS: &str = formatcp!(
    "SELECT t.tenant_id, t.task_id FROM agent_task t
      WHERE t.status IN ('COMPLETED', 'FAILED')
        AND t.updated_at >= '-infinity' AND t.updated_at < $1
        AND (
            SELECT MAX(r.request_id) FROM hitl_request r
             WHERE r.task_id = t.task_id AND r.tenant_id IS NOT DISTINCT FROM t.tenant_id
               AND r.status = 'pending'
        ) IS NULL
        AND (t.tenant_id, t.task_id) NOT IN (
            SELECT d.tenant_id, COALESCE((
                       SELECT r.task_id FROM hitl_request r
                        WHERE r.tenant_id = d.tenant_id AND r.request_id = d.request_id), '')
              FROM hitl_delivery d WHERE d.delivery = 'owed' AND d.due_at >= '-infinity')
      ORDER BY t.updated_at, t.tenant_id, t.task_id LIMIT $2"
);

const COUNT_REQUESTS: &str = formatcp!("SELECT COUNT(*) FROM ({OLD_REQUESTS}) AS old");
const COUNT_REFUSED_ATTEMPTS: &str =
    formatcp!("SELECT COUNT(*) FROM ({OLD_REFUSED_ATTEMPTS}) AS old");
const COUNT_GRANTS: &str = formatcp!("SELECT COUNT(*) FROM ({OLD_GRANTS}) AS old");
const COUNT_TASKS: &str = formatcp!("SELECT COUNT(*) FROM ({OLD_TASKS}) AS old");

/// Stores the highest sequence number of the deleted requests in `purged_outcome`.
const REMEMBER_OUTCOMES: &str = "\
    UPDATE purged_outcome SET highest = (SELECT MAX(outcome) FROM gone)
     WHERE highest < (SELECT MAX(outcome) FROM gone)";

/// Stores in `owned_task` which tasks this service made for the deleted requests. The rows are
/// sorted, so that two purges cannot deadlock. The subquery looks up each task by itself: Postgres
/// would turn `IN` into a join that reads all tasks.
const REMEMBER_OWNED: &str = "\
    INSERT INTO owned_task (tenant_id, task_id)
     SELECT DISTINCT tenant_id, task_id FROM gone
      WHERE owns_task AND (
          SELECT t.task_id FROM agent_task t
           WHERE t.tenant_id = gone.tenant_id AND t.task_id = gone.task_id
      ) IS NOT NULL
      ORDER BY tenant_id, task_id ON CONFLICT DO NOTHING";

const PURGE_REQUESTS: Statement = Statement::new(
    "ledger.purge_requests",
    formatcp!(
        "WITH old AS MATERIALIZED ({OLD_REQUESTS} FOR UPDATE OF r SKIP LOCKED), gone AS (
            DELETE FROM hitl_request
             WHERE (tenant_id, request_id) IN (SELECT tenant_id, request_id FROM old)
            RETURNING tenant_id, task_id, owns_task, outcome
         ), votes AS (
            DELETE FROM hitl_vote WHERE ctid = ANY(ARRAY(
                SELECT UNNEST((SELECT ARRAY_AGG(v.ctid) FROM hitl_vote v
                                WHERE v.tenant_id = old.tenant_id
                                  AND v.request_id = old.request_id))
                  FROM old
            ))
         ), deliveries AS (
            DELETE FROM hitl_delivery WHERE ctid = ANY(ARRAY(
                SELECT (SELECT d.ctid FROM hitl_delivery d
                         WHERE d.tenant_id = old.tenant_id AND d.request_id = old.request_id)
                  FROM old
            ))
         ), numbers AS ({REMEMBER_OUTCOMES}), tasks AS ({REMEMBER_OWNED}), texts AS (
            DELETE FROM hitl_search WHERE ctid = ANY(ARRAY(
                SELECT (SELECT s.ctid FROM hitl_search s
                         WHERE s.request_id = old.request_id AND s.tenant_id = old.tenant_id)
                  FROM old
            ))
         ), comments AS (
            DELETE FROM hitl_comment WHERE ctid = ANY(ARRAY(
                SELECT UNNEST((SELECT ARRAY_AGG(c.ctid) FROM hitl_comment c
                                WHERE c.tenant_id = old.tenant_id
                                  AND c.request_id = old.request_id))
                  FROM old
            ))
         )
         SELECT COUNT(*) FROM gone"
    ),
)
.on_sqlite(COUNT_REQUESTS)
.then(&[
    formatcp!("WITH gone AS ({OLD_REQUESTS}) {REMEMBER_OUTCOMES}"),
    formatcp!("WITH gone AS ({OLD_REQUESTS}) {REMEMBER_OWNED}"),
    formatcp!(
        "DELETE FROM hitl_vote WHERE (tenant_id, request_id) IN (
            SELECT tenant_id, request_id FROM ({OLD_REQUESTS}) AS old
         )"
    ),
    formatcp!(
        "WITH old AS ({OLD_REQUESTS}) DELETE FROM hitl_search
          WHERE (request_id, tenant_id) IN (SELECT request_id, tenant_id FROM old)"
    ),
    formatcp!(
        "WITH old AS ({OLD_REQUESTS}) DELETE FROM hitl_comment
          WHERE (tenant_id, request_id) IN (SELECT tenant_id, request_id FROM old)"
    ),
    formatcp!(
        "WITH old AS ({OLD_REQUESTS}) DELETE FROM hitl_request
          WHERE (tenant_id, request_id) IN (SELECT tenant_id, request_id FROM old)"
    ),
]);

/// Deletes the selected tasks and their rows in `owned_task`. An older release wrote its rows
/// with an empty tenant. The subquery looks up each row by itself: a join would read the whole
/// table.
const PURGE_TASKS: Statement = Statement::new(
    "ledger.purge_tasks",
    formatcp!(
        "WITH old AS MATERIALIZED ({OLD_TASKS} FOR UPDATE SKIP LOCKED), gone AS (
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
    ),
)
.on_sqlite(COUNT_TASKS)
.then(&[
    formatcp!("DELETE FROM owned_task WHERE (tenant_id, task_id) IN ({OLD_TASKS})"),
    formatcp!("DELETE FROM agent_task WHERE (tenant_id, task_id) IN ({OLD_TASKS})"),
]);

const PURGE_REFUSED_ATTEMPTS: Statement = Statement::new(
    "ledger.purge_refused_attempts",
    formatcp!(
        "DELETE FROM hitl_refused_attempt
          WHERE attempt_id IN ({OLD_REFUSED_ATTEMPTS} FOR UPDATE SKIP LOCKED)"
    ),
)
.on_sqlite(formatcp!(
    "DELETE FROM hitl_refused_attempt WHERE attempt_id IN ({OLD_REFUSED_ATTEMPTS})"
));

const PURGE_GRANTS: Statement = Statement::new(
    "ledger.purge_grants",
    formatcp!(
        "DELETE FROM hitl_grant
          WHERE (tenant_id, grant_id) IN ({OLD_GRANTS} FOR UPDATE SKIP LOCKED)"
    ),
)
.on_sqlite(formatcp!("DELETE FROM hitl_grant WHERE (tenant_id, grant_id) IN ({OLD_GRANTS})"));
