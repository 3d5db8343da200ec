//! Tasks, table `agent_task`: tasks that agents create and update, and tasks that this service
//! makes for requests.

use std::time::Instant;

use chrono::{DateTime, Utc};
use const_format::formatcp;
use sqlx::{AssertSqlSafe, SqlSafeStr as _};
use tracing::Instrument as _;

use super::batches::Subject;
use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::{LedgerError, Result};
use super::given::given;
use super::request_row::{DELIVERY, LISTENERS, SENT_OR_CLOSED_AT};
use crate::domain::ids::{RequestId, TaskId, TenantId, UserId};
use crate::domain::task::{Task, TaskFilter, TaskStatus};
use crate::observe::traces;

/// The most tasks that a list counts exactly; see [`Ledger::list_tasks`].
pub const COUNTED_TASKS: i64 = 10_000;

/// The columns that [`TaskRow`] reads.
const TASK_COLUMNS: &str = "\
    task_id, user_id, tenant_id, task_type, status, progress, description, input_data,
    result_data, plan_steps, hitl_request_id, error_message, started_at, completed_at,
    created_at, updated_at";

/// A row of `agent_task`.
#[derive(Debug, sqlx::FromRow)]
struct TaskRow {
    task_id: String,
    user_id: String,
    tenant_id: String,
    task_type: String,
    status: String,
    progress: i32,
    description: Option<String>,
    input_data: Option<String>,
    result_data: Option<String>,
    plan_steps: String,
    hitl_request_id: Option<String>,
    error_message: Option<String>,
    started_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl TaskRow {
    fn into_task(self) -> Result<Task> {
        let odd = |what: &str| LedgerError::Inconsistent(format!("a task's {what} is not valid"));
        Ok(Task {
            id: TaskId::parse(self.task_id).map_err(|_invalid| odd("task_id"))?,
            user: UserId::parse(self.user_id).map_err(|_invalid| odd("user_id"))?,
            tenant: TenantId::parse(self.tenant_id).map_err(|_invalid| odd("tenant_id"))?,
            task_type: self.task_type,
            status: TaskStatus::parse(&self.status).ok_or_else(|| odd("status"))?,
            progress: self.progress,
            description: self.description,
            input_data: self.input_data,
            result_data: self.result_data,
            plan_steps: self.plan_steps,
            hitl_request_id: self.hitl_request_id.and_then(|id| RequestId::parse(id).ok()),
            error_message: self.error_message,
            started_at: self.started_at,
            completed_at: self.completed_at,
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

impl Ledger {
    /// Inserts a task.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn insert_task(&self, task: &Task) -> Result<()> {
        const INSERT_TASK: Statement = Statement::new(
            "ledger.insert_task",
            "INSERT INTO agent_task (
                task_id, user_id, tenant_id, task_type, status, progress, description,
                input_data, plan_steps, created_at, updated_at
             ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        );
        let values = values![
            &task.id,
            &task.user,
            &task.tenant,
            &task.task_type,
            task.status.as_str(),
            task.progress,
            task.description.as_ref(),
            task.input_data.as_ref(),
            &task.plan_steps,
            task.created_at,
            task.updated_at,
        ];
        self.engine.execute(INSERT_TASK, &values).await.map(drop)
    }

    /// The task with this id in this tenant.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn find_task(&self, tenant: &TenantId, id: &TaskId) -> Result<Option<Task>> {
        const FIND_TASK: Statement = Statement::new(
            "ledger.find_task",
            formatcp!(
                "SELECT {TASK_COLUMNS} FROM agent_task WHERE task_id = $1 AND tenant_id = $2"
            ),
        );
        let row = self.engine.fetch_optional(FIND_TASK, &values![id, tenant]).await?;
        row.map(TaskRow::into_task).transpose()
    }

    /// Replaces the task `before` by `after`, in a batch with other tasks. Returns `false`, and writes
    /// nothing, when the row's `updated_at`, `status` or `plan_steps` differ from `before`.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. After [`LedgerError::OutcomeUnknown`] the
    /// task may have been replaced.
    pub async fn replace_task(&self, before: &Task, after: &Task) -> Result<bool> {
        let values = Vec::from(values![
            /* tenant_id */ &before.tenant,
            /* task_id */ &before.id,
            /* seen_at */ before.updated_at,
            /* seen_status */ before.status.as_str(),
            /* seen_steps */ &before.plan_steps,
            /* status */ after.status.as_str(),
            /* progress */ i64::from(after.progress),
            /* description */ after.description.as_ref(),
            /* result_data */ after.result_data.as_ref(),
            /* plan_steps */ &after.plan_steps,
            /* error_message */ after.error_message.as_ref(),
            /* started_at */ after.started_at,
            /* completed_at */ after.completed_at,
            /* updated_at */ after.updated_at,
        ]);
        let subjects = [Subject::Task(&before.tenant, &before.id)];
        let replaced = self
            .task_batches
            .write(REPLACE_TASK, values, &subjects, Instant::now())
            .instrument(traces::step(REPLACE_TASK.name()))
            .await?;
        Ok(replaced.is_some())
    }

    /// Sets a task from `WAITING_APPROVAL` to `IN_PROGRESS` if no request of the task is pending
    /// and unexpired. Returns whether the status changed.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. The task's next step also releases the
    /// task.
    pub async fn release_task(
        &self,
        tenant: &TenantId,
        task: &TaskId,
        now: DateTime<Utc>,
    ) -> Result<bool> {
        const RELEASE_TASK: Statement = Statement::new(
            "ledger.release_task",
            "UPDATE agent_task
                SET status = 'IN_PROGRESS'
              WHERE task_id = $1 AND tenant_id = $3 AND status = 'WAITING_APPROVAL'
                AND (
                    SELECT MAX(o.request_id) FROM hitl_request o
                     WHERE o.task_id = $1 AND o.tenant_id IS NOT DISTINCT FROM $3
                       AND o.status = 'pending' AND o.expires_at > $2
                ) IS NULL",
        );
        Ok(self.engine.execute(RELEASE_TASK, &values![task, now, tenant]).await? == 1)
    }

    /// Completes the task that this service made for an approved request whose agent has acted.
    pub(super) async fn complete_acted_task(
        &self,
        tenant: &TenantId,
        id: &RequestId,
        now: DateTime<Utc>,
    ) -> Result<()> {
        const COMPLETE_TASK: Statement = Statement::new(
            "ledger.complete_acted_task",
            "UPDATE agent_task
                SET status = 'COMPLETED', progress = 100, completed_at = $3,
                    updated_at = CASE WHEN updated_at > $3 THEN updated_at ELSE $3 END
              WHERE status = 'IN_PROGRESS' AND tenant_id = $2 AND task_id = (
                  SELECT task_id FROM hitl_request
                   WHERE request_id = $1 AND tenant_id = $2 AND status = 'approved'
                     AND owns_task AND acted_at IS NOT NULL
              )",
        );
        self.engine.execute(COMPLETE_TASK, &values![id, tenant, now]).await.map(drop)
    }

    /// Closes tasks that this service made for approved requests whose agents have not updated
    /// them. Takes up to `limit` requests whose signals were sent before `before`, or that were
    /// closed before `before` if they have no signal. Returns the number of requests.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. Closing again is safe.
    pub async fn close_open_tasks(
        &self,
        before: DateTime<Utc>,
        limit: i64,
        now: DateTime<Utc>,
    ) -> Result<u64> {
        let values = values![before, limit, now];
        let (closed,): (i64,) = self.engine.fetch_one(CLOSE_OPEN_TASKS, &values).await?;
        Ok(u64::try_from(closed).unwrap_or(0))
    }

    /// One page of tasks, newest first, and the total number of tasks. The total is exact up to
    /// [`COUNTED_TASKS`]. Above that it is a lower bound, so that listing takes no longer with a
    /// million tasks than with ten.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn list_tasks(&self, filter: &TaskFilter) -> Result<(Vec<Task>, u64)> {
        // The text is built for each call, so that each combination of filters has its own plan.
        let mut conditions = vec!["tenant_id = $1".to_owned()];
        if filter.user.is_none() {
            // Always true, and the condition of the index that this statement reads.
            conditions.push("task_type >= ''".to_owned());
        }
        let mut values = values![&filter.tenant].to_vec();
        let filters = [
            ("user_id", filter.user.as_ref().map(UserId::as_str)),
            ("status", filter.status.map(TaskStatus::as_str)),
        ];
        for (column, value) in filters {
            if let Some(value) = value {
                values.push(value.into());
                conditions.push(format!("{column} = ${}", values.len()));
            }
        }
        let conditions = conditions.join(" AND ");
        let order = "ORDER BY created_at DESC, task_id DESC";
        let (size, offset) = (values.len() + 1, values.len() + 2);
        let page = format!(
            "SELECT {TASK_COLUMNS} FROM agent_task WHERE {conditions} {order}
              LIMIT ${size} OFFSET ${offset}"
        );
        let count = format!(
            "SELECT COUNT(*) FROM (
                SELECT 1 FROM agent_task WHERE {conditions} {order} LIMIT ${size}
             ) AS counted"
        );
        let read = async {
            let skipped = i64::from(filter.page) * i64::from(filter.size);
            let of_page = [&*values, &values![i64::from(filter.size), skipped]].concat();
            let rows: Vec<TaskRow> =
                self.engine.all_of(AssertSqlSafe(page).into_sql_str(), &of_page).await?;
            let of_count = [&*values, &values![COUNTED_TASKS + 1]].concat();
            let counted: Vec<(i64,)> =
                self.engine.all_of(AssertSqlSafe(count).into_sql_str(), &of_count).await?;
            Ok((rows, counted.first().map_or(0, |(counted,)| *counted)))
        };
        let (rows, counted) =
            self.engine.call("ledger.list_tasks", read).await.map_err(LedgerError::of_a_read)?;
        let tasks = rows.into_iter().map(TaskRow::into_task).collect::<Result<Vec<_>>>()?;
        let counted = u64::try_from(counted).unwrap_or(0);
        let (before, here) = (u64::from(filter.page) * u64::from(filter.size), tasks.len() as u64);
        let is_exact = counted <= COUNTED_TASKS.unsigned_abs();
        // After a full page there may be another page, so at least one more task is assumed.
        let seen = before + here + u64::from(here == u64::from(filter.size));
        let total = if is_exact || here == 0 { counted } else { counted.max(seen) };
        Ok((tasks, total))
    }
}

given! {
    GIVEN_TASKS, GIVEN_TASKS_ON_SQLITE, 15;
    1 of_tenant, 2 of_task, 3 seen_at, 4 seen_status, 5 seen_steps, 6 new_status, 7 new_progress,
    8 new_description, 9 new_result, 10 new_steps, 11 new_error, 12 new_start, 13 new_end,
    14 changed_at,
}

/// Replaces tasks that are still as they were seen.
const REPLACE_SEEN_TASK: &str = "\
    UPDATE agent_task AS t
       SET status = given.new_status, progress = given.new_progress,
           description = given.new_description, result_data = given.new_result,
           plan_steps = given.new_steps, error_message = given.new_error,
           started_at = given.new_start, completed_at = given.new_end,
           updated_at = given.changed_at
      FROM given
     WHERE t.tenant_id = given.of_tenant AND t.task_id = given.of_task
       AND t.updated_at = given.seen_at AND t.status = given.seen_status
       AND t.plan_steps = given.seen_steps";

const REPLACE_TASK: Statement = Statement::new(
    "ledger.replace_task",
    formatcp!("WITH {GIVEN_TASKS} {REPLACE_SEEN_TASK} RETURNING t.task_id, given.place"),
)
.on_sqlite(formatcp!("WITH {GIVEN_TASKS_ON_SQLITE} {REPLACE_SEEN_TASK} RETURNING task_id"));

/// Selects up to $2 approved requests whose tasks this service made and has not closed: the signal
/// was sent, or without a signal the request was closed, by $1. The earliest first. `heard` says
/// whether the agent is known to have received the approval.
const OPEN_TASKS: &str = formatcp!(
    "SELECT r.tenant_id, r.request_id, r.task_id, r.settled_at, r.acted_at IS NOT NULL AS acted,
            COALESCE({LISTENERS}, 0) > 0 OR r.heard_at IS NOT NULL OR r.acted_at IS NOT NULL AS heard
       FROM hitl_request AS r
      WHERE r.status = 'approved' AND r.owns_task AND NOT r.task_closed
        AND r.settled_at >= '-infinity' AND r.settled_at <= $1 AND r.owed_since <= $1
        AND {DELIVERY} <> 'owed' AND {SENT_OR_CLOSED_AT} <= $1
      ORDER BY r.settled_at LIMIT $2"
);

/// Closes the tasks of the requests in `due` at the time $3: `COMPLETED` if the agent received the
/// approval, else `FAILED`. A task that was changed after the approval is not closed: its agent
/// updates the task, or the task goes on under a later approval. The last condition excludes no
/// row, but Postgres estimates that it selects one row in two hundred. Without the condition
/// Postgres would read all tasks for a batch, even for an empty one, instead of looking up each
/// task.
const CLOSE_TASKS: &str = "\
    UPDATE agent_task
       SET status = CASE WHEN due.heard THEN 'COMPLETED' ELSE 'FAILED' END,
           progress = CASE WHEN due.heard THEN 100 ELSE progress END,
           result_data = CASE WHEN due.heard AND NOT due.acted
                              THEN '{\"reportedByAgent\":false}' END,
           error_message = CASE WHEN due.heard THEN error_message
                                ELSE 'approved, but no agent was listening' END,
           completed_at = CASE WHEN due.heard THEN $3 END,
           updated_at = CASE WHEN updated_at > $3 THEN updated_at ELSE $3 END
      FROM due
     WHERE agent_task.tenant_id = due.tenant_id AND agent_task.task_id = due.task_id
       AND agent_task.status = 'IN_PROGRESS'
       AND agent_task.progress = 0 AND agent_task.updated_at <= due.settled_at
       AND due.heard IS NOT DISTINCT FROM due.heard";

/// Sets `task_closed` in the requests of `due`, so that they are not selected again.
const NOTE_CLOSED: &str = "\
    UPDATE hitl_request SET task_closed = TRUE
     WHERE (tenant_id, request_id) IN (SELECT tenant_id, request_id FROM due)";

const CLOSE_OPEN_TASKS: Statement = Statement::new(
    "ledger.close_open_tasks",
    formatcp!(
        "WITH due AS MATERIALIZED ({OPEN_TASKS} FOR UPDATE OF r SKIP LOCKED),
         closed AS ({CLOSE_TASKS}), noted AS ({NOTE_CLOSED})
         SELECT COUNT(*) FROM due"
    ),
)
.on_sqlite(formatcp!("SELECT COUNT(*) FROM ({OPEN_TASKS}) AS due"))
.then(&[
    formatcp!("WITH due AS ({OPEN_TASKS}) {CLOSE_TASKS}"),
    formatcp!("WITH due AS ({OPEN_TASKS}) {NOTE_CLOSED}"),
]);
