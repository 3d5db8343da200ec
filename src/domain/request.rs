//! An approval request, as agents write it and as we keep it.
//!
//! The document is a stranger's data: it is read leniently where agents differ (ids as integers,
//! missing fields), strictly where a wrong reading could let the wrong person decide, and kept to
//! the letter, so that rewriting it changes nothing but its status.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest, Sha256};

use super::decision::{Decision, State, Verdict};
use super::ids::{RequestId, SessionId, TaskId, TenantId, UserId};
use super::json::{self, RawObject};

/// How long `hitl:request:{requestId}` lives, in seconds (wire contract).
pub const REQUEST_TTL_SECONDS: u64 = 1800;
/// Largest pending request that is read, in bytes; a registration may be as large.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024 + 64 * 1024;
/// How long existing agents wait for an answer before they give up (wire contract).
pub const PATIENCE: TimeDelta = TimeDelta::seconds(300);
/// How long `hitl:session:{sessionId}` lives, in seconds (wire contract).
pub const SESSION_TTL_SECONDS: u64 = 3600;

/// How long ago a request in Redis was made, from the rest of its time to live: agents write no
/// usable time, but they set the whole of it when they ask. A key without an end counts as new.
#[must_use]
pub fn age(ttl: Option<Duration>) -> TimeDelta {
    let whole = Duration::from_secs(REQUEST_TTL_SECONDS);
    let gone = whole.saturating_sub(ttl.unwrap_or(whole));
    TimeDelta::from_std(gone).unwrap_or_default()
}

/// Who wrote a request first. Agents that write to Redis take any message on their channel for
/// their answer; agents that register over HTTP match on the request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An agent wrote it to Redis; we know it from its decision on.
    Redis,
    /// Registered over HTTP; the ledger knew it before anyone decided.
    Http,
}

/// What a request asks for, whoever kept it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalRequest {
    /// The request's id.
    pub id: RequestId,
    /// The agent session that waits for the answer.
    pub session: SessionId,
    /// The person it was asked of, when it names one.
    pub user: Option<UserId>,
    /// Its tenant, when it names one.
    pub tenant: Option<TenantId>,
    /// What the agent is about to do, `unknown` when it does not say.
    pub action_type: String,
    /// With what: raw JSON, `null` when it does not say.
    pub context: String,
    /// The sentence shown to the person, when there is one.
    pub message: Option<String>,
    /// The agent's own task, when the request names a usable one.
    pub task: Option<TaskId>,
    /// The plan the request brought along: a raw JSON array.
    pub plan_steps: String,
    /// `pending` until decided.
    pub status: String,
    /// Lower-case hex SHA-256 of the canonical `actionType` and `context`: two requests with the
    /// same fingerprint ask for the same thing.
    pub fingerprint: String,
    /// Lower-case hex SHA-256 of everything the document says but when it was written. A registered
    /// request's copy in Redis must have the one that was registered.
    pub content_hash: String,
    /// The whole request as it was written, one JSON object.
    pub document: String,
}

/// A request that nobody can decide, because it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Unreadable {
    /// What is wrong; never holds the request's own text.
    pub problem: &'static str,
    /// Its tenant, when that much could be read: other tenants must not learn that it exists.
    pub tenant: Option<TenantId>,
}

impl ApprovalRequest {
    /// Reads a request's JSON, found under the key of `id`.
    ///
    /// # Errors
    /// [`Unreadable`] when it is not a JSON object, lacks a session id, carries another request's
    /// id, or names its people in a way that cannot be understood.
    pub fn read(id: &RequestId, document: String) -> Result<Self, Unreadable> {
        let object: RawObject = serde_json::from_str(&document)
            .map_err(|_cause| Unreadable { problem: "is not a JSON object", tenant: None })?;
        let tenant = name(&object, "tenantId")
            .and_then(|t| {
                t.map(TenantId::parse).transpose().map_err(|_invalid| "has a bad tenantId")
            })
            .map_err(|problem| Unreadable { problem, tenant: None })?;
        Self::from_object(id, &object, tenant.clone(), document)
            .map_err(|problem| Unreadable { problem, tenant })
    }

    fn from_object(
        id: &RequestId,
        object: &RawObject,
        tenant: Option<TenantId>,
        document: String,
    ) -> Result<Self, &'static str> {
        if name(object, "requestId")?.is_some_and(|named| named != id.as_str()) {
            return Err("carries another request's id");
        }
        let session = name(object, "sessionId")?.ok_or("has no sessionId")?;
        let session = SessionId::parse(session).map_err(|_invalid| "has a bad sessionId")?;
        let user = name(object, "userId")?.map(UserId::parse).transpose();
        let user = user.map_err(|_invalid| "has a bad userId")?;
        let action_type = text(object, "actionType")?.unwrap_or_else(|| "unknown".to_owned());
        let context = object.get("context").map_or("null", |context| context.get()).to_owned();
        let task = json::present(object, "taskId").and_then(json::text_or_digits);
        let status = text(object, "status")?.unwrap_or_else(|| "pending".to_owned());
        // A decided one has grown by the decision.
        if status == "pending" && document.len() > MAX_DOCUMENT_BYTES {
            return Err("is too large");
        }
        let (fingerprint, content_hash) = hashes(&action_type, object);
        Ok(Self {
            id: id.clone(),
            session,
            user,
            tenant,
            fingerprint,
            content_hash,
            action_type,
            message: text(object, "message").ok().flatten(),
            task: task.and_then(|task| TaskId::parse(task).ok()),
            plan_steps: plan_steps(object, &context),
            context,
            status,
            document,
        })
    }

    /// Whether nobody has decided it yet, as far as the document knows.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.status == "pending"
    }
}

/// Whether a document under the key of `id` is a request of this tenant's that is not pending any
/// more. Reads no more than that: agents ask often.
#[must_use]
pub fn is_settled_for(id: &RequestId, tenant: &TenantId, document: &str) -> bool {
    let Ok(object) = serde_json::from_str::<RawObject>(document) else { return false };
    let names = |field, expected: &str| match name(&object, field) {
        Ok(Some(name)) => Some(name == expected),
        Ok(None) => None,
        Err(_odd) => Some(false),
    };
    let is_settled = matches!(text(&object, "status"), Ok(Some(status)) if status != "pending");
    is_settled
        && names("requestId", id.as_str()) != Some(false)
        && names("tenantId", tenant.as_str()) == Some(true)
}

/// A user, tenant, session or request name: a string or an integer; null and blank are absent.
fn name(object: &RawObject, field: &'static str) -> Result<Option<String>, &'static str> {
    let Some(value) = json::present(object, field) else { return Ok(None) };
    let text = json::text_or_digits(value).ok_or("names somebody in a form that is not text")?;
    Ok(Some(text).filter(|text| !text.trim().is_empty()))
}

/// A string that Postgres can keep; null is absent.
fn text(object: &RawObject, field: &'static str) -> Result<Option<String>, &'static str> {
    let Some(value) = json::present(object, field) else { return Ok(None) };
    let text: String = serde_json::from_str(value.get())
        .map_err(|_cause| "has a field that should be text and is not")?;
    if text.contains('\0') { Err("holds a NUL character") } else { Ok(Some(text)) }
}

/// The request's plan, else its context's; as an array, or as a string that holds one.
fn plan_steps(object: &RawObject, context: &str) -> String {
    let array = |object: &RawObject| {
        let value = json::present(object, "planSteps")?;
        let text =
            serde_json::from_str::<String>(value.get()).unwrap_or_else(|_| value.get().to_owned());
        serde_json::from_str::<Vec<&serde_json::value::RawValue>>(&text).ok()?;
        Some(text)
    };
    array(object)
        .or_else(|| array(&serde_json::from_str::<RawObject>(context).ok()?))
        .unwrap_or_else(|| "[]".to_owned())
}

/// The hashes of what is asked for, and of everything that is said; each text is spelled once.
fn hashes(action_type: &str, object: &RawObject) -> (String, String) {
    let mut fields: BTreeMap<&str, String> = object
        .iter()
        .filter(|(name, _)| *name != "createdAt")
        .map(|(name, value)| (name.as_str(), json::canonical(value)))
        .collect();
    let mut everything = Sha256::new();
    for (name, value) in &fields {
        everything.update(json::raw(name).get());
        everything.update(":");
        everything.update(value);
        everything.update(",");
    }
    let context = fields.remove("context").unwrap_or_else(|| "null".to_owned());
    let action_type = json::raw(action_type);
    let asked = format!(r#"{{"actionType":{},"context":{context}}}"#, action_type.get());
    (format!("{:x}", Sha256::digest(asked)), format!("{:x}", everything.finalize()))
}

/// The document after a decision: the same object with the contract's fields set.
#[must_use]
pub fn decided_document(document: &str, decision: &Decision) -> String {
    let mut object: RawObject = serde_json::from_str(document).unwrap_or_default();
    let (by, at) = match decision.verdict {
        Verdict::Approve => ("approvedBy", "approvedAt"),
        Verdict::Reject { .. } => ("rejectedBy", "rejectedAt"),
    };
    object.insert("status".to_owned(), json::raw(decision.verdict.status()));
    object.insert(by.to_owned(), json::raw(decision.by.as_str()));
    object.insert(at.to_owned(), json::raw(&decision.at.timestamp_millis()));
    if let Some(reason) = decision.verdict.reason() {
        object.insert("reason".to_owned(), json::raw(reason));
    }
    json::raw(&object).get().to_owned()
}

/// The document of a request that was closed undecided: the same object with another status.
#[must_use]
pub fn closed_document(document: &str, state: &State) -> String {
    let mut object: RawObject = serde_json::from_str(document).unwrap_or_default();
    object.insert("status".to_owned(), json::raw(state.as_str()));
    json::raw(&object).get().to_owned()
}

/// What an agent registers over HTTP, already validated.
#[derive(Debug)]
pub struct Registration {
    /// The request's id, the agent's or a new one.
    pub id: RequestId,
    /// The agent session that waits.
    pub session: SessionId,
    /// The token's user.
    pub user: UserId,
    /// The token's tenant.
    pub tenant: TenantId,
    /// What the agent is about to do.
    pub action_type: String,
    /// The sentence shown to the person.
    pub message: Option<String>,
    /// Raw JSON.
    pub context: Option<String>,
    /// The agent's own task.
    pub task: Option<TaskId>,
    /// A raw JSON array.
    pub plan_steps: Option<String>,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

impl Registration {
    /// The document, in the form in which agents write it to Redis. `createdAt` is Unix
    /// milliseconds here; readers must not rely on it.
    #[must_use]
    pub fn document(&self) -> String {
        let mut object = RawObject::new();
        let mut put = |name: &str, value| object.insert(name.to_owned(), value);
        put("requestId", json::raw(self.id.as_str()));
        put("sessionId", json::raw(self.session.as_str()));
        put("actionType", json::raw(&self.action_type));
        let raw_or_null = |text: &str| {
            serde_json::value::RawValue::from_string(text.to_owned())
                .unwrap_or_else(|_| json::raw(&()))
        };
        put("context", raw_or_null(self.context.as_deref().unwrap_or("null")));
        put("status", json::raw("pending"));
        put("userId", json::raw(self.user.as_str()));
        put("tenantId", json::raw(self.tenant.as_str()));
        put("createdAt", json::raw(&self.created_at.timestamp_millis()));
        if let Some(message) = &self.message {
            put("message", json::raw(message));
        }
        if let Some(task) = &self.task {
            put("taskId", json::raw(task.as_str()));
        }
        if let Some(steps) = &self.plan_steps {
            put("planSteps", raw_or_null(steps));
        }
        json::raw(&object).get().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(document: &str) -> Result<ApprovalRequest, Unreadable> {
        ApprovalRequest::read(&RequestId::parse("req_1").unwrap(), document.to_owned())
    }

    #[test]
    fn ids_may_be_integers_null_or_absent() {
        let request = read(r#"{"sessionId":"s","userId":7,"tenantId":null}"#).unwrap();
        assert_eq!(request.user.unwrap().as_str(), "7");
        assert_eq!(request.tenant, None);
        assert_eq!(request.status, "pending");
        assert_eq!(request.context, "null");
    }

    #[test]
    fn broken_requests_say_what_is_wrong() {
        for (document, problem) in [
            ("nonsense", "is not a JSON object"),
            ("[1]", "is not a JSON object"),
            ("{}", "has no sessionId"),
            (r#"{"sessionId":"a b"}"#, "has a bad sessionId"),
            (r#"{"sessionId":"s","requestId":"req_2"}"#, "carries another request's id"),
            (r#"{"sessionId":"s","tenantId":{}}"#, "names somebody in a form that is not text"),
            (r#"{"sessionId":"s","actionType":"a\u0000"}"#, "holds a NUL character"),
        ] {
            assert_eq!(read(document).unwrap_err().problem, problem, "{document}");
        }
        let stranger = read(r#"{"tenantId":"t2"}"#).unwrap_err();
        assert_eq!(stranger.tenant.unwrap().as_str(), "t2");
    }

    #[test]
    fn the_plan_is_found_where_agents_put_it() {
        let plan = |document: &str| read(document).unwrap().plan_steps;
        assert_eq!(plan(r#"{"sessionId":"s","planSteps":[{"id":1}]}"#), r#"[{"id":1}]"#);
        assert_eq!(plan(r#"{"sessionId":"s","planSteps":"[1]"}"#), "[1]");
        assert_eq!(plan(r#"{"sessionId":"s","context":{"planSteps":[2]}}"#), "[2]");
        assert_eq!(plan(r#"{"sessionId":"s","planSteps":{"a":1}}"#), "[]");
    }

    #[test]
    fn rewriting_keeps_unknown_fields_and_numbers() {
        let decision = Decision {
            verdict: Verdict::Reject { reason: "안 돼요".to_owned() },
            by: UserId::parse("user123").unwrap(),
            at: DateTime::from_timestamp_millis(1_706_152_860_123).unwrap(),
        };
        let before = r#"{"sessionId":"s","status":"pending","x":1.10,"createdAt":12345678901234567890123,"y":{"b":1,"a":"\udcff"}}"#;
        assert_eq!(
            decided_document(before, &decision),
            r#"{"sessionId":"s","status":"rejected","x":1.10,"createdAt":12345678901234567890123,"y":{"b":1,"a":"\udcff"},"rejectedBy":"user123","rejectedAt":1706152860123,"reason":"안 돼요"}"#
        );
    }

    #[test]
    fn the_fingerprint_covers_the_action_and_its_context_only() {
        let of = |document: &str| read(document).unwrap().fingerprint;
        let base =
            of(r#"{"sessionId":"s","actionType":"send","context":{"a":1,"b":2},"createdAt":1}"#);
        assert_eq!(
            base,
            of(r#"{"createdAt":2,"sessionId":"s","context":{"b":2,"a":1},"actionType":"send"}"#)
        );
        assert_ne!(base, of(r#"{"sessionId":"s","actionType":"send","context":{"a":1,"b":3}}"#));
        assert_ne!(base, of(r#"{"sessionId":"s","actionType":"sent","context":{"a":1,"b":2}}"#));
        assert_eq!(base.len(), 64);
    }
}
