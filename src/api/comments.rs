//! Comments on one approval request: questions and answers, before somebody decides.

use actix_web::{HttpRequest, web};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use validator::{Validate, ValidationError};

use super::body::Checked;
use super::envelope::{Answer, Envelope, created, ok, wire_time};
use super::error::ApiError;
use super::examples::success;
use super::identity::{CallerOf, is_agent};
use super::lists::NoQuery;
use super::request_id;
use crate::domain::comment::{Author, Comment};
use crate::requests::comments::{self, Added};
use crate::state::AppState;

const ADDED: &str = "Comment added";
const RETRIEVED: &str = "Comments retrieved";
/// Largest body of a comment, in bytes: its characters may all be escaped.
const MAX_BODY_BYTES: usize = 32 * 1024;

/// A comment to add.
#[derive(Debug, Deserialize, Validate, ToSchema)]
pub struct CommentBody {
    /// A question or an answer.
    #[validate(required, length(max = 2000), custom(function = not_blank))]
    #[schema(
        required,
        nullable = false,
        min_length = 1,
        max_length = 2000,
        example = "Which folder?"
    )]
    text: Option<String>,
}

/// A comment.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommentView {
    /// The request.
    #[schema(example = "req-12345")]
    request_id: String,
    /// Its number among the comments of the request, from 1.
    #[schema(example = 1)]
    number: i64,
    /// The user with whose token it was written.
    #[schema(example = "user123")]
    user_id: String,
    /// `person`, or `agent`: an agent wrote it for the user.
    #[schema(example = "person")]
    author: &'static str,
    /// What it says.
    #[schema(example = "Which folder?")]
    text: String,
    /// When it was written. UTC, whole seconds, no zone suffix.
    #[schema(example = "2026-01-16T12:00:00")]
    at: String,
}

/// The comments of a request, the oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct CommentsView {
    comments: Vec<CommentView>,
}

impl From<Comment> for CommentView {
    fn from(comment: Comment) -> Self {
        let Comment { request, number, user, author, text, at } = comment;
        Self {
            request_id: request.to_string(),
            number,
            user_id: user.to_string(),
            author: author.as_str(),
            text,
            at: wire_time(at),
        }
    }
}

fn not_blank(text: &str) -> Result<(), ValidationError> {
    if text.trim().is_empty() { Err(ValidationError::new("required")) } else { Ok(()) }
}

fn example() -> serde_json::Value {
    json!({
        "requestId": super::examples::REQUEST, "number": 1, "userId": "user123",
        "author": "agent", "text": "Which folder?", "at": "2026-01-16T12:00:00",
    })
}

/// Comment on a pending request: ask or answer something before it is decided. Wakes the stream of its
/// agent and the inboxes; the request stays pending.
///
/// # Errors
/// `E3006` or `E3007` when the request is closed; `E3008` when it has 100 comments already.
#[utoipa::path(
    post, path = "/aura/hitl/requests/{requestId}/comments",
    request_body(content = CommentBody, example = json!({ "text": "Which folder?" })),
    responses((
        status = 201, description = "Added", body = Envelope<CommentView>,
        example = json!(success(ADDED, example())),
    ))
)]
pub async fn add(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
    body: Checked<CommentBody, MAX_BODY_BYTES>,
    request: HttpRequest,
) -> Result<Answer<CommentView>, ApiError> {
    let id = request_id(&id)?;
    let author = if is_agent(&caller, &request) { Author::Agent } else { Author::Person };
    let text = body.0.text.unwrap_or_default();
    let work = app.get_ref().clone();
    let adding = async move { comments::add(&work, &caller, &id, author, text).await };
    match app.run_to_end(adding).await?? {
        Added::Comment(comment) => Ok(created(ADDED, comment.into())),
        Added::TooMany => Err(ApiError::too_many_comments()),
    }
}

/// Read the comments of a request.
///
/// # Errors
/// `E1004` when there is no such request; `E4000` for any query parameter; `E4220` when the request in
/// Redis is not valid.
#[utoipa::path(
    get, path = "/aura/hitl/requests/{requestId}/comments",
    responses((
        status = 200, description = "The oldest first, at most 100", body = Envelope<CommentsView>,
        example = json!(success(RETRIEVED, json!({ "comments": [example()] }))),
    ))
)]
pub async fn list(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
    _none: NoQuery,
) -> Result<Answer<CommentsView>, ApiError> {
    let id = request_id(&id)?;
    let work = app.get_ref().clone();
    let found = app.run_to_end(async move { comments::list(&work, &caller, &id).await }).await??;
    Ok(ok(RETRIEVED, CommentsView { comments: found.into_iter().map(Into::into).collect() }))
}
