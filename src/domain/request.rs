//! An approval request: reading an agent's JSON, its hashes, and its rewritten forms.
//!
//! Agents differ in how they write the JSON, so integer ids and missing fields are accepted. A field that
//! says who may decide is read strictly. The document is kept byte for byte: rewriting it changes only
//! the status and the fields of the decision.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use indexmap::IndexMap;
use sha2::{Digest, Sha256};

use super::decision::{Decision, State, Verdict};
use super::ids::{RequestId, SessionId, TaskId, TenantId, UserId};
use super::json::{self, RawObject};
use super::python_json::{self, Fields};
use super::ways::{Offer, Risk, Way};

/// How long `hitl:request:{requestId}` lives, in seconds (wire contract).
pub const REQUEST_TTL_SECONDS: u64 = 1800;
/// Largest pending request, in bytes, whether found in Redis or registered over HTTP.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024 + 64 * 1024;
/// How long the platform's agents wait for an answer before they give up (wire contract).
pub const AGENT_TIMEOUT: TimeDelta = TimeDelta::seconds(300);

/// The age of a request in Redis, computed from the remaining time to live of its key. Agents set the
/// full time to live when they make a request, but write no usable creation time. A key without a time to
/// live counts as new.
#[must_use]
pub fn age(ttl: Option<Duration>) -> TimeDelta {
    let whole = Duration::from_secs(REQUEST_TTL_SECONDS);
    let gone = whole.saturating_sub(ttl.unwrap_or(whole));
    TimeDelta::from_std(gone).unwrap_or_default()
}

/// Where a request was first written. An agent on Redis treats any message on its channel as its answer,
/// so requests of Redis are decided only while their session still names them. Requests registered over
/// HTTP exist only in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An agent wrote the request to Redis. The ledger has it once it was seen there, and what counts
    /// from its decision on: see [`Record::is_only_seen`](super::record::Record::is_only_seen).
    Redis,
    /// The request was registered over HTTP. The ledger has it from the start.
    Http,
}

/// A valid approval request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalRequest {
    /// The request's id.
    pub id: RequestId,
    /// The agent session that waits for the answer.
    pub session: SessionId,
    /// The user that the request names, if any.
    pub user: Option<UserId>,
    /// The tenant that the request names, if any.
    pub tenant: Option<TenantId>,
    /// What the agent wants to do; `unknown` when the request has no `actionType`.
    pub action_type: String,
    /// The details of the action as JSON; `null` when the request has no `context`. Python's bare words
    /// are strings here, and values that Postgres cannot cast are replaced (see [`json::storable`]).
    pub context: String,
    /// The sentence shown to the person, if the request has one.
    pub message: Option<String>,
    /// The agent's own task, if the request names a valid task id.
    pub task: Option<TaskId>,
    /// The plan in the request: a JSON array, made storable like `context`.
    pub plan_steps: String,
    /// What its agent says of the decision. Counts only for registered requests.
    pub offer: Offer,
    /// `pending` until decided.
    pub status: String,
    /// Lower-case hex SHA-256 of the canonical `actionType` and `context`. Two requests with the same
    /// fingerprint ask for the same action.
    pub fingerprint: String,
    /// Lower-case hex SHA-256 of all fields of the document except `createdAt`. Two requests under one id
    /// are the same only if this hash agrees.
    pub content_hash: String,
    /// See [`etag`].
    pub etag: String,
    /// The whole request as its agent wrote it: one JSON object.
    pub document: String,
}

/// The tenant and the session of a request in Redis. Only these two fields are read, so that a caller of
/// another tenant is refused before anything is compared or hashed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// See [`ApprovalRequest::tenant`].
    pub tenant: Option<TenantId>,
    /// See [`ApprovalRequest::session`].
    pub session: Option<SessionId>,
}

impl Scope {
    /// Reads the scope. The rest of the request may be invalid. A field that cannot be read is `None`.
    #[must_use]
    pub fn read(document: &str) -> Self {
        let Some(object) = python_json::fields(document) else { return Self::default() };
        let name = |field| name(&object, field).ok().flatten();
        Self {
            tenant: name("tenantId").and_then(|tenant| TenantId::parse(tenant).ok()),
            session: name("sessionId").and_then(|session| SessionId::parse(session).ok()),
        }
    }
}

impl ApprovalRequest {
    /// Reads a request's JSON, found under the key of `id`.
    ///
    /// # Errors
    /// A description that repeats no text of the document: it is not a JSON object, is too large, names a
    /// field twice, has no valid session id, carries another request's id, names a tenant or a user by an
    /// invalid id, or has a text field that is not text.
    pub fn read(id: &RequestId, document: String) -> Result<Self, &'static str> {
        let object = python_json::fields(&document).ok_or("is not a JSON object")?;
        let request = Self::from_object(id, &object, &document)?;
        Ok(Self { document, ..request })
    }

    fn from_object(
        id: &RequestId,
        object: &Fields<'_>,
        document: &str,
    ) -> Result<Self, &'static str> {
        let tenant = name(object, "tenantId")?.map(TenantId::parse).transpose();
        let tenant = tenant.map_err(|_invalid| "has a bad tenantId")?;
        if python_json::repeats_a_name(document) {
            return Err("names a field twice");
        }
        if name(object, "requestId")?.is_some_and(|named| named != id.as_str()) {
            return Err("carries another request's id");
        }
        let session = name(object, "sessionId")?.ok_or("has no sessionId")?;
        let session = SessionId::parse(session).map_err(|_invalid| "has a bad sessionId")?;
        let user = name(object, "userId")?.map(UserId::parse).transpose();
        let user = user.map_err(|_invalid| "has a bad userId")?;
        let action_type = text(object, "actionType")?.unwrap_or_else(|| "unknown".to_owned());
        let context = object.get("context").copied().unwrap_or("null");
        let task = present(object, "taskId").and_then(json::read_name);
        let status = text(object, "status")?.unwrap_or_else(|| "pending".to_owned());
        // A decided document is larger by the fields of the decision.
        if status == "pending" && document.len() > MAX_DOCUMENT_BYTES {
            return Err("is too large");
        }
        let Hashes { fingerprint, content_hash, etag } = hashes(&action_type, object);
        Ok(Self {
            id: id.clone(),
            session,
            user,
            tenant,
            fingerprint,
            content_hash,
            etag,
            action_type,
            message: text(object, "message").ok().flatten(),
            task: task.and_then(|task| TaskId::parse(task).ok()),
            plan_steps: plan_steps(object, context),
            context: json::storable(&python_json::quoted(context)),
            offer: Offer::read(object),
            status,
            document: String::new(),
        })
    }

    /// Whether the document's status is `pending`.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.status == "pending"
    }
}

/// The status of a request in Redis, `pending` when it has no status; `None` when the text is not a valid
/// request. Only this field is read, because agents poll often.
#[must_use]
pub fn status_of(document: &str) -> Option<String> {
    let object = python_json::fields(document)?;
    Some(text(&object, "status").ok()?.unwrap_or_else(|| "pending".to_owned()))
}

/// The `context` of a request as people see it: as its agent wrote it, with Python's bare words as
/// strings. An empty object when the request has no context.
#[must_use]
pub fn shown_context(document: &str) -> Box<serde_json::value::RawValue> {
    let object = python_json::fields(document).unwrap_or_default();
    let context = present(&object, "context").unwrap_or("{}");
    serde_json::value::RawValue::from_string(python_json::quoted(context).into_owned())
        .unwrap_or_else(|_invalid| json::raw(&RawObject::new()))
}

/// The value of a field; `None` when the field is absent or `null`.
fn present<'a>(object: &Fields<'a>, name: &str) -> Option<&'a str> {
    object.get(name).copied().filter(|value| *value != "null")
}

/// A user, tenant, session or request id: a string or an integer; `None` when absent, null or blank.
fn name(object: &Fields<'_>, field: &'static str) -> Result<Option<String>, &'static str> {
    let Some(value) = present(object, field) else { return Ok(None) };
    let text = json::read_name(value).ok_or("has an id that is neither text nor an integer")?;
    Ok(Some(text).filter(|text| !text.trim().is_empty()))
}

/// A string that Postgres can store; `None` when absent or null.
fn text(object: &Fields<'_>, field: &'static str) -> Result<Option<String>, &'static str> {
    let Some(value) = present(object, field) else { return Ok(None) };
    let text: String = serde_json::from_str(value)
        .map_err(|_cause| "has a field that should be text and is not")?;
    if text.contains('\0') { Err("holds a NUL character") } else { Ok(Some(text)) }
}

/// The `planSteps` of the request, else those of its context: an array, or a string that contains one.
fn plan_steps(object: &Fields<'_>, context: &str) -> String {
    let array = |object: &Fields<'_>| {
        let value = present(object, "planSteps")?;
        let text = serde_json::from_str::<String>(value).unwrap_or_else(|_| value.to_owned());
        let text = python_json::quoted(&text);
        serde_json::from_str::<Vec<&serde_json::value::RawValue>>(&text).ok()?;
        Some(json::storable(&text))
    };
    array(object)
        .or_else(|| array(&python_json::fields(context)?))
        .unwrap_or_else(|| "[]".to_owned())
}

struct Hashes {
    fingerprint: String,
    content_hash: String,
    etag: String,
}

/// The three hashes of a request. Each field is brought into canonical form once.
fn hashes(action_type: &str, object: &Fields<'_>) -> Hashes {
    let mut fields = canonical_fields(object);
    let etag = hash_of_content(&fields);
    let mut everything = Sha256::new();
    for (name, value) in &fields {
        everything.update(json::raw(name).get());
        everything.update(":");
        everything.update(value);
        everything.update(",");
    }
    let context = fields.remove("context").unwrap_or_else(|| "null".to_owned());
    Hashes {
        fingerprint: fingerprint_of(action_type, &context),
        content_hash: format!("{:x}", everything.finalize()),
        etag,
    }
}

/// The fingerprint of an action with a context in canonical form.
fn fingerprint_of(action_type: &str, context: &str) -> String {
    let action_type = json::raw(action_type);
    let asked = format!(r#"{{"actionType":{},"context":{context}}}"#, action_type.get());
    format!("{:x}", Sha256::digest(asked))
}

/// The fingerprint of an action with these arguments instead of those that were asked: JSON.
#[must_use]
pub fn edited_fingerprint(action_type: &str, arguments: &str) -> String {
    fingerprint_of(action_type, &python_json::canonical(arguments))
}

/// All fields of a request except `createdAt`, sorted by name, each value in canonical form.
fn canonical_fields<'a>(object: &'a Fields<'_>) -> BTreeMap<&'a str, String> {
    let fields = object.iter().filter(|(name, _)| *name != "createdAt");
    fields.map(|(name, value)| (name.as_str(), python_json::canonical(value))).collect()
}

/// The hash of everything that a request says but its ids and `createdAt`: two requests with the same hash
/// differ in nothing that a person could have read in one and not in the other.
#[must_use]
pub fn said(document: &str) -> String {
    let object = python_json::fields(document).unwrap_or_default();
    let mut fields = canonical_fields(&object);
    for id in ["requestId", "sessionId", "taskId"] {
        fields.remove(id);
    }
    let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value));
    format!("{:x}", Sha256::digest(python_json::object(&fields.collect::<IndexMap<_, _>>())))
}

/// The entity tag of a request: lower-case hex SHA-256 of its document without `createdAt` and
/// `status`, in the canonical form of [`python_json::canonical`]. A program that has the document can
/// compute it from Python's `json.dumps(…, sort_keys=True, separators=(",", ":"), ensure_ascii=False)`.
/// The ledger keeps the document as it was before the decision, so a decision does not change the tag.
#[must_use]
pub fn etag(document: &str) -> String {
    let object = python_json::fields(document).unwrap_or_default();
    hash_of_content(&canonical_fields(&object))
}

fn hash_of_content(fields: &BTreeMap<&str, String>) -> String {
    let said = fields.iter().filter(|(name, _)| **name != "status");
    let said = said.map(|(name, value)| ((*name).to_owned(), value)).collect::<IndexMap<_, _>>();
    format!("{:x}", Sha256::digest(python_json::object(&said)))
}

/// The document after a decision: the same object, with the wire contract's fields of a decision.
#[must_use]
pub fn decided_document(document: &str, decision: &Decision) -> String {
    let (by, at) = match decision.verdict {
        Verdict::Approve | Verdict::Edit { .. } => ("approvedBy", "approvedAt"),
        Verdict::Reject { .. } => ("rejectedBy", "rejectedAt"),
        Verdict::Respond { .. } => ("answeredBy", "answeredAt"),
    };
    let mut fields = vec![
        ("status", json::raw(decision.verdict.status())),
        (by, json::raw(decision.by.as_str())),
        (at, json::raw(&decision.at.timestamp_millis())),
    ];
    if let Some(reason) = decision.verdict.reason() {
        fields.push(("reason", json::raw(reason)));
    }
    let said =
        [("arguments", decision.verdict.arguments()), ("response", decision.verdict.response())];
    for (name, value) in said {
        fields.extend(value.map(|value| (name, json::raw_or_null(value))));
    }
    rewritten(document, fields)
}

/// The same object with some fields set. All other fields keep their spelling.
fn rewritten(
    document: &str,
    fields: impl IntoIterator<Item = (&'static str, Box<serde_json::value::RawValue>)>,
) -> String {
    let object = python_json::fields(document).unwrap_or_default();
    let mut object: IndexMap<String, Cow<'_, str>> =
        object.into_iter().map(|(name, value)| (name, value.into())).collect();
    for (name, value) in fields {
        object.insert(name.to_owned(), value.get().to_owned().into());
    }
    python_json::object(&object)
}

/// The document of a request that expired or was withdrawn: the same object with that status.
#[must_use]
pub fn closed_document(document: &str, state: &State) -> String {
    rewritten(document, [("status", json::raw(state.as_str()))])
}

/// A valid registration over HTTP.
#[derive(Debug)]
pub struct Registration {
    /// The request's id, chosen by the agent or generated.
    pub id: RequestId,
    /// The agent session that waits.
    pub session: SessionId,
    /// The token's user.
    pub user: UserId,
    /// The token's tenant.
    pub tenant: TenantId,
    /// What the agent wants to do.
    pub action_type: String,
    /// The sentence shown to the person.
    pub message: Option<String>,
    /// Raw JSON.
    pub context: Option<String>,
    /// The agent's own task.
    pub task: Option<TaskId>,
    /// A raw JSON array.
    pub plan_steps: Option<String>,
    /// `decisions`, if the agent names them.
    pub ways: Option<Vec<Way>>,
    /// `argumentsSchema`, raw JSON.
    pub arguments_schema: Option<String>,
    /// `responseSchema`, raw JSON.
    pub response_schema: Option<String>,
    /// `risk`
    pub risk: Option<Risk>,
    /// When the request was registered, UTC.
    pub created_at: DateTime<Utc>,
}

impl Registration {
    /// The request's document, in the form in which agents write it to Redis. `createdAt` is in Unix
    /// milliseconds here; agents on Redis write other values, so readers must not rely on it.
    #[must_use]
    pub fn document(&self) -> String {
        let mut object = RawObject::new();
        let mut put = |name: &str, value| object.insert(name.to_owned(), value);
        put("requestId", json::raw(self.id.as_str()));
        put("sessionId", json::raw(self.session.as_str()));
        put("actionType", json::raw(&self.action_type));
        put("context", json::raw_or_null(self.context.as_deref().unwrap_or("null")));
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
            put("planSteps", json::raw_or_null(steps));
        }
        if let Some(ways) = &self.ways {
            put("decisions", Way::json(ways));
        }
        for (name, schema) in
            [("argumentsSchema", &self.arguments_schema), ("responseSchema", &self.response_schema)]
        {
            if let Some(schema) = schema {
                put(name, json::raw_or_null(schema));
            }
        }
        if let Some(risk) = self.risk {
            put("risk", json::raw(risk.as_str()));
        }
        json::raw(&object).get().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(document: &str) -> Result<ApprovalRequest, &'static str> {
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
            (r#"{"sessionId":"s","tenantId":{}}"#, "has an id that is neither text nor an integer"),
            (r#"{"sessionId":"s","actionType":"a\u0000"}"#, "holds a NUL character"),
            (r#"{"sessionId":"s","userId":"a","userId":"b"}"#, "names a field twice"),
            (r#"{"sessionId":"s","\u0073essionId":"s"}"#, "names a field twice"),
            (r#"{"sessionId":"s","context":{"x":[{"to":1,"to":1}]}}"#, "names a field twice"),
            (r#"{"sessionId":"s","context":nan}"#, "is not a JSON object"),
        ] {
            assert_eq!(read(document).unwrap_err(), problem, "{document}");
        }
    }

    #[test]
    fn the_scope_of_an_invalid_request_can_be_read() {
        let scope = Scope::read(r#"{"tenantId":"t2","userId":{},"sessionId":7,"actionType":5}"#);
        assert_eq!(scope.tenant.unwrap().as_str(), "t2");
        assert_eq!(scope.session.unwrap().as_str(), "7");
        assert_eq!(Scope::read(r#"{"tenantId":{}}"#), Scope::default());
        assert_eq!(Scope::read("nonsense"), Scope::default());
    }

    #[test]
    fn the_plan_is_found_where_agents_put_it() {
        let plan = |document: &str| read(document).unwrap().plan_steps;
        assert_eq!(plan(r#"{"sessionId":"s","planSteps":[{"id":1}]}"#), r#"[{"id":1}]"#);
        assert_eq!(plan(r#"{"sessionId":"s","planSteps":"[1]"}"#), "[1]");
        assert_eq!(plan(r#"{"sessionId":"s","context":{"planSteps":[2]}}"#), "[2]");
        assert_eq!(plan(r#"{"sessionId":"s","planSteps":{"a":1}}"#), "[]");
        assert_eq!(plan(r#"{"sessionId":"s","planSteps":["a\u0000"]}"#), r#"["a\ufffd"]"#);
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

    #[test]
    fn bare_words_of_python_are_read_and_rewritten_as_they_are() {
        let document = r#"{"sessionId":"s","context":{"NaN":NaN,"x":[-Infinity, Infinity],"y":"NaN"},"planSteps":[{"id":"a","confidence":NaN}],"z":NaN}"#;
        let request = read(document).unwrap();
        assert_eq!(request.document, document);
        assert_eq!(request.context, r#"{"NaN":"NaN","x":["-Infinity", "Infinity"],"y":"NaN"}"#);
        assert_eq!(request.plan_steps, r#"[{"id":"a","confidence":"NaN"}]"#);
        // As Python's json.dumps spells it.
        let asked =
            r#"{"actionType":"unknown","context":{"NaN":NaN,"x":[-Infinity,Infinity],"y":"NaN"}}"#;
        assert_eq!(request.fingerprint, format!("{:x}", Sha256::digest(asked)));
        let decision = Decision {
            verdict: Verdict::Approve,
            by: UserId::parse("user123").unwrap(),
            at: DateTime::from_timestamp_millis(1_706_152_860_123).unwrap(),
        };
        let decided = decided_document(document, &decision);
        let (kept, _) = document.rsplit_once('}').unwrap();
        assert_eq!(
            decided,
            format!(
                r#"{kept},"status":"approved","approvedBy":"user123","approvedAt":1706152860123}}"#
            )
        );
        assert_eq!(read(&decided).unwrap().context, request.context);
        let of = |status: &str| etag(&format!(r#"{kept},"status":"{status}"}}"#));
        assert_eq!((of("pending"), of("approved")), (request.etag.clone(), request.etag));
    }

    #[test]
    fn the_etag_equals_the_hash_that_python_computes() {
        let document = r#"{"status":"pending","sessionId":"s","x":1.10,"createdAt":7,"a":{"c":"\u00e9","b":null}}"#;
        let said = r#"{"a":{"b":null,"c":"é"},"sessionId":"s","x":1.10}"#;
        assert_eq!(read(document).unwrap().etag, format!("{:x}", Sha256::digest(said)));
        assert_eq!(etag(document), read(document).unwrap().etag);
    }

    proptest! {
        #[test]
        fn the_etag_depends_on_the_content_and_not_on_spelling_status_or_creation_time(
            fields in prop::collection::btree_map("[a-c]{1,2}", "[a-z\"\\\\é]{0,3}|[0-9]{1,3}", 0..5),
            changed in "[a-c]{1,2}", value in "[a-z]{0,3}", created in any::<u32>(), spaced in any::<bool>(),
        ) {
            let spelled = |fields: &BTreeMap<String, String>, status: &str, created: u32| {
                let mut all: serde_json::Map<String, serde_json::Value> = fields
                    .iter()
                    .map(|(name, value)| (name.clone(), value.as_str().into()))
                    .collect();
                all.insert("sessionId".to_owned(), "s".into());
                all.insert("status".to_owned(), status.into());
                all.insert("createdAt".to_owned(), created.into());
                if spaced { serde_json::to_string_pretty(&all) } else { serde_json::to_string(&all) }.unwrap()
            };
            let first = spelled(&fields, "pending", 1);
            prop_assert_eq!(etag(&first), etag(&spelled(&fields, "approved", created)));
            // In another order, with other escapes.
            let object = python_json::fields(&first).unwrap();
            let backwards = object.iter().rev().map(|(name, value)| (name.clone(), *value));
            let backwards = python_json::object(&backwards.collect::<IndexMap<_, _>>());
            prop_assert_eq!(etag(&backwards.replace('é', "\\u00e9")), etag(&first));
            let mut other = fields.clone();
            let is_same = other.insert(changed, value.clone()).is_some_and(|before| before == value);
            prop_assert_eq!(etag(&spelled(&other, "pending", 1)) == etag(&first), is_same);
        }
    }
}
