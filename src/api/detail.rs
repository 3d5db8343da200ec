//! One approval request in full, for the person who decides it.

use actix_web::web;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::approvals::etag;
use super::comments::CommentView;
use super::envelope::{Answer, Call, Envelope, ok, wire_time};
use super::error::{ApiError, shown};
use super::examples::{plan_step, success};
use super::identity::CallerOf;
use super::lists::{NoQuery, RequestView, request_example};
use super::outcomes::{NO_SIGNAL, SignalView, signal};
use super::request_id;
use super::schemas;
use super::text::Text;
use crate::domain::decision::Verdict;
use crate::domain::ids::UserId;
use crate::domain::json::raw_or_null;
use crate::domain::list::Owners;
use crate::domain::rules;
use crate::policy::{Remember, Sentence};
use crate::requests::detail::{self, Detail, Happened, ShownVote};
use crate::state::AppState;

const RETRIEVED: &str = "Approval request retrieved";

/// A request in full.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DetailView {
    #[serde(flatten)]
    request: RequestView,
    /// As its agent wrote it, numbers unchanged; `{}` without one. `NaN` and `Infinity` are strings.
    #[schema(schema_with = schemas::any)]
    context: Box<RawValue>,
    /// The plan, as plan steps.
    #[schema(schema_with = schemas::any)]
    plan_steps: Box<RawValue>,
    /// Who voted how, the earliest first. Empty without a policy file.
    votes: Vec<VoteView>,
    /// Questions and answers, the oldest first.
    comments: Vec<CommentView>,
    /// What edited arguments must look like (JSON Schema), if its agent says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::any)]
    arguments_schema: Option<Box<RawValue>>,
    /// What an answer must look like (JSON Schema), if its agent says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::any)]
    response_schema: Option<Box<RawValue>>,
    /// The arguments with which it was approved, if other than it asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::any)]
    arguments: Option<Box<RawValue>>,
    /// The answer that was given instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::any)]
    response: Option<Box<RawValue>>,
    /// How far the caller's approval may stand for later requests: `exact` or `any`. Absent: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "exact")]
    remember: Option<&'static str>,
    /// The grant that approved it, or that its approval has made.
    #[serde(skip_serializing_if = "Option::is_none")]
    grant_id: Option<String>,
    /// The state of the signal in Redis. `listeners` 0: no agent has heard it yet.
    signal: SignalView,
    /// What happened, the oldest first.
    history: Vec<HappenedView>,
    /// Who may decide it, and by which rule, in a sentence.
    #[schema(example = "No policy: anybody of tenant1 may decide this request.")]
    why: String,
}

/// One person's vote.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VoteView {
    #[schema(example = "kim")]
    user_id: String,
    /// `approve`, `edit`, `reject` or `respond`.
    #[schema(example = "approve")]
    decision: &'static str,
    /// Of an edit: the fingerprint of the arguments that the person approved instead. Edits of equal
    /// arguments count together.
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments_fingerprint: Option<String>,
    /// Of an edit: these arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::any)]
    arguments: Option<Box<RawValue>>,
    #[schema(example = "2026-01-16T12:00:00")]
    at: String,
    /// Why the person rejected it.
    reason: Option<String>,
    /// Whether it counts: the person may approve the content that the request has. Of a decided request:
    /// whether it counted then.
    counted: bool,
}

/// Something that happened to a request.
#[derive(Debug, Serialize, ToSchema)]
pub struct HappenedView {
    #[schema(example = "2026-01-16T12:00:00")]
    at: String,
    /// `created`, `seen` (in Redis), `voted`, `approved`, `edited`, `rejected`, `answered`, `expired`, `cancelled`, `sent`,
    /// `superseded`, `heard` or `acted`.
    #[schema(example = "created")]
    event: &'static str,
    /// The user who did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
}

/// Read a request in full: its content, its history, who may decide it.
///
/// # Errors
/// `E1004` when there is no such request; `E4000` for any query parameter; `E4220` when the request in
/// Redis is not valid.
#[utoipa::path(
    get, path = "/aura/hitl/requests/{requestId}/detail",
    responses((
        status = 200, description = "The request in full", body = Envelope<DetailView>,
        example = json!(success(RETRIEVED, example())),
    ))
)]
pub async fn read(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
    _none: NoQuery,
) -> Result<Answer<DetailView>, ApiError> {
    let id = request_id(&id)?;
    let (work, asking) = (app.get_ref().clone(), caller.clone());
    let detail = app.run_to_end(async move { detail::detail(&work, &asking, &id).await }).await??;
    let why = match &detail.why {
        Some(Sentence { en, ko }) => Text::new(en.clone(), ko.clone()),
        None => why(&rules::decidable(&caller, app.policy), detail.row.user.as_ref(), &detail),
    };
    let tag = etag(detail.row.etag.clone());
    Ok(ok(RETRIEVED, view(detail, why)).with(tag))
}

fn view(detail: Detail, why: Text) -> DetailView {
    let Detail {
        row,
        rights,
        votes,
        context,
        plan_steps,
        record,
        history,
        comments,
        offer,
        remember,
        why: _,
    } = detail;
    let offer = offer.unwrap_or_default();
    let decision = record.as_ref().and_then(|record| record.state.decision());
    let verdict = decision.map(|decision| &decision.verdict);
    let vote = |vote: ShownVote| VoteView {
        user_id: vote.voter.to_string(),
        decision: vote.way.as_str(),
        arguments_fingerprint: vote.arguments,
        arguments: vote.edited.as_deref().map(raw_or_null),
        at: wire_time(vote.at),
        reason: vote.reason,
        counted: vote.is_counted,
    };
    let happened = |Happened { at, event, by }: Happened| HappenedView {
        at: wire_time(at),
        event: event.as_str(),
        by: by.map(|by| by.to_string()),
    };
    DetailView {
        remember: (remember != Remember::Never && rights.may_decide).then(|| remember.as_str()),
        grant_id: row.ruling.grant.as_ref().map(ToString::to_string),
        request: RequestView::of(row, &rights),
        context,
        plan_steps: RawValue::from_string(plan_steps)
            .unwrap_or_else(|_invalid| crate::domain::json::raw(&[(); 0])),
        votes: votes.into_iter().map(vote).collect(),
        comments: comments.into_iter().map(Into::into).collect(),
        arguments_schema: offer.arguments_schema.as_deref().map(raw_or_null),
        response_schema: offer.response_schema.as_deref().map(raw_or_null),
        arguments: verdict.and_then(Verdict::arguments).map(raw_or_null),
        response: verdict.and_then(Verdict::response).map(raw_or_null),
        signal: record.as_ref().map_or(NO_SIGNAL, signal),
        history: history.into_iter().map(happened).collect(),
        why: why.in_language(Call::current().language),
    }
}

/// Who may decide it, in a sentence.
fn why(owners: &Owners, user: Option<&UserId>, detail: &Detail) -> Text {
    match (owners, user) {
        (Owners::All, _) => {
            let tenant = shown(detail.row.tenant.as_str());
            Text::new(
                format!("No policy: anybody of {tenant} may decide this request."),
                format!("정책 없음: {tenant}의 누구나 이 요청을 결정할 수 있습니다."),
            )
        }
        (_, None) => Text::new(
            "No policy: this request names nobody, so anybody of its tenant may decide it.",
            "정책 없음: 지정된 사용자가 없어 테넌트의 누구나 이 요청을 결정할 수 있습니다.",
        ),
        (_, Some(user)) => {
            let user = shown(user.as_str());
            Text::new(
                format!("No policy: only {user}, whom this request names, may decide it."),
                format!("정책 없음: 요청에 지정된 사용자({user})만 이 요청을 결정할 수 있습니다."),
            )
        }
    }
}

fn example() -> serde_json::Value {
    let mut detail = request_example();
    let more = json!({
        "context": { "to": "a@b.c" }, "planSteps": [plan_step()], "votes": [], "comments": [],
        "signal": { "state": "none" },
        "history": [{ "at": "2026-01-16T12:00:00", "event": "created", "by": "user123" }],
        "why": "No policy: anybody of tenant1 may decide this request.",
    });
    if let (Some(detail), serde_json::Value::Object(more)) = (detail.as_object_mut(), more) {
        detail.extend(more);
    }
    detail
}
