//! The one door: [`judge`] says whether a caller may decide a request now, and every way to decide asks it.
//!
//! The ledger writes a decision only with a [`Permit`], and a vote only with a [`Ballot`]. Both are made
//! here alone, so a route that decides and does not ask does not compile. All functions are pure.

use chrono::{DateTime, Utc};

use crate::domain::approver::Caller;
use crate::domain::decision::{Decision, Verdict};
use crate::domain::ids::RequestId;
use crate::domain::record::{Candidate, Ruling};
use crate::domain::rules::{self, Policy, Refusal};
use crate::domain::session::SessionPointer;
use crate::domain::vote::Vote;

/// The proof that a decision on a request was judged. Nothing else makes one:
///
/// ```compile_fail
/// use aura_hitl::permit::Permit;
///
/// fn decide_without_asking(permit: Permit) -> Permit {
///     Permit { vote: None, ..permit }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Permit {
    decision: Decision,
    request: RequestId,
    content_hash: String,
    ruling: Ruling,
    vote: Option<Vote>,
}

impl Permit {
    /// The decision.
    #[must_use]
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// What the policy file says of the request.
    #[must_use]
    pub fn ruling(&self) -> &Ruling {
        &self.ruling
    }

    /// The vote that completes the decision, if more than one person makes it.
    #[must_use]
    pub fn vote(&self) -> Option<&Vote> {
        self.vote.as_ref()
    }

    /// Whether the permit is for this request, with the content that it has now.
    #[must_use]
    pub fn is_for(&self, candidate: &Candidate) -> bool {
        self.request == candidate.request.id && self.content_hash == candidate.request.content_hash
    }
}

/// The proof that a vote that does not decide was judged.
#[derive(Clone, Debug)]
pub struct Ballot {
    vote: Vote,
    ruling: Ruling,
}

impl Ballot {
    /// The vote.
    #[must_use]
    pub fn vote(&self) -> &Vote {
        &self.vote
    }

    /// What the policy file says of the request. Its `approvals` count this vote.
    #[must_use]
    pub fn ruling(&self) -> &Ruling {
        &self.ruling
    }
}

/// Whether this caller may decide this request now. `pointer` is the pointer of the request's session.
///
/// # Errors
/// Those of [`rules::decide`]. Then nothing may be recorded.
pub fn judge(
    candidate: &Candidate,
    pointer: &SessionPointer,
    caller: &Caller,
    verdict: Verdict,
    now: DateTime<Utc>,
    policy: Policy,
) -> Result<Permit, Refusal> {
    let decision = rules::decide(candidate, pointer, caller, verdict, now, policy)?;
    Ok(Permit {
        decision,
        request: candidate.request.id.clone(),
        content_hash: candidate.request.content_hash.clone(),
        ruling: Ruling::default(),
        vote: None,
    })
}
