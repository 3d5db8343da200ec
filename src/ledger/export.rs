//! A row of the ledger as auditors get it: everything that is known of one outcome, under the names
//! that the API uses. Nothing is read, checked or rounded on the way.

use std::io;

use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;
use serde::{Serialize, Serializer};

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

pub(super) fn instant<S: Serializer>(
    time: &DateTime<Utc>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
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

/// Hands over row after row; none is kept. Ends early with what `write` says when it fails.
pub async fn hand_over<Row>(
    mut rows: BoxStream<'_, sqlx::Result<Row>>,
    mut write: impl FnMut(&Row) -> io::Result<()>,
) -> sqlx::Result<io::Result<()>> {
    while let Some(row) = rows.try_next().await? {
        if let Err(error) = write(&row) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}
