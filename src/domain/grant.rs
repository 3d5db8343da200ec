//! A grant: a person's approval that stands for later requests, until a time.
//!
//! A grant covers requests of one tenant, requester, origin and action, of one session or of all, that say
//! the same or anything. It approves nothing by itself: whether its granter may still approve such a
//! request is asked of the policy each time (`permit`).

use chrono::{DateTime, TimeDelta, Utc};

use super::approver::Memberships;
use super::ids::{GrantId, RequestId, SessionId, TenantId, UserId};
use super::record::Candidate;
use super::request::{Origin, said};
use super::ways::Remember;

/// The longest time for which a grant stands, in seconds.
pub const MAX_GRANT_SECONDS: i64 = 28_800;

/// Of whom a grant covers requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Of the session of the approved request.
    Session,
    /// Of its requester, in every session.
    Requester,
}

impl Scope {
    /// The word on the wire and in SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Requester => "requester",
        }
    }

    /// The scope of this word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Session, Self::Requester].into_iter().find(|scope| scope.as_str() == word)
    }
}

/// What a person asks to remember with an approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Of whom later requests are approved.
    pub scope: Scope,
    /// Whether they must say the same: [`Remember::Exact`] or [`Remember::Any`].
    pub arguments: Remember,
    /// For how long.
    pub time: TimeDelta,
}

/// A grant, table `hitl_grant`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its id.
    pub id: GrantId,
    /// The tenant of its requests.
    pub tenant: TenantId,
    /// The request that was approved when it was made.
    pub request: RequestId,
    /// Who approved.
    pub granter: UserId,
    /// The roles and groups of the granter's token.
    pub memberships: Memberships,
    /// The requester of its requests.
    pub requester: UserId,
    /// Where its requests are first written.
    pub origin: Origin,
    /// Of whom it covers requests.
    pub scope: Scope,
    /// The session of the approved request.
    pub session: SessionId,
    /// The action of its requests.
    pub action_type: String,
    /// The hash of what its requests say, see [`said`]; `None` covers any arguments.
    pub said: Option<String>,
    /// The rule that let the granter approve.
    pub rule: Option<String>,
    /// The version of the policy file.
    pub version: Option<String>,
    /// The `jti` of the granter's token, if it has one.
    pub token_id: Option<String>,
    /// When it was made, UTC.
    pub created_at: DateTime<Utc>,
    /// When it expires, UTC.
    pub expires_at: DateTime<Utc>,
}

impl Grant {
    /// How much a rule must let approvals be remembered for this grant.
    #[must_use]
    pub fn arguments(&self) -> Remember {
        if self.said.is_some() { Remember::Exact } else { Remember::Any }
    }

    /// Whether a person who asks for this would get the same grant.
    #[must_use]
    pub fn fulfils(&self, wish: &Wish) -> bool {
        self.scope == wish.scope
            && self.arguments() == wish.arguments
            && self.expires_at - self.created_at == wish.time
    }

    /// Whether it covers a request of this tenant that is asked now.
    #[must_use]
    pub fn covers(&self, candidate: &Candidate, tenant: &TenantId, now: DateTime<Utc>) -> bool {
        let Candidate { request, origin, user, .. } = candidate;
        now < self.expires_at
            && self.tenant == *tenant
            && user.as_ref() == Some(&self.requester)
            && self.origin == *origin
            && (self.scope == Scope::Requester || self.session == request.session)
            && self.action_type == request.action_type
            // What waited in Redis when it was made is for people to decide.
            && (*origin == Origin::Http || self.created_at <= candidate.created_at)
            && self.said.as_ref().is_none_or(|hash| *hash == said(&request.document))
    }
}
