//! Grants: approvals that stand for later requests. They are made by approving with `remember`.

use actix_web::web;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::envelope::{Answer, Envelope, ok, wire_time};
use super::error::ApiError;
use super::examples::{REQUEST, SESSION, success};
use super::identity::CallerOf;
use super::lists::NoQuery;
use crate::domain::grant::{Grant, Scope};
use crate::domain::ids::GrantId;
use crate::domain::request::Origin;
use crate::requests::grants;
use crate::state::AppState;

const RETRIEVED: &str = "Grants retrieved";
const ENDED: &str = "Grant ended";

/// A grant.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrantView {
    /// Its id.
    #[schema(example = "grant_3f2a9c0d1e4b4c5d8e9fa0b1c2d3e4f5")]
    grant_id: String,
    /// The request that was approved when it was made.
    #[schema(example = "req-12345")]
    request_id: String,
    /// Who approved.
    #[schema(example = "kim")]
    granted_by: String,
    /// Whose requests it approves.
    #[schema(example = "user123")]
    user_id: String,
    /// `session` or `requester`.
    #[schema(example = "session")]
    scope: &'static str,
    /// The only session whose requests it approves.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "session_user123_1706149260")]
    session_id: Option<String>,
    /// Where its requests are first written: `redis` or `http`.
    #[schema(example = "http")]
    origin: &'static str,
    /// The only action that it approves.
    #[schema(example = "search_web")]
    action_type: String,
    /// `exact`: only requests that say the same; `any`.
    #[schema(example = "exact")]
    arguments: &'static str,
    /// The rule of the policy file that let the person approve.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    /// When it was made. UTC, whole seconds, no zone suffix, as all times here.
    #[schema(example = "2026-01-16T12:00:00")]
    created_at: String,
    /// When it expires.
    #[schema(example = "2026-01-16T13:00:00")]
    expires_at: String,
}

/// Grants, those that stand longest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct GrantsView {
    grants: Vec<GrantView>,
}

impl From<Grant> for GrantView {
    fn from(grant: Grant) -> Self {
        let arguments = grant.arguments().as_str();
        Self {
            grant_id: grant.id.to_string(),
            request_id: grant.request.to_string(),
            granted_by: grant.granter.to_string(),
            user_id: grant.requester.to_string(),
            scope: grant.scope.as_str(),
            session_id: (grant.scope == Scope::Session).then(|| grant.session.to_string()),
            origin: if grant.origin == Origin::Http { "http" } else { "redis" },
            action_type: grant.action_type,
            arguments,
            rule: grant.rule,
            created_at: wire_time(grant.created_at),
            expires_at: wire_time(grant.expires_at),
        }
    }
}

fn example() -> serde_json::Value {
    json!({
        "grantId": "grant_3f2a9c0d1e4b4c5d8e9fa0b1c2d3e4f5", "requestId": REQUEST,
        "grantedBy": "kim", "userId": "user123", "scope": "session", "sessionId": SESSION,
        "origin": "http", "actionType": "search_web", "arguments": "exact", "rule": "searches",
        "createdAt": "2026-01-16T12:00:00", "expiresAt": "2026-01-16T13:00:00",
    })
}

/// List the grants in force that the caller made; with the role `admin` those of everybody of the tenant.
///
/// # Errors
/// `E4000` for any query parameter.
#[utoipa::path(
    get, path = "/aura/hitl/grants",
    responses((
        status = 200, description = "Those that stand longest first, at most 1,000", body = Envelope<GrantsView>,
        example = json!(success(RETRIEVED, json!({ "grants": [example()] }))),
    ))
)]
pub async fn list(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    _none: NoQuery,
) -> Result<Answer<GrantsView>, ApiError> {
    let work = app.get_ref().clone();
    let found = app.run_to_end(async move { grants::list(&work, &caller).await }).await??;
    Ok(ok(RETRIEVED, GrantsView { grants: found.into_iter().map(Into::into).collect() }))
}

/// End a grant that the caller made; with the role `admin` one of the tenant. What is asked from then on is
/// for people to decide. Ending it again is answered alike.
///
/// # Errors
/// `E1004` when there is no such grant.
#[utoipa::path(
    delete, path = "/aura/hitl/grants/{grantId}",
    responses((
        status = 200, description = "It approves nothing any more", body = Envelope<GrantView>,
        example = json!(success(ENDED, example())),
    ))
)]
pub async fn end(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
    _none: NoQuery,
) -> Result<Answer<GrantView>, ApiError> {
    let id = GrantId::parse(id.as_str()).map_err(|invalid| ApiError::bad_id(invalid.kind))?;
    let work = app.get_ref().clone();
    let ended = app.run_to_end(async move { grants::end(&work, &caller, &id).await }).await??;
    ended.map(|grant| ok(ENDED, grant.into())).ok_or_else(ApiError::no_such_grant)
}
