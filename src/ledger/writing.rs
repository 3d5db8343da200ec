//! Writes requests: registers, decides, withdraws and expires them. The request and its task change
//! together or not at all.
//!
//! Postgres writes both in one statement, so that a process that dies leaves no open transaction.
//! SQLite runs the same parts one after the other in one transaction.

use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use const_format::{formatcp, str_replace};
use sqlx::error::DatabaseError;

use super::connect::Ledger;
use super::engine::{Statement, Value, values};
use super::error::{LedgerError, Result};
use super::requests::{FIND, REQUEST_COLUMNS, RequestRow};
use crate::domain::approver::{Caller, Role};
use crate::domain::audit::AuditEntry;
use crate::domain::decision::State;
use crate::domain::ids::{RequestId, TaskId, TenantId, UserId};
use crate::domain::printable::printable;
use crate::domain::record::{Candidate, Record};
use crate::domain::request::Origin;
use crate::domain::task::TaskStatus;
use crate::observe::metrics::{self, AuditResult};
use crate::observe::traces;

/// The input of one write of a request.
#[derive(Debug)]
pub struct Writing<'a> {
    /// The request to write.
    pub candidate: &'a Candidate,
    /// The new state of the request: [`State::Pending`] registers it, the others decide or withdraw
    /// it.
    pub state: &'a State,
    /// Who registers, decides or withdraws the request.
    pub caller: &'a Caller,
    /// The time of the write, UTC.
    pub now: DateTime<Utc>,
    /// How long this process holds the lease of the signal: [`LEASE`](super::LEASE), or zero to
    /// leave the signal to the relay.
    pub held_for: TimeDelta,
    /// The `If-Match` header: the entity tag of the content that the decider had seen.
    pub if_match: Option<&'a str>,
    /// If true, nothing is written when the ledger knows a newer request of Redis in the session.
    /// Used when the session's pointer in Redis names no request.
    pub only_newest: bool,
    /// If set, nothing is written when another tenant has a request of Redis in the session that
    /// was made after this time. Used for decisions whose signal goes to the session in Redis.
    pub alone_since: Option<DateTime<Utc>>,
    /// The trace context of the write; see [`traces::current_trace_parent`].
    pub trace_parent: Option<String>,
    /// The entry for the Auth server's audit log.
    pub audit: AuditEntry,
}

impl<'a> Writing<'a> {
    /// A write by this caller, without further conditions, without a lease of the signal, and
    /// without an entry for the audit log.
    #[must_use]
    pub fn new(
        candidate: &'a Candidate,
        state: &'a State,
        caller: &'a Caller,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            candidate,
            state,
            caller,
            now,
            held_for: TimeDelta::zero(),
            if_match: None,
            only_newest: false,
            alone_since: None,
            trace_parent: traces::current_trace_parent(),
            audit: AuditEntry::None,
        }
    }

    /// The user whose tasks the request may use. `None` allows every task of the tenant: for a
    /// request without a user, and for a request that an admin registers.
    fn task_owner(&self) -> Option<&UserId> {
        let may_use_any_task = *self.state == State::Pending && self.caller.role == Role::Admin;
        self.candidate.user.as_ref().filter(|_| !may_use_any_task)
    }

    /// The task's `error_message` after a rejection; `None` if the request is not rejected.
    fn rejection_message(&self) -> Option<String> {
        let decision = self.state.decision()?;
        let reason = decision.verdict.reason()?;
        let by = decision.by.as_str();
        Some(format!("Rejected by {}: {}", printable(by), printable(reason)))
    }

    /// The tenant of the row: the request's tenant, else the tenant of the caller.
    fn tenant(&self) -> &TenantId {
        self.candidate.tenant.as_ref().unwrap_or(&self.caller.tenant)
    }

    /// Counts an audit entry that cannot be sent. Called only after the write has succeeded.
    fn count_unsendable(&self) {
        if self.audit == AuditEntry::Unsendable {
            metrics::audited(AuditResult::Unsendable);
        }
    }

    /// The parameters of a write. `is_task_taken` says that the task id that the request names must
    /// not be used for a new task: an earlier try failed because a task with this id exists.
    fn values(&self, is_task_taken: bool) -> [Value; 39] {
        let Candidate { request, .. } = self.candidate;
        let Caller { user, role, token_id, via, .. } = self.caller;
        let decision = self.state.decision();
        values![
            /* $1 */ &request.id,
            /* $2 */ origin_str(self.candidate.origin),
            /* $3 */ self.tenant(),
            /* $4 */ &request.session,
            /* $5 */ self.candidate.user.as_ref(),
            /* $6 */ &request.action_type,
            /* $7 */ &request.fingerprint,
            /* $8 */ &request.document,
            /* $9 */ request.task.as_ref(),
            /* $10: the id of a task that this service makes */ &TaskId::generate(),
            /* $11 */ self.candidate.created_at,
            /* $12 */ self.candidate.expires_at,
            /* $13 */ self.state.as_str(),
            /* $14: decided_by */ decision.map(|decision| &decision.by),
            /* $15: decided_at */ decision.map(|decision| decision.at),
            /* $16: reason */ decision.and_then(|decision| decision.verdict.reason()),
            /* $17 */ via.source.as_ref(),
            /* $18 */ via.caller_type.as_ref(),
            /* $19 */ via.agent_id.as_ref(),
            /* $20 */ via.trace_id.as_ref(),
            /* $21 */ via.gateway_request_id.as_ref(),
            /* $22 */ self.now,
            /* $23: due_at */ self.now + self.held_for,
            /* $24 */ &request.context,
            /* $25 */ request.message.as_ref(),
            /* $26 */ &request.plan_steps,
            /* $27 */ user,
            /* $28 */ &request.content_hash,
            /* $29 */ self.trace_parent.as_ref(),
            /* $30 */ self.audit.body(),
            /* $31 */ self.if_match,
            /* $32: the error_message of a rejected task */ self.rejection_message(),
            /* $33: the owner of the task; NULL allows any */ self.task_owner(),
            /* $34: the decider's role */ decision.and(Some(role.as_str())),
            /* $35: the id of the decider's token */ decision.and(token_id.as_ref()),
            /* $36: only the newest request of Redis in the session */ self.only_newest,
            /* $37: no other tenant's request of Redis in the session since */
            self.alone_since,
            /* $38 */ is_task_taken,
            /* $39 */ &request.etag,
        ]
    }
}

/// The result of an attempt to decide or withdraw a request.
#[derive(Debug)]
pub enum Recorded {
    /// This caller's decision or withdrawal was written.
    Won(Record),
    /// Nothing was written: the row as it is in the ledger.
    Lost(Record),
    /// Nothing was written: there is a newer request of Redis in the session; see
    /// [`Writing::only_newest`].
    MovedOn,
    /// Nothing was written: there is a request of another tenant in the session; see
    /// [`Writing::alone_since`].
    AnothersSession,
    /// Nothing was written: another tenant has a request with this id.
    IdTaken,
}

/// The result of an attempt to register a request.
#[derive(Debug)]
pub enum Registered {
    /// The request was inserted and is pending.
    New(Record),
    /// The tenant already has a request with this id: the row as it is in the ledger.
    Known(Record),
    /// Nothing was written: the task that the request would use is completed or failed.
    TaskIsOver,
    /// Nothing was written: another tenant has a request with this id. Happens only in a database
    /// whose upgrade is not finished.
    IdTaken,
}

/// The result of one write of a request.
enum Written {
    /// This row was written.
    Row(Box<RequestRow>),
    /// The conditions of the statement were not met: nothing was written.
    Nothing,
    /// Another tenant has a request with this id: nothing was written.
    IdTaken,
}

impl Ledger {
    /// Writes a decision or a withdrawal if the request is pending or not yet in the ledger. Also
    /// changes the task, and marks the signal of a decision as owed: all of these or none. The
    /// caller then holds the lease of the signal for [`Writing::held_for`].
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. After [`LedgerError::OutcomeUnknown`] the
    /// decision may have been written: read the request to find out.
    pub async fn record_outcome(&self, writing: &Writing<'_>) -> Result<Recorded> {
        let began = Instant::now();
        match self.write(RECORD_OUTCOME, writing).await? {
            Written::Row(row) => {
                writing.count_unsendable();
                let is_waiting =
                    row.task_status.as_deref() == Some(TaskStatus::WaitingApproval.as_str());
                let record = self.record(*row, began)?;
                if is_waiting {
                    crash_point!("task-waits");
                    // The task has another request that looked pending. If that one was decided at
                    // the same time, neither statement saw the other's decision. A second look,
                    // after both, sees them.
                    let _released =
                        self.release_task(&record.tenant, &record.task, writing.now).await;
                }
                Ok(Recorded::Won(record))
            }
            Written::Nothing => {
                let id = &writing.candidate.request.id;
                match self.find_request(writing.tenant(), id).await? {
                    Some(standing) if !standing.is_only_seen() => Ok(Recorded::Lost(standing)),
                    Some(standing)
                        if standing.state == State::Expired
                            && !self.is_refused(writing).await? =>
                    {
                        Ok(Recorded::Lost(standing))
                    }
                    // A row that was only seen stood in nobody's way.
                    _ if writing.only_newest && self.has_newer_request(writing).await? => {
                        Ok(Recorded::MovedOn)
                    }
                    _ if writing.alone_since.is_some() => Ok(Recorded::AnothersSession),
                    _ if writing.only_newest => Ok(Recorded::MovedOn),
                    _ => {
                        let problem = "a request was neither decided nor found";
                        Err(LedgerError::Inconsistent(problem.to_owned()))
                    }
                }
            }
            Written::IdTaken => Ok(Recorded::IdTaken),
        }
    }

    /// Whether the ledger knows a newer request of Redis, or another tenant's, in the session, if
    /// the write depends on that.
    async fn is_refused(&self, writing: &Writing<'_>) -> Result<bool> {
        let session = &writing.candidate.request.session;
        let is_shared = match writing.alone_since {
            Some(since) => self.is_shared(session, writing.tenant(), since).await?,
            None => false,
        };
        Ok(is_shared || (writing.only_newest && self.has_newer_request(writing).await?))
    }

    /// Whether the ledger knows a newer request of Redis in the session.
    async fn has_newer_request(&self, writing: &Writing<'_>) -> Result<bool> {
        let newest = self.newest_of_redis(&writing.candidate.request.session).await?;
        let Candidate { request, created_at, .. } = writing.candidate;
        Ok(newest.is_some_and(|newest| newest.id != request.id && newest.asked_at > *created_at))
    }

    /// Inserts a pending request and sets its task to `WAITING_APPROVAL`: both or neither.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. Registering the same request again is safe.
    pub async fn register(&self, writing: &Writing<'_>) -> Result<Registered> {
        let began = Instant::now();
        let known = match self.write(REGISTER, writing).await? {
            Written::Row(row) => {
                writing.count_unsendable();
                return Ok(Registered::New(self.record(*row, began)?));
            }
            Written::Nothing => {
                self.find_request(writing.tenant(), &writing.candidate.request.id).await?
            }
            Written::IdTaken => return Ok(Registered::IdTaken),
        };
        Ok(known.map_or(Registered::TaskIsOver, Registered::Known))
    }

    /// Runs a write. Repeats it when a concurrent write took the same task id, sequence number or
    /// request id.
    async fn write(&self, statement: Statement, writing: &Writing<'_>) -> Result<Written> {
        let writes = async {
            let mut is_task_taken = false;
            loop {
                let written = self.engine.optional(statement, &writing.values(is_task_taken)).await;
                match written {
                    // Nothing was written. If a concurrent write of this tenant made the task, the
                    // next try sees it. If the task is another tenant's, the next try uses a new
                    // id.
                    Err(error) if is_task_id_taken(&error) => {
                        is_task_taken = true;
                        crash_point!("task-taken");
                    }
                    // Nothing was written. The next try takes the next sequence number.
                    Err(error) if is_number_taken(&error) => {}
                    Err(error) if is_anothers_id(&error) || is_id_taken(&error) => {
                        let id = values![writing.tenant(), &writing.candidate.request.id];
                        if self.engine.optional::<RequestRow>(FIND, &id).await?.is_none()
                            && !self.take_over_seen(writing).await?
                        {
                            return Ok(Written::IdTaken);
                        }
                        // A concurrent write of this tenant inserted the row, or the row of a
                        // request that was only seen is this tenant's now. The next try sees it.
                    }
                    Err(error) => return Err(error),
                    Ok(Some(row)) => return Ok(Written::Row(Box::new(row))),
                    Ok(None) => return Ok(Written::Nothing),
                }
            }
        };
        self.engine.call(statement.name(), writes).await
    }

    /// Moves a row that was only seen in Redis to the tenant of this request of Redis: the request
    /// under the key was another tenant's when it was seen. Returns whether there was such a row.
    async fn take_over_seen(&self, writing: &Writing<'_>) -> sqlx::Result<bool> {
        const TAKE_OVER_SEEN: Statement = Statement::new(
            "ledger.take_over_seen",
            "UPDATE hitl_request SET tenant_id = $1
              WHERE request_id = $2 AND tenant_id <> $1 AND origin = 'redis'
                AND status IN ('pending', 'expired')
              RETURNING 1",
        );
        if writing.candidate.origin != Origin::Redis {
            return Ok(false);
        }
        let values = values![writing.tenant(), &writing.candidate.request.id];
        let moved: Option<(i32,)> = self.engine.optional(TAKE_OVER_SEEN, &values).await?;
        Ok(moved.is_some())
    }

    /// Sets a pending request whose `expires_at` has passed to `expired`, and fails its task. From
    /// then on no decision on a registered request can be written. A request that was only seen in
    /// Redis gets no sequence number: no agent is told that it expired. `None` when the request is not pending or
    /// has not expired by `now`.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn expire(
        &self,
        tenant: &TenantId,
        id: &RequestId,
        now: DateTime<Utc>,
    ) -> Result<Option<Record>> {
        let expiring = async {
            loop {
                match self.engine.optional(EXPIRE, &values![id, now, tenant]).await {
                    Err(error) if is_number_taken(&error) => {}
                    expired => return expired,
                }
            }
        };
        let began = Instant::now();
        let row = self.engine.call(EXPIRE.name(), expiring).await?;
        row.map(|row| self.record(row, began)).transpose()
    }
}

fn origin_str(origin: Origin) -> &'static str {
    match origin {
        Origin::Redis => "redis",
        Origin::Http => "http",
    }
}

/// The constraint or unique index of Postgres that the error names.
fn filled_index(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error().and_then(DatabaseError::constraint)
}

/// Whether a concurrent write took the same sequence number in the session.
fn is_number_taken(error: &sqlx::Error) -> bool {
    filled_index(error) == Some("hitl_request_outcome")
}

/// Whether a row with the id of this request exists: of another tenant, or of this tenant by a
/// concurrent write.
fn is_id_taken(error: &sqlx::Error) -> bool {
    filled_index(error)
        .is_some_and(|name| ["hitl_request_pkey", "hitl_request_of_redis"].contains(&name))
}

/// Whether a task with the id that the request names exists: of another tenant, in a database whose
/// upgrade is not finished, or of this tenant by a concurrent write.
fn is_task_id_taken(error: &sqlx::Error) -> bool {
    filled_index(error) == Some("agent_task_pkey")
}

/// Whether another tenant has a request of Redis with this id. Recognises the error of SQLite only.
fn is_anothers_id(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        error.is_unique_violation() && error.message().ends_with(": hitl_request.request_id")
    })
}

/// Finds the existing task that a request uses: the task that the request names, else the oldest
/// task whose `hitl_request_id` is the request. Both must meet [`IS_USABLE`]. The second
/// `tenant_id` condition is `IS NOT DISTINCT FROM`, which matches no index: otherwise Postgres, on
/// a table that was never analysed, would read all tasks of the tenant instead of those of this
/// request. `MATERIALIZED` keeps Postgres from planning the subqueries three times; with three copies
/// it would also plan the statement anew for every write, which takes longer than the write.
const KEPT_TASK: &str = formatcp!(
    "task AS MATERIALIZED (
        SELECT COALESCE(
            (SELECT t.task_id FROM agent_task t
              WHERE t.tenant_id = $3 AND t.task_id = $9 AND {IS_USABLE}),
            (SELECT t.task_id FROM agent_task t
              WHERE t.tenant_id IS NOT DISTINCT FROM $3 AND t.hitl_request_id = $1 AND {IS_USABLE}
              ORDER BY t.created_at LIMIT 1)
        ) AS kept
    )"
);

/// Whether the request may use the task `t` of its tenant: the task is of user $33, if $33 is set,
/// and is not a task that this service made and that is completed or failed.
const IS_USABLE: &str = formatcp!(
    "(t.user_id = $33 OR $33 IS NULL)
     AND NOT (t.status IN ('COMPLETED', 'FAILED') AND {IS_T_OWNED})"
);
/// [`IS_KEPT_OWNED`] for the task `t`.
const IS_T_OWNED: &str = str_replace!(IS_KEPT_OWNED, "task.kept", "t.task_id");

/// Whether this service, and not an agent, made the task `task.kept` of tenant $3. An older release
/// wrote `owned_task` rows with an empty tenant. Such a row is still unambiguous, because task ids
/// are unique across tenants until the upgrade is finished.
const IS_KEPT_OWNED: &str = "(
    (SELECT MAX(r.created_at) FROM hitl_request r
      WHERE r.task_id = task.kept AND r.owns_task
        AND r.tenant_id IS NOT DISTINCT FROM $3) IS NOT NULL
    OR EXISTS (SELECT 1 FROM owned_task o
                WHERE o.task_id = task.kept AND o.tenant_id IN ($3, '')))";

/// The next sequence number in a session, above every number that was ever purged. If a concurrent
/// write takes the same number, the statement fails and is run again.
const NEXT_OUTCOME: &str = "(
    SELECT COALESCE(MAX(taken.outcome), 0) + 1 FROM (
        SELECT MAX(n.outcome) AS outcome FROM hitl_request n
         WHERE n.tenant_id = {tenant} AND n.session_id = {session}
        UNION ALL SELECT highest FROM purged_outcome) AS taken)";
const NEXT_OUTCOME_OF_A_WRITE: &str =
    str_replace!(str_replace!(NEXT_OUTCOME, "{tenant}", "$3"), "{session}", "$4");
const NEXT_OUTCOME_OF_A_ROW: &str = str_replace!(
    str_replace!(NEXT_OUTCOME, "{tenant}", "d.tenant_id"),
    "{session}",
    "d.session_id"
);

/// Inserts the request's row. `task.kept` is the existing task that the request uses, or `NULL`.
/// `owns_task` says whether this service, and not an agent, made the task. A registered request has
/// no signal. But if its task has another pending request when it is decided, its `delivery` is
/// `owed` until the relay has checked whether the task may go on.
const INSERT_REQUEST: &str = formatcp!(
    "INSERT INTO hitl_request (
        request_id, origin, tenant_id, session_id, user_id, action_type, fingerprint, content_hash,
        document, task_id, owns_task, created_at, expires_at, status, decided_by, decided_at,
        reason, caller_source, caller_type, agent_id, trace_id, gateway_request_id, delivery,
        owed_since, due_at, if_match, decider_role, token_id, outcome, settled_at, trace_parent,
        message, etag, asked_at
     )
     SELECT $1, $2, $3, $4, $5, $6, $7, $28, $8,
        COALESCE(
            task.kept,
            CASE WHEN NOT $38
                  AND NOT EXISTS (SELECT 1 FROM agent_task
                                   WHERE tenant_id = $3 AND task_id = $9) THEN $9 END,
            $10
        ),
        task.kept IS NULL OR {IS_KEPT_OWNED}, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
        CASE WHEN $13 IN ('pending', 'cancelled') THEN 'sent'
             WHEN $2 = 'http' AND (
                 SELECT MAX(o.request_id) FROM hitl_request o
                  WHERE o.task_id = task.kept AND o.tenant_id IS NOT DISTINCT FROM $3
                    AND o.request_id <> $1 AND o.status = 'pending'
             ) IS NULL THEN 'sent'
             ELSE 'owed' END, $22, $23, $31, $34, $35,
        CASE WHEN $13 <> 'pending' THEN {NEXT_OUTCOME_OF_A_WRITE} END,
        CASE WHEN $13 <> 'pending' THEN $22 END, $29,
        SUBSTR($25, 1, 2000), $39, $11
     FROM task"
);

/// Takes a column from the decision if the row was only seen in Redis, which the decider has read
/// anew. The row of a registered request keeps its own.
macro_rules! of_seen {
    ($($column:literal),+) => {
        concat!($(
            $column, " = CASE WHEN hitl_request.origin = 'redis' THEN excluded.", $column,
            " ELSE hitl_request.", $column, " END, "
        ),+)
    };
}

/// Writes a decision or a withdrawal. Inserts a new row, or updates a row that nobody has decided or
/// withdrawn: of a registered request if it is pending, has not expired and has the same content; of
/// a request that was only seen in Redis, whatever its row says, because the decider has read Redis.
/// If such a row has expired, then only if that was before this decision began: so its agent has
/// asked again since.
const DECIDE_REQUEST: &str = formatcp!(
    "{INSERT_REQUEST}
     WHERE (NOT $36 OR COALESCE(
               (SELECT MAX(COALESCE(newer.asked_at, newer.created_at)) FROM hitl_request newer
                 WHERE newer.session_id = $4 AND newer.origin <> 'http'
                   AND newer.request_id <> $1), $11) <= $11)
       AND ($37 IS NULL OR
               (SELECT MAX(COALESCE(other.asked_at, other.created_at)) FROM hitl_request other
                 WHERE other.session_id = $4 AND other.origin <> 'http'
                   AND COALESCE(other.asked_at, other.created_at) <= 'infinity'
                   AND COALESCE(other.asked_at, other.created_at) > $37
                   AND other.status NOT IN ('pending', 'expired')
                   AND other.tenant_id <> $3 AND other.request_id <> $1) IS NULL)
     ON CONFLICT (tenant_id, request_id) DO UPDATE SET
        status = excluded.status, decided_by = excluded.decided_by,
        decided_at = excluded.decided_at, reason = excluded.reason,
        caller_source = excluded.caller_source, caller_type = excluded.caller_type,
        agent_id = excluded.agent_id, trace_id = excluded.trace_id,
        gateway_request_id = excluded.gateway_request_id, if_match = excluded.if_match,
        decider_role = excluded.decider_role, token_id = excluded.token_id,
        delivery = excluded.delivery, owed_since = excluded.owed_since,
        due_at = excluded.due_at, attempts = 0, sent_at = NULL, listeners = NULL,
        sent_to = NULL, outcome = excluded.outcome, settled_at = excluded.settled_at,
        {CONTENT_OF_SEEN} asked_at = excluded.asked_at, moved_on = FALSE,
        trace_parent = excluded.trace_parent
      WHERE hitl_request.origin = excluded.origin AND CASE WHEN hitl_request.origin = 'redis'
        THEN hitl_request.status = 'pending'
             OR (hitl_request.status = 'expired'
                 AND hitl_request.settled_at < excluded.settled_at)
        ELSE hitl_request.status = 'pending'
             AND hitl_request.expires_at > excluded.settled_at
             AND hitl_request.content_hash = excluded.content_hash END
     RETURNING {REQUEST_COLUMNS}"
);
const CONTENT_OF_SEEN: &str = of_seen!(
    "session_id",
    "user_id",
    "action_type",
    "fingerprint",
    "content_hash",
    "document",
    "message",
    "etag",
    "task_id",
    "owns_task",
    "expires_at"
);

/// Registers a request: inserts a row, unless the request's task is completed or failed. Postgres
/// cannot turn the subquery into a join that reads all tasks of the tenant.
const REGISTER_REQUEST: &str = formatcp!(
    "{INSERT_REQUEST}
     WHERE COALESCE((SELECT kept.status FROM agent_task kept
                      WHERE kept.tenant_id = $3 AND kept.task_id = task.kept), '')
           NOT IN ('COMPLETED', 'FAILED')
     ON CONFLICT (tenant_id, request_id) DO NOTHING
     RETURNING {REQUEST_COLUMNS}"
);

/// Inserts or updates the task of the request in `written`. A completed or failed task keeps its
/// status. A task with another pending request waits on. A rejection or a withdrawal fails the task
/// only if this service made it.
const WRITE_TASK: &str = "\
    INSERT INTO agent_task (
        task_id, user_id, tenant_id, task_type, status, progress, description, input_data,
        plan_steps, hitl_request_id, error_message, started_at, created_at, updated_at
     )
     SELECT d.task_id, COALESCE(d.user_id, $27), d.tenant_id, SUBSTR(d.action_type, 1, 200),
        CASE
            WHEN d.status = 'pending' THEN 'WAITING_APPROVAL'
            WHEN (
                SELECT MAX(o.request_id) FROM hitl_request o
                 WHERE o.task_id = d.task_id AND o.tenant_id IS NOT DISTINCT FROM d.tenant_id
                   AND o.request_id <> d.request_id AND o.status = 'pending' AND o.expires_at > $22
            ) IS NOT NULL THEN 'WAITING_APPROVAL'
            WHEN d.status IN ('rejected', 'cancelled') AND d.owns_task THEN 'FAILED'
            ELSE 'IN_PROGRESS'
        END,
        0, $25, $24, $26, d.request_id,
        CASE WHEN d.status = 'rejected' THEN $32
             WHEN d.status = 'cancelled' AND d.owns_task
                  THEN 'Withdrawn by its agent' END,
        $22, d.created_at, $22
     FROM written AS d WHERE true
     ON CONFLICT (tenant_id, task_id) DO UPDATE SET
        status = CASE WHEN agent_task.status IN ('COMPLETED', 'FAILED')
                      THEN agent_task.status ELSE excluded.status END,
        plan_steps = CASE WHEN agent_task.plan_steps = '[]'
                          THEN excluded.plan_steps ELSE agent_task.plan_steps END,
        hitl_request_id = CASE WHEN excluded.status = 'WAITING_APPROVAL' AND $13 <> 'pending'
                               THEN agent_task.hitl_request_id
                               ELSE excluded.hitl_request_id END,
        error_message = COALESCE(excluded.error_message, agent_task.error_message),
        started_at = COALESCE(agent_task.started_at, excluded.started_at),
        updated_at = CASE WHEN agent_task.updated_at > excluded.updated_at
                          THEN agent_task.updated_at ELSE excluded.updated_at END";

/// Inserts the entry for the Auth server's audit log, if there is one, into the outbox.
const WRITE_AUDIT: &str = "\
    INSERT INTO hitl_outbox (kind, target, tenant_id, request_id, payload, created_at, due_at)
     SELECT 'audit', 'auth', d.tenant_id, d.request_id, $30, $22, $22
       FROM written AS d WHERE $30 IS NOT NULL";

/// Reads the row that the statement before has written, for the later statements of SQLite.
const WRITTEN: &str = formatcp!(
    "written AS (SELECT {REQUEST_COLUMNS} FROM hitl_request
                  WHERE tenant_id = $3 AND request_id = $1)"
);
/// The statements of SQLite after the request was written.
const THEN_WRITE: &[&str] =
    &[formatcp!("WITH {WRITTEN} {WRITE_TASK}"), formatcp!("WITH {WRITTEN} {WRITE_AUDIT}")];

/// The end of a statement of Postgres, after `written`: writes the task and the audit entry, and
/// returns the row.
const AND_THE_REST: &str = formatcp!(
    "touched AS ({WRITE_TASK} RETURNING status), audited AS ({WRITE_AUDIT})
     SELECT written.*, touched.status AS task_status FROM written, touched"
);

const RECORD_OUTCOME: Statement = Statement::new(
    "ledger.record_outcome",
    formatcp!("WITH {KEPT_TASK}, written AS ({DECIDE_REQUEST}), {AND_THE_REST}"),
)
.on_sqlite(formatcp!("WITH {KEPT_TASK} {DECIDE_REQUEST}"))
.then(THEN_WRITE);

const REGISTER: Statement = Statement::new(
    "ledger.register",
    formatcp!("WITH {KEPT_TASK}, written AS ({REGISTER_REQUEST}), {AND_THE_REST}"),
)
.on_sqlite(formatcp!("WITH {KEPT_TASK} {REGISTER_REQUEST}"))
.then(THEN_WRITE);

/// Expires a pending request. $1 is its id, $2 the current time, $3 its tenant.
const EXPIRE_REQUEST: &str = formatcp!(
    "UPDATE hitl_request AS d
        SET status = 'expired', settled_at = $2, delivery = 'sent',
            outcome = CASE WHEN origin = 'http' THEN {NEXT_OUTCOME_OF_A_ROW} ELSE outcome END
      WHERE tenant_id = $3 AND request_id = $1 AND status = 'pending' AND expires_at <= $2
     RETURNING {REQUEST_COLUMNS}"
);

/// Fails the task of the expired request, unless the task waits for another pending request.
const EXPIRE_TASK: &str = "\
    UPDATE agent_task
        SET status = 'FAILED', updated_at = CASE WHEN updated_at > $2 THEN updated_at ELSE $2 END,
            error_message = 'Nobody decided on ' || $1 || ' in time'
      WHERE tenant_id = $3 AND task_id = (SELECT task_id FROM written)
        AND status NOT IN ('COMPLETED', 'FAILED')
        AND (
            SELECT MAX(o.request_id) FROM hitl_request o
             WHERE o.task_id = agent_task.task_id
               AND o.tenant_id IS NOT DISTINCT FROM $3 AND o.request_id <> $1
               AND o.status = 'pending' AND o.expires_at > $2
        ) IS NULL";

const EXPIRE: Statement = Statement::new(
    "ledger.expire",
    formatcp!(
        "WITH written AS ({EXPIRE_REQUEST}), touched AS ({EXPIRE_TASK}) SELECT * FROM written"
    ),
)
.on_sqlite(EXPIRE_REQUEST)
.then(&[formatcp!("WITH {WRITTEN} {EXPIRE_TASK}")]);
