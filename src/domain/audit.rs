//! The entries for the Auth server's audit log: one when a request is registered, one when it is
//! decided; both at once where a rule or a grant decides it as it is registered. The JSON body follows
//! the wire contract byte for byte.

use serde::Serialize;

use super::decision::{State, Verdict};
use super::ids::{TenantId, UserId};
use super::record::Candidate;
use chrono::{DateTime, Utc};

/// The audit entry that belongs to one write of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditEntry {
    /// No entry: no audit log is configured, or this write is neither a registration nor a decision.
    None,
    /// No entry can be sent: the Auth server accepts only integer tenant ids, and this one is not.
    Unsendable,
    /// The JSON body to send.
    Body(String),
}

impl AuditEntry {
    /// The entry for a request that was brought into this state: by this caller, or `None` by a rule,
    /// which is no user. `tenant` is that of a request that names none.
    #[must_use]
    pub fn of(
        candidate: &Candidate,
        state: &State,
        tenant: &TenantId,
        actor: Option<&UserId>,
        now: DateTime<Utc>,
    ) -> Self {
        let (action, reason) = match state {
            State::Pending => ("HITL_REQUEST", None),
            State::Decided(decision) => match &decision.verdict {
                Verdict::Approve | Verdict::Edit { .. } => ("HITL_APPROVE", None),
                // The Auth server knows no answers. The agent does not act.
                verdict @ (Verdict::Reject { .. } | Verdict::Respond { .. }) => {
                    ("HITL_REJECT", verdict.column_reason())
                }
            },
            State::Expired | State::Cancelled => return Self::None,
        };
        let tenant = candidate.tenant.as_ref().unwrap_or(tenant);
        let Some(tenant_id) = integer(tenant.as_str()) else { return Self::Unsendable };
        let (request, user) = (&candidate.request, actor.map(UserId::as_str));
        let actor_user_id = user.and_then(integer);
        let body = Body {
            tenant_id,
            actor_user_id,
            action,
            resource_type: "HITL",
            resource_id: None,
            metadata: Metadata {
                request_id: request.id.as_str(),
                session_id: request.session.as_str(),
                action_type: &request.action_type,
                timestamp: now.timestamp_millis(),
                reason,
                user_id: user.filter(|_user| actor_user_id.is_none()),
            },
        };
        // Serialising strings and numbers cannot fail.
        serde_json::to_string(&body).map_or(Self::None, Self::Body)
    }

    /// The JSON body; `None` when there is nothing to send.
    #[must_use]
    pub fn body(&self) -> Option<&str> {
        match self {
            Self::Body(body) => Some(body),
            Self::None | Self::Unsendable => None,
        }
    }
}

/// The id as an integer, if it is spelled like one. `7` and `07` are different ids, so only the
/// shortest spelling of a number counts.
fn integer(id: &str) -> Option<i64> {
    id.parse::<i64>().ok().filter(|number| number.to_string() == id)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    tenant_id: i64,
    actor_user_id: Option<i64>,
    action: &'static str,
    resource_type: &'static str,
    /// Always `null`: the Auth server expects an integer, and request ids are text.
    resource_id: Option<i64>,
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    request_id: &'a str,
    session_id: &'a str,
    action_type: &'a str,
    /// Unix milliseconds.
    timestamp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// The user id, when it is not an integer and so cannot be `actorUserId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::integer;

    #[test]
    fn an_id_is_an_integer_only_in_its_plain_spelling() {
        for (id, number) in
            [("7", Some(7)), ("-1", Some(-1)), ("9223372036854775807", Some(i64::MAX))]
        {
            assert_eq!(integer(id), number, "{id}");
        }
        for id in ["", "07", "+7", " 7", "7.0", "-0", "tenant1", "9223372036854775808", "７"] {
            assert_eq!(integer(id), None, "{id}");
        }
    }
}
