//! HTTP: what comes in, what goes out, and nothing in between. One file per noun.
//!
//! Every answer is an envelope, errors too. `…Body` comes in, `…View` goes out.

pub mod approvals;
pub mod body;
pub mod call_span;
pub mod connection;
pub mod document;
pub mod endpoint;
pub mod envelope;
pub mod error;
mod examples;
mod headers;
pub mod health;
pub mod identity;
pub mod outcomes;
mod parameters;
mod refusals;
pub mod routes;
mod schemas;
pub mod signals;
pub mod tasks;
pub mod text;

use crate::domain::ids::{RequestId, SessionId, TaskId};
use crate::domain::printable::printable;
use error::ApiError;

/// A request id as it came in; from here on the log names it.
fn request_id(text: &str) -> Result<RequestId, ApiError> {
    let id = RequestId::parse(text).map_err(|invalid| ApiError::bad_id(invalid.kind))?;
    tracing::Span::current().record("request_id", id.as_str());
    Ok(id)
}

/// A session id as it came in; from here on the log names it.
fn session_id(text: &str) -> Result<SessionId, ApiError> {
    // actix puts U+FFFD in place of what is not UTF-8: that is no longer the id that was sent.
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err(ApiError::bad_id("sessionId"));
    }
    let id = SessionId::parse(text).map_err(|invalid| ApiError::bad_id(invalid.kind))?;
    tracing::Span::current().record("session_id", printable(id.as_str()));
    Ok(id)
}

/// A task id as it came in; from here on the log names it.
fn task_id(text: &str) -> Result<TaskId, ApiError> {
    let id = TaskId::parse(text).map_err(|invalid| ApiError::bad_id(invalid.kind))?;
    tracing::Span::current().record("task_id", id.as_str());
    Ok(id)
}
