//! All errors of the API, each with its code, its status and its sentence.
//!
//! The wire contract fixes the codes and their statuses. The message of a 5xx is constant; its cause is
//! logged once and never sent.

use std::collections::BTreeMap;
use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::{error, warn};

use super::envelope::{Call, Envelope};
use super::text::{Language, Text};
use crate::domain::comment::MAX_COMMENTS;
use crate::domain::decision::DEFAULT_REASON;
use crate::domain::rules::{ExistingDecision, Refusal};
use crate::domain::schema::Mismatch;
use crate::domain::task::TaskRefusal;
use crate::domain::ways::Way;
use crate::identity::TokenProblem;
use crate::ledger::LedgerError;
use crate::limits::{LARGE_BODY_BYTES, Limit, TooMany};
use crate::requests::RequestError;
use crate::state::WorkError;
use crate::tasks::TaskError;

/// Seconds after which a 503 may be worth a retry.
pub const RETRY_AFTER_SECONDS: u64 = 1;

/// Makes [`ErrorCode`] and its table from one line for each code.
macro_rules! error_codes {
    ($($name:ident $code:literal $status:ident $reason:literal $meaning:literal
        $([$en:literal, $ko:literal])?;)*) => {
        /// The contract's error codes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ErrorCode { $(#[doc = $meaning] $name,)* }

        impl ErrorCode {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            fn line(self) -> Line {
                match self {
                    $(Self::$name => Line {
                        code: $code,
                        status: StatusCode::$status,
                        reason: $reason,
                        sentence: error_codes!(@sentence $($en, $ko)?),
                    },)*
                }
            }
        }
    };
    (@sentence) => { None };
    (@sentence $en:literal, $ko:literal) => { Some([$en, $ko]) };
}

// Name, code on the wire, status, label in the metrics, meaning; then the sentence in English and
// Korean, if the code always has the same one.
error_codes! {
    Internal "E1000" INTERNAL_SERVER_ERROR "internal" "Our fault."
        ["Server error: it is not your fault. Please try again later.", "서버 오류: 잠시 후 다시 시도해 주세요."];
    MethodNotAllowed "E1002" METHOD_NOT_ALLOWED "method_not_allowed" "Wrong method.";
    NotFound "E1004" NOT_FOUND "not_found" "No such address, request or task, or it is another tenant's.";
    NoToken "E2000" UNAUTHORIZED "no_token" "No bearer token."
        ["Sign in first: the Authorization header must carry a bearer token.", "먼저 로그인해 주세요. Authorization 헤더에 Bearer 토큰이 필요합니다."];
    Forbidden "E2001" FORBIDDEN "forbidden" "Not permitted.";
    TokenExpired "E2002" UNAUTHORIZED "token_expired" "Token expired."
        ["Login expired. Please sign in again.", "로그인 만료: 다시 로그인해 주세요."];
    TokenInvalid "E2003" UNAUTHORIZED "token_invalid" "Token invalid."
        ["Invalid login: the token is not valid. Please sign in again.", "로그인 오류: 유효하지 않은 토큰입니다. 다시 로그인해 주세요."];
    NoTenant "E2006" BAD_REQUEST "no_tenant" "`X-Tenant-ID` missing."
        ["X-Tenant-ID is missing: send this header with your tenant.", "X-Tenant-ID 없음: 테넌트를 이 헤더로 보내 주세요."];
    WrongTenant "E2007" FORBIDDEN "wrong_tenant" "The token's tenant is not `X-Tenant-ID`."
        ["Signed in to another tenant. Please sign in again.", "다른 테넌트로 로그인됨: 다시 로그인해 주세요."];
    WrongState "E3002" CONFLICT "wrong_state" "The state does not allow this step.";
    AlreadyDecided "E3006" CONFLICT "already_decided" "Decided otherwise.";
    Gone "E3007" GONE "gone" "Expired or withdrawn undecided, or its agent has moved on.";
    Conflict "E3008" CONFLICT "conflict" "The id stands for another request, there is nothing to acknowledge yet, or an atomic bulk cannot be done whole, or a request has too many comments.";
    Invalid "E4000" BAD_REQUEST "invalid" "Validation failed.";
    BadHeader "E4001" BAD_REQUEST "bad_header" "A header is missing, blank or repeated.";
    Changed "E4120" PRECONDITION_FAILED "changed" "Not the content that the person looked at.";
    TooLarge "E4130" PAYLOAD_TOO_LARGE "too_large" "Too large.";
    NotJson "E4150" UNSUPPORTED_MEDIA_TYPE "not_json" "Not JSON."
        ["Not JSON: send JSON with the header Content-Type: application/json.", "JSON이 아님: Content-Type: application/json 헤더와 함께 JSON을 보내 주세요."];
    Unprocessable "E4220" UNPROCESSABLE_ENTITY "unprocessable" "The request in Redis cannot be read, or is not the one that the ledger knows.";
    Unconditional "E4280" PRECONDITION_REQUIRED "unconditional" "`If-Match` is required."
        ["Look at it first: nothing was decided. Send the ETag of the request in If-Match.", "먼저 확인 필요: 결정되지 않았습니다. 확인한 요청의 ETag를 If-Match로 보내 주세요."];
    TooMany "E4290" TOO_MANY_REQUESTS "too_many" "Too many calls by one person.";
    Unavailable "E5000" SERVICE_UNAVAILABLE "unavailable" "Redis or Postgres out of reach, or too much to do.";
}

/// A line of the table.
struct Line {
    code: &'static str,
    status: StatusCode,
    reason: &'static str,
    /// English and Korean.
    sentence: Option<[&'static str; 2]>,
}

impl ErrorCode {
    /// The code on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.line().code
    }

    /// The code's label in the metrics.
    #[must_use]
    pub fn reason(self) -> &'static str {
        self.line().reason
    }

    /// The code's HTTP status.
    #[must_use]
    pub fn status(self) -> StatusCode {
        self.line().status
    }
}

/// The answer to a failed call.
#[derive(Clone, Debug)]
pub struct ApiError {
    code: ErrorCode,
    text: Text,
    data: Option<Value>,
    allow: Option<Box<str>>,
    retry_after_seconds: Option<u64>,
}

/// The invalid fields of a body, each with the reason.
pub type FieldErrors = BTreeMap<String, Text>;

impl ApiError {
    fn new(code: ErrorCode, en: impl Into<String>, ko: impl Into<String>) -> Self {
        Self {
            code,
            text: Text::new(en.into(), ko.into()),
            data: None,
            allow: None,
            retry_after_seconds: (code == ErrorCode::Unavailable).then_some(RETRY_AFTER_SECONDS),
        }
    }

    /// An error with its code's sentence in the table.
    fn of(code: ErrorCode) -> Self {
        let [en, ko] = code.line().sentence.unwrap_or_default();
        Self::new(code, en, ko)
    }

    /// The error's code in the contract.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// The message in English.
    #[must_use]
    pub fn english(&self) -> &str {
        self.text.english()
    }

    /// The message in a language.
    #[must_use]
    pub fn message(&self, language: Language) -> String {
        self.text.clone().in_language(language)
    }

    /// What the answer carries as `data`.
    #[must_use]
    pub fn data(&self) -> Option<&Value> {
        self.data.as_ref()
    }

    fn with_data(mut self, data: Value) -> Self {
        self.data = Some(data);
        self
    }

    /// `E1000`: a bug. Logs the cause.
    #[must_use]
    pub fn internal(cause: &str) -> Self {
        error!(cause, "a call failed");
        Self::of(ErrorCode::Internal)
    }

    /// `E5000`: a store did not answer, and nothing was changed. Logs the cause.
    #[must_use]
    pub fn unavailable(cause: &str) -> Self {
        warn!(cause, "a call was turned away");
        Self::new(
            ErrorCode::Unavailable,
            "Service unavailable: nothing was decided. Please try again.",
            "서비스 이용 불가: 결정되지 않았습니다. 다시 시도해 주세요.",
        )
    }

    /// `E5000`: the ledger did not confirm a write, which may or may not be recorded. Logs the cause.
    fn outcome_unknown(cause: &str) -> Self {
        warn!(cause, "it could not be confirmed what was recorded");
        Self::new(
            ErrorCode::Unavailable,
            "Outcome unknown: it could not be confirmed whether this was recorded. Please try again; \
             what was recorded stays as it is.",
            "결과 확인 불가: 기록되었는지 알 수 없습니다. 다시 시도해 주세요. 이미 기록된 내용은 그대로 유지됩니다.",
        )
    }

    /// `E5000`: too many calls are under way, and this one was not started. Logs the cause.
    fn busy(cause: &str) -> Self {
        warn!(cause, "a call was turned away");
        Self::new(
            ErrorCode::Unavailable,
            "Too busy: nothing was done. Please try again in a moment.",
            "서비스 혼잡: 아무 작업도 하지 않았습니다. 잠시 후 다시 시도해 주세요.",
        )
    }

    /// There is no such request, or it is another tenant's.
    #[must_use]
    pub fn no_such_request() -> Self {
        Self::new(
            ErrorCode::NotFound,
            "No such request, or not yours.",
            "없는 요청이거나 내 요청이 아닙니다.",
        )
    }

    /// There is no such grant, or it is another's.
    #[must_use]
    pub fn no_such_grant() -> Self {
        Self::new(
            ErrorCode::NotFound,
            "No such grant, or not yours.",
            "없거나 내가 만들지 않은 ‘기억한 승인’입니다.",
        )
    }

    /// There is no such task, or it is another tenant's.
    #[must_use]
    pub fn no_such_task() -> Self {
        Self::new(
            ErrorCode::NotFound,
            "No such task, or not yours.",
            "없는 작업이거나 내 작업이 아닙니다.",
        )
    }

    /// No route has this address.
    #[must_use]
    pub fn no_such_address() -> Self {
        Self::new(ErrorCode::NotFound, "No such address.", "없는 주소입니다.")
    }

    /// The address has a route, but not for this method.
    #[must_use]
    pub fn method_not_allowed(allow: &str) -> Self {
        let mut error = Self::new(
            ErrorCode::MethodNotAllowed,
            format!("Wrong method: this address only answers {allow}."),
            format!("잘못된 메서드: 이 주소는 {allow} 요청만 지원합니다."),
        );
        error.allow = Some(allow.into());
        error
    }

    /// No bearer token.
    #[must_use]
    pub fn no_token() -> Self {
        Self::of(ErrorCode::NoToken)
    }

    /// The token is expired or not valid.
    #[must_use]
    pub fn bad_token(problem: TokenProblem) -> Self {
        match problem {
            TokenProblem::Expired => Self::of(ErrorCode::TokenExpired),
            TokenProblem::Invalid => Self::of(ErrorCode::TokenInvalid),
        }
    }

    /// A call that Slack has not sent, or not now, or that was taken before.
    #[must_use]
    pub fn not_from_slack() -> Self {
        Self::new(
            ErrorCode::Forbidden,
            "Not sent by Slack now: the signature or its time is not valid. Nothing was done.",
            "Slack에서 보낸 호출이 아님: 서명이나 시각이 올바르지 않아 아무 작업도 하지 않았습니다.",
        )
    }

    /// A click in Slack on a message that asks for no decision any more, or never did.
    #[must_use]
    pub fn old_message() -> Self {
        Self::new(
            ErrorCode::Gone,
            "This message asks for no decision any more. Nothing was decided.",
            "더 이상 결정을 받지 않는 메시지여서 결정되지 않았습니다.",
        )
    }

    /// A click in Slack by somebody whom the configuration does not name for the tenant.
    #[must_use]
    pub fn unknown_in_slack() -> Self {
        Self::new(
            ErrorCode::Forbidden,
            "Not known here: your Slack account belongs to nobody who may decide this. Ask an operator \
             to enter it. Nothing was decided.",
            "등록되지 않은 계정: 이 Slack 계정은 결정 권한이 있는 사용자와 연결되어 있지 않아 결정되지 않았습니다. 운영자에게 등록을 요청해 주세요.",
        )
    }

    /// Slack does not show the dialog that asks for a reason.
    #[must_use]
    pub fn no_dialog() -> Self {
        Self::new(
            ErrorCode::Unavailable,
            "Slack does not show the dialog: nothing was decided. Please click again.",
            "Slack 창을 열 수 없어 결정되지 않았습니다. 다시 눌러 주세요.",
        )
    }

    /// `X-Tenant-ID` is missing.
    #[must_use]
    pub fn no_tenant() -> Self {
        Self::of(ErrorCode::NoTenant)
    }

    /// The token's tenant is not the one that the call names.
    #[must_use]
    pub fn wrong_tenant() -> Self {
        Self::of(ErrorCode::WrongTenant)
    }

    /// The token's user is not the one that the call names.
    #[must_use]
    pub fn wrong_user() -> Self {
        Self::new(
            ErrorCode::Forbidden,
            "Signed in as another user. Please sign in again.",
            "다른 사용자로 로그인됨: 다시 로그인해 주세요.",
        )
    }

    /// Agents do not decide.
    #[must_use]
    pub fn agents_do_not_decide() -> Self {
        Self::new(
            ErrorCode::Forbidden,
            "Agents cannot decide: this call comes from an agent. Only a person can approve or reject.",
            "에이전트는 결정 불가: 에이전트가 보낸 요청입니다. 사람만 승인하거나 거절할 수 있습니다.",
        )
    }

    /// The token lacks the claim that proves that a person acts.
    #[must_use]
    pub fn not_proven_a_person() -> Self {
        Self::new(
            ErrorCode::Forbidden,
            "Not a person: this token does not say that a person uses it. Only a person can decide.",
            "사람 확인 불가: 이 토큰은 사람이 보낸 것임을 증명하지 않습니다. 사람만 결정할 수 있습니다.",
        )
    }

    /// `X-DWP-Caller-Type` or `X-DWP-Source` has an unknown value.
    #[must_use]
    pub fn bad_caller_kind(name: &'static str, person: &str) -> Self {
        Self::new(
            ErrorCode::BadHeader,
            format!("{name} is not valid: a person sends {person}, or leaves it out."),
            format!("{name} 오류: 사람이 보낼 때는 {person}이거나 없어야 합니다."),
        )
    }

    /// Other people's tasks are for admins.
    #[must_use]
    pub fn admins_only() -> Self {
        Self::new(
            ErrorCode::Forbidden,
            "Admins only: others cannot list other users' tasks.",
            "관리자 전용: 다른 사용자의 작업 목록은 관리자만 볼 수 있습니다.",
        )
    }

    /// The list of all requests of a tenant is for admins.
    #[must_use]
    pub fn admins_list_all() -> Self {
        Self::new(
            ErrorCode::Forbidden,
            "Admins only: others cannot list all requests of their tenant. Use another scope.",
            "관리자 전용: 테넌트의 모든 요청은 관리자만 볼 수 있습니다. 다른 scope를 사용해 주세요.",
        )
    }

    /// `If-Match` is required, and is missing or `*`.
    #[must_use]
    pub fn unconditional() -> Self {
        Self::of(ErrorCode::Unconditional)
    }

    /// A required header is missing.
    #[must_use]
    pub fn missing_header(name: &'static str) -> Self {
        Self::new(
            ErrorCode::BadHeader,
            format!("{name} is missing: send this header."),
            format!("{name} 없음: 이 헤더를 보내 주세요."),
        )
    }

    /// A header is blank, repeated or unreadable.
    #[must_use]
    pub fn bad_header(name: &'static str) -> Self {
        Self::new(
            ErrorCode::BadHeader,
            format!("{name} is not valid: send this header once, with one value."),
            format!("{name} 오류: 이 헤더는 값 하나로 한 번만 보내야 합니다."),
        )
    }

    /// A header whose value is not what `en` and `ko` describe.
    #[must_use]
    pub fn invalid_header(name: &str, en: &str, ko: &str) -> Self {
        Self::new(
            ErrorCode::BadHeader,
            format!("{name} is not valid: it must be {en}."),
            format!("{name} 오류: {ko}여야 합니다."),
        )
    }

    /// An id that is not valid.
    #[must_use]
    pub fn bad_id(field: &'static str) -> Self {
        let text = Text::new("is not a valid id", "올바른 형식의 ID가 아닙니다");
        Self::invalid_field(field, text)
    }

    /// One invalid field.
    #[must_use]
    pub fn invalid_field(field: &str, text: Text) -> Self {
        Self::invalid(FieldErrors::from([(field.to_owned(), text)]))
    }

    /// Invalid fields.
    #[must_use]
    pub fn invalid(fields: FieldErrors) -> Self {
        let language = Call::current().language;
        let mut sentences = [Vec::new(), Vec::new()];
        let [english, korean] = &mut sentences;
        for (field, text) in &fields {
            let [en, ko] =
                if field == "body" { ["The body", "본문"] } else { [field.as_str(); 2] };
            english.push(format!("{en} {}", text.en));
            korean.push(format!("{ko}: {}", text.ko));
        }
        let [english, korean] = sentences.map(|sentences| sentences.join("; "));
        let data = fields
            .into_iter()
            .map(|(field, text)| (field, Value::String(text.in_language(language))))
            .collect();
        Self::new(ErrorCode::Invalid, format!("{english}."), format!("{korean}."))
            .with_data(Value::Object(data))
    }

    /// A body over the limit.
    #[must_use]
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            ErrorCode::TooLarge,
            format!("Too large: the body may have at most {limit} bytes."),
            format!("본문이 너무 큼: 최대 {limit}바이트까지 보낼 수 있습니다."),
        )
    }

    /// A body that is not declared as JSON.
    #[must_use]
    pub fn not_json() -> Self {
        Self::of(ErrorCode::NotJson)
    }

    /// A registration under an id that belongs to another request.
    #[must_use]
    pub fn id_taken() -> Self {
        Self::new(
            ErrorCode::Conflict,
            "Request id taken: it stands for another request. Register under a new id.",
            "사용 중인 요청 ID: 다른 요청에 쓰였습니다. 새 ID로 등록해 주세요.",
        )
    }

    /// An atomic bulk that was not recorded, because of some of its requests.
    #[must_use]
    pub fn obstructed_bulk(obstacles: usize, size: usize, view: &impl Serialize) -> Self {
        Self::new(
            ErrorCode::Conflict,
            format!("Nothing decided: {obstacles} of {size} requests stood in the way."),
            format!("결정되지 않음: 요청 {size}건 중 {obstacles}건을 결정할 수 없습니다."),
        )
        .with_data(serde_json::to_value(view).unwrap_or_default())
    }

    /// One request of an atomic bulk that was not recorded, because of the others.
    #[must_use]
    pub fn obstructed() -> Self {
        Self::new(
            ErrorCode::Conflict,
            "Not decided: other requests of this bulk stood in the way.",
            "결정되지 않음: 함께 보낸 다른 요청을 결정할 수 없습니다.",
        )
    }

    /// Whether this is [`Self::obstructed`].
    #[must_use]
    pub fn is_obstructed(&self) -> bool {
        self.code == ErrorCode::Conflict
    }

    /// An atomic bulk whose requests are too large for one write.
    #[must_use]
    pub fn too_large_together(limit: usize) -> Self {
        Self::new(
            ErrorCode::TooLarge,
            format!(
                "Too large together: the requests of an atomic bulk may have at most {limit} bytes. Nothing was decided."
            ),
            format!(
                "합계가 너무 큼: 한꺼번에 결정하는 요청은 모두 합쳐 최대 {limit}바이트여야 합니다. 결정되지 않았습니다."
            ),
        )
    }

    /// A comment on a request that has as many as it may have.
    #[must_use]
    pub fn too_many_comments() -> Self {
        Self::new(
            ErrorCode::Conflict,
            format!(
                "Too many comments: this request has {MAX_COMMENTS}, the most. None was added."
            ),
            format!(
                "의견이 너무 많음: 이 요청에는 한도인 {MAX_COMMENTS}개의 의견이 있어 추가하지 않았습니다."
            ),
        )
    }

    /// A registration for a task that has ended.
    #[must_use]
    pub fn task_is_over() -> Self {
        Self::new(
            ErrorCode::WrongState,
            "Task is over: the task that this request names is already completed or failed.",
            "끝난 작업: 이 요청이 가리키는 작업은 이미 완료되었거나 실패했습니다.",
        )
    }

    /// A step that the task's state or its plan does not allow.
    #[must_use]
    pub fn task_refused(refusal: &TaskRefusal) -> Self {
        match refusal {
            TaskRefusal::State(status) => Self::new(
                ErrorCode::WrongState,
                format!("Task is {}: this step is not possible now.", status.as_str()),
                format!("작업 상태 {}: 지금은 이 단계를 수행할 수 없습니다.", status.as_str()),
            )
            .with_data(json!({ "status": status.as_str() })),
            TaskRefusal::Plan(problem) => {
                let text = Text::new(
                    format!("has a step that {problem}"),
                    "계획이 너무 큽니다 (최대 1000단계, 1 MiB)",
                );
                Self::invalid_field("planSteps", text)
            }
        }
    }

    /// A decision of a way that the agent cannot handle.
    fn not_offered(way: Way) -> Self {
        let (en, ko) = match way {
            Way::Approve => ("Cannot be approved", "승인 불가"),
            Way::Reject => ("Cannot be rejected", "거절 불가"),
            Way::Edit => ("Cannot be edited", "수정 불가"),
            Way::Respond => ("Cannot be answered", "답변 불가"),
        };
        Self::new(
            ErrorCode::Forbidden,
            format!("{en}: its agent does not take such a decision. Nothing was decided."),
            format!("{ko}: 에이전트가 이 방식의 결정을 받지 않아 결정되지 않았습니다."),
        )
    }

    /// Arguments or an answer that do not match the agent's schema. `data` names each place by the field
    /// and a JSON Pointer into it.
    fn mismatch(field: &str, mismatches: Vec<Mismatch>) -> Self {
        let mut fields = FieldErrors::new();
        for Mismatch { pointer, keyword, problem } in mismatches {
            let ko = match keyword.as_str() {
                "required" => "필수 항목이 빠졌습니다",
                "type" => "값의 종류가 올바르지 않습니다",
                "enum" | "const" => "허용된 값이 아닙니다",
                "additionalProperties" | "unevaluatedProperties" => "허용되지 않은 항목이 있습니다",
                "minimum" | "exclusiveMinimum" | "minLength" | "minItems" | "minProperties" => {
                    "너무 작거나 짧습니다"
                }
                "maximum" | "exclusiveMaximum" | "maxLength" | "maxItems" | "maxProperties" => {
                    "너무 크거나 깁니다"
                }
                "pattern" => "형식이 올바르지 않습니다",
                _ => "에이전트의 스키마에 맞지 않습니다",
            };
            let text = Text::new(format!("does not match the agent's schema: {problem}"), ko);
            fields.entry(format!("/{field}{pointer}")).or_insert(text);
        }
        Self::invalid(fields)
    }

    fn already_decided(standing: &ExistingDecision) -> Self {
        let decision = &standing.decision;
        let mut data = json!({
            "requestId": standing.id.as_str(),
            "sessionId": standing.session.as_str(),
            "status": decision.verdict.status(),
            "decidedBy": decision.by.as_str(),
            "decidedAt": super::envelope::wire_time(decision.at),
        });
        if let (Some(reason), Some(fields)) = (decision.verdict.reason(), data.as_object_mut()) {
            fields.insert("reason".to_owned(), reason.into());
        }
        let by = shown(decision.by.as_str());
        let (en, ko) = match decision.verdict.status() {
            "approved" => ("approved", "승인"),
            "answered" => ("answered", "답변"),
            _ => ("rejected", "거절"),
        };
        // The default reason would only repeat "rejected".
        let reason = decision.verdict.reason().filter(|reason| *reason != DEFAULT_REASON);
        let reason = reason.map(|reason| format!(" · \"{}\"", shown(reason))).unwrap_or_default();
        Self::new(
            ErrorCode::AlreadyDecided,
            format!("Already {en} by {by}{reason} · Please reload."),
            format!("이미 {ko}됨: {by}{reason} · 새로 고침하세요."),
        )
        .with_data(data)
    }
}

/// An untrusted text within a sentence: one line, without direction characters, cut to 80 characters.
pub(super) fn shown(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    let is_direction = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let line =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = line.collect::<Vec<_>>().join(" ").replace(is_direction, "");
    if line.chars().count() <= MAX_CHARS {
        return line;
    }
    line.chars().take(MAX_CHARS).chain(['…']).collect()
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound => Self::no_such_request(),
            Refusal::NotTheRequester => Self::new(
                ErrorCode::Forbidden,
                "Not your request: only the user whom it names can decide it.",
                "본인 요청이 아님: 요청에 지정된 사용자만 결정할 수 있습니다.",
            ),
            Refusal::NotAllowed { en, ko } => Self::new(ErrorCode::Forbidden, en, ko),
            Refusal::NotTheOwner => Self::new(
                ErrorCode::Forbidden,
                "Not yours to change: only its user or an admin can. Nothing was changed.",
                "변경 권한 없음: 담당 사용자나 관리자만 변경할 수 있습니다.",
            ),
            Refusal::MovedOn => Self::new(
                ErrorCode::Gone,
                "The agent moved on: it no longer waits for this request. Nothing was decided.",
                "에이전트가 떠남: 더 이상 이 요청을 기다리지 않아 결정되지 않았습니다.",
            ),
            Refusal::Expired => Self::new(
                ErrorCode::Gone,
                "Expired: nobody decided this request in time.",
                "만료됨: 제시간에 결정되지 않은 요청입니다.",
            ),
            Refusal::Cancelled { id, session } => Self::new(
                ErrorCode::Gone,
                "The agent withdrew it: nobody can decide this request any more.",
                "에이전트가 철회함: 더 이상 결정할 수 없는 요청입니다.",
            )
            .with_data(json!({
                "requestId": id.as_str(), "sessionId": session.as_str(), "status": "cancelled",
            })),
            Refusal::AlreadyDecided(standing) => Self::already_decided(&standing),
            Refusal::Changed => Self::new(
                ErrorCode::Changed,
                "Changed since you looked: nothing was decided. Please reload and look again.",
                "내용이 바뀜: 결정되지 않았습니다. 새로 고침하고 다시 확인해 주세요.",
            ),
            Refusal::WeakTag => Self::new(
                ErrorCode::Changed,
                "ETag weakened by a proxy, perhaps by compressing: nothing was decided. Send the \
                 strong ETag in If-Match.",
                "약한 ETag: 프록시가 바꾸어(응답 압축 등) 결정되지 않았습니다. 강한 ETag를 If-Match로 보내 주세요.",
            ),
            Refusal::NotOffered(way) => Self::not_offered(way),
            Refusal::Unconditional => Self::unconditional(),
            Refusal::Undecided => Self::new(
                ErrorCode::Conflict,
                "Not decided yet: there is nothing to acknowledge.",
                "아직 결정되지 않음: 확인 처리할 결정이 없습니다.",
            ),
            Refusal::AnothersSession => Self::new(
                ErrorCode::Unprocessable,
                "Another's session: the request names a session that belongs to another tenant or \
                 user. Nothing was decided.",
                "다른 세션: 요청이 다른 테넌트나 사용자의 세션을 가리켜 결정되지 않았습니다.",
            ),
            Refusal::Altered => Self::new(
                ErrorCode::Unprocessable,
                "Request altered: it differs from the one that this id stands for. Nothing was decided.",
                "내용이 다름: 이 ID로 등록되거나 결정된 요청과 달라 결정되지 않았습니다.",
            ),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(problem: RequestError) -> Self {
        match problem {
            RequestError::Refused(refusal) => refusal.into(),
            RequestError::Unreadable(what) => Self::new(
                ErrorCode::Unprocessable,
                format!(
                    "Unreadable request: in Redis it {what}. Nothing was decided; the agent must ask again."
                ),
                "읽을 수 없는 요청: 결정되지 않았습니다. 에이전트가 다시 요청해야 합니다.",
            ),
            RequestError::Mismatch(field, mismatches) => Self::mismatch(field, mismatches),
            RequestError::UnrecordedDecision => Self::new(
                ErrorCode::Unprocessable,
                "Request altered: nobody decided it here, but Redis says that it is no longer \
                 pending. The agent must ask again.",
                "상태가 다름: 결정된 적이 없지만 Redis에는 처리된 것으로 되어 있습니다. 에이전트가 다시 요청해야 합니다.",
            ),
            RequestError::Courier(unavailable) => Self::unavailable(&unavailable.to_string()),
            RequestError::Ledger(error) => error.into(),
            RequestError::TooMany(too_many) => too_many.into(),
            RequestError::Work(error) => error.into(),
            RequestError::OutcomeUnknown(error) => Self::outcome_unknown(&error.to_string()),
        }
    }
}

impl From<TaskError> for ApiError {
    fn from(problem: TaskError) -> Self {
        match problem {
            TaskError::NotFound => Self::no_such_task(),
            TaskError::NotTheOwner => Refusal::NotTheOwner.into(),
            TaskError::Refused(refusal) => Self::task_refused(&refusal),
            TaskError::TooMany(too_many) => too_many.into(),
            TaskError::Ledger(error) => error.into(),
        }
    }
}

impl From<WorkError> for ApiError {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::NotExecuted => Self::busy(&error.to_string()),
            WorkError::OutcomeUnknown => Self::internal(&error.to_string()),
        }
    }
}

impl From<TooMany> for ApiError {
    fn from(TooMany { limit, retry_after_seconds }: TooMany) -> Self {
        let (en, ko) = match limit {
            Limit::Calls => (
                "Too many requests: nothing was done. Please try again in a moment.".to_owned(),
                "요청이 너무 많음: 아무 작업도 하지 않았습니다. 잠시 후 다시 시도해 주세요."
                    .to_owned(),
            ),
            Limit::WaitsOfPerson(most) => (
                format!(
                    "Too many waits: you have {most} long-polls and streams open, the most for one person (max_waits_per_person)."
                ),
                format!(
                    "대기 연결 초과: 열려 있는 대기 연결이 한 사람의 한도인 {most}개에 도달했습니다 (max_waits_per_person)."
                ),
            ),
            Limit::WaitsOfTenant(most) => (
                format!(
                    "Too many waits: your tenant has {most} long-polls and streams open, the most for one tenant (max_waits_per_tenant)."
                ),
                format!(
                    "대기 연결 초과: 열려 있는 대기 연결이 테넌트 한도인 {most}개에 도달했습니다 (max_waits_per_tenant)."
                ),
            ),
            Limit::Waits(most) => (
                format!(
                    "Too many waits: {most} long-polls and streams are open, the most for this service (three quarters of max_connections)."
                ),
                format!(
                    "대기 연결 초과: 열려 있는 대기 연결이 서비스 한도인 {most}개에 도달했습니다 (max_connections의 4분의 3)."
                ),
            ),
            Limit::LargeBodiesOfPerson(most) => (
                format!(
                    "Too many large bodies: bodies of more than {LARGE_BODY_BYTES} bytes are taken one at a time from each person, and at most {most} may wait for a few seconds. Nothing was done."
                ),
                format!(
                    "큰 본문이 너무 많음: {LARGE_BODY_BYTES}바이트를 넘는 본문은 한 사람당 한 번에 하나씩 처리하며, 최대 {most}개까지 잠시 대기할 수 있습니다. 아무 작업도 하지 않았습니다."
                ),
            ),
            Limit::LargeBodies => (
                format!(
                    "Too many large bodies: this service takes only a few of more than {LARGE_BODY_BYTES} bytes at once. Nothing was done. Please try again in a moment."
                ),
                format!(
                    "큰 본문이 너무 많음: {LARGE_BODY_BYTES}바이트를 넘는 본문은 서비스 전체에서 한 번에 몇 개만 처리합니다. 아무 작업도 하지 않았습니다. 잠시 후 다시 시도해 주세요."
                ),
            ),
            Limit::PendingOfPerson(most) => (
                format!(
                    "Too many pending: you have {most} pending requests, the most for one person (max_pending_per_person). Nothing was registered."
                ),
                format!(
                    "대기 요청 초과: 대기 중인 요청이 한 사람의 한도인 {most}건에 도달하여 등록하지 않았습니다 (max_pending_per_person)."
                ),
            ),
            Limit::PendingOfTenant(most) => (
                format!(
                    "Too many pending: your tenant has {most} pending requests, the most for one tenant (max_pending_per_tenant). Nothing was registered."
                ),
                format!(
                    "대기 요청 초과: 대기 중인 요청이 테넌트 한도인 {most}건에 도달하여 등록하지 않았습니다 (max_pending_per_tenant)."
                ),
            ),
            Limit::BytesOfTenant(most) => (
                format!(
                    "Too much: your tenant may send {most} bytes of requests and tasks in an hour (max_bytes_per_tenant_hour), and this would be more. Nothing was changed."
                ),
                format!(
                    "용량 초과: 테넌트가 한 시간에 보낼 수 있는 요청과 작업의 한도인 {most}바이트를 넘게 되어 처리하지 않았습니다 (max_bytes_per_tenant_hour)."
                ),
            ),
        };
        let mut error = Self::new(ErrorCode::TooMany, en, ko);
        error.retry_after_seconds = Some(retry_after_seconds);
        error
    }
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::NotExecuted(cause) | LedgerError::Locked(cause) => {
                Self::unavailable(&cause)
            }
            LedgerError::OutcomeUnknown(cause) => Self::outcome_unknown(&cause),
            LedgerError::Inconsistent(cause) => Self::internal(&cause),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.as_str())
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.code.status()
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if self.code.status() == StatusCode::UNAUTHORIZED {
            response.insert_header((WWW_AUTHENTICATE, "Bearer"));
        }
        if let Some(seconds) = self.retry_after_seconds {
            response.insert_header((RETRY_AFTER, seconds));
        }
        if let Some(allow) = &self.allow {
            response.insert_header((ALLOW, &**allow));
        }
        let message = self.message(Call::current().language);
        response.json(Envelope::error(self.code.as_str(), message, self.data.clone()))
    }
}
