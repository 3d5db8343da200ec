//! The row type of `hitl_request`, and the columns that it reads.

use chrono::{DateTime, Utc};
use const_format::formatcp;

use super::error::{LedgerError, Result};
use crate::domain::decision::{Decision, State, Verdict};
use crate::domain::ids::{GrantId, RequestId, SessionId, TaskId, TenantId, UserId};
use crate::domain::record::{DecidedVia, Delivery, Record, Ruling};
use crate::domain::request::Origin;

/// The columns of a request that [`RequestRow`] reads, and those from which its task is written: as the
/// request's own row has them, which tells of its delivery only what was owed when it was decided.
/// Never `*`: a prepared statement with `*` fails after a migration adds a column.
pub(super) const REQUEST_COLUMNS: &str = "\
    request_id, origin, tenant_id, session_id, user_id, action_type, fingerprint, content_hash,
    document, task_id, owns_task, created_at, expires_at, status, decided_by, decided_at, reason,
    delivery, owed_since, listeners, sent_to, sent_at, outcome, settled_at, acted_at, asked_at,
    moved_on, asked_again_until, decided_via, rule, policy_version, binding, risk,
    approvals_needed, approvals, ballots, voters, arguments, response, grant_id";

/// [`REQUEST_COLUMNS`] as they are now: of the request `r` with its delivery `d`, if there is one
/// ([`AND_DELIVERY`]). A row of an older release has its delivery in its own columns.
pub(super) const CURRENT_COLUMNS: &str = "\
    r.request_id, r.origin, r.tenant_id, r.session_id, r.user_id, r.action_type, r.fingerprint,
    r.content_hash, r.document, r.task_id, r.owns_task, r.created_at, r.expires_at, r.status,
    r.decided_by, r.decided_at, r.reason, COALESCE(d.delivery, r.delivery) AS delivery,
    COALESCE(d.owed_since, r.owed_since) AS owed_since,
    CASE WHEN d.delivery IS NULL THEN r.listeners ELSE d.listeners END AS listeners,
    CASE WHEN d.delivery IS NULL THEN r.sent_to ELSE d.sent_to END AS sent_to,
    CASE WHEN d.delivery IS NULL THEN r.sent_at ELSE d.sent_at END AS sent_at, r.outcome,
    r.settled_at, r.acted_at, r.asked_at, r.moved_on, r.asked_again_until, r.decided_via, r.rule,
    r.policy_version, r.binding, r.risk, r.approvals_needed, r.approvals, r.ballots, r.voters,
    r.arguments, r.response, r.grant_id";

/// Joins the delivery `d` to each request `r`. `LIMIT` has Postgres look it up for each request by
/// its key: a plain join might read the whole table.
pub(super) const AND_DELIVERY: &str = "\
    LEFT JOIN LATERAL (
        SELECT x.delivery, x.owed_since, x.listeners, x.sent_to, x.sent_at FROM hitl_delivery AS x
         WHERE x.tenant_id = r.tenant_id AND x.request_id = r.request_id LIMIT 1
    ) AS d ON TRUE";
/// [`AND_DELIVERY`] on SQLite.
pub(super) const AND_DELIVERY_ON_SQLITE: &str = "\
    LEFT JOIN hitl_delivery AS d ON d.tenant_id = r.tenant_id AND d.request_id = r.request_id";

/// The columns of `hitl_delivery` that [`CURRENT_COLUMNS`] needs.
pub(super) const DELIVERY_COLUMNS: &str =
    "tenant_id, request_id, delivery, owed_since, listeners, sent_to, sent_at";
/// Joins its request `r` to each delivery `d`, as [`AND_DELIVERY`] does the other way round.
pub(super) const AND_REQUEST: &str = formatcp!(
    "JOIN LATERAL (
         SELECT {REQUEST_COLUMNS}, heard_at FROM hitl_request AS o
          WHERE o.tenant_id = d.tenant_id AND o.request_id = d.request_id LIMIT 1
     ) AS r ON TRUE"
);
/// [`AND_REQUEST`] on SQLite.
pub(super) const AND_REQUEST_ON_SQLITE: &str =
    "JOIN hitl_request AS r ON r.tenant_id = d.tenant_id AND r.request_id = d.request_id";

/// A column of the delivery of the request `r`, as a value: `NULL` without a delivery.
macro_rules! of_delivery {
    ($column:literal) => {
        concat!(
            "(SELECT x.",
            $column,
            " FROM hitl_delivery AS x
               WHERE x.tenant_id = r.tenant_id AND x.request_id = r.request_id)"
        )
    };
}

/// A column that may be `NULL` in a delivery: that of the delivery of the request `r`, if there is one,
/// else the request's own.
macro_rules! current {
    ($column:literal) => {
        concat!(
            "CASE WHEN ",
            of_delivery!("delivery"),
            " IS NULL THEN r.",
            $column,
            " ELSE ",
            of_delivery!($column),
            " END"
        )
    };
}

/// The delivery of the request `r` as it is now, as a value. A statement that also locks the request looks
/// at the request's `owed_since`: Postgres looks at the row again once it has the lock, but not at this.
pub(super) const DELIVERY: &str = concat!("COALESCE(", of_delivery!("delivery"), ", r.delivery)");
/// Since when the delivery of the request `r` has been owed, as a value.
pub(super) const OWED_SINCE: &str =
    concat!("COALESCE(", of_delivery!("owed_since"), ", r.owed_since)");
/// The number of listeners of the request `r`, as a value.
pub(super) const LISTENERS: &str = current!("listeners");
/// The replication id of the Redis that took the signal of the request `r`, as a value.
pub(super) const SENT_TO: &str = current!("sent_to");
/// When the signal of the request `r` was sent, as a value.
pub(super) const SENT_AT: &str = current!("sent_at");
/// When the signal of the request `r` was sent, or without a signal, when the request was closed. Only for
/// a delivery that is not owed.
pub(super) const SENT_OR_CLOSED_AT: &str =
    concat!("COALESCE(", of_delivery!("sent_at"), ", r.sent_at, r.settled_at)");

/// The end of an `INSERT` of a delivery that is owed: it takes the place of an earlier one.
pub(super) const OWED_ANEW: &str = "\
    ON CONFLICT (tenant_id, request_id) DO UPDATE SET
        delivery = excluded.delivery, owed_since = excluded.owed_since, due_at = excluded.due_at,
        attempts = 0, sent_at = NULL, listeners = NULL, sent_to = NULL";

/// When the agent of a request of Redis made it. `created_at` is when the service first saw it.
pub(super) const ASKED_AT: &str = "COALESCE(asked_at, created_at)";

/// The columns of a row of `hitl_request` that the ledger reads.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct RequestRow {
    request_id: String,
    origin: String,
    tenant_id: String,
    session_id: String,
    user_id: Option<String>,
    fingerprint: String,
    content_hash: String,
    document: String,
    task_id: String,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    status: String,
    decided_by: Option<String>,
    decided_at: Option<DateTime<Utc>>,
    reason: Option<String>,
    delivery: String,
    owed_since: DateTime<Utc>,
    listeners: Option<i64>,
    sent_to: Option<String>,
    sent_at: Option<DateTime<Utc>>,
    outcome: Option<i64>,
    settled_at: Option<DateTime<Utc>>,
    acted_at: Option<DateTime<Utc>>,
    asked_at: Option<DateTime<Utc>>,
    moved_on: bool,
    asked_again_until: Option<DateTime<Utc>>,
    #[sqlx(flatten)]
    ruling: RulingColumns,
    ballots: Option<i64>,
    arguments: Option<String>,
    response: Option<String>,
    /// The status of the request's task. Only statements that write a request return it.
    #[sqlx(default)]
    pub(super) task_status: Option<String>,
}

/// The columns of a row that say what the policy file said of the request.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct RulingColumns {
    decided_via: Option<String>,
    rule: Option<String>,
    policy_version: Option<String>,
    binding: Option<String>,
    risk: Option<String>,
    approvals_needed: Option<i64>,
    approvals: Option<i64>,
    voters: Option<String>,
    /// Lists do not read it.
    #[sqlx(default)]
    grant_id: Option<String>,
}

impl RulingColumns {
    pub(super) fn into_ruling(self) -> Ruling {
        Ruling {
            via: DecidedVia::of_column(self.decided_via.as_deref()),
            rule: self.rule,
            version: self.policy_version,
            binding: self.binding,
            risk: self.risk,
            approvals_needed: self.approvals_needed,
            approvals: self.approvals,
            voters: voters(self.voters.as_deref()),
            grant: self.grant_id.and_then(|id| GrantId::parse(id).ok()),
            ..Ruling::default()
        }
    }
}

impl RequestRow {
    /// The tenant and the id of this row, if they can be read.
    pub(super) fn key(&self) -> Option<(TenantId, RequestId)> {
        let tenant = TenantId::parse(self.tenant_id.as_str()).ok()?;
        Some((tenant, RequestId::parse(self.request_id.as_str()).ok()?))
    }

    /// The record of this row, without its delivery receipt.
    pub(super) fn into_record(self) -> Result<Record> {
        let odd =
            |what: &str| LedgerError::Inconsistent(format!("a request's {what} is not valid"));
        let decided = |verdict| -> Result<State> {
            let by = self.decided_by.clone().and_then(|by| UserId::parse(by).ok());
            let by = by.ok_or_else(|| odd("decided_by"))?;
            let at = self.decided_at.ok_or_else(|| odd("decided_at"))?;
            Ok(State::Decided(Decision { verdict, by, at }))
        };
        let state = match self.status.as_str() {
            "pending" => State::Pending,
            "approved" => decided(match self.arguments.clone() {
                Some(arguments) => Verdict::Edit { arguments },
                None => Verdict::Approve,
            })?,
            "rejected" if let Some(response) = self.response.clone() => {
                decided(Verdict::Respond { response })?
            }
            "rejected" => {
                let reason = self.reason.clone().ok_or_else(|| odd("reason"))?;
                decided(Verdict::Reject { reason })?
            }
            "expired" => State::Expired,
            "cancelled" => State::Cancelled,
            _ => return Err(odd("status")),
        };
        Ok(Record {
            id: RequestId::parse(self.request_id).map_err(|_invalid| odd("request_id"))?,
            origin: if self.origin == "http" { Origin::Http } else { Origin::Redis },
            session: SessionId::parse(self.session_id).map_err(|_invalid| odd("session_id"))?,
            tenant: TenantId::parse(self.tenant_id).map_err(|_invalid| odd("tenant_id"))?,
            user: self.user_id.map(UserId::parse).transpose().map_err(|_invalid| odd("user_id"))?,
            fingerprint: self.fingerprint,
            content_hash: self.content_hash,
            document: self.document,
            task: TaskId::parse(self.task_id).map_err(|_invalid| odd("task_id"))?,
            created_at: self.created_at,
            expires_at: self.expires_at,
            state,
            delivery: match self.delivery.as_str() {
                "owed" => Delivery::Owed,
                "sent" => Delivery::Sent,
                _ => Delivery::Superseded,
            },
            owed_since: self.owed_since,
            listeners: self.listeners,
            replication_id: self.sent_to,
            sent_at: self.sent_at,
            sequence: self.outcome,
            closed_at: self.settled_at,
            acted_at: self.acted_at,
            asked_at: self.asked_at.unwrap_or(self.created_at),
            has_moved_on: self.moved_on,
            asked_again_until: self.asked_again_until,
            ruling: Ruling { ballots: self.ballots.unwrap_or(0), ..self.ruling.into_ruling() },
        })
    }
}

/// The users in the column `voters`: a JSON array. A row that somebody has edited by hand has none.
pub(super) fn voters(column: Option<&str>) -> Vec<UserId> {
    names(column).into_iter().filter_map(|user| UserId::parse(user).ok()).collect()
}

/// A JSON array of texts.
pub(super) fn names(column: Option<&str>) -> Vec<String> {
    column.and_then(|column| serde_json::from_str(column).ok()).unwrap_or_default()
}
