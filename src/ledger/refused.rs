//! Refused attempts to decide, as they are written and as auditors get them.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::export::instant;
use crate::domain::approver::Caller;
use crate::domain::ids::RequestId;

/// Somebody's attempt to decide that was refused.
#[derive(Clone, Debug)]
pub struct RefusedAttempt {
    /// When.
    pub at: DateTime<Utc>,
    /// Who, as the token says.
    pub caller: Caller,
    /// What they wanted to decide.
    pub request: RequestId,
    /// `approved` or `rejected`: what they wanted it to be.
    pub verdict: &'static str,
    /// The contract's error code.
    pub error_code: &'static str,
    /// Why it was refused, in English.
    pub reason: String,
    /// The tag of the content that they had looked at.
    pub if_match: Option<String>,
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
