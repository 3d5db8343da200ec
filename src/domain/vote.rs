//! The votes of people on a request that more than one person has to approve.
//!
//! A vote counts for the content and the arguments for which it was given, and only while its voter may
//! approve. Each person has one vote: a later one replaces it.

use chrono::{DateTime, Utc};

use super::approver::Memberships;
use super::ids::UserId;

/// One person's approval, table `hitl_vote`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Who voted.
    pub voter: UserId,
    /// When, UTC.
    pub at: DateTime<Utc>,
    /// The entity tag of the content that was approved.
    pub etag: String,
    /// The fingerprint of the arguments that were approved instead of those that were asked.
    pub arguments: Option<String>,
    /// These arguments, as the person wrote them; `None` also of votes of an older release.
    pub edited: Option<String>,
    /// The roles and groups of the voter's token.
    pub memberships: Memberships,
    /// The rule that let the person vote.
    pub rule: Option<String>,
    /// The version of the policy file.
    pub version: Option<String>,
    /// The `jti` of the voter's token, if it has one.
    pub token_id: Option<String>,
    /// The token has been revoked since: the vote counts no longer.
    pub is_revoked: bool,
}

impl Vote {
    /// Whether another vote says the same: of the same person on the same content, under the same rule.
    #[must_use]
    pub fn repeats(&self, other: &Self) -> bool {
        // The fingerprint says which arguments they are, however they are spelled. Any token of the person
        // is as good, but for a revoked one.
        let (at, edited, token_id) = (other.at, other.edited.clone(), other.token_id.clone());
        Self { at, edited, token_id, ..self.clone() } == *other
    }
}
