//! Requests: the statements that read them. Every row (`request_row`) is completed from its delivery
//! receipt. Decisions and registrations are in `writing`.

use std::time::Instant;

use chrono::{DateTime, Utc};
use const_format::{formatcp, str_replace};

use super::connect::Ledger;
use super::engine::{Statement, Value, values};
use super::error::Result;
use super::request_row::{AND_DELIVERY, AND_DELIVERY_ON_SQLITE};
pub(super) use super::request_row::{ASKED_AT, CURRENT_COLUMNS, REQUEST_COLUMNS, RequestRow};
use crate::domain::approver::{Caller, Role};
use crate::domain::decision::{Decision, Verdict};
use crate::domain::ids::{RequestId, SessionId, TaskId, TenantId, UserId};
use crate::domain::record::Record;

/// A pending request whose time is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// The tenant of the request.
    pub tenant: TenantId,
    /// The request.
    pub id: RequestId,
    /// Its session.
    pub session: SessionId,
    /// Its task.
    pub task: TaskId,
}

impl Overdue {
    /// This request, whose time is over.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        Self {
            tenant: record.tenant.clone(),
            id: record.id.clone(),
            session: record.session.clone(),
            task: record.task.clone(),
        }
    }
}

/// The work that is still to do, of all tenants. Counts stop at 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Backlog {
    /// The number of owed deliveries.
    pub owed: i64,
    /// The earliest `owed_since` of the counted deliveries.
    pub owed_since: Option<DateTime<Utc>>,
    /// The number of pending requests.
    pub pending: i64,
    /// The earliest `created_at` of the counted requests.
    pub pending_since: Option<DateTime<Utc>>,
}

impl Ledger {
    /// Turns a row into a [`Record`], and completes it from its delivery receipt. `began` is when
    /// the read of the row began.
    pub(super) fn record(&self, row: RequestRow, began: Instant) -> Result<Record> {
        let mut record = row.into_record()?;
        self.receipts.apply(&mut record, began);
        Ok(record)
    }

    /// Runs a statement that returns at most one request.
    pub(super) async fn request(
        &self,
        statement: Statement,
        values: &[Value],
    ) -> Result<Option<Record>> {
        let began = Instant::now();
        let row = self.engine.fetch_optional(statement, values).await?;
        row.map(|row| self.record(row, began)).transpose()
    }

    /// Runs a statement that returns requests.
    pub(super) async fn requests(
        &self,
        statement: Statement,
        values: &[Value],
    ) -> Result<Vec<Record>> {
        let began = Instant::now();
        let rows = self.engine.fetch_all(statement, values).await?;
        rows.into_iter().map(|row| self.record(row, began)).collect()
    }

    /// The request with this id in this tenant.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn find_request(&self, tenant: &TenantId, id: &RequestId) -> Result<Option<Record>> {
        self.request(FIND, &values![tenant, id]).await
    }

    /// The request of Redis with this id, of any tenant: ids of requests of Redis are unique across
    /// tenants.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn find_request_of_redis(&self, id: &RequestId) -> Result<Option<Record>> {
        const FIND: &str = formatcp!(
            "SELECT {CURRENT_COLUMNS} FROM hitl_request AS r {AND_DELIVERY}
              WHERE r.request_id = $1 AND r.origin = 'redis'"
        );
        const FIND_OF_REDIS: Statement = Statement::new("ledger.find_request_of_redis", FIND)
            .on_sqlite(str_replace!(FIND, AND_DELIVERY, AND_DELIVERY_ON_SQLITE));
        self.request(FIND_OF_REDIS, &values![id]).await
    }

    /// The newest request of Redis in this session that the ledger knows, of any tenant: tenants
    /// share the session's key in Redis. Requests that were only seen count, too: an agent that has
    /// made a newer request does not wait for an older one.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn newest_of_redis(&self, session: &SessionId) -> Result<Option<Record>> {
        const FIND: &str = formatcp!(
            "SELECT {CURRENT_COLUMNS} FROM hitl_request AS r {AND_DELIVERY}
              WHERE r.session_id = $1 AND r.origin <> 'http'
              ORDER BY {ASKED_AT} DESC, r.owed_since DESC LIMIT 1"
        );
        const NEWEST: Statement = Statement::new("ledger.newest_of_redis", FIND)
            .on_sqlite(str_replace!(FIND, AND_DELIVERY, AND_DELIVERY_ON_SQLITE));
        self.request(NEWEST, &values![session]).await
    }

    /// Whether another tenant has a request of Redis in this session that was made after `since`,
    /// and that was decided or withdrawn. Requests that were only seen do not count: whoever can
    /// write a key to Redis could otherwise refuse the decisions of another tenant.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn is_shared(
        &self,
        session: &SessionId,
        tenant: &TenantId,
        since: DateTime<Utc>,
    ) -> Result<bool> {
        const IS_SHARED: Statement = Statement::new(
            "ledger.is_shared",
            formatcp!(
                "SELECT (SELECT MAX({ASKED_AT}) FROM hitl_request
                          WHERE session_id = $1 AND origin <> 'http'
                            AND {ASKED_AT} <= 'infinity' AND {ASKED_AT} > $3
                            AND tenant_id <> $2 AND status NOT IN ('pending', 'expired')
                        ) IS NOT NULL"
            ),
        );
        let (is_shared,) =
            self.engine.fetch_one(IS_SHARED, &values![session, tenant, since]).await?;
        Ok(is_shared)
    }

    /// The decisions of these requests of Redis, each with its session. Undecided requests, and
    /// rows that cannot be read, are left out.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn decisions_of(
        &self,
        ids: &[RequestId],
    ) -> Result<Vec<(RequestId, SessionId, Decision)>> {
        type Row = (String, String, String, String, DateTime<Utc>, Option<String>);
        const COLUMNS: &str = "request_id, session_id, status, decided_by, decided_at, reason";
        const DECISIONS: Statement = Statement::new(
            "ledger.decisions_of",
            formatcp!(
                "SELECT {COLUMNS} FROM hitl_request
                  WHERE request_id = ANY($1) AND origin = 'redis' AND decided_at IS NOT NULL"
            ),
        )
        .on_sqlite(formatcp!(
            "SELECT {COLUMNS} FROM hitl_request
              WHERE request_id IN (SELECT value FROM json_each($1)) AND origin = 'redis'
                AND decided_at IS NOT NULL"
        ));
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.engine.fetch_all(DECISIONS, &values![ids]).await?;
        let readable = |(id, session, status, by, at, reason): Row| {
            let verdict = match (&*status, reason) {
                ("approved", None) => Verdict::Approve,
                ("rejected", Some(reason)) => Verdict::Reject { reason },
                _ => return None,
            };
            let by = UserId::parse(by).ok()?;
            let (id, session) = (RequestId::parse(id).ok()?, SessionId::parse(session).ok()?);
            Some((id, session, Decision { verdict, by, at }))
        };
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// The trace context in which the request was registered, decided or withdrawn, whichever was
    /// last; `None` if that was not traced.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer, or has no such request.
    pub async fn trace_parent(&self, tenant: &TenantId, id: &RequestId) -> Result<Option<String>> {
        const TRACE_PARENT: Statement = Statement::new(
            "ledger.trace_parent",
            "SELECT trace_parent FROM hitl_request WHERE tenant_id = $1 AND request_id = $2",
        );
        let (trace_parent,) = self.engine.fetch_one(TRACE_PARENT, &values![tenant, id]).await?;
        Ok(trace_parent)
    }

    /// When the agent of a request was answered over HTTP; `None` if it was not, or there is no such
    /// request.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn heard_at(
        &self,
        tenant: &TenantId,
        id: &RequestId,
    ) -> Result<Option<DateTime<Utc>>> {
        const HEARD_AT: Statement = Statement::new(
            "ledger.heard_at",
            "SELECT heard_at FROM hitl_request WHERE tenant_id = $1 AND request_id = $2",
        );
        let row: Option<(Option<DateTime<Utc>>,)> =
            self.engine.fetch_optional(HEARD_AT, &values![tenant, id]).await?;
        Ok(row.and_then(|(heard_at,)| heard_at))
    }

    /// Up to `limit` pending requests that have expired by `now`, the earliest `expires_at` first.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn overdue(&self, now: DateTime<Utc>, limit: i64) -> Result<Vec<Overdue>> {
        const OVERDUE: Statement = Statement::new(
            "ledger.overdue",
            "SELECT tenant_id, request_id, session_id, task_id FROM hitl_request
              WHERE status = 'pending' AND decided_at IS NULL
                AND expires_at >= '-infinity' AND expires_at <= $1
              ORDER BY expires_at LIMIT $2",
        );
        let rows = self.engine.fetch_all(OVERDUE, &values![now, limit]).await?;
        let readable = |(tenant, id, session, task): (String, String, String, String)| {
            Some(Overdue {
                tenant: TenantId::parse(tenant).ok()?,
                id: RequestId::parse(id).ok()?,
                session: SessionId::parse(session).ok()?,
                task: TaskId::parse(task).ok()?,
            })
        };
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// Stores in `acted_at` that the agent has acted on the outcome. The first time is kept. If the
    /// request was approved, also completes the task that this service made for the request. `None`
    /// when the caller's tenant has no such request, the request is pending, or the request is
    /// another user's and the caller is no admin.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. Acknowledging again is safe.
    pub async fn acknowledge(
        &self,
        caller: &Caller,
        id: &RequestId,
        now: DateTime<Utc>,
    ) -> Result<Option<Record>> {
        const NOTE: &str = "UPDATE hitl_request SET acted_at = COALESCE(acted_at, $3)
              WHERE request_id = $1 AND tenant_id = $2 AND status <> 'pending'
                AND (user_id = $4 OR $5)";
        const ACKNOWLEDGE: Statement = Statement::new(
            "ledger.acknowledge",
            formatcp!(
                "WITH r AS ({NOTE} RETURNING {REQUEST_COLUMNS})
                 SELECT {CURRENT_COLUMNS} FROM r {AND_DELIVERY}"
            ),
        )
        .on_sqlite(str_replace!(
            formatcp!(
                "SELECT {CURRENT_COLUMNS} FROM hitl_request AS r {AND_DELIVERY_ON_SQLITE}
                  WHERE r.request_id = $1 AND r.tenant_id = $2 AND r.status <> 'pending'
                    AND (r.user_id = $4 OR $5)"
            ),
            "r.acted_at",
            "COALESCE(r.acted_at, $3) AS acted_at"
        ))
        .then(&[NOTE]);
        let tenant = &caller.tenant;
        let is_admin = caller.role == Role::Admin;
        let record =
            self.request(ACKNOWLEDGE, &values![id, tenant, now, &caller.user, is_admin]).await?;
        if record.as_ref().is_some_and(Record::is_approved) {
            // If this fails, another acknowledgement completes the task.
            self.complete_acted_task(tenant, id, now).await?;
        }
        Ok(record)
    }

    /// Stores in `heard_at` that the agent of an approved registered request has asked for the
    /// decision. The first time is kept.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn note_asked(
        &self,
        tenant: &TenantId,
        user: &UserId,
        id: &RequestId,
        now: DateTime<Utc>,
    ) -> Result<()> {
        const NOTE_ASKED: Statement = Statement::new(
            "ledger.note_asked",
            "UPDATE hitl_request SET heard_at = $3
              WHERE request_id = $1 AND tenant_id = $2 AND origin = 'http' AND user_id = $4
                AND status = 'approved' AND heard_at IS NULL",
        );
        self.engine.execute(NOTE_ASKED, &values![id, tenant, now, user]).await.map(drop)
    }

    /// Up to `limit` closed requests of a session with sequence numbers above `after`, in the order
    /// of their numbers. Leaves out requests of Redis whose signal was superseded. With
    /// `open_since`, only requests that were closed after that time and that no agent has
    /// acknowledged.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn outcomes(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        after: i64,
        open_since: Option<DateTime<Utc>>,
        limit: i64,
    ) -> Result<Vec<Record>> {
        // A form of `settled_at` that matches no index: otherwise Postgres might read everything that
        // was closed lately instead of the session's.
        const READ: &str = formatcp!(
            "SELECT {CURRENT_COLUMNS} FROM hitl_request AS r {AND_DELIVERY}
              WHERE r.tenant_id = $1 AND r.session_id = $2 AND r.outcome > $3
                AND r.status <> 'pending'
                AND (COALESCE(d.delivery, r.delivery) <> 'superseded' OR r.origin = 'http')
                AND ($4 IS NULL
                     OR (r.acted_at IS NULL AND COALESCE(r.settled_at, r.created_at) > $4))
              ORDER BY r.outcome LIMIT $5"
        );
        const OUTCOMES: Statement = Statement::new("ledger.outcomes", READ)
            .on_sqlite(str_replace!(READ, AND_DELIVERY, AND_DELIVERY_ON_SQLITE));
        self.requests(OUTCOMES, &values![tenant, session, after, open_since, limit]).await
    }

    /// The highest sequence number in a session; 0 if no request is closed.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn last_outcome(&self, tenant: &TenantId, session: &SessionId) -> Result<i64> {
        const LAST_OUTCOME: Statement = Statement::new(
            "ledger.last_outcome",
            "SELECT COALESCE(MAX(outcome), 0) FROM hitl_request
              WHERE tenant_id = $1 AND session_id = $2",
        );
        let (last,) = self.engine.fetch_one(LAST_OUTCOME, &values![tenant, session]).await?;
        Ok(last)
    }

    /// The requests of all tenants that were closed after `since`, the latest first. At most 10,000.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn settled_since(
        &self,
        since: DateTime<Utc>,
    ) -> Result<Vec<(SessionId, TenantId, RequestId)>> {
        const SETTLED: Statement = Statement::new(
            "ledger.settled_since",
            "SELECT session_id, tenant_id, request_id FROM hitl_request
              WHERE settled_at <= 'infinity' AND settled_at > $1
              ORDER BY settled_at DESC LIMIT 10000",
        );
        let rows = self.engine.fetch_all(SETTLED, &values![since]).await?;
        let readable = |(session, tenant, id): (String, String, String)| {
            let (session, tenant) =
                (SessionId::parse(session).ok()?, TenantId::parse(tenant).ok()?);
            Some((session, tenant, RequestId::parse(id).ok()?))
        };
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// Counts the work that is still to do, of all tenants.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn backlog(&self) -> Result<Backlog> {
        const BACKLOG: Statement = Statement::new(
            "ledger.backlog",
            "SELECT owed.number AS owed, owed.since AS owed_since,
                    pending.number AS pending, pending.since AS pending_since
               FROM (SELECT COUNT(*) AS number, MIN(owed_since) AS since
                       FROM (SELECT owed_since FROM hitl_delivery
                              WHERE delivery = 'owed' AND due_at >= '-infinity'
                              ORDER BY due_at LIMIT 10000) AS bounded) owed,
                    (SELECT COUNT(*) AS number, MIN(created_at) AS since
                       FROM (SELECT created_at FROM hitl_request
                              WHERE status = 'pending' AND decided_at IS NULL
                              ORDER BY expires_at LIMIT 10000) AS bounded) pending",
        );
        self.engine.fetch_one(BACKLOG, &[]).await
    }
}

const FIND_ONE: &str = formatcp!(
    "SELECT {CURRENT_COLUMNS} FROM hitl_request AS r {AND_DELIVERY}
      WHERE r.tenant_id = $1 AND r.request_id = $2"
);
/// Reads the request with an id in a tenant.
pub(super) const FIND: Statement = Statement::new("ledger.find_request", FIND_ONE)
    .on_sqlite(str_replace!(FIND_ONE, AND_DELIVERY, AND_DELIVERY_ON_SQLITE));
