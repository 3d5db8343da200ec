//! Decides several approval requests in one call.

use std::collections::HashSet;
use std::future::{Ready, ready};
use std::str::FromStr as _;

use actix_web::dev::Payload;
use actix_web::http::header::{EntityTag, IF_MATCH};
use actix_web::{FromRequest, HttpRequest, web};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::info;
use utoipa::ToSchema;
use validator::Validate;

use super::approvals::{DecisionView, REJECTED, more_needed};
use super::body::{Checked, MAX_TASK_BYTES};
use super::envelope::{Answer, Call, Envelope, ok};
use super::error::{ApiError, FieldErrors};
use super::examples::{REQUEST, SESSION, success};
use super::identity::ApproverOf;
use super::refusals::{self, Attempt};
use super::schemas;
use super::text::Text;
use crate::domain::approver::Caller;
use crate::domain::decision::{DEFAULT_REASON, Verdict};
use crate::domain::ids::RequestId;
use crate::domain::rules::Expected;
use crate::requests::bulk::{self, Item, Standing, Whole};
use crate::requests::decide::Outcome;
use crate::state::AppState;

/// The header as people write it.
const IF_MATCH_NAME: &str = "If-Match";
const JUDGED: &str = "Decisions judged";
/// Most requests of one bulk.
const MAX_ITEMS: usize = 200;
/// Longest reason of a rejection, in characters.
const MAX_REASON_CHARS: usize = 1000;

/// Several decisions.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkBody {
    /// The token's `sub`, repeated.
    #[validate(required)]
    #[schema(required, nullable = false, example = "user123")]
    user_id: Option<String>,
    /// What to decide; each request once.
    #[schema(required, nullable = false, min_items = 1, max_items = 200)]
    decisions: Option<Vec<BulkItem>>,
    /// All or none, in one write. `false` when absent: each by itself.
    atomic: Option<bool>,
    /// An approval is remembered only by itself.
    #[schema(ignore)]
    remember: Option<IgnoredAny>,
}

/// One of several decisions.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkItem {
    /// The request.
    #[schema(required, schema_with = schemas::id)]
    request_id: Option<String>,
    /// `approve` or `reject`.
    #[schema(required, schema_with = schemas::verdict)]
    decision: Option<String>,
    /// Why it is rejected: at most 1,000 characters; `User rejected` when absent or blank.
    #[schema(max_length = 1000)]
    reason: Option<String>,
    /// Decide only what still has this `ETag`, with or without its quotes.
    etag: Option<String>,
    /// Other arguments: only where a request is approved by itself.
    #[schema(ignore)]
    arguments: Option<IgnoredAny>,
    /// An answer: only where a request is answered by itself.
    #[schema(ignore)]
    response: Option<IgnoredAny>,
    /// To be remembered: only where a request is approved by itself.
    #[schema(ignore)]
    remember: Option<IgnoredAny>,
}

/// The results of a bulk, in the order of its decisions.
#[derive(Debug, Serialize, ToSchema)]
pub struct BulkView {
    results: Vec<ResultView>,
}

/// The answer that approving or rejecting this one request would have had.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResultView {
    /// The request.
    #[schema(example = "req-12345")]
    request_id: String,
    /// The HTTP status.
    #[schema(example = 200)]
    status: u16,
    /// The recorded decision; of some errors, the decision that stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::any)]
    data: Option<Value>,
    /// The error code.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "E3006")]
    error_code: Option<&'static str>,
    /// A sentence for people.
    message: String,
}

/// Approve and reject up to 200 requests, each judged by itself; with `atomic`, all or none.
///
/// # Errors
/// `E3008` when an atomic bulk cannot be done whole, with the results in `data`; `E4000` for a request
/// that is named twice. After an error nothing was decided, unless its message says `Outcome unknown`.
#[utoipa::path(
    post, path = "/aura/hitl/decisions",
    request_body(content = BulkBody, example = json!({
        "userId": "user123",
        "decisions": [{ "requestId": REQUEST, "decision": "reject", "reason": "사용자 거절" }],
        "atomic": false,
    })),
    responses((
        status = 200, description = "Each is judged: its own status says how", body = Envelope<BulkView>,
        example = json!(success(JUDGED, json!({ "results": [{
            "requestId": REQUEST, "status": 200, "message": REJECTED,
            "data": {
                "requestId": REQUEST, "sessionId": SESSION, "status": "rejected", "reason": "사용자 거절",
            },
        }] }))),
    ))
)]
pub async fn decide(
    ApproverOf(caller): ApproverOf,
    app: web::Data<AppState>,
    _unconditional: NoIfMatch,
    body: Checked<BulkBody, MAX_TASK_BYTES>,
) -> Result<Answer<BulkView>, ApiError> {
    let Checked(body, turn) = body;
    let is_atomic = body.atomic.unwrap_or(false);
    if body.remember.is_some() {
        return Err(ApiError::invalid_field("remember", only_by_itself()));
    }
    let items = items(body.decisions)?;
    let refuse = |error: ApiError| {
        for item in &items {
            refusals::record_one(&app, &caller, attempt(item), &error);
        }
        error
    };
    if body.user_id.as_deref() != Some(caller.user.as_str()) {
        return Err(refuse(ApiError::wrong_user()));
    }
    let (work, person, wanted) = (app.get_ref().clone(), caller.clone(), items.clone());
    let results: Vec<Result<Outcome, ApiError>> = if is_atomic {
        let deciding = async move {
            let _turn = turn;
            bulk::decide_all(&work, &person, wanted).await
        };
        match app.run_to_end(deciding).await?.map_err(ApiError::from).map_err(refuse)? {
            Whole::Done(decided) => decided.into_iter().map(Ok).collect(),
            Whole::TooLarge(most) => return Err(ApiError::too_large_together(most)),
            Whole::Refused(standings) => standings.into_iter().map(result_of).collect(),
        }
    } else {
        let deciding = async move {
            let _turn = turn;
            bulk::decide_each(&work, &person, wanted).await
        };
        let decided = app.run_to_end(deciding).await?;
        decided.into_iter().map(|one| one.map_err(ApiError::from)).collect()
    };
    let refused = results.iter().filter_map(|result| result.as_ref().err());
    let obstacles = refused.clone().filter(|error| !error.is_obstructed()).count();
    info!(requests = results.len(), refused = refused.count(), is_atomic, "decided in bulk");
    record_results(&app, &caller, &items, &results);
    let view = BulkView { results: items.iter().zip(results).map(view).collect() };
    if is_atomic && obstacles > 0 {
        return Err(ApiError::obstructed_bulk(obstacles, items.len(), &view));
    }
    Ok(ok(JUDGED, view))
}

/// A call without the header `If-Match`: one tag cannot be that of several requests.
pub struct NoIfMatch;

impl FromRequest for NoIfMatch {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        let text = || {
            Text::new(
                "is not possible for several requests at once; give each its etag",
                "여러 요청을 한 번에 결정할 때는 쓸 수 없습니다. 각 항목의 etag에 지정해 주세요",
            )
        };
        ready(if request.headers().contains_key(IF_MATCH) {
            Err(ApiError::invalid_field(IF_MATCH_NAME, text()))
        } else {
            Ok(Self)
        })
    }
}

fn only_by_itself() -> Text {
    Text::new(
        "is not possible for several requests at once",
        "여러 요청을 한 번에 결정할 때는 쓸 수 없습니다",
    )
}

/// What is wrong with the decisions, by the names of their fields; or the decisions.
fn items(decisions: Option<Vec<BulkItem>>) -> Result<Vec<Item>, ApiError> {
    let decisions = decisions.unwrap_or_default();
    if decisions.is_empty() || decisions.len() > MAX_ITEMS {
        let text = Text::new(
            format!("must have 1 to {MAX_ITEMS} items"),
            format!("1개 이상 {MAX_ITEMS}개 이하여야 합니다"),
        );
        return Err(ApiError::invalid_field("decisions", text));
    }
    let mut wrong = FieldErrors::new();
    let mut items = Vec::<Item>::with_capacity(decisions.len());
    let mut seen = HashSet::new();
    for (place, decision) in decisions.into_iter().enumerate() {
        let mut is_wrong = |field: &str, text: Text| {
            wrong.insert(format!("decisions[{place}].{field}"), text);
        };
        let required = || Text::new("is required", "필수 항목입니다");
        let id = match decision.request_id.map(RequestId::parse) {
            None => Err(required()),
            Some(Err(_invalid)) => {
                Err(Text::new("is not a valid id", "올바른 형식의 ID가 아닙니다"))
            }
            Some(Ok(id)) if !seen.insert(id.clone()) => {
                Err(Text::new("is named twice", "두 번 지정되었습니다"))
            }
            Some(Ok(id)) => Ok(id),
        };
        let verdict = match decision.decision.as_deref() {
            None => Err(required()),
            Some("approve") => Ok(Verdict::Approve),
            Some("reject") => Ok(Verdict::Reject { reason: reason(decision.reason.as_deref()) }),
            Some(_other) => {
                Err(Text::new("must be approve or reject", "approve 또는 reject여야 합니다"))
            }
        };
        if decision.reason.is_some_and(|reason| reason.chars().count() > MAX_REASON_CHARS) {
            let text = Text::new(
                format!("must have at most {MAX_REASON_CHARS} characters"),
                format!("최대 {MAX_REASON_CHARS}자까지 입력할 수 있습니다"),
            );
            is_wrong("reason", text);
        }
        for (field, value) in [
            ("arguments", decision.arguments),
            ("response", decision.response),
            ("remember", decision.remember),
        ] {
            if value.is_some() {
                is_wrong(field, only_by_itself());
            }
        }
        match (id, verdict) {
            (Ok(id), Ok(verdict)) => {
                items.push(Item { id, verdict, expected: expected(decision.etag.as_deref()) });
            }
            (id, verdict) => {
                id.err().into_iter().for_each(|text| is_wrong("requestId", text));
                verdict.err().into_iter().for_each(|text| is_wrong("decision", text));
            }
        }
    }
    if wrong.is_empty() { Ok(items) } else { Err(ApiError::invalid(wrong)) }
}

fn reason(given: Option<&str>) -> String {
    given.filter(|reason| !reason.trim().is_empty()).unwrap_or(DEFAULT_REASON).to_owned()
}

/// The content that the person saw. A tag may come without its quotes, as lists show it.
fn expected(etag: Option<&str>) -> Expected {
    match etag.map(str::trim) {
        None | Some("*") => Expected::Anything,
        Some(text) => {
            let (is_weak, tag) = match EntityTag::from_str(text) {
                Ok(tag) => (tag.weak, tag.tag().to_owned()),
                Err(_no_quotes) => (false, text.to_owned()),
            };
            let (strong, weak) = if is_weak { (vec![], vec![tag]) } else { (vec![tag], vec![]) };
            Expected::OneOf { strong, weak }
        }
    }
}

/// The result of one request of a bulk that was refused as a whole.
fn result_of(standing: Standing) -> Result<Outcome, ApiError> {
    match standing {
        Standing::Repeat(decided) => Ok(decided),
        Standing::Obstacle(error) => Err(error.into()),
        Standing::Free => Err(ApiError::obstructed()),
    }
}

fn view((item, result): (&Item, Result<Outcome, ApiError>)) -> ResultView {
    let request_id = item.id.to_string();
    match result {
        Ok(Outcome::Decided(decided)) => {
            let view = DecisionView::of(&item.id, &decided);
            let message = view.message().to_owned();
            let data = serde_json::to_value(view).ok();
            ResultView { request_id, status: 200, data, error_code: None, message }
        }
        Ok(Outcome::Voted(voted)) => {
            let message = more_needed(&voted).in_language(Call::current().language);
            let data = serde_json::to_value(DecisionView::of_vote(&item.id, &voted)).ok();
            ResultView { request_id, status: 202, data, error_code: None, message }
        }
        Err(error) => ResultView {
            request_id,
            status: error.code().status().as_u16(),
            data: error.data().cloned(),
            error_code: Some(error.code().as_str()),
            message: error.message(Call::current().language),
        },
    }
}

/// What a refused attempt says of this request.
fn attempt(item: &Item) -> Attempt {
    let if_match = match &item.expected {
        Expected::Anything => None,
        Expected::OneOf { strong, weak } => strong.iter().chain(weak).next().cloned(),
    };
    Attempt { request: item.id.clone(), verdict: item.verdict.column_status(), if_match }
}

/// Records the refusals as evidence, each as that of a single call.
fn record_results(
    app: &AppState,
    caller: &Caller,
    items: &[Item],
    results: &[Result<Outcome, ApiError>],
) {
    for (item, result) in items.iter().zip(results) {
        if let Err(error) = result
            && !error.is_obstructed()
        {
            refusals::record_one(app, caller, attempt(item), error);
        }
    }
}
