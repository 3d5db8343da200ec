//! What people are told of: the events of a request, and what the write that causes an event notes of it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::ids::UserId;

/// Something that people are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Event {
    /// The request waits for people.
    #[serde(rename = "request.pending")]
    Pending,
    /// It still waits after the rule's `remind_after`.
    #[serde(rename = "request.reminder")]
    Reminder,
    /// It still waits after the time of an entry of the rule's `escalate`.
    #[serde(rename = "request.escalated")]
    Escalated,
    /// It was approved, rejected or answered.
    #[serde(rename = "request.decided")]
    Decided,
    /// Nobody decided in time, or its key in Redis has gone.
    #[serde(rename = "request.expired")]
    Expired,
    /// Its agent has withdrawn it.
    #[serde(rename = "request.cancelled")]
    Cancelled,
    /// Somebody has commented on it.
    #[serde(rename = "request.commented")]
    Commented,
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Reminder,
        Self::Escalated,
        Self::Decided,
        Self::Expired,
        Self::Cancelled,
        Self::Commented,
    ];

    /// The name on the wire, in the configuration and in the column `target`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "request.pending",
            Self::Reminder => "request.reminder",
            Self::Escalated => "request.escalated",
            Self::Decided => "request.decided",
            Self::Expired => "request.expired",
            Self::Cancelled => "request.cancelled",
            Self::Commented => "request.commented",
        }
    }

    /// The event of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.as_str() == name)
    }

    /// Whether the request waits for nobody any more.
    #[must_use]
    pub fn closes(self) -> bool {
        matches!(self, Self::Decided | Self::Expired | Self::Cancelled)
    }

    /// Whether it asks people to act, so that it says nothing once the request is closed.
    #[must_use]
    pub fn asks(self) -> bool {
        matches!(self, Self::Pending | Self::Reminder | Self::Escalated)
    }
}

/// What the write knows of its event, as JSON in the column `payload`. Everything else is in the request's
/// row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Who wrote it: the decider, the commenter, or the caller who withdrew the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Of an escalation: its time after `createdAt`, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<i64>,
    /// Of a reminder or escalation: since when the service knew of the request, UTC. A request that is made
    /// anew has reminders of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
}

impl Cause {
    /// A cause by this user.
    #[must_use]
    pub fn by(user: &UserId) -> Self {
        Self { by: Some(user.as_str().to_owned()), ..Self::default() }
    }

    /// As JSON.
    #[must_use]
    pub fn json(&self) -> String {
        super::json::raw(self).get().to_owned()
    }
}
