//! A notice: what may leave the service of one event. It is the payload of a channel's row in the outbox.

use chrono::{DateTime, Utc};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::notice::Event;

/// What people are told of one event. The rule's `show` has already been applied.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// The same for every channel, and at every retry: `msg_` and 32 hex digits.
    pub id: String,
    /// What has happened.
    pub event: Event,
    /// When it happened, UTC.
    pub at: DateTime<Utc>,
    /// The tenant of the request.
    pub tenant: String,
    /// The request.
    pub request_id: String,
    /// Its session.
    pub session: String,
    /// The requester.
    pub user: Option<String>,
    /// The action that the agent wants to take.
    pub action: String,
    /// What the agent says of it, if the rule shows that.
    pub message: Option<String>,
    /// `low`, `medium`, `high` or `critical`; `None` without a policy file.
    pub risk: Option<String>,
    /// The name of the rule that binds.
    pub rule: Option<String>,
    /// `pending`, `approved`, `rejected`, `answered`, `expired` or `cancelled`.
    pub status: String,
    /// When the request expires, UTC.
    pub expires_at: DateTime<Utc>,
    /// Who decided: a user, or of an automatic decision the rule.
    pub decided_by: Option<String>,
    /// `person`, `policy` or `grant`.
    pub decided_via: Option<String>,
    /// The reason of a rejection, if the rule shows it.
    pub reason: Option<String>,
    /// Who caused the event, where that is a person: the commenter, or who withdrew the request.
    pub by: Option<String>,
    /// The address of the request on the page.
    pub url: Option<String>,
    /// The fields of `context` that the rule shows, each as JSON.
    pub context: IndexMap<String, Box<RawValue>>,
    /// Whom the rule lets decide, in the words of the policy file.
    pub approvers: Vec<String>,
    /// How many people have to approve.
    pub approvals_needed: Option<i64>,
    /// The ways to decide that the rule and the agent allow.
    pub decisions: Vec<String>,
    /// The entity tag of the content.
    pub etag: String,
}

impl Notice {
    /// As the payload of a row.
    #[must_use]
    pub fn json(&self) -> String {
        crate::domain::json::raw(self).get().to_owned()
    }
}
