//! Builds the requests of tests: the document that Aura writes, its session's pointer, the body that
//! registers it over HTTP, and the candidate for the ledger. The defaults of a request are here alone;
//! `with` sets or removes a field.

use aura_hitl::domain::ids::RequestId;
use aura_hitl::domain::record::Candidate;
use aura_hitl::domain::request::{ApprovalRequest, Origin};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::names::unique;

/// A request as Aura writes it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub id: String,
    pub session: String,
    pub document: Value,
}

impl Asked {
    pub fn new() -> Self {
        Self::in_session(&unique("session_user123"))
    }

    pub fn in_session(session: &str) -> Self {
        let id = unique("req");
        let document = json!({
            "requestId": id, "sessionId": session, "actionType": "send_email",
            "context": { "to": "a@b.c" }, "status": "pending", "userId": "user123",
            "tenantId": "tenant1", "createdAt": 8_123_456_789_u64,
        });
        Self { id, session: session.to_owned(), document }
    }

    /// Sets a field, or removes it when the value is null.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        if value.is_null() {
            self.document.as_object_mut().unwrap().remove(field);
        } else {
            self.document[field] = value;
        }
        self
    }

    /// The body that registers it over HTTP.
    pub fn registration(&self) -> Value {
        let mut body = json!({ "requestId": self.id, "sessionId": self.session });
        for field in
            ["actionType", "message", "context", "taskId", "planSteps", "decisions", "risk"]
        {
            if let Some(value) = self.document.get(field) {
                body[field] = value.clone();
            }
        }
        body
    }

    /// The candidate of this request, for calling the ledger directly.
    pub fn candidate(&self, origin: Origin, now: DateTime<Utc>) -> Candidate {
        candidate(&self.id, self.document.to_string(), origin, now)
    }
}

/// The candidate of a document, for calling the ledger directly. It expires after half an hour.
pub fn candidate(id: &str, document: String, origin: Origin, now: DateTime<Utc>) -> Candidate {
    let request = ApprovalRequest::read(&RequestId::parse(id).unwrap(), document).unwrap();
    let (tenant, user) = (request.tenant.clone(), request.user.clone());
    let expires_at = now + TimeDelta::seconds(1800);
    Candidate { request, origin, tenant, user, created_at: now, expires_at }
}
