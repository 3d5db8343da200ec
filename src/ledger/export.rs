//! The export for auditors: closed requests and refused attempts, under the names that the API
//! uses. The values are exported as the rows hold them: not parsed, not validated, not rounded.

use std::io;

use chrono::{DateTime, SecondsFormat, Utc};
use const_format::formatcp;
use futures_util::TryStreamExt as _;
use serde::{Serialize, Serializer};
use sqlx::{Connection as _, PgConnection, raw_sql};

use super::connect::Ledger;
use super::connections::{Connections, Unpooled};
use super::engine::{Database, Row, query, values};
use super::request_row::{DELIVERY, SENT_AT};

/// Which rows to export.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The start of the span, inclusive.
    pub from: DateTime<Utc>,
    /// The end of the span, exclusive.
    pub to: DateTime<Utc>,
    /// Whether to export also requests that expired or were withdrawn, not only decided ones.
    pub undecided: bool,
}

/// One closed request. The JSON has every field; a field that does not apply is `null`. Times are
/// RFC 3339 in UTC, with all six digits of their microseconds.
///
/// Hashes are lower-case hex SHA-256 over UTF-8 text, with every JSON value in canonical form:
/// members sorted by code point, no white space, no needless escapes, numbers as they were written.
/// `fingerprint` is the hash of `{"actionType":…,"context":…}`. `content_hash` is the hash of all
/// members of the document except `createdAt`, sorted by name, each as `"name":value,` with its
/// comma, without braces around them. Both hashes can be computed again from `document`.
#[derive(Debug, Serialize, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct Exported {
    pub(crate) request_id: String,
    pub(crate) tenant_id: String,
    pub(crate) session_id: String,
    pub(crate) user_id: Option<String>,
    pub(crate) action_type: String,
    /// `answered` for a row that has a response, else the row's own.
    #[sqlx(rename = "shown_status")]
    pub(crate) status: String,
    pub(crate) decided_by: Option<String>,
    #[serde(serialize_with = "instant_or_null")]
    pub(crate) decided_at: Option<DateTime<Utc>>,
    #[sqlx(rename = "shown_reason")]
    reason: Option<String>,
    #[serde(serialize_with = "instant_or_null")]
    pub(crate) settled_at: Option<DateTime<Utc>>,
    #[serde(serialize_with = "instant")]
    pub(crate) created_at: DateTime<Utc>,
    #[serde(serialize_with = "instant")]
    expires_at: DateTime<Utc>,
    task_id: String,
    pub(crate) origin: String,
    content_hash: String,
    fingerprint: String,
    caller_source: Option<String>,
    caller_type: Option<String>,
    agent_id: Option<String>,
    trace_id: Option<String>,
    gateway_request_id: Option<String>,
    /// The `If-Match` header: the entity tag of the content that the decider had seen.
    if_match: Option<String>,
    /// The role in the decider's token.
    pub(crate) decider_role: Option<String>,
    /// The `jti` of the decider's token.
    token_id: Option<String>,
    #[sqlx(rename = "shown_delivery")]
    delivery: String,
    #[sqlx(rename = "shown_sent_at")]
    #[serde(serialize_with = "instant_or_null")]
    sent_at: Option<DateTime<Utc>>,
    #[serde(serialize_with = "instant_or_null")]
    acted_at: Option<DateTime<Utc>>,
    /// The request as it was when it was decided, byte for byte.
    pub(crate) document: String,
    /// The arguments that were approved instead of those in the document, byte for byte.
    pub(crate) arguments: Option<String>,
    /// The answer that was given instead of an approval, byte for byte.
    response: Option<String>,
    /// `policy`, `grant`; `None` when people decided, or nobody did. Not a part of the JSON.
    #[serde(skip)]
    #[sqlx(default)]
    pub(crate) decided_via: Option<String>,
    /// A JSON array of the users whose approvals counted, if more than one was needed. Not a part of
    /// the JSON.
    #[serde(skip)]
    #[sqlx(default)]
    pub(crate) voters: Option<String>,
}

/// A row of `hitl_refused_attempt`. The JSON has every field; a field that does not apply is
/// `null`.
#[derive(Debug, Serialize, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct ExportedAttempt {
    #[serde(serialize_with = "instant")]
    attempted_at: DateTime<Utc>,
    tenant_id: String,
    user_id: String,
    role: String,
    token_id: Option<String>,
    request_id: String,
    verdict: String,
    error_code: String,
    reason: String,
    if_match: Option<String>,
    caller_source: Option<String>,
    caller_type: Option<String>,
    agent_id: Option<String>,
    trace_id: Option<String>,
    gateway_request_id: Option<String>,
}

fn instant<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

#[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
fn instant_or_null<S: Serializer>(
    time: &Option<DateTime<Utc>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => instant(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// The requests that were decided from $1 on and before $2, the earliest first. If $3 is true, also
/// the requests that expired or were withdrawn in that time. `*` is safe here: the connection is
/// new, and no prepared statement outlives the query.
const OUTCOMES_BETWEEN: &str = formatcp!(
    "SELECT *, CASE WHEN response IS NOT NULL THEN 'answered' ELSE status END AS shown_status,
            CASE WHEN response IS NULL THEN reason END AS shown_reason,
            {DELIVERY} AS shown_delivery, {SENT_AT} AS shown_sent_at
       FROM hitl_request AS r
      WHERE COALESCE(decided_at, settled_at) >= $1 AND COALESCE(decided_at, settled_at) < $2
        AND ($3 OR decided_at IS NOT NULL)
      ORDER BY COALESCE(decided_at, settled_at), tenant_id, request_id"
);

const REFUSED_ATTEMPTS_BETWEEN: &str = "\
    SELECT * FROM hitl_refused_attempt
     WHERE attempted_at >= $1 AND attempted_at < $2
     ORDER BY attempted_at, attempt_id";

impl Ledger {
    /// Calls `write` with each request that was decided in the span, in the order of the decisions.
    /// With [`Span::undecided`], also with requests that expired or were withdrawn in the span, in
    /// the order of the closing times. All rows are read from one snapshot, however long the export
    /// takes. If `write` fails, the export ends, and the inner result is the error of `write`.
    ///
    /// # Errors
    /// [`sqlx::Error`] when the ledger does not answer or a row cannot be read.
    pub async fn export(
        &self,
        span: &Span,
        write: impl FnMut(&Exported) -> io::Result<()>,
    ) -> sqlx::Result<io::Result<()>> {
        self.stream_rows(OUTCOMES_BETWEEN, span, write).await
    }

    /// Calls `write` with each refused attempt in the span, like [`Self::export`] with requests.
    ///
    /// # Errors
    /// [`sqlx::Error`] when the ledger does not answer or a row cannot be read.
    pub async fn export_refused_attempts(
        &self,
        span: &Span,
        write: impl FnMut(&ExportedAttempt) -> io::Result<()>,
    ) -> sqlx::Result<io::Result<()>> {
        self.stream_rows(REFUSED_ATTEMPTS_BETWEEN, span, write).await
    }

    /// Calls `write` with each row of one statement. Rows are streamed, not collected.
    async fn stream_rows<R: Row + Sync>(
        &self,
        sql: &'static str,
        span: &Span,
        mut write: impl FnMut(&R) -> io::Result<()>,
    ) -> sqlx::Result<io::Result<()>> {
        let values = values![span.from, span.to, span.undecided];
        let mut reader;
        let mut rows = match &self.engine.database {
            Database::Postgres(connections) => {
                reader = self::reader(connections).await?;
                query::<_, R>(sql, &values)?.fetch(Unpooled(&mut reader))
            }
            Database::Sqlite(pool) => query::<_, R>(sql, &values)?.fetch(pool),
        };
        while let Some(row) = rows.try_next().await? {
            if let Err(error) = write(&row) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }
}

/// A new connection in a read-only transaction without time-outs. A pooler keeps a transaction on
/// one server connection.
pub(super) async fn reader(connections: &Connections) -> sqlx::Result<PgConnection> {
    let mut reader = PgConnection::connect_with(&connections.options()).await?;
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = 0; \
                 SET LOCAL idle_in_transaction_session_timeout = 0";
    raw_sql(begin).execute(&mut reader).await?;
    Ok(reader)
}
