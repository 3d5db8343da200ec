//! Approval requests: approve, reject, register, read.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::header::{ETag, EntityTag, Header as _, HeaderValue, IF_MATCH, IfMatch};
use actix_web::{FromRequest, HttpRequest, web};
use chrono::TimeDelta;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use tracing::info;
use utoipa::ToSchema;
use uuid::Uuid;
use validator::{Validate, ValidationError};

use super::body::{
    Checked, MAX_DECISION_BYTES, MAX_TASK_BYTES, Verbatim, check_id, in_turn, sentence,
    whole_number,
};
use super::envelope::{Answer, Envelope, accepted, created, ok, wire_time};
use super::error::{ApiError, FieldErrors};
use super::examples::{FINGERPRINT, REQUEST, SESSION, TASK, plan_step, success};
use super::identity::{ApproverOf, CallerOf};
use super::request_id;
use super::schemas;
use super::text::Text;
use crate::domain::approver::Caller;
use crate::domain::decision::{DEFAULT_REASON, State, Verdict};
use crate::domain::grant::{MAX_GRANT_SECONDS, Scope, Wish};
use crate::domain::ids::{RequestId, SessionId, TaskId};
use crate::domain::json::raw_or_null;
use crate::domain::plan::{self, InvalidStep, PlanStep};
use crate::domain::record::{Candidate, Record};
use crate::domain::request::{ApprovalRequest, Origin, REQUEST_TTL_SECONDS, Registration};
use crate::domain::rules::Expected;
use crate::domain::schema::{MAX_SCHEMA_BYTES, Schema, SchemaProblem};
use crate::domain::ways::{Remember, Risk, Way};
use crate::ledger::Registered;
use crate::requests::decide::{self, Decided, Outcome, Voted};
use crate::requests::error::RequestError;
use crate::requests::{read, register};
use crate::state::AppState;

/// The messages of the wire contract.
const APPROVED: &str = "Request approved successfully";
/// See [`APPROVED`].
pub(super) const REJECTED: &str = "Request rejected";

const ANSWERED: &str = "Request answered";
/// Largest body of an answer, in bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The body of an approval.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApproveBody {
    /// The token's `sub`, repeated.
    #[validate(required)]
    #[schema(required, nullable = false, example = "user123")]
    user_id: Option<String>,
    /// Approve with these arguments instead of those that were asked for: a JSON object, kept to the
    /// letter.
    #[validate(custom(function = an_object))]
    #[schema(schema_with = schemas::object)]
    arguments: Option<Box<RawValue>>,
    /// Approve later requests too, until a time: a grant. Where a rule of the policy file allows it, and
    /// not together with `arguments`.
    remember: Option<RememberBody>,
}

/// For which later requests of the same action an approval is to stand.
#[derive(Debug, Deserialize, ToSchema)]
pub struct RememberBody {
    /// `session`: of the same session; `requester`: of the same requester.
    #[schema(required, schema_with = schemas::grant_scope)]
    scope: Option<String>,
    /// `exact`: those that say the same; `any`.
    #[schema(required, schema_with = schemas::grant_arguments)]
    arguments: Option<String>,
    /// For how many seconds.
    #[serde(default, deserialize_with = "whole_number")]
    #[schema(required, nullable = false, minimum = 1, maximum = 28800)]
    seconds: Option<i64>,
}

impl RememberBody {
    /// What the person asks to remember.
    fn read(self, is_edit: bool) -> Result<Wish, ApiError> {
        let mut wrong = FieldErrors::new();
        if is_edit {
            let text = Text::new(
                "is not possible together with arguments",
                "arguments와 함께 쓸 수 없습니다",
            );
            wrong.insert("remember".to_owned(), text);
        }
        let required = || Text::new("is required", "필수 항목입니다");
        let one_of = |words: &str| {
            Text::new(format!("must be {words}"), format!("{words} 중 하나여야 합니다"))
        };
        let scope = match self.scope.as_deref() {
            None => Err(required()),
            Some(word) => Scope::parse(word).ok_or_else(|| one_of("session or requester")),
        };
        let arguments = match self.arguments.as_deref().map(Remember::parse) {
            None => Err(required()),
            Some(Some(remember @ (Remember::Exact | Remember::Any))) => Ok(remember),
            Some(_other) => Err(one_of("exact or any")),
        };
        let seconds = match self.seconds {
            None => Err(required()),
            Some(seconds) if (1..=MAX_GRANT_SECONDS).contains(&seconds) => Ok(seconds),
            Some(_other) => Err(Text::new(
                format!("must be from 1 to {MAX_GRANT_SECONDS}"),
                format!("1에서 {MAX_GRANT_SECONDS} 사이여야 합니다"),
            )),
        };
        match (scope, arguments, seconds) {
            (Ok(scope), Ok(arguments), Ok(seconds)) if wrong.is_empty() => {
                Ok(Wish { scope, arguments, time: TimeDelta::seconds(seconds) })
            }
            (scope, arguments, seconds) => {
                for (field, text) in [
                    ("scope", scope.err()),
                    ("arguments", arguments.err()),
                    ("seconds", seconds.err()),
                ] {
                    wrong.extend(text.map(|text| (format!("remember.{field}"), text)));
                }
                Err(ApiError::invalid(wrong))
            }
        }
    }
}

/// The body of an answer.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RespondBody {
    /// The token's `sub`, repeated.
    #[validate(required)]
    #[schema(required, nullable = false, example = "user123")]
    user_id: Option<String>,
    /// The answer: any JSON, kept to the letter.
    #[serde(default, deserialize_with = "given")]
    #[validate(required)]
    #[schema(schema_with = schemas::any, required)]
    response: Option<Box<RawValue>>,
    /// Only an approval is remembered.
    #[schema(ignore)]
    remember: Option<IgnoredAny>,
}

/// Refuses to remember what is no approval.
fn check_nothing_remembered(remember: Option<&IgnoredAny>) -> Result<(), ApiError> {
    let text = || Text::new("is possible only with an approval", "승인할 때만 쓸 수 있습니다");
    remember.map_or(Ok(()), |_any| Err(ApiError::invalid_field("remember", text())))
}

/// The body of a rejection.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RejectBody {
    /// The token's `sub`, repeated.
    #[validate(required)]
    #[schema(required, nullable = false, example = "user123")]
    user_id: Option<String>,
    /// At most 1,000 characters; `User rejected` when absent or blank.
    #[validate(length(max = 1000))]
    #[schema(max_length = 1000, example = "사용자 거절")]
    reason: Option<String>,
    /// Only an approval is remembered.
    #[schema(ignore)]
    remember: Option<IgnoredAny>,
}

/// The recorded decision.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DecisionView {
    /// The request.
    #[schema(example = "req-12345")]
    request_id: String,
    /// The session of the request.
    #[schema(example = "session_user123_1706149260")]
    session_id: String,
    /// `approved`, `rejected` or `answered`; `pending` while more people have to approve it.
    #[schema(example = "approved")]
    status: &'static str,
    /// Why it was rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The arguments that were approved instead of those that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::any)]
    arguments: Option<Box<RawValue>>,
    /// The answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::any)]
    response: Option<Box<RawValue>>,
    /// How many people have approved it, while more have to.
    #[serde(skip_serializing_if = "Option::is_none")]
    approvals: Option<i64>,
    /// How many people have to approve it, while there are fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    approvals_needed: Option<i64>,
    /// The grant that the approval has made, with `remember`.
    #[serde(skip_serializing_if = "Option::is_none")]
    grant_id: Option<String>,
}

impl DecisionView {
    /// The decision on this request.
    #[must_use]
    pub fn of(id: &RequestId, decided: &Decided) -> Self {
        let Decided { session, decision, grant, .. } = decided;
        Self {
            request_id: id.to_string(),
            session_id: session.to_string(),
            status: decision.verdict.status(),
            reason: decision.verdict.reason().map(ToOwned::to_owned),
            arguments: decision.verdict.arguments().map(raw_or_null),
            response: decision.verdict.response().map(raw_or_null),
            approvals: None,
            approvals_needed: None,
            grant_id: grant.as_ref().map(ToString::to_string),
        }
    }

    /// An approval of this request, which needs more of them.
    #[must_use]
    pub fn of_vote(id: &RequestId, voted: &Voted) -> Self {
        Self {
            request_id: id.to_string(),
            session_id: voted.session.to_string(),
            status: State::Pending.as_str(),
            reason: None,
            arguments: None,
            response: None,
            approvals: Some(voted.approvals),
            approvals_needed: Some(voted.needed),
            grant_id: None,
        }
    }

    /// The message of an answer with this decision.
    #[must_use]
    pub fn message(&self) -> &'static str {
        match self.status {
            "approved" => APPROVED,
            "answered" => ANSWERED,
            _ => REJECTED,
        }
    }
}

/// How many more people have to approve.
pub(super) fn more_needed(voted: &Voted) -> Text {
    let missing = voted.needed - voted.approvals;
    Text::new(
        format!("Approval recorded; {missing} more needed"),
        format!("승인 기록됨: {missing}명의 승인이 더 필요합니다."),
    )
}

/// A request for approval.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegisterBody {
    /// `[A-Za-z0-9._:@-]{1,128}`; a new one when absent.
    #[validate(custom(function = valid_request_id))]
    #[schema(schema_with = schemas::optional_id)]
    request_id: Option<String>,
    /// 1–256 bytes without white space or control characters.
    #[validate(required, custom(function = valid_session_id))]
    #[schema(required, schema_with = schemas::session_id)]
    session_id: Option<String>,
    /// The token's `sub`, if sent at all.
    #[schema(example = "user123")]
    user_id: Option<String>,
    /// The token's `tenant_id`, if sent at all.
    #[schema(example = "tenant1")]
    tenant_id: Option<String>,
    /// The action that needs approval.
    #[validate(required, length(min = 1, max = 128))]
    #[schema(required, nullable = false, min_length = 1, max_length = 128, example = "send_email")]
    action_type: Option<String>,
    /// The sentence shown to the person.
    #[validate(length(max = 2000))]
    #[schema(max_length = 2000)]
    message: Option<String>,
    /// With what: any JSON, kept to the letter.
    #[schema(schema_with = schemas::any)]
    context: Option<Box<RawValue>>,
    /// The agent's own task, if it keeps one.
    #[validate(custom(function = valid_task_id))]
    #[schema(schema_with = schemas::optional_id)]
    task_id: Option<String>,
    /// The plan, as plan steps.
    #[validate(custom(function = valid_plan))]
    #[schema(schema_with = schemas::optional_plan)]
    plan_steps: Option<Box<RawValue>>,
    /// Seconds until the request expires; 1800 when absent.
    #[validate(range(min = 1, max = 86400))]
    #[serde(default, deserialize_with = "whole_number")]
    #[schema(minimum = 1, maximum = 86400)]
    expires_in_seconds: Option<i64>,
    /// The ways to decide that this agent can handle: `approve`, `reject`, `edit` (approve with other
    /// arguments), `respond` (an answer instead). `approve` and `reject` when absent.
    #[validate(custom(function = valid_decisions))]
    #[schema(schema_with = schemas::decisions)]
    decisions: Option<Vec<String>>,
    /// What edited arguments must look like: JSON Schema 2020-12, at most 32 KiB, without references that
    /// lead out of it or back to themselves.
    #[schema(schema_with = schemas::json_schema)]
    arguments_schema: Option<Box<RawValue>>,
    /// What an answer must look like; as `argumentsSchema`.
    #[schema(schema_with = schemas::json_schema)]
    response_schema: Option<Box<RawValue>>,
    /// The least risk that the request has: `low`, `medium`, `high` or `critical`.
    #[validate(custom(function = valid_risk))]
    #[schema(schema_with = schemas::risk)]
    risk: Option<String>,
}

/// A registered request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegisteredView {
    /// The request.
    #[schema(example = "req_3f2a9c0d1e4b")]
    request_id: String,
    /// The session of the request.
    #[schema(example = "session_user123_1706149260")]
    session_id: String,
    /// `pending`; the current state when it was registered before.
    #[schema(example = "pending")]
    status: &'static str,
    /// UTC, whole seconds, no zone suffix.
    #[schema(example = "2026-01-16T12:30:00")]
    expires_at: String,
    /// SHA-256 of `actionType` and `context`, in hex. A decision holds for this content only.
    #[schema(example = "3b64db95cb55c763391c707108489ae18b4112d783300de38e033b4c98c3deaf")]
    fingerprint: String,
}

fn valid_decisions(words: &[String]) -> Result<(), ValidationError> {
    let ways = Way::list(words.iter().map(String::as_str));
    match ways {
        Some(ways) if ways.len() == words.len() => Ok(()),
        _ => Err(sentence(
            "must name one or more of approve, reject, edit and respond, each once",
            "approve, reject, edit, respond 중 하나 이상을 한 번씩 지정해야 합니다",
        )),
    }
}

fn valid_risk(risk: &str) -> Result<(), ValidationError> {
    let why = || {
        sentence(
            "must be low, medium, high or critical",
            "low, medium, high, critical 중 하나여야 합니다",
        )
    };
    Risk::parse(risk).map(drop).ok_or_else(why)
}

fn an_object(arguments: &RawValue) -> Result<(), ValidationError> {
    if arguments.get().starts_with('{') {
        return Ok(());
    }
    Err(sentence("must be a JSON object", "JSON 객체여야 합니다"))
}

/// A value that is there, even if it is `null`.
fn given<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// A schema that may be used.
///
/// # Errors
/// `E4000`, naming the field.
fn schema(field: &str, schema: Option<Box<RawValue>>) -> Result<Option<String>, ApiError> {
    let Some(schema) = schema else { return Ok(None) };
    let problem = match Schema::read(schema.get()) {
        Ok(_valid) => return Ok(Some(schema.get().to_owned())),
        Err(problem) => problem,
    };
    let text = match problem {
        SchemaProblem::TooLarge => Text::new(
            format!("may have at most {MAX_SCHEMA_BYTES} bytes"),
            format!("최대 {MAX_SCHEMA_BYTES}바이트여야 합니다"),
        ),
        SchemaProblem::Invalid(why) => {
            Text::new(format!("is not a valid JSON Schema: {why}"), "올바른 JSON 스키마가 아닙니다")
        }
        SchemaProblem::OtherDialect => Text::new(
            "must be JSON Schema 2020-12: another $schema is not taken",
            "JSON Schema 2020-12여야 합니다. 다른 $schema는 사용할 수 없습니다",
        ),
        SchemaProblem::Barred(keyword) => Text::new(
            format!("must not use {keyword}"),
            format!("{keyword}을(를) 사용할 수 없습니다"),
        ),
        SchemaProblem::Remote => Text::new(
            "must not refer to another document: a $ref begins with #",
            "다른 문서를 참조할 수 없습니다. $ref는 #으로 시작해야 합니다",
        ),
        SchemaProblem::Recursive => {
            Text::new("must not refer back to itself", "자기 자신을 다시 참조할 수 없습니다")
        }
        SchemaProblem::TooComplex => Text::new(
            "is too complex: too many parts or patterns, with its references expanded",
            "너무 복잡합니다. 참조를 펼친 항목이나 정규식이 너무 많습니다",
        ),
    };
    Err(ApiError::invalid_field(field, text))
}

fn valid_request_id(id: &str) -> Result<(), ValidationError> {
    check_id(RequestId::parse(id))
}

fn valid_session_id(id: &str) -> Result<(), ValidationError> {
    check_id(SessionId::parse(id))
}

fn valid_task_id(id: &str) -> Result<(), ValidationError> {
    check_id(TaskId::parse(id))
}

fn valid_plan(plan: &RawValue) -> Result<(), ValidationError> {
    let invalid = |problem: InvalidStep| {
        let mut invalid = ValidationError::new("plan");
        invalid.add_param("ko".into(), &problem.in_korean());
        invalid.with_message(format!("has a step that {problem}").into())
    };
    let steps = serde_json::from_str::<Vec<Box<RawValue>>>(plan.get());
    let steps = steps.map_err(|_cause| ValidationError::new("plan"))?;
    let steps = steps.iter().map(|step| PlanStep::read(step)).collect::<Result<_, _>>();
    plan::merge("[]", steps.map_err(invalid)?).map_err(invalid).map(drop)
}

/// The content that the caller has seen, by its entity tags: the header `If-Match`.
#[derive(Debug)]
pub struct ExpectedContent(Expected);

impl FromRequest for ExpectedContent {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        let expected = expected(request);
        let app = request.app_data::<web::Data<AppState>>();
        let is_required = app.is_some_and(|app| app.policy.require_if_match);
        ready(if is_required && expected == Expected::Anything {
            Err(ApiError::unconditional())
        } else {
            Ok(Self(expected))
        })
    }
}

fn expected(request: &HttpRequest) -> Expected {
    let all = request.headers().get_all(IF_MATCH).map(HeaderValue::as_bytes).collect::<Vec<_>>();
    let mut values = all.iter().flat_map(|value| value.split(|byte| *byte == b','));
    let has_star = values.any(|value| value.trim_ascii() == b"*");
    let tags = match IfMatch::parse(request) {
        _ if all.is_empty() => return Expected::Anything,
        _ if has_star && all.len() == 1 && !all.iter().any(|value| value.contains(&b',')) => {
            return Expected::Anything;
        }
        Ok(IfMatch::Items(tags)) if !has_star => tags,
        // A header that is not a valid list of entity tags, or has `*` beside tags, matches no content.
        _ => Vec::new(),
    };
    let (weak, strong): (Vec<_>, Vec<_>) = tags.into_iter().partition(|tag| tag.weak);
    let texts = |tags: Vec<EntityTag>| tags.iter().map(|tag| tag.tag().to_owned()).collect();
    Expected::OneOf { strong: texts(strong), weak: texts(weak) }
}

/// Approve a request. The same person approving it again gets the same answer. Where a rule of the policy
/// asks for more people, 202 until the last of them has approved it.
///
/// # Errors
/// The codes in [`routes::table`](super::routes::table), a code for each refusal. After an error
/// nothing was decided, unless its message says `Outcome unknown`.
#[utoipa::path(
    post, path = "/aura/hitl/approve/{requestId}",
    params(("If-Match" = Option<String>, Header)),
    request_body(content = ApproveBody, example = json!({ "userId": "user123" })),
    responses(
        (status = 200, description = "Approved, and the agent is told", body = Envelope<DecisionView>,
        example = json!(success("Request approved successfully", json!({
            "requestId": REQUEST, "sessionId": SESSION, "status": "approved",
        })))),
        (status = 202, description = "Recorded; more people have to approve it", body = Envelope<DecisionView>,
        example = json!(success("Approval recorded; 1 more needed", json!({
            "requestId": REQUEST, "sessionId": SESSION, "status": "pending",
            "approvals": 1, "approvalsNeeded": 2,
        })))),
    )
)]
pub async fn approve(
    approver: ApproverOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
    expected: ExpectedContent,
    body: Verbatim<ApproveBody, MAX_DECISION_BYTES>,
) -> Result<Answer<DecisionView>, ApiError> {
    let ApproveBody { user_id: user, arguments, remember } = body.0;
    let remember = remember.map(|remember| remember.read(arguments.is_some())).transpose()?;
    let verdict = match arguments {
        Some(arguments) => Verdict::Edit { arguments: arguments.get().to_owned() },
        None => Verdict::Approve,
    };
    decide(&app, approver, &id, expected, user, verdict, remember).await
}

/// Reject a request. The same person rejecting it again gets the same answer.
///
/// # Errors
/// The codes in [`routes::table`](super::routes::table), a code for each refusal. After an error
/// nothing was decided, unless its message says `Outcome unknown`.
#[utoipa::path(
    post, path = "/aura/hitl/reject/{requestId}",
    params(("If-Match" = Option<String>, Header)),
    request_body(content = RejectBody, example = json!({ "userId": "user123", "reason": "사용자 거절" })),
    responses((
        status = 200, description = "Rejected, and the agent is told", body = Envelope<DecisionView>,
        example = json!(success("Request rejected", json!({
            "requestId": REQUEST, "sessionId": SESSION, "status": "rejected", "reason": "사용자 거절",
        }))),
    ))
)]
pub async fn reject(
    approver: ApproverOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
    expected: ExpectedContent,
    body: Checked<RejectBody, MAX_DECISION_BYTES>,
) -> Result<Answer<DecisionView>, ApiError> {
    let RejectBody { user_id: user, reason, remember } = body.0;
    check_nothing_remembered(remember.as_ref())?;
    let reason = reason.filter(|reason| !reason.trim().is_empty());
    let reason = reason.unwrap_or_else(|| DEFAULT_REASON.to_owned());
    let verdict = Verdict::Reject { reason };
    decide(&app, approver, &id, expected, user, verdict, None).await
}

/// Answer a request instead of approving it: the agent does not act, and gets the answer. Only for
/// requests that were registered with `respond` among their `decisions`.
///
/// # Errors
/// The codes in [`routes::table`](super::routes::table), a code for each refusal. After an error
/// nothing was decided, unless its message says `Outcome unknown`.
#[utoipa::path(
    post, path = "/aura/hitl/respond/{requestId}",
    params(("If-Match" = Option<String>, Header)),
    request_body(content = RespondBody, example = json!({ "userId": "user123", "response": { "folder": "inbox" } })),
    responses((
        status = 200, description = "Answered, and the agent is told", body = Envelope<DecisionView>,
        example = json!(success(ANSWERED, json!({
            "requestId": REQUEST, "sessionId": SESSION, "status": "answered",
            "response": { "folder": "inbox" },
        }))),
    ))
)]
pub async fn respond(
    approver: ApproverOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
    expected: ExpectedContent,
    body: Verbatim<RespondBody, MAX_ANSWER_BYTES>,
) -> Result<Answer<DecisionView>, ApiError> {
    let RespondBody { user_id: user, response, remember } = body.0;
    check_nothing_remembered(remember.as_ref())?;
    let response = response.map(|response| response.get().to_owned()).unwrap_or_default();
    let verdict = Verdict::Respond { response };
    decide(&app, approver, &id, expected, user, verdict, None).await
}

async fn decide(
    app: &AppState,
    ApproverOf(caller): ApproverOf,
    id: &str,
    ExpectedContent(expected): ExpectedContent,
    user: Option<String>,
    verdict: Verdict,
    remember: Option<Wish>,
) -> Result<Answer<DecisionView>, ApiError> {
    let id = request_id(id)?;
    if user.as_deref() != Some(caller.user.as_str()) {
        return Err(ApiError::wrong_user());
    }
    let asked_for = verdict.status();
    let (work, request) = (app.clone(), id.clone());
    let outcome = app
        .run_to_end(async move {
            // Boxed, because the future is large.
            Box::pin(decide::decide(&work, &caller, &request, verdict, remember, &expected)).await
        })
        .await?
        .map_err(ApiError::from)
        .inspect_err(|error| info!(asked_for, outcome = %error, "not decided"))?;
    Ok(match outcome {
        Outcome::Decided(decided) => {
            let view = DecisionView::of(&id, &decided);
            ok(view.message(), view).with(etag(decided.etag))
        }
        Outcome::Voted(voted) => {
            accepted(more_needed(&voted), DecisionView::of_vote(&id, &voted)).with(etag(voted.etag))
        }
    })
}

/// Register a request over HTTP, for agents that cannot reach Redis. User and tenant are the
/// token's. The same request under the same id again gets the same answer.
///
/// # Errors
/// `E3008` when the id belongs to another request; `E3002` when the task has ended; `E4290` over a
/// limit. After an error nothing was registered, unless its message says `Outcome unknown`.
#[utoipa::path(
    post, path = "/aura/hitl/requests",
    request_body(content = RegisterBody, example = json!({
        "sessionId": SESSION, "actionType": "send_email",
        "message": "Send the summary to a@b.c?", "context": { "to": "a@b.c" },
        "taskId": TASK, "planSteps": [plan_step()], "expiresInSeconds": 1800,
    })),
    responses(
        (status = 201, description = "Registered", body = Envelope<RegisteredView>, example = json!(registered_example())),
        (status = 200, description = "Registered before", body = Envelope<RegisteredView>, example = json!(registered_example())),
    )
)]
pub async fn register(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    body: Checked<RegisterBody, MAX_TASK_BYTES>,
) -> Result<Answer<RegisteredView>, ApiError> {
    let Checked(body, turn) = body;
    let (work, registrant) = (app.clone(), caller.clone());
    let (candidate, turn) = in_turn(turn, move || registration(body, &registrant, &work)).await?;
    // A request that is registered already has the same content, and so the same tag.
    let tag = etag(candidate.request.etag.clone());
    let work = app.get_ref().clone();
    let registered = app
        .run_to_end(async move {
            let _turn = turn;
            register::register(&work, &caller, &candidate).await
        })
        .await?;
    let message = "Approval request registered";
    match registered.map_err(taken)? {
        Registered::New(record) => Ok(created(message, registered_view(&record, &app)).with(tag)),
        Registered::Known(record) => Ok(ok(message, registered_view(&record, &app)).with(tag)),
        Registered::TaskIsOver => Err(ApiError::task_is_over()),
        Registered::IdTaken => Err(ApiError::id_taken()),
    }
}

fn registered_example() -> serde_json::Value {
    let view = json!({
        "requestId": "req_3f2a9c0d1e4b", "sessionId": SESSION, "status": "pending",
        "expiresAt": "2026-01-16T12:30:00", "fingerprint": FINGERPRINT,
    });
    success("Approval request registered", view)
}

fn taken(error: RequestError) -> ApiError {
    use crate::domain::rules::Refusal;
    match error {
        RequestError::Refused(Refusal::Altered) => ApiError::id_taken(),
        other => other.into(),
    }
}

fn registered_view(record: &Record, app: &AppState) -> RegisteredView {
    let status = match &record.state {
        State::Pending if app.clock.now() >= record.expires_at => State::Expired.as_str(),
        state => state.as_str(),
    };
    RegisteredView {
        request_id: record.id.to_string(),
        session_id: record.session.to_string(),
        status,
        expires_at: wire_time(record.expires_at),
        fingerprint: record.fingerprint.clone(),
    }
}

fn registration(
    body: RegisterBody,
    caller: &Caller,
    app: &AppState,
) -> Result<Candidate, ApiError> {
    if body.user_id.is_some_and(|user| user != caller.user.as_str()) {
        return Err(ApiError::wrong_user());
    }
    if body.tenant_id.is_some_and(|tenant| tenant != caller.tenant.as_str()) {
        return Err(ApiError::wrong_tenant());
    }
    let now = app.clock.now();
    let id = body.request_id.unwrap_or_else(|| {
        // The form of Aura's own ids: `req_` and 12 hex digits.
        let random = Uuid::new_v4().simple().to_string();
        format!("req_{}", random.get(..12).unwrap_or(&random))
    });
    let task = body.task_id.map(|id| super::task_id(&id)).transpose()?;
    let lifetime =
        body.expires_in_seconds.unwrap_or(i64::try_from(REQUEST_TTL_SECONDS).unwrap_or(0));
    let registration = Registration {
        id: request_id(&id)?,
        session: super::session_id(&body.session_id.unwrap_or_default())?,
        user: caller.user.clone(),
        tenant: caller.tenant.clone(),
        action_type: body.action_type.unwrap_or_default(),
        message: body.message,
        context: body.context.map(|context| context.get().to_owned()),
        task,
        plan_steps: body.plan_steps.map(|steps| steps.get().to_owned()),
        ways: body.decisions.and_then(|words| Way::list(words.iter().map(String::as_str))),
        arguments_schema: schema("argumentsSchema", body.arguments_schema)?,
        response_schema: schema("responseSchema", body.response_schema)?,
        risk: body.risk.and_then(|risk| Risk::parse(&risk)),
        created_at: now,
    };
    let request = ApprovalRequest::read(&registration.id, registration.document());
    let request = request.map_err(|problem| {
        let text = Text::new(problem, "요청 형식이 올바르지 않습니다");
        ApiError::invalid_field("body", text)
    })?;
    Ok(Candidate {
        request,
        origin: Origin::Http,
        tenant: Some(caller.tenant.clone()),
        user: Some(caller.user.clone()),
        created_at: now,
        expires_at: now + TimeDelta::seconds(lifetime),
    })
}

/// Read a request. `data` is the request as a JSON string.
///
/// # Errors
/// `E1004` when there is no such request; `E4220` when the request in Redis is not valid.
#[utoipa::path(
    get, path = "/aura/hitl/requests/{requestId}",
    responses((
        status = 200, description = "The request as a JSON string", body = Envelope<String>,
        example = json!(success("Approval request retrieved", concat!(
            r#"{"requestId":"req-12345","sessionId":"session_user123_1706149260","actionType":"send_email","#,
            r#""context":{"to":"a@b.c"},"status":"pending","userId":"user123","tenantId":"tenant1","createdAt":8123456789}"#,
        ))),
    ))
)]
pub async fn read(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
) -> Result<Answer<String>, ApiError> {
    let id = request_id(&id)?;
    let work = app.get_ref().clone();
    let found =
        app.run_to_end(async move { read::read_request(&work, &caller, &id).await }).await?;
    let (document, tag) = found?;
    Ok(ok("Approval request retrieved", document).with(etag(tag)))
}

/// A strong entity tag. It only changes with the request's content.
pub(super) fn etag(tag: String) -> ETag {
    ETag(EntityTag::new_strong(tag))
}
