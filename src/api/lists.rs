//! Lists of approval requests, for people: which wait, and what became of those that do not.

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest, web};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, SubsecRound as _, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::future::{Ready, ready};
use url::form_urlencoded;
use utoipa::{IntoParams, ToSchema};

use super::envelope::{Answer, Envelope, ok, wire_time};
use super::error::{ApiError, FieldErrors};
use super::examples::{FINGERPRINT, REQUEST, SESSION, TASK, success};
use super::identity::CallerOf;
use super::schemas;
use super::text::Text;
use crate::domain::approver::{Caller, Role};
use crate::domain::ids::{RequestId, SessionId, TaskId, UserId};
use crate::domain::list::{Filter, Listed, Order, Owners, Position, Status};
use crate::domain::request::Origin;
use crate::domain::search;
use crate::requests::bound::Rights;
use crate::requests::list::{self, Listing, Scope, Wanted, default_order};
use crate::state::AppState;

/// Requests per page when the caller gives no size.
const DEFAULT_PAGE_SIZE: usize = 20;
/// How many requests a page may have.
const MAX_PAGE_SIZE: usize = 100;
/// The longest `actionType` that can be registered, in characters.
const MAX_ACTION_CHARS: usize = 128;
/// The risk of every request, while no policy says otherwise.
pub const RISK: &str = "medium";
const RISKS: [&str; 4] = ["low", RISK, "high", "critical"];
/// The longest query, in characters.
const MAX_QUERY_CHARS: usize = 200;
/// The version of cursors. A cursor of another version is refused.
const CURSOR_VERSION: u8 = 1;
const RETRIEVED: &str = "Approval requests retrieved";

/// Which requests to list. An unknown parameter, and one that is sent twice, is refused.
#[derive(Debug, Default, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes the parameters in the API document; `parse` reads them")]
pub struct ListParameters {
    /// `pending` when absent; several by comma: `pending`, `approved`, `rejected`, `answered`, `expired`,
    /// `cancelled`.
    #[param(
        example = "pending",
        pattern = "^(pending|approved|rejected|answered|expired|cancelled)(,(pending|approved|rejected|answered|expired|cancelled))*$"
    )]
    status: Option<String>,
    /// `decidable` (when absent): what you may decide, of closed ones what you decided or could have.
    /// `mine`: what names you. `tenant`: everything, for admins.
    #[param(example = "decidable", pattern = "^(decidable|mine|tenant)$")]
    scope: Option<String>,
    /// With this `actionType`.
    action_type: Option<String>,
    /// Of this user.
    user_id: Option<String>,
    /// Of this session.
    #[param(value_type = Option<schemas::SessionIdText>, inline)]
    session_id: Option<String>,
    /// Of this task.
    #[param(value_type = Option<schemas::Id>, inline)]
    task_id: Option<String>,
    /// Decided by this user.
    decided_by: Option<String>,
    /// With this risk: `low`, `medium`, `high` or `critical`.
    #[param(pattern = "^(low|medium|high|critical)$")]
    risk: Option<String>,
    /// With this rule.
    rule: Option<String>,
    /// With every word of this in message, action, ids or context; up to 10 words.
    q: Option<String>,
    /// Made at this time or later, RFC 3339.
    from: Option<String>,
    /// Made before this time, RFC 3339.
    to: Option<String>,
    /// `expiresAt` (when absent, for `status=pending` alone), `-createdAt`, or `-settledAt` (when absent,
    /// otherwise): pending requests first.
    #[param(pattern = "^(expiresAt|-createdAt|-settledAt)$")]
    sort: Option<String>,
    /// 20 when absent.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 100)]
    size: Option<String>,
    /// `nextCursor` of the page before, with the same other parameters.
    cursor: Option<String>,
}

/// The parameters of a list, read and checked.
#[derive(Debug)]
pub struct ListQuery {
    statuses: Vec<Status>,
    scope: Scope,
    order: Order,
    action_type: Option<String>,
    user: Option<UserId>,
    session: Option<SessionId>,
    task: Option<TaskId>,
    decided_by: Option<UserId>,
    risk: Option<String>,
    rule: Option<String>,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
    words: Vec<String>,
    size: usize,
    cursor: Option<String>,
}

/// A page of requests.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestPage {
    /// In the order of `sort`.
    content: Vec<RequestView>,
    /// On this page. A page may have fewer than `size` requests although there are further pages.
    number_of_elements: usize,
    /// Requests per page, at most.
    size: usize,
    /// On all pages; at most 5 s old. Above 10,000 it only says that there are more.
    total_elements: u64,
    /// Says that `q` was looked for in this many requests, one by one, and that there are more: the next
    /// page goes on there. Absent when all were searched.
    #[serde(skip_serializing_if = "Option::is_none")]
    searched_newest: Option<u64>,
    /// Begins the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A request, without its `context`. Times are UTC, whole seconds, no zone suffix. Each field is always
/// there, and is `null` without a value.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestView {
    #[schema(example = "req-12345")]
    request_id: String,
    #[schema(example = "session_user123_1706149260")]
    session_id: String,
    #[schema(example = "tenant1")]
    tenant_id: String,
    /// The user that the request names.
    #[schema(example = "user123")]
    user_id: Option<String>,
    /// `http`: registered. `redis`: written to Redis by its agent.
    #[schema(example = "http")]
    origin: &'static str,
    #[schema(example = "send_email")]
    action_type: String,
    /// At most 2,000 characters of it.
    message: Option<String>,
    /// `pending`, `approved`, `rejected`, `answered`, `expired` or `cancelled`.
    #[schema(example = "pending")]
    status: &'static str,
    /// `low`, `medium`, `high` or `critical`.
    #[schema(example = "medium")]
    risk: String,
    /// The policy's rule for this request.
    rule: Option<String>,
    #[schema(example = "2026-01-16T12:00:00")]
    created_at: String,
    #[schema(example = "2026-01-16T12:30:00")]
    expires_at: String,
    task_id: Option<String>,
    /// SHA-256 of `actionType` and `context`, in hex.
    fingerprint: String,
    /// The user who decided.
    decided_by: Option<String>,
    /// How it was decided: `person`, `policy` or `grant`.
    decided_via: Option<&'static str>,
    decided_at: Option<String>,
    /// When it was closed: decided, expired or withdrawn.
    settled_at: Option<String>,
    /// Why it was rejected.
    reason: Option<String>,
    /// How many people have approved it.
    approvals: u32,
    /// How many people have to approve it.
    approvals_needed: u32,
    /// Whether you may decide it now. An agent on Redis may have moved on nevertheless.
    may_decide: bool,
    /// The ways to decide it.
    decisions: Vec<&'static str>,
    /// The `ETag` of its content, without quotes.
    etag: String,
    /// Whether it was decided, and its agent has asked again: only the person who decided may decide it,
    /// and only the same way.
    asked_again: bool,
    /// When its agent gives up, although the request expires later: agents on Redis wait for 300 s.
    agent_waits_until: Option<String>,
}

impl RequestView {
    /// The request as a caller sees it.
    #[must_use]
    pub fn of(row: Listed, rights: &Rights) -> Self {
        let agent_waits_until = row.agent_waits_until().map(wire_time);
        let approved = i64::from(row.status == Status::Approved);
        let count = |number: i64| u32::try_from(number).unwrap_or(0);
        Self {
            request_id: row.id.to_string(),
            session_id: row.session.to_string(),
            tenant_id: row.tenant.to_string(),
            user_id: row.user.map(|user| user.to_string()),
            origin: match row.origin {
                Origin::Redis => "redis",
                Origin::Http => "http",
            },
            action_type: row.action_type,
            message: row.message,
            status: row.status.as_str(),
            risk: row.ruling.risk.unwrap_or_else(|| RISK.to_owned()),
            rule: row.ruling.rule,
            created_at: wire_time(row.created_at),
            expires_at: wire_time(row.expires_at),
            task_id: row.task.map(|task| task.to_string()),
            fingerprint: row.fingerprint,
            decided_via: row.decided_by.as_ref().map(|_decider| row.ruling.via.as_str()),
            decided_by: row.decided_by.map(|user| user.to_string()),
            decided_at: row.decided_at.map(wire_time),
            settled_at: row.closed_at.map(wire_time),
            reason: row.reason,
            approvals: count(row.ruling.approvals.unwrap_or(approved)),
            approvals_needed: count(row.ruling.approvals_needed.unwrap_or(1)),
            may_decide: rights.may_decide,
            decisions: rights.decisions.iter().map(|way| way.as_str()).collect(),
            etag: row.etag,
            asked_again: row.is_asked_again,
            agent_waits_until,
        }
    }
}

/// List requests: by default those that you may decide, the least time left first. Another page begins
/// where the one before ended, whatever has come or gone meanwhile.
///
/// # Errors
/// `E2001` for `scope=tenant` unless the caller is an admin; `E4000` when a parameter is not valid or not
/// known, or when the cursor belongs to another list.
#[utoipa::path(
    get, path = "/aura/hitl/requests", params(ListParameters),
    responses((
        status = 200, description = "A page of requests", body = Envelope<RequestPage>,
        example = json!(success(RETRIEVED, page_example())),
    ))
)]
pub async fn list(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    query: ListQuery,
) -> Result<Answer<RequestPage>, ApiError> {
    if query.scope == Scope::Tenant && caller.role != Role::Admin {
        return Err(ApiError::admins_list_all());
    }
    let digest = query.digest(&caller);
    let after = query.cursor.as_deref().map(|cursor| read_cursor(cursor, &digest)).transpose()?;
    let size = query.size;
    let wanted = query.wanted(&caller);
    let work = app.get_ref().clone();
    let listing = app
        .run_to_end(async move { list::list(&work, &caller, wanted, after.as_ref(), size).await })
        .await??;
    Ok(ok(RETRIEVED, page(listing, size, &digest)))
}

fn page(listing: Listing, size: usize, digest: &str) -> RequestPage {
    let content = listing.rows.into_iter().map(|(row, rights)| RequestView::of(row, &rights));
    let content = content.collect::<Vec<_>>();
    RequestPage {
        number_of_elements: content.len(),
        size,
        // The total may be older than the page.
        total_elements: listing.total.max(content.len() as u64),
        searched_newest: listing.searched_newest,
        next_cursor: listing.next.map(|next| write_cursor(&next, digest)),
        content,
    }
}

/// A request as lists show it, for the API document.
pub(super) fn request_example() -> serde_json::Value {
    json!({
        "requestId": REQUEST, "sessionId": SESSION, "tenantId": "tenant1", "userId": "user123",
        "origin": "http", "actionType": "send_email", "message": "Send the summary to a@b.c?",
        "status": "pending", "risk": RISK, "rule": null, "createdAt": "2026-01-16T12:00:00",
        "expiresAt": "2026-01-16T12:30:00", "taskId": TASK, "fingerprint": FINGERPRINT,
        "decidedBy": null, "decidedVia": null, "decidedAt": null, "settledAt": null, "reason": null,
        "approvals": 0, "approvalsNeeded": 1, "mayDecide": true, "decisions": ["approve", "reject"],
        "etag": "f0e4c2f76c58916ec258f246851bea091d14d4247a2fc3e18694461b1816e13b",
        "askedAgain": false, "agentWaitsUntil": null,
    })
}

fn page_example() -> serde_json::Value {
    json!({
        "content": [request_example()], "numberOfElements": 1, "size": 20, "totalElements": 1,
    })
}

/// What a cursor says. Who changes it only begins elsewhere in the same list.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    /// [`CURSOR_VERSION`].
    v: u8,
    /// [`ListQuery::digest`].
    list: String,
    /// See [`Position::is_closed`].
    closed: bool,
    /// Unix microseconds.
    at: i64,
    /// The last request of the page before.
    id: String,
}

fn write_cursor(position: &Position, digest: &str) -> String {
    let cursor = Cursor {
        v: CURSOR_VERSION,
        list: digest.to_owned(),
        closed: position.is_closed,
        at: position.at.timestamp_micros(),
        id: position.id.to_string(),
    };
    BASE64_URL_SAFE_NO_PAD.encode(crate::domain::json::raw(&cursor).get())
}

fn read_cursor(text: &str, digest: &str) -> Result<Position, ApiError> {
    let invalid =
        |en: &'static str, ko: &'static str| ApiError::invalid_field("cursor", Text::new(en, ko));
    let read = || {
        let json = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let cursor: Cursor = serde_json::from_slice(&json).ok()?;
        let at = DateTime::from_timestamp_micros(cursor.at)?;
        // Times that no request has, and that Postgres cannot hold.
        let is_likely = (0..=253_402_300_799).contains(&at.timestamp());
        let id = RequestId::parse(cursor.id).ok()?;
        let position = Position { is_closed: cursor.closed, at, id };
        (cursor.v == CURSOR_VERSION && is_likely).then_some((position, cursor.list))
    };
    let (position, list) = read().ok_or_else(|| {
        invalid("is not a cursor of this service", "이 서비스가 발급한 커서가 아닙니다")
    })?;
    if list != digest {
        return Err(invalid(
            "belongs to another list: send it with the parameters of the page before",
            "다른 목록의 커서입니다. 앞 페이지와 같은 조건으로 보내 주세요",
        ));
    }
    Ok(position)
}

impl ListQuery {
    /// Which list this is, whatever the page: a hash of the caller and of everything but size and
    /// cursor.
    fn digest(&self, caller: &Caller) -> String {
        let Self { size: _, cursor: _, .. } = self;
        let list = format!(
            "{:?}",
            (
                (&caller.tenant, &caller.user, self.scope, &self.statuses, self.order),
                (&self.action_type, &self.user, &self.session, &self.task, &self.decided_by),
                (&self.risk, &self.rule, self.from, self.to, &self.words),
            )
        );
        let hash = Sha256::digest(list);
        BASE64_URL_SAFE_NO_PAD.encode(hash.get(..9).unwrap_or_default())
    }

    fn wanted(self, caller: &Caller) -> Wanted {
        Wanted {
            scope: self.scope,
            filter: Filter {
                tenant: caller.tenant.clone(),
                owners: Owners::All,
                statuses: self.statuses,
                order: self.order,
                decidable_at: None,
                caller: caller.user.clone(),
                action_type: self.action_type,
                user: self.user,
                session: self.session,
                task: self.task,
                decided_by: self.decided_by,
                from: self.from,
                to: self.to,
                risk: self.risk,
                rule: self.rule,
                decidable: None,
                words: self.words,
            },
        }
    }

    /// Reads the parameters of a query string. All mistakes are named at once.
    fn parse(query: &str) -> Result<Self, ApiError> {
        let mut parameters = Parameters::of(query)?;
        let statuses = parameters.read("status", |text| {
            let named = text.split(',').map(|name| Status::parse(name.trim()));
            let mut named = named.collect::<Option<Vec<_>>>().ok_or_else(|| one_of(&STATUSES))?;
            named.sort_unstable();
            named.dedup();
            Ok(named)
        });
        let statuses = statuses.unwrap_or_else(|| vec![Status::Pending]);
        let scope = parameters.read("scope", |text| {
            Scope::parse(text).ok_or_else(|| one_of(&["decidable", "mine", "tenant"]))
        });
        let order = parameters.read("sort", |text| {
            let order = Order::parse(text)
                .ok_or_else(|| one_of(&["expiresAt", "-createdAt", "-settledAt"]))?;
            if order == Order::ExpiresAt && statuses != [Status::Pending] {
                return Err(Text::new(
                    "may be expiresAt only with status=pending",
                    "expiresAt는 status=pending일 때만 사용할 수 있습니다",
                ));
            }
            Ok(order)
        });
        let id = |en: &'static str| Text::new(en, "올바른 형식의 ID가 아닙니다");
        let not_an_id = "is not a valid id";
        let read = Self {
            order: order.unwrap_or_else(|| default_order(&statuses)),
            statuses,
            scope: scope.unwrap_or(Scope::Decidable),
            action_type: parameters.read("actionType", short_text),
            user: parameters
                .read("userId", |text| UserId::parse(text).map_err(|_invalid| id(not_an_id))),
            session: parameters
                .read("sessionId", |text| SessionId::parse(text).map_err(|_invalid| id(not_an_id))),
            task: parameters
                .read("taskId", |text| TaskId::parse(text).map_err(|_invalid| id(not_an_id))),
            decided_by: parameters
                .read("decidedBy", |text| UserId::parse(text).map_err(|_invalid| id(not_an_id))),
            risk: parameters.read("risk", |text| {
                RISKS.contains(&text).then(|| text.to_owned()).ok_or_else(|| one_of(&RISKS))
            }),
            rule: parameters.read("rule", short_text),
            from: parameters.read("from", instant),
            to: parameters.read("to", instant),
            words: parameters.read("q", words).unwrap_or_default(),
            size: parameters.read("size", page_size).unwrap_or(DEFAULT_PAGE_SIZE),
            cursor: parameters.read("cursor", |text| Ok(text.to_owned())),
        };
        parameters.finish()?;
        Ok(read)
    }
}

const STATUSES: [&str; 6] = ["pending", "approved", "rejected", "answered", "expired", "cancelled"];

fn one_of(names: &[&str]) -> Text {
    let names = names.join(", ");
    Text::new(format!("must be one of {names}"), format!("다음 중 하나여야 합니다: {names}"))
}

fn short_text(text: &str) -> Result<String, Text> {
    let is_valid = (1..=MAX_ACTION_CHARS).contains(&text.chars().count()) && !text.contains('\0');
    is_valid
        .then(|| text.to_owned())
        .ok_or_else(|| Text::new("must have 1 to 128 characters", "1자 이상 128자 이하여야 합니다"))
}

fn instant(text: &str) -> Result<DateTime<Utc>, Text> {
    let time = DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc().trunc_subsecs(6));
    let time = time.filter(|time| (0..=253_402_300_799).contains(&time.timestamp()));
    time.ok_or_else(|| {
        Text::new(
            "must be a time like 2026-01-16T12:00:00Z (RFC 3339; write + as %2B)",
            "2026-01-16T12:00:00Z 형식(RFC 3339)의 시각이어야 합니다. +는 %2B로 적어 주세요",
        )
    })
}

fn words(text: &str) -> Result<Vec<String>, Text> {
    let words = Some(text).filter(|text| text.chars().count() <= MAX_QUERY_CHARS);
    words.and_then(search::words).ok_or_else(|| {
        Text::new(
            "must have 1 to 10 words, and at most 200 characters",
            "단어 1개 이상 10개 이하, 최대 200자여야 합니다",
        )
    })
}

fn page_size(text: &str) -> Result<usize, Text> {
    let size = text.parse().ok().filter(|size| (1..=MAX_PAGE_SIZE).contains(size));
    size.ok_or_else(|| Text::new("must be from 1 to 100", "1에서 100 사이여야 합니다"))
}

impl FromRequest for ListQuery {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        ready(Self::parse(request.query_string()))
    }
}

/// No query at all: an unknown parameter is refused.
#[derive(Debug)]
pub struct NoQuery;

impl FromRequest for NoQuery {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        ready(Parameters::of(request.query_string()).and_then(Parameters::finish).map(|()| Self))
    }
}

/// The parameters of a query that are not read yet, and the mistakes in those that are.
struct Parameters {
    unread: Vec<(String, String)>,
    mistakes: FieldErrors,
}

impl Parameters {
    fn of(query: &str) -> Result<Self, ApiError> {
        let mut parameters = Self { unread: Vec::new(), mistakes: FieldErrors::new() };
        for (name, value) in form_urlencoded::parse(query.as_bytes()).into_owned() {
            // The decoder puts U+FFFD in place of bytes that are not UTF-8.
            let is_text = !value.contains(char::REPLACEMENT_CHARACTER);
            if !is_text {
                let text = Text::new("is not UTF-8", "UTF-8이 아닙니다");
                parameters.mistakes.insert(name, text);
            } else if parameters.unread.iter().any(|(other, _)| *other == name) {
                let text = Text::new("is given twice", "두 번 지정되었습니다");
                parameters.mistakes.insert(name, text);
            } else {
                parameters.unread.push((name, value));
            }
        }
        if parameters.mistakes.is_empty() { Ok(parameters) } else { parameters.fail() }
    }

    /// Reads one parameter. A mistake in it is noted.
    fn read<T>(&mut self, name: &str, read: impl FnOnce(&str) -> Result<T, Text>) -> Option<T> {
        let at = self.unread.iter().position(|(other, _)| other == name)?;
        let (name, value) = self.unread.swap_remove(at);
        match read(&value) {
            Ok(value) => Some(value),
            Err(mistake) => {
                self.mistakes.insert(name, mistake);
                None
            }
        }
    }

    /// Fails if a parameter was not read, or had a mistake.
    fn finish(mut self) -> Result<(), ApiError> {
        for (name, _value) in self.unread.drain(..) {
            let text = Text::new("is not a parameter of this call", "알 수 없는 조건입니다");
            self.mistakes.insert(name, text);
        }
        if self.mistakes.is_empty() { Ok(()) } else { self.fail() }
    }

    fn fail<T>(self) -> Result<T, ApiError> {
        // A name may be any text. It is shown in the answer, so it is cut.
        let cut = |(name, text): (String, Text)| (name.chars().take(64).collect(), text);
        Err(ApiError::invalid(self.mistakes.into_iter().map(cut).collect()))
    }
}
