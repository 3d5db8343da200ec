//! What the Auth server's audit log is told of a request: one entry for its registration and one
//! for its decision. The body is the wire contract's, to the letter.

use serde::Serialize;

use super::approver::Caller;
use super::decision::{State, Verdict};
use super::record::Candidate;
use chrono::{DateTime, Utc};

/// The entry that belongs to one write of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditEntry {
    /// The log is not fed, or the write is of no interest to it.
    None,
    /// The Auth server takes tenants that are integers, and this tenant is not.
    Unsendable,
    /// The JSON body to send.
    Body(String),
}

impl AuditEntry {
    /// The entry for a request that has reached this state by this caller's doing.
    #[must_use]
    pub fn of(candidate: &Candidate, state: &State, caller: &Caller, now: DateTime<Utc>) -> Self {
        let (action, reason) = match state {
            State::Pending => ("HITL_REQUEST", None),
            State::Decided(decision) => match &decision.verdict {
                Verdict::Approve => ("HITL_APPROVE", None),
                Verdict::Reject { reason } => ("HITL_REJECT", Some(reason.as_str())),
            },
            State::Expired | State::Cancelled => return Self::None,
        };
        let tenant = candidate.tenant.as_ref().unwrap_or(&caller.tenant);
        let Some(tenant_id) = integer(tenant.as_str()) else { return Self::Unsendable };
        let (request, user) = (&candidate.request, caller.user.as_str());
        let actor_user_id = integer(user);
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
                user_id: actor_user_id.is_none().then_some(user),
            },
        };
        // Strings and numbers can always be written.
        serde_json::to_string(&body).map_or(Self::None, Self::Body)
    }

    /// The body, if there is one to send.
    #[must_use]
    pub fn body(&self) -> Option<&str> {
        match self {
            Self::Body(body) => Some(body),
            Self::None | Self::Unsendable => None,
        }
    }
}

/// The integer that an id is. Two spellings of one number are two ids, so only the plain one counts.
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
    /// Always `null`: our ids are no integers.
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
    /// Who it was, when that is no integer.
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
