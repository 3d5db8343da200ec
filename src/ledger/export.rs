//! A row of the ledger as auditors get it: everything that is known of one outcome, under the names
//! that the API uses. Nothing is read, checked or rounded on the way.

use std::io;

use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::TryStreamExt as _;
use serde::{Serialize, Serializer};
use sqlx::{Connection as _, PgConnection, raw_sql};

use super::connect::Ledger;
use super::connections::{Connections, Unpooled};
use super::engine::{Database, Row, query, values};

/// Which outcomes.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// From then on.
    pub from: DateTime<Utc>,
    /// Before then.
    pub to: DateTime<Utc>,
    /// Also what expired or was withdrawn undecided.
    pub undecided: bool,
}

/// One outcome; as JSON, every field is there, `null` when it does not apply. Times are RFC 3339 in
/// UTC, with all six digits of their microseconds.
///
/// Hashes are lower-case hex SHA-256 over UTF-8 text, with every JSON value in canonical form:
/// members sorted by code point, no white space, no needless escapes, numbers as they were written.
/// `fingerprint` is that of `{"actionType":…,"context":…}`. `content_hash` is that of all members of
/// the document but `createdAt`, sorted by name, each as `"name":value,` with its comma, and without
/// braces around them. Both can be made again from `document`.
#[derive(Debug, Serialize, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct Exported {
    request_id: String,
    tenant_id: String,
    session_id: String,
    user_id: Option<String>,
    action_type: String,
    status: String,
    decided_by: Option<String>,
    #[serde(serialize_with = "instant_or_null")]
    decided_at: Option<DateTime<Utc>>,
    reason: Option<String>,
    #[serde(serialize_with = "instant_or_null")]
    settled_at: Option<DateTime<Utc>>,
    #[serde(serialize_with = "instant")]
    created_at: DateTime<Utc>,
    #[serde(serialize_with = "instant")]
    expires_at: DateTime<Utc>,
    task_id: String,
    origin: String,
    content_hash: String,
    fingerprint: String,
    caller_source: Option<String>,
    caller_type: Option<String>,
    agent_id: Option<String>,
    trace_id: Option<String>,
    gateway_request_id: Option<String>,
    /// The entity tag by which the decider named what they had looked at.
    if_match: Option<String>,
    /// The role and the `jti` of the decider's token.
    decider_role: Option<String>,
    token_id: Option<String>,
    delivery: String,
    #[serde(serialize_with = "instant_or_null")]
    sent_at: Option<DateTime<Utc>>,
    #[serde(serialize_with = "instant_or_null")]
    acted_at: Option<DateTime<Utc>>,
    /// The request's text, to the letter, as it was decided on.
    document: String,
}

/// A row of `hitl_refused_attempt`; as JSON, every field is there, `null` when it does not apply.
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

/// What was decided from $1 on and before $2, the earliest first; with $3 what expired or was
/// withdrawn as well, by when that was. All columns: its connection prepares nothing for later.
const OUTCOMES_BETWEEN: &str = "\
    SELECT * FROM hitl_request
     WHERE COALESCE(decided_at, settled_at) >= $1 AND COALESCE(decided_at, settled_at) < $2
       AND ($3 OR decided_at IS NOT NULL)
     ORDER BY COALESCE(decided_at, settled_at), tenant_id, request_id";

const REFUSED_ATTEMPTS_BETWEEN: &str = "\
    SELECT * FROM hitl_refused_attempt
     WHERE attempted_at >= $1 AND attempted_at < $2
     ORDER BY attempted_at, attempt_id";

impl Ledger {
    /// Hands over what was decided in a span of time, row by row, in the order of the decisions; as
    /// it was at one moment, however long the reader takes. Ends early with what `write` says when
    /// it fails.
    ///
    /// # Errors
    /// [`sqlx::Error`], for whoever operates the service.
    pub async fn export(
        &self,
        span: &Span,
        write: impl FnMut(&Exported) -> io::Result<()>,
    ) -> sqlx::Result<io::Result<()>> {
        self.hand_over(OUTCOMES_BETWEEN, span, write).await
    }

    /// Hands over the refused attempts of a span of time, as [`Self::export`] does decisions.
    ///
    /// # Errors
    /// [`sqlx::Error`], for whoever operates the service.
    pub async fn export_refused_attempts(
        &self,
        span: &Span,
        write: impl FnMut(&ExportedAttempt) -> io::Result<()>,
    ) -> sqlx::Result<io::Result<()>> {
        self.hand_over(REFUSED_ATTEMPTS_BETWEEN, span, write).await
    }

    /// Hands over row after row of one statement; none is kept.
    async fn hand_over<R: Row + Sync>(
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

/// A connection that may only read, and take its time: in a transaction, which a pooler keeps on one
/// server.
pub(super) async fn reader(connections: &Connections) -> sqlx::Result<PgConnection> {
    let mut reader = PgConnection::connect_with(&connections.options()).await?;
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = 0; \
                 SET LOCAL idle_in_transaction_session_timeout = 0";
    raw_sql(begin).execute(&mut reader).await?;
    Ok(reader)
}
