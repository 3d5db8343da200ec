//! HTTP: what comes in, what goes out, and nothing in between. One file per noun.
//!
//! Every answer is an envelope, errors too. `…Body` comes in, `…View` goes out.

pub mod approvals;
pub mod body;
pub mod document;
pub mod envelope;
pub mod error;
mod examples;
pub mod health;
pub mod signals;
pub mod tasks;
pub mod text;

use crate::domain::ids::{RequestId, SessionId, TaskId};
use error::ApiError;

/// The request id of a path.
fn request_id(text: &str) -> Result<RequestId, ApiError> {
    RequestId::parse(text).map_err(|invalid| ApiError::bad_id(invalid.kind))
}

/// The session id of a path.
fn session_id(text: &str) -> Result<SessionId, ApiError> {
    // actix puts U+FFFD in place of what is not UTF-8: that is no longer the id that was sent.
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err(ApiError::bad_id("sessionId"));
    }
    SessionId::parse(text).map_err(|invalid| ApiError::bad_id(invalid.kind))
}

/// The task id of a path.
fn task_id(text: &str) -> Result<TaskId, ApiError> {
    TaskId::parse(text).map_err(|invalid| ApiError::bad_id(invalid.kind))
}
