//! Lists of requests: which requests belong to a list, in which order, and where its pages begin.
//!
//! A page begins after a [`Position`], not at a number, so that rows that come and go between two pages
//! neither repeat nor hide another row.

use chrono::{DateTime, TimeDelta, Utc};

use super::ids::{RequestId, SessionId, TaskId, TenantId, UserId};
use super::record::{DecidedVia, Ruling};
use super::request::{AGENT_TIMEOUT, Origin};
use super::ways::Way;

/// The longest life of a request: the largest `expiresInSeconds`, and more than a key in Redis lives.
pub const MAX_LIFETIME: TimeDelta = TimeDelta::days(1);
/// How long after its expiry a request may be closed, at most. While no replica runs, nobody closes it.
pub const MAX_CLOSING_DELAY: TimeDelta = TimeDelta::days(30);

/// The status of a request in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Nobody has decided.
    Pending,
    /// A person has approved.
    Approved,
    /// A person has rejected.
    Rejected,
    /// A person has answered instead, and the agent does not act.
    Answered,
    /// Nobody decided in time.
    Expired,
    /// The agent withdrew the request.
    Cancelled,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::Approved,
        Self::Rejected,
        Self::Answered,
        Self::Expired,
        Self::Cancelled,
    ];

    /// The status on the wire and in SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Answered => "answered",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    /// The status of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// The order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By `expiresAt`, the least time left first. Only for pending requests.
    ExpiresAt,
    /// By `createdAt`, the newest first.
    CreatedAt,
    /// By `settledAt`, the latest first. Pending requests come before, by `expiresAt`.
    SettledAt,
}

impl Order {
    /// The order on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ExpiresAt => "expiresAt",
            Self::CreatedAt => "-createdAt",
            Self::SettledAt => "-settledAt",
        }
    }

    /// The order of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::ExpiresAt, Self::CreatedAt, Self::SettledAt]
            .into_iter()
            .find(|order| order.as_str() == text)
    }
}

/// Whose requests: the users whom the requests name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Everybody's, and those that name no user.
    All,
    /// One user's.
    Only(UserId),
    /// One user's, and those that name no user.
    OrNobody(UserId),
}

impl Owners {
    /// Whether a request that names this user belongs here.
    #[must_use]
    pub fn include(&self, user: Option<&UserId>) -> bool {
        match self {
            Self::All => true,
            Self::Only(owner) => user == Some(owner),
            Self::OrNobody(owner) => user.is_none_or(|user| user == owner),
        }
    }
}

/// The requests of a list.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The tenant of the requests.
    pub tenant: TenantId,
    /// Their users.
    pub owners: Owners,
    /// Their statuses, without repetition and in the order of [`Status::ALL`].
    pub statuses: Vec<Status>,
    /// The order of the list.
    pub order: Order,
    /// If set, leaves out pending requests that have expired by then, or whose session has moved on.
    pub decidable_at: Option<DateTime<Utc>>,
    /// The caller. Of decided requests that were asked again, only the decider can decide.
    pub caller: UserId,
    /// Only with this `actionType`.
    pub action_type: Option<String>,
    /// Only of this user.
    pub user: Option<UserId>,
    /// Only of this session.
    pub session: Option<SessionId>,
    /// Only with this task.
    pub task: Option<TaskId>,
    /// Only decided by this user.
    pub decided_by: Option<UserId>,
    /// Only made at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Only made before this time.
    pub to: Option<DateTime<Utc>>,
    /// Only with this risk; requests that no policy file has judged have a medium one.
    pub risk: Option<String>,
    /// Only those that this rule of the policy file binds.
    pub rule: Option<String>,
    /// If set, only what these rules let the caller decide, and what the caller has decided.
    pub decidable: Option<Decidable>,
    /// Only with all of these words in their text; see [`search`](super::search).
    pub words: Vec<String>,
}

/// Which requests a person may decide under a policy file, by what binds them. See
/// [`Ruling::binding`](super::record::Ruling::binding).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decidable {
    /// The keys of requests that name the person.
    pub own: Vec<String>,
    /// The keys of requests that name somebody else.
    pub others: Vec<String>,
    /// The keys of requests that name nobody.
    pub nobodys: Vec<String>,
    /// The keys of requests that the person may decide once they are old enough: until then, it is for
    /// others to decide.
    pub aged: Vec<Aged>,
}

/// Requests that a person may decide if they were made early enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aged {
    /// What binds them.
    pub binding: String,
    /// Whom they name.
    pub named: Named,
    /// When they were made at the latest, UTC.
    pub made_by: DateTime<Utc>,
}

/// Whom a request names, from a person's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// The person.
    Own,
    /// Somebody else.
    Other,
    /// Nobody.
    Nobody,
}

impl Filter {
    /// Whether the list has pending requests.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.statuses.contains(&Status::Pending)
    }

    /// Whether the list has closed requests.
    #[must_use]
    pub fn has_closed(&self) -> bool {
        self.statuses.iter().any(|status| *status != Status::Pending)
    }
}

/// The place of a request in its list. The next page begins after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Whether the place is among the closed requests of a list that has the pending ones first.
    pub is_closed: bool,
    /// The time by which the list is ordered.
    pub at: DateTime<Utc>,
    /// The request. Decides the order of two requests of the same time.
    pub id: RequestId,
}

/// A request as lists show it: without its document.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The request's id.
    pub id: RequestId,
    /// The agent session that waits for the answer.
    pub session: SessionId,
    /// The request's tenant.
    pub tenant: TenantId,
    /// The user that the request names.
    pub user: Option<UserId>,
    /// Where the request was first written.
    pub origin: Origin,
    /// What the agent wants to do.
    pub action_type: String,
    /// The sentence shown to the person, at most [`MAX_MESSAGE_CHARS`] of it.
    pub message: Option<String>,
    /// The state of the request.
    pub status: Status,
    /// When the request was registered or first seen, UTC.
    pub created_at: DateTime<Utc>,
    /// When the agent asked, UTC. Before `created_at` for a request of Redis.
    pub asked_at: DateTime<Utc>,
    /// When the request expires, UTC.
    pub expires_at: DateTime<Utc>,
    /// Whether the session waited for something else when the service last looked.
    pub has_moved_on: bool,
    /// A person has decided the request, and its agent has asked again: the request is pending once more.
    pub is_asked_again: bool,
    /// The request's task; `None` for a request that only Redis knows and that names no task.
    pub task: Option<TaskId>,
    /// See [`ApprovalRequest::fingerprint`](super::request::ApprovalRequest::fingerprint).
    pub fingerprint: String,
    /// The entity tag.
    pub etag: String,
    /// Who decided.
    pub decided_by: Option<UserId>,
    /// When the request was decided, UTC.
    pub decided_at: Option<DateTime<Utc>>,
    /// Why the request was rejected.
    pub reason: Option<String>,
    /// When the request was closed, UTC.
    pub closed_at: Option<DateTime<Utc>>,
    /// The ways in which it can be decided, as far as its agent goes.
    pub ways: Vec<Way>,
    /// What the policy file said.
    pub ruling: Ruling,
}

/// The longest message in a list, in characters: the longest that can be registered over HTTP.
pub const MAX_MESSAGE_CHARS: usize = 2000;

impl Listed {
    /// Whether this person has decided the request, alone or with others.
    #[must_use]
    pub fn is_decided_by(&self, user: &UserId) -> bool {
        let Ruling { via, voters, .. } = &self.ruling;
        *via == DecidedVia::Person
            && (self.decided_by.as_ref() == Some(user) || voters.contains(user))
    }

    /// When the agent gives up, whether or not the request could still be decided then: agents on
    /// Redis wait for 300 s. `None` for a registered request, whose agent may come back at any time.
    #[must_use]
    pub fn agent_waits_until(&self) -> Option<DateTime<Utc>> {
        (self.origin == Origin::Redis).then(|| self.asked_at + AGENT_TIMEOUT)
    }
}

/// The message as lists show it.
#[must_use]
pub fn shortened(message: &str) -> String {
    message.chars().take(MAX_MESSAGE_CHARS).collect()
}
