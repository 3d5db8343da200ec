//! The HTTP API: handlers, one file per resource, and what they share. Must not hold rules: handlers
//! call the use cases in [`crate::requests`].
//!
//! Every JSON answer is an envelope, errors too. A type `…Body` is a request body, `…View` an answer.

pub mod approvals;
pub mod body;
pub mod bulk;
pub mod call_span;
pub mod comments;
pub mod connection;
pub mod detail;
pub mod document;
pub mod endpoint;
pub mod envelope;
pub mod error;
mod examples;
pub mod grants;
mod headers;
pub mod health;
pub mod identity;
pub mod inbox;
pub mod lists;
pub mod outcomes;
pub mod page;
mod parameters;
mod refusals;
pub mod routes;
mod schemas;
pub mod signals;
pub mod slack;
pub mod tasks;
pub mod text;

use crate::domain::ids::{RequestId, SessionId, TaskId};
use crate::domain::printable::printable;
use error::ApiError;

/// Parses a request id, and adds it to the call's span.
fn request_id(text: &str) -> Result<RequestId, ApiError> {
    let id = RequestId::parse(text).map_err(|invalid| ApiError::bad_id(invalid.kind))?;
    tracing::Span::current().record("request_id", id.as_str());
    Ok(id)
}

/// Parses a session id, and adds it to the call's span.
fn session_id(text: &str) -> Result<SessionId, ApiError> {
    // actix puts U+FFFD in place of bytes that are not UTF-8, so this is not the id that was sent.
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err(ApiError::bad_id("sessionId"));
    }
    let id = SessionId::parse(text).map_err(|invalid| ApiError::bad_id(invalid.kind))?;
    tracing::Span::current().record("session_id", printable(id.as_str()));
    Ok(id)
}

/// Parses a task id, and adds it to the call's span.
fn task_id(text: &str) -> Result<TaskId, ApiError> {
    let id = TaskId::parse(text).map_err(|invalid| ApiError::bad_id(invalid.kind))?;
    tracing::Span::current().record("task_id", id.as_str());
    Ok(id)
}
