//! The words of a policy: what is judged, who asks to decide, in which way, and the sentences that
//! people read about it.

use std::fmt;

use crate::domain::ids::{SessionId, TaskId, TenantId, UserId};
use crate::domain::request::Origin;
pub use crate::domain::ways::{Remember, Risk, Way};

/// What the expressions of the rules are evaluated over: one request, as it was asked or as an edit
/// makes it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// `actionType`.
    pub action_type: &'a str,
    /// `message`; `null` in expressions when the request has none.
    pub message: Option<&'a str>,
    /// `context` as JSON text, so that numbers keep their spelling. An absent or `null` context is an
    /// empty object in expressions. A text that is not JSON fails every expression that reads it.
    pub context: &'a str,
    /// `userId`: the requester, from the request or its session.
    pub user: Option<&'a UserId>,
    /// `tenantId`, from the request or its session.
    pub tenant: Option<&'a TenantId>,
    /// `sessionId`.
    pub session: &'a SessionId,
    /// `taskId`.
    pub task: Option<&'a TaskId>,
    /// `origin`: `redis` or `http`.
    pub origin: Origin,
}

/// Somebody who wants to decide, as the token describes them. The caller has already checked that the
/// person and the request are of one tenant.
#[derive(Clone, Copy, Debug)]
pub struct Person<'a> {
    /// The token's `sub`.
    pub user: &'a UserId,
    /// The token's `tenant_id`.
    pub tenant: &'a TenantId,
    /// The token's `role` and `roles`.
    pub roles: &'a [String],
    /// The token's `groups`. The groups of the policy file are looked up beside them.
    pub groups: &'a [String],
}

/// A sentence in both languages of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// English.
    pub en: String,
    /// Korean.
    pub ko: String,
}

impl Sentence {
    /// A sentence.
    pub fn new(en: impl Into<String>, ko: impl Into<String>) -> Self {
        Self { en: en.into(), ko: ko.into() }
    }

    /// Both sentences, one after the other.
    #[must_use]
    pub fn then(self, next: &Self) -> Self {
        Self { en: format!("{} {}", self.en, next.en), ko: format!("{} {}", self.ko, next.ko) }
    }
}

/// Logs and error chains are in English.
impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.en)
    }
}
