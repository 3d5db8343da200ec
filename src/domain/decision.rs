//! A person's decision, and the state of a request.

use chrono::{DateTime, Utc};

use super::ids::UserId;
use super::ways::Way;

/// The reason recorded and signalled when a person rejects without giving one (wire contract).
pub const DEFAULT_REASON: &str = "User rejected";
/// The column `reason` of an answer, for replicas of an older release.
const ANSWERED: &str = "Answered instead";

/// A person's answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The agent may act.
    Approve,
    /// The agent must not act.
    Reject {
        /// The reason in the person's words; [`DEFAULT_REASON`] if the person gave none.
        reason: String,
    },
    /// The agent may act, with these arguments instead of those that it asked for.
    Edit {
        /// A JSON object, as the person wrote it: what takes the place of the request's `context`.
        arguments: String,
    },
    /// The agent must not act; it gets this answer.
    Respond {
        /// Any JSON, as the person wrote it.
        response: String,
    },
}

impl Verdict {
    /// The way in which the person decides.
    #[must_use]
    pub fn way(&self) -> Way {
        match self {
            Self::Approve => Way::Approve,
            Self::Reject { .. } => Way::Reject,
            Self::Edit { .. } => Way::Edit,
            Self::Respond { .. } => Way::Respond,
        }
    }

    /// `approved`, `rejected` or `answered`: the status on the wire.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::Approve | Self::Edit { .. } => "approved",
            Self::Reject { .. } => "rejected",
            Self::Respond { .. } => "answered",
        }
    }

    /// `approved` or `rejected`: the column `status`. An answer has the status of a rejection there, and a
    /// response: a replica of an older release, which knows no answers, tells the agent not to act.
    #[must_use]
    pub fn column_status(&self) -> &'static str {
        match self {
            Self::Approve | Self::Edit { .. } => "approved",
            Self::Reject { .. } | Self::Respond { .. } => "rejected",
        }
    }

    /// `approval`, `rejection` or `answer`: the `type` of the signal. Only the first two are ever sent to
    /// Redis.
    #[must_use]
    pub fn signal_type(&self) -> &'static str {
        match self {
            Self::Approve | Self::Edit { .. } => "approval",
            Self::Reject { .. } => "rejection",
            Self::Respond { .. } => "answer",
        }
    }

    /// The reason of a rejection.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Approve | Self::Edit { .. } | Self::Respond { .. } => None,
            Self::Reject { reason } => Some(reason),
        }
    }

    /// The column `reason`, which every row with the status of a rejection has.
    #[must_use]
    pub fn column_reason(&self) -> Option<&str> {
        match self {
            Self::Respond { .. } => Some(ANSWERED),
            verdict => verdict.reason(),
        }
    }

    /// The arguments of an edit: a JSON object.
    #[must_use]
    pub fn arguments(&self) -> Option<&str> {
        match self {
            Self::Edit { arguments } => Some(arguments),
            Self::Approve | Self::Reject { .. } | Self::Respond { .. } => None,
        }
    }

    /// The answer: any JSON.
    #[must_use]
    pub fn response(&self) -> Option<&str> {
        match self {
            Self::Respond { response } => Some(response),
            Self::Approve | Self::Reject { .. } | Self::Edit { .. } => None,
        }
    }

    /// Whether another verdict says the same. The reason of a rejection does not count.
    #[must_use]
    pub fn repeats(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Reject { .. }, Self::Reject { .. }) => true,
            (one, other) => one == other,
        }
    }
}

/// A verdict, with the person who gave it and the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Approve or reject.
    pub verdict: Verdict,
    /// The user who decided.
    pub by: UserId,
    /// The time of the decision, UTC.
    pub at: DateTime<Utc>,
}

/// The state of a request in the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody has decided.
    Pending,
    /// A person has decided.
    Decided(Decision),
    /// The request expired before anybody decided.
    Expired,
    /// The agent withdrew the request before anybody decided.
    Cancelled,
}

impl State {
    /// `pending`, `approved`, `rejected`, `answered`, `expired` or `cancelled`: on the wire.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Decided(decision) => decision.verdict.status(),
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    /// The decision; `None` in every state but [`State::Decided`].
    #[must_use]
    pub fn decision(&self) -> Option<&Decision> {
        match self {
            Self::Decided(decision) => Some(decision),
            Self::Pending | Self::Expired | Self::Cancelled => None,
        }
    }
}
