//! The outbox: messages to other services, table `hitl_outbox`. The statement that changes a
//! request also inserts its message, and a worker claims the row under a lease, sends it and
//! deletes it. Of what people are told, that message is an event, which `requests::fan_out` replaces
//! by the messages of the channels.

use chrono::{DateTime, SecondsFormat, Utc};
use const_format::{formatcp, str_replace};
use serde::{Serialize, Serializer};

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::Result;
use crate::domain::json;

/// The lane of the entries of the Auth server's audit log.
pub const AUDIT: &str = "audit";
/// The lane of the events that people are told of.
pub const NOTICE: &str = "notice";
/// Rows that one statement of [`Ledger::resend`] makes due.
const RESEND_BATCH: i64 = 1000;

/// The lane of a row: what one worker sends. Only rows of channels have a lane of their own.
const LANE: &str = "COALESCE(lane, kind)";
/// Whether a row was never tried (0), was tried (1), or was given up (2).
const TURN: &str = "CASE WHEN failed_at IS NOT NULL THEN 2 WHEN attempts > 0 THEN 1 ELSE 0 END";

/// The due rows of a lane: first those that were never tried, then those that were. Only one index has these
/// expressions, and it has the rows in this order: a backlog is never sorted.
const DUE: &str = formatcp!(
    "SELECT outbox_id FROM (
         SELECT outbox_id FROM hitl_outbox
          WHERE {LANE} = $1 AND {TURN} = 0 AND due_at >= '-infinity' AND due_at <= $2
          ORDER BY {LANE}, {TURN}, due_at LIMIT $4 FOR UPDATE SKIP LOCKED) AS untried
     UNION ALL
     SELECT outbox_id FROM (
         SELECT outbox_id FROM hitl_outbox
          WHERE {LANE} = $1 AND {TURN} = 1 AND due_at >= '-infinity' AND due_at <= $2
          ORDER BY {LANE}, {TURN}, due_at LIMIT $4 FOR UPDATE SKIP LOCKED) AS tried
     LIMIT $4"
);

/// A row of `hitl_outbox` whose lease this process holds.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct OutboxRow {
    /// Column `outbox_id`.
    pub id: i64,
    /// To whom, among the receivers of its lane; of an event its name.
    pub target: String,
    /// The tenant of the request.
    pub tenant_id: String,
    /// The request.
    pub request_id: String,
    /// The message to send.
    pub payload: String,
    /// Since when it is to be sent, UTC.
    pub created_at: DateTime<Utc>,
    /// How often the row was claimed, this time included.
    pub attempts: i32,
}

/// A row to insert in place of an event.
#[derive(Clone, Debug, Serialize)]
pub struct NewOutboxRow {
    /// The row of the event.
    pub event: i64,
    /// `webhook`, `mail`, `slack`, or `notice` for an event that comes later.
    pub kind: &'static str,
    /// The lane; `None` for that of the kind.
    pub lane: Option<String>,
    /// To whom, among the receivers of its lane; of an event its name.
    pub target: String,
    /// The tenant of the request.
    pub tenant_id: String,
    /// The request.
    pub request_id: String,
    /// The message.
    pub payload: String,
    /// Since when it is to be sent, UTC.
    #[serde(serialize_with = "as_stored")]
    pub created_at: DateTime<Utc>,
    /// When to send it, UTC.
    #[serde(serialize_with = "as_stored")]
    pub due_at: DateTime<Utc>,
}

/// A time as SQLite has it in its columns, where times are compared as text.
fn as_stored<S: Serializer>(
    at: &DateTime<Utc>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&at.to_rfc3339_opts(SecondsFormat::AutoSi, false))
}

/// A message that was given up.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct FailedRow {
    /// Column `outbox_id`.
    pub id: i64,
    /// Its lane.
    pub lane: String,
    /// To whom, among the receivers of its lane.
    pub target: String,
    /// The tenant of the request.
    pub tenant_id: String,
    /// The request.
    pub request_id: String,
    /// Since when it was to be sent, UTC.
    pub created_at: DateTime<Utc>,
    /// How often it was tried.
    pub attempts: i32,
    /// When it was given up, UTC.
    pub failed_at: DateTime<Utc>,
    /// What the last try said.
    pub error: Option<String>,
}

impl Ledger {
    /// Takes the leases of up to `limit` due rows of a lane until `until`. Rows that were never tried
    /// come first, so that a new message does not wait behind messages that the receiver refuses.
    /// Otherwise the earliest `due_at` comes first.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn claim_outbox(
        &self,
        lane: &str,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<OutboxRow>> {
        const SET: &str = "UPDATE hitl_outbox SET due_at = $3, attempts = attempts + 1";
        const RETURNING: &str = "RETURNING outbox_id AS id, target, tenant_id, request_id, payload, \
                                 created_at, attempts";
        // An array is made once. A sub-select after IN may run once for each row of the table, passes over
        // what it has locked before, and so takes more than the limit.
        const CLAIM_OUTBOX: Statement = Statement::new(
            "ledger.claim_outbox",
            formatcp!("{SET} WHERE outbox_id = ANY(ARRAY({DUE})) {RETURNING}"),
        )
        .on_sqlite(str_replace!(
            formatcp!("{SET} WHERE outbox_id IN ({DUE}) {RETURNING}"),
            "FOR UPDATE SKIP LOCKED",
            ""
        ));
        self.engine.fetch_all(CLAIM_OUTBOX, &values![lane, now, until, limit]).await
    }

    /// Gives a lease back: the row is due again at `due_at`. `error` says why it was not sent.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. The lease then expires
    /// by itself.
    pub async fn postpone_outbox(
        &self,
        id: i64,
        due_at: DateTime<Utc>,
        error: Option<&str>,
    ) -> Result<()> {
        const POSTPONE: Statement = Statement::new(
            "ledger.postpone_outbox",
            "UPDATE hitl_outbox SET due_at = $2, error = $3 WHERE outbox_id = $1",
        );
        self.engine.execute(POSTPONE, &values![id, due_at, error]).await.map(drop)
    }

    /// Gives leases back as if the rows had not been claimed: they are due at once.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. The leases then expire by
    /// themselves.
    pub async fn unclaim_outbox(&self, ids: &[i64], now: DateTime<Utc>) -> Result<()> {
        const UNCLAIM: Statement = Statement::new(
            "ledger.unclaim_outbox",
            "UPDATE hitl_outbox SET due_at = $2, attempts = attempts - 1
              WHERE outbox_id = ANY($1) AND attempts > 0",
        )
        .on_sqlite(
            "UPDATE hitl_outbox SET due_at = $2, attempts = attempts - 1
              WHERE outbox_id IN (SELECT value FROM json_each($1)) AND attempts > 0",
        );
        self.engine.execute(UNCLAIM, &values![ids, now]).await.map(drop)
    }

    /// Gives a message up: no worker claims its row any more, until somebody sends it again.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. It is then sent again when its
    /// lease has expired.
    pub async fn give_up_outbox(&self, id: i64, error: &str, now: DateTime<Utc>) -> Result<()> {
        const GIVE_UP: Statement = Statement::new(
            "ledger.give_up_outbox",
            "UPDATE hitl_outbox SET failed_at = $3, error = $2 WHERE outbox_id = $1",
        );
        self.engine.execute(GIVE_UP, &values![id, error, now]).await.map(drop)
    }

    /// The first lane after this one in which a message waits, in the order of their names; `None` after the
    /// last one.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn lane_after(&self, lane: &str) -> Result<Option<String>> {
        // The order of the index of the oldest messages, so that one entry is read. Which message of the lane
        // it is does not matter.
        const LANE_AFTER: Statement = Statement::new(
            "ledger.lane_after",
            formatcp!(
                "SELECT {LANE} FROM hitl_outbox WHERE {LANE} > $1 AND failed_at IS NULL
                  ORDER BY {LANE}, created_at LIMIT 1"
            ),
        );
        let found = self.engine.fetch_optional::<(String,)>(LANE_AFTER, &values![lane]).await?;
        Ok(found.map(|(lane,)| lane))
    }

    /// Gives up to `limit` messages of a lane up that were due before this time. Returns how many.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn give_up_lane(
        &self,
        lane: &str,
        before: DateTime<Utc>,
        error: &str,
        now: DateTime<Utc>,
        limit: i64,
    ) -> Result<u64> {
        const SET: &str = "UPDATE hitl_outbox SET failed_at = $3, error = $5";
        const GIVE_UP: Statement = Statement::new(
            "ledger.give_up_lane",
            formatcp!("{SET} WHERE outbox_id = ANY(ARRAY({DUE}))"),
        )
        .on_sqlite(str_replace!(
            formatcp!("{SET} WHERE outbox_id IN ({DUE})"),
            "FOR UPDATE SKIP LOCKED",
            ""
        ));
        self.engine.execute(GIVE_UP, &values![lane, before, now, limit, error]).await
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

    /// Deletes events, and inserts the rows that take their place: all or nothing. An event that another
    /// process has deleted gets no rows.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. The events are then taken
    /// again when their leases have expired.
    pub async fn replace_events(&self, events: &[i64], rows: &[NewOutboxRow]) -> Result<()> {
        const COLUMNS: &str =
            "kind, lane, target, tenant_id, request_id, payload, created_at, due_at";
        const REPLACE: Statement = Statement::new(
            "ledger.replace_events",
            formatcp!(
                "WITH gone AS (
                    DELETE FROM hitl_outbox WHERE outbox_id = ANY($1) RETURNING outbox_id
                 ),
                 told AS (
                    INSERT INTO hitl_outbox ({COLUMNS})
                    SELECT m.kind, m.lane, m.target, m.tenant_id, m.request_id, m.payload,
                           m.created_at, m.due_at
                      FROM json_to_recordset($2::json) AS m(event bigint, kind text, lane text,
                               target text, tenant_id text, request_id text, payload text,
                               created_at timestamptz, due_at timestamptz)
                      JOIN gone ON gone.outbox_id = m.event
                 )
                 SELECT outbox_id FROM gone"
            ),
        )
        .on_sqlite(
            "DELETE FROM hitl_outbox WHERE outbox_id IN (SELECT value FROM json_each($1))
             RETURNING outbox_id",
        )
        // One process uses the file, so nobody else has deleted one of several events.
        .then(&[formatcp!(
            "INSERT INTO hitl_outbox ({COLUMNS})
             SELECT m.value ->> 'kind', m.value ->> 'lane', m.value ->> 'target',
                    m.value ->> 'tenant_id', m.value ->> 'request_id', m.value ->> 'payload',
                    m.value ->> 'created_at', m.value ->> 'due_at'
               FROM json_each($2) AS m WHERE $1 IS NOT NULL"
        )]);
        let rows = json::raw(rows).get().to_owned();
        let gone = self.engine.fetch_optional::<(i64,)>(REPLACE, &values![events, rows]).await;
        gone.map(|_one_of_them| ())
    }

    /// Up to `limit` messages that were given up, the latest first.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn failed_in_outbox(&self, limit: i64) -> Result<Vec<FailedRow>> {
        const FAILED: Statement = Statement::new(
            "ledger.failed_in_outbox",
            formatcp!(
                "SELECT outbox_id AS id, {LANE} AS lane, target, tenant_id, request_id, created_at,
                        attempts, failed_at, error
                   FROM hitl_outbox
                  WHERE failed_at IS NOT NULL AND failed_at >= '-infinity' AND failed_at <= 'infinity'
                  ORDER BY failed_at DESC LIMIT $1"
            ),
        );
        self.engine.fetch_all(FAILED, &values![limit]).await
    }

    /// Makes messages due again that were given up: this one, or all of them. Returns how many.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. Some may be due again then.
    pub async fn resend(&self, id: Option<i64>, now: DateTime<Utc>) -> Result<u64> {
        const SET: &str = "UPDATE hitl_outbox
                              SET failed_at = NULL, attempts = 0, created_at = $2, due_at = $2";
        const RESEND: Statement = Statement::new(
            "ledger.resend",
            formatcp!("{SET} WHERE outbox_id = $1 AND failed_at IS NOT NULL"),
        );
        const RESEND_ALL: Statement = Statement::new(
            "ledger.resend_all",
            formatcp!(
                "{SET} WHERE outbox_id IN (
                    SELECT outbox_id FROM hitl_outbox
                     WHERE failed_at IS NOT NULL AND failed_at >= '-infinity' AND failed_at <= 'infinity'
                     ORDER BY failed_at LIMIT $1)"
            ),
        );
        if let Some(id) = id {
            return self.engine.execute(RESEND, &values![id, now]).await;
        }
        let mut count = 0;
        loop {
            let resent = self.engine.execute(RESEND_ALL, &values![RESEND_BATCH, now]).await?;
            count += resent;
            if i64::try_from(resent).is_ok_and(|resent| resent < RESEND_BATCH) {
                return Ok(count);
            }
        }
    }

    /// Deletes up to `limit` messages that were given up before this time. Returns how many.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn purge_failed(&self, before: DateTime<Utc>, limit: i64) -> Result<u64> {
        const PURGE: Statement = Statement::new(
            "ledger.purge_failed",
            "DELETE FROM hitl_outbox WHERE outbox_id IN (
                SELECT outbox_id FROM hitl_outbox
                 WHERE failed_at IS NOT NULL AND failed_at >= '-infinity' AND failed_at < $1
                 ORDER BY failed_at LIMIT $2)",
        );
        self.engine.execute(PURGE, &values![before, limit]).await
    }

    /// Since when the oldest row of this lane is to be sent, UTC; `None` if there is none.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn oldest_in_outbox(&self, lane: &str) -> Result<Option<DateTime<Utc>>> {
        const OLDEST: Statement = Statement::new(
            "ledger.oldest_in_outbox",
            formatcp!(
                "SELECT MIN(created_at) FROM hitl_outbox WHERE {LANE} = $1 AND failed_at IS NULL"
            ),
        );
        let (oldest,) = self.engine.fetch_one(OLDEST, &values![lane]).await?;
        Ok(oldest)
    }
}
