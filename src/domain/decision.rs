//! A person's decision, and the state of a request.

use chrono::{DateTime, Utc};

use super::ids::UserId;

/// The reason recorded and signalled when a person rejects without giving one (wire contract).
pub const DEFAULT_REASON: &str = "User rejected";

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
}

impl Verdict {
    /// `approved` or `rejected`: the status on the wire and in the ledger.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::Approve => "approved",
            Self::Reject { .. } => "rejected",
        }
    }

    /// `approval` or `rejection`: the `type` of the signal.
    #[must_use]
    pub fn signal_type(&self) -> &'static str {
        match self {
            Self::Approve => "approval",
            Self::Reject { .. } => "rejection",
        }
    }

    /// The reason of a rejection.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Approve => None,
            Self::Reject { reason } => Some(reason),
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
    /// `pending`, `approved`, `rejected`, `expired` or `cancelled`: on the wire and in the ledger.
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
