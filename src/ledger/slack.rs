//! What the service has to do with Slack: tables `hitl_slack_message`, the messages that ask for a decision,
//! and `hitl_slack_call`, the calls of Slack that were taken.

use chrono::{DateTime, TimeDelta, Utc};

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::Result;
use crate::domain::ids::{RequestId, TenantId};

/// How long a message is kept that nobody has closed: longer than any request waits.
const MESSAGES_KEPT_FOR: TimeDelta = TimeDelta::days(7);
/// How long a call is kept: longer than its signature is valid.
const CALLS_KEPT_FOR: TimeDelta = TimeDelta::minutes(15);
/// The most rows to delete at once.
const BATCH: i64 = 100;
/// The most messages of one request.
const MAX_MESSAGES: i64 = 1000;

/// Deletes up to `$2` rows of a table that are older than `$1`. Each row is named by its place, so that no
/// plan looks for its key.
macro_rules! forget_old {
    ($name:literal, $table:literal, $at:literal) => {
        Statement::new($name, forget_old!(@by "ctid", "= ANY(ARRAY(", "))", $table, $at))
            .on_sqlite(forget_old!(@by "rowid", "IN (", ")", $table, $at))
    };
    (@by $place:literal, $open:literal, $close:literal, $table:literal, $at:literal) => {
        concat!(
            "DELETE FROM ", $table, " WHERE ", $place, " ", $open,
            "SELECT ", $place, " FROM ", $table,
            " WHERE ", $at, " >= '-infinity' AND ", $at, " < $1 ORDER BY ", $at, " LIMIT $2",
            $close
        )
    };
}

/// A message that asks for a decision.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct PostedMessage {
    /// Where it stands.
    #[sqlx(flatten)]
    pub message: SlackMessage,
    /// To whom it was posted: the channel, or a person, whose direct messages have an id of their own.
    pub target: Option<String>,
    /// When it was noted, UTC.
    pub posted_at: DateTime<Utc>,
}

/// A message in Slack.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct SlackMessage {
    /// The channel or direct message.
    pub channel: String,
    /// The message within it.
    pub ts: String,
}

impl Ledger {
    /// Notes a message that asks for a decision on this request, and forgets those that are very old.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn note_slack_message(
        &self,
        message: &SlackMessage,
        target: &str,
        tenant: &TenantId,
        request: &RequestId,
        now: DateTime<Utc>,
    ) -> Result<()> {
        const NOTE: Statement = Statement::new(
            "ledger.note_slack_message",
            "INSERT INTO hitl_slack_message (channel, ts, tenant_id, request_id, posted_at, target)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        );
        const FORGET: Statement =
            forget_old!("ledger.forget_old_slack_messages", "hitl_slack_message", "posted_at");
        let SlackMessage { channel, ts } = message;
        self.engine.execute(NOTE, &values![channel, ts, tenant, request, now, target]).await?;
        self.engine.execute(FORGET, &values![now - MESSAGES_KEPT_FOR, BATCH]).await.map(drop)
    }

    /// The request that a message asks for; `None` for a message that asks for none.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn request_of_slack_message(
        &self,
        message: &SlackMessage,
    ) -> Result<Option<(TenantId, RequestId)>> {
        const REQUEST_OF: Statement = Statement::new(
            "ledger.request_of_slack_message",
            "SELECT tenant_id, request_id FROM hitl_slack_message WHERE channel = $1 AND ts = $2",
        );
        let SlackMessage { channel, ts } = message;
        let row = self.engine.fetch_optional(REQUEST_OF, &values![channel, ts]).await?;
        Ok(row.and_then(|(tenant, request): (String, String)| {
            Some((TenantId::parse(tenant).ok()?, RequestId::parse(request).ok()?))
        }))
    }

    /// The messages that ask for a decision on this request.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn slack_messages(
        &self,
        tenant: &TenantId,
        request: &RequestId,
    ) -> Result<Vec<PostedMessage>> {
        const MESSAGES: Statement = Statement::new(
            "ledger.slack_messages",
            "SELECT channel, ts, target, posted_at FROM hitl_slack_message
              WHERE tenant_id = $1 AND request_id = $2 LIMIT $3",
        );
        self.engine.fetch_all(MESSAGES, &values![tenant, request, MAX_MESSAGES]).await
    }

    /// Forgets a message that asks no longer.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn forget_slack_message(&self, message: &SlackMessage) -> Result<()> {
        const FORGET: Statement = Statement::new(
            "ledger.forget_slack_message",
            "DELETE FROM hitl_slack_message WHERE channel = $1 AND ts = $2",
        );
        let SlackMessage { channel, ts } = message;
        self.engine.execute(FORGET, &values![channel, ts]).await.map(drop)
    }

    /// Takes a call of Slack with this signature. `false`: it was taken before.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn take_slack_call(&self, signature: &str, now: DateTime<Utc>) -> Result<bool> {
        const TAKE: Statement = Statement::new(
            "ledger.take_slack_call",
            "INSERT INTO hitl_slack_call (signature, taken_at) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        );
        Ok(self.engine.execute(TAKE, &values![signature, now]).await? > 0)
    }

    /// Forgets calls of Slack that are too old to be repeated.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn forget_slack_calls(&self, now: DateTime<Utc>) -> Result<()> {
        const FORGET: Statement =
            forget_old!("ledger.forget_slack_calls", "hitl_slack_call", "taken_at");
        self.engine.execute(FORGET, &values![now - CALLS_KEPT_FOR, BATCH]).await.map(drop)
    }
}
