//! Requests that were only seen in Redis: rows of `hitl_request` with the origin `redis` and the status
//! `pending`, or `expired` once the key has gone. Nobody has decided them.
//!
//! Such a row owes nothing and makes no task. `task_id` is an id that no task has. A decision reads
//! Redis and overwrites the row: see `writing`. All statements here write many rows, in the order of
//! the key, and leave every row alone that somebody has decided, withdrawn or registered. Two replicas
//! may run them at once.

use chrono::{DateTime, Utc};
use const_format::formatcp;

use super::connect::Ledger;
use super::engine::{Statement, Value, values};
use super::error::{LedgerError, Result};
use super::request_row::{DELIVERY, SENT_OR_CLOSED_AT};
use super::requests::{REQUEST_COLUMNS, RequestRow};
use crate::domain::ids::{RequestId, SessionId, TaskId, TenantId, UserId};
use crate::domain::notice::Cause;
use crate::domain::record::{Record, Ruling};
use crate::domain::request::ApprovalRequest;

/// A pending request as it was found in Redis.
#[derive(Clone, Debug)]
pub struct SeenRequest {
    /// The request.
    pub request: ApprovalRequest,
    /// The tenant that the request names, else the one that its session names.
    pub tenant: TenantId,
    /// The user that the request names, else the one that its session names.
    pub user: Option<UserId>,
    /// When the request was first seen, UTC.
    pub seen_at: DateTime<Utc>,
    /// When its agent made it, UTC; see [`Record::asked_at`].
    pub asked_at: DateTime<Utc>,
    /// When the request expires, UTC.
    pub expires_at: DateTime<Utc>,
    /// A time before Redis was read, UTC.
    pub read_at: DateTime<Utc>,
    /// See [`Record::has_moved_on`].
    pub has_moved_on: bool,
    /// The replication id of the Redis that has the request.
    pub replication_id: Option<String>,
    /// What the policy file says of it.
    pub ruling: Ruling,
}

/// What the ledger says of a pending request that was only seen in Redis, without its document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRow {
    /// The request.
    pub id: RequestId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its user.
    pub user: Option<UserId>,
    /// Its session.
    pub session: SessionId,
    /// See [`ApprovalRequest::content_hash`].
    pub content_hash: String,
    /// When its agent made it, UTC.
    pub asked_at: DateTime<Utc>,
    /// When the request expires, UTC.
    pub expires_at: DateTime<Utc>,
    /// See [`Record::has_moved_on`].
    pub has_moved_on: bool,
    /// The replication id of the Redis that had the request.
    pub replication_id: Option<String>,
}

/// A key that has gone from Redis.
#[derive(Clone, Debug)]
pub struct GoneRequest {
    /// The tenant of the row.
    pub tenant: TenantId,
    /// The request.
    pub id: RequestId,
    /// A time before Redis was read, UTC.
    pub read_at: DateTime<Utc>,
    /// The replication id of the Redis that has no such key.
    pub replication_id: String,
}

/// A request that is pending in Redis, and that the ledger may have decided.
#[derive(Clone, Debug)]
pub struct AskedAgain {
    /// The request.
    pub id: RequestId,
    /// The tenant that it names in Redis.
    pub tenant: TenantId,
    /// See [`ApprovalRequest::content_hash`].
    pub content_hash: String,
    /// When the pending request in Redis expires, UTC.
    pub until: DateTime<Utc>,
    /// A time before Redis was read, UTC.
    pub read_at: DateTime<Utc>,
}

#[derive(sqlx::FromRow)]
struct SeenColumns {
    request_id: String,
    tenant_id: String,
    user_id: Option<String>,
    session_id: String,
    content_hash: String,
    asked_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    moved_on: bool,
    seen_on: Option<String>,
}

impl Ledger {
    /// Writes rows for requests that were seen in Redis: inserts them, replaces the content of rows
    /// that were only seen, and makes expired ones pending again whose keys were read after they
    /// expired. Returns the ids of the rows that were written. The others are decided, withdrawn, or
    /// registered over HTTP, or another tenant has decided the request under this key.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. Writing again is safe.
    pub async fn write_seen(&self, seen: &[SeenRequest]) -> Result<Vec<RequestId>> {
        let mut sorted = seen.iter().collect::<Vec<_>>();
        sorted.sort_unstable_by_key(|seen| (seen.tenant.as_str(), seen.request.id.as_str()));
        let keys = sorted.iter().map(|seen| values![&seen.tenant, &seen.request.id].to_vec());
        let keys = keys.collect::<Vec<_>>();
        let notice = self.tells().then(|| Cause::default().json());
        let rows = sorted.iter().map(|seen| seen_values(seen, notice.as_ref()));
        let rows = rows.collect::<Vec<_>>();
        for seen in seen {
            self.know_binding(&seen.ruling).await?;
        }
        self.engine.execute_many(REMOVE_OF_OTHERS, &keys).await?;
        let written = match self.engine.fetch_many::<(String,)>(WRITE_SEEN, &rows).await {
            // One row is in the way of this statement, or locked: each is written by itself.
            Err(LedgerError::Inconsistent(_) | LedgerError::Locked(_)) => {
                let mut written = Vec::new();
                for row in rows {
                    match self.engine.fetch_many::<(String,)>(WRITE_SEEN, &[row]).await {
                        Err(LedgerError::Inconsistent(_) | LedgerError::Locked(_)) => {}
                        one => written.extend(one?),
                    }
                }
                written
            }
            written => written?,
        };
        Ok(written.into_iter().filter_map(|(id,)| RequestId::parse(id).ok()).collect())
    }

    /// Stores what has changed of seen requests besides their content: whether the session has moved
    /// on, the times, and the Redis that has them. Returns the ids of the rows that were written. The
    /// others are no longer pending, or somebody has them locked.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. Writing again is safe.
    pub async fn refresh_seen(&self, rows: &[SeenRow]) -> Result<Vec<RequestId>> {
        let mut sorted = rows.iter().collect::<Vec<_>>();
        sorted.sort_unstable_by_key(|row| (row.tenant.as_str(), row.id.as_str()));
        let values = |row: &SeenRow| {
            values![
                &row.tenant,
                &row.id,
                i64::from(row.has_moved_on),
                row.asked_at,
                row.expires_at,
                row.replication_id.as_ref(),
            ]
            .to_vec()
        };
        let rows = sorted.into_iter().map(values).collect::<Vec<_>>();
        let written: Vec<(String,)> = self.engine.fetch_many(REFRESH_SEEN, &rows).await?;
        Ok(written.into_iter().filter_map(|(id,)| RequestId::parse(id).ok()).collect())
    }

    /// Sets pending requests to `expired` whose keys have gone from the Redis that had them. Leaves
    /// rows alone that were last seen on another Redis: it may have lost its data. Returns the
    /// requests that were closed.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. Closing again is safe.
    pub async fn close_gone(
        &self,
        gone: &[GoneRequest],
        now: DateTime<Utc>,
    ) -> Result<Vec<Record>> {
        let mut sorted = gone.iter().collect::<Vec<_>>();
        sorted.sort_unstable_by_key(|gone| (gone.tenant.as_str(), gone.id.as_str()));
        let notice = self.tells().then(|| Cause::default().json());
        let values = |gone: &GoneRequest| {
            values![
                &gone.tenant,
                &gone.id,
                gone.read_at,
                &gone.replication_id,
                now,
                notice.as_ref(),
            ]
            .to_vec()
        };
        let rows = sorted.into_iter().map(values).collect::<Vec<_>>();
        let began = std::time::Instant::now();
        let closed: Vec<RequestRow> = self.engine.fetch_many(CLOSE_GONE, &rows).await?;
        closed.into_iter().map(|row| self.record(row, began)).collect()
    }

    /// Those of these requests of Redis that are pending in the ledger.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn still_pending(&self, ids: &[RequestId]) -> Result<Vec<RequestId>> {
        const STILL_PENDING: Statement = Statement::new(
            "ledger.still_pending",
            "SELECT request_id FROM hitl_request
              WHERE request_id = ANY($1) AND origin = 'redis' AND status = 'pending'",
        )
        .on_sqlite(
            "SELECT request_id FROM hitl_request
              WHERE request_id IN (SELECT value FROM json_each($1)) AND origin = 'redis'
                AND status = 'pending'",
        );
        let pending: Vec<(String,)> = self.engine.fetch_all(STILL_PENDING, &values![ids]).await?;
        Ok(pending.into_iter().filter_map(|(id,)| RequestId::parse(id).ok()).collect())
    }

    /// Notes which decided requests are pending in Redis again, with the same content, although their
    /// answers were sent before Redis was read: their agents have asked again. Returns their ids.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. Noting again is safe.
    pub async fn note_asked_again(&self, asked: &[AskedAgain]) -> Result<Vec<RequestId>> {
        let mut sorted = asked.iter().collect::<Vec<_>>();
        sorted.sort_unstable_by_key(|asked| (asked.tenant.as_str(), asked.id.as_str()));
        let values = |asked: &AskedAgain| {
            values![&asked.tenant, &asked.id, &asked.content_hash, asked.until, asked.read_at]
                .to_vec()
        };
        let rows = sorted.into_iter().map(values).collect::<Vec<_>>();
        let noted: Vec<(String,)> = self.engine.fetch_many(NOTE_ASKED_AGAIN, &rows).await?;
        Ok(noted.into_iter().filter_map(|(id,)| RequestId::parse(id).ok()).collect())
    }

    /// Notes that these requests are no longer pending in Redis: [`Record::asked_again_until`] is
    /// `None` from now on.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. Noting again is safe.
    pub async fn forget_asked_again(&self, ids: &[RequestId]) -> Result<()> {
        const FORGET: Statement = Statement::new(
            "ledger.forget_asked_again",
            "UPDATE hitl_request SET asked_again_until = NULL
              WHERE request_id = ANY($1) AND origin = 'redis' AND asked_again_until IS NOT NULL",
        )
        .on_sqlite(
            "UPDATE hitl_request SET asked_again_until = NULL
              WHERE request_id IN (SELECT value FROM json_each($1)) AND origin = 'redis'
                AND asked_again_until IS NOT NULL",
        );
        self.engine.execute(FORGET, &values![ids]).await.map(drop)
    }

    /// Up to `limit` pending requests that were only seen in Redis, in the order of their ids, after
    /// the id `after`.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn seen_after(&self, after: &str, limit: i64) -> Result<Vec<SeenRow>> {
        // `origin <> 'http'`, because `origin = 'redis'` would match the index
        // `hitl_request_of_redis`, and Postgres might read all requests of Redis.
        const SEEN_AFTER: Statement = Statement::new(
            "ledger.seen_after",
            "SELECT request_id, tenant_id, user_id, session_id, content_hash,
                    COALESCE(asked_at, created_at) AS asked_at, expires_at, moved_on, seen_on
               FROM hitl_request
              WHERE origin <> 'http' AND status = 'pending' AND request_id > $1
              ORDER BY request_id LIMIT $2",
        );
        let rows: Vec<SeenColumns> =
            self.engine.fetch_all(SEEN_AFTER, &values![after, limit]).await?;
        let readable = |row: SeenColumns| {
            Some(SeenRow {
                id: RequestId::parse(row.request_id).ok()?,
                tenant: TenantId::parse(row.tenant_id).ok()?,
                user: row.user_id.map(UserId::parse).transpose().ok()?,
                session: SessionId::parse(row.session_id).ok()?,
                content_hash: row.content_hash,
                asked_at: row.asked_at,
                expires_at: row.expires_at,
                has_moved_on: row.moved_on,
                replication_id: row.seen_on,
            })
        };
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// Takes or keeps the lease `name` for `holder` until `until`. Returns whether `holder` has it: no
    /// other holder has it at `now`.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. Then `holder` may have the lease.
    pub async fn hold_lease(
        &self,
        name: &str,
        holder: &str,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> Result<bool> {
        const HOLD_LEASE: Statement = Statement::new(
            "ledger.hold_lease",
            "INSERT INTO hitl_lease (name, holder, held_until) VALUES ($1, $2, $4)
             ON CONFLICT (name) DO UPDATE
                SET holder = excluded.holder, held_until = excluded.held_until
              WHERE hitl_lease.holder = excluded.holder OR hitl_lease.held_until <= $3
             RETURNING holder",
        );
        let held: Option<(String,)> =
            self.engine.fetch_optional(HOLD_LEASE, &values![name, holder, now, until]).await?;
        Ok(held.is_some())
    }

    /// Gives the lease `name` back if `holder` has it.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. The lease then expires by itself.
    pub async fn give_lease_back(&self, name: &str, holder: &str) -> Result<()> {
        const GIVE_LEASE_BACK: Statement = Statement::new(
            "ledger.give_lease_back",
            "DELETE FROM hitl_lease WHERE name = $1 AND holder = $2",
        );
        self.engine.execute(GIVE_LEASE_BACK, &values![name, holder]).await.map(drop)
    }
}

/// The values of a row for [`WRITE_SEEN`].
fn seen_values(seen: &SeenRequest, notice: Option<&String>) -> Vec<Value> {
    let SeenRequest { request, ruling, .. } = seen;
    values![
        /* $1 */ &request.id,
        /* $2 */ &seen.tenant,
        /* $3 */ &request.session,
        /* $4 */ seen.user.as_ref(),
        /* $5 */ &request.action_type,
        /* $6 */ &request.fingerprint,
        /* $7 */ &request.content_hash,
        /* $8 */ &request.document,
        /* $9 */ &TaskId::generate(),
        /* $10 */ seen.seen_at,
        /* $11 */ seen.asked_at,
        /* $12 */ seen.expires_at,
        /* $13 */ seen.read_at,
        /* $14 */ i64::from(seen.has_moved_on),
        /* $15 */ seen.replication_id.as_ref(),
        /* $16 */ request.message.as_ref(),
        /* $17 */ &request.etag,
        /* $18 */ ruling.rule.as_ref(),
        /* $19 */ ruling.version.as_ref(),
        /* $20 */ ruling.binding.as_ref(),
        /* $21 */ ruling.risk.as_ref(),
        /* $22 */ ruling.approvals_needed,
        /* $23 */ notice,
    ]
    .to_vec()
}

/// Removes rows that were only seen, and whose key another tenant has written since: a key belongs to
/// one tenant at a time. A row that is locked stays until the request is read again.
const REMOVE_OF_OTHERS: Statement = Statement::new(
    "ledger.remove_seen_of_others",
    "DELETE FROM hitl_request AS r
      USING (SELECT o.tenant_id, o.request_id
               FROM UNNEST($1::text[], $2::text[]) AS m(tenant_id, request_id)
               JOIN hitl_request o ON o.request_id = m.request_id AND o.origin = 'redis'
              WHERE o.tenant_id <> m.tenant_id AND o.status IN ('pending', 'expired')
                FOR UPDATE OF o SKIP LOCKED) AS others
      WHERE r.tenant_id = others.tenant_id AND r.request_id = others.request_id",
)
.on_sqlite(
    "DELETE FROM hitl_request
      WHERE request_id = $2 AND origin = 'redis' AND tenant_id <> $1
        AND status IN ('pending', 'expired')",
);

const COLUMNS: &str = "\
    request_id, origin, tenant_id, session_id, user_id, action_type, fingerprint, content_hash,
    document, task_id, owns_task, created_at, expires_at, status, delivery, owed_since, due_at,
    asked_at, moved_on, seen_on, message, etag, rule, policy_version, binding, risk,
    approvals_needed";

/// Replaces a row that was only seen. `due_at` is a time before Redis was read: a row that has expired
/// since is not made pending. The row keeps its times while it asks the same question.
const REPLACE_SEEN: &str = "\
    ON CONFLICT (tenant_id, request_id) DO UPDATE SET
        session_id = excluded.session_id, user_id = excluded.user_id,
        action_type = excluded.action_type, fingerprint = excluded.fingerprint,
        created_at = CASE WHEN hitl_request.status = 'pending'
                           AND hitl_request.content_hash = excluded.content_hash
                          THEN hitl_request.created_at ELSE excluded.created_at END,
        approvals = CASE WHEN hitl_request.content_hash = excluded.content_hash
                         THEN hitl_request.approvals END,
        rule = excluded.rule, policy_version = excluded.policy_version,
        binding = excluded.binding, risk = excluded.risk,
        approvals_needed = excluded.approvals_needed,
        content_hash = excluded.content_hash, document = excluded.document,
        message = excluded.message, etag = excluded.etag,
        expires_at = excluded.expires_at, status = 'pending', settled_at = NULL,
        acted_at = NULL, heard_at = NULL, owed_since = excluded.owed_since,
        due_at = excluded.due_at, asked_at = excluded.asked_at,
        moved_on = excluded.moved_on, seen_on = excluded.seen_on
      WHERE hitl_request.origin = 'redis'
        AND (hitl_request.status = 'pending'
             OR (hitl_request.status = 'expired' AND hitl_request.settled_at < excluded.due_at))
     RETURNING request_id, tenant_id, created_at";

/// Leaves out rows that somebody has locked, so that they hold up no others. They are written when the
/// requests are read again. A request is told of when it is first seen, and when it asks anew: then its row
/// begins with the time at which it was seen.
const WRITE_SEEN: Statement = Statement::new(
    "ledger.write_seen",
    formatcp!(
        "WITH free AS (
            SELECT r.tenant_id, r.request_id
              FROM UNNEST($1::text[], $2::text[]) AS m(request_id, tenant_id)
              JOIN hitl_request r ON r.tenant_id = m.tenant_id AND r.request_id = m.request_id
               FOR UPDATE OF r SKIP LOCKED
         ),
         written AS (
         INSERT INTO hitl_request ({COLUMNS})
         SELECT m.request_id, 'redis', m.tenant_id, m.session_id, m.user_id, m.action_type,
                m.fingerprint, m.content_hash, m.document, m.task_id, TRUE, m.seen_at,
                m.expires_at, 'pending', 'sent', m.read_at, m.read_at, m.asked_at,
                m.moved_on <> 0, m.seen_on, SUBSTR(m.message, 1, 2000), m.etag, m.by_rule,
                m.by_version, m.bound, m.of_risk, m.needed
           FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                       $7::text[], $8::text[], $9::text[], $10::timestamptz[],
                       $11::timestamptz[], $12::timestamptz[], $13::timestamptz[],
                       $14::bigint[], $15::text[], $16::text[], $17::text[], $18::text[],
                       $19::text[], $20::text[], $21::text[], $22::bigint[])
                WITH ORDINALITY AS m(request_id, tenant_id, session_id, user_id, action_type, fingerprint,
                     content_hash, document, task_id, seen_at, asked_at, expires_at, read_at,
                     moved_on, seen_on, message, etag, by_rule, by_version, bound, of_risk,
                     needed, place)
          WHERE (SELECT MAX(o.tenant_id) FROM hitl_request o
                  WHERE o.request_id = m.request_id AND o.origin = 'redis'
                    AND o.tenant_id <> m.tenant_id) IS NULL
            AND ((SELECT MAX(r.status) FROM hitl_request r
                   WHERE r.tenant_id = m.tenant_id AND r.request_id = m.request_id) IS NULL
                 OR (m.tenant_id, m.request_id) IN (SELECT tenant_id, request_id FROM free))
          ORDER BY m.place
         {REPLACE_SEEN}),
         told AS (
         INSERT INTO hitl_outbox (kind, target, tenant_id, request_id, payload, created_at, due_at)
         SELECT 'notice', 'request.pending', w.tenant_id, w.request_id, m.notice, w.created_at,
                w.created_at
           FROM written AS w
           JOIN UNNEST($1::text[], $2::text[], $10::timestamptz[], $23::text[])
                AS m(request_id, tenant_id, seen_at, notice)
             ON m.tenant_id = w.tenant_id AND m.request_id = w.request_id
          WHERE m.seen_at = w.created_at AND m.notice IS NOT NULL
         )
         SELECT request_id FROM written"
    ),
)
.on_sqlite(formatcp!(
    "INSERT INTO hitl_request ({COLUMNS})
     SELECT $1, 'redis', $2, $3, $4, $5, $6, $7, $8, $9, TRUE, $10, $12, 'pending', 'sent', $13,
            $13, $11, $14 <> 0, $15, SUBSTR($16, 1, 2000), $17, $18, $19, $20, $21, $22
      WHERE (SELECT MAX(o.tenant_id) FROM hitl_request o
              WHERE o.request_id = $1 AND o.origin = 'redis' AND o.tenant_id <> $2) IS NULL
     {REPLACE_SEEN}"
))
.then(&["INSERT INTO hitl_outbox (kind, target, tenant_id, request_id, payload, created_at, due_at)
         SELECT 'notice', 'request.pending', tenant_id, request_id, $23, created_at, created_at
           FROM hitl_request
          WHERE tenant_id = $2 AND request_id = $1 AND created_at = $10 AND $23 IS NOT NULL"]);

/// `origin || ''`, because `origin` and `status` would match the index `hitl_request_seen`, and Postgres might
/// read all pending requests of Redis for each row.
const REFRESH_SEEN: Statement = Statement::new(
    "ledger.refresh_seen",
    "UPDATE hitl_request AS r
        SET moved_on = m.moved_on <> 0, asked_at = m.asked_at, expires_at = m.expires_at,
            seen_on = m.seen_on
       FROM (SELECT m.* FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::timestamptz[],
                                    $5::timestamptz[], $6::text[])
                         AS m(tenant_id, request_id, moved_on, asked_at, expires_at, seen_on)
               JOIN hitl_request l ON l.tenant_id = m.tenant_id AND l.request_id = m.request_id
                FOR UPDATE OF l SKIP LOCKED) AS m
      WHERE r.tenant_id = m.tenant_id AND r.request_id = m.request_id AND r.origin || '' = 'redis'
        AND r.status = 'pending'
      RETURNING r.request_id",
)
.on_sqlite(
    "UPDATE hitl_request
        SET moved_on = $3 <> 0, asked_at = $4, expires_at = $5, seen_on = $6
      WHERE tenant_id = $1 AND request_id = $2 AND origin = 'redis' AND status = 'pending'
      RETURNING request_id",
);

/// `origin || ''` for the reason given at `REFRESH_SEEN`.
const CLOSE_GONE: Statement = Statement::new(
    "ledger.close_gone",
    formatcp!(
        "WITH closed AS (
         UPDATE hitl_request AS r
            SET status = 'expired', settled_at = m.closed_at, moved_on = FALSE
           FROM (SELECT m.* FROM UNNEST($1::text[], $2::text[], $3::timestamptz[], $4::text[],
                                        $5::timestamptz[])
                             AS m(of_tenant, of_request, read_at, gone_from, closed_at)
                   JOIN hitl_request l
                     ON l.tenant_id = m.of_tenant AND l.request_id = m.of_request
                    FOR UPDATE OF l SKIP LOCKED) AS m
          WHERE r.tenant_id = m.of_tenant AND r.request_id = m.of_request AND r.origin || '' = 'redis'
            AND r.status = 'pending' AND r.seen_on = m.gone_from AND r.due_at <= m.read_at
          RETURNING {REQUEST_COLUMNS}),
         told AS (
         INSERT INTO hitl_outbox (kind, target, tenant_id, request_id, payload, created_at, due_at)
         SELECT 'notice', 'request.expired', c.tenant_id, c.request_id, m.notice, c.settled_at,
                c.settled_at
           FROM closed AS c
           JOIN UNNEST($1::text[], $2::text[], $6::text[]) AS m(of_tenant, of_request, notice)
             ON m.of_tenant = c.tenant_id AND m.of_request = c.request_id
          WHERE m.notice IS NOT NULL
         )
         SELECT {REQUEST_COLUMNS} FROM closed"
    ),
)
.on_sqlite(formatcp!(
    "UPDATE hitl_request SET status = 'expired', settled_at = $5, moved_on = FALSE
      WHERE tenant_id = $1 AND request_id = $2 AND origin = 'redis' AND status = 'pending'
        AND seen_on = $4 AND due_at <= $3
      RETURNING {REQUEST_COLUMNS}"
))
.then(&[
    "INSERT INTO hitl_outbox (kind, target, tenant_id, request_id, payload, created_at, due_at)
         SELECT 'notice', 'request.expired', $1, $2, $6, $5, $5 WHERE $6 IS NOT NULL",
]);

/// A receipt may be written later than its signal was sent: a request whose signal is owed is left
/// alone until then.
const NOTE_ASKED_AGAIN: Statement = Statement::new(
    "ledger.note_asked_again",
    formatcp!(
        "UPDATE hitl_request AS r SET asked_again_until = m.asked_until
       FROM UNNEST($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[])
            AS m(of_tenant, of_request, content, asked_until, read_at)
      WHERE r.tenant_id = m.of_tenant AND r.request_id = m.of_request AND r.origin = 'redis'
        AND r.decided_at IS NOT NULL AND r.content_hash = m.content AND {DELIVERY} <> 'owed'
        AND r.owed_since < m.read_at AND {SENT_OR_CLOSED_AT} < m.read_at
      RETURNING r.request_id"
    ),
)
.on_sqlite(formatcp!(
    "UPDATE hitl_request AS r SET asked_again_until = $4
      WHERE r.tenant_id = $1 AND r.request_id = $2 AND r.origin = 'redis'
        AND r.decided_at IS NOT NULL AND r.content_hash = $3 AND {DELIVERY} <> 'owed'
        AND r.owed_since < $5 AND {SENT_OR_CLOSED_AT} < $5
      RETURNING request_id"
));
